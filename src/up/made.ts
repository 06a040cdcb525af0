/**
 * Values that Postgres itself gives a row of a school: generated columns, what a trigger makes of a link. Where they say what
 * the row points to, they are known only once it is written, and are judged like those that the school sends.
 */
import * as Effect from "effect/Effect"
import { isThrough, type Table } from "../model/table.ts"
import { ident, type PostgresError, qualified, type Session } from "../postgres/client.ts"
import { type Pointing, textsOf } from "./authorise.ts"
import { textToWire } from "./canonical.ts"
import { matching, unnest } from "./lists.ts"
import type { Places } from "./place.ts"
import type { Row } from "./resolve.ts"

/** Columns of the table that say where other rows belong, or which row it refers to, and that Postgres may fill by itself. */
export const tellingColumns = ({ tables, shapes }: Places, table: Table): ReadonlySet<string> => {
  const shape = shapes.get(table.name)
  const isGenerated = (name: string): boolean => shape?.columns.get(name)?.generated === true
  const links = [...tables.values()].flatMap(({ audience }) =>
    isThrough(audience) && audience.through === table.name ? Object.values(audience.on) : [],
  )
  const references = table.references.flatMap(({ columns }) => columns)
  return new Set([...links.filter((name) => shape?.hasTriggers === true || isGenerated(name)), ...references.filter(isGenerated)])
}

/** Of rows that are written now: what those columns hold, where it is not what the row was judged by. */
export const readMade = <P extends Pointing>(
  session: Session,
  rows: ReadonlyArray<P>,
  places: Places,
): Effect.Effect<ReadonlyMap<P, Row>, PostgresError> =>
  Effect.gen(function* () {
    const made = new Map<P, Row>()
    for (const [table, own] of Map.groupBy(rows, (row) => row.table)) {
      const telling = tellingColumns(places, table)
      if (telling.size === 0) continue
      const columns = table.columns.filter(({ name }) => telling.has(name))
      const { from, params } = unnest(
        own.map(({ row }, i) => [...textsOf(table, table.key, row), String(i)]),
        table.key.length + 1,
      )
      const found = yield* session.texts(
        `SELECT u.u${table.key.length}${columns.map(({ name }) => `, t.${ident(name)}`).join("")} FROM ${from} JOIN ${qualified(table.name)} AS t ON ${matching(places.shapes.get(table.name), table.key)}`,
        params,
      )
      for (const [index, ...cells] of found) {
        const row = own[Number(index)]
        if (row === undefined) continue
        const stored = Object.fromEntries(columns.map(({ name, kind }, i) => [name, textToWire(kind, cells[i] ?? null)]))
        if (columns.some(({ name }) => stored[name] !== (row.made[name] ?? row.row[name] ?? null))) made.set(row, stored)
      }
    }
    return made
  })
