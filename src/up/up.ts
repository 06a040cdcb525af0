/**
 * School -> hub: open changes are frozen into numbered batches; batches go out in order, unchanged, until the hub has
 * answered; its answer is kept for the status. What ends a batch is its ledger row, which comes down.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"
import type { LibsqlError, LibsqlFile } from "../libsql/client.ts"
import { BATCH_CHANGES, freeze } from "../libsql/freeze.ts"
import { type Identity, type Link, type LinkError, LinkRefused } from "../link/client.ts"
import type { Manifest } from "../model/table.ts"
import { sendAgainFrom } from "./again.ts"

const manifestOf = (text: string | null): Manifest | null => (text === null ? null : (JSON.parse(text) as Manifest))

/** Freezes everything that is open, batch by batch, each in its own short transaction. */
const freezeAll = (file: LibsqlFile, maxChanges: number, onFrozen: () => void): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    for (;;) {
      const now = yield* Clock.currentTimeMillis
      const frozen = yield* file.write((tx) =>
        Effect.gen(function* () {
          const [state] = yield* tx.all<{ manifest: string | null }>("SELECT manifest FROM schoolbus_state")
          const manifest = manifestOf(state?.manifest ?? null)
          return manifest === null ? { changes: 0, isMore: false } : yield* freeze(tx, manifest, now, { maxChanges })
        }),
      )
      onFrozen()
      if (!frozen.isMore) return
    }
  })

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

/** Counts a batch's changes by table: `{"id":7,"table":"public.pupils",…`, a line each. */
const countTables = (bytes: Uint8Array, into: Record<string, number>): void => {
  const text = new TextDecoder().decode(bytes)
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) {
    TABLE.lastIndex = at + 1
    const table = TABLE.exec(text)?.[1]
    if (table !== undefined) into[table] = (into[table] ?? 0) + 1
  }
}

/** What is known of the freezing under way. */
interface Freezing {
  batches: number
  isOver: boolean
  wake: () => void
}

/**
 * Sends every batch that has no answer yet, while further ones are frozen; the number of changes sent and of conflicts decided.
 * `onMore` runs when there turns out to be more than one.
 */
export const pushAll = (
  file: LibsqlFile,
  link: Link,
  identity: Identity,
  maxChanges = BATCH_CHANGES,
  onMore: Effect.Effect<unknown> = Effect.void,
): Effect.Effect<Pushed, LibsqlError | LinkError> =>
  Effect.gen(function* () {
    const freezing: Freezing = { batches: 0, isOver: false, wake: () => undefined }
    const freezeRest = Effect.andThen(
      freezeAll(file, maxChanges, () => {
        freezing.batches++
        freezing.wake()
      }),
      Effect.sync(() => {
        freezing.isOver = true
        freezing.wake()
      }),
    )
    const answers = yield* makeAnswers(file)
    // Also when the line breaks everything is frozen: what is captured later never joins it.
    const [sent] = yield* Effect.all([Effect.exit(sendAll(file, link, identity, freezing, answers, onMore)), freezeRest], { concurrency: 2 })
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

interface Unanswered {
  readonly number: number
  readonly hash: string
  readonly bytes: Uint8Array
  readonly changes: number
}

const readUnanswered = (file: LibsqlFile, after: number): Effect.Effect<Unanswered | undefined, LibsqlError> =>
  Effect.map(
    file.read((tx) =>
      tx.all<Unanswered>(
        "SELECT number, hash, bytes, changes FROM schoolbus_batch WHERE answered_at IS NULL AND settled_at IS NULL AND number > ? ORDER BY number LIMIT 1",
        [after],
      ),
    ),
    ([batch]) => batch,
  )

const sendAll = (
  file: LibsqlFile,
  link: Link,
  identity: Identity,
  freezing: Freezing,
  answers: Effect.Success<ReturnType<typeof makeAnswers>>,
  onMore: Effect.Effect<unknown>,
): Effect.Effect<Pushed, LibsqlError | LinkError> =>
  Effect.gen(function* () {
    let changes = 0
    let conflicts = 0
    const tables: Record<string, number> = {}
    let last = 0
    let ahead: Unanswered | undefined
    for (;;) {
      const { batches, isOver } = freezing
      const batch: Unanswered | undefined = ahead ?? (yield* readUnanswered(file, last))
      ahead = undefined
      if (batch === undefined && isOver) return { changes, conflicts, tables }
      if (batch === undefined) {
        yield* Effect.callback<void>((resume) => {
          freezing.wake = () => {
            if (freezing.batches !== batches || freezing.isOver) resume(Effect.void)
          }
          freezing.wake()
        })
        continue
      }
      if (changes > 0) yield* onMore
      // The next one lies ready when this one is answered.
      const [verdicts, next] = yield* Effect.all(
        [
          link.push(identity, batch).pipe(
            Effect.map((answer) => ({ answer, expected: null as number | null })),
            Effect.catchTag("LinkRefused", (error) =>
              error.code === "batch_gap" && error.expected !== null && error.expected < batch.number
                ? Effect.succeed({ answer: null, expected: error.expected })
                : Effect.fail(error),
            ),
          ),
          readUnanswered(file, batch.number),
        ],
        { concurrency: 2 },
      )
      if (verdicts.answer === null) {
        // The hub's ledger ends earlier than ours: what it has lost is sent again from the kept bytes.
        const expected = verdicts.expected ?? batch.number
        const [kept] = yield* file.read((tx) =>
          tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM schoolbus_batch WHERE number = ?) AS n", [expected]),
        )
        if (kept?.n !== 1) return yield* lost(expected)
        yield* answers.write
        yield* sendAgainFrom(file, expected)
        last = expected - 1
        continue
      }
      last = batch.number
      ahead = next
      changes += batch.changes
      countTables(batch.bytes, tables)
      const { exceptions } = verdicts.answer
      conflicts += exceptions.filter((exception) => exception.verdict === "conflict").length
      yield* answers.add({ number: batch.number, at: yield* Clock.currentTimeMillis, exceptions: JSON.stringify(exceptions) })
    }
  })
