import { expect, test } from "vitest"
import { judgeStanding, type Standing } from "../../src/down/resume.ts"

const well: Standing = {
  feed: { lsn: 100n, life: "b", lifeLast: "a", systemId: "7", timeline: 1 },
  slot: { walStatus: "reserved", confirmed: 90n, plugin: "wal2json", twoPhase: false },
  plugin: "wal2json",
  life: "b",
  isLifeOlder: false,
  isOtherPast: false,
  cluster: { systemId: "7", timeline: 1 },
  publication: null,
}
const slot = { walStatus: "reserved", confirmed: 90n, plugin: "wal2json", twoPhase: false }
const published = (exists: boolean, gaps: ReadonlyArray<string>): Partial<Standing> => ({ publication: { name: "schoolbus_school", exists, gaps } })

test.each<[string, Partial<Standing>, RegExp | null, { readonly isUseless: boolean; readonly isNewEpoch: boolean; readonly isPutBack: boolean }]>([
  ["nothing has changed", {}, null, { isUseless: false, isNewEpoch: false, isPutBack: false }],
  [
    "the life before the present one stands there: the hub was killed while it wrote the next",
    { life: "a" },
    null,
    { isUseless: false, isNewEpoch: false, isPutBack: false },
  ],
  ["Postgres has no life number", { life: null }, null, { isUseless: false, isNewEpoch: false, isPutBack: false }],
  ["no slot", { slot: null }, /does not exist/, { isUseless: false, isNewEpoch: false, isPutBack: false }],
  ["the slot is lost", { slot: { ...slot, walStatus: "lost" } }, /slot is lost/, { isUseless: true, isNewEpoch: false, isPutBack: false }],
  [
    "the slot is of the other plugin",
    { plugin: "pgoutput" },
    /made for wal2json, the config says pgoutput/,
    { isUseless: true, isNewEpoch: false, isPutBack: false },
  ],
  ["a physical slot", { slot: { ...slot, plugin: null } }, /is a physical one/, { isUseless: true, isNewEpoch: false, isPutBack: false }],
  ["a slot of two-phase commits", { slot: { ...slot, twoPhase: true } }, /two_phase/, { isUseless: true, isNewEpoch: false, isPutBack: false }],
  ["the slot is ahead", { slot: { ...slot, confirmed: 101n } }, /ahead of the feed/, { isUseless: false, isNewEpoch: false, isPutBack: false }],
  ["the publication is whole", published(true, []), null, { isUseless: false, isNewEpoch: false, isPutBack: false }],
  [
    "a table was not published",
    published(true, ["public.students"]),
    /did not hold public\.students all/,
    { isUseless: true, isNewEpoch: false, isPutBack: false },
  ],
  ["there was no publication", published(false, []), /it did not exist/, { isUseless: true, isNewEpoch: false, isPutBack: false }],
  [
    "another cluster",
    { cluster: { systemId: "8", timeline: 1 } },
    /another cluster or timeline/,
    { isUseless: false, isNewEpoch: true, isPutBack: true },
  ],
  [
    "another timeline",
    { cluster: { systemId: "7", timeline: 2 } },
    /another cluster or timeline/,
    { isUseless: false, isNewEpoch: true, isPutBack: true },
  ],
  ["a life that this feed never wrote", { life: "z" }, /put back/, { isUseless: false, isNewEpoch: true, isPutBack: false }],
  ["a life from before the last txn", { life: "z", isLifeOlder: true }, /put back/, { isUseless: false, isNewEpoch: true, isPutBack: true }],
  ["Postgres does not know the last txn", { isOtherPast: true }, /put back/, { isUseless: false, isNewEpoch: true, isPutBack: true }],
  ["no slot, and another life", { slot: null, life: "z" }, /does not exist/, { isUseless: false, isNewEpoch: true, isPutBack: false }],
])("%s", (_, change, compare, rest) => {
  const { compare: reason, ...judged } = judgeStanding({ ...well, ...change })
  if (compare === null) expect(reason).toBe(null)
  else expect(reason).toMatch(compare)
  expect(judged).toEqual(rest)
})

test("a feed without a row has nothing to compare, and its epoch is as good as new", () => {
  const feed = { lsn: 0n, life: null, lifeLast: null, systemId: null, timeline: null }
  expect(judgeStanding({ ...well, feed, slot: null })).toEqual({ compare: null, isUseless: false, isNewEpoch: false, isPutBack: false })
  expect(judgeStanding({ ...well, feed: { ...well.feed, lsn: 0n }, life: "z" })).toEqual({
    compare: null,
    isUseless: false,
    isNewEpoch: false,
    isPutBack: false,
  })
})
