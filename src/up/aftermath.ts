/** What Postgres made of what was written: cascades that took rows away again, triggers that changed values, sums that took theirs in. */
import * as Effect from "effect/Effect"
import { ruleOf } from "../model/table.ts"
import { ident, type PostgresError, qualified, type Session } from "../postgres/client.ts"
import { textsOf } from "./authorise.ts"
import { textToWire } from "./canonical.ts"
import { matching, unnest } from "./lists.ts"
import { isOwnBaseRule } from "./merge.ts"
import { belongs, type Places } from "./place.ts"
import type { Row } from "./resolve.ts"
import type { Outcome, Work } from "./work.ts"

/**
 * Rows that the batch inserted or gave another key, and that are not the school's after all: a cascade of its own deletes took
 * them away again, or a trigger gave them to another school or under another key. No stream will ever tell this school of them
 * under that key, so the verdict does.
 */
export const findRemoved = (session: Session, works: ReadonlyArray<Work>, places: Places, school: string): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const newlyKeyed = works.filter((work) => work.refusal === null && isNewlyKeyed(work))
    for (const [table, own] of Map.groupBy(newlyKeyed, (work) => work.table)) {
      const { from, params, width } = unnest(
        own.map((work, i) => [...textsOf(table, table.key, work.row), String(i)]),
        table.key.length + 1,
      )
      const rows = yield* session.texts(
        `SELECT u.u${table.key.length} FROM ${from} WHERE NOT EXISTS (SELECT 1 FROM ${qualified(table.name)} t
          WHERE ${matching(own[0]?.shape, table.key)} AND ${belongs(places, table, "t", `$${width + 1}::text`)})`,
        [...params, school],
      )
      for (const [index] of rows) {
        const work = own[Number(index)]
        if (work === undefined) continue
        work.decision = { write: "nothing", set: {}, verdict: "superseded", disagreements: [] }
        work.theirs = null
      }
    }
  })

/** It stands, if at all, under a key under which head office had no row. */
export const isNewlyKeyed = ({ isInsert, isDelete, change }: Work): boolean => isInsert || (!isDelete && change.newKey !== null)

/** Reads written rows of tables with triggers again: what the school sent may not be what stands there. */
export const readAltered = (session: Session, works: ReadonlyArray<Work>): Effect.Effect<ReadonlyMap<Work, Outcome["altered"]>, PostgresError> =>
  Effect.gen(function* () {
    const altered = new Map<Work, Outcome["altered"]>()
    const watched = works.filter((work) => work.shape.hasTriggers && work.refusal === null && !work.isDelete)
    for (const [table, own] of Map.groupBy(watched, (work) => work.table)) {
      const shape = own[0]?.shape
      if (shape === undefined) continue
      const columns = table.columns.filter((column) => own.some((work) => work.written.has(column.name)))
      const { from, params } = unnest(
        own.map((work, i) => [...textsOf(table, table.key, work.row), String(i)]),
        table.key.length + 1,
      )
      const rows = yield* session.texts(
        `SELECT u.u${table.key.length}${columns.map((column) => `, t.${ident(column.name)}`).join("")} FROM ${from} JOIN ${qualified(table.name)} AS t ON ${matching(shape, table.key)}`,
        params,
      )
      for (const [index, ...cells] of rows) {
        const work = own[Number(index)]
        if (work === undefined) continue
        const differences = columns.flatMap((column, i) => {
          const stored = textToWire(column.kind, cells[i] ?? null)
          const sent = work.row[column.name] ?? null
          return work.written.has(column.name) && stored !== sent ? [{ column: column.name, sent, stored }] : []
        })
        if (differences.length > 0) altered.set(work, differences)
      }
    }
    return altered
  })

/** What became of sent values: a trigger's change of them, and sums and lists, which took in what head office had written. */
export const mergedOf = (work: Work, after: Row | null, altered: Outcome["altered"]): Outcome["altered"] => {
  if (after === null || work.theirs === null) return altered
  const byColumn = new Map(altered.map((one) => [one.column, one]))
  for (const [column, sent] of Object.entries(work.mine)) {
    if (!isOwnBaseRule(ruleOf(work.table, column))) continue
    const stored = byColumn.get(column)?.stored ?? after[column] ?? null
    if (stored !== sent) byColumn.set(column, { column, sent, stored })
  }
  return [...byColumn.values()]
}
