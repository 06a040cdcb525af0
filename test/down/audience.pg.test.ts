/**
 * Who sees which row, on real Postgres: `teachers` and `pupils` are placed by `enrolments`, `marks` by `pupils`, so that one
 * link moves rows of three tables. After each step every school's file is compared with what a query in Postgres says.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import * as Effect from "effect/Effect"
import { type ConfigInput, parseConfig } from "../../src/config.ts"
import { prepare } from "../../src/down/prepare.ts"
import { makeWorld, type School, type World } from "../support/world.ts"

const schema = `
  CREATE TABLE enrolments (id int PRIMARY KEY, pupil int, school text, year int NOT NULL DEFAULT 1);
  CREATE TABLE pupils (id int PRIMARY KEY, name text NOT NULL, photo text);
  CREATE TABLE marks (id int PRIMARY KEY, pupil bigint, mark text NOT NULL);
  CREATE TABLE clubs (id int PRIMARY KEY, pupil_code text, year text, name text NOT NULL);
  CREATE TABLE houses (id int PRIMARY KEY, school text);
  ALTER TABLE pupils ALTER COLUMN photo SET STORAGE EXTERNAL;
  INSERT INTO pupils SELECT n, 'pupil ' || n, repeat(n::text, 5000) FROM generate_series(1, 6) n;
  INSERT INTO enrolments VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'a'), (4, 3, 'b'), (5, 4, NULL), (6, 5, 'nowhere'), (7, 99, 'a');
  INSERT INTO marks SELECT p * 10 + n, p, 'mark ' || p || '/' || n FROM generate_series(1, 6) p, generate_series(1, 2) n;
  INSERT INTO clubs VALUES (1, '1', '1', 'chess'), (2, '1', '2', 'none of year 2'), (3, '01', '1', 'nobody''s'), (4, '3', '1', 'both');`

const config = (extra: ConfigInput["tables"] = {}): ConfigInput => ({
  tables: {
    // Listed before their links: neither the order of the config nor that of the copy matters.
    marks: { audience: { through: "pupils", on: { pupil: "id" } } },
    clubs: { audience: { through: "public.enrolments", on: { pupil_code: "pupil", year: "year" } }, direction: "down" },
    pupils: { audience: { through: "enrolments", on: { id: "pupil" } } },
    enrolments: { audience: { column: "school" } },
    ...extra,
  },
})

let world: World
const schools = new Map<string, School>()

const truth: Readonly<Record<string, string>> = {
  enrolments: "SELECT t.* FROM enrolments t WHERE t.school = $1",
  pupils: "SELECT t.* FROM pupils t WHERE EXISTS (SELECT 1 FROM enrolments e WHERE e.pupil = t.id AND e.school = $1)",
  marks: "SELECT t.* FROM marks t WHERE EXISTS (SELECT 1 FROM pupils p JOIN enrolments e ON e.pupil = p.id WHERE p.id = t.pupil AND e.school = $1)",
  clubs:
    "SELECT t.* FROM clubs t WHERE EXISTS (SELECT 1 FROM enrolments e WHERE e.pupil::text = t.pupil_code AND e.year::text = t.year AND e.school = $1)",
}

const agree = async (): Promise<void> => {
  await world.settle()
  for (const [id, school] of schools) {
    await school.pull()
    for (const [table, sql] of Object.entries(truth)) {
      const expected = (await world.sql.unsafe(`SELECT x.*::text AS row, x.id FROM (${sql}) x ORDER BY x.id`, [id])).map(({ id: key }) => key)
      const rows = await school.rows<{ id: number }>(`SELECT id FROM ${table} ORDER BY id`)
      expect([id, table, rows.map((row) => row.id)]).toEqual([id, table, expected])
    }
    // Values too: the links moved rows that no message carried.
    const photos = await world.sql.unsafe(`SELECT id, length(photo) AS n, name FROM (${truth["pupils"]}) p ORDER BY id`, [id])
    expect(await school.rows("SELECT id, length(photo) AS n, name FROM pupils ORDER BY id")).toEqual([...photos])
    expect(await school.rows("SELECT count(*) AS n FROM schoolbus_behind")).toEqual([{ n: 0 }])
  }
}

/** Every key that the feed holds for the school, tombstones included. */
const traces = async (school: string, table: string): Promise<ReadonlyArray<string>> => {
  const rows = await world.run(
    world.feedFile.read((tx) =>
      tx.all<{ key: string; body: string | null }>(
        `SELECT e.key, e.body FROM entry e JOIN tables t ON t.id = e.tbl JOIN audience a ON a.no = e.audience WHERE t.name = ? AND a.value = ? ORDER BY e.seq`,
        [`public.${table}`, school],
      ),
    ),
  )
  return rows.map(({ key, body }) => (body === null ? `gone ${key}` : key))
}

describe.each(["wal2json", "pgoutput"] as const)("%s", (plugin) => {
  beforeAll(async () => {
    world = await makeWorld(schema, { ...config(), plugin }, ["a", "b", "c"])
    schools.clear()
    for (const id of ["a", "b", "c"]) schools.set(id, await world.school(id))
    await agree()
  })
  afterAll(() => world?.stop())

  test("a link inserted, moved and deleted takes its rows along in the same cut, along the chain", async () => {
    await world.sql`INSERT INTO enrolments VALUES (10, 6, 'c')`
    await agree()
    expect(await schools.get("c")?.rows("SELECT id FROM marks ORDER BY id")).toEqual([{ id: 61 }, { id: 62 }])
    await world.sql`UPDATE enrolments SET school = 'a' WHERE id = 10`
    await agree()
    await world.sql`UPDATE enrolments SET pupil = 5 WHERE id = 10`
    await agree()
    await world.sql`DELETE FROM enrolments WHERE id = 10`
    await agree()
  })

  test("a pupil in two schools stays in one when the other's link goes", async () => {
    await world.sql`DELETE FROM enrolments WHERE id = 3`
    await agree()
    await world.sql`INSERT INTO enrolments VALUES (3, 3, 'a'), (11, 3, 'a')`
    await agree()
    await world.sql`DELETE FROM enrolments WHERE id = 11`
    await agree()
  })

  test("links and rows come and go in any order, in one transaction and in several", async () => {
    await world.sql.unsafe(
      `INSERT INTO marks VALUES (701, 70, 'first'); INSERT INTO enrolments VALUES (70, 70, 'b'); INSERT INTO pupils VALUES (70, 'late', 'x')`,
    )
    await agree()
    await world.sql`DELETE FROM enrolments WHERE id = 70`
    await world.sql`INSERT INTO enrolments VALUES (71, 70, 'c')`
    await agree()
    await world.sql.unsafe(`DELETE FROM pupils WHERE id = 70; DELETE FROM enrolments WHERE id = 71; DELETE FROM marks WHERE id = 701`)
    await agree()
    await world.sql`INSERT INTO enrolments VALUES (72, 71, 'c')`
    await world.sql`INSERT INTO pupils VALUES (71, 'after its link', 'y')`
    await agree()
    await world.sql.unsafe(`DELETE FROM enrolments WHERE id = 72; INSERT INTO enrolments VALUES (73, 71, 'c')`)
    await agree()
  })

  test("NULL and unknown schools place nothing; a school that is enrolled later finds its rows", async () => {
    await world.sql`UPDATE enrolments SET school = NULL WHERE id = 1`
    await agree()
    await world.sql`UPDATE enrolments SET school = 'nowhere' WHERE id = 1`
    await agree()
    await world.sql`INSERT INTO schoolbus.schools (id, name) VALUES ('nowhere', 'late')`
    await world.settle()
    schools.set("nowhere", await world.school("nowhere"))
    await agree()
    expect(await schools.get("nowhere")?.rows("SELECT id FROM pupils ORDER BY id")).toEqual([{ id: 1 }, { id: 5 }])
    await world.sql`UPDATE enrolments SET school = 'a', pupil = NULL WHERE id = 1`
    await agree()
    await world.sql`UPDATE enrolments SET pupil = 1 WHERE id = 1`
    await agree()
  })

  test("from A to B and back in one transaction leaves no trace at B and deletes nothing at A", async () => {
    const before = await traces("c", "pupils")
    await world.sql.unsafe(
      `UPDATE enrolments SET school = 'c' WHERE id = 1; UPDATE pupils SET name = 'seen by c?' WHERE id = 1; UPDATE enrolments SET school = 'a' WHERE id = 1`,
    )
    await agree()
    expect(await traces("c", "pupils")).toEqual(before)
    expect(await traces("c", "enrolments")).not.toContain("gone [1]")
  })

  test("the same in a transaction larger than a chunk", async () => {
    const before = [await traces("c", "pupils"), await traces("c", "marks"), await traces("c", "enrolments")]
    const filler = "INSERT INTO marks SELECT n, NULL, 'filler' FROM generate_series"
    await world.sql.unsafe(
      `UPDATE enrolments SET school = 'c' WHERE id = 1; INSERT INTO marks VALUES (13, 1, 'in between'); ${filler}(100000, 103000) n;
       UPDATE pupils SET name = 'seen by c?' WHERE id = 1; ${filler}(103001, 106000) n; UPDATE enrolments SET school = 'a' WHERE id = 1`,
    )
    await agree()
    expect([await traces("c", "pupils"), await traces("c", "marks"), await traces("c", "enrolments")]).toEqual(before)
    await world.sql`DELETE FROM marks WHERE id >= 100000`
    await agree()
  })

  test("key changes of link, row and both move what hangs on them", async () => {
    await world.sql`UPDATE enrolments SET id = 100 WHERE id = 2`
    await agree()
    await world.sql`UPDATE pupils SET id = 200 WHERE id = 2`
    await agree()
    await world.sql.unsafe(`UPDATE enrolments SET pupil = 200, id = 2 WHERE id = 100; UPDATE marks SET pupil = 200, id = id + 1000 WHERE pupil = 2`)
    await agree()
    await world.sql.unsafe(
      `UPDATE pupils SET id = 2 WHERE id = 200; UPDATE enrolments SET pupil = 2 WHERE id = 2; UPDATE marks SET pupil = 2, id = id - 1000 WHERE pupil = 200`,
    )
    await agree()
  })

  test("a row that moves keeps the values that its message left out", async () => {
    await world.sql.unsafe(`UPDATE pupils SET name = 'renamed' WHERE id = 1; UPDATE enrolments SET school = 'b' WHERE id = 1`)
    await agree()
    await world.sql`UPDATE pupils SET id = 300 WHERE id = 1`
    await world.sql`UPDATE enrolments SET pupil = 300 WHERE id = 1`
    await agree()
    await world.sql.unsafe(
      `UPDATE pupils SET id = 1 WHERE id = 300; UPDATE enrolments SET pupil = 1, school = 'a' WHERE id = 1; UPDATE marks SET pupil = 1 WHERE pupil = 300`,
    )
    await agree()
  })

  test("TRUNCATE of the links, of the rows, and of both", async () => {
    await world.sql`CREATE TABLE kept AS SELECT * FROM enrolments`
    await world.sql`CREATE TABLE kept_marks AS SELECT * FROM marks`
    await world.sql`TRUNCATE enrolments`
    await agree()
    await world.sql`INSERT INTO enrolments SELECT * FROM kept`
    await agree()
    await world.sql.unsafe(`TRUNCATE marks; INSERT INTO marks SELECT * FROM kept_marks WHERE id % 2 = 0`)
    await agree()
    await world.sql.unsafe(`TRUNCATE marks, enrolments; INSERT INTO marks SELECT * FROM kept_marks; INSERT INTO enrolments SELECT * FROM kept`)
    await agree()
  })

  test("after a restart and after a lost slot the rows are where their links say", async () => {
    await world.restart()
    await world.sql`UPDATE enrolments SET school = 'c' WHERE id = 1`
    await agree()
    await world.sql`UPDATE enrolments SET school = 'a' WHERE id = 1`
    await agree()
  })
})

test("columns that do not exist, on either side, are refused at the start, all at once", async () => {
  const other = await makeWorld(schema, { tables: {} }, [])
  const parsed = parseConfig("test", {
    tables: {
      marks: { audience: { through: "pupils", on: { pupl: "id", id: "idd" } } },
      pupils: { audience: { through: "enrolments", on: { id: "pupil_id" } } },
      enrolments: { audience: { column: "school" } },
    },
  })
  if ("problems" in parsed) throw parsed
  const refused = await other.run(Effect.flip(prepare(other.pg, parsed, [])))
  await other.stop()
  expect(refused.message).toContain("audience column pupl of table public.marks does not exist; columns are id, pupil, mark")
  expect(refused.message).toContain("names column idd of public.pupils, which does not exist; columns are id, name, photo")
  expect(refused.message).toContain("names column pupil_id of public.enrolments, which does not exist; columns are id, pupil, school, year")
})
