/**
 * Schools that join, write and are written to while a table is being read for the first time. An older transaction that goes on
 * holds the reading up for as long as a test wants.
 */
import { afterEach, expect, test } from "vitest"
import type { ConfigInput } from "../../src/config.ts"
import { until } from "../support/until.ts"
import { makeWorld, type School, type World } from "../support/world.ts"

const schema = `
  CREATE TABLE pupils (id text PRIMARY KEY, school text, name text);
  CREATE TABLE notes (id text PRIMARY KEY, school text, note text);
  CREATE TABLE seats (id text PRIMARY KEY, school text, pupil text);
  CREATE TABLE marks (id text PRIMARY KEY, pupil text, mark int);
  CREATE TABLE other (id int);
  INSERT INTO pupils SELECT 'p' || n, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, 'pupil' FROM generate_series(1, 6) n;
  INSERT INTO notes SELECT 'n' || n, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, 'note' FROM generate_series(1, 6) n;
  INSERT INTO seats SELECT 's' || n, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, 'p' || n FROM generate_series(1, 6) n;
  INSERT INTO marks SELECT 'm' || n, 'p' || n, n FROM generate_series(1, 6) n;`

const own = { audience: { column: "school" }, strategy: "school_wins" } as const
const pupils = { pupils: own }
const all: ConfigInput["tables"] = { ...pupils, notes: own, seats: own, marks: { audience: { through: "seats", on: { pupil: "pupil" } } } }

let world: World
afterEach(() => world?.stop())

const ids = async (school: School, table: string) => (await school.rows<{ id: string }>(`SELECT id FROM ${table} ORDER BY id`)).map(({ id }) => id)
const office = async (table: string, where: string) =>
  (await world.sql.unsafe(`SELECT id FROM ${table} t WHERE ${where} ORDER BY id`)).map(({ id }) => id)
const loading = async () => (await world.run(world.feed.tables)).flatMap(({ name, loading: is }) => (is ? [name] : []))

/** Runs with the tables that are new to the feed still being read; they are complete when it is over. */
const whileLoading = async (tables: ConfigInput["tables"], body: () => Promise<void>): Promise<void> => {
  const older = await world.sql.reserve()
  await older`BEGIN`
  await older`INSERT INTO other VALUES (1)`
  await world.restart({ plugin: "pgoutput", tables })
  expect((await loading()).length).toBeGreaterThan(0)
  await body()
  expect((await loading()).length).toBeGreaterThan(0)
  await older`COMMIT`
  older.release()
  await until("the tables to be read", async () => (await loading()).length === 0)
}

const same = async (...schools: ReadonlyArray<School>) => {
  await world.settle()
  for (const school of schools) {
    await school.pull()
    const theirs = { pupils: `t.school = '${school.id}'`, notes: `t.school = '${school.id}'`, seats: `t.school = '${school.id}'` }
    for (const [table, where] of Object.entries(theirs)) expect([table, await ids(school, table)]).toEqual([table, await office(table, where)])
    expect(await ids(school, "marks")).toEqual(
      await office("marks", `EXISTS (SELECT 1 FROM seats s WHERE s.pupil = t.pupil AND s.school = '${school.id}')`),
    )
    expect(await school.rows("SELECT * FROM changes")).toEqual([])
  }
}

test("a school that joins while a table is read has the others at once, and the table as a whole once it is read", async () => {
  world = await makeWorld(schema, { plugin: "pgoutput", tables: pupils }, ["a", "b"])
  const early = await world.school("a")
  await early.pull()
  let late: School | undefined
  await whileLoading(all, async () => {
    expect(await world.run(world.feed.ready)).toBe(false)
    late = await world.school("b")
    await late.pull()
    await early.pull()
    expect([await ids(early, "pupils"), await ids(late, "pupils")]).toEqual([
      ["p2", "p4", "p6"],
      ["p1", "p3", "p5"],
    ])
    // What head office writes meanwhile is no part of the table.
    await world.sql`INSERT INTO notes VALUES ('new', 'b', 'written meanwhile')`
    await world.sql`UPDATE notes SET school = 'b' WHERE id = 'n2'`
    await world.sql`DELETE FROM notes WHERE id = 'n1'`
    await world.sql`UPDATE seats SET school = 'b' WHERE id = 's2'`
    await world.settle()
    await late.pull()
    await early.pull()
    for (const school of [early, late]) for (const table of ["notes", "seats", "marks"]) expect(await ids(school, table)).toEqual([])
    await world.sql`UPDATE pupils SET name = 'changed' WHERE id = 'p1'`
    await world.settle()
    await late.pull()
    expect(await late.rows("SELECT name FROM pupils WHERE id = 'p1'")).toEqual([{ name: "changed" }])
  })
  await same(early, late as School)
})

test("what schools push into a table that is still read, and head office takes away again, leaves them", async () => {
  world = await makeWorld(schema, { plugin: "pgoutput", tables: pupils }, ["a", "b"])
  const a = await world.school("a")
  const b = await world.school("b")
  await whileLoading(all, async () => {
    await a.pull()
    await b.pull()
    for (const id of ["stays", "gone", "moved", "emptied"]) await a.write("INSERT INTO notes VALUES (?, 'a', 'pushed')", [id])
    // A mark hangs on a seat that nobody has read yet.
    await a.write("INSERT INTO marks VALUES ('mine', 'p2', 9)")
    expect((await a.push()).flatMap(({ exceptions }) => exceptions)).toEqual([])
    await world.settle()
    await world.sql`DELETE FROM notes WHERE id = 'gone'`
    await world.sql`UPDATE notes SET school = 'b' WHERE id = 'moved'`
    await world.sql`UPDATE notes SET school = NULL WHERE id = 'emptied'`
    await world.settle()
    await a.pull()
  })
  await same(a, b)
  expect(await ids(a, "notes")).toEqual(["n2", "n4", "n6", "stays"])
  expect(await ids(a, "marks")).toEqual(["m2", "m4", "m6", "mine"])
})

test.each(["wal2json", "pgoutput"] as const)("rows of a first copy that change while its slot is gone are read once more: %s", async (plugin) => {
  world = await makeWorld(schema, { plugin, tables: pupils }, ["a"])
  await world.sql`INSERT INTO notes SELECT 'n' || n, 'a', 'note' FROM generate_series(10, 6000) n`
  // The second piece of the copy is refused.
  await world.sql.unsafe(`DELETE FROM schoolbus.marks;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF EXISTS (SELECT 1 FROM schoolbus.marks) THEN RAISE 'not now'; END IF; RETURN NEW; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON schoolbus.marks FOR EACH ROW EXECUTE FUNCTION refuse()`)
  const tables = { ...pupils, notes: own }
  await world.restart({ plugin, tables }).catch(() => undefined)
  const copied = () =>
    world.run(world.feedFile.read((tx) => tx.all<{ after: string | null }>("SELECT after FROM tables WHERE name = 'public.notes'")))
  await until("a piece of the copy", async () => (await copied())[0]?.after != null)
  expect(await loading()).toContain("public.notes")
  await world.halt()
  const [slot] = await world.sql`SELECT slot_name AS name FROM pg_replication_slots WHERE database = current_database()`
  await until("its end", () =>
    world.sql`SELECT pg_drop_replication_slot(${slot?.["name"]})`.then(
      () => true,
      () => false,
    ),
  )
  await world.sql`DROP TRIGGER refuse ON schoolbus.marks`
  await world.sql`DELETE FROM notes WHERE id IN ('n1', 'n1000', 'n1001')`
  await world.sql`UPDATE notes SET note = 'while nobody read' WHERE id IN ('n10', 'n100')`
  await world.restart({ plugin, tables })
  await until("the tables to be read", async () => (await loading()).length === 0)
  const a = await world.school("a")
  await a.pull()
  expect(await ids(a, "notes")).toEqual(await office("notes", "school = 'a'"))
  expect(await a.rows("SELECT id FROM notes WHERE note = 'while nobody read' ORDER BY id")).toEqual([{ id: "n10" }, { id: "n100" }])
})
