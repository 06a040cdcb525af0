/**
 * A row's key in its two texts. The wire key is a JSON array of wire values (`["b2f…"]`, `[5,"A"]`), the same bytes in
 * feed, link and ledger. The local key is what `quote()` prints in SQLite, joined with commas (`'b2f…'`, `5,'A'`):
 * triggers can compute it with stock functions.
 */
import type { Table } from "./table.ts"
import { bytesToHex, type Cell, hexToBytes, type Wire, wireToCell } from "./value.ts"

export const wireKey = (values: ReadonlyArray<Wire>): string => JSON.stringify(values)

/** As SQLite's `quote()` prints one value; keys are never REAL (refused at start). */
export const quoteCell = (cell: Cell): string => {
  if (cell === null) return "NULL"
  if (typeof cell === "string") return `'${cell.replaceAll("'", "''")}'`
  if (cell instanceof Uint8Array) return `X'${bytesToHex(cell).toUpperCase()}'`
  return String(cell)
}

export const localKeyOf = (cells: ReadonlyArray<Cell>): string => cells.map(quoteCell).join(",")

/** Wire key values of a table -> local key. */
export const localKey = (table: Table, values: ReadonlyArray<Wire>): string =>
  localKeyOf(table.key.map((name, i) => wireToCell(table.columns.find((c) => c.name === name)?.kind ?? "text", values[i] ?? null)))

/** A local key back into its cells; null when it is not what `quote()` prints. */
export const parseLocalKey = (key: string): ReadonlyArray<Cell> | null => {
  const cells: Array<Cell> = []
  const literal = /(?:'((?:[^']|'')*)'|X'([0-9A-F]*)'|(-?\d+)|(NULL))(?:,|$)/gy
  while (literal.lastIndex < key.length) {
    const match = literal.exec(key)
    if (match === null) return null
    const [, text, blob, integer] = match
    cells.push(
      text !== undefined ? text.replaceAll("''", "'")
      : blob !== undefined ? hexToBytes(blob)
      : integer !== undefined ? BigInt(integer)
      : null,
    )
  }
  return cells
}
