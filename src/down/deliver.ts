/**
 * School side of the way down: each page goes the way that it can. A cut that came as one page is applied straight, in one
 * transaction with its cursor; a longer one is staged as received and applied in chunks. Rows with pending local changes are
 * kept `behind`; a ledger row settles its batch and releases what waited for it. One row never stops a cut, and no transaction
 * holds the write lock long: what is to be done is cut by the time that it takes.
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"
import { Libsql, type LibsqlError } from "../libsql/client.ts"
import type { OnLine } from "../link/pages.ts"
import type { Header, RowsLine, Staged, Trailer } from "../link/protocol.ts"
import type { Cursor } from "../model/cursor.ts"
import { makeChunks } from "./chunks.ts"
import { emptyGone } from "./empty.ts"
import { makeLoads } from "./load.ts"
import { makePace } from "./pace.ts"
import { makeRetries } from "./retry.ts"
import { countBehind, cursorAt, cursorOf, isReceiving, makeOpener, readSchool, type SchoolRow } from "./school-row.ts"
import { discardStage, type Received, receivedOf, rowsOf, stagedHeaders, stagedPosition, stageLines } from "./stage.ts"
import { type Applied, makeStraight } from "./straight.ts"
import { endsRows } from "./sweep.ts"

export type { RowsLine } from "../link/protocol.ts"

/** The page is not for this file as it stands; `reason` says which. Nothing was written. */
export class DeliverRefused extends Data.TaggedError("DeliverRefused")<{
  readonly reason: "school" | "manifest" | "epoch" | "cursor"
  readonly message: string
}> {}

export interface Delivered extends Applied {
  /** Rows in the lines of this page. */
  readonly rows: number
  readonly cursor: Cursor
  /** What came of the cut so far, also on former connections; nothing of one that came as one page. */
  readonly received: Received
  /** A complete cut has become visible. */
  readonly applied: boolean
  /** False: the page did not go on from what is here; nothing of it was kept, and the next one must be asked for anew. */
  readonly taken: boolean
}

const nothing = { rows: 0, settled: [], behind: 0, received: { rows: 0, bytes: 0 }, applied: false, taken: true } satisfies Omit<Delivered, "cursor">

/** Why this page is not for this file; null = it is. */
const refusalOf = (state: SchoolRow, version: number, header: Header): DeliverRefused | null => {
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
    /** All that a pull tells of the school; `staged`: what is here of a cut that is not complete, durably. */
    readonly position: Effect.Effect<{ readonly cursor: Cursor; readonly staged: Staged | null; readonly manifest: number }, LibsqlError>
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
      const opener = makeOpener()
      const { open } = opener
      const pace = makePace(db, open)
      const loads = makeLoads(db, opener)
      const retries = makeRetries(db, pace)
      const applyStraight = makeStraight(db, pace, loads)
      const chunks = makeChunks(db, open, pace, loads, retries)
      /** As it was when the file was last looked at; what a page does makes no table leave the manifest. */
      let isAnyGone = false

      const page = Effect.fn("Deliver.page")(function* (header: Header, lines: ReadonlyArray<RowsLine>, trailer: Trailer | null) {
        const look = db.read((tx) =>
          Effect.gen(function* () {
            const opened = yield* open(tx)
            isAnyGone = opened.state.gone === 1
            const isLeft = opened.state.staged === 1
            return {
              ...opened,
              isLeft,
              staging: isLeft ? yield* stagedHeaders(tx) : null,
              sweeps: yield* endsRows(tx, opened.targets, header.full),
            }
          }),
        )
        let found = yield* look
        if (found.state.applying !== null) {
          // Interrupted by a full disk or another program's long lock, not by a restart.
          yield* chunks.goOn
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
          return { ...nothing, taken: false, cursor: cursorOf(yield* db.read(readSchool)), behind: yield* db.read(countBehind) }
        }
        const isComplete = trailer?.complete === true
        const rows = rowsOf(lines)
        if (isComplete && !goesOn && !sweeps) {
          const straight = yield* applyStraight(header, found, lines)
          if (straight !== null) {
            if (straight.behind > 0) yield* retries.some
            return { ...nothing, ...straight, rows, cursor: cursorAt(header), applied: true }
          }
        }
        if (lines.length > 0 || (isComplete && !goesOn)) yield* db.write((tx) => stageLines(tx, header, lines))
        if (!isComplete) {
          yield* chunks.early(header, targets)
          const now = yield* db.read((tx) => Effect.all({ received: receivedOf(tx), behind: countBehind(tx) }))
          return { ...nothing, ...now, rows, cursor: cursorOf(state) }
        }
        const received = yield* db.read(receivedOf)
        const applied = yield* chunks.finish(header)
        return { ...nothing, ...applied, received, rows, cursor: cursorAt(header), applied: true }
      })

      /** A program's trigger may refuse a delete; that stops no cut. */
      const empty = Effect.gen(function* () {
        while ((yield* db.read((tx) => tx.all("SELECT 1 FROM schoolbus_tables WHERE gone = 1 LIMIT 1"))).length > 0) {
          if (!(yield* pace.deliver((delivery) => emptyGone(delivery.tx))).value) return
        }
      }).pipe(Effect.catch((error) => Effect.logWarning(`a table that left the manifest could not be emptied: ${error.message}`)))

      return Deliver.of({
        position: db.read((tx) =>
          Effect.gen(function* () {
            const { state, targets } = yield* open(tx)
            const staged = state.staged === 1 && isReceiving(state) ? yield* stagedPosition(tx) : null
            return { cursor: cursorOf(state), staged, manifest: targets.manifest.version }
          }),
        ),
        page: (header, lines, trailer) =>
          one.withPermit(
            loads.during(
              header,
              Effect.tap(page(header, lines, trailer), () => (isAnyGone ? empty : Effect.void)),
            ),
          ),
        expect: loads.expect,
        resume: one.withPermit(loads.during(null, Effect.andThen(chunks.goOn, empty))),
        empty: one.withPermit(empty),
        retry: one.withPermit(retries.some),
        retryAll: one.withPermit(retries.all),
        discardStaging: one.withPermit(Effect.flatMap(db.read(readSchool), (state) => (isReceiving(state) ? discardStage(db) : Effect.void))),
      })
    }),
  )
}
