/** A node's conversation with a real hub: over a good link, and over one that costs by the byte. */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { afterAll, afterEach, beforeAll, expect, it } from "vitest"
import { Deliver } from "../../src/down/deliver.ts"
import { Libsql, type LibsqlFile, openFile } from "../../src/libsql/client.ts"
import { installTables } from "../../src/libsql/schema.ts"
import { migrateFile } from "../../src/libsql/migrate.ts"
import { type Metered, parseHours } from "../../src/link/metered.ts"
import { OpenLink } from "../../src/link/open.ts"
import type { Manifest } from "../../src/model/table.ts"
import { sessions } from "../../src/session/session.ts"
import { SchoolFactStore } from "../../src/status/facts.ts"
import { Session } from "../../src/status/run.ts"
import { Settings, type SyncSettings } from "../../src/status/settings.ts"
import { Devices } from "../../src/iclock/devices.ts"
import { schoolStatus } from "../../src/status/school.ts"
import { type SchoolSnapshot, Status } from "../../src/status/snapshot.ts"
import { openBadLine } from "../support/bad-line.ts"
import { type HubLink, openHubLink } from "../support/hub-link.ts"
import { makeWorld, type World } from "../support/world.ts"
import { until } from "../support/until.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-session-"))
let world: World
let hub: HubLink
beforeAll(async () => {
  world = await makeWorld(
    ["alarms", "marks", "photos"].map((name) => `CREATE TABLE ${name} (id text PRIMARY KEY, school_id text, name text);`).join("\n"),
    {
      tables: {
        alarms: { audience: { column: "school_id" }, priority: "critical", strategy: "school_wins" },
        marks: { audience: { column: "school_id" }, priority: "low", strategy: "school_wins" },
        photos: { audience: { column: "school_id" }, priority: "background", strategy: "school_wins" },
      },
    },
    ["a", "b", "c", "d", "e", "f", "g", "h"],
  )
  hub = await openHubLink(world)
})
const ended: Array<() => Promise<void>> = []
afterEach(async () => {
  for (const end of ended.splice(0)) await end()
})
afterAll(async () => {
  await hub?.stop()
  await world?.stop()
  rmSync(folder, { recursive: true, force: true })
})

interface Node {
  readonly school: string
  readonly incarnation: string
  readonly file: LibsqlFile
  readonly write: (sql: string) => Promise<void>
  readonly ids: (table: string) => Promise<ReadonlyArray<string>>
  readonly status: () => Promise<SchoolSnapshot>
  /** What a person does who asks for a sync. */
  readonly ask: () => Promise<void>
  readonly set: (settings: Partial<SyncSettings>) => Promise<void>
  /** Ends the contact; the next one begins at once. */
  readonly contactAnew: () => Promise<void>
}

const startNode = async (school: string, metered: Metered | null, url = hub.url): Promise<Node> => {
  const { text: key } = await hub.key(school)
  const scope = Scope.makeUnsafe()
  const inScope = <A, E>(effect: Effect.Effect<A, E, Scope.Scope>) => Effect.runPromise(Scope.provide(effect, scope))
  const path = join(folder, `${crypto.randomUUID()}.db`)
  const file = await inScope(openFile(path))
  const program = await inScope(openFile(path))
  await Effect.runPromise(migrateFile(file, "school"))
  const incarnation = crypto.randomUUID()
  await Effect.runPromise(file.write((tx) => tx.run("INSERT INTO schoolbus_state (id, incarnation) VALUES (1, ?)", [incarnation])))
  const base = Layer.mergeAll(Session.layer, SchoolFactStore.layer, OpenLink.layer, Settings.layer(metered)).pipe(
    Layer.provideMerge(Layer.succeed(Libsql, file)),
  )
  const context = await inScope(
    Layer.build(Layer.mergeAll(Deliver.layer, schoolStatus.pipe(Layer.provide(Devices.layer))).pipe(Layer.provideMerge(base))),
  )
  await inScope(Effect.forkScoped(Effect.provide(sessions({ hub: url, key, adopt: false, streams: [] }), context)))
  ended.push(() => Effect.runPromise(Scope.close(scope, Exit.void)))
  let contacts = 0
  return {
    school,
    incarnation,
    file,
    write: (sql) => Effect.runPromise(program.write((tx) => tx.exec(sql))),
    ids: (table) =>
      Effect.runPromise(
        program.read((tx) =>
          tx.all<{ id: string }>(`SELECT id FROM ${table} ORDER BY id`).pipe(
            Effect.map((rows) => rows.map(({ id }) => id)),
            Effect.catch((error) => (error.code === "SQLITE_ERROR" ? Effect.succeed([]) : Effect.fail(error))),
          ),
        ),
      ),
    status: () => Effect.runPromise(Context.get(context, Status).snapshot()) as Promise<SchoolSnapshot>,
    ask: () => Effect.runPromise(Context.get(context, Session).wake.open) as Promise<never>,
    set: async (settings) => void (await Effect.runPromise(Context.get(context, Settings).set(settings))),
    contactAnew: async () => {
      contacts++
      await Effect.runPromise(Context.get(context, Settings).set({ retryMaxSeconds: 1 + (contacts % 2) }))
    },
  }
}

/** A first copy, too, waits for bytes and hours; a person fetches it. */
const fetchFirst = (node: Node) =>
  until("the first cut", async () => {
    await node.ask()
    return (await node.status()).receiving.seq !== "0"
  })
const atOffice = async (table: string, id: string) => (await world.sql`SELECT 1 FROM ${world.sql(table)} WHERE id = ${id}`).length === 1
const put = (table: string, school: string, id: string) => world.sql`INSERT INTO ${world.sql(table)} VALUES (${id}, ${school}, ${id})`
/** After another contact. */
const isSoAnew = async (node: Node, isSo: () => Promise<boolean>): Promise<boolean> => {
  await node.contactAnew()
  // Yet another one too soon would end this one before it is told.
  for (let looks = 0; looks < 100; looks++) {
    if (await isSo()) return true
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  return false
}
const hasFirstCut = (node: Node) => until("the first cut", async () => (await node.status()).receiving.seq !== "0")

it("over a good link rows come in a stream, changes go at once, and the hub hears what is applied", async () => {
  const line = await openBadLine(hub.url)
  ended.push(async () => line.close())
  const node = await startNode("a", null, line.url)
  await hasFirstCut(node)
  for (let i = 0; i < 5; i++) {
    await put("alarms", "a", `down ${i}`)
    await until("the row", async () => (await node.ids("alarms")).includes(`down ${i}`))
  }
  await node.write("INSERT INTO marks VALUES ('up', 'a', 'up')")
  await until("the change", () => atOffice("marks", "up"))
  await until("the hub to hear of the applied cut", async () => {
    const reader = await world.run(world.feed.reader.get(node.incarnation))
    const head = await world.run(world.feed.head)
    return reader?.seq === head.seq
  })
  await until("the status", async () => (await node.status()).state === "up_to_date")
  const { traffic, metered } = await node.status()
  expect(metered).toBe(null)
  expect(traffic?.received).toBeGreaterThan(0)
  expect((traffic?.received ?? 0) + (traffic?.sent ?? 0)).toBeLessThan(line.received() * 4 + 100_000)
})

it("a school at rest that the hub has nothing for stays fresh: from contact to contact, and within one", async () => {
  const quick = await openHubLink(world, { everyMs: 50, idleMs: 45_000, beatMs: 200 })
  ended.push(quick.stop)
  const [often, seldom] = [await startNode("a", null, quick.url), await startNode("b", null)]
  for (const node of [often, seldom]) await hasFirstCut(node)
  const lastSync = async (node: Node) => (await node.status()).link.lastSyncAt ?? ""
  for (let times = 0; times < 3; times++) {
    const [one, other] = [await lastSync(often), await lastSync(seldom)]
    await until("the next empty line", async () => (await lastSync(often)) > one, 10_000)
    await until("the next contact", () => isSoAnew(seldom, async () => (await lastSync(seldom)) > other), 15_000)
  }
})

it("a metered school is fresh with each cycle, but not while something waits to go up", async () => {
  const node = await startNode("c", { cycleMinutes: 0.01, budgetBytes: null, hours: [] })
  await hasFirstCut(node)
  const cycles = async (n: number) => {
    for (let i = 0; i < n; i++) {
      const before = (await node.status()).metered?.nextAt
      await until("the next cycle", async () => (await node.status()).metered?.nextAt !== before)
    }
    return (await node.status()).link.lastSyncAt ?? ""
  }
  const first = await cycles(2)
  expect((await cycles(2)) > first).toBe(true)
  await node.write("INSERT INTO photos VALUES ('stays', 'c', 'x')")
  const last = await cycles(2)
  expect(await cycles(2)).toBe(last)
})

it("a table that a program drops is filled again, also when it is made anew before the push looks", async () => {
  const node = await startNode("f", null)
  await hasFirstCut(node)
  await put("marks", "f", "one")
  await until("the row", async () => (await node.ids("marks")).includes("one"))
  const [state] = await Effect.runPromise(node.file.read((tx) => tx.all<{ manifest: string }>("SELECT manifest FROM schoolbus_state")))
  const manifest = JSON.parse(state?.manifest ?? "") as Manifest
  const anew = node.file.write((tx) => Effect.andThen(tx.exec("DROP TABLE marks"), installTables(tx, manifest, { adopt: false, streams: [] })))
  await Effect.runPromise(Effect.orDie(anew))
  expect(await node.ids("marks")).toEqual([])
  await until("the row once more, and nothing new at head office", async () => (await node.ids("marks")).includes("one"))
  await until("the status", async () => (await node.status()).state === "up_to_date")
})

it("a school that head office gives another name shows it from its next contact on", async () => {
  const node = await startNode("f", null)
  await hasFirstCut(node)
  await world.sql`UPDATE schoolbus.schools SET name = 'Sixth Form' WHERE id = 'f'`
  await until("the name", () => isSoAnew(node, async () => (await node.status()).name === "Sixth Form"))
})

it("a school whose clock is off says so in its status, up to date as it is", async () => {
  const node = await startNode("h", null)
  await hasFirstCut(node)
  expect(Math.abs((await node.status()).clockAheadMs ?? Number.NaN)).toBeLessThan(60_000)
  // The next contact measures it anew.
  await until("the words", async () => {
    await node.write("UPDATE schoolbus_contact SET own = server + 40 * 86400000")
    const { state, reason } = await node.status()
    return state === "up_to_date" && reason.includes("the clock of this computer is 40 days ahead of head office's")
  })
})

it("over a metered link a critical change goes at once, others wait for their cycle, and whoever asks is served", async () => {
  const node = await startNode("b", { cycleMinutes: 60, budgetBytes: null, hours: [] })
  await hasFirstCut(node)
  await until("the end of its first cycle", async () => (await node.status()).metered?.nextAt !== null)
  await put("alarms", "b", "later")
  await node.write("INSERT INTO marks VALUES ('low', 'b', 'low'); INSERT INTO photos VALUES ('background', 'b', 'x')")
  // Two rounds of looking for what is critical.
  await new Promise((resolve) => setTimeout(resolve, 2_500))
  expect([await atOffice("marks", "low"), await node.ids("alarms")]).toEqual([false, []])
  expect((await node.status()).metered).toMatchObject({ cycleMinutes: 60, budgetBytes: null, hours: "", waits: null })
  await node.write("INSERT INTO alarms VALUES ('fire', 'b', 'fire')")
  await until("the critical change", () => atOffice("alarms", "fire"))
  await node.write("INSERT INTO photos VALUES ('asked for', 'b', 'x')")
  await node.ask()
  await until("the background change", () => atOffice("photos", "asked for"))
  await until("the rows that wait", async () => (await node.ids("alarms")).includes("later"))
})

it("over a metered link a low change goes with the fifth cycle", async () => {
  const node = await startNode("c", { cycleMinutes: 0.01, budgetBytes: null, hours: [] })
  await hasFirstCut(node)
  await node.write("INSERT INTO marks VALUES ('fifth', 'c', 'x')")
  await node.write("INSERT INTO photos VALUES ('never by itself', 'c', 'x')")
  await until("the change", () => atOffice("marks", "fifth"))
})

it("when the day's bytes are used up only critical changes go, and the status says so", async () => {
  const node = await startNode("d", { cycleMinutes: 0.01, budgetBytes: 1, hours: [] })
  const noticed = (before: string | null) =>
    until("the budget to be noticed", async () => {
      const { metered } = await node.status()
      return metered?.waits === "budget" && metered.nextAt !== before ? metered.nextAt : null
    })
  const before = await noticed(null)
  expect(await node.status()).toMatchObject({ state: "new", reason: expect.stringContaining("budget") })
  await fetchFirst(node)
  // Noticed anew: what was asked for is over.
  await noticed(before)
  await put("alarms", "d", "waits")
  await node.write("INSERT INTO marks VALUES ('waits', 'd', 'x')")
  await until("the status", async () => (await node.status()).reason.includes("budget"))
  const { state, metered } = await node.status()
  expect(state).toBe("pending")
  expect(metered?.usedBytes).toBeGreaterThan(1)
  await new Promise((resolve) => setTimeout(resolve, 1_500))
  expect([await atOffice("marks", "waits"), await node.ids("alarms")]).toEqual([false, []])
  await node.ask()
  await until("what was asked for", async () => (await atOffice("marks", "waits")) && (await node.ids("alarms")).includes("waits"))
  await node.write("INSERT INTO alarms VALUES ('fire d', 'd', 'fire')")
  await until("the critical change", () => atOffice("alarms", "fire d"))
})

it("outside its hours a metered node waits, and says when it goes on", async () => {
  const minute = new Date(Date.now() + 3 * 3_600_000)
  const two = (n: number) => String(n).padStart(2, "0")
  const from = `${two(minute.getHours())}:${two(minute.getMinutes())}`
  const hours = parseHours([`${from}-${two((minute.getHours() + 1) % 24)}:${two(minute.getMinutes())}`])
  if ("refused" in hours) throw new Error(hours.refused)
  const node = await startNode("e", { cycleMinutes: 0.01, budgetBytes: null, hours })
  await fetchFirst(node)
  const { metered } = await until("the hours to be noticed and named", async () => {
    const now = await node.status()
    return now.metered?.waits === "hours" && now.reason?.includes("hours") ? now : null
  })
  const nextIn = (Date.parse(metered?.nextAt ?? "") - Date.now()) / 60_000
  expect(nextIn).toBeGreaterThan(175)
  expect(nextIn).toBeLessThan(185)
})

it("a cycle that a metered node's line breaks off is gone on with, row by row, until it is done", async () => {
  await world.sql`INSERT INTO marks SELECT 'g' || i, 'g', (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 60) WHERE i > 0) FROM generate_series(1, 400) i`
  const line = await openBadLine(hub.url)
  ended.push(async () => line.close())
  line.cutAfter = 150_000
  const node = await startNode("g", { cycleMinutes: 60, budgetBytes: null, hours: [] }, line.url)
  await hasFirstCut(node)
  expect(line.connections()).toBeGreaterThan(2)
  expect((await node.ids("marks")).length).toBe(400)
  await until("the end of the cycle", async () => (await node.status()).state === "up_to_date")
})

it("a push ends with the day's bytes, and the rest of it goes when somebody asks", async () => {
  const node = await startNode("h", { cycleMinutes: 0.01, budgetBytes: 400_000, hours: [] })
  await hasFirstCut(node)
  await node.set({ batch: 1 })
  await node.write(
    "WITH RECURSIVE c (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 40) INSERT INTO marks SELECT 'h' || i, 'h', hex(randomblob(25000)) FROM c",
  )
  await until("the end of the day's bytes", async () => (await node.status()).metered?.waits === "budget")
  const sent = async () => Number((await world.sql`SELECT count(*) AS n FROM marks WHERE school_id = 'h'`)[0]?.["n"])
  const before = await sent()
  expect(before).toBeGreaterThan(0)
  expect(before).toBeLessThan(25)
  expect((await node.status()).metered?.usedBytes).toBeLessThan(800_000)
  await node.ask()
  await until("all of them", async () => (await sent()) === 40)
})
