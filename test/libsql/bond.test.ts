/** Rows and the links that place them go up in one batch, however small the batches are meant to be. */
import fc from "fast-check"
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest"
import { createTable } from "../../src/libsql/table-sql.ts"
import type { Change } from "../../src/model/change.ts"
import { isWithin } from "../../src/model/table.ts"
import { column, openSchoolFile, type SchoolFile, table } from "../support/school-file.ts"

const id = column("id", "int", { notNull: true })
const pupils = table("pupils", [id, column("name")], { audience: { through: "public.enrolments", on: { id: "pupil" } } })
const enrolments = table("enrolments", [id, column("pupil", "bigint"), column("note")], {
  references: [{ columns: ["pupil"], table: "public.pupils", to: ["id"] }],
})
const marks = table("marks", [id, column("pupil", "int"), column("mark")], {
  audience: { through: "public.pupils", on: { pupil: "id" } },
  references: [{ columns: ["pupil"], table: "public.pupils", to: ["id"] }],
})
const others = table("others", [id])
const all = [pupils, enrolments, marks, others]

let school: SchoolFile
beforeAll(async () => {
  school = await openSchoolFile(all)
  // As most SQLite programs: what is declared is not enforced.
  school.program("PRAGMA foreign_keys = OFF")
})
afterAll(() => school.close())
beforeEach(() => school.program(`${all.map(({ local }) => `DELETE FROM ${local}`).join(";")}; DELETE FROM changes`))

/** The batches that come of it, each as a list of "table op key". */
const batchesOf = async (sql: string, maxChanges = 1, pageRows = 2): Promise<ReadonlyArray<ReadonlyArray<string>>> => {
  const before = Number(school.read("SELECT last_batch FROM schoolbus_state")[0]?.[0])
  school.program(sql)
  await school.freeze({ maxChanges, pageRows })
  return school
    .batches(before)
    .map(({ lines }) =>
      (lines.slice(1) as ReadonlyArray<Change>).map(({ table: name, op, key }) => `${name.replace("public.", "")} ${op} ${key.join()}`),
    )
}
const others10 = (n: number) => `INSERT INTO others (id) VALUES ${Array.from({ length: 10 }, (_, i) => `(${n + i})`).join(", ")}`

test("a row and its link, with other writes between them, whichever is first", async () => {
  for (const [first, second] of [
    ["INSERT INTO pupils (id) VALUES (1)", "INSERT INTO enrolments (id, pupil) VALUES (1, 1)"],
    ["INSERT INTO enrolments (id, pupil) VALUES (1, 1)", "INSERT INTO pupils (id) VALUES (1)"],
  ]) {
    const batches = await batchesOf(`${others10(100)}; ${first}; ${others10(200)}; ${second}; ${others10(300)}`)
    const holding = batches.filter((batch) => batch.some((change) => /pupils|enrolments/.test(change)))
    expect(holding).toHaveLength(1)
    expect(holding[0]).toHaveLength(12)
    expect(batches.length).toBe(21)
    school.program("DELETE FROM pupils; DELETE FROM enrolments; DELETE FROM others; DELETE FROM changes")
  }
})

test("a row that names its link may come in a later batch, not in an earlier one", async () => {
  await batchesOf("INSERT INTO pupils (id) VALUES (1); INSERT INTO enrolments (id, pupil) VALUES (1, 1)", 100)
  expect(await batchesOf("INSERT INTO marks (id, pupil) VALUES (1, 1), (2, 1), (3, 1)")).toHaveLength(3)
  const batches = await batchesOf(
    `INSERT INTO marks (id, pupil) VALUES (4, 2), (5, 2); ${others10(100)}; INSERT INTO pupils (id) VALUES (2); INSERT INTO marks (id, pupil) VALUES (6, 2), (7, 2); INSERT INTO enrolments (id, pupil) VALUES (2, 2)`,
  )
  expect(batches.map((batch) => batch.length)).toEqual([16])
})

test("a row that is deleted with its links goes with them", async () => {
  await batchesOf("INSERT INTO pupils (id) VALUES (1), (2); INSERT INTO enrolments (id, pupil) VALUES (1, 1), (2, 1), (3, 2)", 100)
  const batches = await batchesOf(
    `DELETE FROM enrolments WHERE id = 1; ${others10(100)}; DELETE FROM enrolments WHERE id = 2; DELETE FROM pupils WHERE id = 1; ${others10(200)}`,
  )
  expect(batches[0]).toHaveLength(13)
  expect(await batchesOf("DELETE FROM enrolments WHERE id = 3")).toHaveLength(1)
})

test("a link that leaves again does not stand for the one that stays", async () => {
  const batches = await batchesOf(
    `INSERT INTO enrolments (id, pupil) VALUES (1, 3); DELETE FROM enrolments WHERE id = 1; INSERT INTO pupils (id) VALUES (3); INSERT INTO enrolments (id, pupil) VALUES (2, 3); ${others10(100)}`,
  )
  const [holding] = batches.filter((batch) => batch.includes("pupils insert 3"))
  expect(holding).toContain("enrolments insert 2")
})

test("edits of links that place what was there before hold nothing together", async () => {
  await batchesOf("INSERT INTO pupils (id) VALUES (1); INSERT INTO enrolments (id, pupil) VALUES (1, 1)", 100)
  expect(await batchesOf("INSERT INTO marks (id, pupil) VALUES (1, 1); UPDATE pupils SET name = 'x'; UPDATE enrolments SET note = 'y'")).toHaveLength(
    3,
  )
})

test("thousands of rows and then their links are one batch", async () => {
  const rows = Array.from({ length: 3_000 }, (_, i) => `(${i + 1})`).join(", ")
  const links = Array.from({ length: 3_000 }, (_, i) => `(${i + 1}, ${i + 1})`).join(", ")
  const batches = await batchesOf(
    `INSERT INTO pupils (id) VALUES ${rows}; INSERT INTO enrolments (id, pupil) VALUES ${links}; ${others10(1)}`,
    2_000,
    128,
  )
  expect(batches[0]?.length).toBe(6_000)
})

test("whatever is written, no batch ends between a row and the link that it lacks", { timeout: 20_000 }, async () => {
  const step = fc.record({
    kind: fc.constantFrom("pupil", "link", "mark", "other", "leave"),
    n: fc.integer({ min: 1, max: 4 }),
  })
  let next = 10_000
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 24 }), fc.integer({ min: 1, max: 4 }), async (steps, size) => {
      school.program(`${all.map(({ local }) => `DELETE FROM ${local}`).join(";")}; DELETE FROM changes`)
      const sql = steps.map(({ kind, n }) => {
        const key = next++
        if (kind === "pupil") return `INSERT OR IGNORE INTO pupils (id) VALUES (${n})`
        if (kind === "link") return `INSERT INTO enrolments (id, pupil) VALUES (${key}, ${n})`
        if (kind === "mark") return `INSERT INTO marks (id, pupil) VALUES (${key}, ${n})`
        if (kind === "leave")
          return `DELETE FROM enrolments WHERE pupil = ${n}; DELETE FROM marks WHERE pupil = ${n}; DELETE FROM pupils WHERE id = ${n}`
        return `INSERT INTO others (id) VALUES (${key})`
      })
      const before = Number(school.read("SELECT last_batch FROM schoolbus_state")[0]?.[0])
      school.program(sql.join(";"))
      await school.freeze({ maxChanges: size, pageRows: 2 })
      // What head office holds after each batch: every pupil has a link, every link its pupil, every mark its pupil, if they ever do.
      const has = { pupils: new Map<number, number>(), enrolments: new Map<number, number>(), marks: new Map<number, number>() }
      const end = {
        pupils: new Set(school.read("SELECT id FROM pupils").map(([one]) => Number(one))),
        links: new Set(school.read("SELECT pupil FROM enrolments").map(([one]) => Number(one))),
      }
      for (const { lines } of school.batches(before)) {
        for (const change of lines.slice(1) as ReadonlyArray<Change>) {
          const name = change.table.replace("public.", "") as keyof typeof has
          const rows = has[name]
          if (rows === undefined) continue
          const key = Number(change.key[0])
          if (change.op === "delete") rows.delete(key)
          else rows.set(key, Number(name === "pupils" ? key : (change.mine["pupil"] ?? rows.get(key))))
        }
        const linked = new Set(has.enrolments.values())
        for (const pupil of has.pupils.keys()) if (end.pupils.has(pupil) && end.links.has(pupil)) expect(linked.has(pupil)).toBe(true)
        for (const pupil of linked) if (end.pupils.has(pupil)) expect(has.pupils.has(pupil)).toBe(true)
        for (const pupil of has.marks.values()) if (end.pupils.has(pupil)) expect(has.pupils.has(pupil)).toBe(true)
      }
    }),
    { numRuns: 60 },
  )
})

test("a foreign key is declared where the row that it points to is in every school that has the row itself", () => {
  const manifest = { tables: all }
  expect(createTable(marks, manifest)).toContain('FOREIGN KEY ("pupil") REFERENCES "pupils" ("id")')
  expect(createTable(enrolments, manifest)).not.toContain("FOREIGN KEY")
  const reference = { columns: ["school_id", "class"], table: "public.classes", to: ["school_id", "id"] }
  const own = { audience: { column: "school_id" } } as const
  const classes = { name: "public.classes", ...own }
  expect(isWithin(own, classes, reference)).toBe(true)
  expect(isWithin(own, classes, { columns: ["class"], to: ["id"] })).toBe(false)
  expect(isWithin({ audience: "all" }, classes, reference)).toBe(false)
  expect(isWithin(own, { ...classes, audience: "all" }, reference)).toBe(true)
  const through = { audience: { through: "public.classes", on: { class: "id", year: "year" } } }
  expect(isWithin(through, classes, { columns: ["class"], to: ["id"] })).toBe(true)
  expect(isWithin(through, classes, { columns: ["teacher"], to: ["id"] })).toBe(false)
  expect(isWithin(through, { ...classes, name: "public.rooms" }, { columns: ["class"], to: ["id"] })).toBe(false)
})
