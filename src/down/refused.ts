/** Rows behind that could not be applied, tried again: what kept them out may be gone. */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "../libsql/client.ts"
import { parseLocalKey } from "../model/key.ts"
import { type Delivery, idOf, type Item, type Row } from "./delivery.ts"
import { endHolds, recordsOf } from "./hold.ts"
import { forgetBehind, releaseRows, type Touched } from "./settle.ts"
import { showRows } from "./show.ts"

/** Records that came late: what they held. */
const releaseHolds = (delivery: Delivery, shown: ReadonlyArray<Item>): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const ended = yield* endHolds(delivery, recordsOf(shown))
    const touched: Touched = new Map(ended.rows.map(({ tbl, key }) => [idOf(tbl, key), { tbl, key, batch: null }]))
    yield* releaseRows(delivery, touched, new Map(), ended.restore)
  })

/** A place in the list of rows behind, exclusive. */
export type BehindPlace = readonly [tbl: number, key: string]

export interface Retry {
  /** null = from the end that comes first in this direction. */
  readonly after: BehindPlace | null
  /** By key. A chain of unique values resolves in one pass when the pass begins at its free end. */
  readonly direction: "up" | "down"
  readonly limit: number
  /** Only rows that a unique value keeps out: those may wait for each other. */
  readonly uniqueOnly: boolean
}

export interface Retried {
  readonly tried: number
  readonly left: number
  /** Where to go on; null = that were the last. */
  readonly next: BehindPlace | null
}

/** Tries rows again that could not be applied and on which nothing of the school waits. */
export const retrySome = (delivery: Delivery, { after, direction, limit, uniqueOnly }: Retry): Effect.Effect<Retried, LibsqlError> =>
  Effect.gen(function* () {
    const { tx } = delivery
    const order = direction === "up" ? "ASC" : "DESC"
    const rows = yield* tx.all<{ tbl: number; key: string; row: string | null; error: string }>(
      `SELECT tbl, key, row, error FROM schoolbus_behind b WHERE error IS NOT NULL
          ${after === null ? "" : `AND (tbl, key) ${direction === "up" ? ">" : "<"} (?2, ?3)`}
          ${uniqueOnly ? "AND error LIKE 'UNIQUE constraint%'" : ""}
          AND NOT EXISTS (SELECT 1 FROM changes c WHERE c.tbl = b.tbl AND c.key = b.key AND c.batch IS NOT NULL)
          AND NOT EXISTS (SELECT 1 FROM changes c WHERE c.tbl = b.tbl AND c.new_key = b.key AND c.new_key IS NOT NULL)
          AND NOT EXISTS (SELECT 1 FROM schoolbus_hold h WHERE h.tbl = b.tbl AND h.key = b.key)
          AND tbl NOT IN (SELECT t.id FROM schoolbus_tables t JOIN schoolbus_unfit u ON u.name = t.name UNION ALL SELECT tbl FROM schoolbus_gap)
        ORDER BY tbl ${order}, key ${order} LIMIT ?1`,
      [limit, ...(after ?? [])],
    )
    const items = rows.flatMap(({ tbl, key, row }): ReadonlyArray<Item> => {
      const target = delivery.byTbl.get(tbl)
      const keyCells = parseLocalKey(key)
      if (target === undefined || keyCells === null) return []
      const state = row === null ? null : (JSON.parse(row) as Row)
      return [{ target, key, keyCells, columns: state === null ? [] : Object.keys(state), values: state === null ? null : Object.values(state) }]
    })
    const refused = new Map((yield* showRows(tx, items)).map((one) => [idOf(one.item.target.tbl, one.item.key), one.error]))
    const shown = items.filter((item) => !refused.has(idOf(item.target.tbl, item.key)))
    yield* forgetBehind(delivery, shown)
    yield* releaseHolds(delivery, shown)
    const changed = rows.filter(({ tbl, key, error }) => (refused.get(idOf(tbl, key)) ?? error) !== error)
    yield* tx.many(
      "UPDATE schoolbus_behind SET error = ? WHERE tbl = ? AND key = ?",
      changed.map(({ tbl, key }) => [refused.get(idOf(tbl, key)) ?? null, BigInt(tbl), key]),
    )
    const last = rows.at(-1)
    const left = rows.length - items.length + refused.size
    return { tried: rows.length, left, next: last === undefined || rows.length < limit ? null : [last.tbl, last.key] }
  })

/** How many rows wait behind because they could not be applied, counted up to `limit`. */
export const countRefused = (tx: Tx, limit: number): Effect.Effect<number, LibsqlError> =>
  Effect.map(
    tx.all<{ n: number }>("SELECT count(*) AS n FROM (SELECT 1 FROM schoolbus_behind WHERE error IS NOT NULL LIMIT ?)", [limit]),
    ([row]) => row?.n ?? 0,
  )

/** Tries all of them together until none moves; for a list that is short. */
export const retryTogether = (delivery: Delivery, uniqueOnly = false): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    for (let before = Number.POSITIVE_INFINITY; ; ) {
      const { left } = yield* retrySome(delivery, { after: null, direction: "up", limit: Number.MAX_SAFE_INTEGER, uniqueOnly })
      if (left === 0 || left >= before) return
      before = left
    }
  })
