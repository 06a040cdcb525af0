/**
 * A school's conversation with the hub: sessions, one after the other for ever, each from hello to the failure that ends it.
 * Whatever ends one stands in the facts, and the next begins after a wait that grows and is jittered.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { closeGaps, guardTriggers } from "../down/guard.ts"
import { type PullOptions, refreshManifest } from "../down/pull.ts"
import { installRoster } from "../iclock/fill.ts"
import { Libsql } from "../libsql/client.ts"
import { sentence } from "../libsql/trouble.ts"
import { backoffMs } from "../link/backoff.ts"
import type { LinkRefused } from "../link/answer.ts"
import { makeLink } from "../link/client.ts"
import { OpenLink } from "../link/open.ts"
import type { Manifest } from "../model/table.ts"
import { SchoolFactStore } from "../status/facts.ts"
import { stopReason } from "../status/judge.ts"
import { Session } from "../status/run.ts"
import { meteredOf, Settings } from "../status/settings.ts"
import { sendAgainFrom } from "../up/again.ts"
import { pushAll } from "../up/up.ts"
import { hello, knowsMore, readState } from "./hello.ts"
import { makeSteps, type Memory } from "./steps.ts"
import { byCycles, freely, onRequest } from "./ways.ts"

export interface SessionOptions {
  readonly hub: string
  readonly key: string
  readonly adopt: boolean
  /** Tables that worker modules listen to. */
  readonly streams: ReadonlyArray<string>
}

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
    const manifest = state.manifest === null ? null : (JSON.parse(state.manifest) as Manifest)
    // The name is no part of its version.
    if (manifest === null || manifest.version !== welcome.manifest || manifest.school.name !== welcome.school.name)
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
      isCycleOpen: false,
      isPushOpen: false,
      attempts: 0,
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
            Effect.andThen(facts.set({ linkDetail: `${error.code}: ${error.message}` }), Effect.logWarning(`the school's file: ${sentence(error)}`)),
          TableRefused: (error) => Effect.andThen(facts.set({ link: "stopped", linkDetail: error.message }), Effect.logError(error.message)),
          DeliverRefused: (error) =>
            // All but the first pass by themselves: the tables changed, or the hub was put back, while the page was under way.
            Effect.andThen(
              facts.set({ link: "offline", linkDetail: error.message }),
              error.reason === "school" ? Effect.logWarning(error.message) : Effect.logInfo(error.message),
            ),
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
