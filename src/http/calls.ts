/**
 * Who is on the line: which schools have a request open or had one in the last minute, and which were asked to sync now.
 * A school that waits in a long poll is told at once, another with its next heartbeat.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { elapsedMsOf } from "../elapsed.ts"
import { Feed } from "../down/feed.ts"
import { HubFactStore } from "../status/facts.ts"
import { refuseUnknownSchool, refuseUnknownTables } from "../status/records.ts"
import { SyncNow } from "../status/sync-now.ts"

const CONNECTED_MS = 60_000
const LOOK_MS = 5_000

interface Line {
  open: number
  lastAt: number
  asked: boolean
  /** Whoever opened its request last stands first: an older one may hang on a dead line. */
  waiting: ReadonlyArray<Listener>
}

/** Told each time that its school is asked to sync. */
export interface Listener {
  readonly asked: () => void
}

export class Calls extends Context.Service<
  Calls,
  {
    /** Counts a request of the school as open while the effect runs. */
    readonly during: (school: string) => <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
    /** The same for a body that outlives its handler; call the result when it ends. */
    readonly enter: (school: string) => () => void
    /** The same for a request that is answered at once. */
    readonly touch: (school: string) => void
    /** Asks the school to sync now; true: it hears so at once. */
    readonly ask: (school: string) => Effect.Effect<boolean>
    /** True once after each `ask`. */
    readonly take: (school: string) => boolean
    /** Completes when the school is asked, or was and does not know yet. */
    readonly asked: (school: string) => Effect.Effect<void>
    /** From now on; `take` tells whether it was asked before. */
    readonly listen: (school: string, listener: Listener) => void
    readonly unlisten: (school: string, listener: Listener) => void
  }
>()("schoolbus/http/Calls") {
  static readonly layer: Layer.Layer<Calls, never, HubFactStore> = Layer.effect(
    Calls,
    Effect.gen(function* () {
      const facts = yield* HubFactStore
      const clock = yield* Clock.Clock
      const lines = new Map<string, Line>()
      const lineOf = (school: string): Line => {
        const line = lines.get(school) ?? { open: 0, lastAt: Number.NEGATIVE_INFINITY, asked: false, waiting: [] }
        lines.set(school, line)
        return line
      }
      const publish = Effect.gen(function* () {
        const now = elapsedMsOf(clock)
        const connected = [...lines]
          .filter(([, line]) => line.open > 0 || now - line.lastAt < CONNECTED_MS)
          .map(([school]) => school)
          .sort()
        if (connected.join("\0") !== (yield* facts.get).connected.join("\0")) yield* facts.set({ connected })
      })
      yield* Effect.forkScoped(Effect.repeat(publish, Schedule.spaced(LOOK_MS)))

      const touch = (school: string): void => {
        const line = lineOf(school)
        const now = elapsedMsOf(clock)
        const isNews = line.open === 0 && now - line.lastAt >= CONNECTED_MS
        line.lastAt = now
        if (isNews) Effect.runSync(publish)
      }
      const enter = (school: string): (() => void) => {
        touch(school)
        const line = lineOf(school)
        line.open++
        let isOpen = true
        return () => {
          if (!isOpen) return
          isOpen = false
          line.open--
          line.lastAt = elapsedMsOf(clock)
        }
      }

      const listen = (school: string, listener: Listener): void => {
        const line = lineOf(school)
        line.waiting = [listener, ...line.waiting]
      }
      const unlisten = (school: string, listener: Listener): void => {
        const line = lineOf(school)
        line.waiting = line.waiting.filter((other) => other !== listener)
      }

      return Calls.of({
        enter,
        touch,
        during: (school) => (effect) =>
          Effect.acquireUseRelease(
            Effect.sync(() => enter(school)),
            () => effect,
            (leave) => Effect.sync(leave),
          ),
        ask: (school) =>
          Effect.sync(() => {
            const line = lineOf(school)
            line.asked = true
            const { waiting } = line
            for (const listener of waiting) listener.asked()
            return waiting.length > 0
          }),
        take: (school) => {
          const line = lineOf(school)
          const { asked } = line
          line.asked = false
          return asked
        },
        asked: (school) =>
          Effect.callback<void>((resume) => {
            if (lineOf(school).asked) return resume(Effect.void)
            const listener: Listener = {
              asked: () => {
                unlisten(school, listener)
                resume(Effect.void)
              },
            }
            listen(school, listener)
            return Effect.sync(() => unlisten(school, listener))
          }),
        listen,
        unlisten,
      })
    }),
  )
}

/** "Sync now" at the hub: every school asked for, or the one that is named. */
export const hubSyncNow: Layer.Layer<SyncNow, never, Calls | Feed> = Layer.effect(
  SyncNow,
  Effect.gen(function* () {
    const calls = yield* Calls
    const feed = yield* Feed
    return SyncNow.of({
      trigger: (request) =>
        Effect.gen(function* () {
          yield* refuseUnknownTables(
            request.tables,
            (yield* feed.tables).filter((entry) => !entry.hubOnly).map(({ table }) => table),
          )
          const enrolled = (yield* feed.schools).filter((school) => !school.revoked)
          if (request.school !== undefined)
            yield* refuseUnknownSchool(
              request.school,
              enrolled.map(({ id }) => id),
            )
          const known = enrolled.filter((school) => request.school === undefined || school.id === request.school)
          if (known.length === 0) return { started: false, message: "no school is enrolled yet; see: schoolbus schools add", run: null, schools: [] }
          const reached: Array<string> = []
          for (const school of known) if (!school.paused && (yield* calls.ask(school.id))) reached.push(school.id)
          const paused = known.filter((school) => school.paused).length
          const later = known.length - reached.length - paused
          const message = [
            `${reached.length} of ${known.length} schools asked`,
            ...(later > 0 ? [`${later} hear it at their next contact`] : []),
            ...(paused > 0 ? [`${paused} paused`] : []),
          ].join(", ")
          return { started: reached.length + later > 0, message, run: null, schools: reached }
        }),
    })
  }),
)
