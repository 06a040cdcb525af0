/** What a session does over one greeting: take rows, push changes, say how it is, and go on after head office was put back. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Semaphore from "effect/Semaphore"
import type { Pulled, Way } from "../down/pull.ts"
import { isUnknownCut, takeUp } from "../down/verify.ts"
import { hasUnanswered, pendingByTable } from "../libsql/changes.ts"
import { Libsql, type LibsqlError } from "../libsql/client.ts"
import { noteContact } from "../libsql/contact.ts"
import { refuseGap } from "../libsql/gap.ts"
import { addTraffic, dayOf } from "../libsql/traffic.ts"
import { LinkDown, LinkRefused } from "../link/answer.ts"
import type { Identity, Link } from "../link/client.ts"
import { SchoolFactStore } from "../status/facts.ts"
import { Session } from "../status/run.ts"
import { Settings } from "../status/settings.ts"
import { Status } from "../status/snapshot.ts"
import { pushAll } from "../up/up.ts"

/** While batches wait to go up, a page that came waits so long: both need the file, and most of what comes then is what went up. */
const UP_FIRST_MS = 1_000

/** What outlives a session. */
export interface Memory {
  readonly link: Link
  readonly way: Way
  /** Of the link's traffic, how much is written down. */
  readonly written: { sent: number; received: number }
  /** Rows or changes moved since the last failure. */
  hasMoved: boolean
  /** The session ended because a person changed the settings. */
  isChanged: boolean
  /** Nothing has been synced since the node started. */
  isFirst: boolean
  /** Cycles of a metered link so far, and when the next one is due, ms since 1970. */
  cycle: number
  nextCycleAt: number
  /** The cycle under way was not finished: the line broke, or its push failed (`isPushOpen`). */
  isCycleOpen: boolean
  isPushOpen: boolean
  /** How often it was gone on with since something moved. */
  attempts: number
  /** A table has a gap, and head office is too far ahead to compare with: pulling comes first. */
  isFarAhead: boolean
}

/** What a session does, over one greeting. */
export const makeSteps = (memory: Memory, identity: Identity) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const facts = yield* SchoolFactStore
    const status = yield* Status
    const { note, ask } = yield* Session
    const settings = yield* Settings
    const { link } = memory
    const why = (other: string): string => (memory.isFirst ? "start" : other)
    const applied = yield* Latch.make()
    const one = yield* Semaphore.make(1)
    const free = yield* Latch.make(true)
    const turn = Effect.race(free.await, Effect.sleep(UP_FIRST_MS))
    let pushFault = ""
    const moved = (): void => {
      memory.hasMoved = true
      memory.attempts = 0
    }
    const touch = Effect.flatMap(Clock.currentTimeMillis, (now) =>
      facts.set({ link: "online", linkDetail: pushFault, lastContactAt: now, paused: false }),
    )

    /** Writes down what went over the line; answers the bytes of this day. */
    const countTraffic = Effect.gen(function* () {
      const { sent, received } = link.traffic
      const more = { sent: sent - memory.written.sent, received: received - memory.written.received }
      const day = dayOf(yield* Clock.currentTimeMillis)
      const total = yield* db.write((tx) => addTraffic(tx, day, more))
      memory.written.sent = sent
      memory.written.received = received
      return total.sent + total.received
    })

    const took = (pulled: Pulled) =>
      Effect.gen(function* () {
        yield* touch
        if (pulled.kind === "nothing") {
          if (!(yield* db.read(hasUnanswered))) yield* facts.set({ lastSyncAt: yield* Clock.currentTimeMillis })
          return yield* pulled.asked ? ask("hub", "both") : Effect.void
        }
        const { rows, received, applied: isApplied } = pulled.delivered
        const { left, leftBytes } = pulled.header
        note(why("stream"), {
          down: rows,
          tables: Object.fromEntries(Object.entries(pulled.tables).map(([table, n]) => [table, { up: 0, down: n }])),
        })
        if (rows > 0 || isApplied) moved()
        if (isApplied) {
          memory.isFirst = false
          yield* facts.set({ progress: null, lastSyncAt: yield* Clock.currentTimeMillis })
          yield* applied.open
          if (memory.isFarAhead) return yield* new LinkDown({ message: "the cut is here; comparing the tables that programs have altered" })
        } else {
          const total = Math.max(received.rows, received.rows - rows + left)
          const share = Math.min(1, rows / Math.max(1, left))
          const totalBytes = Math.max(received.bytes, Math.round(received.bytes + (leftBytes ?? 0) * (1 - share)))
          yield* facts.set({ progress: { rows: received.rows, total, bytes: received.bytes, totalBytes } })
        }
        if (pulled.kind === "part") return yield* new LinkDown({ message: "the line broke inside a page; going on after what arrived" })
      })

    /** `mayGoOn` is asked between batches: when one has its answer. */
    const pushWhile = (mayGoOn: Effect.Effect<boolean, LibsqlError>) =>
      one.withPermit(
        Effect.gen(function* () {
          if (!memory.isFarAhead) yield* refuseGap(db)
          if (!(yield* db.read(hasUnanswered))) return
          const { changes, conflicts, tables } = yield* pushAll(
            db,
            link,
            identity,
            (yield* settings.get).batch,
            free.close,
            Effect.tap(mayGoOn, () => Effect.sync(moved)),
          ).pipe(Effect.ensuring(free.open))
          pushFault = ""
          note(why("change"), {
            up: changes,
            conflicts,
            tables: Object.fromEntries(Object.entries(tables).map(([table, n]) => [table, { up: n, down: 0 }])),
          })
          if (changes > 0) moved()
          yield* facts.set({ lastSyncAt: yield* Clock.currentTimeMillis })
          yield* touch
        }),
      )
    const push = pushWhile(Effect.succeed(true))

    /** `quietMs`: how long the hub will not hear from us afterwards. */
    const beat = (quietMs: number) =>
      Effect.gen(function* () {
        const snapshot = yield* status.snapshot()
        const { progress } = yield* facts.get
        const { state, tables, behind } = yield* db.read((tx) =>
          Effect.gen(function* () {
            const pending = yield* pendingByTable(tx)
            const [row] = yield* tx.all<{ n: number }>("SELECT count(*) AS n FROM schoolbus_behind")
            const [cursor] = yield* tx.all<{ epoch: string; seq: number; cut: string }>("SELECT epoch, seq, cut FROM schoolbus_state")
            return { state: cursor, tables: pending, behind: row?.n ?? 0 }
          }),
        )
        const clock = yield* Clock.currentTimeMillis
        const pulse = yield* link.heartbeat(identity, {
          incarnation: identity.incarnation,
          pending: tables.reduce((n, table) => n + table.pending, 0),
          oldestPendingAt: tables.length === 0 ? null : Math.min(...tables.map((table) => table.oldestAt)),
          conflicts: snapshot.totals.conflicts,
          behind,
          quarantined: snapshot.totals.failed,
          devices: snapshot.role === "school" ? snapshot.devices.approved : 0,
          state: snapshot.state,
          reason: snapshot.reason === "" ? null : snapshot.reason.slice(0, 500),
          clock,
          ...(state === undefined ? {} : { cursor: state }),
          ...(progress === null ? {} : { progress }),
          ...(quietMs === 0 ? {} : { quietMs }),
        })
        const answered = yield* Clock.currentTimeMillis
        yield* db.write((tx) => noteContact(tx, (clock + answered) / 2, pulse.clock))
        yield* countTraffic
        yield* touch
        yield* facts.set({ pausedTables: pulse.pausedTables ?? [], ...(pulse.paused ? { paused: true } : {}) })
        if (pulse.sync) yield* ask("hub", "both")
      }).pipe(Effect.catchTag("LinkDown", (error) => Effect.logDebug(`heartbeat: ${error.message}`)))

    const noteFault = (error: LinkDown) =>
      Effect.gen(function* () {
        pushFault = `changes wait here: ${error.message}`
        yield* facts.set({ linkDetail: pushFault })
        yield* Effect.logInfo(`push: ${error.message}`)
      })
    /** Head office, or its hub, was put back: only what differs comes down, and the next pull goes on from there. */
    const goOn = Effect.gen(function* () {
      yield* Effect.logWarning("the hub does not know this file's cut; comparing, so that only differences come down")
      const rows = yield* takeUp(link, identity)
      yield* Effect.logInfo(rows === null ? "too much differs: everything comes anew" : `${rows} rows differ from head office`)
    }).pipe(Effect.catchTag("NotComparable", (error) => Effect.fail(new LinkDown({ message: error.message }))))
    const comparing = <A, E, R>(pulling: Effect.Effect<A, E | LinkRefused, R>) =>
      Effect.catchIf(
        pulling,
        (error): error is E & LinkRefused => error instanceof LinkRefused && isUnknownCut(error),
        () => Effect.asVoid(goOn),
      )
    return { touch, took, push, pushWhile, comparing, beat, noteFault, countTraffic, applied, turn }
  })

export type Steps = Effect.Success<ReturnType<typeof makeSteps>>
