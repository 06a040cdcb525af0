/** The hub's one replication slot: find, create, inspect, and drop when it can never be used again. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { type Lsn, parseLsn } from "../model/lsn.ts"
import type { PostgresError, Session } from "./client.ts"

/** The slot cannot be used as it is; `message` says why and what to do. */
export class SlotRefused extends Data.TaggedError("SlotRefused")<{ readonly slot: string; readonly message: string }> {}

export interface SlotState {
  readonly name: string
  readonly plugin: string
  readonly active: boolean
  /** Backend that holds the slot, and where it comes from; "" when nobody does. */
  readonly holder: string
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
    session.query<{ plugin: string; active: boolean; holder: string; confirmed: string | null; wal_status: string | null }>(
      `SELECT s.plugin::text AS plugin, s.active,
              coalesce('process ' || s.active_pid || coalesce(' from ' || host(a.client_addr), '') || coalesce(' (' || nullif(a.application_name, '') || ')', ''), '') AS holder,
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
            active: row.active,
            holder: row.holder,
            confirmed: row.confirmed === null ? 0n : parseLsn(row.confirmed),
            walStatus: row.wal_status ?? "reserved",
          },
  )

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

/** Creating waits for every transaction that is running. */
export const createSlot = (session: Session, name: string, plugin: string): Effect.Effect<Lsn, PostgresError | SlotRefused> =>
  session.query<{ lsn: string }>(`SELECT lsn::text AS lsn FROM pg_create_logical_replication_slot($1, $2)`, [name, plugin]).pipe(
    Effect.map(([row]) => parseLsn(row?.lsn ?? "")),
    Effect.mapError((error) => {
      const message = refusalOf(error)
      return message === null ? error : new SlotRefused({ slot: name, message })
    }),
  )

/** Frees its WAL. Whoever drops a slot compares every table afterwards. */
export const dropSlot = (session: Session, name: string): Effect.Effect<void, PostgresError> =>
  Effect.asVoid(session.execute("SELECT pg_drop_replication_slot($1)", [name]))
