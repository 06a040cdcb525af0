import * as Effect from "effect/Effect"
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest"
import { tendQuarantine } from "../../src/up/tend.ts"
import { openOffice } from "./office.ts"

/** The role of pushes: rights on some tables, none on others. */
const ROLE = "pusher"
const DDL = `
DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = '${ROLE}') THEN CREATE ROLE ${ROLE} LOGIN; END IF; END $$;
CREATE TABLE open (id int PRIMARY KEY, school_id text, a text, b text);
CREATE TABLE append (id int PRIMARY KEY, school_id text, a text);
CREATE TABLE "closed one" (id int PRIMARY KEY, school_id text, a text);
CREATE TABLE hidden (id int PRIMARY KEY, open int REFERENCES open (id) ON DELETE CASCADE);
CREATE TABLE tree (id int PRIMARY KEY, school_id text, parent int REFERENCES tree (id) ON DELETE CASCADE);
CREATE TABLE subject (id int PRIMARY KEY, a text);
CREATE TABLE mark (id int PRIMARY KEY, school_id text, subject int REFERENCES subject (id));
CREATE TABLE swallow (id int PRIMARY KEY, school_id text, a text);
GRANT SELECT ON subject TO ${ROLE};
CREATE TABLE journal (id int);
CREATE SEQUENCE tries;
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('tries'); IF TG_OP <> 'DELETE' AND NEW.a = 'audited' THEN INSERT INTO journal VALUES (NEW.id); END IF; IF TG_OP <> 'DELETE' AND NEW.a = 'forbidden' THEN RAISE insufficient_privilege USING MESSAGE = 'not today'; END IF; IF (CASE TG_OP WHEN 'DELETE' THEN OLD.a ELSE NEW.a END) = 'no' THEN RETURN NULL; END IF; RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END; END $$;
CREATE TRIGGER s BEFORE INSERT OR UPDATE OR DELETE ON swallow FOR EACH ROW EXECUTE FUNCTION swallow();
CREATE TABLE ruled (id int PRIMARY KEY, school_id text, a text);
CREATE RULE no_delete AS ON DELETE TO ruled DO INSTEAD NOTHING;
CREATE RULE "no X" AS ON INSERT TO ruled WHERE NEW.a = 'x' DO INSTEAD NOTHING;
CREATE RULE no_y AS ON UPDATE TO ruled WHERE NEW.a = 'y' DO INSTEAD NOTHING;
CREATE TABLE secured (id int PRIMARY KEY, school_id text, a text);
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
CREATE POLICY see ON secured FOR SELECT USING (a <> 'hidden');
CREATE POLICY make ON secured FOR INSERT WITH CHECK (a <> 'closed');
CREATE POLICY edit ON secured FOR UPDATE USING (true);
CREATE POLICY remove ON secured FOR DELETE USING (a <> 'closed');
CREATE TABLE later (id int PRIMARY KEY, school_id text);
CREATE TABLE after (id int PRIMARY KEY, school_id text, later int REFERENCES later);
CREATE TABLE later_log (id int);
CREATE FUNCTION log_later() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO later_log VALUES (NEW.id); RETURN NULL; END $$;
CREATE TRIGGER l AFTER INSERT ON later FOR EACH ROW EXECUTE FUNCTION log_later();
GRANT SELECT, INSERT, UPDATE, DELETE ON later, after TO ${ROLE};
GRANT USAGE ON SEQUENCE tries TO ${ROLE};
GRANT USAGE ON SCHEMA schoolbus TO ${ROLE};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA schoolbus TO ${ROLE};
GRANT SELECT, INSERT, DELETE, UPDATE (a) ON open TO ${ROLE};
GRANT SELECT, INSERT ON append TO ${ROLE};
GRANT SELECT, INSERT, UPDATE, DELETE ON tree, swallow, mark, ruled, secured TO ${ROLE};`

let o: Awaited<ReturnType<typeof openOffice>>
let a: ReturnType<typeof o.school>
const had = new Set<string>()
beforeAll(async () => {
  o = await openOffice(
    DDL,
    {
      open: {},
      append: {},
      "closed one": {},
      tree: {},
      swallow: {},
      ruled: {},
      secured: { direction: "up" },
      subject: { audience: "all" },
      mark: {},
      later: {},
      after: {},
    },
    { role: ROLE, had: hadOf },
  )
})
beforeEach(() => {
  a = o.school("a")
})
afterAll(() => o?.close())

const hadOf = (_: string, __: string, keys: ReadonlyArray<string>) => Effect.succeed(new Set(keys.filter((key) => had.has(key))))

const make = (table: string, id: number, more: object = {}) => ({ table, op: "insert" as const, key: [id], mine: { id, school_id: "a", ...more } })

test("a table without rights is quarantined with the GRANT that mends it, the others are written", async () => {
  const push = await a.push([make("closed one", 1), make("open", 1), make("append", 1)])
  expect([push.reason(0), push.verdict(1), push.verdict(2)]).toEqual(["permission", "applied", "applied"])
  const [row] = await o.sql(`SELECT detail FROM schoolbus.quarantine WHERE id = '${push.record(0)}'`)
  expect(row?.["detail"]).toContain('GRANT SELECT, INSERT ON "public"."closed one" TO "pusher"')
})

test("what lacked a right goes on by itself, with what hangs on it, once a DBA has given it", async () => {
  const push = await a.push([make("later", 1), make("after", 1, { later: 1 })])
  expect([push.reason(0), push.reason(1)]).toEqual(["permission", "dependant"])
  const tend = () => o.withPg((pg) => tendQuarantine(pg, o, ""))
  const open = async () =>
    (await o.sql(`SELECT reason FROM schoolbus.quarantine WHERE status = 'open' AND table_name IN ('public.later', 'public.after')`)).length
  await tend()
  expect(await open()).toBe(2)
  await o.sql(`GRANT INSERT ON later_log TO ${ROLE}`)
  await tend()
  expect(await open()).toBe(0)
  expect(await o.sql("SELECT id, later FROM after")).toEqual([{ id: 1, later: 1 }])
})

test("a row may point to one that every school sees, and to none that is not there", async () => {
  await o.sql("INSERT INTO subject VALUES (1, 'mathematics')")
  const push = await a.push([make("mark", 1, { subject: 1 }), make("mark", 2, { subject: 2 })])
  expect([push.verdict(0), push.verdict(1)]).toEqual(["applied", "quarantined"])
})

test("rights on single columns count", async () => {
  await o.sql("INSERT INTO open VALUES (10, 'a', 'x', 'y'), (11, 'a', 'x', 'y')")
  const base = (id: number) => ({ id, school_id: "a", a: "x", b: "y" })
  const push = await a.push([
    { table: "open", op: "update", key: [10], base: base(10), mine: { a: "z" } },
    { table: "open", op: "update", key: [11], base: base(11), mine: { b: "z" } },
  ])
  expect([push.verdict(0), push.reason(1)]).toEqual(["applied", "permission"])
})

test("a table that may only be added to takes inserts and no more", async () => {
  const push = await a.push([make("append", 20, { a: "x" })])
  const next = await a.push([
    { table: "append", op: "update", key: [20], base: { id: 20, school_id: "a", a: "x" }, mine: { a: "y" } },
    make("append", 20, { a: "other" }),
  ])
  expect([push.verdict(0), next.reason(0)]).toEqual(["applied", "permission"])
})

test("a delete is refused while it cannot be seen what its cascade would take", async () => {
  await o.sql("INSERT INTO open VALUES (30, 'a', 'x', 'y')")
  const push = await a.push([{ table: "open", op: "delete", key: [30], base: { id: 30, school_id: "a", a: "x", b: "y" } }])
  expect(push.reason(0)).toBe("permission")
})

test("a cascade through a tree takes the school's own rows, and stops at another's", async () => {
  await o.sql("INSERT INTO tree VALUES (1,'a',NULL), (2,'a',1), (3,'a',2), (4,'a',NULL), (5,'a',4), (6,'b',5)")
  const push = await a.push([1, 4].map((id) => ({ table: "tree", op: "delete" as const, key: [id], base: { id, school_id: "a", parent: null } })))
  expect([push.verdict(0), push.reason(1)]).toEqual(["applied", "shared"])
  expect(await o.sql("SELECT id FROM tree ORDER BY 1")).toEqual([{ id: 4 }, { id: 5 }, { id: 6 }])
})

test("a whole tree made or removed in one batch", async () => {
  const rows = [
    [40, null],
    [41, 40],
    [42, 41],
  ] as const
  const made = await a.push([...rows].reverse().map(([id, parent]) => make("tree", id, { parent })))
  expect(made.exceptions).toEqual([])
  const gone = await a.push(rows.map(([id, parent]) => ({ table: "tree", op: "delete" as const, key: [id], base: { id, school_id: "a", parent } })))
  expect(gone.exceptions).toEqual([])
  expect(await o.sql("SELECT id FROM tree WHERE id >= 40")).toEqual([])
})

test("a row that a trigger leaves out is not called applied", async () => {
  const push = await a.push([make("swallow", 1, { a: "no" }), make("swallow", 2, { a: "yes" })])
  expect([push.reason(0), push.verdict(1)]).toEqual(["trigger", "applied"])
  await o.sql("ALTER TABLE swallow DISABLE TRIGGER s; INSERT INTO swallow VALUES (3,'a','no'); ALTER TABLE swallow ENABLE TRIGGER s")
  const gone = await a.push([{ table: "swallow", op: "delete", key: [3], base: { id: 3, school_id: "a", a: "no" } }])
  expect(gone.reason(0)).toBe("trigger")
})

test("what a rule or row security leaves out is told by its name", async () => {
  await o.sql("INSERT INTO ruled VALUES (1, 'a', 'q'), (2, 'a', 'q'); INSERT INTO secured VALUES (2, 'a', 'closed')")
  const base = (id: number, a: string) => ({ id, school_id: "a", a })
  const push = await a.push([
    { table: "ruled", op: "delete", key: [1], base: base(1, "q") },
    make("ruled", 3, { a: "x" }),
    make("ruled", 4, { a: "z" }),
    { table: "ruled", op: "update", key: [2], base: base(2, "q"), mine: { a: "y" } },
    { table: "secured", op: "delete", key: [2], base: base(2, "closed") },
    make("secured", 5, { a: "closed" }),
    make("secured", 6, { a: "open" }),
  ])
  expect(Array.from({ length: 7 }, (_, i) => push.reason(i) ?? push.verdict(i))).toEqual([
    "rule",
    "rule",
    "applied",
    "rule",
    "row_security",
    "row_security",
    "applied",
  ])
  const detail = async (i: number) => String((await o.sql(`SELECT detail FROM schoolbus.quarantine WHERE id = '${push.record(i)}'`))[0]?.["detail"])
  expect(await detail(0)).toContain('DROP RULE "no_delete" ON "public"."ruled"')
  expect(await detail(1)).toContain('"no X"')
  expect(await detail(3)).toContain('"no_y"')
  for (const i of [4, 5]) expect(await detail(i)).toContain(`ALTER ROLE "${ROLE}" BYPASSRLS`)
  const swallowed = await a.push([make("swallow", 60, { a: "no" })])
  const [row] = await o.sql(`SELECT detail FROM schoolbus.quarantine WHERE id = '${swallowed.record(0)}'`)
  expect(row?.["detail"]).toBe('trigger "s" in Postgres left the row out')
})

test("a row that row security hides is not taken for deleted", async () => {
  await o.sql("INSERT INTO secured VALUES (20, 'a', 'hidden')")
  had.add("[20]")
  const base = { id: 20, school_id: "a", a: "q" }
  const push = await a.push([{ table: "secured", op: "update", key: [20], base, mine: { a: "mine" } }])
  const other = await o.school("a").push([{ table: "secured", op: "delete", key: [20], base }])
  for (const answers of [push, other]) {
    expect(answers.of(0)).toEqual([expect.objectContaining({ verdict: "quarantined", reason: "row_security", hold: true })])
    const [row] = await o.sql(`SELECT detail FROM schoolbus.quarantine WHERE id = '${answers.record(0)}'`)
    expect(row?.["detail"]).toContain(`ALTER ROLE "${ROLE}" BYPASSRLS`)
  }
})

test("a trigger that forbids one row forbids no other", async () => {
  const push = await a.push([make("swallow", 70, { a: "forbidden" }), make("swallow", 71, { a: "yes" }), make("swallow", 72, { a: "audited" })])
  expect([push.reason(0), push.verdict(1), push.reason(2)]).toEqual(["permission", "applied", "permission"])
  const detail = async (i: number) => (await o.sql(`SELECT detail FROM schoolbus.quarantine WHERE id = '${push.record(i)}'`))[0]?.["detail"]
  expect(await detail(0)).toBe("not today")
  expect(await detail(2)).toMatch(/^permission denied for table journal; .*"pusher".* SECURITY DEFINER$/)
})

test("a guessed key gets one answer, whether another school has the row or nobody; a row that the school had is a conflict", async () => {
  await o.sql("INSERT INTO tree VALUES (100,'b',NULL), (102,'b',NULL)")
  const edit = (id: number) => ({
    table: "tree",
    op: "update" as const,
    key: [id],
    base: { id, school_id: "a", parent: null },
    mine: { parent: 1000 },
  })
  const remove = (id: number) => ({ table: "tree", op: "delete" as const, key: [id], base: { id, school_id: "a", parent: null } })
  const push = await a.push([edit(100), edit(101)])
  const other = await o.school("a").push([remove(100), remove(101)])
  for (const answers of [push, other]) {
    const [first, second] = await o.sql(
      `SELECT reason, detail FROM schoolbus.quarantine WHERE id IN ('${answers.record(0)}', '${answers.record(1)}')`,
    )
    expect(first).toEqual(second)
    expect(first?.["reason"]).toBe("not_allowed")
  }
  had.add("[102]").add("[103]")
  const moved = await a.push([edit(102), edit(103)])
  expect([moved.verdict(0), moved.verdict(1)]).toEqual(["conflict", "conflict"])
  expect(moved.exceptions.some((exception) => exception.hold)).toBe(false)
  expect(await o.sql("SELECT parent FROM tree WHERE id = 102")).toEqual([{ parent: null }])
})

test("a batch waits shortly for a lock of head office and then succeeds, or fails whole and can be sent again", async () => {
  await o.sql("INSERT INTO open VALUES (50, 'a', 'x', 'y')")
  const base = { id: 50, school_id: "a", a: "x", b: "y" }
  const hold = o.sql("BEGIN; UPDATE open SET b = 'held' WHERE id = 50; SELECT pg_sleep(0.4); COMMIT")
  const push = await a.push([{ table: "open", op: "update", key: [50], base, mine: { a: "z" } }])
  await hold
  expect(["applied", "merged"]).toContain(push.verdict(0))
  expect(await o.sql("SELECT a, b FROM open WHERE id = 50")).toEqual([{ a: "z", b: "held" }])
})

test("two schools that push at once both get their verdicts", async () => {
  const b = o.school("b")
  const many = (school: string, from: number) =>
    Array.from({ length: 300 }, (_, i) => ({ ...make("open", from + i), mine: { id: from + i, school_id: school, a: "x" } }))
  const [one, two] = await Promise.all([a.push(many("a", 10_000)), b.push(many("b", 20_000))])
  expect([one.exceptions, two.exceptions]).toEqual([[], []])
})

test("many bad rows among good ones are found in few tries", async () => {
  const tries = async () => Number((await o.sql("SELECT nextval('tries') AS n"))[0]?.["n"])
  const before = await tries()
  const push = await a.push(Array.from({ length: 1_000 }, (_, i) => make("swallow", 50_000 + i, { a: i % 10 === 0 ? "no" : "yes" })))
  expect(push.exceptions).toHaveLength(100)
  // Row by row from the first bad one on it would be 100 times the batch.
  expect((await tries()) - before).toBeLessThan(15_000)
})
