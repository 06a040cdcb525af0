/**
 * School -> hub: open changes are frozen into numbered batches; batches go out in order, unchanged, until the hub has
 * answered; its answer is kept for the status. What ends a batch is its ledger row, which comes down.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
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

/** The table of a batch's line: `{"id":7,"table":"public.pupils",…`. */
const TABLE = /^\{"id":\d+,"table":"([^"\\]+)"/gm

/** What is known of the freezing under way. */
interface Freezing {
  batches: number
  isOver: boolean
  wake: () => void
}

/** Sends every batch that has no answer yet, while further ones are frozen; the number of changes sent and of conflicts decided. */
export const pushAll = (
  file: LibsqlFile,
  link: Link,
  identity: Identity,
  maxChanges = BATCH_CHANGES,
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
    // Also when the line breaks everything is frozen: what is captured later never joins it.
    const [sent] = yield* Effect.all([Effect.exit(sendAll(file, link, identity, freezing)), freezeRest], { concurrency: 2 })
    return yield* sent
  })

const sendAll = (file: LibsqlFile, link: Link, identity: Identity, freezing: Freezing): Effect.Effect<Pushed, LibsqlError | LinkError> =>
  Effect.gen(function* () {
    let changes = 0
    let conflicts = 0
    const tables: Record<string, number> = {}
    for (;;) {
      const { batches, isOver } = freezing
      const [batch] = yield* file.read((tx) =>
        tx.all<{ number: number; hash: string; bytes: Uint8Array; changes: number }>(
          "SELECT number, hash, bytes, changes FROM schoolbus_batch WHERE answered_at IS NULL AND settled_at IS NULL ORDER BY number LIMIT 1",
        ),
      )
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
      const verdicts = yield* link.push(identity, batch).pipe(
        Effect.map((answer) => ({ answer, expected: null as number | null })),
        Effect.catchTag("LinkRefused", (error) =>
          error.code === "batch_gap" && error.expected !== null && error.expected < batch.number
            ? Effect.succeed({ answer: null, expected: error.expected })
            : Effect.fail(error),
        ),
      )
      if (verdicts.answer === null) {
        // The hub's ledger ends earlier than ours: what it has lost is sent again from the kept bytes.
        const expected = verdicts.expected ?? batch.number
        const [kept] = yield* file.read((tx) =>
          tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM schoolbus_batch WHERE number = ?) AS n", [expected]),
        )
        if (kept?.n !== 1) return yield* lost(expected)
        yield* sendAgainFrom(file, expected)
        continue
      }
      changes += batch.changes
      for (const [, table] of new TextDecoder().decode(batch.bytes).matchAll(TABLE)) if (table !== undefined) tables[table] = (tables[table] ?? 0) + 1
      conflicts += verdicts.answer.exceptions.filter((exception) => exception.verdict === "conflict").length
      const now = yield* Clock.currentTimeMillis
      const { exceptions } = verdicts.answer
      yield* file.write((tx) =>
        tx.run("UPDATE schoolbus_batch SET answered_at = ?, exceptions = coalesce(exceptions, ?) WHERE number = ?", [
          now,
          JSON.stringify(exceptions),
          batch.number,
        ]),
      )
    }
  })
