/**
 * May this school write these rows? Old and new row must lie inside the school; every value that a foreign key points to
 * must be a row that the school could see before the batch, or one that the batch itself inserted. Decided in the push's
 * own transaction, from Postgres, never from the feed. A refusal reads the same whether the other row exists or not.
 */
import * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"
import { type Wire, wireToText } from "../model/value.ts"
import { ident, type PostgresError, qualified, type Session } from "../postgres/client.ts"

type Values = Readonly<Record<string, Wire>>

export interface Refusal {
  readonly reason: string
  readonly detail: string
}

export const notYours: Refusal = { reason: "not_allowed", detail: "the row, or a row that it refers to, does not belong to this school" }

const textOf = (table: Table, column: string, row: Values): string | null =>
  wireToText(table.columns.find((c) => c.name === column)?.kind ?? "text", row[column] ?? null)

/** Whether a row, as it is or would be, belongs to the school. */
export const placement = (table: Table, row: Values, school: string): Refusal | null => {
  if (table.audience === "all") return null
  const value = textOf(table, table.audience.column, row)
  if (value === null) return { reason: "no_audience", detail: `${table.audience.column} is empty, so the row would belong to no school` }
  return value === school ? null : notYours
}

/** What the shape of the change alone forbids. */
export const formRefusal = (table: Table | undefined, name: string, change: { readonly op: string; readonly newKey: unknown; readonly mine: Readonly<Record<string, unknown>> }): Refusal | null => {
  if (table === undefined || table.system) return { reason: "unknown_table", detail: `${name} is not a table that is synced` }
  if (table.direction === "down") return { reason: "direction", detail: `${name} is written at head office only` }
  if (table.audience === "all" && (change.op === "delete" || change.newKey !== null)) {
    return { reason: "shared", detail: `rows of ${name} belong to every school, so one school may not delete them or change their key` }
  }
  for (const column of Object.keys(change.mine)) {
    const known = table.columns.find((c) => c.name === column)
    if (known === undefined) return { reason: "unknown_column", detail: `${name} has no column ${column} at head office` }
    if (known.generated) return { reason: "generated_column", detail: `${column} of ${name} is computed by Postgres and cannot be written` }
  }
  return null
}

/** Values of the columns `columns` as one text, to compare rows with. */
export const tupleText = (values: ReadonlyArray<string | null>): string => JSON.stringify(values)

/** Among the wanted tuples of a referenced table, those that the school may point to. */
export const visibleParents = (
  session: Session,
  parent: Table,
  columns: ReadonlyArray<string>,
  tuples: ReadonlyArray<ReadonlyArray<string | null>>,
  school: string,
): Effect.Effect<ReadonlySet<string>, PostgresError> => {
  const types = columns.map((name) => parent.columns.find((column) => column.name === name)?.type ?? "text")
  const unnest = `unnest(${columns.map((_, i) => `$${i + 1}::text[]`).join(", ")}) AS k (${columns.map((_, i) => `k${i}`).join(", ")})`
  const join = columns.map((name, i) => `p.${ident(name)} = k.k${i}::${types[i]}`).join(" AND ")
  const audience = parent.audience === "all" ? "" : ` AND p.${ident(parent.audience.column)}::text = $${columns.length + 1}`
  const params = columns.map((_, i) => tuples.map((tuple) => tuple[i] ?? null))
  // The rows stay as they are until the push is committed.
  return Effect.map(
    session.values(
      `SELECT ${columns.map((_, i) => `k.k${i}`).join(", ")} FROM ${unnest} JOIN ${qualified(parent.name)} p ON ${join}${audience} FOR KEY SHARE OF p`,
      parent.audience === "all" ? params : [...params, school],
    ),
    (rows) => new Set(rows.map((row) => tupleText(row))),
  )
}
