/**
 * Which schools rows belong to, as SQL over Postgres itself. A row of a `through` table belongs where the rows that match it
 * do, along the chain. Values meet as Postgres prints them; where both sides have one type, its own comparison comes first,
 * so that an index is used.
 */
import * as Effect from "effect/Effect"
import { audienceColumn, isThrough, type Table, type Through } from "../model/table.ts"
import { ident, type PostgresError, qualified, type Session } from "../postgres/client.ts"
import { matching, unnest } from "./lists.ts"
import type { ColumnShape, Shape } from "./shape.ts"

/** The tables that a push has to do with, and how Postgres has them. */
export interface Places {
  readonly tables: ReadonlyMap<string, Table>
  readonly shapes: ReadonlyMap<string, Shape>
}

type Texts = ReadonlyArray<string | null>

const WHOLE = new Set(["int2", "int4", "int8"])
/** Types whose equal values are printed alike. */
const PRINTED_ALIKE = new Set([...WHOLE, "uuid", "date", "oid"])
/** Types whose equality an index answers, though equal values may be printed in two ways (`1.0` and `1.00`). */
const COMPARABLE = new Set(["text", "varchar", "bpchar", "name", "numeric", "timestamp", "timestamptz", "time", "bool", "bytea"])

/** Its output function's text, unlike a cast: a cast to text cuts a char(n) and spells a boolean in full. */
const printed = (expression: string): string => `pg_catalog.concat(${expression})`

/** `a` and `b` print alike, and neither is null. */
export const meets = (left: ColumnShape | undefined, right: ColumnShape | undefined, a: string, b: string): string => {
  const [l = "", r = ""] = [left?.typname, right?.typname]
  const alike = `${printed(a)} = ${printed(b)}`
  if (l === r && PRINTED_ALIKE.has(l)) return `${a} = ${b}`
  if (WHOLE.has(l) && WHOLE.has(r)) return `${a} = ${b}`
  if (l === r && COMPARABLE.has(l)) return `(${a} = ${b} AND ${alike})`
  return `(${a} IS NOT NULL AND ${b} IS NOT NULL AND ${alike})`
}

const column = (places: Places, table: string, name: string): ColumnShape | undefined => places.shapes.get(table)?.columns.get(name)

/** A row of the table and its link, matched by the rule. */
const joined = (places: Places, table: string, rule: Through, alias: string, link: string): string =>
  Object.entries(rule.on)
    .map(([own, other]) =>
      meets(column(places, table, own), column(places, rule.through, other), `${alias}.${ident(own)}`, `${link}.${ident(other)}`),
    )
    .join(" AND ")

const linkOf = (places: Places, table: Table): Table | undefined => {
  const link = isThrough(table.audience) ? places.tables.get(table.audience.through) : undefined
  return link !== undefined && places.shapes.get(link.name)?.can.select === true ? link : undefined
}

/** The table's links, their links, and so on: nearest first. */
export const chainOf = (tables: ReadonlyMap<string, Table>, table: Table): ReadonlyArray<Table> => {
  const link = isThrough(table.audience) ? tables.get(table.audience.through) : undefined
  return link === undefined ? [] : [link, ...chainOf(tables, link)]
}

/** Always so. A statement whose parameter stands nowhere in it is refused by Postgres. */
const everyone = (school: string): string => `(${school} IS NOT NULL)`

/** Whether the row `alias` belongs to the school; `school` is an SQL text. */
export const belongs = (places: Places, table: Table, alias: string, school: string): string => {
  if (table.audience === "all") return everyone(school)
  const own = audienceColumn(table.audience)
  if (own !== null) return `(${alias}.${ident(own)} IS NOT NULL AND ${printed(`${alias}.${ident(own)}`)} = ${school})`
  const link = linkOf(places, table)
  if (link === undefined || !isThrough(table.audience)) return `NOT ${everyone(school)}`
  const inner = `${alias}_`
  return `EXISTS (SELECT 1 FROM ${qualified(link.name)} ${inner} WHERE ${joined(places, table.name, table.audience, alias, inner)} AND ${belongs(places, link, inner, school)})`
}

/** Whether the row belongs to another school, too. A link that cannot be read may be anybody's. */
const isOthers = (places: Places, table: Table, alias: string, school: string): string => {
  if (table.audience === "all") return everyone(school)
  const own = audienceColumn(table.audience)
  if (own !== null) return `(${alias}.${ident(own)} IS NOT NULL AND ${printed(`${alias}.${ident(own)}`)} <> ${school})`
  const link = linkOf(places, table)
  if (link === undefined || !isThrough(table.audience)) return everyone(school)
  const inner = `${alias}_`
  return `EXISTS (SELECT 1 FROM ${qualified(link.name)} ${inner} WHERE ${joined(places, table.name, table.audience, alias, inner)} AND ${isOthers(places, link, inner, school)})`
}

/** Whether the row belongs to this school and to no other. */
export const belongsAlone = (places: Places, table: Table, alias: string, school: string): string =>
  `(${belongs(places, table, alias, school)} AND NOT ${isOthers(places, table, alias, school)})`

/** Positions of the keys whose row is there and fulfils the condition. */
const those = (
  session: Session,
  places: Places,
  table: Table,
  keys: ReadonlyArray<Texts>,
  school: string,
  condition: (alias: string, school: string) => string,
): Effect.Effect<ReadonlySet<number>, PostgresError> => {
  const { from, params, width } = unnest(
    keys.map((key, i) => [...key, String(i)]),
    table.key.length + 1,
  )
  return Effect.map(
    session.texts(
      `SELECT u.u${width - 1} FROM ${from} JOIN ${qualified(table.name)} t ON ${matching(places.shapes.get(table.name), table.key)} WHERE ${condition("t", `$${width + 1}::text`)}`,
      [...params, school],
    ),
    (rows) => new Set(rows.map(([i]) => Number(i))),
  )
}

/** Of rows of a `through` table, those that belong to the school now. */
export const whichBelong = (session: Session, places: Places, table: Table, keys: ReadonlyArray<Texts>, school: string) =>
  those(session, places, table, keys, school, (alias, id) => belongs(places, table, alias, id))

/** Of these rows, those that belong to the school and to no other. */
export const whichAlone = (session: Session, places: Places, table: Table, keys: ReadonlyArray<Texts>, school: string) =>
  those(session, places, table, keys, school, (alias, id) => belongsAlone(places, table, alias, id))

/**
 * Holds the links of the rows as they are until the push ends, those at the far end of the chain first, each table's in key
 * order. `keys`: rows that are there; `values`: what rows that are about to be written match links by.
 */
export const lockLinks = (
  session: Session,
  places: Places,
  table: Table,
  keys: ReadonlyArray<Texts>,
  values: ReadonlyArray<Texts>,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    if (!isThrough(table.audience)) return
    const rule = table.audience
    const chain = chainOf(places.tables, table)
    const canLock = (one: Table) => places.shapes.get(one.name)?.can.update === true && places.shapes.get(one.name)?.can.select === true
    const joinTo = (depth: number, first: string): string => {
      let sql = `JOIN ${qualified(chain[0]?.name ?? "")} l0 ON ${first}`
      for (let i = 1; i <= depth; i++) {
        const [nearer, link] = [chain[i - 1], chain[i]]
        if (nearer !== undefined && link !== undefined && isThrough(nearer.audience))
          sql += ` JOIN ${qualified(link.name)} l${i} ON ${joined(places, nearer.name, nearer.audience, `l${i - 1}`, `l${i}`)}`
      }
      return sql
    }
    const own = Object.keys(rule.on)
    const ofRows = unnest(keys, table.key.length)
    const ofValues = unnest(values, own.length)
    const byRow = joined(places, table.name, rule, "t", "l0")
    const byValue = Object.entries(rule.on)
      .map(([name, other], i) =>
        meets(
          column(places, table.name, name),
          column(places, rule.through, other),
          `u.u${i}::${column(places, table.name, name)?.base ?? "text"}`,
          `l0.${ident(other)}`,
        ),
      )
      .join(" AND ")
    for (let depth = chain.length - 1; depth >= 0; depth--) {
      const link = chain[depth]
      if (link === undefined || !chain.slice(0, depth + 1).every(canLock)) continue
      const order = `ORDER BY ${link.key.map((name) => `l${depth}.${ident(name)}`).join(", ")} FOR SHARE OF l${depth}`
      if (keys.length > 0)
        yield* session.execute(
          `SELECT 1 FROM ${ofRows.from} JOIN ${qualified(table.name)} t ON ${matching(places.shapes.get(table.name), table.key)} ${joinTo(depth, byRow)} ${order}`,
          ofRows.params,
        )
      if (values.length > 0) yield* session.execute(`SELECT 1 FROM ${ofValues.from} ${joinTo(depth, byValue)} ${order}`, ofValues.params)
    }
  })

/** What stands in `child` for each value that a link is about to name. */
export interface Named {
  readonly rows: number
  readonly isEachSeen: boolean
}

/** `values`: as the link's columns of `child`'s rule hold them. */
export const rowsNamed = (
  session: Session,
  places: Places,
  child: Table,
  rule: Through,
  values: ReadonlyArray<Texts>,
  school: string,
): Effect.Effect<ReadonlyArray<Named>, PostgresError> =>
  Effect.gen(function* () {
    if (places.shapes.get(child.name)?.can.select !== true) return values.map(() => ({ rows: 1, isEachSeen: false }))
    const pairs = Object.entries(rule.on)
    const { from, params, width } = unnest(
      values.map((value, i) => [...value, String(i)]),
      pairs.length + 1,
    )
    const on = pairs
      .map(([own, other], i) => {
        const link = column(places, rule.through, other)
        return meets(column(places, child.name, own), link, `t.${ident(own)}`, `u.u${i}::${link?.base ?? "text"}`)
      })
      .join(" AND ")
    const found = yield* session.texts(
      `SELECT u.u${width - 1}, count(*), bool_and(${belongs(places, child, "t", `$${width + 1}::text`)}) FROM ${from} JOIN ${qualified(child.name)} t ON ${on} GROUP BY 1`,
      [...params, school],
    )
    const byIndex = new Map(found.map(([i, rows, isEachSeen]) => [Number(i), { rows: Number(rows), isEachSeen: isEachSeen === "t" }]))
    return values.map((_, i) => byIndex.get(i) ?? { rows: 0, isEachSeen: true })
  })
