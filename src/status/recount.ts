/** Counting a large table costs; a count is repeated only when the last one is older than twenty times what it took. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"

/** At most about 5 % of a reader's time goes into counting, however often a status is asked for. */
const REST_FACTOR = 20

export const recount = <A, E, R>(count: Effect.Effect<A, E, R>): Effect.Effect<Effect.Effect<A, E, R>> =>
  Effect.sync(() => {
    let last: { readonly value: A; readonly until: number } | null = null
    return Effect.gen(function* () {
      const from = yield* Clock.currentTimeMillis
      if (last !== null && from < last.until) return last.value
      const value = yield* count
      const now = yield* Clock.currentTimeMillis
      last = { value, until: now + (now - from) * REST_FACTOR }
      return value
    })
  })
