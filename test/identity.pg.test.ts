/** Files and servers that were put back, copied or lost: real hub and school processes on a Postgres that is really put back. */
import { execFile } from "node:child_process"
import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"
import { afterAll, beforeAll, expect, it } from "vitest"
import { findServer } from "../scripts/cluster.ts"
import { newKey } from "../src/link/keys.ts"
import type { HubSnapshot } from "../src/status/snapshot.ts"
import { type Node, startNode, upToDate } from "./support/node.ts"
import { command, program } from "./support/processes.ts"
import { until } from "./support/until.ts"
import { createDatabase, type Database, run, testCluster } from "./support/postgres.ts"
import { begin, killAll } from "./support/run.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-identity-"))
const config = join(folder, "schoolbus.config.ts")
writeFileSync(config, `export default { tables: { pupils: { audience: { column: "school_id" }, strategy: "school_wins" } } }`)

interface Hub {
  readonly url: string
  readonly output: () => string
  readonly stop: () => Promise<number | null>
}
const databases: Array<Database> = []
afterAll(async () => {
  await killAll()
  for (const database of databases) await database.drop()
  rmSync(folder, { recursive: true, force: true })
})

let made = 0
const newDir = (): string => join(folder, `dir${++made}`)

const startHub = async (databaseUrl: string, dataDir: string, port = "0"): Promise<Hub> => {
  const hub = begin(["hub", "--config", config, "--database-url", databaseUrl, "--data-dir", dataDir, "--port", port])
  await hub.says("streaming from slot")
  return { url: await hub.url(), output: hub.output, stop: hub.stop }
}

/** A head office of its own with some schools, so that it can be put back without disturbing others. */
const newOffice = async (schools: ReadonlyArray<string>) => {
  const database = await createDatabase()
  databases.push(database)
  await run(database.url, "CREATE TABLE pupils (id text PRIMARY KEY, school_id text, name text NOT NULL)")
  const dataDir = newDir()
  let hub = await startHub(database.url, dataDir)
  const port = new URL(hub.url).port
  const keys = new Map<string, string>()
  for (const school of schools) {
    const key = newKey()
    keys.set(school, key.text)
    await run(
      database.url,
      `INSERT INTO schoolbus.schools (id, name) VALUES ('${school}', '${school}'); INSERT INTO schoolbus.school_keys (id, school, hash) VALUES ('${key.id}', '${school}', '${key.hash}')`,
    )
    await run(database.url, `INSERT INTO pupils SELECT '${school}-' || i, '${school}', 'first ' || i FROM generate_series(1, 5) i`)
  }
  const names = async (school: string) =>
    (await run(database.url, `SELECT name FROM pupils WHERE school_id = '${school}' ORDER BY id`)).map(({ name }) => String(name))
  return {
    database,
    dataDir,
    get hub() {
      return hub
    },
    key: (school: string) => keys.get(school) ?? "",
    names,
    node: (school: string, dir: string, more: ReadonlyArray<string> = []) => startNode(dir, keys.get(school) ?? "", hub.url, more),
    restart: async (whileStopped: () => Promise<void>) => {
      await hub.stop()
      await whileStopped()
      hub = await startHub(database.url, dataDir, port)
    },
    close: () => hub.stop(),
  }
}
type Office = Awaited<ReturnType<typeof newOffice>>

const add = (dir: string, school: string, id: string, name: string) =>
  program(dir, `INSERT INTO pupils (id, school_id, name) VALUES ('${school}-${id}', '${school}', '${name}')`)
const local = (dir: string) => (program(dir, "SELECT name FROM pupils ORDER BY id") as ReadonlyArray<{ name: string }>).map(({ name }) => name)
const agree = async (office: Office, school: string, dir: string, node: Node) => {
  await until(
    `${school} and head office to agree`,
    async () => JSON.stringify(await office.names(school)) === JSON.stringify(local(dir)) && (await node.status()).state === "up_to_date",
  )
}
const stuck = (node: Node) =>
  until("the stop", async () => {
    const status = await node.status()
    return status.state === "stuck" && status
  })
/** As head office sees the school. */
const seenAs = async (school: string) => {
  const { schools } = (await (await fetch(`${shared.hub.url}/api/sync/status`)).json()) as HubSnapshot
  return schools.find((one) => one.school === school)
}
const conflicts = async (office: Office) => (await run(office.database.url, "SELECT count(*)::int AS n FROM schoolbus.conflicts"))[0]?.["n"]

/** Copies the database as it is now; `putBack` makes it the database again. */
const keepCopy = async (office: Office) => {
  const { url } = await testCluster()
  const { name } = office.database
  await run(url(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '${name}'`)
  await run(url(), `CREATE DATABASE "${name}_kept" TEMPLATE "${name}"`)
  return async () => {
    await office.database.drop()
    await run(url(), `ALTER DATABASE "${name}_kept" RENAME TO "${name}"`)
  }
}

it("Postgres put back to six hours ago: schools send again what it lost, idle ones are not stopped, nobody downloads everything", async () => {
  const office = await newOffice(["a", "b"])
  const [one, two] = [newDir(), newDir()]
  let a = await office.node("a", one)
  let b = await office.node("b", two)
  await upToDate(a)
  add(one, "a", "6", "before")
  await upToDate(b)
  await until("the first write", async () => (await office.names("a")).includes("before"))
  await upToDate(a)
  let putBack: () => Promise<void> = async () => undefined
  await office.restart(async () => {
    putBack = await keepCopy(office)
  })
  // Another life of the hub, so that Postgres will hold neither the feed's present nor its last number.
  await office.restart(async () => undefined)
  add(one, "a", "7", "after")
  program(one, "UPDATE pupils SET name = 'edited after' WHERE id = 'a-1'")
  program(one, "DELETE FROM pupils WHERE id = 'a-2'")
  await until("the later writes", async () => (await office.names("a")).includes("edited after") && (await office.names("a")).includes("after"))
  await upToDate(a)
  await run(office.database.url, "INSERT INTO pupils VALUES ('b-9', 'b', 'only head office had it')")
  await run(office.database.url, "UPDATE pupils SET name = 'only head office edited it' WHERE id = 'b-1'; DELETE FROM pupils WHERE id = 'b-2'")
  await until("it to arrive", () => local(two).includes("only head office had it") && !local(two).includes("first 2"))
  expect((await command("verify", "--lost", "--url", office.hub.url)).out).toContain("has not been put back")
  const school = await command("verify", "--lost", "--url", await b.url())
  expect([school.code, school.err]).toEqual([1, expect.stringContaining("verify --lost --url HUB")])
  await office.restart(putBack)
  expect(office.hub.output()).toMatch(/put back|does not exist/)
  await agree(office, "a", one, a)
  expect(await office.names("a")).toEqual(["edited after", "first 3", "first 4", "first 5", "before", "after"])
  await agree(office, "b", two, b)
  expect(await conflicts(office)).toBe(0)
  // What schools had sent is there again; what only head office had is told, with what it was.
  const lost = await command("verify", "--lost", "--json", "--url", office.hub.url)
  expect([lost.code, (JSON.parse(lost.out) as { rows: ReadonlyArray<object> }).rows]).toEqual([
    1,
    [
      ["b-1", "only head office edited it", "first 1"],
      ["b-2", null, "first 2"],
      ["b-9", "only head office had it", null],
    ].map(([id, was, now]) => ({
      table: "public.pupils",
      key: JSON.stringify([id]),
      was: was === null ? null : { id, school_id: "b", name: was },
      now: now === null ? null : { id, school_id: "b", name: now },
    })),
  ])
  expect(office.hub.output()).toMatch(/table public\.pupils: \d+ rows stood otherwise before Postgres was put back/)
  expect(b.output()).toMatch(/rows differ from head office/)
  expect(b.output()).not.toContain("everything comes anew")
  for (const node of [a, b]) expect((await node.status()).link.state).toBe("online")
  // And on it goes, both ways.
  add(one, "a", "8", "later")
  await run(office.database.url, "INSERT INTO pupils VALUES ('b-8', 'b', 'new')")
  await agree(office, "a", one, a)
  await until("the new row", () => local(two).includes("new"))
  await Promise.all([a.stop(), b.stop()])
  a = await office.node("a", one)
  b = await office.node("b", two)
  await agree(office, "a", one, a)
  await Promise.all([a.stop(), b.stop(), office.close()])
}, 90_000)

it("a hub whose feed was lost, or put back to an older copy, goes on with the same files; nothing is lost or doubled", async () => {
  const office = await newOffice(["a"])
  const dir = newDir()
  const a = await office.node("a", dir)
  await upToDate(a)
  const kept = newDir()
  await office.restart(async () => cpSync(office.dataDir, kept, { recursive: true }))
  add(dir, "a", "6", "since the copy")
  await until("the write", async () => (await office.names("a")).includes("since the copy"))
  await upToDate(a)
  await office.restart(async () => {
    rmSync(office.dataDir, { recursive: true })
    cpSync(kept, office.dataDir, { recursive: true })
    await run(office.database.url, "INSERT INTO pupils VALUES ('a-7', 'a', 'while it was put back')")
  })
  await agree(office, "a", dir, a)
  add(dir, "a", "8", "between")
  await until("the next write", async () => (await office.names("a")).includes("between"))
  await office.restart(async () => {
    rmSync(office.dataDir, { recursive: true })
    await run(office.database.url, "DELETE FROM pupils WHERE id = 'a-1'")
  })
  await agree(office, "a", dir, a)
  expect(await office.names("a")).toEqual(["first 2", "first 3", "first 4", "first 5", "since the copy", "while it was put back", "between"])
  expect(await conflicts(office)).toBe(0)
  await Promise.all([a.stop(), office.close()])
}, 90_000)

it("a dump put into another server is the same head office; another database is not", async () => {
  const office = await newOffice(["a"])
  const dir = newDir()
  const a = await office.node("a", dir)
  await upToDate(a)
  await a.stop()
  await office.close()
  // What a dump carries: the rows, and no slot; a new server has another system identifier, which the feed here does not know.
  const { url } = await testCluster()
  await run(url(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '${office.database.name}'`)
  const copy = await createDatabase(office.database.name)
  databases.push(copy)
  const moved = await startHub(copy.url, newDir())
  const there = startNode(dir, office.key("a"), moved.url)
  add(dir, "a", "6", "in the new place")
  await until("the write", async () => (await run(copy.url, "SELECT 1 FROM pupils WHERE name = 'in the new place'")).length === 1)
  await upToDate(there)
  await Promise.all([there.stop(), moved.stop()])

  const other = await newOffice(["a"])
  await run(other.database.url, "DELETE FROM schoolbus.school_keys")
  const [id] = office.key("a").split("_").slice(1)
  await run(other.database.url, `INSERT INTO schoolbus.school_keys SELECT '${id}', 'a', hash FROM (VALUES ('x')) v (hash)`)
  const hash = (await run(copy.url, "SELECT hash FROM schoolbus.school_keys"))[0]?.["hash"]
  await run(other.database.url, `UPDATE schoolbus.school_keys SET hash = '${String(hash)}'`)
  const wrong = startNode(dir, office.key("a"), other.hub.url)
  expect((await stuck(wrong)).reason).toContain("another Postgres")
  await wrong.stop()
  const renewed = startNode(dir, office.key("a"), other.hub.url, ["--new-life"])
  await upToDate(renewed)
  expect(local(dir)).toEqual(await other.names("a"))
  await Promise.all([renewed.stop(), other.close()])
}, 90_000)

it("a dump of a moment ago that is put back over a running hub's database: no table waits for a person, the school's writes come back", async () => {
  const office = await newOffice(["a"])
  const dir = newDir()
  const a = office.node("a", dir)
  await agree(office, "a", dir, a)
  const dump = join(folder, "office.dump")
  const { bin } = findServer()
  const tool = (name: string, ...args: ReadonlyArray<string>) => promisify(execFile)(join(bin, name), [`--dbname=${office.database.url}`, ...args])
  await tool("pg_dump", "-Fc", "-f", dump)
  await run(office.database.url, "INSERT INTO pupils VALUES ('a-7', 'a', 'of head office, since')")
  add(dir, "a", "8", "of the school, since")
  await until("both", async () => (await office.names("a")).length === 7 && local(dir).length === 7)
  await tool("pg_restore", "--clean", "--if-exists", dump)
  // It is found within half a minute; at once by whatever changes a table.
  await run(office.database.url, "ALTER TABLE pupils ALTER name SET NOT NULL")
  await until("the school's write", async () => (await office.names("a")).includes("of the school, since"))
  await agree(office, "a", dir, a)
  expect(local(dir)).toEqual(["first 1", "first 2", "first 3", "first 4", "first 5", "of the school, since"])
  expect(office.hub.output()).not.toContain("is paused")
  await Promise.all([a.stop(), office.close()])
}, 60_000)

it("a database that is dropped and restored beside a running hub is waited for; nothing is made in it before the dump is whole", async () => {
  const office = await newOffice(["a"])
  const dir = newDir()
  const a = office.node("a", dir)
  await agree(office, "a", dir, a)
  const dump = join(folder, "dropped.dump")
  const { bin } = findServer()
  const tool = (name: string, ...args: ReadonlyArray<string>) => promisify(execFile)(join(bin, name), [`--dbname=${office.database.url}`, ...args])
  await tool("pg_dump", "-Fc", "-f", dump)
  add(dir, "a", "8", "of the school, since")
  await until("the write", async () => (await office.names("a")).length === 6)

  const { url } = await testCluster()
  await office.database.drop()
  await run(url(), `CREATE DATABASE "${office.database.name}"`)
  const says = (text: string) =>
    until(`the hub to say "${text}": ${office.hub.output()}`, async () =>
      (await (await fetch(`${office.hub.url}/api/sync/status`)).text()).includes(text),
    )
  await says("has no schema")
  add(dir, "a", "9", "of the school, meanwhile")
  await tool("pg_restore", "--exit-on-error", "--section=pre-data", "--section=data", dump)
  await says("is being restored")
  await tool("pg_restore", "--single-transaction", "--section=post-data", dump)
  await until("the school's writes", async () => (await office.names("a")).length === 7)
  await agree(office, "a", dir, a)
  expect(local(dir)).toEqual(["first 1", "first 2", "first 3", "first 4", "first 5", "of the school, since", "of the school, meanwhile"])
  expect(office.hub.output()).not.toContain("is paused")
  await Promise.all([a.stop(), office.close()])
}, 60_000)

let shared: Office
beforeAll(async () => {
  shared = await newOffice(["old", "alternate", "reading", "lost"])
}, 60_000)
afterAll(() => shared?.close())

it("a school file put back to an older copy stops at first contact; a new life brings everything back, its own unsent writes too", async () => {
  const [dir, kept] = [newDir(), newDir()]
  const first = await shared.node("old", dir)
  await upToDate(first)
  await first.stop()
  add(dir, "old", "6", "unsent in the copy")
  cpSync(dir, kept, { recursive: true })
  const second = await shared.node("old", dir)
  add(dir, "old", "7", "since the copy")
  await until("both writes", async () => (await shared.names("old")).length === 7)
  await upToDate(second)
  await second.stop()
  await run(shared.database.url, "UPDATE pupils SET name = 'corrected' WHERE name = 'unsent in the copy'")
  program(kept, "UPDATE pupils SET name = 'edited in the copy' WHERE id = 'old-1'")
  const node = await shared.node("old", kept)
  expect((await stuck(node)).reason).toContain("--new-life")
  expect(await shared.names("old")).not.toContain("edited in the copy")
  expect(await seenAs("old")).toMatchObject({ state: "stuck", reason: expect.stringMatching(/^An older copy .*--new-life/) })
  await node.stop()
  const renewed = await shared.node("old", kept, ["--new-life"])
  await until("the edit", async () => (await shared.names("old")).includes("edited in the copy"))
  await agree(shared, "old", kept, renewed)
  await until("head office to see the new life", async () => (await seenAs("old"))?.state === "up_to_date")
  // What the copy had not sent came from the other one: that is no second write.
  expect(await run(shared.database.url, "SELECT row_key, reason FROM schoolbus.conflicts WHERE school = 'old'")).toEqual([])
  expect(await shared.names("old")).toEqual(["edited in the copy", "first 2", "first 3", "first 4", "first 5", "corrected", "since the copy"])
  await renewed.stop()
}, 60_000)

it("two copies that strictly take turns are noticed at the second one's first contact", async () => {
  const [one, two] = [newDir(), newDir()]
  const first = await shared.node("alternate", one)
  await upToDate(first)
  await first.stop()
  cpSync(one, two, { recursive: true })
  for (const [dir, name] of [[one, "of one"]] as const) {
    const node = await shared.node("alternate", dir)
    add(dir, "alternate", "6", name)
    await until("the write", async () => (await shared.names("alternate")).includes(name))
    await upToDate(node)
    await node.stop()
  }
  add(two, "alternate", "7", "of two")
  const copy = await shared.node("alternate", two)
  expect((await stuck(copy)).reason).toContain("--new-life")
  await copy.stop()
  const again = await shared.node("alternate", one)
  await upToDate(again)
  await again.stop()
  const renewed = await shared.node("alternate", two, ["--new-life"])
  await until("its write", async () => (await shared.names("alternate")).includes("of two"))
  await agree(shared, "alternate", two, renewed)
  await renewed.stop()
}, 60_000)

it("two copies that only read, one after the other or side by side, are noticed as well", async () => {
  const [one, two] = [newDir(), newDir()]
  const first = await shared.node("reading", one)
  await upToDate(first)
  await first.stop()
  cpSync(one, two, { recursive: true })
  const original = await shared.node("reading", one)
  await upToDate(original)
  const copy = await shared.node("reading", two)
  const reasons = async () => [await original.status(), await copy.status()].filter(({ state }) => state === "stuck")
  const found = await until("one of the two to stop", async () => {
    const some = await reasons()
    return some.length > 0 && some
  })
  expect(found).toHaveLength(1)
  await run(shared.database.url, "INSERT INTO pupils VALUES ('reading-6', 'reading', 'for the one that goes on')")
  await until("the row", () => [one, two].some((dir) => local(dir).includes("for the one that goes on")))
  await Promise.all([original.stop(), copy.stop()])
}, 60_000)

it("a file that was deleted is made anew with the same key, and holds everything that had been sent", async () => {
  const dir = newDir()
  const first = await shared.node("lost", dir)
  await upToDate(first)
  add(dir, "lost", "6", "sent")
  await until("the write", async () => (await shared.names("lost")).includes("sent"))
  await upToDate(first)
  await first.stop()
  rmSync(dir, { recursive: true })
  const anew = await shared.node("lost", dir)
  await upToDate(anew)
  await agree(shared, "lost", dir, anew)
  expect(local(dir)).toContain("sent")
  add(dir, "lost", "7", "and on")
  await until("the next write", async () => (await shared.names("lost")).includes("and on"))
  expect(await run(shared.database.url, "SELECT count(*)::int AS n FROM schoolbus.incarnations WHERE school = 'lost'")).toEqual([{ n: 2 }])
  await anew.stop()
}, 60_000)
