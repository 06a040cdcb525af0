/** A school's file without a hub: tables from a manifest, programs of several kinds that write to it, and what is frozen of that. */
import { execFileSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import Database from "libsql"
import { type LibsqlFile, openFile, type Tx } from "../../src/libsql/client.ts"
import { type FreezeOptions, freeze } from "../../src/libsql/freeze.ts"
import { migrateFile } from "../../src/libsql/migrate.ts"
import { type InstallOptions, installTables } from "../../src/libsql/schema.ts"
import type { Change } from "../../src/model/change.ts"
import type { Column, Manifest, Table } from "../../src/model/table.ts"
import type { Kind } from "../../src/model/value.ts"
import { bytesOf } from "../../src/libsql/store-batch.ts"

export const column = (name: string, kind: Kind = "text", more: Partial<Column> = {}): Column => ({
  name,
  kind,
  type: kind,
  notNull: false,
  generated: false,
  ...more,
})

/** A table with key `id` unless told otherwise. */
export const table = (local: string, columns: ReadonlyArray<Column>, more: Partial<Table> = {}): Table => ({
  name: `public.${local}`,
  local,
  columns,
  key: ["id"],
  unique: [],
  references: [],
  audience: { column: "school_id" },
  direction: "both",
  priority: "medium",
  strategy: "school_wins",
  columnStrategies: {},
  system: false,
  ...more,
})

export const manifestOf = (tables: ReadonlyArray<Table>, version = 1): Manifest => ({ version, school: { id: "s1", name: "One" }, tables })

export interface SchoolFile {
  readonly path: string
  readonly file: LibsqlFile
  readonly manifest: Manifest
  readonly write: <A, E>(body: (tx: Tx) => Effect.Effect<A, E>) => Promise<A>
  readonly install: (manifest: Manifest, options?: Partial<InstallOptions>) => Promise<void>
  /** SQL of a school program: an own connection of this process, libSQL's defaults. */
  readonly program: (sql: string, args?: ReadonlyArray<unknown>) => void
  readonly read: (sql: string) => ReadonlyArray<ReadonlyArray<unknown>>
  /** Freezes all that is open; the changes of the new batches. */
  readonly freeze: (options?: FreezeOptions) => Promise<ReadonlyArray<Change>>
  readonly batches: (after?: number) => ReadonlyArray<{ readonly number: number; readonly lines: ReadonlyArray<unknown> }>
  readonly close: () => Promise<void>
}

export const FROZEN_AT = 1_700_000_000_000

/** `before`: SQL that programs ran before the node saw the file first. */
export const openSchoolFile = async (
  tables: ReadonlyArray<Table>,
  more: { readonly before?: string; readonly install?: boolean } = {},
): Promise<SchoolFile> => {
  const folder = mkdtempSync(join(tmpdir(), "schoolbus-file-"))
  const path = join(folder, "school.db")
  if (more.before !== undefined) execFileSync("sqlite3", [path], { input: more.before })
  const scope = Scope.makeUnsafe()
  const file = await Effect.runPromise(Scope.provide(openFile(path), scope))
  await Effect.runPromise(migrateFile(file, "school"))
  const own = new Database(path, { timeout: 5000 })
  own.exec("INSERT INTO schoolbus_state (id, incarnation) VALUES (1, '7d0c2e1c-0a5b-4f5e-9a55-0c1f3b1c2d3e')")
  let manifest = manifestOf(tables)
  const write: SchoolFile["write"] = (body) => Effect.runPromise(file.write(body))
  const install: SchoolFile["install"] = async (next, options = {}) => {
    await write((tx) => installTables(tx, next, { streams: [], adopt: false, ...options }))
    manifest = next
  }
  if (more.install !== false) await install(manifest)
  const read: SchoolFile["read"] = (sql) => own.prepare(sql).safeIntegers(true).raw(true).all() as ReadonlyArray<ReadonlyArray<unknown>>
  const batches: SchoolFile["batches"] = (after = 0) =>
    read(`SELECT number, bytes FROM schoolbus_batch WHERE number > ${after} ORDER BY number`).map(([number, bytes]) => ({
      number: Number(number),
      lines: new TextDecoder()
        .decode(bytesOf(bytes as Uint8Array))
        .trimEnd()
        .split("\n")
        .map((line) => JSON.parse(line) as unknown),
    }))
  const lastBatch = () => Number(read("SELECT last_batch FROM schoolbus_state")[0]?.[0])
  return {
    path,
    file,
    get manifest() {
      return manifest
    },
    write,
    install,
    program: (sql, args) => {
      if (args === undefined) own.exec(sql)
      else own.prepare(sql).run([...args])
    },
    read,
    freeze: async (options) => {
      const before = lastBatch()
      while ((await write((tx) => freeze(tx, manifest, FROZEN_AT, options))).isMore);
      return batches(before).flatMap(({ lines }) => lines.slice(1) as ReadonlyArray<Change>)
    },
    batches,
    close: async () => {
      own.close()
      await Effect.runPromise(Scope.close(scope, Exit.void))
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

/** Programs of other makers, each a process of its own. */
export const foreign = {
  sqlite3: (path: string, sql: string): void => void execFileSync("sqlite3", ["-bail", "-cmd", ".timeout 5000", path], { input: sql }),
  python: (path: string, script: string): void =>
    void execFileSync("python3", ["-c", `import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=5)\n${script}\nc.commit()`, path]),
}
