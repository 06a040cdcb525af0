import { randomUUID } from "node:crypto"
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest"
import type { Choice } from "../../src/model/choice.ts"
import { resolveConflict, undoConflict } from "../../src/up/decide.ts"
import { discardQuarantined, editQuarantined, retryQuarantined } from "../../src/up/quarantine.ts"
import { openOffice } from "./office.ts"

const DDL = `
CREATE TABLE ask (id int PRIMARY KEY, school_id text, a text, n numeric(6,2) CHECK (n < 1000));
CREATE TABLE rule (id int PRIMARY KEY, school_id text, a text, n numeric(6,2));
CREATE TABLE classes (id int PRIMARY KEY, school_id text, name text CHECK (name <> ''));
CREATE TABLE pupils (id int PRIMARY KEY, school_id text, class int REFERENCES classes (id), name text);
CREATE TABLE marks (id int PRIMARY KEY, school_id text, best int, first date, total numeric, day date);
CREATE TABLE tidy (id int PRIMARY KEY, school_id text, a text, n numeric(6,2));
CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NEW.a = 'never' THEN RETURN NULL; END IF;
  NEW.a := upper(trim(NEW.a)); RETURN NEW; END $$;
CREATE TRIGGER tidy BEFORE INSERT OR UPDATE ON tidy FOR EACH ROW EXECUTE FUNCTION tidy();`

let o: Awaited<ReturnType<typeof openOffice>>
let a: ReturnType<typeof o.school>
let k = 0
beforeAll(async () => {
  o = await openOffice(DDL, {
    ask: { strategy: "manual" },
    rule: { strategy: "school_wins" },
    classes: {},
    pupils: {},
    tidy: { strategy: "manual" },
    marks: { strategy: "manual", columns: { best: "max", first: "min", total: "sum" } },
  })
})
beforeEach(() => {
  a = o.school("a")
  k++
})
afterAll(() => o?.close())

const decide = (id: string, choice: Choice) => o.withPg((pg) => resolveConflict(pg, o, id, choice, "amina"))
const undo = (id: string) => o.withPg((pg) => undoConflict(pg, o, id, "amina"))
const record = async (id: string) => (await o.sql(`SELECT * FROM schoolbus.conflicts WHERE id = '${id}'`))[0]
const row = async (table: string) => (await o.sql(`SELECT a, n::text AS n FROM ${table} WHERE id = ${k}`))[0]
const base = () => ({ id: k, school_id: "a", a: "base", n: "1.00" })

/** Both sides changed column a; answers the conflict's id. */
const disagree = async (table: string) => {
  await o.sql(`INSERT INTO ${table} VALUES (${k}, 'a', 'office', 1)`)
  const push = await a.push([{ table, op: "update", key: [k], base: base(), mine: { a: "school" } }])
  return push.record(0)
}

describe("a conflict of a column", () => {
  test("open: the school's value is written, and the record says who decided", async () => {
    const id = await disagree("ask")
    await decide(id, { keep: "school" })
    expect(await row("ask")).toEqual({ a: "school", n: "1.00" })
    expect(await record(id)).toMatchObject({ status: "resolved", winner: "school", kept: '"school"', decided_by: "amina" })
  })
  test("open: head office's value stays, whatever it is by now", async () => {
    const id = await disagree("ask")
    await o.sql(`UPDATE ask SET a = 'later' WHERE id = ${k}`)
    await decide(id, { keep: "vps" })
    expect(await row("ask")).toMatchObject({ a: "later" })
    expect(await record(id)).toMatchObject({ status: "resolved", winner: "vps", kept: '"later"' })
  })
  test("open: a third value, spelled by Postgres; one that does not fit is refused and nothing changes", async () => {
    await o.sql(`INSERT INTO ask VALUES (${k}, 'a', 'base', 5)`)
    const id = (await a.push([{ table: "ask", op: "update", key: [k], base: base(), mine: { n: "7.00" } }])).record(0)
    for (const value of ["1.555", "x", "5000", { n: 1 }])
      await expect(decide(id, { keep: "value", value })).rejects.toMatchObject({ code: "not_possible" })
    expect(await record(id)).toMatchObject({ status: "open" })
    await decide(id, { keep: "value", value: "8.5" })
    expect(await row("ask")).toMatchObject({ n: "8.50" })
    expect(await record(id)).toMatchObject({ kept: '"8.50"' })
  })
  test("decided: it can be turned and turned back, but not over a later write", async () => {
    const id = await disagree("rule")
    expect(await row("rule")).toMatchObject({ a: "school" })
    await expect(decide(id, { keep: "school" })).rejects.toMatchObject({ code: "decided" })
    await decide(id, { keep: "vps" })
    expect(await row("rule")).toMatchObject({ a: "office" })
    await decide(id, { keep: "school" })
    expect(await row("rule")).toMatchObject({ a: "school" })
    await o.sql(`UPDATE rule SET a = 'later' WHERE id = ${k}`)
    await expect(decide(id, { keep: "vps" })).rejects.toMatchObject({ code: "not_possible" })
  })
  test("undo: the record waits again and head office's value is back; the school's next edit starts from that", async () => {
    const id = await disagree("ask")
    await expect(undo(id)).rejects.toMatchObject({ code: "decided" })
    await decide(id, { keep: "school" })
    await undo(id)
    expect(await row("ask")).toMatchObject({ a: "office" })
    expect(await record(id)).toMatchObject({ status: "open", winner: "open", decided_by: "amina" })
    const next = await a.push([{ table: "ask", op: "update", key: [k], base: { ...base(), a: "office" }, mine: { a: "agreed" } }])
    expect(next.exceptions).toEqual([])
    expect(await row("ask")).toMatchObject({ a: "agreed" })
    expect(await record(id)).toMatchObject({ status: "resolved" })
  })
  test("undo of a rule's decision turns it the other way, and again back; not over a later write", async () => {
    const id = await disagree("rule")
    await undo(id)
    expect([await row("rule"), (await record(id))?.["winner"]]).toEqual([{ a: "office", n: "1.00" }, "vps"])
    await undo(id)
    expect([await row("rule"), (await record(id))?.["status"]]).toEqual([{ a: "school", n: "1.00" }, "decided"])
    await o.sql(`UPDATE rule SET a = 'later' WHERE id = ${k}`)
    await expect(undo(id)).rejects.toMatchObject({ code: "not_possible" })
  })
  test("merge: a new three-way against the row of that moment", async () => {
    await o.sql(`INSERT INTO ask VALUES (${k}, 'a', 'base', 5)`)
    const id = (await a.push([{ table: "ask", op: "update", key: [k], base: base(), mine: { n: "7.00" } }])).record(0)
    await o.sql(`UPDATE ask SET n = 20 WHERE id = ${k}`)
    await decide(id, { keep: "merge" })
    expect(await row("ask")).toMatchObject({ n: "26.00" })
    expect(await record(id)).toMatchObject({ winner: "merged", kept: '"26.00"' })
    await undo(id)
    expect(await row("ask")).toMatchObject({ n: "20.00" })
  })
  test("merge: the greater and the smaller value in Postgres' order of the type", async () => {
    await o.sql(`INSERT INTO marks VALUES (${k}, 'a', 10, '10000-01-01')`)
    const mark = { id: k, school_id: "a", best: 5, first: "2027-01-01" }
    const push = await a.push([{ table: "marks", op: "update", key: [k], base: mark, mine: { best: 9, first: "2026-01-01" } }])
    for (const { record: id } of push.exceptions) {
      await decide(id ?? "", { keep: "vps" })
      await decide(id ?? "", { keep: "merge" })
    }
    expect(await o.sql(`SELECT best, first::text AS first FROM marks WHERE id = ${k}`)).toEqual([{ best: 10, first: "2026-01-01" }])
  })
  test("merge: of two days nothing third is made", async () => {
    await o.sql(`INSERT INTO marks VALUES (${k}, 'a', NULL, NULL, NULL, '2026-01-02')`)
    const push = await a.push([{ table: "marks", op: "update", key: [k], base: { id: k, school_id: "a", day: null }, mine: { day: "2026-01-03" } }])
    await expect(decide(push.record(0), { keep: "merge" })).rejects.toMatchObject({ message: expect.stringContaining("cannot be put together") })
  })
  test("what a trigger makes of a decision is what the record says, and is undone", async () => {
    const id = await disagree("tidy")
    await decide(id, { keep: "value", value: " third " })
    expect([await row("tidy"), (await record(id))?.["kept"]]).toEqual([{ a: "THIRD", n: "1.00" }, '"THIRD"'])
    await undo(id)
    expect([await row("tidy"), (await record(id))?.["status"]]).toEqual([{ a: "OFFICE", n: "1.00" }, "open"])
  })
  test("a decision that a trigger leaves out is refused, and the record stays as it is", async () => {
    const id = await disagree("tidy")
    await expect(decide(id, { keep: "value", value: "never" })).rejects.toMatchObject({
      code: "not_possible",
      message: expect.stringContaining("trigger"),
    })
    expect([await row("tidy"), (await record(id))?.["status"]]).toEqual([{ a: "OFFICE", n: "1.00" }, "open"])
  })
  test("of a table that has left the config head office's value is left to be kept, and ends it", async () => {
    const id = await disagree("ask")
    const without = { ...o, tables: new Map([...o.tables].filter(([table]) => table !== "public.ask")) }
    const decideNow = (choice: Choice) => o.withPg((pg) => resolveConflict(pg, without, id, choice, "amina"))
    const refusal = await decideNow({ keep: "school" }).catch((cause: unknown) => cause)
    expect(String(refusal)).toContain("table public.ask is no longer synced; keep head office's value")
    await decideNow({ keep: "vps" })
    expect(await record(id)).toMatchObject({ status: "resolved", winner: "vps", hold: false })
    expect(await row("ask")).toEqual({ a: "office", n: "1.00" })
  })
  test("unknown ids are told", async () => {
    await expect(decide("nonsense", { keep: "vps" })).rejects.toMatchObject({ _tag: "DecideRefused", code: "not_found" })
  })
  test("a later edit of the school goes into the open record; one that agrees closes it", async () => {
    const id = await disagree("ask")
    const again = await a.push([{ table: "ask", op: "update", key: [k], base: { ...base(), a: "school" }, mine: { a: "school 2" } }])
    expect(again.record(0)).toBe(id)
    expect(await record(id)).toMatchObject({ base: '"base"', mine: '"school 2"', status: "open" })
    const agrees = await a.push([{ table: "ask", op: "update", key: [k], base: { ...base(), a: "school 2" }, mine: { a: "office" } }])
    expect(agrees.exceptions).toEqual([])
    expect(await record(id)).toMatchObject({ status: "resolved" })
  })
})

describe("of a row that is another school's by now", () => {
  const kept = async (id: string) => (await record(id))?.["kept"]
  test("the record takes nothing, and no decision writes to it", async () => {
    const id = await disagree("ask")
    await o.sql(`UPDATE ask SET school_id = 'b', a = 'secret' WHERE id = ${k}`)
    await expect(decide(id, { keep: "school" })).rejects.toMatchObject({ message: expect.not.stringContaining("secret") })
    await decide(id, { keep: "vps" })
    expect([await kept(id), await row("ask")]).toEqual(["null", { a: "secret", n: "1.00" }])
  })
  test("nor of a whole row, or when it is undone", async () => {
    await o.sql(`INSERT INTO rule VALUES (${k}, 'a', 'office', 1)`)
    const made = await a.push([{ table: "rule", op: "update", key: [k], base: base(), mine: { a: "school" } }])
    await o.sql(`UPDATE rule SET school_id = 'b', a = 'secret' WHERE id = ${k}`)
    for (const act of [decide(made.record(0), { keep: "vps" }), undo(made.record(0))])
      await expect(act).rejects.toMatchObject({ code: "not_possible", message: expect.not.stringContaining("secret") })
    const gone = (await a.push([{ table: "ask", op: "update", key: [k], base: base(), mine: { a: "school" } }])).record(0)
    await o.sql(`INSERT INTO ask VALUES (${k}, 'b', 'secret', 9)`)
    await expect(decide(gone, { keep: "school" })).rejects.toMatchObject({ message: expect.not.stringContaining("secret") })
    await decide(gone, { keep: "vps" })
    expect([await kept(gone), await row("ask")]).toEqual(["null", { a: "secret", n: "9.00" }])
  })
})

describe("a conflict of a whole row", () => {
  test("deleted at head office: the school's row is made again, and the decision can be turned", async () => {
    const id = (await a.push([{ table: "ask", op: "update", key: [k], base: base(), mine: { a: "school" } }])).record(0)
    await decide(id, { keep: "school" })
    expect(await row("ask")).toEqual({ a: "school", n: "1.00" })
    await decide(id, { keep: "vps" })
    expect(await row("ask")).toBeUndefined()
  })
  test("deleted at the school: the row goes", async () => {
    await o.sql(`INSERT INTO ask VALUES (${k}, 'a', 'office', 1)`)
    const id = (await a.push([{ table: "ask", op: "delete", key: [k], base: base() }])).record(0)
    await decide(id, { keep: "school" })
    expect(await row("ask")).toBeUndefined()
  })
  test("of a row that head office changed meanwhile only what the school changed is written", async () => {
    const id = (await a.push([{ table: "ask", op: "update", key: [k], base: base(), mine: { a: "school" } }])).record(0)
    await o.sql(`INSERT INTO ask VALUES (${k}, 'a', 'made again', 9)`)
    await decide(id, { keep: "school" })
    expect(await row("ask")).toEqual({ a: "school", n: "9.00" })
    await undo(id)
    expect(await row("ask")).toEqual({ a: "made again", n: "9.00" })
  })
  test("a row that both sides made is put together column by column", async () => {
    await o.sql(`INSERT INTO ask VALUES (${k}, 'a', 'office', 1)`)
    const id = (await a.push([{ table: "ask", op: "insert", key: [k], mine: { id: k, school_id: "a", a: "school", n: "2.00" } }])).record(0)
    await decide(id, { keep: "merge" })
    expect(await record(id)).toMatchObject({ status: "resolved", winner: "merged" })
    await undo(id)
    expect(await row("ask")).toEqual({ a: "office", n: "1.00" })
  })
  test("merge: a new row's greater and smaller values, in Postgres' order of the type", async () => {
    await o.sql(`INSERT INTO marks VALUES (${k}, 'a', 9, '10000-01-01', 1)`)
    const mine = { id: k, school_id: "a", best: 10, first: "2026-01-01", total: "2" }
    const id = (await a.push([{ table: "marks", op: "insert", key: [k], mine }])).record(0)
    await decide(id, { keep: "merge" })
    expect(await o.sql(`SELECT best, first::text AS first, total::text AS total FROM marks WHERE id = ${k}`)).toEqual([
      { best: 10, first: "2026-01-01", total: "3" },
    ])
  })
  test("a later edit of the row belongs to the same record", async () => {
    const id = (await a.push([{ table: "ask", op: "update", key: [k], base: base(), mine: { a: "school" } }])).record(0)
    const push = await a.push([{ table: "ask", op: "update", key: [k], base: { ...base(), a: "school" }, mine: { n: "2.00" } }])
    expect(push.record(0)).toBe(id)
    await decide(id, { keep: "school" })
    expect(await row("ask")).toEqual({ a: "school", n: "2.00" })
  })
})

describe("quarantine", () => {
  const retry = (id: string) => o.withPg((pg) => retryQuarantined(pg, { tables: o.tables, had: o.had }, id, "amina"))
  const kept = async (id: string) => (await o.sql(`SELECT status, reason, decided_by FROM schoolbus.quarantine WHERE id = '${id}'`))[0]
  const pupil = (more: object) => ({ table: "pupils", op: "insert" as const, key: [k], mine: { id: k, school_id: "a", name: "n", ...more } })

  test("a change is kept, refused again while its cause stands, and written once it is gone", async () => {
    const id = (await a.push([pupil({ class: 9000 + k })])).record(0)
    const [listed] = await o.sql(`SELECT school, table_name, row_key, reason, status FROM schoolbus.quarantine WHERE id = '${id}'`)
    expect(listed).toEqual({ school: "a", table_name: "public.pupils", row_key: `[${k}]`, reason: "foreign_key", status: "open" })
    await expect(retry(id)).rejects.toMatchObject({ _tag: "QuarantineRefused", code: "not_possible" })
    await o.sql(`INSERT INTO classes VALUES (${9000 + k}, 'a', 'c')`)
    await retry(id)
    expect(await o.sql(`SELECT class FROM pupils WHERE id = ${k}`)).toEqual([{ class: 9000 + k }])
    expect(await kept(id)).toMatchObject({ status: "retried", decided_by: "amina" })
    await expect(retry(id)).rejects.toMatchObject({ code: "decided" })
  })
  test("a discarded change is closed and no longer joined", async () => {
    const id = (await a.push([pupil({ class: 9500 + k })])).record(0)
    await o.withPg((pg) => discardQuarantined(pg, o, id, "amina"))
    expect(await kept(id)).toMatchObject({ status: "discarded" })
    const push = await a.push([{ table: "pupils", op: "delete", key: [k], base: { id: k, school_id: "a", name: "n", class: 9500 + k } }])
    expect(push.exceptions).toEqual([])
  })
  test("dependants follow when the school mends the parent", async () => {
    const parent = 9700 + k
    const push = await a.push([
      { table: "classes", op: "insert", key: [parent], mine: { id: parent, school_id: "a", name: "" } },
      pupil({ class: parent }),
    ])
    expect([push.reason(0), push.reason(1)]).toEqual(["check", "dependant"])
    const mended = await a.push([
      { table: "classes", op: "update", key: [parent], base: { id: parent, school_id: "a", name: "" }, mine: { name: "7b" } },
    ])
    expect(mended.exceptions).toEqual([])
    expect(await o.sql(`SELECT class FROM pupils WHERE id = ${k}`)).toEqual([{ class: parent }])
    expect(await kept(push.record(1))).toMatchObject({ status: "retried" })
  })
  test("an insert that was kept and is deleted at the school is gone without a trace in Postgres", async () => {
    const push = await a.push([pupil({ class: 9900 + k })])
    const gone = await a.push([{ table: "pupils", op: "delete", key: [k], base: { id: k, school_id: "a", name: "n", class: 9900 + k } }])
    expect(gone.verdict(0)).toBe("superseded")
    expect(await kept(push.record(0))).toMatchObject({ status: "discarded" })
  })
  test("other values are put into a change, and nothing is changed when they do not do", async () => {
    const id = (await a.push([pupil({ class: 9960 + k })])).record(0)
    const edit = (values: object) => o.withPg((pg) => editQuarantined(pg, o, id, JSON.stringify(values), "amina"))
    for (const values of [{}, { id: 5 }, { class: 9961 + k }, { school_id: "b" }])
      await expect(edit(values)).rejects.toMatchObject({ code: "not_possible" })
    expect((await o.sql(`SELECT change FROM schoolbus.quarantine WHERE id = '${id}'`))[0]?.["change"]).toContain(String(9960 + k))
    await edit({ class: null, name: "mended" })
    expect(await o.sql(`SELECT class, name FROM pupils WHERE id = ${k}`)).toEqual([{ class: null, name: "mended" }])
  })
  test("a kept change of another file is left alone", async () => {
    const push = await a.push([pupil({ class: 9950 + k })])
    const other = o.school("a", randomUUID())
    await other.push([pupil({ class: null })])
    expect(await kept(push.record(0))).toMatchObject({ status: "open" })
  })
})
