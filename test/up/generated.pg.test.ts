/** Columns that Postgres computes and that decide where a row belongs, or what it points to: a school never sends their values. */
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest"
import { decideIn } from "../../src/up/decide.ts"
import { openOffice } from "./office.ts"

const DDL = `
CREATE TABLE lessons (id int PRIMARY KEY, code text, title text, school_id text GENERATED ALWAYS AS (split_part(code, '/', 1)) STORED);
CREATE TABLE defaulted (id int PRIMARY KEY, code text DEFAULT 'b', title text, school_id text GENERATED ALWAYS AS (code) STORED);
CREATE TABLE halves (id int PRIMARY KEY, n int, school_id text GENERATED ALWAYS AS (CASE WHEN 10 / n > 0 THEN 'a' END) STORED);
CREATE TABLE pupils (id text PRIMARY KEY, name text);
CREATE TABLE enrolments (id int PRIMARY KEY, school_id text, number text, pupil text GENERATED ALWAYS AS ('p' || number) STORED);
CREATE TABLE rooms (id int PRIMARY KEY, school_id text);
CREATE TABLE desks (id int PRIMARY KEY, school_id text, place int, room int GENERATED ALWAYS AS (place / 100) STORED REFERENCES rooms (id));
CREATE TABLE desk_notes (id int PRIMARY KEY, desk text, body text, desk_id int GENERATED ALWAYS AS (length(desk)) STORED);
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.number := lower(NEW.number); RETURN NEW; END $$;
CREATE TRIGGER k BEFORE INSERT OR UPDATE ON enrolments FOR EACH ROW WHEN (NEW.number ~ '[A-Z]') EXECUTE FUNCTION keep();`

let o: Awaited<ReturnType<typeof openOffice>>
let a: ReturnType<typeof o.school>
beforeAll(async () => {
  o = await openOffice(DDL, {
    ...{ lessons: {}, defaulted: {}, halves: {}, rooms: {}, desks: {}, enrolments: { columns: { number: "manual" } } },
    pupils: { audience: { through: "public.enrolments", on: { id: "pupil" } } },
    desk_notes: { audience: { through: "public.desks", on: { desk_id: "id" } } },
  })
})
beforeEach(() => {
  a = o.school("a")
})
afterAll(() => o?.close())

const insert = (table: string, mine: { readonly id: number | string } & Record<string, string | number | null>) => ({
  ...{ table, op: "insert" as const },
  ...{ key: [mine.id], mine },
})
const update = (table: string, base: { readonly id: number | string } & Record<string, string | number | null>, mine: object) => ({
  ...{ table, op: "update" as const, key: [base.id] },
  ...{ base, mine: mine as Record<string, string | number | null> },
})
const reasons = (push: Awaited<ReturnType<typeof a.push>>, count: number) =>
  Array.from({ length: count }, (_, i) => push.reason(i) ?? push.verdict(i))

test("a new row belongs to the school that Postgres computes for it, and to no other", async () => {
  const push = await a.push([
    insert("lessons", { id: 1, code: "a/1", title: "x" }),
    insert("lessons", { id: 2, code: "b/1", title: "x" }),
    insert("lessons", { id: 3, code: null, title: "x" }),
    insert("lessons", { id: 4, code: "a/2", title: "x" }),
  ])
  expect(reasons(push, 4)).toEqual(["applied", "not_allowed", "not_allowed", "applied"])
  expect(await o.sql("SELECT id, school_id FROM lessons ORDER BY 1")).toEqual([
    { id: 1, school_id: "a" },
    { id: 4, school_id: "a" },
  ])
})

test("an edit may not make Postgres give the row to another school, or to none", async () => {
  await o.sql("INSERT INTO lessons VALUES (10, 'a/1', 'x'), (11, 'a/1', 'x'), (12, 'a/1', 'x'), (13, 'a/1', 'x'), (14, 'b/1', 'x')")
  const base = (id: number, code = "a/1") => ({ id, code, title: "x" })
  const push = await a.push([
    update("lessons", base(10), { code: "a/9" }),
    update("lessons", base(11), { code: "b/9" }),
    update("lessons", base(12), { code: null }),
    update("lessons", base(13), { title: "y" }),
    update("lessons", base(14), { title: "y" }),
    { table: "lessons", op: "delete", key: [13], base: base(13) },
  ])
  expect(reasons(push, 5)).toEqual(["applied", "not_allowed", "not_allowed", "applied", "not_allowed"])
  expect(await o.sql("SELECT id, code, title FROM lessons WHERE id >= 10 ORDER BY 1")).toEqual([
    { id: 10, code: "a/9", title: "x" },
    { id: 11, code: "a/1", title: "x" },
    { id: 12, code: "a/1", title: "x" },
    { id: 14, code: "b/1", title: "x" },
  ])
})

test("what a default of Postgres makes of it counts, too", async () => {
  const push = await a.push([insert("defaulted", { id: 1, title: "x" }), insert("defaulted", { id: 2, title: "x", code: "a" })])
  expect(push.verdict(0)).toBe("quarantined")
  expect(push.verdict(1)).toBe("applied")
  expect(await o.sql("SELECT id FROM defaulted")).toEqual([{ id: 2 }])
})

test("a row for which the computation fails is that row's own fault", async () => {
  const push = await a.push([insert("halves", { id: 1, n: 2 }), insert("halves", { id: 2, n: 0 }), insert("halves", { id: 3, n: 100 })])
  expect(push.verdict(0)).toBe("applied")
  expect([push.verdict(1), push.reason(2)]).toEqual(["quarantined", "not_allowed"])
})

test("a link names whom Postgres computes, so it cannot place a row that the school does not see", async () => {
  await o.sql("INSERT INTO pupils VALUES ('p1', 'theirs'), ('p2', 'ours'), ('p3', 'nobody''s')")
  await o.sql("INSERT INTO enrolments VALUES (1, 'b', '1'), (2, 'a', '2')")
  const push = await a.push([
    insert("enrolments", { id: 10, school_id: "a", number: "1" }),
    insert("enrolments", { id: 11, school_id: "a", number: "2" }),
    insert("enrolments", { id: 12, school_id: "a", number: "3" }),
    update("enrolments", { id: 2, school_id: "a", number: "2" }, { number: "1" }),
    insert("enrolments", { id: 13, school_id: "a", number: "4" }),
    insert("pupils", { id: "p4", name: "new" }),
    insert("pupils", { id: "p5", name: "placed by none" }),
  ])
  expect(reasons(push, 7)).toEqual(["foreign_key", "applied", "foreign_key", "foreign_key", "applied", "applied", "no_audience"])
  expect(await o.sql("SELECT school_id, pupil FROM enrolments ORDER BY id")).toEqual([
    { school_id: "b", pupil: "p1" },
    { school_id: "a", pupil: "p2" },
    { school_id: "a", pupil: "p2" },
    { school_id: "a", pupil: "p4" },
  ])
})

test("a link that a trigger makes Postgres compute otherwise places nobody unseen", async () => {
  await o.sql("INSERT INTO pupils VALUES ('px', 'theirs'), ('pX', 'ours')")
  await o.sql(
    "ALTER TABLE enrolments DISABLE TRIGGER k; INSERT INTO enrolments VALUES (20, 'b', 'x'), (21, 'a', 'X'); ALTER TABLE enrolments ENABLE TRIGGER k",
  )
  const push = await a.push([insert("enrolments", { id: 22, school_id: "a", number: "X" })])
  expect(push.verdict(0)).toBe("quarantined")
  expect(await o.sql("SELECT count(*)::int AS n FROM enrolments WHERE school_id = 'a' AND pupil = 'px'")).toEqual([{ n: 0 }])
})

test("a foreign key of a computed column points to what the school sees", async () => {
  await o.sql("INSERT INTO rooms VALUES (1, 'a'), (2, 'b')")
  const push = await a.push([
    insert("desks", { id: 1, school_id: "a", place: 105 }),
    insert("desks", { id: 2, school_id: "a", place: 205 }),
    insert("desks", { id: 3, school_id: "a", place: null }),
    insert("rooms", { id: 3, school_id: "a" }),
    insert("desks", { id: 4, school_id: "a", place: 301 }),
  ])
  expect(reasons(push, 5)).toEqual(["applied", "foreign_key", "applied", "applied", "applied"])
})

test("rows that are placed by what Postgres computes of them stay with the school", async () => {
  await o.sql("INSERT INTO desks VALUES (30, 'a'), (31, 'b')")
  const text = (n: number) => "x".repeat(n)
  const push = await a.push([
    insert("desk_notes", { id: 1, desk: text(30), body: "" }),
    insert("desk_notes", { id: 2, desk: text(31), body: "" }),
    insert("desk_notes", { id: 3, desk: text(30), body: "" }),
  ])
  const next = await a.push([update("desk_notes", { id: 3, desk: text(30), body: "" }, { desk: text(31) })])
  expect([...reasons(push, 3), ...reasons(next, 1)]).toEqual(["applied", "no_audience", "applied", "no_audience"])
})

test("what a school decides about a conflict is judged by what Postgres makes of it", async () => {
  await o.sql("INSERT INTO pupils VALUES ('p70', 'theirs'), ('p71', 'ours'), ('p72', 'ours')")
  await o.sql("INSERT INTO enrolments VALUES (70, 'b', '70'), (71, 'a', '71'), (72, 'a', '72'), (73, 'a', '73'), (74, 'a', '74')")
  const base = (id: number) => ({ id, school_id: "a", number: String(id) })
  await o.sql("UPDATE enrolments SET number = '71' WHERE id IN (73, 74)")
  const push = await a.push([update("enrolments", base(73), { number: "70" }), update("enrolments", base(74), { number: "72" })])
  expect([push.verdict(0), push.verdict(1)]).toEqual(["conflict", "conflict"])
  const decide = (i: number) => o.withPg((pg) => pg.tx((session) => decideIn(session, o, push.record(i), { keep: "school" }, "amina", "a")))
  await expect(decide(0)).rejects.toThrow(/foreign_key/)
  await decide(1)
  expect(await o.sql("SELECT id, pupil FROM enrolments WHERE id IN (73, 74) ORDER BY 1")).toEqual([
    { id: 73, pupil: "p71" },
    { id: 74, pupil: "p72" },
  ])
})
