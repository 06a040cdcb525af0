/** Lines that SQLite makes of plain writes are those that are made of them page by page. `LINES_SEED=n` replays one seed. */
import * as Effect from "effect/Effect"
import { afterEach, expect, test } from "vitest"
import { freeze, freezeOpen } from "../../src/libsql/freeze.ts"
import { gatherLines, isCleanText } from "../../src/libsql/gather.ts"
import type { Kind } from "../../src/model/value.ts"
import { column, FROZEN_AT, openSchoolFile, type SchoolFile, table } from "../support/school-file.ts"
import { bytesOf } from "../../src/libsql/store-batch.ts"

let school: SchoolFile
afterEach(() => school?.close())

type Random = (below: number) => number
const randomOf = (seed: number): Random => {
  let state = seed >>> 0
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}
const pick = <A>(random: Random, from: ReadonlyArray<A>): A => from[random(from.length)] as A

const KINDS: ReadonlyArray<Kind> = ["int", "bigint", "numeric", "float", "bool", "bytea", "text"]
/** SQL literals; the first ones are what the kind allows. */
const VALUES: Readonly<Record<Kind, ReadonlyArray<string>>> = {
  int: ["0", "-5", "2147483647", "-2147483648", "NULL", "2147483648", "'x'"],
  bigint: ["0", "9223372036854775807", "-9223372036854775808", "NULL", "'x'"],
  numeric: ["'1.50'", "'-0'", "'123456789012345678901234567890.10'", "NULL", "5", "X'00'"],
  float: ["0.1", "-0.0", "0.30000000000000004", "1e300", "5e-324", "7", "9e999", "-9e999", "'NaN'", "'Infinity'", "NULL", "'x'", "X'00'"],
  bool: ["0", "1", "NULL", "2", "'t'"],
  bytea: ["X''", "X'00FFaB'", "NULL", "'x'"],
  text: [
    "''",
    "'a'",
    `'quote " ''  / tab\tend'`,
    "'line' || char(10, 13, 8, 12, 1, 31, 127)",
    "'ä 字 😀' || char(8232)",
    "NULL",
    "'a' || char(0) || 'b'",
    "CAST(X'61FF62' AS TEXT)",
    "X'6162'",
    "5",
  ],
}
const valueOf = (random: Random, kind: Kind, isWild: boolean): string => {
  const values = VALUES[kind]
  return isWild && random(4) === 0 ? pick(random, values) : (values[random(Math.min(3, values.length))] as string)
}

const KEYS = ["'k1'", "'K1'", "'k2'", "'ä'", "'it''s'", "'k3'", "'k4'", "'k5'", "'k6'", "'k7'", "'k8'"]

/** SQLite makes the lines of many new rows at once, unless there is a float among their columns. */
const KINDS_OF = { a: KINDS, b: KINDS.filter((kind) => kind !== "float") } as const
const TYPES: Readonly<Record<Kind, string>> = {
  int: "INT",
  bigint: "BIGINT",
  numeric: "TEXT",
  float: "REAL",
  bool: "INT",
  bytea: "BLOB",
  text: "TEXT",
}

/** What one program does: mostly runs of new rows and of edits, sometimes anything. */
const scriptOf = (random: Random, mostRows: number): ReadonlyArray<string> => {
  const isWild = random(3) === 0
  let next = 0
  const one = (_: unknown, n: number): string => {
    const name = pick(random, ["a", "b"] as const)
    const isWildNow = isWild && random(3) === 0
    const row = (key: string) => `(${[key, ...KINDS_OF[name].map((kind) => valueOf(random, kind, isWildNow))].join(", ")})`
    const at = random(3) === 0 ? pick(random, KEYS) : `'n${random(next + 1)}'`
    const kind = pick(random, KINDS_OF[name])
    switch (n === 0 ? 0 : random(isWild ? 10 : 6)) {
      case 0:
      case 1:
      case 2: {
        const rows = Array.from({ length: 1 + random(pick(random, [30, 30, mostRows])) }, () => row(`'n${next++}'`))
        return `INSERT INTO ${name} VALUES ${rows.join(", ")}`
      }
      case 3:
        return `INSERT OR IGNORE INTO ${name} VALUES ${row(at)}`
      case 4:
        return `UPDATE ${name} SET c_${kind} = ${valueOf(random, kind, isWild)}`
      case 5:
        return `UPDATE OR IGNORE ${name} SET c_${kind} = ${valueOf(random, kind, isWild)} WHERE id = ${at}`
      case 6:
        return `DELETE FROM ${name} WHERE id = ${at}`
      case 7:
        return `INSERT OR REPLACE INTO ${name} VALUES ${row(at)}`
      case 8:
        return `UPDATE OR REPLACE ${name} SET id = ${pick(random, KEYS)} WHERE id = ${at}`
      default:
        return `UPDATE ${name} SET id = upper(id) WHERE id = ${at}`
    }
  }
  return Array.from({ length: 4 + random(8) }, one)
}

const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes)

/** The bytes of the batches that a freeze makes; it is taken back. */
const frozen = (plain: boolean, maxChanges: number): Promise<ReadonlyArray<string>> => {
  let found: ReadonlyArray<string> = []
  return school
    .write((tx) =>
      Effect.gen(function* () {
        while ((yield* freeze(tx, school.manifest, FROZEN_AT, { plain, maxChanges })).isMore);
        const rows = yield* tx.all<{ bytes: Uint8Array; left: string }>(
          `SELECT bytes, (SELECT json_group_array(json_array(id, op, batch)) FROM changes) AS left FROM schoolbus_batch ORDER BY number`,
        )
        found = rows.flatMap(({ bytes, left }) => [text(bytesOf(bytes)), left])
        return yield* Effect.fail("taken back" as const)
      }),
    )
    .catch(() => found)
}

const expectAlike = async (message: string, maxChanges = 2_000): Promise<void> => {
  const ends = [await frozen(true, maxChanges), await frozen(false, maxChanges)] as const
  // What is taken at once may differ, what is said may not.
  const lines = (batches: ReadonlyArray<string>) => batches.filter((_, i) => i % 2 === 0).flatMap((batch) => batch.split("\n").slice(1, -1))
  expect(lines(ends[0]), message).toEqual(lines(ends[1]))
  expect(ends[0].length > 0, message).toBe(true)
}

const runSeed = async (seed: number): Promise<void> => {
  const random = randomOf(seed)
  const key = random(2) === 0 ? "TEXT COLLATE NOCASE" : "TEXT"
  const names = ["a", "b"] as const
  const tables = names.map((name) => table(name, [column("id"), ...KINDS_OF[name].map((kind) => column(`c_${kind}`, kind))]))
  const ddl = (name: (typeof names)[number]) =>
    `CREATE TABLE ${name} (id ${key} PRIMARY KEY, ${KINDS_OF[name].map((kind) => `c_${kind} ${TYPES[kind]}`).join(", ")})${random(2) === 0 ? " WITHOUT ROWID" : ""};`
  school = await openSchoolFile(tables, { before: names.map(ddl).join("") })
  const maxChanges = pick(random, [2_000, 2_000, 25, 3])
  const script = scriptOf(random, maxChanges < 100 ? 30 : 120)
  for (const sql of script) {
    try {
      school.program(sql)
    } catch {
      // Two rows under one key.
    }
  }
  await expectAlike(`LINES_SEED=${seed}\n${script.join(";\n")}`, maxChanges)
  await school.close()
}

test("plain writes are frozen as they are page by page", async () => {
  const only = process.env["LINES_SEED"]
  const seeds = only === undefined ? Array.from({ length: 40 }, (_, i) => i + 1) : [Number(only)]
  console.info(`seeds ${seeds[0]} to ${seeds.at(-1)}`)
  for (const seed of seeds) await runSeed(seed)
  school = await openSchoolFile([])
})

test("whatever stands among many new rows", async () => {
  school = await openSchoolFile([table("50%s'n", [column("id"), column(`a'"%d`, "bool"), ...KINDS_OF.b.map((kind) => column(`c_${kind}`, kind))])])
  let next = 0
  const put = (name: string, value: string): void => {
    const rows = Array.from({ length: 60 }, () => `('n${next++}', ${value})`)
    school.program(`INSERT INTO "50%s'n" (id, ${name}) VALUES ${rows.join(", ")}`)
  }
  for (const kind of KINDS_OF.b)
    for (const value of VALUES[kind]) {
      for (const one of ["NULL", value, "NULL"]) put(`c_${kind}`, one)
      await expectAlike(`${kind} ${value}`)
      school.program("DELETE FROM changes")
    }
  put("c_int", "1")
  school.program("DELETE FROM changes")
  const known = next
  put("c_int", "2")
  school.program(`UPDATE "50%s'n" SET "a'""%d" = 1 WHERE CAST(substr(id, 2) AS INT) BETWEEN ${known - 60} AND ${known - 1}`)
  put("c_int", "3")
  await expectAlike("edits of rows that are not new")
})

test("writes that changed nothing leave, and a batch is full at its number of changes", async () => {
  school = await openSchoolFile([table("a", [column("id"), column("v")])])
  const values = Array.from({ length: 100 }, (_, i) => `('${i}', 'x')`)
  school.program(`INSERT INTO a VALUES ${values.join(", ")}`)
  await school.write((tx) => freezeOpen(tx, school.manifest, FROZEN_AT))
  school.program("UPDATE a SET v = 'x'")
  school.program("UPDATE a SET v = 'y' WHERE CAST(id AS INT) < 60")
  expect((await school.freeze({ maxChanges: 50 })).map(({ mine }) => mine)).toEqual(Array.from({ length: 60 }, () => ({ v: "y" })))
  expect(school.batches(1).map(({ lines }) => lines.length)).toEqual([51, 11])
  expect(school.read("SELECT count(*) FROM changes WHERE batch IS NULL")).toEqual([[0n]])
})

test("a table of very many columns", async () => {
  const many = Array.from({ length: 900 }, (_, i) => column(`c${i}`, i % 2 === 0 ? "text" : "float"))
  school = await openSchoolFile([table("wide", [column("id"), ...many])])
  school.program("INSERT INTO wide (id, c0, c1) VALUES ('1', 'a', 0.5)")
  school.program("UPDATE wide SET c899 = 2.5")
  expect((await school.freeze()).map(({ mine }) => [mine["c0"], mine["c1"], mine["c899"]])).toEqual([
    ["a", 0.5, null],
    [undefined, undefined, 2.5],
  ])
})

const bytes = (part: string): Uint8Array => new TextEncoder().encode(part)

type Rows = Parameters<typeof gatherLines>[0] extends (after: number, limit: number) => infer R ? R : never
const gather = (rows: Rows, limits: { readonly maxBytes?: number; readonly writes?: number; readonly isFirst?: boolean } = {}) =>
  gatherLines((after, limit) => rows.filter(([id]) => Number(id) > after).slice(0, limit), {
    ...{ heads: 1, after: 0, writes: 1_000, maxBytes: 100_000, isFirst: true },
    ...limits,
  })
const line = (id: number) => `{"id":${id},"mine":{"v":0.5}}\n`
const rowsOf = (count: number): Rows =>
  Array.from({ length: count }, (_, i) => [BigInt(i + 1), 1n, bytes(`{"id":${i + 1},"mine":{`), bytes(',"v":'), 0.5])

test("lines end where the bytes do, but one is always taken", () => {
  const all = gather(rowsOf(3))
  expect([text(all.bytes), all.count, all.lines, all.firstId, all.lastId]).toEqual([line(1) + line(2) + line(3), 3, 3, 1, 3])
  expect(text(gather(rowsOf(3), { maxBytes: line(1).length * 2 }).bytes)).toBe(line(1) + line(2))
  expect(text(gather(rowsOf(3), { maxBytes: 3 }).bytes)).toBe(line(1))
  expect(gather(rowsOf(3), { maxBytes: 3, isFirst: false })).toMatchObject({ count: 0, lines: 0 })
  expect(gather(rowsOf(2_000), { writes: 700 })).toMatchObject({ count: 700, lastId: 700 })
  const long = gather(rowsOf(2_000), { writes: 3_000 })
  expect([long.count, text(long.bytes)]).toEqual([2_000, Array.from({ length: 2_000 }, (_, i) => line(i + 1)).join("")])
})

test("lines that come as one piece stand among those that come one by one", () => {
  const rows = rowsOf(1_000)
  const read: Parameters<typeof gatherLines>[0] = (after, limit) => rows.filter(([id]) => Number(id) > after).slice(0, limit)
  const asked: Array<number> = []
  const readWhole: Parameters<typeof gatherLines>[2] = (after, limit) => {
    asked.push(after)
    const ids = read(after, limit).map(([id]) => Number(id))
    // The 600th is another kind of write.
    return ids.includes(600) || ids.length === 0 ? null : { count: ids.length, lastId: ids.at(-1) as number, bytes: bytes(ids.map(line).join("")) }
  }
  const of = (limits: { readonly maxBytes: number; readonly writes: number }) =>
    gatherLines(read, { heads: 1, after: 0, isFirst: true, ...limits }, readWhole)
  const all = of({ maxBytes: 100_000, writes: 1_000 })
  expect([text(all.bytes), all.count, all.lines, all.firstId, all.lastId]).toEqual([
    Array.from({ length: 1_000 }, (_, i) => line(i + 1)).join(""),
    ...[1_000, 1_000, 1, 1_000],
  ])
  expect(asked).toEqual([32, 288])
  expect(of({ maxBytes: 100_000, writes: 100 })).toMatchObject({ count: 100, lastId: 100 })
  const few = of({ maxBytes: 5_000, writes: 1_000 })
  expect([few.bytes.length <= 5_000, few.bytes.length + line(few.lastId + 1).length > 5_000, few.lines]).toEqual([true, true, few.lastId])
})

test("the first write in doubt ends the lines", () => {
  const doubts: Rows = [
    [2n, 0n, bytes("x"), bytes(",y"), 0.5],
    [2n, 1n, bytes("x"), null, 0.5],
    [2n, null, null, null, null],
  ]
  for (const doubt of doubts) {
    const found = gather([[1n, 1n, bytes("{"), bytes(',"v":'), 1], doubt, [3n, 1n, bytes("{"), bytes(',"v":'), 1]])
    expect([text(found.bytes), found.count]).toEqual(['{"v":1}}\n', 1])
  }
  expect(gather([[1n, 1n, bytes("{"), bytes(""), bytes("")]])).toMatchObject({ count: 1, lines: 0, dropped: [1] })
})

test("clean text", () => {
  expect([bytes('{"v":"ä"}'), bytes(String.raw`{"v":"\u0000"}`), Uint8Array.of(0x22, 0xff, 0x22)].map(isCleanText)).toEqual([true, false, false])
})
