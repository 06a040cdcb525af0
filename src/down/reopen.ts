/**
 * A stream that never ends well, opened again whenever it ends. Waits grow with the failures in a row and stay short, for what is
 * told of the last failure stands until the next attempt, also when the fault is mended.
 */
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import { backoffMs } from "../link/backoff.ts"

/** Jittered by half of it. */
const MOST_MS = 5_000
/** A stream that lived this long starts the waits anew. */
const HEALTHY_MS = 60_000

/** `isBack` ends when another attempt is worth its while at once; it may never end. */
export const reopen = <E, R>(life: Effect.Effect<never, E, R>, isBack: (error: E) => Effect.Effect<void>): Effect.Effect<never, never, R> =>
  Effect.gen(function* () {
    for (let failures = 0; ; failures++) {
      const [took, exit] = yield* Effect.timed(Effect.exit(life))
      const error = Exit.isFailure(exit) ? Cause.findErrorOption(exit.cause) : Option.none()
      if (Option.isNone(error)) yield* Effect.logError("stream", Exit.isFailure(exit) ? exit.cause : "ended")
      if (Duration.toMillis(took) >= HEALTHY_MS) failures = 0
      const wait = Effect.sleep(backoffMs(failures, 0, yield* Random.next, MOST_MS))
      yield* Option.isNone(error) ? wait : Effect.race(wait, isBack(error.value))
    }
  })
