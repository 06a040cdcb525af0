/** A config that changes while schools hold rows: other audiences, tables taken out, put back and added. */
import { afterAll, beforeAll, expect, test } from "vitest"
import type { ConfigInput } from "../../src/config.ts"
import { makeWorld, type School, type World } from "../support/world.ts"
import { until } from "../support/until.ts"

const schema = `
  CREATE TABLE pupils (id int PRIMARY KEY, school text, home text, name text);
  CREATE TABLE links (id int PRIMARY KEY, school text, pupil int);
  CREATE TABLE notes (id int PRIMARY KEY, school text, pupil int, note text);
  INSERT INTO pupils SELECT n, CASE n % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'b' END, 'b', 'pupil ' || n FROM generate_series(1, 9) n;
  INSERT INTO links SELECT n, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, n FROM generate_series(1, 6) n;
  INSERT INTO notes SELECT n, 'a', n, 'note ' || n FROM generate_series(1, 2500) n`

const tables = (pupils: ConfigInput["tables"][string] | null, more: ConfigInput["tables"] = {}): ConfigInput => ({
  tables: { ...(pupils === null ? {} : { pupils }), ...more },
})
const notes = { notes: { audience: { column: "school" } } } as const
const links = { links: { audience: { column: "school" } } } as const
const own = { audience: { column: "school" } } as const

let world: World
let a: School
let b: School
beforeAll(async () => {
  world = await makeWorld(schema, tables(own, notes), ["a", "b"])
  a = await world.school("a")
  b = await world.school("b")
  await a.pull()
  await b.pull()
})
afterAll(() => world?.stop())

const idsOf = async (school: School, table = "pupils") =>
  (await school.rows<{ id: number }>(`SELECT id FROM ${table} ORDER BY id`)).map(({ id }) => id)
const both = async () => {
  await world.settle()
  await a.pull()
  await b.pull()
  return [await idsOf(a), await idsOf(b)]
}
const isLoaded = async () => (await world.run(world.feed.tables)).every((table) => !table.loading)
/** Rows of the table in the first page that a school is given after the restart, before anything else happened. */
const restartAnd = async (config: ConfigInput) => {
  await world.restart(config)
  return both()
}

test("another rule moves every row before anything is served, deleted ones stay deleted", async () => {
  expect(await both()).toEqual([
    [3, 6, 9],
    [1, 4, 7],
  ])
  await world.sql`DELETE FROM pupils WHERE id = 9`
  await world.settle()
  // b has not pulled since.
  await a.pull()
  const all = [1, 2, 3, 4, 5, 6, 7, 8]
  expect(await restartAnd(tables({ audience: "all" }, notes))).toEqual([all, all])
  expect(await restartAnd(tables({ audience: { column: "home" } }, notes))).toEqual([[], all])
  expect(await restartAnd(tables(own, notes))).toEqual([
    [3, 6],
    [1, 4, 7],
  ])
})

test("rows stay where they are until the links of their new rule are loaded, then all move at once", async () => {
  // Nobody can read the links yet.
  await world.sql.begin(async (tx) => {
    await tx`LOCK TABLE links`
    await world.restart(tables({ audience: { through: "links", on: { id: "pupil" } } }, { ...notes, ...links }))
    await world.sql`UPDATE pupils SET name = 'renamed' WHERE id = 3`
    await world.sql`INSERT INTO pupils VALUES (10, 'a', 'b', 'new')`
    expect(await both()).toEqual([
      [3, 6],
      [1, 4, 7],
    ])
    expect(await a.rows("SELECT name FROM pupils WHERE id = 3")).toEqual([{ name: "renamed" }])
  })
  await until("the links", isLoaded)
  expect(await both()).toEqual([
    [2, 4, 6],
    [1, 3, 5],
  ])
  await world.sql`DELETE FROM pupils WHERE id = 10`
  await world.sql`UPDATE links SET school = 'b' WHERE pupil = 2`
  expect(await both()).toEqual([
    [4, 6],
    [1, 2, 3, 5],
  ])
  // The rule of the links themselves changes: what they place goes with them.
  const through = { audience: { through: "links", on: { id: "pupil" } } } as const
  const every = [1, 2, 3, 4, 5, 6]
  expect(await restartAnd(tables(through, { ...notes, links: { audience: "all" } }))).toEqual([every, every])
  expect(await restartAnd(tables(own, { ...notes, ...links }))).toEqual([
    [3, 6],
    [1, 4, 7],
  ])
})

test("a table taken out leaves the manifest and is emptied once the school's own edits have verdicts, also at a school that was away", async () => {
  await a.write("UPDATE notes SET note = 'mine' WHERE id = 1")
  await world.restart(tables(own))
  expect((await world.run(world.feed.manifest("a"))).tables.map(({ name }) => name)).not.toContain("public.notes")
  await a.pull()
  expect(await a.rows("SELECT count(*) AS n FROM notes")).toEqual([{ n: 2500 }])
  const [verdicts] = await a.push()
  expect(verdicts?.exceptions).toMatchObject([{ verdict: "quarantined", reason: "unknown_table" }])
  await world.settle()
  await a.pull()
  expect(await a.rows("SELECT count(*) AS n FROM notes")).toEqual([{ n: 0 }])
  expect(await a.rows("SELECT count(*) AS n FROM schoolbus_hold")).toEqual([{ n: 0 }])
  // What a program writes there now is its own.
  await a.write("INSERT INTO notes (id, note) VALUES (1, 'local')")
  expect(await a.rows("SELECT count(*) AS n FROM changes")).toEqual([{ n: 0 }])
  await a.write("DELETE FROM notes")
})

test("a table that was put back while a school was away brings what is there now, and nothing else", async () => {
  // b had no notes; c was enrolled when it did, and was away in between.
  await world.sql`INSERT INTO schoolbus.schools (id, name) VALUES ('c', 'c')`
  await world.sql`UPDATE notes SET school = 'c' WHERE id <= 10`
  await world.restart(tables(own, notes))
  const c = await world.school("c")
  await until("the notes of c", async () => {
    await world.settle()
    await c.pull()
    return (await idsOf(c, "notes")).length === 10
  })
  await world.restart(tables(own))
  await world.sql`UPDATE notes SET school = 'a' WHERE id <= 5`
  await world.restart(tables(own, notes))
  await until("the copy", isLoaded)
  await world.settle()
  await c.pull()
  await a.pull()
  expect(await idsOf(c, "notes")).toEqual([6, 7, 8, 9, 10])
  expect(await idsOf(a, "notes")).toHaveLength(2495)
})

test("rows that only go up place rows that come down, and are told to nobody", async () => {
  await world.restart(tables({ audience: { through: "links", on: { id: "pupil" } } }, { links: { audience: { column: "school" }, direction: "up" } }))
  await until("the copy", isLoaded)
  expect(await both()).toEqual([
    [4, 6],
    [1, 2, 3, 5],
  ])
  await world.sql`INSERT INTO links VALUES (20, 'a', 1)`
  await world.sql`DELETE FROM links WHERE id = 4`
  expect(await both()).toEqual([
    [1, 6],
    [1, 2, 3, 5],
  ])
  expect(await idsOf(a, "links")).toEqual([])
  await world.restart(tables({ audience: { through: "links", on: { id: "pupil" } } }, links))
  await until("the copy", isLoaded)
  await both()
  expect(await idsOf(a, "links")).toEqual([6, 20])
})

test("a table that went only up for a while and goes both ways again: what head office deleted or moved meanwhile is gone in the schools", async () => {
  const going = (direction: "up" | "both" | "down"): ConfigInput => tables(null, { sheets: { audience: { column: "school" }, direction } })
  const own = await makeWorld("CREATE TABLE sheets (id text PRIMARY KEY, school text, body text)", going("both"), ["a", "b"])
  const near = await own.school("a")
  const away = await own.school("a")
  const sheets = async (school: School) => (await school.rows<{ id: string }>("SELECT id FROM sheets ORDER BY id")).map(({ id }) => id)
  const settled = async (...schools: ReadonlyArray<School>) => {
    await until("the copy", async () => (await own.run(own.feed.tables)).every((table) => !table.loading))
    await own.settle()
    for (const school of schools) await school.sync()
  }
  await own.sql`INSERT INTO sheets SELECT 'office ' || n, 'a', 'x' FROM generate_series(1, 5) n`
  await settled(near, away)
  await own.restart(going("down"))
  await settled(near)
  await near.write("DELETE FROM sheets WHERE id = 'office 5'")
  await near.sync()
  await own.restart(going("up"))
  await settled(near)
  await near.write("INSERT INTO sheets (id, school, body) VALUES ('near 1', 'a', 'x'), ('near 2', 'a', 'x'), ('near 3', 'a', 'x')")
  await near.write("UPDATE sheets SET body = 'mine' WHERE id = 'office 4'")
  await near.push()
  await own.sql`DELETE FROM sheets WHERE id IN ('office 1', 'near 1', 'office 5')`
  await own.sql`UPDATE sheets SET school = 'b' WHERE id IN ('office 2', 'near 2')`
  await settled(near)
  await near.write("INSERT INTO sheets (id, school, body) VALUES ('near 4', 'a', 'not sent yet')")
  await own.restart(going("both"))
  await settled(near, near, away, away)
  for (const school of [near, away]) expect(await sheets(school)).toEqual(["near 3", "near 4", "office 3", "office 4"])
  // A delete that was refused, of a row that is gone by now.
  await own.sql`UPDATE schoolbus.quarantine SET status = 'discarded'`
  await settled(near)
  expect(await sheets(near)).toEqual(["near 3", "near 4", "office 3", "office 4"])
  await own.stop()
})

test("a table that is placed by another one and went only up for a while is placed by it again", async () => {
  const going = (direction: "up" | "both"): ConfigInput =>
    tables(null, { ...links, notes: { audience: { through: "links", on: { pupil: "pupil" } }, direction } })
  const own = await makeWorld(schema, going("both"), ["a", "b"])
  const school = await own.school("a")
  await own.restart(going("up"))
  await own.sql`INSERT INTO links VALUES (20, 'a', 1)`
  await own.restart(going("both"))
  await until("the copy", async () => (await own.run(own.feed.tables)).every((table) => !table.loading))
  await own.settle()
  await school.pull()
  expect(await idsOf(school, "notes")).toEqual([1, 2, 4, 6])
  await own.stop()
})

test("a table that was taken out comes back in the shape that head office has given it meanwhile; what programs added to it stays", async () => {
  const schema =
    "CREATE TABLE sheets (id int, school text NOT NULL, body text, PRIMARY KEY (id)); INSERT INTO sheets VALUES (1, 'a', 'one'), (2, 'a', 'two')"
  const listed = tables(null, { ...links, sheets: { audience: { column: "school" } } })
  const own = await makeWorld(`CREATE TABLE links (id int PRIMARY KEY, school text); ${schema}`, listed, ["a"])
  const school = await own.school("a")
  const away = await own.school("a")
  for (const one of [school, away]) {
    await one.pull()
    await one.write("ALTER TABLE sheets ADD COLUMN seen INTEGER NOT NULL DEFAULT 7")
    await one.write("CREATE INDEX sheets_seen ON sheets (seen)")
  }
  await own.restart(tables(null, links))
  await school.pull()
  await own.sql.unsafe("ALTER TABLE sheets DROP CONSTRAINT sheets_pkey, ADD PRIMARY KEY (school, id), ADD level int; UPDATE sheets SET level = 5")
  await own.restart(listed)
  await until("the copy", async () => (await own.run(own.feed.tables)).every((table) => !table.loading))
  await own.settle()
  for (const one of [school, away]) {
    await one.pull()
    expect(await one.rows("SELECT name, reason FROM schoolbus_unfit")).toEqual([])
    expect(await one.rows("SELECT id, school, body, level FROM sheets ORDER BY id")).toEqual([
      { id: 1, school: "a", body: "one", level: 5 },
      { id: 2, school: "a", body: "two", level: 5 },
    ])
  }
  expect(await school.rows("SELECT seen FROM sheets")).toEqual([{ seen: 7 }, { seen: 7 }])
  expect(await school.rows("SELECT name FROM sqlite_schema WHERE name = 'sheets_seen'")).toHaveLength(1)
  await school.write("UPDATE sheets SET body = 'mine' WHERE id = 1")
  await school.sync()
  expect([...(await own.sql`SELECT body FROM sheets WHERE id = 1`)]).toEqual([{ body: "mine" }])
  await own.stop()
})

test("a table of which a column was dropped before it was taken out comes back with its columns as they are, also at a school that was away", async () => {
  const listed = tables(null, { ...links, sheets: { audience: { column: "school" } } })
  const own = await makeWorld(
    `CREATE TABLE links (id int PRIMARY KEY, school text);
     CREATE TABLE sheets (old text, id text PRIMARY KEY, school text, title text, body text); INSERT INTO sheets VALUES ('x', '1', 'a', 'one', 'first'), ('x', '2', 'a', 'two', 'second')`,
    listed,
    ["a"],
  )
  const away = await own.school("a")
  await away.pull()
  await own.sql`ALTER TABLE sheets DROP COLUMN old`
  await until("the pause", async () => (await own.run(own.feed.tables)).some(({ paused }) => paused !== null))
  await own.run(own.feed.accept("public.sheets"))
  await until("the new shape", async () =>
    (await own.run(own.feed.tables)).every(({ paused, loading, recheck }) => paused === null && !loading && !recheck),
  )
  await own.settle()
  await away.pull()
  expect(await away.rows("SELECT * FROM sheets ORDER BY id")).toMatchObject([
    { id: "1", title: "one", body: "first" },
    { id: "2", title: "two" },
  ])
  await away.write("UPDATE sheets SET title = 'mine' WHERE id = '1'")
  await own.restart(tables(null, links))
  await own.restart(listed)
  await until("the copy", async () => (await own.run(own.feed.tables)).every((table) => !table.loading))
  await own.settle()
  await away.install()
  expect(await away.rows("SELECT * FROM sheets ORDER BY id")).toEqual([
    { id: "1", school: "a", title: "mine", body: "first" },
    { id: "2", school: "a", title: "two", body: "second" },
  ])
  await away.sync()
  await away.sync()
  expect([...(await own.sql`SELECT * FROM sheets ORDER BY id`)]).toEqual([
    { id: "1", school: "a", title: "mine", body: "first" },
    { id: "2", school: "a", title: "two", body: "second" },
  ])
  expect(await away.rows("SELECT * FROM sheets ORDER BY id")).toMatchObject([{ title: "mine", body: "first" }, { title: "two" }])
  await own.stop()
})
