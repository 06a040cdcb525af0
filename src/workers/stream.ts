/** The school's local stream of writes, as worker modules get it: events after a position, with their rows as they stand now. */
import * as Effect from "effect/Effect"
import { readCell, safely } from "../libsql/cells.ts"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"
import { localKeyOf, parseLocalKey } from "../model/key.ts"
import type { Cell } from "../model/value.ts"
import type { WorkerEvent, WorkerOp, WorkerRow, WorkerValue } from "./define.ts"

const lenient = new TextDecoder("utf-8", { ignoreBOM: true })

const toValue = (raw: Cell): WorkerValue => {
  const cell = readCell(raw)
  if (typeof cell === "object" && cell !== null && "invalid" in cell) return lenient.decode(cell.invalid)
  return typeof cell === "bigint" && cell >= -9007199254740991n && cell <= 9007199254740991n ? Number(cell) : cell
}

const keyValue = (cell: Cell): WorkerValue => (typeof cell === "bigint" && BigInt(Number(cell)) === cell ? Number(cell) : cell)

/** What a module calls a table, as the file calls it. */
export const localName = (table: string): string => (table.startsWith("public.") ? table.slice(7) : table.replace(".", "_"))

/** A row by the cells of its key; null when there is none, or no such table. */
export const readRow = (tx: Tx, table: string, key: ReadonlyArray<Cell>): Effect.Effect<WorkerRow | null, LibsqlError> =>
  Effect.gen(function* () {
    const columns = yield* tx.all<{ name: string; pk: number }>("SELECT name, pk FROM pragma_table_info(?)", [table])
    const keyColumns = columns.filter((column) => column.pk > 0).sort((a, b) => a.pk - b.pk)
    if (keyColumns.length === 0 || keyColumns.length !== key.length) return null
    const [cells] = yield* tx.values(
      `SELECT ${columns.map(({ name }) => safely(ident(name))).join(", ")} FROM ${ident(table)} WHERE ${keyColumns.map(({ name }) => `${ident(name)} = ?`).join(" AND ")}`,
      key,
    )
    return cells === undefined ? null : Object.fromEntries(columns.map(({ name }, i) => [name, toValue(cells[i] ?? null)]))
  })

export interface Slice {
  readonly events: ReadonlyArray<WorkerEvent>
  /** Position after these events, whatever lay between them included. */
  readonly cursor: number
}

/** At most `limit` events after `cursor` of the tables and operations in `on`. */
export const readSlice = (tx: Tx, on: ReadonlyMap<string, ReadonlySet<WorkerOp>>, cursor: number, limit: number): Effect.Effect<Slice, LibsqlError> =>
  Effect.gen(function* () {
    const wanted = [...on].flatMap(([table, ops]) => [...ops].map((op) => `${table} ${op}`))
    const found = yield* tx.all<{ id: number; tbl: string; op: WorkerOp; key: Uint8Array }>(
      `SELECT id, tbl, op, CAST(key AS BLOB) AS key FROM schoolbus_stream
        WHERE id > ? AND tbl || ' ' || op IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?`,
      [cursor, JSON.stringify(wanted), limit],
    )
    const [newest] = yield* tx.all<{ id: number | null }>("SELECT max(id) AS id FROM schoolbus_stream")
    const rows = new Map<string, WorkerRow | null>()
    const events: Array<WorkerEvent> = []
    for (const { id, tbl, op, key: bytes } of found) {
      const text = lenient.decode(bytes)
      const cells = parseLocalKey(text)
      const name = `${tbl} ${cells === null ? text : localKeyOf(cells)}`
      if (!rows.has(name)) rows.set(name, cells === null ? null : yield* readRow(tx, tbl, cells))
      events.push({ id, table: tbl, op, key: (cells ?? [text]).map(keyValue), row: rows.get(name) ?? null })
    }
    return { events, cursor: found.length === limit ? (found.at(-1)?.id ?? cursor) : Math.max(cursor, newest?.id ?? cursor) }
  })
