/** Which wal2json a server has: it tells its version to nobody, so a slot that lives for one statement tries an option. */
import * as Effect from "effect/Effect"
import type { PostgresPool } from "./client.ts"

/** wal2json since 2.6: numbers as strings, so NaN and infinities are not null. */
export const EXACT_NUMBERS = "numeric-data-types-as-string"

/** `exact`: 2.6 or newer. `old`: sends NaN and infinities as null. `unknown`: the role, or a long transaction, did not let us try. */
export type Wal2json = "exact" | "old" | "absent" | "unknown"

/** Creating a slot waits for the transactions that are running. */
const PROBE_TIMEOUT_MS = 3_000

export const probeWal2json = (pg: PostgresPool): Effect.Effect<Wal2json> =>
  pg
    .tx((session) =>
      Effect.gen(function* () {
        yield* session.execute(`SET LOCAL statement_timeout = ${PROBE_TIMEOUT_MS}`)
        // Temporary: an error, or the end of the session, drops it.
        const [slot] = yield* session.query<{ name: string }>(
          `SELECT slot_name::text AS name FROM pg_create_logical_replication_slot('schoolbus_probe_' || pg_backend_pid(), 'wal2json', true)`,
        )
        yield* session.query(`SELECT 1 FROM pg_logical_slot_peek_changes($1, NULL, 1, 'format-version', '2', '${EXACT_NUMBERS}', 'true')`, [
          slot?.name ?? "",
        ])
        yield* session.query(`SELECT pg_drop_replication_slot($1)`, [slot?.name ?? ""])
        return "exact" as const
      }),
    )
    .pipe(
      Effect.catch((error) =>
        Effect.succeed<Wal2json>(
          error.message.includes(`option "${EXACT_NUMBERS}"`)
            ? "old"
            : error.sqlstate === "58P01" || error.message.includes("could not access file")
              ? "absent"
              : "unknown",
        ),
      ),
    )
