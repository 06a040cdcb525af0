import { afterEach, describe, expect, it } from "vitest"
import { indexTerms } from "../../src/libsql/uniques.ts"
import { column, openSchoolFile, type SchoolFile, table } from "../support/school-file.ts"

const opened: Array<SchoolFile> = []
afterEach(async () => {
  for (const file of opened.splice(0)) await file.close()
})

describe("the terms of an index", () => {
  it.each([
    ["CREATE UNIQUE INDEX i ON t (a, b)", ["a", "b"]],
    ["CREATE UNIQUE INDEX i ON t(lower(a), b DESC) WHERE c IN (1, 2)", ["lower(a)", "b"]],
    ['CREATE UNIQUE INDEX "i (x, y)" ON [t (z)] ("a, b" COLLATE NOCASE ASC)', ['"a, b" COLLATE NOCASE']],
    [
      "CREATE UNIQUE INDEX i ON t (replace(a, ')', '''('), /* , */ b -- , c)\n, coalesce(c, 0) % 3)",
      ["replace(a, ')', '''(')", "/* , */ b -- , c)", "coalesce(c, 0) % 3"],
    ],
  ])("are read from %s", (sql, terms) => {
    expect(indexTerms(sql)).toEqual(terms)
  })
})

describe("a row that REPLACE displaces", () => {
  it.each([
    ["an index without regard to case", "CREATE UNIQUE INDEX i ON t (code COLLATE NOCASE)", "('2', 'X', 1)"],
    ["an index of two columns", "CREATE UNIQUE INDEX i ON t (n, code)", "('2', 'x', 1)"],
    ["an index of some rows", "CREATE UNIQUE INDEX i ON t (code) WHERE n > 0", "('2', 'x', 1)"],
    ["an index of an expression", "CREATE UNIQUE INDEX i ON t (lower(trim(code)), n % 2)", "('2', ' X ', 3)"],
    ["an index of a computed column", "ALTER TABLE t ADD COLUMN twice INT AS (n * 2); CREATE UNIQUE INDEX i ON t (twice)", "('2', 'y', 1)"],
  ])("through %s of the school's program is captured", async (_, index, values) => {
    const file = await openSchoolFile([table("t", [column("id"), column("code"), column("n", "int")])])
    opened.push(file)
    file.program(`INSERT INTO t (id, code, n) VALUES ('1', 'x', 1), ('3', 'z', 8); ${index}`)
    await file.install(file.manifest)
    await file.freeze()
    file.program(`REPLACE INTO t (id, code, n) VALUES ${values}`)
    expect((await file.freeze()).map(({ op, key }) => `${op} ${key.join()}`)).toEqual(["delete 1", "insert 2"])
    file.program(`UPDATE OR REPLACE t SET (code, n) = (SELECT code, n FROM t WHERE id = '2') WHERE id = '3'`)
    expect((await file.freeze()).map(({ op, key }) => `${op} ${key.join()}`)).toEqual(["delete 2", "update 3"])
  })

  it("through the default that REPLACE puts in the place of a NULL is captured", async () => {
    const file = await openSchoolFile([table("t", [column("id"), column("code", "text", { notNull: true })])], {
      before: "CREATE TABLE t (id TEXT PRIMARY KEY, code TEXT NOT NULL DEFAULT 'd' UNIQUE)",
    })
    opened.push(file)
    file.program("INSERT INTO t (id) VALUES ('1'); REPLACE INTO t (id, code) VALUES ('2', NULL)")
    expect((await file.freeze()).map(({ op, key }) => `${op} ${key.join()}`)).toEqual(["insert 1", "delete 1", "insert 2"])
  })

  it("after an action of a foreign key wrote to it is deleted", async () => {
    const file = await openSchoolFile([table("t", [column("id"), column("code"), column("up")])], {
      before: "CREATE TABLE t (id TEXT PRIMARY KEY, code TEXT UNIQUE, up TEXT REFERENCES t (id) ON DELETE SET NULL)",
    })
    opened.push(file)
    file.program("PRAGMA foreign_keys = ON; INSERT INTO t VALUES ('1', 'x', NULL), ('2', 'y', '1')")
    await file.freeze()
    file.program("REPLACE INTO t VALUES ('1', 'y', NULL)")
    const changes = await file.freeze()
    expect(changes.filter(({ op }) => op === "delete").map(({ key }) => key[0])).toContain("2")
    expect(file.read("SELECT id, code FROM t")).toEqual([["1", "y"]])
  })
})
