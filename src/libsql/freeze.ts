/**
 * Open captured writes -> numbered frozen batches. Runs inside one write transaction of the caller, so the current rows
 * and the captured old values are of one moment. Every captured write becomes one change, in the order of its capture;
 * writes that changed nothing leave `changes`. `open-writes.ts` reads them, `history.ts` decides what each of them means; of
 * runs in which that is plain SQLite makes the lines itself.
 *
 *     page of open writes ─> current rows and next old values ─> history ─> changes ─> bytes, hash ─> schoolbus_batch
 *     run of plain ones (lines.ts, gather.ts) ─────────────────────────────────────────────┘
 */
import { Buffer } from "node:buffer"
import * as Effect from "effect/Effect"
import { encodeChange, MAX_CHANGE_BYTES } from "../model/batch.ts"
import type { Change } from "../model/change.ts"
import { type Column, isThrough, type Manifest, type Table } from "../model/table.ts"
import { type Cell, isRefused, type Refused, type Wire } from "../model/value.ts"
import { bondedCuts, bondsOf } from "./bond.ts"
import { readWire, sameRaw } from "./cells.ts"
import type { LibsqlError, Tx } from "./client.ts"
import { computedAt, emptiedBy, type Removed, restoreComputed } from "./computed.ts"
import { isCleanText, type Lines } from "./gather.ts"
import { type Captured, type Outcome, resolve, safeCuts, type Values } from "./history.ts"
import { linesSql, MAX_PLAIN_COLUMNS } from "./lines.ts"
import { settleOps, storeBatch, type StoredBatch, useUp } from "./store-batch.ts"
import { type Page, readBeyond, readGone, readPage, readSources, type Source } from "./open-writes.ts"

/** A batch ends at the first of both: the write lock is then held well under 200 ms. */
export const BATCH_CHANGES = 2_000
export const BATCH_BYTES = 4 * 1024 * 1024

/** Captured writes read at once: few at first, then as many as their size allows. */
const FIRST_PAGE = 128
const PAGE_GROWTH = 8

/** Captured writes looked at in one call, also when they turn out to have changed nothing. */
export const MAX_LOOKED_AT = 3_000

/** A run of fewer plain writes is not worth its query; after this many such runs the rest of a batch is read page by page. */
const LEAST_PLAIN = 16
const MAX_SHORT_RUNS = 2

export interface FreezeOptions {
  readonly maxChanges?: number
  /** false: also plain writes are read page by page. */
  readonly plain?: boolean
  /** Captured writes read at first. */
  readonly pageRows?: number
  /** Tables of the manifest that a program dropped. */
  readonly gone?: ReadonlySet<string>
}

export interface Frozen {
  /** 0 or 1. */
  readonly batches: number
  readonly changes: number
  readonly batch?: StoredBatch
  /** More is open: call again. */
  readonly isMore: boolean
}

const utf8 = new TextEncoder()

/** The values that travel: not what Postgres computes, nor columns that a program took out of the file. */
const record = (source: Source, values: Values, isWanted: (column: Column, i: number) => boolean): Record<string, Wire | Refused> => {
  const wires: Record<string, Wire | Refused> = {}
  source.table?.columns.forEach((column, i) => {
    if (source.present.has(i) && isWanted(column, i)) wires[column.name] = readWire(column.kind, values[i] ?? null)
  })
  return wires
}
const isSent = ({ generated }: Column): boolean => !generated
/** Of a row that stands no longer under its key: whoever gives up the change that took it away brings it back whole. */
const isAny = (): boolean => true

/** A key value that cannot travel stands as its local form, while base or mine say what is wrong with it. */
const wireKeyOf = (table: Table, values: Values): ReadonlyArray<Wire> =>
  table.key.map((name) => {
    const i = table.columns.findIndex((column) => column.name === name)
    const wire = readWire(table.columns[i]?.kind ?? "text", values[i] ?? null)
    return isRefused(wire) ? `${wire.refused}: ${wire.hex}` : wire
  })

/** The change that a captured write makes; null when it changed nothing. */
const toChange = (row: Captured, outcome: Outcome, source: Source | undefined): Change | null => {
  if (outcome.kind === "strange") return unlistedChange(row, STRANGE)
  if (source?.table === undefined) return unlistedChange(row, source)
  const { table } = source
  // Of a dropped table no row is gone for having been displaced, and values that only stood in it are lost with it.
  if (source.isGone === true && outcome.kind === "delete" && row.op !== "D") return null
  const common = { id: row.id, table: table.name, key: wireKeyOf(table, row.old), at: row.at }
  switch (outcome.kind) {
    case "drop":
      return null
    case "insert":
      return { ...common, op: "insert", base: {}, mine: record(source, outcome.mine, isSent) }
    case "delete":
      return { ...common, op: "delete", base: record(source, outcome.base, isAny), mine: {} }
    case "update": {
      const { base, mine } = outcome
      const mineChanged = record(source, mine, (column, i) => isSent(column) && !sameRaw(base[i] ?? null, mine[i] ?? null))
      if (row.newKey === null && Object.keys(mineChanged).length === 0) return null
      const newKey = row.newKey === null ? {} : { newKey: wireKeyOf(table, mine) }
      return { ...common, op: "update", ...newKey, base: record(source, base, row.newKey === null ? isSent : isAny), mine: mineChanged }
    }
  }
}

/** A change as a line that a batch has room for: values give way, the largest first. */
const encodeFitting = (change: Change): string => {
  const line = encodeChange(change)
  if (Buffer.byteLength(line) <= MAX_CHANGE_BYTES) return line
  const sizeOf = (value: Wire | Refused): number => Buffer.byteLength(JSON.stringify(value))
  const sizes = [change.base, change.mine].flatMap((values) => Object.entries(values).map(([name, value]) => ({ values, name, size: sizeOf(value) })))
  const largest = sizes.sort((a, b) => b.size - a.size)[0]
  if (largest === undefined || isRefused(largest.values[largest.name] ?? null)) return line
  const { values, name, size } = largest
  const refused = { refused: `a value of ${size} bytes; a change has room for ${MAX_CHANGE_BYTES}, so it stays in the school's file`, hex: "" }
  const without = (side: Record<string, Wire | Refused>) => (side === values ? { ...side, [name]: refused } : side)
  return encodeFitting({ ...change, base: without(change.base), mine: without(change.mine) })
}

/** Where a program wrote by itself what only triggers write: kept by the hub under this name, for a person. */
const STRANGE = { name: "changes" }

/** The table left the manifest, so its columns have no names: kept as what is known, for the hub's record. */
const unlistedChange = (row: Captured, source: Pick<Source, "name"> | undefined): Change | null => {
  if (row.op === "R") return null
  const base = Object.fromEntries(row.old.flatMap((cell: Cell, i) => (cell === null ? [] : [[`v${i}`, readWire("text", cell)] as const])))
  const op = row.op === "D" ? "delete" : row.op === "U" ? "update" : "insert"
  return { id: row.id, table: source?.name ?? `table ${row.tbl}`, op, key: [row.key], at: row.at, base, mine: {} }
}

/** What a page gives to a batch. */
interface Taken {
  /** Rows of the page that are dealt with. */
  readonly count: number
  readonly lines: ReadonlyArray<string>
  /** The table of each line. */
  readonly tables: ReadonlyArray<string>
  readonly bytes: number
  readonly dropped: ReadonlyArray<number>
  /** Rows that stand as R or U and were deletes. */
  readonly deletes: ReadonlyArray<number>
  /** Inserts that were updates, with the R that holds their old values. */
  readonly updates: ReadonlyArray<readonly [id: number, note: number]>
}

/** As many rows as have room; `isFirst`: more when they cannot be parted, so that a batch is never empty. */
const take = (
  page: Page,
  outcomes: ReadonlyArray<Outcome>,
  sources: ReadonlyMap<number, Source>,
  maxChanges: number,
  maxBytes: number,
  isFirst: boolean,
  bonded: ReadonlyArray<boolean>,
): Taken => {
  const cuts = safeCuts(page.rows, page.isMore).map((isSafe, n) => isSafe && bonded[n] !== true)
  const lines: Array<string> = []
  const tables: Array<string> = []
  const dropped: Array<number> = []
  const deletes: Array<number> = []
  const updates: Array<readonly [number, number]> = []
  let bytes = 0
  let best = { count: 0, lines: 0, bytes: 0, dropped: 0, deletes: 0, updates: 0 }
  for (let i = 0; i < page.rows.length; i++) {
    const row = page.rows[i] as Captured
    const outcome = outcomes[i] as Outcome
    const change = toChange(row, outcome, sources.get(row.tbl))
    if (change === null) dropped.push(row.id)
    else {
      const line = encodeFitting(change)
      lines.push(line)
      tables.push(change.table)
      bytes += line.length
      if (outcome.kind === "delete" && row.op !== "D") deletes.push(row.id)
      if (outcome.kind === "update" && outcome.note !== null) updates.push([row.id, outcome.note])
    }
    if (cuts[i + 1] !== true) continue
    const isFull = lines.length > maxChanges || bytes > maxBytes
    if (!isFull || (isFirst && best.count === 0)) {
      best = { count: i + 1, lines: lines.length, bytes, dropped: dropped.length, deletes: deletes.length, updates: updates.length }
    }
    if (isFull) break
  }
  return {
    count: best.count,
    lines: lines.slice(0, best.lines),
    tables: tables.slice(0, best.lines),
    bytes: best.bytes,
    dropped: dropped.slice(0, best.dropped),
    deletes: deletes.slice(0, best.deletes),
    updates: updates.slice(0, best.updates),
  }
}

/** The run of plain writes that the open writes begin with after `after`; null: none. */
export const takePlain = (
  tx: Tx,
  tables: ReadonlyMap<string, Table>,
  sources: Map<number, Source>,
  isBonded: (tbl: number) => boolean,
  after: number,
  room: { readonly writes: number; readonly bytes: number; readonly isEmpty: boolean },
): Effect.Effect<(Lines & { readonly table: string }) | null, LibsqlError> =>
  Effect.gen(function* () {
    const [next] = yield* tx.all<{ tbl: number }>("SELECT tbl FROM changes WHERE batch IS NULL AND id > ? ORDER BY id LIMIT 1", [after])
    if (next === undefined || isBonded(next.tbl)) return null
    yield* readSources(tx, tables, [next.tbl], sources)
    const { table, present, isGone }: Partial<Source> = sources.get(next.tbl) ?? {}
    if (table === undefined || present === undefined || isGone === true) return null
    if (!table.key.every((name) => present.has(table.columns.findIndex((column) => column.name === name)))) return null
    const columns = table.columns.flatMap((column, i) => (!column.generated && present.has(i) ? [i] : []))
    if (columns.length > MAX_PLAIN_COLUMNS) return null
    const query = linesSql(table, next.tbl, columns, computedAt({ table, present }))
    const found = yield* tx.lines({ ...query, after, writes: room.writes, maxBytes: room.bytes, isFirst: room.isEmpty })
    return found.count > 0 && isCleanText(found.bytes) ? { ...found, table: table.name } : null
  })

/** The manifest's tables that stand in the file. */
const readNumbered = (tx: Tx, tables: ReadonlyMap<string, Table>) =>
  Effect.map(
    tx.all<{ id: number; name: string }>(
      "SELECT t.id, t.name FROM schoolbus_tables t JOIN sqlite_master m ON m.type = 'table' AND m.name = t.local COLLATE NOCASE",
    ),
    (rows) =>
      rows.flatMap(({ id, name }) => {
        const table = tables.get(name)
        return table === undefined ? [] : [{ tbl: id, table }]
      }),
  )

/** Rows that travel with the link that places them, and the tables of both. */
export const readBonds = (tx: Tx, manifest: Manifest, tables: ReadonlyMap<string, Table>) =>
  Effect.gen(function* () {
    const bonds = manifest.tables.some(({ audience }) => isThrough(audience)) ? bondsOf(yield* readNumbered(tx, tables)) : []
    return { bonds, bonded: new Set(bonds.flatMap(({ row, link }) => [row.tbl, link.tbl])) }
  })

/** Freezes the oldest open writes into one batch. */
export const freeze = (tx: Tx, manifest: Manifest, now: number, options: FreezeOptions = {}): Effect.Effect<Frozen, LibsqlError> =>
  Effect.gen(function* () {
    const maxChanges = options.maxChanges ?? BATCH_CHANGES
    const tables = new Map(manifest.tables.map((table) => [table.name, table]))
    const sources = new Map<number, Source>()
    if (options.gone !== undefined) yield* readGone(tx, tables, options.gone, sources)
    const [info] = yield* tx.all<{ width: number; frozenTo: number | null }>(
      `SELECT count(*) AS width, (SELECT frozen_to FROM schoolbus_state) AS frozenTo FROM pragma_table_info('changes') WHERE name GLOB 'v[0-9]*'`,
    )
    const width = info?.width ?? 0
    const { bonds, bonded } = yield* readBonds(tx, manifest, tables)
    const lines: Array<Uint8Array> = []
    const byTable: Record<string, number> = {}
    const removed: Removed = new Map()
    const count = (table: string, n: number): void => {
      byTable[table] = (byTable[table] ?? 0) + n
    }
    let changes = 0
    let bytes = 0
    let firstId = 0
    let lastId = info?.frozenTo ?? 0
    let lookedAt = 0
    let shortRuns = options.plain === false ? MAX_SHORT_RUNS : 0
    let isMore = true
    const isFull = (): boolean => changes >= maxChanges || bytes >= BATCH_BYTES || lookedAt >= MAX_LOOKED_AT
    const firstPage = options.pageRows ?? FIRST_PAGE
    let limit = firstPage
    for (;;) {
      if (shortRuns < MAX_SHORT_RUNS) {
        const room = { writes: Math.min(maxChanges - changes, MAX_LOOKED_AT - lookedAt), bytes: BATCH_BYTES - bytes, isEmpty: changes === 0 }
        const run = yield* takePlain(tx, tables, sources, (tbl) => bonded.has(tbl), lastId, room)
        if (run === null || run.count < LEAST_PLAIN) shortRuns++
        if (run !== null) {
          yield* settleOps(tx, width, { deletes: [], updates: [], dropped: run.dropped })
          lines.push(run.bytes)
          if (run.lines > 0) count(run.table, run.lines)
          changes += run.lines
          bytes += run.bytes.length
          firstId ||= run.firstId
          lastId = run.lastId
          lookedAt += run.count
        }
        if (isFull()) break
      }
      const page = yield* readPage(tx, width, lastId, limit)
      isMore = page.rows.length > 0
      if (!isMore) break
      yield* readSources(
        tx,
        tables,
        page.rows.map((row) => row.tbl),
        sources,
      )
      const outcomes = resolve(page.rows, yield* readBeyond(tx, width, page, sources))
      const held = bonds.length === 0 ? [] : yield* bondedCuts(tx, bonds, page.rows, outcomes, page.isMore)
      const taken = take(page, outcomes, sources, maxChanges - changes, BATCH_BYTES - bytes, changes === 0, held)
      if (taken.count === 0 && changes > 0) break
      if (taken.count === 0) {
        // One statement's writes fill the page: they go together.
        limit *= PAGE_GROWTH
        continue
      }
      yield* restoreComputed(tx, emptiedBy(page.rows.slice(0, taken.count), outcomes, sources, removed))
      yield* settleOps(tx, width, taken)
      lines.push(utf8.encode(taken.lines.join("")))
      for (const table of taken.tables) count(table, 1)
      changes += taken.lines.length
      bytes += taken.bytes
      firstId ||= page.rows[0]?.id ?? 0
      lastId = page.rows[taken.count - 1]?.id ?? lastId
      lookedAt += taken.count
      isMore = page.isMore || taken.count < page.rows.length
      if (!isMore || isFull()) break
      const room = Math.ceil(((BATCH_BYTES - bytes) * taken.count) / Math.max(1, taken.bytes))
      limit = Math.max(firstPage, Math.min(limit * PAGE_GROWTH, room, maxChanges - changes))
    }
    if (lookedAt > 0) yield* useUp(tx, lastId)
    if (changes === 0) return { batches: 0, changes: 0, isMore }
    const { batch } = yield* storeBatch(tx, { manifest, now, changes, tables: byTable, lines, firstId, lastId })
    return { batches: 1, changes, batch, isMore }
  })

/** Freezes all that is open, in as many batches as it takes. */
export const freezeOpen = (tx: Tx, manifest: Manifest, now: number, options: FreezeOptions = {}): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    while ((yield* freeze(tx, manifest, now, options)).isMore);
  })
