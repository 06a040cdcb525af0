/** Generated columns and how Postgres computes them: for decoders that do not get their values from the stream. */
import * as Effect from "effect/Effect"
import type { PostgresError, Session } from "./client.ts"

export interface GeneratedColumn {
  /** `"public.students"` */
  readonly table: string
  readonly name: string
  /** SQL over the other columns of its row: immutable, so it gives the same value at any time. */
  readonly expression: string
  /** Computed when read, in no tuple of the WAL (Postgres 18). */
  readonly isVirtual: boolean
}

export const readGenerated = (session: Session, tables: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<GeneratedColumn>, PostgresError> =>
  Effect.gen(function* () {
    // Under the hub's path every function and type in the expression that is not built in is named in full.
    return yield* session.query<GeneratedColumn>(
      `SELECT n.nspname || '.' || c.relname AS "table", a.attname::text AS name, a.attgenerated = 'v' AS "isVirtual",
              pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS expression
         FROM pg_catalog.pg_attribute a
         JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> '' AND n.nspname || '.' || c.relname = ANY ($1)`,
      [tables],
    )
  })
