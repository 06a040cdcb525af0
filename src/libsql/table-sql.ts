/** A table of the manifest as SQL of the school's file (pure). */
import { randomKeySql, rangedColumn } from "../model/key-range.ts"
import { type Column, isWithin, type Manifest, type Table } from "../model/table.ts"
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

export const columnSql = (column: Column, isAdded: boolean): string => {
  const hasDefault = column.default !== undefined && column.default !== null && !column.generated
  // A column that is added to rows that exist can only be NOT NULL with a default.
  const notNull = column.notNull && !column.generated && (!isAdded || hasDefault)
  return `${ident(column.name)} ${sqliteType(column.kind)}${notNull ? " NOT NULL" : ""}${hasDefault ? ` DEFAULT ${literal(column.kind, column.default ?? null)}` : ""}`
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
  return table.columns.map((column) =>
    column.name === ranged && keys !== undefined
      ? `${columnSql({ ...column, default: null }, false)} DEFAULT (${randomKeySql(keys)})`
      : columnSql(column, false),
  )
}

export const createTable = (table: Table, manifest: Given): string =>
  tableSql(table.local, [
    ...columnsSql(table, manifest),
    `PRIMARY KEY (${list(table.key)})`,
    ...table.unique.map((columns) => `UNIQUE (${list(columns)})`),
    ...parentsOf(table, manifest),
  ])
