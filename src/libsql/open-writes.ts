/**
 * Open captured writes, a page at a time, with what is needed to say what they did: the old values of each key's next write, or
 * where there is none the row as it stands now. Reads only, all inside the transaction that freezes them.
 */
import * as Effect from "effect/Effect"
import { localKeySql } from "../model/key.ts"
import { sameName, type Table } from "../model/table.ts"
import { readText, safely } from "./cells.ts"
import { ident, type LibsqlError, type Tx } from "./client.ts"
import { type Captured, type End, keyId, openEnds, type Values } from "./history.ts"

const OPS: ReadonlySet<unknown> = new Set(["I", "U", "D", "R"])

/** New keys looked up in one statement. */
const KEYS_AT_ONCE = 200

/** A captured table as this freeze finds it. */
export interface Source {
  readonly name: string
  /** Absent: it is not in the manifest any more. */
  readonly table: Table | undefined
  /** Positions of the columns that the file still holds. */
  readonly present: ReadonlySet<number>
  /** A program dropped the whole table: what was captured before is all that is known of its rows. */
  readonly isGone?: true
}

export interface Page {
  readonly rows: ReadonlyArray<Captured>
  readonly isMore: boolean
}

const vColumns = (width: number): string => Array.from({ length: width }, (_, i) => `, ${safely(`c.v${i}`)}`).join("")

/** Learns of the tables that writes name, where they are not known yet. */
export const readSources = (
  tx: Tx,
  tables: ReadonlyMap<string, Table>,
  named: Iterable<number>,
  into: Map<number, Source>,
): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const unknown = [...new Set(named)].filter((tbl) => !into.has(tbl))
    if (unknown.length === 0) return
    const rows = yield* tx.all<{ id: number; name: string; columns: string }>(
      `SELECT t.id, t.name, (SELECT json_group_array(x.name) FROM pragma_table_xinfo(t.local) x) AS columns
         FROM schoolbus_tables t WHERE t.id IN (SELECT value FROM json_each(?))`,
      [JSON.stringify(unknown)],
    )
    for (const row of rows) {
      const table = tables.get(row.name)
      const names = new Set((JSON.parse(row.columns) as ReadonlyArray<string>).map(sameName))
      const present = table?.columns.flatMap((column, i) => (names.has(sameName(column.name)) ? [i] : [])) ?? []
      into.set(row.id, { name: row.name, table, present: new Set(present) })
    }
  })

/** Learns of tables that a program dropped. */
export const readGone = (
  tx: Tx,
  tables: ReadonlyMap<string, Table>,
  names: Iterable<string>,
  into: Map<number, Source>,
): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const rows = yield* tx.all<{ id: number; name: string }>("SELECT id, name FROM schoolbus_tables WHERE name IN (SELECT value FROM json_each(?))", [
      JSON.stringify([...names]),
    ])
    for (const { id, name } of rows) {
      const table = tables.get(name)
      if (table !== undefined) into.set(id, { name, table, present: new Set(table.columns.keys()), isGone: true })
    }
  })

export const readPage = (tx: Tx, width: number, after: number, limit: number): Effect.Effect<Page, LibsqlError> =>
  Effect.map(
    tx.values(
      `SELECT c.id, c.tbl, c.op, c.at, ${safely("c.key")}, ${safely("c.new_key")}${vColumns(width)}
         FROM changes c WHERE c.batch IS NULL AND c.id > ? ORDER BY c.id LIMIT ?`,
      [after, limit],
    ),
    (rows) => ({
      rows: rows.map(([id, tbl, op, at, key, newKey, ...old]) => ({
        id: Number(id),
        tbl: Number(tbl),
        op: OPS.has(op) ? (op as Captured["op"]) : "?",
        key: readText(key ?? null),
        newKey: newKey == null ? null : readText(newKey),
        at: Number(at),
        old,
      })),
      isMore: rows.length === limit,
    }),
  )

/**
 * What the open writes after the page say of its keys. Into `into`: the old values of each key's next one. Answered: the
 * noted keys that are made anew before that, so that the row which was noted is gone, whatever stands there now.
 */
const readLater = (
  tx: Tx,
  width: number,
  ends: ReadonlyArray<End>,
  after: number,
  into: Map<string, Values>,
): Effect.Effect<ReadonlySet<string>, LibsqlError> =>
  Effect.gen(function* () {
    const asJson = (some: ReadonlyArray<End>) => JSON.stringify(some.map(({ row, key }) => [row.tbl, key]))
    const rows = yield* tx.values(
      `SELECT c.id, c.tbl, ${safely("c.key")}${vColumns(width)} FROM json_each(?1) j CROSS JOIN changes c
        WHERE c.id = (SELECT min(n.id) FROM changes n WHERE n.tbl = j.value ->> 0 AND n.key = j.value ->> 1 AND n.id > ?2 AND n.batch IS NULL AND n.op <> 'I')`,
      [asJson(ends), after],
    )
    const idByKey = new Map<string, number>()
    for (const [id, tbl, key, ...old] of rows) {
      const found = keyId(Number(tbl), readText(key ?? null))
      idByKey.set(found, Number(id))
      into.set(found, old)
    }
    const noted = ends.filter(({ row }) => row.op === "R")
    const remade = new Set<string>()
    if (noted.length === 0) return remade
    // Inserts stand in no index by key, so this looks at every open write; notes without a write of their own are rare.
    const made = yield* tx.all<{ tbl: number; key: string; id: number }>(
      `WITH noted AS MATERIALIZED (SELECT value ->> 0 AS tbl, value ->> 1 AS key FROM json_each(?1))
       SELECT c.tbl, c.key, min(c.id) AS id FROM changes c
        WHERE c.batch IS NULL AND c.id > ?2 AND c.op = 'I' AND (c.tbl, c.key) IN (SELECT tbl, key FROM noted) GROUP BY c.tbl, c.key
       UNION ALL
       SELECT c.tbl, c.new_key, min(c.id) FROM noted CROSS JOIN changes c ON c.tbl = noted.tbl AND c.new_key = noted.key
        WHERE c.batch IS NULL AND c.id > ?2 GROUP BY c.tbl, c.new_key`,
      [asJson(noted), after],
    )
    for (const { tbl, key, id } of made) {
      const found = keyId(tbl, key)
      if (id < (idByKey.get(found) ?? Number.POSITIVE_INFINITY)) {
        into.delete(found)
        remade.add(found)
      }
    }
    return remade
  })

const literal = /(?:'(?:[^']|'')*'|CAST\(X'(?:[0-9A-F]{2})*' AS TEXT\)|X'(?:[0-9A-F]{2})*'|-?[0-9][0-9.e+-]*)(?:,(?!$)|$)/g

/** A local key as a row of SQL literals; null when it is anything else. */
const keyRow = (table: Table, key: string): string | null =>
  key.replace(literal, "") === "" && key.match(literal)?.length === table.key.length ? `(${key})` : null

/** Rows of one table as they stand now, for the given ends. A table or key column that is not there fails: nobody guesses that all rows are gone. */
const readCurrent = (
  tx: Tx,
  table: Table,
  present: ReadonlySet<number>,
  ends: ReadonlyArray<End>,
  into: Map<string, Values>,
): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const tbl = ends[0]?.row.tbl ?? 0
    const from = ident(table.local)
    const select = `SELECT ${localKeySql(table, "t.")}, ${table.columns.map((column, i) => (present.has(i) ? safely(`t.${ident(column.name)}`) : "NULL")).join(", ")}`
    // A collation may also find rows under another spelling of a key, which nobody asked for.
    const wanted = new Set(ends.map(({ key }) => key))
    const take = (rows: ReadonlyArray<Values>) => {
      for (const [key, ...values] of rows) if (wanted.has(String(key))) into.set(keyId(tbl, String(key)), values)
    }
    // The key's own cells stand in the captured write, so the row is found without a detour over text.
    const byWrite = ends.filter(({ row, key }) => key === row.key).map(({ row }) => row.id)
    const sameKey = table.key.map((name) => `t.${ident(name)} IS c.v${table.columns.findIndex((column) => column.name === name)}`).join(" AND ")
    if (byWrite.length > 0) {
      take(
        yield* tx.values(`${select} FROM json_each(?) j CROSS JOIN changes c ON c.id = j.value CROSS JOIN ${from} t ON ${sameKey}`, [
          JSON.stringify(byWrite),
        ]),
      )
    }
    const byNewKey = ends.flatMap(({ row, key }) => (key === row.key ? [] : (keyRow(table, key) ?? [])))
    for (let i = 0; i < byNewKey.length; i += KEYS_AT_ONCE) {
      const some = byNewKey.slice(i, i + KEYS_AT_ONCE).join(", ")
      take(yield* tx.values(`${select} FROM ${from} t WHERE (${table.key.map((name) => `t.${ident(name)}`).join(", ")}) IN (VALUES ${some})`))
    }
  })

/** What `openEnds` asks for. */
export const readBeyond = (
  tx: Tx,
  width: number,
  page: Page,
  sources: ReadonlyMap<number, Source>,
): Effect.Effect<ReadonlyMap<string, Values>, LibsqlError> =>
  Effect.gen(function* () {
    const beyond = new Map<string, Values>()
    const ends = openEnds(page.rows)
    const remade = page.isMore ? yield* readLater(tx, width, ends, page.rows.at(-1)?.id ?? 0, beyond) : new Set<string>()
    const byTable = new Map<number, Array<End>>()
    for (const end of ends) {
      const id = keyId(end.row.tbl, end.key)
      if (beyond.has(id) || remade.has(id)) continue
      const some = byTable.get(end.row.tbl)
      if (some === undefined) byTable.set(end.row.tbl, [end])
      else some.push(end)
    }
    for (const [tbl, some] of byTable) {
      const source = sources.get(tbl)
      if (source?.table !== undefined && source.isGone === undefined) yield* readCurrent(tx, source.table, source.present, some, beyond)
    }
    return beyond
  })
