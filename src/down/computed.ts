/**
 * Generated columns that the stream leaves out, computed by Postgres from the other columns of the row. Their expressions
 * are immutable, so the value is the one that stands in the table, whatever was committed since.
 */
import * as Effect from "effect/Effect"
import { textToToken, type Wire, wireToText } from "../model/value.ts"
import { ident, type PostgresError, type PostgresPool, qualified, type Session } from "../postgres/client.ts"
import type { GeneratedColumn } from "../postgres/generated.ts"
import { isUnderOtherPath, TO_BOTH } from "../postgres/settings.ts"
import type { Tokens } from "./decode.ts"
import type { FeedTable } from "./entry.ts"

/** Rows of one statement. */
const ROWS_AT_ONCE = 2_000

interface ComputedTable {
  readonly positions: ReadonlyArray<number>
  readonly sql: string
}

/** A row to be completed; null = deleted. `ifDifferent`: read outside the stream, so it is whole. */
export interface Computable {
  readonly table: FeedTable
  tokens: Tokens | null
  readonly ifDifferent: boolean
}

/** Fills in generated columns of the rows that have all others. */
export type Compute = (rows: ReadonlyArray<Computable>) => Effect.Effect<void, PostgresError>

const computedTable = (table: FeedTable, generated: ReadonlyArray<GeneratedColumn>): ComputedTable => {
  const positions = generated.map(({ name }) => table.columns.findIndex((column) => column.name === name))
  const inputs = table.table.columns.flatMap((column, i) => (column.generated ? [] : [`(r.v ->> ${i})::${column.type} AS ${ident(column.name)}`]))
  const sql = `SELECT ${generated.map(({ expression }) => `(${expression})`).join(", ")}
    FROM (SELECT r.n AS "schoolbus n", '${qualified(table.name).replaceAll("'", "''")}'::pg_catalog.regclass::pg_catalog.oid AS tableoid, ${inputs.join(", ")}
            FROM pg_catalog.json_array_elements($1::text::json) WITH ORDINALITY AS r (v, n)) t
   ORDER BY "schoolbus n"`
  return { positions, sql }
}

/** `generated`: only columns whose values the decoder does not deliver. */
export const makeCompute = (pg: PostgresPool, tables: ReadonlyArray<FeedTable>, generated: ReadonlyArray<GeneratedColumn>): Compute => {
  const byId = new Map(
    tables.flatMap((table) => {
      const mine = generated.filter((column) => column.table === table.name)
      return mine.length === 0 ? [] : [[table.id, computedTable(table, mine)] as const]
    }),
  )
  return Effect.fnUntraced(function* (rows: ReadonlyArray<Computable>) {
    if (byId.size === 0) return
    for (const [id, computed] of byId) {
      const mine = rows.filter((row) => row.table.id === id && !row.ifDifferent && row.tokens?.includes(undefined) === false)
      for (let from = 0; from < mine.length; from += ROWS_AT_ONCE) {
        const part = mine.slice(from, from + ROWS_AT_ONCE)
        const texts = part.map(({ table, tokens }) =>
          table.columns.map(({ kind }, i) => wireToText(kind, JSON.parse((tokens as Tokens)[i] as string) as Wire)),
        )
        const ask = (session: Session) => session.texts(computed.sql, [JSON.stringify(texts)])
        const values = yield* Effect.catchIf(pg.tx(ask), isUnderOtherPath, () =>
          pg.tx((session) => Effect.andThen(session.execute(TO_BOTH), ask(session))),
        )
        part.forEach((row, i) => {
          const tokens = [...(row.tokens as Tokens)]
          computed.positions.forEach((position, k) => {
            tokens[position] = textToToken(row.table.columns[position]?.kind ?? "text", values[i]?.[k] ?? null)
          })
          row.tokens = tokens
        })
      }
    }
  })
}
