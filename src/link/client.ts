/**
 * The school's end of the link. It always dials. Whatever is not an answer of a hub (HTML of a captive portal, a redirect,
 * another content type, silence) is the line being down, never data and never a verdict.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { z } from "zod"
import type { Verdicts as VerdictsType } from "../model/change.ts"
import type { Cursor } from "../model/cursor.ts"
import type { Manifest } from "../model/table.ts"
import { ACCEPT_ENCODING, compress, OWN_CODING, readAll, readChunks, unpress } from "./body.ts"
import { closeQuietly, type OnLine, pagesOf, type PulledPage } from "./pages.ts"
import {
  CompareAgain,
  type CompareAsk,
  CompareDigests,
  ComparePrints,
  CompareRows,
  type Heartbeat,
  type Hello,
  IDLE_MS,
  MAX_PART_BYTES,
  MAX_PARTS,
  MAX_WAIT_SECONDS,
  PartsMissing,
  Pulse,
  sliceOf,
  type Staged,
  SYNC_HEADER,
  Verdicts,
  Welcome,
} from "./protocol.ts"

const MAX_JSON_BYTES = 16 * 1024 * 1024
/** A part of a push, compressed: at first this much, then about as much as goes out in this many seconds. */
const FIRST_PART_BYTES = 64 * 1024
const LEAST_PART_BYTES = 16 * 1024
const PART_SECONDS = 15
/** Uncompressed, so that very regular rows stay below the hub's limits. */
const MAX_SLICE_BYTES = 8 * 1024 * 1024
/** The hub reads every row of the school before it answers, after whoever asked before. */
const COMPARE_ANSWER_MS = 300_000
/** A part that has gone out is answered when it is on the hub's disk, the last one when Postgres has committed. */
const PUSH_ANSWER_MS = 240_000
/** How long silence is borne, ms. */
export interface Patience {
  /** Between two pieces of an answer, and for the heads of most. */
  readonly idle: number
  /** A long poll is answered within its wait and this: a half-open line is found in 45 s in all. */
  readonly poll: number
  /** In a stream the first byte comes at once; when it does not, something on the way collects bytes before it hands them on. */
  readonly firstByte: number
}
const PATIENCE: Patience = { idle: IDLE_MS, poll: 20_000, firstByte: 10_000 }
/** What a request costs beside its body: heads, and the packets that carry them. */
const REQUEST_BYTES = 800
const ANSWER_BYTES = 500
/** Rounds of sending what the hub says is missing, before the batch is started anew another time. */
const MAX_ROUNDS = 3

/** The hub was not reached, is busy, or what answered was no hub; try again after a while, at least `retryAfterMs`. */
export class LinkDown extends Data.TaggedError("LinkDown")<{
  readonly message: string
  readonly retryAfterMs?: number
  /** No answer came at all. */
  readonly isSilent?: true
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

export interface Identity {
  readonly incarnation: string
  readonly token: string
}

export interface OutgoingBatch {
  readonly number: number
  /** SHA-256 of the bytes, hex. */
  readonly hash: string
  readonly bytes: Uint8Array
}

export interface PageStream {
  /** The next page, or `asked` as in a pull; fails when the line ends. */
  readonly next: Effect.Effect<PulledPage | "asked", LinkError>
}

export interface Link {
  /** Bytes over the line since this link was made: bodies as they travel, and what their heads cost about. */
  readonly traffic: { readonly sent: number; readonly received: number }
  readonly hello: (hello: Hello) => Effect.Effect<Welcome, LinkError>
  readonly manifest: (identity: Identity) => Effect.Effect<Manifest, LinkError>
  /** `nothing` new within `wait` seconds; `asked`: somebody at head office wants this school to sync now. */
  readonly pull: (
    identity: Identity,
    cursor: Cursor,
    staged: Staged | null,
    wait: number,
    /** The version that stands in the file. */
    manifest?: number,
    onLine?: OnLine,
  ) => Effect.Effect<PulledPage | "nothing" | "asked", LinkError>
  /** Pages without end, each taken when the receiver asks for it; `unsuited`: something on the way holds it up, a pull may do. */
  readonly stream: (
    identity: Identity,
    cursor: Cursor,
    staged: Staged | null,
    manifest?: number,
    onLine?: OnLine,
  ) => Effect.Effect<PageStream | "unsuited", LinkError, Scope.Scope>
  readonly push: (identity: Identity, batch: OutgoingBatch) => Effect.Effect<VerdictsType, LinkError>
  readonly heartbeat: (identity: Identity, heartbeat: Heartbeat) => Effect.Effect<Pulse, LinkError>
  /** Questions of a comparison; `bytes` of both directions as they stood in the bodies. */
  readonly compare: {
    readonly digests: (identity: Identity, ask: Asked<"digests">) => Effect.Effect<Counted<CompareDigests>, LinkError>
    readonly prints: (identity: Identity, ask: Asked<"prints">) => Effect.Effect<Counted<ComparePrints>, LinkError>
    readonly rows: (identity: Identity, ask: Asked<"rows">) => Effect.Effect<Counted<CompareRows>, LinkError>
    readonly again: (identity: Identity, ask: Asked<"again">) => Effect.Effect<Counted<CompareAgain>, LinkError>
  }
}

export type Asked<K extends CompareAsk["ask"]> = Omit<Extract<CompareAsk, { ask: K }>, "ask">
export interface Counted<A> {
  readonly answer: A
  readonly bytes: number
}

/** A certificate is refused for its own fault or for this machine's clock; the difference is for a person to see. */
const sentenceOf = (cause: unknown): string => {
  const error = cause as { readonly message?: string; readonly code?: string; readonly cause?: { readonly message?: string; readonly code?: string } }
  const parts = [error.code, error.message ?? String(cause), error.cause?.code, error.cause?.message]
    // Bun speaks to the program's author there, and may begin its message with the code.
    .map((part) => part?.replace(/ ?For more information, pass .*$/, "").replace(`${error.code}: `, ""))
    .filter((part) => part !== undefined && part !== "")
  const text = [...new Set(parts)].join(": ")
  if (!/cert|tls|ssl|self.signed|issuer/i.test(text)) return text
  return `the hub's certificate is not accepted (${text}). Check this machine's date and time (it says ${new Date().toISOString()}), then the certificate and the address in --hub`
}

const down = (cause: unknown): LinkDown => (cause instanceof LinkDown ? cause : new LinkDown({ message: sentenceOf(cause) }))

const typeOf = (response: Response): string => (response.headers.get("content-type") ?? "").split(";")[0]?.trim().toLowerCase() ?? ""

const expectType = (response: Response, type: string): void => {
  if (typeOf(response) === type) return
  void response.body?.cancel().catch(() => undefined)
  throw new LinkDown({
    message: `something that is not a hub answered (${typeOf(response) || "no content type"}); is there a login page on this network, or another address in --hub?`,
  })
}

const refusalOf = async (response: Response): Promise<LinkError> => {
  if (response.status >= 300 && response.status < 400) {
    void response.body?.cancel().catch(() => undefined)
    return new LinkDown({
      message: "the answer was a redirect, which a hub never sends; is there a login page on this network, or http instead of https in --hub?",
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

const manifestOf = (body: unknown): Manifest => {
  if (!Array.isArray((body as Partial<Manifest> | null)?.tables)) throw new Error("not a manifest")
  return body as Manifest
}

export const makeLink = (options: { readonly hub: string; readonly key: string; readonly patience?: Patience }): Link => {
  const patience = options.patience ?? PATIENCE
  const base = new URL(options.hub)
  let partBytes = FIRST_PART_BYTES
  const traffic = { sent: 0, received: 0 }
  /** Into how many parts the batch under way was cut, so that a second attempt goes on with the first one's. */
  const cuts = new Map<string, number>()

  /** The head of the answer within `headMs`; its body is watched by whoever reads it. */
  const request = (
    method: "GET" | "POST",
    path: string,
    query: Readonly<Record<string, string>>,
    body: BodyInit | null,
    headers: Readonly<Record<string, string>>,
    headMs: number,
    hangUp: AbortSignal | null = null,
  ) =>
    Effect.tryPromise({
      try: async (signal) => {
        const url = new URL(path, base)
        for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value)
        traffic.sent +=
          REQUEST_BYTES + (body === null ? 0 : typeof body === "string" ? body.length : ((body as { byteLength?: number }).byteLength ?? 0))
        const silence = new AbortController()
        const timer = setTimeout(
          () => silence.abort(new LinkDown({ message: `no answer for ${Math.round(headMs / 1000)} s`, isSilent: true })),
          headMs,
        )
        try {
          const response = await fetch(url, {
            method,
            redirect: "manual",
            // Bun undoes zstd by itself and fails on some flushed streams; bodies are told by their first bytes instead.
            ...({ decompress: false } as RequestInit),
            signal: AbortSignal.any([signal, silence.signal, ...(hangUp === null ? [] : [hangUp])]),
            headers: { authorization: `Bearer ${options.key}`, "accept-encoding": ACCEPT_ENCODING, ...OWN_CODING, ...headers },
            ...(body === null ? {} : { body }),
          })
          traffic.received += ANSWER_BYTES
          if (response.status >= 200 && response.status < 300) return response
          throw await refusalOf(response)
        } finally {
          clearTimeout(timer)
        }
      },
      catch: (cause): LinkError => (cause instanceof LinkRefused ? cause : down(cause)),
    })

  const json = <A>(parse: (value: unknown) => A, response: Response): Effect.Effect<A, LinkDown> =>
    Effect.tryPromise({
      try: async () => {
        expectType(response, "application/json")
        const chunks = unpress(readChunks(response.body, { maxBytes: MAX_JSON_BYTES, idleMs: patience.idle }))
        const pieces: Array<Uint8Array> = []
        for await (const piece of chunks) pieces.push(piece)
        traffic.received += pieces.reduce((n, piece) => n + piece.length, 0)
        try {
          return parse(JSON.parse(new TextDecoder().decode(Buffer.concat(pieces))))
        } catch {
          throw new LinkDown({
            message:
              "something that is not a hub answered (JSON of another form); is there a login page on this network, or another address in --hub?",
          })
        }
      },
      catch: down,
    })

  const who = ({ incarnation, token }: Identity) => ({ incarnation, token })
  const position = (identity: Identity, cursor: Cursor, staged: Staged | null, manifest: number | undefined) => ({
    ...who(identity),
    epoch: cursor.epoch,
    seq: String(cursor.seq),
    cut: cursor.cut,
    ...(staged === null ? {} : { staged: JSON.stringify(staged) }),
    ...(manifest === undefined ? {} : { manifest: String(manifest) }),
  })
  const post = <S extends z.ZodType>(schema: S, path: string, value: unknown) =>
    Effect.flatMap(request("POST", path, {}, JSON.stringify(value), { "content-type": "application/json" }, patience.idle), (response) =>
      json((body) => schema.parse(body), response),
    )

  const ask =
    <K extends CompareAsk["ask"], S extends z.ZodType>(kind: K, schema: S) =>
    (identity: Identity, asked: Asked<K>): Effect.Effect<Counted<z.infer<S>>, LinkError> =>
      Effect.gen(function* () {
        const body = JSON.stringify({ ask: kind, ...asked })
        const headers = { "content-type": "application/json" }
        const response = yield* request("POST", "/api/sync/compare", who(identity), body, headers, COMPARE_ANSWER_MS)
        let received = 0
        const answer = yield* json((value) => {
          received = JSON.stringify(value).length
          return schema.parse(value)
        }, response)
        return { answer, bytes: body.length + received }
      })

  /** One slice, compressed by itself; what it took decides the size of the next ones. */
  const sendPart = (identity: Identity, batch: OutgoingBatch, part: number, parts: number, whole: Uint8Array) =>
    Effect.gen(function* () {
      const size = batch.bytes.length
      const pressed = () => (parts === 1 ? Promise.resolve(whole) : compress(batch.bytes.subarray(...sliceOf(size, part, parts))))
      const body = part === 0 ? new Uint8Array() : yield* Effect.promise(pressed)
      const query = { ...who(identity), batch: String(batch.number), hash: batch.hash, size: String(size), part: String(part), parts: String(parts) }
      const started = performance.now()
      const response = yield* request(
        "POST",
        "/api/sync/push",
        query,
        body as BodyInit,
        { "content-type": "application/octet-stream" },
        PUSH_ANSWER_MS,
      )
      if (part > 0 && response.status === 202) {
        const seconds = Math.max(0.05, (performance.now() - started) / 1000)
        partBytes = Math.round(Math.min(MAX_PART_BYTES / 2, Math.max(LEAST_PART_BYTES, (body.length / seconds) * PART_SECONDS)))
      }
      return response.status === 202
        ? yield* json((value) => PartsMissing.parse(value), response)
        : yield* json((value) => Verdicts.parse(value), response)
    })

  /** What the hub has of a batch it keeps, also over restarts of either side: only the rest is sent. */
  const push = (identity: Identity, batch: OutgoingBatch): Effect.Effect<VerdictsType, LinkError> =>
    Effect.gen(function* () {
      const whole = yield* Effect.promise(() => compress(batch.bytes))
      const wanted = Math.max(Math.ceil(whole.length / partBytes), Math.ceil(batch.bytes.length / MAX_SLICE_BYTES))
      const cut = cuts.get(batch.hash)
      const parts = cut ?? Math.min(MAX_PARTS, Math.max(1, wanted))
      cuts.clear()
      cuts.set(batch.hash, parts)
      let answer = yield* sendPart(identity, batch, parts === 1 ? 1 : 0, parts, whole)
      for (let round = 0; "missing" in answer && round < MAX_ROUNDS; round++) {
        for (const part of answer.missing) {
          answer = yield* sendPart(identity, batch, part, parts, whole)
          if (!("missing" in answer)) return answer as VerdictsType
        }
      }
      if (!("missing" in answer)) return answer as VerdictsType
      return yield* new LinkDown({ message: "the hub does not keep the parts of the batch; sending it again" })
    }).pipe(Effect.tapErrorTag("LinkRefused", () => Effect.sync(() => cuts.clear())))

  return {
    traffic,
    hello: (hello) => post(Welcome, "/api/sync/hello", hello),
    heartbeat: (_, heartbeat) => post(Pulse, "/api/sync/heartbeat", heartbeat),
    manifest: (identity) =>
      Effect.flatMap(request("GET", "/api/sync/manifest", who(identity), null, {}, patience.idle), (response) => json(manifestOf, response)),
    pull: (identity, cursor, staged, wait, manifest, onLine) =>
      Effect.gen(function* () {
        const query = { ...position(identity, cursor, staged, manifest), wait: String(Math.min(wait, MAX_WAIT_SECONDS)) }
        const response = yield* request("GET", "/api/sync/pull", query, null, {}, wait * 1000 + patience.poll)
        if (response.status === 204) {
          yield* Effect.promise(async () => void (await response.body?.cancel().catch(() => undefined)))
          const asked = response.headers.get(SYNC_HEADER)
          if (asked === null) return yield* new LinkDown({ message: "something that is not a hub answered; is there a login page on this network?" })
          return asked === "1" ? "asked" : "nothing"
        }
        const read = async () => {
          expectType(response, "application/x-ndjson")
          const count = (bytes: number): void => {
            traffic.received += bytes
          }
          const pages = pagesOf(response.body, false, patience.idle, count, onLine)
          try {
            const { value } = await pages.next()
            return value as PulledPage
          } finally {
            // To the end of the answer, so that its connection serves the next request, too; but nobody waits for that.
            void Promise.race([pages.next().catch(() => undefined), new Promise((done) => setTimeout(done, 1_000))]).then(() => closeQuietly(pages))
          }
        }
        return yield* Effect.tryPromise({ try: read, catch: down })
      }),
    stream: (identity, cursor, staged, manifest, onLine) =>
      Effect.gen(function* () {
        const silence = new AbortController()
        const giveUp = Effect.sync(() => silence.abort())
        const opened = yield* request(
          "GET",
          "/api/sync/stream",
          position(identity, cursor, staged, manifest),
          null,
          {},
          patience.firstByte,
          silence.signal,
        ).pipe(Effect.catchTag("LinkDown", (error) => (error.isSilent === true ? Effect.succeed(null) : Effect.fail(error))))
        if (opened === null) return "unsuited"
        yield* Effect.try({ try: () => expectType(opened, "application/x-ndjson"), catch: down })
        let firstByte: () => void = () => undefined
        const isThere = new Promise<void>((done) => {
          firstByte = done
        })
        const count = (bytes: number): void => {
          traffic.received += bytes
          firstByte()
        }
        const pages = pagesOf(opened.body, true, patience.idle, count, onLine)
        yield* Effect.addFinalizer(() =>
          Effect.andThen(
            giveUp,
            Effect.promise(() => closeQuietly(pages)),
          ),
        )
        const first = pages.next()
        first.catch(() => undefined)
        const began = yield* Effect.race(
          Effect.as(
            Effect.promise(() => Promise.race([isThere, first.catch(() => undefined)])),
            true,
          ),
          Effect.as(Effect.sleep(patience.firstByte), false),
        )
        if (!began) return "unsuited"
        // One page is read ahead while the one before is delivered.
        let pending = first
        const next = Effect.tryPromise({
          try: async () => {
            const { value } = await pending
            if (value === undefined) throw new LinkDown({ message: "the stream ended" })
            pending = pages.next()
            pending.catch(() => undefined)
            return value
          },
          catch: down,
        })
        return { next }
      }),
    push,
    compare: {
      digests: ask("digests", CompareDigests),
      prints: ask("prints", ComparePrints),
      rows: ask("rows", CompareRows),
      again: ask("again", CompareAgain),
    },
  }
}
