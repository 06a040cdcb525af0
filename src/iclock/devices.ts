/**
 * Known terminals, in the school's file: ordinary rows, captured and sent up like any other. What a poll asks is answered
 * from memory, so a poll of a terminal with nothing to do touches no file.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"
import { ident, Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import { isZone, momentOf, timestamptz } from "./clock.ts"
import {
  cancelOpen,
  copyPins,
  type Device,
  type DeviceFacts,
  type DeviceMemory,
  DeviceRefused,
  insertPending,
  invalid,
  pick,
  readDevices,
  SERIAL,
} from "./device.ts"
import { isAddressRule } from "./request.ts"
import { markAll, markWhole, readSchool, type School } from "./school.ts"

/** Unknown terminals that are listed; more are refused without a trace. One that has not called for a day gives way. */
export const MAX_PENDING = 50
const PENDING_MS = 86_400_000
/** Last seen is written down at most this often; the memory knows better while the node runs. */
const SEEN_SAVE_MS = 3_600_000
/** A terminal that called within this is in touch: what it sends now happened now. */
const LIVE_MS = 60_000
/** Two addresses that take turns within this are two terminals with one serial number. */
const TURNS_MS = 600_000
const TURNS = 3
/** What a terminal is listed with. */
const UNSET_ZONE = "UTC"
/** No zone has it: the terminal is told to shake hands. */
const UNTOLD = 9999

export interface Contact {
  /** It was in touch just before. */
  readonly isLive: boolean
  /** When it was last not in touch, ms since 1970, with the moments of contact around it: what it made then it sends afterwards. */
  readonly silence: Silence | null
}
export interface Silence {
  readonly from: number
  readonly to: number
}

/** Who calls. `unknown`: not listed, or listed just now. `not_ready`: this node does not know its school yet. */
export type Met = ({ readonly kind: "known"; readonly device: Device } & Contact) | { readonly kind: "unknown" } | { readonly kind: "not_ready" }

export interface DeviceNews {
  readonly write: (tx: Tx) => Effect.Effect<void, LibsqlError>
  /** To be done after the commit. */
  readonly committed: Effect.Effect<void>
}

/** Empty text takes a setting back. */
export interface Approval {
  readonly zone?: string
  readonly name?: string
  readonly address?: string
}

interface Known {
  readonly state: School
  readonly school: string
  readonly devices: Map<string, Device>
}

export class Devices extends Context.Service<
  Devices,
  {
    readonly list: Effect.Effect<ReadonlyArray<Device>, LibsqlError>
    /** By numeric id or serial. */
    readonly find: (idOrSerial: string) => Effect.Effect<Device, DeviceRefused | LibsqlError>
    /** The same terminal with what has been learned of it meanwhile. */
    readonly renewed: (device: Device) => Effect.Effect<Device, LibsqlError>
    /** The school, for writers; refused before the first contact with the hub. */
    readonly school: (tx: Tx) => Effect.Effect<School, DeviceRefused | LibsqlError>
    /** The school as the memory has it; null: it must be read. */
    readonly present: () => School | null
    /** The terminal behind a request, noted as seen; an unknown one is listed as pending while there is room. */
    readonly meet: (serial: string, address: string) => Effect.Effect<Met, LibsqlError>
    /** `meet` for a terminal that was here a moment ago and of which nothing needs to be read or written; null: it does. */
    readonly glance: (serial: string, address: string, now: number) => (Met & { readonly kind: "known" }) | null
    /** A serial may be approved before the terminal calls for the first time; again, to change it. Its people are queued by the roster. */
    readonly approve: (idOrSerial: string, options: Approval) => Effect.Effect<Device, DeviceRefused | LibsqlError>
    /** No more OK and no more commands; its punches and pins stay. */
    readonly retire: (idOrSerial: string) => Effect.Effect<Device, DeviceRefused | LibsqlError>
    /** Another terminal hangs where this one hung: it takes over name, zone and pins, and gets everyone. */
    readonly replace: (idOrSerial: string, serial: string) => Effect.Effect<Device, DeviceRefused | LibsqlError>
    readonly learn: (device: Device, facts: DeviceFacts) => Effect.Effect<void, LibsqlError>
    /** `learn` as a part of the caller's transaction; null: nothing of it is new. */
    readonly newsOf: (device: Device, facts: DeviceFacts) => DeviceNews | null
    /** The terminal has told how many users it holds. */
    readonly counted: (device: Device) => Effect.Effect<void>
    /** To be said after rows of `devices` were changed by others. */
    readonly changed: Effect.Effect<void>
  }
>()("schoolbus/iclock/Devices") {
  static readonly layer: Layer.Layer<Devices, never, Libsql> = Layer.effect(
    Devices,
    Effect.gen(function* () {
      const db = yield* Libsql
      const listeningSince = yield* Clock.currentTimeMillis
      const seen = new Map<
        string,
        {
          at: number
          address: string
          savedAt: number
          countedAt: number | null
          silence: Silence | null
          turns: ReadonlyArray<readonly [number, string]>
        }
      >()

      // What was read before a change is not kept after it.
      let generation = 0
      let cached: Known | null = null
      const reading = Semaphore.makeUnsafe(1)
      const changed = Effect.sync(() => {
        generation++
        cached = null
      })
      const change = <A, E>(body: (tx: Tx) => Effect.Effect<A, E>) => Effect.tap(db.write(body), () => changed)

      /**
       * From now on this file may answer terminals also while it has no cut. What they said to the file before it, and what
       * that one had not sent up, is only in their memories now: they are asked for everything.
       */
      const remember = Effect.gen(function* () {
        const asked = yield* db.write((tx) =>
          Effect.andThen(
            tx.run("UPDATE schoolbus_state SET terminals = 1"),
            tx.run("UPDATE devices SET att_stamp = '0', op_stamp = '0', offset_told = ? WHERE status = 'approved'", [UNTOLD]),
          ),
        )
        if (asked > 0) yield* Effect.logInfo(`${asked} terminals are asked for everything that they hold`)
      })
      const again: Effect.Effect<Known | null, LibsqlError> = Effect.suspend(() => readKnown)
      const readKnown: Effect.Effect<Known | null, LibsqlError> = Effect.gen(function* () {
        // Somebody else may have read it while this one waited.
        if (cached !== null) return cached
        const before = generation
        const found = yield* db.read((tx) =>
          Effect.gen(function* () {
            const state = yield* readSchool(tx)
            const [flag] = yield* tx.all<{ terminals: number }>("SELECT terminals FROM schoolbus_state")
            return state === null ? null : { state, isNew: flag?.terminals !== 1, devices: yield* readDevices(tx) }
          }),
        )
        if (found === null) return null
        if (found.isNew) {
          yield* remember
          return yield* again
        }
        const devices = new Map(found.devices.map((row): [string, Device] => [row.serial, { ...row, listeningSince, memory: null }]))
        const now = { state: found.state, school: found.state.school, devices }
        if (before === generation) cached = now
        return now
      })
      const known = Effect.suspend(() => (cached === null ? reading.withPermit(readKnown) : Effect.succeed(cached)))

      const rivalOf = (serial: string): DeviceMemory["rival"] => {
        const turns = seen.get(serial)?.turns ?? []
        const [at, address] = turns.at(-2) ?? []
        return turns.length < TURNS || at === undefined || address === undefined ? null : { address, at }
      }
      const live = (device: Device): Device => {
        const memory = seen.get(device.serial)
        if (memory === undefined) return device
        return {
          ...device,
          last_seen_at: timestamptz(memory.at),
          address: memory.address,
          memory: { seenAt: memory.at, countedAt: memory.countedAt, rival: rivalOf(device.serial) },
        }
      }
      const list = Effect.map(known, (all) => [...(all?.devices.values() ?? [])].map(live))
      const notFound = (wanted: string) =>
        new DeviceRefused({ code: "not_found", message: `no terminal ${wanted} here; see: schoolbus devices list` })
      const find = (wanted: string) =>
        Effect.flatMap(list, (devices) => {
          const found = pick(devices, wanted)
          return found === undefined ? Effect.fail(notFound(wanted)) : Effect.succeed(found)
        })
      const bySerial = (serial: string) =>
        Effect.flatMap(list, (devices) => {
          const found = devices.find((device) => device.serial === serial)
          return found === undefined ? Effect.fail(notFound(serial)) : Effect.succeed(found)
        })
      const renewed = (device: Device) => Effect.map(list, (devices) => devices.find(({ id }) => id === device.id) ?? device)
      const school = (tx: Tx) =>
        Effect.flatMap(readSchool(tx), (state) =>
          state === null
            ? Effect.fail(
                new DeviceRefused({
                  code: "not_ready",
                  message: "this node has not been in contact with the hub yet, so it does not know its school and its terminals",
                }),
              )
            : Effect.succeed(state),
        )

      const meet = Effect.fnUntraced(function* (serial: string, address: string) {
        const now = yield* Clock.currentTimeMillis
        const all = yield* known
        if (all === null) return { kind: "not_ready" } as const
        const device = all.devices.get(serial)
        if (device === undefined) {
          const pending = [...all.devices.values()].filter((one) => one.status === "pending").length
          const gone = [...all.devices.values()].filter(
            (one) => one.status === "pending" && (one.last_seen_at ?? "") < timestamptz(now - PENDING_MS) && !seen.has(one.serial),
          )
          if (pending < MAX_PENDING || gone.length > 0) {
            yield* change((tx) =>
              Effect.gen(function* () {
                if (pending >= MAX_PENDING) yield* tx.run("DELETE FROM devices WHERE id = ? AND status = 'pending'", [gone[0]?.id ?? 0])
                yield* insertPending(tx, all.school, serial, address, now)
              }),
            )
          }
          return { kind: "unknown" } as const
        }
        const before = seen.get(serial)
        const isSameAddress = before?.address === address
        const isSaved = before !== undefined && now - before.savedAt < SEEN_SAVE_MS && (isSameAddress || before.turns.length > 1)
        const lastAt = before?.at ?? (device.last_seen_at === null ? now : momentOf(device.last_seen_at))
        const silence = now - lastAt < LIVE_MS ? (before?.silence ?? null) : { from: lastAt, to: now }
        seen.set(serial, {
          at: now,
          address,
          silence,
          savedAt: isSaved ? before.savedAt : now,
          countedAt: before?.countedAt ?? null,
          turns: isSameAddress ? before.turns : [...(before?.turns ?? []).filter(([at]) => now - at < TURNS_MS).slice(-4), [now, address]],
        })
        if (!isSaved)
          yield* db.write((tx) => tx.run("UPDATE devices SET last_seen_at = ?, address = ? WHERE serial = ?", [timestamptz(now), address, serial]))
        return { kind: "known", device: live(device), isLive: before !== undefined && now - before.at < LIVE_MS, silence } as const
      })

      const glance = (serial: string, address: string, now: number) => {
        const device = cached?.devices.get(serial)
        const before = seen.get(serial)
        if (device === undefined || before === undefined || before.address !== address || now - before.savedAt >= SEEN_SAVE_MS) return null
        const isLive = now - before.at < LIVE_MS
        if (!isLive) before.silence = { from: before.at, to: now }
        before.at = now
        return { kind: "known", device, isLive, silence: before.silence } as const
      }

      /** The row of a terminal, made when it has not called yet. */
      const rowOf = (tx: Tx, ofSchool: string, wanted: string, now: number) =>
        Effect.gen(function* () {
          const found = pick(yield* readDevices(tx), wanted)
          if (found !== undefined) return found
          if (!SERIAL.test(wanted)) return yield* notFound(wanted)
          yield* insertPending(tx, ofSchool, wanted, null, now)
          const made = pick(yield* readDevices(tx), wanted)
          return made === undefined ? yield* notFound(wanted) : made
        })

      const approve = Effect.fnUntraced(function* (wanted: string, options: Approval) {
        if (options.zone !== undefined && !isZone(options.zone))
          return yield* invalid(`${options.zone} is not a time zone; write it like Africa/Nairobi`)
        if (options.address !== undefined && options.address !== "" && !isAddressRule(options.address))
          return yield* invalid(`${options.address} is neither an address nor a net; write it like 10.20.0.7 or 10.20.0.0/24`)
        const now = yield* Clock.currentTimeMillis
        // What is asked of terminals that are known already is not asked of this one.
        yield* known
        // The node stands in the school: its own zone is the best guess.
        const here = Intl.DateTimeFormat().resolvedOptions().timeZone
        const serial = yield* change((tx) =>
          Effect.gen(function* () {
            const state = yield* school(tx)
            const found = yield* rowOf(tx, state.school, wanted, now)
            // What head office has set already stays.
            const zone = options.zone ?? (found.status === "pending" && found.zone === UNSET_ZONE ? here : found.zone)
            const address = options.address === undefined ? found.pinned_address : options.address || null
            yield* tx.run(
              "UPDATE devices SET status = 'approved', approved_at = coalesce(approved_at, ?), zone = ?, name = ?, pinned_address = ? WHERE serial = ?",
              [timestamptz(now), zone, options.name || found.name, address, found.serial],
            )
            yield* markAll(tx)
            return found.serial
          }),
        )
        return yield* bySerial(serial)
      })

      const retire = Effect.fnUntraced(function* (wanted: string) {
        const device = yield* find(wanted)
        const now = yield* Clock.currentTimeMillis
        yield* change((tx) =>
          Effect.gen(function* () {
            yield* school(tx)
            yield* tx.run("UPDATE devices SET status = 'retired' WHERE serial = ?", [device.serial])
            yield* cancelOpen(tx, device.id, now)
          }),
        )
        return yield* bySerial(device.serial)
      })

      const replace = Effect.fnUntraced(function* (wanted: string, serial: string) {
        const now = yield* Clock.currentTimeMillis
        const old = yield* find(wanted)
        if (old.serial === serial) return yield* invalid("a terminal cannot replace itself")
        if (old.status === "pending") return yield* invalid(`terminal ${old.serial} was never approved; approve ${serial} instead`)
        if (!SERIAL.test(serial)) return yield* invalid(`${serial} is not a serial number`)
        yield* change((tx) =>
          Effect.gen(function* () {
            const state = yield* school(tx)
            const next = yield* rowOf(tx, state.school, serial, now)
            if (next.status !== "pending")
              return yield* invalid(
                `terminal ${serial} ${next.status === "approved" ? "is" : "was"} in use already, with pins of its own; retire ${old.serial} and approve it instead`,
              )
            yield* tx.run("UPDATE devices SET status = 'approved', approved_at = ?, zone = ?, name = ?, pinned_address = ? WHERE id = ?", [
              timestamptz(now),
              old.zone,
              old.name === old.serial ? next.name : old.name,
              old.pinned_address,
              next.id,
            ])
            yield* tx.run("UPDATE devices SET status = 'retired', replaced_by = ? WHERE id = ?", [next.id, old.id])
            yield* cancelOpen(tx, old.id, now)
            yield* copyPins(tx, old.id, next.id, now)
            yield* markAll(tx)
          }),
        )
        return yield* bySerial(serial)
      })

      const newsOf = (device: Device, facts: DeviceFacts): DeviceNews | null => {
        const news = Object.entries(facts).filter(([name, value]) => value !== undefined && device[name as keyof DeviceFacts] !== value)
        if (news.length === 0) return null
        const set = news.map(([name]) => `${ident(name)} = ?`).join(", ")
        return {
          write: Effect.fnUntraced(function* (tx) {
            yield* tx.run(`UPDATE devices SET ${set} WHERE serial = ?`, [...news.map(([, value]) => value as string | number), device.serial])
            // The other family is told about people in other words: everyone is queued anew.
            if (facts.family !== undefined && facts.family !== device.family) yield* markWhole(tx, device.id)
          }),
          // The others stay as they are known: many terminals tell something at the same time.
          committed: Effect.sync(() => {
            const before = cached?.devices.get(device.serial)
            if (before !== undefined) cached?.devices.set(device.serial, { ...before, ...Object.fromEntries(news) })
          }),
        }
      }
      const learn = (device: Device, facts: DeviceFacts) => {
        const news = newsOf(device, facts)
        return news === null ? Effect.void : Effect.andThen(db.write(news.write), news.committed)
      }
      const counted = (device: Device) =>
        Effect.map(Clock.currentTimeMillis, (now) => {
          const memory = seen.get(device.serial)
          if (memory !== undefined) seen.set(device.serial, { ...memory, countedAt: now })
        })

      return Devices.of({
        list,
        find,
        renewed,
        school,
        present: () => cached?.state ?? null,
        meet,
        glance,
        approve,
        retire,
        replace,
        learn,
        newsOf,
        counted,
        changed,
      })
    }),
  )
}
