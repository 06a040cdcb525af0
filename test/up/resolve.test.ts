import { describe, expect, test } from "vitest"
import type { Op } from "../../src/model/change.ts"
import type { Column, Strategy, Table } from "../../src/model/table.ts"
import { correctedTime, type Decision, type Proposal, resolve, type Row } from "../../src/up/resolve.ts"

const column = (name: string, generated = false): Column => ({ name, kind: "text", type: "text", notNull: false, generated })
const tableOf = (strategy: Strategy, columnStrategies: Table["columnStrategies"] = {}): Table => ({
  name: "public.t",
  local: "t",
  columns: [column("id"), column("a"), column("b"), column("computed", true)],
  key: ["id"],
  unique: [],
  references: [],
  audience: "all",
  direction: "both",
  priority: "medium",
  strategy,
  columnStrategies,
  system: false,
})
const proposal = (op: Op, base: Row, mine: Row, more: Partial<Proposal> = {}): Proposal => ({
  op,
  base,
  mine,
  at: 100,
  columnAt: {},
  respelled: new Set(),
  ...more,
})

const base = { id: "1", a: "base", b: "same" }
const office = { id: "1", a: "office", b: "same", computed: "x" }
const untouched = { ...base, computed: "x" }
const created = { id: "1", a: "school", b: "same" }
const update = proposal("update", base, { a: "school" })
const insert = proposal("insert", {}, created)
const remove = proposal("delete", base, {})

/** Strategy, time of head office's write, who wins. Times: the school wrote at 100. */
const RULES: ReadonlyArray<readonly [Strategy, number | null, "school" | "vps" | "open"]> = [
  ["school_wins", 200, "school"],
  ["vps_wins", 50, "vps"],
  ["newest_wins", 50, "school"],
  ["newest_wins", 100, "vps"],
  ["newest_wins", 200, "vps"],
  ["newest_wins", null, "school"],
  ["manual", 50, "open"],
]

const brief = ({ write, set, verdict, disagreements }: Decision) => ({ write, set, verdict, winners: disagreements.map((d) => [d.column, d.winner]) })

describe.each(RULES)("%s, head office at %s", (strategy, theirsAt, winner) => {
  const table = tableOf(strategy)
  const wins = winner === "school"
  // When a row went is not known, so the school's edit is the newer one.
  const goneWinner = strategy === "newest_wins" ? "school" : winner

  const cases: ReadonlyArray<readonly [string, Proposal, Row | null, ReturnType<typeof brief>]> = [
    ["insert, none", insert, null, { write: "insert", set: created, verdict: "applied", winners: [] }],
    ["insert, equal row", insert, { ...office, a: "school" }, { write: "nothing", set: {}, verdict: "applied", winners: [] }],
    [
      "insert, other row",
      insert,
      office,
      { write: wins ? "update" : "nothing", set: wins ? { a: "school" } : {}, verdict: "conflict", winners: [[null, winner]] },
    ],
    ["update, untouched row", update, untouched, { write: "update", set: { a: "school" }, verdict: "applied", winners: [] }],
    [
      "update, other column changed",
      update,
      { ...untouched, b: "office" },
      { write: "update", set: { a: "school" }, verdict: "merged", winners: [] },
    ],
    [
      "update, same column changed",
      update,
      office,
      { write: wins ? "update" : "nothing", set: wins ? { a: "school" } : {}, verdict: "conflict", winners: [["a", winner]] },
    ],
    ["update, same change made", update, { ...untouched, a: "school" }, { write: "nothing", set: {}, verdict: "applied", winners: [] }],
    [
      "update, none",
      update,
      null,
      {
        write: goneWinner === "school" ? "insert" : "nothing",
        set: goneWinner === "school" ? created : {},
        verdict: "conflict",
        winners: [[null, goneWinner]],
      },
    ],
    ["delete, untouched row", remove, untouched, { write: "delete", set: {}, verdict: "applied", winners: [] }],
    ["delete, changed row", remove, office, { write: wins ? "delete" : "nothing", set: {}, verdict: "conflict", winners: [[null, winner]] }],
    ["delete, none", remove, null, { write: "nothing", set: {}, verdict: "applied", winners: [] }],
  ]
  test.each(cases)("%s", (_, change, theirs, expected) => {
    expect(brief(resolve(table, change, theirs, theirsAt))).toEqual(expected)
  })
})

describe("resolve", () => {
  test("a record holds base, mine and theirs of the column, and of the whole row where that is the question", () => {
    expect(resolve(tableOf("vps_wins"), update, office, null).disagreements).toMatchObject([
      { column: "a", base: "base", mine: "school", theirs: "office" },
    ])
    expect(resolve(tableOf("vps_wins"), remove, office, null).disagreements).toMatchObject([{ column: null, base, mine: null, theirs: office }])
    expect(resolve(tableOf("vps_wins"), insert, office, null).disagreements).toMatchObject([
      { column: null, base: null, mine: created, theirs: office },
    ])
    expect(resolve(tableOf("vps_wins"), update, null, null).disagreements).toMatchObject([{ column: null, base, mine: created, theirs: null }])
  })
  test("a column's own strategy decides its column and no whole row", () => {
    const table = tableOf("vps_wins", { a: "school_wins" })
    expect(resolve(table, update, office, null).set).toEqual({ a: "school" })
    expect(resolve(table, insert, office, null).set).toEqual({})
  })
  test("columns are decided one by one, each with its own time", () => {
    const both = proposal("update", base, { a: "school", b: "school" }, { columnAt: { a: 10 } })
    const decision = resolve(tableOf("newest_wins"), both, { ...office, b: "office" }, 50)
    expect(brief(decision)).toEqual({
      write: "update",
      set: { b: "school" },
      verdict: "conflict",
      winners: [
        ["a", "vps"],
        ["b", "school"],
      ],
    })
  })
  test("a row that the school sent only in part is not made again: a person decides", () => {
    const part = proposal("update", { id: "1", a: "base" }, { a: "school" })
    expect(brief(resolve(tableOf("school_wins"), part, null, null))).toEqual({
      write: "nothing",
      set: {},
      verdict: "conflict",
      winners: [[null, "open"]],
    })
  })
  test("a column with an unknown base is in conflict unless both sides agree", () => {
    const unknown = proposal("update", { id: "1" }, { a: "school" })
    expect(resolve(tableOf("vps_wins"), unknown, office, null).verdict).toBe("conflict")
    expect(resolve(tableOf("vps_wins"), unknown, { ...office, a: "school" }, null).verdict).toBe("applied")
  })
  test("what was changed back is no edit", () => {
    const back = proposal("update", base, { a: "base" })
    expect(brief(resolve(tableOf("school_wins"), back, office, null))).toEqual({ write: "nothing", set: {}, verdict: "applied", winners: [] })
  })
  test("an equal value in another spelling is written, so that its spelling comes down", () => {
    const respelled = proposal("update", base, { a: "base" }, { respelled: new Set(["a"]) })
    expect(brief(resolve(tableOf("vps_wins"), respelled, untouched, null))).toEqual({
      write: "update",
      set: { a: "base" },
      verdict: "applied",
      winners: [],
    })
    expect(brief(resolve(tableOf("vps_wins"), respelled, office, null)).write).toBe("nothing")
  })
  test("what Postgres computes itself is no disagreement", () => {
    const known = proposal("delete", { ...base, computed: "old" }, {})
    expect(resolve(tableOf("vps_wins"), known, untouched, null).write).toBe("delete")
  })
  test("the decision repeated on its own result changes nothing", () => {
    for (const [strategy, theirsAt] of RULES) {
      const first = resolve(tableOf(strategy), update, office, theirsAt)
      const after = { ...office, ...first.set }
      const again = resolve(tableOf(strategy), update, after, theirsAt)
      expect({ ...after, ...again.set }).toEqual(after)
    }
  })
})

describe("times", () => {
  test.each([
    ["a clock that is right", 1_000, { offset: 0, contactAt: 900, now: 2_000 }, 1_000],
    ["a clock that is late", 1_000, { offset: 500, contactAt: 900, now: 2_000 }, 1_500],
    ["a clock in 2099", 4e12, { offset: 0, contactAt: 0, now: 2_000 }, 2_000],
    ["a clock in 1970, measured", 10, { offset: 1_000, contactAt: 5, now: 2_000 }, 1_010],
    ["a clock put back since the contact", 10, { offset: 0, contactAt: 900, now: 2_000 }, 10],
  ])("%s", (_, at, clock, expected) => expect(correctedTime(at, clock)).toBe(expected))
})
