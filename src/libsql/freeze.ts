/**
 * Open captured writes -> numbered frozen batches. Runs inside one write transaction of the caller, so the current rows
 * and the captured old values are of one moment. Every captured write becomes one change: its base are the old values
 * that the trigger saw, its new values are the next captured old values of the row, else the row as it stands.
 */
import { createHash } from "node:crypto"
import * as Effect from "effect/Effect"
import { type BatchHeader, encodeBatch } from "../model/batch.ts"
import type { Change } from "../model/change.ts"
import { parseLocalKey } from "../model/key.ts"
import type { Manifest, Table } from "../model/table.ts"
import { type Cell, cellToWire, isRefused, type Refused, type Wire } from "../model/value.ts"
import { readText, readWire, safely, sameRaw } from "./cells.ts"
import { ident, type LibsqlError, type Tx } from "./client.ts"

/** Captured writes of one batch, and about how many bytes it may have. */
export const BATCH_CHANGES = 2_000
export const BATCH_BYTES = 4 * 1024 * 1024

export interface FreezeOptions {
  readonly maxChanges?: number
}

export interface Frozen {
  /** 0 or 1: call again until it is 0. */
  readonly batches: number
  readonly changes: number
}

type Values = ReadonlyArray<Cell>

interface Captured {
  readonly id: number
  readonly tbl: number
  readonly op: "I" | "U" | "D" | "R"
  readonly key: string
  readonly newKey: string | null
  readonly at: number
  /** Old values as `safely` reads them, in column order; of I only the key. */
  readonly old: Values
}

/** What is known of one key at one moment: the row's values, or that it has none (null). */
type State = Values | null

const at = (tbl: number, key: string): string => `${tbl} ${key}`

const readCaptured = (tx: Tx, columns: number, where: string, args: ReadonlyArray<string | number>): Effect.Effect<ReadonlyArray<Captured>, LibsqlError> =>
  Effect.map(
    tx.values(
      `SELECT id, tbl, op, ${safely("key")}, ${safely("new_key")}, at, ${Array.from({ length: columns }, (_, i) => safely(`v${i}`)).join(", ")} FROM changes WHERE ${where}`,
      args,
    ),
    (rows) =>
      rows.map(([id, tbl, op, key, newKey, time, ...old]) => ({
        id: Number(id),
        tbl: Number(tbl),
        op: op as Captured["op"],
        key: readText(key ?? null),
        newKey: newKey == null ? null : readText(newKey),
        at: Number(time),
        old,
      })),
  )

/** The rows that stand in the file now, by table and local key. */
const readCurrent = (tx: Tx, table: Table, tbl: number, keys: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const found = new Map<string, Values>()
    const cells = keys.flatMap((key) => {
      const parsed = parseLocalKey(key)
      return parsed === null ? [] : [parsed.map((cell) => (cell instanceof Uint8Array ? [...cell].map((b) => b.toString(16).padStart(2, "0")).join("") : cell))]
    })
    if (cells.length === 0) return found
    const kinds = table.key.map((name) => table.columns.find((column) => column.name === name)?.kind)
    const json = `[${cells.map((row) => `[${row.map((cell) => (typeof cell === "bigint" ? String(cell) : JSON.stringify(cell))).join(",")}]`).join(",")}]`
    const join = table.key.map((name, i) => `t.${ident(name)} = ${kinds[i] === "bytea" ? `unhex(j.value ->> ${i})` : `j.value ->> ${i}`}`).join(" AND ")
    const rows = yield* tx.values(
      `SELECT ${table.key.map((name) => `quote(t.${ident(name)})`).join(" || ',' || ")}, ${table.columns.map((column) => safely(`t.${ident(column.name)}`)).join(", ")}
         FROM json_each(?) j CROSS JOIN ${ident(table.local)} t ON ${join}`,
      [json],
    )
    for (const [key, ...values] of rows) found.set(at(tbl, String(key)), values)
    return found
  })

/** Freezes the oldest open writes into one batch; nothing open: no batch. */
export const freeze = (tx: Tx, manifest: Manifest, now: number, options: FreezeOptions = {}): Effect.Effect<Frozen, LibsqlError> =>
  Effect.gen(function* () {
    const limit = options.maxChanges ?? BATCH_CHANGES
    const known = yield* tx.all<{ id: number; name: string }>("SELECT id, name FROM schoolbus_tables")
    const tableByName = new Map(manifest.tables.map((table) => [table.name, table]))
    const tables = new Map(known.map((row) => [row.id, { name: row.name, table: tableByName.get(row.name) }]))
    const [info] = yield* tx.all<{ n: number }>("SELECT count(*) AS n FROM pragma_table_info('changes') WHERE name GLOB 'v[0-9]*'")
    const width = info?.n ?? 0

    const captured = [...(yield* readCaptured(tx, width, "batch IS NULL ORDER BY id LIMIT ?", [limit + 1]))]
    if (captured.length === 0) return { batches: 0, changes: 0 }
    const isCut = captured.length > limit
    // A noted row and the write that displaced it stay together.
    if (isCut) {
      captured.pop()
      while (captured.length > 1 && captured.at(-1)?.op === "R") captured.pop()
    }
    const lastId = captured.at(-1)?.id ?? 0

    // Per key, in order: what each captured write says about the key's state just before it.
    const eventsByKey = new Map<string, Array<{ readonly id: number; readonly before: State; readonly isNote: boolean }>>()
    const push = (tbl: number, key: string, event: { readonly id: number; readonly before: State; readonly isNote: boolean }) => {
      const events = eventsByKey.get(at(tbl, key))
      if (events === undefined) eventsByKey.set(at(tbl, key), [event])
      else events.push(event)
    }
    const enlist = (row: Captured): void => {
      push(row.tbl, row.key, { id: row.id, before: row.op === "I" ? null : row.old, isNote: row.op === "R" })
      if (row.newKey !== null) push(row.tbl, row.newKey, { id: row.id, before: null, isNote: false })
    }
    for (const row of captured) enlist(row)

    // What comes after this batch, for the keys in it.
    if (isCut) {
      const keys = JSON.stringify([...eventsByKey.keys()].map((key) => [Number(key.slice(0, key.indexOf(" "))), key.slice(key.indexOf(" ") + 1)]))
      const later = yield* readCaptured(
        tx,
        width,
        `id IN (SELECT min(c.id) FROM json_each(?) j CROSS JOIN changes c ON c.tbl = j.value ->> 0 AND c.key = j.value ->> 1
                 WHERE c.id > ? AND c.batch IS NULL GROUP BY c.tbl, c.key
                UNION SELECT min(c.id) FROM changes c WHERE c.id > ? AND c.batch IS NULL AND c.new_key IS NOT NULL GROUP BY c.tbl, c.new_key) ORDER BY id`,
        [keys, lastId, lastId],
      )
      for (const row of later) if (eventsByKey.has(at(row.tbl, row.key)) || (row.newKey !== null && eventsByKey.has(at(row.tbl, row.newKey)))) enlist(row)
    }

    // The present rows of all keys whose last event is in this batch.
    const current = new Map<string, Values>()
    for (const [tbl, { table }] of tables) {
      if (table === undefined) continue
      const prefix = `${tbl} `
      const keys = [...eventsByKey.keys()].filter((key) => key.startsWith(prefix)).map((key) => key.slice(prefix.length))
      for (const [key, values] of yield* readCurrent(tx, table, tbl, keys)) current.set(key, values)
    }
    const after = (tbl: number, key: string, id: number): State => {
      const next = eventsByKey.get(at(tbl, key))?.find((event) => event.id > id)
      return next === undefined ? (current.get(at(tbl, key)) ?? null) : next.before
    }
    /** Values of a row that a REPLACE had displaced when this write made the key anew. */
    const displaced = (tbl: number, key: string, id: number): State => {
      const events = eventsByKey.get(at(tbl, key)) ?? []
      let found: State = null
      for (const event of events) {
        if (event.id >= id) break
        found = event.isNote ? event.before : null
      }
      return found
    }

    const toValues = (table: Table, values: Values): Record<string, Wire | Refused> =>
      Object.fromEntries(table.columns.flatMap((column, i) => (column.generated ? [] : [[column.name, readWire(column.kind, values[i] ?? null)] as const])))
    const wireKeyOf = (table: Table, key: string): ReadonlyArray<Wire> => {
      const cells = parseLocalKey(key) ?? []
      return table.key.map((name, i) => {
        const wire = cellToWire(table.columns.find((column) => column.name === name)?.kind ?? "text", cells[i] ?? null)
        return isRefused(wire) ? `${String(cells[i])}` : wire
      })
    }
    const differing = (table: Table, before: Values, now_: Values): { base: Record<string, Wire | Refused>; mine: Record<string, Wire | Refused> } => {
      const base: Record<string, Wire | Refused> = {}
      const mine: Record<string, Wire | Refused> = {}
      table.columns.forEach((column, i) => {
        if (column.generated) return
        base[column.name] = readWire(column.kind, before[i] ?? null)
        if (!sameRaw(before[i] ?? null, now_[i] ?? null)) mine[column.name] = readWire(column.kind, now_[i] ?? null)
      })
      return { base, mine }
    }

    const toChange = (row: Captured): Change | null => {
      const named = tables.get(row.tbl)
      const table = named?.table
      if (table === undefined) {
        // The table left the manifest: the write is kept as what is known of it, for the record.
        return row.op === "R" ? null : { id: row.id, table: named?.name ?? `table ${row.tbl}`, op: row.op === "D" ? "delete" : row.op === "U" ? "update" : "insert", key: [row.key], at: row.at, base: {}, mine: {} }
      }
      const common = { id: row.id, table: table.name, key: wireKeyOf(table, row.key), at: row.at }
      switch (row.op) {
        case "D":
          return { ...common, op: "delete", base: toValues(table, row.old), mine: {} }
        case "I": {
          const mine = after(row.tbl, row.key, row.id)
          const was = displaced(row.tbl, row.key, row.id)
          if (mine === null) return null
          if (was === null) return { ...common, op: "insert", base: {}, mine: toValues(table, mine) }
          const difference = differing(table, was, mine)
          return Object.keys(difference.mine).length === 0 ? null : { ...common, op: "update", ...difference }
        }
        case "U": {
          const mine = after(row.tbl, row.newKey ?? row.key, row.id)
          if (mine === null) return null
          const difference = differing(table, row.old, mine)
          if (row.newKey !== null) return { ...common, op: "update", newKey: wireKeyOf(table, row.newKey), ...difference }
          return Object.keys(difference.mine).length === 0 ? null : { ...common, op: "update", ...difference }
        }
        case "R": {
          const events = eventsByKey.get(at(row.tbl, row.key)) ?? []
          const next = events.find((event) => event.id > row.id)
          // Still there, or its end was captured, or the same key was written anew: nothing to add.
          if (next !== undefined) {
            const made = captured.find((other) => other.id === next.id)
            const isRekeyed = next.before === null && made !== undefined && made.newKey === row.key
            return isRekeyed ? { ...common, op: "delete", base: toValues(table, row.old), mine: {} } : null
          }
          return current.has(at(row.tbl, row.key)) ? null : { ...common, op: "delete", base: toValues(table, row.old), mine: {} }
        }
      }
    }

    const changes: Array<Change> = []
    const kept: Array<number> = []
    const dropped: Array<number> = []
    let bytes = 0
    let last = lastId
    for (const row of captured) {
      const change = toChange(row)
      if (change === null) {
        dropped.push(row.id)
      } else {
        changes.push(change)
        kept.push(row.id)
        bytes += JSON.stringify(change).length
      }
      if (bytes >= BATCH_BYTES && row.op !== "R") {
        last = row.id
        break
      }
    }
    if (dropped.length > 0) yield* tx.run("DELETE FROM changes WHERE id IN (SELECT value FROM json_each(?))", [JSON.stringify(dropped)])
    if (changes.length === 0) return isCut ? yield* freeze(tx, manifest, now, options) : { batches: 0, changes: 0 }

    const [state] = yield* tx.all<{ incarnation: string; last_batch: number; clock_offset: number; contact_at: number }>(
      "SELECT incarnation, last_batch, clock_offset, contact_at FROM schoolbus_state",
    )
    const header: BatchHeader = {
      incarnation: state?.incarnation ?? "",
      number: (state?.last_batch ?? 0) + 1,
      manifest: manifest.version,
      clockOffset: state?.clock_offset ?? 0,
      contactAt: state?.contact_at ?? 0,
      changes: changes.length,
    }
    const encoded = new TextEncoder().encode(encodeBatch(header, changes))
    yield* tx.run("INSERT INTO schoolbus_batch (number, hash, bytes, changes, frozen_at) VALUES (?, ?, ?, ?, ?)", [
      header.number,
      createHash("sha256").update(encoded).digest("hex"),
      encoded,
      changes.length,
      now,
    ])
    yield* tx.run("UPDATE changes SET batch = ? WHERE batch IS NULL AND id <= ?", [header.number, last])
    yield* tx.run("UPDATE schoolbus_state SET last_batch = ?", [header.number])
    return { batches: 1, changes: changes.length }
  })
