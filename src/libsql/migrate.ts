/** Applies `sql/feed` or `sql/school` in order, each file in one transaction. A file newer than this program is refused. */
import { readdir, readFile } from "node:fs/promises"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile, Tx } from "./client.ts"

export class MigrationRefused extends Data.TaggedError("MigrationRefused")<{ readonly message: string }> {}

export interface MigrationFile {
  readonly number: number
  readonly name: string
  readonly sql: string
}

/** The numbered files of one folder under `sql/`, in order. */
export const migrationFiles = (folder: "hub" | "feed" | "school"): Effect.Effect<ReadonlyArray<MigrationFile>> =>
  Effect.promise(async () => {
    const root = fileURLToPath(new URL(`../../sql/${folder}/`, import.meta.url).href)
    const names = (await readdir(root)).filter((name) => /^\d{4}_.*\.sql$/.test(name)).sort()
    return Promise.all(names.map(async (name) => ({ number: Number(name.slice(0, 4)), name, sql: await readFile(join(root, name), "utf8") })))
  })

/** In a table of our own: programs of a school keep theirs in SQLite's `user_version`. */
const VERSIONS = "CREATE TABLE IF NOT EXISTS schoolbus_schema (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL)"

const readVersion = (tx: Tx): Effect.Effect<number, LibsqlError> =>
  Effect.gen(function* () {
    if ((yield* tx.all("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'schoolbus_schema'")).length === 0) return 0
    const [row] = yield* tx.all<{ version: number }>("SELECT version FROM schoolbus_schema")
    return row?.version ?? 0
  })

const writeVersion = (tx: Tx, version: number): Effect.Effect<unknown, LibsqlError> =>
  Effect.andThen(
    tx.exec(VERSIONS),
    tx.run("INSERT INTO schoolbus_schema (id, version) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET version = excluded.version", [version]),
  )

export const migrateFile = (file: LibsqlFile, folder: "feed" | "school"): Effect.Effect<void, LibsqlError | MigrationRefused> =>
  Effect.gen(function* () {
    const files = yield* migrationFiles(folder)
    const newest = files.at(-1)?.number ?? 0
    const present = yield* file.read(readVersion)
    if (present > newest) {
      return yield* new MigrationRefused({
        message: `${file.path} was written by a newer schoolbus (schema ${present}, this program knows ${newest}). Update this program; the file was not changed.`,
      })
    }
    for (const step of files.filter((f) => f.number > present)) {
      yield* file.write((tx) => Effect.andThen(tx.exec(step.sql), writeVersion(tx, step.number)))
    }
  })
