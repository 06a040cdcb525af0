import { expect, test } from "vitest"
import { type PendingChange, type Release, type Released, release, waitingColumns } from "../../src/down/behind.ts"

const none = new Set<string>()
const row = { id: "1", name: "office", phone: "1" }
const local = { id: "1", name: "school", phone: "2" }

const cases: ReadonlyArray<readonly [name: string, given: Release, expected: Released]> = [
  [
    "nothing waits: the hub's row takes the place of the school's",
    { behind: row, current: local, pending: none, held: none },
    { kind: "update", set: { name: "office", phone: "1" }, was: { name: "school", phone: "2" }, forget: true },
  ],
  ["nothing differs: forgotten", { behind: row, current: row, pending: none, held: none }, { kind: "forget" }],
  [
    "a column with another pending edit stays, the others are shown",
    { behind: row, current: local, pending: new Set(["name"]), held: none },
    { kind: "update", set: { phone: "1" }, was: { phone: "2" }, forget: false },
  ],
  [
    "a held column stays, the others are shown",
    { behind: row, current: local, pending: none, held: new Set(["phone"]) },
    { kind: "update", set: { name: "office" }, was: { name: "school" }, forget: false },
  ],
  ["all differing columns wait: kept", { behind: row, current: local, pending: new Set(["name"]), held: new Set(["phone"]) }, { kind: "keep" }],
  ["nothing differs, but something waits: kept", { behind: row, current: row, pending: new Set(["name"]), held: none }, { kind: "keep" }],
  ["a whole row that is held: kept", { behind: row, current: local, pending: none, held: "all" }, { kind: "keep" }],
  ["a pending insert waits on the whole row", { behind: row, current: local, pending: "all", held: none }, { kind: "keep" }],
  ["deleted at the hub, nothing waits: deleted", { behind: null, current: local, pending: none, held: none }, { kind: "delete", was: local }],
  [
    "deleted at the hub, an edit waits: kept until its verdict",
    { behind: null, current: local, pending: new Set(["name"]), held: none },
    { kind: "keep" },
  ],
  ["deleted at the hub, a value is held: kept", { behind: null, current: local, pending: none, held: new Set(["name"]) }, { kind: "keep" }],
  ["deleted on both sides: forgotten", { behind: null, current: null, pending: none, held: none }, { kind: "forget" }],
  [
    "deleted on both sides, but written again and not yet pushed: kept",
    { behind: null, current: null, pending: "all", held: none },
    { kind: "keep" },
  ],
  ["deleted in the school, and the delete lost: inserted again", { behind: row, current: null, pending: none, held: none }, { kind: "insert", row }],
  ["deleted in the school, no verdict yet: kept", { behind: row, current: null, pending: "all", held: none }, { kind: "keep" }],
  ["a column that the row does not have is left out", { behind: { ...row, gone: 1 }, current: row, pending: none, held: none }, { kind: "forget" }],
  [
    "a column that the hub's state does not name is left alone",
    { behind: { name: "office" }, current: local, pending: none, held: none },
    { kind: "update", set: { name: "office" }, was: { name: "school" }, forget: true },
  ],
  [
    "null and a value differ",
    { behind: { id: "1", name: null }, current: { id: "1", name: "x" }, pending: none, held: none },
    { kind: "update", set: { name: null }, was: { name: "x" }, forget: true },
  ],
]

test.each(cases)("%s", (_, given, expected) => {
  expect(release(given)).toEqual(expected)
})

const names = ["id", "name", "phone"]
const update = (...old: ReadonlyArray<string>): PendingChange => ({ op: "U", isKeyChange: false, old })

test("a pending edit waits on the columns that differ from the row as it stands", () => {
  expect(waitingColumns([update("1", "a", "1")], ["1", "b", "1"], names)).toEqual(new Set(["name"]))
})

test("of several edits each waits on what it changed, also when the value came back", () => {
  expect(waitingColumns([update("1", "a", "1"), update("1", "b", "1"), update("1", "b", "2")], ["1", "a", "2"], names)).toEqual(
    new Set(["name", "phone"]),
  )
})

test("no pending change waits on nothing", () => {
  expect(waitingColumns([], ["1", "a", "1"], names)).toEqual(none)
})

test("insert, delete, key change and a row that is gone wait on the whole row", () => {
  expect(waitingColumns([{ op: "I", isKeyChange: false, old: ["1"] }], ["1", "a", "1"], names)).toBe("all")
  expect(waitingColumns([update("1", "a", "1"), { op: "D", isKeyChange: false, old: ["1", "b", "1"] }], null, names)).toBe("all")
  expect(waitingColumns([{ op: "U", isKeyChange: true, old: ["1", "a", "1"] }], ["2", "a", "1"], names)).toBe("all")
  expect(waitingColumns([update("1", "a", "1")], null, names)).toBe("all")
})

test("values are compared by type and byte", () => {
  expect(waitingColumns([update("1", "1", "x")], ["1", 1n, "x"], names)).toEqual(new Set(["name"]))
})
