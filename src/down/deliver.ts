/**
 * School side of the way down. A cut that came as one page is applied in one transaction with its cursor; a longer one is
 * staged as received and applied in chunks, highest class and parents first, guarded by `applying`. Rows with pending
 * local changes are kept `behind`; a ledger row settles its batch and releases what waited for it. One row never stops a cut.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { hasOpen } from "../libsql/changes.ts"
import { Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import { freezeOpen } from "../libsql/freeze.ts"
import type { Header, Line, Staged, Trailer } from "../link/protocol.ts"
import type { Cursor } from "../model/cursor.ts"
import { localKeyOf, localKeySql } from "../model/key.ts"
import type { Manifest, Table } from "../model/table.ts"
import type { Cell, Wire } from "../model/value.ts"
import { deleteRows, type Put, showRows } from "./show.ts"
import { endHolds, keepBehind, keyCellsOf, releaseKeys, retryBehind, settleBatches, type Touched } from "./settle.ts"

export type RowsLine = Extract<Line, readonly ["rows", ...ReadonlyArray<unknown>]>

/** Write lock that one chunk aims at, half of what a program may have to wait at most. */
const CHUNK_MS = 100
const CHUNK_LINES = { least: 1, first: 8, most: 64 }
/** Rows that a full cut's sweep removes in one transaction. */
const SWEEP_ROWS = 2_000

/** The page is not for this file as it stands; `reason` says which. Nothing was written. */
export class DeliverRefused extends Data.TaggedError("DeliverRefused")<{
  readonly reason: "school" | "manifest" | "epoch"
  readonly message: string
}> {}

export interface Delivered {
  readonly rows: number
  /** Batches whose ledger row came. */
  readonly settled: ReadonlyArray<number>
  readonly cursor: Cursor
  /** Rows that are kept behind now. */
  readonly behind: number
  /** A complete cut has become visible. */
  readonly applied: boolean
}

interface Applying {
  readonly header: Header
  /** Keys are noted and what was not met is removed at the end. */
  readonly sweep: boolean
}

interface StateRow {
  readonly incarnation: string
  readonly school: string | null
  readonly epoch: string
  readonly seq: number
  readonly cut: string
  readonly manifest: string | null
  readonly applying: string | null
}

export interface Delivery {
  readonly tx: Tx
  readonly manifest: Manifest
  readonly tables: ReadonlyMap<string, { readonly table: Table; readonly tbl: number }>
  readonly incarnation: string
  readonly now: number
}

export class Deliver extends Context.Service<
  Deliver,
  {
    readonly cursor: Effect.Effect<Cursor, LibsqlError>
    /** What is durably staged, to be named in the next pull; null = nothing. */
    readonly staged: Effect.Effect<Staged | null, LibsqlError>
    /** One page, or the part of it that arrived before the line broke (trailer null). Returns after it is durable. */
    readonly page: (header: Header, lines: ReadonlyArray<RowsLine>, trailer: Trailer | null) => Effect.Effect<Delivered, LibsqlError | DeliverRefused>
    /** Goes on with a cut whose applying was interrupted; before anything else at start. */
    readonly resume: Effect.Effect<void, LibsqlError>
    readonly discardStaging: Effect.Effect<void, LibsqlError>
  }
>()("schoolbus/down/Deliver") {
  static readonly layer: Layer.Layer<Deliver, never, Libsql> = Layer.effect(
    Deliver,
    Effect.gen(function* () {
      const db = yield* Libsql

      const readState = (tx: Tx) =>
        Effect.map(
          tx.all<StateRow>("SELECT incarnation, school, epoch, seq, cut, manifest, applying FROM schoolbus_state"),
          ([row]) => row as StateRow,
        )

      const open = Effect.fnUntraced(function* (tx: Tx) {
        const state = yield* readState(tx)
        const manifest = JSON.parse(state.manifest ?? '{"version":0,"school":{"id":"","name":""},"tables":[]}') as Manifest
        const ids = new Map((yield* tx.all<{ id: number; name: string }>("SELECT id, name FROM schoolbus_tables")).map((row) => [row.name, row.id]))
        const delivery: Delivery = {
          tx,
          manifest,
          tables: new Map(manifest.tables.map((table) => [table.name, { table, tbl: ids.get(table.name) ?? 0 }])),
          incarnation: state.incarnation,
          now: yield* Clock.currentTimeMillis,
        }
        return { state, delivery }
      })

      /** Runs a body with capture off; open writes are frozen first, so that no pulled value is taken for a local edit. */
      const delivering = <A>(delivery: Delivery, body: Effect.Effect<A, LibsqlError>): Effect.Effect<A, LibsqlError> =>
        Effect.gen(function* () {
          const { tx, manifest, now } = delivery
          if (yield* hasOpen(tx)) yield* freezeOpen(tx, manifest, now)
          yield* tx.run("UPDATE schoolbus_deliver SET active = 1")
          const value = yield* body
          yield* tx.run("UPDATE schoolbus_deliver SET active = 0")
          return value
        })

      /** Writes the rows of some lines; answers which batches they settle. */
      const applyLines = Effect.fnUntraced(function* (delivery: Delivery, lines: ReadonlyArray<RowsLine>, sweep: boolean) {
        const { tx } = delivery
        const puts = new Map<string, Put>()
        const deletes = new Map<string, { readonly table: Table; readonly tbl: number; readonly key: string; readonly cells: ReadonlyArray<Cell> }>()
        const ledger: Array<Readonly<Record<string, Wire>>> = []
        const ended: Array<string> = []
        let rows = 0
        for (const [, , , name, columns, lineRows] of lines) {
          const entry = delivery.tables.get(name)
          rows += lineRows.length
          if (entry === undefined) continue
          const { table, tbl } = entry
          const known = new Set(table.columns.map((column) => column.name))
          const isRecord = name === "schoolbus.conflicts" || name === "schoolbus.quarantine"
          for (const [keyValues, values] of lineRows) {
            const row =
              values === null
                ? null
                : Object.fromEntries(columns.flatMap((column, i) => (known.has(column) && i < values.length ? [[column, values[i] ?? null]] : [])))
            if (name === "schoolbus.ledger") {
              if (row !== null) ledger.push(row)
              continue
            }
            if (isRecord && (row === null || row["status"] !== "open")) ended.push(String(keyValues[0]))
            const cells = keyCellsOf(table, keyValues)
            const key = localKeyOf(cells)
            const id = `${tbl} ${key}`
            if (row === null) {
              puts.delete(id)
              deletes.set(id, { table, tbl, key, cells })
            } else {
              deletes.delete(id)
              puts.set(id, { table, tbl, key, keyCells: cells, row })
            }
          }
        }
        if (sweep) {
          const met = [...puts.values()].map((put) => [put.tbl, put.key])
          yield* tx.run("INSERT OR IGNORE INTO schoolbus_met (tbl, key) SELECT value ->> 0, value ->> 1 FROM json_each(?)", [JSON.stringify(met)])
        }
        const shielded = yield* shieldedOf(tx, [...puts.keys(), ...deletes.keys()])
        for (const id of shielded) {
          const put = puts.get(id)
          const gone = deletes.get(id)
          if (put !== undefined) yield* keepBehind(delivery, put.tbl, put.key, put.row, null)
          else if (gone !== undefined) yield* keepBehind(delivery, gone.tbl, gone.key, null, null)
          puts.delete(id)
          deletes.delete(id)
        }
        yield* forgetBehind(tx, [...puts.keys(), ...deletes.keys()])
        const byTable = new Map<Table, Array<ReadonlyArray<Cell>>>()
        for (const { table, cells } of deletes.values()) byTable.set(table, [...(byTable.get(table) ?? []), cells])
        for (const [table, keys] of byTable) yield* deleteRows(tx, table, keys)
        const ordered = [...puts.values()].sort((a, b) => (a.tbl !== b.tbl ? 0 : a.key < b.key ? -1 : 1))
        for (const { put, error } of yield* showRows(tx, ordered)) yield* keepBehind(delivery, put.tbl, put.key, put.row, error)
        return { rows, ledger, ended }
      })

      /** Ends what the cut's ledger rows and decisions end; then every row that nothing holds back is tried again. */
      const finish = Effect.fnUntraced(function* (
        delivery: Delivery,
        ledger: ReadonlyArray<Readonly<Record<string, Wire>>>,
        ended: ReadonlyArray<string>,
      ) {
        const touched: Touched = new Map()
        const settled = yield* settleBatches(delivery, ledger, touched)
        yield* endHolds(delivery, ended, touched)
        yield* releaseKeys(delivery, touched)
        yield* retryBehind(delivery)
        return settled
      })

      const setCursor = (tx: Tx, header: Header) =>
        tx.run("UPDATE schoolbus_state SET epoch = ?, seq = ?, cut = ?, applying = NULL", [header.epoch, header.head, header.headCut])

      const countBehind = (tx: Tx) => Effect.map(tx.all<{ n: number }>("SELECT count(*) AS n FROM schoolbus_behind"), ([row]) => row?.n ?? 0)

      /** Rows that a full cut did not name no longer exist at head office. */
      const sweepTable = Effect.fnUntraced(function* (delivery: Delivery, table: Table, tbl: number) {
        const { tx } = delivery
        const quoted = localKeySql(table, "")
        const gone = yield* tx.values(
          `SELECT ${quoted}, ${table.key.map(quoteName).join(", ")} FROM ${quoteName(table.local)}
            WHERE NOT EXISTS (SELECT 1 FROM schoolbus_met m WHERE m.tbl = ?1 AND m.key = ${quoted})
              AND NOT EXISTS (SELECT 1 FROM schoolbus_behind b WHERE b.tbl = ?1 AND b.key = ${quoted} AND b.row IS NULL) LIMIT ${SWEEP_ROWS}`,
          [tbl],
        )
        const shielded = yield* shieldedOf(
          tx,
          gone.map(([key]) => `${tbl} ${String(key)}`),
        )
        const free = gone.filter(([key]) => !shielded.has(`${tbl} ${String(key)}`))
        for (const [key] of gone) if (shielded.has(`${tbl} ${String(key)}`)) yield* keepBehind(delivery, tbl, String(key), null, null)
        yield* deleteRows(
          tx,
          table,
          free.map(([, ...cells]) => cells),
        )
        return gone.length
      })

      const sweepable = (delivery: Delivery) =>
        [...delivery.tables.values()].filter(({ table }) => table.direction !== "up" && table.name !== "schoolbus.ledger")

      const hasRows = Effect.fnUntraced(function* (delivery: Delivery) {
        for (const { table } of sweepable(delivery)) {
          const [row] = yield* delivery.tx.all<{ n: number }>(`SELECT EXISTS (SELECT 1 FROM ${quoteName(table.local)}) AS n`)
          if (row?.n === 1) return true
        }
        return false
      })

      const applyStraight = (header: Header, lines: ReadonlyArray<RowsLine>) =>
        db.write((tx) =>
          Effect.gen(function* () {
            const { delivery } = yield* open(tx)
            return yield* delivering(
              delivery,
              Effect.gen(function* () {
                const sweep = header.full && (yield* hasRows(delivery))
                if (sweep) yield* tx.run("DELETE FROM schoolbus_met")
                const { rows, ledger, ended } = yield* applyLines(delivery, lines, sweep)
                if (sweep) for (const { table, tbl } of sweepable(delivery)) while ((yield* sweepTable(delivery, table, tbl)) > 0);
                if (sweep) yield* tx.run("DELETE FROM schoolbus_met")
                const settled = yield* finish(delivery, ledger, ended)
                yield* setCursor(tx, header)
                return { rows, settled, behind: yield* countBehind(tx) }
              }),
            )
          }),
        )

      const stage = (header: Header, lines: ReadonlyArray<RowsLine>) =>
        db.write((tx) =>
          tx.run(
            `INSERT INTO schoolbus_stage (n, line) SELECT (SELECT coalesce(max(n), 0) FROM schoolbus_stage) + 1 + key, value FROM json_each(?)`,
            [JSON.stringify([JSON.stringify(["cut", header]), ...lines.map((line) => JSON.stringify(line))])],
          ),
        )

      /** Applies what is staged, chunk by chunk; each chunk removes its lines in its own transaction. */
      const applyStaged = Effect.gen(function* () {
        let size = CHUNK_LINES.first
        let rows = 0
        const settled: Array<number> = []
        for (;;) {
          const before = yield* Clock.currentTimeMillis
          const step = yield* db.write((tx) =>
            Effect.gen(function* () {
              const { state, delivery } = yield* open(tx)
              const applying = JSON.parse(state.applying ?? "null") as Applying | null
              if (applying === null) return { done: true, rows: 0, settled: [] as ReadonlyArray<number> }
              const rank = [...parentsFirst(delivery.manifest.tables), "schoolbus.quarantine", "schoolbus.conflicts", "schoolbus.ledger"]
              const picked = yield* tx.all<{ n: number; line: string }>(
                `SELECT n, line FROM schoolbus_stage WHERE line ->> 0 = 'rows' AND line ->> 3 <> 'schoolbus.ledger'
                  ORDER BY line ->> 1 DESC, (SELECT j.key FROM json_each(?) j WHERE j.value = line ->> 3), n LIMIT ?`,
                [JSON.stringify(rank), size],
              )
              return yield* delivering(
                delivery,
                Effect.gen(function* () {
                  if (picked.length > 0) {
                    const lines = picked.map(({ line }) => JSON.parse(line) as RowsLine)
                    const applied = yield* applyLines(delivery, lines, applying.sweep)
                    yield* tx.run("DELETE FROM schoolbus_stage WHERE n IN (SELECT value FROM json_each(?))", [
                      JSON.stringify(picked.map(({ n }) => n)),
                    ])
                    yield* finish(delivery, [], applied.ended)
                    return { done: false, rows: applied.rows, settled: [] as ReadonlyArray<number> }
                  }
                  if (applying.sweep) {
                    for (const { table, tbl } of sweepable(delivery)) {
                      if ((yield* sweepTable(delivery, table, tbl)) > 0) return { done: false, rows: 0, settled: [] }
                    }
                  }
                  const ledgerLines = yield* tx.all<{ line: string }>("SELECT line FROM schoolbus_stage WHERE line ->> 0 = 'rows' ORDER BY n")
                  const { ledger } = yield* applyLines(
                    delivery,
                    ledgerLines.map(({ line }) => JSON.parse(line) as RowsLine),
                    false,
                  )
                  const batches = yield* finish(delivery, ledger, [])
                  yield* tx.run("DELETE FROM schoolbus_stage")
                  yield* tx.run("DELETE FROM schoolbus_met")
                  yield* setCursor(tx, applying.header)
                  return { done: true, rows: 0, settled: batches }
                }),
              )
            }),
          )
          rows += step.rows
          settled.push(...step.settled)
          if (step.done) break
          const took = (yield* Clock.currentTimeMillis) - before
          size = Math.max(
            CHUNK_LINES.least,
            Math.min(CHUNK_LINES.most, took > CHUNK_MS ? Math.floor(size / 2) : took < CHUNK_MS / 2 ? size * 2 : size),
          )
        }
        return { rows, settled }
      })

      const discard = db.write((tx) => Effect.andThen(tx.run("DELETE FROM schoolbus_stage"), tx.run("DELETE FROM schoolbus_met")))

      const cursorOf = (row: StateRow): Cursor => ({ epoch: row.epoch, seq: row.seq, cut: row.cut })

      const page = Effect.fn("Deliver.page")(function* (header: Header, lines: ReadonlyArray<RowsLine>, trailer: Trailer | null) {
        const { state, staging, version } = yield* db.read((tx) =>
          Effect.gen(function* () {
            const row = yield* readState(tx)
            const [first] = yield* tx.all<{ epoch: string; source: number }>(
              `SELECT line -> 1 ->> 'epoch' AS epoch, line -> 1 ->> 'from' AS source FROM schoolbus_stage WHERE line ->> 0 = 'cut' ORDER BY n LIMIT 1`,
            )
            return { state: row, staging: first ?? null, version: row.manifest === null ? 0 : (JSON.parse(row.manifest) as Manifest).version }
          }),
        )
        if (state.school !== header.school) {
          return yield* new DeliverRefused({
            reason: "school",
            message: `the hub sent rows of school ${header.school}, this file belongs to ${state.school}`,
          })
        }
        if (header.manifest !== version) {
          return yield* new DeliverRefused({
            reason: "manifest",
            message: `the page was made under manifest ${header.manifest}, this file has ${version}`,
          })
        }
        if (header.epoch !== state.epoch && !header.full) {
          return yield* new DeliverRefused({ reason: "epoch", message: "the page continues another epoch than this file's" })
        }
        // Staging that the page does not go on from belongs to a cut that will never be complete.
        const isOther = staging !== null && (staging.epoch !== header.epoch || Number(staging.source) !== header.from)
        if (isOther) yield* discard
        const hasStaging = staging !== null && !isOther
        if (trailer?.complete === true && !hasStaging) {
          const result = yield* applyStraight(header, lines)
          return { ...result, cursor: { epoch: header.epoch, seq: header.head, cut: header.headCut }, applied: true }
        }
        if (lines.length > 0 || hasStaging) yield* stage(header, lines)
        if (trailer?.complete !== true) {
          return { rows: lines.reduce((n, line) => n + line[5].length, 0), settled: [], cursor: cursorOf(state), behind: 0, applied: false }
        }
        yield* db.write((tx) =>
          Effect.gen(function* () {
            const { delivery } = yield* open(tx)
            const applying: Applying = { header, sweep: header.full && (yield* hasRows(delivery)) }
            yield* tx.run("DELETE FROM schoolbus_met")
            yield* tx.run("UPDATE schoolbus_state SET applying = ?", [JSON.stringify(applying)])
          }),
        )
        const { rows, settled } = yield* applyStaged
        return {
          rows,
          settled,
          cursor: { epoch: header.epoch, seq: header.head, cut: header.headCut },
          behind: yield* db.read(countBehind),
          applied: true,
        }
      })

      return Deliver.of({
        cursor: Effect.map(db.read(readState), cursorOf),
        staged: db.read((tx) =>
          Effect.gen(function* () {
            const [newest] = yield* tx.all<{ line: string }>("SELECT line FROM schoolbus_stage WHERE line ->> 0 = 'cut' ORDER BY n DESC LIMIT 1")
            if (newest === undefined) return null
            const [, header] = JSON.parse(newest.line) as ["cut", Header]
            const classes = yield* tx.all<{ cls: number; seq: number }>(
              "SELECT line ->> 1 AS cls, max(line ->> 2) AS seq FROM schoolbus_stage WHERE line ->> 0 = 'rows' GROUP BY 1",
            )
            return { head: header.head, headCut: header.headCut, after: Object.fromEntries(classes.map(({ cls, seq }) => [String(cls), seq])) }
          }),
        ),
        page,
        resume: Effect.asVoid(applyStaged),
        discardStaging: Effect.asVoid(discard),
      })
    }),
  )
}

const quoteName = (name: string): string => `"${name.replaceAll('"', '""')}"`

/** Ids (`tbl key`) among the given ones that a pending change or a held record keeps. */
const shieldedOf = (tx: Tx, ids: ReadonlyArray<string>): Effect.Effect<ReadonlySet<string>, LibsqlError> =>
  Effect.gen(function* () {
    if (ids.length === 0) return new Set<string>()
    const [any] = yield* tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM changes) OR EXISTS (SELECT 1 FROM schoolbus_hold) AS n")
    if (any?.n !== 1) return new Set<string>()
    const json = JSON.stringify(ids.map((id) => [Number(id.slice(0, id.indexOf(" "))), id.slice(id.indexOf(" ") + 1)]))
    const rows = yield* tx.all<{ tbl: number; key: string }>(
      `WITH ids AS (SELECT value ->> 0 AS tbl, value ->> 1 AS key FROM json_each(?))
       SELECT tbl, key FROM ids WHERE EXISTS (SELECT 1 FROM changes c WHERE c.tbl = ids.tbl AND c.key = ids.key AND c.batch IS NOT NULL)
          OR EXISTS (SELECT 1 FROM schoolbus_hold h WHERE h.tbl = ids.tbl AND h.key = ids.key)
       UNION SELECT i.tbl, i.key FROM changes c JOIN ids i ON i.tbl = c.tbl AND i.key = c.new_key WHERE c.new_key IS NOT NULL`,
      [json],
    )
    return new Set(rows.map((row) => `${row.tbl} ${row.key}`))
  })

/** A row that is shown is no longer behind. */
const forgetBehind = (tx: Tx, ids: ReadonlyArray<string>): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const [any] = yield* tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM schoolbus_behind) AS n")
    if (any?.n !== 1 || ids.length === 0) return
    const json = JSON.stringify(ids.map((id) => [Number(id.slice(0, id.indexOf(" "))), id.slice(id.indexOf(" ") + 1)]))
    yield* tx.run("DELETE FROM schoolbus_behind WHERE (tbl, key) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))", [json])
  })

/** Table names, parents before the tables that refer to them; a cycle keeps its given order. */
export const parentsFirst = (tables: ReadonlyArray<Table>): ReadonlyArray<string> => {
  const byName = new Map(tables.map((table) => [table.name, table]))
  const order: Array<string> = []
  const visit = (table: Table, path: ReadonlySet<string>): void => {
    if (order.includes(table.name) || path.has(table.name)) return
    for (const reference of table.references) {
      const parent = byName.get(reference.table)
      if (parent !== undefined) visit(parent, new Set([...path, table.name]))
    }
    order.push(table.name)
  }
  for (const table of tables) visit(table, new Set())
  return order
}
