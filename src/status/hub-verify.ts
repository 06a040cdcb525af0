/** Verify at the hub: Postgres against the feed, answered by the stream. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { FeedChecks } from "../down/check.ts"
import { Feed } from "../down/feed.ts"
import { type Verified, Verify, VerifyRefused } from "./verify.ts"

export const hubVerify: Layer.Layer<Verify, never, FeedChecks | Feed> = Layer.effect(
  Verify,
  Effect.gen(function* () {
    const checks = yield* FeedChecks
    const feed = yield* Feed
    let last: Verified | null = null
    const run = (repair: boolean) =>
      Effect.gen(function* () {
        const startedAt = yield* Clock.currentTimeMillis
        const tables = yield* Effect.mapError(checks.ask(repair), (error) => new VerifyRefused({ message: error.message }))
        const differences = tables.reduce((sum, table) => sum + table.missing + table.extra + table.differing, 0)
        const result: Verified = {
          startedAt: new Date(startedAt).toISOString(),
          seconds: ((yield* Clock.currentTimeMillis) - startedAt) / 1000,
          compared: "postgres-feed",
          equal: differences === 0,
          differences,
          bytes: 0,
          tables: tables.map((table) => ({ ...table, skipped: 0 })),
          repaired: { up: 0, down: repair ? differences : 0 },
        }
        last = result
        yield* result.equal
          ? Effect.logInfo("verify: the feed equals Postgres")
          : Effect.logWarning(`verify: ${differences} rows of the feed differ from Postgres`)
        return result
      })
    return Verify.of({ run, last: Effect.sync(() => last), lost: (limit) => Effect.orDie(feed.lost(limit)) })
  }),
)
