/** Settings of a session that head office's triggers change: they are theirs alone, and change nothing of what the hub reads or writes. */
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest"
import { openOffice } from "./office.ts"

const DDL = `
CREATE TABLE log (path text, zone text);
CREATE TABLE lessons (id int PRIMARY KEY, school_id text, at timestamptz, length interval, how text);
CREATE FUNCTION set_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  PERFORM set_config('TimeZone', 'Africa/Nairobi', NEW.how = 'local');
  PERFORM set_config('DateStyle', 'German', NEW.how = 'local');
  PERFORM set_config('IntervalStyle', 'postgres', NEW.how = 'local');
  PERFORM set_config('search_path', 'elsewhere', NEW.how = 'local');
  NEW.at := NEW.at + interval '1 hour';
  RETURN NEW; END $$;
CREATE TRIGGER s BEFORE INSERT OR UPDATE ON lessons FOR EACH ROW EXECUTE FUNCTION set_up();
CREATE TABLE later (id int PRIMARY KEY, school_id text, at timestamptz);
CREATE FUNCTION set_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('TimeZone', 'Africa/Nairobi', false); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER l AFTER INSERT ON later DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION set_late();`

let o: Awaited<ReturnType<typeof openOffice>>
let a: ReturnType<typeof o.school>
beforeAll(async () => {
  o = await openOffice(DDL, { lessons: {}, later: {} })
})
beforeEach(() => {
  a = o.school("a")
})
afterAll(() => o?.close())

const lesson = (id: number, how: string) => ({ id, school_id: "a", at: "2026-03-01 10:00:00+00", length: "PT1H30M", how })

test.each([
  ["of the transaction", "local", 10],
  ["of the session", "session", 20],
])("settings %s", async (_, how, from) => {
  for (const id of [from, from + 1])
    expect((await a.push([{ table: "lessons", op: "insert", key: [id], mine: lesson(id, how) }])).exceptions).toEqual([])
  const stored = (id: number) => o.sql(`SELECT sent, stored FROM schoolbus.stored WHERE row_key = '[${id}]' AND column_name = 'at' ORDER BY batch`)
  const altered = { sent: '"2026-03-01 10:00:00+00"', stored: '"2026-03-01 11:00:00+00"' }
  expect([await stored(from), await stored(from + 1)]).toEqual([[altered], [altered]])
  await a.push([{ table: "later", op: "insert", key: [from], mine: { id: from, school_id: "a", at: "2026-03-01 10:00:00+00" } }])
  const texts = await o.withPg((pg) => pg.texts("SELECT at, current_setting('search_path') FROM public.later LIMIT 1"))
  expect(texts).toEqual([["2026-03-01 10:00:00+00", "pg_catalog, pg_temp"]])
})
