/** Records of quarantined rows that want a unique value which another row has, and what the table's rule says about them. */
import * as Effect from "effect/Effect"
import { wireKey } from "../model/key.ts"
import { namedSince, type Table, type UniqueRule } from "../model/table.ts"
import { isTransient, type PostgresError, type Session } from "../postgres/client.ts"
import type { Outcome } from "./work.ts"
import { CLASH_COLUMNS, decideClash, type Ground0, type UniqueConflict } from "./clash.ts"
import { currentKey } from "./coalesce.ts"
import type { Origin } from "./records.ts"
import type { Row } from "./resolve.ts"
import { type Clash, findClashes, visible } from "./unique.ts"

/** Clashes that one push records itself. */
const CLASHES_AT_ONCE = 100

const sameColumns = (json: string | null, columns: ReadonlyArray<string>): boolean => json === JSON.stringify(columns)

/** A record is worth less than the push that it belongs to: what Postgres refuses here is left out, and the row waits without it. */
const orNothing = (session: Session, body: Effect.Effect<void, PostgresError>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    yield* session.execute("SAVEPOINT clash")
    yield* body.pipe(
      Effect.catch((error) =>
        isTransient(error)
          ? Effect.fail(error)
          : Effect.andThen(session.execute("ROLLBACK TO SAVEPOINT clash"), Effect.logDebug(`a clash could not be recorded: ${error.message}`)),
      ),
    )
    yield* session.execute("RELEASE SAVEPOINT clash")
  })

/** Records where quarantined rows clash, and carries out what the table's rule says about them. */
export const recordClashes = (
  session: Session,
  ground: Ground0,
  origin: Origin,
  quarantined: ReadonlyMap<Outcome, string>,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    let recorded = 0
    for (const [outcome, quarantine] of quarantined) {
      if (outcome.refusal?.reason !== "unique" || outcome.wanted === null) continue
      // The hub records the rest in its own time, see tend.ts.
      if (recorded++ >= CLASHES_AT_ONCE) return
      yield* orNothing(session, recordClash(session, ground, origin, outcome, outcome.wanted, quarantine))
    }
  })

const recordClash = (
  session: Session,
  ground: Ground0,
  origin: Origin,
  outcome: Outcome,
  wanted: Row,
  quarantine: string,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const { row, shape } = outcome
    const table = ground.tables.get(row.table)
    if (shape === null || table === undefined) return
    const clashes = yield* findClashes(session, table, shape, wanted)
    const known = yield* session.query<{ id: string; unique_columns: string }>(
      "SELECT id::text AS id, unique_columns FROM schoolbus.conflicts WHERE quarantine = $1::text::uuid AND status = 'open'",
      [quarantine],
    )
    for (const { id, unique_columns } of known) {
      if (clashes.some((clash) => sameColumns(unique_columns, clash.columns))) continue
      yield* session.execute(
        "UPDATE schoolbus.conflicts SET status = 'resolved', winner = 'school', decided_by = 'a later edit of the school', decided_at = now() WHERE id = $1::text::uuid",
        [id],
      )
    }
    for (const clash of clashes) {
      const id = known.find((one) => sameColumns(one.unique_columns, clash.columns))?.id ?? crypto.randomUUID()
      const theirs = yield* visible(session, ground.tables, table, clash.other, origin.school)
      yield* putClash(session, origin, outcome, quarantine, id, table, wanted, clash, theirs)
    }
    const rule = table.uniqueRule ?? "manual"
    if (rule !== "manual") yield* byRule(session, ground, quarantine, rule)
  })

const putClash = (
  session: Session,
  origin: Origin,
  { row }: Outcome,
  quarantine: string,
  id: string,
  table: Table,
  wanted: Row,
  { columns, column, suggestion }: Clash,
  theirs: Row | null,
): Effect.Effect<unknown, PostgresError> => {
  const values = columns.map((name) => String(wanted[name] ?? "")).join(", ")
  const reason = theirs === null ? `${columns.join(", ")} is taken: ${values}` : `another row has ${columns.join(", ")} = ${values}`
  return session.execute(
    `INSERT INTO schoolbus.conflicts
       (id, school, incarnation, batch, change_id, table_name, row_key, column_name, base, mine, theirs, kept, winner, strategy, reason, status, kind, hold, mine_at,
        unique_columns, suggestion, quarantine, manifest)
     VALUES ($1::text::uuid, $2, $3::text::uuid, $4::text::bigint, $5::text::bigint, $6, $7, $8, NULL, $9, $10, NULL, 'open', $11, $12, 'open', 'unique', true,
             to_timestamp($13::text::float8 / 1000), $14, $15, $16::text::uuid, $17::text::bigint)
     ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, change_id = excluded.change_id, row_key = excluded.row_key, mine = excluded.mine, theirs = excluded.theirs,
       reason = excluded.reason, mine_at = excluded.mine_at, suggestion = excluded.suggestion,
       manifest = excluded.manifest`,
    [
      id,
      origin.school,
      origin.incarnation,
      String(origin.number),
      String(row.changes.at(-1)?.id ?? 0),
      row.table,
      wireKey(currentKey(row)),
      column,
      JSON.stringify(wanted),
      theirs === null ? null : JSON.stringify(theirs),
      table.uniqueRule ?? "manual",
      reason,
      String(row.at),
      JSON.stringify(columns),
      suggestion === null ? null : JSON.stringify(suggestion),
      quarantine,
      String(namedSince(table)),
    ],
  )
}

/** The rule decides each clash of the change, or leaves it to a person where it cannot. */
const byRule = (session: Session, ground: Ground0, quarantine: string, rule: Exclude<UniqueRule, "manual">): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    for (;;) {
      const [conflict] = yield* session.query<UniqueConflict>(
        `SELECT ${CLASH_COLUMNS} FROM schoolbus.conflicts WHERE quarantine = $1::text::uuid AND status = 'open' ORDER BY unique_columns LIMIT 1`,
        [quarantine],
      )
      if (conflict === undefined) return
      yield* session.execute("SAVEPOINT by_rule")
      const failed = yield* decideClash(session, ground, conflict, { keep: rule }, "rule", "school").pipe(
        Effect.as(false),
        Effect.catchTag("DecideRefused", () => Effect.succeed(true)),
      )
      yield* session.execute(failed ? "ROLLBACK TO SAVEPOINT by_rule; RELEASE SAVEPOINT by_rule" : "RELEASE SAVEPOINT by_rule")
      if (failed) return
    }
  })
