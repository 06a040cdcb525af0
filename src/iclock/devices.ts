/**
 * Known terminals and their queues of commands, in the school's file: ordinary rows, captured and sent up like any other.
 * This is the only writer of `devices` and `device_commands`, so what a poll asks is answered from memory, and a poll of a
 * terminal with nothing to do touches no file.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { ident, Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import type { Manifest } from "../model/table.ts"
import { isZone, timestamptz } from "./clock.ts"
import { type CardForm, type CommandResult, commandAnswer, inCardForm, isDelete, judgeResult, manualCommands, type QueuedCommand } from "./command.ts"
import type { School } from "./punches.ts"

/** Unknown terminals that are listed; more are refused without a trace. */
export const MAX_PENDING = 50
/** A command whose result has not come is sent again after this, with the same id; after so many times it has failed. */
export const RESEND_MS = 60_000
export const MAX_ATTEMPTS = 10
/** Last seen is written down at most this often; the memory knows better while the node runs. */
const SEEN_SAVE_MS = 600_000
/** A terminal that called within this is in touch: what it sends now happened now. */
const LIVE_MS = 60_000

export class DeviceRefused extends Data.TaggedError("DeviceRefused")<{
  readonly code: "not_found" | "not_ready" | "invalid"
  readonly message: string
}> {}

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
  readonly skew_seconds: number | null
  readonly att_stamp: string
  readonly op_stamp: string
  readonly first_seen_at: string
  readonly last_seen_at: string | null
  readonly approved_at: string | null
}

/** Who calls. `unknown`: not listed, or listed just now. `not_ready`: this node does not know its school yet. */
export type Met =
  | { readonly kind: "known"; readonly device: Device; readonly isLive: boolean }
  | { readonly kind: "unknown" }
  | { readonly kind: "not_ready" }

export type DeviceFacts = Partial<
  Pick<Device, "model" | "firmware" | "push_version" | "users_reported" | "punches_reported" | "skew_seconds" | "att_stamp" | "op_stamp">
>

const COLUMNS = `id, serial, name, status, zone, address, pinned_address, model, firmware, push_version, users_reported,
  punches_reported, skew_seconds, att_stamp, op_stamp, first_seen_at, last_seen_at, approved_at`

const parsed = { text: "", manifest: null as Manifest | null }

/** The school and its tables; null before the first manifest stands in the file. */
export const readSchool = (tx: Tx): Effect.Effect<School | null, LibsqlError> =>
  Effect.gen(function* () {
    const [row] = yield* tx.all<{ school: string | null; manifest: string | null; ready: number }>(
      "SELECT school, manifest, EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'devices') AS ready FROM schoolbus_state",
    )
    if (row?.school == null || row.manifest === null || row.ready !== 1) return null
    if (parsed.text !== row.manifest) Object.assign(parsed, { text: row.manifest, manifest: JSON.parse(row.manifest) as Manifest })
    return { school: row.school, manifest: parsed.manifest as Manifest }
  })

/** Queues commands of one terminal; the ids they got. Inside the caller's transaction. */
export const queueCommands = (
  tx: Tx,
  of: { readonly school: string; readonly deviceId: number; readonly now: number },
  commands: ReadonlyArray<{ readonly command: string; readonly pin: string | null }>,
): Effect.Effect<ReadonlyArray<number>, LibsqlError> =>
  Effect.gen(function* () {
    const [row] = yield* tx.all<{ id: number }>("SELECT coalesce(max(id), 0) + 1 AS id FROM device_commands WHERE school = ? AND device_id = ?", [
      of.school,
      of.deviceId,
    ])
    const first = row?.id ?? 1
    yield* tx.many(
      "INSERT INTO device_commands (school, device_id, id, command, pin, status, attempts, created_at) VALUES (?,?,?,?,?,'pending',0,?)",
      commands.map(({ command, pin }, i) => [of.school, BigInt(of.deviceId), BigInt(first + i), command, pin, timestamptz(of.now)]),
    )
    return commands.map((_, i) => first + i)
  })

/** Makes the roster look at everyone, also at what failed before. */
export const markAll = (tx: Tx): Effect.Effect<number, LibsqlError> =>
  tx.run("INSERT OR IGNORE INTO schoolbus_roster_dirty (tbl, taken) VALUES ('*', 0)")

/** Old firmware names no protocol version in its handshake. */
export const cardFormOf = (device: Device): CardForm => (device.push_version === null ? "bracket" : "decimal")

const OPEN = "status IN ('pending', 'sent')"

export class Devices extends Context.Service<
  Devices,
  {
    readonly list: Effect.Effect<ReadonlyArray<Device>, LibsqlError>
    /** By numeric id or serial. */
    readonly find: (idOrSerial: string) => Effect.Effect<Device, DeviceRefused | LibsqlError>
    /** The terminal behind a request, noted as seen; an unknown one is listed as pending while there is room. */
    readonly meet: (serial: string, address: string) => Effect.Effect<Met, LibsqlError>
    /** A serial may be approved before the terminal calls for the first time. Its people are queued by the roster. */
    readonly approve: (
      idOrSerial: string,
      options: { readonly zone?: string; readonly name?: string; readonly address?: string },
    ) => Effect.Effect<Device, DeviceRefused | LibsqlError>
    readonly learn: (device: Device, facts: DeviceFacts) => Effect.Effect<void, LibsqlError>
    /** The commands to send now as the lines of an answer, noted as sent; null when there is nothing to do. */
    readonly take: (device: Device) => Effect.Effect<string | null, LibsqlError>
    readonly results: (device: Device, results: ReadonlyArray<CommandResult>) => Effect.Effect<void, LibsqlError>
    /** Queues one of the commands a person may send; its id. */
    readonly command: (idOrSerial: string, name: string) => Effect.Effect<number, DeviceRefused | LibsqlError>
    /** To be said after other code has committed changes to these tables. */
    readonly changed: Effect.Effect<void>
  }
>()("schoolbus/iclock/Devices") {
  static readonly layer: Layer.Layer<Devices, never, Libsql> = Layer.effect(
    Devices,
    Effect.gen(function* () {
      const db = yield* Libsql
      const seen = new Map<string, { at: number; address: string; savedAt: number }>()

      // What was read before a change is not kept after it.
      let generation = 0
      let cached: { readonly school: string; readonly devices: ReadonlyMap<string, Device> } | null = null
      const idleUntil = new Map<number, number>()
      const changed = Effect.sync(() => {
        generation++
        cached = null
        idleUntil.clear()
      })
      const change = <A, E>(body: (tx: Tx) => Effect.Effect<A, E>) => Effect.tap(db.write(body), () => changed)

      const readAll = (tx: Tx) => tx.all<Device>(`SELECT ${COLUMNS} FROM devices ORDER BY id`)
      const known = Effect.suspend(() => {
        if (cached !== null) return Effect.succeed(cached)
        const before = generation
        return db.read((tx) =>
          Effect.gen(function* () {
            const state = yield* readSchool(tx)
            if (state === null) return null
            const now = { school: state.school, devices: new Map((yield* readAll(tx)).map((device) => [device.serial, device])) }
            if (before === generation) cached = now
            return now
          }),
        )
      })

      const live = (device: Device): Device => {
        const memory = seen.get(device.serial)
        return memory === undefined ? device : { ...device, last_seen_at: timestamptz(memory.at), address: memory.address }
      }
      const list = Effect.map(known, (all) => [...(all?.devices.values() ?? [])].map(live))
      const pick = (devices: ReadonlyArray<Device>, wanted: string): Effect.Effect<Device, DeviceRefused> => {
        const found = devices.find((device) => device.serial === wanted) ?? devices.find((device) => String(device.id) === wanted)
        return found === undefined
          ? Effect.fail(new DeviceRefused({ code: "not_found", message: `no terminal ${wanted} here; see: schoolbus devices list` }))
          : Effect.succeed(found)
      }
      const find = (wanted: string) => Effect.flatMap(list, (devices) => pick(devices, wanted))
      const school = (tx: Tx) =>
        Effect.flatMap(readSchool(tx), (state) =>
          state === null
            ? Effect.fail(
                new DeviceRefused({
                  code: "not_ready",
                  message: "this node has not been in contact with the hub yet, so it does not know its school",
                }),
              )
            : Effect.succeed(state),
        )

      const insertPending = (tx: Tx, ofSchool: string, serial: string, address: string | null, now: number) =>
        tx.run(
          `INSERT INTO devices (school, id, serial, name, status, zone, address, att_stamp, op_stamp, first_seen_at, last_seen_at)
           SELECT ?1, coalesce((SELECT max(id) FROM devices), 0) + 1, ?2, ?2, 'pending', 'UTC', ?3, '0', '0', ?4, CASE WHEN ?3 IS NULL THEN NULL ELSE ?4 END
            WHERE NOT EXISTS (SELECT 1 FROM devices WHERE serial = ?2)`,
          [ofSchool, serial, address, timestamptz(now)],
        )

      const meet = Effect.fnUntraced(function* (serial: string, address: string) {
        const now = yield* Clock.currentTimeMillis
        const all = yield* known
        if (all === null) return { kind: "not_ready" } as const
        const device = all.devices.get(serial)
        if (device === undefined) {
          const pending = [...all.devices.values()].filter((one) => one.status === "pending").length
          if (pending < MAX_PENDING) yield* change((tx) => insertPending(tx, all.school, serial, address, now))
          return { kind: "unknown" } as const
        }
        const before = seen.get(serial)
        const isSaved = before !== undefined && now - before.savedAt < SEEN_SAVE_MS && before.address === address
        seen.set(serial, { at: now, address, savedAt: isSaved ? before.savedAt : now })
        if (!isSaved)
          yield* db.write((tx) => tx.run("UPDATE devices SET last_seen_at = ?, address = ? WHERE serial = ?", [timestamptz(now), address, serial]))
        return { kind: "known", device, isLive: before !== undefined && now - before.at < LIVE_MS } as const
      })

      const approve = Effect.fnUntraced(function* (
        wanted: string,
        options: { readonly zone?: string; readonly name?: string; readonly address?: string },
      ) {
        if (options.zone !== undefined && !isZone(options.zone)) {
          return yield* new DeviceRefused({ code: "invalid", message: `${options.zone} is not a time zone; write it like Africa/Nairobi` })
        }
        const now = yield* Clock.currentTimeMillis
        // The node stands in the school: its own zone is the best guess.
        const here = Intl.DateTimeFormat().resolvedOptions().timeZone
        const serial = yield* change((tx) =>
          Effect.gen(function* () {
            const state = yield* school(tx)
            let device = yield* Effect.option(pick(yield* readAll(tx), wanted))
            if (device._tag === "None" && /^(?!\d{1,4}$)[A-Za-z0-9_-]{3,64}$/.test(wanted)) {
              yield* insertPending(tx, state.school, wanted, null, now)
              device = yield* Effect.option(pick(yield* readAll(tx), wanted))
            }
            const found = device._tag === "Some" ? device.value : yield* pick([], wanted)
            const zone = options.zone ?? (found.approved_at === null ? here : found.zone)
            yield* tx.run(
              "UPDATE devices SET status = 'approved', approved_at = coalesce(approved_at, ?), zone = ?, name = ?, pinned_address = ? WHERE serial = ?",
              [timestamptz(now), zone, options.name ?? found.name, options.address ?? found.pinned_address, found.serial],
            )
            // Another zone reaches the terminal at its next handshake.
            if (found.status === "approved" && zone !== found.zone) {
              yield* queueCommands(tx, { school: state.school, deviceId: found.id, now }, [{ command: "CHECK", pin: null }])
            }
            yield* markAll(tx)
            return found.serial
          }),
        )
        return yield* find(serial)
      })

      const learn = (device: Device, facts: DeviceFacts) => {
        const news = Object.entries(facts).filter(([name, value]) => value !== undefined && device[name as keyof Device] !== value)
        if (news.length === 0) return Effect.void
        const set = news.map(([name]) => `${ident(name)} = ?`).join(", ")
        return Effect.asVoid(change((tx) => tx.run(`UPDATE devices SET ${set} WHERE serial = ?`, [...news.map(([, value]) => value), device.serial])))
      }

      /** Commands that are due; how long there is nothing to do when there are none. */
      const readDue = (tx: Tx, device: Device, now: number) =>
        Effect.gen(function* () {
          const due = yield* tx.all<QueuedCommand & { readonly attempts: number }>(
            `SELECT id, command, attempts FROM device_commands WHERE device_id = ? AND ${OPEN} AND (status = 'pending' OR sent_at < ?) ORDER BY id LIMIT 50`,
            [device.id, timestamptz(now - RESEND_MS)],
          )
          if (due.length > 0) return { due, idleMs: 0 }
          const [row] = yield* tx.all<{ n: number }>(`SELECT EXISTS (SELECT 1 FROM device_commands WHERE device_id = ? AND ${OPEN}) AS n`, [
            device.id,
          ])
          return { due, idleMs: row?.n === 1 ? 1000 : Number.MAX_SAFE_INTEGER }
        })

      const setStatus = (tx: Tx, device: Device, ids: ReadonlyArray<number>, set: string, now: number) =>
        Effect.gen(function* () {
          const json = JSON.stringify(ids)
          yield* tx.run(`UPDATE device_commands SET ${set} WHERE device_id = ?1 AND id IN (SELECT value FROM json_each(?2))`, [
            device.id,
            json,
            timestamptz(now),
          ])
          yield* tx.run(
            `UPDATE device_user_sync_status AS s SET status = c.status, attempts = c.attempts, error = coalesce(c.error, s.error), updated_at = ?3
               FROM device_commands c
              WHERE s.device_id = ?1 AND s.command_id IN (SELECT value FROM json_each(?2)) AND c.school = s.school AND c.device_id = ?1 AND c.id = s.command_id`,
            [device.id, json, timestamptz(now)],
          )
        })

      const take = (device: Device) =>
        Effect.gen(function* () {
          const now = yield* Clock.currentTimeMillis
          if ((idleUntil.get(device.id) ?? 0) > now) return null
          const before = generation
          const { due, idleMs } = yield* db.read((tx) => readDue(tx, device, now))
          if (due.length === 0) {
            if (before === generation) idleUntil.set(device.id, idleMs === Number.MAX_SAFE_INTEGER ? idleMs : now + idleMs)
            return null
          }
          const tired = due.filter((command) => command.attempts >= MAX_ATTEMPTS)
          const form = cardFormOf(device)
          const ready = due.filter((command) => command.attempts < MAX_ATTEMPTS)
          const { text, sent } = commandAnswer(ready.map(({ id, command }) => ({ id, command: inCardForm(command, form) })))
          yield* db.write((tx) =>
            Effect.gen(function* () {
              if (tired.length > 0)
                yield* setStatus(
                  tx,
                  device,
                  tired.map(({ id }) => id),
                  "status = 'failed', done_at = ?3, error = 'the terminal never answered'",
                  now,
                )
              if (sent.length > 0) yield* setStatus(tx, device, sent, "status = 'sent', attempts = attempts + 1, sent_at = ?3", now)
            }),
          )
          return sent.length === 0 ? null : text
        })

      const settle = (tx: Tx, device: Device, { id, result }: CommandResult, now: string) =>
        Effect.gen(function* () {
          const [row] = yield* tx.all<{ command: string; pin: string | null; status: string; attempts: number; result: number | null }>(
            "SELECT command, pin, status, attempts, result FROM device_commands WHERE device_id = ? AND id = ?",
            [device.id, id],
          )
          // A repeated result, one of a command that no longer counts, and an id that was never given out change nothing.
          if (row === undefined || row.status === "done" || row.status === "cancelled" || (row.status === "failed" && row.result !== null)) return
          const { outcome, error } = judgeResult(row.command, result)
          const next = outcome === "retry" ? (row.attempts >= MAX_ATTEMPTS ? "failed" : "sent") : outcome
          yield* tx.run(
            "UPDATE device_commands SET status = ?1, result = ?2, error = ?3, done_at = CASE WHEN ?1 = 'sent' THEN NULL ELSE ?4 END WHERE device_id = ?5 AND id = ?6",
            [next, result, error, now, device.id, id],
          )
          if (row.pin === null) return
          const person = next === "done" ? (isDelete(row.command) ? "deleted" : "synced") : next
          yield* tx.run(
            `UPDATE device_user_sync_status SET status = ?1, error = ?2, updated_at = ?3, synced_at = CASE WHEN ?1 = 'synced' THEN ?3 ELSE synced_at END
              WHERE device_id = ?4 AND command_id = ?5`,
            [person, error, now, device.id, id],
          )
          if (person === "deleted") yield* tx.run("DELETE FROM schoolbus_iclock_user WHERE device_id = ? AND pin = ?", [device.id, row.pin])
        })

      const results = (device: Device, answers: ReadonlyArray<CommandResult>) =>
        Effect.gen(function* () {
          if (answers.length === 0) return
          const now = timestamptz(yield* Clock.currentTimeMillis)
          yield* change((tx) => Effect.forEach(answers, (answer) => settle(tx, device, answer, now), { discard: true }))
        })

      const command = Effect.fnUntraced(function* (wanted: string, name: string) {
        const text = manualCommands[name.toUpperCase()]
        if (text === undefined) {
          return yield* new DeviceRefused({
            code: "invalid",
            message: `${name} is not a command; known are ${Object.keys(manualCommands).join(", ")}`,
          })
        }
        const device = yield* find(wanted)
        if (device.status !== "approved") return yield* notApproved(device)
        const now = yield* Clock.currentTimeMillis
        const [id] = yield* change((tx) =>
          Effect.flatMap(school(tx), (state) =>
            queueCommands(tx, { school: state.school, deviceId: device.id, now }, [{ command: text, pin: null }]),
          ),
        )
        return id ?? 0
      })

      return Devices.of({ list, find, meet, approve, learn, take, results, command, changed })
    }),
  )
}

export const notApproved = (device: Device): DeviceRefused =>
  new DeviceRefused({ code: "invalid", message: `terminal ${device.serial} is not approved; run: schoolbus devices approve ${device.serial}` })
