/**
 * The end of a shield where nothing is left to decide: batches of which head office carried out every change as it was. Their
 * rows wait for nothing any more but for other changes of them, or for what was kept behind; those few are released like the rows
 * of other batches. What comes for all the others may be shown like any row: it is written also when it is what stands there, which a
 * program's own trigger would take for an edit. Rows of tables with such triggers are released, so they are not written again.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError } from "../libsql/client.ts"
import { type Delivery, idOf, type Row } from "./delivery.ts"
import type { Touched } from "./settle.ts"

/** Ledger rows of batches that may end so; one that gave rows another key may not. */
const cleanOf = (delivery: Delivery, ledger: ReadonlyArray<Row>): ReadonlyArray<Row> =>
  ledger.filter((row) => row["incarnation"] === delivery.incarnation && row["exceptions"] === "[]")

const CLEAN = `SELECT b.number, b.hash FROM schoolbus_batch b WHERE b.settled_at IS NULL AND b.number IN (SELECT value FROM json_each(?))
   AND NOT EXISTS (SELECT 1 FROM changes c WHERE c.batch = b.number AND c.new_key IS NOT NULL)`

const WAITING_STILL = `WITH settled AS MATERIALIZED (SELECT value AS batch FROM json_each(?1)),
   mine AS (SELECT c.tbl, c.key, c.batch FROM settled s CROSS JOIN changes c ON c.batch = s.batch),
   triggered AS MATERIALIZED (SELECT t.id FROM schoolbus_tables t JOIN sqlite_master s ON s.type = 'trigger' AND s.tbl_name = t.local COLLATE NOCASE
                               WHERE s.name NOT LIKE 'schoolbus\\_%' ESCAPE '\\')
  SELECT m.tbl, m.key, m.batch FROM mine m
   WHERE EXISTS (SELECT 1 FROM changes o WHERE o.tbl = m.tbl AND o.key = m.key AND o.batch IS NOT NULL AND o.batch NOT IN (SELECT batch FROM settled))
      OR EXISTS (SELECT 1 FROM changes o WHERE o.tbl = m.tbl AND o.new_key = m.key AND o.new_key IS NOT NULL)
      OR EXISTS (SELECT 1 FROM schoolbus_hold h WHERE h.tbl = m.tbl AND h.key = m.key)
      OR EXISTS (SELECT 1 FROM schoolbus_behind b WHERE b.tbl = m.tbl AND b.key = m.key)
      OR m.tbl IN (SELECT id FROM triggered)
   ORDER BY m.batch`

/** Answers the batches that it settled; rows of them that still wait for something are added to `touched`. null: batches with such rows are left. */
export const settleClean = (
  delivery: Delivery,
  ledger: ReadonlyArray<Row>,
  touched: Touched | null,
): Effect.Effect<ReadonlyArray<number>, LibsqlError> =>
  Effect.gen(function* () {
    const { tx } = delivery
    const clean = new Map(cleanOf(delivery, ledger).map((row) => [Number(row["batch"]), row["hash"]]))
    if (clean.size === 0) return []
    const waiting = yield* tx.all<{ number: number; hash: string }>(CLEAN, [JSON.stringify([...clean.keys()])])
    let batches = waiting.flatMap(({ number, hash }) => (clean.get(number) === hash ? [number] : []))
    let numbers = "[]"
    for (let isDone = false; !isDone; ) {
      if (batches.length === 0) return []
      numbers = JSON.stringify(batches)
      const still = yield* tx.all<{ tbl: number; key: string; batch: number }>(WAITING_STILL, [numbers])
      if (touched !== null) for (const { tbl, key, batch } of still) touched.set(idOf(tbl, key), { tbl, key, batch })
      // Rows of one that is left wait still, also those that it shares with the others.
      isDone = touched !== null || still.length === 0
      if (!isDone) batches = batches.filter((number) => !still.some(({ batch }) => batch === number))
    }
    yield* tx.ahead("DELETE FROM changes WHERE batch IN (SELECT value FROM json_each(?))", [numbers])
    yield* tx.ahead(
      `UPDATE schoolbus_batch SET settled_at = ?, settled_after = (SELECT seq FROM schoolbus_state), exceptions = '[]'
        WHERE number IN (SELECT value FROM json_each(?))`,
      [delivery.now, numbers],
    )
    return batches
  })
