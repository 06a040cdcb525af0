/**
 * Table -> the triggers that capture its writes (pure: text out). They use functions of stock SQLite only, copy old values
 * natively (SQLite's JSON functions round REAL and fail on BLOB), and are silent while deliver holds its flag. A trigger
 * can never make a program's own write fail: it only inserts values that are there.
 */
import type { Table } from "../model/table.ts"

export interface Trigger {
  readonly name: string
  readonly sql: string
}

const ident = (name: string): string => `"${name.replaceAll('"', '""')}"`

/** ms since 1970, UTC, by this machine's clock. */
const NOW = "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)"

const WHEN_NOT_DELIVERING = "WHEN (SELECT active FROM schoolbus_deliver) = 0"

/** Local key of a row: what `quote()` prints for each key column, joined with commas. */
export const localKeySql = (table: Pick<Table, "key">, prefix: string): string => table.key.map((name) => `quote(${prefix}${ident(name)})`).join(" || ',' || ")

/** The capture triggers of one table; `tableId` is its number in schoolbus_tables. */
export const captureTriggers = (table: Table, tableId: number): ReadonlyArray<Trigger> => {
  const on = ident(table.local)
  const all = table.columns.map((_, i) => `v${i}`).join(", ")
  const values = (prefix: string) => table.columns.map((column) => `${prefix}${ident(column.name)}`).join(", ")
  const keyPositions = table.key.map((name) => table.columns.findIndex((column) => column.name === name))
  const trigger = (suffix: string, when: string, body: string): Trigger => {
    const name = `schoolbus_${table.local}_${suffix}`
    return { name, sql: `CREATE TRIGGER ${ident(name)} ${when} ON ${on} ${WHEN_NOT_DELIVERING} BEGIN ${body}; END` }
  }
  // A REPLACE removes rows without firing delete triggers unless recursive_triggers is on, so they are noted just before.
  const note = (where: string) =>
    `INSERT INTO changes (tbl, op, key, at, ${all}) SELECT ${tableId}, 'R', ${localKeySql(table, "")}, ${NOW}, ${values("")} FROM ${on} WHERE ${where}`
  const sameValues = (columns: ReadonlyArray<string>) => columns.map((name) => `${ident(name)} = NEW.${ident(name)}`).join(" AND ")
  const otherRow = `NOT (${table.key.map((name) => `${ident(name)} IS OLD.${ident(name)}`).join(" AND ")})`
  const uniques = [table.key, ...table.unique]
  return [
    trigger("bi", "BEFORE INSERT", uniques.map((columns) => note(sameValues(columns))).join("; ")),
    trigger(
      "bu",
      `BEFORE UPDATE OF ${[...new Set(uniques.flat())].map(ident).join(", ")}`,
      uniques.map((columns) => note(`${sameValues(columns)} AND ${otherRow}`)).join("; "),
    ),
    trigger(
      "ai",
      "AFTER INSERT",
      `INSERT INTO changes (tbl, op, key, at, ${keyPositions.map((i) => `v${i}`).join(", ")}) VALUES (${tableId}, 'I', ${localKeySql(table, "NEW.")}, ${NOW}, ${table.key
        .map((name) => `NEW.${ident(name)}`)
        .join(", ")})`,
    ),
    trigger(
      "au",
      "AFTER UPDATE",
      `INSERT INTO changes (tbl, op, key, new_key, at, ${all}) VALUES (${tableId}, 'U', ${localKeySql(table, "OLD.")}, nullif(${localKeySql(table, "NEW.")}, ${localKeySql(
        table,
        "OLD.",
      )}), ${NOW}, ${values("OLD.")})`,
    ),
    trigger("ad", "AFTER DELETE", `INSERT INTO changes (tbl, op, key, at, ${all}) VALUES (${tableId}, 'D', ${localKeySql(table, "OLD.")}, ${NOW}, ${values("OLD.")})`),
  ]
}

/** Triggers that tell worker modules of every write, captured and applied ones alike. */
export const streamTriggers = (table: Table): ReadonlyArray<Trigger> =>
  (
    [
      ["insert", "INSERT", "NEW."],
      ["update", "UPDATE", "NEW."],
      ["delete", "DELETE", "OLD."],
    ] as const
  ).map(([op, event, row]) => {
    const name = `schoolbus_${table.local}_stream_${op}`
    return {
      name,
      sql: `CREATE TRIGGER ${ident(name)} AFTER ${event} ON ${ident(table.local)} BEGIN INSERT INTO schoolbus_stream (tbl, op, key) VALUES ('${table.local.replaceAll("'", "''")}', '${op}', ${localKeySql(table, row)}); END`,
    }
  })
