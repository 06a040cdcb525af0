/** The hub as a process, as somebody starts it who has read the README and made a mistake. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import postgres from "postgres"
import { afterAll, afterEach, beforeAll, expect, it } from "vitest"
import { createDatabase, type Database, run, testCluster } from "./support/postgres.ts"
import { begin, killAll } from "./support/run.ts"
import { until } from "./support/until.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-hubs-"))
const role = `hub_${crypto.randomUUID().slice(0, 8)}`

let database: Database
beforeAll(async () => {
  database = await createDatabase()
  await run(
    database.url,
    `CREATE TABLE pupils (id text PRIMARY KEY, school_id text, name text);
     CREATE TABLE keyless (a int);
     CREATE VIEW seen AS SELECT * FROM pupils;
     CREATE TABLE changes (id text PRIMARY KEY, "Name" text, name text);
     CREATE TABLE years (y int PRIMARY KEY) PARTITION BY RANGE (y);
     CREATE TABLE person (id text PRIMARY KEY);
     CREATE TABLE teacher (subject text, PRIMARY KEY (id)) INHERITS (person);
     CREATE TABLE "Pupils" (id text PRIMARY KEY, school_id text);
     CREATE ROLE ${role} LOGIN;
     GRANT SELECT, INSERT, UPDATE, DELETE ON pupils TO ${role}`,
  )
})
afterAll(async () => {
  if (database !== undefined) await run(database.url, `DROP OWNED BY ${role}`)
  await database?.drop()
  const { url } = await createDatabase()
  await run(url, `DROP ROLE ${role}`)
  rmSync(folder, { recursive: true, force: true })
})

afterEach(killAll)
let made = 0
const startHub = (config: object, url: string, dataDir = join(folder, `hub${++made}`)) => {
  const file = join(folder, `config${++made}.ts`)
  writeFileSync(file, `export default ${JSON.stringify(config)}`)
  const hub = begin(["hub", "--config", file, "--database-url", url, "--data-dir", dataDir, "--port", "0"])
  return {
    ...hub,
    dataDir,
    get: async (path: string): Promise<Record<string, unknown>> => (await fetch(`${await hub.url()}${path}`)).json() as never,
  }
}
const good = { tables: { pupils: { audience: { column: "school_id" } } } }

it("gives a DBA the SQL when its role may not set up the schema; with it the same role streams", async () => {
  const asRole = new URL(database.url)
  asRole.username = role
  const refused = startHub(good, asRole.href)
  expect((await refused.ended).code).toBe(77)
  expect((await refused.ended).err).toContain("standard output")
  await run(database.url, (await refused.ended).out)
  const hub = startHub(good, asRole.href)
  await hub.says("streaming from slot")
  expect(await hub.stop()).toBe(0)
  // Set up, but the rights are gone again.
  await run(database.url, `REVOKE ALL ON ALL TABLES IN SCHEMA schoolbus FROM ${role}; REVOKE ALL ON SCHEMA schoolbus FROM ${role}`)
  const again = startHub(good, asRole.href)
  expect((await again.ended).code).toBe(77)
  await run(database.url, (await again.ended).out)
  const back = startHub(good, asRole.href)
  await back.says("streaming from slot")
  expect(await back.stop()).toBe(0)
  await run(database.url, `ALTER ROLE ${role} SET session_replication_role = replica`)
  const without = startHub(good, asRole.href)
  const { code, out, err } = await without.ended
  expect([code, out]).toEqual([77, ""])
  expect(err).toContain("RESET session_replication_role")
})

it("says everything at once that is wrong with the tables, each with its remedy, and ends with 78", async () => {
  const hub = startHub(
    {
      tables: {
        pupils: { audience: { column: "scool" }, columns: { nme: "vps_wins" } },
        keyless: { audience: "all" },
        missing: { audience: "all" },
        seen: { audience: "all" },
        changes: { audience: "all" },
        Pupils: { audience: "all" },
        person: { audience: "all" },
        years: { audience: "all" },
        teacher: { audience: "all" },
      },
      devices: { people: { pupils: { id: "id", name: "full_name" } } },
    },
    database.url,
  )
  expect((await hub.ended).code).toBe(78)
  for (const part of ["scool", "nme", "ADD PRIMARY KEY", "public.missing does not exist", "public.seen is a view", "full_name"])
    expect((await hub.ended).err).toContain(part)
  for (const part of [
    "list its partitions",
    "called changes in the school's file",
    "columns Name and name of table public.changes",
    "tables public.pupils and public.Pupils",
    "public.person is inherited by public.teacher",
  ])
    expect((await hub.ended).err).toContain(part)
})

it("under another name of the database it names the slot that it leaves behind", async () => {
  const own = await createDatabase()
  const { url } = await testCluster()
  await run(own.url, "CREATE TABLE pupils (id text PRIMARY KEY, school_id text)")
  const before = startHub(good, own.url)
  await before.says("streaming from slot")
  expect(await before.stop()).toBe(0)
  await run(url(), `ALTER DATABASE "${own.name}" RENAME TO "${own.name}_new"`)
  const after = startHub(good, url(`${own.name}_new`), before.dataDir)
  await after.says(`SELECT pg_drop_replication_slot('schoolbus_${own.name}')`)
  await after.says("streaming from slot")
  expect(await after.stop()).toBe(0)
  await run(url(), `ALTER DATABASE "${own.name}_new" RENAME TO "${own.name}"`)
  await own.drop()
})

it("views and functions of its schema that somebody dropped are made again; a dropped table is named and waited for", async () => {
  const own = await createDatabase()
  await run(own.url, "CREATE TABLE pupils (id text PRIMARY KEY, school_id text)")
  const hub = startHub(good, own.url)
  await hub.says("streaming from slot")
  const again = async () => (hub.output().match(/streaming from slot/g) ?? []).length
  const before = await again()
  await run(own.url, "DROP VIEW schoolbus.slot_health; DROP FUNCTION schoolbus.note_schema_change CASCADE")
  await run(own.url, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database()")
  await until("the stream to go on", async () => (await again()) > before)
  expect(await run(own.url, "SELECT slot_name FROM schoolbus.slot_health")).toHaveLength(1)
  expect(await run(own.url, "SELECT 1 FROM pg_event_trigger WHERE evtname IN ('schoolbus_ddl', 'schoolbus_drop')")).toHaveLength(2)

  await run(own.url, "ALTER TABLE schoolbus.marks SET SCHEMA public")
  await run(own.url, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database()")
  await hub.says("lacks marks: dropped, or not yet restored")
  const doctor = begin(["doctor", "--database-url", own.url])
  expect((await doctor.ended).code).toBe(1)
  expect((await doctor.ended).out).toContain("lacks marks")
  const broken = await again()
  await run(own.url, "ALTER TABLE public.marks SET SCHEMA schoolbus")
  await until("the stream to go on", async () => (await again()) > broken)
  expect(await hub.stop()).toBe(0)
  await own.drop()
})

it("started while somebody holds a table, it listens and says so, and streams once that is over", async () => {
  const own = await createDatabase()
  await run(own.url, "CREATE TABLE pupils (id text PRIMARY KEY, school_id text, name text DEFAULT 'x')")
  const before = startHub(good, own.url)
  await before.says("streaming from slot")
  expect(await before.stop()).toBe(0)
  for (const table of ["pupils", "schoolbus.migrations", "schoolbus.hub"]) {
    const held = postgres(own.url, { max: 1, onnotice: () => undefined })
    await held.unsafe(`BEGIN; LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE`)
    const hub = startHub(good, own.url, before.dataDir)
    await hub.says("a program holds the lock")
    expect(await hub.get("/health")).toMatchObject({ status: expect.anything() })
    await held.unsafe("COMMIT")
    await held.end()
    await hub.says("streaming from slot")
    expect(await hub.stop()).toBe(0)
  }
  await own.drop()
}, 60_000)

it("a slot that another database of the server has under its name is told of, with the way to free it, and the stream begins then", async () => {
  const own = await createDatabase()
  const { url } = await testCluster()
  const slot = `schoolbus_${own.name}`
  await run(own.url, "CREATE TABLE pupils (id text PRIMARY KEY, school_id text)")
  const before = startHub(good, own.url)
  await before.says("streaming from slot")
  expect(await before.stop()).toBe(0)
  // As somebody does who puts a backup beside the damaged database.
  await run(url(), `ALTER DATABASE "${own.name}" RENAME TO "${own.name}_old"`)
  await run(url(), `CREATE DATABASE "${own.name}" TEMPLATE "${own.name}_old"`)
  const after = startHub(good, own.url, before.dataDir)
  const drop = `SELECT pg_drop_replication_slot('${slot}');`
  const said = `slot ${slot} is of database ${own.name}_old, and nobody reads it; when that database is not synced any more, run in it: ${drop}`
  await after.says(said)
  const doctor = begin(["doctor", "--database-url", own.url])
  expect((await doctor.ended).out).toContain(said)
  expect((await doctor.ended).code).toBe(1)
  await run(url(`${own.name}_old`), drop)
  await after.says("streaming from slot")
  expect(await after.stop()).toBe(0)
  await own.drop()
  await run(url(), `DROP DATABASE "${own.name}_old"`)
})

it("a second process on the feed ends with 69; a second hub waits, says who holds the slot, and takes over", async () => {
  const first = startHub(good, database.url)
  await first.says("streaming from slot")
  const twin = startHub(good, database.url, first.dataDir)
  expect((await twin.ended).code).toBe(69)
  expect((await twin.ended).err).toContain("another schoolbus process is running")
  const standby = startHub(good, database.url)
  await standby.says("listens on")
  let status = await standby.get("/api/sync/status")
  for (const deadline = Date.now() + 20_000; !String(status["reason"]).includes("holds slot") && Date.now() < deadline; )
    status = await standby.get("/api/sync/status")
  expect(status).toMatchObject({ state: "paused", reason: expect.stringMatching(/another hub holds slot schoolbus_.*: process \d+/) })
  expect(await first.stop()).toBe(0)
  await standby.says("streaming from slot")
  expect(await standby.stop()).toBe(0)
})
