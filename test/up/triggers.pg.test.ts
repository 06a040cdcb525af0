/** Head office's own triggers that judge a school's writes: by single steps, under any code, and only so many rows at a time. */
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest"
import { openOffice } from "./office.ts"

const DDL = `
CREATE TABLE papers (id int PRIMARY KEY, school_id text, state text, version int);
CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF OLD.state = 'draft' AND NEW.state = 'approved' THEN RAISE EXCEPTION 'a draft is submitted first'; END IF;
  IF NEW.version <> OLD.version + 1 THEN RAISE serialization_failure USING MESSAGE = 'the paper has another version'; END IF;
  RETURN NEW; END $$;
CREATE TRIGGER judge BEFORE UPDATE ON papers FOR EACH ROW EXECUTE FUNCTION judge();
CREATE TABLE slow (id int PRIMARY KEY, school_id text);
CREATE FUNCTION tire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF (SELECT count(*) FROM made) > 10 THEN RAISE query_canceled USING MESSAGE = 'canceling statement due to statement timeout'; END IF;
  RETURN NULL; END $$;
CREATE TRIGGER tire AFTER INSERT ON slow REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION tire();`

let o: Awaited<ReturnType<typeof openOffice>>
let a: ReturnType<typeof o.school>
beforeAll(async () => {
  o = await openOffice(DDL, { papers: {}, slow: {} })
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
