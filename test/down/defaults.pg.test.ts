/**
 * Columns that Postgres fills in by itself: a school's program that leaves them out gets the same there, and what its file filled
 * in goes up and stands at head office byte for byte.
 */
import { afterAll, beforeAll, expect, test } from "vitest"
import * as Effect from "effect/Effect"
import { parseConfig } from "../../src/config.ts"
import { wantedTables } from "../../src/down/prepare.ts"
import { readCatalog } from "../../src/postgres/catalog.ts"
import { makeWorld, type School, type World } from "../support/world.ts"

const schema = `
  CREATE DOMAIN moment AS timestamptz;
  CREATE TABLE visits (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    school_id text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    to_the_second timestamp(0) with time zone NOT NULL DEFAULT CURRENT_TIMESTAMP,
    tenth timestamp(1) NOT NULL DEFAULT LOCALTIMESTAMP,
    utc timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'utc'),
    day date NOT NULL DEFAULT CURRENT_DATE,
    clock time NOT NULL DEFAULT LOCALTIME,
    zoned timetz NOT NULL DEFAULT CURRENT_TIME,
    noticed moment NOT NULL DEFAULT clock_timestamp(),
    token text NOT NULL DEFAULT gen_random_uuid()::text,
    tags text[] NOT NULL DEFAULT ARRAY[]::text[],
    maybe timestamptz DEFAULT now()
  );
  CREATE TABLE receipts (id bigserial PRIMARY KEY, school_id text NOT NULL, no bigserial, by text NOT NULL DEFAULT CURRENT_USER, at timestamptz NOT NULL DEFAULT now());`

const config = {
  tables: {
    visits: { audience: { column: "school_id" }, strategy: "school_wins" },
    receipts: { audience: { column: "school_id" }, strategy: "school_wins" },
  },
} as const

let world: World
let a: School
let b: School
beforeAll(async () => {
  world = await makeWorld(schema, config, ["a", "b"])
  a = await world.school("a")
  b = await world.school("b")
  await a.pull()
})
afterAll(() => world.stop())

const office = async (table: string, columns: ReadonlyArray<string>) => [
  ...(await world.sql.unsafe(`SELECT ${columns.map((name) => `${name}::text AS ${name}`).join(", ")} FROM ${table} ORDER BY ${table}.id`)),
]

test("what the file fills in stands at head office as it is, and comes back unchanged", async () => {
  const before = Date.now()
  for (let i = 0; i < 40; i++) await a.write("INSERT INTO visits (school_id) VALUES ('a')")
  await a.write("INSERT INTO visits (school_id, at, token) VALUES ('a', '2026-01-01 08:00:00+00', 'given')")
  const here = () => a.rows("SELECT * FROM visits ORDER BY id")
  const rows = await here()
  for (const row of rows) {
    expect(row["id"]).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
    expect(row["tags"]).toBe("{}")
    const moment = Date.parse(String(row["noticed"]).replace(" ", "T").replace("+00", "Z"))
    expect([moment >= before - 1, moment <= Date.now()]).toEqual([true, true])
  }
  expect(new Set(rows.map((row) => row["token"])).size).toBe(rows.length)
  const verdicts = await a.push()
  expect(verdicts.flatMap(({ exceptions }) => exceptions)).toEqual([])
  expect(await office("visits", Object.keys(rows[0] ?? {}))).toEqual(rows)
  await a.sync()
  expect(await here()).toEqual(rows)
  expect(await a.rows("SELECT * FROM changes")).toEqual([])
  expect(await a.rows("SELECT * FROM schoolbus_behind")).toEqual([])
})

test("so does a column that is added while rows stand in the file", async () => {
  await world.sql`ALTER TABLE visits ADD COLUMN seen timestamptz NOT NULL DEFAULT now(), ADD COLUMN ref uuid NOT NULL DEFAULT gen_random_uuid()`
  const names = async () => (await a.rows<{ name: string }>("SELECT name FROM pragma_table_info('visits')")).map(({ name }) => name)
  for (const limit = Date.now() + 20_000; !(await names()).includes("ref") && Date.now() < limit; ) {
    await world.settle()
    await a.pull()
  }
  await a.write("INSERT INTO visits (school_id, token) VALUES ('a', 'later')")
  const [row] = await a.rows("SELECT seen, ref FROM visits WHERE token = 'later'")
  expect(row?.["ref"]).toMatch(/^[0-9a-f-]{36}$/)
  await a.sync()
  expect([...(await world.sql`SELECT seen::text, ref::text FROM visits WHERE token = 'later'`)]).toEqual([row])
  const columns = await names()
  expect(await office("visits", columns)).toEqual(await a.rows(`SELECT ${columns.join(", ")} FROM visits ORDER BY id`))
})

test("a default that changes is the file's too", async () => {
  await world.sql`ALTER TABLE visits ALTER COLUMN maybe DROP DEFAULT, ALTER COLUMN token SET DEFAULT 'none'`
  for (const limit = Date.now() + 20_000; Date.now() < limit; ) {
    await world.settle()
    await a.pull()
    const [token] = await a.rows<{ dflt_value: string }>("SELECT dflt_value FROM pragma_table_info('visits') WHERE name = 'token'")
    if (token?.dflt_value === "'none'") break
  }
  await a.write("INSERT INTO visits (id, school_id) VALUES ('00000000-0000-4000-8000-000000000001', 'a')")
  await a.sync()
  const rows = await world.sql`SELECT token, maybe FROM visits WHERE id = '00000000-0000-4000-8000-000000000001'`
  expect([...rows]).toEqual([{ token: "none", maybe: null }])
})

test("what only Postgres can fill in is told with the table, and a value that a program gives goes through", async () => {
  const parsed = parseConfig("test", config)
  if ("problems" in parsed) throw parsed
  const { notes } = await Effect.runPromise(world.pg.tx((session) => readCatalog(session, wantedTables(parsed))))
  expect(notes).toEqual([
    "columns no, by of table public.receipts must not be null and have defaults that only Postgres can compute: a school's program gives values in every INSERT",
  ])
  await expect(b.write("INSERT INTO receipts (school_id) VALUES ('b')")).rejects.toThrow(/NOT NULL/)
  await b.write("INSERT INTO receipts (school_id, no, by) VALUES ('b', 7, 'b')")
  await b.sync()
  const [row] = await b.rows("SELECT CAST(id AS TEXT) AS id, school_id, CAST(no AS TEXT) AS no, by, at FROM receipts")
  expect(await office("receipts", ["id", "school_id", "no", "by", "at"])).toEqual([row])
})
