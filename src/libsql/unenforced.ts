/**
 * Unique constraints of head office that a school's file cannot enforce yet, because rows here hold the same values: the table
 * works without them, and they are tried again as the rows come to differ.
 */
import * as Effect from "effect/Effect"
import { localKeySql } from "../model/key.ts"
import type { Table } from "../model/table.ts"
import { ident, type LibsqlError, type Tx } from "./client.ts"

/** Rows of one value that are named. */
const EXAMPLES = 5

export interface Unenforced {
  readonly tbl: number
  /** `"public.students"` */
  readonly name: string
  readonly local: string
  readonly columns: ReadonlyArray<string>
  /** Rows that share their values with another one; keys and values of some that do. */
  readonly rows: number
  readonly example: string
  /** Local keys of those that `example` names. */
  readonly keys: ReadonlyArray<string>
  /** ms since 1970: when it was last looked at. */
  readonly at: number
}

/** Rows that hold the same. */
const readSame = (tx: Tx, table: Pick<Table, "local" | "key" | "columns">, columns: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const { local, key } = table
    const names = columns.map((name) => ident(name))
    const groups = `SELECT ${names.join(", ")}, count(*) AS "schoolbus n" FROM ${ident(local)} WHERE ${names.map((name) => `${name} IS NOT NULL`).join(" AND ")} GROUP BY ${names.join(", ")} HAVING count(*) > 1`
    const [sum] = yield* tx.all<{ n: number }>(`SELECT coalesce(sum("schoolbus n"), 0) AS n FROM (${groups})`)
    if ((sum?.n ?? 0) === 0) return { rows: 0, example: "", keys: "[]" }
    const shown = (prefix: string, list: ReadonlyArray<string>) => list.map((name) => `quote(${prefix}${ident(name)})`).join(" || ', ' || ")
    const [example] = yield* tx.all<{ text: string; keys: string }>(
      `SELECT '(' || ${shown("g.", columns)} || ') in the rows ' || group_concat(${shown("t.", key)}, '; ') AS text, json_group_array(${localKeySql(table, "t.")}) AS keys
         FROM (${groups} LIMIT 1) g JOIN (SELECT *, row_number() OVER (PARTITION BY ${names.join(", ")}) AS "schoolbus r" FROM ${ident(local)}) t
           ON ${names.map((name) => `t.${name} = g.${name}`).join(" AND ")} AND t."schoolbus r" <= ${EXAMPLES}`,
    )
    return { rows: sum?.n ?? 0, example: example?.text ?? "", keys: example?.keys ?? "[]" }
  })

/** Counts the rows, and notes what was found; how many there are. */
export const noteUnenforced = (tx: Tx, tbl: number, table: Pick<Table, "local" | "key" | "columns">, columns: ReadonlyArray<string>, now: number) =>
  Effect.gen(function* () {
    const { rows, example, keys } = yield* readSame(tx, table, columns)
    yield* tx.run("INSERT OR REPLACE INTO schoolbus_unenforced (tbl, columns, rows, example, keys, at) VALUES (?, ?, ?, ?, ?, ?)", [
      tbl,
      JSON.stringify(columns),
      rows,
      example,
      keys,
      now,
    ])
    return rows
  })

/** Whether the rows that are named still share their values: cheap, they are found by their keys. */
export const isStillShared = (tx: Tx, { local, columns, keys }: Unenforced, key: ReadonlyArray<string>): Effect.Effect<boolean, LibsqlError> =>
  Effect.map(
    tx.all(
      `SELECT 1 FROM ${ident(local)} WHERE (${key.map(ident).join(", ")}) IN (VALUES ${keys.map((one) => `(${one})`).join(", ")})
        GROUP BY ${columns.map(ident).join(", ")} HAVING count(*) > 1 LIMIT 1`,
    ),
    (rows) => rows.length > 0,
  )

export const forgetUnenforced = (tx: Tx, tbl: number): Effect.Effect<number, LibsqlError> =>
  tx.run("DELETE FROM schoolbus_unenforced WHERE tbl = ?", [tbl])

export const readUnenforced = (tx: Tx): Effect.Effect<ReadonlyArray<Unenforced>, LibsqlError> =>
  Effect.map(
    tx.all<Omit<Unenforced, "columns" | "keys"> & { columns: string; keys: string }>(
      "SELECT u.tbl, t.name, t.local, u.columns, u.rows, u.example, u.keys, u.at FROM schoolbus_unenforced u JOIN schoolbus_tables t ON t.id = u.tbl WHERE t.gone = 0 ORDER BY t.name",
    ),
    (rows) =>
      rows.map((row) => ({ ...row, columns: JSON.parse(row.columns) as ReadonlyArray<string>, keys: JSON.parse(row.keys) as ReadonlyArray<string> })),
  )

export const unenforcedText = ({ columns, rows, example }: Unenforced): string =>
  `head office allows (${columns.join(", ")}) once only, and ${rows} rows here share theirs, as ${example}; not enforced here until they differ. Give them other values, or decide what waits: schoolbus conflicts list`
