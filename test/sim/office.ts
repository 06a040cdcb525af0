/** Head office as the simulation sees it: rows as text, and writes of its own programs. */
import type { World } from "../support/world.ts"
import type { Random } from "./random.ts"
import { type SimTable, valueColumns } from "./schema.ts"

/** `school_id` and the value columns, as Postgres prints them. */
export type Row = Readonly<Record<string, string | null>>
/** By table name, by key as `keyOf` writes it. */
export type Rows = ReadonlyMap<string, ReadonlyMap<string, Row>>

export const keyOf = (values: ReadonlyArray<string>): string => JSON.stringify(values)
/** What head office holds, in the order of the keys: where Postgres has put a row says nothing. */
export const readOffice = async (world: World, tables: ReadonlyArray<SimTable>): Promise<Rows> => {
  const texts = (names: ReadonlyArray<string>) => `json_build_array(${names.map((name) => `${name}::text`).join(", ")})::text`
  const namesOf = (table: SimTable) => ["school_id", ...valueColumns(table)]
  const reads = tables.map(
    (table, i) => `SELECT ${i} AS i, ${texts(table.key.map(({ name }) => name))} AS k, ${texts(namesOf(table))} AS row FROM ${table.name}`,
  )
  const found = (await world.sql.unsafe(reads.join(" UNION ALL "))).map(({ i, k, row }) => ({
    i: Number(i),
    key: keyOf(JSON.parse(k as string) as ReadonlyArray<string>),
    values: JSON.parse(row as string) as ReadonlyArray<string | null>,
  }))
  const all = new Map<string, ReadonlyMap<string, Row>>()
  for (const [i, table] of tables.entries()) {
    const names = namesOf(table)
    const rows = found.flatMap(({ values, ...row }) =>
      row.i === i ? [[row.key, Object.fromEntries(names.map((name, at) => [name, values[at] ?? null]))] as const] : [],
    )
    all.set(table.name, byKey(rows))
  }
  return all
}

export const byKey = <A>(rows: Iterable<readonly [key: string, row: A]>): ReadonlyMap<string, A> =>
  new Map([...rows].toSorted(([a], [b]) => (a < b ? -1 : 1)))

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
