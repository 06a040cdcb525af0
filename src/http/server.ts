/**
 * The node's HTTP front: mounts the plugins, decides who may call what, and is the one place where errors become
 * statuses. What an answer says about a failure is written here; internal text and rejected input never leave.
 *
 * Who may call is decided on the exact path, before routing, and everything that is not listed as open is for operators:
 * another spelling of a path can lose rights, never gain them.
 */
import { createHash, timingSafeEqual } from "node:crypto"
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { type AnyElysia, Elysia } from "elysia"
import { cureOf } from "../libsql/cure.ts"
import type { PostgresError } from "../postgres/client.ts"
import { remedyOf } from "../postgres/remedy.ts"
import type { TablesUnknown } from "../status/records.ts"

/** Bodies of operator routes; those of the link have their own limits. */
export const MAX_OPERATOR_BODY_BYTES = 64 * 1024

/** RFC 9457: `code` is stable, for programs; `title` and `detail` are for people. */
export const problem = (
  status: number,
  code: string,
  title: string,
  detail?: string,
  extra: Readonly<Record<string, unknown>> = {},
  headers: Readonly<Record<string, string>> = {},
): Response =>
  new Response(
    JSON.stringify({ type: `urn:schoolbus:problem:${code}`, title, status, code, ...(detail === undefined ? {} : { detail }), ...extra }),
    {
      status,
      headers: { "content-type": "application/problem+json", "cache-control": "no-store", "x-content-type-options": "nosniff", ...headers },
    },
  )

/** A refusal that a route decides on, on its way through an Effect to its status. */
export class Refusal extends Data.TaggedError("Refusal")<{
  readonly status: number
  readonly code: string
  readonly title: string
  readonly detail?: string
  readonly extra?: Readonly<Record<string, unknown>>
}> {}

// --- who may call ---------------------------------------------------------------------------------------------------

/** `open`: anyone. `link`: the route itself asks for a school's key. `operator`: see `Auth`. */
export type Access = "open" | "link" | "operator"

const OPEN = new Set(["GET /health", "HEAD /health"])

const LINK = new Set([
  "POST /api/sync/hello",
  "GET /api/sync/manifest",
  "GET /api/sync/pull",
  "GET /api/sync/stream",
  "POST /api/sync/push",
  "POST /api/sync/heartbeat",
  "POST /api/sync/compare",
])

export const accessOf = (method: string, path: string): Access => {
  const route = `${method.toUpperCase()} ${path}`
  return OPEN.has(route) ? "open" : LINK.has(route) ? "link" : "operator"
}

/**
 * `local`: listens on loopback and has no token; whoever is on this machine is an operator.
 * `token`: operators show it. `closed`: listens to others without a token; nobody is an operator.
 */
export type Auth = { readonly mode: "local" } | { readonly mode: "token"; readonly token: string } | { readonly mode: "closed" }

const isLoopback = (host: string): boolean => /^(localhost|127(\.\d{1,3}){3}|\[::1\]|::1)$/i.test(host)

export const authFor = (options: { readonly host: string; readonly adminToken: string | null }): Auth =>
  options.adminToken !== null && options.adminToken !== ""
    ? { mode: "token", token: options.adminToken }
    : isLoopback(options.host)
      ? { mode: "local" }
      : { mode: "closed" }

const sha256 = (text: string): Buffer => createHash("sha256").update(text).digest()
/** Digests have one length, so the time tells nothing about the token. */
const sameSecret = (left: string, right: string): boolean => timingSafeEqual(sha256(left), sha256(right))

const bearerOf = (request: Request): string | null => /^Bearer +(\S+)$/i.exec(request.headers.get("authorization") ?? "")?.[1] ?? null

const hostName = (host: string): string => host.replace(/:\d*$/, "")

/**
 * A page of another site can make a browser on this machine call a loopback port, also under a name of its own that
 * resolves to 127.0.0.1. Its Host header then carries that name, and its writes carry an Origin that is not ours.
 */
const foreign = (request: Request): string | null => {
  const host = request.headers.get("host")
  if (host !== null && !isLoopback(hostName(host))) return "the Host header names another machine; use http://127.0.0.1"
  if (request.method === "GET" || request.method === "HEAD") return null
  const origin = request.headers.get("origin")
  if (
    origin !== null &&
    (host === null || !/^https?:\/\//i.test(origin) || origin.replace(/^https?:\/\//i, "").toLowerCase() !== host.toLowerCase())
  ) {
    return "a page of another origin may not write here"
  }
  return request.headers.get("sec-fetch-site") === "cross-site" ? "a page of another site may not write here" : null
}

/** null: go on. */
const refuseUnauthorised = (auth: Auth, request: Request): Response | null => {
  switch (auth.mode) {
    case "local": {
      const reason = foreign(request)
      return reason === null ? null : problem(403, "foreign_origin", "Not allowed from there", reason)
    }
    case "token": {
      const shown = bearerOf(request)
      return shown !== null && sameSecret(shown, auth.token)
        ? null
        : problem(
            401,
            "unauthorized",
            "Operator token needed",
            "send Authorization: Bearer with the token of SCHOOLBUS_ADMIN_TOKEN",
            {},
            {
              "www-authenticate": 'Bearer realm="schoolbus"',
            },
          )
    }
    case "closed":
      return problem(
        403,
        "operator_routes_closed",
        "Operator routes are closed",
        "this process listens beyond 127.0.0.1 without an operator token; start it with SCHOOLBUS_ADMIN_TOKEN or SCHOOLBUS_ADMIN_TOKEN_FILE",
      )
  }
}

const refuseLarge = (request: Request): Response | null =>
  Number(request.headers.get("content-length") ?? 0) > MAX_OPERATOR_BODY_BYTES
    ? problem(413, "too_large", "Body too large", `operator routes take at most ${MAX_OPERATOR_BODY_BYTES} bytes`)
    : null

// --- errors to statuses ---------------------------------------------------------------------------------------------

interface Issue {
  /** JSON pointer, e.g. `"/tables/0"`; "" = the whole. */
  readonly pointer: string
  readonly message: string
}

/** Where the input is wrong and what was expected there; never the value that was sent. */
const issuesOf = (all: ReadonlyArray<unknown>): ReadonlyArray<Issue> =>
  all.map((issue) => {
    const { path, message } = issue as { path?: unknown; message?: unknown }
    const steps = Array.isArray(path) ? path.map(String) : String(path ?? "").split(".")
    return {
      pointer: steps
        .filter((step) => step !== "" && step !== "root")
        .map((step) => `/${step}`)
        .join(""),
      message: String(message ?? "invalid"),
    }
  })

/** Mistakes that one sentence names; the rest stands in `errors`. */
const NAMED_ISSUES = 5

/** `"the request's body: intervalMinutes: Too small: expected number to be >=0"` */
const invalidText = (part: string, issues: ReadonlyArray<Issue>): string => {
  const named = issues.slice(0, NAMED_ISSUES).map(({ pointer, message }) => (pointer === "" ? message : `${pointer.slice(1)}: ${message}`))
  const more = issues.length > named.length ? `; and ${issues.length - named.length} more` : ""
  return `the request's ${part} is not as expected${named.length === 0 ? "" : `: ${[...new Set(named)].join("; ")}`}${more}`
}

const internal = (requestId: string): Response =>
  problem(500, "internal", "Internal error", "the log of this process has the cause under this request id", { requestId })

/** What passes by itself, or when somebody at head office ends what stands in the way. */
const BUSY: ReadonlyArray<readonly [states: RegExp, title: string, detail: string]> = [
  [
    /^(55P03|40)/,
    "Rows are locked at head office",
    "a program there holds them; it is tried again until it ends its transaction (SELECT pid, xact_start, state, query FROM pg_stat_activity WHERE xact_start IS NOT NULL ORDER BY xact_start)",
  ],
  [/^57014/, "Postgres took too long", "a statement was cancelled, or took longer than a minute; it is tried again"],
  [/^($|08|53|57P0)/, "Postgres does not answer", "try again in a moment"],
]

/** Failures of services, by tag. What is not known here is a fault of the program: logged whole, answered with its id only. */
const toProblem = (error: unknown): Response | null => {
  if (error instanceof Refusal) return problem(error.status, error.code, error.title, error.detail, error.extra)
  switch ((error as { readonly _tag?: unknown } | null)?._tag) {
    case "PostgresError": {
      const { sqlstate, isFatal, message, routine } = error as PostgresError
      const remedy = /^55P03/.test(sqlstate) ? null : remedyOf(sqlstate, message, routine)
      if (remedy !== null || isFatal === true)
        return problem(503, "unavailable", "Postgres refuses the hub", remedy ?? "see the hub's status", {}, { "retry-after": "5" })
      const busy = BUSY.find(([states]) => states.test(sqlstate))
      return busy === undefined ? null : problem(503, "unavailable", busy[1], busy[2], {}, { "retry-after": "5" })
    }
    case "SchoolUnknown":
      return problem(404, "no_school", "No such school", (error as { readonly message: string }).message)
    case "TablesUnknown": {
      const { unknown, known } = error as TablesUnknown
      const detail = `not synced here: ${unknown.join(", ")}; synced are: ${known.join(", ") || "none yet"}`
      return problem(422, "no_table", "No such table", detail, { unknown, known })
    }
    case "LibsqlError": {
      const { code } = error as unknown as { readonly code: string }
      const cure = /^SQLITE_(BUSY|LOCKED)/.test(code) ? "try again in a moment" : cureOf(code)
      return cure === null ? null : problem(503, "unavailable", "The database file is not available", `${code}; ${cure}`, {}, { "retry-after": "5" })
    }
    default:
      return null
  }
}

/** Runs a route's Effect; its failure becomes a problem. The fiber ends when the client goes away. */
export const answering =
  <R>(context: Context.Context<R>) =>
  async <A, E>(request: Request, effect: Effect.Effect<A, E, R>): Promise<A | Response> => {
    const exit = await Effect.runPromiseExitWith(context)(effect, { signal: request.signal })
    if (Exit.isSuccess(exit)) return exit.value
    const failure = exit.cause.reasons.find((reason) => reason._tag === "Fail")
    const answer = failure === undefined ? null : toProblem((failure as { readonly error: unknown }).error)
    if (answer !== null) return answer
    const requestId = crypto.randomUUID()
    if (!Cause.hasInterruptsOnly(exit.cause)) {
      await Effect.runPromise(
        Effect.logError("request failed", exit.cause).pipe(Effect.annotateLogs({ requestId, path: new URL(request.url).pathname })),
      )
    }
    return internal(requestId)
  }

// --- the app --------------------------------------------------------------------------------------------------------

export interface AppOptions {
  readonly plugins: ReadonlyArray<AnyElysia>
  readonly auth: Auth
}

/** Whoever asks for the link is a school's node, and a hub has all of it. */
const noHub = (origin: string): string =>
  `what answers at ${origin} is a school's node, not the hub; start the node that called with --hub (SCHOOLBUS_HUB) as the address of the hub`

/** `serve({ fetch: app.fetch })` in the runtime starts it; tests call `app.handle`. */
export const makeApp = (options: AppOptions): AnyElysia => {
  const app: AnyElysia = new Elysia()
    // Link routes are not judged here: they ask for the school's key themselves.
    .onRequest(({ request }) =>
      accessOf(request.method, new URL(request.url).pathname) === "operator"
        ? (refuseUnauthorised(options.auth, request) ?? refuseLarge(request) ?? undefined)
        : undefined,
    )
    .onError(({ code, error, request }) => {
      switch (code) {
        case "VALIDATION": {
          if (error.type === "response") break
          const errors = issuesOf(error.all)
          return problem(422, "invalid", "Invalid input", invalidText(error.type, errors), { errors })
        }
        case "PARSE":
          return problem(400, "malformed", "Malformed body", "the body is not valid JSON")
        case "NOT_FOUND": {
          const { origin, pathname } = new URL(request.url)
          if (accessOf(request.method, pathname) === "link") return problem(404, "no_hub", "Not a hub", noHub(origin))
          return problem(404, "no_route", "No such route", "see GET /api/sync/status for a start")
        }
      }
      const answer = toProblem(error)
      if (answer !== null) return answer
      const requestId = crypto.randomUUID()
      // A response that does not fit its schema carries the whole response: not for the log either.
      const cause = code === "VALIDATION" ? new Error(`the response does not fit its schema: ${JSON.stringify(issuesOf(error.all))}`) : error
      Effect.runFork(
        Effect.logError("request failed", Cause.die(cause)).pipe(Effect.annotateLogs({ requestId, path: new URL(request.url).pathname })),
      )
      return internal(requestId)
    })
  return options.plugins.reduce((whole, plugin) => whole.use(plugin), app)
}
