/**
 * A school's batch -> one Postgres transaction: its effects, a verdict for every change, the records of what was decided,
 * and the ledger row that comes down to the school. A batch that the ledger already holds answers its stored verdicts and
 * writes nothing. Whatever is wrong with one change is that change's verdict; the others are written.
 */
import { randomUUID } from "node:crypto"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { decodeBatch, type DecodedBatch } from "../link/frame.ts"
import type { Change, Exception, Verdicts } from "../model/change.ts"
import { wireKey } from "../model/key.ts"
import type { Table } from "../model/table.ts"
import { isRefused, textToToken, type Wire, wireToText } from "../model/value.ts"
import { ident, isTransient, Postgres, type PostgresError, qualified, type Session } from "../postgres/client.ts"
import { formRefusal, notYours, placement, type Refusal, tupleText, visibleParents } from "./authorise.ts"
import { coalesce, type RowChange } from "./coalesce.ts"
import { correctedTime, type Decision, resolve } from "./resolve.ts"
import { Tables } from "./tables.ts"

const LOCK_TIMEOUT_MS = 500
const STATEMENT_TIMEOUT_MS = 60_000
const RETRIES = 3

/** The hub has not seen the batch before this one; the school must send `expected` first. */
export class BatchGap extends Data.TaggedError("BatchGap")<{ readonly school: string; readonly expected: number; readonly received: number }> {}
/** Same number, other bytes: two files claim one identity. */
export class BatchDiffers extends Data.TaggedError("BatchDiffers")<{ readonly school: string; readonly batch: number; readonly message: string }> {}
/** The bytes are no batch, or not this school's; nothing was promised for them. */
export class NotABatch extends Data.TaggedError("NotABatch")<{ readonly message: string }> {}

export interface BatchInput {
  readonly school: string
  readonly incarnation: string
  readonly number: number
  /** SHA-256 of the bytes, already checked. */
  readonly hash: string
  readonly text: string
  /** Server time, ms since 1970. */
  readonly now: number
}

type Values = Readonly<Record<string, Wire>>

interface Work {
  readonly row: RowChange
  readonly table: Table
  readonly key: string
  theirs: Values | null
  theirsAt: number | null
  decision: Decision | null
  refusal: Refusal | null
  /** Head office's copy after the decision was written. */
  written: boolean
}

/** SQLSTATE -> the reason of a quarantined change, in a word that API and CLI show. */
const reasonOf = (sqlstate: string): string =>
  ({ "23505": "unique", "23503": "foreign_key", "23514": "check", "23502": "not_null", "23P01": "exclusion", "42501": "permission", P0001: "trigger" })[sqlstate] ??
  (sqlstate.startsWith("22") ? "type" : "error")

const detailOf = (error: PostgresError, table: Table): string =>
  error.sqlstate === "42501"
    ? `${error.message}; a DBA can grant it: GRANT SELECT, INSERT, UPDATE, DELETE ON ${table.name} TO the hub's role`
    : [error.message, error.detail].filter((part) => part !== "").join(": ")

const column = (table: Table, name: string) => table.columns.find((c) => c.name === name)
const typeOf = (table: Table, name: string): string => column(table, name)?.type ?? "text"
const texts = (table: Table, names: ReadonlyArray<string>, row: Values): ReadonlyArray<string | null> =>
  names.map((name) => wireToText(column(table, name)?.kind ?? "text", row[name] ?? null))
const keyValues = (table: Table, key: ReadonlyArray<Wire>): Values => Object.fromEntries(table.key.map((name, i) => [name, key[i] ?? null]))

/** `unnest($1::text[], …) AS u (u0, …)` over the columns of many rows, and its parameters. */
const unnestOf = (rows: ReadonlyArray<ReadonlyArray<string | null>>, width: number) => ({
  from: `unnest(${Array.from({ length: width }, (_, i) => `$${i + 1}::text[]`).join(", ")}) AS u (${Array.from({ length: width }, (_, i) => `u${i}`).join(", ")})`,
  params: Array.from({ length: width }, (_, i) => rows.map((row) => row[i] ?? null)),
})

const lockRows = (session: Session, table: Table, works: ReadonlyArray<Work>, hasCommitTimes: boolean) =>
  Effect.gen(function* () {
    const width = table.key.length
    const keys = works.map((work) => texts(table, table.key, keyValues(table, work.row.key)))
    const { from, params } = unnestOf(keys, width)
    const join = table.key.map((name, i) => `t.${ident(name)} = u.u${i}::${typeOf(table, name)}`).join(" AND ")
    const time = hasCommitTimes ? "(extract(epoch FROM pg_xact_commit_timestamp(t.xmin)) * 1000)::bigint" : "NULL::bigint"
    const rows = yield* session.texts(
      `SELECT ${time}, ${table.columns.map((c) => `t.${ident(c.name)}`).join(", ")} FROM ${qualified(table.name)} t
        WHERE EXISTS (SELECT 1 FROM ${from} WHERE ${join}) ORDER BY ${table.key.map((name) => `t.${ident(name)}`).join(", ")} FOR UPDATE OF t`,
      params,
    )
    const found = new Map<string, { readonly row: Values; readonly at: number | null }>()
    for (const [at, ...cells] of rows) {
      const row = Object.fromEntries(table.columns.map((c, i) => [c.name, JSON.parse(textToToken(c.kind, cells[i] ?? null)) as Wire]))
      found.set(wireKey(table.key.map((name) => row[name] ?? null)), { row, at: at == null ? null : Number(at) })
    }
    return found
  })

/** The text that Postgres makes of a value of this type; null when it takes no such value. */
const canonical = (session: Session, table: Table, name: string, value: Wire): Effect.Effect<{ readonly value: Wire } | null, PostgresError> => {
  const kind = column(table, name)?.kind ?? "text"
  if (value === null || kind === "int" || kind === "bool" || kind === "bigint" || kind === "bytea") return Effect.succeed({ value })
  return session.execute("SAVEPOINT canon").pipe(
    Effect.andThen(session.texts(`SELECT $1::text::${typeOf(table, name)}`, [wireToText(kind, value)])),
    Effect.tap(() => session.execute("RELEASE SAVEPOINT canon")),
    Effect.map(([row]) => ({ value: JSON.parse(textToToken(kind, row?.[0] ?? null)) as Wire })),
    Effect.catch((error) => (isTransient(error) ? Effect.fail(error) : Effect.as(session.execute("ROLLBACK TO SAVEPOINT canon"), null))),
  )
}

/** Parents before children, as the foreign keys say. */
const ordered = (tables: ReadonlyArray<Table>): ReadonlyArray<Table> => {
  const order: Array<Table> = []
  const visit = (table: Table, path: ReadonlySet<string>): void => {
    if (order.includes(table) || path.has(table.name)) return
    for (const reference of table.references) {
      const parent = tables.find((t) => t.name === reference.table)
      if (parent !== undefined) visit(parent, new Set([...path, table.name]))
    }
    order.push(table)
  }
  for (const table of tables) visit(table, new Set())
  return order
}

export class Apply extends Context.Service<
  Apply,
  { readonly batch: (input: BatchInput) => Effect.Effect<Verdicts, BatchGap | BatchDiffers | NotABatch | PostgresError> }
>()("schoolbus/up/Apply") {
  static readonly layer: Layer.Layer<Apply, never, Postgres | Tables> = Layer.effect(
    Apply,
    Effect.gen(function* () {
      const pg = yield* Postgres
      const tables = yield* Tables

      const batch = Effect.fn("Apply.batch")(function* (input: BatchInput) {
        const decoded = decodeBatch(input.text)
        if ("refused" in decoded) return yield* new NotABatch({ message: decoded.refused })
        const { header } = decoded.ok
        if (header.incarnation !== input.incarnation || header.number !== input.number) {
          return yield* new NotABatch({ message: `the bytes are batch ${header.number} of ${header.incarnation}, the request says batch ${input.number} of ${input.incarnation}` })
        }
        const known = yield* tables.all
        return yield* pg.tx((session) => run(session, input, decoded.ok, known)).pipe(
          Effect.retry({
            while: (error) => error._tag === "PostgresError" && /^(40001|40P01|55P03)$/.test(error.sqlstate),
            schedule: Schedule.jittered(Schedule.exponential("50 millis")),
            times: RETRIES,
          }),
        )
      })
      return Apply.of({ batch })
    }),
  )
}

const run = (session: Session, input: BatchInput, decoded: DecodedBatch, tables: ReadonlyMap<string, Table>) =>
  Effect.gen(function* () {
    yield* session.execute(`SET LOCAL lock_timeout = ${LOCK_TIMEOUT_MS}`)
    yield* session.execute(`SET LOCAL statement_timeout = ${STATEMENT_TIMEOUT_MS}`)
    // The head of the school's ledger: batches of one file go one after the other.
    yield* session.execute("INSERT INTO schoolbus.incarnations (id, school) VALUES ($1::text::uuid, $2) ON CONFLICT (id) DO NOTHING", [input.incarnation, input.school])
    const [head] = yield* session.query<{ school: string; last_batch: string }>(
      "SELECT school, last_batch::text AS last_batch FROM schoolbus.incarnations WHERE id = $1::text::uuid FOR UPDATE",
      [input.incarnation],
    )
    if (head === undefined || head.school !== input.school) return yield* new NotABatch({ message: "this incarnation belongs to another school" })
    const last = Number(head.last_batch)
    if (input.number <= last) return yield* replay(session, input)
    if (input.number > last + 1) return yield* new BatchGap({ school: input.school, expected: last + 1, received: input.number })

    const exceptions: Array<Exception> = []
    const quarantines: Array<{ readonly change: Change | { readonly id: number; readonly raw: string }; readonly refusal: Refusal; readonly record: string }> = []
    const quarantine = (change: Change, refusal: Refusal): void => {
      const record = randomUUID()
      quarantines.push({ change, refusal, record })
      exceptions.push({ id: change.id, verdict: "quarantined", reason: refusal.reason, record, hold: true })
    }
    for (const { id, raw, reason } of decoded.unreadable) {
      const record = randomUUID()
      quarantines.push({ change: { id, raw }, refusal: { reason: "unreadable", detail: reason }, record })
      exceptions.push({ id, verdict: "quarantined", reason: "unreadable", record, hold: true })
    }

    // One work item per row; what its form alone forbids is out at once.
    const works: Array<Work> = []
    for (const row of coalesce(decoded.batch.changes)) {
      const table = tables.get(row.table)
      const refusedValue = [...Object.values(row.base), ...Object.values(row.mine)].find((value) => isRefused(value as never))
      const refusal =
        formRefusal(table, row.table, row) ??
        (refusedValue === undefined ? null : { reason: "value", detail: (refusedValue as unknown as { refused: string }).refused })
      if (refusal !== null || table === undefined) {
        for (const change of row.changes) quarantine(change, refusal ?? notYours)
        continue
      }
      works.push({ row, table, key: wireKey(row.key), theirs: null, theirsAt: null, decision: null, refusal: null, written: false })
    }

    const order = ordered([...new Set(works.map((work) => work.table))])
    const [setting] = yield* session.query<{ on: string }>("SELECT current_setting('track_commit_timestamp') AS on")
    for (const table of order) {
      const mine = works.filter((work) => work.table === table)
      const found = yield* lockRows(session, table, mine, setting?.on === "on").pipe(
        Effect.catch((error) =>
          isTransient(error)
            ? Effect.fail(error)
            : Effect.sync(() => {
                for (const work of mine) work.refusal = { reason: reasonOf(error.sqlstate), detail: detailOf(error, table) }
                return new Map<string, { readonly row: Values; readonly at: number | null }>()
              }),
        ),
      )
      for (const work of mine) {
        const present = found.get(work.key)
        work.theirs = present?.row ?? null
        work.theirsAt = present?.at ?? null
      }
    }

    // Inserts of this batch that point-to checks may count on, by table and key columns.
    const clock = { offset: decoded.header.clockOffset, contactAt: decoded.header.contactAt, now: input.now }
    for (const work of works) {
      if (work.refusal !== null) continue
      const { row, table, theirs } = work
      const before = theirs ?? (row.op === "insert" || row.op === "none" ? null : row.base)
      work.refusal = before === null ? null : placement(table, { ...before, ...keyValues(table, row.key) }, input.school)
      if (work.refusal !== null && theirs !== null && row.op !== "delete") work.refusal = notYours
      if (work.refusal !== null) continue
      let change = row
      if (theirs !== null && row.op !== "none") {
        // Text that is not as Postgres prints it would look like a disagreement where there is none.
        const base: Record<string, Wire> = { ...row.base }
        const mine: Record<string, Wire> = { ...row.mine }
        for (const name of Object.keys(row.op === "delete" ? row.base : row.mine)) {
          if (base[name] === theirs[name]) continue
          for (const side of [base, mine]) {
            if (!(name in side) || side[name] === theirs[name]) continue
            const result = yield* canonical(session, table, name, side[name] ?? null)
            if (result === null) {
              if (side === mine) work.refusal = { reason: "type", detail: `${name} cannot hold ${JSON.stringify(mine[name])} (${typeOf(table, name)})` }
            } else side[name] = result.value
          }
        }
        change = { ...row, base, mine }
      }
      if (work.refusal !== null) continue
      work.decision = resolve(table, change, theirs, { mineAt: correctedTime(row.at, clock), theirsAt: work.theirsAt })
      if (row.newKey !== null && work.decision.write !== "insert" && theirs !== null) {
        work.decision = { ...work.decision, write: "update", set: { ...work.decision.set, ...keyValues(table, row.newKey) } }
      }
      const after = { ...(theirs ?? {}), ...work.decision.set }
      if (work.decision.write === "insert" || work.decision.write === "update") {
        const place = placement(table, after, input.school)
        if (place !== null) work.refusal = place
      }
    }

    yield* checkReferences(session, works, tables, input.school)

    for (const table of order) {
      yield* writeKind(session, table, works, "insert")
      yield* writeKind(session, table, works, "update")
    }
    for (const table of [...order].reverse()) yield* writeKind(session, table, works, "delete")

    const conflicts: Array<ReadonlyArray<string | null>> = []
    for (const work of works) {
      const { row, table, decision, refusal } = work
      if (refusal !== null || decision === null) {
        for (const change of row.changes) quarantine(change, refusal ?? notYours)
        continue
      }
      const lastChange = row.changes.at(-1) as Change
      const open = decision.disagreements.filter((d) => d.winner === "open")
      let record: string | undefined
      for (const d of decision.disagreements) {
        const id = randomUUID()
        record ??= id
        const kept = d.winner === "school" ? d.mine : d.theirs
        conflicts.push([
          id, input.school, input.incarnation, String(input.number), String(lastChange.id), table.name, work.key, d.column,
          JSON.stringify(d.base), JSON.stringify(d.mine), JSON.stringify(d.theirs), JSON.stringify(kept), d.winner, d.strategy, d.reason,
          d.winner === "open" ? "open" : "decided",
        ])
        if (d.winner === "open") {
          exceptions.push({ id: lastChange.id, verdict: "conflict", reason: d.reason, record: id, hold: true, ...(d.column === null ? {} : { columns: [d.column] }) })
        }
      }
      for (const change of row.changes) {
        if (decision.verdict === "applied" || (change === lastChange && open.length > 0)) continue
        exceptions.push({ id: change.id, verdict: decision.verdict, ...(record === undefined ? {} : { record }) })
      }
    }
    if (conflicts.length > 0) {
      const { from, params } = unnestOf(conflicts, 16)
      yield* session.execute(
        `INSERT INTO schoolbus.conflicts (id, school, incarnation, batch, change_id, table_name, row_key, column_name, base, mine, theirs, kept, winner, strategy, reason, status)
         SELECT u0::uuid, u1, u2::uuid, u3::bigint, u4::bigint, u5, u6, u7, u8, u9, u10, u11, u12, u13, u14, u15 FROM ${from}`,
        params,
      )
    }
    if (quarantines.length > 0) {
      const rows = quarantines.map(({ change, refusal, record }) => [
        record, input.school, input.incarnation, String(input.number), String(change.id),
        "table" in change ? change.table : "", "table" in change ? wireKey(change.key) : "", "table" in change ? change.op : "",
        // A NUL cannot stand in text; its JSON escape can.
        "table" in change ? JSON.stringify(change) : JSON.stringify(change.raw), refusal.reason, refusal.detail,
      ])
      const { from, params } = unnestOf(rows, 11)
      yield* session.execute(
        `INSERT INTO schoolbus.quarantine (id, school, incarnation, batch, change_id, table_name, row_key, op, change, reason, detail)
         SELECT u0::uuid, u1, u2::uuid, u3::bigint, u4::bigint, u5, u6, u7, u8, u9, u10 FROM ${from}`,
        params,
      )
    }
    const verdicts: Verdicts = { batch: input.number, hash: input.hash, changes: decoded.batch.changes.length + decoded.unreadable.length, exceptions }
    yield* session.execute(
      "INSERT INTO schoolbus.ledger (incarnation, batch, school, hash, changes, exceptions) VALUES ($1::text::uuid, $2::text::bigint, $3, $4, $5::text::int, $6)",
      [input.incarnation, String(input.number), input.school, input.hash, String(verdicts.changes), JSON.stringify(exceptions)],
    )
    yield* session.execute("UPDATE schoolbus.incarnations SET last_batch = $2::text::bigint WHERE id = $1::text::uuid", [input.incarnation, String(input.number)])
    return verdicts
  })

const replay = (session: Session, input: BatchInput) =>
  Effect.gen(function* () {
    const [row] = yield* session.query<{ hash: string; changes: number; exceptions: string }>(
      "SELECT hash, changes, exceptions FROM schoolbus.ledger WHERE incarnation = $1::text::uuid AND batch = $2::text::bigint",
      [input.incarnation, String(input.number)],
    )
    if (row === undefined || row.hash !== input.hash) {
      return yield* new BatchDiffers({
        school: input.school,
        batch: input.number,
        message: `batch ${input.number} is in the ledger with other bytes: two copies of this school's file are in use, or it was put back to an older state`,
      })
    }
    return { batch: input.number, hash: row.hash, changes: row.changes, exceptions: JSON.parse(row.exceptions) as ReadonlyArray<Exception> }
  })

/** Rows that would point to something the school cannot see are refused; so is what hangs on a refused insert of this batch. */
const checkReferences = (session: Session, works: ReadonlyArray<Work>, tables: ReadonlyMap<string, Table>, school: string) =>
  Effect.gen(function* () {
    const order = ordered([...new Set(works.map((work) => work.table))])
    for (const table of order) {
      for (const reference of table.references) {
        const parent = tables.get(reference.table)
        const wanting = works.flatMap((work) => {
          const { decision } = work
          if (work.table !== table || work.refusal !== null || decision === null || (decision.write !== "insert" && decision.write !== "update")) return []
          if (!reference.columns.some((name) => name in decision.set)) return []
          const values = texts(table, reference.columns, { ...(work.theirs ?? {}), ...decision.set })
          return values.includes(null) ? [] : [{ work, values }]
        })
        if (wanting.length === 0) continue
        const seen = parent === undefined ? new Set<string>() : yield* visibleParents(session, parent, reference.to, wanting.map(({ values }) => values), school)
        const made = new Set(
          works.flatMap((work) =>
            parent !== undefined && work.table === parent && work.refusal === null && work.decision?.write === "insert" ? [tupleText(texts(parent, reference.to, work.decision.set))] : [],
          ),
        )
        for (const { work, values } of wanting) {
          const tuple = tupleText(values)
          if (!seen.has(tuple) && !made.has(tuple)) work.refusal = notYours
        }
      }
    }
  })

/** Writes all rows of one table and kind; what Postgres refuses is cut out by halves, so that only the guilty rows stay out. */
const writeKind = (session: Session, table: Table, works: ReadonlyArray<Work>, kind: "insert" | "update" | "delete"): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const mine = works.filter((work) => work.table === table && work.refusal === null && work.decision?.write === kind)
    const groups = new Map<string, Array<Work>>()
    for (const work of mine) {
      const id = Object.keys(work.decision?.set ?? {}).join("\0")
      groups.set(id, [...(groups.get(id) ?? []), work])
    }
    for (const group of groups.values()) yield* writeGroup(session, table, group, kind)
  })

const writeGroup = (session: Session, table: Table, group: ReadonlyArray<Work>, kind: "insert" | "update" | "delete"): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    if (group.length === 0) return
    const statement = statementOf(table, group, kind)
    yield* session.execute("SAVEPOINT work")
    const error = yield* session.execute(statement.sql, statement.params).pipe(
      // Deferred constraints speak here, while the row that broke one can still be told.
      Effect.andThen(session.execute("SET CONSTRAINTS ALL IMMEDIATE")),
      Effect.andThen(session.execute("SET CONSTRAINTS ALL DEFERRED")),
      Effect.as(null),
      Effect.catch((failure) => Effect.succeed(failure)),
    )
    if (error === null) {
      yield* session.execute("RELEASE SAVEPOINT work")
      for (const work of group) work.written = true
      return
    }
    if (isTransient(error)) return yield* error
    yield* session.execute("ROLLBACK TO SAVEPOINT work")
    yield* session.execute("RELEASE SAVEPOINT work")
    if (group.length === 1) {
      const [work] = group
      if (work !== undefined) work.refusal = { reason: reasonOf(error.sqlstate), detail: detailOf(error, table) }
      return
    }
    const half = Math.ceil(group.length / 2)
    yield* writeGroup(session, table, group.slice(0, half), kind)
    yield* writeGroup(session, table, group.slice(half), kind)
  })

const statementOf = (table: Table, group: ReadonlyArray<Work>, kind: "insert" | "update" | "delete"): { readonly sql: string; readonly params: ReadonlyArray<ReadonlyArray<string | null>> } => {
  const on = qualified(table.name)
  const set = Object.keys(group[0]?.decision?.set ?? {})
  const keyTexts = (work: Work) => texts(table, table.key, keyValues(table, work.row.key))
  const match = (from: number) => table.key.map((name, i) => `t.${ident(name)} = u.u${from + i}::${typeOf(table, name)}`).join(" AND ")
  if (kind === "insert") {
    const names = set.filter((name) => column(table, name)?.generated !== true)
    const { from, params } = unnestOf(group.map((work) => texts(table, names, work.decision?.set ?? {})), names.length)
    return {
      sql: `INSERT INTO ${on} (${names.map(ident).join(", ")}) OVERRIDING SYSTEM VALUE SELECT ${names.map((name, i) => `u.u${i}::${typeOf(table, name)}`).join(", ")} FROM ${from}`,
      params,
    }
  }
  if (kind === "delete") {
    const { from, params } = unnestOf(group.map(keyTexts), table.key.length)
    return { sql: `DELETE FROM ${on} t USING ${from} WHERE ${match(0)}`, params }
  }
  const { from, params } = unnestOf(group.map((work) => [...texts(table, set, work.decision?.set ?? {}), ...keyTexts(work)]), set.length + table.key.length)
  return { sql: `UPDATE ${on} AS t SET ${set.map((name, i) => `${ident(name)} = u.u${i}::${typeOf(table, name)}`).join(", ")} FROM ${from} WHERE ${match(set.length)}`, params }
}
