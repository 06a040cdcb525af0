import { Buffer } from "node:buffer"
import fc from "fast-check"
import { describe, expect, test } from "vitest"
import { type Decoder, type DecodeTable, type Event, wal2jsonDecoder, wal2jsonOptions } from "../../src/down/decode.ts"
import { pgoutputDecoder, pgoutputOptions } from "../../src/down/pgoutput.ts"
import type { Kind } from "../../src/model/value.ts"

const column = (name: string, kind: Kind, toastable = false, generated = false) => ({ name, kind, toastable, generated })
const things: DecodeTable = {
  name: "public.things",
  columns: [
    column("id", "bigint"),
    column('odd "name"é', "text", true),
    column("price", "numeric"),
    column("ratio", "float"),
    column("n", "int"),
    column("ok", "bool"),
    column("raw", "bytea", true),
  ],
  key: [0],
}
const pairs: DecodeTable = { name: "public.pairs", columns: [column("a", "text"), column("b", "numeric")], key: [1, 0] }
const names = ["id", 'odd "name"é', "price", "ratio", "n", "ok", "raw"]

// pgoutput, written by hand from the protocol's description.
const int = (bytes: number, value: number | bigint): Buffer => {
  const buffer = Buffer.alloc(8)
  buffer.writeBigInt64BE(BigInt(value))
  return buffer.subarray(8 - bytes)
}
const cstring = (text: string): Buffer => Buffer.concat([Buffer.from(text), Buffer.from([0])])
const message = (...parts: ReadonlyArray<Buffer | string>): string =>
  Buffer.concat(parts.map((part) => (typeof part === "string" ? Buffer.from(part) : part))).toString("latin1")
/** null; undefined = unchanged and out of line. */
type Field = string | null | undefined
const tuple = (values: ReadonlyArray<Field>): Buffer =>
  Buffer.concat([
    int(2, values.length),
    ...values.map((value) =>
      value === null
        ? Buffer.from("n")
        : value === undefined
          ? Buffer.from("u")
          : Buffer.concat([Buffer.from("t"), int(4, Buffer.byteLength(value)), Buffer.from(value)]),
    ),
  ])
const relation = (oid: number, schema: string, name: string, columns: ReadonlyArray<string>): string =>
  message(
    "R",
    int(4, oid),
    cstring(schema),
    cstring(name),
    "d",
    int(2, columns.length),
    ...columns.map((c) => Buffer.concat([int(1, 0), cstring(c), int(4, 25), int(4, -1)])),
  )
const opening = [
  relation(16400, "public", "things", names),
  relation(16401, "public", "pairs", ["a", "b"]),
  relation(16402, "public", "unlisted", ["x"]),
]

const row: ReadonlyArray<Field> = ["9007199254740993", 'é "x"\\ \n😀', "1.50", "0.1", "-7", "t", "\\x00ff"]
const w = (action: string, part: string, table = "things") => `{"action":"${action}","schema":"public","table":"${table}"${part}}`
const value = (name: string, token: string) => `{"name":${JSON.stringify(name)},"value":${token}}`
const tokens = ["9007199254740993", '"é \\"x\\"\\\\ \\n😀"', "1.50", "0.1", "-7", "true", '"00ff"']
const columnsOf = (list: ReadonlyArray<string>, only: (name: string) => boolean = () => true) =>
  `[${names.flatMap((name, i) => (only(name) ? [value(name, list[i] as string)] : [])).join(",")}]`
const body = ['"9007199254740993"', '"é \\"x\\"\\\\ \\n😀"', '"1.50"', "0.1", "-7", "true", '"00ff"']

/** What happened, as each plugin tells it, and what both must make of it. */
const cases: ReadonlyArray<readonly [what: string, wal2json: string, pgoutput: string, event: unknown]> = [
  [
    "a begin",
    '{"action":"B","xid":700,"timestamp":"2026-01-01 08:00:00.123456+00"}',
    message("B", int(8, 1), int(8, 820_569_600_123_456n), int(4, 700)),
    { kind: "begin", xid: 700, at: "2026-01-01 08:00:00.123456+00" },
  ],
  ["a commit", '{"action":"C"}', message("C", int(1, 0), int(8, 1), int(8, 2), int(8, 3)), { kind: "commit" }],
  [
    "an insert",
    w("I", `,"columns":${columnsOf(tokens)}`),
    message("I", int(4, 16400), "N", tuple(row)),
    { kind: "put", table: things, key: '["9007199254740993"]', tokens: body, oldKey: null, isInsert: true },
  ],
  [
    "an insert of nulls and of what is no number",
    w("I", `,"columns":${columnsOf(["1", '""', "null", "null", "null", "null", "null"])}`),
    message("I", int(4, 16400), "N", tuple(["1", "", null, null, null, null, null])),
    { kind: "put", table: things, key: '["1"]', tokens: ['"1"', '""', "null", "null", "null", "null", "null"], oldKey: null, isInsert: true },
  ],
  [
    "an update that leaves large values out",
    w("U", `,"columns":${columnsOf(tokens, (name) => name !== 'odd "name"é' && name !== "raw")},"identity":[${value("id", "9007199254740993")}]`),
    message("U", int(4, 16400), "N", tuple([row[0], undefined, ...row.slice(2, 6), undefined])),
    {
      kind: "put",
      table: things,
      key: '["9007199254740993"]',
      tokens: [body[0], undefined, ...body.slice(2, 6), undefined],
      oldKey: null,
      isInsert: false,
    },
  ],
  [
    "an update of the key",
    w("U", `,"columns":${columnsOf(tokens)},"identity":[${value("id", "5")}]`),
    message("U", int(4, 16400), "K", tuple(["5", null, null, null, null, null, null]), "N", tuple(row)),
    { kind: "put", table: things, key: '["9007199254740993"]', tokens: body, oldKey: '["5"]', isInsert: false },
  ],
  [
    "an update with the whole old row",
    w("U", `,"columns":${columnsOf(tokens, (name) => name !== "raw")},"identity":${columnsOf(tokens)}`),
    message("U", int(4, 16400), "O", tuple(row), "N", tuple([...row.slice(0, 6), undefined])),
    { kind: "put", table: things, key: '["9007199254740993"]', tokens: body, oldKey: null, isInsert: false },
  ],
  [
    "a delete, its key in the key's own order",
    w("D", `,"identity":[${value("a", '"x"')},${value("b", "1.0")}]`, "pairs"),
    message("D", int(4, 16401), "K", tuple(["x", "1.0"])),
    { kind: "delete", table: pairs, key: '["1.0","x"]' },
  ],
  ["a truncate", w("T", "", "pairs"), message("T", int(4, 1), int(1, 0), int(4, 16401)), { kind: "truncate", tables: [pairs] }],
  [
    "a row of a table that is not synced",
    w("I", `,"columns":[${value("x", "1")}]`, "unlisted"),
    message("I", int(4, 16402), "N", tuple(["1"])),
    { kind: "none" },
  ],
  [
    "a message of somebody",
    '{"action":"M","transactional":true,"prefix":"p","content":"c"}',
    message("M", int(1, 0), int(8, 1), cstring("p"), int(4, 1), "c"),
    { kind: "none" },
  ],
]

const wal2json = (): Decoder<DecodeTable> => wal2jsonDecoder([things, pairs])
const pgoutput = (): Decoder<DecodeTable> => {
  const decoder = pgoutputDecoder([things, pairs])
  for (const text of opening) expect(decoder.read(text)).toEqual({ kind: "none" })
  return decoder
}

describe.each([
  ["wal2json", wal2json, wal2jsonOptions([]), 1],
  ["pgoutput", pgoutput, pgoutputOptions("p"), 2],
] as const)("%s", (_, make, options, at) => {
  test.each(cases.map((one) => [one[0], one[at], one[3]] as const))("%s", (_what, text, event) => {
    const decoder = make()
    expect(decoder.read(text)).toEqual(event)
    const { kind } = event as Event<DecodeTable>
    expect([decoder.isBound(text), text.charCodeAt(options.form.commit.at) === options.form.commit.byte]).toEqual([
      kind === "begin" || kind === "commit",
      kind === "commit",
    ])
  })

  test("a damaged message breaks nothing, and the next one is read", () => {
    fc.assert(
      fc.property(fc.constantFrom(...cases), fc.nat(400), fc.nat(255), (one, where, byte) => {
        const decoder = make()
        const text = one[at]
        const cut = where % text.length
        for (const damaged of [text.slice(0, cut), `${text.slice(0, cut)}${String.fromCharCode(byte)}${text.slice(cut + 1)}`, ""]) {
          // One that has become a description of columns is no damage that a decoder could see.
          if (!damaged.startsWith("R")) expect(typeof decoder.read(damaged).kind).toBe("string")
        }
        expect(decoder.read(text)).toEqual(one[3])
      }),
      { numRuns: 300 },
    )
  })
})

test("wal2json 2.6 writes numbers as strings, so NaN and infinities arrive", () => {
  const list = ['"1"', '"x"', '"NaN"', '"-Infinity"', '"3"', "true", '"00"']
  expect(wal2json().read(w("I", `,"columns":${columnsOf(list)}`))).toMatchObject({
    tokens: ['"1"', '"x"', '"NaN"', '"-Infinity"', "3", "true", '"00"'],
  })
})

test("a numeric key that wal2json writes as null names no row: its table is to be compared", () => {
  const decoder = wal2json()
  const identity = `,"identity":[${value("a", '"x"')},${value("b", "null")}]`
  expect(decoder.read(w("D", identity, "pairs"))).toEqual({ kind: "unnamed", table: pairs })
  expect(decoder.read(w("I", `,"columns":[${value("a", '"x"')},${value("b", "null")}]`, "pairs"))).toEqual({ kind: "unnamed", table: pairs })
})

test("pgoutput truncates several tables in one message, and skips types and origins", () => {
  const decoder = pgoutput()
  expect(decoder.read(message("T", int(4, 3), int(1, 1), int(4, 16400), int(4, 16402), int(4, 16401)))).toEqual({
    kind: "truncate",
    tables: [things, pairs],
  })
  expect(decoder.read(message("Y", int(4, 99), cstring("public"), cstring("mood")))).toEqual({ kind: "none" })
  expect(decoder.read(message("O", int(8, 1), cstring("elsewhere")))).toEqual({ kind: "none" })
  expect(decoder.read(message("I", int(4, 4711), "N", tuple(["1"]))).kind).toBe("unreadable")
})

test("pgoutput's relation tells the order of the columns, and again when it changes", () => {
  const decoder = pgoutput()
  decoder.read(relation(16401, "public", "pairs", ["b", "a"]))
  expect(decoder.read(message("I", int(4, 16401), "N", tuple(["2.0", "y"])))).toMatchObject({ key: '["2.0","y"]', tokens: ['"y"', '"2.0"'] })
})

test("a table's name is escaped for wal2json, the publication's quoted for pgoutput", () => {
  expect(wal2jsonOptions(["public.a b", "my.x,y*z.w"]).required.at(-1)).toEqual(["add-tables", "public.a\\ b,my.x\\,y\\*z\\.w"])
  expect(pgoutputOptions('school"bus').required.at(-1)).toEqual(["publication_names", '"school""bus"'])
})
