/** What Postgres says about the slot and about open work, and the few rows the hub leaves there for the DBA's views. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { type PostgresError, type PostgresPool, qualified, type Session } from "./client.ts"

/** One row of `schoolbus.slot_health`. Sizes in bytes; null = Postgres cannot say. */
export interface SlotHealth {
  readonly slot: string
  readonly database: string
  readonly plugin: string
  readonly active: boolean
  readonly walStatus: string | null
  readonly retainedBytes: number | null
  readonly lagBytes: number | null
  readonly lagSeconds: number | null
  /** WAL that may still be written before the slot is lost; null = no limit is set. */
  readonly safeWalBytes: number | null
  readonly growthBytesPerSecond: number | null
  /** Until the slot is lost at the present rate; null = no limit or no growth. */
  readonly timeLeftSeconds: number | null
  readonly inactiveSince: string | null
  /** As `SHOW` prints it; `"-1"` = no limit. */
  readonly maxSlotWalKeepSize: string
  /** `maxSlotWalKeepSize` in bytes; without a limit 4 GiB, which no slot should ever hold. */
  readonly budgetBytes: number
  /** Per cent. */
  readonly budgetUsed: number
  readonly stage: SlotStage
  /** What to do about a stage that is not `ok`. */
  readonly advice: string | null
}

/** How near a slot is to being lost; `making`: Postgres has not made it yet, and nothing is read. */
export type SlotStage = "ok" | "warning" | "critical" | "lost" | "making"

/** For whoever only looks: a lock that somebody holds on our tables is an error (55P03), not a wait. */
export const looking = <A>(pg: PostgresPool, look: (session: Session) => Effect.Effect<A, PostgresError>): Effect.Effect<A, PostgresError> =>
  pg.tx((session) => Effect.andThen(session.execute("SET LOCAL lock_timeout = '1s'"), look(session)))

const numberOf = (text: string | null | undefined): number | null => (text == null ? null : Number(text))

/** Slots of this database, by name. Sizes are exact up to 2^53 bytes. */
export const readSlots = (session: Session): Effect.Effect<ReadonlyArray<SlotHealth>, PostgresError> =>
  Effect.map(
    session.query<{ active: boolean } & Record<string, string | null>>(
      `SELECT slot_name, database, plugin, active, wal_status, retained_bytes::text, lag_bytes::text, lag_seconds::text, safe_wal_bytes::text,
              growth_bytes_per_second::text, time_left_seconds::text, max_slot_wal_keep_size, budget_bytes::text, budget_used::text, stage, advice,
              to_char(inactive_since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS inactive_since
         FROM schoolbus.slot_health ORDER BY slot_name`,
    ),
    (rows) =>
      rows.map((row) => ({
        slot: row["slot_name"] ?? "",
        database: row["database"] ?? "",
        plugin: row["plugin"] ?? "",
        active: row.active,
        walStatus: row["wal_status"] ?? null,
        retainedBytes: numberOf(row["retained_bytes"]),
        lagBytes: numberOf(row["lag_bytes"]),
        lagSeconds: numberOf(row["lag_seconds"]),
        safeWalBytes: numberOf(row["safe_wal_bytes"]),
        growthBytesPerSecond: numberOf(row["growth_bytes_per_second"]),
        timeLeftSeconds: numberOf(row["time_left_seconds"]),
        inactiveSince: row["inactive_since"] ?? null,
        maxSlotWalKeepSize: row["max_slot_wal_keep_size"] ?? "",
        budgetBytes: Number(row["budget_bytes"]),
        budgetUsed: Number(row["budget_used"]),
        stage: row["stage"] as SlotStage,
        advice: row["advice"] ?? null,
      })),
  )

/** This computer's clock minus the server's, ms. */
export const readClockAhead = (session: Session): Effect.Effect<number, PostgresError> =>
  Effect.gen(function* () {
    const asked = yield* Clock.currentTimeMillis
    const [row] = yield* session.query<{ at: number }>("SELECT extract(epoch FROM clock_timestamp())::float8 * 1000 AS at")
    const answered = yield* Clock.currentTimeMillis
    return Math.round((asked + answered) / 2 - (row?.at ?? answered))
  })

/** Open conflicts and quarantined changes of one school and table. What clashes over a unique value is decided as a conflict, and counts as one. */
export interface OpenWork {
  readonly school: string
  readonly table: string
  readonly conflicts: number
  readonly failed: number
}

/** Uses the partial indexes `conflicts_waiting` and `quarantine_waiting`, so it costs what is open, not what ever was. */
export const readOpenWork = (session: Session): Effect.Effect<ReadonlyArray<OpenWork>, PostgresError> =>
  session.query<OpenWork>(
    `SELECT school, table_name AS "table", sum(c)::int AS conflicts, sum(q)::int AS failed
       FROM (SELECT school, table_name, 1 AS c, 0 AS q FROM schoolbus.conflicts WHERE status = 'open'
             UNION ALL
             SELECT school, table_name, 0, 1 FROM schoolbus.quarantine q WHERE status = 'open'
                AND NOT EXISTS (SELECT 1 FROM schoolbus.conflicts c WHERE c.quarantine = q.id AND c.status = 'open')) open
      GROUP BY 1, 2`,
  )

/** About how many rows each table has, as the server's statistics say; a table that was never analysed is left out. */
export const readEstimates = (session: Session, tables: ReadonlyArray<string>): Effect.Effect<ReadonlyMap<string, number>, PostgresError> =>
  tables.length === 0
    ? Effect.succeed(new Map())
    : Effect.map(
        session.query<{ table: string; rows: number }>(
          `SELECT t.name AS "table", c.reltuples::float8 AS rows FROM json_to_recordset($1::text::json) AS t (name text, quoted text)
             JOIN pg_class c ON c.oid = to_regclass(t.quoted) WHERE c.reltuples > 0`,
          [JSON.stringify(tables.map((name) => ({ name, quoted: qualified(name) })))],
        ),
        (rows) => new Map(rows.map((row) => [row.table, Math.round(row.rows)])),
      )

/** One school as `schoolbus.school_health` shows it to the DBA. Times in ms since 1970; null = never. */
export interface SchoolHealthRow {
  readonly school: string
  readonly state: string
  readonly reason: string
  readonly seq: number
  readonly lagRows: number
  readonly pending: number
  readonly oldestPendingAt: number | null
  readonly seenAt: number | null
}

/** How long WAL samples are kept: the growth rate is a mean over at most this time of a running hub. */
const SAMPLE_HOURS = 1

/** Writes the hub's view of all schools and one sample of the WAL's end: one transaction, meant for once a minute. */
export const recordHealth = (pg: PostgresPool, rows: ReadonlyArray<SchoolHealthRow>): Effect.Effect<void, PostgresError> =>
  pg.tx((session) =>
    Effect.gen(function* () {
      yield* session.execute(`INSERT INTO schoolbus.wal_samples (at, lsn) VALUES (now(), pg_current_wal_lsn()) ON CONFLICT (at) DO NOTHING`)
      yield* session.execute(`DELETE FROM schoolbus.wal_samples WHERE at < now() - interval '${SAMPLE_HOURS} hour'`)
      if (rows.length === 0) return
      yield* session.execute(
        `INSERT INTO schoolbus.school_status (school, state, reason, seq, lag_rows, pending, oldest_pending_at, seen_at, as_of)
         SELECT r.school, r.state, r.reason, r.seq, r."lagRows", r.pending, to_timestamp(r."oldestPendingAt" / 1000.0), to_timestamp(r."seenAt" / 1000.0), now()
           FROM json_to_recordset($1::text::json) AS r (school text, state text, reason text, seq bigint, "lagRows" bigint, pending bigint, "oldestPendingAt" bigint, "seenAt" bigint)
           JOIN schoolbus.schools s ON s.id = r.school
             ON CONFLICT (school) DO UPDATE SET state = excluded.state, reason = excluded.reason, seq = excluded.seq, lag_rows = excluded.lag_rows,
                pending = excluded.pending, oldest_pending_at = excluded.oldest_pending_at, seen_at = excluded.seen_at, as_of = excluded.as_of`,
        [JSON.stringify(rows)],
      )
    }),
  )
