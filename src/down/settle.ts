/**
 * The end of a shield. A ledger row settles its batch: its changes are no longer pending, values that wait for a person
 * become holds, and every row that it touched is released: what came for it, or was kept behind, is shown for every column
 * on which nothing else waits. What a local value was before is recorded.
 */
import * as Effect from "effect/Effect"
import { readWire, safely } from "../libsql/cells.ts"
import type { LibsqlError } from "../libsql/client.ts"
import type { Exception } from "../model/change.ts"
import { parseLocalKey } from "../model/key.ts"
import { type Cell, isRefused } from "../model/value.ts"
import { type PendingChange, release, type RowState, type Waiting, waitingColumns } from "./behind.ts"
import { type Delivery, idOf, type Item, type Row, rowOf, type Target } from "./delivery.ts"
import { beginHolds, heldBy, holdsOf, type SettledChange } from "./hold.ts"
import { type Current, readRows, type Refused, showRows, updateRows } from "./show.ts"

/** Rows to be released, by `tbl key`; `batch` is the newest that touched the row, for the record. */
export type Touched = Map<string, { readonly tbl: number; readonly key: string; readonly batch: number | null }>

interface Kept {
  readonly tbl: number
  readonly key: string
  readonly row: RowState
  readonly error: string | null
}

const stateOf = ({ columns, values }: Item): RowState => (values === null ? null : rowOf(columns, values))
const now = (delivery: Delivery): bigint => BigInt(Math.trunc(delivery.now))

const keep = (delivery: Delivery, rows: ReadonlyArray<Kept>): Effect.Effect<void, LibsqlError> =>
  Effect.asVoid(
    delivery.tx.many(
      `INSERT INTO schoolbus_behind (tbl, key, row, error, at) VALUES (?, ?, ?, ?, ?)
       ON CONFLICT (tbl, key) DO UPDATE SET row = excluded.row, error = excluded.error, at = excluded.at`,
      rows.map(({ tbl, key, row, error }) => [BigInt(tbl), key, row === null ? null : JSON.stringify(row), error, now(delivery)]),
    ),
  )

/** Keeps rows as they came, whole. */
export const keepBehind = (delivery: Delivery, items: ReadonlyArray<Item>): Effect.Effect<void, LibsqlError> =>
  keep(
    delivery,
    items.map((item) => ({ tbl: item.target.tbl, key: item.key, row: stateOf(item), error: null })),
  )

export const keepRefused = (delivery: Delivery, refused: ReadonlyArray<Refused>): Effect.Effect<void, LibsqlError> =>
  keep(
    delivery,
    refused.map(({ item, error }) => ({ tbl: item.target.tbl, key: item.key, row: stateOf(item), error })),
  )

export const forgetBehind = (delivery: Delivery, items: ReadonlyArray<Pick<Item, "target" | "key">>): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    if (items.length === 0) return
    const [any] = yield* delivery.tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM schoolbus_behind) AS n")
    if (any?.n !== 1) return
    yield* delivery.tx.many(
      "DELETE FROM schoolbus_behind WHERE tbl = ? AND key = ?",
      items.map(({ target, key }) => [BigInt(target.tbl), key]),
    )
  })

const exceptionsOf = (text: unknown): ReadonlyArray<Exception> => {
  try {
    const list: unknown = JSON.parse(String(text))
    return Array.isArray(list) ? (list as ReadonlyArray<Exception>) : []
  } catch {
    return []
  }
}

export interface Settled {
  readonly batches: ReadonlyArray<number>
  /** Of the holds that have begun. */
  readonly records: ReadonlyArray<string>
  /**
   * Ids (`tbl key`) of keys that a losing insert or key change made. Had the hub a row there, it would have come with the
   * ledger row or before: if nothing waits for them, they do not exist.
   */
  readonly lost: ReadonlyArray<string>
  /**
   * By id, rows that a losing delete or key change took away, as they stood before the batch. Head office's differ, and came or come,
   * unless all that differed was an edit that was given up: of that the restored columns alone wait.
   */
  readonly left: ReadonlyMap<string, RowState>
}

/** The row under a key as it stood before the first of a batch's writes; null: the batch itself made it. */
const rowBefore = (delivery: Delivery, changes: ReadonlyArray<SettledChange>, { tbl, key }: SettledChange) =>
  Effect.gen(function* () {
    const first = changes.find((change) => change.tbl === tbl && (change.key === key || change.new_key === key))
    const columns = delivery.byTbl.get(tbl)?.table.columns
    if (first === undefined || columns === undefined || first.op === "I" || first.key !== key) return null
    const values = columns.map((_, i) => safely(`v${i}`)).join(", ")
    const [row] = yield* delivery.tx.values(`SELECT ${values} FROM changes WHERE id = ?`, [first.id])
    const wires = columns.map(({ name, kind }, i) => [name, readWire(kind, row?.[i] ?? null)] as const)
    return Object.fromEntries(wires.flatMap(([name, wire]) => (isRefused(wire) ? [] : [[name, wire] as const])))
  })

/**
 * Settles the batches of this file whose ledger rows came. A ledger row that was seen before, or whose hash is not that of
 * the bytes here (another copy of this file sent them), settles nothing.
 */
export const settleBatches = (delivery: Delivery, ledger: ReadonlyArray<Row>, touched: Touched): Effect.Effect<Settled, LibsqlError> =>
  Effect.gen(function* () {
    const { tx } = delivery
    const ours = ledger.filter((row) => row["incarnation"] === delivery.incarnation)
    if (ours.length === 0) return { batches: [], records: [], lost: [], left: new Map() }
    const waiting = new Map(
      (yield* tx.all<{ number: number; hash: string }>(
        "SELECT number, hash FROM schoolbus_batch WHERE settled_at IS NULL AND number IN (SELECT value FROM json_each(?))",
        [JSON.stringify(ours.map((row) => Number(row["batch"])))],
      )).map(({ number, hash }) => [number, hash]),
    )
    const batches: Array<number> = []
    const records: Array<string> = []
    const lost: Array<string> = []
    const leftRows = new Map<string, RowState>()
    for (const row of ours.toSorted((a, b) => Number(a["batch"]) - Number(b["batch"]))) {
      const batch = Number(row["batch"])
      if (!waiting.has(batch) || waiting.get(batch) !== row["hash"]) continue
      waiting.delete(batch)
      const changes = yield* tx.all<SettledChange>("SELECT id, tbl, op, key, new_key FROM changes WHERE batch = ? ORDER BY id", [batch])
      const exceptions = exceptionsOf(row["exceptions"])
      const holds = heldBy(changes, exceptions)
      yield* beginHolds(delivery, holds)
      for (const { record } of holds) records.push(record)
      const losing = new Set(
        exceptions.filter(({ verdict, hold }) => hold !== true && (verdict === "conflict" || verdict === "superseded")).map(({ id }) => id),
      )
      const conflicting = new Set(exceptions.flatMap(({ id, verdict }) => (verdict === "conflict" ? [id] : [])))
      // Of a table that only goes up the hub's row comes never; the school keeps its own.
      const isUnseen = (id: number, tbl: number): boolean => conflicting.has(id) && delivery.byTbl.get(tbl)?.table.direction === "up"
      const left = new Set<string>()
      const made = new Set<string>()
      for (const { id, tbl, op, key, new_key } of changes) {
        const own = idOf(tbl, new_key ?? key)
        if (op === "I" || new_key !== null) made.add(own)
        // Writes of one row are judged as one, and the verdict stands at the last: the edit of a row may lose what its insert made.
        if (op !== "D" && losing.has(id) && made.has(own) && !left.has(own) && !isUnseen(id, tbl)) lost.push(own)
        // A row that stood there before this batch may still stand at the hub.
        if ((op === "D" || new_key !== null) && !made.delete(idOf(tbl, key))) left.add(idOf(tbl, key))
      }
      for (const change of changes) {
        if (!conflicting.has(change.id) || (change.op !== "D" && change.new_key === null)) continue
        const before = yield* rowBefore(delivery, changes, change)
        if (before !== null) leftRows.set(idOf(change.tbl, change.key), before)
      }
      for (const { tbl, key, new_key } of changes) {
        touched.set(idOf(tbl, key), { tbl, key, batch })
        if (new_key !== null) touched.set(idOf(tbl, new_key), { tbl, key: new_key, batch })
      }
      yield* tx.run("DELETE FROM changes WHERE batch = ?", [batch])
      yield* tx.run("UPDATE schoolbus_batch SET settled_at = ?, settled_after = (SELECT seq FROM schoolbus_state), exceptions = ? WHERE number = ?", [
        delivery.now,
        JSON.stringify(exceptions),
        batch,
      ])
      batches.push(batch)
    }
    return { batches, records, lost, left: leftRows }
  })

/** Pending changes of rows of one table, by local key. */
const pendingOf = (
  delivery: Delivery,
  { table, tbl }: Target,
  keys: ReadonlyArray<string>,
): Effect.Effect<ReadonlyMap<string, Array<PendingChange>>, LibsqlError> =>
  Effect.gen(function* () {
    const { tx } = delivery
    const pending = new Map<string, Array<PendingChange>>()
    const [any] = yield* tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM changes WHERE batch IS NOT NULL) AS n")
    if (any?.n !== 1) return pending
    const json = JSON.stringify(keys)
    const add = (key: string, change: PendingChange) => {
      const before = pending.get(key)
      if (before === undefined) pending.set(key, [change])
      else before.push(change)
    }
    const rows = yield* tx.values(
      `SELECT j.value, c.op, c.new_key IS NOT NULL${table.columns.map((_, i) => `, ${safely(`c.v${i}`)}`).join("")} FROM json_each(?1) j
        CROSS JOIN changes c ON c.tbl = ?2 AND c.key = j.value AND c.batch IS NOT NULL ORDER BY c.id`,
      [json, tbl],
    )
    for (const [key, op, isKeyChange, ...old] of rows) add(String(key), { op: String(op), isKeyChange: isKeyChange === 1n, old })
    const arrived = yield* tx.values(
      "SELECT DISTINCT j.value FROM json_each(?1) j CROSS JOIN changes c ON c.tbl = ?2 AND c.new_key = j.value AND c.new_key IS NOT NULL AND c.batch IS NOT NULL",
      [json, tbl],
    )
    for (const [key] of arrived) add(String(key), { op: "U", isKeyChange: true, old: [] })
    return pending
  })

interface Behind {
  readonly tbl: number
  readonly key: string
  readonly state: RowState
  readonly keyCells: ReadonlyArray<Cell>
  /** It stands in schoolbus_behind. */
  readonly isStored: boolean
}

/** A kept state that names only some columns is the rest of an earlier discard: it goes over what this one restores. */
const over = (restored: RowState | undefined, kept: RowState): RowState =>
  restored === undefined || restored === null || kept === null ? kept : { ...restored, ...kept }

/** What waits for the touched rows: what this cut brought, else what was kept, else what a discarded change had replaced. */
const waitingRows = (
  delivery: Delivery,
  touched: Touched,
  fresh: ReadonlyMap<string, Item>,
  restore: ReadonlyMap<string, RowState>,
  left: ReadonlyMap<string, RowState>,
): Effect.Effect<ReadonlyArray<Behind>, LibsqlError> =>
  Effect.gen(function* () {
    const stored = new Map(
      (yield* delivery.tx.all<{ tbl: number; key: string; row: string | null }>(
        "SELECT b.tbl, b.key, b.row FROM json_each(?) j CROSS JOIN schoolbus_behind b ON b.tbl = j.value ->> 0 AND b.key = j.value ->> 1",
        [JSON.stringify([...touched.values()].map(({ tbl, key }) => [tbl, key]))],
      )).map(({ tbl, key, row }) => [idOf(tbl, key), row === null ? null : (JSON.parse(row) as Row)] as const),
    )
    return [...touched].flatMap(([id, { tbl, key }]): ReadonlyArray<Behind> => {
      const item = fresh.get(id)
      const keyCells = item?.keyCells ?? parseLocalKey(key)
      const isStored = stored.has(id)
      const kept = isStored ? over(restore.get(id), stored.get(id) ?? null) : restore.get(id)
      const state = item !== undefined ? stateOf(item) : kept === undefined ? undefined : over(left.get(id), kept)
      return state === undefined || keyCells === null ? [] : [{ tbl, key, state, keyCells, isStored }]
    })
  })

/** Shows what waits for the touched rows, as far as nothing else waits on them. */
export const releaseRows = (
  delivery: Delivery,
  touched: Touched,
  fresh: ReadonlyMap<string, Item>,
  restore: ReadonlyMap<string, RowState>,
  left: ReadonlyMap<string, RowState> = new Map(),
): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    if (touched.size === 0) return
    const { tx } = delivery
    const all = yield* waitingRows(delivery, touched, fresh, restore, left)
    const byTbl = Map.groupBy(all, (behind) => behind.tbl)
    const held = yield* holdsOf(
      delivery,
      all.map(({ tbl, key }) => [tbl, key]),
    )
    const nothing: Waiting = new Set()
    const kept: Array<Kept> = []
    const forgotten: Array<{ readonly target: Target; readonly key: string }> = []
    const whole: Array<Item> = []
    const partial: Array<Item> = []
    const replaced = new Map<Item, { readonly id: string; readonly was: Row }>()
    for (const [tbl, rows] of byTbl) {
      const target = delivery.byTbl.get(tbl)
      if (target === undefined) continue
      const names = target.table.columns.map((column) => column.name)
      const pending = yield* pendingOf(
        delivery,
        target,
        rows.map((row) => row.key),
      )
      const current = yield* readRows(
        tx,
        target,
        rows.map((row) => row.keyCells),
      )
      rows.forEach(({ key, state, keyCells, isStored }, i) => {
        const id = idOf(tbl, key)
        const row: Current | undefined = current[i]
        const outcome = release({
          behind: state,
          current: row?.row ?? null,
          pending: waitingColumns(pending.get(key) ?? [], row?.raw ?? null, names),
          held: held.get(id) ?? nothing,
        })
        const itemOf = (shown: RowState): Item => ({
          target,
          key,
          keyCells,
          columns: shown === null ? [] : Object.keys(shown),
          values: shown === null ? null : Object.values(shown),
        })
        const show = (shown: RowState, was: Row, into: Array<Item>) => {
          const item = itemOf(shown)
          into.push(item)
          replaced.set(item, { id, was })
        }
        switch (outcome.kind) {
          case "insert":
            whole.push(itemOf(outcome.row))
            break
          case "delete":
            show(null, outcome.was, whole)
            break
          case "update":
            // A whole row may take part in a swap of unique values; the others change only what they name.
            if (outcome.forget && names.every((name) => name in (state as Row))) show(state, outcome.was, whole)
            else show(outcome.set, outcome.was, partial)
            break
        }
        if (outcome.kind === "keep" || (outcome.kind === "update" && !outcome.forget)) kept.push({ tbl, key, row: state, error: null })
        else if (isStored) forgotten.push({ target, key })
      })
    }
    yield* keep(delivery, kept)
    yield* forgetBehind(delivery, forgotten)
    const refused = [...(yield* updateRows(tx, partial)), ...(yield* showRows(tx, whole))]
    const isRefused = new Set(refused.map(({ item }) => item))
    yield* tx.many(
      "INSERT INTO schoolbus_replaced (tbl, key, was, batch, at) VALUES (?, ?, ?, ?, ?)",
      [...replaced].flatMap(([item, { id, was }]) => {
        const batch = touched.get(id)?.batch ?? null
        return isRefused.has(item)
          ? []
          : [[BigInt(item.target.tbl), item.key, JSON.stringify(was), batch === null ? null : BigInt(batch), now(delivery)]]
      }),
    )
    // What was to be shown of it stays whole behind, with the reason.
    const stateById = new Map(all.map((behind) => [idOf(behind.tbl, behind.key), behind.state]))
    yield* keep(
      delivery,
      refused.map(({ item, error }) => ({ tbl: item.target.tbl, key: item.key, row: stateById.get(idOf(item.target.tbl, item.key)) ?? null, error })),
    )
  })
