/** What programs of any maker may do to a synced table beyond plain rows: attached files, large rows, many at once, and what they can ask. */
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as Effect from "effect/Effect"
import { afterEach, expect, it } from "vitest"
import { captureTriggers } from "../../src/libsql/capture.ts"
import { migrateFile } from "../../src/libsql/migrate.ts"
import { column, foreign, openSchoolFile, type SchoolFile, table } from "../support/school-file.ts"

const pupils = table("pupils", [column("id", "text", { notNull: true }), column("code"), column("photo", "bytea"), column("big", "bigint")], {
  unique: [["code"]],
})
const opened: Array<SchoolFile> = []
const open = async (...args: Parameters<typeof openSchoolFile>): Promise<SchoolFile> => {
  const file = await openSchoolFile(...args)
  opened.push(file)
  return file
}
afterEach(async () => {
  for (const file of opened.splice(0)) await file.close()
})
const brief = async (file: SchoolFile) => (await file.freeze()).map(({ op, key }) => `${op} ${key.join()}`)

it("writes through an attached file are captured like any other, together with those of the main one", async () => {
  const file = await open([pupils])
  foreign.sqlite3(
    ":memory:",
    `ATTACH '${file.path}' AS school; CREATE TABLE source (id TEXT, code TEXT); INSERT INTO source VALUES ('1', 'a'), ('2', 'b');
     BEGIN; INSERT INTO school.pupils (id, code) SELECT id, code FROM source; UPDATE school.pupils SET code = 'c' WHERE id = '1';
     DELETE FROM source; COMMIT; REPLACE INTO school.pupils (id, code) VALUES ('3', 'b');`,
  )
  expect(await brief(file)).toEqual(["insert 1", "insert 2", "update 1", "delete 2", "insert 3"])
})

it("a value of 10 MB travels whole, and an edit beside it does not send it as an edit", async () => {
  const file = await open([pupils])
  file.program("INSERT INTO pupils (id, code, photo) VALUES ('1', hex(zeroblob(500000)), randomblob(10000000))")
  file.program("UPDATE pupils SET big = 7")
  const [inserted, updated] = await file.freeze()
  expect(String(inserted?.mine["photo"])).toHaveLength(20_000_000)
  expect(String(inserted?.mine["code"])).toHaveLength(1_000_000)
  expect(updated?.mine).toEqual({ big: "7" })
  expect(file.read("SELECT hex(photo) FROM pupils")[0]?.[0]).toBe(String(inserted?.mine["photo"]).toUpperCase())
})

it("a table of 1,000 columns is captured in every kind of write", async () => {
  const names = Array.from({ length: 999 }, (_, i) => `c${i}`)
  const file = await open([table("wide", [column("id"), ...names.map((name) => column(name))])])
  file.program(`INSERT INTO wide (id, ${names.join(", ")}) VALUES ('1', ${names.map((name) => `'${name}'`).join(", ")})`)
  file.program("UPDATE wide SET c998 = 'last', c0 = 'first'")
  file.program("REPLACE INTO wide (id, c5) VALUES ('1', 'five')")
  file.program("DELETE FROM wide")
  const changes = await file.freeze()
  expect(changes.map(({ op }) => op)).toEqual(["insert", "update", "update", "delete"])
  expect(changes[1]?.mine).toEqual({ c0: "first", c998: "last" })
  expect(Object.keys(changes[2]?.mine ?? {})).toHaveLength(999)
  expect(changes[3]?.base["c5"]).toBe("five")
})

it.runIf(typeof Bun !== "undefined")("the sqlite3 shell, python, bun:sqlite and @libsql/client write at the same time and lose nothing", async () => {
  const file = await open([pupils])
  const scripts: ReadonlyArray<readonly [string, ReadonlyArray<string>]> = [
    [
      "python3",
      [
        "-c",
        "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],timeout=20,isolation_level=None)\nfor i in range(60):\n  c.execute('INSERT INTO pupils (id) VALUES (?)',('py%d'%i,)); c.execute('UPDATE pupils SET big=? WHERE id=?',(i,'py%d'%i))",
        file.path,
      ],
    ],
    [
      process.execPath,
      [
        "-e",
        `import { Database } from "bun:sqlite"; const d = new Database(process.argv[1]); d.run("PRAGMA busy_timeout = 20000"); for (let i = 0; i < 60; i++) { d.run("INSERT INTO pupils (id) VALUES (?)", ["bun" + i]); d.run("UPDATE pupils SET big = ? WHERE id = ?", [i, "bun" + i]) }`,
        file.path,
      ],
    ],
    [
      process.execPath,
      [
        "-e",
        `import { createClient } from "@libsql/client"; const c = createClient({ url: "file:" + process.argv[1], timeout: 20000 }); for (let i = 0; i < 60; i++) for (const [sql, ...args] of [["INSERT INTO pupils (id) VALUES (?)", "lib" + i], ["UPDATE pupils SET big = ? WHERE id = ?", BigInt(i), "lib" + i]]) for (;;) try { await c.execute({ sql, args }); break } catch (e) { if (!String(e).includes("BUSY")) throw e }`,
        file.path,
      ],
    ],
  ]
  const writers = scripts.map(([command, args]) => spawn(command, [...args], { stdio: ["ignore", "inherit", "inherit"] }))
  const shell = spawn("sqlite3", ["-cmd", ".timeout 20000", file.path], { stdio: ["pipe", "inherit", "inherit"] })
  shell.stdin.end(
    Array.from({ length: 60 }, (_, i) => `INSERT INTO pupils (id) VALUES ('sh${i}'); UPDATE pupils SET big = ${i} WHERE id = 'sh${i}';`).join("\n"),
  )
  const changes: Array<{ readonly op: string; readonly key: ReadonlyArray<unknown>; readonly mine: Readonly<Record<string, unknown>> }> = []
  let running = writers.length + 1
  for (const writer of [...writers, shell]) void once(writer, "exit").then(() => running--)
  while (running > 0) changes.push(...(await file.freeze({ maxChanges: 25 })))
  changes.push(...(await file.freeze()))
  expect([...writers, shell].map((writer) => writer.exitCode)).toEqual([0, 0, 0, 0])
  expect(file.read("SELECT substr(id, 1, 2) AS who, count(*) FROM pupils GROUP BY who ORDER BY who")).toEqual([
    ["bu", 60n],
    ["li", 60n],
    ["py", 60n],
    ["sh", 60n],
  ])
  expect(changes.filter(({ op }) => op === "insert")).toHaveLength(240)
  const last = new Map(changes.map(({ key, mine }) => [key[0], mine["big"]]))
  expect(last).toEqual(new Map(file.read("SELECT id, CAST(big AS TEXT) FROM pupils").map(([id, big]) => [id, big])))
})

it("the state of a row can be asked for: pending, sending, held with its record, behind; nothing when it is as head office has it", async () => {
  const file = await open([pupils])
  file.program("INSERT INTO pupils (id) VALUES ('sent')")
  await file.freeze()
  file.program(
    "INSERT INTO pupils (id) VALUES ('open'); UPDATE pupils SET big = 1 WHERE id = 'sent'; REPLACE INTO pupils (id, code) VALUES ('open', 'x')",
  )
  file.program(
    "INSERT INTO schoolbus_hold (tbl, key, col, record, at) SELECT id, '''held''', '', 'r1', 5 FROM schoolbus_tables; INSERT INTO schoolbus_behind (tbl, key, row, error, at) SELECT id, '''late''', '{}', 'no parent', 6 FROM schoolbus_tables",
  )
  const states = file.read(`SELECT "table", key, state, conflict_id FROM schoolbus_rows ORDER BY key, state`)
  expect(states).toEqual([
    ["pupils", "'held'", "held", "r1"],
    ["pupils", "'late'", "behind", null],
    ["pupils", "'open'", "pending", null],
    ["pupils", "'sent'", "pending", null],
  ])
  await file.freeze()
  expect(file.read("SELECT DISTINCT state FROM schoolbus_rows WHERE conflict_id IS NULL ORDER BY state")).toEqual([["behind"], ["sending"]])
  foreign.python(file.path, "assert c.execute(\"SELECT since FROM schoolbus_rows WHERE key = '''open'''\").fetchone()[0] > 0")
})

it("a note of what REPLACE may displace is found through the index it is about, not by reading the table", async () => {
  const file = await open([pupils], {
    before:
      "CREATE TABLE pupils (id TEXT PRIMARY KEY COLLATE NOCASE, code TEXT UNIQUE, photo BLOB, big BIGINT); CREATE UNIQUE INDEX i ON pupils (lower(code));",
  })
  const trigger = String(file.read("SELECT sql FROM sqlite_master WHERE name = 'schoolbus_pupils_bi'")[0]?.[0])
  const notes = trigger.slice(trigger.indexOf("BEGIN ") + 6, trigger.lastIndexOf("; END")).split("; ")
  expect(notes).toHaveLength(3)
  for (const note of notes) {
    const plan = file.read(`EXPLAIN QUERY PLAN ${note.replaceAll(/NEW\."\w+"/g, "'x'")}`).map((row) => String(row[3]))
    expect(
      plan.some((line) => /SEARCH pupils USING/.test(line)),
      plan.join(),
    ).toBe(true)
  }
  expect(captureTriggers(pupils, 1)).toHaveLength(5)
})

it.each([0, 1, 42])("a program that keeps its own number in user_version, now %i, keeps no node from starting", async (number) => {
  const file = await open([pupils])
  file.program(`PRAGMA user_version = ${number}`)
  file.program("INSERT INTO pupils (id) VALUES ('1')")
  await Effect.runPromise(migrateFile(file.file, "school"))
  expect(file.read("PRAGMA user_version")).toEqual([[BigInt(number)]])
  expect(await brief(file)).toEqual(["insert 1"])
})

it("a file of a newer program is refused and left as it is", async () => {
  const file = await open([pupils])
  file.program("UPDATE schoolbus_schema SET version = 999")
  await expect(Effect.runPromise(migrateFile(file.file, "school"))).rejects.toThrow(/newer schoolbus \(schema 999/)
})
