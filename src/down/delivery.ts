/** What one delivering transaction works with: the tables as the applied manifest says, and the rows that came for them. */
import * as Effect from "effect/Effect"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"
import { readUnfit, unfitText } from "../libsql/unfit.ts"
import { loadColumn, type LoadPlan, loadTable } from "../libsql/load.ts"
import { keyedRows, readRows } from "../link/frame.ts"
import type { RowsLine } from "../link/protocol.ts"
import { localKeyOf } from "../model/key.ts"
import type { Manifest, Table } from "../model/table.ts"
import { type Cell, type Kind, type Wire, wireToCell } from "../model/value.ts"

/** A table and the number it has in this file. */
export interface Target {
  readonly table: Table
  readonly tbl: number
  readonly kinds: ReadonlyMap<string, Kind>
  readonly keyKinds: ReadonlyArray<Kind>
  /** Holds the records that a person decides: conflicts and quarantined changes. */
  readonly isRecord: boolean
  /** Why nothing may be written into it now; null = it fits. */
  readonly unfit: string | null
  /** It has another key since the applied cut: rows that the next one does not name are of before. */
  readonly isRenewed: boolean
}

export interface Targets {
  readonly manifest: Manifest
  readonly byName: ReadonlyMap<string, Target>
  readonly byTbl: ReadonlyMap<number, Target>
  /** How the rows of a table are written in bulk, by its name; none for a table whose rows need more than that. */
  readonly plans: ReadonlyMap<string, LoadPlan>
}

export interface Delivery extends Targets {
  readonly tx: Tx
  readonly incarnation: string
  /** ms since 1970 */
  readonly now: number
  /** The same moment by the clock that only goes forward. */
  readonly began: number
  /** Nothing of the school is pending, held or kept behind: what comes meets nothing. False as soon as a row is kept. */
  isQuiet: boolean
}

/** A row as it came: `values` in the order of `columns`, null = deleted at head office. */
export interface Item {
  readonly target: Target
  /** Local key. */
  readonly key: string
  readonly keyCells: ReadonlyArray<Cell>
  readonly columns: ReadonlyArray<string>
  readonly values: ReadonlyArray<Wire> | null
}

export type Row = Readonly<Record<string, Wire>>

export const LEDGER = "schoolbus.ledger"
export const CONFLICTS = "schoolbus.conflicts"
export const QUARANTINE = "schoolbus.quarantine"

export const idOf = (tbl: number, key: string): string => `${tbl} ${key}`

const planOf = ({ table, keyKinds }: Target): LoadPlan => {
  const columns = table.columns.map(({ name }) => name)
  const key = table.key.map((name) => columns.indexOf(name))
  const from = loadTable(columns.length)
  const set = columns.filter((name) => !table.key.includes(name)).map((name) => `${ident(name)} = excluded.${ident(name)}`)
  // OR ABORT: a table that a program made may say `ON CONFLICT REPLACE`, which would delete another row.
  const put = (order: string): string =>
    `INSERT OR ABORT INTO ${ident(table.local)} (${columns.map(ident).join(", ")})
      SELECT ${columns.map((_, i) => loadColumn(i)).join(", ")} FROM ${from} WHERE rowid BETWEEN ?1 AND ?2 ${order}
      ON CONFLICT (${table.key.map(ident).join(", ")}) DO ${set.length === 0 ? "NOTHING" : `UPDATE SET ${set.join(", ")}`}`
  return {
    table: table.name,
    columns,
    kinds: table.columns.map(({ kind }) => kind),
    key,
    keyKinds,
    put: put(""),
    putInOrder: put(`ORDER BY ${[...key.map(loadColumn), "rowid"].join(", ")}`),
    remove: `DELETE FROM ${ident(table.local)} WHERE ${table.key.map((name) => `${ident(name)} = ?`).join(" AND ")}`,
  }
}

export const readTargets = (tx: Tx, manifest: Manifest): Effect.Effect<Targets, LibsqlError> =>
  Effect.gen(function* () {
    const known = yield* tx.all<{ id: number; name: string; renewed: number }>("SELECT id, name, renewed FROM schoolbus_tables")
    const rows = new Map(known.map((row) => [row.name, row]))
    const unfit = new Map((yield* readUnfit(tx)).map((one) => [one.name, unfitText(one)]))
    const targets = manifest.tables.flatMap((table): ReadonlyArray<Target> => {
      const row = rows.get(table.name)
      if (row === undefined) return []
      const kinds = new Map(table.columns.map((column) => [column.name, column.kind]))
      const isRecord = table.name === CONFLICTS || table.name === QUARANTINE
      const keyKinds = table.key.map((name) => kinds.get(name) ?? "text")
      return [{ table, tbl: row.id, kinds, keyKinds, isRecord, unfit: unfit.get(table.name) ?? null, isRenewed: row.renewed === 1 }]
    })
    return {
      manifest,
      byName: new Map(targets.map((t) => [t.table.name, t])),
      byTbl: new Map(targets.map((t) => [t.tbl, t])),
      plans: new Map(targets.flatMap((t) => (t.unfit !== null || t.isRecord || t.table.name === LEDGER ? [] : [[t.table.name, planOf(t)] as const]))),
    }
  })

export const itemOf = (target: Target, keyValues: ReadonlyArray<Wire>, columns: ReadonlyArray<string>, values: ReadonlyArray<Wire> | null): Item => {
  const keyCells = target.keyKinds.map((kind, i) => wireToCell(kind, keyValues[i] ?? null))
  return { target, key: localKeyOf(keyCells), keyCells, columns, values }
}

export const rowOf = (columns: ReadonlyArray<string>, values: ReadonlyArray<Wire>): Row =>
  Object.fromEntries(columns.map((name, i) => [name, values[i] ?? null]))

/** Lines made ready: the newest state of each row, by `tbl key`, and the ledger rows apart. */
export interface Part {
  readonly items: ReadonlyMap<string, Item>
  readonly ledger: ReadonlyArray<Row>
  /** Rows in the lines, those that a later one replaced included. */
  readonly rows: number
}

/** Only the rows that `isIn` names. */
export const restOf = (part: Part, isIn: (item: Item) => boolean): Part => ({
  ...part,
  items: new Map([...part.items].filter(([, item]) => isIn(item))),
})

/** A later line for the same row replaces an earlier one. Rows of tables that the manifest does not name are counted and passed over. */
export const partOf = (targets: Targets, lines: ReadonlyArray<RowsLine>): Part => {
  const items = new Map<string, Item>()
  const ledger: Array<Row> = []
  const lists = new Map<string, ReadonlyArray<string>>()
  let rows = 0
  for (const text of lines.map(readRows)) {
    const [, , , name, columns] = text
    const target = targets.byName.get(name)
    const lineRows = keyedRows(text, target?.table.key ?? [])
    rows += lineRows.length
    if (name === LEDGER) {
      for (const [, values] of lineRows) if (values !== null) ledger.push(rowOf(columns, values))
      continue
    }
    if (target === undefined) continue
    const known = columns.flatMap((column, i) => (target.kinds.has(column) ? [i] : []))
    const picks = known.map((i) => columns[i] as string)
    const names = lists.get(picks.join("\0")) ?? picks
    lists.set(picks.join("\0"), names)
    for (const [keyValues, values] of lineRows) {
      const picked = values === null || known.length === columns.length ? values : known.map((i) => values[i] ?? null)
      const item = itemOf(target, keyValues, names, picked)
      items.set(idOf(target.tbl, item.key), item)
    }
  }
  return { items, ledger, rows }
}
