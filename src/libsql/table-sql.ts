/** A table of the manifest as SQL of the school's file (pure). */
import { randomKeySql, rangedColumn } from "../model/key-range.ts"
import { type Column, type ComputedDefault, isWithin, type Manifest, type Table } from "../model/table.ts"
import { type Kind, sqliteType, type Wire } from "../model/value.ts"
import { ident } from "./client.ts"

export const literal = (kind: Kind, value: Wire): string =>
  value === null
    ? "NULL"
    : typeof value === "boolean"
      ? value
        ? "1"
        : "0"
      : typeof value === "number" || kind === "bigint"
        ? String(value)
        : kind === "bytea"
          ? `X'${value}'`
          : `'${value.replaceAll("'", "''")}'`

const text = (parts: string): string => `(${parts})`
const hex = (bytes: number): string => `lower(hex(randomblob(${bytes})))`
/** The bits of a uuid that tell its variant: 8, 9, a or b. */
const VARIANT = "substr('89ab', 1 + (random() & 3), 1)"
const UUID_TAIL = `${VARIANT} || substr(${hex(2)}, 2) || '-' || ${hex(6)}`

/**
 * An SQLite expression for what Postgres would have computed, spelled as Postgres prints it: no zeros at a fraction's end. SQLite
 * knows milliseconds.
 */
export const computedSql = (computed: ComputedDefault): string => {
  if (computed.value === "uuid4") return text(`${hex(4)} || '-' || ${hex(2)} || '-4' || substr(${hex(2)}, 2) || '-' || ${UUID_TAIL}`)
  if (computed.value === "uuid7") {
    const ms = "printf('%012x', CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER))"
    return text(`substr(${ms}, 1, 8) || '-' || substr(${ms}, 9) || '-7' || substr(${hex(2)}, 2) || '-' || ${UUID_TAIL}`)
  }
  const { value, as, digits } = computed
  const isZoned = as === "timestamptz" || as === "timetz"
  const zone = isZoned || value === "utc" ? "" : ", 'localtime'"
  if (as === "date") return text(`strftime('%Y-%m-%d', 'now'${zone})`)
  const day = as === "timestamp" || as === "timestamptz" ? "%Y-%m-%d " : ""
  const whole = `strftime('${day}%H:%M:%${digits === 0 ? "S" : "f"}', 'now'${zone})`
  const seconds = (day === "" ? 0 : 11) + 8
  const cut = digits > 0 && digits < 3 ? `substr(${whole}, 1, ${seconds + 1 + digits})` : whole
  const trimmed = digits === 0 ? whole : `rtrim(rtrim(${cut}, '0'), '.')`
  return text(isZoned ? `${trimmed} || '+00'` : trimmed)
}

/** What the file fills in by itself; null = nothing. SQLite adds a column to rows that are there only with a constant. */
export const defaultSql = (column: Column, isAdded = false): string | null =>
  column.generated
    ? null
    : column.default !== undefined && column.default !== null
      ? literal(column.kind, column.default)
      : column.computed !== undefined && !isAdded
        ? computedSql(column.computed)
        : null

export const columnSql = (column: Column, isAdded: boolean): string => {
  const own = defaultSql(column, isAdded)
  // A column that is added to rows that exist can only be NOT NULL with a default.
  const notNull = column.notNull && !column.generated && (!isAdded || own !== null)
  return `${ident(column.name)} ${sqliteType(column.kind)}${notNull ? " NOT NULL" : ""}${own === null ? "" : ` DEFAULT ${own}`}`
}

const list = (names: ReadonlyArray<string>): string => names.map(ident).join(", ")

/** Foreign keys are declared only where the parent's audience contains the child's. */
export const parentsOf = (table: Table, manifest: Pick<Manifest, "tables">): ReadonlyArray<string> =>
  table.references.flatMap((reference) => {
    const parent = manifest.tables.find((t) => t.name === reference.table)
    if (parent === undefined || parent.direction === "up" || !isWithin(table, parent, reference)) return []
    const isUnique = [parent.key, ...parent.unique].some(
      (columns) => columns.length === reference.to.length && columns.every((name) => reference.to.includes(name)),
    )
    return isUnique ? [`FOREIGN KEY (${list(reference.columns)}) REFERENCES ${ident(parent.local)} (${list(reference.to)})`] : []
  })

export const tableSql = (name: string, parts: ReadonlyArray<string>): string => `CREATE TABLE ${ident(name)} (\n  ${parts.join(",\n  ")}\n)`

type Given = Pick<Manifest, "tables"> & Partial<Pick<Manifest, "school">>

/** Of a table that is made: bigint keys that schools give out have a random default inside this school's range. */
export const columnsSql = (table: Table, manifest: Given): ReadonlyArray<string> => {
  const keys = manifest.school?.keys
  const ranged = keys === undefined ? null : rangedColumn(table)
  return table.columns.map((column) => {
    if (column.name !== ranged || keys === undefined) return columnSql(column, false)
    const { default: _constant, computed: _computed, ...plain } = column
    return `${columnSql(plain, false)} DEFAULT (${randomKeySql(keys)})`
  })
}

/** `own`: further columns, of a program's own. */
export const createTable = (table: Table, manifest: Given, own: ReadonlyArray<string> = []): string =>
  tableSql(table.local, [
    ...columnsSql(table, manifest),
    ...own,
    `PRIMARY KEY (${list(table.key)})`,
    ...table.unique.map((columns) => `UNIQUE (${list(columns)})`),
    ...parentsOf(table, manifest),
  ])
