/**
 * What terminals upload, on its way into the file: one transaction for everything of an upload, and for all uploads that arrive
 * while another is being written, so that a crowd at the gate waits for the disk once. Its answer waits for the commit. What
 * adds nothing takes no lock.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"
import { Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import type { Reject, Upload } from "./cdata.ts"
import type { Device, DeviceFacts } from "./device.ts"
import { type Contact, type DeviceNews, Devices } from "./devices.ts"
import { markPunches, readSchool } from "./school.ts"
import {
  insertPunches,
  makesAttendance,
  type PunchUpload,
  type Stamped,
  skewOf,
  stamped,
  storePunches,
  storeTwins,
  unknownOf,
  unknownTwins,
} from "./punches.ts"
import { Commands } from "./queue.ts"

/** Events of one terminal that are kept; the oldest leave. */
const MAX_EVENTS = 10_000
/** A clock that moved by less is not written down anew. */
const SKEW_STEP_SECONDS = 5
/** Uploads of one serial number that are worked on at the same time: a terminal sends one after the other, a flood does not. */
const MAX_AT_ONCE = 8
/** Uploads, and lines of them, that one transaction takes: school programs wait for it. */
const MAX_TOGETHER = 32
const MAX_TOGETHER_LINES = 2_000

export interface ReceivedUpload extends Contact {
  readonly device: Device
  readonly table: string
  readonly upload: Upload
  readonly stamps?: Partial<Pick<Device, "att_stamp" | "op_stamp">>
}

interface Job {
  readonly of: PunchUpload & { readonly device: Device }
  readonly table: string
  readonly upload: Upload
  readonly fresh: ReadonlyArray<Stamped>
  readonly twins: ReadonlyArray<Stamped>
  readonly news: DeviceNews | null
  readonly done: Deferred.Deferred<void, LibsqlError>
}

const storeUsers = (tx: Tx, { of: { device, now }, upload }: Job) =>
  tx.many(
    `INSERT INTO schoolbus_iclock_user (device_id, pin, name, card, privilege, at) VALUES (?,?,?,?,?,?)
     ON CONFLICT (device_id, pin) DO UPDATE SET name = excluded.name, card = excluded.card, privilege = excluded.privilege, at = excluded.at`,
    upload.users.map((user) => [BigInt(device.id), user.pin, user.name, user.card, BigInt(user.privilege), BigInt(now)]),
  )

const storeEvents = (tx: Tx, { of: { device, now }, upload }: Job) =>
  Effect.gen(function* () {
    if (upload.events.length === 0) return
    yield* tx.many(
      "INSERT OR IGNORE INTO schoolbus_iclock_event (serial, raw, at) VALUES (?,?,?)",
      upload.events.map((raw) => [device.serial, raw, BigInt(now)]),
    )
    yield* tx.run(
      `DELETE FROM schoolbus_iclock_event WHERE serial = ?1 AND id <= (
         SELECT id FROM schoolbus_iclock_event WHERE serial = ?1 ORDER BY id DESC LIMIT 1 OFFSET ${MAX_EVENTS})`,
      [device.serial],
    )
  })

const storeRejects = (tx: Tx, { of: { device, now }, table }: Job, rejects: ReadonlyArray<Reject>) => {
  const once = new Map<string, { readonly reject: Reject; extra: number }>()
  for (const reject of rejects) {
    const line = Buffer.from(reject.raw).toString("latin1")
    const twin = once.get(line)
    if (twin === undefined) once.set(line, { reject, extra: 0 })
    else twin.extra++
  }
  return tx.many(
    `INSERT INTO schoolbus_iclock_reject (serial, "table", raw, reason, at, extra) VALUES (?,?,?,?,?,?)
     ON CONFLICT (serial, "table", raw) DO UPDATE SET extra = excluded.extra WHERE excluded.extra > extra`,
    [...once.values()].map(({ reject, extra }) => [device.serial, table, reject.raw, reject.reason, BigInt(now), BigInt(extra)]),
  )
}

/**
 * A terminal that was in use before has punches of whoever had its numbers then. Those of a number that it has not been told of
 * yet, made before the number was given, are kept without an owner, and the roster finds another number.
 */
const strangersOf = (untold: ReadonlyMap<string, number>, punches: ReadonlyArray<Stamped>): ReadonlySet<string> =>
  new Set(punches.flatMap(({ id, record, at }) => (at < (untold.get(record.pin) ?? 0) ? [id] : [])))

const wasInUse = ({ users_reported, punches_reported }: Device): boolean => (users_reported ?? 0) + (punches_reported ?? 0) > 0

const storeJob = (tx: Tx, job: Job): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const refused = yield* storePunches(tx, job.of, job.fresh)
    yield* storeTwins(tx, job.twins)
    yield* storeUsers(tx, job)
    yield* storeEvents(tx, job)
    yield* storeRejects(tx, job, [...job.upload.rejects, ...refused])
    if (job.news !== null) yield* job.news.write(tx)
    if (job.of.strangers.size > 0) yield* markPunches(tx)
  })

const othersOf = ({ users, events, rejects }: Upload): number => users.length + events.length + rejects.length

/** Operations 9, 13 and 22: a user was deleted, the data cleared, the terminal set back, by hand. */
const isLoss = (event: Uint8Array): boolean => /^OPLOG (9|13|22)[\t ]/.test(new TextDecoder("latin1").decode(event.subarray(0, 16)))

const NOBODY: ReadonlySet<string> = new Set()

export class Uploads extends Context.Service<
  Uploads,
  {
    /** Everything of an upload is in the file when it succeeds. */
    readonly store: (received: ReceivedUpload) => Effect.Effect<void, LibsqlError>
    /** `work`, unless too much of this serial number is being worked on; then `busy`. */
    readonly limited: <A, B, E, R>(serial: string, work: Effect.Effect<A, E, R>, busy: B) => Effect.Effect<A | B, E, R>
  }
>()("schoolbus/iclock/Uploads") {
  static readonly layer: Layer.Layer<Uploads, never, Libsql | Devices | Commands> = Layer.effect(
    Uploads,
    Effect.gen(function* () {
      const db = yield* Libsql
      const devices = yield* Devices
      const commands = yield* Commands
      /** The latest wall clock among stored punches of a terminal, since this node started. */
      const newestAt = new Map<string, string>()
      const underWay = new Map<string, number>()
      const one = Semaphore.makeUnsafe(1)
      const waiting: Array<Job> = []

      const writeOne = (job: Job): Effect.Effect<void, LibsqlError> =>
        Effect.gen(function* () {
          const isPunchesOnly = job.news === null && othersOf(job.upload) + job.twins.length + job.of.strangers.size === 0 && !makesAttendance(job.of)
          if (!isPunchesOnly || !(yield* insertPunches(db, job.of, job.fresh))) yield* db.write((tx) => storeJob(tx, job))
        })
      const finish = (job: Job, write: Effect.Effect<void, LibsqlError>) =>
        Effect.flatMap(Effect.exit(write), (exit) => Deferred.done(job.done, exit))

      /** What waits, as much as goes together; an upload that cannot be stored fails alone. */
      const writeNext = Effect.suspend(() => {
        const jobs: Array<Job> = []
        for (let lines = 0; waiting.length > 0 && jobs.length < MAX_TOGETHER && lines < MAX_TOGETHER_LINES; ) {
          const job = waiting.shift() as Job
          jobs.push(job)
          lines += job.upload.count
        }
        const [first] = jobs
        if (first === undefined) return Effect.void
        if (jobs.length === 1) return finish(first, writeOne(first))
        return Effect.flatMap(Effect.exit(db.write((tx) => Effect.forEach(jobs, (job) => storeJob(tx, job), { discard: true }))), (exit) =>
          Exit.isSuccess(exit)
            ? Effect.forEach(jobs, ({ done }) => Deferred.succeed(done, undefined), { discard: true })
            : Effect.forEach(jobs, (job) => finish(job, writeOne(job)), { discard: true }),
        )
      })
      const write = Effect.fnUntraced(function* (of: Job["of"], more: Pick<Job, "table" | "upload" | "fresh" | "twins" | "news">) {
        const job: Job = { of, ...more, done: Deferred.makeUnsafe<void, LibsqlError>() }
        waiting.push(job)
        // Whoever gets the turn takes along all who wait; these find themselves done.
        yield* Effect.uninterruptible(
          one.withPermit(Effect.whileLoop({ while: () => waiting.includes(job), body: () => writeNext, step: () => undefined })),
        )
        yield* Deferred.await(job.done)
        if (job.news !== null) yield* job.news.committed
      })

      const store = Effect.fnUntraced(function* ({ device, isLive, silence, table, upload, stamps }: ReceivedUpload) {
        const now = yield* Clock.currentTimeMillis
        const skewMs = skewOf(upload.punches, device.zone, now, { isLive, silence })
        const state = devices.present() ?? (yield* db.read(readSchool))
        if (state === null) return yield* Effect.die(new Error("a terminal was admitted before the school was known"))
        const punches = stamped(state.school, device, upload.punches, now)
        // What is newer than all that came before is new; of anything else the file is asked first, without a lock.
        const newest = newestAt.get(device.serial)
        const isNews = newest !== undefined && punches.every(({ record }) => record.at > newest)
        const fresh = isNews ? punches : yield* db.read((tx) => unknownOf(tx, punches))
        // Not asked on the way of every upload: few have any.
        const twins = punches.some(({ extra }) => extra > 0) ? yield* db.read((tx) => unknownTwins(tx, punches)) : []
        const strangers = fresh.length > 0 && wasInUse(device) ? strangersOf(yield* commands.untold(device), fresh) : NOBODY
        const news = devices.newsOf(device, factsOf(device, upload, skewMs, stamps))
        if (fresh.length + twins.length + othersOf(upload) > 0 || news !== null)
          yield* write({ ...state, device, now, skewMs, strangers }, { table, upload, fresh, twins, news })
        newestAt.set(
          device.serial,
          punches.reduce((max, { record }) => (record.at > max ? record.at : max), newest ?? ""),
        )
        if (upload.events.some(isLoss)) yield* commands.suspect(device)
      })

      const limited = <A, B, E, R>(serial: string, work: Effect.Effect<A, E, R>, busy: B): Effect.Effect<A | B, E, R> =>
        Effect.suspend((): Effect.Effect<A | B, E, R> => {
          const n = underWay.get(serial) ?? 0
          if (n >= MAX_AT_ONCE) return Effect.succeed(busy)
          underWay.set(serial, n + 1)
          return Effect.ensuring(
            work,
            Effect.sync(() => {
              const left = (underWay.get(serial) ?? 1) - 1
              if (left > 0) underWay.set(serial, left)
              else underWay.delete(serial)
            }),
          )
        })

      return Uploads.of({ store, limited })
    }),
  )
}

/** What an upload tells of its terminal. */
const factsOf = (device: Device, upload: Upload, skewMs: number | null, stamps: ReceivedUpload["stamps"]): DeviceFacts => {
  const skew = skewMs === null ? null : Math.round(skewMs / 1000)
  const isMoved = skew !== null && Math.abs(skew - (device.skew_seconds ?? 0)) >= SKEW_STEP_SECONDS
  const form = upload.users.find((user) => user.cardForm !== null)?.cardForm
  return { ...stamps, ...(isMoved ? { skew_seconds: skew } : {}), ...(form == null ? {} : { card_form: form }) }
}
