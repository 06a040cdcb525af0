/** Applies `sql/hub` in order, each file in one transaction, under one advisory lock. A database newer than this program is refused. */
import { createHash } from "node:crypto"
import { readdir, readFile } from "node:fs/promises"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { PostgresError, PostgresPool } from "./client.ts"

export class HubMigrationRefused extends Data.TaggedError("HubMigrationRefused")<{ readonly message: string }> {}

/** The database is not what it was, or not yet: nothing is to be made in it. */
export class DatabaseUnfinished extends Data.TaggedError("DatabaseUnfinished")<{ readonly message: string }> {}

/** "schoolbus" in ASCII, cut to fit: the lock that keeps two starters from migrating at once. */
const LOCK = "8316291890241241459"

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

/**
 * Fails while a dump is being restored: what the hub made beside it would stand in its way. `wasThere`: the hub knows the schema
 * of before. Foreign keys are what a restore makes last.
 */
export const refuseUnfinished = (pg: PostgresPool, wasThere: boolean): Effect.Effect<void, PostgresError | DatabaseUnfinished> =>
  Effect.gen(function* () {
    const [found] = yield* pg.query<{ name: string; present: boolean; whole: boolean }>(
      `SELECT pg_catalog.current_database()::text AS name, to_regclass('schoolbus.migrations') IS NOT NULL AS present,
              EXISTS (SELECT 1 FROM pg_catalog.pg_constraint WHERE conrelid = to_regclass('schoolbus.school_status') AND contype = 'f') AS whole`,
    )
    if (found === undefined || found.whole || (!found.present && !wasThere)) return
    const message = found.present
      ? `a dump is being restored into database ${found.name}, or its restore broke off: schema "schoolbus" lacks its foreign keys, which come last. The hub waits for them`
      : `database ${found.name} has no schema "schoolbus" any more: it was made anew, or is about to be restored from a dump. The hub waits for the dump; to begin with the database as it is, move feed.db in the hub's data directory away and start the hub again`
    return yield* new DatabaseUnfinished({ message })
  })

export const migrateHub = (pg: PostgresPool): Effect.Effect<void, PostgresError | HubMigrationRefused> =>
  Effect.gen(function* () {
    const files = yield* hubFiles
    yield* pg.tx((session) =>
      Effect.gen(function* () {
        yield* session.execute(`SELECT pg_advisory_xact_lock(${LOCK})`)
        const [known] = yield* session.query<{ present: boolean }>(`SELECT to_regclass('schoolbus.migrations') IS NOT NULL AS present`)
        if (known?.present !== true) {
          yield* session.execute(`CREATE SCHEMA IF NOT EXISTS schoolbus`)
          yield* session.execute(MIGRATIONS)
        }
        const applied = yield* session.query<{ number: number; sha256: string }>(`SELECT number, sha256 FROM schoolbus.migrations ORDER BY number`)
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
            yield* session.execute(file.sql)
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
      }),
    )
  })
