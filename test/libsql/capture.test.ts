import { spawn } from "node:child_process"
import { once } from "node:events"
import { afterEach, describe, expect, it } from "vitest"
import { captureTriggers } from "../../src/libsql/capture.ts"
import { localKey, localKeyOf, parseLocalKey } from "../../src/model/key.ts"
import type { Cell } from "../../src/model/value.ts"
import { column, foreign, manifestOf, openSchoolFile, type SchoolFile, table } from "../support/school-file.ts"

const pupils = table(
  "pupils",
  [column("id", "text", { notNull: true }), column("code"), column("size", "float"), column("photo", "bytea"), column("big", "bigint")],
  { unique: [["code"]] },
)

const opened: Array<SchoolFile> = []
const open = async (...args: Parameters<typeof openSchoolFile>): Promise<SchoolFile> => {
  const file = await openSchoolFile(...args)
  opened.push(file)
  return file
}
afterEach(async () => {
  for (const file of opened.splice(0)) await file.close()
})
const captured = (file: SchoolFile, columns = "op, key, new_key") => file.read(`SELECT ${columns} FROM changes ORDER BY id`)

describe("the triggers", () => {
  it("are text that depends on the table alone", () => {
    const two = table("t", [column("a", "int"), column("b")], { key: ["a"], unique: [["b"]] })
    expect(captureTriggers(two, 7)).toEqual(captureTriggers({ ...two }, 7))
    expect(captureTriggers(two, 7).map(({ name, sql }) => [name, sql.slice(0, sql.indexOf(" WHEN"))])).toEqual([
      ["schoolbus_t_bi", 'CREATE TRIGGER "schoolbus_t_bi" BEFORE INSERT ON "t"'],
      ["schoolbus_t_bu", 'CREATE TRIGGER "schoolbus_t_bu" BEFORE UPDATE OF "a", "b" ON "t"'],
      ["schoolbus_t_ai", 'CREATE TRIGGER "schoolbus_t_ai" AFTER INSERT ON "t"'],
      ["schoolbus_t_au", 'CREATE TRIGGER "schoolbus_t_au" AFTER UPDATE ON "t"'],
      ["schoolbus_t_ad", 'CREATE TRIGGER "schoolbus_t_ad" AFTER DELETE ON "t"'],
    ])
    for (const { sql } of captureTriggers(two, 7)) expect(sql).not.toMatch(/json|->|unixepoch|unhex/)
  })

  it("are silent while deliver holds its flag", async () => {
    const file = await open([pupils])
    file.program("BEGIN; UPDATE schoolbus_deliver SET active = 1; INSERT INTO pupils (id) VALUES ('1'); UPDATE pupils SET code = 'x'")
    file.program("REPLACE INTO pupils (id, code) VALUES ('2', 'x'); DELETE FROM pupils; UPDATE schoolbus_deliver SET active = 0; COMMIT")
    expect(captured(file)).toEqual([])
  })

  it("leave no trace of what is rolled back", async () => {
    const file = await open([pupils])
    file.program("BEGIN; INSERT INTO pupils (id) VALUES ('1'); SAVEPOINT s; INSERT INTO pupils (id) VALUES ('2'); ROLLBACK TO s; COMMIT")
    expect(captured(file, "key")).toEqual([["'1'"]])
  })

  it("do not change what a program sees of its own write", async () => {
    const file = await open([pupils])
    foreign.python(
      file.path,
      `
c.execute("INSERT INTO pupils (id) VALUES ('0')")
last = c.execute("SELECT last_insert_rowid()").fetchone()[0]
assert last == 1, last
cur = c.execute("UPDATE pupils SET code = id")
assert cur.rowcount == 1, cur.rowcount
cur = c.execute("INSERT INTO pupils (id) VALUES ('a'), ('b')")
assert cur.rowcount == 2, cur.rowcount
assert c.execute("DELETE FROM pupils RETURNING id").fetchall() == [('0',), ('a',), ('b',)]
`,
    )
    expect(
      captured(file, "op")
        .map(([op]) => op)
        .join(""),
    ).toBe("IUIIDDD")
  })

  it("store old values exactly, by type and byte", async () => {
    const file = await open([table("v", [column("id"), column("x", "bytea")])])
    const values = [
      "NULL",
      "5",
      "9223372036854775807",
      "0.1",
      "1e308",
      "0.30000000000000004",
      "'text'",
      "'1'",
      "x''",
      "x'00ff'",
      "CAST(x'610062' AS TEXT)",
      "CAST(x'ff' AS TEXT)",
    ]
    file.program(`INSERT INTO v VALUES ${values.map((value, i) => `(${i}, ${value})`).join(", ")}; DELETE FROM changes; DELETE FROM v`)
    const expected = values.map((value) => file.read(`SELECT typeof(${value}), hex(quote(${value})), hex(${value})`)[0])
    expect(captured(file, "typeof(v1), hex(quote(v1)), hex(v1)")).toEqual(expected)
  })

  it("stamp UTC milliseconds, whatever the machine's zone", async () => {
    const file = await open([pupils])
    const before = Date.now()
    const python = spawn(
      "python3",
      ["-c", "import sqlite3,sys; c = sqlite3.connect(sys.argv[1]); c.execute(\"INSERT INTO pupils (id) VALUES ('1')\"); c.commit()", file.path],
      {
        env: { ...process.env, TZ: "Asia/Kathmandu" },
      },
    )
    await once(python, "exit")
    const at = Number(captured(file, "at")[0]?.[0])
    expect(at).toBeGreaterThanOrEqual(before - 2)
    expect(at).toBeLessThanOrEqual(Date.now() + 2)
  })
})

describe("keys", () => {
  const cases: ReadonlyArray<readonly [string, string, Cell]> = [
    ["plain text", "'abc'", "abc"],
    ["an empty text", "''", ""],
    ["quotes and commas", "'it''s, ''x'''", "it's, 'x'"],
    ["text beyond ASCII", "'Zoë 😀'", "Zoë 😀"],
    ["text with a line break", "'a' || char(10)", "a\n"],
    ["text with a NUL", "CAST(x'610062' AS TEXT)", "a\0b"],
    ["a blob", "x'00ff'", new Uint8Array([0, 255])],
    ["an empty blob", "x''", new Uint8Array()],
    ["a blob that reads as text", "x'616263'", new TextEncoder().encode("abc")],
    ["a large integer", "-9223372036854775808", -9223372036854775808n],
    ["an integer", "42", 42n],
  ]
  it.each(cases)("of %s are the same in SQL and here", async (_, sql, cell) => {
    const file = await open([table("k", [column("id", "bytea"), column("n", "bigint")], { key: ["id", "n"] })])
    file.program(`INSERT INTO k VALUES (${sql}, 7)`)
    expect(captured(file, "key")).toEqual([[localKeyOf([cell, 7n])]])
    const cells = parseLocalKey(localKeyOf([cell, 7n]))
    expect(cells?.map((c) => (c instanceof Uint8Array ? [...c] : c))).toEqual([cell instanceof Uint8Array ? [...cell] : cell, 7n])
  })

  it("of damaged text are printable and told apart", async () => {
    const file = await open([pupils])
    file.program("INSERT INTO pupils (id) VALUES (CAST(x'61ff' AS TEXT)), (CAST(x'61fe' AS TEXT)), (CAST(x'6100' AS TEXT)), ('a')")
    const keys = captured(file, "key").map(([key]) => String(key))
    expect(new Set(keys).size).toBe(4)
    for (const key of keys) expect(key).toMatch(/^[ -~]+$/)
    expect(parseLocalKey(keys[0] ?? "")).toBeNull()
  })

  it("that are no list of literals are not read as one", () => {
    for (const text of ["'a", "a", "'a' OR 1", "X'0'", "'a';", "1.5", "'a''", "'a',"]) expect(parseLocalKey(text)).toBeNull()
    expect(parseLocalKey("")).toEqual([])
  })

  it("follow from a wire key", () => {
    const t = table("t", [column("v"), column("a", "int"), column("b", "text"), column("c", "bytea")], { key: ["b", "a", "c"] })
    expect(localKey(t, ["x", 5, "00ff"])).toBe("'x',5,X'00FF'")
  })

  it("of an update are told before and after", async () => {
    const file = await open([pupils])
    file.program(
      "INSERT INTO pupils (id) VALUES ('a'); UPDATE pupils SET id = 'é'; UPDATE pupils SET id = 'é', code = 'x'; UPDATE pupils SET id = 'É'",
    )
    expect(captured(file).slice(1)).toEqual([
      ["U", "'a'", "CAST(X'C3A9' AS TEXT)"],
      ["U", "CAST(X'C3A9' AS TEXT)", null],
      ["U", "CAST(X'C3A9' AS TEXT)", "CAST(X'C389' AS TEXT)"],
    ])
  })

  it("that differ only by a column's collation are a change of the key", async () => {
    const file = await open([pupils], {
      before: "CREATE TABLE pupils (id TEXT PRIMARY KEY COLLATE NOCASE, code TEXT UNIQUE, size REAL, photo BLOB, big BIGINT) WITHOUT ROWID;",
    })
    file.program("INSERT INTO pupils (id) VALUES ('a'); UPDATE pupils SET id = 'A'; REPLACE INTO pupils (id, code) VALUES ('a', 'x')")
    const changes = await file.freeze()
    expect(changes.map(({ op, key, newKey, mine }) => [op, key, newKey, mine["code"]])).toEqual([
      ["insert", ["a"], undefined, null],
      ["update", ["a"], ["A"], undefined],
      ["delete", ["A"], undefined, undefined],
      ["insert", ["a"], undefined, "x"],
    ])
  })
})

describe("programs", () => {
  const families = table("families", [column("id")], { audience: "all" })
  const members = table("members", [column("id"), column("family_id")], {
    references: [{ columns: ["family_id"], table: "public.families", to: ["id"] }],
  })

  it("of every maker are captured alike", async () => {
    const file = await open([pupils])
    foreign.sqlite3(file.path, "INSERT INTO pupils (id, code) VALUES ('sqlite3', 'a'); UPDATE pupils SET size = 0.1 WHERE id = 'sqlite3';")
    foreign.python(
      file.path,
      "c.execute('INSERT INTO pupils (id, photo, big) VALUES (?, ?, ?)', ('python', b'\\x00\\xff', 2**63 - 1))\nc.execute('REPLACE INTO pupils (id, code) VALUES (?, ?)', ('python', 'a'))",
    )
    const { createClient } = await import("@libsql/client")
    const client = createClient({ url: `file:${file.path}` })
    await client.execute("INSERT INTO pupils (id, size) VALUES ('libsql', 1.5)")
    await client.execute({ sql: "UPDATE pupils SET big = ? WHERE id = 'libsql'", args: [5n] })
    client.close()
    const changes = await file.freeze()
    expect(changes.map(({ op, key, mine }) => [op, key[0], mine])).toEqual([
      ["insert", "sqlite3", { id: "sqlite3", code: "a", size: null, photo: null, big: null }],
      ["update", "sqlite3", { size: 0.1 }],
      ["insert", "python", { id: "python", code: null, size: null, photo: "00ff", big: "9223372036854775807" }],
      ["delete", "sqlite3", {}],
      ["update", "python", { code: "a", photo: null, big: null }],
      ["insert", "libsql", { id: "libsql", code: null, size: 1.5, photo: null, big: null }],
      ["update", "libsql", { big: "5" }],
    ])
  })

  it.runIf(typeof Bun !== "undefined")("on bun:sqlite too", async () => {
    const file = await open([pupils])
    const { Database } = await import("bun:sqlite")
    const db = new Database(file.path)
    db.run("INSERT INTO pupils (id, size) VALUES (?, ?)", ["bun", 0.5])
    db.close()
    expect(await file.freeze()).toMatchObject([{ op: "insert", key: ["bun"], mine: { size: 0.5 } }])
  })

  it("that write at the same time as the node freezes lose nothing", async () => {
    const file = await open([pupils])
    const script = `
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)
for i in range(150):
    c.execute("INSERT INTO pupils (id) VALUES (?)", (sys.argv[2] + str(i),))
    c.execute("UPDATE pupils SET big = ? WHERE id = ?", (i, sys.argv[2] + str(i)))
`
    const writers = ["a", "b"].map((name) => spawn("python3", ["-c", script, file.path, name], { stdio: ["ignore", "inherit", "inherit"] }))
    let running = writers.length
    for (const writer of writers) writer.on("exit", () => running--)
    const changes = []
    while (running > 0) changes.push(...(await file.freeze({ maxChanges: 20 })))
    changes.push(...(await file.freeze()))
    expect(writers.map((writer) => writer.exitCode)).toEqual([0, 0])
    expect(changes.filter(({ op }) => op === "insert")).toHaveLength(300)
    const big = new Map<unknown, unknown>()
    for (const { key, mine } of changes) big.set(key[0], mine["big"])
    expect(big).toEqual(new Map(file.read("SELECT id, CAST(big AS TEXT) FROM pupils").map(([id, value]) => [id, value])))
  })

  it("that delete a parent have the cascade captured", async () => {
    const file = await open([families, members])
    foreign.sqlite3(
      file.path,
      `DROP TABLE members; CREATE TABLE members (id TEXT PRIMARY KEY, family_id TEXT REFERENCES families (id) ON DELETE CASCADE);`,
    )
    await file.install(manifestOf([families, members]))
    foreign.sqlite3(
      file.path,
      "PRAGMA foreign_keys = ON; INSERT INTO families VALUES ('f'); INSERT INTO members VALUES ('1', 'f'), ('2', 'f'); DELETE FROM families;",
    )
    expect((await file.freeze()).map(({ op, key }) => `${op} ${key.join()}`)).toEqual([
      "insert f",
      "insert 1",
      "insert 2",
      "delete 1",
      "delete 2",
      "delete f",
    ])
    foreign.sqlite3(
      file.path,
      "PRAGMA foreign_keys = ON; INSERT INTO families VALUES ('g'); INSERT INTO members VALUES ('3', 'g'); REPLACE INTO families VALUES ('g');",
    )
    expect((await file.freeze()).map(({ op, key }) => `${op} ${key.join()}`)).toEqual(["insert g", "insert 3", "delete 3"])
  })

  it("that delete everything, or use TEMP triggers and views, are captured row by row", async () => {
    const file = await open([pupils])
    foreign.sqlite3(
      file.path,
      `INSERT INTO pupils (id) VALUES ('1'), ('2');
       CREATE TEMP VIEW w AS SELECT * FROM pupils;
       CREATE TEMP TRIGGER wi INSTEAD OF INSERT ON w BEGIN INSERT INTO pupils (id) VALUES (NEW.id); END;
       INSERT INTO w (id) VALUES ('3'); DELETE FROM pupils;`,
    )
    expect((await file.freeze()).map(({ op, key }) => `${op} ${key.join()}`)).toEqual([
      "insert 1",
      "insert 2",
      "insert 3",
      "delete 1",
      "delete 2",
      "delete 3",
    ])
  })
})
