/** What waits in quarantine goes on by itself once head office has what it waits for. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest"
import { tendConflicts, tendQuarantine } from "../../src/up/tend.ts"
import { openOffice } from "./office.ts"

const DDL = `
CREATE TABLE classes (id int PRIMARY KEY, school_id text, name text);
CREATE TABLE pupils (id int PRIMARY KEY, school_id text, class int REFERENCES classes (id), name text, points int DEFAULT 0);
CREATE TABLE marks (id int PRIMARY KEY, school_id text, pupil int REFERENCES pupils (id), v int);
CREATE TABLE staff (id int PRIMARY KEY, school_id text, boss int REFERENCES staff (id), points int DEFAULT 0);
CREATE TABLE asked (id int PRIMARY KEY, school_id text, v text, w text);
CREATE TABLE users (id int PRIMARY KEY, school_id text, username text UNIQUE);
CREATE TABLE old (id int PRIMARY KEY, school_id text, a text, gone text, gone2 text);`

let o: Awaited<ReturnType<typeof openOffice>>
let a: ReturnType<typeof o.school>
let k = 0
beforeAll(async () => {
  const sums = { columns: { points: "sum" as const } }
  o = await openOffice(DDL, {
    classes: {},
    pupils: sums,
    marks: {},
    staff: { strategy: "merge", ...sums },
    users: {},
    old: {},
    asked: { strategy: "manual" },
  })
})
beforeEach(() => {
  a = o.school("a")
  k += 10
})
afterAll(() => o?.close())

const tend = async () => {
  let after = ""
  do after = await o.withPg((pg) => tendQuarantine(pg, o, after))
  while (after !== "")
}
const insert = (table: string, id: number, more: object) => ({
  table,
  op: "insert" as const,
  key: [id],
  mine: { id, school_id: "a", ...more } as never,
})
const open = async () =>
  (await o.sql(`SELECT id::text AS id, reason FROM schoolbus.quarantine WHERE status = 'open' AND incarnation = '${a.incarnation}'`)).length

describe("a missing row arrives from head office", () => {
  test("what waits for it is written, and what waits for that; a row of another school helps nobody", async () => {
    await a.push([insert("marks", k, { pupil: k, v: 5 }), insert("pupils", k, { class: k, name: "n" })])
    await a.push([insert("pupils", k + 1, { class: k + 1, name: "n" })])
    await o.sql(`INSERT INTO classes VALUES (${k + 1}, 'b', 'theirs')`)
    await tend()
    expect(await open()).toBe(3)
    await o.sql(`INSERT INTO classes VALUES (${k}, 'a', 'ours')`)
    await tend()
    expect(await o.sql(`SELECT v FROM marks WHERE id = ${k}`)).toEqual([{ v: 5 }])
    expect(await open()).toBe(1)
    await o.sql(`UPDATE classes SET school_id = 'a' WHERE id = ${k + 1}`)
    await tend()
    expect(await open()).toBe(0)
  })
  test("while the hub does not know its tables, or not this one, nothing is given up", async () => {
    await a.push([insert("pupils", k, { class: k, name: "n" })])
    await o.sql(`INSERT INTO classes VALUES (${k}, 'a', 'ours')`)
    const others = new Map([...o.tables].filter(([name]) => name !== "public.pupils"))
    const detail = "class refers to a row of public.classes that does not exist, or does not belong to this school"
    for (const tables of [new Map(), others]) {
      await o.withPg((pg) => tendQuarantine(pg, { ...o, tables }, ""))
      expect(await o.sql(`SELECT reason, detail FROM schoolbus.quarantine WHERE status = 'open' AND incarnation = '${a.incarnation}'`)).toEqual([
        { reason: "foreign_key", detail },
      ])
    }
    await tend()
    expect(await open()).toBe(0)
  })
  test("a table that was renamed or moved away for a while takes what came meanwhile once it is back", async () => {
    await o.sql(`INSERT INTO asked VALUES (${k}, 'a', 'one', 'w'); ALTER TABLE asked RENAME TO away`)
    const pushed = await a.push([
      { table: "asked", op: "update", key: [k], base: { id: k, school_id: "a", v: "one", w: "w" }, mine: { v: "two" } },
      insert("asked", k + 1, { v: "new" }),
    ])
    expect([pushed.reason(0), pushed.reason(1)]).toEqual(["unknown_table", "unknown_table"])
    expect(await o.sql(`SELECT DISTINCT detail FROM schoolbus.quarantine WHERE incarnation = '${a.incarnation}'`)).toEqual([
      { detail: "public.asked, or a table that places its rows, is away or has another shape at head office; the change goes on when that does" },
    ])
    await tend()
    expect(await open()).toBe(2)
    await o.sql("ALTER TABLE away RENAME TO asked")
    await tend()
    expect(await open()).toBe(0)
    expect(await o.sql(`SELECT v FROM asked WHERE id IN (${k}, ${k + 1}) ORDER BY id`)).toEqual([{ v: "two" }, { v: "new" }])
  })
  test("nothing is carried out twice, also where a table refers to itself", async () => {
    await o.sql(`INSERT INTO staff VALUES (${k}, 'a', NULL, 10), (${k + 1}, 'a', NULL, 10)`)
    await a.push([
      { table: "staff", op: "update", key: [k], base: { id: k, boss: null, points: 10 }, mine: { boss: k + 5, points: 11 } },
      { table: "staff", op: "update", key: [k + 1], base: { id: k + 1, boss: null, points: 10 }, mine: { boss: k + 5, points: 12 } },
      insert("staff", k + 2, { boss: k + 5, points: 1 }),
    ])
    await o.sql(`UPDATE staff SET points = 20 WHERE id IN (${k}, ${k + 1}); INSERT INTO staff VALUES (${k + 5}, 'a', NULL, 0)`)
    await tend()
    await tend()
    expect(await o.sql(`SELECT id, boss, points FROM staff WHERE id BETWEEN ${k} AND ${k + 2} ORDER BY id`)).toEqual([
      { id: k, boss: k + 5, points: 21 },
      { id: k + 1, boss: k + 5, points: 22 },
      { id: k + 2, boss: k + 5, points: 1 },
    ])
  })
})

describe("head office writes again in a row that waits for a person", () => {
  const wait = async () => {
    await o.sql(`INSERT INTO asked VALUES (${k}, 'a', 'office', 'x')`)
    const base = { id: k, school_id: "a", v: "base", w: "x" }
    return (await a.push([{ table: "asked", op: "update", key: [k], base, mine: { v: "school" } }])).record(0)
  }
  const record = async (id: string) => (await o.sql(`SELECT theirs, status, decided_by FROM schoolbus.conflicts WHERE id = '${id}'`))[0]
  const refresh = () => o.withPg((pg) => tendConflicts(pg, o.tables, ""))

  test("the record takes the later value, and is closed when both sides agree", async () => {
    const id = await wait()
    await o.sql(`UPDATE asked SET v = 'later' WHERE id = ${k}`)
    await refresh()
    expect(await record(id)).toEqual({ theirs: '"later"', status: "open", decided_by: null })
    await o.sql(`UPDATE asked SET v = 'school' WHERE id = ${k}`)
    await refresh()
    expect(await record(id)).toEqual({ theirs: '"school"', status: "resolved", decided_by: "both sides agree" })
  })
  test("of a row that went to another school it learns nothing", async () => {
    const id = await wait()
    await o.sql(`UPDATE asked SET v = 'secret', school_id = 'b' WHERE id = ${k}`)
    await refresh()
    expect(await record(id)).toMatchObject({ theirs: '"office"', status: "open" })
  })
})

test("of very many clashes the rest is recorded after the push", async () => {
  const ids = Array.from({ length: 130 }, (_, i) => 100_000 + i)
  await o.sql(`INSERT INTO users SELECT n, 'a', 'u' || n FROM generate_series(${ids[0]}, ${ids.at(-1)}) n`)
  await a.push(ids.map((id) => insert("users", id + 1_000, { username: `u${id}` })))
  const recorded = async () =>
    (await o.sql(`SELECT count(*)::int AS n FROM schoolbus.conflicts WHERE kind = 'unique' AND incarnation = '${a.incarnation}'`))[0]?.["n"]
  expect(await recorded()).toBe(100)
  await tend()
  expect(await recorded()).toBe(130)
})

test("a batch that was frozen before a column was dropped: what it says of the column is kept, the rest is written", async () => {
  await o.sql(
    `INSERT INTO old (id, school_id, a, gone) VALUES (${k}, 'a', 'a', 'x'), (${k + 1}, 'a', 'a', 'x'), (${k + 2}, 'a', 'a', 'x'); ALTER TABLE old DROP COLUMN gone`,
  )
  const whole = (id: number) => ({ id, school_id: "a", a: "a", gone: "x", gone2: null })
  const push = await a.push([
    { table: "old", op: "update", key: [k], base: whole(k), mine: { a: "b" } },
    { table: "old", op: "update", key: [k + 1], base: whole(k + 1), mine: { a: "b", gone: "y" } },
    { table: "old", op: "delete", key: [k + 2], base: whole(k + 2) },
    insert("old", k + 3, { a: "new", gone: null, gone2: null }),
    insert("old", k + 4, { a: "new", gone: "kept", gone2: null }),
  ])
  expect([0, 1, 2, 3, 4].map((i) => push.reason(i) ?? push.verdict(i))).toEqual(["applied", "column_gone", "applied", "applied", "column_gone"])
  expect((await o.sql(`SELECT change FROM schoolbus.quarantine WHERE id = '${push.record(4)}'`))[0]?.["change"]).toContain("kept")
  expect(await o.sql(`SELECT id, a FROM old WHERE id BETWEEN ${k} AND ${k + 4} ORDER BY id`)).toEqual([
    { id: k, a: "b" },
    { id: k + 1, a: "b" },
    { id: k + 3, a: "new" },
    { id: k + 4, a: "new" },
  ])
})
