/**
 * What the hub keeps of a push beside its effects: conflicts, quarantined changes, what triggers made of sent values. A row
 * has one open record per column, and one quarantined change: later edits of the school go into them.
 */
import { randomUUID } from "node:crypto"
import * as Effect from "effect/Effect"
import type { Change, Exception } from "../model/change.ts"
import { wireKey } from "../model/key.ts"
import { namedSince, type Table } from "../model/table.ts"
import { isRefused, type Wire } from "../model/value.ts"
import type { PostgresError, Session } from "../postgres/client.ts"
import { currentKey, rowId, type RowChange, startRow } from "./coalesce.ts"
import { tupleText, unnest } from "./lists.ts"
import { bringUp, type Named, staleOf } from "./renamed.ts"
import type { Ground, Outcome } from "./work.ts"

/** Batches for which a value that a trigger changed is remembered: by then the ledger row has long come down. */
const STORED_BATCHES = 100

const COLUMN_GONE = "head office, which dropped the column"
const LATER_EDIT = "a later edit of the school"

/** The batch that a record speaks of. */
export interface Origin {
  readonly school: string
  readonly incarnation: string
  readonly number: number
  /** Under which it was frozen. */
  readonly manifest?: number
}

interface OpenConflict {
  readonly id: string
  readonly column: string | null
}

/** What waits for a person in the rows of a push, by `rowId` of the key at the school. */
export interface Open {
  readonly waiting: ReadonlyMap<string, RowChange>
  readonly conflicts: ReadonlyMap<string, ReadonlyArray<OpenConflict>>
  readonly bases: Ground["openBases"]
  readonly stored: Ground["stored"]
}

/** A change as a quarantine record keeps it: a captured change, its time already in server time. */
export const keptChange = (row: RowChange, manifest = row.manifest): string => {
  const { table, op, key, newKey, at, columnAt, base, mine } = row
  return JSON.stringify({
    id: row.changes.at(-1)?.id ?? 0,
    table,
    op,
    key,
    ...(newKey === null ? {} : { newKey }),
    at,
    columnAt,
    base,
    mine,
    ...(manifest === undefined ? {} : { manifest }),
  })
}

/** null: the record keeps bytes that are no change. */
export const changeOfRecord = (id: string, json: string): RowChange | null => {
  const change: unknown = JSON.parse(json)
  if (typeof change !== "object" || change === null || !("op" in change)) return null
  const { columnAt, manifest } = change as { columnAt?: Readonly<Record<string, number>>; manifest?: number }
  const row: RowChange = { ...startRow(change as Change), columnAt: columnAt ?? {}, changes: [], joined: [id] }
  return manifest === undefined ? row : { ...row, manifest }
}

/** `key`: of the row at the school, which may have given it that one. */
const rowOfConflict = (
  table: string,
  keyColumns: ReadonlyArray<string>,
  key: ReadonlyArray<Wire>,
  base: RowChange["base"] | null,
  mine: RowChange["mine"] | null,
): RowChange => {
  const op = mine === null ? "delete" : base === null ? "insert" : "update"
  const row: RowChange = { ...startRow({ id: 0, table, op, key, at: 0, base: base ?? {}, mine: mine ?? {} }), changes: [] }
  const former = keyColumns.flatMap((name) => (isKnown(base?.[name]) ? [base[name]] : []))
  return op === "update" && former.length === key.length && wireKey(former) !== wireKey(key) ? { ...row, key: former, newKey: key } : row
}
const isKnown = (value: RowChange["base"][string] | undefined): value is Wire => value !== undefined && !isRefused(value)

export const readOpen = (
  session: Session,
  tables: ReadonlyMap<string, Table>,
  origin: Origin,
  changes: ReadonlyArray<Change>,
): Effect.Effect<Open, PostgresError> =>
  Effect.gen(function* () {
    const keys = [...new Map(changes.map((change) => [rowId(change.table, change.key), [change.table, wireKey(change.key)] as const])).values()]
    const { from, params } = unnest(keys, 2)
    const incarnation = [...params, origin.incarnation]
    const waiting = new Map<string, RowChange>()
    const conflicts = new Map<string, Array<OpenConflict>>()
    const bases = new Map<string, Map<string, Wire>>()
    const stored = new Map<string, Map<string, Array<{ sent: Wire; stored: Wire }>>>()
    const idOf = (table: string, key: string) => `${table}\0${key}`

    type OpenRow = Named & { id: string; tbl: string; key: string; kind: string; hold: boolean; manifest: string }
    const open = yield* session.query<OpenRow>(
      `SELECT c.id::text AS id, c.table_name AS tbl, c.row_key AS key, c.column_name, c.unique_columns, c.base, c.mine, c.theirs, c.kept, c.undo, c.kind, c.hold,
              c.manifest::text AS manifest
         FROM ${from} JOIN schoolbus.conflicts c ON c.table_name = u.u0 AND c.row_key = u.u1
        WHERE c.status = 'open' AND c.kind <> 'unique' AND c.incarnation = $3::text::uuid FOR UPDATE OF c`,
      incarnation,
    )
    for (const found of open) {
      const { id, tbl, key, hold } = found
      const table = tables.get(tbl)
      // Another row may have that key now.
      if (table !== undefined && staleOf(table, found) !== null) continue
      const { column_name: col, base, mine, manifest } = table === undefined ? found : yield* bringUp(session, table, found)
      const row = idOf(tbl, key)
      conflicts.set(row, [...(conflicts.get(row) ?? []), { id, column: col }])
      // Where the decision was undone the school shows head office's value, and its next edit starts from that.
      if (!hold) continue
      if (col === null)
        waiting.set(row, {
          ...rowOfConflict(tbl, table?.key ?? [], JSON.parse(key), JSON.parse(base ?? "null"), JSON.parse(mine ?? "null")),
          manifest: Number(manifest),
        })
      else bases.set(row, (bases.get(row) ?? new Map<string, Wire>()).set(col, JSON.parse(base ?? "null")))
    }
    const quarantined = yield* session.query<{ id: string; tbl: string; key: string; change: string }>(
      `SELECT q.id::text AS id, q.table_name AS tbl, q.row_key AS key, q.change FROM ${from} JOIN schoolbus.quarantine q ON q.table_name = u.u0 AND q.row_key = u.u1
        WHERE q.status = 'open' AND q.incarnation = $3::text::uuid ORDER BY q.at FOR UPDATE OF q`,
      incarnation,
    )
    for (const { id, tbl, key, change } of quarantined) {
      const row = changeOfRecord(id, change)
      if (row !== null) waiting.set(idOf(tbl, key), row)
    }
    const pairs = yield* session.query<{ tbl: string; key: string; col: string; sent: string; stored: string }>(
      `SELECT s.table_name AS tbl, s.row_key AS key, s.column_name AS col, s.sent, s.stored
         FROM ${from} JOIN schoolbus.stored s ON s.table_name = u.u0 AND s.row_key = u.u1 WHERE s.incarnation = $3::text::uuid`,
      incarnation,
    )
    for (const { tbl, key, col, sent, stored: made } of pairs) {
      const columns = stored.get(idOf(tbl, key)) ?? new Map<string, Array<{ sent: Wire; stored: Wire }>>()
      stored.set(idOf(tbl, key), columns.set(col, [...(columns.get(col) ?? []), { sent: JSON.parse(sent), stored: JSON.parse(made) }]))
    }
    return { waiting, conflicts, bases, stored }
  })

export interface Recorded {
  /** Of the batch's ledger row. */
  readonly exceptions: ReadonlyArray<Exception>
  /** Records of the outcomes that were quarantined. */
  readonly quarantined: ReadonlyMap<Outcome, string>
}

/** How a kept change that has been carried out is closed: what made a row that is not there in the end was given up. */
export const closedAs = ({ row, after }: Pick<Outcome, "row" | "after">): "retried" | "discarded" =>
  row.op === "none" || (after === null && (row.op === "insert" || row.newKey !== null)) ? "discarded" : "retried"

/** Writes the records of outcomes. */
export const record = (
  session: Session,
  tables: ReadonlyMap<string, Table>,
  origin: Origin,
  outcomes: ReadonlyArray<Outcome>,
  open: Open,
): Effect.Effect<Recorded, PostgresError> =>
  Effect.gen(function* () {
    const namedSinceOf = (name: string): string => {
      const table = tables.get(name)
      return table === undefined ? "0" : String(namedSince(table))
    }
    const idByOutcome = new Map<Outcome, string>()
    const exceptions: Array<Exception> = []
    const conflicts: Array<ReadonlyArray<string | null>> = []
    const quarantined: Array<ReadonlyArray<string | null>> = []
    const closedConflicts: Array<ReadonlyArray<string | null>> = []
    const closedChanges: Array<ReadonlyArray<string | null>> = []

    for (const outcome of outcomes) {
      const { row, decision, refusal, after, keyAfter } = outcome
      const ids = row.changes.map((change) => change.id)
      const last = ids.at(-1) ?? 0
      if (refusal !== null || decision === null) {
        const id = row.joined[0] ?? randomUUID()
        idByOutcome.set(outcome, id)
        const { reason, detail } = refusal ?? { reason: "refused", detail: "" }
        quarantined.push([
          id,
          ...originOf(origin, last),
          row.table,
          wireKey(currentKey(row)),
          row.op,
          keptChange(row, row.manifest ?? origin.manifest),
          reason,
          detail,
        ])
        for (const change of ids)
          exceptions.push({ id: change, verdict: "quarantined", reason, record: id, ...(change === last ? { hold: true } : {}) })
        continue
      }
      if (outcome.lost !== undefined) {
        const id = randomUUID()
        const names = Object.keys(outcome.lost).join(", ")
        const said = keptChange({ ...row, mine: outcome.lost }, row.manifest ?? origin.manifest)
        const detail = `head office no longer has column ${names} of ${row.table}; the rest of the change was carried out`
        quarantined.push([id, ...originOf(origin, last), row.table, wireKey(keyAfter), row.op, said, "column_gone", detail])
        closedChanges.push([id, "discarded", COLUMN_GONE])
        // Of a row that is not written no stream tells the school, which still has the column under its former name, or its new one.
        const isTakenBack = row.op === "update" && decision.write === "nothing"
        exceptions.push({
          id: last,
          verdict: decision.write === "nothing" ? "superseded" : "merged",
          reason: "column_gone",
          record: id,
          ...(isTakenBack ? { hold: true, columns: Object.keys(outcome.lost) } : {}),
        })
      }
      for (const id of row.joined) closedChanges.push([id, closedAs(outcome), LATER_EDIT])
      const known = open.conflicts.get(rowId(row.table, row.changes[0]?.key ?? row.key)) ?? []
      const reused = new Set<string>()
      const records: Array<Exception> = []
      for (const { column, base, mine, theirs, kept, winner, strategy, reason, mineAt, theirsAt } of decision.disagreements) {
        const former = winner === "open" ? known.find((one) => one.column === column) : undefined
        const id = former?.id ?? randomUUID()
        reused.add(id)
        conflicts.push([
          id,
          ...originOf(origin, last),
          row.table,
          wireKey(keyAfter),
          column,
          JSON.stringify(base),
          JSON.stringify(mine),
          JSON.stringify(theirs),
          JSON.stringify(kept),
          winner,
          strategy,
          reason,
          winner === "open" ? "open" : "decided",
          column === null ? "row" : "column",
          timeText(mineAt),
          timeText(theirsAt),
          namedSinceOf(row.table),
        ])
        const hold = winner === "open" ? { hold: true, ...(column === null ? {} : { columns: [column] }) } : {}
        records.push({ id: last, verdict: "conflict", reason, record: id, ...hold })
      }
      for (const { id, column } of known) {
        if (reused.has(id)) continue
        const isWritten = column === null || column in decision.set
        closedConflicts.push([id, isWritten ? "school" : "vps", JSON.stringify(column === null ? after : (after?.[column] ?? null)), LATER_EDIT])
      }
      if (row.op === "none") for (const id of ids) exceptions.push({ id, verdict: "superseded" })
      else if (records.length > 0) {
        const [first] = records
        for (const id of ids.slice(0, -1))
          exceptions.push({ id, verdict: "conflict", ...(first?.record === undefined ? {} : { record: first.record }) })
        const held = records.filter((one) => one.hold === true)
        exceptions.push(...(held.length > 0 ? held : records.slice(0, 1)))
      } else if (decision.verdict !== "applied") exceptions.push({ id: last, verdict: decision.verdict })
    }

    yield* putConflicts(session, conflicts)
    yield* putQuarantined(session, quarantined)
    if (closedConflicts.length > 0) {
      const { from, params } = unnest(closedConflicts, 4)
      yield* session.execute(
        `UPDATE schoolbus.conflicts c SET status = 'resolved', hold = false, winner = u.u1, kept = u.u2, decided_by = u.u3, decided_at = now() FROM ${from} WHERE c.id = u.u0::uuid`,
        params,
      )
    }
    yield* closeQuarantined(session, closedChanges)
    yield* remember(session, origin, outcomes)
    return { exceptions, quarantined: idByOutcome }
  })

const originOf = (origin: Origin, change: number): ReadonlyArray<string> => [origin.school, origin.incarnation, String(origin.number), String(change)]

export const putConflicts = (session: Session, rows: ReadonlyArray<ReadonlyArray<string | null>>): Effect.Effect<unknown, PostgresError> => {
  if (rows.length === 0) return Effect.void
  const { from, params } = unnest(rows, 20)
  return session.execute(
    `INSERT INTO schoolbus.conflicts AS c
       (id, school, incarnation, batch, change_id, table_name, row_key, column_name, base, mine, theirs, kept, winner, strategy, reason, status, kind, hold, mine_at, theirs_at, manifest)
     SELECT u0::uuid, u1, u2::uuid, u3::bigint, u4::bigint, u5, u6, u7, u8, u9, u10, u11, u12, u13, u14, u15, u16, u12 = 'open', to_timestamp(u17::float8 / 1000), to_timestamp(u18::float8 / 1000), u19::bigint
       FROM ${from}
     ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, change_id = excluded.change_id, row_key = excluded.row_key, base = excluded.base, mine = excluded.mine,
       theirs = excluded.theirs, kept = excluded.kept, strategy = excluded.strategy, reason = excluded.reason,
       hold = excluded.hold, mine_at = excluded.mine_at, theirs_at = excluded.theirs_at, column_name = excluded.column_name, manifest = excluded.manifest`,
    params,
  )
}

const timeText = (at: number | null): string | null => (at === null ? null : String(at))

/** Rows: id, school, incarnation, batch, change, table, key, op, kept change, reason, detail. */
export const putQuarantined = (session: Session, rows: ReadonlyArray<ReadonlyArray<string | null>>): Effect.Effect<unknown, PostgresError> => {
  if (rows.length === 0) return Effect.void
  const { from, params } = unnest(
    rows.map((row) => row.map(storable)),
    11,
  )
  return session.execute(
    `INSERT INTO schoolbus.quarantine AS q (id, school, incarnation, batch, change_id, table_name, row_key, op, change, reason, detail)
     SELECT u0::uuid, u1, u2::uuid, u3::bigint, u4::bigint, u5, u6, u7, u8, u9, u10 FROM ${from}
     ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, change_id = excluded.change_id, row_key = excluded.row_key, op = excluded.op, change = excluded.change,
       reason = excluded.reason, detail = excluded.detail`,
    params,
  )
}

/** Text as Postgres can keep it: inside JSON a NUL and half a character are escapes already, elsewhere they are shown as such. */
const storable = (text: string | null): string | null => text?.replaceAll("\0", "\\u0000").toWellFormed() ?? null

/** Rows: id, status, by. What a closed change clashed with is decided with it. */
export const closeQuarantined = (session: Session, rows: ReadonlyArray<ReadonlyArray<string | null>>): Effect.Effect<unknown, PostgresError> => {
  if (rows.length === 0) return Effect.void
  const { from, params } = unnest(rows, 3)
  return Effect.andThen(
    session.execute(
      `UPDATE schoolbus.quarantine q SET status = u.u1, decided_by = u.u2, decided_at = now() FROM ${from} WHERE q.id = u.u0::uuid`,
      params,
    ),
    session.execute(
      `UPDATE schoolbus.conflicts c SET status = 'resolved', hold = false, decided_by = u.u2, decided_at = now(),
              winner = CASE WHEN u.u1 = 'discarded' THEN 'vps' ELSE 'school' END, kept = CASE WHEN u.u1 = 'discarded' THEN c.theirs ELSE c.mine END
         FROM ${from} WHERE c.quarantine = u.u0::uuid AND c.status = 'open'`,
      params,
    ),
  )
}

const remember = (session: Session, origin: Origin, outcomes: ReadonlyArray<Outcome>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const seen = new Set<string>()
    const rows = outcomes.flatMap(({ row, keyAfter, altered }) =>
      altered.flatMap(({ column, sent, stored }) => {
        const values = [origin.incarnation, String(origin.number), row.table, wireKey(keyAfter), column, JSON.stringify(sent), JSON.stringify(stored)]
        const id = tupleText(values)
        if (seen.has(id)) return []
        seen.add(id)
        return [values]
      }),
    )
    if (rows.length === 0) return
    const { from, params } = unnest(rows, 7)
    yield* session.execute(
      `INSERT INTO schoolbus.stored (incarnation, batch, table_name, row_key, column_name, sent, stored) SELECT u0::uuid, u1::bigint, u2, u3, u4, u5, u6 FROM ${from}`,
      params,
    )
    yield* session.execute("DELETE FROM schoolbus.stored WHERE incarnation = $1::text::uuid AND batch < $2::text::bigint", [
      origin.incarnation,
      String(origin.number - STORED_BATCHES),
    ])
  })
