/** The short way of plain batches ends as the whole way does. `PLAIN_SEED=n` replays one seed. */
import * as Effect from "effect/Effect"
import { afterAll, beforeAll, expect, test } from "vitest"
import { isSettled } from "../../src/up/canonical.ts"
import { recognise } from "../../src/up/plain.ts"
import type { Session } from "../../src/postgres/client.ts"
import { carryOutPlainly, readSurroundings } from "../../src/up/plainly.ts"
import type { Origin } from "../../src/up/records.ts"
import { readShapes } from "../../src/up/shape.ts"
import type { Change } from "../../src/model/change.ts"
import type { Wire } from "../../src/model/value.ts"
import { type Draft, openOffice } from "./office.ts"

const TYPES = [
  ...["int", "smallint", "bigint", "text", "varchar(6)", "char(4)", "numeric", "numeric(6,2)", "float8", "float4", "bool", "bytea", "uuid", "date"],
  ...["timestamp", "timestamptz", "timestamptz(0)", "time", "interval", "jsonb", "json", "inet", "mood", "short", "int[]"],
]
const COLUMNS = TYPES.map((_, i) => `c${i}`)
const columns = TYPES.map((type, i) => `c${i} ${type}`).join(", ")
const WIDE = Array.from({ length: 600 }, (_, i) => `w${i}`)
const DDL = `CREATE TYPE mood AS ENUM ('low', 'high'); CREATE DOMAIN short AS varchar(5) CHECK (VALUE <> 'never');
  CREATE TABLE parent (id int PRIMARY KEY, school_id text);
  CREATE TABLE plain (id text PRIMARY KEY, school_id text, parent int REFERENCES parent (id), name text UNIQUE, n int CHECK (n < 90), ${columns});
  CREATE TABLE whole (id text PRIMARY KEY, school_id text, parent int REFERENCES parent (id), name text UNIQUE, n int CHECK (n < 90), ${columns});
  CREATE TABLE wide (id int PRIMARY KEY, school_id text, ${WIDE.map((name, i) => `${name} ${i % 2 === 0 ? "text" : "int"}`).join(", ")});
  CREATE TABLE loud (id int PRIMARY KEY, school_id text, v text);
  CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := upper(NEW.v); RETURN NEW; END $$;
  CREATE TRIGGER t BEFORE INSERT ON loud FOR EACH ROW EXECUTE FUNCTION shout();
  INSERT INTO parent VALUES (1, 'a'), (2, 'a'), (3, 'b')`
const rule = { strategy: "newest_wins", columns: { n: "sum", c0: "school_wins", c3: "vps_wins" }, exclude: ["c7"] } as const

let o: Awaited<ReturnType<typeof openOffice>>
beforeAll(async () => {
  o = await openOffice(DDL, { parent: {}, plain: rule, whole: rule, loud: {}, wide: {} })
})
afterAll(async () => {
  await o?.close()
})

/** Texts near the border of what is certain. */
const TEXTS = [
  ...[
    "0",
    "-0",
    "1",
    "-1",
    "007",
    "1.0",
    "1.50",
    "-1.50",
    "-0.00",
    "0.00",
    ".5",
    "5.",
    "1e3",
    "1e-7",
    "0.0001",
    "0.00001",
    "123456789012345",
    "1234567890123456",
  ],
  ...[
    "1e15",
    "999999999999999",
    "0.1",
    "0.30000000000000004",
    "9223372036854775807",
    "9223372036854775808",
    "32767",
    "32768",
    "2147483648",
    "1234.50",
    "12345.67",
  ],
  ...["", "a", "abcdef", "abcdefg", "ab  ", "äöüäöü", "😀😀😀", "true", "t", "f", "NaN", "Infinity", "\\x", "\\x00ff", "\\x0", "\\xAB"],
  ...[
    "2026-02-28",
    "2026-02-29",
    "2024-02-29",
    "1900-02-29",
    "2000-02-29",
    "2026-04-31",
    "0000-01-01",
    "0001-01-01",
    "9999-12-31",
    "10000-01-01",
    "2026-1-2",
  ],
  ...["2026-01-01 08:00:00", "2026-01-01 08:00:00+00", "2026-01-01 08:00:00.5+00", "2026-01-01 08:00:00.50+00", "2026-01-01 08:00:00.123456+00"],
  ...[
    "2026-01-01 24:00:00+00",
    "2026-01-01 23:59:60+00",
    "2026-01-01 08:00:00+01",
    "2026-01-01T08:00:00+00",
    "2026-01-01 8:00:00",
    "2026-02-30 08:00:00",
  ],
  ...[
    "2026-01-01 08:00:00.",
    "0001-01-01 00:00:00+00",
    "infinity",
    "08:00:00",
    "P1D",
    "PT1H",
    '{"a": 1}',
    '{"a":1,"a":2}',
    "10.0.0.1",
    "10.0.0.1/32",
    "{1,2}",
    "low",
  ],
  ...["6f9619ff-8b86-d011-b42d-00cf4fc964ff", "6F9619FF-8B86-D011-B42D-00CF4FC964FF"],
]

test("a value that Postgres need not be asked about is one that it prints so", async () => {
  const shape = await o.withPg((pg) => pg.tx((session) => readShapes(session, ["public.plain"])))
  let certain = 0
  for (const [i, name] of COLUMNS.entries()) {
    const column = shape.get("public.plain")?.columns.get(name)
    if (column === undefined) throw new Error(name)
    const texts = TEXTS.filter((text) => isSettled(column, text))
    certain += texts.length
    const printed = await o.withPg((pg) => pg.texts(`SELECT u::${column.type}, u::${column.type}::text FROM unnest($1::text[]) AS u`, [texts]))
    expect({ type: TYPES[i], texts: printed.map(([text]) => text) }).toEqual({ type: TYPES[i], texts })
  }
  expect(certain).toBeGreaterThan(150)
})

type Random = (below: number) => number
const randomOf = (seed: number): Random => {
  let state = seed >>> 0
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}
const pick = <A>(random: Random, from: ReadonlyArray<A>): A => from[random(from.length)] as A

const VALUES: Readonly<Record<string, ReadonlyArray<Wire>>> = {
  int: [0, 5, -7, 2_147_483_647, 2_147_483_648, 1.5],
  smallint: [1, 32_767, 32_768],
  bigint: ["0", "9007199254740993", "99999999999999999999"],
  text: ["", "a", "ä 😀", "quote \" ' \\", "line\nbreak"],
  "varchar(6)": ["abcdef", "abcdefg", "a "],
  "char(4)": ["abcd", "ab"],
  numeric: ["1.50", "-0", "1e3", "NaN"],
  "numeric(6,2)": ["1.50", "1.5", "1.555", "12345.00"],
  float8: [0, -0, 1.5, 1e21, 1e-9, "NaN"],
  float4: [0.1, 1e10],
  bool: [true, false],
  bytea: ["", "00ff"],
  uuid: ["6f9619ff-8b86-d011-b42d-00cf4fc964ff", "6F9619FF-8B86-D011-B42D-00CF4FC964FF"],
  date: ["2026-01-31", "2026-02-30", "2026-1-1"],
  timestamp: ["2026-01-01 08:00:00", "2026-01-01 08:00:00.10"],
  timestamptz: ["2026-01-01 08:00:00+00", "2026-01-01 10:00:00+02"],
  "timestamptz(0)": ["2026-01-01 08:00:00+00", "2026-01-01 08:00:00.5+00"],
  time: ["08:00:00", "8:00"],
  interval: ["P1D", "1 day"],
  jsonb: ['{"a": 1}', '{"a":1}', "null", "{"],
  json: ['{"a":1}', '"text"', "5"],
  inet: ["10.0.0.1", "10.0.0.0/8"],
  mood: ["low", "high", "sad"],
  short: ["abc", "never", "abcdef"],
  "int[]": ["{1,2}", "{}"],
}

const valueOf = (random: Random, i: number, isCalm: boolean): Wire => {
  const values = VALUES[TYPES[i] as string] as ReadonlyArray<Wire>
  // Mostly the first, which every column holds and prints so.
  return random(12) === 0 ? null : random(isCalm ? 200 : 8) > 0 ? (values[0] as Wire) : pick(random, values)
}

/** Some edits start from what stands there, some from something else; some keys exist, some parents do not. */
const draftsOf = (random: Random, rows: Map<string, Record<string, Wire>>): ReadonlyArray<Omit<Draft, "table">> => {
  const used = [...COLUMNS.keys()].filter(() => random(3) === 0)
  const isCalm = random(3) > 0
  const odd = (one: number): boolean => !isCalm && random(one) === 0
  return Array.from({ length: 1 + random(8) }, (_, i): Omit<Draft, "table"> => {
    const existing = random(2) === 0 ? pick(random, [...rows.keys(), undefined]) : undefined
    if (existing === undefined) {
      const id = String(1000 + random(1_000_000))
      const place = { school_id: odd(8) ? "b" : "a", parent: odd(4) ? pick(random, [3, 4]) : pick(random, [1, 2, null]) }
      const mine = {
        id,
        ...place,
        name: odd(6) ? "same" : `${id} ${i}`,
        n: odd(6) ? 95 : random(50),
        ...Object.fromEntries(used.map((c) => [`c${c}`, valueOf(random, c, isCalm)])),
      }
      rows.set(id, mine)
      return { op: "insert", key: [odd(10) ? "7" : id], mine: { ...mine, ...(odd(10) ? { id: "7" } : {}) } }
    }
    const base = rows.get(existing) ?? {}
    const edits = [
      ["n", (Number(base["n"] ?? 0) + 1) % 50] as const,
      ...used.filter(() => random(2) === 0).map((c) => [`c${c}`, valueOf(random, c, isCalm)] as const),
    ]
    const mine = Object.fromEntries(edits.filter(([name, value]) => name in base && value !== base[name]))
    rows.set(existing, { ...base, ...mine })
    return { op: "update", key: [existing], base: odd(5) ? { ...base, n: 3 } : base, mine }
  })
}

const outcome = async (table: string, push: Awaited<ReturnType<ReturnType<typeof o.school>["push"]>>) => ({
  verdicts: push.exceptions.map(({ id, verdict, reason, hold, columns: held }) => ({ id, verdict, reason, hold, held })),
  rows: await o.sql(`SELECT id, school_id, parent, name, n, ${COLUMNS.map((name) => `${name}::text`).join(", ")} FROM ${table} ORDER BY id`),
  times: await o.sql(`SELECT row_key, column_name, at FROM schoolbus.column_times WHERE table_name = 'public.${table}' ORDER BY 1, 2`),
  conflicts: await o.sql(
    `SELECT row_key, column_name, base, mine, theirs, kept, winner, reason, status FROM schoolbus.conflicts WHERE table_name = 'public.${table}' ORDER BY 1, 2`,
  ),
  quarantine: await o.sql(`SELECT row_key, op, reason, status FROM schoolbus.quarantine WHERE table_name = 'public.${table}' ORDER BY 1, 2, 3`),
})

const runSeed = async (seed: number): Promise<void> => {
  const random = randomOf(seed)
  await o.sql("TRUNCATE plain, whole, schoolbus.conflicts, schoolbus.quarantine, schoolbus.column_times, schoolbus.stored CASCADE")
  await o.sql("INSERT INTO public.plain (id, school_id, n) VALUES (7, 'a', 1), (8, 'b', 1); INSERT INTO whole SELECT * FROM plain")
  const rows = new Map<string, Record<string, Wire>>()
  const [short, long] = [o.school("a"), o.school("a")]
  const at = Date.now() - 1000
  for (let batch = 0; batch < 3; batch++) {
    const drafts = draftsOf(random, rows).map((draft) => ({ ...draft, at }))
    const plain = await short.push(drafts.map((draft) => ({ ...draft, table: "plain" })))
    // A delete of nothing, which only the whole way carries out; it comes last so that changes have the same numbers.
    const whole = await long.push([
      ...drafts.map((draft) => ({ ...draft, table: "whole" })),
      { table: "whole", op: "delete", key: [`${99 + batch}`] },
    ])
    const ends = [await outcome("plain", plain), await outcome("whole", whole)] as const
    // The extra change moves the numbers of later batches.
    const numbered = (verdicts: (typeof ends)[0]["verdicts"], shift: number) => verdicts.map((one) => ({ ...one, id: one.id - shift }))
    expect({ ...ends[0], verdicts: numbered(ends[0].verdicts, 0) }, `PLAIN_SEED=${seed} batch ${batch}`).toEqual({
      ...ends[1],
      verdicts: numbered(ends[1].verdicts, batch),
    })
    if (random(2) === 0) await o.sql(`UPDATE plain SET n = n + 1 WHERE n % 2 = 0; UPDATE whole SET n = n + 1 WHERE n % 2 = 0`)
  }
}

test("a batch that is carried out the short way ends as it would the whole way", async () => {
  const only = process.env["PLAIN_SEED"]
  const seeds = only === undefined ? Array.from({ length: 16 }, (_, i) => i + 1) : [Number(only)]
  console.info(`seeds ${seeds[0]} to ${seeds.at(-1)}`)
  for (const seed of seeds) await runSeed(seed)
})

const change = (more: Partial<Change>): Change => ({
  id: 1,
  table: "public.plain",
  op: "insert",
  key: ["7"],
  at: 0,
  base: {},
  mine: { id: "7", school_id: "a", name: "x" },
  ...more,
})
const edit = (more: Partial<Change>): Change => change({ op: "update", base: { id: "7", school_id: "a", name: "x", n: 1 }, mine: { n: 2 }, ...more })

test.each<[name: string, isPlain: boolean, changes: ReadonlyArray<Change>]>([
  ["new rows and edits", true, [change({}), edit({}), change({ key: ["8"], mine: { id: "8", school_id: "a", name: null } })]],
  ["other columns in between", true, [change({}), change({ mine: { id: "7", school_id: "a" } }), change({})]],
  ["a delete", false, [change({ op: "delete" })]],
  ["another key", false, [edit({ newKey: ["8"], mine: { id: "8" } })]],
  ["another school", false, [change({ mine: { id: "7", school_id: "b" } })]],
  ["no school", false, [change({ mine: { id: "7" } })]],
  ["moved away", false, [edit({ mine: { school_id: "b" } })]],
  ["an edit of what is not known", false, [edit({ base: { id: "7", school_id: "a" } })]],
  ["an edit that changes nothing", false, [edit({ mine: { n: 1 } })]],
  ["a key that says otherwise", false, [change({ key: ["8"] })]],
  ["a value that cannot travel", false, [change({ mine: { id: "7", school_id: "a", name: { refused: "not text", hex: "00" } } })]],
  ["a column that is not there", false, [change({ mine: { id: "7", school_id: "a", nope: 1 } })]],
  ["a table that is not there", false, [change({ table: "public.nope" })]],
  ["a table with triggers", false, [change({ table: "public.loud", key: [7], mine: { id: 7, school_id: "a", v: "x" } })]],
])("%s: plain %s", async (_, isPlain, changes) => {
  const names = ["public.plain", "public.loud", "public.parent"]
  const shapes = await o.withPg((pg) => pg.tx((session) => readShapes(session, names)))
  const found = recognise({ tables: o.tables, school: "a" }, shapes, changes, null)
  expect(found !== null).toBe(isPlain)
  if (found !== null) expect(found.groups.reduce((n, group) => n + group.changes.length, 0)).toBe(changes.length)
})

test("a row in which something waits for a person is not plain", async () => {
  const shapes = await o.withPg((pg) => pg.tx((session) => readShapes(session, ["public.plain", "public.parent"])))
  const isOpen = (table: string, key: ReadonlyArray<Wire>) => table === "public.plain" && key[0] === "8"
  const other = change({ key: ["8"], mine: { id: "8", school_id: "a", name: "y" } })
  expect(recognise({ tables: o.tables, school: "a" }, shapes, [change({})], isOpen)).not.toBeNull()
  expect(recognise({ tables: o.tables, school: "a" }, shapes, [change({}), other], isOpen)).toBeNull()
})

const carriedOut = (session: Session, origin: Origin, changes: ReadonlyArray<Change>) =>
  Effect.flatMap(readSurroundings(session, o, origin, changes, ""), (surroundings) =>
    surroundings === null ? Effect.succeed(null) : carryOutPlainly(session, { school: "a", tables: o.tables, had: o.had }, changes, surroundings),
  )

const parentRow = (id: number, school = "a"): Change => change({ table: "public.parent", key: [id], mine: { id, school_id: school } })
const childRow = (id: string, parent: number): Change => change({ key: [id], mine: { id, school_id: "a", parent } })

test.each<[name: string, isPlain: boolean, changes: ReadonlyArray<Change>]>([
  ["a row and the new one that it refers to", true, [parentRow(50), childRow("50", 50)]],
  ["the same, the child first", true, [childRow("51", 51), childRow("52", 1), parentRow(51)]],
  [
    "an edit that points to a new row",
    true,
    [edit({ key: ["e"], base: { id: "e", school_id: "a", parent: 1 }, mine: { parent: 53 } }), parentRow(53)],
  ],
  ["a row that refers to none", false, [parentRow(54), childRow("54", 55)]],
  ["a row that refers to another school's", false, [parentRow(56), childRow("56", 3)]],
  ["one that refers to another school's, which the batch would make", false, [parentRow(3), childRow("57", 3)]],
])("%s, in one batch: the short way %s, all of it or nothing", async (_, isPlain, changes) => {
  const ids = changes.filter(({ op }) => op === "insert").map(({ table, key }) => `${table} ${key[0]}`)
  const incarnation = crypto.randomUUID()
  const [done, rows] = await o.withPg((pg) =>
    pg.tx((session) =>
      Effect.gen(function* () {
        yield* session.execute("INSERT INTO public.plain (id, school_id, parent) VALUES ('e', 'a', 1)")
        const done = yield* carriedOut(session, { school: "a", incarnation, number: 1 }, changes)
        const rows = yield* session.query<{ id: string }>(
          "SELECT 'public.plain ' || id AS id FROM public.plain UNION ALL SELECT 'public.parent ' || id FROM public.parent WHERE id > 3",
        )
        yield* session.execute("DELETE FROM public.plain; DELETE FROM public.parent WHERE id > 3")
        return [done, rows.map(({ id }) => id)] as const
      }),
    ),
  )
  expect(done !== null).toBe(isPlain)
  expect(ids.filter((id) => rows.includes(id))).toEqual(isPlain ? ids : [])
})

test("new rows of very many columns, with whatever a text may hold", async () => {
  const texts = ["", "NULL", "null", '"', "\\", 'a "b" \\c', "{1,2}", ", ", " x ", "tab\tline\nend\r", "ä字😀", "'", "\u2028"]
  const valuesOf = (id: number) =>
    WIDE.map((_, i) => ((i + id) % 7 === 0 ? null : i % 2 === 0 ? (texts[(i / 2 + id) % texts.length] as string) : i * id))
  const changes = Array.from({ length: 20 }, (_, id) =>
    change({
      table: "public.wide",
      key: [id],
      mine: { id, school_id: "a", ...Object.fromEntries(valuesOf(id).map((value, i) => [`w${i}`, value])) },
    }),
  )
  const origin = { school: "a", incarnation: crypto.randomUUID(), number: 1 }
  const done = await o.withPg((pg) => pg.tx((session) => carriedOut(session, origin, changes)))
  expect(done).toEqual(new Set(["public.wide"]))
  const rows = await o.sql("SELECT * FROM wide ORDER BY id")
  expect(rows.map((row) => WIDE.map((name) => (row as Record<string, unknown>)[name]))).toEqual(changes.map((_, id) => valuesOf(id)))
})
