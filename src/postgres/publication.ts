/**
 * The publication that pgoutput reads. pgoutput looks it up as it stood at the WAL position that it decodes, so it must be
 * there before the slot is, and what was not published then is not in the stream: whoever widens it reads the rest outside.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { asOffice, ident, type PostgresError, type PostgresPool, qualified, type Session } from "./client.ts"

/** It is not as the stream needs it and the role may not mend it; `message` has the SQL for the DBA. */
export class PublicationRefused extends Data.TaggedError("PublicationRefused")<{ readonly publication: string; readonly message: string }> {}

export interface Publication {
  readonly exists: boolean
  /** Inserts, updates, deletes and truncates. */
  readonly publishesAll: boolean
  /** Changes of a partition may stand under the name of its parent. */
  readonly isViaRoot: boolean
  /** Holds whatever there is; then tables can neither be added nor taken out. */
  readonly isForAll: boolean
  /** Schemas of which it holds whatever there is. */
  readonly schemas: ReadonlyArray<string>
  /** Wanted tables that it does not hold, or only some rows or columns of. */
  readonly absent: ReadonlyArray<string>
  readonly narrowed: ReadonlyArray<string>
  /** Wanted tables that do not stand there by their own name, whether it holds them or not. */
  readonly unlisted: ReadonlyArray<string>
  /** Listed tables that nobody reads. */
  readonly extra: ReadonlyArray<string>
  /** Wanted tables that belong to others: this role may not add them. */
  readonly foreign: ReadonlyArray<string>
  /** This role may change it. */
  readonly isOurs: boolean
  /** Wanted table -> a mark that is another one once the publication was dropped, or the table taken out, and put back. */
  readonly marks: Readonly<Record<string, string>>
}

/** Wanted tables whose changes it does not hand over whole. */
export const missingFrom = (found: Publication, tables: ReadonlyArray<string>): ReadonlyArray<string> =>
  found.publishesAll ? [...found.absent, ...found.narrowed] : tables

export const readPublication = (session: Session, name: string, tables: ReadonlyArray<string>): Effect.Effect<Publication, PostgresError> =>
  Effect.gen(function* () {
    const others = yield* session.query<{ tbl: string }>(
      `SELECT t.name AS tbl FROM unnest($1::text[]) AS t (name) JOIN pg_catalog.pg_namespace n ON n.nspname = split_part(t.name, '.', 1)
         JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND n.nspname || '.' || c.relname = t.name WHERE NOT pg_has_role(c.relowner, 'USAGE')`,
      [tables],
    )
    const foreign = others.map(({ tbl }) => tbl)
    const [row] = yield* session.query<{
      publishes_all: boolean
      via_root: boolean
      for_all: boolean
      ours: boolean
      mark: string
      has_schemas: boolean
    }>(
      `SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AS publishes_all, pubviaroot AS via_root, puballtables AS for_all, pg_has_role(pubowner, 'USAGE') AS ours,
              oid || '.' || xmin AS mark, to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL AS has_schemas
         FROM pg_catalog.pg_publication WHERE pubname = $1`,
      [name],
    )
    if (row === undefined)
      return {
        ...{ exists: false, publishesAll: true, isViaRoot: false, isForAll: false },
        ...{ schemas: [], absent: tables, unlisted: tables, narrowed: [], extra: [], foreign, isOurs: true, marks: {} },
      }
    // Since Postgres 15.
    const schemas = row.has_schemas
      ? yield* session.query<{ name: string }>(
          `SELECT n.nspname AS name FROM pg_catalog.pg_publication_namespace s JOIN pg_catalog.pg_publication p ON p.oid = s.pnpubid
             JOIN pg_catalog.pg_namespace n ON n.oid = s.pnnspid WHERE p.pubname = $1`,
          [name],
        )
      : []
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
      foreign,
      isOurs: row.ours,
      publishesAll: row.publishes_all,
      isViaRoot: row.via_root,
      isForAll: row.for_all,
      schemas: schemas.map((schema) => schema.name),
      unlisted: tables.filter((tbl) => !oids.has(tbl)),
      absent: tables.filter((tbl) => !held.has(tbl)),
      narrowed: listed.filter(({ tbl, narrowed }) => narrowed && tables.includes(tbl)).map(({ tbl }) => tbl),
      marks: Object.fromEntries(tables.filter((tbl) => held.has(tbl)).map((tbl) => [tbl, `${row.mark}.${oids.get(tbl) ?? ""}`])),
      extra: listed.map(({ tbl }) => tbl).filter((tbl) => !tables.includes(tbl)),
    }
  })

const EVERY_CHANGE = "publish = 'insert, update, delete, truncate'"

/** What is to be put into it. A partition may stand there and be absent all the same: then its changes go out under its parent's name. */
const toAdd = (found: Publication): ReadonlyArray<string> => {
  const unlisted = found.isForAll ? [] : found.unlisted.filter((tbl) => found.schemas.length > 0 || found.absent.includes(tbl))
  return [...unlisted, ...found.narrowed]
}

/** Tables that it does not hand over whole, and that this role may not put there; each with what somebody who may runs. */
export const barredFrom = (name: string, found: Publication, tables: ReadonlyArray<string>): ReadonlyMap<string, string> => {
  const missing = found.isOurs ? toAdd(found).filter((tbl) => found.foreign.includes(tbl)) : missingFrom(found, tables)
  const alter = (what: string, tbl: string) => `ALTER PUBLICATION ${ident(name)} ${what} TABLE ${qualified(tbl)}`
  return new Map(missing.map((tbl) => [tbl, [...(found.narrowed.includes(tbl) ? [alter("DROP", tbl)] : []), alter("ADD", tbl)].join("; ")] as const))
}

/**
 * Changes only what differs: each table that is added or dropped is locked against VACUUM and DDL, and waits for them. `kept`: tables that
 * nobody reads now and that may stay, for who puts one back must own it.
 */
const mending = (name: string, found: Publication, kept: ReadonlyArray<string>): ReadonlyArray<string> => {
  const list = (tables: ReadonlyArray<string>) => tables.map(qualified).join(", ")
  const alter = (what: string) => `ALTER PUBLICATION ${ident(name)} ${what}`
  if (!found.exists) return [`CREATE PUBLICATION ${ident(name)} FOR TABLE ${list(found.absent)} WITH (${EVERY_CHANGE})`]
  const dropped = [...found.extra.filter((tbl) => !kept.includes(tbl)), ...found.narrowed]
  const added = toAdd(found)
  return [
    ...(found.schemas.length === 0 ? [] : [alter(`DROP TABLES IN SCHEMA ${found.schemas.map(ident).join(", ")}`)]),
    ...(dropped.length === 0 ? [] : [alter(`DROP TABLE ${list(dropped)}`)]),
    ...(added.length === 0 ? [] : [alter(`ADD TABLE ${list(added)}`)]),
    ...(found.publishesAll ? [] : [alter(`SET (${EVERY_CHANGE})`)]),
    ...(found.isViaRoot && found.absent.length > 0 ? [alter("SET (publish_via_partition_root = false)")] : []),
  ]
}

/** Makes the publication hold exactly these tables; one that only holds more is left as it is when the role may not change it. */
export const mendPublication = (
  pg: PostgresPool,
  name: string,
  tables: ReadonlyArray<string>,
  found: Publication,
  kept: ReadonlyArray<string> = [],
): Effect.Effect<void, PostgresError | PublicationRefused> => {
  const statements = mending(name, found, kept)
  if (statements.length === 0) return Effect.void
  return pg
    .tx((session) => Effect.forEach(statements, (sql) => asOffice(session, session.execute(sql)), { discard: true }))
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
