/**
 * Commands that wait for a terminal. A command leaves the queue when its result arrives, not when it is sent; until then it
 * is sent again with the same id. A poll with nothing to do is answered from memory.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import { readWall, timestamptz, utcToWall } from "./clock.ts"
import {
  CLEAR_LOG,
  capabilityOf,
  cardFault,
  type CardForm,
  type CommandResult,
  commandAnswer,
  type Dialect,
  inDialect,
  isDelete,
  judgeResult,
  manualCommands,
  manualName,
  QUERY_USERS,
  type QueuedCommand,
  queryPunches,
} from "./command.ts"
import { type Device, DeviceRefused, Devices, markAll, notApproved } from "./devices.ts"
import { type CommandRecord, dropHistory, notOpen, OPEN, queueCommands, readHistory, unsafeToClear } from "./outbox.ts"

/** A command whose result has not come is sent again after this, with the same id; after so many times it has failed. */
export const RESEND_MS = 60_000
export const MAX_ATTEMPTS = 10
/** A terminal that does not say whom it holds within this gets its people all the same. */
const WHO_MS = 120_000
/** A terminal that may have lost users is asked at most this often; every two hours it is asked anyway. */
const SUSPECT_MS = 1_800_000
/** What stands at a command until it is answered in them. */
const OLDER_WORDS = "the terminal is spoken to in older words"

const unsupportedOf = (device: Device): ReadonlySet<string> => new Set(device.unsupported.split(",").filter((name) => name !== ""))
export const knows = (device: Device, command: string): boolean => !unsupportedOf(device).has(capabilityOf(command))

/** As the terminal itself writes cards; else old firmware, which names no protocol version, reads brackets only. */
const cardFormOf = (device: Device): CardForm => device.card_form ?? (device.push_version === null ? "bracket" : "decimal")

export const dialectOf = (device: Device, now: number): Dialect => ({
  family: device.family,
  cardForm: cardFormOf(device),
  unsupported: unsupportedOf(device),
  wall: utcToWall(now, device.zone),
  utc: utcToWall(now, "UTC"),
})

export interface CommandRequest {
  readonly command: string
  /** Of QUERY_ATTLOG: wall clocks where the terminal hangs. */
  readonly from?: string
  readonly to?: string
  /** Of CLEAR_LOG: the serial number, once more. */
  readonly confirm?: string
}

interface Due extends QueuedCommand {
  readonly attempts: number
  readonly pin: string | null
}

const invalid = (message: string) => new DeviceRefused({ code: "invalid", message })

/** The text of a request, and how long it may wait. */
const textOf = (request: CommandRequest, device: Device): { readonly text: string; readonly expiresMs: number } | DeviceRefused => {
  const name = manualName(request.command)
  const known = name === null ? undefined : manualCommands[name]
  if (name === null || known === undefined) return invalid(`${request.command} is not a command; known are ${Object.keys(manualCommands).join(", ")}`)
  if (!knows(device, known.text)) return invalid(`terminal ${device.serial} has said that it does not know ${known.text}`)
  if (inDialect(known.text, { ...dialectOf(device, 0), unsupported: new Set() }) === null) return invalid(`access-control terminals have no ${name}`)
  if (name === "CLEAR_LOG" && request.confirm !== device.serial)
    return invalid(`CLEAR_LOG removes all punches from the terminal; confirm it with the serial number ${device.serial}`)
  if (name !== "QUERY_ATTLOG") return known
  const from = readWall(request.from ?? "")
  const to = readWall(request.to ?? "")
  if (from === null || to === null || from > to) return invalid("QUERY_ATTLOG needs from and to, like 2026-03-03 00:00:00")
  return { ...known, text: queryPunches(from, to) }
}

export class Commands extends Context.Service<
  Commands,
  {
    /** Nothing is due for this terminal, as far as the memory knows: `take` need not be asked. */
    readonly isIdle: (device: Device, now: number) => boolean
    /** The commands to send now as the lines of an answer, noted as sent; null when there is nothing to do. */
    readonly take: (device: Device) => Effect.Effect<string | null, LibsqlError>
    readonly results: (device: Device, results: ReadonlyArray<CommandResult>) => Effect.Effect<void, LibsqlError>
    /** Queues one of the commands a person may send; its id. */
    readonly send: (idOrSerial: string, request: CommandRequest) => Effect.Effect<number, DeviceRefused | LibsqlError>
    /** Newest first. */
    readonly history: (idOrSerial: string, limit: number) => Effect.Effect<ReadonlyArray<CommandRecord>, DeviceRefused | LibsqlError>
    /** Asks a terminal that may have lost users whom it holds. */
    readonly suspect: (device: Device) => Effect.Effect<void, LibsqlError>
    /** Makes a terminal shake hands again, with other options. */
    readonly recheck: (device: Device) => Effect.Effect<void, LibsqlError>
    readonly trim: Effect.Effect<void, LibsqlError>
    /** To be said after others have queued or cancelled commands, of one terminal or of all. */
    readonly changed: (deviceId?: number) => Effect.Effect<void>
  }
>()("schoolbus/iclock/Commands") {
  static readonly layer: Layer.Layer<Commands, never, Libsql | Devices> = Layer.effect(
    Commands,
    Effect.gen(function* () {
      const db = yield* Libsql
      const devices = yield* Devices
      // Terminals with nothing due until then; what was read before a change is not kept after it.
      const idleUntil = new Map<number, number>()
      const generations = new Map<number, number>()
      const forget = (deviceId: number): void => {
        generations.set(deviceId, (generations.get(deviceId) ?? 0) + 1)
        idleUntil.delete(deviceId)
      }
      const changed = (deviceId?: number) =>
        Effect.sync(() => {
          if (deviceId !== undefined) forget(deviceId)
          else for (const id of [...idleUntil.keys()]) forget(id)
        })
      const noteIdle = (deviceId: number, generation: number | undefined, until: number): void => {
        if (generations.get(deviceId) === generation) idleUntil.set(deviceId, until)
      }
      const change = <A, E>(device: Device, body: (tx: Tx) => Effect.Effect<A, E>) => Effect.tap(db.write(body), () => changed(device.id))
      const isIdle = (device: Device, now: number): boolean => (idleUntil.get(device.id) ?? 0) > now

      /** Terminals that have had people sent before, or have told whom they hold: nobody on them is overwritten unasked. */
      const met = new Set<number>()
      const mayFill = (tx: Tx, device: Device) =>
        Effect.gen(function* () {
          if (met.has(device.id) || (device.users_reported ?? 0) === 0) return true
          const [row] = yield* tx.all<{ sent: number; told: number; marks: number }>(
            `SELECT EXISTS (SELECT 1 FROM device_commands WHERE device_id = ?1 AND pin IS NOT NULL AND attempts > 0) AS sent,
                    EXISTS (SELECT 1 FROM device_commands WHERE device_id = ?1 AND command = '${QUERY_USERS}' AND NOT ${OPEN}) AS told,
                    EXISTS (SELECT 1 FROM schoolbus_roster_dirty) AS marks`,
            [device.id],
          )
          if (row?.sent !== 1 && (row?.told !== 1 || row.marks === 1) && knows(device, QUERY_USERS)) return false
          met.add(device.id)
          return true
        })

      interface Reading {
        readonly due: ReadonlyArray<Due>
        readonly expired: ReadonlyArray<{ readonly id: number }>
        readonly cleared: Due | undefined
        readonly unsafe: string | null
        readonly askWho: boolean
        readonly isOpen: boolean
      }
      const NOTHING: Reading = { due: [], expired: [], cleared: undefined, unsafe: null, askWho: false, isOpen: false }

      /** Commands that are due; how long there is nothing to do when there are none. */
      const readDue = (tx: Tx, device: Device, now: number): Effect.Effect<Reading, LibsqlError> =>
        Effect.gen(function* () {
          const [open] = yield* tx.all<{ n: number; people: number }>(
            `SELECT count(*) AS n, count(pin) AS people FROM device_commands WHERE device_id = ? AND ${OPEN}`,
            [device.id],
          )
          if ((open?.n ?? 0) === 0) return NOTHING
          // People who are about to be queued in other words wait for that.
          const [whole] = yield* tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM schoolbus_roster_dirty WHERE tbl = ?) AS n", [`=${device.id}`])
          const fill = whole?.n !== 1 && (yield* mayFill(tx, device))
          const due = yield* tx.all<Due>(
            `SELECT id, command, attempts, pin FROM device_commands WHERE device_id = ?1 AND ${OPEN} AND (status = 'pending' OR sent_at < ?2)
                AND (expires_at IS NULL OR expires_at > ?3) AND (?4 OR pin IS NULL) ORDER BY id LIMIT 50`,
            [device.id, timestamptz(now - RESEND_MS), timestamptz(now), fill],
          )
          const expired = yield* tx.all<{ id: number }>(`SELECT id FROM device_commands WHERE device_id = ? AND ${OPEN} AND expires_at <= ?`, [
            device.id,
            timestamptz(now),
          ])
          const cleared = due.find(({ command }) => command === CLEAR_LOG)
          const unsafe =
            cleared === undefined
              ? null
              : due.some(({ id, command }) => id < cleared.id && command === "INFO") || (yield* isAsked(tx, device, cleared.id))
                ? "waiting for the terminal to tell how many punches it holds"
                : yield* unsafeToClear(tx, device)
          const askWho = !fill && whole?.n !== 1 && (open?.people ?? 0) > 0 && !(yield* wasAsked(tx, device))
          return { due: unsafe === null ? due : due.filter((one) => one !== cleared), expired, cleared, unsafe, askWho, isOpen: true }
        })
      const wasAsked = (tx: Tx, device: Device) =>
        Effect.map(
          tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM device_commands WHERE device_id = ? AND command = ?) AS n", [device.id, QUERY_USERS]),
          ([row]) => row?.n === 1,
        )
      const isAsked = (tx: Tx, device: Device, before: number) =>
        Effect.map(
          tx.all<{ n: number }>(
            `SELECT EXISTS (SELECT 1 FROM device_commands WHERE device_id = ? AND id < ? AND command = 'INFO' AND ${OPEN}) AS n`,
            [device.id, before],
          ),
          ([row]) => row?.n === 1,
        )

      /** Sets the state of commands, and of the people whose newest command is among them. */
      const setStatus = (tx: Tx, device: Device, ids: ReadonlyArray<number>, set: string, now: number) =>
        Effect.gen(function* () {
          if (ids.length === 0) return
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
          if (isIdle(device, now)) return null
          const before = generations.get(device.id)
          const { due, expired, cleared, unsafe, askWho, isOpen } = yield* db.read((tx) => readDue(tx, device, now))
          if (askWho) {
            yield* change(device, (tx) =>
              Effect.flatMap(Effect.orDie(devices.school(tx)), ({ school }) =>
                queueCommands(tx, { school, deviceId: device.id, now }, [{ command: QUERY_USERS, pin: null, expiresMs: WHO_MS }]),
              ),
            )
            return yield* takeAgain(device)
          }
          if (due.length === 0 && expired.length === 0 && unsafe === null) {
            noteIdle(device.id, before, isOpen ? now + 1000 : Number.MAX_SAFE_INTEGER)
            return null
          }
          const dialect = dialectOf(device, now)
          const spoken = due.map((one) => ({ ...one, text: inDialect(one.command, dialect) }))
          const tired = due.filter((one) => one.attempts >= MAX_ATTEMPTS)
          const unknown = spoken.filter((one) => one.text === null)
          const ready = spoken.flatMap(({ id, text, attempts }) => (text === null || attempts >= MAX_ATTEMPTS ? [] : [{ id, command: text }]))
          const { text, sent } = commandAnswer(ready)
          const ids = (rows: ReadonlyArray<{ readonly id: number }>) => rows.map(({ id }) => id)
          yield* db.write((tx) =>
            Effect.gen(function* () {
              yield* setStatus(tx, device, ids(tired), "status = 'failed', done_at = ?3, error = 'the terminal never answered'", now)
              yield* setStatus(
                tx,
                device,
                ids(unknown),
                "status = 'failed', done_at = ?3, error = 'terminals of this kind have no such command'",
                now,
              )
              yield* setStatus(
                tx,
                device,
                ids(expired),
                "status = 'expired', done_at = ?3, error = coalesce(error, 'the terminal did not call in time')",
                now,
              )
              yield* setStatus(tx, device, sent, "status = 'sent', attempts = attempts + 1, sent_at = ?3", now)
              if (cleared !== undefined && unsafe !== null)
                yield* tx.run("UPDATE device_commands SET error = ?1 WHERE device_id = ?2 AND id = ?3 AND error IS NOT ?1", [
                  unsafe,
                  device.id,
                  cleared.id,
                ])
            }),
          )
          if (sent.length === 0) noteIdle(device.id, before, now + 1000)
          return sent.length === 0 ? null : text
        })
      const takeAgain = (device: Device): Effect.Effect<string | null, LibsqlError> => Effect.suspend(() => take(device))

      interface Row {
        readonly command: string
        readonly pin: string | null
        readonly status: string
        readonly attempts: number
        readonly result: number | null
        readonly error: string | null
      }
      const settle = (tx: Tx, device: Device, { id, result }: CommandResult, now: string) =>
        Effect.gen(function* () {
          const [row] = yield* tx.all<Row>(
            "SELECT command, pin, status, attempts, result, error FROM device_commands WHERE device_id = ? AND id = ?",
            [device.id, id],
          )
          // A repeated result, one of a command that no longer counts, and an id that was never given out change nothing.
          if (row === undefined || ["done", "cancelled"].includes(row.status) || (row.status === "failed" && row.result !== null)) return null
          const { outcome, error } = judgeResult(row.command, result, device.family)
          if (outcome === "later") return null
          const capability = capabilityOf(row.command)
          // Old firmware knows the same under an older word: it is said once more in that.
          const isOlder =
            outcome === "unsupported" && device.family === "att" && /^DATA (UPDATE|DELETE) USERINFO$/.test(capability) && row.error !== OLDER_WORDS
          const isAgain = outcome === "retry" && row.attempts < MAX_ATTEMPTS
          const next = isOlder ? "pending" : isAgain ? "sent" : outcome === "done" ? "done" : "failed"
          yield* tx.run(
            "UPDATE device_commands SET status = ?1, result = ?2, error = ?3, done_at = CASE WHEN ?1 IN ('sent', 'pending') THEN NULL ELSE ?4 END WHERE device_id = ?5 AND id = ?6",
            [next, isOlder ? null : result, isOlder ? OLDER_WORDS : error, now, device.id, id],
          )
          if (row.pin !== null) yield* settlePerson(tx, device, { id, pin: row.pin, command: row.command, next, error, now })
          if (row.command === QUERY_USERS && (next === "done" || next === "failed")) yield* markAll(tx)
          return outcome === "unsupported" && capability !== "CHECK" ? capability : null
        })

      const settlePerson = (
        tx: Tx,
        device: Device,
        of: {
          readonly id: number
          readonly pin: string
          readonly command: string
          readonly next: string
          readonly error: string | null
          readonly now: string
        },
      ) =>
        Effect.gen(function* () {
          const [held] = yield* tx.all<{ card: string | null; command_id: number | null }>(
            "SELECT card, command_id FROM device_user_sync_status WHERE device_id = ? AND pin = ?",
            [device.id, of.pin],
          )
          const isDeleting = isDelete(of.command)
          const isNewest = held?.command_id === of.id
          // Of several commands for a person one that fails is enough; only the last one makes it done.
          if (of.next === "failed" && !isNewest && held != null)
            yield* tx.run(`UPDATE device_commands SET status = 'cancelled', done_at = ? WHERE device_id = ? AND id = ? AND ${OPEN}`, [
              of.now,
              device.id,
              held.command_id ?? 0,
            ])
          if (isNewest || of.next === "failed") {
            const fault = of.next === "done" && !isDeleting ? cardFault(held?.card ?? null) : null
            const person = of.next === "done" ? (isDeleting ? "deleted" : fault === null ? "synced" : "failed") : of.next
            yield* tx.run(
              `UPDATE device_user_sync_status SET status = ?1, error = ?2, updated_at = ?3, synced_at = CASE WHEN ?1 = 'synced' THEN ?3 ELSE synced_at END
                WHERE device_id = ?4 AND pin = ?5`,
              [person, fault ?? of.error, of.now, device.id, of.pin],
            )
          }
          if (isDeleting && of.next === "done")
            yield* tx.run("DELETE FROM schoolbus_iclock_user WHERE device_id = ? AND pin = ?", [device.id, of.pin])
        })

      const results = (device: Device, answers: ReadonlyArray<CommandResult>) =>
        Effect.gen(function* () {
          if (answers.length === 0) return
          const now = timestamptz(yield* Clock.currentTimeMillis)
          const lacking = yield* change(device, (tx) => Effect.forEach(answers, (answer) => settle(tx, device, answer, now)))
          const unsupported = new Set([...unsupportedOf(device), ...lacking.flatMap((name) => (name === null ? [] : [name]))])
          yield* devices.learn(device, { unsupported: [...unsupported].sort().join(",") })
        })

      const send = Effect.fnUntraced(function* (wanted: string, request: CommandRequest) {
        const device = yield* devices.find(wanted)
        const asked = textOf(request, device)
        if (asked instanceof DeviceRefused) return yield* asked
        if (device.status !== "approved") return yield* notApproved(device)
        const now = yield* Clock.currentTimeMillis
        const ids = yield* change(device, (tx) =>
          Effect.gen(function* () {
            const state = yield* devices.school(tx)
            const isClear = asked.text === CLEAR_LOG
            const unsafe = isClear ? yield* unsafeToClear(tx, device) : null
            if (unsafe !== null) return yield* invalid(`not now: ${unsafe}`)
            // What the terminal holds at that moment is asked first; what it has made since is sent before it is cleared.
            const before = isClear ? ["INFO"] : []
            return yield* queueCommands(
              tx,
              { school: state.school, deviceId: device.id, now },
              [...before, asked.text].map((command) => ({ command, pin: null, expiresMs: asked.expiresMs })),
            )
          }),
        )
        return ids.at(-1) ?? 0
      })

      const history = (wanted: string, limit: number) =>
        Effect.gen(function* () {
          const device = yield* devices.find(wanted)
          return yield* db.read((tx) => readHistory(tx, device.id, limit))
        })

      const suspect = (device: Device) =>
        Effect.gen(function* () {
          const now = yield* Clock.currentTimeMillis
          const queued = yield* db.write((tx) =>
            Effect.gen(function* () {
              const state = yield* Effect.orDie(devices.school(tx))
              const [asked] = yield* tx.all<{ n: number }>(
                "SELECT EXISTS (SELECT 1 FROM device_commands WHERE device_id = ? AND command = ? AND created_at > ?) AS n",
                [device.id, QUERY_USERS, timestamptz(now - SUSPECT_MS)],
              )
              if (asked?.n === 1) return []
              const wanted = (yield* notOpen(tx, device.id, ["INFO", QUERY_USERS])).filter((command) => knows(device, command))
              return yield* queueCommands(
                tx,
                { school: state.school, deviceId: device.id, now },
                wanted.map((command) => ({ command, pin: null, expiresMs: 86_400_000 })),
              )
            }),
          )
          if (queued.length > 0) yield* changed(device.id)
        })

      const recheck = (device: Device) =>
        Effect.gen(function* () {
          const now = yield* Clock.currentTimeMillis
          yield* change(device, (tx) =>
            Effect.gen(function* () {
              const { school } = yield* Effect.orDie(devices.school(tx))
              const wanted = yield* notOpen(tx, device.id, ["CHECK"])
              yield* queueCommands(
                tx,
                { school, deviceId: device.id, now },
                wanted.map((command) => ({ command, pin: null, expiresMs: 86_400_000 })),
              )
            }),
          )
        })

      const trim = Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        yield* db.write((tx) => dropHistory(tx, now))
      })

      return Commands.of({ isIdle, take, results, send, history, suspect, recheck, trim, changed })
    }),
  )
}
