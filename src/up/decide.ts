/**
 * A person's decision about a recorded conflict: the row and the record change in one transaction, and both come down to
 * the school like any row. It is a new three-way against the row of that moment: of a whole row only what the school
 * changed is written, a merge starts from what stands there now. What stood before is kept, so that it can be undone.
 */
import * as Effect from "effect/Effect"
import type { Choice } from "../model/choice.ts"
import { type ColumnRule, ruleOf } from "../model/table.ts"
import type { Wire } from "../model/value.ts"
import { asOffice, isTransient, type PostgresError, type PostgresPool, type Session } from "../postgres/client.ts"
import { isOfSchool, writeAsSchool } from "./allowed.ts"
import { textOf } from "./authorise.ts"
import { setTimeouts } from "./carry-out.ts"
import { type Authority, CLASH_COLUMNS, decideClash, type UniqueChoice, type UniqueConflict } from "./clash.ts"
import { undoClash } from "./clash-undo.ts"
import { readKnownShapes } from "./known.ts"
import { isMergeRule, type MergeRule, mergeValues, type Values } from "./merge.ts"
import { whichGreater } from "./order.ts"
import { DecideRefused } from "./refused.ts"
import { type Proposal, resolve, type Row } from "./resolve.ts"
import { bringUp, staleOf } from "./renamed.ts"
import { columnOf, isAsLeft, type Place, readRow, spellRow, writeRow } from "./rows.ts"
import type { Ground } from "./work.ts"

export type Decider = Pick<Ground, "tables" | "had" | "times">

const refuse = (code: DecideRefused["code"], message: string): DecideRefused => new DecideRefused({ code, message })

interface Conflict extends UniqueConflict {
  readonly row_key: string
  readonly base: string | null
  readonly kept: string | null
  readonly winner: string
  readonly kind: string
  readonly hold: boolean
  readonly decided_by: string | null
  /** Why nothing of it can be written any more. */
  readonly stale: string | null
}

const parse = (json: string | null): unknown => JSON.parse(json ?? "null")

const isRow = (value: unknown): value is Row =>
  typeof value === "object" &&
  value !== null &&
  !Array.isArray(value) &&
  Object.values(value).every((cell) => cell === null || typeof cell !== "object")

const isWire = (value: unknown): value is Wire => value === null || ["string", "number", "boolean"].includes(typeof value)

/** `keep_local` and `keep_remote` are the sides, where no other row is in the way. */
const sided = (choice: Choice): Choice =>
  choice.keep === "keep_local" ? { keep: "school" } : choice.keep === "keep_remote" || choice.keep === "discard" ? { keep: "vps" } : choice

/** The record, locked, under the names that its table has now. */
const lockConflict = (session: Session, { tables }: Pick<Decider, "tables">, id: string): Effect.Effect<Conflict, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const [conflict] = yield* session.query<Omit<Conflict, "stale">>(
      `SELECT ${CLASH_COLUMNS}, row_key, base, kept, winner, kind, hold, decided_by FROM schoolbus.conflicts WHERE id::text = $1 FOR UPDATE`,
      [id.toLowerCase()],
    )
    if (conflict === undefined) return yield* refuse("not_found", `no conflict ${id}; see: schoolbus conflicts list`)
    const table = tables.get(conflict.table_name)
    const stale = table === undefined ? `table ${conflict.table_name} is no longer synced` : staleOf(table, conflict)
    return { ...(table === undefined || stale !== null ? conflict : yield* bringUp(session, table, conflict)), stale }
  })

/** The record, locked, with what Postgres checks checked at once. `school`: the one that asks; another school's record is none. */
const openRecord = (
  session: Session,
  decider: Pick<Decider, "tables">,
  id: string,
  school: string | null,
): Effect.Effect<Conflict, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    yield* asOffice(session, session.execute("SET CONSTRAINTS ALL IMMEDIATE"))
    const conflict = yield* lockConflict(session, decider, id)
    return school === null || conflict.school === school ? conflict : yield* refuse("not_found", `no conflict ${id}; see: schoolbus conflicts list`)
  })

/** In the caller's transaction. `school`: the one that asks; it may decide only about its own records. */
export const decideIn = (
  session: Session,
  decider: Decider,
  id: string,
  choice: Choice,
  by: string,
  school: string | null = null,
): Effect.Effect<void, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const conflict = yield* openRecord(session, decider, id, school)
    const authority: Authority = school === null ? "office" : "school"
    if (conflict.kind === "unique") return yield* decideClash(session, decider, conflict, yield* uniqueChoice(conflict, choice), by, authority)
    if (choice.keep === "rename_local")
      return yield* refuse("not_possible", "only a unique value that another row has is renamed; give a value instead")
    return yield* decideValue(session, decider, conflict, sided(choice), by, authority)
  })

const uniqueChoice = (conflict: Conflict, choice: Choice): Effect.Effect<UniqueChoice, DecideRefused> => {
  switch (choice.keep) {
    case "school":
      return Effect.succeed({ keep: "keep_local" })
    case "vps":
      return Effect.succeed({ keep: "keep_remote" })
    case "value":
      return conflict.column_name === null
        ? Effect.fail(refuse("not_possible", "no column of this clash can take another value"))
        : Effect.succeed({ keep: "rename_local", value: choice.value })
    case "rename_local":
      return Effect.succeed(choice.value === undefined ? { keep: "rename_local" } : { keep: "rename_local", value: choice.value })
    default:
      return Effect.succeed({ keep: choice.keep })
  }
}

/** A conflict's column or row, as it is now and as it shall be. */
const decideValue = (
  session: Session,
  decider: Decider,
  conflict: Conflict,
  choice: Choice,
  by: string,
  authority: Authority,
): Effect.Effect<void, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const { column_name: column } = conflict
    const isOpen = conflict.status === "open"
    const winner = choice.keep === "vps" ? "vps" : choice.keep === "merge" ? "merged" : "school"
    if (!isOpen && choice.keep === conflict.winner)
      return yield* refuse("decided", `the value of ${choice.keep === "vps" ? "head office" : "the school"} stands already`)
    if (conflict.stale !== null) {
      if (!isOpen || choice.keep !== "vps")
        return yield* refuse("not_possible", `${conflict.stale}; ${isOpen ? "keep head office's value, and" : ""} write the other by hand`)
      const theirs = parse(conflict.theirs)
      const left = column === null ? (theirs as Row | null) : { [column]: theirs as Wire }
      return yield* close(session, conflict, "vps", left, left, by)
    }
    const place = yield* placeOf(session, decider, conflict)
    const found = yield* readOwn(session, decider, place, conflict.school)
    if (found === "another's" && !(isOpen && choice.keep === "vps")) return yield* refuse("not_possible", NOT_OURS)
    const current = found === "another's" ? null : found
    const present = column === null || current === null ? current : { [column]: current[column] ?? null }

    // What is open stands at head office as it is; everything else is written.
    if (isOpen && choice.keep === "vps") return yield* close(session, conflict, "vps", present, present, by)
    if (column !== null && current === null) return yield* refuse("not_possible", "the row no longer exists at head office")
    if (column !== null && !place.shape.columns.has(column)) return yield* refuse("not_possible", `column ${column} no longer exists at head office`)
    if (!isOpen) yield* requireAsLeft(place, conflict, present)
    const wanted = yield* wantedOf(session, place, conflict, choice, current)
    const spelled = wanted.row === null ? null : yield* spellRow(session, place, wanted.row)
    if (spelled !== null && "refused" in spelled) return yield* refuse("not_possible", spelled.refused)
    const row = spelled === null ? null : spelled.ok
    const write = writeRow(session, place, row, current !== null)
    yield* authority === "office" ? write : writeAsSchool(session, decider.tables, conflict.school, place, current, row, write)
    // As it stands now: triggers may have made something else of it.
    const after = row === null ? null : yield* readRow(session, place)
    yield* close(session, conflict, winner, after, present, by)
  })

const placeOf = (session: Session, { tables }: Decider, conflict: Conflict): Effect.Effect<Place, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const table = tables.get(conflict.table_name)
    const shape = (yield* readKnownShapes(session, tables, [conflict.table_name])).get(conflict.table_name)
    if (table === undefined || shape === undefined) return yield* refuse("not_possible", `table ${conflict.table_name} is no longer synced`)
    return { table, shape, key: parse(conflict.row_key) as ReadonlyArray<Wire> }
  })

const NOT_OURS =
  "head office's row of that key is not this school's (any more): keep head office's side, and write the value by hand where it belongs"

/** Head office's row, as far as the school of the record may know of it: what stands in a record comes down to it. */
const readOwn = (session: Session, { tables }: Decider, place: Place, school: string): Effect.Effect<Row | null | "another's", PostgresError> =>
  Effect.gen(function* () {
    const row = yield* readRow(session, place)
    return row === null || (yield* isOfSchool(session, tables, school, place.table, row)) ? row : "another's"
  })

const requireAsLeft = (place: Place, conflict: Conflict, present: Row | null): Effect.Effect<void, DecideRefused> => {
  const { column_name: column } = conflict
  const kept = column === null ? (parse(conflict.kept) as Row | null) : { [column]: parse(conflict.kept) as Wire }
  return isAsLeft(kept, present, place.shape)
    ? Effect.void
    : Effect.fail(
        refuse(
          "not_possible",
          `${column ?? "the row"} has been written again since (now ${JSON.stringify(column === null ? present : present?.[column])}); change it by hand`,
        ),
      )
}

/** The columns to be written; null = no row. */
const wantedOf = (
  session: Session,
  place: Place,
  conflict: Conflict,
  choice: Choice,
  current: Row | null,
): Effect.Effect<{ readonly row: Row | null }, DecideRefused | PostgresError> => {
  const { column_name: column } = conflict
  const [base, mine, theirs] = [parse(conflict.base), parse(conflict.mine), parse(conflict.theirs)]
  if (choice.keep === "value") {
    const { value } = choice
    if (column !== null && isWire(value)) return Effect.succeed({ row: { [column]: value } })
    if (column === null && (value === null || isRow(value))) return Effect.succeed({ row: value })
    const form = column === null ? "an object of columns, or null for no row" : "a text, a number, true, false or null"
    return Effect.fail(refuse("not_possible", `the value must be ${form}`))
  }
  if (choice.keep === "merge") {
    // What was decided before is taken back first: a merge starts from head office's own value.
    const now = conflict.status === "open" ? current : column === null ? (theirs as Row | null) : { ...current, [column]: theirs as Wire }
    return column === null
      ? mergeRow(session, place, base, mine, now)
      : mergeColumn(session, place, column, { base: base as Wire, mine: mine as Wire, theirs: now?.[column] ?? null })
  }
  if (choice.keep === "vps") return Effect.succeed({ row: column === null ? (theirs as Row | null) : { [column]: theirs as Wire } })
  if (column !== null) return Effect.succeed({ row: { [column]: mine as Wire } })
  if (!isRow(mine) || !isRow(base) || current === null) return Effect.succeed({ row: mine as Row | null })
  return Effect.succeed({ row: Object.fromEntries(Object.entries(mine).filter(([name, value]) => value !== base[name])) })
}

const mergeRow = (
  session: Session,
  place: Place,
  base: unknown,
  mine: unknown,
  now: Row | null,
): Effect.Effect<{ readonly row: Row | null }, PostgresError> =>
  Effect.gen(function* () {
    const none = { columnAt: {}, respelled: new Set<string>(), settled: new Set<string>(), at: 0 }
    // An update wins over a delete, whichever side made it.
    if (!isRow(mine) || now === null) return { row: isRow(mine) ? mine : now }
    const { table } = place
    const proposal: Proposal = isRow(base) ? { ...none, op: "update", base, mine } : { ...none, op: "insert", base: {}, mine }
    const ordered = Object.keys(mine).filter((name) => /^(max|min)$/.test(ruleOf(table, name)))
    const isMineGreater = yield* greaterOf(session, place, ordered, mine, now)
    return { row: resolve({ ...table, strategy: "merge" }, proposal, { row: now, at: 0, columnAt: {}, isMineGreater }).set }
  })

/** The column's own rule, or the one that its type suggests; null: of two such values nothing third can be made. */
const mergeRuleOf = ({ table, shape }: Place, name: string): MergeRule | null => {
  const own: ColumnRule = ruleOf(table, name)
  const column = columnOf(table, name)
  if (isMergeRule(own)) return own
  if (column !== undefined && column.kind !== "text") return "sum"
  if (/\[\]$|^jsonb?$/.test(column?.type ?? "")) return "union"
  return /^(text|varchar|bpchar|citext)$/.test(shape.columns.get(name)?.typname ?? "") ? "append" : null
}

const mergeColumn = (
  session: Session,
  place: Place,
  name: string,
  values: Pick<Values, "base" | "mine" | "theirs">,
): Effect.Effect<{ readonly row: Row | null }, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const column = columnOf(place.table, name)
    const rule = mergeRuleOf(place, name)
    const greater = yield* greaterOf(session, place, [name], { [name]: values.mine }, { [name]: values.theirs })
    const value =
      column === undefined || rule === null || ["bool", "bytea"].includes(column.kind)
        ? undefined
        : mergeValues(rule, column, { ...values, isMineGreater: greater.has(name) })
    return value === undefined
      ? yield* refuse("not_possible", `the two values of ${name} cannot be put together; keep one, or give a value`)
      : { row: { [name]: value } }
  })

/** Those of the columns in which the school's value stands after head office's, in Postgres' order of the type. */
const greaterOf = (
  session: Session,
  { table, shape }: Place,
  names: ReadonlyArray<string>,
  mine: Row,
  now: Row,
): Effect.Effect<ReadonlySet<string>, PostgresError> => {
  const pairs = names.flatMap((name) => {
    const column = shape.columns.get(name)
    const [left, right] = [textOf(table, name, mine[name] ?? null), textOf(table, name, now[name] ?? null)]
    return column === undefined || left === null || right === null ? [] : [{ name, column, left, right }]
  })
  return Effect.map(whichGreater(session, pairs), (greater) => new Set(greater.map(({ name }) => name)))
}

/** What an undo needs: the record as it was, and what stood in the row. */
interface Undo {
  readonly before: Row | null
  readonly status: string
  readonly winner: string
  readonly kept: string | null
  readonly decidedBy: string | null
}

const close = (
  session: Session,
  conflict: Conflict,
  winner: "school" | "vps" | "merged",
  kept: Row | null,
  before: Row | null,
  by: string,
): Effect.Effect<void, PostgresError> => {
  const { column_name: column, id, status, kept: keptBefore, decided_by } = conflict
  const undo: Undo = { before, status, winner: conflict.winner, kept: keptBefore, decidedBy: decided_by }
  return Effect.asVoid(
    session.execute(
      "UPDATE schoolbus.conflicts SET status = 'resolved', hold = false, winner = $2, kept = $3, decided_by = $4, decided_at = now(), undo = $5 WHERE id::text = $1",
      [id, winner, JSON.stringify(column === null ? kept : (kept?.[column] ?? null)), by, JSON.stringify(undo)],
    ),
  )
}

/** Takes a decision back, as long as nobody has written there since: a person's, or a rule's, which is turned the other way. */
export const undoIn = (
  session: Session,
  decider: Decider,
  id: string,
  by: string,
  school: string | null = null,
): Effect.Effect<void, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const conflict = yield* openRecord(session, decider, id, school)
    const authority: Authority = school === null ? "office" : "school"
    if (conflict.status === "open") return yield* refuse("decided", "nothing is decided here yet")
    if (conflict.stale !== null) return yield* refuse("not_possible", `${conflict.stale}; write the value by hand`)
    if (conflict.kind === "unique") return yield* undoClash(session, decider, conflict, by)
    if (conflict.undo === null)
      return yield* decideValue(session, decider, conflict, { keep: conflict.winner === "vps" ? "school" : "vps" }, by, authority)
    const undo = parse(conflict.undo) as Undo
    const { column_name: column } = conflict
    const place = yield* placeOf(session, decider, conflict)
    const current = yield* readOwn(session, decider, place, conflict.school)
    if (current === "another's") return yield* refuse("not_possible", NOT_OURS)
    yield* requireAsLeft(place, conflict, column === null || current === null ? current : { [column]: current[column] ?? null })
    const write = writeRow(session, place, undo.before, current !== null)
    yield* authority === "office" ? write : writeAsSchool(session, decider.tables, conflict.school, place, current, undo.before, write)
    yield* session.execute(
      `UPDATE schoolbus.conflicts SET status = $2, winner = $3, kept = $4, undo = NULL, decided_by = $5, decided_at = now() WHERE id::text = $1`,
      [conflict.id, undo.status, undo.winner, undo.kept, by],
    )
  })

/** Postgres' own refusals are answers; in a savepoint, so that the caller's transaction goes on. */
export const asAnswer = <E>(
  session: Session,
  body: Effect.Effect<void, E | DecideRefused | PostgresError>,
): Effect.Effect<void, E | DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    yield* session.execute("SAVEPOINT decision")
    yield* body.pipe(
      Effect.tapError(() => session.execute("ROLLBACK TO SAVEPOINT decision; RELEASE SAVEPOINT decision")),
      Effect.mapError((error) => {
        const failed = error as { readonly _tag?: string } & PostgresError
        return failed._tag === "PostgresError" && !isTransient(failed) ? refuse("not_possible", `Postgres refuses: ${failed.message}`) : error
      }),
    )
    yield* session.execute("RELEASE SAVEPOINT decision")
  })

/** `id`: of the record. A decision about an open conflict ends its hold at the school once the record has come down. */
export const resolveConflict = (
  pg: PostgresPool,
  decider: Decider,
  id: string,
  choice: Choice,
  by: string,
): Effect.Effect<void, DecideRefused | PostgresError> =>
  pg.tx((session) => Effect.andThen(setTimeouts(session), asAnswer(session, decideIn(session, decider, id, choice, by))))

/** The school's row takes a free value, or keeps its own when that has become free. */
export const renameOrKeep = (pg: PostgresPool, decider: Decider, id: string, by: string): Effect.Effect<void, DecideRefused | PostgresError> =>
  pg.tx((session) =>
    Effect.andThen(
      setTimeouts(session),
      asAnswer(
        session,
        Effect.flatMap(lockConflict(session, decider, id), (conflict) =>
          decideClash(session, decider, conflict, { keep: "rename_local", unlessFree: true }, by, "office"),
        ),
      ),
    ),
  )

export const undoConflict = (pg: PostgresPool, decider: Decider, id: string, by: string): Effect.Effect<void, DecideRefused | PostgresError> =>
  pg.tx((session) => Effect.andThen(setTimeouts(session), asAnswer(session, undoIn(session, decider, id, by))))
