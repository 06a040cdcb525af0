/**
 * One part of a cut inside its transaction: capture is off, open writes are frozen first, so that no pulled value is taken
 * for a local edit. Rows with pending or held edits stay as they are and what came for them waits behind.
 *
 *     freeze ─> settle ledger rows ─> records ─> end holds ─> shield ─> rows ─> release
 */
import * as Effect from "effect/Effect"
import { OPEN } from "../libsql/changes.ts"
import type { LibsqlError, Tx } from "../libsql/client.ts"
import { freezeOpen } from "../libsql/freeze.ts"
import type { WaitingKeys } from "../libsql/load.ts"
import { type Delivery, idOf, type Item, type Part, type Target } from "./delivery.ts"
import { endHolds, recordsOf } from "./hold.ts"
import { forgetBehind, keepBehind, keepRefused, releaseRows, settleBatches, type Touched } from "./settle.ts"
import { showRows } from "./show.ts"

/** Up to so many shielded rows are read whole; of more, the part's own are looked up. */
const SHIELD_READ = 1_000

/** Open writes that a delivering transaction freezes itself; more are frozen before it. */
const FREEZE_IN_PLACE = 100

/** `backlog`: more writes that no batch carries yet than are frozen on the way; `open`: some; `quiet`: nothing at all of the school waits, nor waits anything for it. */
export type Waiting = "backlog" | "open" | "some" | "quiet"

/** An expression for what waits. */
export const WAITING = `CASE (SELECT count(*) FROM (SELECT 1 FROM changes WHERE ${OPEN} LIMIT ${FREEZE_IN_PLACE + 1})) WHEN ${FREEZE_IN_PLACE + 1} THEN 'backlog'
  WHEN 0 THEN CASE WHEN EXISTS (SELECT 1 FROM changes) OR EXISTS (SELECT 1 FROM schoolbus_hold) OR EXISTS (SELECT 1 FROM schoolbus_behind)
    THEN 'some' ELSE 'quiet' END
  ELSE 'open' END`

export const readWaiting = (tx: Tx): Effect.Effect<Waiting, LibsqlError> =>
  Effect.map(tx.all<{ waiting: Waiting }>(`SELECT ${WAITING} AS waiting`), ([row]) => row?.waiting ?? "open")

export const CAPTURE_OFF = "UPDATE schoolbus_deliver SET active = 1"
export const CAPTURE_ON = "UPDATE schoolbus_deliver SET active = 0"

/** Runs a body with capture off. The flag is never seen outside: it is taken back before the commit. */
export const delivering = <A, E>(delivery: Delivery, hasOpen: boolean, body: Effect.Effect<A, E>): Effect.Effect<A, E | LibsqlError> =>
  Effect.gen(function* () {
    const { tx, manifest, now } = delivery
    yield* tx.ahead(CAPTURE_OFF)
    if (hasOpen) yield* freezeOpen(tx, manifest, now)
    const value = yield* body
    yield* tx.ahead(CAPTURE_ON)
    return value
  })

interface Shield {
  readonly pending: ReadonlySet<string>
  readonly held: ReadonlySet<string>
}

const PENDING = `SELECT tbl, key FROM changes WHERE batch IS NOT NULL UNION ALL SELECT tbl, new_key FROM changes WHERE new_key IS NOT NULL AND batch IS NOT NULL`
const HELD = "SELECT DISTINCT tbl, key FROM schoolbus_hold"
const isPending = `EXISTS (SELECT 1 FROM changes c WHERE c.batch IS NOT NULL AND c.tbl = j.value ->> 0 AND c.key = j.value ->> 1)
  OR EXISTS (SELECT 1 FROM changes c WHERE c.new_key IS NOT NULL AND c.tbl = j.value ->> 0 AND c.new_key = j.value ->> 1)`
const isHeld = "EXISTS (SELECT 1 FROM schoolbus_hold h WHERE h.tbl = j.value ->> 0 AND h.key = j.value ->> 1)"

/** Ids (`tbl key`) of rows that a pending change or a held value keeps; at least all of them that are among the items. */
const shieldOf = (tx: Tx, items: ReadonlyMap<string, Item>): Effect.Effect<Shield, LibsqlError> =>
  Effect.gen(function* () {
    const among = function* (all: string, one: string) {
      const some = yield* tx.all<{ tbl: number; key: string }>(`SELECT tbl, key FROM (${all}) LIMIT ${SHIELD_READ + 1}`)
      if (some.length <= SHIELD_READ) return new Set(some.map(({ tbl, key }) => idOf(tbl, key)))
      const keys = JSON.stringify([...items.values()].map((item) => [item.target.tbl, item.key]))
      const found = yield* tx.all<{ tbl: number; key: string }>(
        `SELECT j.value ->> 0 AS tbl, j.value ->> 1 AS key FROM json_each(?) j WHERE ${one}`,
        [keys],
      )
      return new Set(found.map(({ tbl, key }) => idOf(tbl, key)))
    }
    return { pending: yield* Effect.gen(() => among(PENDING, isPending)), held: yield* Effect.gen(() => among(HELD, isHeld)) }
  })

/** Of a table of which more rows wait, they are looked up one by one. */
const WAITING_KEYS = 1_000

/** Of these tables, the rows that must go the long way: with pending changes, held values, or kept behind; and those that are touched. */
export const waitingKeys = (tx: Tx, targets: ReadonlyArray<Target>, touched: Touched): Effect.Effect<WaitingKeys, LibsqlError> =>
  Effect.gen(function* () {
    const touchedByTbl = Map.groupBy(touched.values(), ({ tbl }) => tbl)
    const found = yield* Effect.all(
      targets.map(({ tbl }) =>
        tx.all<{ key: string }>(
          `SELECT key FROM changes WHERE tbl = ?1 AND batch IS NOT NULL UNION ALL SELECT new_key FROM changes WHERE tbl = ?1 AND new_key IS NOT NULL
            UNION ALL SELECT key FROM schoolbus_hold WHERE tbl = ?1 UNION ALL SELECT key FROM schoolbus_behind WHERE tbl = ?1 LIMIT ${WAITING_KEYS + 1}`,
          [tbl],
        ),
      ),
      { concurrency: "unbounded" },
    )
    return new Map(
      found.map((rows, i) => {
        const { table, tbl } = targets[i] as Target
        const also = new Set(touchedByTbl.get(tbl)?.map(({ key }) => key))
        return [
          table.name,
          rows.length > WAITING_KEYS ? { tbl, also, among: WAITING_AMONG } : new Set([...also, ...rows.map(({ key }) => key)]),
        ] as const
      }),
    )
  })

/** Which of the local keys ?2, a JSON list, wait in table number ?1. */
const WAITING_AMONG = `SELECT j.value FROM json_each(?2) j
  WHERE EXISTS (SELECT 1 FROM changes c WHERE c.tbl = ?1 AND c.key = j.value AND c.batch IS NOT NULL)
     OR EXISTS (SELECT 1 FROM changes c WHERE c.tbl = ?1 AND c.new_key = j.value AND c.new_key IS NOT NULL)
     OR EXISTS (SELECT 1 FROM schoolbus_hold h WHERE h.tbl = ?1 AND h.key = j.value)
     OR EXISTS (SELECT 1 FROM schoolbus_behind b WHERE b.tbl = ?1 AND b.key = j.value)`

const inKeyOrder = (items: ReadonlyArray<Item>): ReadonlyArray<Item> =>
  items.toSorted((a, b) => (a.target !== b.target ? a.target.tbl - b.target.tbl : a.key < b.key ? -1 : 1))

/** Writes a part; answers the batches that it settled. `met`: its keys are noted for the sweep of a full cut. `touched`: rows that are released as well. */
export const applyPart = (
  delivery: Delivery,
  part: Pick<Part, "items" | "ledger">,
  met: boolean,
  touched: Touched = new Map(),
): Effect.Effect<ReadonlyArray<number>, LibsqlError> =>
  Effect.gen(function* () {
    const { tx } = delivery
    const { batches, records: begun, lost, left } = yield* settleBatches(delivery, part.ledger, touched)
    if (met) {
      const keys = [...part.items.values()].filter((item) => item.values !== null).map((item) => [item.target.tbl, item.key])
      yield* tx.run("INSERT OR IGNORE INTO schoolbus_met (tbl, key) SELECT value ->> 0, value ->> 1 FROM json_each(?)", [JSON.stringify(keys)])
    }
    if (delivery.isQuiet && touched.size === 0) {
      const [records, rows] = [true, false].map((isRecord) => [...part.items.values()].filter(({ target }) => target.isRecord === isRecord))
      const refused = [...(yield* showRows(tx, records ?? [])), ...(yield* showRows(tx, inKeyOrder(rows ?? [])))]
      delivery.isQuiet = refused.length === 0
      yield* keepRefused(delivery, refused)
      return batches
    }
    const items = [...part.items].filter(([, { target }]) => !target.isRecord)
    const records = [...part.items.values()].filter(({ target }) => target.isRecord)
    yield* keepRefused(delivery, yield* showRows(tx, records))
    // Rows under a hold are released at once: only what is held of them waits.
    const ended = yield* endHolds(delivery, [...begun, ...recordsOf(records)])
    for (const { tbl, key } of ended.rows) if (!touched.has(idOf(tbl, key))) touched.set(idOf(tbl, key), { tbl, key, batch: null })
    const shield = yield* shieldOf(tx, part.items)
    const fresh = new Map<string, Item>()
    const kept: Array<Item> = []
    const free: Array<Item> = []
    for (const [id, item] of items) {
      if (!touched.has(id) && shield.pending.has(id)) kept.push(item)
      else if (touched.has(id) || shield.held.has(id)) {
        fresh.set(id, item)
        if (!touched.has(id)) touched.set(id, { tbl: item.target.tbl, key: item.key, batch: null })
      } else free.push(item)
    }
    yield* keepBehind(delivery, kept)
    yield* forgetBehind(delivery, free)
    yield* keepRefused(delivery, yield* showRows(tx, inKeyOrder(free)))
    const restore = new Map([...lost.map((id) => [id, null] as const), ...ended.restore])
    yield* releaseRows(delivery, touched, fresh, restore, left)
    return batches
  })
