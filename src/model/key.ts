/**
 * A row's key in its two texts. The wire key is a JSON array of wire values (`["b2f…"]`, `[5,"A"]`), the same bytes in
 * feed, link and ledger. The local key is a list of SQL literals as `quote()` prints them (`'b2f…'`, `5,'A'`), which
 * triggers compute with stock functions. It is always printable ASCII: any other text stands as `CAST(X'c3a9' AS TEXT)`, so
 * that what a program wrote (damaged UTF-8, a NUL, which ends a text for `quote()`) can be read safely and is told apart.
 */
import type { Table } from "./table.ts"
import { bytesToHex, type Cell, hexToBytes, type Wire, wireToCell } from "./value.ts"

export const wireKey = (values: ReadonlyArray<Wire>): string => JSON.stringify(values)

const utf8 = new TextEncoder()

/** As `localKeySql` computes it of one value; keys are never REAL (refused at start). */
export const quoteCell = (cell: Cell): string => {
  if (cell === null) return "NULL"
  if (typeof cell === "string") return /^[ -~]*$/.test(cell) ? `'${cell.replaceAll("'", "''")}'` : `CAST(${quoteCell(utf8.encode(cell))} AS TEXT)`
  if (cell instanceof Uint8Array) return `X'${bytesToHex(cell).toUpperCase()}'`
  return String(cell)
}

export const localKeyOf = (cells: ReadonlyArray<Cell>): string => cells.map(quoteCell).join(",")

/** Wire key values of a table -> local key. */
export const localKey = (table: Table, values: ReadonlyArray<Wire>): string =>
  localKeyOf(table.key.map((name, i) => wireToCell(table.columns.find((c) => c.name === name)?.kind ?? "text", values[i] ?? null)))

/** The local key as an SQL expression; `prefix` is `"NEW."`, `"t."` or empty. */
export const localKeySql = (table: Pick<Table, "key">, prefix: string): string =>
  table.key
    .map((name) => {
      const value = `${prefix}"${name.replaceAll('"', '""')}"`
      // length() counts characters and stops at NUL, so a text with one is shorter than its bytes.
      const isPlain = `typeof(${value}) <> 'text' OR ${value} NOT GLOB '*[^ -~]*' AND length(${value}) = length(CAST(${value} AS BLOB))`
      return `CASE WHEN ${isPlain} THEN quote(${value}) ELSE 'CAST(' || quote(CAST(${value} AS BLOB)) || ' AS TEXT)' END`
    })
    .join(" || ',' || ")

const literal = /(?:'((?:[^']|'')*)'|CAST\(X'((?:[0-9A-F]{2})*)' AS TEXT\)|X'((?:[0-9A-F]{2})*)'|(-?\d+)|(NULL))(?:,(?!$)|$)/y

/** A local key back into its cells; null when it is none, or one that is not valid text. */
export const parseLocalKey = (key: string): ReadonlyArray<Cell> | null => {
  const cells: Array<Cell> = []
  literal.lastIndex = 0
  while (literal.lastIndex < key.length) {
    const match = literal.exec(key)
    if (match === null) return null
    const [, plain, text, blob, integer] = match
    if (plain !== undefined) cells.push(plain.replaceAll("''", "'"))
    else if (text !== undefined) {
      try {
        cells.push(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(hexToBytes(text)))
      } catch {
        return null
      }
    } else cells.push(blob !== undefined ? hexToBytes(blob) : integer !== undefined ? BigInt(integer) : null)
  }
  return cells
}
