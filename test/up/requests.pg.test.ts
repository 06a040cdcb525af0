/** Decisions made in a school: rows that go up in their place among its edits, and come down answered. */
import { randomUUID } from "node:crypto"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { Libsql } from "../../src/libsql/client.ts"
import { Postgres } from "../../src/postgres/client.ts"
import { hubConflicts, hubQuarantine } from "../../src/status/hub-records.ts"
import { Quarantine } from "../../src/status/quarantine.ts"
import { Conflicts } from "../../src/status/records.ts"
import { schoolConflicts, schoolQuarantine } from "../../src/status/school-records.ts"
import { Tables } from "../../src/up/tables.ts"
import { makeWorld, type School, type World } from "../support/world.ts"

let w: World
let a: School
let b: School
let k = 0
beforeAll(async () => {
  w = await makeWorld(
    `CREATE TABLE ask (id int PRIMARY KEY, school_id text, v text CHECK (v <> ''));
     CREATE TABLE users (id uuid PRIMARY KEY, school_id text, username text NOT NULL UNIQUE);
     CREATE TABLE pupils (id int PRIMARY KEY, name text);
     CREATE TABLE enrolments (id int PRIMARY KEY, school_id text, pupil int NOT NULL REFERENCES pupils (id));
     INSERT INTO pupils VALUES (1, 'of a'), (2, 'of a, too'), (3, 'of b'); INSERT INTO enrolments VALUES (1, 'a', 1), (2, 'a', 2), (3, 'b', 3), (4, 'a', 1);`,
    {
      tables: {
        pupils: { audience: { through: "enrolments", on: { id: "pupil" } } },
        enrolments: { audience: { column: "school_id" }, strategy: "vps_wins" },
        ask: { audience: { column: "school_id" }, strategy: "manual" },
        users: { audience: { column: "school_id" } },
      },
    },
    ["a", "b"],
  )
  a = await w.school("a")
  b = await w.school("b")
})
afterAll(() => w?.stop())

const request = async (from: School, action: string, target: string, choice: object | null): Promise<string> => {
  const id = randomUUID()
  await from.write(
    "INSERT INTO schoolbus_requests (id, school, action, target, choice, by, at, status) VALUES (?, ?, ?, ?, ?, 'amina', '2026', 'sent')",
    [id, from.id, action, target, choice === null ? null : JSON.stringify(choice)],
  )
  return id
}
const answer = async (from: School, id: string) => (await from.rows("SELECT status, message FROM schoolbus_requests WHERE id = ?", [id]))[0]

/** Until both clocks have moved on: the school's counts in milliseconds. */
const later = async (): Promise<void> => {
  for (const from = Date.now(); Date.now() <= from + 2; ) await new Promise((resolve) => setTimeout(resolve, 1))
}

/** Both sides changed the row; answers the open record's id, as the school sees it. */
const disagree = async (): Promise<string> => {
  k++
  await w.sql`INSERT INTO ask VALUES (${k}, 'a', 'base')`
  await w.settle()
  await a.pull()
  await w.sql`UPDATE ask SET v = 'office' WHERE id = ${k}`
  await later()
  await a.write(`UPDATE ask SET v = 'school' WHERE id = ${k}`)
  await a.sync()
  const [record] = await a.rows<{ id: string }>(`SELECT id FROM schoolbus_conflicts WHERE row_key = '[${k}]' AND status = 'open'`)
  return record?.id ?? ""
}
const shown = async () => (await a.rows(`SELECT v FROM ask WHERE id = ${k}`))[0]
const office = async () => (await w.sql`SELECT v FROM ask WHERE id = ${k}`)[0]

test("what lost against head office may not bring another school's rows when a school decides for it", async () => {
  await w.settle()
  await a.pull()
  await a.write("UPDATE enrolments SET pupil = 3 WHERE id = 4")
  await w.sql`UPDATE enrolments SET pupil = 2 WHERE id = 4`
  await a.sync()
  const [record] = await w.sql`SELECT id::text AS id FROM schoolbus.conflicts WHERE table_name = 'public.enrolments' AND status = 'decided'`
  for (const [action, choice] of [
    ["resolve", { keep: "school" }],
    ["resolve", { keep: "value", value: 3 }],
    ["undo", null],
  ] as const) {
    const id = await request(a, action, String(record?.["id"]), choice)
    await a.sync()
    expect(await answer(a, id)).toMatchObject({ status: "refused", message: expect.stringContaining("does not belong to this school") })
  }
  expect([...(await w.sql`SELECT pupil FROM enrolments WHERE id = 4`)]).toEqual([{ pupil: 2 }])
  expect(await a.rows("SELECT id FROM pupils ORDER BY id")).toEqual([{ id: 1 }, { id: 2 }])
  // What is the school's own it may decide.
  const own = await request(a, "resolve", String(record?.["id"]), { keep: "value", value: 1 })
  await a.sync()
  expect(await answer(a, own)).toEqual({ status: "done", message: null })
})

describe("a conflict decided in the school", () => {
  test("offline: the request waits, goes up after the school's own edits, and its answer comes down with the row", async () => {
    const record = await disagree()
    expect([await shown(), await office()]).toEqual([{ v: "school" }, { v: "office" }])
    await a.write(`UPDATE ask SET v = 'school 2' WHERE id = ${k}`)
    const id = await request(a, "resolve", record, { keep: "LOCAL_WINS" })
    await a.sync()
    expect([await shown(), await office(), await answer(a, id)]).toEqual([{ v: "school 2" }, { v: "school 2" }, { status: "done", message: null }])
    const undo = await request(a, "undo", record, null)
    await a.sync()
    expect([await shown(), await office(), await answer(a, undo)]).toEqual([{ v: "office" }, { v: "office" }, { status: "done", message: null }])
  })
  test("head office's value ends the hold", async () => {
    const record = await disagree()
    await request(a, "resolve", record, { keep: "vps" })
    await a.sync()
    expect(await shown()).toEqual({ v: "office" })
    expect(await a.rows("SELECT * FROM schoolbus_hold")).toEqual([])
  })
  test("what cannot be done is answered, and the rest of the push goes on", async () => {
    const record = await disagree()
    const ids = [
      await request(a, "resolve", record, { keep: "value", value: "" }),
      await request(a, "resolve", randomUUID(), { keep: "vps" }),
      await request(a, "resolve", record, { keep: "nonsense" }),
      await request(a, "fly", record, null),
      await request(a, "undo", record, null),
    ]
    await a.write(`INSERT INTO ask VALUES (${1_000 + k}, 'a', 'beside')`)
    await a.sync()
    for (const id of ids) expect(await answer(a, id)).toMatchObject({ status: "refused", message: expect.any(String) })
    expect(await w.sql`SELECT v FROM ask WHERE id = ${1_000 + k}`).toHaveLength(1)
    expect(await office()).toEqual({ v: "office" })
  })
  test("another school's record is none", async () => {
    const record = await disagree()
    const id = await request(b, "resolve", record, { keep: "vps" })
    await b.sync()
    expect(await answer(b, id)).toMatchObject({ status: "refused", message: expect.stringContaining("no conflict") })
    expect((await w.sql`SELECT status FROM schoolbus.conflicts WHERE id = ${record}`)[0]).toEqual({ status: "open" })
  })
})

describe("a quarantined change, in the school", () => {
  const bad = async () => {
    k++
    await w.sql`INSERT INTO ask VALUES (${k}, 'a', 'base')`
    await w.settle()
    await a.pull()
    await a.write(`UPDATE ask SET v = '' WHERE id = ${k}`)
    await a.sync()
    const [record] = await a.rows<{ id: string }>(`SELECT id FROM schoolbus_quarantine WHERE row_key = '[${k}]' AND status = 'open'`)
    return record?.id ?? ""
  }
  test("edited: the given value is written and comes down", async () => {
    const id = await request(a, "edit", await bad(), { v: "mended" })
    await a.sync()
    expect([await answer(a, id), await shown(), await office()]).toEqual([{ status: "done", message: null }, { v: "mended" }, { v: "mended" }])
  })
  test("retried while its cause stands: refused with the reason; discarded: head office's row is shown", async () => {
    const record = await bad()
    const retry = await request(a, "retry", record, null)
    await a.sync()
    expect(await answer(a, retry)).toMatchObject({ status: "refused", message: expect.stringContaining("check") })
    expect(await shown()).toEqual({ v: "" })
    await w.sql`UPDATE ask SET v = 'newer' WHERE id = ${k}`
    await request(a, "discard", record, null)
    await a.sync()
    expect([await shown(), await office()]).toEqual([{ v: "newer" }, { v: "newer" }])
  })
})

describe("two rows that want one unique value", () => {
  const both = async (keep: string) => {
    const name = `amina ${keep}`
    const [office, school] = [randomUUID(), randomUUID()]
    await w.sql`INSERT INTO users VALUES (${office}, 'a', ${name})`
    await a.write("INSERT INTO users VALUES (?, 'a', ?)", [school, name])
    await a.sync()
    const [record] = await a.rows<{ id: string }>(`SELECT id FROM schoolbus_conflicts WHERE mine LIKE '%${school}%' AND status = 'open'`)
    await request(a, "resolve", record?.id ?? "", { keep })
    await a.sync()
    const rows = await a.rows<{ id: string; username: string }>(`SELECT id, username FROM users WHERE id IN ('${office}', '${school}')`)
    return Object.fromEntries(rows.map(({ id, username }) => [id === office ? "office" : "school", username]))
  }
  test.each([
    ["rename_local", { office: "amina rename_local", school: "amina rename_local2" }],
    ["keep_local", { office: "amina keep_local2", school: "amina keep_local" }],
    ["keep_remote", { office: "amina keep_remote" }],
    ["merge", { office: "amina merge" }],
  ])("%s: the school's file shows what stands at head office", async (keep, expected) => {
    expect(await both(keep)).toEqual(expected)
  })
})

describe("as people see it, at the hub and in the school", () => {
  let hub: Context.Context<Conflicts | Quarantine>
  let node: Context.Context<Conflicts | Quarantine>
  const ask = <A, E>(where: Context.Context<Conflicts | Quarantine>, effect: Effect.Effect<A, E, Conflicts | Quarantine>) =>
    w.run(Effect.provideContext(effect, where))
  const scope = Scope.makeUnsafe()
  beforeAll(async () => {
    const tables = Layer.succeed(Tables, {
      had: () => Effect.succeed(new Set<string>()),
      all: Effect.map(w.feed.tables, (list) => new Map(list.map((t) => [t.name, t.table]))),
    })
    const office = Layer.mergeAll(hubConflicts, hubQuarantine).pipe(Layer.provide(tables), Layer.provide(Layer.succeed(Postgres, w.pg)))
    const school = Layer.mergeAll(schoolConflicts, schoolQuarantine).pipe(Layer.provide(Layer.succeed(Libsql, a.file)))
    hub = await w.run(Scope.provide(Layer.build(office), scope))
    node = await w.run(Scope.provide(Layer.build(school), scope))
  })
  afterAll(() => w.run(Scope.close(scope, Exit.void)))

  test("a school's decision waits, is shown as asked for on both sides, and is not asked twice", async () => {
    const id = await disagree()
    const asked = await ask(
      node,
      Conflicts.use((c) => c.resolve(id, { keep: "school" }, "teacher")),
    )
    expect(asked).toMatchObject({
      status: "open",
      requested: { action: "resolve", by: "teacher", status: "sent" },
      recommendation: { keep: "school", safe: false },
    })
    expect(await ask(node, Effect.flip(Conflicts.use((c) => c.resolve(id, { keep: "vps" }, "teacher"))))).toMatchObject({ code: "decided" })
    await a.sync()
    for (const where of [hub, node])
      expect(
        await ask(
          where,
          Conflicts.use((c) => c.show(id)),
        ),
      ).toMatchObject({ status: "resolved", winner: "school", decidedBy: "teacher", requested: null })
    await ask(
      node,
      Conflicts.use((c) => c.undo(id, "teacher")),
    )
    await a.sync()
    expect(
      await ask(
        hub,
        Conflicts.use((c) => c.show(id)),
      ),
    ).toMatchObject({ status: "open" })
    await ask(
      hub,
      Conflicts.use((c) => c.resolve(id, { keep: "vps" }, "amina")),
    )
  })
  test("a refused decision says why, and another can be asked for", async () => {
    const id = await disagree()
    await ask(
      node,
      Conflicts.use((c) => c.resolve(id, { keep: "value", value: "" }, "teacher")),
    )
    await a.sync()
    expect(
      await ask(
        node,
        Conflicts.use((c) => c.show(id)),
      ),
    ).toMatchObject({ requested: { status: "refused", message: expect.stringContaining("check") } })
    await ask(
      node,
      Conflicts.use((c) => c.resolve(id, { keep: "vps" }, "teacher")),
    )
    await a.sync()
    expect(
      await ask(
        node,
        Conflicts.use((c) => c.show(id)),
      ),
    ).toMatchObject({ status: "resolved" })
  })
  test("auto-resolve does what is safe and leaves the rest with the reason, up to a number", async () => {
    const older = await disagree()
    // Head office writes again after the school did, which has not pushed yet.
    k++
    await w.sql`INSERT INTO ask VALUES (${k}, 'a', 'base')`
    await w.settle()
    await a.pull()
    await a.write(`UPDATE ask SET v = 'school' WHERE id = ${k}`)
    await later()
    await w.sql`UPDATE ask SET v = 'later' WHERE id = ${k}`
    const [office, school] = [randomUUID(), randomUUID()]
    await w.sql`INSERT INTO users VALUES (${office}, 'b', 'fatuma')`
    await a.write("INSERT INTO users VALUES (?, 'a', 'fatuma')", [school])
    await a.sync()
    const open = (
      await ask(
        hub,
        Conflicts.use((c) => c.list({ resolved: false, limit: 50 })),
      )
    ).items
    const of = (id: string) => open.find((one) => one.id === id)
    const newer = open.find((one) => one.key === `[${k}]`)
    const taken = open.find((one) => one.kind === "unique")
    expect(of(older)?.recommendation).toMatchObject({ keep: "school", safe: false })
    expect(newer?.recommendation).toMatchObject({ keep: "vps", safe: true })
    expect(taken?.recommendation).toMatchObject({ keep: "rename_local", value: "fatuma2", safe: true })

    expect(
      await ask(
        hub,
        Conflicts.use((c) => c.autoResolve({ max: 1, table: "public.users" }, "auto")),
      ),
    ).toEqual({
      resolved: [{ id: taken?.id, keep: "rename_local", value: "fatuma2", why: expect.stringContaining("within the hour") }],
      skipped: [],
    })
    expect((await w.sql`SELECT username FROM users WHERE id = ${school}`)[0]).toEqual({ username: "fatuma2" })
    await w.settle()
    await a.pull()
    const asked = await ask(
      node,
      Conflicts.use((c) => c.autoResolve({ max: 100 }, "auto")),
    )
    expect(asked.resolved).toMatchObject([{ id: newer?.id, keep: "vps" }])
    expect(asked.skipped).toContainEqual({ id: older, why: expect.stringContaining("a person decides") })
    await a.sync()
    expect(
      await ask(
        hub,
        Conflicts.use((c) => c.show(newer?.id ?? "")),
      ),
    ).toMatchObject({ status: "resolved", winner: "vps", decidedBy: "auto" })
    expect((await a.rows(`SELECT username FROM users WHERE id = '${school}'`))[0]).toEqual({ username: "fatuma2" })
  })
  test("quarantined changes are listed, edited and discarded on both sides", async () => {
    k++
    await w.sql`INSERT INTO ask VALUES (${k}, 'a', 'base')`
    await w.settle()
    await a.pull()
    await a.write(`UPDATE ask SET v = '' WHERE id = ${k}`)
    await a.sync()
    for (const where of [hub, node]) {
      const page = await ask(
        where,
        Quarantine.use((q) => q.list({ resolved: false, table: "public.ask", limit: 50 })),
      )
      expect(page.items.find((one) => one.key === `[${k}]`)).toMatchObject({ school: "a", op: "update", reason: "check", requested: null })
    }
    const [found] = (
      await ask(
        node,
        Quarantine.use((q) => q.list({ resolved: false, limit: 1 })),
      )
    ).items
    const id = found?.id ?? ""
    expect(await ask(hub, Effect.flip(Quarantine.use((q) => q.decide(id, { action: "retry" }, "amina"))))).toMatchObject({ code: "not_possible" })
    await ask(
      node,
      Quarantine.use((q) => q.decide(id, { action: "edit", values: { v: "mended" } }, "teacher")),
    )
    await a.sync()
    expect(
      await ask(
        node,
        Quarantine.use((q) => q.show(id)),
      ),
    ).toMatchObject({ status: "retried", decidedBy: "teacher" })
    expect([await shown(), await office()]).toEqual([{ v: "mended" }, { v: "mended" }])
    expect(await ask(node, Effect.flip(Quarantine.use((q) => q.decide(id, { action: "discard" }, "teacher"))))).toMatchObject({ code: "decided" })
  })
})
