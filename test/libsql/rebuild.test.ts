/** A large table takes a shape that SQLite cannot give it in place, while programs go on writing to it. */
import { spawn } from "node:child_process"
import * as Effect from "effect/Effect"
import { afterEach, expect, it } from "vitest"
import { prepareRebuilds } from "../../src/libsql/rebuild.ts"
import { readChanged } from "../../src/libsql/schema.ts"
import type { Manifest } from "../../src/model/table.ts"
import { column, manifestOf, openSchoolFile, type SchoolFile, table } from "../support/school-file.ts"
import { until } from "../support/until.ts"

const ROWS = 25_000
const columns = [column("id", "text", { notNull: true }), column("code"), column("name"), column("old"), column("school_id")]
const pupils = table("pupils", columns, { unique: [["code"]] })
/** Without `old`, and `name` is called otherwise. */
const after = manifestOf(
  [
    table(
      "pupils",
      columns.filter(({ name }) => name !== "old"),
      { unique: [["code"]] },
    ),
  ],
  2,
)

let s: SchoolFile
afterEach(() => s.close())

/** Two tables with the same rows: a synced one, and one of the program's own that says what it holds. */
const openLarge = async () => {
  s = await openSchoolFile([pupils])
  s.program("CREATE TABLE mirror (id TEXT PRIMARY KEY, code TEXT UNIQUE, name TEXT)")
  s.program(
    `WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < ${ROWS})
     INSERT INTO pupils SELECT 'p' || i, 'c' || i, 'name ' || i, 'old', 's1' FROM n`,
  )
  s.program("INSERT INTO mirror SELECT id, code, name FROM pupils")
}
const prepare = (manifest: Manifest) =>
  Effect.runPromise(
    Effect.flatMap(
      s.file.read((tx) => readChanged(tx, manifest)),
      (changed) => prepareRebuilds(s.file, changed),
    ),
  )
const both = (sql: string) => {
  for (const name of ["pupils", "mirror"]) s.program(sql.replaceAll("TABLE", name))
}
const rows = (name: string) => s.read(`SELECT id, code, name FROM ${name} ORDER BY id`)

it("holds what programs wrote while it was copied, also where keys and unique values changed hands", async () => {
  await openLarge()
  const seed = Number(process.env["SEED"] ?? Math.floor(Math.random() * 1e9))
  console.log(`seed ${seed}`)
  const writer = spawn(process.execPath, [new URL("./rebuild-writer.ts", import.meta.url).pathname, s.path, String(seed), String(ROWS)])
  let told = ""
  writer.stdout.on("data", (data: Buffer) => (told += String(data)))
  await until("the program to write", () => told !== "")
  await prepare(after)
  expect(s.read("SELECT done FROM schoolbus_rebuild")).toEqual([[1n]])
  await until("some more writes", () => told.length > 5)
  await s.install(after)
  const ended = new Promise((resolve) => writer.on("close", resolve))
  writer.stdin.end()
  await ended
  expect((JSON.parse(told) as { writes: number }).writes).toBeGreaterThan(5)
  expect(rows("pupils")).toEqual(rows("mirror"))
  expect(s.read("SELECT name FROM pragma_table_info('pupils')").flat()).toEqual(["id", "code", "name", "school_id"])
  expect(s.read("SELECT count(*) FROM sqlite_master WHERE name LIKE 'schoolbus_new_%'")).toEqual([[0n]])
  expect(s.read("SELECT count(*) FROM schoolbus_rebuild")).toEqual([[0n]])
  // Capture goes on.
  both("UPDATE TABLE SET name = 'last' WHERE id = 'p1'")
  expect(rows("pupils")).toEqual(rows("mirror"))
})

it("is copied whole when a program wrote unseen meanwhile, or another shape is wanted by then", async () => {
  await openLarge()
  await prepare(after)
  s.program("DROP TRIGGER schoolbus_pupils_au")
  both("UPDATE TABLE SET name = 'unseen' WHERE id = 'p7'")
  await s.install(after)
  expect(rows("pupils")).toEqual(rows("mirror"))
})
