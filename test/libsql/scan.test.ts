/** Rows are read from a line's text as JSON.parse would read them. */
import * as fc from "fast-check"
import { expect, test } from "vitest"
import { openPuts, scanRows, wireToBind } from "../../src/libsql/scan.ts"
import type { Kind, Wire } from "../../src/model/value.ts"

const seed = Number(process.env["SCHOOLBUS_SEED"] ?? 1)

const lineOf = (columns: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<Wire>>): string =>
  JSON.stringify(["puts", 5, 77, "public.things", columns, rows, rows.length])

const scanned = (kinds: ReadonlyArray<Kind>, rows: ReadonlyArray<ReadonlyArray<Wire>>, columns = kinds.map((_, i) => `c${i}`)) => {
  const text = lineOf(columns, rows)
  const opened = openPuts(text)
  if (opened === null) return null
  expect([opened.table, opened.columns]).toEqual(["public.things", columns])
  return scanRows(text, opened.rowsAt, kinds)
}
const parsed = (kinds: ReadonlyArray<Kind>, rows: ReadonlyArray<ReadonlyArray<Wire>>) =>
  (JSON.parse(JSON.stringify(rows)) as ReadonlyArray<ReadonlyArray<Wire>>).flatMap((row) => kinds.map((kind, i) => wireToBind(kind, row[i] ?? null)))

const whole = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n })
const text = fc.oneof(
  fc.string({ unit: "grapheme" }),
  fc.string({ unit: fc.constantFrom('"', "\\", "],[[", "]", "[", ",", "\n", "\u0000", "é", "👩‍🏫", "a") }),
)
const VALUES: { readonly [K in Kind]: fc.Arbitrary<Wire> } = {
  text,
  numeric: fc.oneof(whole.map(String), fc.constantFrom("0", "-0.00", "NaN", "Infinity", "-Infinity", "1e400", "12345678901234567890.123456789")),
  bigint: fc.oneof(whole, fc.bigInt({ min: -(10n ** 15n), max: 10n ** 15n })).map(String),
  int: fc.integer(),
  float: fc.oneof(fc.double({ noNaN: true, noDefaultInfinity: true }), fc.constantFrom<Wire>("NaN", "Infinity", "-Infinity")),
  bool: fc.boolean(),
  bytea: fc.uint8Array().map((bytes) => Buffer.from(bytes).toString("hex")),
}
const rowsOfKinds = fc.array(fc.constantFrom(...(Object.keys(VALUES) as ReadonlyArray<Kind>)), { minLength: 1, maxLength: 9 }).chain((kinds) =>
  fc.tuple(
    fc.constant(kinds),
    fc.array(fc.tuple(...kinds.map((kind) => fc.option(VALUES[kind], { freq: 6 }))) as fc.Arbitrary<ReadonlyArray<Wire>>, {
      minLength: 1,
      maxLength: 12,
    }),
  ),
)

test("rows of any values are read as JSON.parse reads them, and all of them by the quick way", () => {
  fc.assert(
    fc.property(rowsOfKinds, ([kinds, rows]) => {
      expect(scanned(kinds, rows)).toEqual(parsed(kinds, rows))
    }),
    { seed, numRuns: 2_000 },
  )
})

test("a column's name may look like anything", () => {
  const rows: ReadonlyArray<ReadonlyArray<Wire>> = [["x", 1]]
  fc.assert(
    fc.property(fc.array(text, { minLength: 2, maxLength: 2 }), (columns) => {
      const found = scanned(["text", "int"], rows, columns)
      if (found !== null) expect(found).toEqual(["x", 1])
    }),
    { seed, numRuns: 2_000 },
  )
})

test("what is not written as rows of these columns is left to JSON.parse", () => {
  const kinds: ReadonlyArray<Kind> = ["text", "int"]
  const at = (rows: string) => scanRows(rows, 0, kinds)
  expect(at('[["a",1],["b",-2]],2]')).toEqual(["a", 1, "b", -2])
  for (const other of ['[["a",1,2]],1]', '[["a"]],1]', '[["a", 1]],1]', '[[["a"],1]],1]', '[["a",1]', '[["a', '[["a",1', "[]", ""])
    expect(at(other)).toBeNull()
  expect(openPuts('["rows",5,1,"t",["a"],[[["x"],["x"]]],1]')).toBeNull()
})
