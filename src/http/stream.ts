/**
 * Pages for a school without end, in one answer. Thousands of streams stand open and most of the time nothing happens in them:
 * a stream that waits is one object, without a fiber, a timer or a promise of its own; one loop looks after all of them.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import { elapsedMsOf } from "../elapsed.ts"
import { Feed } from "../down/feed.ts"
import type { FeedPage } from "../down/page.ts"
import type { Waiter } from "../down/watch.ts"
import { sentence } from "../libsql/trouble.ts"
import { beatOf, type Encoding, frameOf, openPresser } from "../link/body.ts"
import { sealLine } from "../link/frame.ts"
import { BEAT_MS, IDLE_MS, type Staged } from "../link/protocol.ts"
import type { Cursor } from "../model/cursor.ts"
import { Calls, type Listener } from "./calls.ts"
import { authenticate, identify, keyIdOf, paused } from "./link-caller.ts"
import { type Outgoing, piecesOf } from "./outgoing.ts"
import { type PushGates, untilCalm } from "./push.ts"
import { answerLines, encodingOf, parsePull, readPage } from "./pull.ts"

/** How often the open streams are looked through: a key that no longer holds ends its stream within 5 s. */
const WATCH_MS = 2_000

/** How often streams are looked at, after how long a silent one has ended, and after how long a quiet one gets an empty line; ms. */
export interface StreamWatch {
  readonly everyMs: number
  readonly idleMs: number
  readonly beatMs: number
}
const WATCH: StreamWatch = { everyMs: WATCH_MS, idleMs: IDLE_MS, beatMs: BEAT_MS }

interface Place {
  readonly cursor: Cursor
  readonly staged: Staged | null
  readonly manifest: number | undefined
}

/** Where a receiver stands that has taken every line of the page. */
const after = (place: Place, page: FeedPage): Place => {
  const { header } = page
  const manifest = place.manifest === undefined ? undefined : header.manifest
  if (page.complete) return { cursor: { epoch: header.epoch, seq: header.head, cut: header.headCut }, staged: null, manifest }
  const positions = { ...(header.resumed ? place.staged?.after : {}), ...page.reached }
  return { cursor: place.cursor, staged: { head: header.head, headCut: header.headCut, after: positions }, manifest }
}

/** What all streams of a hub share. */
interface Shared {
  readonly open: Set<OpenStream>
  readonly feed: Context.Service.Shape<typeof Feed>
  readonly calls: Context.Service.Shape<typeof Calls>
  readonly clock: Clock.Clock
  /** A page after the stream's place; null: the stream ends, and the school hears why when it asks anew. */
  readonly ask: (stream: OpenStream) => Promise<Outgoing | null>
}

/** One answer without end, as the source of its body. */
class OpenStream implements Waiter, Listener {
  /** When the receiver last took a piece of a page, and when it last got anything, ms since 1970. */
  takenAt: number
  sentAt: number
  /** Until when it counts as alive for what its school said. */
  heardUntil = 0
  /** The keys of all schools as they stood when its own was found among them. */
  heldIn: unknown = null
  private isOver = false
  private isClosed = false
  /** A page goes out, or is asked for. */
  private isBusy = true
  private onRoom: (() => void) | null = null
  private controller!: ReadableStreamDefaultController<Uint8Array>

  constructor(
    private readonly shared: Shared,
    readonly keyId: string,
    readonly school: string,
    readonly incarnation: string,
    private readonly encoding: Encoding,
    public place: Place,
    private readonly leave: () => void,
  ) {
    this.takenAt = this.sentAt = elapsedMsOf(shared.clock)
  }

  body(first: Outgoing): ReadableStream<Uint8Array> {
    const body = new ReadableStream<Uint8Array>(this, { highWaterMark: 1 })
    this.shared.open.add(this)
    this.shared.calls.listen(this.school, this)
    // At once, so that the school sees that nothing on the way holds the bytes back.
    this.put(beatOf(this.encoding))
    void this.serve(first)
    return body
  }

  // --- the body's source

  start(controller: ReadableStreamDefaultController<Uint8Array>): void {
    this.controller = controller
  }

  pull(): void {
    const { onRoom } = this
    this.onRoom = null
    onRoom?.()
  }

  cancel(): void {
    this.isClosed = true
    this.end()
  }

  // --- what happens to it

  changed(): void {
    if (!this.isOver) void this.serve(null)
  }

  asked(): void {
    if (!this.isBusy && !this.isOver) this.tellAsked()
  }

  /** A receiver that does not take what is there gets nothing more. */
  beat(): void {
    if (!this.isBusy && this.hasRoom()) this.put(beatOf(this.encoding))
  }

  /** It no longer counts, also one whose receiver takes nothing any more and that hangs in the middle of a page. */
  end(): void {
    if (this.isOver) return
    this.isOver = true
    this.shared.open.delete(this)
    this.shared.feed.unwatch(this)
    this.shared.calls.unlisten(this.school, this)
    this.leave()
    if (this.isBusy) this.pull()
    else this.close()
  }

  // --- pages

  private async serve(first: Outgoing | null): Promise<void> {
    this.isBusy = true
    try {
      // The school hears at once that it has everything.
      if (first?.empty === true) this.put(beatOf(this.encoding))
      for (let page = first ?? (await this.shared.ask(this)); page !== null && !this.isOver; ) {
        const isAllThere = page.empty || (await this.send(page))
        if (this.isOver) break
        if (isAllThere) return this.wait(Math.max(this.place.cursor.seq, page.header.head))
        page = await this.shared.ask(this)
      }
      this.isBusy = false
      this.end()
      this.close()
    } catch (cause) {
      this.isBusy = false
      this.end()
      this.close(cause)
    }
  }

  /** True: what the snapshot of this page held is now all there. */
  private async send(page: Outgoing): Promise<boolean> {
    const presser = openPresser(this.encoding)
    try {
      for await (const piece of piecesOf(page)) {
        if (!this.hasRoom())
          await new Promise<void>((resolve) => {
            this.onRoom = resolve
          })
        if (this.isOver) return false
        this.takenAt = elapsedMsOf(this.shared.clock)
        const bytes = await presser.press(piece)
        if (this.isOver) return false
        if (bytes.length > 0) this.put(bytes)
      }
    } finally {
      presser.destroy()
    }
    const whole = await page.whole
    this.place = after(this.place, whole)
    return whole.complete
  }

  private wait(seq: number): void {
    this.isBusy = false
    this.tellAsked()
    this.shared.feed.watch(this, seq)
  }

  private tellAsked(): void {
    if (this.shared.calls.take(this.school)) this.put(frameOf(`${sealLine('["sync",{}]')}\n`, this.encoding))
  }

  // --- bytes

  private hasRoom(): boolean {
    return (this.controller.desiredSize ?? 0) > 0
  }

  private put(bytes: Uint8Array): void {
    this.controller.enqueue(bytes)
    this.sentAt = elapsedMsOf(this.shared.clock)
  }

  private close(cause?: unknown): void {
    if (this.isClosed) return
    this.isClosed = true
    if (cause === undefined) this.controller.close()
    else this.controller.error(cause)
  }
}

export type Streams = Shared

/** The streams that are open. One loop looks after all of them. */
export const openStreams = Effect.fnUntraced(function* (gates: Pick<PushGates, "bySchool">, { everyMs, idleMs, beatMs }: StreamWatch = WATCH) {
  const feed = yield* Feed
  const calls = yield* Calls
  const clock = yield* Clock.Clock
  const context = yield* Effect.context<Feed>()
  const open = new Set<OpenStream>()
  /** Whether the key still opens its school's rows. */
  const holds = (keyId: string): boolean => {
    const key = feed.keyNow(keyId)
    return key !== null && !key.revoked && !key.paused
  }
  const ask = async ({ keyId, school, incarnation, place }: OpenStream): Promise<Outgoing | null> => {
    if (!holds(keyId)) return null
    const { cursor, staged, manifest } = place
    const page = Effect.andThen(untilCalm(gates, school), readPage({ school }, incarnation, cursor, staged, manifest, false))
    const exit = await Effect.runPromiseExitWith(context)(page)
    if (Exit.isSuccess(exit)) return exit.value
    const failed = Option.getOrNull(Cause.findErrorOption(exit.cause))
    if (failed?._tag === "LibsqlError") await Effect.runPromise(Effect.logWarning(`a stream of school ${school} ended: ${sentence(failed)}`))
    else if (failed?._tag !== "Answer") await Effect.runPromise(Effect.logWarning("a stream ended", exit.cause))
    return null
  }
  const hears = (stream: OpenStream, now: number, date: number): boolean => {
    const saidAgo = date - (feed.reader.find(stream.incarnation)?.seen_at ?? 0)
    if (saidAgo <= -idleMs || saidAgo >= idleMs) return false
    stream.heardUntil = now + idleMs - Math.max(0, saidAgo)
    return true
  }
  const look = (): void => {
    const now = elapsedMsOf(clock)
    const date = clock.currentTimeMillisUnsafe()
    const keys = feed.keysNow()
    for (const stream of open) {
      // A receiver that takes its pages lives, and so does one that says so. An empty line proves nothing: a dead line swallows it.
      const isAlive = now - stream.takenAt < idleMs || now < stream.heardUntil || hears(stream, now, date)
      if (isAlive && stream.heldIn !== keys && holds(stream.keyId)) stream.heldIn = keys
      if (!isAlive || stream.heldIn !== keys) stream.end()
      else if (now - stream.sentAt > beatMs - everyMs) stream.beat()
    }
  }
  yield* Effect.forkScoped(Effect.repeat(Effect.sync(look), Schedule.spaced(everyMs)))
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      for (const stream of open) stream.end()
    }),
  )
  return { open, feed, calls, clock, ask } satisfies Streams
})

/** It ends when the key no longer holds; the school then asks anew and hears why. */
export const stream = (request: Request, streams: Streams) =>
  Effect.gen(function* () {
    const key = yield* authenticate(request)
    const { query, cursor, staged } = yield* parsePull(request)
    const reader = yield* identify(key, { ...query, ...cursor })
    if (key.paused) return yield* paused
    const page = yield* readPage(key, reader.incarnation, cursor, staged, query.manifest, true)
    const encoding = encodingOf(request)
    const place = { cursor, staged, manifest: query.manifest }
    const leave = streams.calls.enter(key.school)
    const own = new OpenStream(streams, keyIdOf(request), key.school, reader.incarnation, encoding, place, leave)
    return answerLines(request, encoding, own.body(page))
  })
