/** Counting large tables costs: a count is repeated when something has changed, but the larger it is, the less often. */
import * as Effect from "effect/Effect"
import { elapsedMs } from "../elapsed.ts"
import type { LibsqlFile } from "../libsql/client.ts"

/** A count that takes less than this is repeated at every change. */
const CHEAP_MS = 200
/** Otherwise it rests for twenty times what it took: at most about 5 % of a reader's time goes into counting. */
const REST_FACTOR = 20

/**
 * `count` reads by what it is given, which takes the time: waiting for other reads is none. `version` names the state that is
 * counted: the same text, the same count.
 */
export const recount = <A, E, R>(
  db: Pick<LibsqlFile, "read">,
  count: (read: LibsqlFile["read"]) => Effect.Effect<A, E, R>,
): Effect.Effect<(version: string) => Effect.Effect<A, E, R>> =>
  Effect.sync(() => {
    let last: { readonly value: A; readonly version: string; readonly until: number } | null = null
    return (version) =>
      Effect.gen(function* () {
        const from = yield* elapsedMs
        if (last !== null && (last.version === version || from < last.until)) return last.value
        let took = 0
        const read: LibsqlFile["read"] = (body) =>
          db.read((tx) =>
            Effect.gen(function* () {
              const began = yield* elapsedMs
              const found = yield* body(tx)
              took += (yield* elapsedMs) - began
              return found
            }),
          )
        const value = yield* count(read)
        last = { value, version, until: took < CHEAP_MS ? 0 : (yield* elapsedMs) + took * REST_FACTOR }
        return value
      })
  })
