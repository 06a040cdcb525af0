/**
 * Keeps each approved terminal filled with the people of its roster. What triggers mark becomes commands within a second;
 * every two hours the terminal is asked what it holds, and ten minutes later only the differences are queued. Reading and
 * comparing stand outside the write lock; commands are written in small transactions, so no school program waits for them.
 */
import { Cron } from "croner"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Semaphore from "effect/Semaphore"
import { readText, safely } from "../libsql/cells.ts"
import { ident, Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import type { Manifest } from "../model/table.ts"
import type { Cell } from "../model/value.ts"
import { timestamptz } from "./clock.ts"
import { cutName, deleteUser, isDelete, QUERY_USERS, updateUser } from "./command.ts"
import { type Device, type DeviceRefused, Devices, markAll, notApproved, queueCommands, readSchool } from "./devices.ts"
import type { School } from "./punches.ts"
import { type Held, type Person, type Roster as RosterInput, type RosterStep, rosterSteps, rosterTriggers } from "./roster.ts"

/** How often marks are looked for. */
const POLL_MS = 500
/** Steps per transaction. */
const CHUNK_STEPS = 100
const ASK_CRON = "0 */2 * * *"
const COMPARE_CRON = "10 */2 * * *"

export interface PersonStatus {
  readonly pin: string | null
  readonly table: string
  readonly id: string
  readonly name: string
  readonly card: string | null
  readonly group: string | null
  /** `not_synced`: nothing was ever queued. */
  readonly status: "not_synced" | "pending" | "sent" | "synced" | "failed" | "deleted"
  /** On its way off the terminal, or gone. */
  readonly removed: boolean
  readonly attempts: number
  readonly error: string | null
  readonly syncedAt: string | null
}

/** The counts are of the people that the terminal should hold; those on their way off it are listed only. */
export interface DeviceSync {
  readonly device: Device
  readonly summary: {
    readonly total: number
    readonly synced: number
    readonly pending: number
    readonly failed: number
    readonly not_synced: number
  }
  readonly people: ReadonlyArray<PersonStatus>
  /** Pins that the terminal reports and nobody here has. */
  readonly foreign: ReadonlyArray<string>
}

const NOT_ACTIVE = "0, '0', 'f', 'false', 'no', 'inactive', ''"

/** People whom terminals should hold, by the config's rule: active, with a card or pin where the rule names such columns. */
const readPeople = (tx: Tx, manifest: Manifest) =>
  Effect.gen(function* () {
    const people: Array<Person> = []
    for (const [name, rule] of Object.entries(manifest.devices?.people ?? {})) {
      const table = manifest.tables.find((one) => one.name === name)
      if (table === undefined) continue
      const column = (wanted: string | undefined) => (wanted === undefined ? "NULL" : safely(ident(wanted)))
      const isActive = rule.active === undefined ? "1" : `(${ident(rule.active)} IS NOT NULL AND ${ident(rule.active)} NOT IN (${NOT_ACTIVE}))`
      const carries = [rule.card, rule.pin].flatMap((one) => (one === undefined ? [] : [`coalesce(${ident(one)}, '') <> ''`]))
      const rows = yield* tx.values(
        `SELECT ${[rule.id, rule.name, rule.card, rule.pin, rule.group].map(column).join(", ")} FROM ${ident(table.local)}
          WHERE ${isActive} ${carries.length === 0 ? "" : `AND (${carries.join(" OR ")})`} ORDER BY ${ident(rule.id)}`,
      )
      for (const row of rows) {
        const text = (cell: Cell | undefined): string | null => (cell == null ? null : readText(cell).trim() || null)
        people.push({ table: name, id: text(row[0]) ?? "", name: text(row[1]) ?? "", card: text(row[2]), pin: text(row[3]), group: text(row[4]) })
      }
    }
    return people
  })

interface StatusRow {
  readonly pin: string
  readonly person_table: string
  readonly person_id: string
  readonly name: string
  readonly card: string | null
  readonly status: PersonStatus["status"]
  readonly attempts: number
  readonly error: string | null
  readonly synced_at: string | null
  readonly command: string | null
  /** 1: it was confirmed before the terminal's last own list, which does not have it. */
  readonly missing: number
}

/** Pins of one terminal with their newest command, and whether the terminal's own list (asked for, and come) lacks them. */
const readHeld = (tx: Tx, school: string, device: Device) =>
  tx.all<StatusRow>(
    `WITH asked AS (
       SELECT max(sent_at) AS at FROM device_commands WHERE school = ?1 AND device_id = ?2 AND command = '${QUERY_USERS}' AND status = 'done'
     ), listed AS (
       SELECT u.pin FROM schoolbus_iclock_user u, asked WHERE u.device_id = ?2 AND u.at >= unixepoch(substr(asked.at, 1, 19)) * 1000
     )
     SELECT s.pin, s.person_table, s.person_id, s.name, s.card, s.status, s.attempts, s.error, s.synced_at, c.command,
            (s.status = 'synced' AND s.synced_at < (SELECT at FROM asked) AND EXISTS (SELECT 1 FROM listed)
               AND s.pin NOT IN (SELECT pin FROM listed)) AS missing
       FROM device_user_sync_status s
       LEFT JOIN device_commands c ON c.school = s.school AND c.device_id = s.device_id AND c.id = s.command_id
      WHERE s.school = ?1 AND s.device_id = ?2`,
    [school, device.id],
  )

const readForeign = (tx: Tx, school: string, device: Device) =>
  Effect.map(
    tx.all<{ pin: string }>(
      `SELECT pin FROM schoolbus_iclock_user u WHERE device_id = ?2
          AND NOT EXISTS (SELECT 1 FROM device_user_mappings m WHERE m.school = ?1 AND m.device_id = ?2 AND m.pin = u.pin) ORDER BY pin`,
      [school, device.id],
    ),
    (rows) => rows.map((row) => row.pin),
  )

const readRoster = (tx: Tx, { school, manifest }: School, device: Device, people: ReadonlyArray<Person>, again: RosterInput["again"]) =>
  Effect.gen(function* () {
    // A person has the same number on every terminal where it is free; the one of this terminal counts.
    const mappings = yield* tx.all<{ pin: string; person_table: string; person_id: string }>(
      "SELECT pin, person_table, person_id FROM device_user_mappings WHERE school = ?1 ORDER BY device_id = ?2, to_at IS NULL, device_id, from_at",
      [school, device.id],
    )
    const held = (yield* readHeld(tx, school, device)).filter((row) => {
      // Without its table nothing is known about a person; that is no reason to remove them.
      const isRuled = manifest.devices?.people[row.person_table] !== undefined
      return !isRuled || manifest.tables.some((table) => table.name === row.person_table)
    })
    return {
      people,
      held: held.map(
        (row): Held => ({
          pin: row.pin,
          table: row.person_table,
          id: row.person_id,
          name: row.name,
          card: row.card,
          status: row.status,
          removing: row.command !== null && isDelete(row.command),
          missing: row.missing === 1,
        }),
      ),
      taken: new Map(mappings.map((row) => [row.pin, { table: row.person_table, id: row.person_id }])),
      foreign: new Set(yield* readForeign(tx, school, device)),
      again,
    } satisfies RosterInput
  })

/** Writes some steps of one terminal: pins, commands, states. The newest command for a pin is the only one that counts. */
const writeSteps = (tx: Tx, school: string, device: Device, steps: ReadonlyArray<RosterStep>, now: number) =>
  Effect.gen(function* () {
    const at = timestamptz(now)
    const id = BigInt(device.id)
    const rows = steps.map((step) =>
      step.kind === "add"
        ? {
            pin: step.pin,
            table: step.person.table,
            person: step.person.id,
            name: cutName(step.person.name),
            card: step.person.card,
            command: updateUser({ pin: step.pin, name: step.person.name, card: step.person.card }),
          }
        : {
            pin: step.held.pin,
            table: step.held.table,
            person: step.held.id,
            name: step.held.name,
            card: step.held.card,
            command: deleteUser(step.held.pin),
          },
    )
    yield* tx.many(
      `INSERT INTO device_user_mappings (school, device_id, pin, person_table, person_id, from_at, to_at) VALUES (?1,?2,?3,?4,?5,?6,?7)
       ON CONFLICT (school, device_id, pin) DO UPDATE SET to_at = excluded.to_at WHERE (to_at IS NULL) <> (excluded.to_at IS NULL)`,
      rows.map((row) => [school, id, row.pin, row.table, row.person, at, isDelete(row.command) ? at : null]),
    )
    yield* tx.run(
      `UPDATE device_commands SET status = 'cancelled', done_at = ?1 WHERE school = ?2 AND device_id = ?3 AND status IN ('pending', 'sent')
          AND pin IN (SELECT value FROM json_each(?4))`,
      [at, school, device.id, JSON.stringify(rows.map((row) => row.pin))],
    )
    const ids = yield* queueCommands(tx, { school, deviceId: device.id, now }, rows)
    yield* tx.many(
      `INSERT INTO device_user_sync_status (school, device_id, pin, person_table, person_id, name, card, status, command_id, attempts, updated_at)
       VALUES (?,?,?,?,?,?,?,'pending',?,0,?)
       ON CONFLICT (school, device_id, pin) DO UPDATE SET name = excluded.name, card = excluded.card, status = 'pending',
         command_id = excluded.command_id, attempts = 0, error = NULL, updated_at = excluded.updated_at`,
      rows.map((row, i) => [school, id, row.pin, row.table, row.person, row.name, row.card, BigInt(ids[i] ?? 0), at]),
    )
  })

const chunksOf = <A>(all: ReadonlyArray<A>): ReadonlyArray<ReadonlyArray<A>> =>
  Array.from({ length: Math.ceil(all.length / CHUNK_STEPS) }, (_, i) => all.slice(i * CHUNK_STEPS, (i + 1) * CHUNK_STEPS))

export class Roster extends Context.Service<
  Roster,
  {
    /** Queues everyone again; the number of people and of commands queued. */
    readonly sync: (
      idOrSerial: string,
    ) => Effect.Effect<{ readonly device: Device; readonly people: number; readonly queued: number }, DeviceRefused | LibsqlError>
    readonly status: (idOrSerial: string) => Effect.Effect<DeviceSync, DeviceRefused | LibsqlError>
    /** Turns what is marked into commands, now. */
    readonly settle: Effect.Effect<void, LibsqlError>
    /** Asks every approved terminal what it holds, and compares it with its roster. */
    readonly verify: Effect.Effect<void, LibsqlError>
  }
>()("schoolbus/iclock/Roster") {
  static readonly layer: Layer.Layer<Roster, never, Libsql | Devices> = Layer.effect(
    Roster,
    Effect.gen(function* () {
      const db = yield* Libsql
      const devices = yield* Devices
      const one = Semaphore.makeUnsafe(1)

      /** One terminal; the number of commands queued. */
      const fill = (state: School, device: Device, people: ReadonlyArray<Person>, again: RosterInput["again"]) =>
        Effect.gen(function* () {
          const steps = rosterSteps(yield* db.read((tx) => readRoster(tx, state, device, people, again)))
          for (const chunk of chunksOf(steps)) {
            const now = yield* Clock.currentTimeMillis
            yield* db.write((tx) => writeSteps(tx, state.school, device, chunk, now))
            yield* devices.changed
          }
          return steps.length
        })

      const read = db.read((tx) =>
        Effect.gen(function* () {
          const state = yield* readSchool(tx)
          return state?.manifest.devices === undefined ? null : { state, people: yield* readPeople(tx, state.manifest) }
        }),
      )
      const approved = Effect.map(devices.list, (all) => all.filter((device) => device.status === "approved"))

      const sync = (wanted: string) =>
        one.withPermit(
          Effect.gen(function* () {
            const device = yield* devices.find(wanted)
            if (device.status !== "approved") return yield* notApproved(device)
            const found = yield* read
            return {
              device,
              people: found?.people.length ?? 0,
              queued: found === null ? 0 : yield* fill(found.state, device, found.people, "everyone"),
            }
          }),
        )

      const settle = one.withPermit(
        Effect.gen(function* () {
          const marks = yield* db.read((tx) => tx.all<{ tbl: string }>("SELECT tbl FROM schoolbus_roster_dirty LIMIT 100"))
          if (marks.length === 0 || (yield* db.read(readSchool)) === null) return
          // Marks are dropped when their work is done; what is written meanwhile marks anew.
          yield* db.write((tx) =>
            Effect.andThen(
              tx.run("INSERT OR IGNORE INTO schoolbus_roster_dirty (tbl, taken) SELECT tbl, 1 FROM schoolbus_roster_dirty WHERE taken = 0"),
              tx.run("DELETE FROM schoolbus_roster_dirty WHERE taken = 0"),
            ),
          )
          const found = yield* read
          const again = marks.some((mark) => mark.tbl === "*") ? "failed" : "nothing"
          if (found !== null) for (const device of yield* approved) yield* fill(found.state, device, found.people, again)
          yield* db.write((tx) => tx.run("DELETE FROM schoolbus_roster_dirty WHERE taken = 1"))
        }),
      )

      const verify = Effect.gen(function* () {
        const all = yield* approved
        const now = yield* Clock.currentTimeMillis
        yield* db.write((tx) =>
          Effect.gen(function* () {
            const state = yield* readSchool(tx)
            if (state === null) return
            for (const device of all) {
              const open = yield* tx.all<{ command: string }>(
                "SELECT command FROM device_commands WHERE school = ? AND device_id = ? AND status IN ('pending', 'sent') AND command IN ('INFO', ?)",
                [state.school, device.id, QUERY_USERS],
              )
              const wanted = ["INFO", QUERY_USERS].filter((command) => !open.some((row) => row.command === command))
              yield* queueCommands(
                tx,
                { school: state.school, deviceId: device.id, now },
                wanted.map((command) => ({ command, pin: null })),
              )
            }
            yield* markAll(tx)
          }),
        )
        yield* devices.changed
      })

      const status = (wanted: string) =>
        Effect.gen(function* () {
          const device = yield* devices.find(wanted)
          const found = yield* read
          const people = found?.people ?? []
          return yield* db.read((tx) =>
            Effect.gen(function* () {
              const state = yield* readSchool(tx)
              const rows = state === null ? [] : yield* readHeld(tx, state.school, device)
              const foreign = state === null ? [] : yield* readForeign(tx, state.school, device)
              return { device, ...statusOf(people, rows), foreign }
            }),
          )
        })

      yield* Effect.forkScoped(Effect.repeat(Effect.ignoreCause(settle, { log: "Warn" }), Schedule.spaced(POLL_MS)))
      const compare = db.write(markAll)
      for (const [pattern, job] of [
        [ASK_CRON, verify],
        [COMPARE_CRON, compare],
      ] as const) {
        yield* Effect.acquireRelease(
          Effect.sync(() => new Cron(pattern, () => void Effect.runPromise(Effect.ignoreCause(job, { log: "Warn" })))),
          (running) => Effect.sync(() => running.stop()),
        )
      }
      return Roster.of({ sync, status, settle, verify })
    }),
  )
}

const statusOf = (people: ReadonlyArray<Person>, rows: ReadonlyArray<StatusRow>): Pick<DeviceSync, "summary" | "people"> => {
  const isRemoved = (row: StatusRow): boolean => row.command !== null && isDelete(row.command)
  const byPerson = new Map(rows.filter((row) => !isRemoved(row)).map((row) => [`${row.person_table}\0${row.person_id}`, row]))
  const listed = people.map((person): PersonStatus => {
    const row = byPerson.get(`${person.table}\0${person.id}`)
    const { table, id, name, card, group } = person
    const base = { table, id, name, card, group, removed: false }
    return row === undefined
      ? { ...base, pin: null, status: "not_synced", attempts: 0, error: null, syncedAt: null }
      : {
          ...base,
          pin: row.pin,
          status: row.missing === 1 ? "pending" : row.status,
          attempts: row.attempts,
          error: row.error,
          syncedAt: row.synced_at,
        }
  })
  const wanted = new Set(people.map((person) => `${person.table}\0${person.id}`))
  const leaving = rows
    .filter((row) => isRemoved(row) || !wanted.has(`${row.person_table}\0${row.person_id}`))
    .map(
      (row): PersonStatus => ({
        pin: row.pin,
        table: row.person_table,
        id: row.person_id,
        name: row.name,
        card: row.card,
        group: null,
        status: row.status,
        removed: true,
        attempts: row.attempts,
        error: row.error,
        syncedAt: row.synced_at,
      }),
    )
  const count = (...states: ReadonlyArray<PersonStatus["status"]>): number => listed.filter((person) => states.includes(person.status)).length
  return {
    summary: {
      total: listed.length,
      synced: count("synced"),
      pending: count("pending", "sent"),
      failed: count("failed"),
      not_synced: count("not_synced", "deleted"),
    },
    people: [...listed, ...leaving],
  }
}

/** After the tables of a manifest are there: triggers that mark people, indexes that queues use, and a first look at everyone. */
export const installRoster = (tx: Tx, manifest: Manifest): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const present = new Map(
      (yield* tx.all<{ name: string; sql: string }>(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND name GLOB 'schoolbus_roster_*'",
      )).map((row) => [row.name, row.sql]),
    )
    const wanted = new Map(rosterTriggers(manifest).map((trigger) => [trigger.name, trigger.sql]))
    for (const name of present.keys()) if (!wanted.has(name)) yield* tx.exec(`DROP TRIGGER ${ident(name)}`)
    for (const [name, sql] of wanted) {
      if (present.get(name) === sql) continue
      yield* tx.exec(`DROP TRIGGER IF EXISTS ${ident(name)}`)
      yield* tx.exec(sql)
    }
    const names = new Set(manifest.tables.map((table) => table.local))
    if (names.has("device_commands") && names.has("device_user_sync_status")) {
      yield* tx.exec("CREATE INDEX IF NOT EXISTS schoolbus_commands_open ON device_commands (device_id, id) WHERE status IN ('pending', 'sent')")
      yield* tx.exec("CREATE INDEX IF NOT EXISTS schoolbus_commands_id ON device_commands (device_id, id)")
      yield* tx.exec("CREATE INDEX IF NOT EXISTS schoolbus_sync_command ON device_user_sync_status (device_id, command_id)")
    }
    yield* markAll(tx)
  })
