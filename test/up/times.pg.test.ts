/** `newest_wins` column by column: what head office's commits and what schools' captures say, through the real feed. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest"
import { makeWorld, type School, type World } from "../support/world.ts"

let w: World
let a: School
let b: School
let k = 0
beforeAll(async () => {
  w = await makeWorld(
    `CREATE TABLE facts (id int PRIMARY KEY, a text, b text, c text);
     CREATE TABLE own (id int PRIMARY KEY, school_id text, a text, b text);`,
    {
      tables: {
        facts: { audience: "all", strategy: "newest_wins" },
        own: { audience: { column: "school_id" }, strategy: "newest_wins" },
      },
    },
    ["a", "b"],
  )
  a = await w.school("a")
  b = await w.school("b")
})
afterAll(() => w?.stop())

/** Until both clocks have moved on, so that what follows is later than what was. */
const later = async (): Promise<void> => {
  for (const from = Date.now(); Date.now() <= from + 2; ) await new Promise((resolve) => setTimeout(resolve, 1))
}
const office = async (set: string): Promise<void> => {
  await later()
  await w.sql.unsafe(`UPDATE facts SET ${set} WHERE id = ${k}`)
  await later()
}
const school = async (at: School, set: string): Promise<void> => {
  await later()
  await at.write(`UPDATE facts SET ${set} WHERE id = ${k}`)
  await later()
}
const row = async () => (await w.sql`SELECT a, b, c FROM facts WHERE id = ${k}`)[0]

beforeEach(async () => {
  k++
  await w.sql`INSERT INTO facts VALUES (${k}, '0', '0', '0')`
  await w.settle()
  await a.pull()
  await b.pull()
})

describe("head office and a school", () => {
  test("each column has its own time, whatever was written to the row since", async () => {
    await office("a = 'office'")
    await school(a, "a = 'school', b = 'school'")
    await office("b = 'office'")
    await w.settle()
    await a.sync()
    expect(await row()).toEqual({ a: "school", b: "office", c: "0" })
    expect(await a.rows(`SELECT a, b FROM facts WHERE id = ${k}`)).toEqual([{ a: "school", b: "office" }])
  })
  test("also when the feed took both commits in at once, and when it is behind", async () => {
    await w.sql.begin(async (sql) => {
      await sql.unsafe(`UPDATE facts SET a = 'office' WHERE id = ${k}`)
    })
    await school(a, "a = 'school'")
    await office("c = 'x'")
    await office("c = 'y'")
    await w.settle()
    await a.push()
    expect(await row()).toEqual({ a: "school", b: "0", c: "y" })
  })
  test("a row that was deleted and made again has no times of its former life", async () => {
    await office("a = 'office'")
    await w.sql`DELETE FROM facts WHERE id = ${k}`
    await w.settle()
    expect(await w.run(w.feedFile.read((tx) => tx.all("SELECT * FROM column_time WHERE key = ?", [`[${k}]`])))).toEqual([])
    await school(a, "a = 'school'")
    await w.sql`INSERT INTO facts VALUES (${k}, 'again', '0', '0')`
    await later()
    await w.sql`UPDATE facts SET c = 'x' WHERE id = ${k}`
    await w.settle()
    await a.sync()
    expect(await row()).toEqual({ a: "again", b: "0", c: "x" })
  })
  test("a row that head office deleted comes back only for a later edit", async () => {
    await school(a, "a = 'early'")
    await w.sql`DELETE FROM facts WHERE id = ${k}`
    await later()
    await school(b, "a = 'late'")
    await w.settle()
    await a.sync()
    expect(await row()).toBeUndefined()
    await b.sync()
    expect(await row()).toEqual({ a: "late", b: "0", c: "0" })
  })
  test("a delete in the school loses to a later edit at head office and wins over an earlier one", async () => {
    await w.sql`INSERT INTO own VALUES (${k}, 'a', '0', '0'), (${-k}, 'a', '0', '0')`
    await w.settle()
    await a.pull()
    await w.sql`UPDATE own SET a = 'early' WHERE id IN (${k}, ${-k})`
    await later()
    await a.write(`DELETE FROM own WHERE id IN (${k}, ${-k})`)
    await later()
    await w.sql`UPDATE own SET b = 'late' WHERE id = ${k}`
    await w.settle()
    await a.sync()
    expect([...(await w.sql`SELECT id, a, b FROM own WHERE id IN (${k}, ${-k})`)]).toEqual([{ id: k, a: "early", b: "late" }])
    expect(await a.rows(`SELECT id, a, b FROM own WHERE id IN (${k}, ${-k})`)).toEqual([{ id: k, a: "early", b: "late" }])
  })
})

describe("two schools: the order in which they sync does not decide", () => {
  test.each([
    ["the earlier writer first", ["a", "b"], false],
    ["the later writer first", ["b", "a"], false],
    ["the later writer first, the feed up to date", ["b", "a"], true],
    ["the later writer first, and head office touched the row since", ["b", "a"], "touched"],
  ] as const)("%s", async (_, order, settles) => {
    await school(a, "a = 'a'")
    await school(b, "a = 'b'")
    for (const [i, id] of order.entries()) {
      await (id === "a" ? a : b).push()
      if (i === 0 && settles === "touched") await office("c = 'office'")
      if (settles !== false) await w.settle()
    }
    expect(await row()).toMatchObject({ a: "b" })
    await w.settle()
    for (const one of [a, b]) {
      await one.pull()
      expect(await one.rows(`SELECT a FROM facts WHERE id = ${k}`)).toEqual([{ a: "b" }])
    }
  })
  test("both made the same row", async () => {
    k = 10_000 + k
    await a.write(`INSERT INTO facts VALUES (${k}, 'a', 'a', 'a')`)
    await later()
    await b.write(`INSERT INTO facts VALUES (${k}, 'b', 'b', 'b')`)
    await b.push()
    await a.push()
    expect(await row()).toEqual({ a: "b", b: "b", c: "b" })
  })
})
