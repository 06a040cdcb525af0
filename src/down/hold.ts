/**
 * Values that wait for a person. A hold begins with the ledger row that names its record, and ends when that record is
 * no longer open: then the row is released. A change that was discarded and has nothing behind it is taken back by its base.
 */
import * as Effect from "effect/Effect"
import { ident, type LibsqlError } from "../libsql/client.ts"
import type { Change, Exception } from "../model/change.ts"
import { localKey } from "../model/key.ts"
import { namesSince } from "../model/table.ts"
import { isRefused, type Refused, type Wire, wireToCell } from "../model/value.ts"
import type { RowState, Waiting } from "./behind.ts"
import { CONFLICTS, type Delivery, idOf, type Item, QUARANTINE, type Target } from "./delivery.ts"

export interface Hold {
  readonly tbl: number
  readonly key: string
  /** "" = the whole row. */
  readonly col: string
  readonly record: string
}

export interface EndedHolds {
  readonly rows: ReadonlyArray<{ readonly tbl: number; readonly key: string }>
  /** By `tbl key`: what a row was before the change that was discarded. */
  readonly restore: ReadonlyMap<string, RowState>
}

const none: EndedHolds = { rows: [], restore: new Map() }

/** A captured write of a batch that has its verdicts. */
export interface SettledChange {
  readonly id: number
  readonly tbl: number
  readonly op: string
  readonly key: string
  readonly new_key: string | null
}

/**
 * What waits for a person. A quarantined row is held under the key that it had before the batch and under its present one, whichever
 * of its writes gave it that: they are one record, and the last of them stands for all.
 */
export const heldBy = (changes: ReadonlyArray<SettledChange>, exceptions: ReadonlyArray<Exception>): ReadonlyArray<Hold> => {
  const changeById = new Map(changes.map((change) => [change.id, change]))
  const firstByRecord = new Map<string, SettledChange>()
  for (const { id, verdict, record } of exceptions.toSorted((a, b) => a.id - b.id)) {
    const change = changeById.get(id)
    if (verdict === "quarantined" && record !== undefined && change !== undefined && !firstByRecord.has(record)) firstByRecord.set(record, change)
  }
  return exceptions.flatMap(({ id, hold, record, columns }): ReadonlyArray<Hold> => {
    const change = changeById.get(id)
    if (hold !== true || record === undefined || change === undefined) return []
    const first = firstByRecord.get(record) ?? change
    const before = first.op === "I" ? [] : [first.key]
    const keys = new Set([...before, change.new_key ?? change.key])
    return [...keys].flatMap((key) => (columns ?? [""]).map((col) => ({ tbl: change.tbl, key, col, record })))
  })
}

export const beginHolds = (delivery: Delivery, holds: ReadonlyArray<Hold>): Effect.Effect<void, LibsqlError> =>
  Effect.asVoid(
    delivery.tx.many(
      "INSERT OR IGNORE INTO schoolbus_hold (tbl, key, col, record, at) VALUES (?, ?, ?, ?, ?)",
      holds.map(({ tbl, key, col, record }) => [BigInt(tbl), key, col, record, BigInt(Math.trunc(delivery.now))]),
    ),
  )

/** Ids of the records among these rows. */
export const recordsOf = (items: Iterable<Item>): ReadonlyArray<string> =>
  [...items].flatMap(({ target, keyCells }) => (target.isRecord ? [String(keyCells[0])] : []))

/**
 * Of holds of these records, and others of the same rows, ends those whose record is decided or gone. Records are rows of the cut
 * that begins the hold, so they are there. Only what came, or has begun, is looked at: thousands of holds may wait for a person.
 */
export const endHolds = (delivery: Delivery, came: Iterable<string>): Effect.Effect<EndedHolds, LibsqlError> =>
  Effect.gen(function* () {
    const { tx } = delivery
    const ids = [...new Set(came)]
    const records = [CONFLICTS, QUARANTINE].map((name) => delivery.byName.get(name)?.table)
    if (ids.length === 0 || records.includes(undefined)) return none
    const isOpen = (hold: string) =>
      `(${records.map((table) => `EXISTS (SELECT 1 FROM ${ident(table?.local ?? "")} r WHERE r."id" = ${hold}.record AND r."status" = 'open')`).join(" OR ")})`
    // Several held changes of one row end together, when the last is decided: only then is it known what the row was.
    const rows = yield* tx.all<{ tbl: number; key: string; col: string; record: string }>(
      `SELECT DISTINCT h.tbl, h.key, h.col, h.record FROM json_each(?) j CROSS JOIN schoolbus_hold c ON c.record = j.value
         CROSS JOIN schoolbus_hold h ON h.tbl = c.tbl AND h.key = c.key
        WHERE NOT ${isOpen("h")} AND NOT (h.col = '' AND EXISTS (
         SELECT 1 FROM schoolbus_hold o WHERE o.tbl = h.tbl AND o.key = h.key AND o.col = '' AND ${isOpen("o")}))`,
      [JSON.stringify(ids)],
    )
    if (rows.length === 0) return none
    yield* tx.many(
      "DELETE FROM schoolbus_hold WHERE tbl = ? AND key = ? AND col = ? AND record = ?",
      rows.map(({ tbl, key, col, record }) => [BigInt(tbl), key, col, record]),
    )
    const discarded = yield* tx.all<{ id: string; change: string }>(
      `SELECT "id", "change" FROM ${ident(records[1]?.local ?? "")} WHERE "id" IN (SELECT value FROM json_each(?)) AND "status" = 'discarded' ORDER BY "change_id" DESC`,
      [JSON.stringify([...new Set(rows.map((row) => row.record))])],
    )
    const restore = new Map<string, RowState>()
    const tblByRecord = new Map(rows.map(({ record, tbl }) => [record, tbl]))
    // Newest first: of several discarded changes of one row the oldest base remains.
    for (const { id, change } of discarded) undo(delivery, tblByRecord.get(id), change, restore)
    // Head office had no such row when that was decided: of one to which the school gave its key no stream tells.
    const gone = yield* tx.all<{ id: string; key: string }>(
      `SELECT "id", "row_key" AS key FROM ${ident(records[0]?.local ?? "")} WHERE "id" IN (SELECT value FROM json_each(?)) AND "column_name" IS NULL AND "status" <> 'open' AND "kept" = 'null'`,
      [JSON.stringify([...tblByRecord.keys()])],
    )
    for (const { id, key } of gone) {
      const target = delivery.byTbl.get(tblByRecord.get(id) ?? 0)
      const wires = JSON.parse(key) as ReadonlyArray<Wire>
      if (target === undefined || wires.length !== target.table.key.length) continue
      const at = idOf(target.tbl, localKey(target.table, wires))
      if (!restore.has(at)) restore.set(at, null)
    }
    return { rows, restore }
  })

const undo = (delivery: Delivery, tbl: number | undefined, text: string, restore: Map<string, RowState>): void => {
  const change = parse(text)
  const target = change === null ? undefined : delivery.byName.get(change.table)
  // A table with another key has another number: its rows are not named as the change names them.
  if (change === null || target === undefined || target.tbl !== tbl) return
  const at = (key: ReadonlyArray<Wire>) => idOf(target.tbl, localKey(target.table, key))
  const names = namesSince(target.table, change.manifest)
  const isChanged = (name: string) =>
    change.op !== "update" ||
    change.newKey !== undefined ||
    name in change.mine ||
    target.table.columns.some((column) => column.name === name && column.generated)
  const base = Object.entries(change.base).flatMap(([was, value]) => {
    const name = names.has(was) ? names.get(was) : was
    return name != null && isChanged(was) && isValue(value) && isFitting(target, name, value) ? [[name, value] as const] : []
  })
  if (change.op === "insert") restore.set(at(change.key), null)
  else if (change.newKey !== undefined) {
    restore.set(at(change.newKey), null)
    restore.set(at(change.key), { ...fillsOf(target), ...Object.fromEntries(base) })
  } else if (change.op === "delete") restore.set(at(change.key), { ...fillsOf(target), ...restore.get(at(change.key)), ...Object.fromEntries(base) })
  else restore.set(at(change.key), { ...restore.get(at(change.key)), ...Object.fromEntries(base) })
}

/** What a row has of columns that came after it was last written at head office: were it otherwise, its new state would wait. */
const fillsOf = ({ table }: Target): RowState =>
  Object.fromEntries(table.columns.flatMap(({ name, fill }) => (fill === undefined ? [] : [[name, fill] as const])))

/** The table still has the column, and it takes the value: the record may be older than the table's shape. */
const isFitting = (target: Target, name: string, value: Wire): boolean => {
  const kind = target.kinds.get(name)
  if (kind === undefined) return false
  try {
    wireToCell(kind, value)
    return true
  } catch {
    return false
  }
}

const isValue = (value: Wire | Refused): value is Wire => !isRefused(value)

/** `manifest`: the one under which it was frozen. */
type KeptChange = Change & { readonly manifest?: number }

/** A quarantined change as the record keeps it; null when it was not even readable. */
const parse = (text: string): KeptChange | null => {
  try {
    const change: unknown = JSON.parse(text)
    return typeof change === "object" && change !== null && "op" in change ? (change as KeptChange) : null
  } catch {
    return null
  }
}

/** What of each row a person's decision still holds, by `tbl key`. */
export const holdsOf = (
  delivery: Delivery,
  keys: ReadonlyArray<readonly [tbl: number, key: string]>,
): Effect.Effect<ReadonlyMap<string, Waiting>, LibsqlError> =>
  Effect.gen(function* () {
    const rows = yield* delivery.tx.all<{ tbl: number; key: string; col: string }>(
      "SELECT h.tbl, h.key, h.col FROM json_each(?) j CROSS JOIN schoolbus_hold h ON h.tbl = j.value ->> 0 AND h.key = j.value ->> 1",
      [JSON.stringify(keys)],
    )
    const holds = new Map<string, Waiting>()
    for (const { tbl, key, col } of rows) {
      const id = idOf(tbl, key)
      const before = holds.get(id)
      holds.set(id, col === "" || before === "all" ? "all" : new Set([...(before ?? []), col]))
    }
    return holds
  })
