/**
 * May this school write these rows? Decided in the push's own transaction, under its row locks, from Postgres and never
 * from the feed:
 *
 * - old and new row lie inside the school, at the end of the batch too;
 * - every value that a foreign key points to, and every row that a link would place, is one that the school could see before
 *   the batch, or that the batch itself inserts: else a school could pull any pupil by inserting a link. (The school's own
 *   id, in the audience column, needs no row that it can see.)
 * - rows that other schools see too are neither deleted nor given another key by one of them;
 * - a delete or key change reaches, through ON DELETE and ON UPDATE actions, only rows of this school. Rows of tables that
 *   are not synced belong to head office: a school that cannot see them may not remove them.
 *
 * A refusal reads the same whether the other row exists or not.
 */
import * as Effect from "effect/Effect"
import { isInRange, type KeyRange, rangedColumn } from "../model/key-range.ts"
import { audienceColumn, isThrough, linkNamesRow, type Table } from "../model/table.ts"
import { type Wire, wireToText } from "../model/value.ts"
import { ident, type PostgresError, qualified, type Session } from "../postgres/client.ts"
import { EQUALS } from "../postgres/settings.ts"
import { isByValue, readWanted } from "./by-value.ts"
import { asKey, between, matching, tupleText, unnest } from "./lists.ts"
import { belongs, belongsAlone, type Places, rowsNamed, whichAlone } from "./place.ts"
import type { Row } from "./resolve.ts"
import type { ColumnShape, Referencing, Shape } from "./shape.ts"

export interface Refusal {
  /** One word, for API and CLI. */
  readonly reason: string
  readonly detail: string
}

export const notYours: Refusal = { reason: "not_allowed", detail: "the row does not exist, or does not belong to this school" }
/** The change itself shows the values. Without `parent` its rows never leave head office, so no school can know one. */
const notVisible = (columns: ReadonlyArray<string>, target: string, parent: Table | undefined): Refusal => {
  const to =
    parent === undefined
      ? `${target}, which is not synced; a school leaves it empty`
      : `a row of ${target} that does not exist, or does not belong to this school`
  return { reason: "foreign_key", detail: `${columns.join(", ")} refers to ${to}` }
}
export const taken: Refusal = { reason: "unique", detail: "a row with this key exists already and cannot be taken over" }
export const homeless = (link: string): Refusal => ({ reason: "no_audience", detail: `no row of ${link} places the row in this school` })
const away = (name: string): Refusal => ({
  reason: "unknown_table",
  detail: `${name}, or a table that places its rows, is away or has another shape at head office; the change goes on when that does`,
})
const shared: Refusal = { reason: "shared", detail: "rows that do not belong to this school alone would be removed or changed with it" }

export const textOf = (table: Table, column: string, value: Wire): string | null =>
  wireToText(table.columns.find((c) => c.name === column)?.kind ?? "text", value)

export const textsOf = (table: Table, columns: ReadonlyArray<string>, row: Row): ReadonlyArray<string | null> =>
  columns.map((name) => textOf(table, name, row[name] ?? null))

/** Whether a row, as it is or would be, belongs to the school by its own values; null: it does. */
export const placement = (table: Table, row: Row, school: string): Refusal | null => {
  if (table.audience === "all") return null
  const column = audienceColumn(table.audience)
  // Other rows say so, once all are written.
  if (column === null) return null
  // What Postgres computes is known once the row is written.
  if (!(column in row) && table.columns.some(({ name, generated }) => generated && name === column)) return null
  const value = textOf(table, column, row[column] ?? null)
  if (value === null) return { reason: "no_audience", detail: `${column} is empty, so the row would belong to no school` }
  return value === school ? null : { ...notYours, detail: `${column} names another school` }
}

export const everybodys = ({ name }: Table): Refusal => ({
  reason: "shared",
  detail: `rows of ${name} belong to every school, so one school may not delete them or change their key`,
})

/** What the form of the change alone forbids. */
export const formRefusal = (
  table: Table | undefined,
  shape: Shape | undefined,
  name: string,
  change: {
    readonly op: string
    readonly key: ReadonlyArray<unknown>
    readonly newKey: ReadonlyArray<unknown> | null
    readonly mine: Readonly<Record<string, unknown>>
  },
  keys: KeyRange | null = null,
): Refusal | null => {
  if (table !== undefined && shape === undefined && !table.system) return away(name)
  if (table === undefined || shape === undefined || table.system)
    return { reason: "unknown_table", detail: `${name || "the table"} is not a table that is synced` }
  if (table.direction === "down") return { reason: "direction", detail: `${name} is written at head office only` }
  if (change.key.length !== table.key.length || (change.newKey ?? table.key).length !== table.key.length) {
    return { reason: "type", detail: `the key of ${name} is (${table.key.join(", ")}), the change has another number of values` }
  }
  if (change.key.includes(null) || change.newKey?.includes(null)) return { reason: "not_null", detail: `a key column of ${name} is empty` }
  if (table.audience === "all" && change.newKey !== null) return everybodys(table)
  if (change.op === "insert" && table.insert === "vps") return { reason: "insert", detail: `new rows of ${name} are made at head office only` }
  const made = change.op === "insert" ? change.key[0] : change.newKey?.[0]
  if (keys !== null && made !== undefined && rangedColumn(table) !== null && !isInRange(keys, made)) {
    const detail = `${table.key[0]} of a new row of ${name} lies outside this school's range ${keys.from} to ${keys.to}; leave it out, and the file gives one`
    return { reason: "key_range", detail }
  }
  for (const column of Object.keys(change.mine)) {
    const known = shape.columns.get(column)
    // Of a column that head office dropped, an empty value says nothing.
    if (known === undefined && change.mine[column] === null) continue
    if (known === undefined || !table.columns.some((c) => c.name === column))
      return { reason: "unknown_column", detail: `${name} has no column ${column} at head office` }
    if (known.generated) return { reason: "generated_column", detail: `${column} of ${name} is computed by Postgres and cannot be written` }
  }
  return permission(shape, change.op)
}

const permission = (shape: Shape, op: string): Refusal | null => {
  const needed = [
    ["SELECT", shape.can.select] as const,
    ...(op === "insert"
      ? [["INSERT", shape.can.insert] as const]
      : op === "update"
        ? [["UPDATE", shape.can.update] as const]
        : op === "delete"
          ? [["DELETE", shape.can.delete] as const]
          : []),
  ]
  const missing = needed.flatMap(([right, has]) => (has ? [] : [right]))
  if (missing.length === 0) return null
  return {
    reason: "permission",
    detail: `the hub's role may not do this; a DBA can allow it: GRANT ${missing.join(", ")} ON ${qualified(shape.name)} TO ${ident(shape.role)}`,
  }
}

/** A row that is about to be written, as far as foreign keys are concerned. */
export interface Pointing {
  readonly table: Table
  /** The whole row as it will be. */
  readonly row: Row
  /** The columns that are written. */
  readonly written: ReadonlySet<string>
  /** Values that Postgres makes itself when the row is written, as far as they were seen: they count as written. */
  made: Row
  /** There is no such row in Postgres yet. */
  readonly isInsert: boolean
  /** Capture time, in server time, ms since 1970. */
  readonly at: number
  refusal: Refusal | null
  /** Rows of this batch without which this one would point to nothing the school can see. */
  readonly needs: Set<Pointing>
}

const isWritten = ({ written, made }: Pointing, name: string): boolean => written.has(name) || name in made

const pointedBy = ({ table, row, made }: Pointing, columns: ReadonlyArray<string>): ReadonlyArray<string | null> =>
  textsOf(table, columns, { ...row, ...made })

/** Refuses rows that point outside the school, and what hangs on a refused row; notes which rows need which. */
export const checkReferences = (
  session: Session,
  rows: ReadonlyArray<Pointing>,
  places: Places,
  school: string,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const { tables, shapes } = places
    const byTable = Map.groupBy(rows, (row) => row.table)
    for (const [table, own] of byTable) {
      for (const reference of table.references) {
        const isOwnSchool = table.audience !== "all" && reference.columns.length === 1 && reference.columns[0] === audienceColumn(table.audience)
        if (isOwnSchool) continue
        const wanting = own.flatMap((row) => {
          if (row.refusal !== null || !reference.columns.some((name) => isWritten(row, name))) return []
          const values = pointedBy(row, reference.columns)
          return values.includes(null) ? [] : [{ row, values, tuple: tupleText(values) }]
        })
        if (wanting.length === 0) continue
        const parent = tables.get(reference.table)
        const shape = shapes.get(table.name)
        const types = reference.columns.map((name) => shape?.columns.get(name))
        const distinct = [...new Map(wanting.map(({ tuple, values }) => [tuple, values])).values()]
        const seen = parent === undefined ? new Set<string>() : yield* visibleParents(session, places, parent, reference.to, types, distinct, school)
        const isValue = parent !== undefined && isByValue(reference, parent)
        const made = parent === undefined ? new Map<string, Pointing>() : madeBy(byTable.get(parent) ?? [], reference.to)
        const waiting = isValue
          ? yield* readWanted(session, school, parent, reference.to, [...distinct.values()])
          : new Map<string, { until: number }>()
        for (const { row, tuple } of wanting) {
          const maker = made.get(tuple)
          // Another row may have the same value: what the school wrote means its own.
          const isOwn = maker !== undefined && isValue
          if (seen.has(tuple) && !isOwn) {
            if (row.at <= (waiting.get(tuple)?.until ?? 0)) row.refusal = waitsForOwn
            continue
          }
          if (maker === undefined) row.refusal = notVisible(reference.columns, reference.table, parent)
          else if (maker !== row) row.needs.add(maker)
        }
      }
    }
    yield* checkNamed(session, byTable, places, school)
    refuseDependants(rows)
  })

/** Rows that the batch inserts, or gives other values in some columns, by these values. */
const madeBy = (rows: ReadonlyArray<Pointing>, columns: ReadonlyArray<string>): ReadonlyMap<string, Pointing> =>
  new Map(
    rows.flatMap((row) => (row.isInsert || columns.some((name) => isWritten(row, name)) ? [[tupleText(pointedBy(row, columns)), row] as const] : [])),
  )

/** Refuses links that would place rows which the school could not see before. */
const checkNamed = (
  session: Session,
  byTable: ReadonlyMap<Table, ReadonlyArray<Pointing>>,
  places: Places,
  school: string,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    for (const child of places.tables.values()) {
      if (!isThrough(child.audience)) continue
      const rule = child.audience
      const link = places.tables.get(rule.through)
      const links = link === undefined ? [] : (byTable.get(link) ?? [])
      const columns = Object.values(rule.on)
      const naming = links.flatMap((row) => {
        if (row.refusal !== null || !columns.some((name) => isWritten(row, name))) return []
        const values = pointedBy(row, columns)
        return values.includes(null) ? [] : [{ row, values, tuple: tupleText(values) }]
      })
      if (link === undefined || naming.length === 0) continue
      const distinct = new Map(naming.map(({ tuple, values }) => [tuple, values]))
      const found = yield* rowsNamed(session, places, child, rule, [...distinct.values()], school)
      const byTuple = new Map([...distinct.keys()].map((tuple, i) => [tuple, found[i]]))
      const made = madeBy(byTable.get(child) ?? [], Object.keys(rule.on))
      const mustName = linkNamesRow(rule, child, link)
      for (const { row, tuple } of naming) {
        const named = byTuple.get(tuple)
        if (named?.isEachSeen !== true) row.refusal = notVisible(columns, child.name, child)
        else if (mustName && named.rows === 0) {
          const maker = made.get(tuple)
          if (maker === undefined) row.refusal = notVisible(columns, child.name, child)
          else row.needs.add(maker)
        }
      }
    }
  })

/** What needs a refused row is refused too, as its dependant. */
export const refuseDependants = (rows: ReadonlyArray<Pointing>): void => {
  for (let isMoving = true; isMoving; ) {
    isMoving = false
    for (const row of rows) {
      if (row.refusal !== null || ![...row.needs].some((needed) => needed.refusal !== null)) continue
      row.refusal = dependant
      isMoving = true
    }
  }
}
const waitsForOwn: Refusal = { reason: "dependant", detail: "the row refers to one of the school's own that waits for a decision or was left out" }
export const dependant: Refusal = { reason: "dependant", detail: "the row refers to one of the same batch that could not be written" }

/** Among the wanted tuples, those that a row of `parent` has which the school can see. They stay so until the push ends. */
export const visibleParents = (
  session: Session,
  places: Places,
  parent: Table,
  columns: ReadonlyArray<string>,
  types: ReadonlyArray<ColumnShape | undefined>,
  tuples: ReadonlyArray<ReadonlyArray<string | null>>,
  school: string,
): Effect.Effect<ReadonlySet<string>, PostgresError> => {
  const shape = places.shapes.get(parent.name)
  if (shape?.can.select !== true) return Effect.succeed(new Set())
  const { from, params, width } = unnest(tuples, columns.length)
  // Values of the child's types, which may be other than the parent's.
  const on = columns.map((name, i) => `t.${ident(name)} ${between(shape.columns.get(name), types[i])} ${asKey(types[i], `u.u${i}`)}`)
  const order = `ORDER BY ${parent.key.map((name) => `t.${ident(name)}`).join(", ")}`
  const lock = parent.audience !== "all" && shape.can.update ? ` ${order} FOR SHARE OF t` : ""
  return Effect.map(
    session.texts(
      `SELECT ${columns.map((_, i) => `u.u${i}`).join(", ")} FROM ${from} JOIN ${qualified(parent.name)} t ON ${on.join(" AND ")}
        WHERE ${belongs(places, parent, "t", `$${width + 1}::text`)}${lock}`,
      [...params, school],
    ),
    (rows) => new Set(rows.map(tupleText)),
  )
}

/** A row that will lose its key values: all of them (a delete), or those that an update writes. */
export interface Leaving {
  readonly table: Table
  readonly key: ReadonlyArray<string | null>
  readonly isDelete: boolean
  readonly written: ReadonlySet<string>
  refusal: Refusal | null
}

/** A row that an action reaches, and the row of the batch that it is reached from. */
interface Reached extends Leaving {
  readonly origin: Leaving
}

/** Refuses deletes and key changes whose ON DELETE or ON UPDATE actions reach rows that are not this school's alone. */
export const checkReach = (
  session: Session,
  leaving: ReadonlyArray<Leaving>,
  referencing: ReadonlyArray<Referencing>,
  places: Places,
  school: string,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const losing = leaving.filter((row) => isThrough(row.table.audience) && (row.isDelete || row.table.key.some((name) => row.written.has(name))))
    for (const [table, rows] of Map.groupBy(losing, (row) => row.table)) {
      const keys = rows.map((row) => row.key)
      const alone = yield* whichAlone(session, places, table, keys, school)
      for (const [i, row] of rows.entries()) if (!alone.has(i)) row.refusal ??= shared
    }
    const met = new Set<string>()
    const number = new Map(leaving.map((row, i) => [row, i]))
    let rows: ReadonlyArray<Reached> = leaving.flatMap((row) => (row.refusal === null ? [{ ...row, origin: row }] : []))
    while (rows.length > 0) {
      const reached = yield* reachOnce(session, rows, referencing, places, school)
      // Rows that reach each other in a circle are followed once from each row of the batch.
      rows = reached.filter((row) => {
        const id = `${number.get(row.origin)}\0${row.table.name}\0${tupleText(row.key)}`
        return row.origin.refusal === null && !met.has(id) && met.add(id)
      })
    }
  })

const reachOnce = (
  session: Session,
  leaving: ReadonlyArray<Reached>,
  referencing: ReadonlyArray<Referencing>,
  places: Places,
  school: string,
): Effect.Effect<ReadonlyArray<Reached>, PostgresError> =>
  Effect.gen(function* () {
    const { tables, shapes } = places
    const next: Array<Reached> = []
    for (const [table, rows] of Map.groupBy(leaving, (row) => row.table)) {
      for (const foreign of referencing) {
        if (foreign.parent !== table.name) continue
        const affected = rows.filter(
          (row) =>
            row.origin.refusal === null &&
            (row.isDelete ? /[cnd]/.test(foreign.onDelete) : /[cnd]/.test(foreign.onUpdate) && foreign.to.some((name) => row.written.has(name))),
        )
        if (affected.length === 0) continue
        if (!foreign.canRead) {
          const detail = `rows of ${foreign.child} may hang on it, which the hub's role may not read; a DBA can allow it: GRANT SELECT ON ${qualified(foreign.child)} TO ${ident(shapes.get(table.name)?.role ?? "")}`
          for (const row of affected) row.origin.refusal = { reason: "permission", detail }
          continue
        }
        const child = tables.get(foreign.child)
        if (child !== undefined && !shapes.has(child.name)) {
          for (const row of affected) row.origin.refusal = away(child.name)
          continue
        }
        const childKey = child?.key ?? []
        const { from, params } = unnest(
          affected.map((row, i) => [...row.key, String(i)]),
          table.key.length + 1,
        )
        const join = foreign.to
          .map((name, i) => `t.${ident(name)} ${foreign.operators[i] ?? EQUALS} c.${ident(foreign.columns[i] ?? "")}`)
          .join(" AND ")
        const reached = yield* session.texts(
          `SELECT u.u${table.key.length}, ${child === undefined ? "false" : belongsAlone(places, child, "c", `$${table.key.length + 2}::text`)}${childKey.map((name) => `, c.${ident(name)}`).join("")}
             FROM ${from} JOIN ${qualified(table.name)} t ON ${matching(shapes.get(table.name), table.key)} JOIN ${qualified(foreign.child)} c ON ${join}`,
          child === undefined ? params : [...params, school],
        )
        for (const [index, isAlone, ...key] of reached) {
          const by = affected[Number(index)]
          if (by === undefined || by.origin.refusal !== null) continue
          if (child === undefined || isAlone !== "t") by.origin.refusal = shared
          else
            next.push({
              table: child,
              key,
              isDelete: by.isDelete && foreign.onDelete === "c",
              written: new Set(foreign.columns),
              refusal: null,
              origin: by.origin,
            })
        }
      }
    }
    return next
  })
