import { expect, test } from "vitest"
import { computedDefault, mustGive } from "../../src/postgres/defaults.ts"
import type { Table } from "../../src/model/table.ts"

test.each<[expression: string, base: string, type: string, as: string | null]>([
  ["now()", "timestamptz", "timestamp with time zone", "now timestamptz 6"],
  ["CURRENT_TIMESTAMP", "timestamptz", "timestamp(0) with time zone", "now timestamptz 0"],
  ["CURRENT_TIMESTAMP(3)", "timestamptz", "timestamp(3) with time zone", "now timestamptz 3"],
  ["clock_timestamp()", "timestamp", "timestamp without time zone", "now timestamp 6"],
  ["LOCALTIMESTAMP", "timestamp", "timestamp without time zone", "now timestamp 6"],
  ["(now())::timestamp without time zone", "timestamp", "timestamp without time zone", "now timestamp 6"],
  ["(now() AT TIME ZONE 'utc'::text)", "timestamp", "timestamp without time zone", "utc timestamp 6"],
  ["timezone('UTC'::text, now())", "timestamp", "timestamp without time zone", "utc timestamp 6"],
  ["timezone('UTC'::text, now())", "timestamptz", "timestamp with time zone", null],
  ["(now() AT TIME ZONE 'Asia/Karachi'::text)", "timestamp", "timestamp without time zone", null],
  ["(now() + '1 day'::interval)", "timestamptz", "timestamp with time zone", null],
  ["CURRENT_DATE", "date", "date", "now date 6"],
  ["('now'::text)::date", "date", "date", "now date 6"],
  ["(now())::date", "date", "date", "now date 6"],
  ["((now() AT TIME ZONE 'utc'::text))::date", "date", "date", "utc date 6"],
  ["(CURRENT_DATE + 7)", "date", "date", null],
  ["CURRENT_DATE", "timestamp", "timestamp without time zone", null],
  ["(now())::date", "timestamp", "timestamp without time zone", null],
  ["LOCALTIME", "time", "time without time zone", "now time 6"],
  ["CURRENT_TIME", "timetz", "time with time zone", "now timetz 6"],
  ["gen_random_uuid()", "uuid", "uuid", "uuid4"],
  ["public.uuid_generate_v4()", "uuid", "uuid", "uuid4"],
  ["extensions.uuid_generate_v4()", "uuid", "public.row_id", "uuid4"],
  ["(gen_random_uuid())::text", "text", "text", "uuid4"],
  ["(gen_random_uuid())::character varying", "varchar", "character varying(36)", "uuid4"],
  ["uuidv7()", "uuid", "uuid", "uuid7"],
  ["replace((gen_random_uuid())::text, '-'::text, ''::text)", "text", "text", null],
  ["uuid_generate_v1()", "uuid", "uuid", null],
  ["(now())::text", "text", "text", null],
  ["nextval('public.receipts_no_seq'::regclass)", "int8", "bigint", null],
  ["CURRENT_USER", "text", "text", null],
  ["(a) + (b)", "int4", "integer", null],
])("%s of a %s column", (expression, base, type, as) => {
  const found = computedDefault(expression, base, type)
  expect(found === null ? null : Object.values(found).join(" ")).toBe(as)
})

test("a program must give what must not be null and only Postgres can fill in, where schools insert", () => {
  const column = { kind: "text", type: "text", notNull: true, generated: false } as const
  const table = {
    name: "public.t",
    key: ["id"],
    keyRange: true,
    direction: "both",
    system: false,
    columns: [
      { ...column, name: "id" },
      { ...column, name: "receipt" },
      { ...column, name: "made", computed: { value: "uuid4" } },
      { ...column, name: "kind", default: "x" },
      { ...column, name: "maybe", notNull: false },
      { ...column, name: "plain" },
    ],
  } as unknown as Table
  const filled = new Set(["id", "receipt", "made", "kind", "maybe"])
  expect(mustGive(table, filled)).toEqual(["receipt"])
  expect(mustGive({ ...table, direction: "down" }, filled)).toEqual([])
  expect(mustGive({ ...table, insert: "vps" }, filled)).toEqual([])
})
