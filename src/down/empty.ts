/**
 * Tables that left the manifest are emptied: head office no longer says that this school may have their rows. Not before the
 * school's own pending changes of them have got their verdicts; then some rows at a time.
 */
import * as Effect from "effect/Effect"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"

const ROWS_AT_ONCE = 1_000

/** One step, in a transaction with capture off; answers whether there is more to do. */
export const emptyGone = (tx: Tx): Effect.Effect<boolean, LibsqlError> =>
  Effect.gen(function* () {
    const [table] = yield* tx.all<{ id: number; local: string }>(
      "SELECT id, local FROM schoolbus_tables t WHERE gone = 1 AND NOT EXISTS (SELECT 1 FROM changes c WHERE c.tbl = t.id) LIMIT 1",
    )
    if (table === undefined) return false
    const key = yield* tx.all<{ name: string }>(
      "SELECT name FROM pragma_table_info(?1) WHERE pk > 0 AND EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE) ORDER BY pk",
      [table.local],
    )
    if (key.length > 0) {
      const names = key.map(({ name }) => ident(name)).join(", ")
      const from = ident(table.local)
      const removed = yield* tx.run(`DELETE FROM ${from} WHERE (${names}) IN (SELECT ${names} FROM ${from} LIMIT ${ROWS_AT_ONCE})`)
      if (removed >= ROWS_AT_ONCE) return true
    }
    for (const from of ["schoolbus_behind", "schoolbus_hold", "schoolbus_met", "schoolbus_replaced"])
      yield* tx.run(`DELETE FROM ${from} WHERE tbl = ?`, [table.id])
    yield* tx.run("DELETE FROM schoolbus_tables WHERE id = ?", [table.id])
    return true
  })
