/** Questions about captured writes that have no verdict yet. */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "./client.ts"

/** Of writes that no batch carries yet. They are the newest, so nothing before `frozen_to` is looked at. */
export const OPEN = "batch IS NULL AND id > coalesce((SELECT frozen_to FROM schoolbus_state), 0)"

/** After writes were opened again, or put in before others: open ones may stand anywhere. */
export const lookAnew = (tx: Tx): Effect.Effect<void, LibsqlError> => Effect.asVoid(tx.run("UPDATE schoolbus_state SET frozen_to = 0"))

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
  Effect.map(tx.all<{ n: number }>(`SELECT EXISTS (SELECT 1 FROM changes WHERE ${OPEN}) AS n`), ([row]) => row?.n === 1)

/** Names of the tables with writes that the hub has not answered. */
export const unansweredTables = (tx: Tx): Effect.Effect<ReadonlyArray<string>, LibsqlError> =>
  Effect.map(
    tx.all<{ name: string }>(
      `SELECT t.name FROM schoolbus_tables t WHERE EXISTS (
         SELECT 1 FROM changes c LEFT JOIN schoolbus_batch b ON b.number = c.batch
          WHERE c.tbl = t.id AND (c.batch IS NULL OR (b.number IS NOT NULL AND b.answered_at IS NULL AND b.settled_at IS NULL)))`,
    ),
    (rows) => rows.map(({ name }) => name),
  )

/** True when there is something that no answer of the hub covers: open writes, or a batch. */
export const hasUnanswered = (tx: Tx): Effect.Effect<boolean, LibsqlError> =>
  Effect.map(
    tx.all<{ n: number }>(
      `SELECT EXISTS (SELECT 1 FROM changes WHERE ${OPEN}) OR EXISTS (SELECT 1 FROM schoolbus_batch WHERE answered_at IS NULL AND settled_at IS NULL) AS n`,
    ),
    ([row]) => row?.n === 1,
  )
