import { Buffer } from "node:buffer"
import fc from "fast-check"
import { expect, test } from "vitest"
import { audienceOf } from "../../src/down/audience.ts"
import { wal2jsonDecoder } from "../../src/down/decode.ts"
import { type FeedTable, rowKey } from "../../src/down/entry.ts"
import { PlainReader } from "../../src/down/plain.ts"
import type { Kind } from "../../src/model/value.ts"
import { RawMessage } from "../../src/postgres/messages.ts"

const table = (
  id: number,
  name: string,
  audienceAt: number,
  key: ReadonlyArray<number>,
  columns: ReadonlyArray<readonly [name: string, kind: Kind]>,
) =>
  ({
    id,
    name,
    audienceAt,
    key,
    columns: columns.map(([name, kind]) => ({ name, kind, toastable: kind === "text", generated: false })),
  }) as unknown as FeedTable

const things = table(
  7,
  "public.things",
  1,
  [0],
  [
    ["id", "bigint"],
    ["school", "text"],
    ['odd "name"é', "text"],
    ["price", "numeric"],
    ["ratio", "float"],
    ["n", "int"],
    ["ok", "bool"],
    ["raw", "bytea"],
  ],
)
const pairs = table(
  12,
  'public.odd "näme',
  -1,
  [2, 0],
  [
    ["a", "text"],
    ["b", "int"],
    ["c", "bigint"],
  ],
)
const tables = [things, pairs]

const value = (name: string, token: string) => `{"name":${JSON.stringify(name)},"value":${token}}`
const head = (action: string, of: FeedTable, xid: number, time: string) => {
  const [schema, name] = of.name.split(".")
  return `{"action":"${action}","xid":${xid},"timestamp":"2026-01-01 08:00:00${time}+00","schema":"${schema}","table":${JSON.stringify(name)}`
}

/** The message somewhere among others. */
const rawOf = (text: string): RawMessage => {
  const bytes = Buffer.from(`,"x"}${text},"columns":[{"name":`)
  return new RawMessage(bytes, 5, 5 + Buffer.byteLength(text))
}

/** What a row is to the feed, however it was read. */
const plainly = (reader: PlainReader, text: string) => {
  const row = reader.read(rawOf(text))
  if (row === null) return null
  const { source, keyFrom, keyTo, bodyFrom, bodyTo } = row
  expect(row.bytes).toBe(row)
  expect(row.id).toBe(rowKey(row.table.id, row.key))
  expect(Buffer.from(source.subarray(keyFrom, keyTo)).toString()).toBe(row.key)
  expect(Buffer.from(source.subarray(bodyFrom, bodyTo)).toString()).toBe(row.body)
  return { table: row.table.id, key: row.key, body: row.body, isInsert: row.isInsert, audience: row.audience, tokens: row.tokens }
}
const decoded = (decoder: ReturnType<typeof wal2jsonDecoder<FeedTable>>, text: string) => {
  const event = decoder.read(rawOf(text))
  if (event.kind !== "put" || event.oldKey !== null || event.stray !== undefined || event.tokens.includes(undefined)) return null
  const { table, key, isInsert, tokens } = event
  return { table: table.id, key, body: `[${tokens.join(",")}]`, isInsert, audience: audienceOf(table.audienceAt, tokens), tokens }
}

const number = fc.oneof(
  fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map(String),
  fc.constantFrom("0", "-7", "1.50", "-0", "1e+300", "1e-07"),
)
const string = fc.oneof(
  fc.string({ unit: fc.constantFrom("a", " ", '"', "\\", "é", "😀", "\n", "}", ",", "]") }).map((text) => JSON.stringify(text)),
  fc.constantFrom('"north"', '"south"'),
)
const quotes = fc.boolean()
/** A value as wal2json writes it, with exact numbers or without. */
const tokenOf = (kind: Kind, isExact: boolean): fc.Arbitrary<string> => {
  const plain: fc.Arbitrary<string> =
    kind === "text"
      ? string
      : kind === "bool"
        ? fc.constantFrom("true", "false")
        : kind === "bytea"
          ? fc.constantFrom('"\\\\x00ff"', '"\\\\x"')
          : isExact
            ? fc.oneof(
                number.map((text) => `"${text}"`),
                fc.constantFrom('"NaN"', '"Infinity"', '"-Infinity"'),
              )
            : number
  return fc.oneof({ weight: 6, arbitrary: plain }, { weight: 1, arbitrary: fc.constant("null") })
}
const message = fc
  .tuple(fc.constantFrom(...tables), quotes, fc.constantFrom("I", "U"), fc.integer({ min: 1, max: 20_000 }), fc.constantFrom("", ".1", ".123456"))
  .chain(([of, isExact, action, xid, time]) =>
    fc
      .tuple(
        fc.tuple(...of.columns.map(({ kind }) => tokenOf(kind, isExact))),
        fc.constantFrom("same", "none", "other", "whole"),
        fc.nat(of.columns.length - 1),
        fc.integer({ min: 0, max: 9 }),
      )
      .map(([tokens, identity, hole, isHoled]) => {
        const columns = of.columns.map(({ name }, i) => value(name, tokens[i] as string))
        const keys = [...of.key].sort((a, b) => a - b).map((i) => columns[i] as string)
        const old = { same: keys, none: [], whole: columns, other: keys.map((one) => one.replace(/.\}$/, "0}")) }[identity]
        const sent = isHoled === 0 ? columns.filter((_, i) => i !== hole) : columns
        return `${head(action, of, xid, time)},"columns":[${sent.join(",")}]${action === "U" && old.length > 0 ? `,"identity":[${old.join(",")}]` : ""}}`
      }),
  )

test("a row is read plainly as the decoder reads it, or left to the decoder", () => {
  let plain = 0
  fc.assert(
    fc.property(fc.array(message, { minLength: 1, maxLength: 20 }), (texts) => {
      const reader = new PlainReader(tables)
      const decoder = wal2jsonDecoder(tables)
      for (const text of texts) {
        const row = plainly(reader, text)
        if (row === null) continue
        plain++
        expect(row).toEqual(decoded(decoder, text))
      }
    }),
    { numRuns: 500 },
  )
  expect(plain).toBeGreaterThan(500)
})

test("damage never makes another row of it than the decoder would", () => {
  fc.assert(
    fc.property(message, message, fc.nat(), fc.constantFrom("", '"', "}", "]", ",", "\\", "x", "0", '","value":'), (first, text, place, what) => {
      const reader = new PlainReader(tables)
      plainly(reader, first)
      const at = place % text.length
      const damaged = text.slice(0, at) + what + text.slice(at + 1)
      const row = plainly(reader, damaged)
      if (row !== null) expect(row).toEqual(decoded(wal2jsonDecoder(tables), damaged))
    }),
    { numRuns: 3_000 },
  )
})

const columns = (id: string, rest: Readonly<Record<string, string>> = {}) =>
  things.columns.map(({ name, kind }) => value(name, name === "id" ? id : (rest[name] ?? (kind === "text" ? '"north"' : "null")))).join(",")

test("what most rows are is read plainly", () => {
  const reader = new PlainReader(tables)
  const row = { kind: "all", body: '["1","north","north",null,null,null,null,null]' }
  expect(plainly(reader, `${head("I", things, 1, "")},"columns":[${columns("1")}]}`)).toMatchObject({ body: row.body, key: '["1"]', isInsert: true })
  expect(plainly(reader, `${head("U", things, 22, ".5")},"columns":[${columns("1")}],"identity":[${value("id", "1")}]}`)).toMatchObject({
    isInsert: false,
  })
  expect(plainly(reader, `${head("I", things, 22, ".5")},"columns":[${columns('"1"')}]}`)).toMatchObject({ body: row.body })
  expect(plainly(reader, `${head("I", things, 22, ".5")},"columns":[${columns("1", { school: '"sü\\"d"' })}]}`)).toMatchObject({
    audience: { value: 'sü"d' },
  })
  expect(plainly(reader, `${head("I", things, 22, ".5")},"columns":[${columns("1", { school: "null" })}]}`)).toMatchObject({ audience: { no: -1 } })
})

test("what is not plain is left to the decoder", () => {
  const reader = new PlainReader(tables)
  const left = [
    `${head("U", things, 1, "")},"columns":[${columns("1")}],"identity":[${value("id", "2")}]}`,
    `${head("I", things, 1, "")},"columns":[${columns("1")},${value("more", "1")}]}`,
    `${head("I", things, 1, "")},"columns":[${columns("1", { raw: '"\\\\x00"' })}]}`,
    `${head("I", things, 1, "")},"columns":[${columns("1", { price: '"NaN"' })}]}`,
    `${head("I", things, 1, "")},"columns":[${columns("null")}]}`,
    `${head("D", things, 1, "")},"identity":[${value("id", "1")}]}`,
    ...['"a\\a"', '"a\\u12"', '"a\nb"'].map((damaged) => `${head("I", things, 1, "")},"columns":[${columns("1", { school: damaged })}]}`),
    // None of them is a number that Postgres prints.
    ...["-", "1.", "1.5.0", "1-5", "1+4", "1e", "1e+", "--1", '""', '".5"', '"e5"'].map(
      (price) => `${head("I", things, 1, "")},"columns":[${columns("1", { price })}]}`,
    ),
    `${head("I", things, 1, "").replace("things", "others")},"columns":[${columns("1")}]}`,
    `${head("I", things, 1, "")},"columns":[${columns("1", { school: JSON.stringify("x".repeat(70_000)) })}]}`,
    '{"action":"B","xid":700,"timestamp":"2026-01-01 08:00:00.123456+00"}',
    '{"action":"C"}',
  ]
  for (const text of left) expect(reader.read(rawOf(text)), text.slice(0, 200)).toBe(null)
  const invalid = Buffer.from(`${head("I", things, 1, "")},"columns":[${columns("1", { school: '"a~b"' })}]}`)
  expect(reader.read(new RawMessage(invalid, 0, invalid.length))).not.toBe(null)
  invalid[invalid.indexOf("~")] = 0xa7
  expect(reader.read(new RawMessage(invalid, 0, invalid.length))).toBe(null)
})

test("rows of a chunk stay as they are, however many there are of them", () => {
  const reader = new PlainReader(tables)
  const texts = Array.from({ length: 9_000 }, (_, i) => `${head("I", things, i, "")},"columns":[${columns(String(i), { school: `"s${i % 7}"` })}]}`)
  const rows = texts.map((text) => reader.read(rawOf(text)))
  rows.forEach((row, i) => {
    expect([row?.key, row?.audience, row?.tokens?.[1]]).toEqual([`["${i}"]`, { value: `s${i % 7}` }, `"s${i % 7}"`])
  })
})

test("of many schools each row has its own, however alike their names are", () => {
  const reader = new PlainReader(tables)
  const names = [
    ...Array.from({ length: 6_000 }, (_, i) => `school ${i}`),
    "Aa",
    "BB",
    "AaBB",
    "BBAa",
    "x".repeat(100),
    "x".repeat(200),
    `${"x".repeat(199)}y`,
  ]
  for (const name of [...names, ...names.toReversed()]) {
    const text = `${head("I", things, 1, "")},"columns":[${columns("1", { school: JSON.stringify(name) })}]}`
    expect(reader.read(rawOf(text))?.audience).toEqual({ value: name })
  }
})
