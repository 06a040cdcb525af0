import * as Effect from "effect/Effect"
import { afterEach, beforeEach, expect, it } from "vitest"
import { openSchoolFile, type SchoolFile } from "../support/school-file.ts"

let school: SchoolFile
beforeEach(async () => {
  school = await openSchoolFile([])
  school.program("CREATE TABLE t (id TEXT PRIMARY KEY, n INTEGER NOT NULL)")
})
afterEach(() => school.close())

const insert = (sql: string, rows: ReadonlyArray<ReadonlyArray<string | bigint | null>>) => Effect.runPromise(school.file.insert(sql, rows))

it("rows of one message stand together, but for those that a constraint refuses", async () => {
  const failures = await insert("INSERT INTO t VALUES (?, ?)", [
    ["a", 1n],
    ["a", 2n],
    ["b", null],
    ["c", 9007199254740993n],
  ])
  expect(failures.map(({ index, code }) => [index, code])).toEqual([
    [1, "SQLITE_CONSTRAINT_PRIMARYKEY"],
    [2, "SQLITE_CONSTRAINT_NOTNULL"],
  ])
  expect(school.read("SELECT id, n FROM t ORDER BY id")).toEqual([
    ["a", 1n],
    ["c", 9007199254740993n],
  ])
})

it("when the statement itself fails nothing stands, and the next one is served", async () => {
  await expect(insert("INSERT INTO t VALUES (?, ?), (?, 'x' || nothing)", [["a", 1n, "b"]])).rejects.toThrow(/nothing/)
  expect(await insert("INSERT INTO t VALUES (?, ?)", [])).toEqual([])
  await insert("INSERT INTO t VALUES (?, ?)", [["a", 1n]])
  await school.write((tx) => tx.run("INSERT INTO t VALUES ('b', 2)"))
  expect(school.read("SELECT count(*) FROM t")).toEqual([[2n]])
})
