/**
 * The school's end of the link. It always dials: what it asks of the hub, how long it waits, and what went over the line.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { z } from "zod"
import type { Verdicts } from "../model/change.ts"
import type { Cursor } from "../model/cursor.ts"
import type { Manifest } from "../model/table.ts"
import { down, expectType, LinkDown, type LinkError, LinkRefused, readJson, refusalOf, unreached } from "./answer.ts"
import { ACCEPT_ENCODING, OWN_CODING } from "./body.ts"
import { closeQuietly, type OnLine, pagesOf, type PulledPage } from "./pages.ts"
import { makeParts, type OutgoingBatch, type PackedBatch } from "./parts.ts"
import {
  CompareAgain,
  type CompareAsk,
  CompareDigests,
  ComparePrints,
  CompareRows,
  type Heartbeat,
  type Hello,
  IDLE_MS,
  MAX_WAIT_SECONDS,
  Pulse,
  type Staged,
  SYNC_HEADER,
  Welcome,
} from "./protocol.ts"

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

export interface Identity {
  readonly incarnation: string
  readonly token: string
}

export interface PageStream {
  /** The next page; as in a pull `asked`, or now and then `nothing` while there is nothing new. Fails when the line ends. */
  readonly next: Effect.Effect<PulledPage | "nothing" | "asked", LinkError>
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
  /** Compresses a batch, so that it lies ready. */
  readonly pack: <B extends OutgoingBatch>(batch: B) => Effect.Effect<B & PackedBatch>
  readonly push: (identity: Identity, batch: OutgoingBatch | PackedBatch) => Effect.Effect<Verdicts, LinkError>
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

const manifestOf = (body: unknown): Manifest => {
  if (!Array.isArray((body as Partial<Manifest> | null)?.tables)) throw new Error("not a manifest")
  return body as Manifest
}

export const makeLink = (options: { readonly hub: string; readonly key: string; readonly patience?: Patience }): Link => {
  const patience = options.patience ?? PATIENCE
  // A proxy may offer the hub below a path of its own.
  const root = new URL(options.hub)
  root.search = root.hash = ""
  const base = root.href.replace(/\/+$/, "")
  const traffic = { sent: 0, received: 0 }

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
        const url = new URL(`${base}${path}`)
        for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value)
        traffic.sent +=
          REQUEST_BYTES + (body === null ? 0 : typeof body === "string" ? body.length : ((body as { byteLength?: number }).byteLength ?? 0))
        const silence = new AbortController()
        const timer = setTimeout(
          () =>
            silence.abort(new LinkDown({ message: `the hub at ${root.origin} did not answer for ${Math.round(headMs / 1000)} s`, isSilent: true })),
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
          }).catch((cause: unknown) => {
            throw unreached(root.origin, cause)
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
    readJson(parse, response, patience.idle, (bytes) => {
      traffic.received += bytes
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

  const { pack, push } = makeParts(
    (query, body) => request("POST", "/api/sync/push", query, body as BodyInit, { "content-type": "application/octet-stream" }, PUSH_ANSWER_MS),
    json,
  )

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
    pack,
    push: (identity, batch) => push(who(identity), batch),
    compare: {
      digests: ask("digests", CompareDigests),
      prints: ask("prints", ComparePrints),
      rows: ask("rows", CompareRows),
      again: ask("again", CompareAgain),
    },
  }
}
