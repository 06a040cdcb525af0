/**
 * How a session spends its time: rows and changes as they come; in cycles, on a link that costs by the byte; or only when
 * somebody asks.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { follow, pullOnce, type PullOptions } from "../down/pull.ts"
import { hasUnanswered, unansweredTables } from "../libsql/changes.ts"
import { Libsql, type LibsqlError } from "../libsql/client.ts"
import { backoffMs } from "../link/backoff.ts"
import type { LinkError } from "../link/answer.ts"
import type { Identity } from "../link/client.ts"
import { isDue, type Metered, minutesUntilWithin, waitsFor } from "../link/metered.ts"
import type { Manifest } from "../model/table.ts"
import { SchoolFactStore } from "../status/facts.ts"
import { Session } from "../status/run.ts"
import { Settings } from "../status/settings.ts"
import { readState } from "./hello.ts"
import type { Memory, Steps } from "./steps.ts"

/** How often the file is asked whether a program has written something. */
const OPEN_POLL_MS = 200
const METERED_POLL_MS = 1_000
const HEARTBEAT_MS = 20_000
/** Without automatic sync no pull stands open: head office's wish is heard with these. */
const HELD_BEAT_MS = 3_000
/** The hub hears of an applied cut this long after it, once for all that are applied meanwhile. */
const APPLIED_MS = 500
/** A cycle that broke off is gone on with this often without anything having moved; then the next one is waited for. */
const CYCLE_ATTEMPTS = 10
/** Outside of hours and budget the clock is looked at this often. */
const CLOSED_LOOK_MS = 30_000

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
export const freely = (memory: Memory, identity: Identity, install: PullOptions, steps: Steps) => {
  const tell = Effect.andThen(
    Effect.race(Effect.sleep(HEARTBEAT_MS), Effect.andThen(steps.applied.await, Effect.sleep(APPLIED_MS))),
    Effect.andThen(steps.applied.close, steps.beat(0)),
  )
  return Effect.all(
    [
      Effect.forever(steps.comparing(follow(memory.link, identity, { ...install, turn: steps.turn }, memory.way, steps.took))),
      pushes(steps.push, Effect.sleep(OPEN_POLL_MS), steps.noteFault, true),
      Effect.andThen(steps.beat(0), Effect.forever(tell)),
    ],
    { concurrency: "unbounded", discard: true },
  )
}

/** Nothing moves until somebody asks; head office still hears that the school is there. */
export const onRequest = (memory: Memory, identity: Identity, install: PullOptions, steps: Steps) =>
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
export const byCycles = (metered: Metered, memory: Memory, identity: Identity, install: PullOptions, steps: Steps) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const facts = yield* SchoolFactStore
    const { wake, asked, closeRun } = yield* Session
    const settings = yield* Settings
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
    /** Hours and budget are looked at between batches and between pages. */
    const mayGoOn = (isAsked: boolean) => Effect.map(now, (moment) => waitsFor(metered, { ...moment, isAsked }) === null)
    /** Pages until nothing is left. */
    const pullAll = (isAsked: boolean) =>
      Effect.gen(function* () {
        while (yield* mayGoOn(isAsked)) {
          const pulled = yield* steps.comparing(pullOnce(memory.link, identity, install, 0))
          if (pulled === undefined) continue
          yield* steps.took(pulled)
          if (pulled.kind === "nothing") return
        }
      })
    /** False: the line, or the hub, did not take it all. */
    const pushDue = (isAsked: boolean) =>
      steps.pushWhile(mayGoOn(isAsked)).pipe(
        Effect.as(true),
        Effect.catchTag("LinkDown", (error) => Effect.as(steps.noteFault(error), false)),
      )
    const cycles = Effect.gen(function* () {
      for (let isAsked = false; ; ) {
        const moment = yield* now
        // A line that breaks makes no more cycles: what is left of one is done as soon as the line is there again.
        const isRest = memory.isCycleOpen && memory.attempts < CYCLE_ATTEMPTS
        const left: number = isAsked || isRest ? 0 : memory.nextCycleAt - moment.at
        // Further away than a cycle: somebody has put the clock back.
        const early: number = left > cycleMs ? 0 : left
        const waits = early > 0 ? null : waitsFor(metered, { ...moment, isAsked })
        let pause: number = early > 0 ? early : waits === null ? cycleMs : CLOSED_LOOK_MS
        if (early > 0) yield* facts.set({ metered: { waits: null, nextAt: memory.nextCycleAt } })
        else if (waits === null) {
          if (isRest) memory.attempts++
          else {
            memory.cycle++
            memory.nextCycleAt = moment.at + cycleMs
            memory.attempts = 0
          }
          memory.isCycleOpen = true
          memory.isPushOpen ||= (yield* waitingPriorities).some((priority) => isAsked || isDue(priority, memory.cycle))
          if (memory.isPushOpen) memory.isPushOpen = !(yield* pushDue(isAsked))
          yield* pullAll(isAsked)
          memory.isCycleOpen = memory.isPushOpen
          if (memory.isCycleOpen && memory.attempts < CYCLE_ATTEMPTS)
            pause = Math.min(cycleMs, backoffMs(memory.attempts, 0, yield* Random.next, (yield* settings.get).retryMaxSeconds * 1000))
          yield* facts.set({ metered: { waits: null, nextAt: memory.nextCycleAt } })
          if ((yield* asked) !== null) yield* closeRun
          yield* steps.beat(cycleMs)
        } else {
          const minutes = waits === "hours" ? minutesUntilWithin(metered.hours, moment.minute) : 24 * 60 - moment.minute
          yield* facts.set({ metered: { waits, nextAt: moment.at + minutes * 60_000 } })
        }
        isAsked = yield* Effect.race(Effect.as(Effect.sleep(pause), false), Effect.as(wake.await, true))
      }
    })
    return yield* Effect.all([cycles, pushes(critical, Effect.sleep(METERED_POLL_MS), steps.noteFault, false)], {
      concurrency: "unbounded",
      discard: true,
    })
  })
