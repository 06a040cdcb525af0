/**
 * Pushes of rows that other rows place: `pupils` by `enrolments`, `marks` by `pupils`, `clubs` by `members` without any
 * foreign key between them. What a school may not do is answered alike whether another school has the row or nobody.
 */
import * as Effect from "effect/Effect"
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest"
import type { Exception } from "../../src/model/change.ts"
import { type Draft, type Office, openOffice } from "./office.ts"

const DDL = `
  CREATE TABLE pupils (id int PRIMARY KEY, name text NOT NULL CHECK (name <> 'bad'));
  CREATE TABLE enrolments (id int PRIMARY KEY, school_id text NOT NULL, pupil int NOT NULL REFERENCES pupils ON DELETE CASCADE, note text CHECK (note <> 'bad'));
  CREATE TABLE marks (id int PRIMARY KEY, pupil bigint NOT NULL, mark text);
  CREATE TABLE letters (id int PRIMARY KEY, pupil int REFERENCES pupils ON DELETE SET NULL ON UPDATE CASCADE, school_id text);
  CREATE TABLE profiles (id int PRIMARY KEY, pupil int NOT NULL UNIQUE REFERENCES pupils, note text);
  CREATE TABLE clubs (id int PRIMARY KEY, code text NOT NULL, year int NOT NULL, name text);
  CREATE TABLE members (id int PRIMARY KEY, school_id text NOT NULL, club text NOT NULL, year text NOT NULL);`

let o: Office
let a: ReturnType<Office["school"]>
let b: ReturnType<Office["school"]>

beforeAll(async () => {
  o = await openOffice(
    DDL,
    {
      pupils: { audience: { through: "public.enrolments", on: { id: "pupil" } } },
      enrolments: {},
      marks: { audience: { through: "public.pupils", on: { pupil: "id" } } },
      letters: {},
      profiles: { audience: { through: "public.pupils", on: { pupil: "id" } } },
      clubs: { audience: { through: "public.members", on: { code: "club", year: "year" } } },
      members: {},
    },
    // The school never had what it cannot see.
    { had: () => Effect.succeed(new Set()) },
  )
})
afterAll(() => o?.close())

// 1 is a's, 2 is b's, 3 is both's, 4 is nobody's; 9 does not exist.
beforeEach(async () => {
  await o.sql(`TRUNCATE pupils, enrolments, marks, letters, profiles, clubs, members, schoolbus.quarantine;
    INSERT INTO pupils VALUES (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four');
    INSERT INTO enrolments VALUES (1, 'a', 1), (2, 'b', 2), (3, 'a', 3), (4, 'b', 3);
    INSERT INTO marks SELECT id, id, 'mark' FROM pupils;
    INSERT INTO letters VALUES (1, 1, 'a'), (2, 2, 'b');
    INSERT INTO clubs VALUES (1, 'chess', 1, 'a''s'), (2, 'choir', 1, 'b''s'), (3, 'chess', 2, 'b''s');
    INSERT INTO members VALUES (1, 'a', 'chess', '1'), (2, 'b', 'choir', '1'), (3, 'b', 'chess', '2')`)
  a = o.school("a")
  b = o.school("b")
})

const pupil = (id: number, name = "new"): Draft => ({ table: "pupils", op: "insert", key: [id], mine: { id, name } })
const enrol = (id: number, pupilId: number, school = "a", note: string | null = null): Draft => ({
  table: "enrolments",
  op: "insert",
  key: [id],
  mine: { id, school_id: school, pupil: pupilId, note },
})
const rename = (id: number, from: string, to = "renamed"): Draft => ({
  table: "pupils",
  op: "update",
  key: [id],
  base: { id, name: from },
  mine: { name: to },
})
const remove = (table: string, id: number, base: object = {}): Draft => ({ table, op: "delete", key: [id], base: { id, ...base } })
const mark = (id: number, pupilId: number): Draft => ({
  table: "marks",
  op: "insert",
  key: [id],
  mine: { id, pupil: String(pupilId), mark: "new" },
})
const ids = async (table: string) => (await o.sql(`SELECT id FROM ${table} ORDER BY id`)).map((row) => row["id"])

/** What the school reads of the answer, in bytes; ids are its own. */
const told = (exceptions: ReadonlyArray<Exception>) => JSON.stringify(exceptions.map(({ id: _, record: __, ...rest }) => rest))
const quarantined = async () => o.sql("SELECT reason, detail FROM schoolbus.quarantine ORDER BY at DESC, id LIMIT 1")

describe("a row and the link that places it", () => {
  test.each([
    ["the row first", () => [pupil(10), enrol(10, 10), mark(10, 10)]],
    ["the link first", () => [enrol(10, 10), mark(10, 10), pupil(10)]],
  ])("are written in one batch, %s", async (_, drafts) => {
    expect((await a.push(drafts())).exceptions).toEqual([])
    expect(await ids("pupils")).toContain(10)
    expect(await ids("enrolments")).toContain(10)
    expect(await ids("marks")).toContain(10)
  })

  test("come before the one row that refers to the row, and may be without it", async () => {
    const profile = (id: number, pupilId: number): Draft => ({ table: "profiles", op: "insert", key: [id], mine: { id, pupil: pupilId, note: null } })
    expect((await a.push([pupil(10), enrol(10, 10), pupil(11), enrol(11, 11), profile(11, 11)])).exceptions).toEqual([])
    const push = await a.push([profile(10, 10), profile(12, 2), profile(13, 9)])
    expect([0, 1, 2].map(push.reason)).toEqual([undefined, "foreign_key", "foreign_key"])
    expect(await ids("profiles")).toEqual([10, 11])
  })

  test("a row that no link places is quarantined; the rest goes on", async () => {
    const push = await a.push([pupil(10), pupil(11), enrol(11, 11), mark(12, 10)])
    expect([push.reason(0), push.verdict(1), push.verdict(2)]).toEqual(["no_audience", "applied", "applied"])
    expect(push.reason(3)).toBe("no_audience")
    expect(await ids("pupils")).toEqual([1, 2, 3, 4, 11])
    expect(await ids("marks")).toEqual([1, 2, 3, 4])
  })

  test("when the link is refused the row stays out, and its own dependants", async () => {
    const push = await a.push([pupil(10), enrol(10, 10, "a", "bad"), mark(10, 10), pupil(11), enrol(11, 11), mark(11, 11)])
    expect([0, 1, 2, 3, 4, 5].map(push.reason)).toEqual(["no_audience", "check", "no_audience", undefined, undefined, undefined])
    expect(await ids("pupils")).toEqual([1, 2, 3, 4, 11])
  })

  test("when the row is refused its link stays out", async () => {
    const push = await a.push([pupil(10, "bad"), enrol(10, 10), enrol(11, 1)])
    expect([0, 1, 2].map(push.reason)).toEqual(["check", "dependant", undefined])
  })

  test("a row and a link that came in two batches find each other", async () => {
    expect((await a.push([pupil(10)])).reason(0)).toBe("no_audience")
    const push = await a.push([enrol(10, 10)])
    expect(push.reason(0)).toBe("foreign_key")
    expect(await ids("pupils")).toContain(10)
    expect(await o.sql(`SELECT count(*)::int AS n FROM schoolbus.quarantine WHERE status = 'open' AND incarnation = '${a.incarnation}'`)).toEqual([
      { n: 0 },
    ])
  })
})

describe("a guess", () => {
  const guesses: ReadonlyArray<readonly [string, (id: number) => ReadonlyArray<Draft>]> = [
    ["a link to a pupil", (id) => [enrol(50, id)]],
    [
      "a link moved to a pupil",
      (id) => [{ table: "enrolments", op: "update", key: [1], base: { id: 1, school_id: "a", pupil: 1, note: null }, mine: { pupil: id } }],
    ],
    ["a mark of a pupil", (id) => [mark(50, id)]],
    ["an edit", (id) => [rename(id, "guess")]],
    ["a delete", (id) => [remove("pupils", id, { name: "guess" })]],
    ["a delete of a mark", (id) => [remove("marks", id, { pupil: "1" })]],
    ["a letter to a pupil", (id) => [{ table: "letters", op: "insert", key: [50], mine: { id: 50, pupil: id, school_id: "a" } }]],
    ["another key", (id) => [{ table: "pupils", op: "update", key: [id], newKey: [60], base: { id, name: "guess" }, mine: { id: 60 } }]],
    [
      "a mark moved to a pupil",
      (id) => [{ table: "marks", op: "update", key: [1], base: { id: 1, pupil: "1", mark: "mark" }, mine: { pupil: String(id) } }],
    ],
  ]
  test.each(guesses)("%s is refused alike for another school's row, nobody's row and none", async (_, drafts) => {
    const answers = []
    for (const id of [2, 4, 9]) {
      const push = await o.school("a").push(drafts(id))
      answers.push([told(push.exceptions), await quarantined()])
    }
    expect(JSON.parse(String(answers[0]?.[0]))[0]).toMatchObject({ verdict: "quarantined" })
    expect(answers[1]).toEqual(answers[0])
    expect(answers[2]).toEqual(answers[0])
    expect([await ids("pupils"), await ids("enrolments"), await ids("marks")]).toEqual([
      [1, 2, 3, 4],
      [1, 2, 3, 4],
      [1, 2, 3, 4],
    ])
  })

  test("a link without a foreign key is refused alike, in every column of its rule", async () => {
    const join = (club: string, year: string): Draft => ({ table: "members", op: "insert", key: [50], mine: { id: 50, school_id: "a", club, year } })
    const answers = []
    for (const [club, year] of [
      ["choir", "1"],
      ["chess", "2"],
      ["none", "1"],
      ["chess", "3"],
    ] as const)
      answers.push([told((await o.school("a").push([join(club, year)])).exceptions), await quarantined()])
    for (const answer of answers) expect(answer).toEqual(answers[0])
    expect(JSON.parse(String(answers[0]?.[0]))[0]).toMatchObject({ reason: "foreign_key" })
    const push = await a.push([
      join("chess", "1"),
      { table: "clubs", op: "insert", key: [50], mine: { id: 50, code: "new", year: 1, name: "n" } },
      { ...join("new", "1"), key: [51], mine: { id: 51, school_id: "a", club: "new", year: "1" } },
    ])
    expect(push.exceptions).toEqual([])
  })

  test("an insert of a key that exists elsewhere never becomes an edit of that row, nor its link's way in", async () => {
    const push = await a.push([pupil(2, "mine now"), enrol(50, 2)])
    expect([push.reason(0), push.verdict(1)]).toEqual(["unique", "quarantined"])
    expect(await o.sql("SELECT name FROM pupils WHERE id = 2")).toEqual([{ name: "two" }])
    expect(await ids("enrolments")).toEqual([1, 2, 3, 4])
  })
})

describe("a pupil of two schools", () => {
  test("is edited by both, deleted by neither", async () => {
    expect((await a.push([rename(3, "three", "by a")])).exceptions).toEqual([])
    const push = await b.push([remove("pupils", 3, { name: "by a" })])
    expect(push.reason(0)).toBe("shared")
    expect(await ids("pupils")).toContain(3)
    expect(
      (await a.push([{ table: "pupils", op: "update", key: [3], newKey: [30], base: { id: 3, name: "by a" }, mine: { id: 30 } }])).reason(0),
    ).toBe("shared")
    expect((await a.push([remove("marks", 3, { pupil: "3", mark: "mark" })])).reason(0)).toBe("shared")
  })

  test("is left by deleting the own link, also after an edit in the same batch", async () => {
    const push = await a.push([rename(3, "three", "farewell"), remove("enrolments", 3, { school_id: "a", pupil: 3, note: null })])
    expect(push.exceptions).toEqual([])
    expect(await o.sql("SELECT name FROM pupils WHERE id = 3")).toEqual([{ name: "farewell" }])
    expect(await ids("enrolments")).toEqual([1, 2, 4])
    // Now it is the other's alone.
    expect(
      (await b.push([remove("enrolments", 4, { school_id: "b", pupil: 3, note: null }), remove("pupils", 3, { name: "farewell" })])).exceptions,
    ).toEqual([])
    expect(await ids("pupils")).toEqual([1, 2, 4])
  })

  test("a pupil of one school goes with all that hangs on it", async () => {
    expect((await a.push([remove("enrolments", 1, { school_id: "a", pupil: 1 }), remove("pupils", 1, { name: "one" })])).exceptions).toEqual([])
    expect([await ids("pupils"), await ids("enrolments")]).toEqual([
      [2, 3, 4],
      [2, 3, 4],
    ])
    expect(await o.sql("SELECT pupil FROM letters WHERE id = 1")).toEqual([{ pupil: null }])
  })

  test("a link that came in the same batch as its pupil's delete goes with it, and the school hears so", async () => {
    const push = await a.push([enrol(50, 1), remove("pupils", 1, { name: "one" })])
    expect([push.verdict(0), push.verdict(1)]).toEqual(["superseded", "applied"])
    expect(await ids("enrolments")).toEqual([2, 3, 4])
  })

  test("a delete whose cascade reaches another school's rows is quarantined, though the pupil is the school's alone", async () => {
    await o.sql("INSERT INTO letters VALUES (3, 1, 'b')")
    expect((await a.push([remove("pupils", 1, { name: "one" })])).reason(0)).toBe("shared")
    expect(await ids("pupils")).toContain(1)
  })
})

test("head office's change of a link is waited for, then the push is judged by it", async () => {
  const { default: postgres } = await import("postgres")
  const office = postgres(o.url, { max: 1, onnotice: () => undefined })
  let pushed: Promise<Awaited<ReturnType<typeof a.push>>> | undefined
  await office.begin(async (tx) => {
    await tx`UPDATE enrolments SET school_id = 'b' WHERE id = 1`
    pushed = a.push([rename(1, "one", "too late")])
    for (let waiting = 0; waiting === 0; )
      waiting = Number(
        (await o.sql("SELECT count(*)::int AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"))[0]?.["n"],
      )
  })
  expect((await pushed)?.verdict(0)).toBe("quarantined")
  expect(await o.sql("SELECT name FROM pupils WHERE id = 1")).toEqual([{ name: "one" }])
  await office.end()
})

test("five thousand pupils come with their links in one batch", async () => {
  const drafts = Array.from({ length: 5_000 }, (_, i) => [pupil(1000 + i), enrol(1000 + i, 1000 + i)]).flat()
  expect((await a.push(drafts)).exceptions).toEqual([])
  expect(await ids("pupils")).toHaveLength(5_004)
})
