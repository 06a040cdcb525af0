/**
 * Known terminals, their queues and their rosters, in the school's file. Rows of the device tables are captured and go up
 * like any other; what changes with every poll is kept in memory.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { Cron } from "croner"
import { readText, safely } from "../libsql/cells.ts"
import { ident, Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import type { Manifest } from "../model/table.ts"
import { isZone, timestamptz } from "./clock.ts"
import { cutName, deleteUser, judgeResult, type CommandResult, manualCommands, type QueuedCommand, updateUser } from "./command.ts"
import { type Held, type Person, rosterSteps } from "./roster.ts"

/** Unknown terminals that are remembered; more are refused without a trace. */
export const MAX_PENDING = 50
/** A sent command without a result is sent again after this; after so many tries it has failed. */
const RESEND_MS = 60_000
const MAX_ATTEMPTS = 10
const ROSTER_POLL_MS = 500
/** Seen-at is written down at most this often; the memory knows better while the node runs. */
const SEEN_SAVE_MS = 600_000
/** Compares roster, confirmed state and the terminal's own counts. */
const VERIFY_CRON = "0 */2 * * *"

export class DeviceRefused extends Data.TaggedError("DeviceRefused")<{ readonly code: "not_found" | "not_ready" | "invalid"; readonly message: string }> {}

export interface Device {
  readonly id: number
  readonly serial: string
  readonly name: string
  readonly status: "pending" | "approved" | "retired"
  readonly zone: string
  readonly address: string | null
  readonly pinned_address: string | null
  readonly model: string | null
  readonly firmware: string | null
  readonly push_version: string | null
  readonly users_reported: number | null
  readonly punches_reported: number | null
  readonly att_stamp: string
  readonly op_stamp: string
  readonly first_seen_at: string
  readonly last_seen_at: string | null
  readonly approved_at: string | null
}

export interface DeviceSyncRow {
  readonly pin: string
  readonly person_table: string
  readonly person_id: string
  readonly name: string
  readonly card: string | null
  readonly status: string
  readonly attempts: number
  readonly error: string | null
  readonly synced_at: string | null
}

export interface DeviceSync {
  readonly device: Device
  readonly summary: { readonly total: number; readonly synced: number; readonly pending: number; readonly failed: number; readonly not_synced: number }
  readonly people: ReadonlyArray<DeviceSyncRow>
}

/** The school and its tables; null before the first contact with the hub. */
export const readSchool = (tx: Tx): Effect.Effect<{ readonly school: string; readonly manifest: Manifest } | null, LibsqlError> =>
  Effect.map(tx.all<{ school: string | null; manifest: string | null }>("SELECT school, manifest FROM schoolbus_state"), ([row]) =>
    row?.school == null || row.manifest === null ? null : { school: row.school, manifest: JSON.parse(row.manifest) as Manifest },
  )

/** People whom terminals should hold, by the config's rule. */
const readPeople = (tx: Tx, manifest: Manifest) =>
  Effect.gen(function* () {
    const people: Array<Person> = []
    for (const [name, rule] of Object.entries(manifest.devices?.people ?? {})) {
      const table = manifest.tables.find((t) => t.name === name)
      if (table === undefined) continue
      const column = (wanted: string | undefined) => (wanted === undefined ? "NULL" : safely(ident(wanted)))
      const active = rule.active === undefined ? "1" : `(${ident(rule.active)} IS NOT NULL AND ${ident(rule.active)} NOT IN (0, '0', 'f', 'false', '', 'inactive', 'no'))`
      const carries = [rule.card, rule.pin].flatMap((c) => (c === undefined ? [] : [`coalesce(${ident(c)}, '') <> ''`]))
      const rows = yield* tx.values(
        `SELECT ${column(rule.id)}, ${column(rule.name)}, ${column(rule.card)}, ${column(rule.pin)} FROM ${ident(table.local)}
          WHERE ${active} ${carries.length === 0 ? "" : `AND (${carries.join(" OR ")})`} ORDER BY ${ident(rule.id)}`,
      )
      for (const [id, personName, card, pin] of rows) {
        const text = (cell: (typeof rows)[number][number] | undefined): string | null => (cell == null ? null : readText(cell) === "" ? null : readText(cell))
        people.push({ table: name, id: text(id) ?? "", name: text(personName) ?? "", card: text(card), pin: text(pin) })
      }
    }
    return people
  })

const nextCommandId = (tx: Tx, school: string, device: number) =>
  Effect.map(tx.all<{ id: number }>("SELECT coalesce(max(id), 0) + 1 AS id FROM device_commands WHERE school = ? AND device_id = ?", [school, device]), ([row]) => row?.id ?? 1)

const insertCommand = `INSERT INTO device_commands (school, device_id, id, command, pin, status, attempts, created_at) VALUES (?,?,?,?,?,'pending',0,?)`

/** Brings the queue of one terminal in line with its roster; the number of commands queued. */
const reconcile = (tx: Tx, school: string, device: Device, people: ReadonlyArray<Person>, now: number, everyone: boolean) =>
  Effect.gen(function* () {
    const at = timestamptz(now)
    const mappings = yield* tx.all<{ device_id: number; pin: string; person_table: string; person_id: string }>(
      "SELECT device_id, pin, person_table, person_id FROM device_user_mappings WHERE school = ? ORDER BY device_id = ? , device_id DESC",
      [school, device.id],
    )
    const taken = new Map(mappings.map((row) => [row.pin, { table: row.person_table, id: row.person_id }]))
    const mapped = new Set(mappings.filter((row) => row.device_id === device.id).map((row) => row.pin))
    const held = yield* tx.all<{ pin: string; person_table: string; person_id: string; name: string; card: string | null; status: string; command: string | null }>(
      `SELECT s.pin, s.person_table, s.person_id, s.name, s.card, s.status, c.command FROM device_user_sync_status s
         LEFT JOIN device_commands c ON c.school = s.school AND c.device_id = s.device_id AND c.id = s.command_id WHERE s.school = ? AND s.device_id = ?`,
      [school, device.id],
    )
    const toHeld = held.map((row): Held => {
      const removing = row.command?.startsWith("DATA DELETE") === true
      // Everyone again: nothing that was confirmed before counts.
      return { pin: row.pin, table: row.person_table, id: row.person_id, name: everyone ? "\0" : row.name, card: row.card, status: row.status, removing }
    })
    const steps = rosterSteps(people, toHeld, taken)
    let id = yield* nextCommandId(tx, school, device.id)
    for (const step of steps) {
      const pin = step.kind === "add" ? step.pin : step.held.pin
      const command = step.kind === "add" ? updateUser({ pin, name: step.person.name, card: step.person.card }) : deleteUser(pin)
      const table = step.kind === "add" ? step.person.table : step.held.table
      const person = step.kind === "add" ? step.person.id : step.held.id
      if (step.kind === "add" && !mapped.has(pin)) {
        mapped.add(pin)
        yield* tx.run("INSERT INTO device_user_mappings (school, device_id, pin, person_table, person_id, from_at) VALUES (?,?,?,?,?,?)", [school, device.id, pin, table, person, at])
      }
      // The newest command for a pin is the only one that counts.
      yield* tx.run("UPDATE device_commands SET status = 'cancelled' WHERE school = ? AND device_id = ? AND pin = ? AND status IN ('pending', 'sent')", [school, device.id, pin])
      yield* tx.run(insertCommand, [school, device.id, id, command, pin, at])
      yield* tx.run(
        `INSERT INTO device_user_sync_status (school, device_id, pin, person_table, person_id, name, card, status, command_id, attempts, updated_at)
         VALUES (?,?,?,?,?,?,?,'pending',?,0,?)
         ON CONFLICT (school, device_id, pin) DO UPDATE SET name = excluded.name, card = excluded.card, status = 'pending', command_id = excluded.command_id,
           attempts = 0, error = NULL, updated_at = excluded.updated_at`,
        [school, device.id, pin, table, person, step.kind === "add" ? cutName(step.person.name) : step.held.name, step.kind === "add" ? step.person.card : step.held.card, id, at],
      )
      id++
    }
    return steps.length
  })

export class Devices extends Context.Service<
  Devices,
  {
    readonly list: Effect.Effect<ReadonlyArray<Device>, LibsqlError>
    /** By numeric id or serial. */
    readonly find: (idOrSerial: string) => Effect.Effect<Device, DeviceRefused | LibsqlError>
    /** The terminal behind a request, noted as seen; an unknown one is listed as pending while there is room. null: not yet, or no room. */
    readonly meet: (serial: string, address: string) => Effect.Effect<Device | null, LibsqlError>
    readonly approve: (idOrSerial: string, options: { readonly zone?: string; readonly name?: string; readonly address?: string }) => Effect.Effect<Device, DeviceRefused | LibsqlError>
    /** Everyone again, or only what differs; the number of people and of commands queued. */
    readonly sync: (idOrSerial: string, everyone: boolean) => Effect.Effect<{ readonly device: Device; readonly people: number; readonly queued: number }, DeviceRefused | LibsqlError>
    readonly status: (idOrSerial: string) => Effect.Effect<DeviceSync, DeviceRefused | LibsqlError>
    /** Queues one of the commands a person may send; its id. */
    readonly command: (idOrSerial: string, name: string) => Effect.Effect<number, DeviceRefused | LibsqlError>
    /** What to send now; marked as sent before it is returned. */
    readonly due: (device: Device) => Effect.Effect<ReadonlyArray<QueuedCommand>, LibsqlError>
    readonly sent: (device: Device, ids: ReadonlyArray<number>) => Effect.Effect<void, LibsqlError>
    readonly results: (device: Device, results: ReadonlyArray<CommandResult>) => Effect.Effect<void, LibsqlError>
    readonly learn: (device: Device, facts: Readonly<Partial<Record<"model" | "firmware" | "push_version" | "users_reported" | "punches_reported", string | number>>>) => Effect.Effect<void, LibsqlError>
  }
>()("schoolbus/iclock/Devices") {
  static readonly layer: Layer.Layer<Devices, never, Libsql> = Layer.effect(
    Devices,
    Effect.gen(function* () {
      const db = yield* Libsql
      const seen = new Map<string, { at: number; address: string; savedAt: number }>()

      const columns = "id, serial, name, status, zone, address, pinned_address, model, firmware, push_version, users_reported, punches_reported, att_stamp, op_stamp, first_seen_at, last_seen_at, approved_at"
      const hasTable = (tx: Tx) => Effect.map(tx.all<{ n: number }>("SELECT count(*) AS n FROM sqlite_master WHERE type = 'table' AND name = 'devices'"), ([row]) => row?.n === 1)
      const readAll = (tx: Tx) => Effect.gen(function* () {
        if (!(yield* hasTable(tx))) return [] as ReadonlyArray<Device>
        const rows = yield* tx.all<Device>(`SELECT ${columns} FROM devices ORDER BY id`)
        return rows.map((row) => {
          const live = seen.get(row.serial)
          return live === undefined ? row : { ...row, last_seen_at: timestamptz(live.at), address: live.address }
        })
      })
      const pick = (devices: ReadonlyArray<Device>, wanted: string): Effect.Effect<Device, DeviceRefused> => {
        const found = devices.find((device) => device.serial === wanted) ?? devices.find((device) => String(device.id) === wanted)
        return found === undefined
          ? Effect.fail(new DeviceRefused({ code: "not_found", message: `no terminal ${wanted} here; see: schoolbus devices list` }))
          : Effect.succeed(found)
      }
      const list = db.read(readAll)
      const find = (wanted: string) => Effect.flatMap(list, (devices) => pick(devices, wanted))
      const school = (tx: Tx) =>
        Effect.flatMap(readSchool(tx), (state) =>
          state === null
            ? Effect.fail(new DeviceRefused({ code: "not_ready", message: "this node has not been in contact with the hub yet, so it does not know its school" }))
            : Effect.succeed(state),
        )

      const meet = Effect.fnUntraced(function* (serial: string, address: string) {
        const now = yield* Clock.currentTimeMillis
        const known = (yield* list).find((device) => device.serial === serial)
        const before = seen.get(serial)
        if (known !== undefined) {
          const savedAt = before?.savedAt ?? 0
          seen.set(serial, { at: now, address, savedAt })
          if (now - savedAt > SEEN_SAVE_MS) {
            seen.set(serial, { at: now, address, savedAt: now })
            yield* db.write((tx) => tx.run("UPDATE devices SET last_seen_at = ?, address = ? WHERE serial = ?", [timestamptz(now), address, serial]))
          }
          return known
        }
        yield* db.write((tx) =>
          Effect.gen(function* () {
            const state = yield* readSchool(tx)
            if (state === null || !(yield* hasTable(tx))) return
            const [row] = yield* tx.all<{ pending: number; next: number }>("SELECT sum(status = 'pending') AS pending, coalesce(max(id), 0) + 1 AS next FROM devices")
            if ((row?.pending ?? 0) >= MAX_PENDING) return
            yield* tx.run(
              `INSERT INTO devices (school, id, serial, name, status, zone, address, att_stamp, op_stamp, first_seen_at, last_seen_at) VALUES (?,?,?,?,'pending','UTC',?,'0','0',?,?)
               ON CONFLICT DO NOTHING`,
              [state.school, row?.next ?? 1, serial, serial, address, timestamptz(now), timestamptz(now)],
            )
          }),
        )
        return null
      })

      const withRoster = (tx: Tx, only: string | null, everyone: boolean, now: number) =>
        Effect.gen(function* () {
          const state = yield* school(tx)
          const people = yield* readPeople(tx, state.manifest)
          const devices = (yield* readAll(tx)).filter((device) => device.status === "approved" && (only === null || device.serial === only))
          let queued = 0
          for (const device of devices) queued += yield* reconcile(tx, state.school, device, people, now, everyone)
          return { people: people.length, queued }
        })

      const approve = Effect.fnUntraced(function* (wanted: string, options: { readonly zone?: string; readonly name?: string; readonly address?: string }) {
        if (options.zone !== undefined && !isZone(options.zone)) {
          return yield* new DeviceRefused({ code: "invalid", message: `${options.zone} is not a time zone; write it like Africa/Nairobi` })
        }
        const now = yield* Clock.currentTimeMillis
        yield* db.write((tx) =>
          Effect.gen(function* () {
            yield* school(tx)
            const device = yield* pick(yield* readAll(tx), wanted).pipe(
              // A serial may be approved before the terminal has called for the first time.
              Effect.catchTag("DeviceRefused", (error) => (/^[A-Za-z0-9_-]{3,64}$/.test(wanted) && !/^\d{1,4}$/.test(wanted) ? Effect.succeed(null) : Effect.fail(error))),
            )
            if (device === null) {
              const state = yield* school(tx)
              const [row] = yield* tx.all<{ next: number }>("SELECT coalesce(max(id), 0) + 1 AS next FROM devices")
              yield* tx.run(
                `INSERT INTO devices (school, id, serial, name, status, zone, att_stamp, op_stamp, first_seen_at) VALUES (?,?,?,?,'pending','UTC','0','0',?)`,
                [state.school, row?.next ?? 1, wanted, wanted, timestamptz(now)],
              )
            }
            yield* tx.run(
              `UPDATE devices SET status = 'approved', approved_at = ?, zone = coalesce(?, zone), name = coalesce(?, name), pinned_address = coalesce(?, pinned_address) WHERE serial = ?`,
              [timestamptz(now), options.zone ?? null, options.name ?? null, options.address ?? null, device?.serial ?? wanted],
            )
            yield* withRoster(tx, device?.serial ?? wanted, false, now)
          }),
        )
        return yield* find(wanted)
      })

      const sync = Effect.fnUntraced(function* (wanted: string, everyone: boolean) {
        const device = yield* find(wanted)
        if (device.status !== "approved") return yield* new DeviceRefused({ code: "invalid", message: `terminal ${device.serial} is not approved; run: schoolbus devices approve ${device.serial}` })
        const now = yield* Clock.currentTimeMillis
        return { device, ...(yield* db.write((tx) => withRoster(tx, device.serial, everyone, now))) }
      })

      const status = Effect.fnUntraced(function* (wanted: string) {
        const device = yield* find(wanted)
        return yield* db.read((tx) =>
          Effect.gen(function* () {
            const state = yield* school(tx)
            const people = yield* readPeople(tx, state.manifest)
            const rows = yield* tx.all<DeviceSyncRow>(
              `SELECT pin, person_table, person_id, name, card, status, attempts, error, synced_at FROM device_user_sync_status
                WHERE school = ? AND device_id = ? ORDER BY length(pin), pin`,
              [state.school, device.id],
            )
            const counted = (wantedStatus: ReadonlyArray<string>) => rows.filter((row) => wantedStatus.includes(row.status)).length
            const known = new Set(rows.filter((row) => row.status !== "deleted").map((row) => `${row.person_table}\0${row.person_id}`))
            return {
              device,
              summary: {
                total: people.length,
                synced: counted(["synced"]),
                pending: counted(["pending", "sent"]),
                failed: counted(["failed"]),
                not_synced: people.filter((person) => !known.has(`${person.table}\0${person.id}`)).length,
              },
              people: rows,
            }
          }),
        )
      })

      const command = Effect.fnUntraced(function* (wanted: string, name: string) {
        const text = manualCommands[name.toUpperCase()]
        if (text === undefined) {
          return yield* new DeviceRefused({ code: "invalid", message: `${name} is not a command; known are ${Object.keys(manualCommands).join(", ")}` })
        }
        const device = yield* find(wanted)
        const now = yield* Clock.currentTimeMillis
        return yield* db.write((tx) =>
          Effect.gen(function* () {
            const state = yield* school(tx)
            const id = yield* nextCommandId(tx, state.school, device.id)
            yield* tx.run(insertCommand, [state.school, device.id, id, text, null, timestamptz(now)])
            return id
          }),
        )
      })

      const due = (device: Device) =>
        Effect.gen(function* () {
          const now = yield* Clock.currentTimeMillis
          return yield* db.read((tx) =>
            tx.all<QueuedCommand>(
              `SELECT id, command FROM device_commands WHERE device_id = ? AND (status = 'pending' OR (status = 'sent' AND sent_at < ?)) ORDER BY id LIMIT 50`,
              [device.id, timestamptz(now - RESEND_MS)],
            ),
          )
        })

      const sent = (device: Device, ids: ReadonlyArray<number>) =>
        Effect.gen(function* () {
          const now = timestamptz(yield* Clock.currentTimeMillis)
          const json = JSON.stringify(ids)
          yield* db.write((tx) =>
            Effect.gen(function* () {
              yield* tx.run(
                `UPDATE device_commands SET status = CASE WHEN attempts >= ${MAX_ATTEMPTS} THEN 'failed' ELSE 'sent' END, attempts = attempts + 1, sent_at = ?,
                        error = CASE WHEN attempts >= ${MAX_ATTEMPTS} THEN 'the terminal never answered' ELSE error END
                  WHERE device_id = ? AND id IN (SELECT value FROM json_each(?))`,
                [now, device.id, json],
              )
              yield* tx.run(
                `UPDATE device_user_sync_status AS s SET status = c.status, attempts = c.attempts, error = c.error, updated_at = ?1
                   FROM device_commands c WHERE c.device_id = ?2 AND s.device_id = ?2 AND c.school = s.school AND c.id = s.command_id AND c.id IN (SELECT value FROM json_each(?3))`,
                [now, device.id, json],
              )
            }),
          )
        })

      const results = (device: Device, answers: ReadonlyArray<CommandResult>) =>
        Effect.gen(function* () {
          const now = timestamptz(yield* Clock.currentTimeMillis)
          yield* db.write((tx) =>
            Effect.gen(function* () {
              for (const { id, result } of answers) {
                const [row] = yield* tx.all<{ command: string; status: string; attempts: number }>("SELECT command, status, attempts FROM device_commands WHERE device_id = ? AND id = ?", [device.id, id])
                // Repeated results and ids that were never issued change nothing.
                if (row === undefined || row.status === "done" || row.status === "failed" || row.status === "cancelled") continue
                const { outcome, error } = judgeResult(row.command, result)
                const next = outcome === "retry" ? (row.attempts >= MAX_ATTEMPTS ? "failed" : "pending") : outcome
                yield* tx.run("UPDATE device_commands SET status = ?, result = ?, error = ?, done_at = CASE WHEN ?1 = 'pending' THEN NULL ELSE ? END WHERE device_id = ? AND id = ?", [next, result, error, now, device.id, id])
                const isDelete = row.command.startsWith("DATA DELETE USERINFO")
                const person = next === "done" ? (isDelete ? "deleted" : "synced") : next
                yield* tx.run(
                  `UPDATE device_user_sync_status SET status = ?1, error = ?2, updated_at = ?3, synced_at = CASE WHEN ?1 = 'synced' THEN ?3 ELSE synced_at END WHERE device_id = ?4 AND command_id = ?5`,
                  [person, error, now, device.id, id],
                )
              }
            }),
          )
        })

      const learn = (device: Device, facts: Readonly<Record<string, string | number>>) => {
        const changed = Object.entries(facts).filter(([name, value]) => device[name as keyof Device] !== value)
        if (changed.length === 0) return Effect.void
        return Effect.asVoid(
          db.write((tx) => tx.run(`UPDATE devices SET ${changed.map(([name]) => `${ident(name)} = ?`).join(", ")} WHERE serial = ?`, [...changed.map(([, value]) => value), device.serial])),
        )
      }

      /** Marks that triggers made become commands, for every approved terminal. */
      const onMarks = Effect.gen(function* () {
        const [any] = yield* db.read((tx) => tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM schoolbus_roster_dirty) AS n"))
        if (any?.n !== 1) return
        const now = yield* Clock.currentTimeMillis
        yield* db.write((tx) =>
          Effect.gen(function* () {
            yield* tx.run("DELETE FROM schoolbus_roster_dirty")
            if ((yield* readSchool(tx)) !== null) yield* withRoster(tx, null, false, now)
          }),
        )
      })
      yield* Effect.forkScoped(Effect.repeat(Effect.ignoreCause(onMarks, { log: "Warn" }), Schedule.spaced(ROSTER_POLL_MS)))
      // Marks everyone: the next round compares each terminal with its roster.
      const verify = Effect.asVoid(db.write((tx) => tx.run("INSERT OR IGNORE INTO schoolbus_roster_dirty (tbl, key) VALUES ('*', 'verification')")))
      yield* Effect.acquireRelease(
        Effect.sync(() => new Cron(VERIFY_CRON, () => void Effect.runPromise(Effect.ignoreCause(verify, { log: "Warn" })))),
        (job) => Effect.sync(() => job.stop()),
      )

      return Devices.of({ list, find, meet, approve, sync, status, command, due, sent, results, learn: learn as never })
    }),
  )
}

/** Triggers that mark a person in the writing transaction, whoever writes. */
export const installRoster = (tx: Tx, manifest: Manifest): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const present = new Map(
      (yield* tx.all<{ name: string; sql: string }>("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name GLOB 'schoolbus_roster_*'")).map((row) => [row.name, row.sql]),
    )
    const wanted = new Map<string, string>()
    for (const name of Object.keys(manifest.devices?.people ?? {})) {
      const table = manifest.tables.find((t) => t.name === name)
      if (table === undefined) continue
      for (const [suffix, event, row] of [["i", "INSERT", "NEW"], ["u", "UPDATE", "NEW"], ["d", "DELETE", "OLD"]] as const) {
        const trigger = `schoolbus_roster_${table.local}_${suffix}`
        const key = table.key.map((column) => `quote(${row}.${ident(column)})`).join(" || ',' || ")
        wanted.set(
          trigger,
          `CREATE TRIGGER ${ident(trigger)} AFTER ${event} ON ${ident(table.local)} BEGIN INSERT OR IGNORE INTO schoolbus_roster_dirty (tbl, key) VALUES ('${table.local.replaceAll("'", "''")}', ${key}); END`,
        )
      }
    }
    for (const name of present.keys()) if (!wanted.has(name)) yield* tx.exec(`DROP TRIGGER ${ident(name)}`)
    for (const [name, sql] of wanted) {
      if (present.get(name) === sql) continue
      yield* tx.exec(`DROP TRIGGER IF EXISTS ${ident(name)}`)
      yield* tx.exec(sql)
    }
    yield* tx.run("INSERT OR IGNORE INTO schoolbus_roster_dirty (tbl, key) VALUES ('*', 'tables')")
  })
