/** Both sides created `username = amina`: what is recorded, what each choice does, and what is taken back. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest"
import type { Choice } from "../../src/model/choice.ts"
import { resolveConflict, undoConflict } from "../../src/up/decide.ts"
import { keyRangeOf } from "../../src/model/key-range.ts"
import { editQuarantined, retryQuarantined } from "../../src/up/quarantine.ts"
import { candidatesFor } from "../../src/up/unique.ts"
import { type Draft, openOffice } from "./office.ts"

const USERS = `(id uuid PRIMARY KEY, school_id text NOT NULL, username varchar(12) NOT NULL UNIQUE, email text, roll int, room text, name text, points int DEFAULT 0, active boolean DEFAULT true)`
const DDL = `
CREATE TABLE users ${USERS};
CREATE UNIQUE INDEX users_email ON users (lower(email)) WHERE active;
CREATE UNIQUE INDEX users_roll ON users (school_id, roll);
CREATE TABLE loans (id uuid PRIMARY KEY, school_id text, borrower uuid NOT NULL REFERENCES users (id), title text);
CREATE TABLE cards (id uuid PRIMARY KEY, school_id text, holder varchar(12) NOT NULL REFERENCES users (username), title text);
CREATE TABLE follows (id uuid PRIMARY KEY, school_id text, holder varchar(12) REFERENCES users (username) ON UPDATE CASCADE, owner uuid REFERENCES users (id) ON UPDATE CASCADE);
CREATE TABLE auto_rename ${USERS};
CREATE TABLE auto_remote ${USERS};
CREATE TABLE auto_local ${USERS};
CREATE TABLE auto_merge ${USERS};
CREATE TABLE raced ${USERS};
CREATE SEQUENCE races;
CREATE FUNCTION race() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NEW.username LIKE '%2' AND nextval('races') <= 2 THEN RAISE unique_violation USING MESSAGE = 'another school was quicker'; END IF; RETURN NEW; END $$;
CREATE TRIGGER race BEFORE INSERT ON raced FOR EACH ROW EXECUTE FUNCTION race();
CREATE TABLE counted (id bigint PRIMARY KEY, school_id text NOT NULL, code text NOT NULL UNIQUE, points int DEFAULT 0);
CREATE TABLE people (id uuid PRIMARY KEY, login text NOT NULL UNIQUE);
CREATE TABLE ties (id uuid PRIMARY KEY, school_id text NOT NULL, person uuid NOT NULL);
CREATE TABLE grades (id uuid PRIMARY KEY, person uuid NOT NULL, item bigint NOT NULL, UNIQUE (person, item));`

let o: Awaited<ReturnType<typeof openOffice>>
let a: ReturnType<typeof o.school>
let name = ""
let n = 0
beforeAll(async () => {
  o = await openOffice(DDL, {
    users: { columns: { points: "sum" } },
    loans: {},
    cards: {},
    follows: {},
    auto_rename: { uniqueRule: "rename_local" },
    auto_remote: { uniqueRule: "keep_remote" },
    auto_local: { uniqueRule: "keep_local" },
    auto_merge: { uniqueRule: "merge", columns: { points: "sum" } },
    raced: { uniqueRule: "rename_local" },
    counted: { uniqueRule: "merge", columns: { points: "sum" } },
    people: { audience: { through: "public.ties", on: { id: "person" } } },
    ties: {},
    grades: { audience: { through: "public.people", on: { person: "id" } } },
  })
})
beforeEach(() => {
  a = o.school("a")
  name = `amina${String.fromCharCode(97 + (n++ % 26))}`
})
afterAll(() => o?.close())

const id = () => crypto.randomUUID()
const user = (key: string, more: object = {}) => ({
  table: "users",
  op: "insert" as const,
  key: [key],
  mine: { id: key, school_id: "a", username: name, email: null, roll: null, room: null, name: "school", points: 1, active: true, ...more } as never,
})
const there = async (table: string, school: string, more = ""): Promise<string> => {
  const key = id()
  await o.sql(`INSERT INTO ${table} (id, school_id, username, name) VALUES ('${key}', '${school}', '${name}', 'office')`)
  if (more !== "") await o.sql(`UPDATE ${table} SET ${more} WHERE id = '${key}'`)
  return key
}
const conflicts = (quarantine: string) =>
  o.sql(
    `SELECT id::text AS id, column_name AS column, status, winner, theirs, suggestion, reason, strategy, decided_by FROM schoolbus.conflicts WHERE quarantine = '${quarantine}' ORDER BY unique_columns`,
  )
const decide = (conflict: unknown, choice: Choice) => o.withPg((pg) => resolveConflict(pg, o, String(conflict), choice, "amina"))
const undo = (conflict: unknown) => o.withPg((pg) => undoConflict(pg, o, String(conflict), "amina"))
const read = async (key: string, columns = "username, name", table = "users") =>
  (await o.sql(`SELECT ${columns} FROM ${table} WHERE id = '${key}'`))[0]
const status = async (quarantine: string) => (await o.sql(`SELECT status FROM schoolbus.quarantine WHERE id = '${quarantine}'`))[0]?.["status"]

/** The school's insert meets head office's row. */
const clash = async (other: string, more: object = {}) => {
  const key = id()
  const push = await a.push([user(key, more)])
  const quarantine = push.record(0)
  const [record] = await conflicts(quarantine)
  return { key, push, quarantine, record, other }
}

describe("a record", () => {
  test("shows the other row, a free value, and that nothing is chosen yet; the school keeps its own", async () => {
    const other = await there("users", "a")
    await there("users", "a", `username = '${name}2'`).catch(() => undefined)
    const { push, record, quarantine } = await clash(other)
    expect(push.of(0)).toMatchObject([{ verdict: "quarantined", reason: "unique", hold: true, record: quarantine }])
    expect(record).toMatchObject({ column: "username", status: "open", winner: "open", strategy: "manual", suggestion: JSON.stringify(`${name}2`) })
    expect(JSON.parse(String(record?.["theirs"]))).toMatchObject({ id: other, username: name, name: "office" })
  })
  test("of another school's row nothing leaves the hub: it is taken, and can be renamed or discarded", async () => {
    const other = await there("users", "b")
    const { record, key } = await clash(other)
    expect(record).toMatchObject({ theirs: null, reason: `username is taken: ${name}`, status: "open" })
    expect(JSON.stringify(await o.sql(`SELECT * FROM schoolbus.conflicts WHERE school = 'a' AND quarantine IS NOT NULL`))).not.toContain(other)
    await expect(decide(record?.["id"], { keep: "merge" })).rejects.toMatchObject({ code: "not_possible" })
    await decide(record?.["id"], { keep: "rename_local" })
    expect(await read(key)).toEqual({ username: `${name}2`, name: "school" })
    expect(await read(other)).toEqual({ username: name, name: "office" })
  })
  test("suggestions fit the column and are never the next number", () => {
    expect(candidatesFor("amina", "text", 2)).toEqual(["amina2", "amina3"])
    expect(candidatesFor("amina@x.org", "text", 1)).toEqual(["amina2@x.org"])
    expect(candidatesFor("A-7", "text", 1)).toEqual(["A-7-2"])
    expect(candidatesFor("0123456789", "character varying(10)", 1)).toEqual(["01234567-2"])
    expect(candidatesFor(7, "integer", 2)).toEqual([8, 9])
  })
})

describe("choices", () => {
  test("rename_local: the suggestion, or a value that a person gives; undone when the wanted one is free again", async () => {
    const other = await there("users", "a")
    const { key, record, quarantine } = await clash(other)
    await expect(decide(record?.["id"], { keep: "rename_local", value: name })).rejects.toMatchObject({ code: "not_possible" })
    await decide(record?.["id"], { keep: "rename_local", value: "zainab" })
    expect(await read(key)).toEqual({ username: "zainab", name: "school" })
    expect(await status(quarantine)).toBe("retried")
    expect((await conflicts(quarantine))[0]).toMatchObject({ status: "resolved", winner: "school", strategy: "rename_local", decided_by: "amina" })
    await expect(undo(record?.["id"])).rejects.toMatchObject({ code: "not_possible" })
    await o.sql(`UPDATE users SET username = 'gone ${n}' WHERE id = '${other}'`)
    await undo(record?.["id"])
    expect(await read(key)).toEqual({ username: name, name: "school" })
  })
  test("rename_local: what refers to the school's row follows it", async () => {
    await there("users", "a")
    const [key, loan] = [id(), id()]
    const push = await a.push([
      user(key),
      { table: "loans", op: "insert", key: [loan], mine: { id: loan, school_id: "a", borrower: key, title: "t" } },
    ])
    expect([push.reason(0), push.reason(1)]).toEqual(["unique", "dependant"])
    await decide((await conflicts(push.record(0)))[0]?.["id"], { keep: "rename_local" })
    expect(await o.sql(`SELECT borrower::text FROM loans WHERE id = '${loan}'`)).toEqual([{ borrower: key }])
    expect(await status(push.record(1))).toBe("retried")
  })
  test("keep_local: the other row takes a free value and stays; undone, they trade", async () => {
    const other = await there("users", "a")
    const { key, record } = await clash(other)
    await decide(record?.["id"], { keep: "keep_local" })
    expect([await read(key), await read(other)]).toEqual([
      { username: name, name: "school" },
      { username: `${name}2`, name: "office" },
    ])
    await undo(record?.["id"])
    expect([await read(key), await read(other)]).toEqual([
      { username: `${name}2`, name: "school" },
      { username: name, name: "office" },
    ])
  })
  test("keep_remote: a new row that cannot be without the value is left out, kept, and can be taken up again", async () => {
    const other = await there("users", "a")
    const { key, record, quarantine } = await clash(other)
    await decide(record?.["id"], { keep: "keep_remote" })
    expect([await read(key), await read(other), await status(quarantine)]).toEqual([undefined, { username: name, name: "office" }, "discarded"])
    await undo(record?.["id"])
    expect([(await conflicts(quarantine))[0]?.["status"], await status(quarantine)]).toEqual(["open", "open"])
    await decide(record?.["id"], { keep: "rename_local" })
    expect(await read(key)).toEqual({ username: `${name}2`, name: "school" })
  })
  test("keep_remote: an edit loses the column and keeps the rest", async () => {
    const other = await there("users", "a")
    const key = id()
    await o.sql(`INSERT INTO users (id, school_id, username, name) VALUES ('${key}', 'a', 'own ${n}', 'own')`)
    const push = await a.push([
      { table: "users", op: "update", key: [key], base: { username: `own ${n}`, name: "own" }, mine: { username: name, name: "edited" } },
    ])
    const [record] = await conflicts(push.record(0))
    await expect(decide(record?.["id"], { keep: "merge" })).rejects.toMatchObject({ code: "not_possible" })
    await decide(record?.["id"], { keep: "keep_remote" })
    expect([await read(key), await read(other)]).toEqual([
      { username: `own ${n}`, name: "edited" },
      { username: name, name: "office" },
    ])
  })
  test("merge: both are one, and what refers to the school's row refers to the other, now and later", async () => {
    const other = await there("users", "a", "points = 5")
    const key = id()
    const loan = (borrower: string) => {
      const loanId = id()
      return {
        id: loanId,
        change: { table: "loans", op: "insert" as const, key: [loanId], mine: { id: loanId, school_id: "a", borrower, title: "t" } },
      }
    }
    const [first, late] = [loan(key), loan(key)]
    const push = await a.push([user(key, { room: "7b", points: 3 }), first.change])
    expect(push.reason(1)).toBe("dependant")
    const [record] = await conflicts(push.record(0))
    await decide(record?.["id"], { keep: "merge" })
    expect([await read(key), await read(other, "username, name, room, points")]).toEqual([
      undefined,
      { username: name, name: "school", room: "7b", points: 8 },
    ])
    expect(await o.sql(`SELECT borrower::text FROM loans WHERE id = '${first.id}'`)).toEqual([{ borrower: other }])
    await a.push([late.change])
    expect(await o.sql(`SELECT borrower::text FROM loans WHERE id = '${late.id}'`)).toEqual([{ borrower: other }])
    await undo(record?.["id"])
    expect(await read(other, "name, room, points")).toEqual({ name: "office", room: null, points: 5 })
    expect(await status(push.record(0))).toBe("open")
  })
  test("of a table that has left the config it can be discarded", async () => {
    await there("users", "a")
    const push = await a.push([user(id())])
    const [record] = await conflicts(push.record(0))
    const without = { ...o, tables: new Map([...o.tables].filter(([table]) => table !== "public.users")) }
    const decideNow = (choice: Choice) => o.withPg((pg) => resolveConflict(pg, without, String(record?.["id"]), choice, "amina"))
    const refusal = await decideNow({ keep: "rename_local" }).catch((cause: unknown) => cause)
    expect(String(refusal)).toContain("table public.users is no longer synced: discard the change")
    await decideNow({ keep: "discard" })
    expect([await status(push.record(0)), (await conflicts(push.record(0)))[0]?.["status"]]).toEqual(["discarded", "resolved"])
  })
  test("discard, and a later edit of the school, close the record too", async () => {
    const other = await there("users", "a")
    const one = await clash(other)
    await decide(one.record?.["id"], { keep: "discard" })
    expect((await conflicts(one.quarantine))[0]).toMatchObject({ status: "resolved", winner: "vps" })
    const two = await clash(other)
    const mended = await a.push([{ table: "users", op: "update", key: [two.key], base: { username: name }, mine: { username: `x${name}` } }])
    expect(mended.exceptions).toEqual([])
    expect(await read(two.key)).toEqual({ username: `x${name}`, name: "school" })
    expect((await conflicts(two.quarantine))[0]).toMatchObject({ status: "resolved", winner: "school", decided_by: "a later edit of the school" })
  })
  test("when the value has become free, the row is written as it is", async () => {
    const other = await there("users", "a")
    const { key, record } = await clash(other)
    await o.sql(`DELETE FROM users WHERE id = '${other}'`)
    await decide(record?.["id"], { keep: "keep_local" })
    expect(await read(key)).toEqual({ username: name, name: "school" })
    name = `y${name}`
    const again = await clash(await there("users", "a"))
    await o.sql(`UPDATE users SET username = 'free ${n}' WHERE id = '${again.other}'`)
    await o.withPg((pg) => retryQuarantined(pg, o, again.quarantine, "amina"))
    expect((await conflicts(again.quarantine))[0]).toMatchObject({ status: "resolved" })
  })
})

test("several unique keys, one of an expression and part of the table: each is recorded, and the row is written when all are decided", async () => {
  const other = await there("users", "a", `email = 'Amina@${name}.org', roll = 7000 + ${n}`)
  const key = id()
  const push = await a.push([user(key, { email: `amina@${name}.org`, roll: 7000 + n })])
  const records = await conflicts(push.record(0))
  expect(records.map((one) => [one["column"], one["suggestion"]])).toEqual([
    ["email", JSON.stringify(`amina2@${name}.org`)],
    ["roll", String(7001 + n)],
    ["username", JSON.stringify(`${name}2`)],
  ])
  await decide(records[0]?.["id"], { keep: "rename_local" })
  await decide(records[1]?.["id"], { keep: "keep_local" })
  expect(await read(key)).toBeUndefined()
  await decide(records[2]?.["id"], { keep: "rename_local", value: `z${name}` })
  expect(await read(key, "username, email, roll")).toEqual({ username: `z${name}`, email: `amina2@${name}.org`, roll: 7000 + n })
  expect(await read(other, "username, email, roll")).toEqual({ username: name, email: `Amina@${name}.org`, roll: 7001 + n })
  expect((await conflicts(push.record(0))).every((one) => one["status"] === "resolved")).toBe(true)
})

describe("rows that refer to the value itself, not to a key,", () => {
  const card = (holder: string) => {
    const key = id()
    return { key, change: { table: "cards", op: "insert" as const, key: [key], mine: { id: key, school_id: "a", holder, title: "t" } } }
  }
  const holderOf = async (key: string, table = "cards") => (await o.sql(`SELECT holder FROM ${table} WHERE id = '${key}'`))[0]?.["holder"]
  const officeCard = async (holder: string, table = "cards") => {
    const key = id()
    await o.sql(`INSERT INTO ${table} (id, school_id, holder) VALUES ('${key}', 'b', '${holder}')`)
    return key
  }

  test("wait with their own row, never join the other one, and follow when it is renamed; undone, they follow back", async () => {
    const other = await there("users", "a")
    const [first, second] = [card(name), card(name)]
    const key = id()
    // What Postgres cannot hold stands in nobody's way.
    await a.push([user(id(), { username: `\0${name}` }), user(id(), { username: `\ud800` })])
    const push = await a.push([user(key), first.change])
    expect([push.reason(0), push.reason(1)]).toEqual(["unique", "dependant"])
    // In a later batch, too.
    expect((await a.push([second.change])).reason(0)).toBe("dependant")
    const [record] = await conflicts(push.record(0))
    await decide(record?.["id"], { keep: "rename_local" })
    expect([await holderOf(first.key), await holderOf(second.key)]).toEqual([`${name}2`, `${name}2`])
    // One that the school wrote before it heard of the decision.
    const late = card(name)
    await a.push([{ ...late.change, at: Date.now() - 60_000 }])
    expect(await holderOf(late.key)).toBe(`${name}2`)
    // One that it wrote afterwards means the other row.
    const meant = card(name)
    await a.push([{ ...meant.change, at: Date.now() + 60_000 }])
    expect(await holderOf(meant.key)).toBe(name)
    await o.sql(`DELETE FROM cards WHERE id = '${meant.key}'; UPDATE users SET username = 'gone ${n}' WHERE id = '${other}'`)
    await undo(record?.["id"])
    expect([await holderOf(first.key), await holderOf(late.key), (await read(key))?.["username"]]).toEqual([name, name, name])
  })

  test("stay with the other row when that is renamed, and change places with it when it is undone", async () => {
    const other = await there("users", "a")
    const [theirs, follower] = [await officeCard(name), await officeCard(name, "follows")]
    const [key, own] = [id(), card(name)]
    const push = await a.push([user(key), own.change])
    const [record] = await conflicts(push.record(0))
    await decide(record?.["id"], { keep: "keep_local" })
    expect([await read(key), await read(other)]).toEqual([
      { username: name, name: "school" },
      { username: `${name}2`, name: "office" },
    ])
    const holders = async () => [await holderOf(own.key), await holderOf(theirs), await holderOf(follower, "follows")]
    expect(await holders()).toEqual([name, `${name}2`, `${name}2`])
    await undo(record?.["id"])
    expect(await holders()).toEqual([`${name}2`, name, name])
  })

  test("do not join the other row when their own is left out", async () => {
    await there("users", "a")
    const [key, own] = [id(), card(name)]
    const push = await a.push([user(key), own.change])
    await decide((await conflicts(push.record(0)))[0]?.["id"], { keep: "keep_remote" })
    name = `v${name}`
    await a.push([user(id())])
    expect([await holderOf(own.key), await status(push.record(1))]).toEqual([undefined, "open"])
  })

  test("follow an edit of the value that the school made itself", async () => {
    const [key, follower] = [id(), id()]
    await a.push([user(key), { table: "follows", op: "insert", key: [follower], mine: { id: follower, school_id: "a", holder: name } }])
    const push = await a.push([
      { table: "users", op: "update", key: [key], base: { username: name, name: "school" }, mine: { username: `w${name}` } },
      { table: "follows", op: "update", key: [follower], base: { holder: name, school_id: "a" }, mine: { holder: `w${name}` } },
    ])
    expect(push.exceptions).toEqual([])
    expect(await holderOf(follower, "follows")).toBe(`w${name}`)
    // And an edit of the key.
    const moved = id()
    await a.push([{ table: "follows", op: "update", key: [follower], base: { owner: null }, mine: { owner: key } }])
    const keyed = await a.push([
      { table: "users", op: "update", key: [key], newKey: [moved], base: { id: key }, mine: { id: moved } },
      { table: "follows", op: "update", key: [follower], base: { owner: key }, mine: { owner: moved } },
    ])
    expect(keyed.exceptions).toEqual([])
    expect(await o.sql(`SELECT owner::text FROM follows WHERE id = '${follower}'`)).toEqual([{ owner: moved }])
  })
})

test("a merge that is undone takes along what was made to refer to the other row: it waits again, as it stands now", async () => {
  const other = await there("users", "a")
  const [key, loan, late] = [id(), id(), id()]
  const lend = (loanId: string) => ({
    table: "loans",
    op: "insert" as const,
    key: [loanId],
    mine: { id: loanId, school_id: "a", borrower: key, title: "t" },
  })
  const push = await a.push([user(key), lend(loan)])
  const [record] = await conflicts(push.record(0))
  await decide(record?.["id"], { keep: "merge" })
  const later = await a.push([lend(late)])
  await o.sql(`UPDATE loans SET title = 'edited' WHERE id = '${loan}'`)
  await undo(record?.["id"])
  expect(await o.sql(`SELECT 1 FROM loans WHERE id IN ('${loan}', '${late}')`)).toEqual([])
  expect([await status(push.record(0)), await status(push.record(1)), await status(later.record(0))]).toEqual(["open", "open", "open"])
  await decide(record?.["id"], { keep: "rename_local" })
  expect(await o.sql(`SELECT borrower::text, title FROM loans WHERE id IN ('${loan}', '${late}') ORDER BY title`)).toEqual([
    { borrower: key, title: "edited" },
    { borrower: key, title: "t" },
  ])
  expect(await read(other)).toEqual({ username: name, name: "office" })
})

describe("a rule decides at once", () => {
  test.each([
    ["auto_rename", { username: "2" }, { username: "" }],
    ["auto_local", { username: "" }, { username: "2" }],
    ["auto_remote", null, { username: "" }],
    ["auto_merge", null, { username: "", points: 1 }],
  ] as const)("%s", async (table, own, others) => {
    const other = await there(table, "a")
    const key = id()
    const push = await a.push([{ ...user(key), table }])
    expect(await read(key, "username", table)).toEqual(own === null ? undefined : { username: `${name}${own.username}` })
    expect(await read(other, "username, points", table)).toMatchObject({ ...others, username: `${name}${others.username}` })
    expect((await conflicts(push.record(0)))[0]).toMatchObject({ status: "resolved", decided_by: "rule" })
  })
  test("a free value that another school takes in the same moment is followed by the next try", async () => {
    await there("raced", "a")
    const key = id()
    const push = await a.push([{ ...user(key), table: "raced" }])
    expect((await conflicts(push.record(0)))[0]).toMatchObject({ status: "resolved", decided_by: "rule" })
    expect(await read(key, "username", "raced")).toEqual({ username: `${name}2` })
  })
  test("what it cannot decide waits for a person", async () => {
    const other = await there("auto_local", "b")
    const key = id()
    const push = await a.push([{ ...user(key), table: "auto_local" }])
    expect((await conflicts(push.record(0)))[0]).toMatchObject({ status: "open", theirs: null })
    expect(await read(other, "username", "auto_local")).toEqual({ username: name })
  })
})

test("a merge goes into head office's row also where its key is none that the school may give out", async () => {
  await o.sql(`INSERT INTO counted VALUES (7, 'a', '${name}', 5)`)
  const [school] = await o.sql("SELECT number FROM schoolbus.schools WHERE id = 'a'")
  const key = keyRangeOf(Number(school?.["number"]))?.from ?? ""
  const push = await a.push([{ table: "counted", op: "insert", key: [key], mine: { id: key, school_id: "a", code: name, points: 2 } }])
  expect(await conflicts(push.record(0))).toMatchObject([{ status: "resolved", winner: "merged" }])
  expect(await o.sql("SELECT id::int AS id, code, points FROM counted")).toEqual([{ id: 7, code: name, points: 7 }])
})

test("a merge counts equal sums of the two rows, too", async () => {
  const other = await there("auto_merge", "a")
  await o.sql(`UPDATE auto_merge SET points = 3 WHERE id = '${other}'`)
  const key = id()
  await a.push([{ ...user(key, { points: 3 }), table: "auto_merge" }])
  expect(await read(other, "points", "auto_merge")).toEqual({ points: 6 })
})

describe("a row that a link places", () => {
  const person = (key: string): Draft => ({ table: "people", op: "insert", key: [key], mine: { id: key, login: name } })
  const tie = (key: string): Draft => ({ table: "ties", op: "insert", key: [key], mine: { id: key, school_id: "a", person: key } })
  const logins = async (key: string) =>
    (await o.sql(`SELECT login FROM people JOIN ties ON person = people.id WHERE people.id = '${key}'`))[0]?.["login"]
  const taken = async (drafts: ReadonlyArray<ReadonlyArray<Draft>>) => {
    await o.sql(`INSERT INTO people VALUES (gen_random_uuid(), '${name}')`)
    let quarantine = ""
    for (const batch of drafts) {
      const push = await a.push(batch)
      const at = batch.findIndex(({ table }) => table === "people")
      if (at >= 0) quarantine = push.record(at)
    }
    const [record] = await conflicts(quarantine)
    return { quarantine, record }
  }
  const open = async () =>
    (await o.sql(`SELECT table_name FROM schoolbus.quarantine WHERE status = 'open' AND incarnation = '${a.incarnation}'`)).map(
      (row) => row["table_name"],
    )

  test.each([
    ["in one batch", (key: string) => [[person(key), tie(key)]]],
    ["in two batches", (key: string) => [[person(key)], [tie(key)]]],
  ])("takes another value together with its link, %s", async (_, drafts) => {
    const key = id()
    const { record } = await taken(drafts(key))
    await decide(record?.["id"], { keep: "rename_local" })
    expect(await logins(key)).toBe(`${name}2`)
    expect(await open()).toEqual([])
  })

  test("is edited in quarantine together with its link", async () => {
    const key = id()
    const { quarantine } = await taken([[person(key), tie(key)]])
    await o.withPg((pg) => editQuarantined(pg, o, quarantine, JSON.stringify({ login: `${name}9` }), "amina"))
    expect(await logins(key)).toBe(`${name}9`)
    expect(await open()).toEqual([])
  })

  test("is edited by the school itself, and its link follows", async () => {
    const key = id()
    await taken([[person(key), tie(key)]])
    await a.push([{ table: "people", op: "update", key: [key], base: { id: key, login: name }, mine: { login: `${name}8` } }])
    expect(await logins(key)).toBe(`${name}8`)
    expect(await open()).toEqual([])
  })

  test("without any link stays, with the reason", async () => {
    const { record } = await taken([[person(id())]])
    await expect(decide(record?.["id"], { keep: "rename_local" })).rejects.toMatchObject({ message: /no row of public.ties/ })
  })

  test("places others, and none of those is offered another owner", async () => {
    const key = id()
    await a.push([person(key), tie(key)])
    await o.sql(`INSERT INTO grades VALUES (gen_random_uuid(), '${key}', 5)`)
    const grade = id()
    const push = await a.push([{ table: "grades", op: "insert", key: [grade], mine: { id: grade, person: key, item: "5" } }])
    const [record] = await conflicts(push.record(0))
    expect(record).toMatchObject({ column: "item", suggestion: '"6"' })
  })
})
