/**
 * Keeps each approved terminal filled with the people of its roster. What triggers mark becomes commands within a second;
 * every two hours the terminal is asked what it holds, and ten minutes later only the differences are queued. Reading and
 * comparing stand outside the write lock; commands are written in small transactions, so no school program waits for them.
 */
import { quietly } from "../libsql/trouble.ts"
import { Cron } from "croner"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Semaphore from "effect/Semaphore"
import { ident, Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import type { Manifest } from "../model/table.ts"
import { CHUNK_PUNCHES, claimPin, mapUnknown } from "./claim.ts"
import { offsetMinutes, timestamptz } from "./clock.ts"
import { authorizeUser, cutName, deleteUser, QUERY_USERS, updateUser } from "./command.ts"
import { type Device, DeviceRefused, notApproved } from "./device.ts"
import { Devices } from "./devices.ts"
import { markAll, readSchool } from "./school.ts"
import { checkedSince, forgetUnlisted, readForeign, readHeld, readPeople, readRoster, readUnknown } from "./held.ts"
import type { School } from "./school.ts"
import { notOpen, queueCommands } from "./outbox.ts"
import { knows } from "./dialect.ts"
import { Commands } from "./queue.ts"
import { type Person, type Roster as RosterInput, type RosterStep, rosterSteps, rosterTriggers } from "./roster.ts"
import { type DeviceSync, statusOf } from "./sync-status.ts"

/** How often marks are looked for. */
const POLL_MS = 500
/** How often the hour of every terminal is compared with the clock. */
const ZONE_POLL_MS = 30_000
/** A terminal that does not shake hands again when told to is told again after this. */
const CHECK_AGAIN_MS = 3_600_000
/** Steps per transaction. */
const CHUNK_STEPS = 100
const ASK_CRON = "0 */2 * * *"
const COMPARE_CRON = "10 */2 * * *"
const TRIM_CRON = "23 3 * * *"
/** What a verification asks waits no longer than until the next one. */
const ASK_EXPIRES_MS = 2 * 3_600_000

interface StepRow {
  readonly pin: string
  readonly table: string
  readonly person: string
  readonly name: string
  readonly card: string | null
  readonly isLeaving: boolean
  readonly commands: ReadonlyArray<string>
}

const rowOf = (step: RosterStep, device: Device): ReadonlyArray<StepRow> => {
  switch (step.kind) {
    case "add": {
      const { pin, person } = step
      const user = updateUser({ pin, name: person.name, card: person.card })
      const commands = device.family === "acc" ? [user, authorizeUser(pin)] : [user]
      return [{ pin, table: person.table, person: person.id, name: cutName(person.name), card: person.card, isLeaving: false, commands }]
    }
    case "remove": {
      const { pin, table, id, name, card } = step.held
      return [{ pin, table, person: id, name: name ?? "", card, isLeaving: true, commands: [deleteUser(pin)] }]
    }
    default:
      return []
  }
}

/** Writes some steps of one terminal: pins, commands, states. The newest command for a pin is the only one that counts. */
const writeSteps = (tx: Tx, state: School, device: Device, steps: ReadonlyArray<RosterStep>, now: number) =>
  Effect.gen(function* () {
    const { school } = state
    const at = timestamptz(now)
    const id = BigInt(device.id)
    const freed = steps.flatMap((step) => (step.kind === "free" ? [step.pin] : []))
    const rows = steps.flatMap((step) => rowOf(step, device))
    yield* tx.run(
      `UPDATE device_commands SET status = 'cancelled', done_at = ?1 WHERE school = ?2 AND device_id = ?3 AND status IN ('pending', 'sent')
          AND pin IN (SELECT value FROM json_each(?4))`,
      [at, school, device.id, JSON.stringify([...freed, ...rows.map((row) => row.pin)])],
    )
    for (const table of ["device_user_mappings", "device_user_sync_status"]) {
      yield* tx.run(`DELETE FROM ${table} WHERE school = ? AND device_id = ? AND pin IN (SELECT value FROM json_each(?))`, [
        school,
        device.id,
        JSON.stringify(freed),
      ])
    }
    yield* tx.many(
      `INSERT INTO device_user_mappings (school, device_id, pin, person_table, person_id, from_at, to_at) VALUES (?1,?2,?3,?4,?5,?6,?7)
       ON CONFLICT (school, device_id, pin) DO UPDATE SET to_at = excluded.to_at WHERE (to_at IS NULL) <> (excluded.to_at IS NULL)`,
      rows.map((row) => [school, id, row.pin, row.table, row.person, at, row.isLeaving ? at : null]),
    )
    const commands = rows.flatMap((row) => row.commands.map((command) => ({ command, pin: row.pin })))
    const ids = yield* queueCommands(tx, { school, deviceId: device.id, now }, commands)
    // The last command of a person: when it is done, all are.
    const lastId = new Map(commands.map((command, i) => [command.pin, ids[i] ?? 0]))
    yield* tx.many(
      `INSERT INTO device_user_sync_status (school, device_id, pin, person_table, person_id, name, card, status, command_id, attempts, updated_at)
       VALUES (?,?,?,?,?,?,?,'pending',?,0,?)
       ON CONFLICT (school, device_id, pin) DO UPDATE SET name = excluded.name, card = excluded.card, status = 'pending',
         command_id = excluded.command_id, attempts = 0, error = NULL, updated_at = excluded.updated_at`,
      rows.map((row) => [school, id, row.pin, row.table, row.person, row.name, row.card, BigInt(lastId.get(row.pin) ?? 0), at]),
    )
    yield* expel(tx, school, device, steps, now)
  })

const expel = (tx: Tx, school: string, device: Device, steps: ReadonlyArray<RosterStep>, now: number) =>
  Effect.gen(function* () {
    const pins = steps.flatMap((step) => (step.kind === "expel" ? [step.pin] : []))
    if (pins.length === 0) return
    const tried = yield* tx.all<{ pin: string }>(
      `SELECT DISTINCT pin FROM device_commands WHERE school = ? AND device_id = ? AND pin IN (SELECT value FROM json_each(?)) AND status <> 'cancelled'`,
      [school, device.id, JSON.stringify(pins)],
    )
    const wanted = pins.filter((pin) => !tried.some((row) => row.pin === pin))
    yield* queueCommands(
      tx,
      { school, deviceId: device.id, now },
      wanted.map((pin) => ({ command: deleteUser(pin), pin })),
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
    /** Whose a pin is that nobody had; the number of punches that are this person's now. */
    readonly claim: (
      idOrSerial: string,
      of: { readonly pin: string; readonly person: string; readonly table?: string },
    ) => Effect.Effect<number, DeviceRefused | LibsqlError>
    /** Turns what is marked into commands, now. */
    readonly settle: Effect.Effect<void, LibsqlError>
    /** Asks every approved terminal what it holds, and compares it with its roster. */
    readonly verify: Effect.Effect<void, LibsqlError>
    /** Tells terminals whose hour has changed. */
    readonly tellZones: Effect.Effect<void, LibsqlError>
  }
>()("schoolbus/iclock/Roster") {
  static readonly layer: Layer.Layer<Roster, never, Libsql | Devices | Commands> = Layer.effect(
    Roster,
    Effect.gen(function* () {
      const db = yield* Libsql
      const devices = yield* Devices
      const commands = yield* Commands
      const one = Semaphore.makeUnsafe(1)

      /** Punches that came before it was known whose pins they are. */
      const giveWaiting = Effect.fnUntraced(function* (state: School, device: Device, pins: ReadonlyArray<string>) {
        for (let given = 0; ; ) {
          const now = yield* Clock.currentTimeMillis
          const n = yield* db.write((tx) => mapUnknown(tx, state, device, pins, now))
          given += n
          if (n < CHUNK_PUNCHES) return given
        }
      })

      /** One terminal; the number of people and pins that commands were queued for. */
      const fill = (state: School, device: Device, people: ReadonlyArray<Person>, again: RosterInput["again"]) =>
        Effect.gen(function* () {
          const now = yield* Clock.currentTimeMillis
          const input = yield* db.read((tx) => readRoster(tx, state, device, people, { again, now }))
          const steps = rosterSteps(input)
          for (const chunk of chunksOf(steps)) {
            yield* db.write((tx) => writeSteps(tx, state, device, chunk, now))
            yield* commands.changed(device.id)
          }
          const freed = new Set(steps.flatMap((step) => (step.kind === "free" ? [step.pin] : [])))
          const given = [...input.held.filter(({ pin }) => !freed.has(pin)), ...steps.filter((step) => step.kind === "add")]
          const owned = [...new Set(given.map(({ pin }) => pin))].filter((pin) => input.unknown.has(pin))
          if (owned.length > 0) yield* giveWaiting(state, device, owned)
          const { listedAt } = input
          if (listedAt !== null && again !== "nothing") yield* db.write((tx) => forgetUnlisted(tx, device, listedAt))
          return steps.filter((step) => step.kind !== "free").length
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
          const marks = yield* db.read((tx) => tx.all<{ tbl: string }>("SELECT tbl FROM schoolbus_roster_dirty LIMIT 1000"))
          if (marks.length === 0 || (yield* db.read(readSchool)) === null) return
          // Marks are dropped when their work is done; what is written meanwhile marks anew.
          yield* db.write((tx) =>
            Effect.andThen(
              tx.run("INSERT OR IGNORE INTO schoolbus_roster_dirty (tbl, taken) SELECT tbl, 1 FROM schoolbus_roster_dirty WHERE taken = 0"),
              tx.run("DELETE FROM schoolbus_roster_dirty WHERE taken = 0"),
            ),
          )
          // A terminal may have been approved, or a pin given, at head office.
          yield* devices.changed
          yield* commands.changed()
          const found = yield* read
          const again = marks.some((mark) => mark.tbl === "*") ? "failed" : "nothing"
          if (found !== null) {
            for (const device of yield* approved) {
              const isWhole = marks.some((mark) => mark.tbl === `=${device.id}`)
              yield* fill(found.state, device, found.people, isWhole ? "everyone" : again)
            }
          }
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
              const wanted = (yield* notOpen(tx, device.id, ["INFO", QUERY_USERS])).filter((command) => knows(device, command))
              yield* queueCommands(
                tx,
                { school: state.school, deviceId: device.id, now },
                wanted.map((command) => ({ command, pin: null, expiresMs: ASK_EXPIRES_MS })),
              )
            }
            yield* markAll(tx)
          }),
        )
        yield* commands.changed()
      })

      const tellZones = Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const late = (yield* approved).filter((device) => device.offset_told !== null && device.offset_told !== offsetMinutes(device.zone, now))
        for (const device of late) {
          const isTold = yield* db.write((tx) =>
            Effect.gen(function* () {
              const state = yield* readSchool(tx)
              if (state === null || (yield* checkedSince(tx, device, now - CHECK_AGAIN_MS))) return false
              yield* queueCommands(tx, { school: state.school, deviceId: device.id, now }, [
                { command: "CHECK", pin: null, expiresMs: CHECK_AGAIN_MS },
              ])
              return true
            }),
          )
          if (isTold) yield* commands.changed(device.id)
        }
      })

      const status = (wanted: string) =>
        Effect.gen(function* () {
          const device = yield* devices.find(wanted)
          const found = yield* read
          const people = found?.people ?? []
          const now = yield* Clock.currentTimeMillis
          return yield* db.read((tx) =>
            Effect.gen(function* () {
              const state = yield* readSchool(tx)
              if (state === null) return { device, ...statusOf(people, []), foreign: [], unknown: [], comparedAt: null }
              const { rows, listedAt } = yield* readHeld(tx, state.school, device, now)
              const foreign = yield* readForeign(tx, state.school, device)
              const unknown = yield* readUnknown(tx, state.school, device)
              return { device, ...statusOf(people, rows), foreign, unknown, comparedAt: listedAt }
            }),
          )
        })

      const claim = (wanted: string, of: { readonly pin: string; readonly person: string; readonly table?: string }) =>
        one.withPermit(
          Effect.gen(function* () {
            const device = yield* devices.find(wanted)
            const now = yield* Clock.currentTimeMillis
            const { state, pin } = yield* db.write((tx) =>
              Effect.gen(function* () {
                const known = yield* devices.school(tx)
                const done = yield* claimPin(tx, known, device, of, now)
                if ("fault" in done) return yield* new DeviceRefused({ code: "invalid", message: done.fault })
                yield* markAll(tx)
                return { state: known, pin: done.pin }
              }),
            )
            yield* commands.changed(device.id)
            return yield* giveWaiting(state, device, [pin])
          }),
        )

      yield* Effect.forkScoped(Effect.repeat(quietly("people do not go to terminals")(settle), Schedule.spaced(POLL_MS)))
      yield* Effect.forkScoped(Effect.repeat(quietly("terminals are not told the time")(tellZones), Schedule.spaced(ZONE_POLL_MS)))
      for (const [pattern, job] of [
        [ASK_CRON, verify],
        [COMPARE_CRON, db.write(markAll)],
        [TRIM_CRON, commands.trim],
      ] as const) {
        const quiet = quietly("a job for terminals")
        yield* Effect.acquireRelease(
          Effect.sync(() => new Cron(pattern, () => void Effect.runPromise(quiet(job as Effect.Effect<unknown, LibsqlError>)))),
          (running) => Effect.sync(() => running.stop()),
        )
      }
      return Roster.of({ sync, status, claim, settle, verify, tellZones })
    }),
  )
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
    if (names.has("device_commands") && names.has("device_user_sync_status") && names.has("punches")) {
      const indexes = isJudged(manifest) ? [...INDEXES, BY_PERSON] : INDEXES
      for (const index of indexes) yield* tx.exec(`CREATE INDEX IF NOT EXISTS ${index}`)
    }
    yield* markAll(tx)
  })

/** A rule that asks for the first and the last punch of a person's day; the others do without its index. */
const isJudged = ({ devices }: Manifest): boolean => {
  const rule = devices?.attendance
  return rule !== undefined && (rule.rows === "day" || rule.values !== undefined || rule.hours !== undefined)
}
const BY_PERSON = "schoolbus_punches_person ON punches (person_id, at_utc)"

const INDEXES: ReadonlyArray<string> = [
  "schoolbus_commands_open ON device_commands (device_id, id) WHERE status IN ('pending', 'sent')",
  "schoolbus_commands_id ON device_commands (device_id, id)",
  "schoolbus_commands_pin ON device_commands (device_id, pin)",
  "schoolbus_sync_failed ON device_user_sync_status (device_id, error) WHERE status = 'failed'",
  "schoolbus_sync_card ON device_user_sync_status (device_id, card) WHERE status = 'synced'",
  "schoolbus_sync_command ON device_user_sync_status (device_id, command_id)",
  "schoolbus_punches_unknown ON punches (device_serial, pin) WHERE person_id IS NULL",
]
