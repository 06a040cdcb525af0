/**
 * What only the feed knows after head office's Postgres was put back to an older state: rows as they stood before, kept while
 * every table is compared. Those that schools send again come back by themselves; the others are told to people.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "../libsql/client.ts"
import type { Wire } from "../model/value.ts"
import type { Appender } from "./append.ts"
import { type FeedTable, rowKey } from "./entry.ts"

/** Rows that are kept of one restore. */
const MAX_LOST = 20_000

export interface LostRow {
  /** `"public.students"` */
  readonly table: string
  /** Wire key, as JSON. */
  readonly key: string
  /** As it stood before; null: head office had deleted it. */
  readonly was: Readonly<Record<string, Wire>> | null
  /** As it stands now; null: there is no such row. */
  readonly now: Readonly<Record<string, Wire>> | null
}

export interface Lost {
  /** When it was noticed that Postgres had been put back, RFC 3339; null = never. */
  readonly at: string | null
  /** Rows that stand otherwise than before; `rows` are the first of them. */
  readonly count: number
  readonly rows: ReadonlyArray<LostRow>
}

/** Every table is about to be compared with a Postgres that was put back; what an earlier one had lost is forgotten. */
export const beginLost = (tx: Tx, now: number): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    yield* tx.run("DELETE FROM lost")
    yield* tx.run("DELETE FROM losing")
    yield* tx.run("INSERT INTO losing (tbl, at, done) SELECT id, ?, 0 FROM tables WHERE status = 'ready'", [now])
  })

/** Tables whose comparison after a restore has not ended. */
export const readLosing = (tx: Tx): Effect.Effect<ReadonlySet<number>, LibsqlError> =>
  Effect.map(tx.all<{ tbl: number }>("SELECT tbl FROM losing WHERE done = 0"), (rows) => new Set(rows.map(({ tbl }) => tbl)))

const isTold = ({ table, hubOnly }: FeedTable): boolean => !hubOnly && !table.name.startsWith("schoolbus.")

const keepAll = (tx: Tx, table: FeedTable, rows: ReadonlyArray<readonly [key: string, body: string | null]>) =>
  Effect.gen(function* () {
    const [kept] = yield* tx.all<{ n: number }>("SELECT count(*) AS n FROM lost")
    const names = JSON.stringify(table.columns.map(({ name }) => name))
    yield* tx.many(
      "INSERT OR IGNORE INTO lost (tbl, key, names, was) VALUES (?, ?, ?, ?)",
      rows.slice(0, Math.max(0, MAX_LOST - (kept?.n ?? 0))).map(([key, body]) => [BigInt(table.id), key, names, body]),
    )
  })

/** Rows of the restored Postgres are about to replace what the feed holds. */
export const keepReplacedRows = (
  appender: Appender,
  table: FeedTable,
  rows: ReadonlyArray<{ readonly key: string; readonly tokens: ReadonlyArray<string> }>,
) =>
  Effect.gen(function* () {
    if (!isTold(table)) return
    const present = yield* appender.bodies(rows.map(({ key }) => [table.id, key] as const))
    const lost = rows.flatMap(({ key, tokens }) => {
      const body = present.get(rowKey(table.id, key)) ?? null
      return body === `[${tokens.join(",")}]` ? [] : [[key, body] as const]
    })
    yield* keepAll(appender.tx, table, lost)
  })

/** Rows that the restored Postgres does not have; the table's comparison ends. Answers how many rows of it are kept. */
export const keepGoneRows = (appender: Appender, table: FeedTable, keys: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const { tx } = appender
    if (isTold(table)) {
      const present = yield* appender.bodies(keys.map((key) => [table.id, key] as const))
      yield* keepAll(
        tx,
        table,
        keys.flatMap((key) => [[key, present.get(rowKey(table.id, key)) ?? null] as const]),
      )
    }
    yield* tx.run("UPDATE losing SET done = 1 WHERE tbl = ?", [table.id])
    const [kept] = yield* tx.all<{ n: number; gone: number }>("SELECT count(*) AS n FROM lost WHERE tbl = ?", [table.id])
    return kept?.n ?? 0
  })

const rowOf = (names: string, body: string | null): Readonly<Record<string, Wire>> | null => {
  if (body === null) return null
  const values = JSON.parse(body) as ReadonlyArray<Wire>
  return Object.fromEntries((JSON.parse(names) as ReadonlyArray<string>).map((name, i) => [name, values[i] ?? null]))
}

/** What still stands otherwise than before. */
export const readLost = (tx: Tx, limit: number): Effect.Effect<Lost, LibsqlError> =>
  Effect.gen(function* () {
    const now = "(SELECT e.body FROM entry e WHERE e.tbl = l.tbl AND e.key = l.key AND e.body IS NOT NULL LIMIT 1)"
    const differing = `FROM lost l JOIN tables t ON t.id = l.tbl WHERE l.was IS NOT ${now}`
    const [since] = yield* tx.all<{ at: number | null }>("SELECT max(at) AS at FROM losing")
    const [sum] = yield* tx.all<{ n: number }>(`SELECT count(*) AS n ${differing}`)
    const rows = yield* tx.all<{ name: string; key: string; names: string; columns: string; was: string | null; now: string | null }>(
      `SELECT t.name, l.key, l.names, t.columns, l.was, ${now} AS now ${differing} ORDER BY t.name, l.key LIMIT ?`,
      [limit],
    )
    return {
      at: since?.at == null ? null : new Date(since.at).toISOString(),
      count: sum?.n ?? 0,
      rows: rows.map((row) => ({ table: row.name, key: row.key, was: rowOf(row.names, row.was), now: rowOf(row.columns, row.now) })),
    }
  })
