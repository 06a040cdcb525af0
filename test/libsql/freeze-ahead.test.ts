import * as Effect from "effect/Effect"
import { afterEach, expect, it } from "vitest"
import type { LibsqlFile } from "../../src/libsql/client.ts"
import { lookAnew } from "../../src/libsql/changes.ts"
import { freezeAhead } from "../../src/libsql/freeze-ahead.ts"
import { column, openSchoolFile, type SchoolFile, table } from "../support/school-file.ts"

const pupils = table("pupils", [column("id", "text", { notNull: true }), column("school_id"), column("name")])
const AT = 1_700_000_000_000

const made: Array<SchoolFile> = []
afterEach(async () => {
  for (const school of made.splice(0)) await school.close()
})
const newSchool = async (): Promise<SchoolFile> => {
  const school = await openSchoolFile([pupils])
  made.push(school)
  return school
}
const insert = (school: SchoolFile, from: number, to: number, name = "n"): void =>
  school.program(
    `WITH RECURSIVE n (i) AS (SELECT ${from} UNION ALL SELECT i + 1 FROM n WHERE i < ${to}) INSERT INTO pupils (id, school_id, name) SELECT 'p' || i, 's1', ? || i FROM n`,
    [name],
  )
/** The same file, to which something else happens between the reading and the storing. */
const disturbed = (school: SchoolFile, between: Effect.Effect<unknown, unknown>): LibsqlFile => ({
  ...school.file,
  write: (body) => Effect.andThen(Effect.orDie(between), school.file.write(body)),
})
const ahead = (file: LibsqlFile, maxChanges?: number) => Effect.runPromise(freezeAhead(file, AT, maxChanges))
const changesIn = (school: SchoolFile) =>
  school.batches().map(({ lines }) => (lines.slice(1) as ReadonlyArray<{ at: number }>).map((line) => ({ ...line, at: 0 })))

it("a batch made ahead says what one made under the lock says", async () => {
  const [one, other] = [await newSchool(), await newSchool()]
  for (const school of [one, other]) {
    insert(school, 1, 500)
    await school.freeze()
    school.program("UPDATE pupils SET name = iif(rowid % 3 = 0, name, 'late')")
    insert(school, 501, 900)
  }
  expect(await ahead(one.file, 700)).toMatchObject({ batches: 1, changes: 534, isMore: true })
  expect(await ahead(one.file, 150)).toMatchObject({ batches: 1, changes: 150, isMore: true })
  await one.freeze()
  await other.freeze({ plain: false })
  const [all, same] = [changesIn(one), changesIn(other)]
  expect(all.slice(1).flat()).toEqual(same.slice(1).flat())
  expect([all.length, all[0]]).toEqual([4, same[0]])
})

it("few open writes, and runs that something else ends, are left to the lock", async () => {
  const school = await newSchool()
  insert(school, 1, 20)
  expect(await ahead(school.file)).toBeNull()
  insert(school, 21, 600)
  school.program("DELETE FROM pupils WHERE id = 'p600'")
  expect(await ahead(school.file)).toBeNull()
  expect(school.batches()).toEqual([])
})

it("what programs write meanwhile goes into the next batch, measured from what this one says", async () => {
  const school = await newSchool()
  insert(school, 1, 600)
  const between = Effect.sync(() => {
    school.program("UPDATE pupils SET name = 'B' WHERE id = 'p1'")
    school.program("DELETE FROM pupils WHERE id = 'p2'")
    insert(school, 601, 602)
  })
  expect(await ahead(disturbed(school, between))).toMatchObject({ changes: 600 })
  await school.freeze()
  const [first, second] = changesIn(school)
  expect(first?.slice(0, 2)).toMatchObject([{ mine: { name: "n1" } }, { mine: { name: "n2" } }])
  expect(second).toMatchObject([
    { op: "update", base: { name: "n1" }, mine: { name: "B" } },
    { op: "delete", base: { name: "n2" } },
    { op: "insert", key: ["p601"] },
    { op: "insert", key: ["p602"] },
  ])
})

it("what was frozen meanwhile is not frozen twice", async () => {
  const school = await newSchool()
  insert(school, 1, 600)
  expect(
    await ahead(
      disturbed(
        school,
        Effect.promise(() => school.freeze()),
      ),
    ),
  ).toBeNull()
  expect(changesIn(school).map(({ length }) => length)).toEqual([600])
})

it("older writes that were opened meanwhile are not taken for those that were read", async () => {
  const school = await newSchool()
  insert(school, 1, 3)
  await school.freeze()
  await Effect.runPromise(school.file.write(lookAnew))
  insert(school, 4, 700)
  const open = school.file.write((tx) => tx.run("UPDATE changes SET batch = NULL WHERE batch = 1"))
  expect(await ahead(disturbed(school, open))).toBeNull()
  expect(school.batches()).toHaveLength(1)
  expect(school.read("SELECT count(*) FROM changes WHERE batch IS NULL")).toEqual([[700n]])
})
