/** A DBA changes tables while hub and school run as an operator starts them, with a role that may not make event triggers. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import postgres from "postgres"
import { afterAll, beforeAll, expect, it } from "vitest"
import { EVENT_TRIGGER_SQL } from "../src/postgres/watch.ts"
import type { HubSnapshot, SchoolSnapshot } from "../src/status/snapshot.ts"
import { createDatabase, type Database } from "./support/postgres.ts"
import { command, program, type Service, startHub, startSchool } from "./support/processes.ts"
import { killAll } from "./support/run.ts"
import { until } from "./support/until.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-schema-"))
const config = join(folder, "schoolbus.config.ts")
const role = `hub_${crypto.randomUUID().slice(0, 8)}`

let db: Database
let sql: postgres.Sql
let url: string
let hub: Service<HubSnapshot>
let school: Service<SchoolSnapshot>

const books = (): ReadonlyArray<Record<string, unknown>> => program(school.dir, "SELECT * FROM books ORDER BY id")
const state = async (table: string) => (await hub.status()).tables.find((one) => one.table === table)

beforeAll(async () => {
  writeFileSync(
    config,
    `export default { tables: { books: { audience: { column: "school" }, strategy: "school_wins" }, notices: { audience: "all", direction: "down" } } }\n`,
  )
  db = await createDatabase()
  sql = postgres(db.url, { max: 2, onnotice: () => undefined })
  await sql.unsafe(`CREATE ROLE ${role} LOGIN REPLICATION; GRANT CREATE ON DATABASE "${db.name}" TO ${role};
    CREATE TABLE books (id uuid PRIMARY KEY, school text NOT NULL, title text NOT NULL, isbn text);
    CREATE TABLE notices (id uuid PRIMARY KEY, text text);
    GRANT SELECT, INSERT, UPDATE, DELETE ON books TO ${role}; GRANT SELECT ON notices TO ${role};
    INSERT INTO books VALUES ('00000000-0000-0000-0000-000000000001', 'a', 'One', '1'), ('00000000-0000-0000-0000-000000000002', 'a', 'Two', '2')`)
  url = Object.assign(new URL(db.url), { username: role }).href
  hub = await startHub(join(folder, "hub"), config, url)
  await until(
    () => `the hub to stream: ${hub.log()}`,
    async () => (await hub.status()).stream.state === "streaming",
  )
  const added = await command("schools", "add", "a", "--name", "A", "--database-url", url, "--json")
  school = await startSchool(join(folder, "school"), hub.url, (JSON.parse(added.out) as { key: string }).key)
  await until(
    () => `the first copy: ${school.log()}`,
    async () => (await school.status()).state === "up_to_date",
  )
}, 120_000)

afterAll(async () => {
  await killAll()
  await sql?.end({ timeout: 1 })
  await db?.drop()
  rmSync(folder, { recursive: true, force: true })
})

it("a column with a constant default reaches a connected school by itself, without any row being written", async () => {
  expect(hub.log()).toContain("may not make event triggers")
  await sql`ALTER TABLE books ADD COLUMN shelf text NOT NULL DEFAULT 'A1'`
  await until("the column", () => books().every((book) => book["shelf"] === "A1"))
  program(school.dir, "INSERT INTO books (id, school, title) VALUES ('00000000-0000-0000-0000-000000000003', 'a', 'Three')")
  await until("the row to go up", async () => (await sql`SELECT shelf FROM books WHERE title = 'Three'`)[0]?.["shelf"] === "A1")
})

it("the SQL for a superuser makes the event triggers; from then on a change pauses its table at once", async () => {
  for (const statement of EVENT_TRIGGER_SQL) await sql.unsafe(statement)
  await hub.stop()
  hub.start()
  await until("the hub to stream", async () => (await hub.status()).stream.state === "streaming")
  await sql.begin(async (tx) => {
    await tx`ALTER TABLE books DROP COLUMN isbn`
    await tx`INSERT INTO notices VALUES ('00000000-0000-0000-0000-000000000009', 'still comes')`
  })
  await until("the pause", async () => (await state("public.books"))?.state === "paused")
  await until("other tables", () => program(school.dir, "SELECT text FROM notices")[0]?.["text"] === "still comes")

  const seen = await hub.status()
  expect(seen).toMatchObject({ state: "stuck", reason: expect.stringContaining("schoolbus tables resume public.books") })
  const check = await command("check", "tables", "--url", hub.url)
  expect([check.code, check.out]).toEqual([2, expect.stringContaining("column isbn of table public.books was dropped")])
  expect(await fetch(`${hub.url}/metrics`).then((answer) => answer.text())).toContain('schoolbus_table_state{table="public.books",state="paused"} 1')
  const listed = await command("tables", "list", "--url", hub.url)
  expect(listed.out).toMatch(/public\.books\s+paused\s+3\s+column isbn of table public\.books was dropped/)
})

it("the school says what head office has paused, why, and since when", async () => {
  const told = /head office has paused table public\.books since \d{4}-\d\d-\d\d \d\d:\d\d UTC: column isbn of table public\.books was dropped/
  await until("the school to hear of it", async () => {
    const { state, reason } = await school.status()
    return state === "up_to_date" && told.test(reason)
  })
  expect(await school.status()).toMatchObject({
    tables: expect.arrayContaining([expect.objectContaining({ state: "paused", reason: expect.stringMatching(told) })]),
  })
  const check = await command("check", "tables", "--url", school.url)
  expect([check.code, check.out]).toEqual([1, expect.stringMatching(told)])
})

it("a restart keeps the pause and starts the rest; resume takes the new shape to the school, and away what head office deleted meanwhile", async () => {
  await hub.stop()
  hub.start()
  await until("the hub to stream", async () => (await hub.status()).stream.state === "streaming")
  expect((await state("public.books"))?.state).toBe("paused")
  expect((await command("tables", "resume", "nothing", "--url", hub.url)).err).toContain("public.nothing is not synced")
  expect((await command("tables", "resume", "notices", "--url", hub.url)).err).toContain("is not paused")
  program(school.dir, "INSERT INTO books (id, school, title) VALUES ('00000000-0000-0000-0000-000000000004', 'a', 'Four')")
  await until("the row to go up", async () => (await sql`SELECT FROM books WHERE title = 'Four'`).length === 1)
  await sql`DELETE FROM books WHERE title = 'Four'`
  program(school.dir, "UPDATE books SET title = 'Zwei' WHERE title = 'Two'")
  await sql`UPDATE books SET title = 'Uno' WHERE title = 'One'`
  const resumed = await command("tables", "resume", "books", "--url", hub.url)
  expect([resumed.code, resumed.out]).toEqual([0, expect.stringContaining("public.books goes on")])
  await until(
    "the school to follow",
    () => JSON.stringify(books().map((book) => [book["title"], "isbn" in book])) === '[["Uno",false],["Zwei",false],["Three",false]]',
  )
  await until("the edit to go up", async () => (await sql`SELECT title FROM books WHERE title = 'Zwei'`).length === 1)
  expect((await command("tables", "resume", "books", "--url", hub.url)).code).toBe(1)
  expect((await command("check", "tables", "--url", hub.url)).code).toBe(0)
})

it("a table that cannot go on as it is says why; a lost right pauses its table alone", async () => {
  await sql.unsafe(`REVOKE SELECT ON books FROM ${role}`)
  await sql`COMMENT ON TABLE books IS 'looked at'`
  await until("the pause", async () => (await state("public.books"))?.state === "paused")
  const refused = await command("tables", "resume", "books", "--url", hub.url)
  expect([refused.code, refused.err]).toEqual([1, expect.stringContaining("GRANT SELECT ON public.books")])
  await sql`INSERT INTO notices VALUES ('00000000-0000-0000-0000-00000000000a', 'flows')`
  await until("other tables", () => program(school.dir, "SELECT text FROM notices WHERE text = 'flows'").length === 1)
  await sql.unsafe(`GRANT SELECT ON books TO ${role}`)
  await sql`UPDATE books SET title = 'Uno!' WHERE title = 'Uno'`
  await sql`COMMENT ON TABLE books IS NULL`
  await until("the table to go on", () => books().some((book) => book["title"] === "Uno!"))
  await sql.unsafe("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
  await sql`COMMENT ON TABLE books IS 'looked at'`
  await until("the pause", async () => (await state("public.books"))?.state === "paused")
  const closed = await command("tables", "resume", "books", "--url", hub.url)
  expect([closed.code, closed.err]).toEqual([
    1,
    expect.stringContaining(`may not read all columns of table public.books; a DBA can allow it: GRANT USAGE ON SCHEMA public TO ${role}\n`),
  ])
  await sql.unsafe(`GRANT USAGE ON SCHEMA public TO ${role}`)
  await sql`COMMENT ON TABLE books IS NULL`
  await until(
    "both tables to go on",
    async () => (await state("public.books"))?.state !== "paused" && (await state("public.notices"))?.state !== "paused",
  )
})

it("a unique constraint that rows of the school do not keep is told with its rows, and holds there as soon as they differ", async () => {
  await hub.stop()
  for (const [n, title] of [
    [4, "Twin"],
    [5, "Twin"],
    [6, "Alone"],
  ] as const)
    program(school.dir, `INSERT INTO books (id, school, title) VALUES ('00000000-0000-0000-0000-00000000000${n}', 'a', '${title}')`)
  await sql`ALTER TABLE books ADD UNIQUE (title)`
  hub.start()
  const fault = await until("the fault", async () => (await school.status()).tables.find(({ table }) => table === "public.books")?.fault)
  expect(fault).toMatch(/\(title\) once only, and 2 rows here share theirs, as \('Twin'\) in the rows .*'00000000-0000-0000-0000-000000000004'/)
  expect(fault).toContain("schoolbus conflicts list")
  const check = await command("check", "tables", "--url", school.url)
  expect([check.code, check.out]).toEqual([1, expect.stringContaining("2 rows here share theirs")])
  const conflict = await until(
    "the clash",
    async () => (await sql`SELECT id::text AS id FROM schoolbus.conflicts WHERE kind = 'unique' AND status = 'open'`)[0],
  )
  expect((await command("conflicts", "resolve", String(conflict["id"]), "--keep", "rename_local", "--url", hub.url)).code).toBe(0)
  await until("the constraint", async () => (await school.status()).tables.every((one) => one.fault === undefined))
  expect(() => program(school.dir, "UPDATE books SET title = 'Twin' WHERE title = 'Alone'")).toThrow(/UNIQUE/)
  expect((await command("check", "tables", "--url", school.url)).code).toBe(0)
})
