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
  /** Inserts, updates, deletes and truncates. */
  readonly publishesAll: boolean
  /** Wanted tables that it does not hold, or only some rows or columns of. */
  readonly absent: ReadonlyArray<string>
  readonly narrowed: ReadonlyArray<string>
  /** Listed tables that nobody reads. */
  readonly extra: ReadonlyArray<string>
  /** Wanted table -> a mark that is another one once the publication was dropped, or the table taken out, and put back. */
  readonly marks: Readonly<Record<string, string>>
}

/** Wanted tables whose changes it does not hand over whole. */
export const missingFrom = (found: Publication, tables: ReadonlyArray<string>): ReadonlyArray<string> =>
  found.publishesAll ? [...found.absent, ...found.narrowed] : tables

export const readPublication = (session: Session, name: string, tables: ReadonlyArray<string>): Effect.Effect<Publication, PostgresError> =>
  Effect.gen(function* () {
    const [row] = yield* session.query<{ publishes_all: boolean; mark: string }>(
      `SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AS publishes_all, oid || '.' || xmin AS mark FROM pg_catalog.pg_publication WHERE pubname = $1`,
      [name],
    )
    if (row === undefined) return { exists: false, publishesAll: true, absent: tables, narrowed: [], extra: [], marks: {} }
    // Also those of FOR ALL TABLES and FOR TABLES IN SCHEMA.
    const members = yield* session.query<{ tbl: string }>(
      `SELECT schemaname || '.' || tablename AS tbl FROM pg_catalog.pg_publication_tables WHERE pubname = $1`,
      [name],
    )
    // Postgres 14 has neither row filters nor column lists.
    const listed = yield* session.query<{ tbl: string; narrowed: boolean; oid: string }>(
      `SELECT r.oid::text AS oid, n.nspname || '.' || c.relname AS tbl, to_jsonb(r) ->> 'prqual' IS NOT NULL OR to_jsonb(r) ->> 'prattrs' IS NOT NULL AS narrowed
         FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
         JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE p.pubname = $1`,
      [name],
    )
    const oids = new Map(listed.map(({ tbl, oid }) => [tbl, oid]))
    const held = new Set(members.map(({ tbl }) => tbl))
    return {
      exists: true,
      publishesAll: row.publishes_all,
      absent: tables.filter((tbl) => !held.has(tbl)),
      narrowed: listed.filter(({ tbl, narrowed }) => narrowed && tables.includes(tbl)).map(({ tbl }) => tbl),
      marks: Object.fromEntries(tables.filter((tbl) => held.has(tbl)).map((tbl) => [tbl, `${row.mark}.${oids.get(tbl) ?? ""}`])),
      extra: listed.map(({ tbl }) => tbl).filter((tbl) => !tables.includes(tbl)),
    }
  })

const EVERY_CHANGE = "publish = 'insert, update, delete, truncate'"

/** Changes only what differs: each table that is added or dropped is locked against VACUUM and DDL, and waits for them. */
const mending = (name: string, found: Publication): ReadonlyArray<string> => {
  const list = (tables: ReadonlyArray<string>) => tables.map(qualified).join(", ")
  const alter = (what: string) => `ALTER PUBLICATION ${ident(name)} ${what}`
  const dropped = [...found.extra, ...found.narrowed]
  const added = [...found.absent, ...found.narrowed]
  if (!found.exists) return [`CREATE PUBLICATION ${ident(name)} FOR TABLE ${list(added)} WITH (${EVERY_CHANGE})`]
  return [
    ...(dropped.length === 0 ? [] : [alter(`DROP TABLE ${list(dropped)}`)]),
    ...(added.length === 0 ? [] : [alter(`ADD TABLE ${list(added)}`)]),
    ...(found.publishesAll ? [] : [alter(`SET (${EVERY_CHANGE})`)]),
  ]
}

/** Makes the publication hold exactly these tables; one that only holds more is left as it is when the role may not change it. */
export const mendPublication = (
  pg: PostgresPool,
  name: string,
  tables: ReadonlyArray<string>,
  found: Publication,
): Effect.Effect<void, PostgresError | PublicationRefused> => {
  const statements = mending(name, found)
  if (statements.length === 0) return Effect.void
  return pg
    .tx((session) => Effect.forEach(statements, (sql) => session.execute(sql), { discard: true }))
    .pipe(
      Effect.catch((error): Effect.Effect<void, PostgresError | PublicationRefused> => {
        if (error.sqlstate !== "42501") return Effect.fail(error)
        if (missingFrom(found, tables).length === 0) return Effect.void
        return Effect.fail(
          new PublicationRefused({
            publication: name,
            message: `pgoutput needs publication ${name}, which this role may not make (${error.message}). The owner of the tables, or a superuser, runs:\n  ${statements.join(";\n  ")};`,
          }),
        )
      }),
    )
}
