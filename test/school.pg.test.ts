import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import Database from "libsql"
import { afterAll, beforeAll, expect, it } from "vitest"
import { type HubLink, openHubLink } from "./support/hub-link.ts"
import { startNode as startProcess, upToDate } from "./support/node.ts"
import { program, startSchool } from "./support/processes.ts"
import { until } from "./support/until.ts"
import { makeWorld, type World } from "./support/world.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-nodes-"))

let world: World
let hub: HubLink
beforeAll(async () => {
  world = await makeWorld(
    `CREATE TABLE pupils (id text PRIMARY KEY, school_id text, name text NOT NULL);
     INSERT INTO pupils VALUES ('p1', 'a', 'Amina'), ('p2', 'a', 'Bilal'), ('p3', 'b', 'of another school');`,
    { tables: { pupils: { audience: { column: "school_id" }, strategy: "school_wins" } } },
    ["a", "b"],
  )
  hub = await openHubLink(world)
})
afterAll(async () => {
  await hub?.stop()
  await world?.stop()
  rmSync(folder, { recursive: true, force: true })
})

let made = 0
const newDir = (): string => join(folder, `node${++made}`)
const startNode = (dir: string, key: string, more: ReadonlyArray<string> = [], url = hub.url) => startProcess(dir, key, url, more)
const names = (dir: string) => (program(dir, "SELECT name FROM pupils ORDER BY id") as ReadonlyArray<{ name: string }>).map((row) => row.name)
const atOffice = async (id: string) => (await world.sql`SELECT name FROM pupils WHERE id = ${id}`)[0]?.["name"] as string | undefined
const newSchool = async (): Promise<string> => {
  const id = `s${++made}`
  await world.sql`INSERT INTO schoolbus.schools (id, name) VALUES (${id}, ${id})`
  return id
}
it("a new node fetches its rows, sends what programs write, takes what head office writes, and stops with 0", async () => {
  const key = await hub.key("a")
  const node = startNode(newDir(), key.text)
  await upToDate(node)
  expect(names(node.dir)).toEqual(["Amina", "Bilal"])
  program(node.dir, "INSERT INTO pupils (id, school_id, name) VALUES ('p9', 'a', 'Zuri')")
  program(node.dir, "UPDATE pupils SET name = 'Amina Y.' WHERE id = 'p1'")
  await until("both writes at head office", async () => (await atOffice("p9")) === "Zuri" && (await atOffice("p1")) === "Amina Y.")
  await world.sql`UPDATE pupils SET name = 'Bilal O.' WHERE id = 'p2'`
  await until("the change in the school", () => names(node.dir)[1] === "Bilal O.")
  await upToDate(node)
  expect((await node.status()).totals.pending).toBe(0)
  expect(await node.stop()).toBe(0)
})

it("a second process on the same file is told so and ends with 69", async () => {
  const key = await hub.key("a")
  const node = startNode(newDir(), key.text)
  await node.status()
  const second = startNode(node.dir, key.text)
  expect(await second.code).toBe(69)
  expect(second.output()).toContain("another schoolbus process is running")
  await node.stop()
})

it("killed at any time, it goes on where it was and writes nothing twice", async () => {
  const school = await newSchool()
  const key = await hub.key(school)
  const dir = newDir()
  for (let round = 0; round < 4; round++) {
    const node = startNode(dir, key.text)
    if (round === 0) await upToDate(node)
    else await node.status()
    for (let i = 0; i < 20; i++) program(dir, `INSERT INTO pupils (id, school_id, name) VALUES ('${school}-${round}-${i}', '${school}', 'n')`)
    await new Promise((resolve) => setTimeout(resolve, round * 120))
    node.child.kill("SIGKILL")
    await node.code
  }
  const node = startNode(dir, key.text)
  await until(
    "all at head office",
    async () => Number((await world.sql`SELECT count(*) AS n FROM pupils WHERE school_id = ${school}`)[0]?.["n"]) === 80,
  )
  await upToDate(node)
  expect(program(dir, "SELECT count(*) AS n FROM schoolbus_behind")).toEqual([{ n: 0 }])
  expect((await world.sql`SELECT count(*)::int AS n FROM schoolbus.conflicts WHERE school = ${school}`)[0]?.["n"]).toBe(0)
  await node.stop()
})

it("serves status and programs without a hub, says why, and catches up by itself", async () => {
  const school = await newSchool()
  const key = await hub.key(school)
  const dir = newDir()
  const first = startNode(dir, key.text)
  await upToDate(first)
  await first.stop()
  const node = startNode(dir, key.text, [], "http://127.0.0.1:9")
  const offline = await until("offline", async () => {
    const status = await node.status()
    return status.link.state === "offline" && status
  })
  expect(offline.reason).not.toBe("")
  expect(await node.post("verify")).toMatchObject({ detail: expect.stringMatching(/^the hub is not reachable now: .+; compare when it is/) })
  program(dir, `INSERT INTO pupils (id, school_id, name) VALUES ('${school}-off', '${school}', 'written offline')`)
  expect((await node.status()).totals.pending).toBe(1)
  expect(await node.post("sync")).toMatchObject({ success: true, run: expect.any(Number) })
  await node.stop()
  const back = startNode(dir, key.text)
  await until("the write at head office", async () => (await atOffice(`${school}-off`)) === "written offline")
  await upToDate(back)
  await back.stop()
})

it("a hub's address that is a school node's is told so, with what to set", async () => {
  const key = await hub.key(await newSchool())
  const other = startNode(newDir(), key.text)
  const node = startNode(newDir(), key.text, [], await other.url())
  const reason = await until("the reason", async () => {
    const { link } = await node.status()
    return link.state === "offline" && !link.detail.startsWith("connecting") && link.detail
  })
  expect(reason).toContain(`at ${await other.url()}`)
  expect(reason).toMatch(/a school's node.*not the hub.*--hub/)
  await node.stop()
  await other.stop()
})

it("an unknown key stops the node by name, and a good one lets it go on", async () => {
  const school = await newSchool()
  const key = await hub.key(school)
  const dir = newDir()
  await world.sql`UPDATE schoolbus.school_keys SET revoked_at = now() WHERE id = ${key.id}`
  await world.settle()
  const node = startNode(dir, key.text)
  const stopped = await until("the stop", async () => {
    const status = await node.status()
    return status.link.state === "stopped" && status
  })
  expect(stopped).toMatchObject({ state: "stuck" })
  expect(stopped.reason).toContain("rotate-key")
  expect(await node.post("verify")).toMatchObject({ code: "not_now", detail: expect.stringMatching(/^this node is stopped: .*rotate-key/) })
  expect(existsSync(join(dir, "school.db"))).toBe(true)
  await node.stop()
  const good = startNode(dir, (await hub.key(school)).text)
  await upToDate(good)
  await good.stop()
})

it("a node that starts while a program holds the file's lock says so, waits and goes on", async () => {
  const school = await newSchool()
  const key = await hub.key(school)
  const dir = newDir()
  const first = startNode(dir, key.text)
  await upToDate(first)
  await first.stop()
  const holder = new Database(join(dir, "school.db"), { timeout: 5000 })
  holder.exec("BEGIN IMMEDIATE")
  const node = startNode(dir, key.text)
  await until("the node to say what it waits for", () => node.output().includes("database is locked"))
  expect(node.child.exitCode).toBe(null)
  holder.exec("ROLLBACK")
  holder.close()
  await upToDate(node)
  await node.stop()
})

it("a row that a program's trigger keeps out is named in the status, and comes as soon as the trigger is gone", async () => {
  const school = await newSchool()
  const key = await hub.key(school)
  const dir = newDir()
  const node = startNode(dir, key.text)
  await upToDate(node)
  program(dir, "CREATE TRIGGER strict BEFORE INSERT ON pupils WHEN NEW.name = 'X' BEGIN SELECT RAISE(ABORT, 'X is no name'); END")
  await world.sql`INSERT INTO pupils (id, school_id, name) VALUES (${`${school}-x`}, ${school}, 'X')`
  const fault = await until("the fault", async () => (await node.status()).tables.find(({ table }) => table === "public.pupils")?.fault)
  expect(fault).toMatch(/^1 row of head office cannot be shown .*: X is no name/)
  expect(fault).toContain(`${school}-x`)
  program(dir, "DROP TRIGGER strict")
  await until("the row", () => program(dir, `SELECT 1 AS one FROM pupils WHERE id = '${school}-x'`).length === 1)
  await until("the fault to go", async () => (await node.status()).tables.every((one) => one.fault === undefined))
  await node.stop()
})

it("a row that a program's unique index keeps out is named in the status, and comes as soon as the index is gone", async () => {
  const school = await newSchool()
  const key = await hub.key(school)
  const dir = newDir()
  const node = startNode(dir, key.text)
  await upToDate(node)
  program(dir, "CREATE UNIQUE INDEX own_names ON pupils (name)")
  for (const i of [1, 2]) await world.sql`INSERT INTO pupils (id, school_id, name) VALUES (${`${school}-${i}`}, ${school}, 'Amina')`
  const fault = await until("the fault", async () => {
    const text = (await node.status()).tables.find(({ table }) => table === "public.pupils")?.fault
    return text?.includes("UNIQUE") && text
  })
  expect(fault).toMatch(/^1 row of head office cannot be shown .*: UNIQUE constraint failed: pupils\.name.*Change the .*constraint/)
  program(dir, "DROP INDEX own_names")
  await until("both rows", () => program(dir, "SELECT 1 AS one FROM pupils WHERE name = 'Amina'").length === 2)
  await until("the fault to go", async () => (await node.status()).tables.every((one) => one.fault === undefined))
  await node.stop()
})

it("a file that is deleted while the node runs is back in a moment, and what programs had written goes up", async () => {
  const school = await newSchool()
  const dir = newDir()
  const node = await startSchool(dir, hub.url, (await hub.key(school)).text)
  const settled = () => until("the node to be up to date", async () => (await node.status()).state === "up_to_date")
  try {
    await settled()
    program(dir, `INSERT INTO pupils (id, school_id, name) VALUES ('${school}-1', '${school}', 'before')`)
    for (const rest of ["", "-wal", "-shm"]) rmSync(join(dir, `school.db${rest}`), { force: true })
    await until("the file", () => existsSync(join(dir, "school.db")))
    await until("the node to say so", () => node.log().includes("school.db was deleted while it was in use"))
    await settled()
    program(dir, `INSERT INTO pupils (id, school_id, name) VALUES ('${school}-2', '${school}', 'since')`)
    await until("both writes at head office", async () => (await atOffice(`${school}-1`)) === "before" && (await atOffice(`${school}-2`)) === "since")
    expect(names(dir)).toEqual(["before", "since"])
  } finally {
    await node.kill()
  }
})

it("a node that starts on a file which it cannot open says what to do, waits and goes on", async () => {
  const school = await newSchool()
  const dir = newDir()
  const file = join(dir, "school.db")
  // For root no file is read only; what is no file cannot be opened by anybody.
  mkdirSync(file, { recursive: true })
  const node = await startSchool(dir, hub.url, (await hub.key(school)).text)
  try {
    await until("the node to say what it waits for", () => node.log().includes("let this process's user write the file"))
    rmSync(file, { recursive: true })
    await until("the node to be up to date", async () => (await node.status()).state === "up_to_date")
  } finally {
    await node.kill()
  }
})

it("a copied file is noticed, stops by name, and goes on with a new life; nothing is lost or doubled", async () => {
  const school = await newSchool()
  const key = await hub.key(school)
  const [one, two] = [newDir(), newDir()]
  const original = startNode(one, key.text)
  await upToDate(original)
  program(one, `INSERT INTO pupils (id, school_id, name) VALUES ('${school}-1', '${school}', 'before')`)
  await until("the write at head office", async () => (await atOffice(`${school}-1`)) === "before")
  await upToDate(original)
  await original.stop()
  cpSync(one, two, { recursive: true })
  const again = startNode(one, key.text)
  await upToDate(again)
  program(two, `INSERT INTO pupils (id, school_id, name) VALUES ('${school}-2', '${school}', 'in the copy')`)
  const copy = startNode(two, key.text)
  const stopped = await until("the stop", async () => {
    const status = await copy.status()
    return status.state === "stuck" && status
  })
  expect(stopped.reason).toContain("--new-life")
  expect(await atOffice(`${school}-2`)).toBeUndefined()
  expect((await again.status()).link.state).toBe("online")
  await copy.stop()
  const renewed = startNode(two, key.text, ["--new-life"])
  await until("the copy's write at head office", async () => (await atOffice(`${school}-2`)) === "in the copy")
  await until("the copy's write in the original", () => names(one).includes("in the copy"))
  await upToDate(renewed)
  expect(names(two)).toEqual(["before", "in the copy"])
  await renewed.stop()
  await again.stop()
})

it("a key of another school does not open this school's file", async () => {
  const [school, other] = [await newSchool(), await newSchool()]
  const dir = newDir()
  const first = startNode(dir, (await hub.key(school)).text)
  await upToDate(first)
  await first.stop()
  const node = startNode(dir, (await hub.key(other)).text)
  const stopped = await until("the stop", async () => {
    const status = await node.status()
    return status.state === "stuck" && status
  })
  expect(stopped.reason).toContain("key")
  await node.stop()
})

it("worker modules see what comes down and what programs write", async () => {
  const school = await newSchool()
  const dir = newDir()
  const modules = newDir()
  await world.sql`INSERT INTO pupils VALUES (${`${school}-1`}, ${school}, 'from head office')`
  cpSync(join(import.meta.dirname, "workers/modules/picky.ts"), join(modules, "picky.ts"))
  writeFileSync(join(modules, "README.txt"), "not a module")
  const node = startNode(dir, (await hub.key(school)).text, ["--workers", modules])
  await upToDate(node)
  program(dir, `INSERT INTO pupils (id, school_id, name) VALUES ('${school}-2', '${school}', 'from a program')`)
  const done = join(dir, "workers/picky/done.txt")
  await until("both lines", () => existsSync(done) && readFileSync(done, "utf8").trimEnd().split("\n").length >= 2)
  expect(readFileSync(done, "utf8")).toBe("from head office\nfrom a program\n")
  await node.stop()
})
