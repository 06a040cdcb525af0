/** What head office's own rules ask of a school's writes: single steps, small pieces, rows that only stand together. */
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest"
import { openOffice } from "./office.ts"

const DDL = `
CREATE TABLE papers (id int PRIMARY KEY, school_id text, state text, version int);
CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF OLD.state = 'draft' AND NEW.state = 'approved' THEN RAISE EXCEPTION 'a draft is submitted first'; END IF;
  IF NEW.version <> OLD.version + 1 THEN RAISE serialization_failure USING MESSAGE = 'the paper has another version'; END IF;
  RETURN NEW; END $$;
CREATE TRIGGER judge BEFORE UPDATE ON papers FOR EACH ROW EXECUTE FUNCTION judge();
CREATE TABLE depts (id int PRIMARY KEY, school_id text, boss int);
CREATE TABLE staff (id int PRIMARY KEY, school_id text, dept int NOT NULL REFERENCES depts);
ALTER TABLE depts ADD FOREIGN KEY (boss) REFERENCES staff;
CREATE TABLE seats (id int PRIMARY KEY, school_id text, seat int UNIQUE, points int, tags text);
CREATE TABLE slow (id int PRIMARY KEY, school_id text);
CREATE FUNCTION tire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF (SELECT count(*) FROM made) > 10 THEN RAISE query_canceled USING MESSAGE = 'canceling statement due to statement timeout'; END IF;
  RETURN NULL; END $$;
CREATE TRIGGER tire AFTER INSERT ON slow REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION tire();`

let o: Awaited<ReturnType<typeof openOffice>>
let a: ReturnType<typeof o.school>
beforeAll(async () => {
  o = await openOffice(DDL, { papers: {}, seats: { columns: { points: "sum", tags: "union" } }, slow: {}, depts: {}, staff: {} })
})
beforeEach(() => {
  a = o.school("a")
})
afterAll(() => o?.close())

const paper = (id: number, state: string, version: number) => ({ id, school_id: "a", state, version })
const edit = (id: number, from: readonly [string, number], to: readonly [string, number]) => ({
  ...{ table: "papers", op: "update" as const, key: [id] },
  ...{ base: paper(id, ...from), mine: { state: to[0], version: to[1] } },
})

test("several edits of a row that only stand step by step are written step by step", async () => {
  await o.sql("INSERT INTO papers VALUES (1, 'a', 'draft', 1), (2, 'a', 'draft', 1)")
  const push = await a.push([
    edit(1, ["draft", 1], ["submitted", 2]),
    edit(1, ["submitted", 2], ["approved", 3]),
    edit(2, ["draft", 1], ["approved", 2]),
    { table: "papers", op: "insert", key: [3], mine: paper(3, "draft", 1) },
  ])
  expect([push.verdict(0), push.verdict(1), push.reason(2), push.verdict(3)]).toEqual(["applied", "applied", "trigger", "applied"])
  expect(await o.sql("SELECT id, state, version FROM papers ORDER BY 1")).toEqual([
    { id: 1, state: "approved", version: 3 },
    { id: 2, state: "draft", version: 1 },
    { id: 3, state: "draft", version: 1 },
  ])
})

test("what both sides added to stands in rows that are written step by step, too", async () => {
  await o.sql("INSERT INTO seats VALUES (1, 'a', 1, 0, 'x'), (2, 'a', 2, 0, 'x')")
  await o.sql("UPDATE seats SET points = 1, tags = 'x,hq'")
  type Seat = Readonly<Record<"seat" | "points" | "tags", string | number>>
  const change = (id: number, seat: Seat, mine: Partial<Seat>) => ({
    ...{ table: "seats", op: "update" as const, key: [id] },
    ...{ base: { id, school_id: "a", ...seat }, mine },
  })
  const push = await a.push([
    change(1, { seat: 1, points: 0, tags: "x" }, { seat: 99 }),
    change(2, { seat: 2, points: 0, tags: "x" }, { seat: 1 }),
    change(1, { seat: 99, points: 0, tags: "x" }, { seat: 2, points: 1 }),
    change(1, { seat: 2, points: 1, tags: "x" }, { tags: "x,mine" }),
    change(2, { seat: 1, points: 0, tags: "x" }, { points: 5 }),
    change(2, { seat: 1, points: 5, tags: "x" }, { points: 7 }),
    { table: "seats", op: "insert", key: [3], mine: { id: 3, school_id: "a", seat: 3, points: 1, tags: "y" } },
  ])
  expect([push.reason(2), push.reason(5)]).not.toContain("unique")
  expect(await o.sql("SELECT id, seat, points, tags FROM seats ORDER BY 1")).toEqual([
    { id: 1, seat: 2, points: 2, tags: "x,hq,mine" },
    { id: 2, seat: 1, points: 8, tags: "x,hq" },
    { id: 3, seat: 3, points: 1, tags: "y" },
  ])
})

test("a trigger that speaks of a serialization failure refuses its row, not the school", async () => {
  await o.sql("INSERT INTO papers VALUES (11, 'a', 'draft', 1), (12, 'a', 'draft', 1)")
  const push = await a.push([edit(11, ["draft", 1], ["submitted", 1]), edit(12, ["draft", 1], ["submitted", 2])])
  expect([push.reason(0), push.verdict(1)]).toEqual(["trigger", "applied"])
  const [row] = await o.sql(`SELECT detail FROM schoolbus.quarantine WHERE id = '${push.record(0)}'`)
  expect(row?.["detail"]).toBe("the paper has another version")
})

test("a batch whose triggers take longer than a statement may is written in smaller pieces", async () => {
  const push = await a.push(
    Array.from({ length: 100 }, (_, i) => ({ table: "slow", op: "insert" as const, key: [i], mine: { id: i, school_id: "a" } })),
  )
  expect(push.exceptions).toEqual([])
  expect(await o.sql("SELECT count(*)::int AS n FROM slow")).toEqual([{ n: 100 }])
})

test("new rows that point to each other are written together, and what hangs on them after them", async () => {
  await o.sql("INSERT INTO depts VALUES (1, 'a', NULL)")
  const dept = (id: number, boss: number | null) => ({ table: "depts", op: "insert" as const, key: [id], mine: { id, school_id: "a", boss } })
  const person = (id: number, at: number) => ({ table: "staff", op: "insert" as const, key: [id], mine: { id, school_id: "a", dept: at } })
  const push = await a.push([
    ...[dept(10, 10), person(10, 10), person(11, 10)],
    ...[dept(20, 20), person(20, 21), dept(21, 21), person(21, 20)],
    ...[dept(30, 30), person(30, 99)],
    { table: "depts", op: "update", key: [1], base: { id: 1, school_id: "a", boss: null }, mine: { boss: 11 } },
    // Step by step, as a program does it that knows the rule.
    ...[
      dept(40, null),
      person(40, 40),
      { table: "depts", op: "update" as const, key: [40], base: { id: 40, school_id: "a", boss: null }, mine: { boss: 40 } },
    ],
  ])
  expect(Array.from({ length: 13 }, (_, i) => push.reason(i) ?? push.verdict(i))).toEqual([
    ...Array(7).fill("applied"),
    "dependant",
    "foreign_key",
    ...Array(4).fill("applied"),
  ])
  expect(await o.sql("SELECT id, boss FROM depts ORDER BY 1")).toEqual(
    [
      [1, 11],
      [10, 10],
      [20, 20],
      [21, 21],
      [40, 40],
    ].map(([id, boss]) => ({ id, boss })),
  )
  expect(await o.sql("SELECT id FROM staff ORDER BY 1")).toEqual([10, 11, 20, 21, 40].map((id) => ({ id })))
})
