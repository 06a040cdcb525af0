/** The event triggers that note schema changes in stream order, and what they watch for. */
import * as Effect from "effect/Effect"
import type { PostgresError, PostgresPool } from "./client.ts"

const FUNCTION = "schoolbus.note_schema_change()"

/** What a superuser runs when the hub's role may not make event triggers. */
export const EVENT_TRIGGER_SQL = [
  `CREATE EVENT TRIGGER schoolbus_ddl ON ddl_command_end EXECUTE FUNCTION ${FUNCTION};`,
  `CREATE EVENT TRIGGER schoolbus_drop ON sql_drop EXECUTE FUNCTION ${FUNCTION};`,
]

/** Both are there and fire for ordinary sessions. */
export const hasEventTriggers = (pg: Pick<PostgresPool, "query">): Effect.Effect<boolean, PostgresError> =>
  Effect.map(
    pg.query<{ n: number }>(
      `SELECT count(DISTINCT e.evtevent)::int AS n FROM pg_catalog.pg_event_trigger e JOIN pg_catalog.pg_proc p ON p.oid = e.evtfoid
         JOIN pg_catalog.pg_namespace s ON s.oid = p.pronamespace
        WHERE s.nspname = 'schoolbus' AND p.proname = 'note_schema_change' AND e.evtenabled IN ('O', 'A') AND e.evtevent IN ('ddl_command_end', 'sql_drop')`,
    ),
    ([row]) => row?.n === 2,
  )

/** Whose log has the SQL already: a stream that is opened again does not repeat it. */
const told = new WeakSet<PostgresPool>()

/** Makes them where the role may; without them the catalog is looked at every few seconds. Answers whether they are there. */
export const ensureEventTriggers = (pg: PostgresPool): Effect.Effect<boolean, PostgresError> =>
  Effect.gen(function* () {
    if (yield* hasEventTriggers(pg)) return true
    const made = yield* pg
      .tx((session) =>
        Effect.forEach(
          EVENT_TRIGGER_SQL,
          (sql) => Effect.andThen(session.execute(`DROP EVENT TRIGGER IF EXISTS ${sql.split(" ")[3]}`), session.execute(sql)),
          { discard: true },
        ),
      )
      .pipe(
        Effect.as(true),
        Effect.catch((error) => (error.sqlstate === "42501" ? Effect.succeed(false) : Effect.fail(error))),
      )
    if (!made && !told.has(pg)) {
      told.add(pg)
      yield* Effect.logInfo(
        `this role may not make event triggers, so schema changes are found by looking every few seconds; a superuser can make them:\n  ${EVENT_TRIGGER_SQL.join("\n  ")}`,
      )
    }
    return made
  })

/** Tells the event triggers whose DDL matters: tables, what inherits from them, their unique indexes, the types of their columns with those of which they are made, their schemas. */
export const watchTables = (pg: PostgresPool, tables: ReadonlyArray<string>): Effect.Effect<void, PostgresError> =>
  Effect.asVoid(
    pg.execute(
      `WITH RECURSIVE name AS (SELECT unnest($1::text[]) AS name),
       rel AS (SELECT t.name, c.oid, c.relnamespace FROM name t JOIN pg_namespace n ON n.nspname = split_part(t.name, '.', 1)
                 JOIN pg_class c ON c.relnamespace = n.oid AND n.nspname || '.' || c.relname = t.name),
       typ AS (SELECT r.name, a.atttypid AS oid FROM rel r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
               UNION SELECT t.name, x.oid FROM typ t JOIN pg_type p ON p.oid = t.oid,
                 LATERAL (VALUES (p.typbasetype), (p.typelem) UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE p.typtype = 'c' AND a.attrelid = p.typrelid AND a.attnum > 0) x (oid)
                WHERE x.oid <> 0),
       wanted (oid, name) AS (
         SELECT 0::oid, name FROM name
         UNION SELECT oid, name FROM rel
         UNION SELECT relnamespace, name FROM rel
         UNION SELECT i.inhrelid, r.name FROM rel r JOIN pg_inherits i ON i.inhparent = r.oid
         UNION SELECT i.indexrelid, r.name FROM rel r JOIN pg_index i ON i.indrelid = r.oid AND i.indisunique
         UNION SELECT t.oid, t.name FROM typ t JOIN pg_type p ON p.oid = t.oid JOIN pg_namespace n ON n.oid = p.typnamespace WHERE n.nspname <> 'pg_catalog'
         UNION SELECT p.typrelid, t.name FROM typ t JOIN pg_type p ON p.oid = t.oid WHERE p.typtype = 'c'),
       gone AS (DELETE FROM schoolbus.watched w WHERE NOT EXISTS (SELECT 1 FROM wanted n WHERE n.oid = w.oid AND n.name = w.name))
       INSERT INTO schoolbus.watched (oid, name) SELECT oid, name FROM wanted ON CONFLICT DO NOTHING`,
      [tables],
    ),
  )
