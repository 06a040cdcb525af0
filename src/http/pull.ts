/**
 * A page for a school, as the answer of a pull, which waits when there is nothing. What a school has applied it says itself,
 * with its next pull or its heartbeat; that something was sent counts for nothing.
 */
import * as Effect from "effect/Effect"
import { elapsedMs } from "../elapsed.ts"
import type { SchoolKey } from "../down/enrolled.ts"
import { Feed } from "../down/feed.ts"
import { type Encoding, encodingFor, pressLines } from "../link/body.ts"
import { CODING_HEADER, PullQuery, Staged, SYNC_HEADER } from "../link/protocol.ts"
import type { Cursor } from "../model/cursor.ts"
import { Calls } from "./calls.ts"
import { openPage, piecesOf } from "./outgoing.ts"
import { authenticate, identify, loading, parsed, paused, queryOf, refuse } from "./link-caller.ts"

/** A wake-up that brings nothing is not repeated faster than this. */
const LOOK_AGAIN_MS = 1_000

export const parsePull = (request: Request) =>
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
export const readPage = (
  key: Pick<SchoolKey, "school">,
  incarnation: string,
  cursor: Cursor,
  staged: Staged | null,
  manifest: number | undefined,
  isApplied: boolean,
) =>
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

export const encodingOf = (request: Request): Encoding => encodingFor(request.headers.get(CODING_HEADER) ?? request.headers.get("accept-encoding"))

export const answerLines = (request: Request, encoding: Encoding, body: ReadableStream<Uint8Array>): Response =>
  new Response(body, {
    headers: {
      "content-type": "application/x-ndjson",
      "cache-control": "no-store, no-transform",
      "x-accel-buffering": "no",
      ...(encoding === "identity" || request.headers.has(CODING_HEADER) ? {} : { "content-encoding": encoding }),
    },
  })

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
    const deadline = (yield* elapsedMs) + query.wait * 1000
    return yield* calls.during(key.school)(
      Effect.gen(function* () {
        for (let round = 0; ; round++) {
          const page = yield* readPage(key, query.incarnation, cursor, staged, query.manifest, true)
          if (!page.empty) {
            const encoding = encodingOf(request)
            return answerLines(request, encoding, pressLines(piecesOf(page), encoding, calls.enter(key.school)))
          }
          if (calls.take(key.school)) return nothingNew(true)
          const left = deadline - (yield* elapsedMs)
          if (left <= 0) return nothingNew(false)
          if (round > 0) yield* Effect.sleep(Math.min(left, LOOK_AGAIN_MS))
          yield* Effect.raceAll([feed.changed(key.school, Math.max(cursor.seq, page.header.head)), calls.asked(key.school), Effect.sleep(left)])
          // Whoever was shut out while waiting gets nothing more.
          yield* authenticate(request)
        }
      }),
    )
  })
