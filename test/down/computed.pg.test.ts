/** Columns that Postgres computes, in a school: whatever becomes of a program's write, they show what Postgres has. */
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest"
import { makeWorld, type School, type World } from "../support/world.ts"

const schema = `
  CREATE TABLE halls (id text PRIMARY KEY, school_id text, seats int, doubled int GENERATED ALWAYS AS (seats * 2) STORED);
  CREATE TABLE rules (id text PRIMARY KEY, body text, size int GENERATED ALWAYS AS (length(body)) STORED)`

let world: World
let a: School
beforeAll(async () => {
  world = await makeWorld(schema, { tables: { halls: { audience: { column: "school_id" } }, rules: { audience: "all" } } }, ["a"])
  a = await world.school("a")
})
afterAll(() => world?.stop())
beforeEach(async () => {
  await world.sql`DELETE FROM halls`
  await world.sql`DELETE FROM rules`
  await world.sql`INSERT INTO halls SELECT 'h' || n, 'a', n FROM generate_series(1, 3) n`
  await world.sql`INSERT INTO rules VALUES ('r1', 'be quiet')`
  await both()
})

const both = async () => {
  await a.sync()
  await world.settle()
  await a.pull()
}
const same = async () => {
  await both()
  expect(await a.rows("SELECT id, school_id, seats, doubled FROM halls ORDER BY id")).toEqual([
    ...(await world.sql`SELECT id, school_id, seats, doubled FROM halls ORDER BY id`),
  ])
  expect(await a.rows("SELECT id, body, size FROM rules ORDER BY id")).toEqual([...(await world.sql`SELECT id, body, size FROM rules ORDER BY id`)])
  expect(await a.rows("SELECT (SELECT count(*) FROM schoolbus_behind) + (SELECT count(*) FROM changes) AS n")).toEqual([{ n: 0 }])
}

test("new rows, edits, key changes and deletes", async () => {
  await a.write("INSERT INTO halls (id, school_id, seats) VALUES ('h4', 'a', 9)")
  await a.write("UPDATE halls SET seats = 7 WHERE id = 'h1'")
  await a.write("UPDATE halls SET id = 'moved' WHERE id = 'h2'")
  await a.write("DELETE FROM halls WHERE id = 'h3'")
  await same()
})

test("a delete that is refused and given up", async () => {
  await a.write("DELETE FROM rules WHERE id = 'r1'")
  await both()
  expect(await world.sql`SELECT reason FROM schoolbus.quarantine WHERE status = 'open'`).toMatchObject([{ reason: "shared" }])
  await world.sql`UPDATE schoolbus.quarantine SET status = 'discarded'`
  await same()
})

test("a row that a program puts in place of itself, with other values and with the same", async () => {
  await a.write("INSERT OR REPLACE INTO halls (id, school_id, seats) VALUES ('h1', 'a', 8)")
  await same()
  await a.write("INSERT OR REPLACE INTO halls (id, school_id, seats) VALUES ('h2', 'a', 2)")
  await same()
  await a.write("DELETE FROM halls WHERE id = 'h3'")
  await a.write("INSERT INTO halls (id, school_id, seats) VALUES ('h3', 'a', 3)")
  await same()
})

test("what a program writes into them itself", async () => {
  await a.write("UPDATE halls SET doubled = 99 WHERE id = 'h1'")
  await a.write("UPDATE halls SET doubled = 98, seats = 6 WHERE id = 'h2'")
  await a.write("INSERT INTO halls (id, school_id, seats, doubled) VALUES ('h4', 'a', 9, 1)")
  await same()
})
