import * as Effect from "effect/Effect"
import postgres from "postgres"
import { afterAll, beforeAll, expect, test } from "vitest"
import type { ConfigInput } from "../../src/config.ts"
import { slotName } from "../../src/down/source.ts"
import { openPool } from "../../src/postgres/client.ts"
import { mendPublication, readPublication } from "../../src/postgres/publication.ts"
import { createDatabase, run } from "../support/postgres.ts"
import { until } from "../support/until.ts"
import { makeWorld, type School, type World } from "../support/world.ts"

const schema = `
  CREATE DOMAIN price AS numeric(8,2);
  CREATE TABLE goods (id int PRIMARY KEY, name text NOT NULL, cost price NOT NULL, n smallint NOT NULL, note text,
    total numeric GENERATED ALWAYS AS (cost * n) STORED, label text GENERATED ALWAYS AS (upper(name) || ' ' || coalesce(note, '-')) STORED,
    day int GENERATED ALWAYS AS (n + 1) STORED);
  INSERT INTO goods VALUES (1, 'chalk', 1.50, 3, null), (2, 'Kreide – 粉笔', 'NaN', 1, 'x');
  CREATE TABLE "odd, na.me" (id int PRIMARY KEY, v double precision);
  INSERT INTO "odd, na.me" VALUES (1, 'Infinity');
  CREATE TABLE later (id int PRIMARY KEY, v text);
  CREATE SCHEMA fees;
  CREATE TABLE fees.all (id int, year int, v text, PRIMARY KEY (id, year)) PARTITION BY LIST (year);
  CREATE TABLE fees.y26 PARTITION OF fees.all FOR VALUES IN (26);`

const config = (plugin: "wal2json" | "pgoutput", ...more: ReadonlyArray<string>): ConfigInput => ({
  plugin,
  tables: Object.fromEntries(["goods", "public.odd, na.me", ...more].map((name) => [name, { audience: "all" as const }])),
})

let world: World
let school: School
let name: string
beforeAll(async () => {
  world = await makeWorld(schema, config("pgoutput"), ["a"])
  school = await world.school("a")
  name = slotName(world.database.url)
  await school.pull()
})
afterAll(() => world?.stop())

const arrive = async (): Promise<void> => {
  await world.settle()
  await school.pull()
}
const plugin = async () => (await world.sql`SELECT plugin FROM pg_replication_slots WHERE slot_name = ${name}`)[0]?.["plugin"]
/** Pulls until the rows are those; a comparison goes on beside the stream. */
const arrives = async (sql: string, expected: ReadonlyArray<unknown>): Promise<void> => {
  let rows: ReadonlyArray<unknown> = []
  for (const deadline = Date.now() + 10_000; Date.now() < deadline; ) {
    await arrive()
    rows = await school.rows(sql)
    if (JSON.stringify(rows) === JSON.stringify(expected)) return
  }
  expect(rows).toEqual(expected)
}

test("the publication holds exactly the streamed tables", async () => {
  const rows = await world.sql`SELECT schemaname || '.' || tablename AS t FROM pg_publication_tables WHERE pubname = ${name} ORDER BY 1`
  const tables = rows.map((row) => row["t"])
  expect(tables).toContain("public.goods")
  expect(tables).toContain("public.odd, na.me")
  expect(tables).toContain("schoolbus.marks")
  expect(tables).not.toContain("public.later")
})

test("generated columns come with their row, computed by Postgres, also when an input is stored out of line and unchanged", async () => {
  const long = "päd ".repeat(5000)
  await world.sql`INSERT INTO goods (id, name, cost, n, note) VALUES (3, 'ink', 2.25, 4, ${long})`
  await world.sql`UPDATE goods SET name = 'Ink' WHERE id = 3`
  await world.sql`UPDATE goods SET n = 2 WHERE id = 2`
  await arrive()
  expect(await school.rows("SELECT id, cost, total, label, day FROM goods ORDER BY id")).toEqual([
    { id: 1, cost: "1.50", total: "4.50", label: "CHALK -", day: 4 },
    { id: 2, cost: "NaN", total: "NaN", label: "KREIDE – 粉笔 x", day: 3 },
    { id: 3, cost: "2.25", total: "9.00", label: `INK ${long}`, day: 5 },
  ])
  expect(await world.run(world.feedFile.read((tx) => tx.all("SELECT * FROM reread")))).toEqual([])
})

test("a truncate of several tables empties each", async () => {
  await world.sql`INSERT INTO "odd, na.me" VALUES (2, 'NaN')`
  await arrive()
  expect(await school.rows('SELECT * FROM "odd, na.me" ORDER BY id')).toEqual([
    { id: 1, v: "Infinity" },
    { id: 2, v: "NaN" },
  ])
  await world.sql`TRUNCATE goods, "odd, na.me"`
  await world.sql`INSERT INTO goods (id, name, cost, n) VALUES (1, 'chalk', 1, 1)`
  await arrive()
  expect(await school.rows('SELECT id, total FROM goods UNION ALL SELECT id, v FROM "odd, na.me"')).toEqual(
    [{ id: 1, total: "1" }].map(() => ({ id: 1, total: "1.00" })),
  )
})

test("another plugin in the config replaces the slot; schools get only what differs, under the same epoch", async () => {
  const before = await world.run(world.feed.head)
  await world.restart(config("wal2json"))
  expect(await plugin()).toBe("wal2json")
  await world.sql`UPDATE goods SET cost = 2 WHERE id = 1`
  await arrives("SELECT id, total FROM goods", [{ id: 1, total: "2.00" }])
  await world.restart(config("pgoutput"))
  expect(await plugin()).toBe("pgoutput")
  await world.sql`UPDATE goods SET cost = 3 WHERE id = 1`
  await arrives("SELECT id, total FROM goods", [{ id: 1, total: "3.00" }])
  const after = await world.run(world.feed.head)
  expect(after.epoch).toBe(before.epoch)
  expect(after.seq - before.seq).toBeLessThan(100)
})

test("a slot that somebody made with two_phase, which hands out prepared transactions early, is replaced", async () => {
  await world.halt()
  // Its walsender ends a moment after the connection.
  for (let dropped = false; !dropped; )
    dropped = await world.sql`SELECT pg_drop_replication_slot(${name})`.then(
      () => true,
      () => false,
    )
  await world.sql`SELECT pg_create_logical_replication_slot(${name}, 'pgoutput', false, true)`
  await world.sql`UPDATE goods SET cost = 4 WHERE id = 1`
  await world.restart()
  expect(await world.sql`SELECT two_phase FROM pg_replication_slots WHERE slot_name = ${name}`).toEqual([{ two_phase: false }])
  await arrives("SELECT id, total FROM goods", [{ id: 1, total: "4.00" }])
})

test("a new table is published and copied", async () => {
  await world.sql`INSERT INTO later VALUES (1, 'before')`
  await world.restart(config("pgoutput", "later"))
  await world.sql`INSERT INTO later VALUES (2, 'after')`
  for (;;) if ((await world.sql`SELECT 1 FROM pg_publication_tables WHERE pubname = ${name} AND tablename = 'later'`).length > 0) break
  await arrives("SELECT name FROM sqlite_master WHERE name = 'later'", [{ name: "later" }])
  await arrives("SELECT id FROM later ORDER BY id", [{ id: 1 }, { id: 2 }])
})

test("what was committed while a table was not published is found by comparison", async () => {
  await world.sql.unsafe(`ALTER PUBLICATION "${name}" DROP TABLE later`)
  await world.sql`DELETE FROM later WHERE id = 1`
  await world.sql`INSERT INTO later VALUES (3, 'unseen')`
  await world.restart()
  await arrives("SELECT id FROM later ORDER BY id", [{ id: 2 }, { id: 3 }])
})

test("a table that was taken out of the publication and put back is compared, though nothing shows it", async () => {
  await world.sql.unsafe(`ALTER PUBLICATION "${name}" DROP TABLE later`)
  await world.sql`INSERT INTO later VALUES (9, 'in between')`
  await world.sql.unsafe(`ALTER PUBLICATION "${name}" ADD TABLE later`)
  await world.restart()
  await arrives("SELECT id FROM later ORDER BY id", [{ id: 2 }, { id: 3 }, { id: 9 }])
  await world.sql`DELETE FROM later WHERE id = 9`
})

test("a publication that gives a partition's rows under its parent's name, however that came, is mended", async () => {
  await world.restart(config("pgoutput", "later", "fees.y26"))
  await world.sql`INSERT INTO fees.all VALUES (1, 26, 'listed')`
  const rows = [{ id: 1, v: "listed" }]
  await arrives("SELECT id, v FROM fees_y26 ORDER BY id", rows)
  const alter = `ALTER PUBLICATION "${name}"`
  for (const [i, sql] of [
    `${alter} ADD TABLE fees.all; ${alter} SET (publish_via_partition_root = true)`,
    `${alter} ADD TABLES IN SCHEMA fees; ${alter} SET (publish_via_partition_root = true)`,
    `DROP PUBLICATION "${name}"; CREATE PUBLICATION "${name}" FOR ALL TABLES WITH (publish_via_partition_root = true)`,
  ].entries()) {
    await world.sql.unsafe(sql)
    await world.sql`INSERT INTO fees.all VALUES (${i + 2}, 26, ${sql})`
    rows.push({ id: i + 2, v: sql })
    for (let restarted = false; !restarted; )
      restarted = await world.restart().then(
        () => true,
        () => false,
      )
    await arrives("SELECT id, v FROM fees_y26 ORDER BY id", rows)
  }
  await world.sql.unsafe(`DROP PUBLICATION "${name}"`)
  await world.restart(config("pgoutput", "later")).catch(() => world.restart())
})

test("a publication with a row filter is mended and its table compared", async () => {
  await world.sql.unsafe(`ALTER PUBLICATION "${name}" DROP TABLE later`)
  await world.sql.unsafe(`ALTER PUBLICATION "${name}" ADD TABLE later WHERE (id > 100)`)
  await world.sql`INSERT INTO later VALUES (4, 'filtered')`
  await world.restart()
  await arrives("SELECT id FROM later ORDER BY id", [{ id: 2 }, { id: 3 }, { id: 4 }])
})

test("a publication that was dropped and made again at older WAL positions does not stop the stream for good", async () => {
  const [made] =
    await world.sql`SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') AS tables FROM pg_publication_tables WHERE pubname = ${name}`
  await world.sql.unsafe(`DROP PUBLICATION "${name}"`)
  await world.sql`INSERT INTO later VALUES (5, 'unpublished')`
  await world.sql.unsafe(`CREATE PUBLICATION "${name}" FOR TABLE ${made?.["tables"]}`)
  for (let restarted = false; !restarted; )
    restarted = await world.restart().then(
      () => true,
      () => false,
    )
  await arrives("SELECT id FROM later ORDER BY id", [{ id: 2 }, { id: 3 }, { id: 4 }, { id: 5 }])
})

test("a table that another role owns pauses alone when the publication lacks it, and stays there while a right is missing", async () => {
  const role = `owner_${name}`.slice(0, 60)
  const own = await createDatabase()
  await run(
    own.url,
    `CREATE TABLE goods (id int PRIMARY KEY, v text); CREATE TABLE later (id int PRIMARY KEY, v text);
     CREATE ROLE "${role}" LOGIN REPLICATION; GRANT CREATE ON DATABASE "${own.name}" TO "${role}";
     ALTER TABLE goods OWNER TO "${role}"; ALTER TABLE later OWNER TO "${role}"`,
  )
  const database = { ...own, url: Object.assign(new URL(own.url), { username: role }).href }
  const tables = { goods: { audience: "all" }, later: { audience: "all" } } as const
  const theirs = await makeWorld("", { plugin: "pgoutput", tables }, ["a"], database)
  const pupil = await theirs.school("a")
  const paused = async () => (await theirs.run(theirs.feed.tables)).flatMap(({ name, paused: why }) => (why === null ? [] : [`${name} ${why.code}`]))
  const shows = (rows: ReadonlyArray<string>) =>
    until(`the school to show ${rows}`, async () => {
      await theirs.settle()
      await pupil.pull()
      const found = await pupil.rows<{ v: string }>("SELECT v FROM goods UNION ALL SELECT v FROM later ORDER BY v")
      return found.map(({ v }) => v).join() === rows.join()
    })
  await run(own.url, "INSERT INTO goods VALUES (1, 'a'); INSERT INTO later VALUES (1, 'l')")
  await shows(["a", "l"])

  await run(own.url, `ALTER TABLE goods OWNER TO postgres; REVOKE ALL ON goods FROM "${role}"`)
  await until("the lost right", async () => (await paused()).join() === "public.goods no_right")
  await run(own.url, `INSERT INTO goods VALUES (2, 'b'); GRANT ALL ON goods TO "${role}"`)
  await shows(["a", "b", "l"])

  await run(own.url, `ALTER PUBLICATION "schoolbus_${own.name}" DROP TABLE goods; INSERT INTO goods VALUES (3, 'c')`)
  await until("the gap", async () => (await paused()).join() === "public.goods unpublished")
  await run(own.url, "INSERT INTO later VALUES (2, 'm')")
  await shows(["a", "b", "l", "m"])
  await run(own.url, `ALTER PUBLICATION "schoolbus_${own.name}" ADD TABLE goods`)
  await shows(["a", "b", "c", "l", "m"])
  expect(await paused()).toEqual([])
  await theirs.stop()
  const other = await createDatabase()
  await run(other.url, `DROP ROLE "${role}"`)
  await other.drop()
})

test("a role that may not make the publication is told the SQL for the DBA; one that exists and holds more is used", async () => {
  const role = `stream_${name}`.slice(0, 60)
  const admin = postgres(world.database.url, { max: 1, onnotice: () => undefined })
  try {
    await admin.unsafe(`CREATE ROLE "${role}" LOGIN`)
    await admin.unsafe(`GRANT CREATE ON DATABASE "${world.database.name}" TO "${role}"`)
    const url = Object.assign(new URL(world.database.url), { username: role }).href
    const told = await Effect.runPromise(
      Effect.scoped(
        Effect.flatMap(openPool(url, { name: "test", max: 1 }), (pg) =>
          Effect.gen(function* () {
            const absent = yield* readPublication(pg, "another", ["public.goods"])
            const refusal = yield* Effect.flip(mendPublication(pg, "another", ["public.goods"], absent))
            const present = yield* readPublication(pg, name, ["public.goods"])
            yield* mendPublication(pg, name, ["public.goods"], present)
            return { message: refusal.message, present }
          }),
        ),
      ),
    )
    expect(told.message).toContain(`CREATE PUBLICATION "another" FOR TABLE "public"."goods" WITH (publish = 'insert, update, delete, truncate')`)
    expect(told.present).toMatchObject({ exists: true, publishesAll: true, absent: [], narrowed: [] })
    expect(told.present.extra).toContain("schoolbus.marks")
  } finally {
    await admin.unsafe(`DROP OWNED BY "${role}"`)
    await admin.unsafe(`DROP ROLE "${role}"`)
    await admin.end()
  }
})
