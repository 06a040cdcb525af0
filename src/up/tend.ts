/**
 * What waits at the hub and may go on by itself: changes whose missing row has come from head office, and clashes that a
 * push had no time to record. Looked at in rounds, some at a time, one school after the other.
 */
import * as Effect from "effect/Effect"
import type { PostgresError, PostgresPool, Session } from "../postgres/client.ts"
import { taken } from "./authorise.ts"
import { type Ground, setTimeouts } from "./carry-out.ts"
import { recordClashes } from "./clash-records.ts"
import { alone, type Kept, retryKept } from "./quarantine.ts"

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
        WHERE status = 'open' AND id::text > $1 AND (reason IN ('dependant', 'foreign_key', 'no_audience')
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
