/**
 * Table -> the triggers that capture its writes (pure: text out). They use functions of stock SQLite only, copy old values
 * natively (SQLite's JSON functions round REAL and fail on BLOB), and are silent while deliver holds its flag. A trigger
 * can never make a program's own write fail: it only inserts values that are there.
 */
import { localKeySql } from "../model/key.ts"
import type { Table } from "../model/table.ts"
import type { Term, Unique } from "./uniques.ts"

export interface Trigger {
  readonly name: string
  readonly sql: string
}

/** Ends of the names `schoolbus_<local>_<end>` that capture and stream triggers have. */
export const TRIGGER_ENDS = ["bi", "bu", "ai", "au", "ad", "stream_insert", "stream_update", "stream_delete"] as const

const ident = (name: string): string => `"${name.replaceAll('"', '""')}"`

/** ms since 1970, UTC, by this machine's clock. */
const NOW = "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)"

const WHEN_NOT_DELIVERING = "WHEN (SELECT active FROM schoolbus_deliver) = 0"

export const triggerName = (local: string, end: (typeof TRIGGER_ENDS)[number]): string => `schoolbus_${local}_${end}`

/** One insert into `changes` of the rows that `from` gives, with the values of the columns at `positions`. */
const record = (
  table: Table,
  tableId: number,
  op: "I" | "U" | "D" | "R",
  row: string,
  positions: ReadonlyArray<number>,
  from: string,
  newKey?: string,
): string => {
  const columns = ["tbl", "op", "key", ...(newKey === undefined ? [] : ["new_key"]), "at", ...positions.map((i) => `v${i}`)]
  const values = [
    String(tableId),
    `'${op}'`,
    localKeySql(table, row),
    ...(newKey === undefined ? [] : [newKey]),
    NOW,
    ...positions.map((i) => `${row}${ident(table.columns[i]?.name ?? "")}`),
  ]
  return `INSERT INTO changes (${columns.join(", ")}) SELECT ${values.join(", ")}${from}`
}

/** Positions of the key columns among the table's columns. */
const keyPositions = (table: Table): ReadonlyArray<number> => table.key.map((name) => table.columns.findIndex((column) => column.name === name))

/** Rows that are there already, captured as if they were inserted now. */
export const captureExisting = (table: Table, tableId: number): string =>
  record(table, tableId, "I", "", keyPositions(table), ` FROM ${ident(table.local)}`)

/** What the manifest alone says that a table enforces. */
const uniquesOf = (table: Table): ReadonlyArray<Unique> =>
  [table.key, ...table.unique].map((columns) => ({ terms: columns.map((column): Term => ({ column })) }))

const isKey = (table: Table, { terms }: Unique): boolean =>
  terms.length === table.key.length && terms.every((term) => "column" in term && table.key.includes(term.column))

/**
 * The capture triggers of one table; `tableId` is its number in schoolbus_tables, `enforced` what the file itself enforces,
 * `columns` the names of all its columns, which expressions may use.
 */
export const captureTriggers = (
  table: Table,
  tableId: number,
  enforced: ReadonlyArray<Unique> = uniquesOf(table),
  columns: ReadonlyArray<string> = table.columns.map(({ name }) => name),
): ReadonlyArray<Trigger> => {
  const on = ident(table.local)
  const all = table.columns.map((_, i) => i)
  const trigger = (end: (typeof TRIGGER_ENDS)[number], when: string, body: string): Trigger => {
    const name = triggerName(table.local, end)
    return { name, sql: `CREATE TRIGGER ${ident(name)} ${when} ON ${on} ${WHEN_NOT_DELIVERING} BEGIN ${body}; END` }
  }
  // A REPLACE removes rows without firing delete triggers unless recursive_triggers is on, so they are noted just before:
  // all whose values equal the new row's as the index sees them. One that an index leaves out by its WHERE is noted in vain.
  const note = (where: string) => record(table, tableId, "R", `${on}.`, all, ` FROM ${on} WHERE ${where}`)
  const newRow = `(SELECT ${columns.map((name) => `NEW.${ident(name)} AS ${ident(name)}`).join(", ")})`
  const matches = (term: Term): string => {
    const collation = term.collation === undefined ? "" : ` COLLATE ${ident(term.collation)}`
    if ("expression" in term) return `(${term.expression}) = (SELECT ${term.expression} FROM ${newRow})${collation}`
    const value = `NEW.${ident(term.column)}`
    return `${on}.${ident(term.column)} = ${term.fallback === undefined ? value : `coalesce(${value}, ${term.fallback})`}${collation}`
  }
  const isSame = ({ terms }: Unique) => terms.map(matches).join(" AND ")
  const isOther = `NOT (${table.key.map((name) => `${on}.${ident(name)} IS OLD.${ident(name)}`).join(" AND ")})`
  const byKey: ReadonlyArray<Unique> = enforced.some((unique) => isKey(table, unique)) ? [] : uniquesOf({ ...table, unique: [] })
  const uniques = [...byKey, ...enforced]
  const isByExpression = uniques.some(({ terms }) => terms.some((term) => "expression" in term))
  const concerned = [...new Set(uniques.flatMap(({ terms }) => terms.flatMap((term) => ("column" in term ? [term.column] : []))))]
  const isKeyKept = table.key.map((name) => `NEW.${ident(name)} COLLATE BINARY IS OLD.${ident(name)}`).join(" AND ")
  const newKey = `CASE WHEN ${isKeyKept} THEN NULL ELSE ${localKeySql(table, "NEW.")} END`
  return [
    trigger("bi", "BEFORE INSERT", uniques.map((unique) => note(isSame(unique))).join("; ")),
    trigger(
      "bu",
      `BEFORE UPDATE${isByExpression ? "" : ` OF ${concerned.map(ident).join(", ")}`}`,
      uniques.map((unique) => note(`${isSame(unique)} AND ${isOther}`)).join("; "),
    ),
    trigger("ai", "AFTER INSERT", record(table, tableId, "I", "NEW.", keyPositions(table), "")),
    trigger("au", "AFTER UPDATE", record(table, tableId, "U", "OLD.", all, "", newKey)),
    trigger("ad", "AFTER DELETE", record(table, tableId, "D", "OLD.", all, "")),
  ]
}

/** Triggers that tell worker modules of every write, captured and applied ones alike. */
export const streamTriggers = (table: Table): ReadonlyArray<Trigger> =>
  (
    [
      ["insert", "NEW."],
      ["update", "NEW."],
      ["delete", "OLD."],
    ] as const
  ).map(([op, row]) => {
    const name = triggerName(table.local, `stream_${op}`)
    const values = `'${table.local.replaceAll("'", "''")}', '${op}', ${localKeySql(table, row)}`
    return {
      name,
      sql: `CREATE TRIGGER ${ident(name)} AFTER ${op.toUpperCase()} ON ${ident(table.local)} BEGIN INSERT INTO schoolbus_stream (tbl, op, key) SELECT ${values}; END`,
    }
  })
