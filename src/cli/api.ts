/** A node's API as a command calls it: every way it can fail has its exit code and a next step. */
import { isCertificate, textOf } from "../link/answer.ts"
import { CommandFailed, EXIT, type Input, type OptionSpec, usage } from "./options.ts"

/** The same for hub and school: they run on different machines. */
export const DEFAULT_PORT = "4480"

export const API_OPTIONS: ReadonlyArray<OptionSpec> = [
  { name: "url", kind: "text", default: `http://127.0.0.1:${DEFAULT_PORT}`, help: "address of the hub or school node" },
  { name: "admin-token", kind: "text", secret: true, help: "operator token of that node, when it has one" },
  { name: "timeout", kind: "number", default: "10", help: "seconds to wait for an answer" },
]
/** For what takes longer than an answer from what the node knows. */
export const patient = (seconds: number): ReadonlyArray<OptionSpec> =>
  API_OPTIONS.map((option) => (option.name === "timeout" ? { ...option, default: String(seconds) } : option))
export const JSON_OPTION: OptionSpec = { name: "json", kind: "flag", help: "print one JSON object" }

export interface Api {
  readonly base: string
  readonly get: <A>(path: string) => Promise<A>
  readonly post: <A>(path: string, body?: unknown) => Promise<A>
  readonly put: <A>(path: string, body: unknown) => Promise<A>
  /** An answer that is a file: `text/csv`. */
  readonly csv: (path: string) => Promise<string>
}

const exitFor = (status: number): number =>
  status === 401 || status === 403
    ? EXIT.forbidden
    : status === 422 || status === 400
      ? EXIT.usage
      : status === 429 || status === 503
        ? EXIT.again
        : EXIT.failed

const hintFor = (status: number, code: string | undefined): string =>
  code === "no_route"
    ? "the node at --url does not offer this: terminals are asked for at a school's node, slots and paused tables at the hub"
    : status === 401
      ? "give the token with --admin-token-file or SCHOOLBUS_ADMIN_TOKEN"
      : status === 503
        ? // The node's own words say what to do; a proxy's do not.
          code === undefined
          ? "try again in a moment; see: schoolbus status"
          : "see: schoolbus status"
        : ""

export const apiOf = (input: Input): Api => {
  let base: URL
  try {
    base = new URL(input.text("url"))
  } catch {
    throw usage(`--url is not an address: ${input.text("url")}`, "it looks like http://127.0.0.1:4480")
  }
  if (base.protocol !== "http:" && base.protocol !== "https:") throw usage("--url must begin with http:// or https://")
  const token = input.textOr("admin-token", null)
  const root = base.href.replace(/\/+$/, "")

  const call = async <A>(method: "GET" | "POST" | "PUT", path: string, body?: unknown, accept = "application/json"): Promise<A> => {
    let response: Response
    let text: string
    try {
      response = await fetch(`${root}${path}`, {
        method,
        redirect: "manual",
        headers: {
          accept,
          ...(token === null ? {} : { authorization: `Bearer ${token}` }),
          ...(body === undefined ? {} : { "content-type": "application/json" }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(Math.max(1, input.number("timeout") * 1000)),
      })
      // As it is, with the mark at its beginning that spreadsheets look for.
      text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(await response.arrayBuffer())
    } catch (cause) {
      const slow = (cause as Error).name === "TimeoutError"
      const text = textOf(cause)
      if (!slow && isCertificate(text)) {
        const hint =
          "check this machine's date and time and the address; an authority of your own is named with NODE_EXTRA_CA_CERTS=FILE (Deno: DENO_CERT)"
        throw new CommandFailed(EXIT.unreachable, "certificate", `the certificate of ${root} is not accepted (${text})`, hint)
      }
      const why = /refused/i.test(text) || /ECONNREFUSED/.test(text) ? "" : ` (${text})`
      throw new CommandFailed(
        EXIT.unreachable,
        slow ? "timeout" : "unreachable",
        slow ? `${root} did not answer within ${input.number("timeout")} s` : `nothing answers at ${root}${why}`,
        slow
          ? "see how it is doing: schoolbus status; and give it longer with --timeout SECONDS"
          : "is the node running there? name it with --url, or start it: schoolbus hub | schoolbus school",
      )
    }
    if (response.ok && accept === "text/csv" && (response.headers.get("content-type") ?? "").startsWith("text/csv")) return text as A
    let answer: unknown
    try {
      answer = JSON.parse(text)
    } catch {
      answer = undefined
    }
    if (typeof answer !== "object" || answer === null || (response.status >= 300 && response.status < 400)) {
      throw new CommandFailed(
        EXIT.unreachable,
        "not_schoolbus",
        `${root} answers, but not as a schoolbus node (status ${response.status})`,
        "check --url; a proxy or sign-in page may stand in between",
      )
    }
    if (response.ok) return answer as A
    const { code, title, detail, ...extra } = answer as { code?: string; title?: string; detail?: string }
    throw new CommandFailed(
      exitFor(response.status),
      code ?? "failed",
      [title ?? `status ${response.status}`, detail].filter((part) => part !== undefined).join(": "),
      hintFor(response.status, code),
      extra,
    )
  }
  return {
    base: root,
    get: (path) => call("GET", path),
    post: (path, body) => call("POST", path, body),
    put: (path, body) => call("PUT", path, body),
    csv: (path) => call("GET", path, undefined, "text/csv"),
  }
}
