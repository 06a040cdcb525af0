import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { afterEach, beforeEach, expect, test } from "vitest"
import { keyedRows, readRows } from "../../src/link/frame.ts"
import type { RowsLine } from "../../src/link/protocol.ts"
import { type LibsqlFile, openFile } from "../../src/libsql/client.ts"
import type { Exception } from "../../src/model/change.ts"
import type { Wire } from "../../src/model/value.ts"
import { openPulledSchool, type PulledSchool, SCHOOL } from "../support/pretend-hub.ts"
import { column, table } from "../support/school-file.ts"

const pupils = table(
  "pupils",
  [
    column("id"),
    column("school_id"),
    column("name", "text", { notNull: true }),
    column("username"),
    column("phone"),
    column("big", "bigint"),
    column("ratio", "float"),
    column("photo", "bytea"),
    column("active", "bool"),
  ],
  { unique: [["username"]] },
)
const terms = table("terms", [column("id", "int"), column("name")], { priority: "high", direction: "both" })
const marks = table("marks", [column("pupil"), column("subject", "int"), column("points", "numeric")], {
  key: ["pupil", "subject"],
  priority: "low",
  references: [{ columns: ["pupil"], table: "public.pupils", to: ["id"] }],
})

const halls = table("halls", [column("id"), column("school_id"), column("seats", "int"), column("doubled", "int", { generated: true })])

const pupil = (id: string, more: Readonly<Record<string, Wire>> = {}) => ({
  id,
  school_id: SCHOOL,
  name: `pupil ${id}`,
  username: `user-${id}`,
  phone: null,
  big: null,
  ratio: null,
  photo: null,
  active: true,
  ...more,
})

let s: PulledSchool
beforeEach(async () => {
  s = await openPulledSchool([marks, pupils, terms, halls])
})
afterEach(() => s.close())

const names = () => s.read("SELECT id, name FROM pupils ORDER BY id").map(([id, name]) => `${id}=${name}`)
const value = (id: string, col: string) => s.one(`SELECT "${col}" FROM pupils WHERE id = '${id}'`)
const behind = () => Number(s.one("SELECT count(*) FROM schoolbus_behind"))
const changes = () => Number(s.one("SELECT count(*) FROM changes"))
/** What the hub does with every batch that waits: takes it as it is. */
const accept = async () => {
  await s.freezeAll()
  for (const batch of s.unsettled()) {
    for (const change of batch.changes) {
      const local = s.manifest.tables.find((t) => t.name === change.table)?.local ?? ""
      const target = change.newKey ?? change.key
      if (change.op === "delete") s.hub.remove(local, ...change.key)
      else {
        if (change.newKey !== undefined) s.hub.remove(local, ...change.key)
        s.hub.put(local, {
          ...(s.hub.row(local, ...change.key) ?? change.base),
          ...change.mine,
          ...Object.fromEntries(keyOf(local).map((name, i) => [name, target[i]])),
        } as never)
      }
    }
    s.hub.ledger(batch.number, batch.hash)
  }
}
const keyOf = (local: string) => s.manifest.tables.find((t) => t.local === local)?.key ?? []

// Straight cuts

test("a one-page cut brings rows and cursor, value for value", async () => {
  s.hub.put("pupils", pupil("1", { big: "9223372036854775807", ratio: "NaN", photo: "00ff", active: false }))
  s.hub.put("pupils", pupil("2", { big: "-9223372036854775808", ratio: 0.1, photo: "", name: "Ünïcödé 🎒 '\"" }))
  s.hub.put("pupils", pupil("3", { ratio: 3, photo: null }))
  s.hub.put("marks", { pupil: "1", subject: 7, points: "1.50" })
  const delivered = await s.pull()
  expect(delivered).toMatchObject({ rows: 4, settled: [], behind: 0, applied: true, cursor: { epoch: "e1", seq: 4 } })
  expect((await s.run(s.deliver.position)).cursor).toEqual(delivered.cursor)
  expect(
    s.read("SELECT id, name, CAST(big AS TEXT), ratio, typeof(ratio), hex(photo), typeof(photo), active, typeof(active) FROM pupils ORDER BY id"),
  ).toEqual([
    ["1", "pupil 1", "9223372036854775807", "NaN", "text", "00FF", "blob", 0n, "integer"],
    ["2", "Ünïcödé 🎒 '\"", "-9223372036854775808", 0.1, "real", "", "blob", 1n, "integer"],
    ["3", "pupil 3", null, 3, "real", "", "null", 1n, "integer"],
  ])
  expect(s.read("SELECT points, typeof(points) FROM marks")).toEqual([["1.50", "text"]])
})

test("pulled rows are not captured, and the flag is never left set", async () => {
  s.hub.put("pupils", pupil("1"))
  await s.pull()
  expect(changes()).toBe(0)
  expect(s.one("SELECT active FROM schoolbus_deliver")).toBe(0n)
  s.program("UPDATE pupils SET phone = '1'")
  expect(changes()).toBe(1)
})

test("updates, deletes and a column's null arrive; the same page again changes nothing", async () => {
  s.hub.put("pupils", pupil("1", { phone: "1" }))
  s.hub.put("pupils", pupil("2"))
  await s.pull()
  s.hub.put("pupils", pupil("1", { name: "new" }))
  s.hub.remove("pupils", "2")
  s.hub.remove("pupils", "never seen")
  const page = await s.nextPage()
  await s.run(s.deliver.page(page.header, page.lines, page.trailer))
  expect(names()).toEqual(["1=new"])
  expect(value("1", "phone")).toBe(null)
  await s.run(s.deliver.page(page.header, page.lines, page.trailer))
  expect(names()).toEqual(["1=new"])
})

test("of two lines for one row the later wins, also a delete", async () => {
  s.hub.put("pupils", pupil("1", { name: "old" }))
  s.hub.put("pupils", pupil("2", { name: "old" }))
  const first = await s.nextPage()
  s.hub.put("pupils", pupil("1", { name: "new" }))
  s.hub.remove("pupils", "2")
  const second = await s.nextPage()
  await s.run(s.deliver.page(second.header, [...first.lines, ...second.lines], second.trailer))
  expect(names()).toEqual(["1=new"])
})

test("a column that the lines do not name is not touched, in rows that exist and in a swap", async () => {
  s.hub.put("pupils", pupil("1", { username: "a", phone: "one" }))
  s.hub.put("pupils", pupil("2", { username: "b", phone: "two" }))
  await s.pull()
  s.hub.put("pupils", pupil("1", { username: "b" }))
  s.hub.put("pupils", pupil("2", { username: "a" }))
  const { header, lines, trailer } = await s.nextPage()
  const narrow = lines.map((line): RowsLine => {
    const read = readRows(line)
    const [, cls, seq, name] = read
    const rows = keyedRows(read, ["id"])
    const kind = "rows"
    const some = rows.map(([key, row]) => [key, row === null ? null : [row[0], row[3]]])
    return [kind, cls, seq, name, rows.length, JSON.stringify([kind, cls, seq, name, ["id", "username"], some, rows.length])]
  })
  await s.run(s.deliver.page(header, narrow, trailer))
  expect(s.read("SELECT id, username, phone, name FROM pupils ORDER BY id")).toEqual([
    ["1", "b", "one", "pupil 1"],
    ["2", "a", "two", "pupil 2"],
  ])
  expect(behind()).toBe(0)
})

const reasonOf = async (more: object): Promise<unknown> => {
  const { header, lines, trailer } = await s.nextPage()
  const exit = await Effect.runPromiseExit(s.deliver.page({ ...header, ...more }, lines, trailer))
  return Exit.isFailure(exit) ? (Cause.squash(exit.cause) as { reason?: string }).reason : "taken"
}

test("a page of another school, manifest, epoch or position is refused and writes nothing", async () => {
  s.hub.put("pupils", pupil("1"))
  await s.pull()
  s.hub.put("pupils", pupil("2"))
  expect(await reasonOf({ school: "other" })).toBe("school")
  expect(await reasonOf({ manifest: 2 })).toBe("manifest")
  expect(await reasonOf({ epoch: "e2" })).toBe("epoch")
  expect(await reasonOf({ from: 2 })).toBe("cursor")
  expect(await reasonOf({ head: 0 })).toBe("cursor")
  expect(names()).toEqual(["1=pupil 1"])
  expect(await reasonOf({})).toBe("taken")
})

// Unique values and rows that cannot be applied

test("unique values that swap, turn in a circle or move along arrive in one cut", async () => {
  for (const id of ["1", "2", "3", "4", "5", "6", "7"]) s.hub.put("pupils", pupil(id, { username: `u${id}` }))
  await s.pull()
  const give = (id: string, username: string) => s.hub.put("pupils", pupil(id, { username }))
  give("1", "u2")
  give("2", "u1")
  give("3", "u4")
  give("4", "u5")
  give("5", "u3")
  give("6", "u7")
  give("7", "u8")
  expect((await s.pull()).behind).toBe(0)
  expect(s.read("SELECT username FROM pupils ORDER BY id").flat()).toEqual(["u2", "u1", "u4", "u5", "u3", "u7", "u8"])
})

test("a unique value taken over from a row that is deleted in the same cut arrives", async () => {
  s.hub.put("pupils", pupil("1", { username: "x" }))
  await s.pull()
  s.hub.put("pupils", pupil("2", { username: "x" }))
  s.hub.remove("pupils", "1")
  await s.pull()
  expect(names()).toEqual(["2=pupil 2"])
})

test("rows that cannot be applied wait behind with the reason; the others arrive, and they follow when they can", async () => {
  s.hub.put("pupils", pupil("1", { username: "same" }))
  s.hub.put("pupils", pupil("2", { name: null }))
  s.hub.put("pupils", pupil("3", { username: "same" }))
  s.hub.put("pupils", pupil("4"))
  const { behind: waiting } = await s.pull()
  expect(waiting).toBe(2)
  expect(s.read("SELECT key, error FROM schoolbus_behind ORDER BY key")).toEqual([
    ["'2'", expect.stringContaining("NOT NULL constraint failed: pupils.name")],
    ["'3'", expect.stringContaining("UNIQUE constraint failed: pupils.username")],
  ])
  s.hub.put("pupils", pupil("1", { username: "other" }))
  expect((await s.pull()).behind).toBe(1)
  expect(names()).toEqual(["1=pupil 1", "3=pupil 3", "4=pupil 4"])
  s.hub.put("pupils", pupil("2", { name: "named" }))
  expect((await s.pull()).behind).toBe(0)
})

test("a table or column that a program dropped holds up only its own rows", async () => {
  s.program("DROP TABLE marks; DROP TABLE terms; CREATE TABLE terms (id INT PRIMARY KEY)")
  s.hub.put("terms", { id: 1, name: "spring" })
  s.hub.put("marks", { pupil: "1", subject: 1, points: "1" })
  s.hub.remove("marks", "2", 1)
  s.hub.put("pupils", pupil("1"))
  const delivered = await s.pull()
  expect(delivered).toMatchObject({ applied: true, behind: 3 })
  expect(names()).toEqual(["1=pupil 1"])
  expect(
    s
      .read("SELECT error FROM schoolbus_behind")
      .flat()
      .every((error) => /no such table|no column named/.test(String(error))),
  ).toBe(true)
})

test("a program's trigger that forbids a write holds up only that row, also a delete", async () => {
  s.hub.put("pupils", pupil("1"))
  s.hub.put("pupils", pupil("2"))
  await s.pull()
  s.program("CREATE TRIGGER keep BEFORE DELETE ON pupils WHEN OLD.id = '1' BEGIN SELECT RAISE(ABORT, 'not that one'); END")
  s.hub.remove("pupils", "1")
  s.hub.remove("pupils", "2")
  expect((await s.pull()).behind).toBe(1)
  expect(names()).toEqual(["1=pupil 1"])
  s.program("DROP TRIGGER keep")
  s.hub.put("pupils", pupil("3"))
  expect((await s.pull()).behind).toBe(0)
  expect(names()).toEqual(["3=pupil 3"])
})

test("a table whose program said ON CONFLICT REPLACE loses no other row", async () => {
  s.program(`DROP TABLE terms; CREATE TABLE terms (id INT PRIMARY KEY, name TEXT UNIQUE ON CONFLICT REPLACE)`)
  s.hub.put("terms", { id: 1, name: "spring" })
  s.hub.put("terms", { id: 2, name: "spring" })
  expect((await s.pull()).behind).toBe(1)
  expect(s.read("SELECT id FROM terms")).toEqual([[1n]])
})

// Shield and release

test("an own edit is not undone before its verdict, and a losing one gives way although the hub wrote nothing", async () => {
  s.hub.put("pupils", pupil("1", { phone: "base" }))
  await s.pull()
  s.program("UPDATE pupils SET phone = 'mine' WHERE id = '1'")
  s.hub.put("pupils", pupil("1", { phone: "theirs", name: "renamed" }))
  expect((await s.pull()).behind).toBe(1)
  expect([value("1", "phone"), value("1", "name")]).toEqual(["mine", "pupil 1"])
  const [batch] = s.unsettled()
  expect(batch?.changes).toMatchObject([{ op: "update", base: { phone: "base" }, mine: { phone: "mine" } }])
  s.hub.ledger(1, batch?.hash ?? "", [{ id: batch?.changes[0]?.id ?? 0, verdict: "conflict" }])
  expect(await s.pull()).toMatchObject({ settled: [1], behind: 0 })
  expect([value("1", "phone"), value("1", "name")]).toEqual(["theirs", "renamed"])
  expect(changes()).toBe(0)
  expect(s.read("SELECT key, was, batch FROM schoolbus_replaced")).toEqual([["'1'", JSON.stringify({ name: "pupil 1", phone: "mine" }), 1n]])
  expect(s.read("SELECT settled_at IS NOT NULL, exceptions FROM schoolbus_batch")).toEqual([[1n, expect.stringContaining("conflict")]])
})

test("an applied edit whose row and ledger come in one cut stays, and nothing counts as replaced", async () => {
  s.program("INSERT INTO pupils (id, school_id, name, active) VALUES ('9', 's1', 'mine', 1)")
  await accept()
  expect(await s.pull()).toMatchObject({ settled: [1], behind: 0 })
  expect(names()).toEqual(["9=mine"])
  expect(s.read("SELECT * FROM schoolbus_replaced")).toEqual([])
})

test("writes that were not frozen yet are frozen before a pulled value could be taken for theirs", async () => {
  s.hub.put("pupils", pupil("1"))
  await s.pull()
  s.program("UPDATE pupils SET phone = 'mine'")
  s.hub.put("pupils", pupil("1", { phone: "theirs" }))
  await s.pull()
  expect(s.unsettled().map((batch) => batch.changes.map((change) => change.mine))).toEqual([[{ phone: "mine" }]])
})

test("a second edit between push and verdict keeps its column; the others show the hub's values", async () => {
  s.hub.put("pupils", pupil("1", { phone: "base", name: "base" }))
  await s.pull()
  s.program("UPDATE pupils SET name = 'mine', phone = 'first' WHERE id = '1'")
  await s.freezeAll()
  s.program("UPDATE pupils SET phone = 'second' WHERE id = '1'")
  const [batch] = s.unsettled()
  s.hub.put("pupils", pupil("1", { phone: "theirs", name: "theirs" }))
  s.hub.ledger(1, batch?.hash ?? "", [])
  expect(await s.pull()).toMatchObject({ settled: [1], behind: 1 })
  expect([value("1", "phone"), value("1", "name")]).toEqual(["second", "theirs"])
  s.hub.ledger(2, s.unsettled()[0]?.hash ?? "", [])
  expect(await s.pull()).toMatchObject({ settled: [2], behind: 0 })
  expect([value("1", "phone"), value("1", "name")]).toEqual(["theirs", "theirs"])
})

test("showing some columns leaves a pending value alone that no wire form has", async () => {
  s.hub.put("pupils", pupil("1", { phone: "base" }))
  await s.pull()
  s.program("UPDATE pupils SET name = 'x' WHERE id = '1'")
  await s.freezeAll()
  s.program("UPDATE pupils SET active = 7, photo = 'text', phone = CAST(X'ff00fe' AS TEXT) WHERE id = '1'")
  s.hub.put("pupils", pupil("1", { name: "theirs" }))
  s.hub.ledger(1, s.unsettled()[0]?.hash ?? "", [])
  await s.pull()
  expect(s.read("SELECT name, active, photo, typeof(photo), hex(phone), typeof(phone) FROM pupils")).toEqual([
    ["theirs", 7n, "text", "text", "FF00FE", "text"],
  ])
})

test("a delete at the hub waits for the verdict of an edit here, then happens", async () => {
  s.hub.put("pupils", pupil("1"))
  await s.pull()
  s.program("UPDATE pupils SET phone = 'mine'")
  s.hub.remove("pupils", "1")
  expect((await s.pull()).behind).toBe(1)
  expect(names()).toEqual(["1=pupil 1"])
  s.hub.ledger(1, s.unsettled()[0]?.hash ?? "", [])
  expect((await s.pull()).behind).toBe(0)
  expect(names()).toEqual([])
  expect(s.one("SELECT was FROM schoolbus_replaced")).toContain('"phone":"mine"')
})

test("an edit at the hub waits for the verdict of a delete here; a lost delete brings the row back", async () => {
  s.hub.put("pupils", pupil("1"))
  await s.pull()
  s.program("DELETE FROM pupils")
  s.hub.put("pupils", pupil("1", { phone: "theirs" }))
  expect((await s.pull()).behind).toBe(1)
  expect(names()).toEqual([])
  s.hub.ledger(1, s.unsettled()[0]?.hash ?? "", [])
  expect((await s.pull()).behind).toBe(0)
  expect(value("1", "phone")).toBe("theirs")
})

test("a changed key shields the old and the new key", async () => {
  s.hub.put("pupils", pupil("1"))
  await s.pull()
  s.program("UPDATE pupils SET id = '2' WHERE id = '1'")
  s.hub.put("pupils", pupil("1", { phone: "theirs" }))
  s.hub.put("pupils", pupil("2", { username: "other", name: "the hub's own" }))
  expect((await s.pull()).behind).toBe(2)
  expect(names()).toEqual(["2=pupil 1"])
  await accept()
  expect((await s.pull()).behind).toBe(0)
  expect(names()).toEqual(["2=pupil 1"])
})

test("a pulled row that collides with a pending local row waits behind until that has its verdict", async () => {
  s.hub.put("terms", { id: 1, name: "spring" })
  await s.pull()
  s.program("INSERT INTO pupils (id, school_id, name, username, active) VALUES ('9', 's1', 'mine', 'amina', 1)")
  s.hub.put("pupils", pupil("1", { username: "amina" }))
  expect((await s.pull()).behind).toBe(1)
  expect(names()).toEqual(["9=mine"])
  s.hub.put("pupils", { ...pupil("9", { username: "amina2" }), name: "mine" })
  s.hub.ledger(1, s.unsettled()[0]?.hash ?? "", [])
  expect((await s.pull()).behind).toBe(0)
  expect(s.read("SELECT id, username FROM pupils ORDER BY id")).toEqual([
    ["1", "amina"],
    ["9", "amina2"],
  ])
})

test("a ledger row of another incarnation, with another hash or seen before settles nothing", async () => {
  s.hub.put("pupils", pupil("1"))
  await s.pull()
  s.program("UPDATE pupils SET phone = 'mine'")
  await s.freezeAll()
  const hash = s.unsettled()[0]?.hash ?? ""
  s.hub.ledger(1, hash, [], "00000000-0000-4000-8000-000000000000")
  expect((await s.pull()).settled).toEqual([])
  s.hub.ledger(1, "0".repeat(64))
  expect((await s.pull()).settled).toEqual([])
  expect(changes()).toBe(1)
  s.hub.ledger(1, hash)
  expect((await s.pull()).settled).toEqual([1])
  const at = s.one("SELECT settled_at FROM schoolbus_batch")
  s.hub.ledger(1, hash)
  expect((await s.pull()).settled).toEqual([])
  expect(s.one("SELECT settled_at FROM schoolbus_batch")).toBe(at)
})

// Holds

const conflictOn = async (columns: ReadonlyArray<string> | undefined, record: string) => {
  s.hub.put("pupils", pupil("1", { phone: "base", name: "base" }))
  await s.pull()
  s.program("UPDATE pupils SET name = 'mine', phone = 'mine' WHERE id = '1'")
  s.hub.put("pupils", pupil("1", { phone: "theirs", name: "theirs" }))
  await s.freezeAll()
  const [batch] = s.unsettled()
  s.hub.ledger(1, batch?.hash ?? "", [
    { id: batch?.changes[0]?.id ?? 0, verdict: "conflict", record, hold: true, ...(columns === undefined ? {} : { columns }) },
  ])
  s.hub.put("schoolbus_conflicts", { id: record, school: SCHOOL, table_name: "public.pupils", column_name: columns?.[0] ?? null, status: "open" })
}

test("a manual conflict holds its column until it is decided; the others follow the hub meanwhile", async () => {
  await conflictOn(["name"], "r1")
  expect((await s.pull()).behind).toBe(1)
  expect([value("1", "name"), value("1", "phone")]).toEqual(["mine", "theirs"])
  s.hub.put("pupils", pupil("1", { phone: "newer", name: "theirs" }))
  expect((await s.pull()).behind).toBe(1)
  expect([value("1", "name"), value("1", "phone")]).toEqual(["mine", "newer"])
  s.hub.put("schoolbus_conflicts", { id: "r1", school: SCHOOL, table_name: "public.pupils", column_name: "name", status: "resolved" })
  expect((await s.pull()).behind).toBe(0)
  expect([value("1", "name"), value("1", "phone")]).toEqual(["theirs", "newer"])
  expect(s.one("SELECT count(*) FROM schoolbus_hold")).toBe(0n)
})

test("a record that is decided, or gone, before its ledger row comes holds nothing", async () => {
  await conflictOn(["name"], "r1")
  s.hub.put("schoolbus_conflicts", { id: "r1", school: SCHOOL, table_name: "public.pupils", column_name: "name", status: "resolved" })
  expect((await s.pull()).behind).toBe(0)
  expect(value("1", "name")).toBe("theirs")
})

test("a deleted record ends its hold", async () => {
  await conflictOn(undefined, "r1")
  await s.pull()
  expect([value("1", "name"), value("1", "phone")]).toEqual(["mine", "mine"])
  s.hub.remove("schoolbus_conflicts", "r1")
  expect((await s.pull()).behind).toBe(0)
  expect([value("1", "name"), value("1", "phone")]).toEqual(["theirs", "theirs"])
})

/** Every change of the waiting batches is quarantined. */
const quarantineAll = async () => {
  await s.freezeAll()
  for (const batch of s.unsettled()) {
    for (const change of batch.changes) {
      s.hub.put("schoolbus_quarantine", {
        id: `q${change.id}`,
        school: SCHOOL,
        change_id: String(change.id),
        change: JSON.stringify(change),
        status: "open",
      })
    }
    s.hub.ledger(
      batch.number,
      batch.hash,
      batch.changes.map((change) => ({ id: change.id, verdict: "quarantined", record: `q${change.id}`, hold: true })),
    )
  }
}
const decideAll = (status: string) => {
  for (const row of s.hub.rows("schoolbus_quarantine")) s.hub.put("schoolbus_quarantine", { ...row, status })
}

test("a quarantined change keeps the local row; the hub's later states wait behind until it is discarded", async () => {
  s.hub.put("pupils", pupil("1", { phone: "base" }))
  await s.pull()
  s.program("UPDATE pupils SET phone = 'bad' WHERE id = '1'")
  await quarantineAll()
  await s.pull()
  s.hub.put("pupils", pupil("1", { phone: "base", name: "later" }))
  expect((await s.pull()).behind).toBe(1)
  expect([value("1", "phone"), value("1", "name")]).toEqual(["bad", "pupil 1"])
  decideAll("discarded")
  expect((await s.pull()).behind).toBe(0)
  expect([value("1", "phone"), value("1", "name")]).toEqual(["base", "later"])
})

test("a discarded change with nothing behind it is taken back: update, insert, delete, key change", async () => {
  for (const id of ["1", "2", "3"]) s.hub.put("pupils", pupil(id, { phone: "base" }))
  await s.pull()
  s.program("UPDATE pupils SET phone = 'bad' WHERE id = '1'")
  s.program("DELETE FROM pupils WHERE id = '2'")
  s.program("UPDATE pupils SET id = '4' WHERE id = '3'")
  s.program("INSERT INTO pupils (id, school_id, name, active) VALUES ('5', 's1', 'bad', 1)")
  s.program("UPDATE pupils SET phone = 'worse' WHERE id = '5'")
  await quarantineAll()
  await s.pull()
  expect(names()).toEqual(["1=pupil 1", "4=pupil 3", "5=bad"])
  decideAll("discarded")
  expect((await s.pull()).behind).toBe(0)
  expect(s.read("SELECT id, name, username, phone FROM pupils ORDER BY id")).toEqual([
    ["1", "pupil 1", "user-1", "base"],
    ["2", "pupil 2", "user-2", "base"],
    ["3", "pupil 3", "user-3", "base"],
  ])
  expect(s.one("SELECT count(*) FROM schoolbus_hold")).toBe(0n)
  expect(changes()).toBe(0)
})

test("a key change that waits with later edits of its row holds both keys", async () => {
  for (const id of ["1", "2"]) s.hub.put("pupils", pupil(id, { phone: "base" }))
  await s.pull()
  s.program("UPDATE pupils SET id = '3' WHERE id = '1'")
  s.program("UPDATE pupils SET phone = 'bad' WHERE id = '3'")
  s.program("UPDATE pupils SET id = '4' WHERE id = '2'")
  s.program("UPDATE pupils SET id = '5' WHERE id = '4'")
  await s.freezeAll()
  const [batch] = s.unsettled()
  const [first, edit, second, third] = batch?.changes ?? []
  const exceptions = [
    [first, edit],
    [second, third],
  ].flatMap(([key, last]): ReadonlyArray<Exception> => {
    // As the hub joins them: one change, which stands for both.
    const change = { ...key, ...last, key: key?.key, newKey: last?.newKey ?? key?.newKey, base: key?.base, mine: { ...key?.mine, ...last?.mine } }
    const record = `q${last?.id}`
    s.hub.put("schoolbus_quarantine", {
      ...{ id: record, school: SCHOOL },
      change_id: String(last?.id),
      change: JSON.stringify(change),
      status: "open",
    })
    return [
      { id: key?.id ?? 0, verdict: "quarantined", record },
      { id: last?.id ?? 0, verdict: "quarantined", record, hold: true },
    ]
  })
  s.hub.ledger(batch?.number ?? 0, batch?.hash ?? "", exceptions)
  await s.pull()
  s.hub.put("pupils", pupil("1", { phone: "later" }))
  expect((await s.pull()).behind).toBe(1)
  expect(names()).toEqual(["3=pupil 1", "5=pupil 2"])
  decideAll("discarded")
  expect((await s.pull()).behind).toBe(0)
  expect(s.read("SELECT id, name, username, phone FROM pupils ORDER BY id")).toEqual([
    ["1", "pupil 1", "user-1", "later"],
    ["2", "pupil 2", "user-2", "base"],
  ])
  expect(s.one("SELECT count(*) FROM schoolbus_hold")).toBe(0n)
})

test("rows of a cut are not captured while a program's own write, which emptied a computed column, is frozen with it", async () => {
  for (const id of ["1", "2"]) s.hub.put("halls", { id, school_id: SCHOOL, seats: 4, doubled: 8 })
  await s.pull()
  s.program("INSERT OR REPLACE INTO halls (id, school_id, seats) VALUES ('1', 's1', 5)")
  s.hub.put("halls", { id: "1", school_id: SCHOOL, seats: 6, doubled: 12 })
  s.hub.remove("halls", "2")
  await s.pull()
  expect(s.read("SELECT id, seats, doubled FROM halls")).toEqual([["1", 5n, 8n]])
  expect(s.read("SELECT op, key FROM changes")).toEqual([["U", "'1'"]])
  expect(s.one("SELECT active FROM schoolbus_deliver")).toBe(0n)
})

/** A pupil is edited, the edit is refused, the pupil is deleted, and the edit is given up. */
const deleteGivenUpEdit = async () => {
  s.hub.put("pupils", pupil("1", { phone: "base", big: "7" }))
  await s.pull()
  s.program("UPDATE pupils SET phone = 'bad' WHERE id = '1'")
  await quarantineAll()
  await s.pull()
  s.program("DELETE FROM pupils WHERE id = '1'")
  await s.freezeAll()
  decideAll("discarded")
}

test.each(["before", "with"])("a delete that loses, of a row whose edit was given up %s its verdict, brings the whole row back", async (when) => {
  await deleteGivenUpEdit()
  if (when === "before") await s.pull()
  const [batch] = s.unsettled()
  // The hub compares it with what the school had, and keeps the row as it is.
  s.hub.ledger(batch?.number ?? 0, batch?.hash ?? "", [{ id: batch?.changes[0]?.id ?? 0, verdict: "conflict" }])
  await s.pull()
  expect(s.read("SELECT id, school_id, name, phone, CAST(big AS TEXT), active FROM pupils")).toEqual([["1", "s1", "pupil 1", "base", "7", 1n]])
  expect([behind(), changes()]).toEqual([0, 0])
})

test("a delete that waits for a person, of a row whose edit was given up, brings the whole row back when head office's is kept", async () => {
  await deleteGivenUpEdit()
  await s.pull()
  const [batch] = s.unsettled()
  const record = { id: "r1", school: SCHOOL, table_name: "public.pupils", column_name: null }
  s.hub.put("schoolbus_conflicts", { ...record, status: "open" })
  s.hub.ledger(batch?.number ?? 0, batch?.hash ?? "", [{ id: batch?.changes[0]?.id ?? 0, verdict: "conflict", record: "r1", hold: true }])
  await s.pull()
  expect(names()).toEqual([])
  s.hub.put("schoolbus_conflicts", { ...record, status: "resolved" })
  await s.pull()
  expect(s.read("SELECT id, school_id, name, phone, CAST(big AS TEXT), active FROM pupils")).toEqual([["1", "s1", "pupil 1", "base", "7", 1n]])
  expect([behind(), changes()]).toEqual([0, 0])
})

test("a row of which only some columns are known is not made, and says so", async () => {
  s.hub.put("pupils", pupil("1"))
  await s.pull()
  const insert =
    "INSERT INTO schoolbus_behind (tbl, key, row, error, at) SELECT id, ?, ?, 'refused', 0 FROM schoolbus_tables WHERE name = 'public.pupils'"
  s.program(insert, ["'2'", JSON.stringify({ phone: "5" })])
  s.hub.put("pupils", pupil("1", { phone: "6" }))
  await s.pull()
  expect(s.read("SELECT id, phone FROM pupils")).toEqual([["1", "6"]])
  expect(s.read("SELECT error FROM schoolbus_behind")).toEqual([[expect.stringContaining("the next write of the row at head office")]])
  s.hub.put("pupils", pupil("2", { phone: "5" }))
  await s.pull()
  expect(s.read("SELECT id, phone FROM pupils ORDER BY id")).toEqual([
    ["1", "6"],
    ["2", "5"],
  ])
  expect(behind()).toBe(0)
})

test("a discarded delete or key change brings back what Postgres had computed", async () => {
  const hall = (id: string) => ({ id, school_id: SCHOOL, seats: 4, doubled: 8 })
  for (const id of ["1", "2", "3"]) s.hub.put("halls", hall(id))
  await s.pull()
  s.program("DELETE FROM halls WHERE id = '1'")
  s.program("UPDATE halls SET id = '4' WHERE id = '2'")
  s.program("UPDATE halls SET seats = 5 WHERE id = '3'")
  await s.freezeAll()
  s.program("DELETE FROM halls WHERE id = '3'")
  await quarantineAll()
  await s.pull()
  decideAll("discarded")
  expect((await s.pull()).behind).toBe(0)
  expect(s.read("SELECT id, seats, doubled FROM halls ORDER BY id")).toEqual(["1", "2", "3"].map((id) => [id, 4n, 8n]))
})

test("a row that a discarded delete brings back has of a column that came meanwhile what older rows have", async () => {
  s.hub.put("terms", { id: 1, name: "autumn" })
  s.hub.put("terms", { id: 2, name: "spring" })
  await s.pull()
  s.program("DELETE FROM terms WHERE id = 1")
  await quarantineAll()
  await s.pull()
  const state = column("state", "text", { default: "new", fill: "old" })
  const tables = s.manifest.tables.map((one) => (one.name === terms.name ? { ...one, columns: [...one.columns, state] } : one))
  await s.install({ ...s.manifest, version: 2, tables })
  decideAll("discarded")
  await s.pull({ manifest: 2 })
  expect(s.read("SELECT id, name, state FROM terms ORDER BY id")).toEqual([
    [1n, "autumn", "old"],
    [2n, "spring", "old"],
  ])
})

test("a discarded update takes back only its own columns, and none with a newer pending edit", async () => {
  s.hub.put("pupils", pupil("1", { phone: "base" }))
  await s.pull()
  s.program("UPDATE pupils SET phone = 'bad', username = 'bad' WHERE id = '1'")
  await quarantineAll()
  await s.pull()
  s.program("UPDATE pupils SET username = 'newer' WHERE id = '1'")
  decideAll("discarded")
  await s.pull()
  expect([value("1", "phone"), value("1", "username"), value("1", "name")]).toEqual(["base", "newer", "pupil 1"])
})

test("a retried change ends its hold and stays as it is", async () => {
  s.program("INSERT INTO pupils (id, school_id, name, active) VALUES ('5', 's1', 'mine', 1)")
  await quarantineAll()
  await s.pull()
  decideAll("retried")
  s.hub.put("pupils", { ...pupil("5", { username: null }), name: "mine" })
  expect((await s.pull()).behind).toBe(0)
  expect(names()).toEqual(["5=mine"])
})

// Staging

const fill = (count: number, more: (i: number) => Readonly<Record<string, Wire>> = () => ({})) => {
  for (let i = 0; i < count; i++) s.hub.put("pupils", pupil(`p${String(i).padStart(6, "0")}`, more(i)))
}
const count = (local: string) => Number(s.one(`SELECT count(*) FROM ${local}`))

test("a page that breaks off goes on after its last line", async () => {
  fill(10)
  s.hub.put("terms", { id: 1, name: "spring" })
  const options = { lineRows: 2 }
  const whole = await s.nextPage(options)
  const part = await s.run(s.deliver.page(whole.header, whole.lines.slice(0, 3), null))
  expect(part).toMatchObject({ rows: 5, applied: false })
  expect(count("pupils")).toBe(0)
  expect((await s.run(s.deliver.position)).staged).toEqual({ head: 11, headCut: whole.header.headCut, after: { 8: 11, 5: 4 } })
  const restarted = await s.reopen()
  const rest = await s.nextPage(options, restarted)
  expect(rest.lines.length).toBe(3)
  expect(await s.run(restarted.page(rest.header, rest.lines, rest.trailer))).toMatchObject({ rows: 6, received: { rows: 11 }, applied: true })
  expect([count("pupils"), count("terms"), count("schoolbus_stage")]).toEqual([10, 1, 0])
  expect((await s.run(restarted.position)).staged).toBe(null)
})

test("rows that change while a catch-up is served come again, and the newest state wins", async () => {
  fill(6)
  const options = { lineRows: 1, pageLines: 2 }
  await s.pullPage(options)
  s.hub.put("pupils", pupil("p000000", { name: "changed" }))
  s.hub.remove("pupils", "p000001")
  s.hub.put("pupils", pupil("p000005", { name: "changed" }))
  await s.pull(options)
  expect(names()).toEqual(["p000000=changed", "p000002=pupil p000002", "p000003=pupil p000003", "p000004=pupil p000004", "p000005=changed"])
})

test("staging that the hub does not go on from is thrown away", async () => {
  s.hub.put("pupils", pupil("ghost"))
  fill(4)
  await s.pullPage({ lineRows: 1, pageLines: 2 })
  // The hub was put back to a state before those rows; numbers look right, names of cuts do not.
  s.hub.entries.clear()
  s.hub.seq = 0
  ;(s.hub as unknown as { cuts: Map<number, string> }).cuts.clear()
  fill(6)
  await s.pull({ lineRows: 1, pageLines: 2 })
  expect(names()).toHaveLength(6)
  expect(names().join()).not.toContain("ghost")
})

test("staging of another epoch is thrown away", async () => {
  s.hub.put("pupils", pupil("ghost"))
  fill(4)
  await s.pullPage({ lineRows: 1, pageLines: 2 })
  s.hub.entries.clear()
  s.hub.epoch = "e2"
  fill(3)
  await s.pull()
  expect(names()).toHaveLength(3)
})

test("a page that goes on from staging which is not here is not taken, and the next one begins anew", async () => {
  fill(4)
  await s.pullPage({ lineRows: 1, pageLines: 2 })
  // The hub knows the staged page by name, but calls its seq space anew: what is staged no longer fits.
  s.hub.epoch = "e2"
  expect(await s.pullPage({ lineRows: 1, pageLines: 2 })).toMatchObject({ applied: false, rows: 0 })
  expect((await s.run(s.deliver.position)).staged).toBe(null)
  await s.pull({ lineRows: 1, pageLines: 2 })
  expect(count("pupils")).toBe(4)
})

test("staging can be discarded", async () => {
  fill(4)
  await s.pullPage({ lineRows: 1, pageLines: 2 })
  await s.run(s.deliver.discardStaging)
  expect((await s.run(s.deliver.position)).staged).toBe(null)
  await s.pull()
  expect(count("pupils")).toBe(4)
})

test("a staged cut that shields, settles and releases ends like a straight one", async () => {
  for (const id of ["1", "2", "3"]) s.hub.put("pupils", pupil(id, { phone: "base" }))
  await s.pull()
  s.program("UPDATE pupils SET phone = 'lost' WHERE id = '1'")
  s.program("UPDATE pupils SET phone = 'won' WHERE id = '2'")
  await s.freezeAll()
  const [batch] = s.unsettled()
  s.program("UPDATE pupils SET phone = 'pending' WHERE id = '3'")
  s.hub.put("pupils", pupil("1", { phone: "theirs" }))
  s.hub.put("pupils", pupil("2", { phone: "won" }))
  s.hub.put("pupils", pupil("3", { phone: "theirs", name: "theirs" }))
  s.hub.ledger(1, batch?.hash ?? "", [])
  expect(await s.pull({ lineRows: 1, pageLines: 1 })).toMatchObject({ settled: [1], behind: 1, applied: true })
  expect(s.read("SELECT phone, name FROM pupils ORDER BY id")).toEqual([
    ["theirs", "pupil 1"],
    ["won", "pupil 2"],
    ["pending", "pupil 3"],
  ])
})

test("unique values that turn in a circle across chunks arrive", async () => {
  fill(3_000)
  await s.pull()
  fill(3_000, (i) => ({ username: `user-p${String((i + 1) % 3_000).padStart(6, "0")}` }))
  expect(await s.pull({ pageLines: 2, lineRows: 500 })).toMatchObject({ behind: 0, applied: true })
  expect(s.one("SELECT count(*) FROM pupils WHERE username = 'user-' || id")).toBe(0n)
})

// Full cuts

test("a full cut removes what it does not name, except rows with a pending change", async () => {
  fill(8)
  s.hub.put("terms", { id: 1, name: "spring" })
  s.hub.put("terms", { id: 2, name: "autumn" })
  await s.pull()
  s.program("UPDATE pupils SET phone = 'mine' WHERE id = 'p000003'")
  s.program("INSERT INTO pupils (id, school_id, name, active) VALUES ('new', 's1', 'mine', 1)")
  s.hub.entries.clear()
  s.hub.epoch = "e2"
  s.hub.put("terms", { id: 2, name: "autumn" })
  s.hub.put("pupils", pupil("p000001", { name: "kept" }))
  expect(await s.pull()).toMatchObject({ applied: true, behind: 2, cursor: { epoch: "e2" } })
  expect(names()).toEqual(["new=mine", "p000001=kept", "p000003=pupil p000003"])
  expect(s.read("SELECT id FROM terms")).toEqual([[2n]])
  expect(s.read("SELECT key, row FROM schoolbus_behind ORDER BY key")).toEqual([
    ["'new'", null],
    ["'p000003'", null],
  ])
  expect(changes()).toBe(2)
  expect(count("schoolbus_met")).toBe(0)
  // The insert is accepted, the edit of the row that is gone is lost.
  const [batch] = s.unsettled()
  s.hub.put("pupils", { ...pupil("new", { username: null }), name: "mine" })
  s.hub.ledger(1, batch?.hash ?? "", [])
  expect((await s.pull()).behind).toBe(0)
  expect(names()).toEqual(["new=mine", "p000001=kept"])
})

test("a full cut also ends what waits behind a row that the school shows no more", async () => {
  s.hub.put("pupils", pupil("1"))
  await s.pull()
  s.program("DELETE FROM pupils")
  s.hub.put("pupils", pupil("1", { phone: "theirs" }))
  expect((await s.pull()).behind).toBe(1)
  s.hub.entries.clear()
  s.hub.epoch = "e2"
  s.hub.ledger(1, s.unsettled()[0]?.hash ?? "")
  expect((await s.pull()).behind).toBe(0)
  expect(names()).toEqual([])
})

test("a full cut looks at more rows than one read gives, and at keys of any form", async () => {
  const odd = ["it's", 'a "b"', "ключ", "", "a,b", "\u0001", "e\u0301", "\u{1f392}"]
  fill(6_000)
  for (const id of odd) s.hub.put("pupils", pupil(id))
  await s.pull()
  expect(count("pupils")).toBe(6_008)
  s.hub.entries.clear()
  s.hub.epoch = "e2"
  for (const id of [...odd.slice(0, 4), "p005999"]) s.hub.put("pupils", pupil(id))
  await s.pull()
  expect(s.read("SELECT id FROM pupils").flat().sort()).toEqual([...odd.slice(0, 4), "p005999"].sort())
})

// Kills and competing writers

const isKilled = Symbol("killed")
/** The file as a process sees it that dies at its n-th write transaction, before or after the commit. */
const dying = (file: LibsqlFile, at: number, after: boolean): LibsqlFile => {
  let writes = 0
  return {
    ...file,
    write: (body) =>
      Effect.suspend(() => {
        writes++
        if (writes < at) return file.write(body)
        if (writes > at || !after) return file.write((tx) => Effect.andThen(body(tx), Effect.die(isKilled)))
        return Effect.andThen(file.write(body), Effect.die(isKilled))
      }),
  }
}

test.each([false, true])(
  "killed at any transaction of a chunked cut, a restart ends it (killed after commit: %s)",
  async (after) => {
    for (let at = 1; ; at++) {
      await s.close()
      s = await openPulledSchool([marks, pupils, terms])
      fill(40)
      for (let i = 0; i < 10; i++) s.hub.put("terms", { id: i, name: "old" })
      await s.pull()
      s.program("UPDATE pupils SET phone = 'mine' WHERE id = 'p000007'")
      await s.freezeAll()
      s.hub.entries.clear()
      s.hub.epoch = "e2"
      fill(30, (i) => ({ name: `new ${i}`, username: `user-p${String((i + 1) % 30).padStart(6, "0")}` }))
      s.hub.put("terms", { id: 1, name: "new" })
      s.hub.ledger(1, s.unsettled()[0]?.hash ?? "", [])
      const options = { lineRows: 5, pageLines: 3 }
      const mortal = await s.reopen(dying(s.file, at, after))
      let died = false
      for (let applied = false; !applied && !died; ) {
        const { header, lines, trailer } = await s.nextPage(options, mortal)
        const exit = await Effect.runPromiseExit(mortal.page(header, lines, trailer))
        died = Exit.isFailure(exit)
        if (Exit.isSuccess(exit)) applied = exit.value.applied
      }
      const restarted = await s.reopen()
      await s.run(restarted.resume)
      // What is left of it is still on its way.
      expect(s.one("SELECT applying ->> 'above' > 0 FROM schoolbus_state") ?? 1n).toBe(1n)
      for (;;) {
        const { cursor, staged } = await s.run(restarted.position)
        if (cursor.epoch === "e2" && cursor.seq === s.hub.seq) break
        const { header, lines, trailer } = s.hub.page(cursor, staged, options)
        await s.run(restarted.page(header, lines, trailer))
      }
      expect(s.read("SELECT id, name, username, phone FROM pupils ORDER BY id")).toEqual(
        s.hub.rows("pupils").map((row) => [row["id"], row["name"], row["username"], row["phone"]]),
      )
      expect(s.read("SELECT id, name FROM terms")).toEqual([[1n, "new"]])
      expect([behind(), changes(), count("schoolbus_stage")]).toEqual([0, 0, 0])
      expect(s.one("SELECT active FROM schoolbus_deliver")).toBe(0n)
      if (!died) break
    }
  },
  60_000,
)

test("a page after an interrupted cut goes on with that first", async () => {
  fill(20)
  const options = { lineRows: 5, pageLines: 2 }
  await s.pullPage(options)
  const { header, lines, trailer } = await s.nextPage(options)
  // The third write begins the chunks: staging, applying, then it dies.
  const mortal = await s.reopen(dying(s.file, 3, false))
  await Effect.runPromiseExit(mortal.page(header, lines, trailer))
  expect(s.one("SELECT applying FROM schoolbus_state")).not.toBe(null)
  expect((await s.run(s.deliver.position)).staged).toBe(null)
  s.hub.put("pupils", pupil("new"))
  await s.pull()
  expect(count("pupils")).toBe(21)
})

test("a competing program never fails and goes on writing while 100,000 rows are applied", async () => {
  fill(100_000, (i) => ({ phone: `+254 700 ${i}`, big: String(i), ratio: i / 3 }))
  const writer = new URL("../support/competing-writer.ts", import.meta.url)
  const { spawn } = await import("node:child_process")
  const program = spawn(process.execPath, [writer.pathname, s.path], { stdio: ["pipe", "pipe", "inherit"] })
  const output: Array<string> = []
  program.stdout.on("data", (data: Buffer) => output.push(String(data)))
  await new Promise((resolve) => program.stdout.once("data", resolve))
  const options = { lineRows: 500, pageLines: 20 }
  await s.pull(options)
  s.hub.epoch = "e2"
  await s.pull(options)
  program.stdin.end()
  await new Promise((resolve) => program.once("close", resolve))
  const { writes, failures } = JSON.parse(output.join("").trim().split("\n").at(-1) ?? "{}") as {
    writes: number
    failures: number
  }
  expect(failures).toBe(0)
  expect(writes).toBeGreaterThan(20)
  expect(count("pupils")).toBe(100_000)
})

test("two files opened at once do not disturb each other", async () => {
  const scope = Scope.makeUnsafe()
  const other = await Effect.runPromise(Scope.provide(openFile(s.path), scope))
  s.hub.put("pupils", pupil("1"))
  const reader = await s.reopen(other)
  await s.pull()
  expect((await s.run(reader.position)).cursor.seq).toBe(1)
  await Effect.runPromise(Scope.close(scope, Exit.void))
})
