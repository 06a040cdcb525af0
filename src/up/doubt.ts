/**
 * Rows that a program of a school may have written while its triggers were away, and that head office changed since, where
 * nobody knows any more what they were before. The school names them with its next push; head office's row stands, and what
 * the school held is recorded, so that a person can take it back.
 */
import * as Effect from "effect/Effect"
import { audienceColumn, isExcluded, isThrough, namedSince, type Table } from "../model/table.ts"
import type { Wire } from "../model/value.ts"
import type { PostgresError, Session } from "../postgres/client.ts"
import { placement } from "./authorise.ts"
import { wireKey } from "../model/key.ts"
import { type Origin, putConflicts } from "./records.ts"
import { DecideRefused } from "./refused.ts"
import type { Row } from "./resolve.ts"
import { readRow, spellRow } from "./rows.ts"
import { readKnownShapes } from "./known.ts"
import { visible } from "./unique.ts"

/** `target` of the request is the table's name, `choice` this as JSON. `mine` null: the school has no such row. */
interface Doubt {
  readonly key: ReadonlyArray<Wire>
  readonly mine: Row | null
}

const isWire = (value: unknown): value is Wire => value === null || ["string", "number", "boolean"].includes(typeof value)

/** What a school wrote is never trusted to be one. */
const parseDoubt = (table: Table, json: string | null): Doubt | null => {
  try {
    const { key, mine } = JSON.parse(json ?? "null") as { key?: unknown; mine?: unknown }
    if (!Array.isArray(key) || key.length !== table.key.length || !key.every(isWire)) return null
    if (mine !== null && (typeof mine !== "object" || !Object.values(mine as object).every(isWire))) return null
    const known = new Set(table.columns.flatMap(({ name, generated }) => (generated ? [] : [name])))
    return { key, mine: mine === null ? null : Object.fromEntries(Object.entries(mine as Row).filter(([name]) => known.has(name))) }
  } catch {
    return null
  }
}

/** Columns that say where rows belong or what they refer to: those the school may change by a push only, where they are looked at. */
const boundColumns = (tables: ReadonlyMap<string, Table>, table: Table): ReadonlySet<string> => {
  const placing = [...tables.values()].flatMap(({ audience }) =>
    isThrough(audience) && audience.through === table.name ? Object.values(audience.on) : [],
  )
  const own = isThrough(table.audience) ? Object.keys(table.audience.on) : [audienceColumn(table.audience) ?? ""]
  return new Set([...table.key, ...table.references.flatMap(({ columns }) => columns), ...placing, ...own])
}

export const recordDoubt = (
  session: Session,
  tables: ReadonlyMap<string, Table>,
  origin: Origin,
  { target, choice }: { readonly target: string; readonly choice: string | null },
): Effect.Effect<void, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const table = tables.get(target)
    const shape = (yield* readKnownShapes(session, tables, [target])).get(target)
    const doubt = table === undefined ? null : parseDoubt(table, choice)
    if (table === undefined || shape === undefined || doubt === null || table.system || table.direction !== "both")
      return yield* new DecideRefused({ code: "not_possible", message: `no such row of ${target}` })
    const place = { table, shape, key: doubt.key }
    const theirs = yield* readRow(session, place)
    if (theirs !== null && (yield* visible(session, tables, table, theirs, origin.school)) === null) return
    // A row that stands nowhere at head office has no links there either that could place it.
    if (theirs === null && (doubt.mine === null || isThrough(table.audience) || placement(table, doubt.mine, origin.school) !== null)) return
    const bound = boundColumns(tables, table)
    const audience = audienceColumn(table.audience)
    const free = Object.entries(doubt.mine ?? {}).filter(
      ([name]) => !bound.has(name) || (theirs === null && (table.key.includes(name) || name === audience)),
    )
    const spelled = yield* spellRow(session, place, Object.fromEntries(free))
    if ("refused" in spelled) return yield* new DecideRefused({ code: "not_possible", message: spelled.refused })
    const mine = doubt.mine === null ? null : { ...theirs, ...spelled.ok }
    const isSame =
      mine !== null && theirs !== null && Object.keys(spelled.ok).every((name) => isExcluded(table, name) || mine[name] === (theirs[name] ?? null))
    if (isSame) return
    yield* putConflicts(session, [
      [
        crypto.randomUUID(),
        origin.school,
        origin.incarnation,
        String(origin.number),
        "0",
        table.name,
        wireKey(doubt.key),
        null,
        "null",
        JSON.stringify(mine),
        JSON.stringify(theirs),
        JSON.stringify(theirs),
        "vps",
        table.strategy,
        "the school's triggers were away, so it is not known whether the school changed the row; head office did",
        "decided",
        "row",
        null,
        null,
        String(namedSince(table)),
      ],
    ])
  })
