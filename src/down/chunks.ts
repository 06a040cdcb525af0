/**
 * A cut that is longer than one page, from its staged lines: in chunks, highest class and parents first, each class as soon as
 * it is all here, guarded by `applying`. Until that is gone the cut is not complete, and a restart goes on with it.
 */
import * as Effect from "effect/Effect"
import { elapsedMs } from "../elapsed.ts"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import type { Header } from "../link/protocol.ts"
import { classOf } from "../model/table.ts"
import { applyPart } from "./cut.ts"
import { type Delivery, type Item, partOf, restOf, type Row, type Targets } from "./delivery.ts"
import type { Loads, Ready } from "./load.ts"
import type { Pace } from "./pace.ts"
import type { Retries } from "./retry.ts"
import { type Applying, applyingOf, countBehind, type Opened, readSchool, setCursor } from "./school-row.ts"
import { countRefused } from "./refused.ts"
import { settleClean } from "./settle-clean.ts"
import { applyOrder, classUnderWay, discardMet, ledgerLines, nextLines, readLines, removeLines, type StagedLine } from "./stage.ts"
import type { Applied } from "./straight.ts"
import { endsRows, sweep } from "./sweep.ts"

/** Staged lines read at once. */
const READ_ROWS = 20_000
const READ_BYTES = 2 * 1024 * 1024
/** Changes of the batches that one transaction settles: of those whose rows must be looked at, and of others. */
const SETTLE_CHANGES = { each: 1_000, clean: 5_000 }

/** Lines from one on, up to about so many rows; at least that one. */
const someLines = (lines: ReadonlyArray<StagedLine>, from: number, rows: number): ReadonlyArray<StagedLine> => {
  let to = from
  for (let n = 0; to < lines.length && n < rows; to++) n += lines[to]?.rows ?? 0
  return lines.slice(from, to)
}

export interface Chunks {
  /** Goes on with the cut in `applying`: to its end when it is complete, else as far as it is here. null = there is nothing to go on with. */
  readonly goOn: Effect.Effect<Applied | null, LibsqlError>
  /** All of the cut is here. */
  readonly finish: (header: Header) => Effect.Effect<Applied | null, LibsqlError>
  /** Shows the classes that are all here although the cut is not. */
  readonly early: (header: Header, targets: Targets) => Effect.Effect<void, LibsqlError>
}

export const makeChunks = (
  db: LibsqlFile,
  open: (tx: Tx) => Effect.Effect<Opened, LibsqlError>,
  pace: Pace,
  loads: Loads,
  retries: Retries,
): Chunks => {
  const { deliver } = pace
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
      const began = yield* elapsedMs
      if (done > from && !pace.hasRoom(delivery, began, sliceMs)) break
      // The long way takes its time: fewer of them.
      const few = pace.sliceRows(false)
      let slice = someLines(lines, done, pace.sliceRows(isShown))
      const rest = ready === null ? null : yield* loads.show(delivery, ready, done, done + slice.length, few)
      isShown = rest !== null
      if (rest === null) slice = someLines(lines, done, few)
      const left = rest === null ? slice : slice.filter((_, i) => rest.lines.has(i))
      if (left.length > 0) {
        const part = partOf(delivery, yield* readLines(delivery.tx, left))
        yield* applyPart(delivery, rest === null ? part : restOf(part, rest.isIn), applying.sweep)
      }
      const n = slice.reduce((sum, line) => sum + line.rows, 0)
      yield* removeLines(delivery.tx, slice)
      done += slice.length
      rows += n
      sliceMs = (yield* elapsedMs) - began
      pace.measure(isShown, n, sliceMs)
    }
    return { done, rows }
  })

  /** The staged rows, chunk by chunk; each chunk takes its lines away in its own transaction. */
  const applyRows = Effect.fnUntraced(function* (applying: Applying, targets: Targets) {
    const order = applyOrder(targets.manifest.tables, classOf, applying.above)
    for (let rows = 0; ; ) {
      const lines = yield* db.read((tx) => nextLines(tx, order, READ_ROWS, READ_BYTES))
      if (lines.length === 0) return rows
      const ready = applying.sweep ? null : yield* loads.staged(targets, lines)
      for (let done = 0; done < lines.length; ) {
        const from = done
        const { value } = yield* deliver((delivery) => applySlices(delivery, applying, ready, lines, from))
        done = value.done
        rows += value.rows
      }
      if (ready !== null) yield* db.unload
    }
  })

  /** The staged ledger rows of batches that wait, in order, some batches at a time. */
  const settleStaged = Effect.fnUntraced(function* (
    targets: Targets,
    most: number,
    settle: (delivery: Delivery, ledger: ReadonlyArray<Row>) => Effect.Effect<ReadonlyArray<number>, LibsqlError>,
  ) {
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
      for (let changes = 0; next < due.length && changes < most; next++) {
        const row = due[next] as Row
        some.push(row)
        changes += waiting.get(Number(row["batch"])) ?? 0
      }
      const { value } = yield* deliver((delivery) => settle(delivery, some))
      settled.push(...value)
    }
    return settled
  })
  const settleAhead = (delivery: Delivery, ledger: ReadonlyArray<Row>) => settleClean(delivery, ledger, null)
  const settleEach = (delivery: Delivery, ledger: ReadonlyArray<Row>) => applyPart(delivery, { items: new Map(), ledger }, false)

  const goOn = Effect.gen(function* () {
    const { state, targets } = yield* db.read(open)
    const applying = applyingOf(state)
    if (applying === null) return null
    // All of the cut is here, the verdicts too: rows that nothing but an applied change waited for need not be kept behind first.
    const clean = applying.above > 0 || applying.sweep ? [] : yield* settleStaged(targets, SETTLE_CHANGES.clean, settleAhead)
    const rows = yield* applyRows(applying, targets)
    const retryRefused = Effect.flatMap(
      db.read((tx) => countRefused(tx, 1)),
      (n) => (n > 0 ? retries.all : Effect.void),
    )
    if (applying.above > 0) {
      if (rows > 0) yield* retryRefused
      return null
    }
    if (applying.sweep) {
      yield* sweep(targets, applying.header.full, db.read, (gone: ReadonlyMap<string, Item>) =>
        Effect.asVoid(deliver((delivery) => applyPart(delivery, { items: gone, ledger: [] }, false))),
      )
    }
    const settled = [...clean, ...(yield* settleStaged(targets, SETTLE_CHANGES.each, settleEach))]
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
  const begin = Effect.fnUntraced(function* (header: Header, above: number) {
    const before = yield* db.read(readSchool)
    if (before.applying === null) yield* discardMet(db)
    yield* db.write((tx) =>
      Effect.gen(function* () {
        const { state, targets } = yield* open(tx)
        const applying: Applying = { header, above, sweep: applyingOf(state)?.sweep ?? (yield* endsRows(tx, targets, header.full)) }
        yield* tx.run("UPDATE schoolbus_state SET applying = ?", [JSON.stringify(applying)])
      }),
    )
  })

  const early = Effect.fnUntraced(function* (header: Header, targets: Targets) {
    const above = (yield* db.read(classUnderWay)) ?? 0
    if (above === 0) return
    const order = applyOrder(targets.manifest.tables, classOf, above)
    if ((yield* db.read((tx) => nextLines(tx, order, 1, 1))).length === 0) return
    yield* begin(header, above)
    yield* goOn
  })

  return {
    goOn,
    finish: (header) => Effect.andThen(begin(header, 0), goOn),
    early,
  }
}
