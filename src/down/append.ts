/**
 * The open write transaction of an append: what it wrote becomes visible with its commit. Rows and truncations are `write.ts`,
 * rows of `through` tables go by `route.ts`, seqs taken anew are `renew.ts`; all share one `OpenAppend`.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "../libsql/client.ts"
import { printLsn } from "../model/lsn.ts"
import { rowKey, type Position } from "./entry.ts"
import type { OpenAppend } from "./open-append.ts"
import { makeRenewer, type Renewer } from "./renew.ts"
import { makeRouting } from "./route.ts"
import { makeWriter, type Writer } from "./write.ts"

export interface Appender extends Writer, Pick<Renewer, "loaded" | "again"> {
  /**
   * Everything so far is of txns that have ended: who got a row by them hears of it when the row goes. Whoever gets and loses
   * a row after the last such point never does.
   */
  readonly ended: Effect.Effect<void, LibsqlError>
  readonly position: (position: Position) => Effect.Effect<void, LibsqlError>
  /** Bodies of present entries, by `tableId key`: for columns that a message leaves out. */
  readonly bodies: (keys: ReadonlyArray<readonly [tableId: number, key: string]>) => Effect.Effect<ReadonlyMap<string, string>, LibsqlError>
  readonly tx: Tx
}

/** What only the installation of tables does in an append. */
export interface Installing extends Pick<Renewer, "renumber" | "reroute"> {
  readonly use: OpenAppend["use"]
}

export const makeAppender = (open: OpenAppend): { readonly appender: Appender & Installing; readonly settle: Effect.Effect<void, LibsqlError> } => {
  const { tx } = open
  const routing = makeRouting(open)
  const ended = Effect.gen(function* () {
    yield* routing.settle
    open.ended = open.seq
  })
  const position: Appender["position"] = (reached) =>
    tx.ahead("UPDATE hub SET commit_lsn = ?, commit_xid = ?, commit_at = ?", [printLsn(reached.lsn), reached.xid, reached.at])
  const bodies: Appender["bodies"] = (wanted) =>
    Effect.map(
      tx.all<{ tbl: number; key: string; body: string }>(
        `SELECT e.tbl, e.key, e.body FROM json_each(?) j CROSS JOIN entry e ON e.tbl = j.value->>0 AND e.key = j.value->>1 WHERE e.body IS NOT NULL`,
        [JSON.stringify(wanted)],
      ),
      (found) => new Map(found.map((row) => [rowKey(row.tbl, row.key), row.body])),
    )
  const use: Installing["use"] = (installed, plan) => open.use(installed, plan)
  const appender = { ...makeWriter(open, routing), ...makeRenewer(open, routing), ended, position, bodies, use, tx }
  return { appender, settle: routing.settle }
}
