/** Questions about captured writes that have no verdict yet. */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "./client.ts"

export interface PendingTable {
  /** `"public.students"` */
  readonly table: string
  readonly pending: number
  /** ms since 1970 by the school's clock. */
  readonly oldestAt: number
}

export const pendingByTable = (tx: Tx): Effect.Effect<ReadonlyArray<PendingTable>, LibsqlError> =>
  tx.all<PendingTable>(
    `SELECT t.name AS "table", count(*) AS pending, min(c.at) AS oldestAt FROM changes c JOIN schoolbus_tables t ON t.id = c.tbl
      WHERE c.op <> 'R' GROUP BY t.name`,
  )

/** True when a program has written something that no batch carries yet. */
export const hasOpen = (tx: Tx): Effect.Effect<boolean, LibsqlError> =>
  Effect.map(tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM changes WHERE batch IS NULL) AS n"), ([row]) => row?.n === 1)
