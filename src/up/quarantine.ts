/**
 * Changes that could not be written, kept whole: tried again, edited, discarded. A change that is tried again meets head
 * office's row of that moment, in the same way as in a push.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { isThrough, type Table } from "../model/table.ts"
import type { PostgresError, PostgresPool, Session } from "../postgres/client.ts"
import { carryOut, setTimeouts } from "./carry-out.ts"
import type { Refusal } from "./authorise.ts"
import type { RowChange } from "./coalesce.ts"
import { asPresent } from "./lost.ts"
import { chainOf } from "./place.ts"
import { changeOfRecord, closedAs, closeQuarantined, keptChange, type Open, record } from "./records.ts"
import { readKnownShapes } from "./known.ts"
import type { Row } from "./resolve.ts"
import { readRow } from "./rows.ts"
import type { Ground, Outcome } from "./work.ts"

/** Waiting dependants that one push tries again. */
const DEPENDANTS_AT_ONCE = 500

/** `not_found`; `decided`: retried or discarded already; `not_possible`: it cannot be written now either. */
export class QuarantineRefused extends Data.TaggedError("QuarantineRefused")<{
  readonly code: "not_found" | "decided" | "not_possible"
  readonly message: string
}> {}

export interface Kept {
  readonly id: string
  readonly school: string
  readonly incarnation: string
  readonly batch: string
  readonly change: string
  readonly status: string
}

const KEPT = "id::text AS id, school, incarnation::text AS incarnation, batch::text AS batch, change, status"

export const lockKept = (session: Session, id: string): Effect.Effect<Kept, QuarantineRefused | PostgresError> =>
  Effect.gen(function* () {
    const [kept] = yield* session.query<Kept>(`SELECT ${KEPT} FROM schoolbus.quarantine WHERE id::text = $1 FOR UPDATE`, [id.toLowerCase()])
    if (kept === undefined)
      return yield* new QuarantineRefused({ code: "not_found", message: `no quarantined change ${id}; see: schoolbus quarantine list` })
    if (kept.status !== "open") return yield* new QuarantineRefused({ code: "decided", message: `this change was ${kept.status} already` })
    return kept
  })

/** A record of another school is none. */
const lockOwn = (session: Session, id: string, school: string | null): Effect.Effect<Kept, QuarantineRefused | PostgresError> =>
  Effect.flatMap(lockKept(session, id), (kept) =>
    school === null || kept.school === school
      ? Effect.succeed(kept)
      : Effect.fail(new QuarantineRefused({ code: "not_found", message: `no quarantined change ${id}; see: schoolbus quarantine list` })),
  )

type Decider = Pick<Ground, "tables" | "had" | "times">

/** Gives the change up: the school shows head office's row again. */
export const discardIn = (
  session: Session,
  decider: Pick<Decider, "tables">,
  id: string,
  by: string,
  school: string | null = null,
): Effect.Effect<void, QuarantineRefused | PostgresError> =>
  Effect.gen(function* () {
    yield* setTimeouts(session)
    const kept = yield* lockOwn(session, id, school)
    yield* addComputed(session, decider, kept)
    yield* closeQuarantined(session, [[kept.id, "discarded", by]])
  })

export const discardQuarantined = (
  pg: PostgresPool,
  decider: Pick<Decider, "tables">,
  id: string,
  by: string,
): Effect.Effect<void, QuarantineRefused | PostgresError> => pg.tx((session) => discardIn(session, decider, id, by))

/**
 * The school takes a delete or a change of the key back by the old values that it sent, among which is nothing that Postgres
 * computes: that is added from head office's row. Where the row is another one by now, all of it comes down.
 */
const addComputed = (session: Session, { tables }: Pick<Decider, "tables">, kept: Kept): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const row = changeOfRecord(kept.id, kept.change)
    const table = tables.get(row?.table ?? "")
    const computed = table?.columns.filter((column) => column.generated) ?? []
    if (row === null || table === undefined || computed.length === 0 || (row.op !== "delete" && row.newKey === null)) return
    const shape = (yield* readKnownShapes(session, tables, [table.name])).get(table.name)
    const current = shape === undefined ? null : yield* readRow(session, { table, shape, key: row.key })
    if (current === null || !table.columns.every(({ name, generated }) => generated || row.base[name] === current[name])) return
    const base = { ...row.base, ...Object.fromEntries(computed.map(({ name }) => [name, current[name] ?? null])) }
    const change = keptChange({ ...row, base, changes: [JSON.parse(kept.change)] })
    yield* session.execute("UPDATE schoolbus.quarantine SET change = $2 WHERE id = $1::text::uuid", [kept.id, change])
  })

/** Carries the change out now. What stays refused is answered; the record says why now. */
const attempt = (session: Session, ground: Decider, kept: Kept, row: RowChange, by: string): Effect.Effect<Refusal | null, PostgresError> =>
  Effect.gen(function* () {
    const refusal = yield* carryOutKept(session, ground, kept, row, by)
    if (refusal === null) return null
    const { reason, detail } = refusal
    yield* session.execute("UPDATE schoolbus.quarantine SET reason = $2, detail = $3 WHERE id = $1::text::uuid", [kept.id, reason, detail])
    return refusal
  })

/** Carries a kept change out as `row` has it. A row that no link places is tried with the school's links that wait, which may wait for it. */
export const carryOutKept = (
  session: Session,
  ground: Decider,
  kept: Kept,
  row: RowChange,
  by: string,
): Effect.Effect<Refusal | null, PostgresError> =>
  Effect.gen(function* () {
    const [outcome] = yield* carryOut(session, { ...ground, ...alone, school: kept.school }, [row])
    if (outcome === undefined || outcome.refusal === null) {
      yield* settle(session, ground, kept, outcome === undefined ? [] : [outcome], by)
      return null
    }
    const table = ground.tables.get(row.table)
    const links = table === undefined || outcome.refusal.reason !== "no_audience" ? [] : chainOf(ground.tables, table).map(({ name }) => name)
    if (links.length === 0) return outcome.refusal
    const waiting = yield* session.query<Kept>(
      `SELECT ${KEPT} FROM schoolbus.quarantine
        WHERE school = $1 AND status = 'open' AND reason IN ('dependant', 'foreign_key', 'no_audience') AND table_name = ANY ($2::text[]) AND id <> $3::text::uuid ORDER BY at, id LIMIT ${DEPENDANTS_AT_ONCE} FOR UPDATE`,
      [kept.school, links, kept.id],
    )
    if (waiting.length === 0) return outcome.refusal
    const whole = { ...kept, change: keptChange({ ...row, changes: [JSON.parse(kept.change)] }) }
    const left = yield* retryKept(session, { ...ground, ...alone, school: kept.school }, [whole, ...waiting], by)
    return [...left].find(([, id]) => id === kept.id)?.[0].refusal ?? null
  })

const unreadable: Refusal = { reason: "unreadable", detail: "the record keeps bytes that are no change" }
const stays = ({ reason, detail }: Refusal) => new QuarantineRefused({ code: "not_possible", message: `${reason}: ${detail}` })

const retry = (
  session: Session,
  ground: Decider,
  id: string,
  by: string,
  school: string | null,
): Effect.Effect<Refusal | null, QuarantineRefused | PostgresError> =>
  Effect.gen(function* () {
    yield* setTimeouts(session)
    const kept = yield* lockOwn(session, id, school)
    const row = changeOfRecord(kept.id, kept.change)
    return row === null ? unreadable : yield* attempt(session, ground, kept, row, by)
  })

export const retryIn = (
  session: Session,
  ground: Decider,
  id: string,
  by: string,
  school: string | null = null,
): Effect.Effect<void, QuarantineRefused | PostgresError> =>
  Effect.flatMap(retry(session, ground, id, by, school), (refusal) => (refusal === null ? Effect.void : Effect.fail(stays(refusal))))

/** Tries the change again; when it still cannot be written the record says why now. */
export const retryQuarantined = (pg: PostgresPool, ground: Decider, id: string, by: string): Effect.Effect<void, QuarantineRefused | PostgresError> =>
  Effect.flatMap(
    pg.tx((session) => retry(session, ground, id, by, null)),
    (refusal) => (refusal === null ? Effect.void : Effect.fail(stays(refusal))),
  )

/** Values by column, from JSON; null = no such object. */
const valuesOf = (json: string | null): Row | null => {
  try {
    const value: unknown = JSON.parse(json ?? "null")
    const isRow = typeof value === "object" && value !== null && !Array.isArray(value)
    return isRow && Object.values(value).every((cell) => cell === null || ["string", "number", "boolean"].includes(typeof cell))
      ? (value as Row)
      : null
  } catch {
    return null
  }
}

/** Puts other values into the change and tries it; nothing is changed when it is refused even so. `json`: values by column. */
export const editIn = (
  session: Session,
  ground: Decider,
  id: string,
  json: string | null,
  by: string,
  school: string | null = null,
): Effect.Effect<void, QuarantineRefused | PostgresError> =>
  Effect.gen(function* () {
    yield* setTimeouts(session)
    const kept = yield* lockOwn(session, id, school)
    const row = changeOfRecord(kept.id, kept.change)
    const values = valuesOf(json)
    if (values === null || Object.keys(values).length === 0)
      return yield* new QuarantineRefused({ code: "not_possible", message: 'give values by column, for example {"username": "amina2"}' })
    if (row === null) return yield* stays(unreadable)
    if (row.op === "delete") return yield* new QuarantineRefused({ code: "not_possible", message: "the change is a delete: retry or discard it" })
    const table = ground.tables.get(row.table)
    const key = table?.key ?? []
    if (Object.keys(values).some((name) => key.includes(name)))
      return yield* new QuarantineRefused({
        code: "not_possible",
        message: `the key (${key.join(", ")}) of a change cannot be edited: discard it and write a new row`,
      })
    const now = (table === undefined ? null : asPresent(row, table)) ?? row
    const refusal = yield* attempt(session, ground, kept, { ...now, mine: { ...now.mine, ...values } }, by)
    if (refusal !== null) return yield* stays(refusal)
  })

export const editQuarantined = (
  pg: PostgresPool,
  ground: Decider,
  id: string,
  json: string,
  by: string,
): Effect.Effect<void, QuarantineRefused | PostgresError> => pg.tx((session) => editIn(session, ground, id, json, by))

export const alone: Pick<Ground, "stored" | "openBases"> = { stored: new Map(), openBases: new Map() }
const nothingOpen: Open = { waiting: new Map(), conflicts: new Map(), bases: new Map(), stored: new Map() }

/** The record is closed, what its outcome disagreed about is recorded under the batch that brought it, and what waited for its row follows. */
export const settle = (
  session: Session,
  ground: Decider,
  kept: Kept,
  outcomes: ReadonlyArray<Outcome>,
  by: string,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    yield* closeWith(session, ground, kept, outcomes, by)
    yield* retryDependants(session, { ...ground, ...alone, school: kept.school }, arrivedIn(outcomes))
  })

const arrivedIn = (outcomes: ReadonlyArray<Outcome>): ReadonlySet<string> =>
  new Set(outcomes.flatMap(({ row, decision }) => (decision?.write === "insert" ? [row.table] : [])))

const closeWith = (
  session: Session,
  { tables }: Pick<Ground, "tables">,
  kept: Kept,
  outcomes: ReadonlyArray<Outcome>,
  by: string,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const origin = { school: kept.school, incarnation: kept.incarnation, number: Number(kept.batch) }
    yield* record(
      session,
      tables,
      origin,
      outcomes.map((outcome) => ({ ...outcome, row: { ...outcome.row, joined: [], changes: [JSON.parse(kept.change)] } })),
      nothingOpen,
    )
    yield* closeQuarantined(session, [[kept.id, outcomes.map(closedAs).find((status) => status === "discarded") ?? "retried", by]])
  })

/** Changes that waited for a row which has just arrived are tried again in the same transaction. */
export const retryDependants = (session: Session, ground: Ground, arrived: ReadonlySet<string>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const links = [...ground.tables.values()].flatMap(({ name, audience }) => (isThrough(audience) && arrived.has(name) ? [audience.through] : []))
    const waitsFor = ({ name, audience, references }: Table, rows: ReadonlySet<string>): boolean =>
      links.includes(name) || references.some(({ table }) => rows.has(table)) || (isThrough(audience) && rows.has(audience.through))
    const children = [...ground.tables.values()].filter((table) => waitsFor(table, arrived)).map((table) => table.name)
    if (children.length === 0) return
    const waiting = yield* session.query<Kept>(
      `SELECT ${KEPT} FROM schoolbus.quarantine
        WHERE school = $1 AND status = 'open' AND reason IN ('dependant', 'foreign_key', 'no_audience') AND table_name = ANY ($2::text[]) ORDER BY at, id LIMIT ${DEPENDANTS_AT_ONCE} FOR UPDATE`,
      [ground.school, children],
    )
    yield* retryKept(session, ground, waiting)
  })

/** A key change that waits since an earlier batch, and what refers to its new key and was refused for want of it: tried together. */
export const retryMoved = (session: Session, ground: Ground, refused: ReadonlyArray<Outcome>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const wanting = new Set(refused.flatMap(({ row, refusal }) => (refusal?.reason === "foreign_key" ? [row.table] : [])))
    const parents = [...wanting].flatMap((name) => ground.tables.get(name)?.references.map(({ table }) => table) ?? [])
    if (parents.length === 0) return
    const moving =
      "EXISTS (SELECT 1 FROM schoolbus.quarantine m WHERE m.school = $1 AND m.status = 'open' AND m.op = 'update' AND m.reason = 'foreign_key' AND m.table_name = ANY ($2::text[]) AND m.change LIKE '%\"newKey\":%')"
    const waiting = yield* session.query<Kept>(
      `SELECT ${KEPT} FROM schoolbus.quarantine
        WHERE school = $1 AND status = 'open' AND reason IN ('dependant', 'foreign_key') AND table_name = ANY ($3::text[]) AND ${moving} ORDER BY at, id LIMIT ${DEPENDANTS_AT_ONCE} FOR UPDATE`,
      [ground.school, parents, [...new Set([...wanting, ...parents])]],
    )
    yield* retryKept(session, ground, waiting)
  })

/** Tries kept changes of the school together; what can be written is, and what waited for that follows. Answers the others. */
export const retryKept = (
  session: Session,
  ground: Ground,
  waiting: ReadonlyArray<Kept>,
  by = "the row that it refers to has arrived",
): Effect.Effect<ReadonlyMap<Outcome, string>, PostgresError> =>
  Effect.gen(function* () {
    const left = new Map<Outcome, string>()
    const rows = waiting.flatMap((kept) => {
      const row = changeOfRecord(kept.id, kept.change)
      return row === null ? [] : [{ kept, row }]
    })
    if (rows.length === 0) return left
    const outcomes = yield* carryOut(
      session,
      { ...ground, ...alone },
      rows.map(({ row }) => row),
    )
    // All are closed before anything else is tried: none may be carried out twice.
    const written: Array<Outcome> = []
    for (const [i, outcome] of outcomes.entries()) {
      const kept = rows[i]?.kept
      if (kept === undefined) continue
      if (outcome.refusal !== null) left.set(outcome, kept.id)
      else {
        written.push(outcome)
        yield* closeWith(session, ground, kept, [outcome], by)
      }
    }
    const arrived = arrivedIn(written)
    if (arrived.size > 0) yield* retryDependants(session, ground, arrived)
    return left
  })
