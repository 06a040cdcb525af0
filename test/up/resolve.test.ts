import fc from "fast-check"
import { describe, expect, test } from "vitest"
import type { Op } from "../../src/model/change.ts"
import type { Column, ColumnRule, Strategy, Table } from "../../src/model/table.ts"
import { correctedTime, type Decision, type Office, type Proposal, resolve as decideRow, type Row } from "../../src/up/resolve.ts"

const column = (name: string, generated = false): Column => ({ name, kind: "text", type: "text", notNull: false, generated })
const tableOf = (strategy: Strategy, columnStrategies: Table["columnStrategies"] = {}, more: Partial<Table> = {}): Table => ({
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
  ...more,
})
const proposal = (op: Op, base: Row, mine: Row, more: Partial<Proposal> = {}): Proposal => ({
  op,
  base,
  mine,
  at: 100,
  columnAt: {},
  respelled: new Set(),
  settled: new Set(),
  ...more,
})
const resolve = (table: Table, change: Proposal, row: Row | null, at: number | null = null, more: Partial<Office> = {}): Decision =>
  decideRow(table, change, { row, at, columnAt: {}, isMineGreater: new Set(), ...more })

const base = { id: "1", a: "base", b: "same" }
const office = { id: "1", a: "office", b: "same", computed: "x" }
const untouched = { ...base, computed: "x" }
const created = { id: "1", a: "school", b: "same" }
const update = proposal("update", base, { a: "school" })
const insert = proposal("insert", {}, created)
const remove = proposal("delete", base, {})

/** Strategy, time of head office's write, who wins a row. Times: the school wrote at 100. */
const RULES: ReadonlyArray<readonly [Strategy, number | null, "school" | "vps" | "open"]> = [
  ["school_wins", 200, "school"],
  ["school_wins", null, "school"],
  ["vps_wins", 50, "vps"],
  ["vps_wins", null, "vps"],
  ["newest_wins", 50, "school"],
  ["newest_wins", 100, "vps"],
  ["newest_wins", 200, "vps"],
  ["newest_wins", null, "school"],
  ["manual", 50, "open"],
  ["manual", 200, "open"],
]

const brief = ({ write, set, verdict, disagreements }: Decision) => ({ write, set, verdict, winners: disagreements.map((d) => [d.column, d.winner]) })

describe.each(RULES)("%s, head office at %s", (strategy, theirsAt, winner) => {
  const table = tableOf(strategy)
  const wins = winner === "school"
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
    ["update, none", update, null, { write: wins ? "insert" : "nothing", set: wins ? created : {}, verdict: "conflict", winners: [[null, winner]] }],
    ["delete, untouched row", remove, untouched, { write: "delete", set: {}, verdict: "applied", winners: [] }],
    ["delete, changed row", remove, office, { write: wins ? "delete" : "nothing", set: {}, verdict: "conflict", winners: [[null, winner]] }],
    ["delete, none", remove, null, { write: "nothing", set: {}, verdict: "applied", winners: [] }],
  ]
  test.each(cases)("%s", (_, change, theirs, expected) => {
    const decision = resolve(table, change, theirs, theirsAt)
    expect(brief(decision)).toEqual(expected)
    for (const { kept, mine, theirs: other, winner: who } of decision.disagreements)
      expect(kept).toEqual(who === "school" ? (change.op === "insert" ? { ...office, ...created } : mine) : other)
  })
})

describe("merge, of whole rows", () => {
  const table = tableOf("merge", { a: "append", b: "manual" })
  test.each([
    ["insert, none", insert, null, { write: "insert", set: created, verdict: "applied", winners: [] }],
    ["insert, equal row", insert, { ...office, a: "school" }, { write: "nothing", set: {}, verdict: "applied", winners: [] }],
    ["insert, other row", insert, office, { write: "update", set: { a: "officeschool" }, verdict: "conflict", winners: [[null, "merged"]] }],
    [
      "insert, a column that only a person decides",
      proposal("insert", {}, { ...created, b: "school" }),
      office,
      {
        write: "update",
        set: { a: "officeschool" },
        verdict: "conflict",
        winners: [
          [null, "merged"],
          ["b", "open"],
        ],
      },
    ],
    ["update, none: the update wins", update, null, { write: "insert", set: created, verdict: "conflict", winners: [[null, "school"]] }],
    ["delete, changed row: the update wins", remove, office, { write: "nothing", set: {}, verdict: "conflict", winners: [[null, "vps"]] }],
    ["delete, untouched row", remove, untouched, { write: "delete", set: {}, verdict: "applied", winners: [] }],
    ["delete, none", remove, null, { write: "nothing", set: {}, verdict: "applied", winners: [] }],
  ] as ReadonlyArray<readonly [string, Proposal, Row | null, ReturnType<typeof brief>]>)("%s", (_, change, theirs, expected) => {
    expect(brief(resolve(table, change, theirs, 200))).toEqual(expected)
  })
  test("a number that both sides created starts at the column's default", () => {
    const points: Column = { name: "p", kind: "int", type: "integer", notNull: true, generated: false, default: 10 }
    const numbers = tableOf("merge", { p: "sum" }, { columns: [column("id"), points] })
    expect(resolve(numbers, proposal("insert", {}, { id: "1", p: 15 }), { id: "1", p: 12 }).set).toEqual({ p: 17 })
  })
  test("a column without a rule of its own takes the newer value", () => {
    const plain = tableOf("merge")
    expect(resolve(plain, update, office, 50).set).toEqual({ a: "school" })
    expect(resolve(plain, update, office, 100).set).toEqual({})
  })
})

/** Rule, kind, type, base, mine, theirs -> what stands, who won. */
const COLUMNS: ReadonlyArray<
  readonly [rule: ColumnRule, kind: Column["kind"], type: string, base: Row[string], mine: Row[string], theirs: Row[string], result: Row[string]]
> = [
  ["sum", "int", "integer", 10, 13, 15, 18],
  ["sum", "int", "integer", 10, 7, 15, 12],
  ["sum", "int", "integer", null, 3, 4, 7],
  ["sum", "int", "integer", 5, null, 9, 4],
  ["sum", "bigint", "bigint", "9007199254740993", "9007199254740995", "9007199254740994", "9007199254740996"],
  ["sum", "numeric", "numeric", "0.1", "0.3", "0.30", "0.50"],
  ["sum", "numeric", "numeric(30,10)", "12345678901234567890.0000000001", "12345678901234567890.0000000002", "-0.5", "-0.4999999999"],
  ["sum", "float", "double precision", 1.5, 2, 4.25, 4.75],
  ["max", "int", "integer", 1, 5, 3, 3],
  ["union", "text", "text[]", "{a,b}", "{a,c}", "{a,b,d}", "{a,d,c}"],
  ["union", "text", "text[]", null, '{"x y",c}', "{c}", '{c,"x y"}'],
  ["union", "text", "text", "a, b", "a, b, c", "a, b, d", "a, b, d, c"],
  ["union", "text", "text", "a,b", "a,b,c", "a,b,d", "a,b,d,c"],
  ["union", "text", "jsonb", "[1]", "[1, 12345678901234567890]", '[1, {"k": [2, 3]}]', '[1, {"k": [2, 3]}, 12345678901234567890]'],
  ["union", "text", "text", '["a"]', '["a","b"]', '["a","c"]', '["a", "c", "b"]'],
  ["append", "text", "text", "x", "x, y", "x, z", "x, z, y"],
  ["append", "text", "text", "x", "rewritten", "x, z", "x, z\nrewritten"],
  ["append", "text", "text[]", "{1}", "{1,2}", "{1,3}", "{1,3,2}"],
  ["append", "text", "integer[]", "{1}", "{2}", "{1,3}", "{1,3,2}"],
]

describe("rules of columns", () => {
  const one = (kind: Column["kind"], type: string, rule: ColumnRule) =>
    tableOf("vps_wins", { v: rule }, { columns: [column("id"), { name: "v", kind, type, notNull: false, generated: false }] })
  test.each(COLUMNS)("%s of %s %s: %j -> %j beside %j is %j", (rule, kind, type, before, mine, theirs, result) => {
    const decision = resolve(one(kind, type, rule), proposal("update", { v: before }, { v: mine }), { id: "1", v: theirs })
    expect(decision.set["v"] ?? theirs).toEqual(result)
    expect(decision.disagreements).toMatchObject([{ column: "v", winner: "merged", kept: result, strategy: rule }])
  })
  test.each([
    ["max", true, "mine"],
    ["max", false, "theirs"],
    ["min", true, "theirs"],
    ["min", false, "mine"],
  ] as const)("%s, mine after theirs in Postgres' order: %s -> %s", (rule, isGreater, who) => {
    const decision = resolve(one("text", "date", rule), proposal("update", { v: "base" }, { v: "mine" }), { id: "1", v: "theirs" }, null, {
      isMineGreater: new Set(isGreater ? ["v"] : []),
    })
    expect(decision.disagreements[0]?.kept).toBe(who)
  })
  test("sum counts both sides' edits also when they come to the same value", () => {
    const decision = resolve(one("int", "integer", "sum"), proposal("update", { v: 5 }, { v: 8 }), { id: "1", v: 8 })
    expect(brief(decision)).toEqual({ write: "update", set: { v: 11 }, verdict: "merged", winners: [] })
  })
  test("what head office made of the file's own former value is no disagreement, and is counted on from", () => {
    const settled = proposal("update", { v: 8 }, { v: 10 }, { settled: new Set(["v"]) })
    expect(brief(resolve(one("int", "integer", "sum"), settled, { id: "1", v: 9 }))).toEqual({
      write: "update",
      set: { v: 11 },
      verdict: "merged",
      winners: [],
    })
  })
  test("what cannot be put together waits for a person", () => {
    for (const [kind, type, rule, mine, theirs] of [
      ["numeric", "numeric", "sum", "NaN", "1"],
      ["text", "text[]", "union", "{{1},{2}}", "{}"],
      ["text", "jsonb", "append", "5", "[]"],
    ] as const) {
      const decision = resolve(one(kind, type, rule), proposal("update", { v: null }, { v: mine }), { id: "1", v: theirs })
      expect(brief(decision)).toMatchObject({ write: "nothing", winners: [["v", "open"]] })
    }
  })
})

describe("excluded columns", () => {
  const table = tableOf("manual", {}, { exclude: ["a"] })
  test("the later write stays, and nobody is told", () => {
    expect(brief(resolve(table, update, office, 50))).toEqual({ write: "update", set: { a: "school" }, verdict: "merged", winners: [] })
    expect(brief(resolve(table, update, office, 200))).toEqual({ write: "nothing", set: {}, verdict: "applied", winners: [] })
  })
  test("they make neither an insert nor a delete a conflict", () => {
    expect(brief(resolve(table, insert, office, 200))).toEqual({ write: "nothing", set: {}, verdict: "applied", winners: [] })
    expect(brief(resolve(table, insert, office, 50))).toEqual({ write: "update", set: { a: "school" }, verdict: "applied", winners: [] })
    expect(brief(resolve(table, remove, office, 200))).toMatchObject({ write: "delete", winners: [] })
  })
  test("an edit of nothing else does not bring a deleted row back", () => {
    expect(brief(resolve(table, update, null, 50))).toMatchObject({ write: "nothing", winners: [] })
    expect(brief(resolve(table, proposal("update", base, { a: "x", b: "y" }), null, 50))).toMatchObject({ winners: [[null, "open"]] })
  })
})

describe("resolve", () => {
  test("a record holds base, mine and theirs of the column, and of the whole row where that is the question", () => {
    expect(resolve(tableOf("vps_wins"), update, office).disagreements).toMatchObject([
      { column: "a", base: "base", mine: "school", theirs: "office", mineAt: 100, theirsAt: null },
    ])
    expect(resolve(tableOf("vps_wins"), remove, office).disagreements).toMatchObject([{ column: null, base, mine: null, theirs: office }])
    expect(resolve(tableOf("vps_wins"), insert, office).disagreements).toMatchObject([{ column: null, base: null, mine: created, theirs: office }])
    expect(resolve(tableOf("vps_wins"), update, null).disagreements).toMatchObject([{ column: null, base, mine: created, theirs: null }])
  })
  test("a column's own strategy decides its column and no whole row", () => {
    const table = tableOf("vps_wins", { a: "school_wins" })
    expect(resolve(table, update, office).set).toEqual({ a: "school" })
    expect(resolve(table, insert, office).set).toEqual({})
  })
  test("columns are decided one by one, each with its own time on both sides", () => {
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
    const known = resolve(tableOf("newest_wins"), both, { ...office, b: "office" }, 50, { columnAt: { a: 5, b: 300 } })
    expect(known.set).toEqual({ a: "school" })
    expect(resolve(tableOf("newest_wins"), both, { ...office, b: "office" }, 500, { columnAt: { a: null, b: null } }).set).toEqual({
      a: "school",
      b: "school",
    })
  })
  test("a whole row is as new as the newest column that the other side changed", () => {
    const columnAt = { a: 200, b: 5 }
    expect(resolve(tableOf("newest_wins"), remove, office, 500, { columnAt }).write).toBe("nothing")
    expect(resolve(tableOf("newest_wins"), remove, { ...base, b: "office" }, 500, { columnAt }).write).toBe("delete")
  })
  test("a row that the school sent only in part is not made again: a person decides", () => {
    const part = proposal("update", { id: "1", a: "base" }, { a: "school" })
    expect(brief(resolve(tableOf("school_wins"), part, null))).toEqual({
      write: "nothing",
      set: {},
      verdict: "conflict",
      winners: [[null, "open"]],
    })
  })
  test("a column with an unknown base is in conflict unless both sides agree", () => {
    const unknown = proposal("update", { id: "1" }, { a: "school" })
    expect(resolve(tableOf("vps_wins"), unknown, office).verdict).toBe("conflict")
    expect(resolve(tableOf("vps_wins"), unknown, { ...office, a: "school" }).verdict).toBe("applied")
  })
  test("what was changed back is no edit", () => {
    const back = proposal("update", base, { a: "base" })
    expect(brief(resolve(tableOf("school_wins"), back, office))).toEqual({ write: "nothing", set: {}, verdict: "applied", winners: [] })
  })
  test("an equal value in another spelling is written, so that its spelling comes down", () => {
    const respelled = proposal("update", base, { a: "base" }, { respelled: new Set(["a"]) })
    expect(brief(resolve(tableOf("vps_wins"), respelled, untouched))).toEqual({
      write: "update",
      set: { a: "base" },
      verdict: "applied",
      winners: [],
    })
    expect(brief(resolve(tableOf("vps_wins"), respelled, office)).write).toBe("nothing")
  })
  test("what Postgres computes itself is no disagreement", () => {
    const known = proposal("delete", { ...base, computed: "old" }, {})
    expect(resolve(tableOf("vps_wins"), known, untouched).write).toBe("delete")
  })
})

describe("properties", () => {
  const RULE: ReadonlyArray<ColumnRule> = ["school_wins", "vps_wins", "newest_wins", "manual", "max", "min", "union", "append"]
  const value = fc.constantFrom("a", "b", "a, b", "a, c", "")
  const row = fc.record({ id: fc.constant("1"), a: value, b: value })
  const change = fc.oneof(
    fc.record({ base: row, edit: fc.record({ a: value, b: value }, { requiredKeys: [] }) }).map((r) => proposal("update", r.base, r.edit)),
    row.map((mine) => proposal("insert", {}, mine)),
    row.map((before) => proposal("delete", before, {})),
  )
  const table = fc
    .record({
      strategy: fc.constantFrom<Strategy>("school_wins", "vps_wins", "newest_wins", "manual", "merge"),
      a: fc.option(fc.constantFrom(...RULE)),
      exclude: fc.subarray(["a", "b"]),
    })
    .map(({ strategy, a, exclude }) => tableOf(strategy, a === null ? {} : { a }, { exclude, columns: [column("id"), column("a"), column("b")] }))
  const world = fc.record({ table, change, theirs: fc.option(row), at: fc.option(fc.constantFrom(50, 100, 200)) })

  const outcome = (decision: Decision, theirs: Row | null): Row | null =>
    decision.write === "delete" ? null : decision.write === "nothing" ? theirs : { ...theirs, ...decision.set }

  test("the same input gives the same decision, and each side's values or their merge are all that can come of it", () => {
    fc.assert(
      fc.property(world, ({ table: t, change: c, theirs, at }) => {
        const first = resolve(t, c, theirs, at)
        expect(resolve(t, c, theirs, at)).toEqual(first)
        for (const one of first.disagreements) {
          if (one.winner === "vps" || one.winner === "open") expect(one.kept).toEqual(one.theirs)
          if (one.winner === "school" && one.column !== null) expect(one.kept).toEqual(one.mine)
        }
        const result = outcome(first, theirs)
        for (const one of first.disagreements) if (one.column !== null) expect(result?.[one.column] ?? null).toEqual(one.kept)
      }),
      { numRuns: 3_000 },
    )
  })

  test("convergent: with head office's answer taken over, no side has anything left to say", () => {
    fc.assert(
      fc.property(world, ({ table: t, change: c, theirs, at }) => {
        const first = resolve(t, c, theirs, at)
        if (first.disagreements.some((one) => one.winner === "open")) return
        const result = outcome(first, theirs)
        // The school shows the result; an edit that changes nothing asks for nothing.
        const quiet = result === null ? proposal("delete", base, {}) : proposal("update", result, result)
        expect(brief(resolve(t, quiet, result, at))).toMatchObject({ write: "nothing", winners: [] })
      }),
      { numRuns: 3_000 },
    )
  })

  test("no ping-pong: the same change again, as after a restored head office, changes nothing more", () => {
    fc.assert(
      fc.property(world, ({ table: t, change: c, theirs, at }) => {
        // Sums and lists carry the edit itself: the ledger keeps them from being applied twice.
        if (Object.values(t.columnStrategies).some((rule) => rule === "append" || rule === "union")) return
        const result = outcome(resolve(t, c, theirs, at), theirs)
        const greater = new Set<string>()
        const again = resolve(t, c, result, at, { isMineGreater: greater })
        const twice = outcome(again, result)
        if (c.op === "delete" && result !== null) return
        expect(outcome(resolve(t, c, twice, at), twice)).toEqual(twice)
      }),
      { numRuns: 3_000 },
    )
  })

  test("sum is exact whatever is lost, answered late or coalesced", () => {
    const points: Column = { name: "p", kind: "numeric", type: "numeric", notNull: true, generated: false }
    const t = tableOf("merge", { p: "sum" }, { columns: [column("id"), points] })
    const print = (cents: number): string =>
      `${cents < 0 ? "-" : ""}${Math.trunc(Math.abs(cents) / 100)}.${String(Math.abs(cents) % 100).padStart(2, "0")}`
    const step = fc.oneof(
      fc.record({ who: fc.constantFrom("a", "b"), add: fc.integer({ min: -500, max: 500 }) }),
      fc.record({ who: fc.constant("office"), add: fc.integer({ min: -500, max: 500 }) }),
      fc.record({ who: fc.constantFrom("push a", "push b", "lost a", "lost b", "pull a", "pull b"), add: fc.constant(0) }),
    )
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        let hub = 0
        let total = 0
        const ledger = new Map<string, number>()
        const open = () => ({ shows: 0, frozen: [] as Array<readonly [number, number]>, answered: 0, edit: null as number | null })
        const schools = { a: open(), b: open() }
        for (const { who, add } of steps) {
          const name = who.at(-1) === "b" ? "b" : "a"
          const school = schools[name]
          if (who === "office") {
            hub += add
            total += add
          } else if (who === "a" || who === "b") {
            school.edit ??= school.shows
            school.shows += add
            total += add
          } else if (who.startsWith("pull")) {
            // Nothing pulled is shown over an edit that has no verdict yet.
            if (school.edit === null && school.answered === school.frozen.length) school.shows = hub
          } else {
            if (school.edit !== null) school.frozen.push([school.edit, school.shows])
            school.edit = null
            for (let i = school.answered; i < school.frozen.length; i++) {
              const id = `${name} ${i}`
              const [from, to] = school.frozen[i] as readonly [number, number]
              // A batch that the ledger holds writes nothing.
              if (!ledger.has(id)) {
                const decision = resolve(t, proposal("update", { p: print(from) }, { p: print(to) }), { id: "1", p: print(hub) })
                hub = from === to ? hub : Math.round(Number(decision.set["p"] ?? print(hub)) * 100)
                ledger.set(id, hub)
              }
              if (who.startsWith("lost")) break
              school.answered = i + 1
            }
          }
        }
        const waiting = Object.entries(schools).reduce(
          (sum, [name, school]) =>
            sum +
            (school.edit === null ? 0 : school.shows - school.edit) +
            school.frozen.reduce((left, [from, to], i) => left + (ledger.has(`${name} ${i}`) ? 0 : to - from), 0),
          0,
        )
        expect(hub + waiting).toBe(total)
      }),
      { numRuns: 1_000 },
    )
  })
})

describe("times", () => {
  const DAY = 86_400_000
  const T = Date.parse("2026-03-01T00:00:00Z")
  const now = T + 10 * DAY
  const Y2099 = Date.parse("2099-01-01T00:00:00Z")
  test.each([
    ["a clock that is right", 5, T + DAY, [[4, T, T]], T + DAY],
    ["a clock that is a minute late", 5, T + DAY, [[4, T, T + 60_000]], T + DAY + 60_000],
    ["set to 1970 since the contact: not before it", 5, 10, [[4, T, T]], T],
    ["set to 2099 since the contact: not after the push", 5, Y2099, [[4, T, T]], now],
    ["in 1970 all along, as measured", 5, 70_000, [[4, 10_000, T]], T + 60_000],
    [
      "set to 2099, and measured at the next contact",
      5,
      Y2099,
      [
        [4, T, T],
        [9, Y2099 + 1_000, T + DAY],
      ],
      T + DAY - 1_000,
    ],
    [
      "set to 1970 and put right before the next contact: within the two",
      5,
      10,
      [
        [4, T, T],
        [9, T + DAY, T + DAY],
      ],
      T,
    ],
    ["captured before any contact", 5, T + DAY, [[7, T + 2 * DAY, T + 2 * DAY + 5]], T + DAY + 5],
    ["no contact at all", 5, Y2099, [], now],
    ["a contact that claims to be in the future", 5, T, [[4, T, now + DAY]], now],
  ] as ReadonlyArray<readonly [string, number, number, ReadonlyArray<readonly [number, number, number]>, number]>)(
    "%s",
    (_, id, at, contacts, expected) => {
      expect(correctedTime({ id, at }, contacts, now)).toBe(expected)
    },
  )
  test("whatever the clock says, a write lies between the contact before it and the push, in one order with its neighbours' contacts", () => {
    const contact = fc.tuple(fc.integer({ min: 0, max: 20 }), fc.integer({ min: -1e12, max: 5e12 }), fc.integer({ min: T, max: now + DAY }))
    fc.assert(
      fc.property(fc.array(contact), fc.integer({ min: 1, max: 21 }), fc.integer({ min: -1e13, max: 1e13 }), (all, id, at) => {
        const contacts = [...new Map(all.map((one) => [one[0], one])).values()].sort((x, y) => x[0] - y[0])
        const time = correctedTime({ id, at }, contacts, now)
        expect(time).toBeLessThanOrEqual(now)
        const before = contacts.findLast(([last]) => last < id)
        if (before !== undefined) expect(time).toBeGreaterThanOrEqual(Math.min(before[2], now))
      }),
    )
  })
})
