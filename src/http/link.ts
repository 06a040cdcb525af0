/** The hub's end of the link (link/protocol.ts): its routes, the short ones among them, and what goes past the router. */
import { join } from "node:path"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { type AnyElysia, Elysia } from "elysia"
import { z } from "zod"
import { Compare } from "../down/compare.ts"
import { Feed } from "../down/feed.ts"
import type { LibsqlError } from "../libsql/client.ts"
import { CompareAsk, MAX_COMPARE_BYTES } from "../link/protocol.ts"
import type { Postgres, PostgresError } from "../postgres/client.ts"
import type { Apply } from "../up/apply.ts"
import type { HubFactStore } from "../status/facts.ts"
import { Calls } from "./calls.ts"
import { isHeartbeat, openHeartbeats } from "./heartbeat.ts"
import { hello } from "./hello.ts"
import { answerJson, readJson } from "./link-body.ts"
import { type Answer, authenticate, identify, parsed, paused, queryOf, refuse, refuseCaller } from "./link-caller.ts"
import { pull } from "./pull.ts"
import { openGates, push } from "./push.ts"
import { answering } from "./server.ts"
import { openStreams, type StreamWatch, stream } from "./stream.ts"
import { openUploads } from "./uploads.ts"

type Services = Feed | Compare | Apply | Postgres | Calls | HubFactStore

const manifest = (request: Request) =>
  Effect.gen(function* () {
    const key = yield* authenticate(request)
    const feed = yield* Feed
    const query = yield* parsed(z.object({ incarnation: z.uuid(), token: z.string().max(200) }), queryOf(request))
    yield* identify(key, query)
    return answerJson(yield* feed.manifest(key.school))
  })

const compare = (request: Request) =>
  Effect.gen(function* () {
    const key = yield* authenticate(request)
    const calls = yield* Calls
    const { digests, prints, rows, again } = yield* Compare
    const query = yield* parsed(z.object({ incarnation: z.uuid(), token: z.string().max(200) }), queryOf(request))
    yield* identify(key, query)
    if (key.paused) return yield* paused
    const said = yield* readJson(request, CompareAsk, MAX_COMPARE_BYTES)
    const asked = Effect.gen(function* () {
      switch (said.ask) {
        case "digests":
          return yield* digests(key.school, said.at, said.manifest, said.skip, { incarnation: query.incarnation, batch: said.batch })
        case "prints":
          return yield* prints(key.school, said.at, said.skip, said.buckets)
        case "rows":
          return yield* rows(key.school, said.at, said.names, said.keys)
        case "again":
          return yield* again(key.school, said.at, said.names, said.keys)
      }
    })
    return yield* calls
      .during(key.school)(asked)
      .pipe(
        Effect.map(answerJson),
        Effect.catchTag("CompareRefused", (error) => Effect.fail(refuse(409, error.code, "Not to be compared now", error.message))),
      )
  })

export interface Link {
  readonly routes: AnyElysia
  /** The answer to a request that needs no router; null: any other. */
  readonly direct: (request: Request) => Promise<Response> | null
}

export const openLink = (options: { readonly dataDir: string; readonly watch?: StreamWatch }): Effect.Effect<Link, never, Services | Scope.Scope> =>
  Effect.gen(function* () {
    const context = yield* Effect.context<Services>()
    const answer = answering(context)
    const hellos = yield* Semaphore.make(1)
    const gates = yield* openGates(yield* openUploads(join(options.dataDir, "uploads")))
    const streams = yield* openStreams(gates, options.watch)
    const run = (request: Request, effect: Effect.Effect<Response, Answer | LibsqlError | PostgresError, Services>) =>
      answer(
        request,
        Effect.catchTag(effect, "Answer", ({ respond }) => Effect.sync(respond)),
      )
    const hear = openHeartbeats(streams)
    const heartbeat = (request: Request): Promise<Response> =>
      hear(request).then(
        (response) => response ?? run(request, refuseCaller(request)),
        (cause: unknown) => run(request, Effect.fail(cause as LibsqlError)),
      )
    const raw = { parse: "none" } as const
    const routes = new Elysia({ name: "link" })
      .post("/api/sync/hello", ({ request }) => run(request, hello(request, hellos)), raw)
      .get("/api/sync/manifest", ({ request }) => run(request, manifest(request)))
      .get("/api/sync/pull", ({ request }) => run(request, pull(request)))
      .get("/api/sync/stream", ({ request }) => run(request, stream(request, streams)))
      .post("/api/sync/push", ({ request }) => run(request, push(request, gates)), raw)
      .post("/api/sync/compare", ({ request }) => run(request, compare(request)), raw)
      .post("/api/sync/heartbeat", ({ request }) => heartbeat(request), raw)
    return { routes, direct: (request) => (isHeartbeat(request) ? heartbeat(request) : null) }
  })
