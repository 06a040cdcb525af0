/**
 * The prints of a school's rows: SQL that gives a row as the JSON text in which the feed holds it, so that both sides
 * print the same bytes. A value that its column's kind does not allow prints as no value of head office ever does.
 */
import { parseLocalKey, wireKey } from "../model/key.ts"
import { Hasher, keyName } from "../model/digest.ts"
import type { Table } from "../model/table.ts"
import { cellToWire, isRefused, type Kind } from "../model/value.ts"
import { ident } from "./client.ts"

/** Columns of one piece: SQLite takes expressions of at most 1,000 levels, and each `||` is one. */
const PIECE_COLUMNS = 200

/** `?` and the type: no JSON value. */
const other = (value: string): string => `'?' || typeof(${value}) || quote(CAST(${value} AS BLOB))`
const when = (value: string, type: string, text: string): string =>
  `CASE typeof(${value}) WHEN '${type}' THEN ${text} WHEN 'null' THEN 'null' ELSE ${other(value)} END`

const jsonSql = (kind: Exclude<Kind, "float">, value: string): string => {
  switch (kind) {
    case "int":
      return when(value, "integer", value)
    case "bigint":
      return when(value, "integer", `'"' || ${value} || '"'`)
    case "bool":
      return `CASE WHEN ${value} IS NULL THEN 'null' WHEN typeof(${value}) = 'integer' AND ${value} IN (0, 1) THEN iif(${value}, 'true', 'false') ELSE ${other(value)} END`
    case "bytea":
      return when(value, "blob", `'"' || lower(hex(${value})) || '"'`)
    case "numeric":
    case "text":
      return when(value, "text", `json_quote(${value})`)
  }
}

/** NaN and the infinities are text; a whole number that a program wrote is the same number. */
const floatSql = (value: string): string =>
  `CASE typeof(${value}) WHEN 'text' THEN CAST(json_quote(${value}) AS BLOB) WHEN 'integer' THEN CAST(${value} AS REAL) ELSE ${value} END`

/** Rows of one table as `tx.prints` reads them. Numbers that SQLite would round in text stand as pieces of their own. */
export const printSql = (table: Table, tbl: number): string => {
  const kinds = new Map(table.columns.map((column) => [column.name, column.kind]))
  const value = (name: string) => `t.${ident(name)}`
  const keys = table.key.map((name) => jsonSql((kinds.get(name) ?? "text") as Exclude<Kind, "float">, value(name)))
  const pieces: Array<string> = []
  let open = "'['"
  table.columns.forEach(({ name, kind }, i) => {
    if (i > 0) open += " || ','"
    if (kind === "float") {
      pieces.push(`CAST(${open} AS BLOB)`, floatSql(value(name)))
      open = "''"
    } else open += ` || ${jsonSql(kind, value(name))}`
    if (kind !== "float" && i % PIECE_COLUMNS === PIECE_COLUMNS - 1) {
      pieces.push(`CAST(${open} AS BLOB)`)
      open = "''"
    }
  })
  pieces.push(`CAST(${open} || ']' AS BLOB)`)
  return `SELECT ${tbl}, CAST('[' || ${keys.join(" || ',' || ")} || ']' AS BLOB), ${pieces.join(", ")} FROM ${ident(table.local)} t`
}

/** Wire key of a local key; null when head office can have no such key. */
export const wireKeyOf = (table: Table, local: string): string | null => {
  const cells = parseLocalKey(local)
  if (cells === null || cells.length !== table.key.length) return null
  const wires = table.key.map((name, i) => cellToWire(table.columns.find((column) => column.name === name)?.kind ?? "text", cells[i] ?? null))
  return wires.some(isRefused) ? null : wireKey(wires as ReadonlyArray<Exclude<(typeof wires)[number], object> | null>)
}

const utf8 = new TextEncoder()

/** How prints name a key. */
export const nameOfKey = (key: string): string => {
  const words = new Uint32Array(2)
  new Hasher().start().bytes(utf8.encode(key)).finish(words, 0)
  return keyName(words, 0)
}
