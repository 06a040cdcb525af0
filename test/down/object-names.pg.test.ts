/** Columns and tables whose names JavaScript's objects have of themselves. */
import { afterAll, beforeAll, expect, test } from "vitest"
import { readCatalog } from "../../src/postgres/catalog.ts"
import { wantedTables } from "../../src/down/prepare.ts"
import { parseConfig } from "../../src/config.ts"
import { makeWorld, type School, type World } from "../support/world.ts"

const NAMES = ["constructor", "toString", "hasOwnProperty", "valueOf"] as const
const COLUMNS = NAMES.map((name) => `"${name}"`).join(", ")
const SCHEMA = `
  CREATE TABLE buildings (id text PRIMARY KEY, school_id text, note text, ${NAMES.map((name) => `"${name}" text`).join(", ")});
  CREATE TABLE "constructor" (id text PRIMARY KEY, school_id text, "constructor" text UNIQUE);
  INSERT INTO buildings VALUES ('b1', 'a', 'n', 'c1', 't1', 'h1', 'v1');
  INSERT INTO "constructor" VALUES ('c1', 'a', 'x'), ('c9', 'b', 'y')`

let world: World
let a: School
beforeAll(async () => {
  world = await makeWorld(
    SCHEMA,
    {
      tables: {
        buildings: { audience: { column: "school_id" }, columns: { constructor: "school_wins" } },
        constructor: { audience: { column: "school_id" } },
      } as never,
    },
    ["a"],
  )
  a = await world.school("a")
  await a.pull()
})
afterAll(() => world?.stop())

const same = async () => {
  await a.sync()
  await a.sync()
  const rows = await a.rows(`SELECT id, note, ${COLUMNS} FROM buildings ORDER BY id`)
  expect(rows.map((row) => JSON.stringify(row))).toEqual(
    [...(await world.sql.unsafe(`SELECT id, note, ${COLUMNS} FROM buildings ORDER BY id`))].map((row) => JSON.stringify(row)),
  )
  return rows
}

test("go down and up, in new rows, edits of them, and edits that leave them alone", async () => {
  const read = async () => Object.entries((await a.rows(`SELECT ${COLUMNS} FROM buildings WHERE id = 'b1'`))[0] ?? {}).map(([, value]) => value)
  expect(await a.rows(`SELECT ${COLUMNS} FROM buildings`)).toHaveLength(1)
  await a.write("UPDATE buildings SET note = 'edited'")
  await same()
  expect(await world.sql.unsafe(`SELECT "constructor" AS c FROM buildings`)).toEqual([{ c: "c1" }])
  await a.write(`INSERT INTO buildings (id, school_id, note, ${COLUMNS}) VALUES ('b2', 'a', 'x', 'c2', 't2', 'h2', 'v2')`)
  await a.write(`INSERT INTO buildings (id, school_id, note) VALUES ('b3', 'a', 'x')`)
  await a.write(`UPDATE buildings SET "constructor" = 'mine' WHERE id = 'b1'`)
  await a.write(`INSERT INTO "constructor" VALUES ('c2', 'a', 'y')`)
  await same()
  expect(await read()).toEqual(["mine", "t1", "h1", "v1"])
  expect(await world.sql.unsafe(`SELECT id, "constructor" AS c FROM buildings ORDER BY id`)).toEqual([
    { id: "b1", c: "mine" },
    { id: "b2", c: "c2" },
    { id: "b3", c: null },
  ])
  expect(await world.sql`SELECT table_name, reason FROM schoolbus.quarantine`).toEqual([{ table_name: "public.constructor", reason: "unique" }])
})

test("a column whose values no object keeps is refused, with the remedy", async () => {
  await world.sql.unsafe(`CREATE TABLE odd (id text PRIMARY KEY, "__proto__" text)`)
  const parsed = parseConfig("test", { tables: { odd: { audience: "all" } } })
  if ("problems" in parsed) throw parsed
  const { found } = await world.run(world.pg.tx((session) => readCatalog(session, wantedTables(parsed))))
  const problems = found.flatMap((one) => (one.rule.name === "public.odd" ? one.problems : []))
  expect(problems).toMatchObject([{ code: "name", text: expect.stringContaining("ALTER TABLE public.odd RENAME COLUMN __proto__") }])
})
