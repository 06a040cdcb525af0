/** Applies `sql/hub` in order, each file in one transaction, under one advisory lock. A database newer than this program is refused. */
import { createHash } from "node:crypto"
import { readdir, readFile } from "node:fs/promises"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { inOneGo, type PostgresError, type PostgresPool, type Session } from "./client.ts"
import { looking } from "./health.ts"
import { HUB_PATH, isUnderOtherPath, TO_BOTH, TO_HUB } from "./settings.ts"

export class HubMigrationRefused extends Data.TaggedError("HubMigrationRefused")<{ readonly message: string }> {}

/** The database is not what it was, or not yet: nothing is to be made in it. */
export class DatabaseUnfinished extends Data.TaggedError("DatabaseUnfinished")<{ readonly message: string }> {}

/** "schoolbus" in ASCII, cut to fit: the lock that keeps two starters from migrating at once. */
const LOCK = "8316291890241241459"

/** Who holds one of our tables is told of, not waited for in silence. */
const LOCK_TIMEOUT = "5s"

const hubFiles = Effect.promise(async () => {
  const root = fileURLToPath(new URL("../../sql/hub/", import.meta.url).href)
  const names = (await readdir(root)).filter((name) => /^\d{4}_.*\.sql$/.test(name)).sort()
  return Promise.all(
    names.map(async (name) => {
      const sql = await readFile(join(root, name), "utf8")
      return { number: Number(name.slice(0, 4)), name, sql, sha256: createHash("sha256").update(sql).digest("hex") }
    }),
  )
})

const MIGRATIONS = `CREATE TABLE schoolbus.migrations (number integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL, at timestamptz NOT NULL DEFAULT now())`

/**
 * What a DBA runs when the hub's role may not do it: the same files, noted as applied, and the rights that the role needs.
 * `isThere`: the schema was set up by another role, only the rights are missing.
 */
export const hubScript = (role: string, isThere: boolean): Effect.Effect<string> =>
  Effect.map(hubFiles, (files) => {
    const to = `"${role.replaceAll('"', '""')}"`
    const setUp = [
      "CREATE SCHEMA schoolbus;",
      `${MIGRATIONS};`,
      ...files.flatMap((file) => [
        `-- ${file.name}`,
        file.sql,
        `INSERT INTO schoolbus.migrations (number, name, sha256) VALUES (${file.number}, '${file.name}', '${file.sha256}');`,
      ]),
    ]
    return [
      "BEGIN;",
      `SET LOCAL search_path = ${HUB_PATH};`,
      ...(isThere ? [] : setUp),
      `GRANT USAGE ON SCHEMA schoolbus TO ${to};`,
      `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA schoolbus TO ${to};`,
      `GRANT USAGE ON ALL SEQUENCES IN SCHEMA schoolbus TO ${to};`,
      `-- For the slot; and the role needs SELECT on every table that is listed, and INSERT, UPDATE, DELETE where schools write.`,
      `ALTER ROLE ${to} REPLICATION;`,
      "COMMIT;",
      "",
    ].join("\n")
  })

/** What the files make; what holds no rows with its statement, by which it can be made again. */
const madeBy = (files: ReadonlyArray<{ readonly sql: string }>) => {
  const text = files.map(({ sql }) => sql).join("\n")
  return {
    tables: [...text.matchAll(/^CREATE TABLE schoolbus\.(\w+)/gm)].map(([, name = ""]) => name),
    code: [...text.matchAll(/^CREATE (?:VIEW schoolbus\.(\w+)[\s\S]*?;|FUNCTION schoolbus\.(\w+)[\s\S]*?\$\$;)$/gm)].map(
      ([sql, view, name = ""]) => ({
        name: view ?? name,
        sql,
      }),
    ),
  }
}

/** Our own tables that are not there, though the schema is: without the schema, none. */
export const missingTables = (session: Session): Effect.Effect<ReadonlyArray<string>, PostgresError> =>
  Effect.gen(function* () {
    const applied = yield* appliedTo(session)
    const { tables } = madeBy((yield* hubFiles).filter(({ number }) => applied?.some((row) => row.number === number)))
    const rows = yield* session.query<{ name: string }>(
      `SELECT name FROM unnest($1::text[]) AS t (name) WHERE to_regclass('schoolbus.' || name) IS NULL`,
      [tables],
    )
    return rows.map(({ name }) => name)
  })

/** null: the schema was never made, or is gone. */
const appliedTo = (session: Session) =>
  Effect.gen(function* () {
    const [known] = yield* session.query<{ present: boolean }>(`SELECT to_regclass('schoolbus.migrations') IS NOT NULL AS present`)
    if (known?.present !== true) return null
    return yield* session.query<{ number: number; sha256: string }>(`SELECT number, sha256 FROM schoolbus.migrations ORDER BY number`)
  })

type Run = (session: Session, sql: string) => Effect.Effect<unknown, PostgresError>

/** For event triggers of head office, which a DDL sets off. */
const underBoth: Run = (session, sql) => inOneGo([session.execute(TO_BOTH), session.execute(sql), session.execute(TO_HUB)])

/** Views and functions that somebody dropped are made again. */
const mendCode = (session: Session, files: ReadonlyArray<{ readonly sql: string }>, ddl: Run) =>
  Effect.gen(function* () {
    const { code } = madeBy(files)
    const gone = yield* session.query<{ name: string }>(
      `SELECT name FROM unnest($1::text[]) AS t (name) WHERE to_regclass('schoolbus.' || name) IS NULL AND to_regproc('schoolbus.' || name) IS NULL`,
      [code.map(({ name }) => name)],
    )
    for (const { name, sql } of code) {
      if (!gone.some((one) => one.name === name)) continue
      yield* ddl(session, sql)
      yield* Effect.logWarning(`schoolbus.${name} was gone from Postgres and is made again; rights that others had on it are to be given again`)
    }
  })

/**
 * Fails while a dump is being restored: what the hub made beside it would stand in its way. `wasThere`: the hub knows the schema
 * of before. Foreign keys are what a restore makes last. Fails too when somebody dropped tables of the schema, until they are back.
 */
export const refuseUnfinished = (pg: PostgresPool, wasThere: boolean): Effect.Effect<void, PostgresError | DatabaseUnfinished> =>
  Effect.gen(function* () {
    const [found] = yield* pg.query<{ name: string; present: boolean; whole: boolean }>(
      `SELECT pg_catalog.current_database()::text AS name, to_regclass('schoolbus.migrations') IS NOT NULL AS present,
              EXISTS (SELECT 1 FROM pg_catalog.pg_constraint WHERE conrelid = to_regclass('schoolbus.school_status') AND contype = 'f') AS whole`,
    )
    if (found === undefined || (!found.present && !wasThere)) return
    const missing = yield* looking(pg, missingTables)
    if (found.whole && missing.length === 0) return
    const anew =
      "move feed.db in the hub's data directory away, start the hub, and enrol the schools again (schoolbus schools add; each node starts once with --new-life)"
    const message =
      missing.length > 0
        ? `schema "schoolbus" of database ${found.name} lacks ${missing.join(", ")}: dropped, or not yet restored from a dump. The hub waits until they are back: pg_restore --dbname=${found.name} --schema=schoolbus ${missing.map((name) => `--table=${name}`).join(" ")} DUMP; to begin with the database as it is: DROP SCHEMA schoolbus CASCADE, ${anew}`
        : found.present
          ? `a dump is being restored into database ${found.name}, or its restore broke off: schema "schoolbus" lacks its foreign keys, which come last. The hub waits for them`
          : `database ${found.name} has no schema "schoolbus" any more: it was made anew, or is about to be restored from a dump. The hub waits for the dump (pg_restore --schema=schoolbus, if only that schema was dropped); to begin with the database as it is, ${anew}`
    return yield* new DatabaseUnfinished({ message })
  })

export const migrateHub = (pg: PostgresPool): Effect.Effect<void, PostgresError | HubMigrationRefused> =>
  Effect.gen(function* () {
    const files = yield* hubFiles
    const migrate = (ddl: Run) =>
      pg.tx((session) =>
        Effect.gen(function* () {
          yield* session.execute(`SET LOCAL lock_timeout = '${LOCK_TIMEOUT}'`)
          yield* session.execute(`SELECT pg_advisory_xact_lock(${LOCK})`)
          const known = yield* appliedTo(session)
          if (known === null) {
            const [found] = yield* session.query<{ is: boolean }>("SELECT to_regclass('schoolbus.schools') IS NOT NULL AS is")
            if (found?.is === true)
              return yield* new HubMigrationRefused({
                message: `schema "schoolbus" has tables, but lacks schoolbus.migrations, which tells what was applied to it: somebody ran sql/hub by hand, or dropped that table. Put it back from a dump (pg_restore --schema=schoolbus --table=migrations DUMP); or, if no school is enrolled yet: DROP SCHEMA schoolbus CASCADE, and start the hub. Nothing was changed.`,
              })
            yield* ddl(session, `CREATE SCHEMA IF NOT EXISTS schoolbus`)
            yield* ddl(session, MIGRATIONS)
          }
          const applied = known ?? []
          const newest = files.at(-1)?.number ?? 0
          const ahead = applied.find((row) => row.number > newest)
          if (ahead !== undefined) {
            return yield* new HubMigrationRefused({
              message: `schema "schoolbus" is at version ${ahead.number}, this program knows ${newest}. Update this program; nothing was changed.`,
            })
          }
          for (const file of files) {
            const before = applied.find((row) => row.number === file.number)
            if (before === undefined) {
              yield* ddl(session, file.sql)
              yield* session.execute(`INSERT INTO schoolbus.migrations (number, name, sha256) VALUES ($1, $2, $3)`, [
                file.number,
                file.name,
                file.sha256,
              ])
            } else if (before.sha256 !== file.sha256) {
              return yield* new HubMigrationRefused({
                message: `sql/hub/${file.name} differs from what was applied to this database (${before.sha256.slice(0, 12)}). Install the program from its release again; nothing was changed.`,
              })
            }
          }
          yield* mendCode(session, files, ddl)
        }),
      )
    yield* migrate((session, sql) => session.execute(sql)).pipe(
      Effect.catchIf(
        (error) => error._tag === "PostgresError" && isUnderOtherPath(error),
        () => migrate(underBoth),
      ),
    )
  })
