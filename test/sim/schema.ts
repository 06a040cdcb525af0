/** The tables of one seed: keys of different kinds, a rule for every column, sometimes a unique column and a child table. */
import type { ConfigInput } from "../../src/config.ts"
import type { Random } from "./random.ts"

export type ColumnRule = "school_wins" | "vps_wins" | "sum"
export interface SimColumn {
  readonly name: string
  readonly type: "text" | "bigint" | "numeric"
  /** Rules may change while a seed runs. */
  rule: ColumnRule
}
export interface SimTable {
  readonly name: string
  readonly key: ReadonlyArray<{ readonly name: string; readonly type: "text" | "uuid" | "integer" }>
  readonly columns: ReadonlyArray<SimColumn>
  strategy: "school_wins" | "vps_wins"
  /** A text column that no two rows of head office may share. */
  readonly unique: string | null
  /** Rows point to a row of this table. */
  readonly parent: SimTable | null
}

const KEYS = [
  [{ name: "id", type: "text" }],
  [{ name: "id", type: "uuid" }],
  [
    { name: "class", type: "text" },
    { name: "no", type: "integer" },
  ],
] as const

const makeTable = (random: Random, name: string, parent: SimTable | null, simpleKey: boolean): SimTable => {
  const strategy = random.pick(["school_wins", "vps_wins"] as const)
  const columns = Array.from({ length: random.below(3) + 2 }, (_, i): SimColumn => {
    const type = random.pick(["text", "text", "bigint", "numeric"] as const)
    const rule: ColumnRule =
      type === "bigint" && random.chance(0.5) ? "sum" : random.chance(0.25) ? random.pick(["school_wins", "vps_wins"]) : strategy
    return { name: `c${i}`, type, rule }
  })
  return {
    name,
    key: simpleKey ? (KEYS[random.below(2)] ?? KEYS[0]) : random.pick(KEYS),
    columns,
    strategy,
    unique: random.chance(0.3) ? "u" : null,
    parent,
  }
}

export const makeSchema = (random: Random): ReadonlyArray<SimTable> => {
  const parent = makeTable(random, "a", null, true)
  return [parent, makeTable(random, "b", null, false), ...(random.chance(0.6) ? [makeTable(random, "c", parent, false)] : [])]
}

/** Every column that carries a value, in order; the key and the school are not among them. */
export const valueColumns = (table: SimTable): ReadonlyArray<string> => [
  ...(table.parent === null ? [] : ["parent"]),
  ...(table.unique === null ? [] : [table.unique]),
  ...table.columns.map((column) => column.name),
]

export const ddlOf = (table: SimTable): string => {
  const parts = [
    ...table.key.map((column) => `${column.name} ${column.type}`),
    "school_id text",
    ...(table.parent === null ? [] : [`parent ${table.parent.key[0]?.type} NOT NULL REFERENCES ${table.parent.name} (id)`]),
    ...(table.unique === null ? [] : [`${table.unique} text UNIQUE`]),
    ...table.columns.map((column) => `${column.name} ${column.type}`),
    `PRIMARY KEY (${table.key.map((column) => column.name).join(", ")})`,
  ]
  return `CREATE TABLE ${table.name} (${parts.join(", ")})`
}

export const configOf = (tables: ReadonlyArray<SimTable>): ConfigInput => ({
  tables: Object.fromEntries(
    tables.map((table) => [
      table.name,
      {
        audience: { column: "school_id" },
        strategy: table.strategy,
        columns: Object.fromEntries(table.columns.filter((column) => column.rule !== table.strategy).map((column) => [column.name, column.rule])),
      },
    ]),
  ),
})
