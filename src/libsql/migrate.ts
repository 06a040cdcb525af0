/** Applies `sql/feed` or `sql/school` in order, each file in one transaction. A file newer than this program is refused. */
import { readdir, readFile } from "node:fs/promises"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile } from "./client.ts"

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

export const migrateFile = (file: LibsqlFile, folder: "feed" | "school"): Effect.Effect<void, LibsqlError | MigrationRefused> =>
  Effect.gen(function* () {
    const files = yield* migrationFiles(folder)
    const newest = files.at(-1)?.number ?? 0
    const [row] = yield* file.read((tx) => tx.all<{ user_version: number }>("PRAGMA user_version"))
    const present = row?.user_version ?? 0
    if (present > newest) {
      return yield* new MigrationRefused({
        message: `${file.path} was written by a newer schoolbus (schema ${present}, this program knows ${newest}). Update this program; the file was not changed.`,
      })
    }
    for (const step of files.filter((f) => f.number > present)) {
      yield* file.write((tx) => Effect.andThen(tx.exec(step.sql), tx.exec(`PRAGMA user_version = ${step.number}`)))
    }
  })
