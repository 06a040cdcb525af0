import { expect, test } from "vitest"
import type { Change } from "../../src/model/change.ts"
import { coalesce, type RowChange, rowId, startRow } from "../../src/up/coalesce.ts"

let id = 0
const change = (op: Change["op"], key: number, more: Partial<Change> = {}): Change => ({
  id: ++id,
  table: "public.t",
  op,
  key: [key],
  at: id,
  base: {},
  mine: {},
  ...more,
})
const insert = (key: number, mine: Change["mine"]) => change("insert", key, { mine: { id: key, ...mine } })
const update = (key: number, base: Change["base"], mine: Change["mine"], newKey?: number) =>
  change("update", key, { base, mine, ...(newKey === undefined ? {} : { newKey: [newKey] }) })
const remove = (key: number, base: Change["base"] = {}) => change("delete", key, { base })
const brief = (rows: ReadonlyArray<RowChange>) => rows.map(({ op, key, newKey, base, mine }) => [op, key[0], newKey?.[0] ?? null, base, mine])

test.each<readonly [string, ReadonlyArray<Change>, ReadonlyArray<unknown>]>([
  ["one change stays as it is", [insert(1, { a: "x" })], [["insert", 1, null, {}, { id: 1, a: "x" }]]],
  ["insert and update are one insert", [insert(1, { a: "x" }), update(1, { a: "x" }, { a: "y" })], [["insert", 1, null, {}, { id: 1, a: "y" }]]],
  ["insert and delete leave nothing", [insert(1, { a: "x" }), remove(1, { a: "x" })], [["none", 1, null, {}, {}]]],
  ["nothing and insert are an insert", [insert(1, {}), remove(1), insert(1, { a: "z" })], [["insert", 1, null, {}, { id: 1, a: "z" }]]],
  [
    "updates keep the first base and the last value",
    [update(1, { a: "1", b: "1" }, { a: "2" }), update(1, { a: "2", b: "1" }, { a: "3", b: "2" })],
    [["update", 1, null, { a: "1", b: "1" }, { a: "3", b: "2" }]],
  ],
  [
    "there and back is an update of nothing",
    [update(1, { a: "1" }, { a: "2" }), update(1, { a: "2" }, { a: "1" })],
    [["update", 1, null, { a: "1" }, {}]],
  ],
  [
    "update and delete are a delete from the first base",
    [update(1, { a: "1" }, { a: "2" }), remove(1, { a: "2", b: "b" })],
    [["delete", 1, null, { a: "1", b: "b" }, {}]],
  ],
  [
    "delete and insert are an update",
    [remove(1, { id: 1, a: "1", b: "b" }), insert(1, { a: "2", b: "b" })],
    [["update", 1, null, { id: 1, a: "1", b: "b" }, { a: "2" }]],
  ],
  [
    "a key change is followed",
    [update(1, { a: "1" }, { id: 2 }, 2), update(2, { a: "1" }, { a: "2" }), update(2, { a: "2" }, { id: 3 }, 3)],
    [["update", 1, 3, { a: "1" }, { id: 3, a: "2" }]],
  ],
  ["an inserted row takes its last key", [insert(1, {}), update(1, {}, { id: 2 }, 2)], [["insert", 2, null, {}, { id: 2 }]]],
  [
    "a freed key is another row",
    [update(1, { a: "1" }, { id: 2 }, 2), insert(1, { a: "new" }), update(1, { a: "new" }, { a: "newer" })],
    [
      ["update", 1, 2, { a: "1" }, { id: 2 }],
      ["insert", 1, null, {}, { id: 1, a: "newer" }],
    ],
  ],
  [
    "keys that trade places are two key changes",
    [update(1, {}, { id: 9 }, 9), update(2, {}, { id: 1 }, 1), update(9, {}, { id: 2 }, 2)],
    [
      ["update", 1, 2, {}, { id: 2 }],
      ["update", 2, 1, {}, { id: 1 }],
    ],
  ],
  [
    "a row that moves to the key of a deleted one does not become it",
    [remove(2, { a: "gone" }), update(1, {}, { id: 2 }, 2), update(2, { a: "1" }, { a: "2" })],
    [
      ["delete", 2, null, { a: "gone" }, {}],
      ["update", 1, 2, { a: "1" }, { id: 2, a: "2" }],
    ],
  ],
])("%s", (_, changes, expected) => expect(brief(coalesce(changes))).toEqual(expected))

test("every change is counted once, and rows keep their order", () => {
  const changes = [insert(1, {}), insert(2, {}), update(1, {}, { a: "x" }), remove(2)]
  const rows = coalesce(changes)
  expect(rows.flatMap((row) => row.changes.map((one) => one.id)).sort()).toEqual(changes.map((one) => one.id))
  expect(rows.map((row) => row.key[0])).toEqual([1, 2])
})

test("each column keeps the time of its own last write", () => {
  const [row] = coalesce([update(1, {}, { a: "1", b: "1" }), update(1, {}, { b: "2" })])
  expect(row?.columnAt).toEqual({ a: (row?.at ?? 0) - 1 })
})

test("a column that is written again in the millisecond of the write before has the time of that", () => {
  const earlier = { ...update(1, {}, { a: "1", b: "1" }), at: 10 }
  const between = { ...update(1, {}, { c: "2" }), at: 20 }
  const last = { ...update(1, {}, { a: "3" }), at: 20 }
  const [row] = coalesce([earlier, between, last])
  expect([row?.at, row?.columnAt]).toEqual([20, { b: 10 }])
})

test("a change that waits for a person is joined with the later edit, and only the edit is counted", () => {
  const kept = { ...startRow(insert(1, { a: "bad", b: "b" })), changes: [], joined: ["record"] }
  const [row] = coalesce([update(1, { id: 1, a: "bad", b: "b" }, { a: "good" })], new Map([[rowId("public.t", [1]), kept]]))
  expect(row).toMatchObject({ op: "insert", mine: { id: 1, a: "good", b: "b" }, joined: ["record"] })
  expect(row?.changes).toHaveLength(1)
})

test("what waits goes with its row to another key, and is not joined with a new row under the former one", () => {
  const kept = { ...startRow(insert(1, { a: "bad" })), changes: [], joined: ["record"] }
  const rows = coalesce([update(1, { id: 1, a: "bad" }, { id: 2 }, 2), insert(1, { a: "new" })], new Map([[rowId("public.t", [1]), kept]]))
  expect(rows.map(({ op, key, joined }) => [op, key[0], joined])).toEqual([
    ["insert", 2, ["record"]],
    ["insert", 1, []],
  ])
})
