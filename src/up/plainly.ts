/**
 * Carries a plain batch out in as few statements as it has sets of columns. Edits are locked in key order, compared with what
 * the school started from, and written by the same statement. Whatever does not come out as expected, a key that exists, a row
 * that head office changed, a constraint, leaves no trace: the batch then goes the whole way, change by change.
 */
import * as Effect from "effect/Effect"
import { isThrough, type Table } from "../model/table.ts"
import type { Change } from "../model/change.ts"
import type { Wire } from "../model/value.ts"
import { ident, inOneGo, isTooLong, isTransient, type PostgresError, qualified, type Session } from "../postgres/client.ts"
import { EQUALS, inFull, TO_HUB, TO_OFFICE } from "../postgres/settings.ts"
import { textsOf, visibleParents } from "./authorise.ts"
import { canonicalise } from "./canonical.ts"
import { rowId } from "./coalesce.ts"
import { knownShapes } from "./known.ts"
import { asStored } from "./lists.ts"
import { type Group, editsJson, madeTuples, NEW, newTexts, parentsFirst, type Plain, type PlainColumn, recognise } from "./plain.ts"
import type { Places } from "./place.ts"
import type { Origin } from "./records.ts"
import { readReferencing, readShapes, type ColumnShape, type Shape } from "./shape.ts"
import { isTimed, type Pushing, recordTimes } from "./times.ts"
import type { Ground } from "./work.ts"

/** Rows with something open that are told apart; with more of them batches go the whole way. */
const MAX_OPEN = 1_000

type OpenRows = ((table: string, key: ReadonlyArray<Wire>) => boolean) | null

/** What stands in Postgres that decides whether a batch is plain. */
export interface Surroundings {
  readonly isOpen: OpenRows
  readonly shapes: ReadonlyMap<string, Shape>
}

/** null: the batch is not plain whatever stands there. */
export const readSurroundings = (
  session: Session,
  { tables }: Pick<Ground, "tables">,
  origin: Origin,
  changes: ReadonlyArray<Change>,
  text: string,
): Effect.Effect<Surroundings | null, PostgresError> => {
  // Values with half a character or a NUL are told by their escapes; nearly no batch has any.
  if (changes.length === 0 || /\\u(?:0000|[dD][89a-fA-F])/.test(text)) return Effect.succeed(null)
  const names = new Set(changes.map((change) => change.table))
  const concerned = new Set([...names].flatMap((name) => [name, ...(tables.get(name)?.references.map(({ table }) => table) ?? [])]))
  const isChained = [...concerned].some((name) => isThrough(tables.get(name)?.audience ?? "all"))
  if (isChained) return Effect.succeed(null)
  return Effect.map(inOneGo([readOpenRows(session, origin), readShapes(session, [...concerned])]), ([isOpen, shapes]) =>
    isOpen === "many" ? null : { isOpen, shapes: knownShapes(tables, concerned, shapes) },
  )
}

/** The tables that got new rows; null: nothing was done, the batch is not plain. */
export const carryOutPlainly = (
  session: Session,
  ground: Omit<Ground, "stored" | "openBases">,
  changes: ReadonlyArray<Change>,
  { isOpen, shapes }: Surroundings,
): Effect.Effect<ReadonlySet<Table["name"]> | null, PostgresError> =>
  Effect.gen(function* () {
    const plain = recognise(ground, shapes, changes, isOpen)
    if (plain === null || isTimedTwice(plain) || !(yield* isPrintedAsSent(session, plain))) return null
    if (!(yield* isWithoutActions(session, plain))) return null
    const places: Places = { tables: ground.tables, shapes }
    if (!(yield* isEachVisible(session, plain, places, ground.school))) return null
    // To recognise the rows takes about as long as to put them into lists.
    yield* Effect.yieldNow
    if (!(yield* write(session, plain))) return null
    for (const group of plain.groups)
      if (isTimed(group.table))
        yield* recordTimes(
          session,
          group.changes.map((change) => pushingOf(group, change)),
        )
    return new Set(plain.groups.flatMap(({ op, table }) => (op === "insert" ? [table.name] : [])))
  })

/** Of several writes of one row the times are put together on the whole way. */
const isTimedTwice = ({ groups }: Plain): boolean => {
  const rows = groups.flatMap(({ table, changes }) => (isTimed(table) ? changes.map(({ key }) => rowId(table.name, key)) : []))
  return new Set(rows).size < rows.length
}

/** The rows of this file in which something waits for a person, or holds what a trigger made of a sent value. */
const readOpenRows = (session: Session, { school, incarnation }: Origin): Effect.Effect<OpenRows | "many", PostgresError> =>
  Effect.map(
    session.query<{ tbl: string; key: string }>(
      `SELECT table_name AS tbl, row_key AS key FROM schoolbus.conflicts
        WHERE school = $1 AND status = 'open' AND kind <> 'unique' AND incarnation = $2::text::uuid
       UNION ALL SELECT table_name, row_key FROM schoolbus.quarantine WHERE school = $1 AND status = 'open' AND incarnation = $2::text::uuid
       UNION ALL SELECT table_name, row_key FROM schoolbus.stored WHERE incarnation = $2::text::uuid
       LIMIT ${MAX_OPEN + 1}`,
      [school, incarnation],
    ),
    (rows) => {
      if (rows.length > MAX_OPEN) return "many"
      if (rows.length === 0) return null
      const open = new Set(rows.map(({ tbl, key }) => `${tbl}\0${key}`))
      return (table, key) => open.has(rowId(table, key))
    },
  )

const isPrintedAsSent = (session: Session, { asked }: Plain): Effect.Effect<boolean, PostgresError> =>
  Effect.gen(function* () {
    if (asked.size === 0) return true
    const wanted = [...asked].map(([column, texts]) => ({ column, texts: [...texts] }))
    const found = yield* canonicalise(session, wanted)
    return found.every((texts) => [...texts].every(([text, canonical]) => "text" in canonical && canonical.text === text))
  })

/** Foreign keys that write rows of other tables when a value they point to changes are for the whole way. */
const isWithoutActions = (session: Session, { groups }: Plain): Effect.Effect<boolean, PostgresError> => {
  const edits = groups.filter((group) => group.op === "update")
  if (edits.length === 0) return Effect.succeed(true)
  return Effect.map(readReferencing(session, [...new Set(edits.map(({ table }) => table.name))]), (referencing) =>
    edits.every(({ table, mine }) => !referencing.some(({ parent, to }) => parent === table.name && mine.some(({ name }) => to.includes(name)))),
  )
}

/** What foreign keys point to is a row that the school could see before, or one that this batch makes: if it does not, the batch is not plain. */
const isEachVisible = (session: Session, plain: Plain, places: Places, school: string): Effect.Effect<boolean, PostgresError> =>
  Effect.gen(function* () {
    for (const { shape, pointed } of plain.groups) {
      for (const { reference, tuples } of pointed) {
        const made = madeTuples(plain, reference)
        const wanted = [...tuples].flatMap(([id, values]) => (made.has(id) ? [] : [values]))
        if (wanted.length === 0) continue
        const parent = places.tables.get(reference.table)
        if (parent === undefined) return false
        const types = reference.columns.map((name) => shape.columns.get(name))
        const seen = yield* visibleParents(session, places, parent, reference.to, types, wanted, school)
        if (seen.size !== wanted.length) return false
      }
    }
    return true
  })

/** All of it, or nothing. */
const write = (session: Session, plain: Plain): Effect.Effect<boolean, PostgresError> =>
  Effect.gen(function* () {
    const groups = parentsFirst(plain.groups)
    const writing = groups.map((group) =>
      group.op === "insert" ? session.execute(insertSql(group), newTexts(group)) : session.execute(updateSql(group), [editsJson(group)]),
    )
    const begin = session.execute(`SAVEPOINT plain; SET CONSTRAINTS ALL DEFERRED; ${TO_OFFICE}`)
    const end = session.execute(`SET CONSTRAINTS ALL IMMEDIATE; ${TO_HUB}`)
    const isDone = yield* inOneGo([begin, ...writing, end]).pipe(
      Effect.map((counts) => groups.every(({ changes }, i) => counts[i + 1] === changes.length)),
      Effect.catch((error) => (isTransient(error) && !isTooLong(error) ? Effect.fail(error) : Effect.succeed(false))),
    )
    // The end of the transaction is that of the savepoint, too.
    if (!isDone) yield* session.execute("ROLLBACK TO SAVEPOINT plain; RELEASE SAVEPOINT plain")
    return isDone
  })

/** Types that are read from JSON, and from lists, as from text. */
const READ = new Set("int2 int4 int8 numeric float4 float8 bool text varchar uuid date time timetz timestamp timestamptz interval".split(" "))
/** Types whose equal values are printed alike. */
const ALIKE = new Set("int2 int4 int8 bool uuid date time timestamp timestamptz bytea".split(" "))

const isRead = ({ typname, isDomain }: ColumnShape): boolean => READ.has(typname) && !isDomain
/** A list never cuts a value to its column's length: what is too long is for the insert to refuse. */
const listType = ({ shape }: PlainColumn): string => (isRead(shape) ? shape.base : "text")
const declared = (name: string, { shape }: PlainColumn): string => `${ident(name)} ${inFull(isRead(shape) ? shape.type : "text")}`
const valueOf = (reference: string, { shape }: PlainColumn): string =>
  isRead(shape) ? reference : asStored(shape, shape.typname === "bytea" ? `('\\x' OPERATOR(pg_catalog.||) ${reference})` : reference)

export const insertSql = ({ table, mine }: Group): string =>
  `INSERT INTO ${qualified(table.name)} (${mine.map(({ name }) => ident(name)).join(", ")}) OVERRIDING SYSTEM VALUE
   SELECT ${mine.map((column, i) => valueOf(`u.c${i}`, column)).join(", ")}
     FROM ROWS FROM (${mine.map((column, i) => `pg_catalog.unnest($${i + 1}::pg_catalog.text::${inFull(listType(column))}[])`).join(", ")}) AS u (${mine.map((_, i) => `c${i}`).join(", ")})`

const BYTE_BY_BYTE = `COLLATE pg_catalog."C" ${EQUALS}`
/** IS NOT DISTINCT FROM, of which the operator cannot be said. */
const isAlike = (left: string, operator: string, right: string): string => `(${left} ${operator} ${right} OR ${left} IS NULL AND ${right} IS NULL)`

/** Whether head office's value is the one that the school started from, as Postgres prints both. */
const isSame = (column: PlainColumn, from: string): string => {
  const { name, shape } = column
  const [theirs, base] = [`t.${ident(name)}`, `${from}.${ident(name)}`]
  if (ALIKE.has(shape.typname)) return isAlike(theirs, EQUALS, valueOf(base, column))
  if (isRead(shape) && (shape.typname === "text" || shape.typname === "varchar")) return isAlike(theirs, BYTE_BY_BYTE, base)
  return isAlike(`CASE WHEN ${theirs} IS NOT NULL THEN pg_catalog.concat(${theirs}) END`, BYTE_BY_BYTE, `${base}::pg_catalog.text`)
}

export const updateSql = ({ table, base, mine }: Group): string => {
  const on = qualified(table.name)
  const columns = [...base.map((column) => declared(column.name, column)), ...mine.map((column) => declared(NEW + column.name, column))]
  const keys = table.key.flatMap((name) => base.find((column) => column.name === name) ?? [])
  return `WITH u AS (
      SELECT r.*, t.ctid AS "=" FROM pg_catalog.json_to_recordset($1::pg_catalog.text::pg_catalog.json) AS r (${columns.join(", ")})
        JOIN ${on} AS t ON ${keys.map((column) => `t.${ident(column.name)} ${column.shape.equals} ${valueOf(`r.${ident(column.name)}`, column)}`).join(" AND ")}
       ORDER BY ${keys.map(({ name }) => `t.${ident(name)}`).join(", ")} FOR UPDATE OF t)
    UPDATE ${on} AS t SET ${mine.map((column) => `${ident(column.name)} = ${valueOf(`u.${ident(NEW + column.name)}`, column)}`).join(", ")}
      FROM u WHERE t.ctid ${EQUALS} u."=" AND ${base.map((column) => isSame(column, "u")).join(" AND ")}`
}

const pushingOf = ({ table, shape, op }: Group, { key, mine, at }: Change): Pushing => {
  const row = Object.fromEntries(table.key.map((name, i) => [name, key[i] as Wire]))
  return { table, shape, keyAfter: key, keyTexts: textsOf(table, table.key, row), write: op, set: mine as Record<string, Wire>, at, columnAt: {} }
}
