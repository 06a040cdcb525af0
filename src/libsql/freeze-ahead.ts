/**
 * Many plain open writes become a batch without the file's write lock being held while their lines are made: those are read
 * from a snapshot, and only stored under the lock. A batch is what stood there at one moment, so programs may write on
 * meanwhile; when anything else was frozen, pulled or reshaped since, nothing is stored and `freeze` does it all under the lock.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { Manifest } from "../model/table.ts"
import { OPEN } from "./changes.ts"
import type { LibsqlError, LibsqlFile, Tx } from "./client.ts"
import { BATCH_BYTES, BATCH_CHANGES, type Frozen, MAX_LOOKED_AT, readBonds, takePlain } from "./freeze.ts"
import type { Source } from "./open-writes.ts"
import { settleOps, storeBatch, useUp } from "./store-batch.ts"

/** Fewer open writes are frozen under the lock at once. */
const MANY = 500

/** Other open writes than those that were read stand before the last one. */
class Moved extends Data.TaggedError("Moved") {}

interface State {
  readonly manifest: string | null
  readonly incarnation: string
  readonly last: number
  readonly frozenTo: number
}

const readState = (tx: Tx): Effect.Effect<State | undefined, LibsqlError> =>
  Effect.map(tx.all<State>("SELECT manifest, incarnation, last_batch AS last, frozen_to AS frozenTo FROM schoolbus_state"), ([row]) => row)

const readRun = (tx: Tx, maxChanges: number) =>
  Effect.gen(function* () {
    const state = yield* readState(tx)
    if (state === undefined || state.manifest === null) return null
    const least = Math.min(MANY, maxChanges)
    const [open] = yield* tx.all<{ n: number }>(`SELECT count(*) AS n FROM (SELECT 1 FROM changes WHERE ${OPEN} LIMIT ?)`, [least])
    if ((open?.n ?? 0) < least) return null
    const manifest = JSON.parse(state.manifest) as Manifest
    const tables = new Map(manifest.tables.map((table) => [table.name, table]))
    const { bonded } = yield* readBonds(tx, manifest, tables)
    const writes = Math.min(maxChanges, MAX_LOOKED_AT)
    const room = { writes, bytes: BATCH_BYTES, isEmpty: true }
    const run = yield* takePlain(tx, tables, new Map<number, Source>(), (tbl) => bonded.has(tbl), state.frozenTo, room)
    if (run === null || run.lines === 0) return null
    const [next] = yield* tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM changes WHERE batch IS NULL AND id > ?) AS n", [run.lastId])
    const isMore = next?.n === 1
    // What ends a run early goes into the same batch.
    return isMore && run.count < writes && run.bytes.length < BATCH_BYTES / 2 ? null : { state, manifest, run, isMore }
  })

/** null: nothing was done. */
export const freezeAhead = (file: LibsqlFile, now: number, maxChanges = BATCH_CHANGES): Effect.Effect<Frozen | null, LibsqlError> =>
  Effect.gen(function* () {
    const read = yield* file.read((tx) => readRun(tx, maxChanges))
    if (read === null) return null
    const { state, manifest, run, isMore } = read
    return yield* file.write((tx) =>
      Effect.gen(function* () {
        const present = yield* readState(tx)
        if (present === undefined || JSON.stringify(present) !== JSON.stringify(state)) return null
        yield* settleOps(tx, 0, { deletes: [], updates: [], dropped: run.dropped })
        yield* useUp(tx, run.lastId)
        const { firstId, lastId, lines: changes } = run
        const batched = { manifest, now, changes, tables: { [run.table]: changes }, lines: [run.bytes], firstId, lastId }
        const { batch, marked } = yield* storeBatch(tx, batched)
        if (marked !== run.lines) return yield* new Moved()
        return { batches: 1, changes: run.lines, batch, isMore }
      }),
    )
  }).pipe(Effect.catchTag("Moved", () => Effect.succeed(null)))
