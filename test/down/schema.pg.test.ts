/** Schema changes at head office while rows flow: each kind, inside and outside of a transaction with writes around it. */
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { pushedTable } from "../../src/down/shape.ts"
import { retryQuarantined } from "../../src/up/quarantine.ts"
import { until } from "../support/until.ts"
import { makeWorld, type School, type World } from "../support/world.ts"

const schema = `
  CREATE TYPE mood AS ENUM ('glad', 'sad');
  CREATE TYPE floor AS ENUM ('low', 'high');
  CREATE TYPE spot AS (floor floor, room int);
  CREATE TYPE place AS (house text, spots spot[]);
  CREATE TABLE groups (id int PRIMARY KEY, name text NOT NULL);
  CREATE TABLE pupils (
    id int PRIMARY KEY, school_id text NOT NULL, name varchar(40) NOT NULL DEFAULT '', points numeric(8,2) NOT NULL DEFAULT 0, code text, mood mood, extra text, place place
  );
  CREATE TABLE unlisted (id int PRIMARY KEY);
  INSERT INTO groups VALUES (1, 'one'), (2, 'two');
  INSERT INTO pupils (id, school_id, name, points, code, mood) VALUES (1, 'a', 'Amina', 1.5, 'c1', 'glad'), (2, 'a', 'Bilal', 2, 'c2', NULL), (3, 'b', 'Chidi', 3, 'c3', 'sad');
  UPDATE pupils SET place = ('north', ARRAY[('low', 1)::spot]);
`

const tables = {
  groups: { audience: "all", direction: "down" },
  pupils: { audience: { column: "school_id" }, strategy: "school_wins" },
} as const

const pausedOf = async (world: World): Promise<Record<string, string>> =>
  Object.fromEntries((await world.run(world.feed.tables)).flatMap(({ name, paused }) => (paused === null ? [] : [[name, paused.code]])))

/** Everything that Postgres holds for a school, as the school's file must hold it. */
const office = async (world: World, school: string, table: string): Promise<ReadonlyArray<Record<string, unknown>>> => {
  const columns = await world.sql`SELECT attname AS name FROM pg_attribute WHERE attrelid = ${table}::regclass AND attnum > 0 AND NOT attisdropped`
  const list = columns.map(({ name }) => `"${name}"::text AS "${name}"`).join(", ")
  const where = table === "groups" ? "" : ` WHERE school_id = '${school}'`
  return [...(await world.sql.unsafe(`SELECT ${list} FROM ${table}${where} ORDER BY id`))].map((row) => ({ ...row }))
}

const held = async (school: School, table: string): Promise<ReadonlyArray<Record<string, unknown>>> => {
  const columns = await school.rows<{ name: string }>("SELECT name FROM pragma_table_info(?)", [table])
  const list = columns.map(({ name }) => `CAST("${name}" AS TEXT) AS "${name}"`).join(", ")
  return school.rows(`SELECT ${list} FROM ${table} ORDER BY id`)
}

const sorted = (rows: ReadonlyArray<Record<string, unknown>>) =>
  rows.map((row) => Object.fromEntries(Object.entries(row).sort(([a], [b]) => (a < b ? -1 : 1))))

/** Waits until the school holds exactly what Postgres does. */
const same = async (world: World, school: School, table = "pupils"): Promise<void> => {
  for (const deadline = Date.now() + 20_000; ; ) {
    await world.settle()
    await school.pull()
    const left = sorted(await held(school, table))
    const right = sorted(await office(world, school.id, table))
    if (JSON.stringify(left) === JSON.stringify(right)) return
    if (Date.now() > deadline) expect(left).toEqual(right)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

/** `flows`: schools get it unattended. A word: the table pauses for that reason. */
const kinds: ReadonlyArray<readonly [name: string, ddl: string, outcome: string, undo: string]> = [
  ["a nullable column", "ALTER TABLE pupils ADD COLUMN c1 text", "flows", ""],
  ["a column with a constant default", "ALTER TABLE pupils ADD COLUMN c2 text NOT NULL DEFAULT 'it''s'", "flows", ""],
  ["a column with a volatile default", "ALTER TABLE pupils ADD COLUMN c3 uuid NOT NULL DEFAULT gen_random_uuid()", "flows", ""],
  ["a serial column", "ALTER TABLE pupils ADD COLUMN c4 serial", "flows", ""],
  ["a column with a stable default", "ALTER TABLE pupils ADD COLUMN c5 timestamptz DEFAULT now()", "flows", ""],
  ["a generated column", "ALTER TABLE pupils ADD COLUMN c6 numeric GENERATED ALWAYS AS (points * 2) STORED", "flows", ""],
  ["a default that changes at once", "ALTER TABLE pupils ADD COLUMN c7 int DEFAULT 5; ALTER TABLE pupils ALTER COLUMN c7 SET DEFAULT 6", "flows", ""],
  ["a nullable foreign key", "ALTER TABLE pupils ADD COLUMN group_id int REFERENCES groups", "flows", ""],
  ["a unique constraint", "ALTER TABLE pupils ADD CONSTRAINT code_once UNIQUE (code)", "flows", ""],
  ["an index", "CREATE INDEX ON pupils (name)", "flows", ""],
  ["a check", "ALTER TABLE pupils ADD CONSTRAINT positive CHECK (points >= 0)", "flows", ""],
  ["a comment", "COMMENT ON TABLE pupils IS 'people'", "flows", ""],
  ["a wider varchar", "ALTER TABLE pupils ALTER COLUMN name TYPE varchar(80)", "flows", ""],
  ["text instead of varchar", "ALTER TABLE pupils ALTER COLUMN name TYPE text", "flows", ""],
  ["NOT NULL dropped", "ALTER TABLE pupils ALTER COLUMN name DROP NOT NULL; UPDATE pupils SET name = NULL WHERE id = 2", "flows", ""],
  ["a changed default", "ALTER TABLE pupils ALTER COLUMN points SET DEFAULT 9", "flows", ""],
  ["another enum value", "ALTER TYPE mood ADD VALUE 'calm'", "flows", ""],
  ["an enum value with another name", "ALTER TYPE mood RENAME VALUE 'glad' TO 'happy'", "flows", ""],
  ["a composite type with another part", "ALTER TYPE place ADD ATTRIBUTE door int", "flows", ""],
  ["a composite type within another one with another part", "ALTER TYPE spot ADD ATTRIBUTE door int", "flows", ""],
  ["an enum value within composite types with another name", "ALTER TYPE floor RENAME VALUE 'low' TO 'ground'", "flows", ""],
  [
    "its key's index as replica identity",
    "ALTER TABLE pupils REPLICA IDENTITY USING INDEX pupils_pkey; UPDATE pupils SET id = 9000 WHERE id = 100",
    "flows",
    "",
  ],
  [
    "a wider index as replica identity",
    "CREATE UNIQUE INDEX wider ON pupils (school_id, id); ALTER TABLE pupils REPLICA IDENTITY USING INDEX wider; UPDATE pupils SET id = 9001 WHERE id = 101; DELETE FROM pupils WHERE id = 102",
    "flows",
    "",
  ],
  ["the default replica identity again", "ALTER TABLE pupils REPLICA IDENTITY DEFAULT", "flows", ""],
  ["values rewritten in place", "ALTER TABLE pupils ALTER COLUMN extra TYPE text USING upper(name)", "flows", ""],
]

describe.each(["wal2json", "pgoutput"] as const)("%s", (plugin) => {
  let world: World
  let a: School
  let away: School
  beforeAll(async () => {
    world = await makeWorld(schema, { plugin, tables }, ["a", "b"])
    a = await world.school("a")
    away = await world.school("a")
    await a.pull()
    await away.pull()
  })
  afterAll(() => world?.stop())

  let next = 100
  test.each(kinds)("%s", async (_, ddl, outcome) => {
    next += 10
    const id = next
    const before = await pausedOf(world)
    expect(before).toEqual({})
    await world.sql.unsafe(`INSERT INTO pupils (id, school_id, name, code) VALUES (${id}, 'a', 'before', 'before ${id}')`)
    if (ddl.startsWith("ALTER TYPE")) await world.sql.unsafe(ddl)
    else {
      await world.sql.begin(async (tx) => {
        await tx.unsafe(`INSERT INTO pupils (id, school_id, name, code) VALUES (${id + 1}, 'a', 'inside', 'inside ${id}')`)
        await tx.unsafe(`UPDATE pupils SET points = points + 1 WHERE id = 1`)
        for (const one of ddl.split("; ")) await tx.unsafe(one)
        await tx.unsafe(`INSERT INTO pupils (id, school_id, name, code) VALUES (${id + 2}, 'a', 'inside', 'inside later ${id}')`)
        await tx.unsafe(`UPDATE pupils SET points = points + 1 WHERE id = 1`)
      })
    }
    await world.sql.unsafe(`INSERT INTO pupils (id, school_id, name, code) VALUES (${id + 3}, 'a', 'after', 'after ${id}')`)
    await world.sql.unsafe(`UPDATE pupils SET extra = 'seen' WHERE id = ${id}`)
    if (outcome === "flows") await same(world, a)
    expect(await pausedOf(world)).toEqual({})
  })

  test("a school that was away for all of them ends with the same rows", async () => {
    await same(world, away)
  })
})

/** Name, DDL, reason, what a person does before the table goes on. */
const pauses: ReadonlyArray<readonly [name: string, ddl: string, code: string, mend: string]> = [
  ["a dropped column", "ALTER TABLE pupils DROP COLUMN extra", "column_dropped", ""],
  ["a renamed column", "ALTER TABLE pupils RENAME COLUMN code TO label", "column_renamed", ""],
  [
    "two columns that swap their names",
    "ALTER TABLE pupils RENAME COLUMN label TO x; ALTER TABLE pupils RENAME COLUMN name TO label; ALTER TABLE pupils RENAME COLUMN x TO name",
    "column_renamed",
    "",
  ],
  [
    "a column dropped and added anew",
    "ALTER TABLE pupils DROP COLUMN mood; ALTER TABLE pupils ADD COLUMN mood mood DEFAULT 'sad'",
    "column_replaced",
    "",
  ],
  ["another type", "ALTER TABLE pupils ALTER COLUMN points TYPE int USING points::int", "type_changed", ""],
  [
    "text that becomes a number",
    "ALTER TABLE pupils ADD COLUMN n text DEFAULT '7'; ALTER TABLE pupils ALTER COLUMN n DROP DEFAULT; ALTER TABLE pupils ALTER COLUMN n TYPE bigint USING n::bigint",
    "flows",
    "",
  ],
  ["a shorter text", "ALTER TABLE pupils ALTER COLUMN label TYPE varchar(20) USING left(label, 20)", "type_changed", ""],
  ["a drop and an addition at once", "ALTER TABLE pupils DROP COLUMN n, ADD COLUMN token uuid DEFAULT gen_random_uuid()", "column_dropped", ""],
  ["another key", "ALTER TABLE pupils DROP CONSTRAINT pupils_pkey, ADD PRIMARY KEY (school_id, id)", "key_changed", ""],
  ["no key", "ALTER TABLE pupils DROP CONSTRAINT pupils_pkey", "no_key", "ALTER TABLE pupils ADD PRIMARY KEY (id)"],
  [
    "a key that is deferrable",
    "ALTER TABLE pupils DROP CONSTRAINT pupils_pkey, ADD CONSTRAINT pupils_pkey PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED",
    "no_key",
    "ALTER TABLE pupils DROP CONSTRAINT pupils_pkey, ADD PRIMARY KEY (id)",
  ],
  ["no replica identity", "ALTER TABLE pupils REPLICA IDENTITY NOTHING", "replica_identity", "ALTER TABLE pupils REPLICA IDENTITY DEFAULT"],
  ["another name", "ALTER TABLE pupils RENAME TO children", "table_renamed", "ALTER TABLE children RENAME TO pupils"],
  [
    "another schema",
    "CREATE SCHEMA IF NOT EXISTS attic; ALTER TABLE pupils SET SCHEMA attic",
    "table_moved",
    "ALTER TABLE attic.pupils SET SCHEMA public",
  ],
  ["unlogged", "ALTER TABLE pupils SET UNLOGGED", "unlogged", "ALTER TABLE pupils SET LOGGED"],
  [
    "a dropped table",
    "CREATE TABLE kept AS SELECT * FROM pupils; DROP TABLE pupils",
    "table_dropped",
    "CREATE TABLE pupils AS TABLE kept; ALTER TABLE pupils ADD PRIMARY KEY (id); ALTER TABLE pupils ALTER COLUMN school_id SET NOT NULL; DROP TABLE kept",
  ],
]

describe.each(["wal2json", "pgoutput"] as const)("%s: what is more than an addition", (plugin) => {
  let world: World
  let a: School
  let away: School
  beforeAll(async () => {
    world = await makeWorld(schema, { plugin, tables }, ["a", "b"])
    a = await world.school("a")
    away = await world.school("a")
    await a.pull()
    await away.pull()
  })
  afterAll(() => world?.stop())

  let next = 1000
  test.each(pauses)("%s", async (_, ddl, code, mend) => {
    // Postgres itself refuses it for a published table.
    if (plugin === "pgoutput" && code === "unlogged") return
    next += 10
    const id = next
    const statements = ddl.split("; ")
    await world.sql.unsafe(`INSERT INTO pupils (id, school_id, name) VALUES (${id}, 'a', 'before')`)
    await world.sql.begin(async (tx) => {
      await tx.unsafe(`INSERT INTO pupils (id, school_id, name) VALUES (${id + 1}, 'a', 'inside')`)
      for (const one of statements) await tx.unsafe(one)
    })
    if (code === "flows") {
      await same(world, a)
      return
    }
    await until(
      `the table to pause with ${code}: ${JSON.stringify(await pausedOf(world))}`,
      async () => (await pausedOf(world))["public.pupils"] === code,
    )
    // Others flow.
    await world.sql.unsafe(`INSERT INTO groups VALUES (${id}, 'while paused')`)
    await same(world, a, "groups")
    if (mend !== "") for (const one of mend.split("; ")) await world.sql.unsafe(one)
    await world.sql.unsafe(`UPDATE pupils SET school_id = 'a' WHERE id = ${id}`)
    await world.sql.unsafe(`DELETE FROM pupils WHERE id = ${id + 1}`)
    await world.sql.unsafe(`INSERT INTO pupils (id, school_id) SELECT ${id + 2}, 'b'`).catch(() => undefined)
    expect(await world.run(world.feed.accept("public.pupils"))).toBe(true)
    await until("the table to go on", async () => (await pausedOf(world))["public.pupils"] === undefined)
    await world.sql.unsafe(`UPDATE pupils SET id = ${id + 5} WHERE id = ${id}`)
    await same(world, a)
    expect(await a.rows("SELECT * FROM schoolbus_behind")).toEqual([])
  })

  test("a school that was away for all of them ends with the same rows", async () => {
    await same(world, away)
  })
})

describe("edits that wait in a school while the schema changes", () => {
  let world: World
  let a: School
  beforeAll(async () => {
    world = await makeWorld(schema, { tables }, ["a", "b"])
    a = await world.school("a")
    await a.pull()
  })
  afterAll(() => world?.stop())

  const goOn = async () => {
    await world.run(world.feed.accept("public.pupils"))
    await until("the table to go on", async () => (await pausedOf(world))["public.pupils"] === undefined)
  }
  const records = () => world.sql`SELECT reason, status, change FROM schoolbus.quarantine ORDER BY at`

  test("are kept on the columns that remain; what named a dropped column is recorded", async () => {
    await a.write("UPDATE pupils SET points = '7.00', extra = 'mine' WHERE id = 1")
    await a.write("UPDATE pupils SET extra = 'only this' WHERE id = 2")
    await a.write("INSERT INTO pupils (id, school_id, name, points, code) VALUES (50, 'a', 'New', '1.00', 'n')")
    await a.freeze()
    await world.sql`ALTER TABLE pupils DROP COLUMN extra`
    await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "column_dropped")
    await goOn()
    await world.settle()
    await a.pull()
    // Not undone before its verdict, and the column has left the school's file.
    expect(await a.rows("SELECT points FROM pupils WHERE id = 1")).toEqual([{ points: "7.00" }])
    expect(await a.rows("SELECT name FROM pragma_table_info('pupils') WHERE name = 'extra'")).toEqual([])
    const [verdicts] = await a.push()
    expect(verdicts?.exceptions.map(({ verdict, reason }) => [verdict, reason])).toEqual([
      ["merged", "column_gone"],
      ["superseded", "column_gone"],
    ])
    await same(world, a)
    expect(await world.sql`SELECT points::text, name FROM pupils WHERE id IN (1, 50) ORDER BY id`).toEqual([
      { points: "7.00", name: "Amina" },
      { points: "1.00", name: "New" },
    ])
    expect((await records()).map(({ reason, status, change }) => [reason, status, JSON.parse(String(change)).mine])).toEqual([
      ["column_gone", "discarded", { extra: "mine" }],
      ["column_gone", "discarded", { extra: "only this" }],
    ])
    expect(await a.rows("SELECT count(*) AS n FROM changes")).toEqual([{ n: 0 }])
  })

  test("stay with their row when its column is renamed or another one goes before it", async () => {
    await a.write("UPDATE pupils SET name = 'Own name' WHERE id = 1")
    await a.freeze()
    await world.sql`ALTER TABLE pupils DROP COLUMN code`
    await world.sql`ALTER TABLE pupils RENAME COLUMN points TO score`
    await world.sql`UPDATE pupils SET score = 9, name = 'Office name' WHERE id = 1`
    await until("the pause", async () => (await pausedOf(world))["public.pupils"] !== undefined)
    await goOn()
    await world.settle()
    await a.pull()
    expect(await a.rows("SELECT name, score FROM pupils WHERE id = 1")).toEqual([{ name: "Own name", score: "7.00" }])
    await a.push()
    await same(world, a)
    expect(await world.sql`SELECT name, score::text FROM pupils WHERE id = 1`).toEqual([{ name: "Own name", score: "9.00" }])
  })

  test("never write into another column that has taken the name, and follow their own to its new name", async () => {
    const pausing = () => until("the pause", async () => (await pausedOf(world))["public.pupils"] !== undefined)
    await world.sql`ALTER TABLE pupils ADD COLUMN extra text`
    await until("the column", async () => {
      await world.settle()
      await a.pull()
      return (await a.rows("SELECT 1 FROM pragma_table_info('pupils') WHERE name = 'extra'")).length > 0
    })
    await a.write("UPDATE pupils SET score = '8.00', extra = 'of the old column' WHERE id = 1")
    await a.write("UPDATE pupils SET extra = 'only this' WHERE id = 2")
    await a.freeze()
    await world.sql`ALTER TABLE pupils DROP COLUMN extra`
    await world.sql`ALTER TABLE pupils ADD COLUMN extra text`
    await world.sql`ALTER TABLE pupils RENAME COLUMN score TO marks`
    await pausing()
    await goOn()
    await world.settle()
    // The names change once more while the batch is still under way.
    await world.sql`ALTER TABLE pupils RENAME COLUMN marks TO grade`
    await pausing()
    await goOn()
    await world.settle()
    const before = (await records()).length
    const [verdicts] = await a.push()
    expect(verdicts?.exceptions.map(({ verdict, reason }) => [verdict, reason])).toEqual([
      ["merged", "column_gone"],
      ["superseded", "column_gone"],
    ])
    await same(world, a)
    expect(await world.sql`SELECT grade::text, extra FROM pupils WHERE id = 1`).toEqual([{ grade: "8.00", extra: null }])
    expect(await world.sql`SELECT extra FROM pupils WHERE extra IS NOT NULL`).toEqual([])
    expect((await records()).slice(before).map(({ reason, change }) => [reason, JSON.parse(String(change)).mine])).toEqual([
      ["column_gone", { extra: "of the old column" }],
      ["column_gone", { extra: "only this" }],
    ])
  })

  test("of a column that nobody has yet said to be renamed are recorded, and give way under its new name", async () => {
    const [present] = await world.sql`SELECT extra FROM pupils WHERE id = 2`
    await a.write("UPDATE pupils SET extra = 'lost' WHERE id = 2")
    await world.sql`ALTER TABLE pupils RENAME COLUMN extra TO remark`
    await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "column_renamed")
    const [verdicts] = await a.push()
    expect(verdicts?.exceptions.map(({ verdict, reason }) => [verdict, reason])).toEqual([["superseded", "column_gone"]])
    await goOn()
    await same(world, a)
    expect(await a.rows("SELECT remark FROM pupils WHERE id = 2")).toEqual([{ remark: present?.["extra"] }])
    // The same where it is put back before anybody said so.
    await a.write("UPDATE pupils SET remark = 'lost again' WHERE id = 2")
    await world.sql`ALTER TABLE pupils RENAME COLUMN remark TO other`
    await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "column_renamed")
    await a.push()
    await world.sql`ALTER TABLE pupils RENAME COLUMN other TO remark`
    await until("the table to go on", async () => (await pausedOf(world))["public.pupils"] === undefined)
    await same(world, a)
    expect(await a.rows("SELECT remark FROM pupils WHERE id = 2")).toEqual([{ remark: present?.["extra"] }])
  })

  test("of a table with a column that was made anew are written while it is paused, without that column", async () => {
    const record = (await records()).length
    await world.sql`ALTER TABLE pupils DROP COLUMN remark, ADD COLUMN remark text`
    await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "column_replaced")
    await a.write("UPDATE pupils SET name = 'While paused' WHERE id = 1")
    await a.write("UPDATE pupils SET name = 'And this', remark = 'of the former' WHERE id = 2")
    const [verdicts] = await a.push()
    expect(verdicts?.exceptions.map(({ verdict, reason }) => [verdict, reason])).toEqual([["merged", "column_gone"]])
    expect(await world.sql`SELECT name, remark FROM pupils WHERE id IN (1, 2) ORDER BY id`).toEqual([
      { name: "While paused", remark: null },
      { name: "And this", remark: null },
    ])
    expect((await records()).slice(record).map(({ change }) => JSON.parse(String(change)).mine)).toEqual([{ remark: "of the former" }])
    await goOn()
    await same(world, a)
    await world.sql`UPDATE pupils SET name = 'Bilal' WHERE id = 2`
    await same(world, a)
  })

  test("are quarantined when their row can no longer be named", async () => {
    await a.write("UPDATE pupils SET name = 'By the old key' WHERE id = 2")
    await a.write("DELETE FROM pupils WHERE id = 50")
    await a.freeze()
    await world.sql`ALTER TABLE pupils DROP CONSTRAINT pupils_pkey, ADD COLUMN number int GENERATED ALWAYS AS IDENTITY, ADD PRIMARY KEY (number)`
    await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "key_changed")
    await goOn()
    await until("the table to be read", async () => (await world.run(world.feed.tables)).every((table) => !table.loading))
    await world.settle()
    await a.pull()
    const [verdicts] = await a.push()
    expect(verdicts?.exceptions.map(({ verdict, reason }) => [verdict, reason])).toEqual([
      ["quarantined", "rekeyed"],
      ["quarantined", "rekeyed"],
    ])
    await same(world, a)
    expect(await world.sql`SELECT name FROM pupils WHERE id IN (2, 50) ORDER BY id`).toEqual([{ name: "Bilal" }, { name: "New" }])
    // Under the new key the school writes as before.
    await a.write("UPDATE pupils SET name = 'By the new key' WHERE id = 2")
    await a.sync()
    expect(await world.sql`SELECT name FROM pupils WHERE id = 2`).toEqual([{ name: "By the new key" }])
    await same(world, a)
  })
})

describe("a table with another key", () => {
  test("keeps its rows in the school until head office's have come; then those that are gone there go", async () => {
    const world = await makeWorld(schema, { tables }, ["a"])
    await world.sql`INSERT INTO pupils (id, school_id, name, code) VALUES (4, 'a', 'Dayo', 'c4'), (5, 'a', 'Eze', 'c5')`
    await world.sql`UPDATE pupils SET extra = 'x' || id`
    const a = await world.school("a")
    await same(world, a)
    await a.write("CREATE INDEX by_name ON pupils (name)")
    await world.sql`ALTER TABLE pupils DROP CONSTRAINT pupils_pkey, ADD PRIMARY KEY (school_id, id)`
    await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "key_changed")
    // Nothing tells the school of these under the old key.
    await world.sql`DELETE FROM pupils WHERE id = 4`
    await world.sql`UPDATE pupils SET school_id = 'b' WHERE id = 5`
    await world.run(world.feed.accept("public.pupils"))
    await until("the table to be read", async () => (await world.run(world.feed.tables)).every((table) => !table.loading && table.paused === null))
    await world.settle()
    await a.install()
    expect(await a.rows("SELECT group_concat(name) AS key FROM (SELECT name FROM pragma_table_info('pupils') WHERE pk > 0 ORDER BY pk)")).toEqual([
      { key: "school_id,id" },
    ])
    expect(await a.rows("SELECT id, name, extra FROM pupils ORDER BY id")).toEqual([
      { id: 1, name: "Amina", extra: "x1" },
      { id: 2, name: "Bilal", extra: "x2" },
      { id: 4, name: "Dayo", extra: "x4" },
      { id: 5, name: "Eze", extra: "x5" },
    ])
    expect(await a.rows("SELECT name FROM sqlite_master WHERE name = 'by_name'")).toEqual([{ name: "by_name" }])
    await a.write("UPDATE pupils SET name = 'Amina B.' WHERE id = 1")
    await a.pull()
    expect(await a.rows("SELECT id, name FROM pupils ORDER BY id")).toEqual([
      { id: 1, name: "Amina B." },
      { id: 2, name: "Bilal" },
    ])
    await a.sync()
    await same(world, a)
    // Only once: later cuts do not name every row.
    await a.write("INSERT INTO pupils (id, school_id, name) VALUES (9, 'a', 'Ifeoma')")
    await a.sync()
    await world.sql`UPDATE groups SET name = 'two, again' WHERE id = 2`
    await world.settle()
    await a.pull()
    expect(await a.rows("SELECT name FROM pupils WHERE id = 9")).toEqual([{ name: "Ifeoma" }])
    await world.stop()
  })
})

/** Pupils get another key, as meant, and are read under it. */
const takeKey = async (world: World, key: string) => {
  await world.sql.unsafe(`ALTER TABLE pupils DROP CONSTRAINT pupils_pkey, ADD PRIMARY KEY (${key})`)
  await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "key_changed")
  await world.run(world.feed.accept("public.pupils"))
  await until("the table to be read", async () => (await world.run(world.feed.tables)).every((table) => !table.loading && table.paused === null))
  await world.settle()
}

describe("what a school writes to a table that is paused", () => {
  test.each(["wal2json", "pgoutput"] as const)(
    "stands there as head office has it in the end, also where that wrote it back (%s)",
    async (plugin) => {
      const world = await makeWorld(schema, { plugin, tables }, ["a", "b"])
      const a = await world.school("a")
      await same(world, a)
      await world.sql`ALTER TABLE pupils RENAME COLUMN extra TO remark`
      await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "column_renamed")
      await a.write("UPDATE pupils SET name = 'Of the school' WHERE id = 1")
      await a.write("INSERT INTO pupils (id, school_id, name, points) VALUES (70, 'a', 'Made', '1.00')")
      await a.write("DELETE FROM pupils WHERE id = 2")
      const [gone] = await world.sql`SELECT * FROM pupils WHERE id = 2`
      const [verdicts] = await a.push()
      expect(verdicts?.exceptions).toEqual([])
      expect(await world.sql`SELECT name FROM pupils ORDER BY id`).toEqual([{ name: "Of the school" }, { name: "Chidi" }, { name: "Made" }])
      await world.sql`UPDATE pupils SET name = 'Amina' WHERE id = 1`
      await world.sql`DELETE FROM pupils WHERE id = 70`
      await world.sql`INSERT INTO pupils ${world.sql(gone ?? {})}`
      await world.run(world.feed.accept("public.pupils"))
      await until("the table to go on", async () => (await pausedOf(world))["public.pupils"] === undefined)
      await same(world, a)
      expect(await a.rows("SELECT id, name FROM pupils ORDER BY id")).toEqual([
        { id: 1, name: "Amina" },
        { id: 2, name: "Bilal" },
      ])
      await world.stop()
    },
  )
})

test("a row that a school made in a paused table, and head office deleted, is gone also when all rows are read anew", async () => {
  const world = await makeWorld(schema, { tables }, ["a", "b"])
  const a = await world.school("a")
  await same(world, a)
  await world.sql`ALTER TABLE pupils ALTER COLUMN points TYPE int USING points::int`
  await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "type_changed")
  await a.write("INSERT INTO pupils (id, school_id, name) VALUES (70, 'a', 'Made')")
  await a.push()
  await world.sql`DELETE FROM pupils WHERE id = 70`
  await world.run(world.feed.accept("public.pupils"))
  await until("the table to be read", async () => (await world.run(world.feed.tables)).every((table) => !table.loading && table.paused === null))
  await same(world, a)
  expect(await a.rows("SELECT id FROM pupils ORDER BY id")).toEqual([{ id: 1 }, { id: 2 }])
  await world.stop()
})

describe("what a school wrote just before its table is paused", () => {
  test.each(["wal2json", "pgoutput"] as const)("is heard of, though the hub hears of the change at the same time (%s)", async (plugin) => {
    const world = await makeWorld(schema, { tables, plugin }, ["a", "b"])
    const a = await world.school("a")
    await same(world, a)
    await a.write("INSERT INTO pupils (id, school_id, name) VALUES (70, 'a', 'Made')")
    const [slot] = await world.sql`SELECT active_pid AS pid FROM pg_replication_slots WHERE database = current_database()`
    process.kill(Number(slot?.["pid"]), "SIGSTOP")
    await a.push()
    await world.sql`ALTER TABLE pupils RENAME COLUMN extra TO remark`
    await world.sql`DELETE FROM pupils WHERE id = 70`
    process.kill(Number(slot?.["pid"]), "SIGCONT")
    // This process reads nothing meanwhile, so that all of it lies in the socket and is taken at once.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500)
    await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "column_renamed")
    await world.settle()
    await a.pull()
    await world.run(world.feed.accept("public.pupils"))
    await until("the table to go on", async () => (await pausedOf(world))["public.pupils"] === undefined)
    await same(world, a)
    expect(await a.rows("SELECT id FROM pupils ORDER BY id")).toEqual([{ id: 1 }, { id: 2 }])
    await world.stop()
  })

  test("stands there as head office has it in the end, though the stream has not come to it by then", async () => {
    const world = await makeWorld(schema, { tables }, ["a", "b"])
    const a = await world.school("a")
    await same(world, a)
    await a.write("UPDATE pupils SET name = 'Of the school' WHERE id = 1")
    await world.halt()
    const [verdicts] = await a.push()
    expect(verdicts?.exceptions).toEqual([])
    expect(await world.sql`SELECT name FROM pupils WHERE id = 1`).toEqual([{ name: "Of the school" }])
    await world.sql`UPDATE pupils SET name = 'Amina' WHERE id = 1`
    await world.sql`ALTER TABLE pupils RENAME COLUMN extra TO remark`
    await world.restart()
    expect(await pausedOf(world)).toEqual({ "public.pupils": "column_renamed" })
    await world.run(world.feed.accept("public.pupils"))
    await until("the table to go on", async () => (await pausedOf(world))["public.pupils"] === undefined)
    await same(world, a)
    expect(await a.rows("SELECT name FROM pupils WHERE id = 1")).toEqual([{ name: "Amina" }])
    await world.stop()
  })
})

describe("a row that a school made, and head office deleted unheard, is gone", () => {
  const makeUnheard = async (plugin: "wal2json" | "pgoutput", ...more: ReadonlyArray<string>) => {
    const world = await makeWorld(schema, { tables, plugin }, ["a", "b"])
    const a = await world.school("a")
    await same(world, a)
    for (const sql of ["INSERT INTO pupils (id, school_id, name) VALUES (70, 'a', 'Made')", ...more]) await a.write(sql)
    await world.halt()
    await a.push()
    return { world, a }
  }
  /** What the hub does not hear of: the table is otherwise by then. */
  const deleteUnheard = async (world: World, a: School) => {
    await world.sql`ALTER TABLE pupils RENAME COLUMN extra TO remark`
    await world.sql`DELETE FROM pupils WHERE id = 70`
    await world.restart()
    expect(await pausedOf(world)).toEqual({ "public.pupils": "column_renamed" })
    await a.pull()
    await world.run(world.feed.accept("public.pupils"))
    await until("the table to go on", async () => (await pausedOf(world))["public.pupils"] === undefined)
  }

  test.each(["wal2json", "pgoutput"] as const)("where the stream comes to it only after the pause (%s)", async (plugin) => {
    const { world, a } = await makeUnheard(plugin)
    await deleteUnheard(world, a)
    await same(world, a)
    await world.stop()
  })

  test("also of a school that hears of several pauses at once", async () => {
    const { world, a } = await makeUnheard("wal2json")
    await deleteUnheard(world, a)
    for (let i = 0; i < 10; i++) {
      await world.sql.unsafe(`ALTER TABLE pupils RENAME COLUMN ${i === 0 ? "remark" : `remark${i}`} TO remark${i + 1}`)
      await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "column_renamed")
      await world.run(world.feed.accept("public.pupils"))
      await until("the table to go on", async () => (await pausedOf(world))["public.pupils"] === undefined)
      await world.settle()
    }
    await same(world, a)
    await world.stop()
  })

  test("when the slot is lost with it", async () => {
    const { world, a } = await makeUnheard("wal2json", "UPDATE pupils SET name = 'Of the school' WHERE id = 1")
    await world.sql`DELETE FROM pupils WHERE id = 70`
    await world.sql`UPDATE pupils SET name = 'Amina' WHERE id = 1`
    await world.dropSlot()
    await world.restart()
    await same(world, a)
    // Once: what is compared later is no reason to ask again.
    const { version } = await world.run(world.feed.manifest("a"))
    await world.run(world.checks.ask(false))
    expect((await world.run(world.feed.manifest("a"))).version).toBe(version)
    await world.stop()
  })

  test("when a decision made it in the paused table", async () => {
    const world = await makeWorld(schema, { tables }, ["a"])
    const a = await world.school("a")
    await same(world, a)
    await world.sql`ALTER TABLE pupils ADD CONSTRAINT named CHECK (name <> 'Refused')`
    await a.write("INSERT INTO pupils (id, school_id, name) VALUES (70, 'a', 'Refused')")
    const [verdicts] = await a.push()
    expect(verdicts?.exceptions.map(({ verdict }) => verdict)).toEqual(["quarantined"])
    await world.settle()
    await a.pull()
    await world.sql`ALTER TABLE pupils DROP CONSTRAINT named`
    await world.sql`ALTER TABLE pupils RENAME COLUMN extra TO remark`
    await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "column_renamed")
    // Long after: the batch that it came with was heard of.
    await world.settle()
    await world.run(world.feed.setLooked((await world.run(world.feed.head)).seq))
    const all = new Map((await world.run(world.feed.tables)).map((table) => [table.name, pushedTable(table)]))
    const [record] = await world.sql`SELECT id FROM schoolbus.quarantine`
    await world.run(retryQuarantined(world.pg, { tables: all, had: world.feed.had }, String(record?.["id"]), "amina"))
    expect(await world.sql`SELECT name FROM pupils WHERE id = 70`).toEqual([{ name: "Refused" }])
    await world.settle()
    await a.pull()
    expect(await a.rows("SELECT * FROM schoolbus_hold")).toEqual([])
    await world.sql`DELETE FROM pupils WHERE id = 70`
    await world.run(world.feed.accept("public.pupils"))
    await until("the table to go on", async () => (await pausedOf(world))["public.pupils"] === undefined)
    await same(world, a)
    await world.stop()
  })
})

describe("a change that waits for a person", () => {
  test("is joined with a later edit under the names of that one, though another column has taken one of them", async () => {
    const world = await makeWorld(schema, { tables }, ["a"])
    const a = await world.school("a")
    await same(world, a)
    await world.sql`ALTER TABLE pupils ADD CHECK (extra <> 'refused')`
    await a.write("UPDATE pupils SET extra = 'refused', code = 'kept' WHERE id = 1")
    const [verdicts] = await a.push()
    expect(verdicts?.exceptions.map(({ verdict }) => verdict)).toEqual(["quarantined"])
    await world.sql`ALTER TABLE pupils DROP COLUMN extra, ADD COLUMN later text`
    await world.sql`ALTER TABLE pupils RENAME COLUMN later TO extra`
    await until("the pause", async () => (await pausedOf(world))["public.pupils"] !== undefined)
    await world.run(world.feed.accept("public.pupils"))
    await until("the table to go on", async () => (await pausedOf(world))["public.pupils"] === undefined)
    await world.settle()
    await a.pull()
    await a.write("UPDATE pupils SET extra = 'of the new column' WHERE id = 1")
    await a.push()
    expect(await world.sql`SELECT extra, code FROM pupils WHERE id = 1`).toEqual([{ extra: "of the new column", code: "kept" }])
    await same(world, a)
    await world.stop()
  })

  test("is given up after its column was renamed: the school shows head office's value under the new name", async () => {
    const world = await makeWorld(schema, { tables }, ["a"])
    await world.sql`UPDATE pupils SET extra = 'x' || id`
    const a = await world.school("a")
    await same(world, a)
    await world.sql`ALTER TABLE pupils ADD CHECK (extra <> 'refused')`
    await a.write("UPDATE pupils SET extra = 'refused' WHERE id = 1")
    const [verdicts] = await a.push()
    expect(verdicts?.exceptions.map(({ verdict }) => verdict)).toEqual(["quarantined"])
    await world.settle()
    await a.pull()
    await world.sql`ALTER TABLE pupils RENAME COLUMN extra TO remark`
    await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "column_renamed")
    await world.run(world.feed.accept("public.pupils"))
    await until("the table to go on", async () => (await pausedOf(world))["public.pupils"] === undefined)
    await world.settle()
    await a.pull()
    expect(await a.rows("SELECT remark FROM pupils WHERE id = 1")).toEqual([{ remark: "refused" }])
    await world.sql`UPDATE schoolbus.quarantine SET status = 'discarded'`
    await same(world, a)
    expect(await a.rows("SELECT remark FROM pupils WHERE id = 1")).toEqual([{ remark: "x1" }])
    await world.stop()
  })

  test("of a table whose key column is made anew waits, and names no row of the new key", async () => {
    const world = await makeWorld(schema, { tables }, ["a"])
    const a = await world.school("a")
    await same(world, a)
    const before = await world.sql`SELECT name FROM pupils ORDER BY name`
    await world.sql`ALTER TABLE pupils DROP COLUMN id CASCADE, ADD COLUMN id int GENERATED ALWAYS AS IDENTITY, ADD PRIMARY KEY (id)`
    await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "column_replaced")
    await a.write("UPDATE pupils SET name = 'By the old key' WHERE id = 1")
    const [verdicts] = await a.push()
    expect(verdicts?.exceptions.map(({ verdict, reason }) => [verdict, reason])).toEqual([["quarantined", "unknown_table"]])
    await world.run(world.feed.accept("public.pupils"))
    await until("the table to go on", async () => (await pausedOf(world))["public.pupils"] === undefined)
    await until("the table to be read", async () => (await world.run(world.feed.tables)).every((table) => !table.loading))
    await world.settle()
    await a.pull()
    expect(await world.sql`SELECT name FROM pupils ORDER BY name`).toEqual(before)
    await world.stop()
  })

  test("is given up after its table has another key: nothing of it is left, and the school goes on", async () => {
    const world = await makeWorld(schema, { tables }, ["a"])
    await takeKey(world, "school_id, id")
    const a = await world.school("a")
    await same(world, a)
    await a.write("UPDATE pupils SET name = 'By the old key' WHERE id = 1")
    await a.freeze()
    await takeKey(world, "id, school_id")
    const [verdicts] = await a.push()
    expect(verdicts?.exceptions.map(({ verdict, reason }) => [verdict, reason])).toEqual([["quarantined", "rekeyed"]])
    // The school hears of all of it in one cut: of the key, the record and its end.
    await world.sql`UPDATE schoolbus.quarantine SET status = 'discarded'`
    await same(world, a)
    expect(await a.rows("SELECT count(*) AS n FROM schoolbus_hold")).toEqual([{ n: 0 }])
    await world.stop()
  })
})

describe("a table that lost its shape", () => {
  test("while the hub was down pauses alone; put back as it was it goes on by itself, with what it missed", async () => {
    const world = await makeWorld(schema, { tables }, ["a"])
    const a = await world.school("a")
    await a.pull()
    await world.halt()
    await world.sql`ALTER TABLE pupils RENAME COLUMN points TO score`
    await world.sql`UPDATE pupils SET score = 5 WHERE id = 1`
    await world.sql`INSERT INTO groups VALUES (3, 'three')`
    await world.restart()
    expect(await pausedOf(world)).toEqual({ "public.pupils": "column_renamed" })
    await same(world, a, "groups")
    await world.sql`DELETE FROM pupils WHERE id = 2`
    await world.sql`ALTER TABLE pupils RENAME COLUMN score TO points`
    await same(world, a)
    expect(await pausedOf(world)).toEqual({})
    await world.stop()
  })

  // Of row n and of further ones.
  const between: ReadonlyArray<readonly [name: string, plugin: "wal2json" | "pgoutput", ddl: (n: number) => string]> = [
    [
      "its name",
      "wal2json",
      (n) => `ALTER TABLE pupils RENAME TO p; INSERT INTO p (id, school_id) VALUES (${n + 5}, 'a'); ALTER TABLE p RENAME TO pupils`,
    ],
    [
      "its name",
      "pgoutput",
      (n) => `ALTER TABLE pupils RENAME TO p; INSERT INTO p (id, school_id) VALUES (${n + 5}, 'a'); ALTER TABLE p RENAME TO pupils`,
    ],
    [
      "its schema",
      "wal2json",
      (n) => `ALTER TABLE pupils SET SCHEMA s; DELETE FROM s.pupils WHERE id = ${n}; ALTER TABLE s.pupils SET SCHEMA public`,
    ],
    [
      "what it tells of a row",
      "wal2json",
      (
        n,
      ) => `ALTER TABLE pupils REPLICA IDENTITY NOTHING; DELETE FROM pupils WHERE id = ${n}; INSERT INTO pupils (id, school_id) VALUES (${n + 5}, 'a');
        UPDATE pupils SET id = ${n + 6} WHERE id = ${n + 5}; ALTER TABLE pupils REPLICA IDENTITY DEFAULT`,
    ],
    [
      "its key",
      "wal2json",
      (n) => `ALTER TABLE pupils DROP CONSTRAINT pupils_pkey; UPDATE pupils SET id = ${n + 6} WHERE id = ${n}; DELETE FROM pupils WHERE id = ${n + 1};
        ALTER TABLE pupils ADD PRIMARY KEY (id)`,
    ],
    [
      "a column's name",
      "wal2json",
      (n) => `ALTER TABLE pupils RENAME code TO c; UPDATE pupils SET c = 'new' WHERE id = ${n}; ALTER TABLE pupils RENAME c TO code`,
    ],
    [
      "a column's name",
      "pgoutput",
      (n) => `ALTER TABLE pupils RENAME code TO c; UPDATE pupils SET c = 'new' WHERE id = ${n}; ALTER TABLE pupils RENAME c TO code`,
    ],
  ]
  test.each(between)("of which %s was another for a moment is read again (%s)", async (_, plugin, ddl) => {
    const world = await makeWorld(`${schema} CREATE SCHEMA s; INSERT INTO pupils (id, school_id) VALUES (11, 'a'), (12, 'a')`, { tables, plugin }, [
      "a",
    ])
    const a = await world.school("a")
    await a.pull()
    await world.sql.unsafe(ddl(1))
    await same(world, a)
    // Also where no trigger tells, and nobody looks.
    await world.sql`ALTER EVENT TRIGGER schoolbus_ddl DISABLE`
    await world.halt()
    await world.sql.unsafe(ddl(11))
    await world.restart()
    await same(world, a)
    expect(await pausedOf(world)).toEqual({})
    await world.stop()
  })

  test("another table that begins to inherit from it pauses it; without that one it goes on by itself", async () => {
    const world = await makeWorld(schema, { tables }, ["a"])
    const a = await world.school("a")
    await a.pull()
    await world.sql`CREATE TABLE former_pupils () INHERITS (pupils)`
    await until("the pause", async () => Object.keys(await pausedOf(world)).includes("public.pupils"))
    await world.sql`INSERT INTO former_pupils SELECT * FROM ONLY pupils WHERE id = 1`
    await world.sql`UPDATE ONLY pupils SET points = 7 WHERE id = 1`
    await world.sql`DROP TABLE former_pupils`
    await until("going on", async () => Object.keys(await pausedOf(world)).length === 0)
    await same(world, a)
    await world.stop()
  })

  test("with its whole schema under another name pauses; under the old one it goes on by itself", async () => {
    const world = await makeWorld(schema, { tables }, ["a"])
    const a = await world.school("a")
    await a.pull()
    await world.sql`ALTER SCHEMA public RENAME TO former`
    await until(
      "the pauses",
      async () => Object.values(await pausedOf(world)).filter((code) => code === "table_moved").length === Object.keys(tables).length,
    )
    // From now on nothing but its old name tells the schema from others.
    const watched = () => world.sql`SELECT 1 FROM schoolbus.watched WHERE oid = (SELECT oid FROM pg_namespace WHERE nspname = 'former')`
    await until("the schema to be forgotten", async () => (await watched()).length === 0)
    await world.sql`UPDATE former.pupils SET points = 7 WHERE id = 1`
    const told = await world.sql.begin(async (tx) => {
      await tx`ALTER SCHEMA former RENAME TO public`
      return tx`SELECT command, object FROM schoolbus.schema_changes WHERE at = now()`
    })
    // At once, not when the catalog is looked at by and by.
    expect([...told]).toEqual([{ command: "ALTER SCHEMA", object: "public" }])
    await until("going on", async () => Object.keys(await pausedOf(world)).length === 0)
    await same(world, a)
    await world.stop()
  })

  test("is found by its rows and by looking, where there is no event trigger", async () => {
    const world = await makeWorld(schema, { tables }, ["a"])
    const a = await world.school("a")
    await a.pull()
    await world.sql`ALTER EVENT TRIGGER schoolbus_ddl DISABLE`
    await world.sql`ALTER TABLE pupils ADD COLUMN late text`
    await world.sql`UPDATE pupils SET late = 'x' WHERE id = 1`
    await same(world, a)
    await world.sql`ALTER TABLE pupils ALTER COLUMN points TYPE text`
    await world.sql`UPDATE pupils SET points = 'many' WHERE id = 1`
    await until("the pause", async () => (await pausedOf(world))["public.pupils"] === "type_changed")
    await world.stop()
  })

  test("never makes a DDL fail, and DDL elsewhere leaves no trace", async () => {
    const world = await makeWorld(schema, { tables }, ["a"])
    await world.sql`DELETE FROM schoolbus.schema_changes`
    await world.sql`CREATE TABLE elsewhere (id int PRIMARY KEY, v text UNIQUE)`
    await world.sql`ALTER TABLE unlisted ADD COLUMN x int`
    await world.sql`DROP TABLE elsewhere`
    await world.sql`CREATE INDEX CONCURRENTLY some_x ON unlisted (x)`
    expect(await world.sql`SELECT * FROM schoolbus.schema_changes`).toEqual([])
    await world.sql`CREATE UNIQUE INDEX CONCURRENTLY codes ON pupils (code)`
    const watched = () => world.sql`SELECT 1 FROM schoolbus.watched WHERE oid = 'codes'::regclass`
    await until("the index to be watched", async () => (await watched()).length === 1)
    await world.sql`DROP INDEX codes`
    expect((await world.sql`SELECT command FROM schoolbus.schema_changes ORDER BY id`).map(({ command }) => command)).toEqual([
      "CREATE INDEX",
      "DROP INDEX",
    ])
    await world.sql`CREATE ROLE schoolbus_test_dba LOGIN`.catch(() => undefined)
    await world.sql`ALTER TABLE unlisted OWNER TO schoolbus_test_dba`
    await world.sql`ALTER TABLE pupils OWNER TO schoolbus_test_dba`
    await world.sql.begin(async (tx) => {
      await tx`SET LOCAL ROLE schoolbus_test_dba`
      await tx`ALTER TABLE pupils ADD COLUMN by_dba text`
    })
    expect(await world.sql`SELECT object FROM schoolbus.schema_changes ORDER BY id DESC LIMIT 1`).toEqual([{ object: "public.pupils" }])
    await world.sql`ALTER TABLE schoolbus.schema_changes RENAME TO away`
    await world.sql`ALTER TABLE pupils ADD COLUMN still text`
    await world.sql`ALTER TABLE schoolbus.away RENAME TO schema_changes`
    await world.sql`REASSIGN OWNED BY schoolbus_test_dba TO CURRENT_USER`
    await world.sql`DROP ROLE schoolbus_test_dba`
    await world.stop()
  })
})
