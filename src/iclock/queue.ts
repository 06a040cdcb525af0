/**
 * Commands that wait for a terminal. A command leaves the queue when its result arrives, not when it is sent; until then it
 * is sent again with the same id. A poll with nothing to do is answered from memory.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import { readWall, timestamptz } from "./clock.ts"
import { CLEAR_LOG, type CommandResult, commandAnswer, inDialect, manualCommands, manualName, QUERY_USERS, queryPunches } from "./command.ts"
import { type Device, DeviceRefused, invalid, notApproved } from "./device.ts"
import { Devices } from "./devices.ts"
import { dialectOf, knows, unsupportedOf } from "./dialect.ts"
import { type Beginnings, readDue } from "./due.ts"
import { readUntold } from "./held.ts"
import { type CommandRecord, dropHistory, notOpen, queueCommands, readHistory, unsafeToClear } from "./outbox.ts"
import { MAX_ATTEMPTS, setStatus, settle } from "./settle.ts"

/** A terminal that does not say whom it holds within this gets its people all the same. */
const WHO_MS = 120_000
/** A terminal that may have lost users is asked at most this often; every two hours it is asked anyway. */
const SUSPECT_MS = 1_800_000

export interface CommandRequest {
  readonly command: string
  /** Of QUERY_ATTLOG: wall clocks where the terminal hangs. */
  readonly from?: string
  readonly to?: string
  /** Of CLEAR_LOG: the serial number, once more. */
  readonly confirm?: string
}

/** A wall clock, or a whole day from its beginning or to its end. */
const momentIn = (text: string | undefined, time: string): string | null => {
  const given = (text ?? "").trim()
  return readWall(/^\S+$/.test(given) && !given.includes("T") ? `${given} ${time}` : given)
}

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
  const from = momentIn(request.from, "00:00:00")
  const to = momentIn(request.to, "23:59:59")
  if (from === null || to === null || from > to) return invalid("QUERY_ATTLOG needs from and to, like 2026-03-03 or 2026-03-03 07:30:00")
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
    /** `readUntold` of this terminal, from memory where nothing has changed. */
    readonly untold: (device: Device) => Effect.Effect<ReadonlyMap<string, number>, LibsqlError>
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
      const idle = new Map<number, { readonly from: number; readonly until: number }>()
      const generations = new Map<number, number>()
      const untoldOf = new Map<number, ReadonlyMap<string, number>>()
      const forget = (deviceId: number): void => {
        untoldOf.delete(deviceId)
        generations.set(deviceId, (generations.get(deviceId) ?? 0) + 1)
        idle.delete(deviceId)
      }
      const changed = (deviceId?: number) =>
        Effect.sync(() => {
          if (deviceId !== undefined) forget(deviceId)
          else for (const id of [...idle.keys(), ...untoldOf.keys()]) forget(id)
        })
      const noteIdle = (deviceId: number, generation: number | undefined, from: number, until: number): void => {
        if (generations.get(deviceId) === generation) idle.set(deviceId, { from, until })
      }
      const change = <A, E>(device: Device, body: (tx: Tx) => Effect.Effect<A, E>) => Effect.tap(db.write(body), () => changed(device.id))
      const untold = Effect.fnUntraced(function* (device: Device) {
        const known = untoldOf.get(device.id)
        if (known !== undefined) return known
        const before = generations.get(device.id)
        const found = yield* db.read((tx) => readUntold(tx, device))
        if (generations.get(device.id) === before) untoldOf.set(device.id, found)
        return found
      })
      const isIdle = (device: Device, now: number): boolean => {
        const found = idle.get(device.id)
        // Before it was found so: somebody has put the clock back.
        return found !== undefined && now >= found.from && now < found.until
      }

      const beginnings: Beginnings = { met: new Set(), memorySince: new Map() }

      const take = (device: Device) =>
        Effect.gen(function* () {
          const now = yield* Clock.currentTimeMillis
          if (isIdle(device, now)) return null
          const before = generations.get(device.id)
          const { due, expired, cleared, unsafe, askWho, isOpen } = yield* db.read((tx) => readDue(tx, beginnings, device, now))
          if (askWho) {
            yield* change(device, (tx) =>
              Effect.flatMap(Effect.orDie(devices.school(tx)), ({ school }) =>
                queueCommands(tx, { school, deviceId: device.id, now }, [{ command: QUERY_USERS, pin: null, expiresMs: WHO_MS }]),
              ),
            )
            return yield* takeAgain(device)
          }
          if (due.length === 0 && expired.length === 0 && unsafe === null) {
            noteIdle(device.id, before, now, isOpen ? now + 1000 : Number.MAX_SAFE_INTEGER)
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
                "status = 'expired', done_at = ?3, error = coalesce(error, iif(attempts > 0, 'sent, but the terminal did not say what became of it', 'the terminal did not call in time'))",
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
          if (sent.length > 0) untoldOf.delete(device.id)
          else noteIdle(device.id, before, now, now + 1000)
          return sent.length === 0 ? null : text
        })
      const takeAgain = (device: Device): Effect.Effect<string | null, LibsqlError> => Effect.suspend(() => take(device))

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

      return Commands.of({ isIdle, take, results, send, history, untold, suspect, recheck, trim, changed })
    }),
  )
}
