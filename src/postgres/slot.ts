/** The hub's one replication slot: find, create, inspect, and drop when it can never be used again. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { type Lsn, parseLsn, printLsn } from "../model/lsn.ts"
import type { PostgresError, Session } from "./client.ts"

/** The slot cannot be used as it is; `message` says why and what to do. */
export class SlotRefused extends Data.TaggedError("SlotRefused")<{ readonly slot: string; readonly message: string }> {}

export interface SlotState {
  readonly name: string
  /** null: a physical slot. */
  readonly plugin: string | null
  /** Decodes prepared transactions when they are prepared, before anybody knows whether they will be committed. */
  readonly twoPhase: boolean
  /** Whose changes it decodes, when it is not this database; null: it is, or a physical slot. */
  readonly otherDatabase: string | null
  readonly active: boolean
  /** Backend that holds the slot, and where it comes from; "" when nobody does. */
  readonly holder: string
  /** That backend serves a hub. */
  readonly isHubs: boolean
  /** 0 = it is still being made. */
  readonly confirmed: Lsn
  /** `reserved`, `extended`, `unreserved`, `lost`. */
  readonly walStatus: string
}

export interface ClusterIdentity {
  readonly systemId: string
  readonly timeline: number
}

export const clusterIdentity = (session: Session): Effect.Effect<ClusterIdentity, PostgresError> =>
  Effect.map(
    session.query<{ id: string; tli: number }>(
      `SELECT s.system_identifier::text AS id, c.timeline_id AS tli FROM pg_control_system() s, pg_control_checkpoint() c`,
    ),
    ([row]) => ({ systemId: row?.id ?? "", timeline: row?.tli ?? 0 }),
  )

export const findSlot = (session: Session, name: string): Effect.Effect<SlotState | null, PostgresError> =>
  Effect.map(
    session.query<{
      plugin: string | null
      two_phase: boolean
      other_database: string | null
      active: boolean
      holder: string
      is_hubs: boolean
      confirmed: string | null
      wal_status: string | null
    }>(
      `SELECT s.plugin::text AS plugin, s.two_phase, nullif(s.database, current_database())::text AS other_database, s.active,
              coalesce('process ' || s.active_pid || coalesce(' from ' || host(a.client_addr), '') || coalesce(' (' || nullif(a.application_name, '') || ')', ''), '') AS holder,
              coalesce(a.application_name LIKE 'schoolbus %', false) AS is_hubs,
              s.confirmed_flush_lsn::text AS confirmed, s.wal_status
         FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
        WHERE s.slot_name = $1`,
      [name],
    ),
    ([row]) =>
      row === undefined
        ? null
        : {
            name,
            plugin: row.plugin,
            twoPhase: row.two_phase,
            otherDatabase: row.other_database,
            active: row.active,
            holder: row.holder,
            isHubs: row.is_hubs,
            confirmed: row.confirmed === null ? 0n : parseLsn(row.confirmed),
            walStatus: row.wal_status ?? "reserved",
          },
  )

/** Why this hub waits while the slot is read by somebody else. */
export const busyText = ({ name, holder, isHubs }: SlotState): string =>
  isHubs
    ? `another hub holds slot ${name}: ${holder}`
    : `slot ${name} is read by ${holder}, which is no hub; this one goes on as soon as that is ended`

/** A slot has one name in the whole server: another database took it. Ends with what to do; null = it is ours. */
export const refusalOfOther = ({ name, otherDatabase, active, holder }: SlotState): string | null =>
  otherDatabase === null
    ? null
    : active
      ? `slot ${name} is of database ${otherDatabase} and read by ${holder}: drop it there once that is ended, or give this database another name`
      : `slot ${name} is of database ${otherDatabase}, and nobody reads it; when that database is not synced any more, run in it: SELECT pg_drop_replication_slot('${name}');`

/** Why a slot could not be made, in words that end with what to do; null = not a known reason. */
const refusalOf = (error: PostgresError): string | null => {
  if (error.sqlstate === "58P01" || error.message.includes("could not access file")) {
    return `Postgres lacks the output plugin: install the package postgresql-NN-wal2json on the database server (NN = its major version), or set plugin: "pgoutput" in the config, which every Postgres has`
  }
  if (error.sqlstate === "55000") return "wal_level is not logical: run ALTER SYSTEM SET wal_level = logical and restart Postgres"
  if (error.sqlstate === "42501") return "the role may not create replication slots: run ALTER ROLE … REPLICATION"
  if (error.sqlstate === "53400")
    return "no replication slot is free: raise max_replication_slots and restart Postgres, or drop a slot that nobody uses"
  return null
}

/**
 * Whether this server still has the transaction that the feed took last, at its position, in its time. False: its disk was
 * put back to an older state, and what it writes now goes under positions that it has given out before.
 */
export const holdsTxn = (
  session: Session,
  txn: { readonly lsn: Lsn; readonly xid: number; readonly at: string },
): Effect.Effect<boolean, PostgresError> =>
  Effect.map(
    session.query<{ reached: boolean; begun: boolean; at: string | null }>(
      `SELECT pg_current_wal_lsn() >= $1::text::pg_lsn AS reached,
              pg_snapshot_xmax(pg_current_snapshot())::text::numeric % 4294967296 > $2::text::numeric
                OR $2::text::numeric - pg_snapshot_xmax(pg_current_snapshot())::text::numeric % 4294967296 > 2147483648 AS begun,
              CASE WHEN current_setting('track_commit_timestamp') = 'on' THEN pg_xact_commit_timestamp($2::text::xid)::text END AS at`,
      [printLsn(txn.lsn), String(txn.xid)],
    ),
    // A time that the server does not keep any more, or never kept, says nothing.
    ([row]) => row === undefined || (row.reached && row.begun && (row.at === null || txn.at === "" || sameTime(row.at, txn.at))),
  )

/** `"2026-01-01 08:00:00.12+00"`, however many digits the fraction has. */
const sameTime = (left: string, right: string): boolean => {
  const digits = (text: string) =>
    text.replace(/(?:\.(\d+))?([+-]\d{2})(?::?00)?$/, (_, fraction = "", zone) => `.${String(fraction).padEnd(6, "0")}${zone}`)
  return digits(left) === digits(right)
}

/** The process of the server that serves a slot, told from a later one of the same number by its start. */
export interface Walsender {
  readonly pid: number
  readonly startedAt: string
}

export const walsenderOf = (session: Session, name: string): Effect.Effect<Walsender | null, PostgresError> =>
  Effect.map(
    session.query<Walsender>(
      `SELECT a.pid, a.backend_start::text AS "startedAt" FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = $1`,
      [name],
    ),
    ([row]) => row ?? null,
  )

/** Whether it is at work: decoding a transaction of which nothing is for us takes a while without a byte. */
export const isDecoding = (session: Session, walsender: Walsender): Effect.Effect<boolean, PostgresError> =>
  Effect.map(
    session.query<{ event: string | null }>("SELECT wait_event AS event FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2", [
      walsender.pid,
      walsender.startedAt,
    ]),
    ([row]) => row !== undefined && !(row.event ?? "").startsWith("WalSender"),
  )

/** Whether a statement of ours waits for a lock that somebody holds: then a stream without a byte says nothing. */
export const isHeldUp = (session: Session): Effect.Effect<boolean, PostgresError> =>
  Effect.map(
    session.query<{ held: boolean }>(
      `SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user AND application_name = current_setting('application_name')
                       AND wait_event_type = 'Lock') AS held`,
    ),
    ([row]) => row?.held === true,
  )

/** Frees the slot of a walsender whose line is dead: by itself it would notice after wal_sender_timeout only. */
export const endWalsender = (session: Session, walsender: Walsender): Effect.Effect<void, PostgresError> =>
  Effect.asVoid(
    session.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2", [
      walsender.pid,
      walsender.startedAt,
    ]),
  )

/** Creating waits for every transaction that is running. */
export const createSlot = (session: Session, name: string, plugin: string): Effect.Effect<Lsn, PostgresError | SlotRefused> =>
  session.query<{ lsn: string }>(`SELECT lsn::text AS lsn FROM pg_create_logical_replication_slot($1, $2)`, [name, plugin]).pipe(
    Effect.map(([row]) => parseLsn(row?.lsn ?? "")),
    Effect.mapError((error) => {
      const message = refusalOf(error)
      return message === null ? error : new SlotRefused({ slot: name, message })
    }),
  )

/** What the making of a slot waits for, in words that end with what to do; null = nothing, or it is made. */
export const waitOfMaking = (session: Session, name: string): Effect.Effect<string | null, PostgresError> =>
  Effect.map(
    session.query<{ advice: string }>("SELECT advice FROM schoolbus.slot_health WHERE slot_name = $1 AND waits_for IS NOT NULL", [name]),
    ([row]) => (row === undefined ? null : `slot ${name} is being made: ${row.advice}`),
  )

/** Slots of the hub's kind in this database that nobody reads: its own under the database's former name, for one. */
export const findLeftSlots = (session: Session, own: string): Effect.Effect<ReadonlyArray<string>, PostgresError> =>
  Effect.map(
    session.query<{ name: string }>(
      "SELECT slot_name::text AS name FROM pg_replication_slots WHERE database = current_database() AND NOT active AND NOT temporary AND slot_name LIKE 'schoolbus\\_%' AND slot_name <> $1",
      [own],
    ),
    (rows) => rows.map(({ name }) => name),
  )

/** Frees its WAL. Whoever drops a slot compares every table afterwards. */
export const dropSlot = (session: Session, name: string): Effect.Effect<void, PostgresError> =>
  Effect.asVoid(session.execute("SELECT pg_drop_replication_slot($1)", [name]))
