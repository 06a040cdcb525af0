/** When rows that could not be applied are tried again without a cut, a piece at a time. */
import * as Effect from "effect/Effect"
import { elapsedMs } from "../elapsed.ts"
import type { LibsqlError, LibsqlFile } from "../libsql/client.ts"
import type { Delivery } from "./delivery.ts"
import type { Pace } from "./pace.ts"
import { type BehindPlace, countRefused, type Retried, retrySome, retryTogether } from "./refused.ts"

/** Rows behind that one transaction tries again; more than these a cut does not try itself. */
export const RETRY_ROWS = 500
/** A longer list is gone through piece by piece, so often, and up and down at most so many times before all that is left goes together. */
const RETRY_EVERY_MS = 10_000
/** A short list, which every cut tries, when no cut comes: a program may have made room by a write that nobody tells of. */
const RETRY_FEW_EVERY_MS = 60_000
const RETRY_PASSES = 6

export interface Retries {
  /** When no cut has, or there are so many that cuts do not, and not too often. */
  readonly some: Effect.Effect<void, LibsqlError>
  /** All of them, now. */
  readonly all: Effect.Effect<void, LibsqlError>
}

export const makeRetries = (db: LibsqlFile, { deliver }: Pace): Retries => {
  let retriedAt = Number.NEGATIVE_INFINITY
  /** All rows that could not be applied, a piece at a time, against the order in which they came and with it, until none moves; then those that unique values hold up together. */
  const all = Effect.gen(function* () {
    for (let pass = 0; pass < RETRY_PASSES; pass++) {
      const direction = pass % 2 === 0 ? "down" : "up"
      let moved = 0
      for (let after: BehindPlace | null | undefined; after !== null; ) {
        const from: BehindPlace | null = after ?? null
        const piece = (delivery: Delivery) => retrySome(delivery, { after: from, direction, limit: RETRY_ROWS, uniqueOnly: false })
        const { value }: { readonly value: Retried } = yield* deliver(piece)
        moved += value.tried - value.left
        after = value.next
      }
      if (moved === 0 && pass > 0) break
    }
    yield* deliver((delivery) => retryTogether(delivery, true))
    retriedAt = yield* elapsedMs
  })
  const some = Effect.gen(function* () {
    const refused = yield* db.read((tx) => countRefused(tx, RETRY_ROWS + 1))
    if (refused > 0 && (yield* elapsedMs) - retriedAt > (refused > RETRY_ROWS ? RETRY_EVERY_MS : RETRY_FEW_EVERY_MS)) yield* all
  })
  return { some, all }
}
