import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest"
import { openOffice } from "./office.ts"

const DDL = `
CREATE TABLE kept (id int PRIMARY KEY, school_id text, points int DEFAULT 0, balance numeric(14,2), big bigint, tags text[], notes text, seen date, low timestamptz, best text, last_login timestamptz, v int);
CREATE TABLE timed (id int PRIMARY KEY, best text);
CREATE FUNCTION double() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.v IS DISTINCT FROM OLD.v THEN NEW.v := NEW.v + 100; END IF; RETURN NEW; END $$;
CREATE TRIGGER t BEFORE UPDATE ON kept FOR EACH ROW EXECUTE FUNCTION double();`

let o: Awaited<ReturnType<typeof openOffice>>
let a: ReturnType<typeof o.school>
let b: ReturnType<typeof o.school>
let k = 0
beforeAll(async () => {
  o = await openOffice(DDL, {
    timed: { audience: "all", strategy: "newest_wins" },
    kept: {
      audience: "all",
      strategy: "merge",
      columns: { points: "sum", balance: "sum", big: "sum", tags: "union", notes: "append", seen: "max", low: "min", best: "max", v: "sum" },
      exclude: ["last_login"],
    },
  })
})
beforeEach(() => {
  a = o.school("a")
  b = o.school("b")
  k++
})
afterAll(() => o?.close())

const put = (set: string) =>
  o.sql(`INSERT INTO kept (id, school_id) VALUES (${k}, 'a') ON CONFLICT DO NOTHING; UPDATE kept SET ${set} WHERE id = ${k}`)
const read = async (columns: string) => (await o.sql(`SELECT ${columns} FROM kept WHERE id = ${k}`))[0]
const edit = (base: object, mine: object) => ({
  table: "kept",
  op: "update" as const,
  key: [k],
  base: { id: k, ...base } as never,
  mine: mine as never,
})

describe("sum", () => {
  test("both sides' edits count, exactly, and a lost answer counts nothing twice", async () => {
    await put("points = 7, balance = 9999999999.99, big = 9007199254740993")
    const body = a.text(1, [
      edit({ points: 5, balance: "9999999999.98", big: "9007199254740991" }, { points: 8, balance: "9999999999.99", big: "9007199254740994" }),
    ])
    await a.send(1, body)
    const wanted = { points: 10, balance: "10000000000.00", big: "9007199254740996" }
    expect(await read("points, balance::text, big::text")).toEqual(wanted)
    await a.send(1, body)
    expect(await read("points, balance::text, big::text")).toEqual(wanted)
    const [record] = await o.sql(`SELECT winner, kept, theirs, status FROM schoolbus.conflicts WHERE row_key = '[${k}]' AND column_name = 'points'`)
    expect(record).toEqual({ winner: "merged", kept: "10", theirs: "7", status: "decided" })
  })
  test("two edits in flight in two batches count once each, and are one disagreement", async () => {
    await put("points = 6")
    await a.push([edit({ points: 5 }, { points: 8 })])
    const second = await a.push([edit({ points: 8 }, { points: 10 })])
    expect(await read("points")).toEqual({ points: 11 })
    expect(second.verdict(0)).toBe("merged")
    expect(await o.sql(`SELECT 1 FROM schoolbus.conflicts WHERE row_key = '[${k}]'`)).toHaveLength(1)
  })
  test("two schools that add the same count both", async () => {
    await put("points = 5")
    await a.push([edit({ points: 5 }, { points: 8 })])
    await b.push([edit({ points: 5 }, { points: 8 })])
    expect(await read("points")).toEqual({ points: 11 })
  })
  test("a trigger that adds to the sum is counted on from", async () => {
    await put("v = 1")
    await o.sql(`UPDATE kept SET v = 1 WHERE id = ${k}`)
    const [start] = await o.sql(`SELECT v FROM kept WHERE id = ${k}`)
    const from = Number(start?.["v"])
    await a.push([edit({ v: from }, { v: from + 1 })])
    const second = await a.push([edit({ v: from + 1 }, { v: from + 3 })])
    expect(second.verdict(0)).toBe("merged")
    expect(await read("v")).toEqual({ v: from + 3 + 200 })
  })
  test("a sum that the column cannot hold is quarantined, the rest is written", async () => {
    await put("points = 2147483647")
    const push = await a.push([
      edit({ points: 5 }, { points: 8 }),
      { table: "kept", op: "insert", key: [k + 5000], mine: { id: k + 5000, school_id: "a" } },
    ])
    expect([push.verdict(0), push.reason(0), push.verdict(1)]).toEqual(["quarantined", "type", "applied"])
  })
})

describe("other rules", () => {
  test("union and append carry the school's own change over", async () => {
    await put(`tags = '{a,b,"x y"}', notes = 'seen; told'`)
    await a.push([edit({ tags: "{a,b}", notes: "seen" }, { tags: "{a,c}", notes: "seen; paid" })])
    expect(await read("tags, notes")).toEqual({ tags: '{a,"x y",c}', notes: "seen; told; paid" })
  })
  test("max and min in Postgres' own order of the type", async () => {
    await put(`seen = '2026-10-02', low = '2026-01-01 00:00:00+00', best = 'b'`)
    await a.push([
      edit({ seen: "2026-01-01", low: "2026-06-01 00:00:00+00", best: "a" }, { seen: "2026-09-30", low: "2026-01-01 00:00:00.5+00", best: "c" }),
    ])
    expect(await read("seen::text, low::text, best")).toEqual({ seen: "2026-10-02", low: "2026-01-01 00:00:00+00", best: "c" })
    const again = await a.push([edit({ seen: "2026-01-01" }, { seen: "10000-01-01" })])
    expect(again.verdict(0)).toBe("conflict")
    expect(await read("seen::text")).toEqual({ seen: "10000-01-01" })
  })
  test("an excluded column takes the later write and records nothing", async () => {
    await put(`last_login = '2026-01-01 00:00:00+00'`)
    const early = { ...edit({ last_login: null }, { last_login: "2025-01-01 00:00:00+00" }), at: Date.now() - 3_600_000 }
    await a.push([early])
    expect(await read("last_login::text")).toEqual({ last_login: "2026-01-01 00:00:00+00" })
    const late = await a.push([{ ...edit({ last_login: null }, { last_login: "2027-01-01 00:00:00+00" }), at: Date.now() + 60_000 }])
    expect(await read("last_login::text")).toEqual({ last_login: "2027-01-01 00:00:00+00" })
    expect(late.verdict(0)).toBe("merged")
    expect(await o.sql(`SELECT 1 FROM schoolbus.conflicts WHERE row_key = '[${k}]'`)).toEqual([])
  })
  test("the update wins over a delete, whichever side made it", async () => {
    const gone = await a.push([
      edit(
        {
          school_id: "a",
          points: 1,
          balance: null,
          big: null,
          tags: null,
          notes: null,
          seen: null,
          low: null,
          best: null,
          last_login: null,
          v: null,
        },
        { points: 2 },
      ),
    ])
    expect(gone.verdict(0)).toBe("conflict")
    expect(await read("points")).toEqual({ points: 2 })
  })
})

test("a row for everybody that head office deleted too needs no decision; one that stands is not the school's to delete", async () => {
  await o.sql(`INSERT INTO timed VALUES (${k}, 'stands')`)
  const gone = { table: "timed", op: "delete" as const, key: [k + 9000], base: { id: k + 9000, best: "x" } }
  const push = await a.push([gone, { table: "timed", op: "delete", key: [k], base: { id: k, best: "stands" } }])
  expect([push.of(0), push.reason(1)]).toEqual([[], "shared"])
})

describe("a school clock in 1970 or 2099", () => {
  const HOUR = 3_600_000
  const newest = (mine: string, at: number) => ({ ...edit({ best: "base" }, { best: mine }), table: "timed", at })
  /** Head office writes now; the school was last heard an hour ago, or a moment after head office's write. */
  test.each([
    ["1970, heard an hour ago", 0, -HOUR, "office"],
    ["1970, heard since", 0, 5, "school"],
    ["2099, heard an hour ago", Date.parse("2099-01-01"), -HOUR, "school"],
    ["right, written before head office", -HOUR / 2, -HOUR, "office"],
  ])("%s", async (_, at, heard, winner) => {
    await o.sql(`INSERT INTO timed VALUES (${k}, 'office')`)
    const [written] = await o.sql(`SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000 AS at FROM timed WHERE id = ${k}`)
    const now = Number(written?.["at"])
    while (Date.now() <= now + 10) await new Promise((resolve) => setTimeout(resolve, 1))
    await a.push([newest("school", at < 0 ? now + at : at)], { contacts: [[0, now + heard, now + heard]] })
    expect(await o.sql(`SELECT best FROM timed WHERE id = ${k}`)).toEqual([{ best: winner }])
    const [record] = await o.sql(
      `SELECT mine_at, extract(epoch FROM mine_at) * 1000 AS at FROM schoolbus.conflicts WHERE table_name = 'public.timed' AND row_key = '[${k}]'`,
    )
    expect(Number(record?.["at"])).toBeGreaterThanOrEqual(now + heard - 1)
    expect(Number(record?.["at"])).toBeLessThanOrEqual(Date.now())
  })
  test("decides nothing where newest_wins has no say", async () => {
    await put("best = 'b', points = 7")
    await a.push([
      { ...edit({ best: "a", points: 5 }, { best: "c", points: 6 }), at: 0 },
      { ...edit({ best: "c" }, { best: "d" }), at: 4e12 },
    ])
    expect(await read("best, points")).toEqual({ best: "d", points: 8 })
  })
})

test("rules that do not fit a column are refused with the reason", async () => {
  await expect(
    openOffice("CREATE TABLE t (id int PRIMARY KEY, school_id text, a text, j json)", {
      t: { columns: { a: "sum", j: "max", id: "union", nope: "sum" }, exclude: ["gone"] },
    }),
  ).rejects.toThrow(/a .*cannot have rule sum.*j .*cannot have rule max.*id .*cannot have rule union.*nope.*gone/s)
})
