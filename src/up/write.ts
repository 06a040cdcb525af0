/**
 * Decided writes -> Postgres, one statement per table, kind and set of columns: parents first, deletes last and children
 * first. What Postgres refuses is found by halves, so that only the guilty rows stay out; a row that stands in another's
 * way for a moment (unique values that change hands, rows that point to each other) is tried again once the others are
 * written, and at last with all single writes in the order in which the school made them.
 */
import * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"
import { asOffice, ident, isTooLong, isTransient, type PostgresError, qualified, type Session } from "../postgres/client.ts"
import { dependant, type Refusal } from "./authorise.ts"
import { bypass, isLeftOut, leftOut, ROW_SECURITY, RULE } from "./left-out.ts"
import { asStored, equals, matching, unnest } from "./lists.ts"
import type { Shape } from "./shape.ts"

/** Refused rows, or single writes of one, up to this number are tried again in change order. */
const REPLAY_ROWS = 1_000
/** Rows that one statement moves together with the row that they refer to. */
const MOVED_ROWS = 500
/** Rows that a replay in change order may lose before it is given up. */
const REPLAY_LOSSES = 50

export type Kind = "insert" | "update" | "delete"
type Texts = Readonly<Record<string, string | null>>

/** One captured write, as far as the decision lets it through. */
export interface Step {
  readonly id: number
  readonly kind: Kind
  readonly key: ReadonlyArray<string | null>
  readonly set: Texts
}

export interface Write {
  readonly table: Table
  readonly shape: Shape
  readonly kind: Kind
  /** Key in Postgres now. */
  readonly key: ReadonlyArray<string | null>
  /** Key once a row that it refers to has its new one, when Postgres takes it along. */
  readonly keyElse?: ReadonlyArray<string | null>
  readonly set: Texts
  /** The single writes that it sums up; one when they cannot be told apart. */
  readonly steps: ReadonlyArray<Step>
  /** Writes of this batch without which this one must not stand. */
  readonly needs: ReadonlyArray<Write>
}

/** SQLSTATE -> the reason of a quarantined change. */
export const reasonOf = (sqlstate: string): string =>
  ({
    "23505": "unique",
    "23503": "foreign_key",
    "23514": "check",
    "23502": "not_null",
    "23P01": "exclusion",
    "42501": "permission",
    P0001: "trigger",
    "40001": "trigger",
    [RULE]: "rule",
    [ROW_SECURITY]: "row_security",
  })[sqlstate] ?? (sqlstate.startsWith("22") ? "type" : "refused")

/** The server's `detail` is left out: it can show values of rows that the school must not see. */
export const refusalOf = (error: PostgresError, shape: Shape): Refusal => {
  if (isRowSecurity(error)) return { reason: "row_security", detail: `${error.message}; ${bypass(shape)}` }
  return { reason: reasonOf(error.sqlstate), detail: `${error.message}${rightOf(error, shape)}` }
}

const rightOf = ({ sqlstate, message, routine }: PostgresError, shape: Shape): string => {
  if (sqlstate !== "42501") return ""
  if (message.includes(localOf(shape)))
    return `; a DBA can allow it: GRANT SELECT, INSERT, UPDATE, DELETE ON ${qualified(shape.name)} TO ${ident(shape.role)}`
  // What a trigger reads or writes beside it, in the server's own judgement.
  if (routine !== MISSING_RIGHT) return ""
  return `; a DBA can let ${ident(shape.role)} use it, or make the trigger's function SECURITY DEFINER`
}

/** The server's functions that miss a right, and that row security stops in: its messages may be in any language. */
const MISSING_RIGHT = "aclcheck_error"
const ROW_SECURITY_STOPS = ["ExecWithCheckOptions", "check_enable_rls"]

const localOf = ({ name }: Shape): string => name.slice(name.indexOf(".") + 1)

/** A right on the table itself is missing, whichever row it is. A program's trigger may use the same code for one row. */
const isDenied = (error: PostgresError, shape: Shape): boolean =>
  error.sqlstate === "42501" && error.routine === MISSING_RIGHT && isNamed(error.message, localOf(shape))
/** `"permission denied for table closed one"`, `"テーブル closed one へのアクセスが拒否されました"` */
const isNamed = (message: string, name: string): boolean =>
  new RegExp(`(?<![\\p{L}\\p{N}_$])${RegExp.escape(name)}(?![\\p{L}\\p{N}_$])`, "u").test(message)
const isRowSecurity = ({ sqlstate, routine = "" }: PostgresError): boolean => sqlstate === "42501" && ROW_SECURITY_STOPS.includes(routine)

/** Refusals that may go away once other rows are written. */
const MOVABLE = new Set(["unique", "foreign_key", "exclusion", "dependant"])

export const isMovable = (refusal: Refusal | null): boolean => refusal !== null && MOVABLE.has(refusal.reason)

/** Parents before children, as the foreign keys say; a circle is cut somewhere. */
const parentsFirst = (tables: Iterable<Table>): ReadonlyArray<Table> => {
  const byName = new Map([...tables].sort((a, b) => (a.name < b.name ? -1 : 1)).map((table) => [table.name, table]))
  const order = new Set<Table>()
  const path = new Set<Table>()
  const visit = (table: Table): void => {
    if (order.has(table) || path.has(table)) return
    path.add(table)
    for (const reference of table.references) {
      const parent = byName.get(reference.table)
      if (parent !== undefined) visit(parent)
    }
    order.add(table)
  }
  for (const table of byName.values()) visit(table)
  return [...order]
}

/** Answers what could not be written, and why; everything else is. */
export const writeAll = (session: Session, writes: ReadonlyArray<Write>): Effect.Effect<ReadonlyMap<Write, Refusal>, PostgresError> =>
  Effect.gen(function* () {
    const position = new Map(parentsFirst(new Set(writes.map((write) => write.table))).map((table, i) => [table, i]))
    const rank = (write: Write): number => {
      const at = position.get(write.table) ?? 0
      return write.kind === "delete" ? 2 * position.size - at : at
    }
    const ordered = [...writes].sort((a, b) => rank(a) - rank(b))
    const refused = new Map<Write, Refusal>()
    yield* halve(session, ordered, refused)
    if (refused.size === 0) return refused

    yield* moveSingly(session, refused)
    yield* replay(session, refused)
    yield* moveWithChildren(session, refused)
    if (yield* writeRings(session, refused)) yield* moveSingly(session, refused)
    for (const [write, refusal] of refused)
      if (MOVABLE.has(refusal.reason) && write.needs.some((needed) => refused.has(needed))) refused.set(write, dependant)
    return refused
  })

/** One by one, until none moves. */
const moveSingly = (session: Session, refused: Map<Write, Refusal>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    for (let isMoving = true; isMoving; ) {
      isMoving = false
      for (const [write, refusal] of [...refused]) {
        if (!MOVABLE.has(refusal.reason) || write.needs.some((needed) => refused.has(needed))) continue
        if ((yield* attempt(session, [write])) !== null) continue
        refused.delete(write)
        isMoving = true
      }
    }
  })

const halve = (session: Session, writes: ReadonlyArray<Write>, refused: Map<Write, Refusal>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const free = writes.filter((write) => {
      const hangs = write.needs.some((needed) => refused.has(needed))
      if (hangs) refused.set(write, dependant)
      return !hangs
    })
    const [only] = free
    if (only === undefined) return
    const failure = yield* attempt(session, free)
    if (failure === null) return
    const [failed] = failure.group
    if (failed !== undefined && isDenied(failure.error, failed.shape)) {
      for (const write of failure.group) refused.set(write, refusalOf(failure.error, write.shape))
      return yield* halve(
        session,
        free.filter((write) => !refused.has(write)),
        refused,
      )
    }
    if (free.length === 1) {
      // A trigger may allow each of the school's writes, and not what they come to.
      if (only.steps.length > 1 && only.steps.length <= REPLAY_ROWS && (yield* inOrder(session, free)) === null) return
      refused.set(only, refusalOf(failure.error, only.shape))
      return
    }
    const half = Math.ceil(free.length / 2)
    yield* halve(session, free.slice(0, half), refused)
    yield* halve(session, free.slice(half), refused)
  })

interface Failure {
  readonly error: PostgresError
  /** The writes of the statement that failed; empty when a deferred constraint spoke at the end. */
  readonly group: ReadonlyArray<Write>
}

/** All of these, or none. Deferrable constraints are checked when all are written, while it can still be told whose fault it is. */
const attempt = (session: Session, writes: ReadonlyArray<Write>): Effect.Effect<Failure | null, PostgresError> =>
  within(
    session,
    Effect.gen(function* () {
      const groups = Map.groupBy(writes, (write) => `${write.kind}\0${write.table.name}\0${Object.keys(write.set).sort().join("\0")}`)
      for (const group of groups.values()) {
        const error = yield* run(session, group).pipe(Effect.as(null), writes.length > 1 ? permanentOrLong : permanent)
        if (error !== null) return { error, group }
      }
      return yield* checkDeferred(session)
    }),
  )

const permanentOrLong = <A, R>(effect: Effect.Effect<A, PostgresError, R>): Effect.Effect<A | PostgresError, PostgresError, R> =>
  Effect.catch(effect, (error) => (isTransient(error) && !isTooLong(error) ? Effect.fail(error) : Effect.succeed(error)))

const permanent = <A, R>(effect: Effect.Effect<A, PostgresError, R>): Effect.Effect<A | PostgresError, PostgresError, R> =>
  Effect.catch(effect, (error) => (isTransient(error) ? Effect.fail(error) : Effect.succeed(error)))

const checkDeferred = (session: Session): Effect.Effect<Failure | null, PostgresError> =>
  Effect.map(asOffice(session, session.execute("SET CONSTRAINTS ALL IMMEDIATE")).pipe(Effect.as(null), permanent), (error) =>
    error === null ? null : { error, group: [] },
  )

const within = <F extends Failure>(session: Session, body: Effect.Effect<F | null, PostgresError>): Effect.Effect<F | null, PostgresError> =>
  Effect.gen(function* () {
    yield* session.execute("SAVEPOINT attempt; SET CONSTRAINTS ALL DEFERRED")
    const failure = yield* body
    yield* session.execute(failure === null ? "RELEASE SAVEPOINT attempt" : "ROLLBACK TO SAVEPOINT attempt; RELEASE SAVEPOINT attempt")
    return failure
  })

/** One statement for writes of one table, kind and set of columns. */
const run = (session: Session, group: ReadonlyArray<Write>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const [first] = group
    if (first === undefined) return
    const { table, kind } = first
    const on = qualified(table.name)
    const names = Object.keys(first.set).sort()
    const stored = names.map((name, i) => asStored(first.shape.columns.get(name), `u.u${i}`))
    const set = unnest(
      group.map((write) => [...names.map((name) => write.set[name] ?? null), ...write.key]),
      names.length + table.key.length,
    )
    if (kind === "insert") {
      const { from, params } = unnest(
        group.map((write) => names.map((name) => write.set[name] ?? null)),
        names.length,
      )
      const sql = `INSERT INTO ${on} (${names.map(ident).join(", ")}) OVERRIDING SYSTEM VALUE SELECT ${stored.join(", ")} FROM ${from}`
      return yield* expecting(session, asOffice(session, session.execute(sql, params)), group.length, first)
    }
    if (kind === "update" && group.some(({ keyElse }) => keyElse !== undefined)) {
      for (const { keyElse, ...write } of group) {
        const failure = yield* run(session, [write]).pipe(Effect.as(null), Effect.catch(Effect.succeed))
        if (failure === null) continue
        if (keyElse === undefined || !isLeftOut(failure)) return yield* failure
        yield* run(session, [{ ...write, key: keyElse }])
      }
      return
    }
    if (kind === "update") {
      const sql = `UPDATE ${on} AS t SET ${names.map((name, i) => `${ident(name)} = ${stored[i]}`).join(", ")} FROM ${set.from} WHERE ${matching(first.shape, table.key, names.length)}`
      return yield* expecting(session, asOffice(session, session.execute(sql, set.params)), group.length, first)
    }
    const { from, params } = unnest(
      group.map((write) => write.key),
      table.key.length,
    )
    const done = yield* asOffice(session, session.execute(`DELETE FROM ${on} AS t USING ${from} WHERE ${matching(first.shape, table.key)}`, params))
    if (done === group.length) return
    // A cascade of this batch may have taken rows along; what still stands was kept by a trigger.
    const left = yield* session.texts(`SELECT 1 FROM ${from} JOIN ${on} AS t ON ${matching(first.shape, table.key)} LIMIT 1`, params)
    if (left.length > 0) return yield* Effect.flatMap(leftOut(session, first), Effect.fail)
  })

const expecting = (session: Session, count: Effect.Effect<number, PostgresError>, wanted: number, write: Write): Effect.Effect<void, PostgresError> =>
  Effect.flatMap(count, (done) => (done === wanted ? Effect.void : Effect.flatMap(leftOut(session, write), Effect.fail)))

/**
 * A key that changes while rows refer to it, where Postgres neither takes them along nor waits for the end of the transaction:
 * the row and those of the batch that follow it are written by one statement.
 */
const moveWithChildren = (session: Session, refused: Map<Write, Refusal>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    for (const [write, { reason }] of [...refused]) {
      if (write.kind !== "update" || reason !== "foreign_key" || !refused.has(write)) continue
      const together = new Set([write])
      // What follows one that follows it, too.
      for (const one of together)
        for (const [other, refusal] of refused)
          if (other.kind === "update" && MOVABLE.has(refusal.reason) && other.needs.includes(one)) together.add(other)
      if (together.size === 1 || together.size > MOVED_ROWS) continue
      if ((yield* attemptAtOnce(session, [...together])) === null) forget(refused, [...together])
    }
  })

/** Rows that need each other, where Postgres does not wait for the end of the transaction; true: some could be written. */
const writeRings = (session: Session, refused: Map<Write, Refusal>): Effect.Effect<boolean, PostgresError> =>
  Effect.gen(function* () {
    let isAny = false
    const tried = new Set<Write>()
    for (const [write, { reason }] of [...refused]) {
      if (!MOVABLE.has(reason) || !refused.has(write) || tried.has(write)) continue
      const ring = new Set(write.needs.filter((needed) => refused.has(needed)))
      for (const one of ring) {
        if (ring.size > MOVED_ROWS) break
        for (const needed of one.needs) if (refused.has(needed)) ring.add(needed)
      }
      if (!ring.has(write) || ring.size > MOVED_ROWS) continue
      for (const one of ring) tried.add(one)
      if ([...ring].some((one) => one.kind === "delete" || !isMovable(refused.get(one) ?? null))) continue
      if ((yield* attemptAtOnce(session, [...ring])) !== null) continue
      forget(refused, [...ring])
      isAny = true
    }
    return isAny
  })

/** As `attempt`, by one statement. */
const attemptAtOnce = (session: Session, writes: ReadonlyArray<Write>): Effect.Effect<Failure | null, PostgresError> =>
  within(
    session,
    Effect.gen(function* () {
      const error = yield* atOnce(session, writes).pipe(Effect.as(null), permanent)
      return error === null ? yield* checkDeferred(session) : { error, group: [] }
    }),
  )

/** Single rows, new or edited, as one statement: what refers to what is looked at when all are written. */
const atOnce = (session: Session, writes: ReadonlyArray<Write>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const params: Array<string | null> = []
    const cell = (text: string | null): string => `$${params.push(text)}::pg_catalog.text`
    const statements = writes.map(({ table, shape, kind, set, key }, i) => {
      const value = (name: string) => asStored(shape.columns.get(name), cell(set[name] ?? null))
      const names = Object.keys(set)
      if (kind === "insert") {
        const cells = names.map(value)
        return `w${i} AS (INSERT INTO ${qualified(table.name)} (${names.map(ident).join(", ")}) OVERRIDING SYSTEM VALUE VALUES (${cells.join(", ")}) RETURNING 1)`
      }
      const values = names.map((name) => `${ident(name)} = ${value(name)}`)
      const where = table.key.map((name, n) => equals(shape.columns.get(name), ident(name), cell(key[n] ?? null)))
      return `w${i} AS (UPDATE ${qualified(table.name)} SET ${values.join(", ")} WHERE ${where.join(" AND ")} RETURNING 1)`
    })
    const counts = writes.map((_, i) => `(SELECT pg_catalog.count(*) FROM w${i})`)
    const sql = `WITH ${statements.join(", ")} SELECT ${counts.join(" OPERATOR(pg_catalog.+) ")}`
    const [row] = yield* asOffice(session, session.texts(sql, params))
    const [first] = writes
    if (first !== undefined && Number(row?.[0]) !== writes.length) return yield* Effect.flatMap(leftOut(session, first), Effect.fail)
  })

const forget = (refused: Map<Write, Refusal>, written: ReadonlyArray<Write>): void => {
  for (const write of written) refused.delete(write)
}

/** What is left, as the school wrote it: one by one, in its own order. A row that fails even so is left out, the others start again. */
const replay = (session: Session, refused: Map<Write, Refusal>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    let left = [...refused].flatMap(([write, refusal]) => (MOVABLE.has(refusal.reason) ? [write] : []))
    if (left.length < 2 || left.length > REPLAY_ROWS) return
    // Rows that only point to each other need no order, just each other.
    if ((yield* attempt(session, left)) === null) return forget(refused, left)
    for (let losses = 0; left.length > 0 && losses <= REPLAY_LOSSES; losses++) {
      const failure = yield* inOrder(session, left)
      if (failure === null) return forget(refused, left)
      const [guilty] = failure.group
      if (guilty === undefined) return
      left = left.filter((write) => write !== guilty && !write.needs.includes(guilty))
    }
  })

const inOrder = (session: Session, writes: ReadonlyArray<Write>): Effect.Effect<Failure | null, PostgresError> =>
  within(
    session,
    Effect.gen(function* () {
      const steps = writes.flatMap((write) => write.steps.map((step) => ({ write, step }))).sort((a, b) => a.step.id - b.step.id)
      for (const { write, step } of steps) {
        if (step.kind !== "delete" && Object.keys(step.set).length === 0) continue
        const error = yield* run(session, [{ ...write, ...step }]).pipe(Effect.as(null), permanent)
        if (error !== null) return { error, group: [write] }
      }
      return yield* checkDeferred(session)
    }),
  )
