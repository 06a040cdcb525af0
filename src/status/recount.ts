/** Counting large tables costs: a count is repeated when something has changed, but the larger it is, the less often. */
import * as Effect from "effect/Effect"
import { elapsedMs } from "../elapsed.ts"

/** A count that takes less than this is repeated at every change. */
const CHEAP_MS = 200
/** Otherwise it rests for twenty times what it took: at most about 5 % of a reader's time goes into counting. */
const REST_FACTOR = 20

/** `version` names the state that is counted: the same text, the same count. */
export const recount = <A, E, R>(count: Effect.Effect<A, E, R>): Effect.Effect<(version: string) => Effect.Effect<A, E, R>> =>
  Effect.sync(() => {
    let last: { readonly value: A; readonly version: string; readonly until: number } | null = null
    return (version) =>
      Effect.gen(function* () {
        const from = yield* elapsedMs
        if (last !== null && (last.version === version || from < last.until)) return last.value
        const value = yield* count
        const took = (yield* elapsedMs) - from
        last = { value, version, until: took < CHEAP_MS ? 0 : from + took * (REST_FACTOR + 1) }
        return value
      })
  })
