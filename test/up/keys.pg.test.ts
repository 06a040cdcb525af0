import { afterAll, beforeAll, expect, test } from "vitest"
import { isInRange, keyRangeOf, MAX_SCHOOL_NUMBER } from "../../src/model/key-range.ts"
import { keyProblems } from "../../src/postgres/key-types.ts"
import { column, table } from "../support/school-file.ts"
import { makeWorld, type School, type World } from "../support/world.ts"

let world: World
let a: School
let b: School
beforeAll(async () => {
  world = await makeWorld(
    `CREATE TABLE pupils (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, school_id text, name text);
     CREATE TABLE rooms (id serial PRIMARY KEY, school_id text, name text);
     INSERT INTO rooms (school_id, name) VALUES ('a', 'hall');
     CREATE TABLE days (pupil bigint, day date, school_id text, PRIMARY KEY (pupil, day));`,
    {
      tables: {
        pupils: { audience: { column: "school_id" }, strategy: "school_wins" },
        rooms: { audience: { column: "school_id" }, insert: "vps", strategy: "school_wins" },
        days: { audience: { column: "school_id" }, strategy: "school_wins" },
      },
    },
    ["a", "b"],
  )
  a = await world.school("a")
  b = await world.school("b")
  await a.sync()
  await b.sync()
})
afterAll(() => world?.stop())

const numberOf = async (school: string) => Number((await world.sql`SELECT number FROM schoolbus.schools WHERE id = ${school}`)[0]?.["number"])
const reasons = async (name: string) =>
  (await world.sql`SELECT reason, detail FROM schoolbus.quarantine WHERE table_name = ${name} ORDER BY at`).map(({ reason, detail }) => [
    reason,
    detail,
  ])

test("a bigint key that a program leaves out comes from the school's own range", async () => {
  for (const school of [a, b])
    for (let i = 0; i < 20; i++) await school.write(`INSERT INTO pupils (school_id, name) VALUES ('${school.id}', 'p${i}')`)
  await a.sync()
  await b.sync()
  for (const school of ["a", "b"]) {
    const range = keyRangeOf(await numberOf(school))
    const ids = (await world.sql`SELECT id::text AS id FROM pupils WHERE school_id = ${school}`).map(({ id }) => String(id))
    expect(new Set(ids).size).toBe(20)
    for (const id of ids) expect(range !== null && isInRange(range, id) && Number.isSafeInteger(Number(id))).toBe(true)
  }
  await world.sql`INSERT INTO pupils (school_id, name) VALUES ('a', 'of head office')`
  await a.sync()
  expect(await a.rows("SELECT id, name FROM pupils WHERE name = 'of head office'")).toEqual([{ id: 1, name: "of head office" }])
})

test("a bigint key outside the range is quarantined, inserted or moved to; an edit of any row is not", async () => {
  await a.write("INSERT INTO pupils (id, school_id, name) VALUES (7, 'a', 'own number')")
  await a.write("UPDATE pupils SET name = 'edited' WHERE name = 'of head office'")
  await a.write("UPDATE pupils SET id = 8 WHERE name = 'p1'")
  await a.sync()
  expect(await world.sql`SELECT id::int AS id, name FROM pupils WHERE id < 100`).toEqual([{ id: 1, name: "edited" }])
  const found = await reasons("public.pupils")
  expect(found.map(([reason]) => reason)).toEqual(["key_range", "key_range"])
  expect(found[0]?.[1]).toMatch(/range \d+ to \d+/)
})

test("a key of several columns is the program's own affair", async () => {
  await a.write("INSERT INTO days VALUES (3, '2026-01-01', 'a')")
  await a.sync()
  expect(await world.sql`SELECT pupil::int AS pupil FROM days`).toEqual([{ pupil: 3 }])
})

test("where only head office makes rows, a school's insert is quarantined and its edits go up", async () => {
  await a.write("UPDATE rooms SET name = 'great hall'")
  await a.write("INSERT INTO rooms (id, school_id, name) VALUES (2, 'a', 'shed')")
  await a.sync()
  expect(await world.sql`SELECT id, name FROM rooms`).toEqual([{ id: 1, name: "great hall" }])
  expect((await reasons("public.rooms")).map(([reason]) => reason)).toEqual(["insert"])
})

test("keys too small for ranges are refused with the way out, where schools may insert", () => {
  const key = column("id", "int", { type: "integer", notNull: true })
  const problems = keyProblems([
    table("pupils", [key]),
    table("down", [key], { direction: "down" }),
    table("office", [key], { insert: "vps" }),
    table("school", [key], { audience: { column: "id" } }),
    table("extra", [key], { references: [{ columns: ["id"], table: "public.pupils", to: ["id"] }] }),
    table("pair", [key, column("day")], { key: ["id", "day"] }),
    table("safe", [column("id", "bigint", { type: "bigint" })]),
  ])
  expect(problems).toHaveLength(1)
  expect(problems[0]).toContain('ALTER TABLE "public"."pupils" ALTER COLUMN "id" TYPE bigint')
  expect(problems[0]).toContain('insert: "vps"')
})

test("ranges do not meet, and end where a bigint does", () => {
  expect(keyRangeOf(1)).toEqual({ from: "1099511627776", to: "2199023255551" })
  expect(keyRangeOf(2)?.from).toBe("2199023255552")
  for (const number of [0, -1, 1.5, Number.NaN, MAX_SCHOOL_NUMBER + 1]) expect(keyRangeOf(number)).toBeNull()
  expect(BigInt(keyRangeOf(MAX_SCHOOL_NUMBER)?.to ?? 0) < 2n ** 63n).toBe(true)
})
