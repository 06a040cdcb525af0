/**
 * School side of the way down. A cut that came as one page is applied in one transaction with its cursor; a longer one is
 * staged as received and applied in chunks, highest class and parents first, guarded by `applying`: until that is gone the
 * cut is not complete, and a restart goes on with it. Rows with pending local changes are kept `behind`; a ledger row
 * settles its batch and releases what waited for it. One row never stops a cut, and no transaction holds the write lock long.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"
import { Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import { BATCH_CHANGES, freeze } from "../libsql/freeze.ts"
import type { Header, Staged, Trailer } from "../link/protocol.ts"
import type { Cursor } from "../model/cursor.ts"
import { classOf, type Manifest } from "../model/table.ts"
import { applyPart, delivering } from "./cut.ts"
import { type Delivery, type Item, type Part, partOf, readTargets, type Row, type RowsLine, type Targets } from "./delivery.ts"
import { type BehindPlace, FIRST_PLACE, retryBehind, retrySome } from "./settle.ts"
import { applyOrder, discardMet, discardStage, ledgerLines, nextLines, removeLines, stagedHeaders, stagedPosition, stageLines } from "./stage.ts"
import { hasRows, sweep } from "./sweep.ts"

export type { RowsLine } from "./delivery.ts"

/** A page that is likely to need the write lock for longer is applied in chunks. */
const LOCK_MS = 200
/** Write lock that one chunk aims at: a program that comes in its middle still looks often enough to get its turn after it. */
const CHUNK_MS = 70
const CHUNK_ROWS = { least: 500, first: 1_000, most: 20_000 }
const CHUNK_CHARACTERS = 2 * 1024 * 1024
/**
 * After a transaction that a program may have waited for, the lock is left alone for longer than SQLite's busy handler then
 * sleeps: it looks every 25 ms at first, every 50 ms after 128 ms, and every 100 ms in the end.
 */
const breathMs = (heldMs: number): number => (heldMs <= 10 ? 0 : heldMs <= 100 ? 30 : heldMs <= 200 ? 60 : 110)
const CHECKPOINT_AFTER_MS = 40
/** Changes of the batches that one transaction settles. */
const SETTLE_CHANGES = 2_000
/** Rows behind that one transaction tries again, while a longer cut is applied. */
const RETRY_ROWS = 1_000

/** The page is not for this file as it stands; `reason` says which. Nothing was written. */
export class DeliverRefused extends Data.TaggedError("DeliverRefused")<{
  readonly reason: "school" | "manifest" | "epoch" | "cursor"
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

/** The cut that is being applied in chunks. */
interface Applying {
  readonly header: Header
  /** Keys are noted, and what was not met is removed at the end. */
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

const NO_MANIFEST: Manifest = { version: 0, school: { id: "", name: "" }, tables: [] }

const cursorOf = (row: Pick<StateRow, "epoch" | "seq" | "cut">): Cursor => ({ epoch: row.epoch, seq: row.seq, cut: row.cut })
const cursorAt = (header: Header): Cursor => ({ epoch: header.epoch, seq: header.head, cut: header.headCut })

const readState = (tx: Tx): Effect.Effect<StateRow, LibsqlError> =>
  Effect.map(tx.all<StateRow>("SELECT incarnation, school, epoch, seq, cut, manifest, applying FROM schoolbus_state"), ([row]) => {
    if (row === undefined) throw new Error("schoolbus_state has no row: the file has no incarnation yet")
    return row
  })

const setCursor = (tx: Tx, header: Header): Effect.Effect<number, LibsqlError> =>
  tx.run("UPDATE schoolbus_state SET epoch = ?, seq = ?, cut = ?, applying = NULL", [header.epoch, header.head, header.headCut])

const countBehind = (tx: Tx): Effect.Effect<number, LibsqlError> =>
  Effect.map(tx.all<{ n: number }>("SELECT count(*) AS n FROM schoolbus_behind"), ([row]) => row?.n ?? 0)

/** Why this page is not for this file; null = it is. */
const refusalOf = (state: StateRow, version: number, header: Header): DeliverRefused | null => {
  const refuse = (reason: DeliverRefused["reason"], message: string) => new DeliverRefused({ reason, message })
  if (state.school !== header.school) return refuse("school", `the hub sent rows of school ${header.school}, this file belongs to ${state.school}`)
  if (header.manifest !== version)
    return refuse("manifest", `the page was made under manifest ${header.manifest}, this file has ${version}: fetch the manifest first`)
  if (header.full) return null
  if (header.epoch !== state.epoch) return refuse("epoch", "the page continues another epoch than this file's: say hello and pull again")
  if (header.from > state.seq || header.head < state.seq) {
    return refuse("cursor", `the page leads from ${header.from} to ${header.head}, this file is at ${state.seq}: pull again from there`)
  }
  return null
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
      const one = Semaphore.makeUnsafe(1)

      let known: { readonly text: string | null; readonly targets: Targets } | null = null
      const open = Effect.fnUntraced(function* (tx: Tx) {
        const state = yield* readState(tx)
        if (known === null || known.text !== state.manifest) {
          const manifest = state.manifest === null ? NO_MANIFEST : (JSON.parse(state.manifest) as Manifest)
          known = { text: state.manifest, targets: yield* readTargets(tx, manifest) }
        }
        return { state, targets: known.targets }
      })

      /** A long list of open writes is frozen beforehand, a batch at a time. */
      const freezeBacklog = Effect.gen(function* () {
        for (;;) {
          const [row] = yield* db.read((tx) =>
            tx.all<{ n: number }>(`SELECT count(*) AS n FROM (SELECT 1 FROM changes WHERE batch IS NULL LIMIT ${BATCH_CHANGES + 1})`),
          )
          if ((row?.n ?? 0) <= BATCH_CHANGES) return
          const now = yield* Clock.currentTimeMillis
          const { changes, isMore } = yield* db.write((tx) => Effect.flatMap(open(tx), ({ targets }) => freeze(tx, targets.manifest, now)))
          if (changes === 0 && !isMore) return
          yield* Effect.sleep(breathMs((yield* Clock.currentTimeMillis) - now))
        }
      })

      /** Else the next program that commits would have to carry over what we wrote. */
      const checkpoint = Effect.ignoreCause(db.read((tx) => tx.all("PRAGMA wal_checkpoint(PASSIVE)")))
      let free = 0
      let msPerRow = 0
      /** One write transaction with capture off, not too soon after the one before; answers how long it held the lock, too. */
      const deliver = Effect.fnUntraced(function* <A>(body: (delivery: Delivery) => Effect.Effect<A, LibsqlError>) {
        yield* freezeBacklog
        const early = free - (yield* Clock.currentTimeMillis)
        if (early > 0) yield* Effect.sleep(early)
        let began = 0
        const value = yield* db.write((tx) =>
          Effect.gen(function* () {
            began = yield* Clock.currentTimeMillis
            const { state, targets } = yield* open(tx)
            const delivery: Delivery = { ...targets, tx, incarnation: state.incarnation, now: began }
            return yield* delivering(delivery, body(delivery))
          }),
        )
        const ended = yield* Clock.currentTimeMillis
        free = ended + breathMs(ended - began)
        if (ended - began > CHECKPOINT_AFTER_MS) yield* checkpoint
        return { value, heldMs: ended - began }
      })

      const applyStraight = Effect.fnUntraced(function* (header: Header, part: Part) {
        const { value, heldMs } = yield* deliver((delivery) =>
          Effect.gen(function* () {
            const settled = yield* applyPart(delivery, part, false)
            yield* retryBehind(delivery)
            yield* setCursor(delivery.tx, header)
            return { settled, behind: yield* countBehind(delivery.tx) }
          }),
        )
        if (part.rows >= CHUNK_ROWS.least) msPerRow = heldMs / part.rows
        return { ...value, rows: part.rows }
      })

      /** The staged rows, chunk by chunk; each chunk takes its lines away in its own transaction. */
      const applyRows = Effect.fnUntraced(function* (applying: Applying, targets: Targets) {
        const order = applyOrder(targets.manifest.tables, classOf)
        let size = CHUNK_ROWS.first
        for (let rows = 0; ; ) {
          const chunk = yield* db.read((tx) => nextLines(tx, order, size, CHUNK_CHARACTERS))
          if (chunk.lines.length === 0) return rows
          const part = partOf(targets, chunk.lines)
          const { heldMs } = yield* deliver((delivery) =>
            Effect.andThen(applyPart(delivery, part, applying.sweep), removeLines(delivery.tx, chunk.numbers)),
          )
          rows += part.rows
          if (part.rows >= CHUNK_ROWS.least) msPerRow = heldMs / part.rows
          const fitting = Math.floor((part.rows * CHUNK_MS) / Math.max(1, heldMs))
          size = Math.max(CHUNK_ROWS.least, Math.min(CHUNK_ROWS.most, fitting, size * 2))
        }
      })

      /** The staged ledger rows of batches that wait, in order, some batches at a time. */
      const settleStaged = Effect.fnUntraced(function* (targets: Targets) {
        const { ledger } = partOf(targets, yield* db.read(ledgerLines))
        const waiting = new Map(
          (yield* db.read((tx) =>
            tx.all<{ number: number; changes: number }>("SELECT number, changes FROM schoolbus_batch WHERE settled_at IS NULL"),
          )).map(({ number, changes }) => [number, changes]),
        )
        const due = ledger.filter((row) => waiting.has(Number(row["batch"]))).toSorted((a, b) => Number(a["batch"]) - Number(b["batch"]))
        const settled: Array<number> = []
        for (let next = 0; next < due.length; ) {
          const some: Array<Row> = []
          for (let changes = 0; next < due.length && changes < SETTLE_CHANGES; next++) {
            const row = due[next] as Row
            some.push(row)
            changes += waiting.get(Number(row["batch"])) ?? 0
          }
          const { value } = yield* deliver((delivery) => applyPart(delivery, { items: new Map(), ledger: some }, false))
          settled.push(...value)
        }
        return settled
      })

      /** Goes on with the cut in `applying` to its end; null = there is none. */
      const applyStaged = Effect.gen(function* () {
        const { state, targets } = yield* db.read(open)
        if (state.applying === null) return null
        const applying = JSON.parse(state.applying) as Applying
        const rows = yield* applyRows(applying, targets)
        if (applying.sweep) {
          yield* sweep(targets, db.read, (gone: ReadonlyMap<string, Item>) =>
            Effect.asVoid(deliver((delivery) => applyPart(delivery, { items: gone, ledger: [] }, false))),
          )
        }
        const settled = yield* settleStaged(targets)
        // Some at a time first; what is left turns in a circle, or waits for something else.
        for (let place: BehindPlace | null = FIRST_PLACE; place !== null; ) {
          const from: BehindPlace = place
          place = (yield* deliver((delivery) => retrySome(delivery, from, RETRY_ROWS))).value.next
        }
        const { value: behind } = yield* deliver((delivery) =>
          Effect.gen(function* () {
            yield* retryBehind(delivery)
            yield* delivery.tx.run("DELETE FROM schoolbus_stage")
            yield* setCursor(delivery.tx, applying.header)
            return yield* countBehind(delivery.tx)
          }),
        )
        yield* discardMet(db)
        return { rows, settled, behind }
      })

      const beginApplying = Effect.fnUntraced(function* (header: Header) {
        yield* discardMet(db)
        yield* db.write((tx) =>
          Effect.gen(function* () {
            const { targets } = yield* open(tx)
            const applying: Applying = { header, sweep: header.full && (yield* hasRows(tx, targets)) }
            yield* tx.run("UPDATE schoolbus_state SET applying = ?", [JSON.stringify(applying)])
          }),
        )
      })

      const page = Effect.fn("Deliver.page")(function* (header: Header, lines: ReadonlyArray<RowsLine>, trailer: Trailer | null) {
        // Interrupted by a full disk or another program's long lock, not by a restart.
        yield* applyStaged
        const { state, targets, staging, sweeps } = yield* db.read((tx) =>
          Effect.gen(function* () {
            const opened = yield* open(tx)
            return { ...opened, staging: yield* stagedHeaders(tx), sweeps: header.full && (yield* hasRows(tx, opened.targets)) }
          }),
        )
        const refusal = refusalOf(state, targets.manifest.version, header)
        if (refusal !== null) return yield* refusal
        // Staging that the page does not go on from belongs to a cut that will never be complete; and a page that goes on
        // from something that is not here is no cut either: nothing of it is taken, and the next pull begins anew.
        const goesOn = staging !== null && header.resumed && staging.first.epoch === header.epoch && staging.first.from === header.from
        if (staging !== null && !goesOn) yield* discardStage(db)
        if (header.resumed && !goesOn) return { rows: 0, settled: [], cursor: cursorOf(state), behind: yield* db.read(countBehind), applied: false }
        const isComplete = trailer?.complete === true
        const part = partOf(targets, isComplete && !goesOn ? lines : [])
        if (isComplete && !goesOn && !sweeps && part.rows * msPerRow <= LOCK_MS) {
          const straight = yield* applyStraight(header, part)
          return { ...straight, cursor: cursorAt(header), applied: true }
        }
        if (lines.length > 0 || (isComplete && !goesOn)) yield* db.write((tx) => stageLines(tx, header, lines))
        if (!isComplete) {
          const rows = lines.reduce((n, line) => n + line[5].length, 0)
          return { rows, settled: [], cursor: cursorOf(state), behind: yield* db.read(countBehind), applied: false }
        }
        yield* beginApplying(header)
        const applied = yield* applyStaged
        return { rows: applied?.rows ?? 0, settled: applied?.settled ?? [], behind: applied?.behind ?? 0, cursor: cursorAt(header), applied: true }
      })

      return Deliver.of({
        cursor: Effect.map(db.read(readState), cursorOf),
        staged: db.read((tx) => Effect.flatMap(readState(tx), (state) => (state.applying === null ? stagedPosition(tx) : Effect.succeed(null)))),
        page: (header, lines, trailer) => one.withPermit(page(header, lines, trailer)),
        resume: one.withPermit(Effect.asVoid(applyStaged)),
        discardStaging: one.withPermit(Effect.flatMap(db.read(readState), (state) => (state.applying === null ? discardStage(db) : Effect.void))),
      })
    }),
  )
}
