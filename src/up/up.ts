/**
 * School -> hub: open changes are frozen into numbered batches; batches go out in order, unchanged, until the hub has
 * answered; its answer is kept for the status. What ends a batch is its ledger row, which comes down.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Semaphore from "effect/Semaphore"
import type { LibsqlError, LibsqlFile } from "../libsql/client.ts"
import { BATCH_CHANGES } from "../libsql/freeze.ts"
import { bytesOf, type StoredBatch } from "../libsql/store-batch.ts"
import { type LinkError, LinkRefused } from "../link/answer.ts"
import type { Identity, Link } from "../link/client.ts"
import type { PackedBatch } from "../link/parts.ts"
import type { Verdicts } from "../model/change.ts"
import { sendAgainFrom } from "./again.ts"
import { type Freezing, makeFreezing } from "./freezing.ts"

/** Batches on their way at a time: the next one lies at the hub when it has written the one before. */
const IN_FLIGHT = 2
/** A batch that took longer shows a line on which the next one would only stand in its way. */
const QUICK_MS = 1_000

/** Head office was put back to a state so old that the way from there is not kept here any more. */
const lost = (expected: number): LinkRefused =>
  new LinkRefused({
    status: 409,
    code: "batch_lost",
    message: `head office asks for batch ${expected}, which is no longer kept here; give this file a new life: start the node once with --new-life`,
    expected,
  })

export interface Pushed {
  readonly changes: number
  readonly conflicts: number
  /** Changes by table. */
  readonly tables: Readonly<Record<string, number>>
}

const TABLE = /\{"id":\d+,"table":"([^"\\]+)"/y

/** A batch's changes by table: `{"id":7,"table":"public.pupils",…`, a line each. */
const countTables = (bytes: Uint8Array): Record<string, number> => {
  const into: Record<string, number> = {}
  const text = new TextDecoder().decode(bytes)
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) {
    TABLE.lastIndex = at + 1
    const table = TABLE.exec(text)?.[1]
    if (table !== undefined) into[table] = (into[table] ?? 0) + 1
  }
  return into
}

/**
 * Sends every batch that has no answer yet, while further ones are frozen; the number of changes sent and of conflicts decided.
 * `onMore` runs when there turns out to be more than one; `mayGoOn` is asked before each but the first, and what is not sent waits in the file.
 */
export const pushAll = (
  file: LibsqlFile,
  link: Link,
  identity: Identity,
  maxChanges = BATCH_CHANGES,
  onMore: Effect.Effect<unknown> = Effect.void,
  mayGoOn: Effect.Effect<boolean, LibsqlError> = Effect.succeed(true),
): Effect.Effect<Pushed, LibsqlError | LinkError> =>
  Effect.gen(function* () {
    const freezing = makeFreezing(file, maxChanges)
    const answers = yield* makeAnswers(file)
    const sending = Effect.ensuring(sendAll(file, link, identity, freezing, answers, onMore, mayGoOn), Effect.sync(freezing.end))
    // Also when the line breaks everything is frozen: what is captured later never joins it.
    const [sent] = yield* Effect.all([Effect.exit(sending), freezing.run], { concurrency: 2 })
    yield* answers.write
    return yield* sent
  })

interface Answer {
  readonly number: number
  readonly at: number
  readonly exceptions: string
}

/** Answers on their way into the file: the next batch does not wait for them. One that is lost there comes again with its batch. */
const makeAnswers = (file: LibsqlFile) =>
  Effect.gen(function* () {
    const one = yield* Semaphore.make(1)
    const waiting: Array<Answer> = []
    const write: Effect.Effect<void, LibsqlError> = one.withPermit(
      Effect.suspend(() => {
        const some = [...waiting]
        if (some.length === 0) return Effect.void
        const written = file.write((tx) =>
          Effect.forEach(some, ({ number, at, exceptions }) =>
            tx.run("UPDATE schoolbus_batch SET answered_at = ?, exceptions = coalesce(exceptions, ?) WHERE number = ?", [at, exceptions, number]),
          ),
        )
        return Effect.andThen(
          written,
          Effect.sync(() => void waiting.splice(0, some.length)),
        )
      }),
    )
    return {
      add: (answer: Answer) =>
        Effect.andThen(
          Effect.sync(() => waiting.push(answer)),
          Effect.forkChild(Effect.ignore(write)),
        ),
      write,
    }
  })

const readUnanswered = (file: LibsqlFile, after: number): Effect.Effect<StoredBatch | undefined, LibsqlError> =>
  Effect.map(
    file.read((tx) =>
      tx.all<Omit<StoredBatch, "bytes" | "tables">>(
        "SELECT number, hash, bytes AS pressed, changes FROM schoolbus_batch WHERE answered_at IS NULL AND settled_at IS NULL AND number > ? ORDER BY number LIMIT 1",
        [after],
      ),
    ),
    ([batch]) => {
      if (batch === undefined) return undefined
      const bytes = bytesOf(batch.pressed)
      return { ...batch, bytes, tables: countTables(bytes) }
    },
  )

type Ready = StoredBatch & PackedBatch

/** A batch on its way. */
interface Flying {
  readonly batch: Ready
  /** Sent before the answer to the one before it: that it came too early says nothing. */
  readonly isAhead: boolean
  readonly began: number
  readonly fiber: Fiber.Fiber<Exit.Exit<Verdicts, LinkError>>
}

/** The number that the hub expects instead; null: its answer is no gap. */
const gapOf = (exit: Exit.Exit<Verdicts, LinkError>, number: number): number | null => {
  const error = Exit.isFailure(exit) ? exit.cause.reasons.find((reason) => reason._tag === "Fail")?.error : undefined
  return error?._tag === "LinkRefused" && error.code === "batch_gap" && error.expected !== null && error.expected < number ? error.expected : null
}

const sendAll = (
  file: LibsqlFile,
  link: Link,
  identity: Identity,
  freezing: Freezing,
  answers: Effect.Success<ReturnType<typeof makeAnswers>>,
  onMore: Effect.Effect<unknown>,
  mayGoOn: Effect.Effect<boolean, LibsqlError>,
): Effect.Effect<Pushed, LibsqlError | LinkError> =>
  Effect.gen(function* () {
    let changes = 0
    let conflicts = 0
    const tables: Record<string, number> = {}
    const flying: Array<Flying> = []
    /** The last one that was sent. */
    let last = 0
    let isQuick = false
    let isFirst = true
    let ready: Ready | undefined
    const packNext = Effect.gen(function* () {
      const batch = freezing.take(last + 1) ?? (yield* readUnanswered(file, last))
      return batch === undefined ? undefined : yield* link.pack(batch)
    })
    const send = (batch: Ready) =>
      Effect.gen(function* () {
        if (!isFirst) yield* onMore
        isFirst = false
        const isAhead = flying.length > 0
        const began = performance.now()
        flying.push({ batch, isAhead, began, fiber: yield* Effect.forkChild(Effect.exit(link.push(identity, batch))) })
        last = batch.number
        ready = undefined
      })
    /** Those behind one that has to go again would come too early. */
    const callBack = (to: number) =>
      Effect.gen(function* () {
        yield* Fiber.interruptAll(flying.splice(0).map(({ fiber }) => fiber))
        last = to
        ready = undefined
        isQuick = false
      })
    for (;;) {
      const seen = freezing.count()
      const isIdle = freezing.isIdle()
      ready ??= yield* packNext
      const isRoom = flying.length === 0 || (isQuick && flying.length < IN_FLIGHT && (ready?.parts ?? 1) === 1)
      if (ready !== undefined && isRoom) {
        if (isFirst || (yield* mayGoOn)) {
          yield* send(ready)
          continue
        }
        if (flying.length === 0) return { changes, conflicts, tables }
      }
      const [oldest] = flying
      if (oldest === undefined) {
        if (isIdle) return { changes, conflicts, tables }
        yield* freezing.more(seen)
        continue
      }
      const answered = Fiber.join(oldest.fiber)
      const exit = ready === undefined && !isIdle ? yield* Effect.race(answered, Effect.as(freezing.more(seen), null)) : yield* answered
      if (exit === null) continue
      flying.shift()
      const { batch, isAhead, began } = oldest
      const expected = gapOf(exit, batch.number)
      if (expected !== null && isAhead) {
        yield* callBack(batch.number - 1)
        continue
      }
      if (expected !== null) {
        // The hub's ledger ends earlier than ours: what it has lost is sent again from the kept bytes.
        const [kept] = yield* file.read((tx) =>
          tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM schoolbus_batch WHERE number = ?) AS n", [expected]),
        )
        if (kept?.n !== 1) return yield* lost(expected)
        yield* answers.write
        yield* sendAgainFrom(file, expected)
        yield* callBack(expected - 1)
        continue
      }
      const { exceptions } = yield* exit
      isQuick = performance.now() - began < QUICK_MS
      changes += batch.changes
      for (const [table, n] of Object.entries(batch.tables)) tables[table] = (tables[table] ?? 0) + n
      conflicts += exceptions.filter((exception) => exception.verdict === "conflict").length
      yield* answers.add({ number: batch.number, at: yield* Clock.currentTimeMillis, exceptions: JSON.stringify(exceptions) })
      freezing.again()
    }
  })
