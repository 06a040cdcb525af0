/**
 * Time that only goes forward, for how long something took and when it is due. The clock on the wall jumps: a school's battery
 * is empty, somebody sets the date. Its zero means nothing, and it is never stored.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"

export const elapsedMsOf = (clock: Clock.Clock): number => Number(clock.monotonicTimeNanosUnsafe() / 1000n) / 1000

export const elapsedMs: Effect.Effect<number> = Clock.clockWith((clock) => Effect.sync(() => elapsedMsOf(clock)))
