import * as Deferred from "effect/Deferred"
import { expect, test } from "vitest"
import { type Bracket, Brackets, isOvertaken, isVisible, parseSnapshot, type Read, settledRows } from "../../src/down/bracket.ts"
import type { FeedTable } from "../../src/down/entry.ts"

const table = { id: 1, name: "public.things" } as FeedTable
const read = (snapshot: string, ...keys: ReadonlyArray<string>): Read => ({
  snapshot: parseSnapshot(snapshot),
  rows: keys.map((key) => ({ key, tokens: [key] })),
  last: true,
})
const open = (brackets: Brackets): Bracket => {
  const bracket: Bracket = {
    id: crypto.randomUUID(),
    table,
    want: { kind: "chunk", after: null },
    touched: new Map(),
    truncatedBy: [],
    read: null,
    closed: Deferred.makeUnsafe(),
  }
  brackets.open.set(bracket.id, bracket)
  return bracket
}

test("a transaction is visible when it is over for the snapshot, whatever its id", () => {
  const snapshot = parseSnapshot("720:725:721,722")
  const visible = [700, 719, 720, 721, 722, 723, 724, 725, 800].filter((xid) => isVisible(snapshot, xid))
  expect(visible).toEqual([700, 719, 720, 723, 724])
  expect(parseSnapshot("10:10:")).toEqual({ xmin: 10n, xmax: 10n, running: new Set() })
})

test("the stream's 32-bit ids are told apart around the end of an epoch", () => {
  const epoch = 1n << 32n
  // Just begun: ids below 3 do not exist, the last epoch's end is past.
  const young = parseSnapshot(`${5n * epoch + 10n}:${5n * epoch + 20n}:${5n * epoch + 12n}`)
  expect([4294967290, 5, 11, 12, 20, 30].map((xid) => isVisible(young, xid))).toEqual([true, true, true, false, false, false])
  // About to end: small ids belong to the next epoch.
  const old = parseSnapshot(`${6n * epoch - 20n}:${6n * epoch - 5n}:${6n * epoch - 10n}`)
  expect([4294967270, 4294967285, 4294967286, 4294967295, 3, 100].map((xid) => isVisible(old, xid))).toEqual([true, true, false, false, false, false])
  // A transaction that began before the epoch ended and runs still.
  const spanning = parseSnapshot(`${6n * epoch - 4n}:${6n * epoch + 8n}:${6n * epoch - 4n},${6n * epoch + 5n}`)
  expect([4294967292, 4294967293, 4, 5, 8].map((xid) => isVisible(spanning, xid))).toEqual([false, true, true, false, false])
})

test("rows enter except those that a transaction beyond the snapshot touched", () => {
  const brackets = new Brackets(0n)
  const bracket = open(brackets)
  brackets.note(table, "[1]", 90) // seen by the snapshot
  brackets.note(table, "[2]", 101) // under way
  brackets.note(table, "[3]", 90)
  brackets.note(table, "[3]", 200) // begun later
  brackets.note({ ...table, id: 2 }, "[4]", 200) // another table
  const found = read("100:110:101", "[1]", "[2]", "[3]", "[4]")
  expect(settledRows(bracket, found).map((row) => row.key)).toEqual(["[1]", "[4]"])
  expect(isOvertaken(bracket, found, "[2]")).toBe(true)
})

test("a truncate beyond the snapshot leaves nothing of what was read; an older one all", () => {
  const brackets = new Brackets(0n)
  const bracket = open(brackets)
  brackets.noteTruncate(table, 99)
  expect(settledRows(bracket, read("100:110:", "[1]"))).toHaveLength(1)
  brackets.noteTruncate(table, 110)
  expect(settledRows(bracket, read("100:110:", "[1]"))).toHaveLength(0)
})

test("a snapshot is good once it shows every streamed transaction, and every one before the start is over", () => {
  const brackets = new Brackets(100n)
  expect(brackets.covers(parseSnapshot("99:120:99"))).toBe(false)
  expect(brackets.covers(parseSnapshot("100:120:"))).toBe(true)
  brackets.noteTxn(119)
  brackets.noteTxn(125)
  expect(brackets.covers(parseSnapshot("119:121:119"))).toBe(false)
  expect(brackets.covers(parseSnapshot("121:124:"))).toBe(false)
  expect(brackets.remembered).toBe(1)
  expect(brackets.covers(parseSnapshot("126:126:"))).toBe(true)
  expect(brackets.remembered).toBe(0)
})
