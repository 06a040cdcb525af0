/** Sync runs and settings of real school nodes. */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import { afterAll, beforeAll, expect, it } from "vitest"
import type { RunRecord } from "../src/status/records.ts"
import { type HubLink, openHubLink } from "./support/hub-link.ts"
import { enrol, type Node, startNode, upToDate } from "./support/node.ts"
import { program } from "./support/processes.ts"
import { until } from "./support/until.ts"
import { makeWorld, type World } from "./support/world.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-runs-"))
let world: World
let hub: HubLink
beforeAll(async () => {
  world = await makeWorld(
    "CREATE TABLE pupils (id text PRIMARY KEY, school_id text, name text); CREATE TABLE marks (id text PRIMARY KEY, school_id text)",
    {
      tables: {
        pupils: { audience: { column: "school_id" }, strategy: "school_wins" },
        marks: { audience: { column: "school_id" }, strategy: "school_wins" },
      },
    },
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
    await world.sql`INSERT INTO pupils VALUES (${`${id}-1`}, ${id}, 'one'), (${`${id}-2`}, ${id}, 'two')`
  })
const call = (node: Node, method: string, path: string, body?: unknown): Promise<Record<string, unknown>> => node.call(method, path, body)
const logs = async (node: Node) => (await call(node, "GET", "sync/logs"))["items"] as ReadonlyArray<RunRecord>
const ended = (node: Node, run: unknown) =>
  until("the run's end", async () => (await logs(node)).find(({ id, endedAt }) => id === String(run) && endedAt !== null))
const office = async (id: string) => (await world.sql`SELECT 1 FROM pupils WHERE id = ${id}`).length === 1
const add = (dir: string, school: string, n: number) => program(dir, `INSERT INTO pupils VALUES ('${school}-${n}', '${school}', 'n')`)

it("a run that is asked for is written down as it begins and tells how it ended; what moved by itself stands before it", async () => {
  const { id, dir, node } = await newSchool()
  add(dir, id, 3)
  program(dir, `INSERT INTO marks VALUES ('${id}-m', '${id}')`)
  await until("the rows", () => office(`${id}-3`))
  await upToDate(node)
  const first = await call(node, "POST", "sync/trigger", { direction: "both", tables: ["pupils", "public.marks"] })
  expect(first).toMatchObject({ success: true, run: expect.any(Number) })
  const run = await ended(node, first["run"])
  expect(run).toMatchObject({ school: id, trigger: "api", direction: "both", error: null, conflicts: 0 })
  const before = (await logs(node)).find(({ trigger }) => trigger === "start")
  expect(before?.tables["public.pupils"]).toMatchObject({ down: expect.any(Number) })
  const sum = (await logs(node)).reduce((n, { tables }) => n + (tables["public.pupils"]?.up ?? 0) + (tables["public.marks"]?.up ?? 0), 0)
  expect(sum).toBe(2)
  expect(await call(node, "POST", "sync/trigger", { tables: ["pupils", "nowhere"] })).toMatchObject({
    code: "no_table",
    unknown: ["nowhere"],
    detail: "not synced here: nowhere; synced are: public.marks, public.pupils",
  })
  expect(await call(node, "GET", "sync/tables")).toMatchObject({
    items: expect.arrayContaining([expect.objectContaining({ table: "public.pupils", state: "active", pending: 0, synced: 3 })]),
  })
  await node.stop()
})

it("without automatic sync nothing moves until somebody asks, in the direction that is asked for, also after a restart", async () => {
  const { id, dir, key, node } = await newSchool()
  expect(await call(node, "POST", "sync/auto/stop")).toEqual({ success: true, auto: false })
  await node.stop()
  const again = startNode(dir, key, hub.url)
  expect(await call(again, "GET", "sync/config")).toMatchObject({ auto: false })
  await until("contact", async () => (await again.status()).link.state === "online")
  add(dir, id, 3)
  await world.sql`INSERT INTO pupils VALUES (${`${id}-4`}, ${id}, 'of head office')`
  await world.settle()
  const up = await call(again, "POST", "database/status", { direction: "TO_SERVER" })
  expect(await ended(again, up["run"])).toMatchObject({ direction: "up", up: 1, down: 0, tables: { "public.pupils": { up: 1, down: 0 } } })
  expect(await office(`${id}-3`)).toBe(true)
  const here = () => program(dir, `SELECT id FROM pupils WHERE id = '${id}-4'`).length === 1
  expect(here()).toBe(false)
  const down = await call(again, "POST", "sync/trigger", { direction: "down" })
  expect((await ended(again, down["run"])).down).toBeGreaterThan(0)
  expect(here()).toBe(true)
  await call(again, "POST", "sync/auto/start")
  add(dir, id, 5)
  await until("the row by itself", () => office(`${id}-5`))
  await again.stop()
})

it("head office's wish reaches a school that syncs only when asked", async () => {
  const { id, dir, node } = await newSchool()
  await call(node, "POST", "sync/auto/stop")
  await until("the mode", async () => (await node.status()).link.state === "online")
  add(dir, id, 3)
  // A request that was open when the mode changed may still take the wish with it.
  let askedAt = 0
  await until("the row", async () => {
    if (Date.now() - askedAt > 4_000) await Effect.runPromise(hub.calls.ask(id))
    if (Date.now() - askedAt > 4_000) askedAt = Date.now()
    return office(`${id}-3`)
  })
  await until("the run", async () => (await logs(node)).some(({ trigger, endedAt }) => trigger === "hub" && endedAt !== null))
  await node.stop()
}, 60_000)

it("a run that is asked for without contact ends with the reason", async () => {
  const { dir, key, node } = await newSchool()
  await node.stop()
  const offline = startNode(dir, key, "http://127.0.0.1:9")
  const { run } = await call(offline, "POST", "sync/trigger")
  expect((await ended(offline, run)).error).toMatch(/\w/)
  await offline.stop()
})

it("settings are checked, kept, and told apart from mistakes", async () => {
  const { id, dir, key, node } = await newSchool()
  const changed = { intervalMinutes: 30, batch: 1, retryMaxSeconds: 5, budgetMb: 20.5, hours: ["00:00-24:00"] }
  expect(await call(node, "PUT", "sync/config", changed)).toEqual({ auto: true, ...changed })
  for (const wrong of [{ batch: 0 }, { hours: ["late"] }, { unknown: 1 }, {}, { auto: "yes" }]) {
    expect(await call(node, "PUT", "sync/config", wrong)).toMatchObject({ status: 422 })
  }
  await until("the metered state", async () => (await node.status()).metered?.cycleMinutes === 30)
  await node.stop()
  const again = startNode(dir, key, hub.url)
  expect(await call(again, "GET", "sync/config")).toEqual({ auto: true, ...changed })
  await call(again, "PUT", "sync/config", { intervalMinutes: 0, budgetMb: null, hours: [] })
  program(dir, `INSERT INTO pupils SELECT '${id}-' || value, '${id}', 'n' FROM json_each('[11,12,13]')`)
  await until("three rows", () => office(`${id}-13`))
  expect(program(dir, "SELECT max(changes) AS most FROM schoolbus_batch")).toEqual([{ most: 1 }])
  await again.stop()
})
