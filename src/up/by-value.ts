/**
 * Rows that refer to another row by a value that is not its key, as a card names a username. The value may belong to two rows
 * for a while: the school's, which waits for a decision, and one of head office. A row that the school made means the school's
 * own: it waits with it, and takes the value that is decided on. What refers to a row that gets another value follows it.
 */
import * as Effect from "effect/Effect"
import type { Reference, Table } from "../model/table.ts"
import type { Wire } from "../model/value.ts"
import { asOffice, ident, type PostgresError, qualified, type Session } from "../postgres/client.ts"
import { EQUALS, operatorsOf } from "../postgres/settings.ts"
import { textOf, textsOf } from "./authorise.ts"
import type { RowChange } from "./coalesce.ts"
import { asKey, tupleText } from "./lists.ts"
import { changeOfRecord, keptChange } from "./records.ts"
import type { Row } from "./resolve.ts"
import { type Place, writeRow } from "./rows.ts"

/** The columns are not the parent's key. */
export const isByValue = ({ to }: Pick<Reference, "to">, parent: Pick<Table, "key">): boolean => to.some((name) => !parent.key.includes(name))

/** References to `parent` in which `column` takes part. */
const referencesTo = (tables: ReadonlyMap<string, Table>, parent: Table, column: string) =>
  [...tables.values()].flatMap((child) =>
    child.references.flatMap((reference) => (reference.table === parent.name && reference.to.includes(column) ? [{ child, reference }] : [])),
  )

/** SQL for a value in a JSON text; null for texts that Postgres cannot hold, which no row has. */
const valueOf = (json: string, path: ReadonlyArray<string>): string =>
  `CASE WHEN ${json} !~ '\\\\u(0000|[dD][89a-fA-F])' THEN ${json}::json #>> ARRAY[${path.map((name) => `'${name.replaceAll("'", "''")}'`).join(", ")}] END`

/** A value that a row of the school had wanted: since when it does no longer (ms since 1970), and what it has instead. */
interface Wanted {
  readonly until: number
  /** null: the row still waits, or was left out. */
  readonly now: Row | null
}

/** By tuple of `reference.to`, rows of the school that wait for a decision or were decided on. */
export const readWanted = (
  session: Session,
  school: string,
  parent: Table,
  to: ReadonlyArray<string>,
  tuples: ReadonlyArray<ReadonlyArray<string | null>>,
): Effect.Effect<ReadonlyMap<string, Wanted>, PostgresError> =>
  Effect.gen(function* () {
    const wanted = new Map<string, Wanted>()
    const [first] = to
    if (first === undefined) return wanted
    // The first column is enough to find few.
    const values = JSON.stringify([...new Set(tuples.map(([text]) => text ?? ""))])
    const isOne = "= ANY (ARRAY(SELECT json_array_elements_text($3::text::json)))"
    const renamed = yield* session.query<{ mine: string; undo: string; until: number }>(
      `SELECT mine, undo, extract(epoch FROM decided_at)::float8 * 1000 AS until FROM schoolbus.conflicts
        WHERE school = $1 AND table_name = $2 AND kind = 'unique' AND status = 'resolved' AND strategy = 'rename_local' AND undo IS NOT NULL
          AND ${valueOf("mine", [first])} ${isOne} ORDER BY decided_at`,
      [school, parent.name, values],
    )
    for (const { mine, undo, until } of renamed) {
      const { own } = JSON.parse(undo) as { own: { readonly now: Row } | null }
      if (own !== null) wanted.set(tupleText(textsOf(parent, to, JSON.parse(mine) as Row)), { until, now: own.now })
    }
    const waiting = yield* session.query<{ change: string; until: number | null }>(
      `SELECT change, extract(epoch FROM decided_at)::float8 * 1000 AS until FROM schoolbus.quarantine
        WHERE school = $1 AND table_name = $2 AND status IN ('open', 'discarded') AND op IN ('insert', 'update')
          AND ${valueOf("change", ["mine", first])} ${isOne}`,
      [school, parent.name, values],
    )
    for (const { change, until } of waiting) {
      const row = changeOfRecord("", change)
      if (row === null || !to.every((name) => name in row.mine)) continue
      wanted.set(tupleText(textsOf(parent, to, row.mine as Row)), { until: until ?? Number.POSITIVE_INFINITY, now: null })
    }
    return wanted
  })

const set = (reference: Reference, now: Row): Row =>
  Object.fromEntries(
    reference.columns.flatMap((name, i) => (reference.to[i] !== undefined && reference.to[i] in now ? [[name, now[reference.to[i]] ?? null]] : [])),
  )

/** Changes that name a value which their row had wanted, and had to give up before the school heard of it: they name the new one. */
export const followDecided = (
  session: Session,
  tables: ReadonlyMap<string, Table>,
  school: string,
  changes: ReadonlyArray<RowChange>,
): Effect.Effect<ReadonlyArray<RowChange>, PostgresError> =>
  Effect.gen(function* () {
    const followed = [...changes]
    for (const [name, own] of Map.groupBy([...changes.entries()], ([, change]) => change.table)) {
      const table = tables.get(name)
      for (const reference of table?.references ?? []) {
        const parent = tables.get(reference.table)
        if (table === undefined || parent === undefined || !isByValue(reference, parent)) continue
        const naming = own.flatMap(([i, { op, mine }]) => {
          const texts =
            op !== "delete" && reference.columns.every((column) => column in mine) ? textsOf(table, reference.columns, mine as Row) : [null]
          return texts.includes(null) ? [] : [{ i, texts }]
        })
        if (naming.length === 0) continue
        const wanted = yield* readWanted(
          session,
          school,
          parent,
          reference.to,
          naming.map(({ texts }) => texts),
        )
        for (const { i, texts } of naming) {
          const change = followed[i] as RowChange
          const found = wanted.get(tupleText(texts))
          if (found?.now == null || change.at > found.until) continue
          followed[i] = { ...change, mine: { ...change.mine, ...set(reference, found.now) } }
        }
      }
    }
    return followed
  })

/** Kept changes of the school that refer to the row by `column` name its new value from now on. */
export const followKept = (
  session: Session,
  tables: ReadonlyMap<string, Table>,
  school: string,
  parent: Table,
  wanted: Row,
  column: string,
  value: Wire,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    for (const { child, reference } of referencesTo(tables, parent, column)) {
      const waiting = yield* session.query<{ id: string; change: string }>(
        "SELECT id::text AS id, change FROM schoolbus.quarantine WHERE school = $1 AND status = 'open' AND table_name = $2 FOR UPDATE",
        [school, child.name],
      )
      for (const { id, change } of waiting) {
        const row = changeOfRecord(id, change)
        if (row === null || !reference.columns.every((name, i) => row.mine[name] === (wanted[reference.to[i] ?? ""] ?? null))) continue
        const moved = { ...row, mine: { ...row.mine, ...set(reference, { [column]: value }) }, changes: [JSON.parse(change)] }
        yield* session.execute("UPDATE schoolbus.quarantine SET change = $2 WHERE id = $1::text::uuid", [id, keptChange(moved)])
      }
    }
  })

/** Rows of head office, of whatever table, that would lose what they refer to: those with ON UPDATE CASCADE follow by themselves. */
const readFollowers = (session: Session, parent: string, column: string) =>
  Effect.map(
    session.query<{ child: string; cols: string; target: string; operators: string }>(
      `SELECT format('%I.%I', cn.nspname, c.relname) AS child,
              (SELECT json_agg(a.attname ORDER BY k.ord)::text FROM unnest(o.conkey) WITH ORDINALITY AS k (att, ord)
                 JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.att) AS cols,
              (SELECT json_agg(a.attname ORDER BY k.ord)::text FROM unnest(o.confkey) WITH ORDINALITY AS k (att, ord)
                 JOIN pg_attribute a ON a.attrelid = p.oid AND a.attnum = k.att) AS target,
              ${operatorsOf("o")} AS operators
         FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
         JOIN pg_class p ON p.oid = o.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
        WHERE o.contype = 'f' AND o.conparentid = 0 AND o.confupdtype <> 'c' AND pn.nspname || '.' || p.relname = $1
          AND EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = p.oid AND a.attname = $2 AND a.attnum = ANY (o.confkey))`,
      [parent, column],
    ),
    (rows) =>
      rows.map(({ child, cols, target, operators }) => ({
        child,
        columns: JSON.parse(cols) as ReadonlyArray<string>,
        to: JSON.parse(target) as ReadonlyArray<string>,
        operators: JSON.parse(operators) as ReadonlyArray<string>,
      })),
  )

/** Gives a row of head office another value in one column, together with what refers to it: `row` is what stands there now. */
export const renameRow = (session: Session, place: Place, row: Row, column: string, value: Wire): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const { table, shape, key } = place
    const followers = yield* readFollowers(session, table.name, column)
    if (followers.length === 0 || value === null || (row[column] ?? null) === null) return yield* writeRow(session, place, { [column]: value }, true)
    const params: Array<string | null> = []
    const param = (text: string | null, name: string): string => asKey(shape.columns.get(name), `$${params.push(text)}::pg_catalog.text`)
    const updates = followers.map(({ child, columns, to, operators }, i) => {
      const own = columns[to.indexOf(column)] ?? ""
      const where = columns.map(
        (name, n) => `${param(textOf(table, to[n] ?? "", row[to[n] ?? ""] ?? null), to[n] ?? "")} ${operators[n] ?? EQUALS} ${ident(name)}`,
      )
      return `f${i} AS (UPDATE ${child} SET ${ident(own)} = ${param(textOf(table, column, value), column)} WHERE ${where.join(" AND ")})`
    })
    // In one statement: Postgres asks whether what refers to the row still finds it when all are written.
    const where = table.key.map(
      (name, i) => `${ident(name)} ${shape.columns.get(name)?.equals ?? EQUALS} ${param(textOf(table, name, key[i] ?? null), name)}`,
    )
    yield* asOffice(
      session,
      session.execute(
        `WITH ${updates.join(", ")} UPDATE ${qualified(table.name)} SET ${ident(column)} = ${param(textOf(table, column, value), column)} WHERE ${where.join(" AND ")}`,
        params,
      ),
    )
  })
