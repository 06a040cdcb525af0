/** Rows to which a school gave another key, and what becomes of them when head office has no such row in the end. */
import { randomUUID } from "node:crypto"
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest"
import { makeWorld, type School, type World } from "../support/world.ts"

let w: World
let a: School
let k = 0
beforeAll(async () => {
  w = await makeWorld(
    `CREATE TABLE pupils (id text PRIMARY KEY, school_id text, class text, name text, label text GENERATED ALWAYS AS (upper(name)) STORED);
     CREATE TABLE classes (id text PRIMARY KEY, school_id text);
     ALTER TABLE pupils ADD FOREIGN KEY (class) REFERENCES classes (id);
     CREATE TABLE marks (pupil text REFERENCES pupils (id) ON DELETE CASCADE, subject text, school_id text, mark int, PRIMARY KEY (pupil, subject));
     CREATE TABLE notes (id text PRIMARY KEY, school_id text, v text);
     CREATE TABLE rooms (id text PRIMARY KEY, school_id text);
     CREATE TABLE desks (id text PRIMARY KEY, school_id text, room text REFERENCES rooms (id) DEFERRABLE INITIALLY DEFERRED);`,
    {
      tables: {
        pupils: { audience: { column: "school_id" }, strategy: "vps_wins" },
        classes: { audience: { column: "school_id" } },
        marks: { audience: { column: "school_id" }, strategy: "school_wins" },
        rooms: { audience: { column: "school_id" } },
        desks: { audience: { column: "school_id" } },
        notes: { audience: { column: "school_id" }, strategy: "manual" },
      },
    },
    ["a"],
  )
  a = await w.school("a")
})
afterAll(() => w?.stop())

const request = async (action: string, target: string, choice: object | null = null): Promise<void> => {
  const values = [randomUUID(), "a", action, target, choice === null ? null : JSON.stringify(choice)]
  await a.write(
    "INSERT INTO schoolbus_requests (id, school, action, target, choice, by, at, status) VALUES (?, ?, ?, ?, ?, 'amina', '2026', 'sent')",
    values,
  )
  await a.sync()
  expect(await a.rows("SELECT status, message FROM schoolbus_requests WHERE id = ?", [values[0] ?? null])).toEqual([
    { status: "done", message: null },
  ])
}
const kept = async () =>
  (await w.sql`SELECT id::text AS id, reason FROM schoolbus.quarantine WHERE status = 'open'`)[0] as { readonly id: string; readonly reason: string }
const nothingWaits = async () =>
  expect(await a.rows("SELECT (SELECT count(*) FROM schoolbus_hold) + (SELECT count(*) FROM schoolbus_behind) AS n")).toEqual([{ n: 0 }])

beforeEach(async () => {
  k++
  await w.sql`INSERT INTO pupils (id, school_id, name) VALUES (${`p${k}`}, 'a', 'amina')`
  await w.sql`INSERT INTO marks VALUES (${`p${k}`}, 'art', 'a', 1)`
  await w.sql`INSERT INTO notes VALUES (${`n${k}`}, 'a', 'base')`
  await w.settle()
  await a.pull()
})

test("a row that the delete of its parent takes along in the same batch leaves the school", async () => {
  await a.write(`UPDATE marks SET subject = 'music' WHERE pupil = 'p${k}'`)
  await a.write(`DELETE FROM pupils WHERE id = 'p${k}'`)
  await a.sync()
  expect(await a.rows(`SELECT * FROM marks WHERE pupil = 'p${k}'`)).toEqual([])
  await nothingWaits()
})

describe("of a row whose new key waits for a person, and which head office then deletes,", () => {
  beforeEach(async () => {
    await a.write(`UPDATE pupils SET id = 'new${k}', class = 'none' WHERE id = 'p${k}'`)
    await a.sync()
    expect(await kept()).toMatchObject({ reason: "foreign_key" })
    await w.sql`DELETE FROM pupils WHERE id = ${`p${k}`}`
  })
  const gone = async () => {
    expect(await a.rows(`SELECT id FROM pupils WHERE id IN ('p${k}', 'new${k}')`)).toEqual([])
    await nothingWaits()
  }
  test("a later edit that loses takes it along", async () => {
    await a.write(`UPDATE pupils SET name = 'juma' WHERE id = 'new${k}'`)
    await a.sync()
    await gone()
  })
  test("another try that loses takes it along", async () => {
    await request("retry", (await kept()).id)
    await gone()
  })
  test("nothing is left once it is discarded", async () => {
    await request("discard", (await kept()).id)
    await gone()
  })
})

test("a new row whose later edit goes with its parent leaves the school", async () => {
  await a.write(`INSERT INTO marks VALUES ('p${k}', 'chess', 'a', 5000000000)`)
  await a.sync()
  expect(await kept()).toMatchObject({ reason: "type" })
  await a.write(`UPDATE marks SET mark = 5 WHERE subject = 'chess'`)
  await a.write(`DELETE FROM pupils WHERE id = 'p${k}'`)
  await a.sync()
  expect(await a.rows(`SELECT * FROM marks WHERE pupil = 'p${k}'`)).toEqual([])
  await nothingWaits()
})

test("a later edit under the new key goes into the open record of the row that head office deleted", async () => {
  await w.sql`DELETE FROM notes WHERE id = ${`n${k}`}`
  await a.write(`UPDATE notes SET id = 'new${k}' WHERE id = 'n${k}'`)
  await a.sync()
  await a.write(`UPDATE notes SET v = 'later' WHERE id = 'new${k}'`)
  await a.sync()
  expect(await kept()).toBeUndefined()
  const open =
    await w.sql`SELECT id::text AS id, mine::json ->> 'v' AS v FROM schoolbus.conflicts WHERE status = 'open' AND row_key = ${`["new${k}"]`}`
  expect(open.map(({ v }) => v)).toEqual(["later"])
  await request("resolve", String(open[0]?.["id"]), { keep: "school" })
  expect([...(await w.sql`SELECT id, v FROM notes WHERE id IN (${`n${k}`}, ${`new${k}`})`)]).toEqual([{ id: `new${k}`, v: "later" }])
  expect(await a.rows(`SELECT id, v FROM notes WHERE id IN ('n${k}', 'new${k}')`)).toEqual([{ id: `new${k}`, v: "later" }])
  await nothingWaits()
})

test("a row that head office deleted leaves the school once head office's side is kept, whatever its key is there", async () => {
  await w.sql`DELETE FROM notes WHERE id = ${`n${k}`}`
  await a.write(`UPDATE notes SET id = 'new${k}' WHERE id = 'n${k}'`)
  await a.sync()
  expect(await a.rows(`SELECT id FROM notes WHERE id = 'new${k}'`)).toEqual([{ id: `new${k}` }])
  const [open] = await w.sql`SELECT id::text AS id FROM schoolbus.conflicts WHERE status = 'open' AND row_key = ${`["new${k}"]`}`
  await request("resolve", String(open?.["id"]), { keep: "vps" })
  expect(await a.rows(`SELECT id FROM notes WHERE id IN ('n${k}', 'new${k}')`)).toEqual([])
  await nothingWaits()
})

test("a key to which head office still refers is refused, also where Postgres looks at that in the end only; the rest of the push is taken", async () => {
  await w.sql`INSERT INTO rooms VALUES (${`r${k}`}, 'a')`
  await w.sql`INSERT INTO desks VALUES (${`d${k}`}, 'a', ${`r${k}`}), (${`e${k}`}, 'b', ${`r${k}`})`
  await w.settle()
  await a.pull()
  await a.write(`UPDATE rooms SET id = 'new${k}' WHERE id = 'r${k}'`)
  await a.write(`UPDATE desks SET room = 'new${k}' WHERE id = 'd${k}'`)
  await a.write(`UPDATE notes SET v = 'taken' WHERE id = 'n${k}'`)
  await a.sync()
  expect([...(await w.sql`SELECT table_name, reason FROM schoolbus.quarantine WHERE status = 'open' ORDER BY 1`)]).toEqual([
    { table_name: "public.desks", reason: "dependant" },
    { table_name: "public.rooms", reason: "foreign_key" },
  ])
  expect([...(await w.sql`SELECT v FROM notes WHERE id = ${`n${k}`}`)]).toEqual([{ v: "taken" }])
  await w.sql`UPDATE schoolbus.quarantine SET status = 'discarded'`
  await w.settle()
  await a.pull()
})

describe("what Postgres computes stands in the school again once", () => {
  const shown = async () =>
    expect(await a.rows(`SELECT id, name, label FROM pupils WHERE id = 'p${k}'`)).toEqual([{ id: `p${k}`, name: "amina", label: "AMINA" }])
  test("a delete is discarded", async () => {
    await w.sql`INSERT INTO marks VALUES (${`p${k}`}, 'of another school', 'b', 1)`
    await a.write(`DELETE FROM pupils WHERE id = 'p${k}'`)
    await a.sync()
    expect(await kept()).toMatchObject({ reason: "shared" })
    await request("discard", (await kept()).id)
    await shown()
  })
  test("another key is discarded", async () => {
    await a.write(`UPDATE pupils SET id = 'new${k}', class = 'none' WHERE id = 'p${k}'`)
    await a.sync()
    await request("discard", (await kept()).id)
    await shown()
    expect(await a.rows(`SELECT id FROM pupils WHERE id = 'new${k}'`)).toEqual([])
  })
})
