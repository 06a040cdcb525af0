/**
 * Tables of the manifest that the file cannot hold as they stand: a program altered ours, or made one of the same name.
 * Such a table pauses alone. Nothing is written into it and none of our triggers stand on it; what comes for it is kept
 * behind, and its captured writes wait with batch 0, which no push takes and every shield counts. Once it fits again, its
 * gap is compared with head office.
 */
import * as Effect from "effect/Effect"
import { lookAnew, OPEN } from "./changes.ts"
import type { LibsqlError, Tx } from "./client.ts"
import type { Misfit } from "./shape.ts"

export interface Unfit extends Misfit {
  /** `"public.students"` */
  readonly name: string
  /** 1: a program's own table with rows, which were never synced. */
  readonly taken: number
  /** 1: what came down meanwhile is not all kept behind, so that its rows here may be older than the cursor. */
  readonly torn: number
}

/** The batch of captured writes that wait for their table. */
export const WAITS = 0

export const readUnfit = (tx: Tx): Effect.Effect<ReadonlyArray<Unfit>, LibsqlError> =>
  tx.all<Unfit>("SELECT name, reason, remedy, taken, torn FROM schoolbus_unfit ORDER BY name")

/** As it stands now; what was unfit before keeps since when, and whether it is torn. */
export const noteUnfit = (tx: Tx, unfit: ReadonlyArray<Omit<Unfit, "torn">>, now: number): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const names = JSON.stringify(unfit.map(({ name }) => name))
    yield* tx.run("DELETE FROM schoolbus_unfit WHERE name NOT IN (SELECT value FROM json_each(?))", [names])
    for (const { name, reason, remedy, taken } of unfit) {
      yield* tx.run(
        `INSERT INTO schoolbus_unfit (name, reason, remedy, taken, at) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (name) DO UPDATE SET reason = excluded.reason, remedy = excluded.remedy, taken = excluded.taken`,
        [name, reason, remedy, taken, now],
      )
    }
    const waiting = "(SELECT t.id FROM schoolbus_tables t JOIN schoolbus_unfit u ON u.name = t.name)"
    // Also what was opened again elsewhere is looked for then.
    yield* tx.run(`UPDATE changes SET batch = NULL WHERE batch = ${WAITS} AND tbl NOT IN ${waiting}`)
    yield* lookAnew(tx)
    yield* tx.run(`UPDATE changes SET batch = ${WAITS} WHERE ${OPEN} AND tbl IN ${waiting}`)
  })

/** The cursor moved in a way that left rows of paused tables out. */
export const tearUnfit = (tx: Tx): Effect.Effect<number, LibsqlError> => tx.run("UPDATE schoolbus_unfit SET torn = 1")

/** Why rows for the table wait behind. */
export const unfitText = ({ reason }: Misfit): string => `the table does not fit: ${reason}`
