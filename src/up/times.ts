/**
 * When head office's side of a row was written, column by column. The feed knows when a column was last changed; a pushed
 * value counts as written when the school captured it, which stands in `schoolbus.column_times` beside the xids by which
 * the feed and the row itself name that push. A column in which the feed lags behind the row is as old as the row.
 */
import * as Effect from "effect/Effect"
import { wireKey } from "../model/key.ts"
import { needsTime, type Table } from "../model/table.ts"
import type { Wire } from "../model/value.ts"
import { type PostgresError, qualified, type Session } from "../postgres/client.ts"
import { matching, unnest } from "./lists.ts"
import type { Decision, Office, Row } from "./resolve.ts"
import type { Shape } from "./shape.ts"
import type { FeedCopy, Tables } from "./tables.ts"

/** Pushed times are kept for so long: by then what was captured at the same time has long been pushed too. */
export const KEEP_DAYS = 120

/** By a column's name what names it for as long as it lives, whatever it is called. */
const columnIds = (table: Table): ReadonlyMap<string, string> => new Map(table.columns.map(({ name, number }) => [name, String(number ?? name)]))

/** In place of a column, of a whole row: it was inserted, it was deleted. */
const INSERTED = "*"
const DELETED = "-"

/** A row that a push meets, as far as its times matter. */
export interface Met {
  readonly table: Table
  readonly shape: Shape
  /** As Postgres prints it. */
  readonly key: ReadonlyArray<string | null>
  readonly keyWires: ReadonlyArray<Wire>
  readonly op: string
  readonly base: Row
  readonly mine: Row
  readonly theirs: Row | null
  /** Commit time of the row as it stands, ms since 1970; null = unknown. */
  readonly theirsAt: number | null
  /** Of the row as it stands, as Postgres prints it; null = no row. */
  readonly xmin: string | null
}

interface Pushed {
  readonly at: number
  readonly xid: number
  readonly rowXid: string
}

const timed = (table: Table): ReadonlyArray<string> =>
  table.columns.flatMap((column) => (!column.generated && needsTime(table, column.name) ? [column.name] : []))

/** When a column of it was written may decide something. */
export const isTimed = (table: Table): boolean => timed(table).length > 0

/** A time may have to decide something. */
const isDisputed = (met: Met): boolean => {
  if (met.theirs === null) return met.op !== "insert" && met.table.strategy === "newest_wins"
  if (met.op === "delete") return met.table.strategy === "newest_wins"
  const { theirs, base, mine, table } = met
  return Object.keys(mine).some((name) => needsTime(table, name) && theirs[name] !== mine[name] && theirs[name] !== base[name])
}

/** Of the rows where a time may decide: when head office's columns were written, or the row was deleted. */
export const readOfficeTimes = <A extends Met>(
  session: Session,
  times: Tables["Service"]["times"],
  rows: ReadonlyArray<A>,
  now: number,
): Effect.Effect<ReadonlyMap<A, Pick<Office, "at" | "columnAt">>, PostgresError> =>
  Effect.gen(function* () {
    const found = new Map<A, Pick<Office, "at" | "columnAt">>()
    for (const [table, own] of Map.groupBy(rows.filter(isDisputed), (row) => row.table)) {
      const keys = own.map((row) => wireKey(row.keyWires))
      const copies = times === undefined ? new Map<string, FeedCopy>() : yield* times(table.name, keys)
      const pushed = new Map<string, Map<string, Pushed>>()
      const { from, params } = unnest(
        keys.map((key) => [key]),
        1,
      )
      const records = yield* session.query<{ key: string; name: string; at: string; xid: string; row: string }>(
        `SELECT c.row_key AS key, c.column_name AS name, c.at::text AS at, c.xid::text AS xid, c.row_xid::text AS row
           FROM ${from} JOIN schoolbus.column_times c ON c.row_key = u.u0 WHERE c.table_name = $2`,
        [...params, table.name],
      )
      for (const { key, name, at, xid, row } of records) {
        const columns = pushed.get(key) ?? new Map<string, Pushed>()
        pushed.set(key, columns.set(name, { at: Number(at), xid: Number(xid), rowXid: row }))
      }
      own.forEach((row, i) => {
        const key = keys[i] ?? ""
        const copy = copies.get(key)
        const byColumn = pushed.get(key)
        found.set(
          row,
          row.theirs === null
            ? goneAt(copy, byColumn?.get(DELETED), now)
            : { at: row.theirsAt, columnAt: columnTimes(row, row.theirs, copy, byColumn) },
        )
      })
    }
    return found
  })

const goneAt = (copy: FeedCopy | undefined, deleted: Pushed | undefined, now: number): Pick<Office, "at" | "columnAt"> => {
  // The feed still has it: it went a moment ago. A school's delete counts from when the school made it.
  const at = copy === undefined ? null : (copy.at ?? now)
  const isPushed = deleted !== undefined && (at === null || at >= deleted.at)
  return { at: isPushed ? deleted.at : at, columnAt: {} }
}

const columnTimes = (row: Met, theirs: Row, copy: FeedCopy | undefined, pushed: ReadonlyMap<string, Pushed> | undefined): Office["columnAt"] => {
  const ids = columnIds(row.table)
  return Object.fromEntries(
    timed(row.table).map((name) => {
      const [own, inserted] = [pushed?.get(ids.get(name) ?? name), pushed?.get(INSERTED)]
      // The push that wrote the row as it stands: nobody has written since.
      for (const one of [own, inserted]) if (one !== undefined && one.rowXid === row.xmin) return [name, one.at]
      const known = copy?.row != null && copy.row[name] === theirs[name] ? copy.columns[name] : undefined
      if (known == null) return [name, row.theirsAt]
      return [name, own !== undefined && own.xid === known.xid ? own.at : known.at]
    }),
  )
}

export interface Pushing {
  readonly table: Table
  readonly shape: Shape
  readonly keyAfter: ReadonlyArray<Wire>
  readonly keyTexts: ReadonlyArray<string | null>
  readonly write: Decision["write"]
  readonly set: Row
  readonly at: number
  readonly columnAt: Readonly<Record<string, number>>
}

/** After the write: when the school captured what now stands in these rows. */
export const recordTimes = (session: Session, rows: ReadonlyArray<Pushing>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    for (const [table, own] of Map.groupBy(rows, (row) => row.table)) {
      const names = timed(table)
      if (names.length === 0) continue
      const ids = columnIds(table)
      const shape = own[0]?.shape
      const isWhole = table.strategy === "newest_wins"
      const written = own.flatMap(({ write, set, keyAfter, keyTexts, at, columnAt }): ReadonlyArray<ReadonlyArray<string | null>> => {
        const row = (name: string, time: number) => [...keyTexts, wireKey(keyAfter), name, String(Math.round(time))]
        if (write === "insert") return [row(INSERTED, at)]
        if (write === "update") return names.flatMap((name) => (name in set ? [row(ids.get(name) ?? name, columnAt[name] ?? at)] : []))
        return write === "delete" && isWhole ? [row(DELETED, at)] : []
      })
      if (written.length === 0) continue
      const width = table.key.length
      const { from, params } = unnest(written, width + 3)
      yield* session.execute(
        `INSERT INTO schoolbus.column_times (table_name, row_key, column_name, at, xid, row_xid)
         SELECT $${width + 4}, u.u${width}, u.u${width + 1}, u.u${width + 2}::bigint, (pg_current_xact_id()::text::numeric % 4294967296)::bigint,
                coalesce(t.xmin::text::bigint, 0)
           FROM ${from} LEFT JOIN ${qualified(table.name)} AS t ON ${matching(shape, table.key)}
         ON CONFLICT (table_name, row_key, column_name) DO UPDATE SET at = excluded.at, xid = excluded.xid, row_xid = excluded.row_xid, written_at = now()`,
        [...params, table.name],
      )
    }
  })

export const forgetTimes = (session: Session): Effect.Effect<unknown, PostgresError> =>
  session.execute(`DELETE FROM schoolbus.column_times WHERE written_at < now() - interval '${KEEP_DAYS} days'`)
