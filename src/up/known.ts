/**
 * Tables of head office as far as they are still those that the hub knows. Between a change of a table and the moment when the hub, or a
 * person, takes it over, a column may go by the name of another, and the columns that name or place rows may be gone. Such a column is
 * none, and such a table is away: what schools write to it waits.
 */
import * as Effect from "effect/Effect"
import { audienceColumn, isThrough, type Table } from "../model/table.ts"
import type { PostgresError, Session } from "../postgres/client.ts"
import { chainOf } from "./place.ts"
import { readShapes, type Shape } from "./shape.ts"

/** The columns without which a row of the table, or rows that it places, cannot be named or placed. */
const neededOf = (tables: ReadonlyMap<string, Table>, { name, key, audience }: Table): ReadonlySet<string> => {
  const own = isThrough(audience) ? Object.keys(audience.on) : (audienceColumn(audience) ?? [])
  const links = [...tables.values()].flatMap((child) =>
    isThrough(child.audience) && child.audience.through === name ? Object.values(child.audience.on) : [],
  )
  return new Set([...key, ...links].concat(own))
}

/** Keys of these are told by their text, and every varying text is spelled alike. */
const TOLD_BY_TEXT = /^(?:text|numeric)$/
const isText = (type: string): boolean => /^(?:text|character varying(?:\(\d+\))?)$/.test(type)

/** A key whose values may be spelled otherwise by now: the school's would name no row, or a new one. */
const isRespelled = (table: Table, shape: Shape): boolean =>
  table.columns.some(({ name, kind, type }) => {
    const now = shape.columns.get(name)?.type ?? type
    return table.key.includes(name) && TOLD_BY_TEXT.test(kind) && now !== type && !(isText(now) && isText(type))
  })

/** Without columns that are others by now; null: the table is another one, or lacks a column that it needs. */
const knownShape = (tables: ReadonlyMap<string, Table>, table: Table, shape: Shape): Shape | null => {
  const { stands } = table
  if (stands !== undefined && stands.oid !== shape.oid) return null
  const isOther = (name: string): boolean => {
    const number = stands?.numbers[name]
    return number !== undefined && shape.columns.get(name)?.number !== number
  }
  const columns = [...shape.columns].filter(([name]) => !isOther(name))
  const known = columns.length === shape.columns.size ? shape : { ...shape, columns: new Map(columns) }
  return [...neededOf(tables, table)].every((name) => known.columns.has(name)) && !isRespelled(table, known) ? known : null
}

/** `asked`: the tables that were looked for; a table whose links are away is away with them. */
export const knownShapes = (
  tables: ReadonlyMap<string, Table>,
  asked: Iterable<string>,
  shapes: ReadonlyMap<string, Shape>,
): ReadonlyMap<string, Shape> => {
  const known = new Map<string, Shape>()
  for (const [name, shape] of shapes) {
    const table = tables.get(name)
    const found = table === undefined ? shape : knownShape(tables, table, shape)
    if (found !== null) known.set(name, found)
  }
  const away = new Set([...asked].filter((name) => !known.has(name)))
  const isPlaced = (name: string): boolean => {
    const table = tables.get(name)
    return table === undefined || !chainOf(tables, table).some((link) => away.has(link.name))
  }
  return away.size === 0 ? known : new Map([...known].filter(([name]) => isPlaced(name)))
}

export const readKnownShapes = (
  session: Session,
  tables: ReadonlyMap<string, Table>,
  names: ReadonlyArray<string>,
): Effect.Effect<ReadonlyMap<string, Shape>, PostgresError> => Effect.map(readShapes(session, names), (shapes) => knownShapes(tables, names, shapes))
