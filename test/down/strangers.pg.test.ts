/** What others put into the search_path of the hub's role, at all that the hub reads from Postgres: catalog, first copy, stream, comparison. */
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { createDatabase } from "../support/postgres.ts"
import { strangersFirst } from "../support/strangers.ts"
import { makeWorld, type School, type World } from "../support/world.ts"

const LETTERS = 12_000
/** `spell` finds a function of its own schema only by the path: the restore of a dump would miss it too. */
const SCHEMA = `
  CREATE SCHEMA lib;
  CREATE EXTENSION citext SCHEMA lib;
  CREATE TYPE mood AS ENUM ('low', 'high');
  CREATE FUNCTION upper_of(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT pg_catalog.upper($1) $$;
  CREATE FUNCTION spell(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN upper_of($1); END $$;
  CREATE TABLE ddl_log (tag text);
  CREATE FUNCTION log_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO ddl_log VALUES (tg_tag); END $$;
  CREATE EVENT TRIGGER log_ddl ON ddl_command_end EXECUTE FUNCTION log_ddl();
  CREATE TABLE pupils (id text PRIMARY KEY, school_id text, name text, mood mood, points float8, loud text GENERATED ALWAYS AS (spell(name)) STORED);
  CREATE TABLE letters (school_id text, id lib.citext, body text, PRIMARY KEY (school_id, id));
  CREATE FUNCTION is_code(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN upper_of($1) IS NOT NULL; END $$;
  CREATE DOMAIN code AS text CHECK (is_code(VALUE));
  CREATE TABLE codes (id code PRIMARY KEY, body text);
  INSERT INTO codes SELECT 'c' || n, 'x' FROM generate_series(1, ${LETTERS}) n;
  CREATE TABLE notes (id lib.citext PRIMARY KEY, body text);
  INSERT INTO pupils VALUES ('p1', 'a', 'Amina', 'low', 'NaN'), ('p2', 'b', 'Ben', 'high', 1.5);
  INSERT INTO letters SELECT 'a', CASE WHEN n % 2 = 0 THEN 'k' ELSE 'K' END || lpad(n::text, 6, '0'), 'x' FROM generate_series(1, ${LETTERS}) n;
  INSERT INTO notes SELECT CASE WHEN n % 2 = 0 THEN 'k' ELSE 'K' END || lpad(n::text, 6, '0'), 'x' FROM generate_series(1, ${LETTERS}) n;`

describe.each(["wal2json", "pgoutput"] as const)("%s", (plugin) => {
  let world: World
  let a: School
  beforeAll(async () => {
    const database = await createDatabase()
    const tables = {
      pupils: { audience: { column: "school_id" }, columns: { name: "newest_wins" } },
      letters: { audience: { column: "school_id" } },
      notes: { audience: "all" },
      codes: { audience: "all" },
    } as const
    // The test's own sessions have a path of their own.
    const on = { ...database, url: `${database.url}?search_path=public,pg_catalog` }
    world = await makeWorld(SCHEMA + strangersFirst(database.name), { plugin, tables }, ["a", "b"], on)
    a = await world.school("a")
  })
  afterAll(() => world?.stop())

  test("the first copy, edits on both sides, a new column and a comparison", async () => {
    await a.pull()
    const [ddl] =
      await world.sql`SELECT count(*) FILTER (WHERE tag = 'CREATE VIEW') AS views, count(*) FILTER (WHERE tag = 'CREATE PUBLICATION') AS streams FROM ddl_log`
    expect([Number(ddl?.["views"]) > 0, Number(ddl?.["streams"])]).toEqual([true, plugin === "pgoutput" ? 1 : 0])
    expect(await a.rows("SELECT count(*) AS n FROM letters")).toEqual([{ n: LETTERS }])
    expect(await a.rows("SELECT count(*) AS n FROM notes")).toEqual([{ n: LETTERS }])
    expect(await a.rows("SELECT count(*) AS n FROM codes")).toEqual([{ n: LETTERS }])
    expect(await a.rows("SELECT id, name, mood, points, loud FROM pupils")).toEqual([
      { id: "p1", name: "Amina", mood: "low", points: "NaN", loud: "AMINA" },
    ])

    await world.sql`UPDATE pupils SET name = 'Asha' WHERE id = 'p1'`
    await world.sql`INSERT INTO pupils VALUES ('p3', 'a', 'Cleo', 'high', 'Infinity')`
    await a.write("UPDATE pupils SET mood = 'high' WHERE id = 'p1'")
    await a.write("INSERT INTO letters (school_id, id, body) VALUES ('a', 'Z', 'mine')")
    await a.sync()
    await a.sync()
    expect(await a.rows("SELECT id, name, mood, loud FROM pupils ORDER BY id")).toEqual([
      { id: "p1", name: "Asha", mood: "high", loud: "ASHA" },
      { id: "p3", name: "Cleo", mood: "high", loud: "CLEO" },
    ])
    expect(await world.sql`SELECT body FROM letters WHERE id OPERATOR(lib.=) 'z'::lib.citext`).toEqual([{ body: "mine" }])

    await world.sql`ALTER TABLE pupils ADD COLUMN more text DEFAULT 'm'`
    await world.halt()
    await world.sql`DELETE FROM notes WHERE id OPERATOR(lib.=) 'K000001'::lib.citext`
    await world.dropSlot()
    await world.restart()
    await world.compared()
    await world.settle()
    await a.pull()
    expect(await a.rows("SELECT count(*) AS n FROM notes")).toEqual([{ n: LETTERS - 1 }])
    expect(await a.rows("SELECT count(*) AS n FROM pupils WHERE more = 'm'")).toEqual([{ n: 2 }])
  })
})
