/** A table of the school's file that does not fit the manifest pauses alone, says why, and catches up once it fits. */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
import { type HubLink, openHubLink } from "../support/hub-link.ts"
import { enrol, type Node, script, startNode } from "../support/node.ts"
import { program } from "../support/processes.ts"
import { until } from "../support/until.ts"
import { makeWorld, type World } from "../support/world.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-unfit-"))
const tables = {
  pupils: { audience: { column: "school_id" }, strategy: "vps_wins" },
  notes: { audience: { column: "school_id" }, strategy: "school_wins" },
} as const
let world: World
let hub: HubLink
beforeAll(async () => {
  world = await makeWorld(
    `CREATE TABLE pupils (id text PRIMARY KEY, school_id text, name text NOT NULL, points bigint);
     CREATE TABLE notes (id text PRIMARY KEY, school_id text, body text);
     CREATE TABLE visits (id text PRIMARY KEY, school_id text, body text);`,
    { tables },
    [],
  )
  hub = await openHubLink(world)
})
afterAll(async () => {
  await hub?.stop()
  await world?.stop()
  rmSync(folder, { recursive: true, force: true })
})

const newSchool = () =>
  enrol({ world, hub, folder }, async (id) => {
    for (let i = 1; i <= 4; i++) await world.sql`INSERT INTO pupils VALUES (${`${id}-${i}`}, ${id}, ${`name ${i}`}, ${i})`
    await world.sql`INSERT INTO notes VALUES (${`${id}-n`}, ${id}, 'first')`
  })
const office = async (table: string, id: string) =>
  [...(await world.sql`SELECT row_to_json(t) AS row FROM ${world.sql(table)} t WHERE school_id = ${id} ORDER BY id`)].map(({ row }) => row as object)
const local = (dir: string, table: string) => {
  try {
    return program(dir, `SELECT * FROM ${table} ORDER BY id`) as ReadonlyArray<object>
  } catch {
    return []
  }
}
const agree = (node: Node, dir: string, table: string, id: string) =>
  until(
    `${table} to agree`,
    async () => JSON.stringify(local(dir, table)) === JSON.stringify(await office(table, id)) && (await node.status()).state === "up_to_date",
  )
/** The status once it says which table is paused. */
const paused = (node: Node) =>
  until("the pause", async () => {
    const status = await node.status()
    return status.state === "stuck" && status.tables.some(({ fault }) => fault?.includes("paused")) && status
  })

describe("a table that a program made unfit", () => {
  it("pauses alone: the others flow both ways, its writes and its rows wait, and it catches up when it fits", async () => {
    const { id, dir, key, node } = await newSchool()
    await node.stop()
    // Captured, but not sent yet.
    script(dir, `UPDATE pupils SET points = 10 WHERE id = '${id}-1'`)
    script(dir, "ALTER TABLE pupils RENAME COLUMN id TO pid")
    const again = startNode(dir, key, hub.url)
    const status = await paused(again)
    expect(status.state).toBe("stuck")
    expect(status.reason).toContain("table public.pupils: its key is (pid)")
    expect(status.reason).toContain("ALTER TABLE")
    for (const { table, state, reason } of status.tables)
      expect([table, state, reason?.includes("ALTER TABLE")]).toEqual(
        table === "public.pupils" ? [table, "paused", true] : [table, "active", undefined],
      )
    // Not captured: no trigger stands on it.
    script(dir, `UPDATE pupils SET name = 'by the school' WHERE pid = '${id}-2'; INSERT INTO pupils VALUES ('${id}-7', '${id}', 'new', 7)`)
    script(dir, `INSERT INTO notes VALUES ('${id}-m', '${id}', 'from the school')`)
    await world.sql`UPDATE pupils SET name = 'by the office' WHERE id = ${`${id}-3`}`
    await world.sql`DELETE FROM pupils WHERE id = ${`${id}-4`}`
    await world.sql`UPDATE notes SET body = 'second' WHERE id = ${`${id}-n`}`
    await until("the note to go up", async () => (await office("notes", id)).length === 2)
    await until("the note to come down", () => JSON.stringify(local(dir, "notes")).includes("second"))
    await until("the pupil to wait", () =>
      program(dir, "SELECT count(*) AS n FROM schoolbus_behind").some((row) => JSON.stringify(row) === '{"n":2}'),
    )
    expect(program(dir, `SELECT name FROM pupils WHERE pid = '${id}-3'`)).toEqual([{ name: "name 3" }])
    expect((await office("pupils", id))[0]).toMatchObject({ points: 1 })

    script(dir, "ALTER TABLE pupils RENAME COLUMN pid TO id")
    await agree(again, dir, "pupils", id)
    expect((await office("pupils", id)).map((row) => Object.values(row))).toEqual([
      [`${id}-1`, id, "name 1", 10],
      [`${id}-2`, id, "by the school", 2],
      [`${id}-3`, id, "by the office", 3],
      [`${id}-7`, id, "new", 7],
    ])
    expect(program(dir, "SELECT count(*) AS n FROM schoolbus_behind UNION ALL SELECT count(*) FROM schoolbus_unfit")).toEqual([{ n: 0 }, { n: 0 }])
    // Capture goes on.
    script(dir, `UPDATE pupils SET points = 11 WHERE id = '${id}-1'`)
    await agree(again, dir, "pupils", id)
    expect((await office("pupils", id))[0]).toMatchObject({ points: 11 })
    await again.stop()
  })

  it("is filled anew when it is renamed away, without the others being sent again", async () => {
    const { id, dir, node } = await newSchool()
    script(dir, "ALTER TABLE pupils RENAME COLUMN id TO pid")
    await paused(node)
    await world.sql`UPDATE pupils SET name = 'meanwhile' WHERE id = ${`${id}-1`}`
    script(dir, 'ALTER TABLE "pupils" RENAME TO "pupils_old"')
    await agree(node, dir, "pupils", id)
    expect(local(dir, "pupils")[0]).toMatchObject({ name: "meanwhile" })
    expect(local(dir, "pupils")).toHaveLength(4)
    expect(program(dir, "SELECT count(*) AS n FROM pupils_old")).toEqual([{ n: 4 }])
    await node.stop()
  })
})

describe("a file that has rows of its own in a table of head office", () => {
  it("stops the node at its first start, and who asks for a comparison is told why", async () => {
    await world.sql`INSERT INTO schoolbus.schools (id, name) VALUES ('own', 'own')`
    const { text } = await hub.key("own")
    const dir = join(folder, "own")
    mkdirSync(dir)
    script(dir, "CREATE TABLE pupils (id text PRIMARY KEY, name text); INSERT INTO pupils VALUES ('1', 'a row of the program')")
    const node = startNode(dir, text, hub.url)
    const status = await until("the stop", async () => {
      const now = await node.status()
      return now.link.state === "stopped" && now
    })
    expect(status).toMatchObject({ state: "stuck", reason: expect.stringMatching(/pupils.*--adopt/) })
    // Each attempt greets the hub first.
    const told = await until("the answer of a stopped node", async () => {
      const answer = await node.call("POST", "sync/verify", {})
      return !String(answer["detail"]).includes("again in a moment") && answer
    })
    expect(told).toMatchObject({ status: 503, code: "not_now", detail: `this node is stopped: ${status.reason}` })
    await node.stop()
  })
})

describe("a table of head office whose name a program's table with rows has", () => {
  it("pauses alone until the program's table is empty, or is adopted", async () => {
    const emptied = await newSchool()
    const adopted = await newSchool()
    for (const { dir, id } of [emptied, adopted])
      script(
        dir,
        `CREATE TABLE visits (id text PRIMARY KEY, school_id text, body text); INSERT INTO visits VALUES ('${id}-own', '${id}', 'a program')`,
      )
    await world.sql`INSERT INTO visits SELECT ${`${emptied.id}-v`}, ${emptied.id}, 'office' UNION ALL SELECT ${`${adopted.id}-v`}, ${adopted.id}, 'office'`
    await world.restart({ tables: { ...tables, visits: { audience: { column: "school_id" }, strategy: "school_wins" } } })
    for (const { node } of [emptied, adopted])
      expect((await paused(node)).reason).toMatch(/table public\.visits: exists already in this file.*--adopt/)
    for (const { id, dir } of [emptied, adopted]) {
      await world.sql`UPDATE notes SET body = 'goes on' WHERE id = ${`${id}-n`}`
      await until("the note", () => JSON.stringify(local(dir, "notes")).includes("goes on"))
      expect(local(dir, "visits")).toHaveLength(1)
    }
    script(emptied.dir, "DELETE FROM visits")
    await agree(emptied.node, emptied.dir, "visits", emptied.id)
    expect(local(emptied.dir, "visits")).toHaveLength(1)
    await emptied.node.stop()
    await adopted.node.stop()
    const again = startNode(adopted.dir, adopted.key, hub.url, ["--adopt"])
    await agree(again, adopted.dir, "visits", adopted.id)
    expect(local(adopted.dir, "visits")).toHaveLength(2)
    await again.stop()
  })
})
