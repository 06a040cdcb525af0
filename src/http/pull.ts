/**
 * Pages for a school: one as the answer of a pull, which waits when there is nothing, or without end in a stream. What a
 * school has applied it says itself, with its next pull or its heartbeat; that something was sent counts for nothing.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type { SchoolKey } from "../down/enrolled.ts"
import { Feed } from "../down/feed.ts"
import type { FeedPage } from "../down/page.ts"
import { encodingFor, type Piece, pressLines } from "../link/body.ts"
import { sealLine } from "../link/frame.ts"
import { BEAT_MS, CODING_HEADER, IDLE_MS, PullQuery, Staged, SYNC_HEADER } from "../link/protocol.ts"
import type { Cursor } from "../model/cursor.ts"
import { Calls } from "./calls.ts"
import { openPage, type Outgoing, piecesOf } from "./outgoing.ts"
import { authenticate, identify, keyIdOf, loading, parsed, paused, queryOf, refuse } from "./link-caller.ts"

/** A wake-up that brings nothing is not repeated faster than this. */
const LOOK_AGAIN_MS = 1_000
/** How often the open streams are looked through: a key that no longer holds ends its stream within 5 s. */
const WATCH_MS = 2_000

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
    const page = yield* openPage((listener) =>
      Effect.tap(feed.page({ school: key.school, cursor, staged, manifest }, listener), ({ complete, header }) =>
        Effect.sync(() => {
          if (complete) feed.reader.sent.set(incarnation, header.head)
        }),
      ),
    )
    if (page.header.full) yield* feed.reader.seen(incarnation, { epoch: page.header.epoch, seq: 0, cut: "0" })
    else if (isApplied) yield* feed.reader.seen(incarnation, cursor)
    if (page.header.full && cursor.seq > 0) return yield* unknownCut
    return page
  })

const answerLines = (request: Request, pieces: AsyncIterator<Piece> | Iterator<Piece>, onEnd: () => void): Response => {
  const own = request.headers.get(CODING_HEADER)
  const encoding = encodingFor(own ?? request.headers.get("accept-encoding"))
  return new Response(pressLines(pieces, encoding, onEnd), {
    headers: {
      "content-type": "application/x-ndjson",
      "cache-control": "no-store, no-transform",
      "x-accel-buffering": "no",
      ...(encoding === "identity" || own !== null ? {} : { "content-encoding": encoding }),
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

/** Where a receiver stands that has taken every line of the page. */
const after = (cursor: Cursor, staged: Staged | null, page: FeedPage): { readonly cursor: Cursor; readonly staged: Staged | null } => {
  const { header } = page
  if (page.complete) return { cursor: { epoch: header.epoch, seq: header.head, cut: header.headCut }, staged: null }
  const positions = { ...(header.resumed ? staged?.after : {}), ...page.reached }
  return { cursor, staged: { head: header.head, headCut: header.headCut, after: positions } }
}

/** Why a stream that had nothing to send goes on. */
type Woken = "changed" | "asked" | "quiet" | "over"

/** All that a stream keeps while nothing happens: two thousand of them stand open. */
interface OpenStream {
  readonly keyId: string
  readonly school: string
  readonly incarnation: string
  /** When the receiver last took a piece of a page, and when it last got anything, ms since 1970. */
  takenAt: number
  sentAt: number
  /** Set while the stream waits. */
  wake: ((why: Woken) => void) | null
  isOver: boolean
  /** It no longer counts; a second call changes nothing. */
  readonly leave: () => void
}

export type Streams = Set<OpenStream>

const end = (stream: OpenStream): void => {
  stream.isOver = true
  stream.wake?.("over")
  // Not only with the answer's end: one whose receiver takes nothing any more may hang in the middle of a page.
  stream.leave()
}

/** Whether the key still opens its school's rows. */
const holds = (keyId: string) =>
  Effect.gen(function* () {
    const key = yield* (yield* Feed).key(keyId)
    return key !== null && !key.revoked && !key.paused
  })

/** How often streams are looked at, after how long a silent one has ended, and after how long a quiet one gets an empty line; ms. */
export interface StreamWatch {
  readonly everyMs: number
  readonly idleMs: number
  readonly beatMs: number
}
const WATCH: StreamWatch = { everyMs: WATCH_MS, idleMs: IDLE_MS, beatMs: BEAT_MS }

/** The streams that are open. One loop looks after all of them. */
export const openStreams = Effect.fnUntraced(function* ({ everyMs, idleMs, beatMs }: StreamWatch = WATCH) {
  const feed = yield* Feed
  const streams: Streams = new Set()
  const look = Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    for (const stream of streams) {
      const reader = yield* feed.reader.get(stream.incarnation)
      // A receiver that takes its pages lives, and so does one that says so. An empty line proves nothing: a dead line swallows it.
      const isAlive = now - Math.max(stream.takenAt, reader?.seen_at ?? 0) < idleMs
      if (!isAlive || !(yield* holds(stream.keyId))) end(stream)
      else if (now - stream.sentAt > beatMs - everyMs) stream.wake?.("quiet")
    }
  })
  yield* Effect.forkScoped(Effect.repeat(Effect.provideService(look, Feed, feed), Schedule.spaced(everyMs)))
  yield* Effect.addFinalizer(() => Effect.sync(() => streams.forEach(end)))
  return streams
})

interface Place {
  readonly cursor: Cursor
  readonly staged: Staged | null
  readonly manifest: number | undefined
}

/** A page after a place; null: the stream ends, and the school hears why when it asks anew. */
type Ask = (stream: OpenStream, place: Place) => Promise<Outgoing | null>

/** Waits for whatever comes first. */
const sleep = (stream: OpenStream, seen: number, feed: Feeds, calls: AllCalls): Promise<Woken> =>
  new Promise((resolve) => {
    const wake = (why: Woken): void => {
      if (stream.wake === null) return
      stream.wake = null
      unwatch()
      unlisten()
      resolve(why)
    }
    stream.wake = wake
    const unwatch = feed.watch(stream.school, seen, () => wake("changed"))
    const unlisten = calls.listen(stream.school, () => wake("asked"))
    if (stream.isOver) wake("over")
  })

type Feeds = Context.Service.Shape<typeof Feed>
type AllCalls = Context.Service.Shape<typeof Calls>

const endless = async function* (
  stream: OpenStream,
  start: { place: Place; page: Outgoing | null },
  ask: Ask,
  feed: Feeds,
  calls: AllCalls,
  clock: Clock.Clock,
): AsyncGenerator<Piece> {
  let { place, page } = start
  start.page = null
  const sent = (piece: Piece): Piece => {
    stream.sentAt = clock.currentTimeMillisUnsafe()
    return piece
  }
  const took = (piece: Piece): Piece => {
    stream.takenAt = clock.currentTimeMillisUnsafe()
    return sent(piece)
  }
  // At once, so that the school sees that nothing on the way holds the bytes back.
  yield sent("\n")
  while (page !== null && !stream.isOver) {
    const { empty, header } = page
    if (!empty) {
      for await (const piece of piecesOf(page)) yield took(piece)
      place = { ...after(place.cursor, place.staged, await page.whole), manifest: place.manifest === undefined ? undefined : header.manifest }
    }
    page = null
    for (let isWaiting = empty; isWaiting; ) {
      const why = await sleep(stream, Math.max(place.cursor.seq, header.head), feed, calls)
      if (why === "over") return
      if (why === "changed") isWaiting = false
      else if (why === "quiet") yield sent("\n")
      else if (await Effect.runPromise(calls.take(stream.school))) yield sent({ frame: `${sealLine('["sync",{}]')}\n` })
    }
    page = await ask(stream, place)
  }
}

/** The same pages without end, in one answer. It ends when the key no longer holds; the school then asks anew and hears why. */
export const stream = (request: Request, streams: Streams) =>
  Effect.gen(function* () {
    const key = yield* authenticate(request)
    const calls = yield* Calls
    const feed = yield* Feed
    const clock = yield* Clock.Clock
    const context = yield* Effect.context<Feed>()
    const { query, cursor, staged } = yield* parsePull(request)
    yield* identify(key, { ...query, ...cursor })
    if (key.paused) return yield* paused
    const ask: Ask = async (open, place) => {
      const page = Effect.gen(function* () {
        if (!(yield* holds(open.keyId))) return null
        return yield* readPage(key, open.incarnation, place.cursor, place.staged, place.manifest, false)
      })
      const exit = await Effect.runPromiseExitWith(context)(page)
      if (Exit.isSuccess(exit)) return exit.value
      const failed = Cause.findErrorOption(exit.cause)
      if (!(Option.isSome(failed) && failed.value._tag === "Answer")) await Effect.runPromise(Effect.logWarning("a stream ended", exit.cause))
      return null
    }
    const page = yield* readPage(key, query.incarnation, cursor, staged, query.manifest, true)
    const leave = yield* calls.enter(key.school)
    const own: OpenStream = {
      keyId: keyIdOf(request),
      school: key.school,
      incarnation: query.incarnation,
      takenAt: clock.currentTimeMillisUnsafe(),
      sentAt: clock.currentTimeMillisUnsafe(),
      wake: null,
      isOver: false,
      leave: () => {
        streams.delete(own)
        leave()
      },
    }
    const pieces = endless(own, { place: { cursor, staged, manifest: query.manifest }, page }, ask, feed, calls, clock)
    streams.add(own)
    return answerLines(request, pieces, () => end(own))
  })
