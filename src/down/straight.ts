/** A cut that came as one page: its rows and its cursor in one transaction. */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile } from "../libsql/client.ts"
import type { Header, RowsLine } from "../link/protocol.ts"
import { applyPart } from "./cut.ts"
import { type Delivery, LEDGER, partOf, restOf } from "./delivery.ts"
import { isWorthLoading, type Loads } from "./load.ts"
import type { Pace } from "./pace.ts"
import { RETRY_ROWS } from "./retry.ts"
import { countBehind, type Opened, setCursor } from "./school-row.ts"
import { countRefused, retryTogether } from "./refused.ts"
import type { Touched } from "./settle.ts"
import { settleClean } from "./settle-clean.ts"
import { rowsOf } from "./stage.ts"

export interface Applied {
  /** Batches whose ledger row came. */
  readonly settled: ReadonlyArray<number>
  /** Rows that are kept behind now. */
  readonly behind: number
}

/** null: the write lock would be held for too long, and nothing was written. */
export type ApplyStraight = (header: Header, opened: Opened, lines: ReadonlyArray<RowsLine>) => Effect.Effect<Applied | null, LibsqlError>

export const makeStraight =
  (db: LibsqlFile, pace: Pace, loads: Loads): ApplyStraight =>
  (header, { state, targets }, lines) =>
    Effect.gen(function* () {
      const rows = rowsOf(lines)
      if (isWorthLoading(rows) ? pace.straightRows(rows) < 0 : rows > pace.straightRows(0)) return null
      const ready = yield* loads.page(header, targets, lines)
      const done = ready === null ? null : yield* pace.alone(loads.showPage(ready, lines, header, state))
      if (done !== null) {
        yield* db.unload
        pace.measure(true, rows, done.heldMs)
        return { settled: [], behind: 0 }
      }
      const { ledger } = partOf(
        targets,
        lines.filter(([, , , table]) => table === LEDGER),
      )
      const part = ready === null ? partOf(targets, lines) : null
      const apply = Effect.fnUntraced(function* (delivery: Delivery) {
        yield* delivery.tx.ahead("SAVEPOINT straight")
        const touched: Touched = new Map()
        const clean = yield* settleClean(delivery, ledger, touched)
        const rest = ready === null ? null : yield* loads.show(delivery, ready, 0, lines.length, Math.max(0, pace.straightRows(rows)), touched)
        // The long way might hold the lock for too long.
        const isTooLong = rest === null && rows > pace.straightRows(0)
        if (isTooLong) yield* delivery.tx.run("ROLLBACK TO straight")
        yield* delivery.tx.ahead("RELEASE straight")
        if (isTooLong) return null
        const isShown = rest !== null
        const left = isShown ? lines.filter((_, i) => rest.lines.has(i)) : lines
        let settled = clean
        if (left.length > 0 || !isShown || touched.size > 0) {
          const all = part ?? partOf(delivery, left)
          settled = [...clean, ...(yield* applyPart(delivery, isShown ? restOf(all, rest.isIn) : all, false, touched))]
        }
        if (delivery.isQuiet) {
          yield* setCursor(delivery.tx, header)
          return { settled, behind: 0, isShown }
        }
        if ((yield* countRefused(delivery.tx, RETRY_ROWS + 1)) <= RETRY_ROWS) yield* retryTogether(delivery)
        yield* setCursor(delivery.tx, header)
        return { settled, behind: yield* countBehind(delivery.tx), isShown }
      })
      const { value, heldMs } = yield* pace.deliver(apply)
      if (ready !== null) yield* db.unload
      if (value === null) return null
      pace.measure(value.isShown, rows, heldMs)
      return { settled: value.settled, behind: value.behind }
    })
