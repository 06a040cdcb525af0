/** For machines that watch: alive (asks nothing), ready (can do its work), and metrics, from the same snapshot as everything else. */
import * as Effect from "effect/Effect"
import { type AnyElysia, Elysia } from "elysia"
import { metricsOf } from "../status/metrics.ts"
import { type Snapshot, Status } from "../status/snapshot.ts"
import { VERSION } from "../version.ts"
import { answering } from "./server.ts"

export interface ReadyCheck {
  readonly id: string
  readonly status: "pass" | "fail"
  readonly message: string
  readonly observedAt: string
}

/** Ready: can serve those who depend on it. A school is ready without a network, because its programs are. */
const readyChecks = (snapshot: Snapshot): ReadonlyArray<ReadyCheck> => {
  const check = (id: string, ok: boolean, message: string): ReadyCheck => ({ id, status: ok ? "pass" : "fail", message, observedAt: snapshot.asOf })
  return snapshot.role === "hub"
    ? [
        check("feed", true, "feed.db answers"),
        check("postgres", snapshot.postgres, snapshot.postgres ? "Postgres answers" : snapshot.reason),
        check(
          "stream",
          snapshot.stream.state === "streaming",
          snapshot.stream.detail === "" ? snapshot.stream.state : `${snapshot.stream.state}: ${snapshot.stream.detail}`,
        ),
        check(
          "first-copy",
          snapshot.progress.length === 0,
          snapshot.progress.length === 0 ? "complete" : snapshot.progress.map((p) => `${p.table}: ${p.rows} of ${p.total} rows`).join(", "),
        ),
      ]
    : [
        check("file", true, "school.db answers"),
        check("first-copy", snapshot.state !== "new", snapshot.state === "new" ? snapshot.reason || "the first copy is not complete" : "complete"),
        check("not-stuck", snapshot.state !== "stuck", snapshot.state === "stuck" ? snapshot.reason : "no person is needed"),
      ]
}

const json = (status: number, body: unknown): Response => Response.json(body, { status, headers: { "cache-control": "no-store" } })

export const healthRoutes: Effect.Effect<AnyElysia, never, Status> = Effect.map(Effect.context<Status>(), (context) => {
  const answer = answering(context)
  return (
    new Elysia({ name: "health" })
      // Who opens the address in a browser sees how the node is doing.
      .get("/", () => new Response(null, { status: 302, headers: { location: "/api/sync/status", "cache-control": "no-store" } }))
      .get("/health", () => json(200, { status: "alive", version: VERSION }))
      .get("/ready", ({ request }) =>
        answer(
          request,
          Status.use((status) => status.snapshot()).pipe(
            Effect.map((snapshot) => {
              const checks = readyChecks(snapshot)
              const ready = checks.every((check) => check.status === "pass")
              return json(ready ? 200 : 503, { status: ready ? "ready" : "not_ready", checks })
            }),
          ),
        ),
      )
      .get("/metrics", ({ request }) =>
        answer(
          request,
          Status.use((status) => status.snapshot()).pipe(
            Effect.map(
              (snapshot) =>
                new Response(metricsOf(snapshot), {
                  headers: { "content-type": "text/plain; version=0.0.4; charset=utf-8", "cache-control": "no-store" },
                }),
            ),
          ),
        ),
      )
  )
})
