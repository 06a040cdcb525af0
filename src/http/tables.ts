/** The hub's API of a paused table: accepted in its new shape. */
import * as Effect from "effect/Effect"
import { type AnyElysia, Elysia } from "elysia"
import { z } from "zod"
import { elapsedMs } from "../elapsed.ts"
import { qualify } from "../config.ts"
import { Feed } from "../down/feed.ts"
import { Status } from "../status/snapshot.ts"
import { answering, Refusal } from "./server.ts"

/** How long an answer waits for the stream to take the new shape. */
const TAKEN_MS = 15_000

const resume = (given: string) =>
  Effect.gen(function* () {
    const feed = yield* Feed
    const name = qualify(given)
    const entry = Effect.map(feed.tables, (tables) => tables.find((table) => table.name === name))
    const before = yield* entry
    if (before === undefined) {
      return yield* new Refusal({
        status: 404,
        code: "no_table",
        title: "No such table",
        detail: `${name} is not synced; see: schoolbus tables list`,
      })
    }
    if (before.paused === null)
      return yield* new Refusal({ status: 409, code: "not_paused", title: "Nothing to resume", detail: `table ${name} is not paused` })
    yield* feed.accept(name)
    const until = (yield* elapsedMs) + TAKEN_MS
    for (let now = yield* entry; ; now = yield* entry) {
      // Every look at the catalog makes the entry anew.
      if (now !== undefined && now !== before) {
        if (now.paused === null) return (yield* (yield* Status).snapshot()).tables.find((table) => table.table === name)
        return yield* new Refusal({ status: 409, code: "still_paused", title: "The table cannot go on as it is", detail: now.paused.reason })
      }
      if ((yield* elapsedMs) > until) {
        const detail = "the stream from Postgres does not run now; the table takes its new shape when it does. See: schoolbus status"
        return yield* new Refusal({ status: 503, code: "not_now", title: "Noted, but not taken yet", detail })
      }
      yield* Effect.sleep(20)
    }
  })

/** Only at the hub. */
export const tableRoutes: Effect.Effect<AnyElysia, never, Feed | Status> = Effect.map(Effect.context<Feed | Status>(), (context) => {
  const answer = answering(context)
  return new Elysia({ name: "tables" }).post("/api/sync/tables/:name/resume", ({ request, params }) => answer(request, resume(params.name)), {
    params: z.object({ name: z.string().min(1).max(200) }),
  })
})
