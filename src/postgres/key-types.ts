/**
 * Keys that two schools could both give out (pure). A uuid or text key is safe; a bigint is, when each school gives out its
 * own range; a smaller number has no room for ranges.
 */
import { audienceColumn, type Table } from "../model/table.ts"
import { ident, qualified } from "./client.ts"

/** The one key column that numbers rows; null: the key is another's (a reference, the school's own id), or not one number. */
const numberingColumn = (table: Table): string | null => {
  const [column] = table.key
  if (column === undefined || table.key.length !== 1 || column === audienceColumn(table.audience)) return null
  if (table.references.some((reference) => reference.columns.includes(column))) return null
  const kind = table.columns.find(({ name }) => name === column)?.kind
  return kind === "int" || kind === "bigint" ? column : null
}

const schoolsInsert = (table: Table): boolean => !table.system && table.direction !== "down" && table.insert !== "vps"

/** The table's bigint keys are given out by range. */
export const hasKeyRange = (table: Table): boolean => {
  const column = numberingColumn(table)
  return schoolsInsert(table) && table.columns.some(({ name, type }) => name === column && type === "bigint")
}

/** One sentence each: the table, the reason, the remedy. */
export const keyProblems = (tables: ReadonlyArray<Table>): ReadonlyArray<string> =>
  tables.flatMap((table) => {
    const column = numberingColumn(table)
    const found = table.columns.find(({ name }) => name === column)
    if (column === null || found?.kind !== "int" || !schoolsInsert(table)) return []
    return [
      `key ${column} of table ${table.name} is ${found.type}: two schools would give out the same numbers. ` +
        `Run ALTER TABLE ${qualified(table.name)} ALTER COLUMN ${ident(column)} TYPE bigint (and the same for columns that refer to it); ` +
        `or, when only head office makes new rows, write insert: "vps" into the table's rules in the config`,
    ]
  })
