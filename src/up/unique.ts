/**
 * Two rows that want the same unique value: the school's, which could not be written and waits in quarantine, and one that
 * stands at head office already. Which indexes they clash in is asked of Postgres, also of indexes over expressions and over
 * part of a table; each gets a record with a value that is free. A row that the school may not see is `taken`: nothing of
 * it leaves the hub.
 */
import * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"
import { type Wire, wireToText } from "../model/value.ts"
import { ident, type PostgresError, qualified, type Session } from "../postgres/client.ts"
import { textsOf } from "./authorise.ts"
import { textToWire } from "./canonical.ts"
import { readKnownShapes } from "./known.ts"
import { asKey, equals, listsOf } from "./lists.ts"
import { chainOf, whichBelong } from "./place.ts"
import type { Row } from "./resolve.ts"
import { columnOf } from "./rows.ts"
import type { Shape } from "./shape.ts"

/** Free values that are tried for one row. */
const CANDIDATES = 200

export interface Clash {
  /** Columns that must differ together. */
  readonly columns: ReadonlyArray<string>
  /** The column that gets another value when the row is renamed; null: none of them can. */
  readonly column: string | null
  readonly other: Row
  readonly suggestion: Wire
}

interface UniqueIndex {
  readonly columns: ReadonlyArray<string>
  /** `equals`: the operator of the index, in full. */
  readonly keys: ReadonlyArray<{ readonly expr: string; readonly type: string; readonly equals: string }>
  readonly predicate: string | null
}

const readIndexes = (session: Session, table: string): Effect.Effect<ReadonlyArray<UniqueIndex>, PostgresError> =>
  Effect.map(
    session.query<{ cols: string | null; keys: string; predicate: string | null }>(
      `SELECT pg_get_expr(i.indpred, i.indrelid) AS predicate,
              (SELECT json_agg(json_build_object('expr', pg_get_indexdef(i.indexrelid, k::int, false), 'type', format_type(a.atttypid, a.atttypmod), 'equals', (
                       SELECT format('OPERATOR(%I.%s)', m.nspname, o.oprname) FROM pg_opclass c JOIN pg_amop p ON p.amopfamily = c.opcfamily AND p.amoplefttype = c.opcintype
                          AND p.amoprighttype = c.opcintype AND p.amopstrategy = 3 JOIN pg_operator o ON o.oid = p.amopopr JOIN pg_namespace m ON m.oid = o.oprnamespace
                        WHERE c.oid = (i.indclass::oid[])[k - 1])) ORDER BY k)::text
                 FROM generate_series(1, i.indnkeyatts) k JOIN pg_attribute a ON a.attrelid = i.indexrelid AND a.attnum = k) AS keys,
              (SELECT json_agg(a.attname ORDER BY a.attnum)::text FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum > 0
                 AND (a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) OR EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                   AND d.objid = i.indexrelid AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum))) AS cols
         FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE i.indisunique AND i.indisvalid AND NOT i.indisprimary AND n.nspname || '.' || c.relname = $1 ORDER BY i.indexrelid`,
      [table],
    ),
    (rows) => rows.map(({ cols, keys, predicate }) => ({ columns: JSON.parse(cols ?? "[]"), keys: JSON.parse(keys), predicate })),
  )

const X = (i: number): string => ident(`schoolbus x${i}`)

/** `$1::text::int AS "a"`, … of a row's values, in the types of the table. */
const valuesOf = (shape: Shape, table: Table, row: Row, from: number) => {
  const names = [...shape.columns.keys()]
  return {
    names,
    columns: names.map((name, i) => `${asKey(shape.columns.get(name), `$${from + i}::pg_catalog.text`)} AS ${ident(name)}`),
    params: names.map((name) => wireToText(columnOf(table, name)?.kind ?? "text", row[name] ?? null)),
  }
}

/** The row of head office that stands in the way of `row` in this index. */
const clashIn = (session: Session, table: Table, shape: Shape, index: UniqueIndex, row: Row): Effect.Effect<Row | null, PostgresError> => {
  const columns = table.columns.filter((column) => shape.columns.has(column.name))
  const values = valuesOf(shape, table, row, 1)
  const sameKey = table.key.map((name, i) => equals(shape.columns.get(name), `t.${ident(name)}`, `$${values.params.length + 1 + i}::pg_catalog.text`))
  const keys = table.key.map((name) => wireToText(columnOf(table, name)?.kind ?? "text", row[name] ?? null))
  return Effect.map(
    session.texts(
      `WITH mine AS (SELECT ${values.columns.join(", ")}), v AS (SELECT ${index.keys.map(({ expr }, i) => `(${expr}) AS ${X(i)}`).join(", ")} FROM mine ${index.predicate === null ? "" : `WHERE ${index.predicate}`})
       SELECT ${columns.map((column) => `t.${ident(column.name)}`).join(", ")} FROM ${qualified(table.name)} t, v
        WHERE ${index.keys.map((key, i) => `(${key.expr}) ${key.equals} v.${X(i)}`).join(" AND ")} ${index.predicate === null ? "" : `AND (${index.predicate})`}
          AND NOT (${sameKey.join(" AND ")}) LIMIT 1`,
      [...values.params, ...keys],
    ),
    ([cells]) =>
      cells === undefined ? null : Object.fromEntries(columns.map((column, i) => [column.name, textToWire(column.kind, cells[i] ?? null)])),
  )
}

/** The column that a person would change: no key, no reference, nothing that says who sees the row; text before numbers, the last before the first. */
const renamable = (table: Table, columns: ReadonlyArray<string>): string | null => {
  const bound = new Set([...table.key, ...table.references.flatMap((reference) => reference.columns)])
  if (typeof table.audience === "object")
    for (const name of "column" in table.audience ? [table.audience.column] : Object.keys(table.audience.on)) bound.add(name)
  const free = columns.flatMap((name) => {
    const column = columnOf(table, name)
    return column === undefined || column.generated || bound.has(name) ? [] : [column]
  })
  const texts = free.filter((column) => column.kind === "text" && /^(text|character|citext|"?public"?\.)/.test(column.type))
  const numbers = free.filter((column) => ["int", "bigint", "numeric"].includes(column.kind))
  const uuids = free.filter((column) => column.type === "uuid")
  return (texts.at(-1) ?? numbers.at(-1) ?? uuids.at(-1))?.name ?? null
}

/** `amina` -> `amina2`, `amina3` …; `amina@x.org` -> `amina2@x.org`; `A-7` -> `A-7-2`: never the next number, which another row may mean. */
export const candidatesFor = (value: Wire, type: string, count: number): ReadonlyArray<Wire> => {
  if (typeof value === "number") return Array.from({ length: count }, (_, i) => value + i + 1)
  if (typeof value !== "string") return []
  const limit = Number(/\((\d+)\)/.exec(type)?.[1] ?? Number.POSITIVE_INFINITY)
  const [, name = value, rest = ""] = /^([^@]+)(@.*)$/.exec(value) ?? []
  return Array.from({ length: count }, (_, i) => {
    const end = `${/\d$/.test(name) ? "-" : ""}${i + 2}${rest}`
    return `${[...name].slice(0, Math.max(0, limit - [...end].length)).join("")}${end}`
  })
}

const countUp = (value: string, count: number): ReadonlyArray<Wire> => Array.from({ length: count }, (_, i) => String(BigInt(value) + BigInt(i) + 1n))

/** Of the candidates for `column`, the positions of those that clash in no row of this index. */
const freeIn = (
  session: Session,
  table: Table,
  shape: Shape,
  index: UniqueIndex,
  row: Row,
  column: string,
  candidates: ReadonlyArray<string>,
): Effect.Effect<ReadonlySet<number>, PostgresError> => {
  const { [column]: _, ...others } = row
  const values = valuesOf(shape, table, others, 3)
  const own = (i: number) => `${asKey(shape.columns.get(column), `coalesce(u.u0, $${i + 3}::pg_catalog.text)`)} AS ${ident(column)}`
  const mine = values.names.map((name, i) => (name === column ? own(i) : values.columns[i])).join(", ")
  return Effect.map(
    session.texts(
      `WITH mine AS (SELECT ${mine}, u.u1 AS ${ident("schoolbus n")} FROM ${listsOf(2)}),
            v AS (SELECT ${index.keys.map(({ expr }, i) => `(${expr}) AS ${X(i)}`).join(", ")}, ${ident("schoolbus n")}, (${index.predicate ?? "true"}) AS ${ident("schoolbus p")} FROM mine)
       SELECT v.${ident("schoolbus n")} FROM v WHERE NOT coalesce(v.${ident("schoolbus p")}, false) OR NOT EXISTS (
         SELECT 1 FROM ${qualified(table.name)} t WHERE ${index.keys.map((key, i) => `(${key.expr}) ${key.equals} v.${X(i)}`).join(" AND ")} ${index.predicate === null ? "" : `AND (${index.predicate})`})`,
      [candidates, candidates.map((_, i) => String(i)), ...values.params],
    ),
    (rows) => new Set(rows.map(([n]) => Number(n))),
  )
}

/** A value for `column` with which the row clashes in no index; null when none was found. */
export const suggest = (session: Session, table: Table, shape: Shape, column: string, row: Row): Effect.Effect<Wire, PostgresError> =>
  Effect.gen(function* () {
    const known = columnOf(table, column)
    const value = row[column] ?? null
    if (known === undefined || value === null) return null
    const isCount = (known.kind === "bigint" || known.kind === "numeric") && /^-?\d+$/.test(String(value))
    const candidates =
      known.type === "uuid" ? [crypto.randomUUID()] : isCount ? countUp(String(value), CANDIDATES) : candidatesFor(value, known.type, CANDIDATES)
    const texts = candidates.map((candidate) => wireToText(known.kind, candidate) ?? "")
    let free = candidates.map((_, i) => i)
    for (const index of yield* readIndexes(session, table.name)) {
      if (!index.columns.includes(column)) continue
      const found = yield* freeIn(session, table, shape, index, row, column, texts)
      free = free.filter((i) => found.has(i))
    }
    return free[0] === undefined ? null : (candidates[free[0]] ?? null)
  })

/** Where `row` clashes with other rows of head office, index by index. */
export const findClashes = (session: Session, table: Table, shape: Shape, row: Row): Effect.Effect<ReadonlyArray<Clash>, PostgresError> =>
  Effect.gen(function* () {
    const clashes: Array<Clash> = []
    for (const index of yield* readIndexes(session, table.name)) {
      const other = yield* clashIn(session, table, shape, index, row)
      if (other === null) continue
      const column = renamable(table, index.columns)
      clashes.push({ columns: index.columns, column, other, suggestion: column === null ? null : yield* suggest(session, table, shape, column, row) })
    }
    return clashes
  })

/** What of the other row may leave the hub: the row, when the school sees it. */
export const visible = (
  session: Session,
  tables: ReadonlyMap<string, Table>,
  table: Table,
  other: Row,
  school: string,
): Effect.Effect<Row | null, PostgresError> =>
  Effect.gen(function* () {
    if (table.audience === "all") return other
    const shapes = yield* readKnownShapes(session, tables, [table.name, ...chainOf(tables, table).map((link) => link.name)])
    const inside = yield* whichBelong(session, { tables, shapes }, table, [textsOf(table, table.key, other)], school)
    return inside.has(0) ? other : null
  })
