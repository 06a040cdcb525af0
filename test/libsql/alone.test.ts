import * as Effect from "effect/Effect"
import { afterEach, beforeEach, expect, it } from "vitest"
import { openSchoolFile, type SchoolFile } from "../support/school-file.ts"

let school: SchoolFile
beforeEach(async () => {
  school = await openSchoolFile([])
  school.program("CREATE TABLE t (id TEXT PRIMARY KEY, n INTEGER NOT NULL)")
})
afterEach(() => school.close())

const alone = (sql: string, args: ReadonlyArray<string>) => Effect.runPromise(school.file.alone(sql, args))
const INSERT = "INSERT INTO t SELECT value ->> 0, value ->> 1 FROM json_each(?) WHERE true ON CONFLICT DO NOTHING"

it("a statement alone is committed when it is answered", async () => {
  expect(await alone(INSERT, ['[["a", 1], ["b", 9007199254740993], ["a", 3]]'])).toBe(2)
  expect(school.read("SELECT id, n FROM t ORDER BY id")).toEqual([
    ["a", 1n],
    ["b", 9007199254740993n],
  ])
})

it("when it fails none of its rows stands, and the next one is served", async () => {
  await expect(alone(INSERT, ['[["a", 1], ["b", null]]'])).rejects.toMatchObject({ code: "SQLITE_CONSTRAINT_NOTNULL" })
  await alone(INSERT, ['[["c", 1]]'])
  await school.write((tx) => tx.run("INSERT INTO t VALUES ('d', 2)"))
  expect(school.read("SELECT id FROM t ORDER BY id")).toEqual([["c"], ["d"]])
})

it("it waits for its turn behind a transaction", async () => {
  const both = [
    school.write((tx) => Effect.andThen(tx.run("INSERT INTO t VALUES ('a', 1)"), tx.run("INSERT INTO t VALUES ('b', 2)"))),
    alone("UPDATE t SET n = n + 10", []),
  ]
  await Promise.all(both)
  expect(school.read("SELECT n FROM t ORDER BY id")).toEqual([[11n], [12n]])
})
