import { expect, test } from "vitest"
import type { FeedTable } from "../../src/down/entry.ts"
import { type CurrentTxn, Pending, type PendingRow, type Roles } from "../../src/down/pending.ts"

const tableOf = (id: number, name: string): FeedTable =>
  ({ id, name, table: { strategy: "school_wins", columnStrategies: {}, columns: [] } }) as never
const pupils = tableOf(1, "public.pupils")
const seats = tableOf(2, "public.seats")
const ledger = tableOf(3, "schoolbus.ledger")
const roles: Roles = { links: new Set([seats.id]), told: new Set([ledger]) }

const open = () => {
  const txn: CurrentTxn = { xid: 0, at: "", micros: 0 }
  const pending = new Pending(txn, roles)
  const begin = (xid: number): void => {
    txn.xid = xid
    txn.micros = xid * 10
  }
  const put = (table: FeedTable, key: string, tokens: ReadonlyArray<string | undefined>, isInsert: boolean): void =>
    pending.put(table, { kind: "put", table, key, tokens, oldKey: null, isInsert })
  const push = (xid: number, ...keys: ReadonlyArray<string>): void => {
    begin(xid)
    for (const key of keys) put(pupils, key, [key, '"a"'], true)
    put(ledger, `[${xid}]`, [], true)
  }
  return { pending, begin, put, push }
}
const shown = (rows: Iterable<PendingRow>): ReadonlyArray<unknown> => [...rows].map(({ key, tokens, xid, isInsert }) => [key, tokens, xid, isInsert])

test("the last state of a key is what is left, with what messages left out of it", () => {
  const { pending, begin, put } = open()
  begin(1)
  put(pupils, "[1]", ["1", '"old"', '"photo"'], true)
  begin(2)
  put(pupils, "[1]", ["1", '"new"', undefined], false)
  put(pupils, "[2]", ["2", undefined, undefined], false)
  expect(shown(pending.takeAll())).toEqual([
    ["[1]", ["1", '"new"', '"photo"'], 2, true],
    ["[2]", ["2", undefined, undefined], 2, false],
  ])
  expect(pending.rows.size).toBe(0)
})

test("a key that was deleted and inserted again may be held by others: it is no insert", () => {
  const { pending, begin, put } = open()
  begin(1)
  pending.set(pupils, "[1]", null)
  put(pupils, "[1]", ["1"], true)
  expect(shown(pending.takeAll())).toEqual([["[1]", ["1"], 1, false]])
})

test("what head office inserted and takes away again is only compacted", () => {
  const { pending, begin, put } = open()
  begin(1)
  put(pupils, "[1]", ["1", '"a"'], true)
  put(seats, "[1]", ["1"], true)
  begin(2)
  expect(pending.takesAway(pupils, "[1]", false)).toBe(false)
  expect(pending.takesAway(seats, "[9]", false)).toBe(false)
})

test("a txn that carried a school's writes ends before a later one takes a row of it", () => {
  const { pending, begin, put, push } = open()
  push(1, "[1]", "[2]")
  expect(pending.takesAway(pupils, "[1]", false)).toBe(false)
  begin(2)
  put(pupils, "[8]", ["8"], true)
  expect(pending.takesAway(pupils, "[9]", false)).toBe(false)
  expect(pending.takesAway(pupils, "[9]", true)).toBe(false)
  expect(pending.takesAway(pupils, "[1]", false)).toBe(true)
  expect(shown(pending.takeEarlier()).map((row) => (row as Array<unknown>)[0])).toEqual(["[1]", "[2]", "[1]"])
  expect(shown(pending.rows.values())).toEqual([["[8]", ["8"], 2, true]])
  expect(pending.takesAway(pupils, "[1]", false)).toBe(false)
})

test("a link that is written places rows, so what was pushed ends before it; a new link takes nothing away", () => {
  const { pending, begin, push } = open()
  push(1, "[1]")
  begin(2)
  expect(pending.takesAway(seats, "[7]", false)).toBe(true)
  expect(pending.takesAway(seats, "[7]", true)).toBe(false)
})

test("rows of a push that was taken in two parts may stand in the feed: any write to a row may take one away", () => {
  const { pending, begin, put, push } = open()
  begin(1)
  put(pupils, "[1]", ["1"], true)
  pending.takeAll()
  push(1, "[2]")
  begin(2)
  expect(pending.takesAway(pupils, "[1]", false)).toBe(true)
  expect(pending.takesAway(pupils, "[1]", true)).toBe(false)
})
