/** Records that wait for a person while head office gives their columns other names, or their table another key. */
import { expect, test } from "vitest"
import { pushedTable } from "../../src/down/shape.ts"
import { resolveConflict, undoConflict } from "../../src/up/decide.ts"
import { editQuarantined } from "../../src/up/quarantine.ts"
import { tendConflicts } from "../../src/up/tend.ts"
import type { Choice } from "../../src/model/choice.ts"
import { until } from "../support/until.ts"
import { makeWorld, type School, type World } from "../support/world.ts"

const schema = `
  CREATE TABLE pupils (id int PRIMARY KEY, school_id text NOT NULL, a text, b text, number int NOT NULL UNIQUE);
  INSERT INTO pupils VALUES (1, 'a', 'a1', 'b1', 2), (2, 'a', 'a2', 'b2', 1);
`

const start = async (strategy: "manual" | "school_wins" | "newest_wins", more = ""): Promise<{ readonly world: World; readonly a: School }> => {
  const world = await makeWorld(schema + more, { tables: { pupils: { audience: { column: "school_id" }, strategy } } }, ["a"])
  const a = await world.school("a")
  await a.pull()
  return { world, a }
}

/** The table takes its new shape, as meant, and the school hears of it. */
const goOn = async (world: World, a: School): Promise<void> => {
  const tables = () => world.run(world.feed.tables)
  await until("the pause", async () => (await tables()).some(({ paused }) => paused !== null))
  await world.run(world.feed.accept("public.pupils"))
  await until("the table to be read", async () => (await tables()).every((table) => !table.loading && table.paused === null && !table.recheck))
  await world.settle()
  await a.pull()
}

const deciderOf = async (world: World) => ({
  tables: new Map((await world.run(world.feed.tables)).map((table) => [table.name, pushedTable(table)])),
  had: world.feed.had,
})
const recordOf = async (world: World) => {
  const [record] = await world.sql`SELECT id::text AS id, column_name AS column, theirs FROM schoolbus.conflicts WHERE status <> 'decided'`
  return record as { readonly id: string; readonly column: string | null; readonly theirs: string | null }
}
const decide = async (world: World, choice: Choice): Promise<void> =>
  world.run(resolveConflict(world.pg, await deciderOf(world), (await recordOf(world)).id, choice, "test"))
const tend = async (world: World): Promise<unknown> => world.run(tendConflicts(world.pg, (await deciderOf(world)).tables, ""))

const swap = async (world: World): Promise<void> => {
  await world.sql`ALTER TABLE pupils RENAME COLUMN a TO x`
  await world.sql`ALTER TABLE pupils RENAME COLUMN b TO a`
  await world.sql`ALTER TABLE pupils RENAME COLUMN x TO b`
}

/** Both sides write column a of pupil 1. */
const disagree = async (world: World, a: School): Promise<void> => {
  await a.write("UPDATE pupils SET a = 'mine' WHERE id = 1")
  await world.sql`UPDATE pupils SET a = 'theirs' WHERE id = 1`
  await a.sync()
  expect(await a.rows("SELECT a, b FROM pupils WHERE id = 1")).toEqual([{ a: "mine", b: "b1" }])
}

const pupil = (world: World) => world.sql`SELECT * FROM pupils WHERE id = 1`.then(([row]) => ({ ...row }))

test("two columns trade names: what waits in one of them waits on under its name, and is decided and undone there", async () => {
  const { world, a } = await start("manual")
  await disagree(world, a)
  await swap(world)
  await goOn(world, a)
  expect(await a.rows("SELECT a, b FROM pupils WHERE id = 1")).toEqual([{ a: "b1", b: "mine" }])
  await world.sql`UPDATE pupils SET a = 'of head office', b = 'theirs again' WHERE id = 1`
  await world.settle()
  await a.pull()
  expect(await a.rows("SELECT a, b FROM pupils WHERE id = 1")).toEqual([{ a: "of head office", b: "mine" }])
  await tend(world)
  expect(await recordOf(world)).toMatchObject({ column: "b", theirs: '"theirs again"' })
  await decide(world, { keep: "school" })
  expect(await pupil(world)).toMatchObject({ a: "of head office", b: "mine" })
  await swap(world)
  await goOn(world, a)
  await world.run(undoConflict(world.pg, await deciderOf(world), (await recordOf(world)).id, "test"))
  expect(await pupil(world)).toMatchObject({ a: "theirs again", b: "of head office" })
  await world.stop()
})

test("a later edit goes into the record of its own column, whatever that was called", async () => {
  const { world, a } = await start("manual")
  await disagree(world, a)
  await swap(world)
  await goOn(world, a)
  await a.write("UPDATE pupils SET b = 'mine again' WHERE id = 1")
  await a.sync()
  expect([...(await world.sql`SELECT column_name AS column, status, base, mine, theirs FROM schoolbus.conflicts`)]).toEqual([
    { column: "b", status: "open", base: '"a1"', mine: '"mine again"', theirs: '"theirs"' },
  ])
  await decide(world, { keep: "vps" })
  await world.settle()
  await a.pull()
  expect(await a.rows("SELECT a, b FROM pupils WHERE id = 1")).toEqual([{ a: "b1", b: "theirs" }])
  await world.stop()
})

test("a record of a whole row is decided under the names of now", async () => {
  const { world, a } = await start("manual")
  await a.write("UPDATE pupils SET a = 'mine' WHERE id = 1")
  await world.sql`DELETE FROM pupils WHERE id = 1`
  await a.sync()
  await swap(world)
  await goOn(world, a)
  await decide(world, { keep: "school" })
  expect(await pupil(world)).toMatchObject({ a: "b1", b: "mine" })
  await world.stop()
})

test("of a column that is gone only head office's value is left, also where another one has its name", async () => {
  const { world, a } = await start("manual")
  await disagree(world, a)
  await world.sql`ALTER TABLE pupils DROP COLUMN a`
  await world.sql`ALTER TABLE pupils RENAME COLUMN b TO a`
  await goOn(world, a)
  await tend(world)
  expect(await recordOf(world)).toMatchObject({ theirs: '"theirs"' })
  await expect(decide(world, { keep: "school" })).rejects.toThrow("column a no longer exists")
  await decide(world, { keep: "vps" })
  expect(await pupil(world)).toMatchObject({ a: "b1" })
  await world.settle()
  await a.pull()
  expect(await a.rows("SELECT a FROM pupils WHERE id = 1")).toEqual([{ a: "b1" }])
  expect(await a.rows("SELECT * FROM schoolbus_hold")).toEqual([])
  await world.stop()
})

test("where the table has another key no record speaks of the row that has its key now", async () => {
  const { world, a } = await start("manual")
  await disagree(world, a)
  await world.sql`ALTER TABLE pupils DROP CONSTRAINT pupils_pkey, ADD PRIMARY KEY (number)`
  await goOn(world, a)
  await tend(world)
  expect(await recordOf(world)).toMatchObject({ theirs: '"theirs"' })
  await expect(decide(world, { keep: "school" })).rejects.toThrow("another key")
  // Pupil 2 has number 1: an edit of it is no later edit of what waits for pupil 1.
  await a.write("UPDATE pupils SET a = 'of pupil 2' WHERE number = 1")
  await a.sync()
  expect([...(await world.sql`SELECT id, a FROM pupils ORDER BY id`)]).toEqual([
    { id: 1, a: "theirs" },
    { id: 2, a: "of pupil 2" },
  ])
  await decide(world, { keep: "vps" })
  expect(await pupil(world)).toMatchObject({ a: "theirs" })
  await world.stop()
})

test("a kept change is edited under the names of now", async () => {
  const { world, a } = await start("school_wins", "ALTER TABLE pupils ADD CHECK (a <> 'refused');")
  await a.write("UPDATE pupils SET a = 'refused', number = 9 WHERE id = 1")
  await a.sync()
  await swap(world)
  await goOn(world, a)
  const [record] = await world.sql`SELECT id::text AS id FROM schoolbus.quarantine`
  await world.run(editQuarantined(world.pg, await deciderOf(world), String(record?.["id"]), '{"b":"fine"}', "test"))
  expect(await pupil(world)).toMatchObject({ a: "b1", b: "fine", number: 9 })
  await world.stop()
})

test("a clash of unique values is decided under the names of now", async () => {
  const { world, a } = await start("school_wins", "ALTER TABLE pupils ADD UNIQUE (a);")
  await a.write("UPDATE pupils SET a = 'wanted', number = 9 WHERE id = 1")
  await world.sql`UPDATE pupils SET a = 'wanted' WHERE id = 2`
  await a.sync()
  await swap(world)
  await goOn(world, a)
  await decide(world, { keep: "keep_remote" })
  expect(await pupil(world)).toMatchObject({ a: "b1", b: "a1", number: 9 })
  await world.stop()
})

test("a column's time stays with it: of two writes the later one stands, whatever the column is called by then", async () => {
  const { world, a } = await start("newest_wins")
  await a.write("UPDATE pupils SET a = 'earlier' WHERE id = 1")
  await a.freeze()
  await world.sql`UPDATE pupils SET a = 'later' WHERE id = 1`
  await world.sql`UPDATE pupils SET b = 'earlier' WHERE id = 2`
  await world.settle()
  await a.write("UPDATE pupils SET b = 'later' WHERE id = 2")
  await a.freeze()
  await world.sql`UPDATE pupils SET a = 'last' WHERE id = 2`
  await world.settle()
  await swap(world)
  await goOn(world, a)
  await a.sync()
  expect([...(await world.sql`SELECT id, a, b FROM pupils ORDER BY id`)]).toEqual([
    { id: 1, a: "b1", b: "later" },
    { id: 2, a: "later", b: "last" },
  ])
  await world.stop()
})

test("a column that is new under the name of one that is gone has none of its times", async () => {
  const { world, a } = await start("newest_wins")
  await world.sql`UPDATE pupils SET a = 'late' WHERE id = 1`
  await world.settle()
  await world.sql`ALTER TABLE pupils DROP COLUMN a`
  await world.sql`ALTER TABLE pupils RENAME COLUMN b TO a`
  await goOn(world, a)
  const [table] = (await world.run(world.feed.tables)).filter(({ name }) => name === "public.pupils")
  const [row] = await world.run(
    world.feedFile.read((tx) => tx.all<{ times: string }>("SELECT times FROM column_time WHERE tbl = ?", [table?.id ?? 0])),
  )
  expect(Object.keys(JSON.parse(row?.times ?? "{}"))).toEqual(["*"])
  await world.stop()
})
