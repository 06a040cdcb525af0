/** Tables of which schools only send rows: nothing of them comes down, so what the school wrote is all that it has. */
import { afterAll, beforeAll, expect, test } from "vitest"
import { makeWorld, type School, type World } from "../support/world.ts"

const schema = `
  CREATE TABLE wins (id text PRIMARY KEY, school_id text, n int);
  CREATE TABLE loses (id text PRIMARY KEY, school_id text, n int);
  CREATE TABLE waits (id text PRIMARY KEY, school_id text, n int)`
const TABLES = ["wins", "loses", "waits"] as const

let world: World
let a: School
beforeAll(async () => {
  const only = { audience: { column: "school_id" }, direction: "up" } as const
  const tables = {
    wins: { ...only, strategy: "school_wins" },
    loses: { ...only, strategy: "vps_wins" },
    waits: { ...only, strategy: "manual" },
  } as const
  world = await makeWorld(schema, { tables }, ["a"])
  a = await world.school("a")
})
afterAll(() => world?.stop())

test.each(TABLES)("a row that head office has made too stays in the school, and can be deleted there (%s)", async (name) => {
  await world.sql.unsafe(`INSERT INTO ${name} VALUES ('x', 'a', 1)`)
  await a.write(`INSERT INTO ${name} VALUES ('x', 'a', 2)`)
  await a.sync()
  await a.sync()
  expect(await world.sql`SELECT reason FROM schoolbus.conflicts WHERE table_name = ${`public.${name}`}`).toEqual([
    { reason: "both sides created the row" },
  ])
  expect(await a.rows(`SELECT id, n FROM ${name}`)).toEqual([{ id: "x", n: 2 }])
  await a.write(`UPDATE ${name} SET n = 3`)
  await a.sync()
  await a.sync()
  expect(await a.rows(`SELECT id, n FROM ${name}`)).toEqual([{ id: "x", n: 3 }])
  if (name !== "wins") return
  expect(await world.sql.unsafe(`SELECT n FROM ${name}`)).toEqual([{ n: 3 }])
  await a.write(`DELETE FROM ${name}`)
  await a.sync()
  await a.sync()
  expect([await world.sql.unsafe(`SELECT n FROM ${name}`), await a.rows(`SELECT n FROM ${name}`)]).toEqual([[], []])
})
