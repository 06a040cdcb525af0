/**
 * What is read outside the stream, and how it enters: first copies, comparisons of whole tables, rows read again by key. Each
 * piece is a bracket (bracket.ts); its rows are taken when its mark comes by in the stream.
 */
import * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"
import type { LibsqlError } from "../libsql/client.ts"
import type { PostgresPool } from "../postgres/client.ts"
import type { Appender } from "./append.ts"
import { type Bracket, type Brackets, isOvertaken, type ReadRow, settledRows, takeBracket } from "./bracket.ts"
import { EXAMPLES, type TableCheck } from "./check.ts"
import { type FeedTable, rowKey } from "./entry.ts"
import type { Feed } from "./feed.ts"
import { keepGoneRows, keepReplacedRows } from "./lost.ts"
import type { Flush } from "./flush.ts"
import type { CurrentTxn, Pending } from "./pending.ts"

/** Keys of one re-read. */
const REREAD_KEYS = 1_000
/** Rows that are gone, handed to the append at once. */
const GONE_AT_ONCE = 2_000

/** The comparisons under way. */
export const makeComparing = () => {
  const comparing = new Set<number>()
  const forgetMet = (appender: Appender, rows: ReadonlyArray<{ readonly table: FeedTable; readonly key: string }>) =>
    appender.tx.run(`DELETE FROM unmet WHERE (tbl, key) IN (SELECT value->>0, value->>1 FROM json_each(?))`, [
      JSON.stringify(rows.map(({ table, key }) => [table.id, key])),
    ])
  /** What the stream wrote is met, whatever the comparison finds. */
  const written = (
    appender: Appender,
    rows: ReadonlyArray<{ readonly table: FeedTable; readonly key: string }>,
  ): Effect.Effect<unknown, LibsqlError> => {
    const met = comparing.size === 0 ? [] : rows.filter((row) => comparing.has(row.table.id))
    return met.length > 0 ? forgetMet(appender, met) : Effect.void
  }
  return { comparing, forgetMet, written }
}

export const makeReads = (options: {
  readonly pg: PostgresPool
  readonly feed: Feed["Service"]
  readonly brackets: Brackets
  readonly flush: Flush
  readonly txn: Readonly<CurrentTxn>
  readonly tables: ReadonlyArray<FeedTable>
  readonly reread: ReadonlySet<number>
  /** Tables that are compared with a Postgres that was put back. */
  readonly losing: ReadonlySet<number>
  readonly onLoading: (table: string, rows: number, done: boolean) => Effect.Effect<void>
  readonly compared: ReturnType<typeof makeComparing>
}) => {
  const { pg, feed, brackets, flush, txn, tables, reread, onLoading } = options
  const { comparing, forgetMet } = options.compared
  const losing = new Set(options.losing)
  const checking = new Map<number, { readonly repair: boolean; readonly result: TableCheck }>()

  /** Counts the rows that the feed does not hold as Postgres does; what the stream brought before them is in the feed. */
  const countDifferences = Effect.fnUntraced(function* (appender: Appender, table: FeedTable, rows: ReadonlyArray<ReadRow>, result: TableCheck) {
    const present = yield* appender.bodies(rows.map((row) => [table.id, row.key] as const))
    // What the stream left out is on its way by itself.
    const coming = new Set((yield* appender.tx.all<{ key: string }>("SELECT key FROM reread WHERE tbl = ?", [table.id])).map(({ key }) => key))
    for (const { key, tokens } of rows) {
      const body = present.get(rowKey(table.id, key))
      if (body === `[${tokens.join(",")}]` || coming.has(key)) continue
      if (body === undefined) result.missing++
      else result.differing++
      if (result.keys.length < EXAMPLES) result.keys.push(key)
    }
    result.rows += rows.length
  })

  /** The mark of a bracket has come: its rows enter, and the progress that they mean is written with them. */
  const closeBracket = Effect.fnUntraced(function* (appender: Appender, pending: Pending, bracket: Bracket) {
    const { read, table, want } = bracket
    if (read === null) return
    const settled = settledRows(bracket, read)
    const check = want.kind === "chunk" ? checking.get(table.id) : undefined
    if (check !== undefined) {
      yield* flush.all(appender, pending)
      yield* countDifferences(appender, table, settled, check.result)
      if (!check.repair)
        yield* forgetMet(
          appender,
          settled.map(({ key }) => ({ table, key })),
        )
    }
    const isLosing = comparing.has(table.id) && losing.has(table.id) && check === undefined
    if (isLosing) {
      yield* flush.all(appender, pending)
      yield* keepReplacedRows(appender, table, settled)
    }
    for (const row of check?.repair === false ? [] : settled) {
      pending.set(table, row.key, row.tokens, { ifDifferent: true })
    }
    if (want.kind === "keys") {
      // A row that was written again meanwhile may again have left something out.
      const done = want.keys.filter((key) => !isOvertaken(bracket, read, key))
      yield* appender.tx.run(`DELETE FROM reread WHERE tbl = ? AND key IN (SELECT value FROM json_each(?))`, [table.id, JSON.stringify(done)])
      return
    }
    yield* flush.all(appender, pending)
    if (!read.last) {
      yield* appender.tx.run("UPDATE tables SET after = ? WHERE id = ?", [read.rows.at(-1)?.key ?? null, table.id])
      return
    }
    if (comparing.has(table.id)) {
      const unmet = yield* appender.tx.all<{ key: string }>("SELECT key FROM unmet WHERE tbl = ? AND key <> ''", [table.id])
      if (check !== undefined) {
        check.result.extra += unmet.length
        check.result.keys.push(...unmet.slice(0, EXAMPLES - check.result.keys.length).map(({ key }) => key))
      }
      const gone = check?.repair === false ? [] : unmet
      if (isLosing) {
        losing.delete(table.id)
        const lost = yield* keepGoneRows(
          appender,
          table,
          gone.map(({ key }) => key),
        )
        if (lost > 0)
          yield* Effect.logWarning(
            `table ${table.name}: ${lost} rows stood otherwise before Postgres was put back; what schools had sent comes again by itself, schoolbus verify --lost names the rest`,
          )
      }
      for (let i = 0; i < gone.length; i += GONE_AT_ONCE) {
        yield* appender.rows(
          gone
            .slice(i, i + GONE_AT_ONCE)
            .map(({ key }) => ({ table, key, body: null, audience: null, at: txn.micros, isInsert: false, ifDifferent: false })),
        )
      }
      yield* appender.tx.run("DELETE FROM unmet WHERE tbl = ?", [table.id])
      yield* appender.tx.run("UPDATE tables SET after = NULL WHERE id = ?", [table.id])
      comparing.delete(table.id)
    }
    yield* appender.loaded(table)
  })

  /**
   * Reads a whole table, chunk by chunk, each chunk in the feed before the next is read. What a comparison does not meet is gone. A first
   * copy goes on where it was, unless a part of the stream was missed since: then it is compared too.
   */
  const readWhole = Effect.fnUntraced(function* (table: FeedTable, isFirst: boolean) {
    const [row] = yield* feed.append((appender) =>
      appender.tx.all<{ after: string | null; n: number; missed: number }>(
        `SELECT after, (SELECT count(*) FROM entry WHERE tbl = tables.id AND body IS NOT NULL) AS n,
                EXISTS (SELECT 1 FROM unmet WHERE tbl = tables.id) AS missed FROM tables WHERE id = ?`,
        [table.id],
      ),
    )
    const isLoading = isFirst && row?.missed !== 1
    let after = isLoading ? (row?.after ?? null) : null
    if (!isLoading) {
      // What was written before it may have come without what followed, and is not met by having come.
      yield* takeBracket(pg, brackets, table, { kind: "keys", keys: [], onlyNan: false })
      comparing.add(table.id)
      // The empty key is no row's: it says that a comparison is under way, also of a table without rows.
      yield* feed.append((appender) =>
        Effect.all(
          [
            appender.tx.run("DELETE FROM unmet WHERE tbl = ?", [table.id]),
            appender.tx.run("INSERT INTO unmet (tbl, key) SELECT DISTINCT tbl, key FROM entry WHERE tbl = ? AND body IS NOT NULL", [table.id]),
            appender.tx.run("INSERT INTO unmet (tbl, key) VALUES (?, '')", [table.id]),
            checking.has(table.id) ? Effect.void : appender.tx.run("DELETE FROM reread WHERE tbl = ? AND why = 'table'", [table.id]),
          ],
          { discard: true },
        ),
      )
    }
    let rows = isLoading ? (row?.n ?? 0) : 0
    for (;;) {
      const read = yield* takeBracket(pg, brackets, table, { kind: "chunk", after })
      rows += read.rows.length
      yield* onLoading(table.name, rows, read.last)
      if (read.last) break
      after = read.rows.at(-1)?.key ?? after
    }
  })

  const copy = Effect.forEach(
    tables.filter((table) => reread.has(table.id)),
    (table) => readWhole(table, table.loading && !table.recheck),
    { discard: true },
  )

  /** One table is compared at a time. */
  const comparison = Semaphore.makeUnsafe(1)
  /** Every table against Postgres, and how many rows differed. */
  const check = Effect.fnUntraced(function* (repair: boolean) {
    const results: Array<TableCheck> = []
    for (const table of tables) {
      const result: TableCheck = { table: table.name, rows: 0, missing: 0, extra: 0, differing: 0, keys: [] }
      yield* comparison.withPermit(
        Effect.acquireUseRelease(
          Effect.sync(() => void checking.set(table.id, { repair, result })),
          () => readWhole(table, false),
          () => Effect.sync(() => void checking.delete(table.id)),
        ),
      )
      results.push(result)
    }
    return results
  })

  const tableById = new Map(tables.map((table) => [table.id, table]))
  /** Rows that must be read again by key, in bulk. */
  const rereadKeys = Effect.gen(function* () {
    const wanted = yield* feed.waitingRereads(REREAD_KEYS)
    const groups = new Map<string, { table: FeedTable; why: string; keys: Array<string> }>()
    for (const row of wanted) {
      const table = tableById.get(row.tbl)
      if (table === undefined) continue
      if (row.why === "table") {
        yield* comparison.withPermit(readWhole(table, false))
        continue
      }
      const group = groups.get(`${row.tbl} ${row.why}`) ?? { table, why: row.why, keys: [] }
      group.keys.push(row.key)
      groups.set(`${row.tbl} ${row.why}`, group)
    }
    for (const { table, why, keys } of groups.values()) {
      yield* takeBracket(pg, brackets, table, { kind: "keys", keys, onlyNan: why === "nan" })
    }
  })
  return { closeBracket, copy, check, rereadKeys }
}
