/**
 * What waits at the hub and may go on by itself: changes whose missing row, table or right has come from head office, clashes that a push
 * had no time to record, and open conflicts in whose row head office has written again. Looked at in rounds, some at a time.
 */
import * as Effect from "effect/Effect"
import type { PostgresError, PostgresPool, Session } from "../postgres/client.ts"
import { namesSince, type Table } from "../model/table.ts"
import type { Wire } from "../model/value.ts"
import { taken } from "./authorise.ts"
import { setTimeouts } from "./carry-out.ts"
import { recordClashes } from "./clash-records.ts"
import { readKnownShapes } from "./known.ts"
import { alone, type Kept, retryKept } from "./quarantine.ts"
import { bringUp, type Named, staleOf } from "./renamed.ts"
import { readRow, writtenAt } from "./rows.ts"
import { visible } from "./unique.ts"
import type { Ground } from "./work.ts"

/** Kept changes that one round tries. */
const AT_ONCE = 200

interface Waiting extends Kept {
  readonly reason: string
}

/** Answers where the next round goes on; "" = from the beginning. */
export const tendQuarantine = (
  pg: PostgresPool,
  decider: Pick<Ground, "tables" | "had" | "times">,
  after: string,
): Effect.Effect<string, PostgresError> =>
  Effect.gen(function* () {
    // A hub that has just started does not know its tables yet.
    if (decider.tables.size === 0) return ""
    const waiting = yield* pg.query<Waiting>(
      `SELECT id::text AS id, school, incarnation::text AS incarnation, batch::text AS batch, change, status, reason FROM schoolbus.quarantine q
        WHERE status = 'open' AND id::text > $1 AND (reason IN ('dependant', 'foreign_key', 'no_audience', 'unknown_table', 'permission', 'row_security')
           OR reason = 'unique' AND detail <> $2 AND NOT EXISTS (SELECT 1 FROM schoolbus.conflicts c WHERE c.quarantine = q.id))
        ORDER BY id::text LIMIT ${AT_ONCE}`,
      [after, taken.detail],
    )
    for (const [school, kept] of Map.groupBy(waiting, (one) => one.school)) yield* pg.tx((session) => tendSchool(session, decider, school, kept))
    return waiting.length < AT_ONCE ? "" : (waiting.at(-1)?.id ?? "")
  })

const tendSchool = (
  session: Session,
  decider: Pick<Ground, "tables" | "had" | "times">,
  school: string,
  kept: ReadonlyArray<Waiting>,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    yield* setTimeouts(session)
    const locked = yield* session.query<{ id: string }>(
      "SELECT id::text AS id FROM schoolbus.quarantine WHERE id::text = ANY ($1::text[]) AND status = 'open' ORDER BY id FOR UPDATE SKIP LOCKED",
      [kept.map(({ id }) => id)],
    )
    const open = new Set(locked.map(({ id }) => id))
    const left = yield* retryKept(
      session,
      { ...decider, ...alone, school },
      kept.filter(({ id }) => open.has(id)),
    )
    for (const [outcome, id] of left) {
      const one = kept.find((row) => row.id === id)
      if (one === undefined || outcome.refusal === null) continue
      // A table that is not synced at the moment may be again: then the change goes on waiting for the same as before.
      if (outcome.refusal.reason !== one.reason && outcome.refusal.reason !== "unknown_table")
        yield* session.execute("UPDATE schoolbus.quarantine SET reason = $2, detail = $3 WHERE id = $1::text::uuid", [
          id,
          outcome.refusal.reason,
          outcome.refusal.detail,
        ])
      const origin = { school, incarnation: one.incarnation, number: Number(one.batch) }
      yield* recordClashes(session, decider, origin, new Map([[outcome, id]]))
    }
  })

interface OpenConflict extends Named {
  readonly id: string
  readonly school: string
  readonly tbl: string
  readonly key: string
  readonly kind: string
  readonly manifest: string
}

const OPEN = `SELECT id::text AS id, school, table_name AS tbl, row_key AS key, column_name, unique_columns, base, mine, theirs, kept, undo, kind,
    manifest::text AS manifest FROM schoolbus.conflicts WHERE status = 'open' AND kind <> 'unique' AND mine <> 'null' AND theirs <> 'null'`

/**
 * An open record takes head office's later edits: what it shows is what a decision would meet. Where both sides have come to
 * the same it is closed. Answers where the next round goes on; "" = from the beginning.
 */
export const tendConflicts = (pg: PostgresPool, tables: ReadonlyMap<string, Table>, after: string): Effect.Effect<string, PostgresError> =>
  Effect.gen(function* () {
    if (tables.size === 0) return ""
    const open = yield* pg.query<OpenConflict>(`${OPEN} AND id::text > $1 ORDER BY id::text LIMIT ${AT_ONCE}`, [after])
    for (const [name, own] of Map.groupBy(open, (one) => one.tbl)) {
      const table = tables.get(name)
      if (table !== undefined) yield* pg.tx((session) => refresh(session, tables, table, own))
    }
    return open.length < AT_ONCE ? "" : (open.at(-1)?.id ?? "")
  })

const refresh = (
  session: Session,
  tables: ReadonlyMap<string, Table>,
  table: Table,
  conflicts: ReadonlyArray<OpenConflict>,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    yield* setTimeouts(session)
    const shape = (yield* readKnownShapes(session, tables, [table.name])).get(table.name)
    if (shape?.can.select !== true) return
    const reading = { ...shape, can: { ...shape.can, update: false } }
    for (const found of conflicts) {
      // Another row may have that key now.
      if (staleOf(table, found) !== null) continue
      const renamed = namesSince(table, Number(found.manifest)).size > 0
      const [locked] = renamed ? yield* session.query<OpenConflict>(`${OPEN} AND id = $1::text::uuid FOR UPDATE SKIP LOCKED`, [found.id]) : [found]
      if (locked === undefined) continue
      const { id, school, key, column_name: col, mine, theirs } = yield* bringUp(session, table, locked)
      const place = { table, shape: reading, key: JSON.parse(key) as ReadonlyArray<Wire> }
      const row = yield* readRow(session, place)
      if (row === null || (col !== null && !(col in row))) continue
      const now = JSON.stringify(col === null ? row : row[col])
      if (now === theirs || (yield* visible(session, tables, table, row, school)) === null) continue
      yield* session.execute(
        now === mine
          ? "UPDATE schoolbus.conflicts SET status = 'resolved', hold = false, winner = 'school', kept = $2, theirs = $2, decided_by = 'both sides agree', decided_at = now() WHERE id = $1::text::uuid AND status = 'open'"
          : "UPDATE schoolbus.conflicts SET theirs = $2, kept = $2, theirs_at = $3::text::timestamptz WHERE id = $1::text::uuid AND status = 'open'",
        now === mine ? [id, now] : [id, now, yield* writtenAt(session, place)],
      )
    }
  })
