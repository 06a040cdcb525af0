/**
 * Columns of every kind of Postgres type with values as SQL input text: the extremes that each must carry, and random
 * ones. Derived types (domains, arrays, composite, enums, ranges) are made from these at random.
 */
import fc from "fast-check"

export interface TypeSpec {
  /** As written in CREATE TABLE. */
  readonly sql: string
  /** Statements that make the type. */
  readonly ddl: ReadonlyArray<string>
  readonly edges: ReadonlyArray<string>
  readonly value: fc.Arbitrary<string>
  /** Between the elements of its arrays, where it is not a comma. */
  readonly delimiter?: string
}

const spec = (sql: string, edges: ReadonlyArray<string>, value?: fc.Arbitrary<string>): TypeSpec => ({
  sql,
  ddl: [],
  edges,
  value: value ?? fc.constantFrom(...edges),
})

const int = (min: number, max: number) => fc.integer({ min, max })
const big = (min: bigint, max: bigint) => fc.bigInt({ min, max }).map(String)
const digits = (max: number) => fc.string({ unit: fc.constantFrom(..."0123456789"), minLength: 1, maxLength: max })
const hex = (max: number) =>
  fc.string({ unit: fc.constantFrom(..."0123456789abcdef"), minLength: 2, maxLength: max }).map((s) => s.slice(0, s.length & ~1))
const bits = (min: number, max: number) => fc.string({ unit: fc.constantFrom("0", "1"), minLength: min, maxLength: max })
/** Anything but NUL, which Postgres has no place for. */
const anyText = fc
  .oneof(fc.string({ unit: "binary", maxLength: 30 }), fc.string({ unit: "grapheme", maxLength: 30 }), fc.string({ maxLength: 30 }))
  .map((s) => s.replaceAll("\0", "\u0001"))
const word = fc.string({ unit: fc.constantFrom(..."abcXYZäß€字_"), minLength: 1, maxLength: 8 })
const pad = (n: number, width = 2) => String(n).padStart(width, "0")
const day = fc
  .tuple(int(1, 9999), int(1, 12), int(1, 28), fc.boolean())
  .map(([y, m, d, bc]) => `${pad(y, 4)}-${pad(m)}-${pad(d)}${bc && y < 4000 ? " BC" : ""}`)
const clock = fc.tuple(int(0, 23), int(0, 59), int(0, 59), int(0, 999_999)).map(([h, m, s, us]) => `${pad(h)}:${pad(m)}:${pad(s)}.${pad(us, 6)}`)
const offset = fc.constantFrom("+00", "+05:45", "-09:30", "+14", "-12")
const stamp = fc.tuple(int(1, 9999), int(1, 12), int(1, 28), clock).map(([y, m, d, t]) => `${pad(y, 4)}-${pad(m)}-${pad(d)} ${t}`)
const float = fc.double({ noNaN: true, noDefaultInfinity: true }).map((n) => (Object.is(n, -0) ? "-0" : String(n)))
const small = int(-1000, 1000)
const point = fc.tuple(small, float).map(([x, y]) => `(${x},${y})`)
const numeric = fc.tuple(fc.constantFrom("", "-"), digits(60), digits(40)).map(([sign, whole, part]) => `${sign}${whole}.${part}`)
const jsonText = fc.json({ maxDepth: 2 }).filter((s) => !s.includes("\\u0000"))
const rangeOf = (element: fc.Arbitrary<number>, print: (n: number) => string) =>
  fc
    .tuple(element, element, fc.constantFrom("[", "("), fc.constantFrom("]", ")"), fc.constantFrom("both", "lower", "upper", "none"))
    .map(([a, b, l, u, has]) => {
      const [lo, hi] = a <= b ? [a, b] : [b, a]
      const from = has === "both" || has === "lower" ? print(lo) : ""
      const to = has === "both" || has === "upper" ? print(hi) : ""
      return `${from === "" ? "(" : l}${from},${to}${to === "" ? ")" : u}`
    })
const dayNumber = (n: number) => new Date(Date.UTC(2000, 0, 1) + n * 86_400_000).toISOString().slice(0, 10)

const TEXT_EDGES = [
  "",
  " ",
  "'",
  '"',
  "\\",
  "\\x00",
  "\t\n\r\b\f\u0001\u007f",
  "NULL",
  "null",
  "{}",
  "😀👩‍👩‍👧‍👦",
  "שלום",
  "مرحبا",
  "e\u0301",
  "\u2028\u2029\ufeff\uffff",
  "1.50",
  "1e5",
  "0x10",
  "t",
  "</script>",
]
const NUMERIC_EDGES = [
  "0",
  "-0",
  "0.00",
  "1.50",
  "NaN",
  "-1",
  "0.000000000000000000000000000001",
  `${"9".repeat(500)}.${"1".repeat(500)}`,
  `-${"7".repeat(1000)}`,
  "1e-100",
  "1e100",
  "Infinity",
  "-Infinity",
]
const FLOAT_EDGES = ["0", "-0", "NaN", "Infinity", "-Infinity", "0.1", "1e-5", "100000000000000000000", "-1.5"]
const DATE_EDGES = [
  "2026-01-01",
  "9999-12-31",
  "0001-01-01",
  "0044-03-15 BC",
  "infinity",
  "-infinity",
  "5874897-12-31",
  "4713-01-01 BC",
  "2024-02-29",
]
const STAMP_EDGES = [
  "2026-01-01 00:00:00",
  "2026-01-01 00:00:00.000001",
  "9999-12-31 23:59:59.999999",
  "0044-03-15 12:00:00 BC",
  "infinity",
  "-infinity",
  "294276-12-31 23:59:59.999999",
  "2026-06-30 08:00:00.120000",
]
const INTERVAL_EDGES = [
  "0",
  "1 year 2 months -3 days +04:05:06.789",
  "-1 year",
  "178000000 years",
  "-00:00:00.000001",
  "1 month -1 day",
  "PT-0.5S",
  "-1 day +1 hour",
  "1000000 days",
]

export const scalars: ReadonlyArray<TypeSpec> = [
  spec("smallint", ["0", "32767", "-32768"], int(-32768, 32767).map(String)),
  spec("integer", ["0", "2147483647", "-2147483648"], int(-2147483648, 2147483647).map(String)),
  spec("bigint", ["0", "9223372036854775807", "-9223372036854775808", "9007199254740993"], big(-(2n ** 63n), 2n ** 63n - 1n)),
  spec("oid", ["0", "4294967295"], big(0n, 2n ** 32n - 1n)),
  spec("numeric", NUMERIC_EDGES, numeric),
  spec(
    "numeric(10,2)",
    ["0", "1.5", "-99999999.99", "NaN"],
    small.map((n) => `${n}.25`),
  ),
  spec(
    "numeric(3,-2)",
    ["12300", "-99900"],
    small.map((n) => `${n * 50}`),
  ),
  spec(
    "real",
    [...FLOAT_EDGES, "3.4028235e+38", "1.17549435e-38", "1e-45", "16777217"],
    fc.float({ noNaN: true, noDefaultInfinity: true }).map((n) => (Object.is(n, -0) ? "-0" : String(n))),
  ),
  spec(
    "double precision",
    [...FLOAT_EDGES, "1.7976931348623157e+308", "5e-324", "2.2250738585072014e-308", "9007199254740993", "0.30000000000000004"],
    float,
  ),
  spec(
    "money",
    ["0", "1234.56", "-92233720368547758.08", "92233720368547758.07"],
    small.map((n) => `${n}.05`),
  ),
  spec("boolean", ["true", "false"]),
  spec(
    "bytea",
    ["\\x", "\\x00", "\\x00ff00", "\\xdeadbeef", "\\x5c5c78"],
    hex(60).map((s) => `\\x${s}`),
  ),
  spec("text", TEXT_EDGES, anyText),
  spec(
    "character varying(40)",
    ["", "  padded  ", "😀".repeat(40)],
    anyText.map((s) => [...s].slice(0, 40).join("")),
  ),
  spec(
    "character(5)",
    ["", "a", "a    ", "😀", "12345"],
    word.map((s) => [...s].slice(0, 5).join("")),
  ),
  spec('"char"', ["", "a", "\\", '"'], fc.constantFrom("x", "Z", "~", "\t")),
  spec("name", ["", "n", "a b'c"], word),
  spec("uuid", ["00000000-0000-0000-0000-000000000000", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"], fc.uuid()),
  spec("date", DATE_EDGES, day),
  spec("time", ["00:00", "24:00:00", "23:59:59.999999"], clock),
  spec(
    "time(2) with time zone",
    ["00:00+15:59:59", "12:00:00.25-08"],
    fc.tuple(clock, offset).map(([t, z]) => t + z),
  ),
  spec("timestamp", STAMP_EDGES, stamp),
  spec("timestamp(3)", ["2026-01-01 00:00:00.1236"], stamp),
  spec(
    "timestamptz",
    STAMP_EDGES.map((s) => (s.includes("BC") || s.includes("inf") ? s : `${s}+05:45`)),
    fc.tuple(stamp, offset).map(([t, z]) => t + z),
  ),
  spec(
    "interval",
    INTERVAL_EDGES,
    fc.tuple(small, small, small, clock).map(([y, m, d, t]) => `${y} years ${m} mons ${d} days ${t}`),
  ),
  spec(
    "interval day to second(3)",
    ["1 02:03:04.5678", "-5"],
    small.map((n) => `${n} days`),
  ),
  spec(
    "inet",
    ["127.0.0.1", "10.1.2.3/8", "::1", "2001:db8::/32", "::ffff:1.2.3.4"],
    fc.tuple(fc.ipV4(), int(0, 32)).map(([ip, n]) => `${ip}/${n}`),
  ),
  spec(
    "cidr",
    ["10.0.0.0/8", "::/0"],
    fc.tuple(int(0, 255), int(8, 32)).map(([a]) => `${a}.0.0.0/8`),
  ),
  spec(
    "macaddr",
    ["08:00:2b:01:02:03"],
    hex(12).filter((s) => s.length === 12),
  ),
  spec("macaddr8", ["08:00:2b:01:02:03:04:05"]),
  spec("bit(7)", ["0000000", "1010101"], bits(7, 7)),
  spec("bit varying(20)", ["", "1"], bits(0, 20)),
  spec("json", ['{"a":1.10,"a":2}', " [1, 2]\n", "null", '"\\ud83d\\ude00"', "1e400", '{"k":"\\u0001"}'], jsonText),
  spec("jsonb", ['{"a":1.10,"a":2}', "null", '"\\ud83d\\ude00"', "123456789012345678901234567890.10"], jsonText),
  spec(
    "xml",
    ["<a>é😀</a>", "text", "<a b='1'/>"],
    word.map((s) => `<${s[0] === "_" ? "x" : "x"}>${s}</x>`),
  ),
  spec("point", ["(0,0)", "(-0,1e300)", "(NaN,Infinity)"], point),
  spec("line", ["{1,2,3}", "{0.1,-0.5,1e10}"]),
  spec(
    "lseg",
    ["[(0,0),(1.5,-2)]"],
    fc.tuple(point, point).map(([a, b]) => `[${a},${b}]`),
  ),
  {
    ...spec(
      "box",
      ["(1,1),(0,0)"],
      fc.tuple(point, point).map(([a, b]) => `${a},${b}`),
    ),
    delimiter: ";",
  },
  spec(
    "path",
    ["((0,0),(1,1))", "[(0,0),(1,1),(2,0.1)]"],
    fc.array(point, { minLength: 1, maxLength: 4 }).map((p) => `[${p.join(",")}]`),
  ),
  spec(
    "polygon",
    ["((0,0),(1,1),(1,0))"],
    fc.array(point, { minLength: 1, maxLength: 4 }).map((p) => `(${p.join(",")})`),
  ),
  spec("circle", ["<(0,0),5>", "<(1.1,2.2),0.1>"]),
  spec(
    "tsvector",
    ["", "'a':1A,2B 'b c' 'd''e':3"],
    fc.array(word, { maxLength: 5 }).map((w) => w.map((s, i) => `'${s}':${i + 1}`).join(" ")),
  ),
  spec(
    "tsquery",
    ["'a' & !'b' <-> 'c':*A"],
    fc.tuple(word, word).map(([a, b]) => `'${a}' | '${b}'`),
  ),
  spec("int4range", ["empty", "[1,10)", "(,)", "[,5]"], rangeOf(small, String)),
  spec("int8range", ["[-9223372036854775808,9223372036854775807)"], rangeOf(small, String)),
  spec(
    "numrange",
    ["[0.00,1.50]", "(,NaN]"],
    rangeOf(small, (n) => `${n}.10`),
  ),
  spec("daterange", ["[2026-01-01,infinity)", "empty"], rangeOf(small, dayNumber)),
  spec(
    "tsrange",
    ['["2026-01-01 00:00:00","2026-01-01 00:00:00.000001")'],
    rangeOf(small, (n) => `"${dayNumber(n)} 12:00:00.5"`),
  ),
  spec(
    "tstzrange",
    ['["2026-01-01 00:00:00+05:45",infinity)'],
    rangeOf(small, (n) => `"${dayNumber(n)} 12:00:00-03"`),
  ),
  spec(
    "int4multirange",
    ["{}", "{[1,2),[5,9)}"],
    fc.array(rangeOf(small, String), { maxLength: 3 }).map((r) => `{${r.join(",")}}`),
  ),
  spec("tstzmultirange", ['{["2026-01-01 00:00:00+00","2026-01-02 00:00:00+00")}']),
  spec("pg_lsn", ["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"]),
  spec("xid", ["0", "4294967295"]),
  spec("xid8", ["18446744073709551615"]),
  spec("tid", ["(0,1)", "(4294967295,65535)"]),
  spec("pg_snapshot", ["10:20:10,14,15"]),
  spec("regtype", ["integer", "text[]"]),
  spec("regclass", ["pg_class"]),
  spec("jsonpath", ["$.a[*] ? (@ > 1)"]),
  spec(
    "hstore",
    ["", '"a"=>"1", "b b"=>NULL', '"q\\"uote"=>"back\\\\slash"', '"é"=>"😀"'],
    fc.tuple(word, word).map(([a, b]) => `"${a}"=>"${b}"`),
  ),
  spec("citext", ["MiXed", "ÄÖ"], anyText),
  spec("ltree", ["Top.Science.x_1"]),
  spec("cube", ["(1, 2.5),(3, 4)"]),
]

/** Types that can name a row and whose values here are all different. */
export const keyable = [
  "integer",
  "bigint",
  "oid",
  "numeric",
  "text",
  "character varying(40)",
  "character(5)",
  "uuid",
  "date",
  "timestamptz",
  "bytea",
  "inet",
  "boolean",
  "interval",
  "citext",
]

/** Of what random types are made from: `pick` is a source of random numbers below `n`. */
export const derive = (made: number, base: TypeSpec, shape: "domain" | "array" | "composite" | "enum" | "range", other: TypeSpec): TypeSpec => {
  const name = `"made ${made}"`
  switch (shape) {
    case "domain":
      return { ...base, sql: name, ddl: [...base.ddl, `CREATE DOMAIN ${name} AS ${base.sql}`] }
    case "array": {
      // `NULL` quoted is a text, unquoted it is no value.
      const item = (s: string) => `"${s.replace(/["\\]/g, "\\$&")}"`
      const delimiter = base.delimiter ?? ","
      const list = (values: ReadonlyArray<string>) => `{${values.map(item).join(delimiter)}}`
      return {
        sql: `${base.sql}[]`,
        ddl: base.ddl,
        edges: [
          "{}",
          list(base.edges),
          `{NULL${delimiter}${item(base.edges[0] ?? "")}}`,
          `[-1:0]=${list([base.edges[0] ?? "", base.edges.at(-1) ?? ""])}`,
          `{${list(base.edges.slice(0, 1))}${delimiter}${list(base.edges.slice(-1))}}`,
        ],
        value: fc.array(base.value, { maxLength: 4 }).map(list),
      }
    }
    case "composite": {
      const field = (s: string) => `"${s.replace(/["\\]/g, "\\$&")}"`
      return {
        sql: name,
        ddl: [...base.ddl, ...other.ddl, `CREATE TYPE ${name} AS ("a b" ${base.sql}, c ${other.sql})`],
        edges: ["(,)", ...base.edges.map((s) => `(${field(s)},)`), `(${field(base.edges[0] ?? "")},${field(other.edges.at(-1) ?? "")})`],
        value: fc.tuple(base.value, other.value).map(([a, b]) => `(${field(a)},${field(b)})`),
      }
    }
    case "enum": {
      const labels = ["", "glad", "it's", 'quo"te', "back\\slash", "😀", " x "]
      return { ...spec(name, labels), ddl: [`CREATE TYPE ${name} AS ENUM (${labels.map((s) => `'${s.replaceAll("'", "''")}'`).join(", ")})`] }
    }
    case "range":
      return {
        ...spec(
          name,
          ["empty", "(,)"],
          rangeOf(small, (n) => `"${n}"`),
        ),
        ddl: [`CREATE TYPE ${name} AS RANGE (subtype = double precision)`],
      }
  }
}
