/** What others put into the search_path of the hub's role: names in the hub's SQL are Postgres' own, those in head office's triggers are not. */
import * as Effect from "effect/Effect"
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest"
import { resolveConflict } from "../../src/up/decide.ts"
import { insertSql, updateSql } from "../../src/up/plainly.ts"
import { recognise } from "../../src/up/plain.ts"
import { readShapes } from "../../src/up/shape.ts"
import { asOffice } from "../../src/postgres/client.ts"
import { strangersFirst } from "../support/strangers.ts"
import { openOffice } from "./office.ts"

const DDL = `
CREATE SCHEMA lib;
CREATE EXTENSION citext SCHEMA lib;
CREATE FUNCTION is_short(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN pg_catalog.length($1) OPERATOR(pg_catalog.<) (SELECT most FROM limits); END $$;
CREATE TABLE limits (most int);
INSERT INTO limits VALUES (10);
CREATE DOMAIN short AS text CHECK (is_short(VALUE));
CREATE TABLE pupils (id int PRIMARY KEY, school_id text, name text, at timestamptz, born date, note varchar(20), photo bytea, points numeric(6, 2), code short);
CREATE TABLE marks (id uuid PRIMARY KEY, school_id text, pupil int REFERENCES pupils (id) ON DELETE CASCADE ON UPDATE CASCADE, points numeric(6, 2));
CREATE TABLE watched (id text PRIMARY KEY, school_id text, a text, b text, n int, UNIQUE (a));
CREATE TABLE journal (id text, path text);
CREATE FUNCTION write_down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO journal VALUES (NEW.id, pg_catalog.current_setting('search_path')); RETURN NEW; END $$;
CREATE TRIGGER w BEFORE INSERT OR UPDATE ON watched FOR EACH ROW EXECUTE FUNCTION write_down();
CREATE CONSTRAINT TRIGGER l AFTER INSERT ON watched DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION write_down();
CREATE TABLE links (id int PRIMARY KEY, school_id text, pupil text);
CREATE TABLE placed (id text PRIMARY KEY, name text);
CREATE TABLE letters (id lib.citext PRIMARY KEY, school_id text, mail lib.citext UNIQUE, of lib.citext REFERENCES letters (id) ON DELETE CASCADE);`

let o: Awaited<ReturnType<typeof openOffice>>
let a: ReturnType<typeof o.school>
const PATH = "strange, public, pg_catalog"
beforeAll(async () => {
  o = await openOffice(
    DDL,
    {
      ...{ pupils: {}, marks: {}, watched: { columns: { b: "newest_wins", a: "manual", n: "max" } }, links: {}, letters: {} },
      placed: { audience: { through: "public.links", on: { id: "pupil" } } },
    },
    { had: () => Effect.succeed(new Set()) },
  )
  await o.sql(strangersFirst(new URL(o.url).pathname.slice(1)))
})
beforeEach(() => {
  a = o.school("a")
})
afterAll(() => o?.close())

const sql = (text: string) => o.sql(`SET search_path = pg_catalog, public, lib; ${text}`)
const row = (id: number) => ({
  ...{ id, school_id: "a", name: "Amina", at: "2026-01-01 10:00:00+00", born: "2015-02-03" },
  ...{ note: "x", photo: "00ff", points: "1.50", code: "abc" },
})
const make = (table: string, mine: { readonly id: number | string } & Record<string, string | number | null>) => ({
  ...{ table, op: "insert" as const, key: [mine.id] },
  mine,
})
const edit = (
  table: string,
  base: { readonly id: number | string } & Record<string, string | number | null>,
  mine: Record<string, string | number | null>,
) => ({
  ...{ table, op: "update" as const, key: [base.id] },
  ...{ base, mine },
})

test("rows, edits and deletes are written by Postgres' own functions and operators, a domain's check finds what it needs", async () => {
  const first = await a.push([make("pupils", row(1)), make("pupils", row(2)), make("marks", { id: crypto.randomUUID(), school_id: "a", pupil: 1 })])
  const second = await a.push([edit("pupils", row(1), { name: "Asha" }), edit("pupils", row(2), { code: "0123456789" })])
  const third = await a.push([{ table: "pupils", op: "delete", key: [2], base: row(2) }])
  expect([first.exceptions, second.of(0), second.reason(1), third.exceptions]).toEqual([[], [], "type", []])
  expect(await sql("SELECT id, name FROM pupils")).toEqual([{ id: 1, name: "Asha" }])
})

test("the short way asks nothing of strangers either", async () => {
  const ground = { tables: o.tables, school: "a" }
  await a.push([make("pupils", row(10))])
  const counts = await o.withPg((pg) =>
    pg.tx((session) =>
      Effect.gen(function* () {
        const shapes = yield* readShapes(session, ["public.pupils", "public.marks"])
        const change = (draft: ReturnType<typeof make> | ReturnType<typeof edit>) => ({
          id: 1,
          at: 0,
          base: {},
          ...draft,
          table: `public.${draft.table}`,
        })
        const plain = recognise(ground, shapes, [change(make("pupils", row(11))), change(edit("pupils", row(10), { name: "B", photo: "01" }))], null)
        const [made, edited] = plain?.groups ?? []
        if (made === undefined || edited === undefined) return null
        const { newTexts, editsJson } = yield* Effect.promise(() => import("../../src/up/plain.ts"))
        return [
          yield* asOffice(session, session.execute(insertSql(made), newTexts(made))),
          yield* asOffice(session, session.execute(updateSql(edited), [editsJson(edited)])),
        ]
      }),
    ),
  )
  expect(counts).toEqual([1, 1])
})

test("a trigger sees the search_path that a program of head office has, also one that waits for the end", async () => {
  const mine = { id: "w1", school_id: "a", a: "one", b: "x", n: 1 }
  await a.push([make("watched", mine)])
  await a.push([edit("watched", mine, { b: "y" })])
  expect(await sql("SELECT path FROM journal WHERE id = 'w1'")).toEqual([{ path: PATH }, { path: PATH }, { path: PATH }])
})

test("conflicts are recorded and decided, clashes get a free value", async () => {
  await sql("INSERT INTO watched VALUES ('w2', 'a', 'theirs', 'x', 5), ('w3', 'a', 'wanted', 'x', 5)")
  const base = { id: "w2", school_id: "a", a: "two", b: "x", n: 1 }
  const push = await a.push([
    edit("watched", base, { a: "mine", b: "z", n: 3 }),
    make("watched", { id: "w4", school_id: "a", a: "wanted", b: "", n: 1 }),
  ])
  expect([push.verdict(0), push.reason(1)]).toEqual(["conflict", "unique"])
  expect(await sql("SELECT suggestion FROM schoolbus.conflicts WHERE kind = 'unique'")).toEqual([{ suggestion: '"wanted2"' }])
  const [record] = await sql("SELECT id FROM schoolbus.conflicts WHERE column_name = 'a' AND status = 'open' AND kind = 'column'")
  await o.withPg((pg) => resolveConflict(pg, o, String(record?.["id"]), { keep: "school" }, "amina"))
  expect(await sql("SELECT a, b, n FROM watched WHERE id = 'w2'")).toEqual([{ a: "mine", b: "z", n: 5 }])
})

test("rows are placed by links, and told apart from another school's", async () => {
  const push = await a.push([make("placed", { id: "p1", name: "x" }), make("links", { id: 1, school_id: "a", pupil: "p1" })])
  expect(push.exceptions).toEqual([])
  await sql("INSERT INTO placed VALUES ('p2', 'x'); INSERT INTO links VALUES (2, 'b', 'p2')")
  const foreign = await a.push([edit("placed", { id: "p2", name: "x" }, { name: "y" }), make("links", { id: 3, school_id: "a", pupil: "p2" })])
  expect([foreign.verdict(0), foreign.verdict(1)]).toEqual(["quarantined", "quarantined"])
})

test("keys of a type that has an order of its own are found by that, wherever the type is", async () => {
  const mine = (id: string, mail: string, of: string | null) => make("letters", { id, school_id: "a", mail, of })
  const first = [await a.push([mine("Anna", "anna@x", null)]), await a.push([mine("Ben", "ben@x", "anna")])]
  expect(first.flatMap(({ exceptions }) => exceptions)).toEqual([])
  const second = await a.push([
    edit("letters", { id: "Anna", school_id: "a", mail: "anna@x", of: null }, { mail: "a@x" }),
    mine("ANNA", "other@x", null),
  ])
  expect([second.of(0), second.reason(1)]).toEqual([[], "unique"])
  const third = await a.push([mine("Cleo", "BEN@x", null)])
  expect(third.reason(0)).toBe("unique")
  const last = await a.push([{ table: "letters", op: "delete", key: ["Anna"], base: { id: "Anna", school_id: "a", mail: "a@x", of: null } }])
  expect(last.exceptions).toEqual([])
  expect(await sql("SELECT id FROM letters")).toEqual([])
})
