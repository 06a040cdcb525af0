/**
 * Pages for a school: one as the answer of a pull, which waits when there is nothing, or without end in a stream. What a
 * school has applied it says itself, with its next pull or its heartbeat; that something was sent counts for nothing.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { Feed, type FeedPage, type SchoolKey } from "../down/feed.ts"
import type { LibsqlError } from "../libsql/client.ts"
import { encodingFor, END_OF_FRAME, type Piece, pressLines } from "../link/body.ts"
import { sealLine } from "../link/frame.ts"
import { BEAT_MS, IDLE_MS, PullQuery, Staged, SYNC_HEADER } from "../link/protocol.ts"
import type { Cursor } from "../model/cursor.ts"
import { Calls } from "./calls.ts"
import { type Answer, authenticate, identify, loading, parsed, paused, queryOf, refuse } from "./link-caller.ts"

/** A wake-up that brings nothing is not repeated faster than this. */
const LOOK_AGAIN_MS = 1_000
/** How often the open streams are looked through: a key that no longer holds ends its stream within 5 s. */
const WATCH_MS = 2_000
/** Text that is compressed and flushed together: what a broken download may lose. */
const PIECE_BYTES = 64 * 1024

const parsePull = (request: Request) =>
  Effect.gen(function* () {
    const query = yield* parsed(PullQuery, queryOf(request))
    const cursor: Cursor = { epoch: query.epoch, seq: query.seq, cut: query.cut }
    if (query.staged === "") return { query, cursor, staged: null }
    const json = yield* Effect.try({
      try: () => JSON.parse(query.staged) as unknown,
      catch: () => refuse(422, "invalid", "Invalid input", "staged is not JSON"),
    })
    return { query, cursor, staged: yield* parsed(Staged, json) }
  })

const unknownCut = refuse(
  409,
  "compare",
  "The school's cut is unknown here",
  "the hub, or head office's Postgres, was put back to another state; the node compares its rows by itself and goes on with what differs",
)

/**
 * One page. Asking tells which cut the school has applied (`isApplied`: it says so itself); of a cut that this hub does not
 * know, nothing counts as applied.
 */
const readPage = (key: SchoolKey, incarnation: string, cursor: Cursor, staged: Staged | null, manifest: number | undefined, isApplied: boolean) =>
  Effect.gen(function* () {
    const feed = yield* Feed
    // A school that has a cut goes on with the tables that are there; the first cut holds them all.
    if (cursor.seq === 0 && !(yield* feed.ready)) return yield* loading
    const page = yield* feed.page({ school: key.school, cursor, staged, manifest })
    if (page.header.full) yield* feed.reader.seen(incarnation, { epoch: page.header.epoch, seq: 0, cut: "0" })
    else if (isApplied) yield* feed.reader.seen(incarnation, cursor)
    if (page.header.full && cursor.seq > 0) return yield* unknownCut
    return page
  })

const piecesOf = function* (page: FeedPage): Generator<Piece> {
  let piece = ""
  for (const line of page.lines) {
    piece += `${line}\n`
    if (piece.length < PIECE_BYTES) continue
    yield piece
    piece = ""
  }
  if (piece !== "") yield piece
  yield END_OF_FRAME
}

const answerLines = (request: Request, pieces: AsyncIterator<Piece> | Iterator<Piece>, onEnd: () => void): Response => {
  const encoding = encodingFor(request.headers.get("accept-encoding"))
  return new Response(pressLines(pieces, encoding, onEnd), {
    headers: {
      "content-type": "application/x-ndjson",
      "cache-control": "no-store, no-transform",
      "x-accel-buffering": "no",
      ...(encoding === "identity" ? {} : { "content-encoding": encoding }),
    },
  })
}

const nothingNew = (isAsked: boolean): Response =>
  new Response(null, { status: 204, headers: { "cache-control": "no-store", [SYNC_HEADER]: isAsked ? "1" : "0" } })

export const pull = (request: Request) =>
  Effect.gen(function* () {
    const key = yield* authenticate(request)
    const calls = yield* Calls
    const feed = yield* Feed
    const { query, cursor, staged } = yield* parsePull(request)
    yield* identify(key, { ...query, ...cursor })
    if (key.paused) return yield* paused
    const deadline = (yield* Clock.currentTimeMillis) + query.wait * 1000
    return yield* calls.during(key.school)(
      Effect.gen(function* () {
        for (let round = 0; ; round++) {
          const page = yield* readPage(key, query.incarnation, cursor, staged, query.manifest, true)
          if (!page.empty) return answerLines(request, piecesOf(page), yield* calls.enter(key.school))
          if (yield* calls.take(key.school)) return nothingNew(true)
          const left = deadline - (yield* Clock.currentTimeMillis)
          if (left <= 0) return nothingNew(false)
          if (round > 0) yield* Effect.sleep(Math.min(left, LOOK_AGAIN_MS))
          yield* Effect.raceAll([feed.changed(key.school, Math.max(cursor.seq, page.header.head)), calls.asked(key.school), Effect.sleep(left)])
          // Whoever was shut out while waiting gets nothing more.
          yield* authenticate(request)
        }
      }),
    )
  })

/** `["rows",8,812,…`: class and last seq of a line, without reading its rows. */
const ROWS = /^\["rows",(\d+),(\d+),/

/** Where a receiver stands that has taken every line of the page. */
const after = (cursor: Cursor, staged: Staged | null, page: FeedPage): { readonly cursor: Cursor; readonly staged: Staged | null } => {
  const { header } = page
  if (page.complete) return { cursor: { epoch: header.epoch, seq: header.head, cut: header.headCut }, staged: null }
  const positions: Record<string, number> = { ...(header.resumed ? staged?.after : {}) }
  for (const line of page.lines) {
    const [, cls, seq] = ROWS.exec(line) ?? []
    if (cls !== undefined) positions[cls] = Number(seq)
  }
  return { cursor, staged: { head: header.head, headCut: header.headCut, after: positions } }
}

interface OpenStream {
  readonly request: Request
  readonly incarnation: string
  /** When the receiver last took something, ms since 1970. */
  takenAt: number
  readonly end: () => void
}

export type Streams = Set<OpenStream>

/** The streams that are open. One loop looks after all of them: an idle school costs nothing but its place here. */
export const openStreams: Effect.Effect<Streams, never, Feed | Scope.Scope> = Effect.gen(function* () {
  const feed = yield* Feed
  const streams = new Set<OpenStream>()
  const look = Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    for (const stream of streams) {
      const isMine = yield* Effect.match(authenticate(stream.request), { onSuccess: (key) => !key.paused, onFailure: () => false })
      const reader = yield* feed.reader.get(stream.incarnation)
      // A receiver that takes its bytes lives, and so does one that is at work and says so.
      const isAlive = now - Math.max(stream.takenAt, reader?.seen_at ?? 0) < IDLE_MS
      if (!isMine || !isAlive) stream.end()
    }
  })
  yield* Effect.forkScoped(Effect.repeat(Effect.provideService(look, Feed, feed), Schedule.spaced(WATCH_MS)))
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      for (const stream of streams) stream.end()
    }),
  )
  return streams
})

/** The same pages without end, in one answer. It ends when the key no longer holds; the school then asks anew and hears why. */
export const stream = (request: Request, streams: Streams) =>
  Effect.gen(function* () {
    const key = yield* authenticate(request)
    const calls = yield* Calls
    const feed = yield* Feed
    const clock = yield* Clock.Clock
    const context = yield* Effect.context<Feed | Calls>()
    const start = yield* parsePull(request)
    yield* identify(key, { ...start.query, ...start.cursor })
    if (key.paused) return yield* paused
    const first = yield* readPage(key, start.query.incarnation, start.cursor, start.staged, start.query.manifest, true)
    const left = new AbortController()
    const own: OpenStream = {
      request,
      incarnation: start.query.incarnation,
      takenAt: clock.currentTimeMillisUnsafe(),
      end: () => left.abort(),
    }
    const run = async <A>(effect: Effect.Effect<A, Answer | LibsqlError, Feed | Calls>): Promise<A | null> => {
      const exit = await Effect.runPromiseExitWith(context)(effect, { signal: left.signal })
      if (Exit.isSuccess(exit)) return exit.value
      const failed = Cause.findErrorOption(exit.cause)
      if (!Cause.hasInterruptsOnly(exit.cause) && !(Option.isSome(failed) && failed.value._tag === "Answer")) {
        await Effect.runPromise(Effect.logWarning("a stream ended", exit.cause))
      }
      return null
    }
    const pieces = (async function* (): AsyncGenerator<Piece> {
      const took = <A>(piece: A): A => {
        own.takenAt = clock.currentTimeMillisUnsafe()
        return piece
      }
      // At once, so that the school sees that nothing on the way holds the bytes back.
      yield took("\n")
      let { cursor, staged } = start
      let manifest: number | undefined = start.query.manifest
      for (let page: FeedPage | null = first; page !== null && !left.signal.aborted; ) {
        if (!page.empty) {
          for (const piece of piecesOf(page)) yield took(piece)
          ;({ cursor, staged } = after(cursor, staged, page))
          if (manifest !== undefined) manifest = page.header.manifest
        } else {
          const seen = Math.max(cursor.seq, page.header.head)
          const woken = await run(
            Effect.raceAll([
              Effect.as(feed.changed(key.school, seen), "changed" as const),
              Effect.as(calls.asked(key.school), "asked" as const),
              Effect.as(Effect.sleep(BEAT_MS), "quiet" as const),
            ]),
          )
          if (woken === null) return
          if (woken === "asked") {
            if (await run(calls.take(key.school))) yield* [took(`${sealLine('["sync",{}]')}\n`), END_OF_FRAME]
            continue
          }
          if (woken === "quiet") {
            yield took("\n")
            continue
          }
        }
        const from: { readonly cursor: Cursor; readonly staged: Staged | null; readonly manifest: number | undefined } = { cursor, staged, manifest }
        page = await run(
          Effect.gen(function* () {
            const now = yield* authenticate(request)
            if (now.paused) return yield* paused
            return yield* readPage(key, own.incarnation, from.cursor, from.staged, from.manifest, false)
          }),
        )
      }
    })()
    const leave = yield* calls.enter(key.school)
    streams.add(own)
    return answerLines(request, pieces, () => {
      left.abort()
      streams.delete(own)
      leave()
    })
  })
