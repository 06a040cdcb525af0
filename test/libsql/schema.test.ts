import * as Effect from "effect/Effect"
import { afterEach, describe, expect, it } from "vitest"
import type { Tx } from "../../src/libsql/client.ts"
import { installTables, missingTriggers, type TableRefused } from "../../src/libsql/schema.ts"
import { createTable } from "../../src/libsql/table-sql.ts"
import type { Change } from "../../src/model/change.ts"
import type { Column, Manifest, Table } from "../../src/model/table.ts"
import { column, manifestOf, openSchoolFile, type SchoolFile, table } from "../support/school-file.ts"

const pupils = table("pupils", [column("id", "text", { notNull: true }), column("name", "text", { notNull: true }), column("age", "int")], {
  unique: [["name"]],
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

const missing = (file: SchoolFile, streams: ReadonlyArray<string> = []) =>
  Effect.runPromise(file.file.read((tx) => missingTriggers(tx, file.manifest, streams)))
const refusal = (file: SchoolFile, tables: ReadonlyArray<Table>, adopt = false) =>
  file.write((tx: Tx) => Effect.flip(installTables(tx, manifestOf(tables), { streams: [], adopt }))) as Promise<TableRefused>

describe("createTable", () => {
  it("declares what Postgres declares, in types that hold every value exactly", () => {
    const schools = table("schools", [column("id")], { audience: "all" })
    const classes = table("classes", [column("id")])
    const all = table(
      "t",
      [
        column("id", "int", { notNull: true }),
        column("big", "bigint", { default: "9007199254740993" }),
        column("price", "numeric", { default: "1.50", notNull: true }),
        column("f", "float", { default: 0.5 }),
        column("on", "bool", { default: true }),
        column("raw", "bytea", { default: "00ff" }),
        column("it's", "text", { default: "it's", notNull: true }),
        column("total", "numeric", { generated: true, notNull: true }),
        column("school_id"),
      ],
      {
        unique: [["big", "price"]],
        references: [
          { columns: ["school_id"], table: "public.schools", to: ["id"] },
          { columns: ["school_id"], table: "public.classes", to: ["id"] },
          { columns: ["school_id"], table: "public.unlisted", to: ["id"] },
        ],
      },
    )
    expect(createTable(all, manifestOf([schools, classes, all]))).toBe(`CREATE TABLE "t" (
  "id" INT NOT NULL,
  "big" BIGINT DEFAULT 9007199254740993,
  "price" TEXT NOT NULL DEFAULT '1.50',
  "f" REAL DEFAULT 0.5,
  "on" INT DEFAULT 1,
  "raw" BLOB DEFAULT X'00ff',
  "it's" TEXT NOT NULL DEFAULT 'it''s',
  "total" TEXT,
  "school_id" TEXT,
  PRIMARY KEY ("id"),
  UNIQUE ("big", "price"),
  FOREIGN KEY ("school_id") REFERENCES "schools" ("id")
)`)
  })

  it("never makes the key the rowid, whose automatic value would clash between schools", async () => {
    const file = await open([table("t", [column("id", "int", { notNull: true })])])
    expect(() => file.program("INSERT INTO t (id) VALUES (NULL)")).toThrow(/NOT NULL/)
  })
})

describe("installing", () => {
  it("twice changes nothing", async () => {
    const file = await open([pupils])
    const before = file.read("SELECT rowid, name, sql FROM sqlite_master ORDER BY rowid")
    await file.install(manifestOf([pupils]))
    expect(file.read("SELECT rowid, name, sql FROM sqlite_master ORDER BY rowid")).toEqual(before)
    expect(JSON.parse(String(file.read("SELECT manifest FROM schoolbus_state")[0]?.[0]))).toEqual(manifestOf([pupils]))
  })

  it("captures every table but those that only the hub writes", async () => {
    const columns = [column("id")]
    const file = await open([
      table("down", columns, { direction: "down" }),
      table("punches", columns, { name: "schoolbus.punches", direction: "up", system: false }),
      table("schoolbus_conflicts", columns, { name: "schoolbus.conflicts", direction: "down", system: true }),
    ])
    file.program("INSERT INTO down VALUES ('1'); INSERT INTO punches VALUES ('2'); INSERT INTO schoolbus_conflicts VALUES ('3')")
    expect(file.read("SELECT t.local, c.key FROM changes c JOIN schoolbus_tables t ON t.id = c.tbl ORDER BY c.id")).toEqual([
      ["down", "'1'"],
      ["punches", "'2'"],
    ])
  })

  it("adds columns, as null or with their default, and captures them from then on", async () => {
    const file = await open([pupils])
    file.program("INSERT INTO pupils VALUES ('1', 'A', 7)")
    const wide = {
      ...pupils,
      columns: [
        ...pupils.columns,
        column("house", "text", { notNull: true }),
        column("fee", "numeric", { notNull: true, default: "0.00", fill: "0.00" }),
      ],
    }
    await file.install(manifestOf([wide], 2))
    expect(file.read("SELECT * FROM pupils")).toEqual([["1", "A", 7n, null, "0.00"]])
    file.program("UPDATE pupils SET fee = '5.00'")
    expect(await file.freeze()).toMatchObject([{ base: { house: null, fee: "0.00" }, mine: { fee: "5.00" } }])
  })

  it("freezes open writes in the terms of the manifest under which they were captured", async () => {
    const file = await open([pupils])
    file.program("INSERT INTO pupils VALUES ('1', 'A', 7); UPDATE pupils SET age = 8")
    await file.install(manifestOf([{ ...pupils, columns: [...pupils.columns, column("fee", "numeric", { default: "0.00", fill: "0.00" })] }], 2))
    const [batch] = file.batches()
    expect(batch?.lines).toMatchObject([
      ["batch", { manifest: 1, changes: 2 }],
      { op: "insert", mine: { id: "1", name: "A", age: 7 } },
      { op: "update", base: { age: 7 }, mine: { age: 8 } },
    ])
    expect(JSON.stringify(batch)).not.toContain("fee")
  })

  it("makes room for tables wider than any before", async () => {
    const wide = table("wide", [column("id"), ...Array.from({ length: 999 }, (_, i) => column(`c${i}`))])
    const file = await open([pupils])
    await file.install(manifestOf([pupils, wide], 2))
    file.program("INSERT INTO wide (id, c998) VALUES ('1', 'x'); UPDATE wide SET c998 = 'y'; DELETE FROM wide")
    expect((await file.freeze()).map(({ op, base, mine }) => [op, base["c998"], mine["c998"]])).toEqual([
      ["insert", undefined, "x"],
      ["update", "x", "y"],
      ["delete", "y", undefined],
    ])
  })

  it("stops capturing a table that left the manifest, and keeps what was captured", async () => {
    const other = table("other", [column("id")])
    const file = await open([pupils, other])
    file.program("INSERT INTO other VALUES ('1')")
    await file.install(manifestOf([pupils], 2))
    file.program("INSERT INTO other VALUES ('2')")
    expect(file.batches()[0]?.lines.slice(1)).toMatchObject([{ table: "public.other", op: "insert", mine: { id: "1" } }])
    expect(file.read("SELECT count(*) FROM changes WHERE batch IS NULL")).toEqual([[0n]])
    expect(file.read("SELECT name FROM sqlite_master WHERE tbl_name = 'other' AND type = 'trigger'")).toEqual([])
  })

  it("tells worker modules of every write, applied ones too", async () => {
    const file = await open([pupils])
    await file.install(manifestOf([pupils]), { streams: ["pupils"] })
    file.program("INSERT INTO pupils VALUES ('1', 'A', 7)")
    file.program("UPDATE schoolbus_deliver SET active = 1; UPDATE pupils SET age = 8; DELETE FROM pupils; UPDATE schoolbus_deliver SET active = 0")
    expect(file.read("SELECT tbl, op, key FROM schoolbus_stream ORDER BY id")).toEqual([
      ["pupils", "insert", "'1'"],
      ["pupils", "update", "'1'"],
      ["pupils", "delete", "'1'"],
    ])
    await file.install(manifestOf([pupils]), { streams: [] })
    expect(file.read("SELECT count(*) FROM sqlite_master WHERE name LIKE '%stream_insert'")).toEqual([[0n]])
  })
})

describe("a table that a program made", () => {
  const own = "CREATE TABLE pupils (id TEXT PRIMARY KEY, name VARCHAR(20) COLLATE NOCASE UNIQUE, age INTEGER, note TEXT);"

  it("is taken over when it is empty and fits", async () => {
    const file = await open([pupils], { before: own })
    file.program("INSERT INTO pupils VALUES ('1', 'A', 7, 'local')")
    expect(await file.freeze()).toMatchObject([{ mine: { id: "1", name: "A", age: 7 } }])
    // The file's own unique, by its own collation, says what a REPLACE displaces.
    file.program("REPLACE INTO pupils (id, name) VALUES ('2', 'a')")
    expect((await file.freeze()).map(({ op, key }) => [op, ...key])).toEqual([
      ["delete", "1"],
      ["insert", "2"],
    ])
  })

  it("is refused when it has rows, with the ways out, and nothing is changed", async () => {
    const file = await open([pupils], { before: `${own} INSERT INTO pupils VALUES ('1', 'A', 7, NULL);`, install: false })
    const other = table("other", [column("id")])
    const before = file.read("SELECT name FROM sqlite_master ORDER BY name")
    const refused = await Effect.runPromise(
      Effect.flip(file.file.write((tx) => installTables(tx, manifestOf([other, pupils]), { streams: [], adopt: false }))),
    )
    expect(refused).toMatchObject({ _tag: "TableRefused", table: "pupils" })
    expect(refused.message).toContain("--adopt")
    expect(file.read("SELECT name FROM sqlite_master ORDER BY name")).toEqual(before)
  })

  it("is adopted on request: its rows go up as inserts, once", async () => {
    const file = await open([pupils], { before: `${own} INSERT INTO pupils VALUES ('1', 'A', 7, NULL), ('é', 'B', NULL, 'x');`, install: false })
    await file.install(manifestOf([pupils]), { adopt: true })
    await file.install(manifestOf([pupils]), { adopt: true })
    expect(await file.freeze()).toMatchObject([
      { op: "insert", key: ["1"], mine: { id: "1", name: "A", age: 7 } },
      { op: "insert", key: ["é"], mine: { id: "é", name: "B", age: null } },
    ])
    expect(Math.abs(Number(file.read("SELECT max(at) FROM changes")[0]?.[0]) - Date.now())).toBeLessThan(60_000)
  })

  it.each([
    ["another key", "CREATE TABLE pupils (id TEXT, name TEXT PRIMARY KEY, age INT);", /its key is \(name\) in this file and \(id\)/],
    [
      "a type that would change values",
      "CREATE TABLE pupils (id TEXT PRIMARY KEY, name NUMERIC, age INT);",
      /name is declared NUMERIC and cannot hold text/,
    ],
    ["text where numbers belong", "CREATE TABLE pupils (id TEXT PRIMARY KEY, name TEXT, age TEXT);", /age is declared TEXT/],
    ["a computed column", "CREATE TABLE pupils (id TEXT PRIMARY KEY, name TEXT, age INT AS (1));", /age is computed/],
    ["a column nobody fills", "CREATE TABLE pupils (id TEXT PRIMARY KEY, name TEXT, age INT, pin TEXT NOT NULL);", /pin must not be null/],
    ["a stricter column", "CREATE TABLE pupils (id TEXT PRIMARY KEY, name TEXT, age INT NOT NULL);", /age must not be null here/],
    ["a view", "CREATE VIEW pupils AS SELECT 1 AS id;", /is a view/],
  ])("is refused for %s", async (_, before, reason) => {
    const file = await open([pupils], { before, install: false })
    expect((await refusal(file, [pupils])).message).toMatch(reason)
  })

  it("may be declared as mappers do", async () => {
    const events = table("events", [
      column("id", "text", { type: "uuid" }),
      column("at", "text", { type: "timestamp with time zone" }),
      column("ok", "bool"),
      column("n", "bigint"),
    ])
    const file = await open([events], { before: "CREATE TABLE Events (ID UUID PRIMARY KEY, at DATETIME, ok BOOLEAN, n INTEGER) WITHOUT ROWID;" })
    file.program("INSERT INTO events VALUES ('0b0e', '2026-01-01 00:00:00+00', 1, 5)")
    expect(await file.freeze()).toMatchObject([{ mine: { id: "0b0e", at: "2026-01-01 00:00:00+00", ok: true, n: "5" } }])
  })

  it("whose name the sync needs itself is refused", async () => {
    const file = await open([], { install: false })
    expect((await refusal(file, [table("JSON_each", [column("id")])])).message).toMatch(/name that the sync itself uses/)
    expect((await refusal(file, [table("changes", [column("id")])])).message).toMatch(/name that the sync itself uses/)
  })
})

describe("a program's own migration", () => {
  it("that rebuilds a table loses our triggers; they are named, and installing restores them", async () => {
    const file = await open([pupils])
    await file.install(manifestOf([pupils]), { streams: ["pupils"] })
    expect(await missing(file, ["pupils"])).toEqual([])
    file.program("CREATE TABLE p2 (id TEXT PRIMARY KEY, name TEXT UNIQUE, age INT, note TEXT); DROP TABLE pupils")
    // In the middle of it nothing is restored: the name must stay free for the program.
    expect(await missing(file, ["pupils"])).toEqual([])
    file.program("ALTER TABLE p2 RENAME TO pupils")
    expect(await missing(file, ["pupils"])).toHaveLength(8)
    await file.install(manifestOf([pupils]), { streams: ["pupils"] })
    expect(await missing(file, ["pupils"])).toEqual([])
    file.program("INSERT INTO pupils VALUES ('1', 'A', 7, NULL)")
    expect(await file.freeze()).toHaveLength(1)
  })

  it("that drops a trigger, or adds a unique index, is noticed", async () => {
    const file = await open([pupils])
    file.program("DROP TRIGGER schoolbus_pupils_au")
    expect(await missing(file)).toEqual(["schoolbus_pupils_au"])
    await file.install(file.manifest)
    file.program(
      "CREATE UNIQUE INDEX by_age ON pupils (age); CREATE UNIQUE INDEX by_half ON pupils (age / 2); CREATE UNIQUE INDEX adults ON pupils (name, age) WHERE age > 18",
    )
    expect(await missing(file)).toEqual(["schoolbus_pupils_bi", "schoolbus_pupils_bu"])
  })

  it("that adds a trigger comes second: a write is captured before what the program's trigger makes of it", async () => {
    const file = await open([pupils])
    file.program("CREATE TRIGGER own AFTER INSERT ON pupils BEGIN UPDATE pupils SET age = 99 WHERE id = NEW.id; END")
    expect((await missing(file)).length).toBe(5)
    await file.install(file.manifest)
    expect(await missing(file)).toEqual([])
    file.program("INSERT INTO pupils VALUES ('1', 'A', 7)")
    expect((await file.freeze()).map(({ op, mine }) => [op, mine["age"]])).toEqual([
      ["insert", 7],
      ["update", 99],
    ])
  })

  it("that drops a table gets it made again, and everything is pulled anew", async () => {
    const file = await open([pupils])
    file.program(
      "UPDATE schoolbus_state SET epoch = 'e', seq = 7, cut = 'ab', applying = '{}'; INSERT INTO pupils VALUES ('1', 'A', 7); DROP TABLE pupils",
    )
    await file.install(manifestOf([pupils], 2))
    expect(file.read("SELECT epoch, seq, cut, applying FROM schoolbus_state")).toEqual([["", 0n, "0", null]])
    expect(await file.freeze()).toEqual([])
    file.program("INSERT INTO pupils VALUES ('1', 'A', 7)")
    expect(await file.freeze()).toHaveLength(1)
  })
})

it("what a program wrote before it dropped the table goes up as far as it is known: deletes, and values that a later write replaced", async () => {
  const file = await open([pupils])
  file.program("INSERT INTO pupils VALUES ('1', 'A', 1), ('2', 'B', 2), ('3', 'C', 3), ('4', 'D', 4)")
  await file.freeze()
  const before = file.batches().length
  file.program(
    `DELETE FROM pupils WHERE id = '1'; UPDATE pupils SET age = 20 WHERE id = '2'; UPDATE pupils SET age = 30 WHERE id = '3'; UPDATE pupils SET age = 31 WHERE id = '3';
     INSERT INTO pupils VALUES ('5', 'E', 5); INSERT OR REPLACE INTO pupils VALUES ('4', 'D', 40); DROP TABLE pupils`,
  )
  await file.install(manifestOf([pupils], 2))
  const changes = file.batches(before).flatMap(({ lines }) => lines.slice(1) as ReadonlyArray<Change>)
  expect(changes.map(({ op, key, base, mine }) => [op, key, base["age"], mine])).toEqual([
    ["delete", ["1"], 1, {}],
    ["update", ["3"], 3, { age: 30 }],
  ])
  expect(file.read("SELECT count(*) FROM changes WHERE batch IS NULL")).toEqual([[0n]])
})

describe("a newer manifest", () => {
  const one = table(
    "books",
    [column("id", "text", { number: 1 }), column("title", "text", { number: 2, notNull: true }), column("pages", "int", { number: 3 })],
    {
      unique: [["title"]],
    },
  )
  const next = (columns: ReadonlyArray<Column>, more: Partial<Table> = {}): Manifest => manifestOf([{ ...one, unique: [], columns, ...more }], 2)
  const [id, title, pages] = one.columns as [Column, Column, Column]

  it("drops, renames and retypes columns and keeps the rows, a program's own columns, indexes and triggers", async () => {
    const file = await openSchoolFile([one])
    file.program(`ALTER TABLE books ADD COLUMN own TEXT DEFAULT 'o'; ALTER TABLE books ADD COLUMN made TEXT DEFAULT (upper('m')); CREATE INDEX own_index ON books (own); CREATE TABLE log (t);
      CREATE TRIGGER own_trigger AFTER INSERT ON books BEGIN INSERT INTO log VALUES (NEW.own); END;
      INSERT INTO books (id, title, pages) VALUES ('1', 'A', 12)`)
    await file.freeze()
    await file.install(next([id, { ...title, name: "name", notNull: false }, { ...pages, kind: "text", type: "text" }]))
    expect(file.read("SELECT id, name, pages, typeof(pages), own FROM books")).toEqual([["1", "A", "12", "text", "o"]])
    file.program("INSERT INTO books (id, name, own) VALUES ('2', NULL, 'x')")
    expect(file.read("SELECT t FROM log")).toEqual([["o"], ["x"]])
    expect(file.read("SELECT made FROM books")).toEqual([["M"], ["M"]])
    expect(file.read("SELECT name FROM sqlite_master WHERE name IN ('own_index', 'own_trigger') ORDER BY name")).toEqual([
      ["own_index"],
      ["own_trigger"],
    ])
    expect((await file.freeze()).map((change) => change.mine)).toEqual([{ id: "2", name: null, pages: null }])
    await file.close()
  })

  it("of another feed, which has numbered the columns anew, is told by their names", async () => {
    const columns = [column("id", "text", { number: 2 }), column("title", "text", { number: 4 }), column("pages", "int", { number: 5 })]
    const file = await openSchoolFile([])
    await file.install({ ...manifestOf([{ ...one, unique: [], columns, generation: 2 }]), feed: "first" })
    file.program("INSERT INTO books VALUES ('1', 'A', 12), ('2', 'B', 13)")
    await file.freeze()
    file.program("UPDATE books SET title = 'C' WHERE id = '2'; DELETE FROM books WHERE id = '1'")
    const open = file.read("SELECT * FROM schoolbus_tables")
    await file.install({ ...next([...one.columns, column("isbn", "text", { number: 4 })]), feed: "second" })
    expect(file.read("SELECT id, title, pages, isbn FROM books")).toEqual([["2", "C", 13n, null]])
    expect(file.read("SELECT * FROM schoolbus_tables")).toEqual(open)
    expect(file.batches().flatMap(({ lines }) => lines.slice(1))).toMatchObject([{}, {}, { op: "update", mine: { title: "C" } }, { op: "delete" }])
    await file.close()
  })

  it("gives a renamed column's old name to a new one", async () => {
    const file = await openSchoolFile([{ ...one, unique: [] }])
    file.program("INSERT INTO books (id, title, pages) VALUES ('1', 'A', 12)")
    await file.install(next([id, title, { ...pages, name: "leaves" }, column("pages", "int", { number: 4, fill: 7, default: 7 })]))
    file.program("INSERT INTO books (id, title, leaves) VALUES ('2', 'B', 13)")
    expect(file.read("SELECT id, leaves, pages FROM books")).toEqual([
      ["1", 12n, 7n],
      ["2", 13n, 7n],
    ])
    await file.close()
  })

  it("leaves a dropped column to the program whose trigger speaks of it", async () => {
    const file = await openSchoolFile([one])
    file.program("CREATE TABLE log (t); CREATE TRIGGER own AFTER INSERT ON books BEGIN INSERT INTO log VALUES (NEW.pages); END")
    await file.install(next([id, title]))
    file.program("INSERT INTO books (id, title, pages) VALUES ('1', 'A', 3)")
    expect(file.read("SELECT t FROM log")).toEqual([[3n]])
    expect((await file.freeze()).map((change) => change.mine)).toEqual([{ id: "1", title: "A" }])
    await file.close()
  })

  it("enforces a new unique constraint where the rows allow it, and goes on where they do not", async () => {
    const file = await openSchoolFile([{ ...one, unique: [] }])
    file.program("INSERT INTO books VALUES ('1', 'Same', 1), ('2', 'Same', 2)")
    await file.install(next([id, title, pages], { unique: [["title"], ["pages"]] }))
    expect(() => file.program("INSERT INTO books VALUES ('3', 'Other', 2)")).toThrow(/UNIQUE/)
    file.program("INSERT INTO books VALUES ('3', 'Same', 3)")
    file.program("UPDATE books SET title = id")
    await file.install(manifestOf([{ ...one, unique: [["title"], ["pages"]] }], 3))
    expect(() => file.program("INSERT INTO books VALUES ('4', '1', 4)")).toThrow(/UNIQUE/)
    await file.install(manifestOf([{ ...one, unique: [] }], 4))
    file.program("INSERT INTO books VALUES ('4', '1', 2)")
    await file.close()
  })

  it("keeps what is pending in its columns when they change their places", async () => {
    const file = await openSchoolFile([one])
    file.program("INSERT INTO books VALUES ('1', 'A', 7)")
    await file.freeze()
    file.program("UPDATE books SET pages = 8")
    await file.freeze()
    await file.install(next([id, pages, column("extra", "text", { number: 4 })]))
    expect(file.read("SELECT v0, v1, v2 FROM changes WHERE op = 'U'")).toEqual([["1", 7n, null]])
    await file.close()
  })
})

describe("a table that was out while the school was away", () => {
  const at = (version: number, feed: string, life: number): Manifest => ({ ...manifestOf([pupils], version), feed, lives: { [pupils.name]: life } })
  const cursorAfter = async (now: Manifest) => {
    const file = await open([pupils])
    await file.install(at(2, "one", 1))
    file.program("UPDATE schoolbus_state SET epoch = 'e', seq = 7, cut = 'c'")
    await file.install(now)
    return file.read("SELECT epoch, seq FROM schoolbus_state")
  }
  it("is known by its new number: everything comes anew", async () => {
    expect(await cursorAfter(at(3, "one", 2))).toEqual([["", 0n]])
  })
  it("or is not: its number is the same, or of another feed, which is compared with", async () => {
    expect(await cursorAfter(at(3, "one", 1))).toEqual([["e", 7n]])
    expect(await cursorAfter(at(3, "two", 2))).toEqual([["e", 7n]])
  })
})
