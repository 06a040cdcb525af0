/** Entries that take new seqs although no row of theirs was written: a table that is loaded, another class, a row sent once more. */
import * as Effect from "effect/Effect"
import type { LibsqlError } from "../libsql/client.ts"
import { MISSES, type Table } from "../model/table.ts"
import { EVERY_SCHOOL } from "./audience.ts"
import { type FeedTable, isUntold, rowKey, untoldFrom } from "./entry.ts"
import { keepWas } from "./held.ts"
import type { OpenAppend } from "./open-append.ts"
import type { Routing } from "./route.ts"
import { fillToken, rememberNames } from "./shape.ts"

export interface Renewer {
  /** Moves a table's entries to new seqs at the head, in their order, under another class. */
  readonly renumber: (tableId: number, cls: number) => Effect.Effect<void, LibsqlError>
  /** Places all rows of the table anew. */
  readonly reroute: (table: FeedTable) => Effect.Effect<void, LibsqlError>
  /** A table's first copy is complete: its rows take new seqs and enter the cuts. */
  readonly loaded: (table: FeedTable) => Effect.Effect<void, LibsqlError>
  /**
   * Sends rows to a school once more: what it may see of them takes new seqs, of what it may not see a tombstone stands
   * for it. Entries beyond `seq` are on their way anyway. Answers how many of each.
   */
  readonly again: (
    school: string,
    keys: ReadonlyArray<readonly [table: FeedTable, key: string]>,
    seq: number,
  ) => Effect.Effect<{ readonly rows: number; readonly gone: number }, LibsqlError>
}

/** The table as it is told once it is compared: schools ask for the rows that they wrote while it was not heard. */
const withMissed = ({ table, since }: Pick<FeedTable, "table" | "since">): Table => {
  if (since === null) return table
  const { missed = [] } = table
  return { ...table, missed: [...missed, { no: (missed.at(-1)?.no ?? 0) + 1, from: since }].slice(-MISSES) }
}

export const makeRenewer = (open: OpenAppend, routing: Routing): Renewer => {
  const { tx } = open
  const newSeqs = Effect.fnUntraced(function* (tableId: number, cls: number, where: string, args: ReadonlyArray<string>) {
    const [count] = yield* tx.all<{ n: number }>(`SELECT count(*) AS n FROM entry WHERE tbl = ?1 ${where}`, [tableId, ...args])
    yield* tx.run(
      `UPDATE entry SET class = ?, seq = ? + r.n
         FROM (SELECT audience AS a, key AS k, row_number() OVER (ORDER BY seq) AS n FROM entry WHERE tbl = ? ${where}) r
        WHERE tbl = ? AND key = r.k AND audience = r.a`,
      [cls, open.seq, tableId, ...args, tableId],
    )
    open.seq += count?.n ?? 0
    for (const row of yield* tx.all<{ audience: number }>("SELECT DISTINCT audience FROM entry WHERE tbl = ?", [tableId])) open.touch(row.audience)
  })
  const renumber = (tableId: number, cls: number) => newSeqs(tableId, cls, "", [])
  /** Rows whose new columns hold something else than what a school fills in by itself go down again. */
  const resend = (table: FeedTable) => {
    const first = untoldFrom(table)
    if (first === -1) return Effect.void
    const filled = `,${table.table.columns.slice(first).map(fillToken).join(",")}]`
    return newSeqs(table.id, open.classOf(table), "AND substr(body, -length(?)) <> ?", [filled, filled])
  }
  /** By which rule its rows stand where they are. */
  const reroute = Effect.fnUntraced(function* (table: FeedTable) {
    yield* routing.reroute(table)
    yield* open.numbers.store(tx)
    yield* tx.run("UPDATE tables SET audience = ? WHERE id = ?", [JSON.stringify(table.table.audience), table.id])
  })
  const loaded = Effect.fnUntraced(function* (read: FeedTable) {
    // As it is by now: it may have been loaded since the stream was opened.
    const table = open.tables.get(read.id) ?? read
    if (open.loading.delete(table.id)) {
      // Tombstones too: nobody has been sent its rows, but schools show those that they pushed.
      yield* renumber(table.id, open.classOf(table))
    } else if (isUntold(table)) yield* resend(table)
    else if (!table.recheck && table.since === null) return
    const { generation } = table.shape.told
    const [hub] = yield* tx.all<{ manifest: number }>("SELECT manifest FROM hub")
    // Rows that are named in another way all go down anyway.
    const told: Table = generation === table.table.generation ? withMissed(table) : { ...table.table, keyedSince: (hub?.manifest ?? 0) + 1 }
    const shape = rememberNames(table.shape, { ...table.shape, table: told, told }, (hub?.manifest ?? 0) + 1)
    yield* tx.run("UPDATE tables SET status = ?, after = NULL, recheck = 0, since = NULL, shape = ? WHERE id = ?", [
      table.table.direction === "up" ? "hidden" : "ready",
      JSON.stringify(shape),
      table.id,
    ])
    open.ready.set(table.id, shape)
    for (const id of [...open.frozen]) {
      const other = open.tables.get(id)
      if (other === undefined || open.linksOf(id).some((link) => open.loading.has(link))) continue
      open.frozen.delete(id)
      yield* reroute(other)
    }
  })
  const renew = Effect.fnUntraced(function* (rows: ReadonlyArray<{ readonly tbl: number; readonly key: string; readonly audience: number }>) {
    for (const { audience } of rows) open.touch(audience)
    yield* tx.many(
      `UPDATE entry SET ${keepWas("?5", "?1")}, seq = ?1 WHERE tbl = ?2 AND key = ?3 AND audience = ?4`,
      rows.map(({ tbl, key, audience }) => [BigInt(open.nextSeq()), BigInt(tbl), key, BigInt(audience), BigInt(open.heldBy(audience))]),
    )
  })
  const again = Effect.fnUntraced(function* (school: string, keys: ReadonlyArray<readonly [table: FeedTable, key: string]>, beyond: number) {
    const own = open.numberOf({ value: school })
    yield* open.numbers.store(tx)
    const found = yield* tx.all<{ tbl: number; key: string; audience: number; seq: number; isRow: number }>(
      `SELECT e.tbl, e.key, e.audience, e.seq, e.body IS NOT NULL AS isRow FROM json_each(?1) j
         CROSS JOIN entry e ON e.tbl = j.value->>0 AND e.key = j.value->>1 AND e.audience IN (?2, ?3)`,
      [JSON.stringify(keys.map(([table, key]) => [table.id, key])), EVERY_SCHOOL, own],
    )
    const isComing = new Set(found.filter((entry) => entry.seq > beyond || entry.isRow === 1).map((entry) => rowKey(entry.tbl, entry.key)))
    const rows = found.filter((entry) => entry.isRow === 1 && entry.seq <= beyond)
    const gone = keys.filter(([table, key]) => !open.loading.has(table.id) && !table.hubOnly && !isComing.has(rowKey(table.id, key)))
    yield* renew(rows)
    yield* tx.many(
      `INSERT INTO entry (audience, class, seq, tbl, key, body, at, born) VALUES (?, ?, ?, ?, ?, NULL, 0, 0)
         ON CONFLICT (tbl, key, audience) DO UPDATE SET seq = excluded.seq, born = 0`,
      gone.map(([table, key]) => [BigInt(own), BigInt(open.classOf(table)), BigInt(open.nextSeq()), BigInt(table.id), key]),
    )
    if (gone.length > 0) open.touch(own)
    return { rows: rows.length, gone: gone.length }
  })
  return { renumber, reroute, loaded, again }
}
