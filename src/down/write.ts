/** Rows and truncations of an append -> the entries of the feed. */
import * as Effect from "effect/Effect"
import type { LibsqlError } from "../libsql/client.ts"
import { type Slab, slabRow } from "../libsql/slab.ts"
import type { Cell } from "../model/value.ts"
import type { Append, FeedTable } from "./entry.ts"
import { gather } from "./gather.ts"
import { heldIn, isWrittenBySchools, keepWas } from "./held.ts"
import type { OpenAppend } from "./open-append.ts"
import type { Routing } from "./route.ts"

/** A row of an append: audience, seq and time, then its key and its body. */
const appended = slabRow(3)
const upsert = (more: string): string => `INSERT INTO entry (audience, class, seq, tbl, key, body, at, born)
  SELECT ${appended.number(0)}, ?4, ${appended.number(1)}, ?5, ${appended.first}, ${appended.second}, ${appended.number(2)}, ${appended.number(1)}
    FROM ${appended.from} WHERE true
  ON CONFLICT (tbl, key, audience) DO UPDATE SET class = excluded.class, seq = excluded.seq, body = excluded.body, at = excluded.at${more}`
const UPSERT = upsert("")
/** ?6: a JSON object, audience -> what its school has. */
const UPSERT_KEEPING = upsert(`, ${keepWas(heldIn("?6"), "excluded.seq")}`)

const NONE_HELD = "{}"

export interface Writer {
  readonly rows: (appends: ReadonlyArray<Append>) => Effect.Effect<void, LibsqlError>
  /** `at`: microseconds since 1970. */
  readonly truncate: (table: FeedTable, at: number) => Effect.Effect<void, LibsqlError>
}

export const makeWriter = (open: OpenAppend, routing: Routing): Writer => {
  const { tx } = open
  const write = Effect.fnUntraced(function* (appends: ReadonlyArray<Append>) {
    const gathered = gather(appends, open, open.numberOf, open.touch)
    const { puts, careful, completed, rewritten, spreads, deletes, timed, replaced } = gathered
    open.seq = gathered.seq
    open.now = gathered.now
    if (gathered.isOfHub) open.hubRowsChanged = true
    yield* open.numbers.store(tx)
    // Few of the rows that were written again were somewhere else before.
    const moved =
      rewritten.length === 0
        ? []
        : yield* tx.all<{ i: number }>(
            `SELECT DISTINCT j.key AS i FROM json_each(?) j CROSS JOIN entry e ON e.tbl = j.value->>0 AND e.key = j.value->>1
              WHERE e.body IS NOT NULL AND e.audience <> j.value->>2`,
            [JSON.stringify(rewritten.map(([, , id, key, no]) => [Number(id), key, Number(no)]))],
          )
    const moves = moved.map(({ i }) => rewritten[i] as Array<Cell>)
    let heldHere = NONE_HELD
    const isKept = new Set([...open.tables.values()].flatMap((table) => (isWrittenBySchools(table) ? [table.id] : [])))
    // Whoever held a row that is deleted or moved must be woken.
    const gone = [...deletes, ...moves, ...spreads].map((row) => [row[2], row[3]])
    if (gone.length > 0) {
      const holders = yield* tx.all<{ audience: number }>(
        `SELECT DISTINCT e.audience FROM json_each(?) j CROSS JOIN entry e ON e.tbl = j.value->>0 AND e.key = j.value->>1 WHERE e.body IS NOT NULL`,
        [JSON.stringify(gone.map(([id, key]) => [Number(id), key]))],
      )
      for (const { audience } of holders) open.touch(audience)
      heldHere = open.heldText(holders.map(({ audience }) => audience))
    }
    yield* tx.many("DELETE FROM column_time WHERE tbl = ? AND key = ?", timed)
    const others = { deletes: "", moves: "AND audience <> ?", spreads: "AND audience NOT IN (SELECT value FROM json_each(?))" }
    for (const [kind, leaving] of [
      ["deletes", deletes],
      ["moves", moves],
      ["spreads", spreads],
    ] as const) {
      if (open.written > 0)
        yield* tx.many(
          `DELETE FROM entry WHERE tbl = ? AND key = ? AND body IS NOT NULL AND born > ? ${others[kind]}`,
          leaving.map(([, , id = null, key = null, ...rest]) => [id, key, BigInt(open.ended), ...rest]),
        )
      yield* tx.many(
        `UPDATE entry SET ${keepWas(heldIn("?3"), "?1")}, body = NULL, seq = ?1, at = ?2 WHERE tbl = ?4 AND key = ?5 AND body IS NOT NULL ${others[kind]}`,
        leaving.map(([to = null, at = null, id = null, ...rest]) => [to, at, isKept.has(Number(id)) ? heldHere : NONE_HELD, id, ...rest]),
      )
    }
    open.written += appends.length
    const put = (table: FeedTable, rows: Slab, more = "") =>
      replaced.size > 0 && isWrittenBySchools(table)
        ? tx.bulk(`${UPSERT_KEEPING}${more}`, rows, [open.classOf(table), table.id, open.heldText(replaced)])
        : tx.bulk(`${UPSERT}${more}`, rows, [open.classOf(table), table.id])
    for (const [table, slab] of puts) yield* put(table, slab)
    // What only completes columns that nobody is told of yet is no news.
    yield* tx.many("UPDATE entry SET body = ? WHERE tbl = ? AND key = ? AND substr(body, 1, length(?)) = ?", completed)
    for (const [table, slab] of careful) yield* put(table, slab, " WHERE entry.body IS NOT excluded.body")
  })
  const rows = Effect.fnUntraced(function* (appends: ReadonlyArray<Append>) {
    if (open.routes.size === 0) return yield* write(appends)
    const byTable = Map.groupBy(appends, ({ table }) => (open.routes.has(table.id) ? table : null))
    const routed = [...byTable].flatMap(([table, own]) => (table === null ? [] : [[table, own] as const]))
    yield* write(byTable.get(null) ?? [])
    for (const [table, own] of routed.sort(([a], [b]) => a.level - b.level)) yield* write(yield* routing.place(table, own))
  })
  const truncate = Effect.fnUntraced(function* (table: FeedTable, at: number) {
    open.now = at
    if (table.hubOnly) open.hubRowsChanged = true
    yield* routing.clear(table)
    if (open.written > 0) yield* tx.run("DELETE FROM entry WHERE tbl = ? AND born > ?", [table.id, open.ended])
    const [count] = yield* tx.all<{ n: number }>("SELECT count(*) AS n FROM entry WHERE tbl = ? AND body IS NOT NULL", [table.id])
    const holders = yield* tx.all<{ audience: number }>("SELECT DISTINCT audience FROM entry WHERE tbl = ? AND body IS NOT NULL", [table.id])
    yield* tx.run("DELETE FROM column_time WHERE tbl = ?", [table.id])
    yield* tx.run(
      `UPDATE entry SET ${keepWas(heldIn("?4"), "?2 + r.n")}, body = NULL, at = ?1, seq = ?2 + r.n
         FROM (SELECT audience AS a, key AS k, row_number() OVER () AS n FROM entry WHERE tbl = ?3 AND body IS NOT NULL) r
        WHERE tbl = ?3 AND key = r.k AND audience = r.a`,
      [at, open.seq, table.id, isWrittenBySchools(table) ? open.heldText(holders.map(({ audience }) => audience)) : NONE_HELD],
    )
    open.seq += count?.n ?? 0
    for (const { audience } of holders) open.touch(audience)
  })
  return { rows, truncate }
}
