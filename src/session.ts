/**
 * A school's conversation with the hub: sessions, one after the other for ever, each from hello to the failure that ends it.
 * On a good link rows come as a stream and changes go at once; on a metered one both wait for the next cycle, but for what
 * is critical.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Random from "effect/Random"
import * as Semaphore from "effect/Semaphore"
import { follow, pullOnce, type Pulled, type PullOptions, refreshManifest, type Way } from "./down/pull.ts"
import { isUnknownCut, takeUp } from "./down/verify.ts"
import { closeGaps, guardTriggers } from "./down/guard.ts"
import { installRoster } from "./iclock/fill.ts"
import { hasUnanswered, pendingByTable, unansweredTables } from "./libsql/changes.ts"
import { Libsql, type LibsqlError } from "./libsql/client.ts"
import { noteContact } from "./libsql/contact.ts"
import { refuseGap } from "./libsql/gap.ts"
import { addTraffic, dayOf } from "./libsql/traffic.ts"
import { backoffMs } from "./link/backoff.ts"
import { type Identity, type Link, LinkDown, type LinkError, LinkRefused, makeLink } from "./link/client.ts"
import { isDue, type Metered, minutesUntilWithin, waitsFor } from "./link/metered.ts"
import { OpenLink } from "./link/open.ts"
import { PROTOCOL } from "./link/protocol.ts"
import type { Manifest } from "./model/table.ts"
import { SchoolFactStore } from "./status/facts.ts"
import { stopReason } from "./status/judge.ts"
import { Session } from "./status/run.ts"
import { meteredOf, Settings } from "./status/settings.ts"
import { Status } from "./status/snapshot.ts"
import { sendAgainFrom } from "./up/again.ts"
import { pushAll } from "./up/up.ts"
import { VERSION } from "./version.ts"

export interface SessionOptions {
  readonly hub: string
  readonly key: string
  readonly adopt: boolean
  /** Tables that worker modules listen to. */
  readonly streams: ReadonlyArray<string>
}

/** How often the file is asked whether a program has written something. */
const OPEN_POLL_MS = 200
const METERED_POLL_MS = 1_000
const HEARTBEAT_MS = 20_000
/** Without automatic sync no pull stands open: head office's wish is heard with these. */
const HELD_BEAT_MS = 3_000
/** The hub hears of an applied cut this long after it, once for all that are applied meanwhile. */
const APPLIED_MS = 500
/** Outside of hours and budget the clock is looked at this often. */
const CLOSED_LOOK_MS = 30_000
/** A session that lasted this long, or that moved something, starts the waits anew. */
const HEALTHY_MS = 60_000

/** Codes after which calling again at once makes no sense: a person must act. */
const STOPS = new Set([
  "unauthorized",
  "cloned",
  "restored",
  "wrong_school",
  "wrong_cluster",
  "schema_ahead",
  "protocol",
  "batch_differs",
  "batch_lost",
])
/** Those that stand in the file, so that the status tells them before the hub is asked again. */
const KEPT_STOPS = new Set(["cloned", "restored", "wrong_school", "wrong_cluster", "schema_ahead", "batch_lost"])

interface StateRow {
  readonly incarnation: string
  readonly school: string | null
  readonly cluster: string | null
  readonly token: string
  readonly epoch: string
  readonly seq: number
  readonly cut: string
  readonly manifest: string | null
  readonly last_batch: number
}

export const readState = Effect.gen(function* () {
  const db = yield* Libsql
  const [row] = yield* db.read((tx) =>
    tx.all<StateRow>("SELECT incarnation, school, cluster, token, epoch, seq, cut, manifest, last_batch FROM schoolbus_state"),
  )
  return row as StateRow
})

const hello = (link: Link) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const state = yield* readState
    const clock = yield* Clock.currentTimeMillis
    const welcome = yield* link.hello({
      protocol: PROTOCOL,
      incarnation: state.incarnation,
      token: state.token,
      epoch: state.epoch,
      seq: state.seq,
      cut: state.cut,
      lastBatch: state.last_batch,
      manifest: state.manifest === null ? 0 : (JSON.parse(state.manifest) as Manifest).version,
      clock,
      version: VERSION,
    })
    const now = yield* Clock.currentTimeMillis
    // A hub that has not seen Postgres yet does not know which one it is.
    const isOther = welcome.cluster !== "" && state.cluster !== null && state.cluster !== welcome.cluster
    if (isOther || (state.school !== null && state.school !== welcome.school.id)) {
      const code = isOther ? "wrong_cluster" : "wrong_school"
      const other = `the key belongs to school ${welcome.school.id}, this file to ${state.school}; start the node with the right key, or with another --data-dir`
      return yield* new LinkRefused({ status: 409, code, message: isOther ? stopReason(code) : other, expected: null })
    }
    // The token is durable before it is used for the first time.
    yield* db.write((tx) =>
      Effect.andThen(
        tx.run(
          "UPDATE schoolbus_state SET token = ?, school = ?, cluster = coalesce(nullif(?, ''), cluster), clock_offset = ?, contact_at = ?, stop = NULL",
          [welcome.token, welcome.school.id, welcome.cluster, Math.round(welcome.clock - (clock + now) / 2), now],
        ),
        noteContact(tx, (clock + now) / 2, welcome.clock),
      ),
    )
    return { welcome, identity: { incarnation: state.incarnation, token: welcome.token } satisfies Identity }
  })

const knowsMore = (lastBatch: number) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const [row] = yield* db.read((tx) =>
      tx.all<{ n: number }>(
        "SELECT EXISTS (SELECT 1 FROM schoolbus_batch WHERE number > ? AND (answered_at IS NOT NULL OR settled_at IS NOT NULL)) AS n",
        [lastBatch],
      ),
    )
    return row?.n === 1
  })

/** What outlives a session. */
interface Memory {
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
  /** A table has a gap, and head office is too far ahead to compare with: pulling comes first. */
  isFarAhead: boolean
}

/** What a session does, over one greeting. */
const makeSteps = (memory: Memory, identity: Identity) =>
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
    let pushFault = ""
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
        if (pulled.kind === "nothing") return yield* pulled.asked ? ask("hub", "both") : Effect.void
        const { rows, received, applied: isApplied } = pulled.delivered
        const { left, leftBytes } = pulled.header
        note(why("stream"), {
          down: rows,
          tables: Object.fromEntries(Object.entries(pulled.tables).map(([table, n]) => [table, { up: 0, down: n }])),
        })
        memory.hasMoved ||= rows > 0 || isApplied
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

    const push = one.withPermit(
      Effect.gen(function* () {
        if (!memory.isFarAhead) yield* refuseGap(db)
        if (!(yield* db.read(hasUnanswered))) return
        const { changes, conflicts, tables } = yield* pushAll(db, link, identity, (yield* settings.get).batch)
        pushFault = ""
        note(why("change"), {
          up: changes,
          conflicts,
          tables: Object.fromEntries(Object.entries(tables).map(([table, n]) => [table, { up: n, down: 0 }])),
        })
        memory.hasMoved ||= changes > 0
        yield* facts.set({ lastSyncAt: yield* Clock.currentTimeMillis })
        yield* touch
      }),
    )

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
        if (pulse.paused) yield* facts.set({ paused: true })
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
    return { touch, took, push, comparing, beat, noteFault, countTraffic, applied }
  })

type Steps = Effect.Success<ReturnType<typeof makeSteps>>

/** A push again and again, each time after `pause`; `closesRuns`: it is all that a run which was asked for waits for. A hub that cannot write to Postgres now still has rows for us: only what waits to go up waits. */
const pushes = (
  push: Effect.Effect<void, LinkError | LibsqlError, Libsql>,
  pause: Effect.Effect<void>,
  noteFault: Steps["noteFault"],
  closesRuns: boolean,
) =>
  Effect.gen(function* () {
    const { wake, asked, closeRun, note } = yield* Session
    const settings = yield* Settings
    for (let failures = 0; ; ) {
      const request = yield* asked
      const error = yield* push.pipe(
        Effect.as(null),
        Effect.catchTag("LinkDown", (down) => Effect.succeed(down)),
      )
      if (error === null) failures = 0
      else yield* noteFault(error)
      if (error !== null) note("change", { error: error.message })
      if (closesRuns && request !== null && (yield* asked)?.run === request.run) yield* closeRun
      const mostMs = (yield* settings.get).retryMaxSeconds * 1000
      yield* Effect.race(
        error === null ? pause : Effect.sleep(backoffMs(failures++, error.retryAfterMs ?? 0, yield* Random.next, mostMs)),
        wake.await,
      )
      yield* wake.close
    }
  })

/** Rows and changes travel as they come. */
const freely = (memory: Memory, identity: Identity, install: PullOptions, steps: Steps) => {
  const tell = Effect.andThen(
    Effect.race(Effect.sleep(HEARTBEAT_MS), Effect.andThen(steps.applied.await, Effect.sleep(APPLIED_MS))),
    Effect.andThen(steps.applied.close, steps.beat(0)),
  )
  return Effect.all(
    [
      Effect.forever(steps.comparing(follow(memory.link, identity, install, memory.way, steps.took))),
      pushes(steps.push, Effect.sleep(OPEN_POLL_MS), steps.noteFault, true),
      Effect.andThen(steps.beat(0), Effect.forever(tell)),
    ],
    { concurrency: "unbounded", discard: true },
  )
}

/** Nothing moves until somebody asks; head office still hears that the school is there. */
const onRequest = (memory: Memory, identity: Identity, install: PullOptions, steps: Steps) =>
  Effect.gen(function* () {
    const { wake, asked, closeRun } = yield* Session
    const serve = Effect.gen(function* () {
      const request = yield* asked
      if (request === null) return
      if (request.direction !== "down") yield* steps.push
      while (request.direction !== "up") {
        const pulled = yield* steps.comparing(pullOnce(memory.link, identity, install, 0))
        if (pulled === undefined) continue
        yield* steps.took(pulled)
        if (pulled.kind === "nothing") break
      }
      yield* closeRun
      yield* steps.beat(0)
    })
    const requests = Effect.forever(Effect.andThen(serve, Effect.andThen(wake.await, wake.close)))
    return yield* Effect.all([requests, Effect.forever(Effect.andThen(steps.beat(0), Effect.sleep(HELD_BEAT_MS)))], {
      concurrency: "unbounded",
      discard: true,
    })
  })

/** Rows and changes wait for the next cycle; a critical change does not, and whoever asks for a sync gets it at once. */
const byCycles = (metered: Metered, memory: Memory, identity: Identity, install: PullOptions, steps: Steps) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const facts = yield* SchoolFactStore
    const { wake, asked, closeRun } = yield* Session
    const cycleMs = metered.cycleMinutes * 60_000
    const now = Effect.gen(function* () {
      const at = yield* Clock.currentTimeMillis
      const date = new Date(at)
      return { at, minute: date.getHours() * 60 + date.getMinutes(), usedBytes: yield* steps.countTraffic }
    })
    const waitingPriorities = Effect.gen(function* () {
      if (!(yield* db.read(hasUnanswered))) return []
      const { tables } = JSON.parse((yield* readState).manifest ?? '{"tables":[]}') as Pick<Manifest, "tables">
      const names = new Set(yield* db.read(unansweredTables))
      return tables.filter((table) => names.has(table.name)).map((table) => table.priority)
    })
    const critical = Effect.gen(function* () {
      if ((yield* waitingPriorities).includes("critical")) yield* steps.push
    })
    /** Pages until nothing is left; the budget is looked at between them. */
    const pullAll = (isAsked: boolean) =>
      Effect.gen(function* () {
        for (;;) {
          const pulled = yield* steps.comparing(pullOnce(memory.link, identity, install, 0))
          if (pulled === undefined) continue
          yield* steps.took(pulled)
          if (pulled.kind === "nothing" || waitsFor(metered, { ...(yield* now), isAsked }) === "budget") return
        }
      })
    const cycles = Effect.gen(function* () {
      for (let isAsked = false; ; ) {
        const moment = yield* now
        // A line that breaks makes no more cycles.
        const early: number = isAsked ? 0 : memory.nextCycleAt - moment.at
        const waits = early > 0 ? null : waitsFor(metered, { ...moment, isAsked })
        if (early > 0) yield* facts.set({ metered: { waits: null, nextAt: memory.nextCycleAt } })
        else if (waits === null) {
          memory.cycle++
          memory.nextCycleAt = moment.at + cycleMs
          const due = (yield* waitingPriorities).some((priority) => isAsked || isDue(priority, memory.cycle))
          if (due) yield* steps.push.pipe(Effect.catchTag("LinkDown", steps.noteFault))
          yield* pullAll(isAsked)
          yield* facts.set({ metered: { waits: null, nextAt: memory.nextCycleAt } })
          if ((yield* asked) !== null) yield* closeRun
          yield* steps.beat(cycleMs)
        } else {
          const minutes = waits === "hours" ? minutesUntilWithin(metered.hours, moment.minute) : 24 * 60 - moment.minute
          yield* facts.set({ metered: { waits, nextAt: moment.at + minutes * 60_000 } })
        }
        const pause: number = early > 0 ? early : waits === null ? cycleMs : CLOSED_LOOK_MS
        isAsked = yield* Effect.race(Effect.as(Effect.sleep(pause), false), Effect.as(wake.await, true))
      }
    })
    return yield* Effect.all([cycles, pushes(critical, Effect.sleep(METERED_POLL_MS), steps.noteFault, false)], {
      concurrency: "unbounded",
      discard: true,
    })
  })

const session = (options: SessionOptions, memory: Memory) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const facts = yield* SchoolFactStore
    const { link } = memory
    const install: PullOptions = { streams: options.streams, adopt: options.adopt, alsoInstall: installRoster }
    const { welcome, identity } = yield* hello(link)
    const state = yield* readState
    const steps = yield* makeSteps(memory, identity)
    yield* steps.touch
    if (state.manifest === null || (JSON.parse(state.manifest) as Manifest).version !== welcome.manifest)
      yield* refreshManifest(link, identity, install)
    if (welcome.paused) yield* facts.set({ paused: true })
    // A hub that was put back knows fewer batches than it has answered: they go up again before anything is pulled.
    if (yield* knowsMore(welcome.lastBatch)) {
      yield* sendAgainFrom(db, welcome.lastBatch + 1)
      yield* pushAll(db, link, identity)
    }
    yield* guardTriggers(install)
    memory.isFarAhead = yield* closeGaps(link, identity)
    const taking = { ...install, mayHaveGaps: memory.isFarAhead }
    const settings = yield* Settings
    const { auto, ...how } = yield* settings.get
    const metered = meteredOf({ auto, ...how })
    // The first copy is nobody's to hold back.
    const isHeld = !auto && state.cut !== "0"
    const work = isHeld
      ? onRequest(memory, identity, taking, steps)
      : metered === null
        ? freely(memory, identity, taking, steps)
        : byCycles(metered, memory, identity, taking, steps)
    memory.isChanged = false
    const changed = Effect.andThen(
      settings.changed,
      Effect.sync(() => {
        memory.isChanged = true
      }),
    )
    yield* (yield* OpenLink).during({ link, identity })(Effect.raceFirst(Effect.asVoid(work), changed))
  })

/** Sessions, one after the other, for ever. What ended the last stands in the facts. */
export const sessions = (options: SessionOptions) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const facts = yield* SchoolFactStore
    const { note, asked, closeRun, wake } = yield* Session
    const settings = yield* Settings
    const memory: Memory = {
      link: makeLink(options),
      way: { noStreamUntil: 0 },
      written: { sent: 0, received: 0 },
      hasMoved: false,
      isChanged: false,
      isFirst: true,
      cycle: 0,
      nextCycleAt: 0,
      isFarAhead: false,
    }
    const refused = (error: LinkRefused) =>
      Effect.gen(function* () {
        if (error.code === "hello") return
        if (error.code === "paused") return yield* facts.set({ link: "online", linkDetail: "", paused: true })
        const isStop = STOPS.has(error.code)
        const detail = error.code === "unauthorized" ? `${stopReason("unauthorized")} (${error.message})` : error.message
        yield* facts.set({ link: isStop ? "stopped" : "offline", linkDetail: detail })
        if (KEPT_STOPS.has(error.code)) {
          yield* db.write((tx) => tx.run("UPDATE schoolbus_state SET stop = ?", [error.code]))
        }
        yield* Effect.logWarning(`hub refuses (${error.code}): ${detail}`)
      })
    yield* facts.set({ linkDetail: `connecting to ${options.hub}` })
    let failures = 0
    while (true) {
      let askedMs = 0
      memory.hasMoved = false
      const [took, exit] = yield* session(options, memory).pipe(
        Effect.catchTag("LinkRefused", refused),
        Effect.catchTags({
          LinkDown: (error) => {
            askedMs = error.retryAfterMs ?? 0
            return Effect.andThen(facts.set({ link: "offline", linkDetail: error.message }), Effect.logInfo(`offline: ${error.message}`))
          },
          LibsqlError: (error) =>
            Effect.andThen(facts.set({ linkDetail: `${error.code}: ${error.message}` }), Effect.logWarning(`the school's file: ${error.message}`)),
          TableRefused: (error) => Effect.andThen(facts.set({ link: "stopped", linkDetail: error.message }), Effect.logError(error.message)),
          DeliverRefused: (error) => Effect.andThen(facts.set({ link: "offline", linkDetail: error.message }), Effect.logWarning(error.message)),
        }),
        Effect.exit,
        Effect.timed,
      )
      if (exit._tag === "Failure") {
        yield* Effect.logError("session", exit.cause)
        note("start", { error: "internal error; see the log" })
      }
      const { linkDetail } = yield* facts.get
      if (memory.isChanged) {
        memory.isChanged = false
        memory.nextCycleAt = 0
        continue
      }
      if (linkDetail !== "") note(memory.isFirst ? "start" : "schedule", { error: linkDetail })
      if ((yield* asked) !== null) yield* closeRun
      if (memory.hasMoved || Duration.toMillis(took) >= HEALTHY_MS) failures = 0
      yield* Effect.race(Effect.sleep(backoffMs(failures++, askedMs, yield* Random.next, (yield* settings.get).retryMaxSeconds * 1000)), wake.await)
      yield* wake.close
    }
  })
