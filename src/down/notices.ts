/** What the stream says of the catalog: that it has changed, or that rows no longer fit the one with which the stream was opened. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { PostgresError, PostgresPool } from "../postgres/client.ts"
import { isVisible, parseSnapshot } from "./bracket.ts"
import type { FeedTable } from "./entry.ts"
import type { Feed } from "./feed.ts"
import type { CurrentTxn } from "./pending.ts"

/** How often it is looked whether a streamed txn can be seen by others. */
const VISIBLE_RETRY_MS = 5

/** The flow starts again with a fresh catalog. `recheck`: id of a table that is to be compared as a whole then; null = none. */
export class ShapeChanged extends Data.TaggedError("ShapeChanged")<{ readonly recheck: number | null; readonly message: string }> {}

interface Noticing {
  readonly pg: PostgresPool
  readonly feed: Feed["Service"]
  /** The txn at hand. */
  readonly txn: Readonly<CurrentTxn>
  /** Fails when the catalog is no longer the one that this stream was opened with. */
  readonly look: Effect.Effect<void, ShapeChanged | PostgresError>
}

export const makeNotices = ({ pg, feed, txn, look }: Noticing) => {
  /** Looks at the catalog as the txn at hand left it: a commit is streamed before others can see it. */
  const lookNow = Effect.gen(function* () {
    for (;;) {
      const [row] = yield* pg.query<{ snapshot: string }>("SELECT pg_current_snapshot()::text AS snapshot")
      if (isVisible(parseSnapshot(row?.snapshot ?? ""), txn.xid)) break
      yield* Effect.sleep(VISIBLE_RETRY_MS)
    }
    yield* look
  })

  const noticed = new Set<string>()
  /** A row that says nothing under the present catalog, and never will: its table is compared as a whole. */
  const unreadable = Effect.fnUntraced(function* (table: FeedTable, detail: string) {
    yield* lookNow
    // As it is by now: the stream may have begun before its copy was complete.
    if ((yield* feed.tables).some(({ id, recheck }) => id === table.id && recheck)) return
    return yield* new ShapeChanged({ recheck: table.id, message: `a row of ${table.name} is of another shape (${detail}): comparing the table` })
  })
  /** A row with a column too few is older than it, unless the catalog has changed; one too many may hold the value of another. */
  const notice = Effect.fnUntraced(function* (table: FeedTable, column: string) {
    const id = `${table.id} ${column}`
    if (noticed.has(id)) return
    noticed.add(id)
    if (table.columns.some(({ name }) => name === column)) yield* lookNow
    else yield* unreadable(table, `column ${column}`)
  })
  return { lookNow, unreadable, notice }
}
