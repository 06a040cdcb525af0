/**
 * Pending rows -> the open append. Rows whose message left something out are completed from the feed, or noted to be read again
 * outside the stream.
 */
import { Buffer } from "node:buffer"
import * as Effect from "effect/Effect"
import type { LibsqlError } from "../libsql/client.ts"
import { MAX_ROW_BYTES } from "../link/protocol.ts"
import type { PostgresError } from "../postgres/client.ts"
import type { Appender } from "./append.ts"
import { rememberAudiences } from "./audience.ts"
import { tokenize } from "./body.ts"
import type { Compute } from "./computed.ts"
import { type FeedTable, rowKey } from "./entry.ts"
import type { Pending, PendingRow } from "./pending.ts"
import { isTimed, noteTimes } from "./times.ts"

export interface Flush {
  /** Everything that is pending. */
  readonly all: (appender: Appender, pending: Pending) => Effect.Effect<void, LibsqlError | PostgresError>
  /** What is pending of earlier txns, which end in the feed with it. */
  readonly earlier: (appender: Appender, pending: Pending) => Effect.Effect<void, LibsqlError | PostgresError>
}

export const makeFlush = (options: {
  readonly tables: ReadonlyArray<FeedTable>
  /** The decoder gives NaN and infinities as they are; false: as null. */
  readonly isExact: boolean
  readonly compute: Compute
  /** Called with what was written. */
  readonly onWritten: (appender: Appender, rows: ReadonlyArray<PendingRow>) => Effect.Effect<unknown, LibsqlError>
}): Flush => {
  const { tables, isExact } = options
  // Columns in which a null may stand for NaN or an infinity.
  const floats = new Map(
    isExact ? [] : tables.map((table) => [table.id, table.columns.flatMap((c, i) => (c.kind === "float" || c.kind === "numeric" ? [i] : []))]),
  )
  const hasFloats = [...floats.values()].some((positions) => positions.length > 0)
  const hasTimes = tables.some(isTimed)
  const audienceAt = rememberAudiences()

  const write = Effect.fnUntraced(function* (appender: Appender, all: ReadonlyArray<PendingRow>) {
    if (all.length === 0) return
    if (hasTimes) {
      const timed = all.filter(({ table }) => isTimed(table))
      yield* noteTimes(
        appender.tx,
        timed.map((row) => ({ ...row, isRead: row.ifDifferent, earlier: row.earlier ?? [] })),
        tokenize,
      )
    }
    const incomplete = all.filter((row) => row.bytes == null && row.tokens?.includes(undefined) === true)
    const unknown: Array<readonly [number, string, string]> = []
    if (incomplete.length > 0) {
      const present = yield* appender.bodies(incomplete.map((row) => [row.table.id, row.key] as const))
      for (const row of incomplete) {
        const body = present.get(rowKey(row.table.id, row.key))
        if (body === undefined) {
          unknown.push([row.table.id, row.key, "toast"])
          continue
        }
        const before = tokenize(body)
        row.tokens = row.tokens?.map((token, i) => token ?? before[i]) ?? null
      }
    }
    yield* options.compute(all)
    for (const row of all) {
      // It is whole, and what follows was done when it was read.
      if (row.bytes != null) continue
      const { table, tokens } = row
      if (tokens === null) continue
      if (hasFloats && !row.ifDifferent && floats.get(table.id)?.some((position) => tokens[position] === "null") === true)
        unknown.push([table.id, row.key, "nan"])
      row.body = `[${tokens.join(",")}]`
      if (row.body.length > MAX_ROW_BYTES / 3 && Buffer.byteLength(row.body) > MAX_ROW_BYTES)
        yield* Effect.logWarning(
          `table ${table.name}: the row ${row.key.slice(0, 100)} is larger than ${MAX_ROW_BYTES} bytes on the line and goes to no school; make it smaller, or keep such values in a table that is not synced`,
        )
      row.audience = audienceAt(table.audienceAt, tokens)
    }
    const rows = unknown.length === 0 ? all : all.filter((row) => row.bytes != null || row.tokens?.includes(undefined) !== true)
    yield* appender.rows(rows)
    if (unknown.length > 0) {
      yield* appender.tx.run(
        `INSERT INTO reread (tbl, key, why) SELECT value->>0, value->>1, value->>2 FROM json_each(?) WHERE true
           ON CONFLICT (tbl, key) DO UPDATE SET why = excluded.why WHERE excluded.why = 'toast'`,
        [JSON.stringify(unknown)],
      )
    }
    yield* options.onWritten(appender, all)
  })

  const earlier = Effect.fnUntraced(function* (appender: Appender, pending: Pending) {
    yield* write(appender, pending.takeEarlier())
    yield* appender.ended
  })
  const all = Effect.fnUntraced(function* (appender: Appender, pending: Pending) {
    if (pending.hasPushed) yield* earlier(appender, pending)
    yield* write(appender, pending.takeAll())
  })
  return { all, earlier }
}
