/**
 * The school's end of the link. It always dials. Whatever is not an answer of a hub (HTML of a captive portal, a redirect,
 * another content type, silence) is the line being down, never data and never a verdict.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { z } from "zod"
import type { Verdicts as VerdictsType } from "../model/change.ts"
import type { Cursor } from "../model/cursor.ts"
import type { Manifest } from "../model/table.ts"
import { ACCEPT_ENCODING, BodyFault, compress, readAll, readChunks, splitLines, unpress } from "./body.ts"
import { openLine } from "./frame.ts"
import {
  type Header, type Heartbeat, type Hello, type Line, MAX_LINE_BYTES, MAX_PART_BYTES, MAX_PARTS, MAX_WAIT_SECONDS, Pulse, sliceOf, type Staged, type Trailer, Verdicts, Welcome,
} from "./protocol.ts"

/** Half-open connections are found by this much silence. */
const SILENCE_MS = 45_000
const MAX_JSON_BYTES = 16 * 1024 * 1024
/** A page is about 1 MiB of rows; one row may be large. */
const MAX_PAGE_BYTES = 256 * 1024 * 1024
/** First part of a push, compressed; parts grow to about this many seconds of the measured rate. */
const FIRST_PART_BYTES = 64 * 1024
const PART_SECONDS = 15

/** The hub was not reached, or what answered was not a hub; try again later. */
export class LinkDown extends Data.TaggedError("LinkDown")<{ readonly message: string }> {}
/** The hub answered no; `code` as in the protocol. */
export class LinkRefused extends Data.TaggedError("LinkRefused")<{ readonly status: number; readonly code: string; readonly message: string; readonly expected: number | null; readonly retryAfterMs: number }> {}

export type LinkError = LinkDown | LinkRefused

export interface Identity {
  readonly incarnation: string
  readonly token: string
}

export interface PulledPage {
  readonly header: Header
  readonly lines: ReadonlyArray<Extract<Line, readonly ["rows", ...ReadonlyArray<unknown>]>>
  /** null: the line broke before the page's end; what came before is good. */
  readonly trailer: Trailer | null
  readonly bytes: number
}

export interface Link {
  readonly hello: (hello: Hello) => Effect.Effect<Welcome, LinkError>
  readonly manifest: (identity: Identity) => Effect.Effect<Manifest, LinkError>
  /** null: nothing new within `wait` seconds. */
  readonly pull: (identity: Identity, cursor: Cursor, staged: Staged | null, wait: number) => Effect.Effect<PulledPage | null, LinkError>
  readonly push: (identity: Identity, batch: { readonly number: number; readonly hash: string; readonly bytes: Uint8Array }) => Effect.Effect<VerdictsType, LinkError>
  readonly heartbeat: (identity: Identity, heartbeat: Heartbeat) => Effect.Effect<Pulse, LinkError>
}

const down = (cause: unknown): LinkDown => new LinkDown({ message: cause instanceof Error ? cause.message : String(cause) })

const isType = (response: Response, type: string): boolean => (response.headers.get("content-type") ?? "").split(";")[0]?.trim().toLowerCase() === type

const refusalOf = async (response: Response): Promise<LinkError> => {
  if (!isType(response, "application/problem+json")) {
    await response.body?.cancel().catch(() => undefined)
    return new LinkDown({ message: `something that is not a hub answered with status ${response.status}` })
  }
  const bytes = await readAll(response.body, { maxBytes: 64 * 1024, idleMs: SILENCE_MS })
  const problem = JSON.parse(new TextDecoder().decode(bytes)) as { code?: string; title?: string; detail?: string; expected?: number }
  return new LinkRefused({
    status: response.status,
    code: problem.code ?? "unknown",
    message: [problem.title, problem.detail].filter((part) => part !== undefined).join(": "),
    expected: problem.expected ?? null,
    retryAfterMs: Number(response.headers.get("retry-after") ?? 0) * 1000,
  })
}

export const makeLink = (options: { readonly hub: string; readonly key: string }): Link => {
  const base = new URL(options.hub)
  const partBytes = { next: FIRST_PART_BYTES }

  const request = (method: "GET" | "POST", path: string, query: Readonly<Record<string, string>>, body: BodyInit | null, headers: Readonly<Record<string, string>>, silenceMs: number) =>
    Effect.tryPromise({
      try: async (signal) => {
        const url = new URL(path, base)
        for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value)
        const response = await fetch(url, {
          method,
          redirect: "manual",
          // Bun undoes zstd by itself and fails on some flushed streams; bodies are told by their first bytes instead.
          ...({ decompress: false } as RequestInit),
          signal: AbortSignal.any([signal, AbortSignal.timeout(silenceMs)]),
          headers: { authorization: `Bearer ${options.key}`, "accept-encoding": ACCEPT_ENCODING, ...headers },
          ...(body === null ? {} : { body }),
        })
        if (response.status >= 200 && response.status < 300) return response
        throw await refusalOf(response)
      },
      catch: (cause): LinkError => (cause instanceof LinkRefused || cause instanceof LinkDown ? cause : down(cause)),
    })

  const json = <S extends z.ZodType>(schema: S, response: Response): Effect.Effect<z.infer<S>, LinkDown> =>
    Effect.tryPromise({
      try: async () => {
        if (!isType(response, "application/json")) throw new Error("something that is not a hub answered")
        const bytes = await readAll(response.body, { maxBytes: MAX_JSON_BYTES, idleMs: SILENCE_MS })
        return schema.parse(JSON.parse(new TextDecoder().decode(bytes)))
      },
      catch: down,
    })

  const who = ({ incarnation, token }: Identity) => ({ incarnation, token })
  const post = <S extends z.ZodType>(schema: S, path: string, query: Readonly<Record<string, string>>, value: unknown) =>
    Effect.flatMap(request("POST", path, query, JSON.stringify(value), { "content-type": "application/json" }, SILENCE_MS), (response) => json(schema, response))

  const readPage = async (response: Response): Promise<PulledPage> => {
    if (!isType(response, "application/x-ndjson")) throw new Error("something that is not a hub answered")
    let header: Header | null = null
    let trailer: Trailer | null = null
    let bytes = 0
    const lines: Array<PulledPage["lines"][number]> = []
    try {
      const counted = async function* () {
        for await (const chunk of readChunks(response.body, { maxBytes: MAX_PAGE_BYTES, idleMs: SILENCE_MS })) {
          bytes += chunk.length
          yield chunk
        }
      }
      for await (const text of splitLines(unpress(counted()), MAX_LINE_BYTES)) {
        if (text === "") continue
        const opened = openLine(text)
        if ("damaged" in opened) throw new BodyFault(opened.damaged)
        const [kind] = opened.ok
        if (kind === "cut") header = opened.ok[1]
        else if (kind === "rows") lines.push(opened.ok)
        else {
          trailer = opened.ok[1]
          break
        }
      }
    } catch (cause) {
      // What came whole is kept; the next pull goes on after it.
      if (header === null || lines.length === 0) throw cause
    }
    if (header === null) throw new Error("the page broke off before its first line")
    return { header, lines, trailer, bytes }
  }

  const sendPart = (identity: Identity, batch: { readonly number: number; readonly hash: string; readonly size: number }, part: number, parts: number, bytes: Uint8Array) =>
    Effect.gen(function* () {
      const started = performance.now()
      const query = { ...who(identity), batch: String(batch.number), hash: batch.hash, size: String(batch.size), part: String(part), parts: String(parts) }
      // A part may need its time on a slow line; the hub's own deadline is longer.
      const response = yield* request("POST", "/api/sync/push", query, bytes as BodyInit, { "content-type": "application/octet-stream" }, 240_000)
      const rate = bytes.length / Math.max(0.05, (performance.now() - started) / 1000)
      partBytes.next = Math.round(Math.min(MAX_PART_BYTES, Math.max(FIRST_PART_BYTES, rate * PART_SECONDS)))
      return response
    })

  return {
    hello: (hello) => post(Welcome, "/api/sync/hello", {}, hello),
    heartbeat: (identity, heartbeat) => post(Pulse, "/api/sync/heartbeat", { token: identity.token }, heartbeat),
    manifest: (identity) =>
      Effect.flatMap(request("GET", "/api/sync/manifest", who(identity), null, {}, SILENCE_MS), (response) =>
        Effect.tryPromise({
          try: async () => {
            if (!isType(response, "application/json")) throw new Error("something that is not a hub answered")
            return JSON.parse(new TextDecoder().decode(await readAll(response.body, { maxBytes: MAX_JSON_BYTES, idleMs: SILENCE_MS }))) as Manifest
          },
          catch: down,
        }),
      ),
    pull: (identity, cursor, staged, wait) =>
      Effect.gen(function* () {
        const query = {
          ...who(identity), epoch: cursor.epoch, seq: String(cursor.seq), cut: cursor.cut, wait: String(Math.min(wait, MAX_WAIT_SECONDS)),
          ...(staged === null ? {} : { staged: JSON.stringify(staged) }),
        }
        const response = yield* request("GET", "/api/sync/pull", query, null, {}, wait * 1000 + 240_000)
        if (response.status === 204) {
          yield* Effect.promise(async () => void (await response.body?.cancel().catch(() => undefined)))
          return null
        }
        return yield* Effect.tryPromise({ try: () => readPage(response), catch: down })
      }),
    push: (identity, batch) =>
      Effect.gen(function* () {
        const size = batch.bytes.length
        const parts = Math.min(MAX_PARTS, Math.max(1, Math.ceil(size / partBytes.next)))
        const send = (part: number) =>
          Effect.gen(function* () {
            const [start, end] = sliceOf(size, part, parts)
            const pressed = yield* Effect.promise(async () => compress(batch.bytes.subarray(start, end)))
            return yield* sendPart(identity, { ...batch, size }, part, parts, pressed)
          })
        for (let part = 1; part < parts; part++) yield* send(part)
        const response = yield* send(parts)
        if (response.status === 202) return yield* new LinkDown({ message: "the hub has lost parts of the batch; sending it again" })
        return yield* json(Verdicts, response)
      }),
  }
}
