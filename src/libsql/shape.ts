/** Whether a table that stands in a school's file can hold what head office sends, exactly (pure). */
import { type Column, sameName, type Table } from "../model/table.ts"
import { sqliteType } from "../model/value.ts"

/** A column as `pragma_table_xinfo` tells it. */
export interface FileColumn {
  readonly name: string
  readonly type: string
  readonly notnull: number
  readonly dflt_value: string | null
  /** Position in the primary key, from 1; 0 = none. */
  readonly pk: number
  /** Not 0: computed, or hidden by a virtual table. */
  readonly hidden: number
}

export interface FileTable {
  readonly type: "table" | "view"
  readonly isVirtual: boolean
  readonly columns: ReadonlyArray<FileColumn>
}

export interface Misfit {
  readonly reason: string
  readonly remedy: string
}

type Affinity = "INTEGER" | "TEXT" | "BLOB" | "REAL" | "NUMERIC"

/** The rules of sqlite.org/datatype3.html, section 3.1, in their order. */
const affinityOf = (type: string): Affinity => {
  const upper = type.toUpperCase()
  if (upper.includes("INT")) return "INTEGER"
  if (/CHAR|CLOB|TEXT/.test(upper)) return "TEXT"
  if (upper === "" || upper.includes("BLOB")) return "BLOB"
  if (/REAL|FLOA|DOUB/.test(upper)) return "REAL"
  return "NUMERIC"
}

/** Columns of other affinities would change values as they are stored: '1.50' becomes 1.5, '007' becomes 7. */
export const canHold = (type: string, column: Pick<Column, "kind" | "type">): boolean => {
  const affinity = affinityOf(type)
  const wanted = affinityOf(sqliteType(column.kind))
  if (affinity === "BLOB" || affinity === wanted || column.kind === "bytea") return true
  if (affinity === "NUMERIC" && wanted === "INTEGER") return true
  // Whole numbers come back as INTEGER, which reads as the same number.
  if (affinity === "NUMERIC" && wanted === "REAL") return true
  // Declared DATETIME, DATE or UUID by many mappers: such text never looks like a number.
  return affinity === "NUMERIC" && column.kind === "text" && /^(timestamp|date|time|uuid)/.test(column.type)
}

export const anewRemedy = ({ local }: Pick<Table, "local">): string =>
  `Rename it (ALTER TABLE "${local}" RENAME TO "${local}_old"): it is made anew at once and filled from head office`

/** Why the table cannot be kept the same as head office's; null when it can, perhaps after columns are added. */
export const misfitOf = (table: Table, file: FileTable): Misfit | null => {
  const anew = anewRemedy(table)
  if (file.type !== "table" || file.isVirtual) return { reason: `is a ${file.isVirtual ? "virtual table" : "view"} in this file`, remedy: anew }
  const key = file.columns.filter((column) => column.pk > 0).sort((a, b) => a.pk - b.pk)
  if (key.map(({ name }) => sameName(name)).join("\0") !== table.key.map(sameName).join("\0")) {
    return {
      reason: `its key is (${key.map(({ name }) => name).join(", ")}) in this file and (${table.key.join(", ")}) at head office`,
      remedy: anew,
    }
  }
  const columns = new Map(table.columns.map((column) => [sameName(column.name), column]))
  for (const here of file.columns) {
    const column = columns.get(sameName(here.name))
    if (column === undefined) {
      if (here.notnull === 1 && here.dflt_value === null && here.hidden === 0) {
        return { reason: `its column ${here.name} must not be null, and head office has no such column to fill it from`, remedy: anew }
      }
      continue
    }
    if (here.hidden !== 0)
      return { reason: `its column ${here.name} is computed in this file, so head office's value cannot be stored`, remedy: anew }
    if (!canHold(here.type, column)) {
      return { reason: `its column ${here.name} is declared ${here.type || "without a type"} and cannot hold ${column.type} exactly`, remedy: anew }
    }
    if (here.notnull === 1 && here.pk === 0 && (!column.notNull || column.generated)) {
      return { reason: `its column ${here.name} must not be null here, but may be null at head office`, remedy: anew }
    }
  }
  return null
}

/** Columns that the file lacks. */
export const missingColumns = (table: Table, file: FileTable): ReadonlyArray<Column> => {
  const present = new Set(file.columns.map(({ name }) => sameName(name)))
  return table.columns.filter((column) => !present.has(sameName(column.name)))
}
