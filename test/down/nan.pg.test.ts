import { afterAll, beforeAll, expect, test } from "vitest"
import { makeWorld, type School, type World } from "../support/world.ts"

const schema = `
  CREATE DOMAIN grade AS float4;
  CREATE TABLE marks (id int PRIMARY KEY, points numeric, ratio float8, grade grade, note text);
  INSERT INTO marks VALUES (1, 'NaN', '-Infinity', 'Infinity', 'first');`

let world: World
let school: School
beforeAll(async () => {
  world = await makeWorld(schema, { tables: { marks: { audience: "all" } } }, ["a"])
  school = await world.school("a")
  await school.pull()
})
afterAll(() => world?.stop())

const waiting = async () => (await world.run(world.feedFile.read((tx) => tx.all<{ n: number }>("SELECT count(*) AS n FROM reread"))))[0]?.n
const quiet = async () => {
  for (const deadline = Date.now() + 20_000; (await waiting()) !== 0; ) {
    if (Date.now() > deadline) throw new Error("rows wait to be read again")
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}
const row = async (id: number) => (await school.rows("SELECT points, ratio, grade, note FROM marks WHERE id = ?", [id]))[0]

test("NaN and infinities come down from the first copy, the stream, and through domains", async () => {
  expect(await row(1)).toEqual({ points: "NaN", ratio: "-Infinity", grade: "Infinity", note: "first" })
  await world.sql`INSERT INTO marks VALUES (2, 'Infinity', 'NaN', '-Infinity', 'streamed'), (3, null, null, null, 'nulls')`
  await world.settle()
  await quiet()
  await school.pull()
  expect(await row(2)).toEqual({ points: "Infinity", ratio: "NaN", grade: "-Infinity", note: "streamed" })
  expect(await row(3)).toEqual({ points: null, ratio: null, grade: null, note: "nulls" })
})

test("while rows with null numbers stream without end, cuts go on, and only rows that hold more than null come twice", async () => {
  const ROWS = 300
  const before = (await world.run(world.feed.head)).seq
  let isWriting = true
  const writing = (async () => {
    for (let i = 0; i < ROWS; i++) {
      // Every tenth holds NaN; each is written in a transaction of its own.
      await world.sql`INSERT INTO marks VALUES (${100 + i}, ${i % 10 === 0 ? "NaN" : null}, null, null, 'load')`
      if (i % 25 === 24) await new Promise((resolve) => setTimeout(resolve, 250))
    }
  })().finally(() => {
    isWriting = false
  })
  const cuts = new Set<number>()
  while (isWriting) {
    // Answers only with a complete cut.
    await school.pull()
    cuts.add(Number((await school.rows<{ n: number }>("SELECT count(*) AS n FROM marks WHERE note = 'load'"))[0]?.n))
  }
  await writing
  expect(cuts.size).toBeGreaterThan(5)
  await world.settle()
  await quiet()
  await school.pull()
  expect(await school.rows("SELECT points, count(*) AS n FROM marks WHERE note = 'load' GROUP BY 1 ORDER BY 1")).toEqual([
    { points: null, n: (ROWS * 9) / 10 },
    { points: "NaN", n: ROWS / 10 },
  ])
  // Rows, those with NaN once more, and the few own rows that tell the test where the stream is.
  expect((await world.run(world.feed.head)).seq - before).toBeLessThan(ROWS * 1.1 + 10)
})
