import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Elysia } from "elysia"
import { describe, expect, it } from "vitest"
import { z } from "zod"
import { conflictRoutes } from "../../src/http/conflicts.ts"
import { healthRoutes } from "../../src/http/health.ts"
import { accessOf, type Auth, authFor, makeApp, Refusal, answering, problem } from "../../src/http/server.ts"
import { syncRoutes } from "../../src/http/sync.ts"
import { LibsqlError } from "../../src/libsql/client.ts"
import { PostgresError } from "../../src/postgres/client.ts"
import { Quarantine, type QuarantineAction } from "../../src/status/quarantine.ts"
import { ConflictRefused, Conflicts, Runs } from "../../src/status/records.ts"
import { type Snapshot, Status } from "../../src/status/snapshot.ts"
import { SyncNow, type SyncRequest } from "../../src/status/sync-now.ts"
import { aHub, aSchool } from "../status/sample.ts"

const ID = "6a3c2c1e-1111-4111-8111-111111111111"
const TOKEN = "correct-horse-battery-staple"
const triggered: Array<SyncRequest> = []

const services = (snapshot: Snapshot) =>
  Layer.mergeAll(
    Layer.succeed(Status, {
      snapshot: (school?: string) =>
        Effect.succeed(
          snapshot.role === "hub" ? { ...snapshot, schools: snapshot.schools.filter((s) => school === undefined || s.school === school) } : snapshot,
        ),
    }),
    Layer.succeed(SyncNow, {
      trigger: (request: SyncRequest) => {
        triggered.push(request)
        return Effect.succeed({ started: true, message: "started", run: 7, schools: [] })
      },
    }),
    Layer.succeed(Conflicts, {
      list: () => Effect.succeed({ items: [], nextCursor: null }),
      show: (id: string) => Effect.fail(new ConflictRefused({ code: "not_found", message: `no conflict ${id}` })),
      resolve: () => Effect.fail(new ConflictRefused({ code: "not_possible", message: "the row has been written again since" })),
      undo: () => Effect.fail(new ConflictRefused({ code: "decided", message: "nothing is decided here yet" })),
      autoResolve: ({ max }: { max: number }) => Effect.succeed({ resolved: [], skipped: [{ id: ID, why: `a person decides (${max})` }] }),
    }),
    Layer.succeed(Quarantine, {
      list: () => Effect.succeed({ items: [], nextCursor: null, inConflicts: 0 }),
      show: (id: string) => Effect.fail(new ConflictRefused({ code: "not_found", message: `no quarantined change ${id}` })),
      decide: (_: string, action: QuarantineAction) => Effect.fail(new ConflictRefused({ code: "not_possible", message: JSON.stringify(action) })),
    }),
    Layer.succeed(Runs, { list: () => Effect.succeed({ items: [], nextCursor: null }) }),
  )

/** Stands for the link: it must be reachable without the operator's token. */
const linkRoutes = () =>
  new Elysia({ name: "link" })
    .post("/api/sync/hello", () => "link")
    .post("/api/sync/push", () => "link")
    .post("/api/sync/heartbeat", () => "link")
    .post("/api/sync/compare", () => "link")
    .get("/api/sync/pull", () => "link")
    .get("/api/sync/stream", () => "link")
    .get("/api/sync/manifest", () => "link")

const appOf = async (auth: Auth, snapshot: Snapshot = aHub()) => {
  const own = await Effect.runPromise(Effect.all([healthRoutes, syncRoutes, conflictRoutes]).pipe(Effect.provide(services(snapshot))))
  return makeApp({ plugins: [linkRoutes(), ...own], auth })
}

const call = (
  app: { handle: (request: Request) => Promise<Response> },
  method: string,
  path: string,
  headers: Record<string, string> = {},
  body?: string,
) => app.handle(new Request(`http://node.local${path}`, { method, headers, ...(body === undefined ? {} : { body }) }))

const bearer = { authorization: `Bearer ${TOKEN}` }

describe("who may call", () => {
  it.each([
    ["127.0.0.1", null, "local"],
    ["::1", null, "local"],
    ["localhost", null, "local"],
    ["0.0.0.0", null, "closed"],
    ["::", null, "closed"],
    ["127.0.0.1.evil.example", null, "closed"],
    ["0.0.0.0", TOKEN, "token"],
    ["127.0.0.1", TOKEN, "token"],
    ["0.0.0.0", "", "closed"],
  ])("listening on %s with token %s is %s", (host, adminToken, mode) => {
    expect(authFor({ host, adminToken }).mode).toBe(mode)
  })

  it("closes every route that is not the link or /health, in every spelling, without a token", async () => {
    const modes: ReadonlyArray<readonly [Auth, number]> = [
      [{ mode: "token", token: TOKEN }, 401],
      [{ mode: "closed" }, 403],
    ]
    for (const [auth, status] of modes) {
      const app = await appOf(auth)
      const routes = (app.routes as ReadonlyArray<{ method: string; path: string }>).map((r) => [r.method, r.path.replace(":id", ID)] as const)
      expect(routes.length).toBeGreaterThan(18)
      for (const [method, path] of routes) {
        const access = accessOf(method, path)
        if (access !== "operator") {
          expect([path, (await call(app, method, path)).status]).toEqual([path, 200])
          continue
        }
        const spellings = [
          path,
          `${path}/`,
          `${path}//`,
          path.replace("/api/", "/api//"),
          path.toUpperCase(),
          `${path}%2f`,
          `${path}?x=/health`,
          `/health/..${path}`,
          `/./${path.slice(1)}`,
          path.replace("s", "%73"),
          `/${path}`,
        ]
        for (const spelling of spellings) {
          const answer = await call(app, method, spelling)
          expect([auth.mode, method, spelling, answer.status]).toEqual([auth.mode, method, spelling, status])
          expect(answer.headers.get("content-type")).toBe("application/problem+json")
        }
      }
      for (const spelling of [
        "/health/",
        "//health",
        "/Health",
        "/health%2f",
        "/api/sync/push/",
        "/api/sync//push",
        "/API/sync/push",
        "/api/sync/pus%68",
      ]) {
        expect([spelling, (await call(app, spelling.includes("sync") ? "POST" : "GET", spelling)).status]).toEqual([spelling, status])
      }
      for (const method of ["PUT", "DELETE", "PATCH", "OPTIONS"]) expect((await call(app, method, "/api/sync/push")).status).toBe(status)
    }
  })

  it("takes the right token and no other", async () => {
    const app = await appOf({ mode: "token", token: TOKEN })
    expect((await call(app, "GET", "/api/sync/status", bearer)).status).toBe(200)
    expect((await call(app, "GET", "/metrics", { authorization: `bearer  ${TOKEN}` })).status).toBe(200)
    for (const authorization of [
      `Bearer ${TOKEN}x`,
      `Bearer ${TOKEN.slice(1)}`,
      "Bearer ",
      TOKEN,
      `Basic ${btoa(`x:${TOKEN}`)}`,
      `Bearer ${TOKEN} ${TOKEN}`,
    ]) {
      const answer = await call(app, "GET", "/api/sync/status", { authorization })
      expect([authorization, answer.status]).toEqual([authorization, 401])
      expect(answer.headers.get("www-authenticate")).toContain("Bearer")
      expect(await answer.text()).not.toContain(TOKEN.slice(1))
    }
  })

  it("tells what to do when operator routes are closed", async () => {
    const answer = await call(await appOf({ mode: "closed" }), "GET", "/api/sync/status", bearer)
    expect(answer.status).toBe(403)
    expect((await answer.json()).detail).toContain("SCHOOLBUS_ADMIN_TOKEN")
  })

  it("does not let a web page write through the browser of this machine", async () => {
    const app = await appOf({ mode: "local" })
    const write = (headers: Record<string, string>) => call(app, "POST", "/api/sync/all", headers).then((r) => r.status)
    expect(await write({ host: "127.0.0.1:4480" })).toBe(200)
    expect(await write({ host: "localhost:4480", origin: "http://localhost:4480" })).toBe(200)
    expect(await write({ host: "[::1]:4480", origin: "http://[::1]:4480" })).toBe(200)
    expect(await write({ host: "evil.example:4480", origin: "http://evil.example:4480" })).toBe(403)
    expect(await write({ host: "127.0.0.1.evil.example" })).toBe(403)
    expect(await write({ host: "127.0.0.1:4480", origin: "http://evil.example" })).toBe(403)
    expect(await write({ host: "127.0.0.1:4480", origin: "http://127.0.0.1:3000" })).toBe(403)
    expect(await write({ host: "127.0.0.1:4480", origin: "null" })).toBe(403)
    expect(await write({ host: "127.0.0.1:4480", "sec-fetch-site": "cross-site" })).toBe(403)
    expect((await call(app, "GET", "/api/sync/status", { host: "evil.example:4480" })).status).toBe(403)
  })

  it("refuses a large operator body before it is read", async () => {
    const app = await appOf({ mode: "local" })
    const answer = await call(app, "POST", "/api/sync/trigger", { "content-type": "application/json", "content-length": "100000" }, "{}")
    expect(answer.status).toBe(413)
  })
})

describe("errors become statuses", () => {
  const broken = () => {
    const answer = answering(Effect.runSync(Effect.context<never>()))
    const failing =
      <E>(error: E) =>
      ({ request }: { request: Request }) =>
        answer(request, Effect.fail(error))
    const refusing = (sqlstate: string, isFatal = false) =>
      failing(new PostgresError({ sqlstate, isFatal, message: "secret-internal-text", detail: "", constraint: "", table: "", column: "", sql: "" }))
    return makeApp({
      auth: { mode: "local" },
      plugins: [
        new Elysia()
          .get("/throws", () => {
            throw new Error("secret-internal-text")
          })
          .get("/dies", ({ request }) => answer(request, Effect.die(new Error("secret-internal-text"))))
          .get("/refuses", failing(new Refusal({ status: 409, code: "busy", title: "Busy", extra: { expected: 4 } })))
          .get(
            "/pg-down",
            failing(
              new PostgresError({
                sqlstate: "",
                message: "secret-internal-text",
                detail: "",
                constraint: "",
                table: "",
                column: "",
                sql: "SELECT 1",
              }),
            ),
          )
          .get("/pg-locked", refusing("55P03"))
          .get("/pg-long", refusing("57014"))
          .get("/pg-closed", refusing("55000", true))
          .get(
            "/pg-refuses",
            failing(
              new PostgresError({ sqlstate: "28P01", message: "secret-internal-text", detail: "", constraint: "", table: "", column: "", sql: "" }),
            ),
          )
          .get(
            "/damaged",
            failing(new LibsqlError({ file: "/secret-internal-text", code: "SQLITE_CORRUPT", message: "secret-internal-text", sql: "" })),
          )
          .get(
            "/pg-wrong",
            failing(
              new PostgresError({
                sqlstate: "42601",
                message: "secret-internal-text",
                detail: "",
                constraint: "",
                table: "",
                column: "",
                sql: "SELECT 1",
              }),
            ),
          )
          .get("/full", failing(new LibsqlError({ file: "/secret-internal-text", code: "SQLITE_FULL", message: "secret-internal-text", sql: "" })))
          .post("/typed", ({ body }) => body, { body: z.strictObject({ password: z.number(), n: z.number() }) })
          .get("/lies", () => ({ password: "secret-internal-text" }) as never, { response: z.strictObject({ ok: z.boolean() }) }),
      ],
    })
  }

  it.each([
    ["/throws", 500, "internal"],
    ["/dies", 500, "internal"],
    ["/refuses", 409, "busy"],
    ["/pg-down", 503, "unavailable"],
    ["/pg-refuses", 503, "unavailable"],
    ["/pg-closed", 503, "unavailable"],
    ["/pg-locked", 503, "unavailable"],
    ["/damaged", 503, "unavailable"],
    ["/pg-wrong", 500, "internal"],
    ["/full", 503, "unavailable"],
    ["/lies", 500, "internal"],
    ["/nowhere", 404, "no_route"],
  ])("%s answers %d %s and no internal text", async (path, status, code) => {
    const answer = await call(broken(), "GET", path)
    const body = await answer.text()
    expect([answer.status, JSON.parse(body).code, JSON.parse(body).status]).toEqual([status, code, status])
    expect(answer.headers.get("content-type")).toBe("application/problem+json")
    expect(body).not.toContain("secret-internal-text")
  })

  it("the address alone leads to the status, for operators", async () => {
    const answer = await call(await appOf({ mode: "local" }), "GET", "/")
    expect([answer.status, answer.headers.get("location")]).toEqual([302, "/api/sync/status"])
    expect((await call(await appOf({ mode: "token", token: TOKEN }), "GET", "/")).status).toBe(401)
    expect((await call(await appOf({ mode: "closed" }), "GET", "/")).status).toBe(403)
  })

  it("says whether Postgres is away, busy with a lock, or too slow", async () => {
    const told = async (path: string) => (await (await call(broken(), "GET", path)).json()) as { title: string; detail: string }
    expect((await told("/pg-down")).title).toBe("Postgres does not answer")
    expect(await told("/pg-locked")).toMatchObject({ title: "Rows are locked at head office", detail: expect.stringContaining("pg_stat_activity") })
    expect((await told("/pg-long")).title).toBe("Postgres took too long")
  })

  it("a node that is no hub says so to whoever takes it for one", async () => {
    const answer = await call(broken(), "POST", "/api/sync/hello", {}, "{}")
    expect([answer.status, await answer.json()]).toEqual([404, expect.objectContaining({ code: "no_hub", detail: expect.stringContaining("--hub") })])
  })

  it("says where input is wrong without repeating it", async () => {
    const headers = { "content-type": "application/json" }
    const answer = await call(broken(), "POST", "/typed", headers, JSON.stringify({ password: "hunter2hunter2", n: 1, extra: "leftover" }))
    const body = await answer.text()
    expect(answer.status).toBe(422)
    expect(JSON.parse(body).errors[0].pointer).toBe("/password")
    expect(body).not.toContain("hunter2")
    expect(body).not.toContain("leftover")
    expect((await call(broken(), "POST", "/typed", headers, "{not json")).status).toBe(400)
  })

  it("carries extra fields of a refusal", async () => {
    expect(await (await call(broken(), "GET", "/refuses")).json()).toMatchObject({ expected: 4, type: "urn:schoolbus:problem:busy" })
    expect(problem(418, "x", "y").status).toBe(418)
  })
})

describe("the operator's API", () => {
  const json = { "content-type": "application/json" }

  it("answers the snapshot, for one school when asked", async () => {
    const app = await appOf({ mode: "local" })
    expect(await (await call(app, "GET", "/api/sync/status")).json()).toMatchObject({
      schemaVersion: 1,
      role: "hub",
      schools: [{ school: "north" }, { school: "south" }],
    })
    expect((await (await call(app, "GET", "/api/sync/status?school=south")).json()).schools).toHaveLength(1)
    expect((await call(app, "GET", "/api/sync/status?school=nowhere")).status).toBe(404)
  })

  it("says how healthy it is, and whether it is ready", async () => {
    expect(await (await call(await appOf({ mode: "local" }), "GET", "/api/sync/health")).json()).toMatchObject({ status: "ok", healthy: true })
    expect((await call(await appOf({ mode: "local" }), "GET", "/ready")).status).toBe(200)
    const down = await appOf({ mode: "local" }, aHub({ postgres: false, state: "offline" }))
    expect((await call(down, "GET", "/ready")).status).toBe(503)
    expect((await call(down, "GET", "/health")).status).toBe(200)
    expect(await (await call(down, "GET", "/api/sync/health")).json()).toMatchObject({ status: "critical", healthy: false })
    expect(await (await call(down, "GET", "/api/database/status")).json()).toMatchObject({
      isOnline: false,
      localDbConnected: true,
      remoteDbConnected: false,
    })
    const offline = await appOf(
      { mode: "local" },
      aSchool({ state: "offline", link: { state: "offline", detail: "no route", lastContactAt: null, lastSyncAt: null } }),
    )
    expect((await call(offline, "GET", "/ready")).status).toBe(200)
    expect(await (await call(offline, "GET", "/api/sync/network-status")).json()).toMatchObject({ online: false, detail: "no route" })
  })

  it("passes on what is to be synced", async () => {
    const app = await appOf({ mode: "local" })
    triggered.length = 0
    expect(await (await call(app, "POST", "/api/sync/trigger", json, '{"direction":"up","tables":["marks"],"school":"north"}')).json()).toMatchObject(
      { success: true, run: 7 },
    )
    expect((await call(app, "POST", "/api/sync/sync")).status).toBe(200)
    expect((await call(app, "POST", "/api/database/status", json, '{"direction":"FROM_SERVER"}')).status).toBe(200)
    expect((await call(app, "POST", "/api/sync/sync?school=south")).status).toBe(200)
    expect((await call(app, "POST", "/api/sync/trigger", json, '{"direction":"sideways"}')).status).toBe(422)
    expect((await call(app, "POST", "/api/sync/trigger", json, '{"tabels":[]}')).status).toBe(422)
    expect(triggered).toEqual([
      { direction: "up", tables: ["marks"], school: "north", by: "api" },
      { direction: "both", tables: [], by: "api" },
      { direction: "down", tables: [], by: "api" },
      { direction: "both", tables: [], school: "south", by: "api" },
    ])
  })

  it("decides conflicts under the names of several systems, and tells why not", async () => {
    const app = await appOf({ mode: "local" })
    const post = (path: string, body?: object) => call(app, "POST", path, json, body === undefined ? undefined : JSON.stringify(body))
    expect((await call(app, "GET", `/api/sync/conflicts/${ID}`)).status).toBe(404)
    for (const body of [
      { keep: "school" },
      { keep: "keep_remote" },
      { resolution: "LOCAL_WINS" },
      { strategy: "MANUAL_MERGE" },
      { strategy: "MANUAL", value: "x" },
      { value: { a: 1 } },
      { keep: "rename_local" },
      { keep: "rename_local", value: "amina2" },
    ]) {
      const one = await post(`/api/sync/conflicts/${ID}/resolve`, body)
      expect([one.status, (await one.json()).code]).toEqual([409, "conflict_not_possible"])
      expect((await post("/api/sync/resolve", { conflictId: ID, ...body })).status).toBe(409)
    }
    for (const body of [
      {},
      { keep: "mine too" },
      { keep: "value" },
      { keep: "school", value: 1 },
      { keep: "school", strategy: "vps" },
      { keep: "school", more: 1 },
    ])
      expect((await post(`/api/sync/conflicts/${ID}/resolve`, body)).status).toBe(422)
    expect((await post("/api/sync/resolve", { keep: "school" })).status).toBe(422)
    expect((await post(`/api/sync/conflicts/${ID}/undo`)).status).toBe(409)
    const auto = await post("/api/sync/conflicts/auto-resolve", { max: 7 })
    expect([auto.status, await auto.json()]).toEqual([200, { resolved: [], skipped: [{ id: ID, why: "a person decides (7)" }] }])
    expect((await post("/api/sync/conflicts/auto-resolve", { max: 0 })).status).toBe(422)
    expect((await call(app, "GET", "/api/sync/conflicts/1;drop")).status).toBe(422)
    expect((await call(app, "GET", "/api/sync/conflicts?limit=100000")).status).toBe(422)
  })
  it("decides quarantined changes", async () => {
    const app = await appOf({ mode: "local" })
    const post = (path: string, body?: object) =>
      call(app, "POST", `/api/sync/quarantine/${ID}/${path}`, json, body === undefined ? undefined : JSON.stringify(body))
    expect((await call(app, "GET", "/api/sync/quarantine?resolved=false&table=pupils")).status).toBe(200)
    expect((await call(app, "GET", `/api/sync/quarantine/${ID}`)).status).toBe(404)
    for (const [path, body] of [["retry"], ["discard", { by: "amina" }], ["edit", { values: { name: "x", age: null } }]] as const) {
      const refused = await post(path, body)
      expect([refused.status, (await refused.json()).detail]).toMatchObject([409, expect.stringContaining(path)])
    }
    for (const body of [{}, { values: { name: { a: 1 } } }, { values: "x" }]) expect((await post("edit", body)).status).toBe(422)
  })
  it("sends the state as an event at once", async () => {
    const app = await appOf({ mode: "local" })
    const stop = new AbortController()
    const answer = await app.handle(new Request("http://node.local/api/events", { signal: stop.signal }))
    expect(answer.headers.get("content-type")).toBe("text/event-stream")
    const reader = (answer.body ?? new ReadableStream<Uint8Array<ArrayBuffer>>()).pipeThrough(new TextDecoderStream()).getReader()
    let text = ""
    while (!text.includes("data: ")) text += (await reader.read()).value ?? ""
    expect(text).toContain('"role":"hub"')
    stop.abort()
    await reader.cancel().catch(() => undefined)
  })
})
