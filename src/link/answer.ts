/**
 * What comes back over the link: an answer of a hub, its refusal, or something that is no hub (HTML of a captive portal, a
 * redirect, another content type, silence), which is the line being down, never data and never a verdict.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { readAll, readChunks, unpress } from "./body.ts"
import { IDLE_MS } from "./protocol.ts"

const MAX_JSON_BYTES = 16 * 1024 * 1024

/** The hub was not reached, is busy, or what answered was no hub; try again after a while, at least `retryAfterMs`. */
export class LinkDown extends Data.TaggedError("LinkDown")<{
  readonly message: string
  readonly retryAfterMs?: number
  /** No answer came at all. */
  readonly isSilent?: true
  /** A proxy on the way takes only smaller requests. */
  readonly isTooLarge?: true
}> {}
/** The hub answered no; `code` as in the protocol. */
export class LinkRefused extends Data.TaggedError("LinkRefused")<{
  readonly status: number
  readonly code: string
  /** What is wrong and what mends it. */
  readonly message: string
  readonly expected: number | null
}> {}

export type LinkError = LinkDown | LinkRefused

/** What a runtime says about a request that failed, its codes first, without what was asked. */
export const textOf = (cause: unknown): string => {
  const error = cause as { readonly message?: string; readonly code?: string; readonly cause?: { readonly message?: string; readonly code?: string } }
  const parts = [error.code, error.message ?? String(cause), error.cause?.code, error.cause?.message]
    // Bun speaks to the program's author there, and may begin its message with the code.
    .map((part) => part?.replace(/ ?For more information, pass .*$/, "").replace(`${error.code}: `, ""))
    // Deno names the whole address, and what is asked there carries the file's token.
    .map((part) => part?.replace(/(https?:\/\/[^\s?]*)\?[^\s)]*/g, "$1"))
    .filter((part) => part !== undefined && part !== "")
  return [...new Set(parts)].join(": ")
}

/** An answer that began, or whose request was taken: the line broke off, or something on the way harmed what it carried. */
export const down = (cause: unknown): LinkDown =>
  cause instanceof LinkDown ? cause : new LinkDown({ message: `the hub's answer did not come whole (${textOf(cause)}); it is tried again by itself` })

/** The other side is there, and not believed. */
export const isCertificate = (text: string): boolean => /cert|tls|ssl|self.signed|issuer/i.test(text)

/** A request that got no answer. A certificate is refused for its own fault or for this machine's clock; the difference is for a person to see. */
export const unreached = (hub: string, cause: unknown): LinkDown => {
  if (cause instanceof LinkDown) return cause
  const text = textOf(cause)
  return new LinkDown({
    message: isCertificate(text)
      ? `the hub's certificate is not accepted (${text}). Check this machine's date and time (it says ${new Date().toISOString()}), then the certificate and the address in --hub`
      : `the hub at ${hub} cannot be reached (${text}); it is tried again by itself. Check whether this computer is online and the address in --hub is right`,
  })
}

const typeOf = (response: Response): string => (response.headers.get("content-type") ?? "").split(";")[0]?.trim().toLowerCase() ?? ""

/** Fails unless the answer has that content type. */
export const expectType = (response: Response, type: string): void => {
  if (typeOf(response) === type) return
  void response.body?.cancel().catch(() => undefined)
  throw new LinkDown({
    message: `something that is not a hub answered (${typeOf(response) || "no content type"}); is there a login page on this network, or another address in --hub?`,
  })
}

export const refusalOf = async (response: Response): Promise<LinkError> => {
  if (response.status >= 300 && response.status < 400) {
    void response.body?.cancel().catch(() => undefined)
    return new LinkDown({
      message: "the answer was a redirect, which a hub never sends; is there a login page on this network, or http instead of https in --hub?",
    })
  }
  if (response.status === 413 && typeOf(response) !== "application/problem+json") {
    void response.body?.cancel().catch(() => undefined)
    return new LinkDown({
      message: "a proxy before the hub refused a request as too large; raise its limit (nginx: client_max_body_size 8m)",
      isTooLarge: true,
    })
  }
  expectType(response, "application/problem+json")
  const bytes = await readAll(response.body, { maxBytes: 64 * 1024, idleMs: IDLE_MS })
  const problem = JSON.parse(new TextDecoder().decode(bytes)) as {
    type?: unknown
    code?: unknown
    title?: unknown
    detail?: unknown
    expected?: unknown
  }
  if (typeof problem.code !== "string" || problem.type !== `urn:schoolbus:problem:${problem.code}`)
    return new LinkDown({ message: "something that is not a hub refused the request" })
  const message = [problem.title, problem.detail].filter((part) => typeof part === "string").join(": ")
  return response.status >= 500 || response.status === 429
    ? new LinkDown({ message, retryAfterMs: Number(response.headers.get("retry-after") ?? 0) * 1000 || 0 })
    : new LinkRefused({
        status: response.status,
        code: problem.code,
        message,
        expected: typeof problem.expected === "number" ? problem.expected : null,
      })
}

/** `count`: told how many bytes came. */
export const readJson = <A>(
  parse: (value: unknown) => A,
  response: Response,
  idleMs: number,
  count: (bytes: number) => void,
): Effect.Effect<A, LinkDown> =>
  Effect.tryPromise({
    try: async () => {
      expectType(response, "application/json")
      const chunks = unpress(readChunks(response.body, { maxBytes: MAX_JSON_BYTES, idleMs: idleMs }))
      const pieces: Array<Uint8Array> = []
      for await (const piece of chunks) pieces.push(piece)
      count(pieces.reduce((n, piece) => n + piece.length, 0))
      try {
        return parse(JSON.parse(new TextDecoder().decode(Buffer.concat(pieces))))
      } catch {
        throw new LinkDown({
          message: "something that is not a hub answered (JSON of another form); is there a login page on this network, or another address in --hub?",
        })
      }
    },
    catch: down,
  })
