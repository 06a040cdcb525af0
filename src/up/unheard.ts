/**
 * Rows that are written while nobody hears of it: their table is paused, or no longer what the stream was opened with. Should
 * head office then write back what stood there, a comparison finds nothing, and the school would keep its own; so they are noted.
 */
import * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"
import { textToToken, type Wire, wireToText } from "../model/value.ts"
import type { PostgresError, Session } from "../postgres/client.ts"
import { unnest } from "./lists.ts"
import type { Shape } from "./shape.ts"
import type { Outcome, Work } from "./work.ts"

/** Whether the stream says nothing of what is written to the table, or says it in another shape. */
export const isUnheard = (table: Table, { columns }: Shape): boolean =>
  table.paused === true || table.columns.length !== columns.size || table.columns.some(({ name, type }) => columns.get(name)?.type !== type)

/** The key as the feed writes it. */
const feedKey = (table: Table, texts: ReadonlyArray<string | null>): string =>
  `[${table.key.map((name, i) => textToToken(table.columns.find((column) => column.name === name)?.kind ?? "text", texts[i] ?? null)).join(",")}]`

const textsOf = (table: Table, key: ReadonlyArray<Wire>): ReadonlyArray<string | null> =>
  table.key.map((name, i) => wireToText(table.columns.find((column) => column.name === name)?.kind ?? "text", key[i] ?? null))

/** Notes what the school wrote, before and after a change of its key. */
export const noteUnheard = (
  session: Session,
  school: string,
  written: ReadonlyArray<{ readonly work: Work; readonly keyAfter: Outcome["keyAfter"] }>,
): Effect.Effect<unknown, PostgresError> => {
  const noted = written.filter(({ work }) => isUnheard(work.table, work.shape))
  if (noted.length === 0) return Effect.void
  const keys = noted.flatMap(({ work: { table, key }, keyAfter }) => [
    [table.name, feedKey(table, key), String(table.generation ?? 1)],
    [table.name, feedKey(table, textsOf(table, keyAfter)), String(table.generation ?? 1)],
  ])
  const { from, params } = unnest(keys, 3)
  return session.execute(
    `INSERT INTO schoolbus.unheard (table_name, row_key, generation, school) SELECT DISTINCT u0, u1, u2::integer, $4 FROM ${from}
     ON CONFLICT (table_name, row_key, generation, school) DO UPDATE SET at = now()`,
    [...params, school],
  )
}
