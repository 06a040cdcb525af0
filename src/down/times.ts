/**
 * When single columns were last written: kept in the feed for the columns that `newest_wins` may have to decide, as the
 * commit time and xid of the txn that changed them. A column that has no time of its own is as old as the row's entry when
 * the first of its columns was changed; one whose change was only noticed outside the stream has none.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import { needsTime } from "../model/table.ts"
import type { Wire } from "../model/value.ts"
import type { FeedTable } from "./entry.ts"

/** Microseconds since 1970, and the txn; null = unknown. */
type Time = readonly [at: number, xid: number] | null
/** By column; `*`: all that are not named. */
type Times = Readonly<Record<string, Time>>

/** A row's state in one txn, in the order of the table's columns; undefined = the message left the column out, unchanged. */
export interface Written {
  readonly tokens: ReadonlyArray<string | undefined> | null
  readonly at: number
  readonly xid: number
}

/** A row of a table with such columns that an append writes, with what earlier txns of the same append wrote to it. */
export interface Timed extends Written {
  readonly table: FeedTable
  readonly key: string
  readonly isInsert: boolean
  /** Read outside the stream: when it was written is not known. */
  readonly isRead: boolean
  readonly earlier: ReadonlyArray<Written>
}

const timedByTable = new WeakMap<FeedTable, ReadonlyArray<readonly [position: number, name: string]>>()
const timedOf = (table: FeedTable): ReadonlyArray<readonly [position: number, name: string]> => {
  let timed = timedByTable.get(table)
  if (timed === undefined) {
    timed = table.table.columns.flatMap((column, i) => (!column.generated && needsTime(table.table, column.name) ? [[i, column.name] as const] : []))
    timedByTable.set(table, timed)
  }
  return timed
}
export const isTimed = (table: FeedTable): boolean => timedOf(table).length > 0

const timeOf = (written: Written | undefined): Time => (written === undefined ? null : [written.at, written.xid])

/** Before the rows are written: what stands in the feed is what they are compared with. Times of deleted rows go with the rows. */
export const noteTimes = (tx: Tx, rows: ReadonlyArray<Timed>, tokenize: (body: string) => ReadonlyArray<string>): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    // An insert needs nothing: all its columns are as old as its entry.
    const timed = rows.filter((row) => !row.isInsert || row.earlier.length > 0)
    if (timed.length === 0) return
    const found = yield* tx.all<{ tbl: number; key: string; body: string; at: number; times: string | null }>(
      `SELECT e.tbl, e.key, e.body, e.at, c.times FROM json_each(?) j CROSS JOIN entry e ON e.tbl = j.value->>0 AND e.key = j.value->>1
         LEFT JOIN column_time c ON c.tbl = e.tbl AND c.key = e.key WHERE e.body IS NOT NULL`,
      [JSON.stringify(timed.map((row) => [row.table.id, row.key]))],
    )
    const before = new Map(found.map((row) => [`${row.tbl} ${row.key}`, row]))
    const puts: Array<[bigint, string, string]> = []
    for (const row of timed) {
      const old = before.get(`${row.table.id} ${row.key}`)
      const first = row.earlier[0]
      if (row.tokens === null || (old === undefined && first === undefined)) continue
      const times: Record<string, Time> = old?.times != null ? JSON.parse(old.times) : { "*": old !== undefined ? [old.at, 0] : timeOf(first) }
      let known: ReadonlyArray<string | undefined> = old !== undefined ? tokenize(old.body) : (first?.tokens ?? [])
      let isChanged = false
      for (const { tokens, at, xid } of [...row.earlier, row]) {
        if (tokens === null) {
          known = []
          continue
        }
        for (const [position, name] of timedOf(row.table)) {
          const token = tokens[position]
          if (token === undefined || token === known[position]) continue
          times[name] = row.isRead ? null : [at, xid]
          isChanged = true
        }
        known = tokens.map((token, i) => token ?? known[i])
      }
      if (isChanged) puts.push([BigInt(row.table.id), row.key, JSON.stringify(times)])
    }
    yield* tx.many("INSERT INTO column_time (tbl, key, times) VALUES (?, ?, ?) ON CONFLICT (tbl, key) DO UPDATE SET times = excluded.times", puts)
  })

/** A row as the feed has it: null when it was deleted, as far as that is remembered. Times are ms since 1970. */
export interface Copy {
  readonly row: Readonly<Record<string, Wire>> | null
  /** Of a deleted row: when. */
  readonly at: number | null
  readonly columns: Readonly<Record<string, { readonly at: number; readonly xid: number } | null>>
}

/** By wire key; rows that the feed never had are left out, and all when it cannot be read: their times are unknown then. */
export const feedTimes = (
  db: LibsqlFile,
  tables: ReadonlyArray<FeedTable>,
  name: string,
  keys: ReadonlyArray<string>,
): Effect.Effect<ReadonlyMap<string, Copy>> => {
  const table = tables.find((one) => one.name === name)
  return table === undefined
    ? Effect.succeed(new Map())
    : readTimes(db, table, keys).pipe(
        Effect.catch((error) => Effect.as(Effect.logWarning(`times of ${name} could not be read: ${error.message}`), new Map<string, Copy>())),
      )
}

const readTimes = (db: LibsqlFile, table: FeedTable, keys: ReadonlyArray<string>): Effect.Effect<ReadonlyMap<string, Copy>, LibsqlError> =>
  Effect.map(
    db.read((tx) =>
      tx.all<{ key: string; body: string | null; at: number; times: string | null }>(
        `SELECT e.key, e.body, e.at, c.times FROM json_each(?) j CROSS JOIN entry e ON e.tbl = ? AND e.key = j.value
           LEFT JOIN column_time c ON c.tbl = e.tbl AND c.key = e.key ORDER BY e.body IS NOT NULL, e.at`,
        [JSON.stringify(keys), table.id],
      ),
    ),
    (rows) =>
      new Map(
        // A present entry comes after the tombstones of audiences that the row has left.
        rows.map(({ key, body, at, times: text }): [string, Copy] => {
          if (body === null) return [key, { row: null, at: at / 1000, columns: {} }]
          const values = JSON.parse(body) as ReadonlyArray<Wire>
          const times: Times = text === null ? { "*": [at, 0] } : JSON.parse(text)
          const columns = timedOf(table).map(([, name]) => {
            const time = name in times ? times[name] : times["*"]
            return [name, time == null ? null : { at: time[0] / 1000, xid: time[1] }] as const
          })
          return [
            key,
            {
              row: Object.fromEntries(table.columns.map((column, i) => [column.name, values[i] ?? null])),
              at: null,
              columns: Object.fromEntries(columns),
            },
          ]
        }),
      ),
  )
