/** Head office as the simulation sees it: rows as text, and writes of its own programs. */
import type { World } from "../support/world.ts"
import type { Random } from "./random.ts"
import { type SimTable, valueColumns } from "./schema.ts"

/** `school_id` and the value columns, as Postgres prints them. */
export type Row = Readonly<Record<string, string | null>>
/** By table name, by key as `keyOf` writes it. */
export type Rows = ReadonlyMap<string, ReadonlyMap<string, Row>>

export const keyOf = (values: ReadonlyArray<string>): string => JSON.stringify(values)
const SEPARATOR = "\u0001"

export const readOffice = async (world: World, tables: ReadonlyArray<SimTable>): Promise<Rows> => {
  const all = new Map<string, ReadonlyMap<string, Row>>()
  for (const table of tables) {
    const names = ["school_id", ...valueColumns(table)]
    const rows = await world.sql.unsafe(
      `SELECT ${table.key.map((column) => `${column.name}::text`).join(` || '${SEPARATOR}' || `)} AS k, ${names.map((name) => `${name}::text AS ${name}`).join(", ")} FROM ${table.name}`,
    )
    all.set(table.name, new Map(rows.map(({ k, ...row }) => [keyOf(String(k).split(SEPARATOR)), row as Row])))
  }
  return all
}

/** A key that was never used; the same seed gives the same ones when `from` counts alike. */
export const newKey = (table: SimTable, n: number): ReadonlyArray<string> =>
  table.key.map((column) =>
    column.type === "uuid" ? `00000000-0000-4000-8000-${String(n).padStart(12, "0")}` : column.type === "integer" ? String(n) : `k${n}`,
  )

export const newValue = (random: Random, type: "text" | "bigint" | "numeric"): string | null => {
  if (random.chance(0.08)) return null
  if (type === "bigint") return String(random.below(1000))
  if (type === "numeric") return `${random.below(100)}.${random.below(9) + 1}`
  return random.pick(["Amina", "خالد", "ñ", "", "O'Neil", '"quoted"', "🎒", "x".repeat(random.below(40))]) + String(random.below(50))
}

/** Values for every column of a new row. null: there is no parent that it could point to. */
export const newRow = (random: Random, table: SimTable, school: string, parents: ReadonlyArray<string>, unique: () => string): Row | null => {
  const row: Record<string, string | null> = { school_id: school }
  if (table.parent !== null) {
    if (parents.length === 0) return null
    row["parent"] = random.pick(parents)
  }
  if (table.unique !== null) row[table.unique] = random.chance(0.1) ? null : unique()
  for (const column of table.columns) row[column.name] = column.rule === "sum" ? String(random.below(1000)) : newValue(random, column.type)
  return row
}

export const insertSql = (table: SimTable, names: ReadonlyArray<string>): string =>
  `INSERT INTO ${table.name} (${[...table.key.map((column) => column.name), ...names].join(", ")})`
