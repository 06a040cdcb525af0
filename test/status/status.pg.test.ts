import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { afterAll, beforeAll, expect, test } from "vitest"
import { Feed } from "../../src/down/feed.ts"
import { slotName } from "../../src/down/source.ts"
import { Libsql } from "../../src/libsql/client.ts"
import { Postgres } from "../../src/postgres/client.ts"
import { readSlots, recordHealth } from "../../src/postgres/health.ts"
import { type HubFacts, HubFactStore, type SchoolFacts, SchoolFactStore } from "../../src/status/facts.ts"
import { checkOf } from "../../src/status/check.ts"
import { hubStatus } from "../../src/status/hub.ts"
import { Quarantine } from "../../src/status/quarantine.ts"
import { hubConflicts, hubQuarantine, hubRuns } from "../../src/status/hub-records.ts"
import { Conflicts, Runs } from "../../src/status/records.ts"
import { Settings } from "../../src/status/settings.ts"
import { Devices } from "../../src/iclock/devices.ts"
import { schoolStatus } from "../../src/status/school.ts"
import { schoolConflicts, schoolQuarantine, schoolRuns } from "../../src/status/school-records.ts"
import { type HubSnapshot, type SchoolSnapshot, Status } from "../../src/status/snapshot.ts"
import { Tables } from "../../src/up/tables.ts"
import { until } from "../support/until.ts"
import { makeWorld, type School, type World } from "../support/world.ts"

const schema = `
  CREATE TABLE pupils (id int PRIMARY KEY, school_id text, name text NOT NULL, phone text, tag text UNIQUE CHECK (tag <> 'bad'));
  INSERT INTO pupils SELECT i, CASE WHEN i % 4 = 0 THEN 'b' ELSE 'a' END, 'pupil ' || i FROM generate_series(1, 40) i;`

let world: World
let a: School
let scope: Scope.Closeable
const build = async <S>(layer: Layer.Layer<S>): Promise<Context.Context<S>> => Effect.runPromise(Scope.provide(Layer.build(layer), scope))

let hub: Context.Context<Status | HubFactStore | Conflicts | Quarantine | Runs>
let node: Context.Context<Status | SchoolFactStore | Conflicts | Quarantine | Runs>
const ask = <R, A, E>(context: Context.Context<R>, effect: Effect.Effect<A, E, R>): Promise<A> => Effect.runPromise(Effect.provide(effect, context))
const hubNow = (school?: string) =>
  ask(
    hub,
    Status.use((s) => s.snapshot(school)),
  ) as Promise<HubSnapshot>
const nodeNow = () =>
  ask(
    node,
    Status.use((s) => s.snapshot()),
  ) as Promise<SchoolSnapshot>
const hubFacts = (facts: Partial<HubFacts>) =>
  ask(
    hub,
    HubFactStore.use((s) => s.set(facts)),
  )
const nodeFacts = (facts: Partial<SchoolFacts>) =>
  ask(
    node,
    SchoolFactStore.use((s) => s.set(facts)),
  )

const listQuarantine = (more: { reason?: string; table?: string } = {}) => Quarantine.use((q) => q.list({ limit: 10, resolved: false, ...more }))

/** What the link would write when the school calls. */
const calls = async (school: School, status: Record<string, unknown> | null = null): Promise<void> => {
  const { cursor } = await world.run(school.deliver.position)
  const [row] = await school.rows<{ incarnation: string }>("SELECT incarnation FROM schoolbus_state")
  const reader = {
    incarnation: row?.incarnation ?? "",
    school: school.id,
    token: 1,
    secret: "",
    secret_last: "",
    shown: 1,
    ...cursor,
    batch: 0,
    pending: null,
    seen_at: Date.now(),
    status: status === null ? null : JSON.stringify(status),
    closed: 0,
  }
  await world.run(world.feed.reader.put(reader))
}

beforeAll(async () => {
  world = await makeWorld(schema, { tables: { pupils: { audience: { column: "school_id" }, strategy: "vps_wins", columns: { phone: "manual" } } } }, [
    "a",
    "b",
  ])
  await world.sql`DELETE FROM schoolbus.schools WHERE id = 'settle'`
  scope = Scope.makeUnsafe()
  const base = Layer.mergeAll(
    Layer.succeed(Feed, world.feed),
    Layer.succeed(Libsql, world.feedFile),
    Layer.succeed(Postgres, world.pg),
    Layer.succeed(Tables, {
      all: Effect.map(world.feed.tables, (list) => new Map(list.map((t) => [t.name, t.table]))),
      had: world.feed.had,
    }),
    HubFactStore.layer,
  )
  hub = await build(Layer.mergeAll(hubStatus, hubConflicts, hubQuarantine, hubRuns).pipe(Layer.provideMerge(base)))
  await hubFacts({ stream: "streaming" })
  a = await world.school("a")
  const file = Layer.mergeAll(SchoolFactStore.layer, Settings.layer(null)).pipe(Layer.provideMerge(Layer.succeed(Libsql, a.file)))
  node = await build(
    Layer.mergeAll(schoolStatus.pipe(Layer.provide(Devices.layer)), schoolConflicts, schoolQuarantine, schoolRuns).pipe(Layer.provideMerge(file)),
  )
})
afterAll(async () => {
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await world?.stop()
})

const of = (snapshot: HubSnapshot, school: string) => snapshot.schools.find((one) => one.school === school)

test("a school is new to both sides until its first cut", async () => {
  const before = await hubNow()
  expect([before.state, of(before, "a")?.state, of(before, "b")?.state]).toEqual(["up_to_date", "new", "new"])
  expect(before.tables.find((table) => table.table === "public.pupils")).toMatchObject({ synced: 40, pending: 0, failed: 0, conflicts: 0 })
  expect(before.slot).toMatchObject({ slot: slotName(world.database.url), active: true, plugin: "wal2json", walStatus: "reserved" })
  await nodeFacts({ link: "online" })
  expect((await nodeNow()).state).toBe("new")

  await a.pull()
  await calls(a)
  const after = await hubNow()
  expect(of(after, "a")).toMatchObject({ state: "up_to_date", lagRows: 0 })
  const own = await nodeNow()
  expect([own.state, own.school, own.totals]).toMatchObject(["up_to_date", "a", { pending: 0, failed: 0, synced: 30, conflicts: 0 }])
})

test("rows that wait for a school are counted, for it and in total, and not those of others", async () => {
  await world.sql`UPDATE pupils SET name = name || '!' WHERE school_id = 'a' AND id <= 8`
  await world.sql`UPDATE pupils SET name = name || '!' WHERE school_id = 'b'`
  await world.settle()
  const snapshot = await hubNow("a")
  expect(snapshot.schools.map((school) => [school.school, school.state, school.lagRows])).toEqual([["a", "syncing", 6]])
  expect(snapshot.tables.find((table) => table.table === "public.pupils")?.pending).toBe(6)
  await a.pull()
  await calls(a)
  expect(of(await hubNow(), "a")).toMatchObject({ state: "up_to_date", lagRows: 0 })
})

test("an edit is pending until its verdict has come down, at the node and, by its word, at the hub", async () => {
  await nodeFacts({ link: "offline", linkDetail: "no route to the hub" })
  await a.write("UPDATE pupils SET name = 'Amina' WHERE id = 1")
  const offline = await nodeNow()
  expect([offline.state, offline.totals.pending, offline.tables.find((t) => t.table === "public.pupils")]).toMatchObject([
    "offline",
    1,
    { pending: 1, synced: 29 },
  ])
  expect(offline.summary).toContain("1 change waits")
  await nodeFacts({ link: "online", linkDetail: "" })
  expect((await nodeNow()).state).toBe("pending")
  await calls(a, { state: "pending", reason: null, pending: 1, oldestPendingAt: Date.now() - 5_000, behind: 0, devices: 2 })
  expect(of(await hubNow(), "a")).toMatchObject({ state: "pending", pending: 1, devices: 2 })
  await a.push()
  expect((await nodeNow()).state).toBe("syncing")
  await world.settle()
  await a.pull()
  await calls(a)
  expect(await nodeNow()).toMatchObject({ state: "up_to_date", totals: { pending: 0, synced: 30 } })
  const runs = await ask(
    hub,
    Runs.use((r) => r.list({ limit: 10, school: "a" })),
  )
  expect(runs.items).toMatchObject([{ school: "a", trigger: "push", up: 1, conflicts: 0 }])
  expect(
    (
      await ask(
        hub,
        Runs.use((r) => r.list({ limit: 10, school: "b" })),
      )
    ).items,
  ).toEqual([])
})

test("an open conflict is listed on both sides, decided at the hub, and the decision comes down", async () => {
  await a.write("UPDATE pupils SET phone = '0722-school' WHERE id = 2")
  await world.sql`UPDATE pupils SET phone = '0733-office' WHERE id = 2`
  await a.sync()
  await calls(a)
  const [conflict] = (
    await ask(
      hub,
      Conflicts.use((c) => c.list({ limit: 10, resolved: false, table: "public.pupils" })),
    )
  ).items
  expect(conflict).toMatchObject({
    school: "a",
    table: "public.pupils",
    key: "[2]",
    column: "phone",
    mine: '"0722-school"',
    theirs: '"0733-office"',
    status: "open",
  })
  const id = conflict?.id ?? ""
  expect(
    (
      await ask(
        node,
        Conflicts.use((c) => c.list({ limit: 10, resolved: false })),
      )
    ).items,
  ).toMatchObject([{ id, status: "open" }])
  // The hub asks Postgres at most every other second.
  await expect.poll(async () => (await hubNow()).totals.conflicts, { timeout: 10_000 }).toBe(1)
  expect(of(await hubNow(), "a")?.conflicts).toBe(1)
  expect((await nodeNow()).totals.conflicts).toBe(1)

  expect(await ask(hub, Effect.flip(Conflicts.use((c) => c.show(crypto.randomUUID()))))).toMatchObject({ code: "not_found" })
  const decided = await ask(
    hub,
    Conflicts.use((c) => c.resolve(id, { keep: "school" }, "amina")),
  )
  expect(decided).toMatchObject({ status: "resolved", winner: "school", decidedBy: "amina" })
  expect(await ask(hub, Effect.flip(Conflicts.use((c) => c.resolve(id, { keep: "school" }, "amina"))))).toMatchObject({ code: "decided" })
  await world.settle()
  await a.pull()
  await calls(a)
  expect((await world.sql`SELECT phone FROM pupils WHERE id = 2`)[0]?.["phone"]).toBe("0722-school")
  expect(
    await ask(
      node,
      Conflicts.use((c) => c.show(id)),
    ),
  ).toMatchObject({ status: "resolved", decidedBy: "amina", at: decided.at })
  expect((await nodeNow()).totals).toMatchObject({ pending: 0, conflicts: 0 })
})

test("a change that waits for another unique value stands among the conflicts alone, and counts once; the quarantine list points there", async () => {
  await a.write("UPDATE pupils SET tag = 'x' WHERE id = 1")
  await a.write("UPDATE pupils SET tag = 'bad' WHERE id = 2")
  // Of another school, so that nothing of it is to be shown here.
  await world.sql`UPDATE pupils SET tag = 'x' WHERE id = 4`
  await a.sync()
  await calls(a)
  const [conflict] = (
    await ask(
      hub,
      Conflicts.use((c) => c.list({ limit: 10, resolved: false })),
    )
  ).items
  expect(conflict).toMatchObject({ key: "[1]", kind: "unique" })
  const lists = [() => ask(hub, listQuarantine()), () => ask(node, listQuarantine())]
  for (const list of lists) expect(await list()).toMatchObject({ items: [{ key: "[2]", conflict: null }], inConflicts: 1 })
  for (const one of [hub, node]) {
    expect(await ask(one, listQuarantine({ reason: "nothing" }))).toMatchObject({ items: [], inConflicts: 0 })
    expect(await ask(one, listQuarantine({ reason: "unique", table: "public.pupils" }))).toMatchObject({ items: [], inConflicts: 1 })
    const whole = await ask(
      one,
      Quarantine.use((q) => q.list({ limit: 10 })),
    )
    expect(whole.items.map(({ key, conflict: of }) => [key, of]).toSorted()).toEqual([
      ["[1]", conflict?.id],
      ["[2]", null],
    ])
  }
  expect((await nodeNow()).totals).toMatchObject({ conflicts: 1, failed: 1 })
  await expect.poll(async () => (await hubNow()).totals, { timeout: 10_000 }).toMatchObject({ conflicts: 1, failed: 1 })
  const [health] = await world.sql`SELECT open_conflicts::int, quarantined::int FROM schoolbus.school_health WHERE school = 'a'`
  expect(health).toEqual({ open_conflicts: 1, quarantined: 1 })
  await ask(
    hub,
    Conflicts.use((c) => c.resolve(conflict?.id ?? "", { keep: "discard" }, "amina")),
  )
  for (const { id } of (await ask(hub, listQuarantine())).items)
    await ask(
      hub,
      Quarantine.use((q) => q.decide(id, { action: "discard" }, "amina")),
    )
  await a.sync()
  await calls(a)
  for (const list of lists) expect(await list()).toMatchObject({ items: [], inConflicts: 0 })
  expect((await nodeNow()).totals).toMatchObject({ conflicts: 0, failed: 0 })
})

test("pages of a list do not overlap and a foreign cursor starts from the beginning", async () => {
  for (let i = 1; i <= 3; i++) {
    await a.write("UPDATE pupils SET name = ? WHERE id = 3", [`n${i}`])
    await a.push()
  }
  const all = (
    await ask(
      hub,
      Runs.use((r) => r.list({ limit: 100 })),
    )
  ).items.map((run) => run.id)
  const paged: Array<string> = []
  let cursor: string | null = null
  do {
    const page: { items: ReadonlyArray<{ id: string }>; nextCursor: string | null } = await ask(
      hub,
      Runs.use((r) => r.list({ limit: 2, ...(cursor === null ? {} : { cursor }) })),
    )
    paged.push(...page.items.map((run) => run.id))
    cursor = page.nextCursor
  } while (cursor !== null)
  expect(paged).toEqual(all)
  const damaged = Buffer.from('["2026-99-99T00:00:00.000000Z","x"]').toString("base64url")
  for (const foreign of ["!!", damaged])
    expect(
      (
        await ask(
          hub,
          Runs.use((r) => r.list({ limit: 100, cursor: foreign })),
        )
      ).items,
    ).toHaveLength(all.length)
})

test("a school is offline after it was silent, and paused when a person says so", async () => {
  const [row] = await a.rows<{ incarnation: string }>("SELECT incarnation FROM schoolbus_state")
  await a.sync()
  await calls(a)
  await world.run(world.feed.reader.seen(row?.incarnation ?? "", { seen_at: Date.now() - 10 * 60_000 }))
  expect(of(await hubNow(), "a")?.state).toBe("offline")
  await hubFacts({ connected: ["a"] })
  expect(of(await hubNow(), "a")?.state).toBe("up_to_date")
  await world.sql`UPDATE schoolbus.schools SET paused = true WHERE id = 'a'`
  await world.settle()
  expect(of(await hubNow(), "a")?.state).toBe("paused")
  await world.sql`UPDATE schoolbus.schools SET revoked_at = now() WHERE id = 'a'`
  await world.settle()
  expect(of(await hubNow(), "a")).toBeUndefined()
  await world.sql`UPDATE schoolbus.schools SET revoked_at = NULL, paused = false WHERE id = 'a'`
  await world.settle()
})

test("a DBA sees schools and slot in SQL, never with a lag below zero", async () => {
  await hubFacts({ stream: "starting" }) // so that the hub's own record stays out of the way
  await world.sql`INSERT INTO schoolbus.schools (id, name) VALUES ('c', 'C')`
  const row = { state: "syncing", reason: "", seq: 5, lagRows: 7, pending: 2, oldestPendingAt: null, seenAt: Date.parse("2026-11-24T10:00:00Z") }
  await world.run(
    recordHealth(world.pg, [
      { school: "a", ...row },
      { school: "unknown", ...row },
    ]),
  )
  await world.run(recordHealth(world.pg, [{ school: "a", ...row, lagRows: 8 }]))
  const health =
    await world.sql`SELECT school, state, lag_rows::int, pending::int, seen_at, stale FROM schoolbus.school_health WHERE school IN ('a', 'c') ORDER BY school`
  expect(health.map((h) => [h["school"], h["state"], h["lag_rows"], h["stale"]])).toEqual([
    ["a", "syncing", 8, false],
    ["c", "new", null, true],
  ])
  expect(new Date(String(health[0]?.["seen_at"])).getTime()).toBe(Date.parse("2026-11-24T10:00:00Z"))
  await world.sql`UPDATE schoolbus.wal_samples SET at = at - interval '10 minutes'`
  await world.settle()
  const [slot] = await world.run(readSlots(world.pg))
  expect(slot?.lagBytes).toBeGreaterThanOrEqual(0)
  expect(slot?.retainedBytes).toBeGreaterThanOrEqual(0)
  expect(slot?.growthBytesPerSecond).toBeGreaterThan(0)
  expect([slot?.lagSeconds === null, slot?.maxSlotWalKeepSize !== ""]).toEqual([false, true])
})

test("rows whose school is missing or not enrolled are counted, and told to no school", async () => {
  const pupils = async () => (await hubNow()).tables.find((table) => table.table === "public.pupils")
  expect(await pupils()).not.toHaveProperty("nobody")
  await world.sql`INSERT INTO pupils (id, school_id, name) VALUES (901, NULL, 'x'), (902, 'nowhere', 'y')`
  await world.settle()
  await world.sql`DELETE FROM schoolbus.schools WHERE id = 'settle'`
  expect(await pupils()).toMatchObject({ nobody: 2 })
  expect((await hubNow("a")).tables[0]).not.toHaveProperty("nobody")
  await world.sql`DELETE FROM pupils WHERE id > 900`
  await world.settle()
  await world.sql`DELETE FROM schoolbus.schools WHERE id = 'settle'`
  expect(await pupils()).not.toHaveProperty("nobody")
})

test("the snapshot comes when Postgres does not, and says so", async () => {
  await hubFacts({ postgres: false, streamDetail: "Postgres does not answer" })
  expect(await hubNow()).toMatchObject({ state: "offline", postgres: false, reason: "Postgres does not answer" })
  await hubFacts({ postgres: true, streamDetail: "" })
})

test("what keeps Postgres from telling of its slot is said with its remedy: a lock that somebody holds, a view that is gone", async () => {
  const told = (part: string) => until(`"${part}" in the status`, async () => (await hubNow()).reason.includes(part))
  await hubFacts({ stream: "streaming", postgres: true })
  const before = await hubNow()
  expect(before).toMatchObject({ postgres: true, fault: null })
  await world.sql.begin(async (tx) => {
    await tx`LOCK TABLE schoolbus.hub IN ACCESS EXCLUSIVE MODE`
    await told("a program holds the lock")
    expect(await hubNow()).toMatchObject({ state: "stuck", postgres: true })
    expect(checkOf(await hubNow()).line).toContain("CRITICAL - Postgres says: canceling statement due to lock timeout")
  })
  await world.sql`ALTER VIEW schoolbus.slot_health RENAME TO gone`
  await told('relation "schoolbus.slot_health" does not exist')
  await world.sql`ALTER VIEW schoolbus.gone RENAME TO slot_health`
  await until("all to be well again", async () => (await hubNow()).fault === null)
  await hubFacts({ refused: { text: "Postgres takes nothing", at: Date.now() } })
  expect(await hubNow()).toMatchObject({ state: "stuck", reason: "Postgres takes nothing" })
  await hubFacts({ refused: { text: "Postgres takes nothing", at: Date.now() - 3_600_000 } })
  expect((await hubNow()).state).toBe(before.state)
  expect(Math.abs((await hubNow()).clockAheadMs ?? 3_600_000)).toBeLessThan(60_000)
})

test("runs of a school are listed newest first", async () => {
  for (const [trigger, up] of [
    ["start", 1],
    ["manual", 2],
  ] as const)
    await a.write("INSERT INTO schoolbus_run (trigger, started_at, ended_at, up) VALUES (?, 1000, 2000, ?)", [trigger, up])
  const page = await ask(
    node,
    Runs.use((r) => r.list({ limit: 1 })),
  )
  expect(page.items).toMatchObject([{ trigger: "manual", up: 2, school: "a", startedAt: "1970-01-01T00:00:01.000Z" }])
  expect(
    (
      await ask(
        node,
        Runs.use((r) => r.list({ limit: 1, cursor: page.nextCursor ?? "" })),
      )
    ).items,
  ).toMatchObject([{ trigger: "start" }])
})
