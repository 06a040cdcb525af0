/**
 * The publication that pgoutput reads. pgoutput looks it up as it stood at the WAL position that it decodes, so it must be
 * there before the slot is, and what was not published then is not in the stream: whoever widens it reads the rest outside.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { ident, type PostgresError, type PostgresPool, qualified, type Session } from "./client.ts"

/** It is not as the stream needs it and the role may not mend it; `message` has the SQL for the DBA. */
export class PublicationRefused extends Data.TaggedError("PublicationRefused")<{ readonly publication: string; readonly message: string }> {}

export interface Publication {
  readonly exists: boolean
  /** Wanted tables whose changes it does not hand over whole. */
  readonly missing: ReadonlyArray<string>
  /** It is made for exactly the wanted tables, or for all, and publishes every kind of change. */
  readonly fits: boolean
}

export const readPublication = (session: Session, name: string, tables: ReadonlyArray<string>): Effect.Effect<Publication, PostgresError> =>
  Effect.gen(function* () {
    const [row] = yield* session.query<{ all_tables: boolean; all_changes: boolean }>(
      `SELECT puballtables AS all_tables, pubinsert AND pubupdate AND pubdelete AND pubtruncate AS all_changes
         FROM pg_catalog.pg_publication WHERE pubname = $1`,
      [name],
    )
    if (row === undefined) return { exists: false, missing: tables, fits: false }
    if (!row.all_changes) return { exists: true, missing: tables, fits: false }
    const members = yield* session.query<{ tbl: string }>(
      `SELECT schemaname || '.' || tablename AS tbl FROM pg_catalog.pg_publication_tables WHERE pubname = $1`,
      [name],
    )
    // Postgres 14 has neither row filters nor column lists.
    const narrowed = yield* session.query<{ tbl: string }>(
      `SELECT n.nspname || '.' || c.relname AS tbl
         FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
         JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE p.pubname = $1 AND (to_jsonb(r) ->> 'prqual' IS NOT NULL OR to_jsonb(r) ->> 'prattrs' IS NOT NULL)`,
      [name],
    )
    const partly = new Set(narrowed.map(({ tbl }) => tbl))
    const whole = new Set(members.map(({ tbl }) => tbl).filter((tbl) => !partly.has(tbl)))
    const missing = tables.filter((tbl) => !whole.has(tbl))
    return { exists: true, missing, fits: missing.length === 0 && (row.all_tables || members.length === tables.length) }
  })

const EVERY_CHANGE = "publish = 'insert, update, delete, truncate'"

/** Makes the publication hold exactly these tables; one that only holds more is left as it is when the role may not change it. */
export const mendPublication = (
  pg: PostgresPool,
  name: string,
  tables: ReadonlyArray<string>,
  found: Publication,
): Effect.Effect<void, PostgresError | PublicationRefused> => {
  const list = tables.map(qualified).join(", ")
  const statements = found.exists
    ? [`ALTER PUBLICATION ${ident(name)} SET TABLE ${list}`, `ALTER PUBLICATION ${ident(name)} SET (${EVERY_CHANGE})`]
    : [`CREATE PUBLICATION ${ident(name)} FOR TABLE ${list} WITH (${EVERY_CHANGE})`]
  return pg
    .tx((session) => Effect.forEach(statements, (sql) => session.execute(sql), { discard: true }))
    .pipe(
      Effect.catch((error): Effect.Effect<void, PostgresError | PublicationRefused> => {
        if (error.sqlstate !== "42501") return Effect.fail(error)
        if (found.exists && found.missing.length === 0) return Effect.void
        return Effect.fail(
          new PublicationRefused({
            publication: name,
            message: `pgoutput needs publication ${name}, which this role may not make (${error.message}). The owner of the tables, or a superuser, runs:\n  ${statements.join(";\n  ")};`,
          }),
        )
      }),
    )
}
