/** Records that wait for a person while head office gives their columns other names, or their table another key. */
import { describe, expect, test } from "vitest"
import { pushedTable } from "../../src/down/shape.ts"
import { resolveConflict, undoConflict } from "../../src/up/decide.ts"
import { editQuarantined } from "../../src/up/quarantine.ts"
import { tendConflicts, tendQuarantine } from "../../src/up/tend.ts"
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
const goOn = async (world: World, a: School, name = "public.pupils"): Promise<void> => {
  const tables = () => world.run(world.feed.tables)
  await until("the pause", async () => (await tables()).some(({ paused }) => paused !== null))
  await world.run(world.feed.accept(name))
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

const linked = `
  CREATE TABLE classes (id int PRIMARY KEY, name text);
  CREATE TABLE links (id int PRIMARY KEY, school_id text NOT NULL, pupil_id int);
  CREATE TABLE people (id int PRIMARY KEY, name text, code text);
  CREATE TABLE marks (id int PRIMARY KEY, school_id text NOT NULL, a text, b text, person_id int REFERENCES people (id) ON DELETE CASCADE);
  INSERT INTO classes VALUES (1, 'one');
  INSERT INTO people VALUES (1, 'p1', 'c1'), (2, 'p2', 'c2');
  INSERT INTO links VALUES (1, 'a', 1), (2, 'b', 2);
  INSERT INTO marks VALUES (1, 'a', 'a1', 'b1', 1), (2, 'b', 'a2', 'b2', 2);
`
const linkedTables = {
  classes: { audience: "all" },
  links: { audience: { column: "school_id" } },
  people: { audience: { through: "links", on: { id: "pupil_id" } } },
  marks: { audience: { column: "school_id" }, strategy: "school_wins" },
} as const

const needed: ReadonlyArray<readonly [what: string, ddl: string, back: string | null, writes: ReadonlyArray<string>]> = [
  [
    "its key",
    "ALTER TABLE marks RENAME id TO pid",
    null,
    ["UPDATE marks SET a = 'x' WHERE id = 1", "INSERT INTO marks VALUES (10, 'a', 'n', 'm', 1)"],
  ],
  [
    "its key, and rows go that it hangs on",
    "ALTER TABLE marks RENAME id TO pid",
    null,
    ["DELETE FROM marks WHERE id = 1", "DELETE FROM people WHERE id = 1"],
  ],
  [
    "what says its school",
    "ALTER TABLE marks RENAME school_id TO sid",
    "ALTER TABLE marks RENAME sid TO school_id",
    ["UPDATE marks SET a = 'x' WHERE id = 1", "INSERT INTO marks VALUES (10, 'a', 'n', 'm', 1)", "UPDATE people SET name = 'y' WHERE id = 1"],
  ],
  [
    "what places others",
    "ALTER TABLE links RENAME pupil_id TO pid",
    "ALTER TABLE links RENAME pid TO pupil_id",
    [
      ...["UPDATE people SET name = 'y' WHERE id = 1", "INSERT INTO people VALUES (10, 'n', 'c')"],
      ...["INSERT INTO links VALUES (10, 'a', 10)", "INSERT INTO marks VALUES (10, 'a', 'n', 'm', 10)"],
    ],
  ],
  [
    "the key of what others refer to",
    "ALTER TABLE links RENAME id TO link; ALTER TABLE links RENAME link TO id; ALTER TABLE people RENAME id TO pid",
    "ALTER TABLE people RENAME pid TO id",
    ["UPDATE marks SET b = 'x' WHERE id = 1", "INSERT INTO marks VALUES (10, 'a', 'n', 'm', 1)", "UPDATE people SET name = 'y' WHERE id = 1"],
  ],
]

test.each(needed)("while a table lacks %s, what schools write to it waits, and all else goes on", async (_, ddl, back, writes) => {
  const world = await makeWorld(linked, { tables: linkedTables }, ["a", "b"])
  const a = await world.school("a")
  await a.pull()
  for (const one of ddl.split("; ")) await world.sql.unsafe(one)
  await until("the pause", async () => (await world.run(world.feed.tables)).some(({ paused }) => paused !== null))
  for (const one of writes) await a.write(one)
  await a.write("UPDATE classes SET name = 'first' WHERE id = 1")
  await a.sync()
  expect([...(await world.sql`SELECT name FROM classes`)]).toEqual([{ name: "first" }])
  // The school shows what it wrote.
  const wrote = await Promise.all(["people", "links"].map((name) => a.rows(`SELECT * FROM ${name} ORDER BY id`)))
  const marks = await a.rows("SELECT a, b, person_id FROM marks ORDER BY id")
  if (back === null) await goOn(world, a, "public.marks")
  else {
    await world.sql.unsafe(back)
    await until("going on", async () => (await world.run(world.feed.tables)).every(({ paused, recheck }) => paused === null && !recheck))
  }
  await until("what waits to be carried out", async () => {
    const tables = (await deciderOf(world)).tables
    for (let after: string | null = null; after !== ""; )
      after = await world.run(tendQuarantine(world.pg, { tables, had: world.feed.had }, after ?? ""))
    return (await world.sql`SELECT FROM schoolbus.quarantine WHERE status = 'open'`).length === 0
  })
  await world.settle()
  await a.pull()
  expect(await a.rows("SELECT a, b, person_id FROM marks ORDER BY 1, 2")).toEqual(
    marks.toSorted((x, y) => (String(x["a"]) < String(y["a"]) ? -1 : 1)),
  )
  expect(await Promise.all(["people", "links"].map((name) => a.rows(`SELECT * FROM ${name} ORDER BY id`)))).toEqual(wrote)
  const office = await world.sql`SELECT a, b, person_id FROM marks WHERE school_id = 'a' ORDER BY 1, 2`
  expect(await a.rows("SELECT a, b, person_id FROM marks ORDER BY 1, 2")).toEqual([...office])
  expect(await a.rows("SELECT * FROM schoolbus_hold")).toEqual([])
  expect(await a.rows("SELECT * FROM schoolbus_behind")).toEqual([])
  await world.stop()
})

test("while two columns have traded names, and nobody has said that it is meant, nothing is written into either", async () => {
  const { world, a } = await start("school_wins")
  await swap(world)
  await until("the pause", async () => (await world.run(world.feed.tables)).some(({ paused }) => paused !== null))
  await a.write("UPDATE pupils SET a = 'mine', number = 9 WHERE id = 1")
  const [verdicts] = await a.push()
  expect(verdicts?.exceptions.map(({ verdict, reason }) => [verdict, reason])).toEqual([["merged", "column_gone"]])
  expect(await pupil(world)).toMatchObject({ a: "b1", b: "a1", number: 9 })
  await goOn(world, a)
  expect(await a.rows("SELECT a, b, number FROM pupils WHERE id = 1")).toEqual([{ a: "b1", b: "a1", number: 9 }])
  await world.stop()
})

test("a push that comes before the hub has heard of the new names writes nothing under the old ones", async () => {
  const { world, a } = await start("school_wins")
  await a.write("UPDATE pupils SET a = 'mine', number = 9 WHERE id = 1")
  await a.freeze()
  await world.halt()
  await swap(world)
  await a.push()
  expect(await pupil(world)).toMatchObject({ a: "b1", b: "a1", number: 9 })
  await world.restart()
  await goOn(world, a)
  expect(await a.rows("SELECT a, b, number FROM pupils WHERE id = 1")).toEqual([{ a: "b1", b: "a1", number: 9 }])
  await world.stop()
})

test("while a new shape is being read, edits of its columns are written under their names in it", async () => {
  const { world, a } = await start("school_wins")
  await a.write("UPDATE pupils SET a = 'mine', b = 'gone' WHERE id = 1")
  await a.freeze()
  await world.sql`ALTER TABLE pupils RENAME COLUMN a TO x`
  await world.sql`ALTER TABLE pupils DROP COLUMN b, ADD COLUMN a text, ALTER COLUMN number TYPE bigint`
  await until("the pause", async () => (await world.run(world.feed.tables)).some(({ paused }) => paused !== null))
  // No read of a table ends meanwhile.
  const reading = Promise.withResolvers<void>()
  const held = world.sql.begin(async (tx) => {
    await tx`LOCK TABLE schoolbus.marks IN EXCLUSIVE MODE`
    await world.run(world.feed.accept("public.pupils"))
    await until("the new shape", async () => (await world.run(world.feed.tables)).some(({ name, loading }) => name === "public.pupils" && loading))
    await reading.promise
  })
  await until("the new shape", async () => (await world.run(world.feed.tables)).some(({ name, loading }) => name === "public.pupils" && loading))
  const [first] = await a.push()
  await a.write("UPDATE pupils SET a = 'mine again' WHERE id = 2")
  const [second] = await a.push().then((all) => all.slice(-1))
  reading.resolve()
  await held
  expect([first, second].map((verdicts) => verdicts?.exceptions.map(({ verdict, reason }) => [verdict, reason]))).toEqual([
    [["merged", "column_gone"]],
    [],
  ])
  expect([...(await world.sql`SELECT x, a, number FROM pupils ORDER BY id`)]).toEqual([
    { x: "mine", a: null, number: "2" },
    { x: "mine again", a: null, number: "1" },
  ])
  await until("the table to be read", async () => (await world.run(world.feed.tables)).every(({ loading }) => !loading))
  await world.settle()
  await a.pull()
  expect(await a.rows("SELECT x, a, number FROM pupils ORDER BY id")).toEqual([
    { x: "mine", a: null, number: 2 },
    { x: "mine again", a: null, number: 1 },
  ])
  await world.stop()
})

describe.each([
  ["char(5)", "text", "'ab'"],
  ["date", "timestamp", "'2026-01-01'"],
  ["numeric(10,2)", "numeric(12,4)", "1.5"],
])("a key of type %s that becomes %s", (from, to, value) => {
  test.each(["while it is paused", "when it goes on"])("names no other row by an edit that comes %s", async (when) => {
    const world = await makeWorld(
      `CREATE TABLE pupils (k ${from} PRIMARY KEY, school_id text NOT NULL, v text); INSERT INTO pupils VALUES (${value}, 'a', 'one')`,
      { tables: { pupils: { audience: { column: "school_id" }, strategy: "school_wins" } } },
      ["a"],
    )
    const a = await world.school("a")
    await a.pull()
    await a.write("UPDATE pupils SET v = 'mine'")
    await a.freeze()
    await world.sql.unsafe(`ALTER TABLE pupils ALTER k TYPE ${to}`)
    await until("the pause", async () => (await world.run(world.feed.tables)).some(({ paused }) => paused !== null))
    const reasons = async () => (await a.push()).flatMap(({ exceptions }) => exceptions.map(({ reason }) => reason))
    if (when === "while it is paused") expect(await reasons()).toEqual(["unknown_table"])
    await goOn(world, a)
    if (when === "when it goes on") expect(await reasons()).toEqual(["rekeyed"])
    await world.run(tendQuarantine(world.pg, await deciderOf(world), ""))
    expect([...(await world.sql`SELECT reason, status FROM schoolbus.quarantine`)]).toEqual([{ reason: "rekeyed", status: "open" }])
    await world.sql`UPDATE schoolbus.quarantine SET status = 'discarded'`
    await world.settle()
    await a.pull()
    const office = [...(await world.sql`SELECT k::text AS k, v FROM pupils`)]
    expect(office).toHaveLength(1)
    expect(await a.rows("SELECT k, v FROM pupils")).toEqual(office)
    await world.stop()
  })
})

test("a key whose values are spelled alike under its new type goes on naming its rows", async () => {
  const world = await makeWorld(
    "CREATE TABLE pupils (k uuid PRIMARY KEY, school_id text NOT NULL, v text); INSERT INTO pupils VALUES ('00000000-0000-0000-0000-000000000001', 'a', 'one')",
    { tables: { pupils: { audience: { column: "school_id" }, strategy: "school_wins" } } },
    ["a"],
  )
  const a = await world.school("a")
  await a.pull()
  await a.write("UPDATE pupils SET v = 'mine'")
  await a.freeze()
  await world.sql`ALTER TABLE pupils ALTER k TYPE text`
  await goOn(world, a)
  await a.sync()
  expect([...(await world.sql`SELECT v FROM pupils`)]).toEqual([{ v: "mine" }])
  await world.stop()
})
