/**
 * School side of the way down. A cut that came as one page is applied in one transaction with its cursor; a longer one is
 * staged as received and applied in chunks, highest class and parents first, each class as soon as it is all here, guarded
 * by `applying`: until that is gone the cut is not complete, and a restart goes on with it. Rows with pending local changes
 * are kept `behind`; a ledger row settles its batch and releases what waited for it. One row never stops a cut, and no
 * transaction holds the write lock long: what is to be done is cut by the time that it takes.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"
import { Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import { tearUnfit } from "../libsql/unfit.ts"
import type { OnLine } from "../link/pages.ts"
import type { Header, RowsLine, Staged, Trailer } from "../link/protocol.ts"
import type { Cursor } from "../model/cursor.ts"
import { classOf, type Manifest } from "../model/table.ts"
import { applyPart, readWaiting, WAITING, type Waiting } from "./cut.ts"
import { emptyGone } from "./empty.ts"
import { type Delivery, type Item, partOf, readTargets, type Row, type Targets } from "./delivery.ts"
import { makeLoads, type Ready } from "./load.ts"
import { makePace } from "./pace.ts"
import { type BehindPlace, countRefused, type Retried, retrySome, retryTogether } from "./settle.ts"
import {
  applyOrder,
  classUnderWay,
  discardMet,
  discardStage,
  ledgerLines,
  nextLines,
  readLines,
  type Received,
  receivedOf,
  removeLines,
  type StagedLine,
  stagedHeaders,
  stagedPosition,
  stageLines,
} from "./stage.ts"
import { hasRows, sweep } from "./sweep.ts"

export type { RowsLine } from "../link/protocol.ts"

/** Staged lines read at once. */
const READ_ROWS = 20_000
const READ_BYTES = 2 * 1024 * 1024
/** Changes of the batches that one transaction settles. */
const SETTLE_CHANGES = 1_000
/** Rows behind that one transaction tries again. */
const RETRY_ROWS = 500
/** A longer list is gone through piece by piece, so often, and up and down at most so many times before all that is left goes together. */
const RETRY_EVERY_MS = 10_000
const RETRY_PASSES = 6

/** The page is not for this file as it stands; `reason` says which. Nothing was written. */
export class DeliverRefused extends Data.TaggedError("DeliverRefused")<{
  readonly reason: "school" | "manifest" | "epoch" | "cursor"
  readonly message: string
}> {}

export interface Delivered {
  /** Rows in the lines of this page. */
  readonly rows: number
  /** Batches whose ledger row came. */
  readonly settled: ReadonlyArray<number>
  readonly cursor: Cursor
  /** Rows that are kept behind now. */
  readonly behind: number
  /** What came of the cut so far, also on former connections; nothing of one that came as one page. */
  readonly received: Received
  /** A complete cut has become visible. */
  readonly applied: boolean
  /** False: the page did not go on from what is here; nothing of it was kept, and the next one must be asked for anew. */
  readonly taken: boolean
}

/** The cut that is being applied in chunks. */
interface Applying {
  readonly header: Header
  /** Only the classes above this one are applied so far, the rest is still on its way; 0 = the cut is complete. */
  readonly above: number
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
  /** Tables that do not fit, as one text. */
  readonly unfit: string | null
  readonly waiting: Waiting
  /** 1: lines are staged. */
  readonly staged: number
  /** 1: a table has left the manifest and is to be emptied. */
  readonly gone: number
}

const nothing = { rows: 0, settled: [], behind: 0, received: { rows: 0, bytes: 0 }, applied: false, taken: true } satisfies Omit<Delivered, "cursor">

const NO_MANIFEST: Manifest = { version: 0, school: { id: "", name: "" }, tables: [] }

const cursorOf = (row: Pick<StateRow, "epoch" | "seq" | "cut">): Cursor => ({ epoch: row.epoch, seq: row.seq, cut: row.cut })
const cursorAt = (header: Header): Cursor => ({ epoch: header.epoch, seq: header.head, cut: header.headCut })

/** All that decides how a page goes, in one statement. */
const readState = (tx: Tx): Effect.Effect<StateRow, LibsqlError> =>
  Effect.map(
    tx.all<StateRow>(
      `SELECT incarnation, school, epoch, seq, cut, manifest, applying,
              (SELECT group_concat(name || reason) FROM schoolbus_unfit) AS unfit, ${WAITING} AS waiting,
              EXISTS (SELECT 1 FROM schoolbus_stage) AS staged, EXISTS (SELECT 1 FROM schoolbus_tables WHERE gone = 1) AS gone
         FROM schoolbus_state`,
    ),
    ([row]) => {
      if (row === undefined) throw new Error("schoolbus_state has no row: the file has no incarnation yet")
      return row
    },
  )

/** The cut under way is not all here yet. */
const isReceiving = (state: StateRow): boolean => state.applying === null || (JSON.parse(state.applying) as Applying).above > 0

const setCursor = (tx: Tx, header: Header): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    yield* tx.ahead("UPDATE schoolbus_state SET epoch = ?, seq = ?, cut = ?, applying = NULL", [header.epoch, header.head, header.headCut])
    // What a full cut no longer names cannot be taken out of a table that does not fit.
    if (header.full) yield* tearUnfit(tx)
  })

const countBehind = (tx: Tx): Effect.Effect<number, LibsqlError> =>
  Effect.map(tx.all<{ n: number }>("SELECT count(*) AS n FROM schoolbus_behind"), ([row]) => row?.n ?? 0)

const rowsOf = (lines: ReadonlyArray<RowsLine>): number => lines.reduce((n, [, , , , rows]) => n + rows, 0)

/** Lines from one on, up to about so many rows; at least that one. */
const someLines = (lines: ReadonlyArray<StagedLine>, from: number, rows: number): ReadonlyArray<StagedLine> => {
  let to = from
  for (let n = 0; to < lines.length && n < rows; to++) n += lines[to]?.rows ?? 0
  return lines.slice(from, to)
}

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
    /** All that a pull tells of the school. */
    readonly position: Effect.Effect<{ readonly cursor: Cursor; readonly staged: Staged | null; readonly manifest: number }, LibsqlError>
    /** What is durably staged, to be named in the next pull; null = nothing. */
    readonly staged: Effect.Effect<Staged | null, LibsqlError>
    /** One page, or the part of it that arrived before the line broke (trailer null). Returns after it is durable. */
    readonly page: (header: Header, lines: ReadonlyArray<RowsLine>, trailer: Trailer | null) => Effect.Effect<Delivered, LibsqlError | DeliverRefused>
    /** Hears of the lines of a page before it is whole, so that their rows lie ready by then. */
    readonly expect: OnLine
    /** Goes on with a cut whose applying was interrupted; before anything else at start. */
    readonly resume: Effect.Effect<void, LibsqlError>
    /** Tries rows again that could not be applied, when there are so many of them that the cuts themselves do not. */
    readonly retry: Effect.Effect<void, LibsqlError>
    /** Tries all of them again, now: a table fits that did not. */
    readonly retryAll: Effect.Effect<void, LibsqlError>
    /** Empties tables that left the manifest and wait for no verdict. */
    readonly empty: Effect.Effect<void>
    readonly discardStaging: Effect.Effect<void, LibsqlError>
  }
>()("schoolbus/down/Deliver") {
  static readonly layer: Layer.Layer<Deliver, never, Libsql> = Layer.effect(
    Deliver,
    Effect.gen(function* () {
      const db = yield* Libsql
      const one = Semaphore.makeUnsafe(1)

      /** As it was when the file was last looked at; what a page does makes no table leave the manifest. */
      let isAnyGone = false
      let known: { readonly text: string | null; readonly unfit: string | null; readonly targets: Targets } | null = null
      const open = Effect.fnUntraced(function* (tx: Tx): Effect.fn.Return<{ readonly state: StateRow; readonly targets: Targets }, LibsqlError> {
        const state = yield* readState(tx)
        isAnyGone = state.gone === 1
        if (known === null || known.text !== state.manifest || known.unfit !== state.unfit) {
          const manifest = state.manifest === null ? NO_MANIFEST : (JSON.parse(state.manifest) as Manifest)
          known = { text: state.manifest, unfit: state.unfit, targets: yield* readTargets(tx, manifest) }
        }
        return { state, targets: known.targets }
      })

      const pace = makePace(db, open)
      const { deliver } = pace
      const loads = makeLoads(db, open)

      const applyStraight = Effect.fnUntraced(function* (header: Header, targets: Targets, lines: ReadonlyArray<RowsLine>, isQuiet: boolean) {
        const rows = rowsOf(lines)
        const ready = isQuiet ? yield* loads.page(header, targets, lines) : null
        const part = ready === null ? partOf(targets, lines) : null
        const { value, heldMs } = yield* deliver((delivery) =>
          Effect.gen(function* () {
            const isShown = ready !== null && (yield* loads.show(delivery, ready, 0, lines.length))
            // The long way might hold the lock for too long.
            if (!isShown && !pace.isShort(false, rows)) return null
            const settled = isShown ? [] : yield* applyPart(delivery, part ?? partOf(delivery, lines), false)
            if (delivery.isQuiet) {
              yield* setCursor(delivery.tx, header)
              return { settled, behind: 0, isShown }
            }
            if ((yield* countRefused(delivery.tx, RETRY_ROWS + 1)) <= RETRY_ROWS) yield* retryTogether(delivery)
            yield* setCursor(delivery.tx, header)
            return { settled, behind: yield* countBehind(delivery.tx), isShown }
          }),
        )
        if (ready !== null) yield* db.unload
        if (value === null) return null
        pace.measure(value.isShown, rows, heldMs)
        return { settled: value.settled, behind: value.behind, rows }
      })

      /** Slices until the time of a chunk is over; answers where among the lines it ended. */
      const applySlices = Effect.fnUntraced(function* (
        delivery: Delivery,
        applying: Applying,
        ready: Ready | null,
        lines: ReadonlyArray<StagedLine>,
        from: number,
      ) {
        let done = from
        let rows = 0
        let isShown = ready !== null
        for (let sliceMs = 0; done < lines.length; ) {
          const began = yield* Clock.currentTimeMillis
          if (done > from && !pace.hasRoom(delivery, began, sliceMs)) break
          let slice = someLines(lines, done, pace.sliceRows(isShown))
          isShown = ready !== null && (yield* loads.show(delivery, ready, done, done + slice.length))
          // The long way takes its time: fewer of them.
          if (!isShown) slice = someLines(lines, done, pace.sliceRows(false))
          const n = slice.reduce((sum, line) => sum + line.rows, 0)
          if (!isShown) yield* applyPart(delivery, partOf(delivery, yield* readLines(delivery.tx, slice)), applying.sweep)
          yield* removeLines(delivery.tx, slice)
          done += slice.length
          rows += n
          sliceMs = (yield* Clock.currentTimeMillis) - began
          pace.measure(isShown, n, sliceMs)
        }
        return { done, rows }
      })

      /** The staged rows, chunk by chunk; each chunk takes its lines away in its own transaction. */
      const applyRows = Effect.fnUntraced(function* (applying: Applying, targets: Targets) {
        const order = applyOrder(targets.manifest.tables, classOf, applying.above)
        for (let rows = 0; ; ) {
          const { lines, waiting } = yield* db.read((tx) =>
            Effect.all({ lines: nextLines(tx, order, READ_ROWS, READ_BYTES), waiting: readWaiting(tx) }),
          )
          if (lines.length === 0) return rows
          const ready = waiting === "quiet" && !applying.sweep ? yield* loads.staged(targets, lines) : null
          for (let done = 0; done < lines.length; ) {
            const from = done
            const { value } = yield* deliver((delivery) => applySlices(delivery, applying, ready, lines, from))
            done = value.done
            rows += value.rows
          }
          if (ready !== null) yield* db.unload
        }
      })

      let retriedAt = Number.NEGATIVE_INFINITY
      /** All rows that could not be applied, a piece at a time, against the order in which they came and with it, until none moves; then those that unique values hold up together. */
      const retryAll = Effect.gen(function* () {
        for (let pass = 0; pass < RETRY_PASSES; pass++) {
          const direction = pass % 2 === 0 ? "down" : "up"
          let moved = 0
          for (let after: BehindPlace | null | undefined; after !== null; ) {
            const from: BehindPlace | null = after ?? null
            const some = (delivery: Delivery) => retrySome(delivery, { after: from, direction, limit: RETRY_ROWS, uniqueOnly: false })
            const { value }: { readonly value: Retried } = yield* deliver(some)
            moved += value.tried - value.left
            after = value.next
          }
          if (moved === 0 && pass > 0) break
        }
        yield* deliver((delivery) => retryTogether(delivery, true))
        retriedAt = yield* Clock.currentTimeMillis
      })
      const retry = Effect.gen(function* () {
        const refused = yield* db.read((tx) => countRefused(tx, RETRY_ROWS + 1))
        if (refused > RETRY_ROWS && (yield* Clock.currentTimeMillis) - retriedAt > RETRY_EVERY_MS) yield* retryAll
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

      /** Goes on with the cut in `applying`: to its end when it is complete, else as far as it is here. null = there is nothing to go on with. */
      const applyStaged = Effect.gen(function* () {
        const { state, targets } = yield* db.read(open)
        if (state.applying === null) return null
        const applying = JSON.parse(state.applying) as Applying
        const rows = yield* applyRows(applying, targets)
        const retryRefused = Effect.flatMap(
          db.read((tx) => countRefused(tx, 1)),
          (n) => (n > 0 ? retryAll : Effect.void),
        )
        if (applying.above > 0) {
          if (rows > 0) yield* retryRefused
          return null
        }
        if (applying.sweep) {
          yield* sweep(targets, db.read, (gone: ReadonlyMap<string, Item>) =>
            Effect.asVoid(deliver((delivery) => applyPart(delivery, { items: gone, ledger: [] }, false))),
          )
        }
        const settled = yield* settleStaged(targets)
        yield* retryRefused
        const { value: behind } = yield* deliver((delivery) =>
          Effect.gen(function* () {
            yield* delivery.tx.run("DELETE FROM schoolbus_stage")
            yield* delivery.tx.run("DELETE FROM schoolbus_staged")
            yield* setCursor(delivery.tx, applying.header)
            return yield* countBehind(delivery.tx)
          }),
        )
        yield* discardMet(db)
        return { settled, behind }
      })

      /** From here on rows of the cut may show. What a full cut is compared with is what was there before it. */
      const beginApplying = Effect.fnUntraced(function* (header: Header, above: number) {
        const before = yield* db.read(readState)
        if (before.applying === null) yield* discardMet(db)
        yield* db.write((tx) =>
          Effect.gen(function* () {
            const { state, targets } = yield* open(tx)
            const earlier = state.applying === null ? null : (JSON.parse(state.applying) as Applying)
            const applying: Applying = { header, above, sweep: earlier?.sweep ?? (header.full && (yield* hasRows(tx, targets))) }
            yield* tx.run("UPDATE schoolbus_state SET applying = ?", [JSON.stringify(applying)])
          }),
        )
      })

      /** Shows the classes that are all here although the cut is not. */
      const applyEarly = Effect.fnUntraced(function* (header: Header, targets: Targets) {
        const above = (yield* db.read(classUnderWay)) ?? 0
        if (above === 0) return
        const order = applyOrder(targets.manifest.tables, classOf, above)
        if ((yield* db.read((tx) => nextLines(tx, order, 1, 1))).length === 0) return
        yield* beginApplying(header, above)
        yield* applyStaged
      })

      const page = Effect.fn("Deliver.page")(function* (header: Header, lines: ReadonlyArray<RowsLine>, trailer: Trailer | null) {
        const look = db.read((tx) =>
          Effect.gen(function* () {
            const opened = yield* open(tx)
            const isLeft = opened.state.staged === 1
            return {
              ...opened,
              isLeft,
              staging: isLeft ? yield* stagedHeaders(tx) : null,
              sweeps: header.full && (yield* hasRows(tx, opened.targets)),
            }
          }),
        )
        let found = yield* look
        if (found.state.applying !== null) {
          // Interrupted by a full disk or another program's long lock, not by a restart.
          yield* applyStaged
          found = yield* look
        }
        const { state, targets, staging, isLeft, sweeps } = found
        const refusal = refusalOf(state, targets.manifest.version, header)
        if (refusal !== null) return yield* refusal
        // Staging that the page does not go on from belongs to a cut that will never be complete; and a page that goes on
        // from something that is not here is no cut either: nothing of it is taken, and the next pull begins anew.
        const goesOn = staging !== null && header.resumed && staging.first.epoch === header.epoch && staging.first.from === header.from
        const isPartlyShown = state.applying !== null
        if (!goesOn && (staging !== null || isLeft)) yield* discardStage(db)
        // With rows of the lost staging the cursor is torn, too: what this page goes on from is not what is here.
        if (!goesOn && (header.resumed || (isPartlyShown && !header.full))) {
          return { ...nothing, taken: false, cursor: cursorOf(yield* db.read(readState)), behind: yield* db.read(countBehind) }
        }
        const isComplete = trailer?.complete === true
        const rows = rowsOf(lines)
        if (isComplete && !goesOn && !sweeps && pace.isShort(state.waiting === "quiet", rows)) {
          const straight = yield* applyStraight(header, targets, lines, state.waiting === "quiet")
          if (straight !== null) {
            if (straight.behind > 0) yield* retry
            return { ...nothing, ...straight, cursor: cursorAt(header), applied: true }
          }
        }
        if (lines.length > 0 || (isComplete && !goesOn)) yield* db.write((tx) => stageLines(tx, header, lines))
        if (!isComplete) {
          yield* applyEarly(header, targets)
          const now = yield* db.read((tx) => Effect.all({ received: receivedOf(tx), behind: countBehind(tx) }))
          return { ...nothing, ...now, rows, cursor: cursorOf(state) }
        }
        const received = yield* db.read(receivedOf)
        yield* beginApplying(header, 0)
        const applied = yield* applyStaged
        return { ...nothing, ...applied, received, rows, cursor: cursorAt(header), applied: true }
      })

      /** A program's trigger may refuse a delete; that stops no cut. */
      const empty = Effect.gen(function* () {
        while ((yield* db.read((tx) => tx.all("SELECT 1 FROM schoolbus_tables WHERE gone = 1 LIMIT 1"))).length > 0) {
          if (!(yield* deliver((delivery) => emptyGone(delivery.tx))).value) return
        }
      }).pipe(Effect.catch((error) => Effect.logWarning(`a table that left the manifest could not be emptied: ${error.message}`)))

      return Deliver.of({
        cursor: Effect.map(db.read(readState), cursorOf),
        position: db.read((tx) =>
          Effect.gen(function* () {
            const { state, targets } = yield* open(tx)
            const staged = state.staged === 1 && isReceiving(state) ? yield* stagedPosition(tx) : null
            return { cursor: cursorOf(state), staged, manifest: targets.manifest.version }
          }),
        ),
        staged: db.read((tx) => Effect.flatMap(readState(tx), (state) => (isReceiving(state) ? stagedPosition(tx) : Effect.succeed(null)))),
        page: (header, lines, trailer) =>
          one.withPermit(loads.during(Effect.tap(page(header, lines, trailer), () => (isAnyGone ? empty : Effect.void)))),
        expect: loads.expect,
        resume: one.withPermit(loads.during(Effect.andThen(applyStaged, empty))),
        empty: one.withPermit(empty),
        retry: one.withPermit(retry),
        retryAll: one.withPermit(retryAll),
        discardStaging: one.withPermit(Effect.flatMap(db.read(readState), (state) => (isReceiving(state) ? discardStage(db) : Effect.void))),
      })
    }),
  )
}
