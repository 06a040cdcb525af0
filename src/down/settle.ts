/**
 * The end of a shield. A ledger row settles its batch: its changes are no longer pending, values that wait for a person
 * become holds, and every row that was kept behind for them is released. A decided record ends its hold the same way.
 */
import * as Effect from "effect/Effect"
import { readText, readWire, safely, sameRaw } from "../libsql/cells.ts"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"
import type { Change, Exception } from "../model/change.ts"
import { localKeyOf, parseLocalKey } from "../model/key.ts"
import type { Table } from "../model/table.ts"
import { type Cell, isRefused, type Wire, wireToCell } from "../model/value.ts"
import { release, type RowState, type Waiting } from "./behind.ts"
import type { Delivery } from "./deliver.ts"
import { deleteRows, type Put, showRows } from "./show.ts"

/** Rows to be released, by `tbl key`; the value is the newest batch that touched the row, for the record. */
export type Touched = Map<string, { readonly tbl: number; readonly key: string; readonly batch: number | null }>

const touch = (touched: Touched, tbl: number, key: string, batch: number | null): void => void touched.set(`${tbl} ${key}`, { tbl, key, batch })

export const keyCellsOf = (table: Table, values: ReadonlyArray<Wire>): ReadonlyArray<Cell> =>
  table.key.map((name, i) => wireToCell(table.columns.find((column) => column.name === name)?.kind ?? "text", values[i] ?? null))

export const keepBehind = (delivery: Delivery, tbl: number, key: string, row: RowState, error: string | null): Effect.Effect<void, LibsqlError> =>
  Effect.asVoid(
    delivery.tx.run(
      `INSERT INTO schoolbus_behind (tbl, key, row, error, at) VALUES (?, ?, ?, ?, ?)
       ON CONFLICT (tbl, key) DO UPDATE SET row = excluded.row, error = excluded.error, at = excluded.at`,
      [tbl, key, row === null ? null : JSON.stringify(row), error, delivery.now],
    ),
  )

const tableOf = (delivery: Delivery, tbl: number): Table | undefined => [...delivery.tables.values()].find((entry) => entry.tbl === tbl)?.table

interface ChangeRow {
  readonly id: number
  readonly tbl: number
  readonly key: string
  readonly new_key: string | null
}

/** Settles the batches of this file whose ledger rows came; answers their numbers. */
export const settleBatches = (
  delivery: Delivery,
  ledger: ReadonlyArray<Readonly<Record<string, Wire>>>,
  touched: Touched,
): Effect.Effect<ReadonlyArray<number>, LibsqlError> =>
  Effect.gen(function* () {
    const { tx } = delivery
    const settled: Array<number> = []
    for (const row of ledger) {
      if (row["incarnation"] !== delivery.incarnation) continue
      const batch = Number(row["batch"])
      const rows = (yield* tx.values(`SELECT id, tbl, ${safely("key")}, ${safely("new_key")} FROM changes WHERE batch = ?`, [batch])).map(
        ([id, tbl, key, newKey]): ChangeRow => ({
          id: Number(id),
          tbl: Number(tbl),
          key: readText(key ?? null),
          new_key: newKey == null ? null : readText(newKey),
        }),
      )
      const exceptions = JSON.parse(String(row["exceptions"] ?? "[]")) as ReadonlyArray<Exception>
      const changeById = new Map(rows.map((change) => [change.id, change]))
      for (const exception of exceptions) {
        const change = changeById.get(exception.id)
        if (exception.hold !== true || exception.record === undefined || change === undefined) continue
        for (const column of exception.columns ?? [""]) {
          yield* tx.run("INSERT OR IGNORE INTO schoolbus_hold (tbl, key, col, record, at) VALUES (?, ?, ?, ?, ?)", [
            change.tbl,
            change.new_key ?? change.key,
            column,
            exception.record,
            delivery.now,
          ])
        }
      }
      for (const change of rows) {
        touch(touched, change.tbl, change.key, batch)
        if (change.new_key !== null) touch(touched, change.tbl, change.new_key, batch)
      }
      yield* tx.run("DELETE FROM changes WHERE batch = ?", [batch])
      yield* tx.run("UPDATE schoolbus_batch SET settled_at = ?, exceptions = ? WHERE number = ?", [delivery.now, JSON.stringify(exceptions), batch])
      settled.push(batch)
    }
    if (settled.length > 0) yield* endDecidedHolds(delivery, touched)
    return settled
  })

/** A record may have been decided before its ledger row came down: then the hold ends at once. */
const endDecidedHolds = (delivery: Delivery, touched: Touched): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    for (const name of ["schoolbus.conflicts", "schoolbus.quarantine"]) {
      const table = delivery.tables.get(name)?.table
      if (table === undefined) continue
      const rows = yield* delivery.tx.all<{ record: string }>(
        `SELECT DISTINCT h.record FROM schoolbus_hold h JOIN ${ident(table.local)} r ON r.id = h.record WHERE r.status <> 'open'`,
      )
      yield* endHolds(
        delivery,
        rows.map((row) => row.record),
        touched,
      )
    }
  })

/** Ends the holds of decided records. A discarded change that has nothing behind it is taken back by its own base. */
export const endHolds = (delivery: Delivery, records: ReadonlyArray<string>, touched: Touched): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const { tx } = delivery
    for (const record of records) {
      const held = yield* tx.all<{ tbl: number; key: string }>("DELETE FROM schoolbus_hold WHERE record = ? RETURNING tbl, key", [record])
      for (const { tbl, key } of held) {
        touch(touched, tbl, key, null)
        const discarded = yield* discardedChange(delivery, record)
        if (discarded === null) continue
        const [behind] = yield* tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM schoolbus_behind WHERE tbl = ? AND key = ?) AS n", [tbl, key])
        const table = tableOf(delivery, tbl)
        if (behind?.n === 1 || table === undefined) continue
        const current = yield* currentRow(tx, table, key)
        const base = Object.fromEntries(Object.entries(discarded.base).flatMap(([name, value]) => (isRefused(value) ? [] : [[name, value] as const])))
        const before: RowState =
          discarded.op === "insert" ? null : discarded.op === "delete" ? base : current === null ? null : { ...current.row, ...base }
        yield* keepBehind(delivery, tbl, key, before, null)
      }
    }
  })

const discardedChange = (delivery: Delivery, record: string): Effect.Effect<Change | null, LibsqlError> =>
  Effect.gen(function* () {
    const table = delivery.tables.get("schoolbus.quarantine")?.table
    if (table === undefined) return null
    const [row] = yield* delivery.tx.all<{ change: string }>(`SELECT change FROM ${ident(table.local)} WHERE id = ? AND status = 'discarded'`, [
      record,
    ])
    if (row === undefined) return null
    try {
      return JSON.parse(row.change) as Change
    } catch {
      return null
    }
  })

interface Current {
  readonly raw: ReadonlyArray<Cell>
  readonly row: Readonly<Record<string, Wire>>
}

const whereKey = (table: Table): string => table.key.map((name) => `${ident(name)} = ?`).join(" AND ")

const currentRow = (tx: Tx, table: Table, key: string): Effect.Effect<Current | null, LibsqlError> =>
  Effect.gen(function* () {
    const cells = parseLocalKey(key)
    if (cells === null) return null
    const [raw] = yield* tx.values(
      `SELECT ${table.columns.map((column) => safely(ident(column.name))).join(", ")} FROM ${ident(table.local)} WHERE ${whereKey(table)}`,
      cells,
    )
    if (raw === undefined) return null
    const row: Record<string, Wire> = {}
    table.columns.forEach((column, i) => {
      const wire = readWire(column.kind, raw[i] ?? null)
      // A value that no wire form has can only be the school's own: it never equals the hub's.
      row[column.name] = isRefused(wire) ? `\0${wire.hex}` : wire
    })
    return { raw, row }
  })

/** Columns of a row that pending changes of the school still wait on. */
const pendingColumns = (delivery: Delivery, table: Table, tbl: number, key: string, current: Current | null): Effect.Effect<Waiting, LibsqlError> =>
  Effect.gen(function* () {
    const rows = yield* delivery.tx.values(
      `SELECT op, ${safely("new_key")}, ${table.columns.map((_, i) => safely(`v${i}`)).join(", ")} FROM changes
        WHERE tbl = ?1 AND (key = ?2 AND batch IS NOT NULL OR new_key = ?2) AND op <> 'R' ORDER BY id`,
      [tbl, key],
    )
    const columns = new Set<string>()
    for (let i = 0; i < rows.length; i++) {
      const [op, newKey, ...old] = rows[i] as ReadonlyArray<Cell>
      if (op !== "U" || newKey !== null || current === null) return "all"
      const next = rows[i + 1]
      const after = next === undefined ? current.raw : next.slice(2)
      table.columns.forEach((column, c) => {
        if (!sameRaw(old[c] ?? null, after[c] ?? null)) columns.add(column.name)
      })
    }
    return columns
  })

/** Shows what waited behind the rows, as far as nothing else waits on them. */
export const releaseKeys = (delivery: Delivery, touched: Touched): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const { tx } = delivery
    if (touched.size === 0) return
    const waiting = yield* tx.all<{ tbl: number; key: string; row: string | null }>(
      `SELECT tbl, key, row FROM schoolbus_behind WHERE (tbl, key) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))`,
      [JSON.stringify([...touched.values()].map(({ tbl, key }) => [tbl, key]))],
    )
    const puts: Array<Put> = []
    for (const { tbl, key, row } of waiting) {
      const table = tableOf(delivery, tbl)
      const cells = parseLocalKey(key)
      if (table === undefined || cells === null) continue
      const current = yield* currentRow(tx, table, key)
      const holds = yield* tx.all<{ col: string }>("SELECT col FROM schoolbus_hold WHERE tbl = ? AND key = ?", [tbl, key])
      const held: Waiting = holds.some(({ col }) => col === "") ? "all" : new Set(holds.map(({ col }) => col))
      const behind = row === null ? null : (JSON.parse(row) as Record<string, Wire>)
      const outcome = release({ behind, current: current?.row ?? null, pending: yield* pendingColumns(delivery, table, tbl, key, current), held })
      const forget = () => tx.run("DELETE FROM schoolbus_behind WHERE tbl = ? AND key = ?", [tbl, key])
      const record = (was: Readonly<Record<string, Wire>>) =>
        tx.run("INSERT INTO schoolbus_replaced (tbl, key, was, batch, at) VALUES (?, ?, ?, ?, ?)", [
          tbl,
          key,
          JSON.stringify(was),
          touched.get(`${tbl} ${key}`)?.batch ?? null,
          delivery.now,
        ])
      switch (outcome.kind) {
        case "keep":
          break
        case "forget":
          yield* forget()
          break
        case "delete":
          yield* record(outcome.was)
          yield* deleteRows(tx, table, [cells])
          yield* forget()
          break
        case "insert":
          puts.push({ table, tbl, key, keyCells: cells, row: outcome.row })
          yield* forget()
          break
        case "update":
          yield* record(outcome.was)
          // The whole row is written again: what an UPSERT names must satisfy NOT NULL.
          puts.push({ table, tbl, key, keyCells: cells, row: { ...current?.row, ...outcome.set } })
          if (outcome.forget) yield* forget()
          break
      }
    }
    for (const { put, error } of yield* showRows(tx, puts)) yield* keepBehind(delivery, put.tbl, put.key, put.row, error)
  })

/** Rows behind without a pending change or hold of their own are tried again until none moves. */
export const retryBehind = (delivery: Delivery): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const { tx } = delivery
    let before = -1
    for (;;) {
      const rows = yield* tx.all<{ tbl: number; key: string; row: string | null }>(
        `SELECT tbl, key, row FROM schoolbus_behind b
          WHERE NOT EXISTS (SELECT 1 FROM changes c WHERE c.tbl = b.tbl AND c.key = b.key AND c.batch IS NOT NULL)
            AND NOT EXISTS (SELECT 1 FROM changes c WHERE c.tbl = b.tbl AND c.new_key = b.key)
            AND NOT EXISTS (SELECT 1 FROM schoolbus_hold h WHERE h.tbl = b.tbl AND h.key = b.key)`,
      )
      if (rows.length === 0 || rows.length === before) return
      before = rows.length
      const puts: Array<Put> = []
      for (const { tbl, key, row } of rows) {
        const table = tableOf(delivery, tbl)
        const cells = parseLocalKey(key)
        if (table === undefined || cells === null) continue
        yield* tx.run("DELETE FROM schoolbus_behind WHERE tbl = ? AND key = ?", [tbl, key])
        if (row === null) yield* deleteRows(tx, table, [cells])
        else puts.push({ table, tbl, key: localKeyOf(cells), keyCells: cells, row: JSON.parse(row) as Record<string, Wire> })
      }
      for (const { put, error } of yield* showRows(tx, puts)) yield* keepBehind(delivery, put.tbl, put.key, put.row, error)
    }
  })
