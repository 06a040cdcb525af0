import { describe, expect, test } from "vitest"
import { accept, firstShape, isWidening, judge, type Shape } from "../../src/down/shape.ts"
import type { Column } from "../../src/model/table.ts"
import { kindOf } from "../../src/model/value.ts"
import type { Found } from "../../src/postgres/catalog.ts"
import { column, table } from "../support/school-file.ts"
import { foundOf } from "../support/found.ts"

const base = table("pupils", [column("id", "int"), column("name"), column("points", "numeric", { type: "numeric(8,2)" })])
const first: Shape = firstShape(base, foundOf(base))

/** The table as a later catalog finds it; `numbers` are Postgres's own of the columns. */
const later = (columns: ReadonlyArray<Column>, numbers: ReadonlyArray<number>, more: Partial<Found> = {}, key = ["id"]): Found => {
  const now = { ...base, columns, key }
  return foundOf(now, {
    columns: new Map(columns.map((one, i) => [one.name, { number: numbers[i] ?? 0, missing: null, spelling: {} }])),
    ...more,
  })
}

describe("types", () => {
  test.each([
    ["character varying(40)", "character varying(80)", true],
    ["character varying(40)", "character varying(39)", false],
    ["character varying(40)", "text", true],
    ["text", "character varying", true],
    ["text", "character varying(40)", false],
    ["character(4)", "character(5)", false],
    ["numeric(8,2)", "numeric(10,2)", true],
    ["numeric(8,2)", "numeric(10,3)", false],
    ["numeric(8,2)", "numeric", true],
    ["numeric", "numeric(8,2)", false],
    ["integer", "bigint", false],
    ["timestamp(3) with time zone", "timestamp(6) with time zone", true],
    ["timestamp(3) with time zone", "timestamp with time zone", true],
    ["timestamp with time zone", "timestamp without time zone", false],
    ["text", "date", false],
    ["text[]", "text[]", true],
  ])("%s to %s keeps every value's text: %s", (from, to, expected) => {
    const names: Record<string, string> = { integer: "int4", bigint: "int8" }
    const kind = (type: string) => kindOf(names[type] ?? (type.startsWith("numeric") ? "numeric" : "text"))
    expect(isWidening({ type: from, kind: kind(from) }, { type: to, kind: kind(to) })).toBe(expected)
  })
})

describe("a later shape", () => {
  const [id, name, points] = base.columns as [Column, Column, Column]
  const code = (found: Found, standsAt: string | null = null) => {
    const verdict = judge(first, found, standsAt, true)
    return verdict.kind === "fits" ? (verdict.compare ? "compare" : "fits") : verdict.code
  }

  test.each<readonly [string, Found, string]>([
    ["the same", later([id, name, points], [1, 2, 3]), "fits"],
    ["another order", later([points, id, name], [3, 1, 2]), "fits"],
    ["a new column", later([id, name, points, column("extra")], [1, 2, 3, 4]), "fits"],
    ["written anew", later([id, name, points], [1, 2, 3], { filenode: "9" }), "compare"],
    ["with another right", later([id, name, points], [1, 2, 3], { stamp: { written: "701.1", facts: "b", key: "16405" } }), "fits"],
    ["as it was, after it was otherwise", later([id, name, points], [1, 2, 3], { stamp: { written: "701.1", facts: "a", key: "16405" } }), "compare"],
    ["with its key made anew", later([id, name, points], [1, 2, 3], { stamp: { written: "700.1", facts: "a", key: "16406" } }), "compare"],
    ["without a column", later([id, points], [1, 3]), "column_dropped"],
    ["a renamed column", later([id, { ...name, name: "label" }, points], [1, 2, 3]), "column_renamed"],
    ["names that swapped", later([id, { ...name, name: "points" }, { ...points, name: "name" }], [1, 2, 3]), "column_renamed"],
    ["a column made anew", later([id, name, points], [1, 4, 3]), "column_replaced"],
    ["another type", later([id, name, { ...points, type: "text", kind: "text" }], [1, 2, 3]), "type_changed"],
    ["another key", later([id, name, points], [1, 2, 3], {}, ["name"]), "key_changed"],
    ["made anew", later([id, name, points], [1, 2, 3], { oid: "1" }), "table_replaced"],
    ["gone", { ...foundOf(base), oid: null, table: null, problems: [{ code: "missing", text: "" }] }, "table_dropped"],
  ])("%s: %#", (_, found, expected) => expect(code(found)).toBe(expected))

  test("under another name is told from one that was dropped", () => {
    const gone: Found = { ...foundOf(base), oid: null, table: null, problems: [{ code: "missing", text: "" }] }
    expect(judge(first, gone, null, true)).toMatchObject({
      reason: "table public.pupils no longer exists; make it again, or take it out of the config",
    })
    expect(code(gone, "public.children")).toBe("table_renamed")
    expect(code(gone, "attic.pupils")).toBe("table_moved")
    expect(judge(first, gone, "public.Former pupils", true)).toMatchObject({
      reason: expect.stringContaining('ALTER TABLE public."Former pupils" RENAME TO pupils'),
    })
  })

  test("of a database that was put back is judged by names alone", () => {
    expect(judge(first, later([id, name, points], [1, 7, 9], { oid: "5", filenode: "5" }), null, false)).toMatchObject({
      kind: "fits",
      compare: false,
    })
  })

  test("a column whose older values are known is told at once, another one when it has been read", () => {
    const known = later([id, name, points, column("extra")], [1, 2, 3, 4])
    const filled: Found = { ...known, columns: new Map([...known.columns, ["extra", { number: 4, missing: "x", spelling: {} }]]) }
    const told = judge(first, filled, null, true)
    expect(told.kind === "fits" && told.shape.told.columns.at(-1)).toMatchObject({ name: "extra", number: 4, fill: "x" })
    const computed = judge(first, later([id, name, points, column("extra")], [1, 2, 3, 4], { filenode: "9" }), null, true)
    expect(computed.kind === "fits" && [computed.shape.table.columns.length, computed.shape.told.columns.length]).toEqual([4, 3])
  })

  test("is accepted: a renamed column goes on, another type is sent again, another key begins anew", () => {
    const renamed = later([id, { ...name, name: "label" }, points], [1, 2, 3])
    expect(accept(first, renamed, renamed.table ?? base)).toMatchObject({ from: ["id", "name", "points"], send: "differences" })
    const retyped = later([id, name, { ...points, type: "text", kind: "text" }], [1, 2, 3])
    expect(accept(first, retyped, retyped.table ?? base)).toMatchObject({ from: ["id", "name", null], send: "all", shape: { told: base } })
    const rekeyed = later([id, name, points], [1, 2, 3], {}, ["name"])
    expect(accept(first, rekeyed, rekeyed.table ?? base)).toMatchObject({ send: "anew", shape: { table: { generation: 2 } } })
  })
})
