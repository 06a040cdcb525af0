import { createHash } from "node:crypto"
import fc from "fast-check"
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest"
import { newLife } from "../../src/libsql/life.ts"
import type { Change } from "../../src/model/change.ts"
import { column, FROZEN_AT, foreign, openSchoolFile, type SchoolFile, table } from "../support/school-file.ts"
import { bytesOf } from "../../src/libsql/store-batch.ts"

const pupils = table(
  "pupils",
  [
    column("id", "text", { notNull: true }),
    column("code"),
    column("age", "int"),
    column("size", "float"),
    column("photo", "bytea"),
    column("big", "bigint"),
  ],
  {
    unique: [["code"]],
  },
)
const marks = table("marks", [column("a", "int", { notNull: true }), column("b", "text", { notNull: true }), column("value", "numeric")], {
  key: ["a", "b"],
})

let school: SchoolFile
beforeAll(async () => {
  school = await openSchoolFile([pupils, marks])
})
afterAll(() => school.close())
beforeEach(() => {
  school.program(
    "UPDATE schoolbus_deliver SET active = 1; DELETE FROM pupils; DELETE FROM marks; DELETE FROM changes; UPDATE schoolbus_deliver SET active = 0",
  )
})

/** Rows that nobody captured. */
const given = (sql: string): void => school.program(`UPDATE schoolbus_deliver SET active = 1; ${sql}; UPDATE schoolbus_deliver SET active = 0`)
const brief = (changes: ReadonlyArray<Change>) => changes.map(({ op, key, mine }) => [op, key.join("/"), mine])
const whole = { id: "1", code: null, age: null, size: null, photo: null, big: null }

describe("a batch", () => {
  it("is numbered, hashed, and told under which manifest and clock it was captured", async () => {
    const first = school.batches().length
    school.program("INSERT INTO pupils (id, code) VALUES ('1', 'x')")
    const [change] = await school.freeze()
    const batch = school.batches().at(-1)
    const header = {
      incarnation: "7d0c2e1c-0a5b-4f5e-9a55-0c1f3b1c2d3e",
      number: first + 1,
      manifest: 1,
      contacts: [],
      changes: 1,
    }
    expect(batch?.lines[0]).toEqual(["batch", header])
    expect(change).toEqual({
      id: change?.id,
      table: "public.pupils",
      op: "insert",
      key: ["1"],
      at: change?.at,
      base: {},
      mine: { ...whole, code: "x" },
    })
    expect(Math.abs((change?.at ?? 0) - Date.now())).toBeLessThan(60_000)
    const [row] = school.read("SELECT hash, bytes, changes, frozen_at, settled_at FROM schoolbus_batch ORDER BY number DESC LIMIT 1")
    expect(row?.[0]).toBe(
      createHash("sha256")
        .update(bytesOf(row?.[1] as Uint8Array))
        .digest("hex"),
    )
    expect(row?.slice(2)).toEqual([1n, BigInt(FROZEN_AT), null])
    expect(school.read("SELECT count(*) FROM changes WHERE batch IS NULL")).toEqual([[0n]])
    expect(school.read("SELECT last_batch FROM schoolbus_state")).toEqual([[BigInt(first + 1)]])
  })

  it("is not made when nothing is open, or nothing of it changed anything", async () => {
    given("INSERT INTO pupils (id, code) VALUES ('1', 'x')")
    expect(await school.freeze()).toEqual([])
    school.program("UPDATE pupils SET code = 'x', age = NULL")
    expect(await school.freeze()).toEqual([])
    expect(school.read("SELECT count(*) FROM changes")).toEqual([[0n]])
  })

  it("that stops in the middle of a row's history still has the values of that moment", async () => {
    school.program("INSERT INTO pupils (id, age) VALUES ('1', 1)")
    for (let age = 2; age <= 9; age++) school.program(`UPDATE pupils SET age = ${age}`)
    school.program("DELETE FROM pupils")
    const changes = await school.freeze({ maxChanges: 1 })
    expect(changes.map(({ op, base, mine }) => [op, base["age"], mine["age"]])).toEqual([
      ["insert", undefined, 1],
      ...[2, 3, 4, 5, 6, 7, 8, 9].map((age) => ["update", age - 1, age]),
      ["delete", 9, undefined],
    ])
    expect(
      school
        .batches()
        .slice(-10)
        .map(({ lines }) => lines.length),
    ).toEqual(new Array(10).fill(2))
  })

  it("ends at about 4 MB, whatever the number of changes", async () => {
    school.program("INSERT INTO pupils (id, photo) SELECT value, zeroblob(600000) FROM json_each('[1,2,3,4,5,6,7,8,9,10]')")
    const first = school.batches().length
    expect(await school.freeze()).toHaveLength(10)
    const sizes = school
      .batches()
      .slice(first)
      .map(({ lines }) => lines.length - 1)
    expect(sizes).toEqual([3, 3, 3, 1])
  })

  it("keeps the order of capture across tables", async () => {
    school.program(
      "INSERT INTO pupils (id) VALUES ('1'); INSERT INTO marks VALUES (1, 'm', '1.50'); DELETE FROM pupils; UPDATE marks SET value = '2.0'",
    )
    const changes = await school.freeze()
    expect(changes.map(({ table: name, op }) => `${op} ${name}`)).toEqual([
      "insert public.pupils",
      "insert public.marks",
      "delete public.pupils",
      "update public.marks",
    ])
    expect([...changes].sort((a, b) => a.id - b.id)).toEqual(changes)
    expect(changes[1]).toMatchObject({ key: [1, "m"], mine: { a: 1, b: "m", value: "1.50" } })
  })
})

describe("an update", () => {
  it("carries all old values and the new ones of what it changed", async () => {
    given("INSERT INTO pupils (id, code, age) VALUES ('1', 'x', 7)")
    school.program("UPDATE pupils SET age = 8, code = 'x'")
    expect(await school.freeze()).toMatchObject([{ op: "update", key: ["1"], base: { ...whole, code: "x", age: 7 }, mine: { age: 8 } }])
  })

  it("that changes the key is one change with the old key and the new one", async () => {
    given("INSERT INTO pupils (id, code) VALUES ('1', 'x'); INSERT INTO marks VALUES (1, 'a', NULL), (2, 'é', NULL)")
    school.program("UPDATE pupils SET id = 'it''s'; UPDATE marks SET a = a + 10, b = b || '!'")
    const changes = await school.freeze()
    expect(changes.map(({ op, key, newKey, mine }) => ({ op, key, newKey, mine }))).toEqual([
      { op: "update", key: ["1"], newKey: ["it's"], mine: { id: "it's" } },
      { op: "update", key: [1, "a"], newKey: [11, "a!"], mine: { a: 11, b: "a!" } },
      { op: "update", key: [2, "é"], newKey: [12, "é!"], mine: { a: 12, b: "é!" } },
    ])
  })

  it("is told by bytes and type, not by collation", async () => {
    const other = await openSchoolFile([table("words", [column("id"), column("word"), column("n", "text")])], {
      before: "CREATE TABLE words (id TEXT PRIMARY KEY, word TEXT COLLATE NOCASE, n BLOB); ",
    })
    other.program("INSERT INTO words VALUES ('1', 'abc', 1)")
    await other.freeze()
    other.program("UPDATE words SET word = 'ABC'")
    other.program("UPDATE words SET n = '1'")
    expect((await other.freeze()).map(({ mine }) => mine)).toEqual([{ word: "ABC" }, { n: "1" }])
    await other.close()
  })
})

describe("REPLACE", () => {
  it("of the same key is an update with the old values as base", async () => {
    given("INSERT INTO pupils (id, code, age) VALUES ('1', 'x', 7)")
    school.program("INSERT OR REPLACE INTO pupils (id, code, age) VALUES ('1', 'x', 8)")
    expect(await school.freeze()).toMatchObject([{ op: "update", key: ["1"], base: { ...whole, code: "x", age: 7 }, mine: { age: 8 } }])
    expect(school.read("SELECT op, v2 FROM changes")).toEqual([["U", 7n]])
  })

  it("of a row with another key deletes that row first", async () => {
    given("INSERT INTO pupils (id, code) VALUES ('1', 'x'), ('2', 'y')")
    school.program("INSERT OR REPLACE INTO pupils (id, code) VALUES ('1', 'y')")
    expect(brief(await school.freeze())).toEqual([
      ["delete", "2", {}],
      ["update", "1", { code: "y" }],
    ])
    expect(school.read("SELECT op, key FROM changes ORDER BY id")).toEqual([
      ["D", "'2'"],
      ["U", "'1'"],
    ])
  })

  it("of a row that is inserted again later is a delete and an insert", async () => {
    given("INSERT INTO pupils (id, code) VALUES ('2', 'y')")
    school.program("INSERT OR REPLACE INTO pupils (id, code) VALUES ('1', 'y'); INSERT INTO pupils (id, code) VALUES ('2', 'z')")
    expect(brief(await school.freeze())).toEqual([
      ["delete", "2", {}],
      ["insert", "1", { ...whole, code: "y" }],
      ["insert", "2", { ...whole, id: "2", code: "z" }],
    ])
  })

  it("by an update deletes the row in the way", async () => {
    given("INSERT INTO pupils (id, code) VALUES ('1', 'x'), ('2', 'y'), ('3', 'z')")
    school.program("UPDATE OR REPLACE pupils SET code = 'y' WHERE id = '1'; UPDATE OR REPLACE pupils SET id = '3' WHERE id = '1'")
    const changes = await school.freeze()
    expect(brief(changes)).toEqual([
      ["delete", "2", {}],
      ["update", "1", { code: "y" }],
      ["delete", "3", {}],
      ["update", "1", { id: "3" }],
    ])
  })

  it("with recursive triggers on gives what the delete triggers saw", async () => {
    given("INSERT INTO pupils (id, code) VALUES ('1', 'x'), ('2', 'y')")
    foreign.sqlite3(school.path, "PRAGMA recursive_triggers = ON; REPLACE INTO pupils (id, code) VALUES ('1', 'y');")
    const changes = await school.freeze()
    expect(changes.map(({ op, key }) => `${op} ${key.join()}`).sort()).toEqual(["delete 1", "delete 2", "insert 1"])
    expect(changes.at(-1)).toMatchObject({ op: "insert", mine: { code: "y" } })
  })

  it.each([
    [
      "an upsert",
      "INSERT INTO pupils (id, code) VALUES ('1', 'q') ON CONFLICT (id) DO UPDATE SET code = excluded.code",
      [["update", "1", { code: "q" }]],
    ],
    ["an upsert that does nothing", "INSERT INTO pupils (id, code) VALUES ('1', 'q') ON CONFLICT DO NOTHING", []],
    ["INSERT OR IGNORE", "INSERT OR IGNORE INTO pupils (id, code) VALUES ('1', 'q'), ('9', 'x')", []],
    ["a refused insert", "INSERT OR FAIL INTO pupils (id, code) VALUES ('1', 'q')", []],
  ])("is not seen in %s", async (_, sql, expected) => {
    given("INSERT INTO pupils (id, code) VALUES ('1', 'x')")
    try {
      school.program(sql)
    } catch {
      // A constraint that the program ran into by itself.
    }
    expect(brief(await school.freeze())).toEqual(expected)
    expect(school.read("SELECT count(*) FROM changes WHERE op = 'R'")).toEqual([[0n]])
  })

  it("of many rows is never parted by the end of a batch", async () => {
    given(
      "INSERT INTO pupils (id, code) SELECT value, 'c' || value FROM json_each((SELECT json_group_array(value) FROM generate_series(1, 400)))".replace(
        "generate_series(1, 400)",
        `json_each('[${Array.from({ length: 400 }, (_, i) => i + 1)}]')`,
      ),
    )
    for (const chunk of [0, 1]) {
      const ids = Array.from({ length: 200 }, (_, i) => i + 1 + chunk * 200)
      school.program(`INSERT OR REPLACE INTO pupils (id, code, age) SELECT value, 'c' || value, 5 FROM json_each('[${ids}]')`)
    }
    for (const maxChanges of [7]) {
      const changes = await school.freeze({ maxChanges })
      expect(changes).toHaveLength(400)
      expect(changes.every(({ op, mine }) => op === "update" && Object.keys(mine).join() === "age")).toBe(true)
    }
  })

  it("of a row that is inserted again far later is still a delete where it happened", async () => {
    given("INSERT INTO pupils (id) VALUES ('a'), ('c')")
    school.program("UPDATE OR REPLACE pupils SET code = 'x'; INSERT INTO pupils (id) VALUES ('a'); UPDATE pupils SET age = 1 WHERE id = 'a'")
    expect(brief(await school.freeze({ maxChanges: 1, pageRows: 2 }))).toEqual([
      ["update", "a", { code: "x" }],
      ["delete", "a", {}],
      ["update", "c", { code: "x" }],
      ["insert", "a", { ...whole, id: "a" }],
      ["update", "a", { age: 1 }],
    ])
  })

  it("notes without effect are forgotten, however many", async () => {
    const ids = JSON.stringify(Array.from({ length: 9000 }, (_, i) => i))
    given(`INSERT INTO pupils (id) SELECT value FROM json_each('${ids}')`)
    school.program(`INSERT OR IGNORE INTO pupils (id) SELECT value FROM json_each('${ids}')`)
    school.program("REPLACE INTO pupils (id, age) VALUES ('8999', 1)")
    expect(brief(await school.freeze())).toEqual([["update", "8999", { age: 1 }]])
    expect(school.read("SELECT count(*) FROM changes")).toEqual([[1n]])
  })
})

describe("values", () => {
  it("travel exactly or are refused with their bytes", async () => {
    school.program("INSERT INTO pupils (id, age, size, photo, big) VALUES ('zoë 😀', -5, 0.1, x'00ff', 9223372036854775807)")
    school.program("INSERT INTO pupils (id, size, big) VALUES ('2', -0.0, -9223372036854775808), ('3', 1e400, 5), ('4', 0.30000000000000004, 1)")
    school.program(
      "INSERT INTO pupils (id, code, age) VALUES ('5', CAST(x'61ff62' AS TEXT), 3000000000), ('6', CAST(x'610062' AS TEXT), 'many'), ('7', x'ff', 1.5)",
    )
    const changes = await school.freeze()
    expect(changes.map(({ mine }) => mine)).toEqual([
      { id: "zoë 😀", code: null, age: -5, size: 0.1, photo: "00ff", big: "9223372036854775807" },
      { ...whole, id: "2", size: 0, big: "-9223372036854775808" },
      { ...whole, id: "3", size: "Infinity", big: "5" },
      { ...whole, id: "4", size: 0.30000000000000004, big: "1" },
      {
        ...whole,
        id: "5",
        code: { refused: "text is not valid UTF-8", hex: "61ff62" },
        age: { refused: "whole number beyond the range of integer", hex: Buffer.from("3000000000").toString("hex") },
      },
      {
        ...whole,
        id: "6",
        code: { refused: expect.stringContaining("NUL"), hex: "610062" },
        age: { refused: "TEXT in a whole-number column", hex: Buffer.from("many").toString("hex") },
      },
      {
        ...whole,
        id: "7",
        code: { refused: "BLOB in a text column", hex: "ff" },
        age: { refused: "REAL in a whole-number column", hex: Buffer.from("1.5").toString("hex") },
      },
    ])
  })

  it("of damaged keys neither stop the others nor are mixed up with them", async () => {
    school.program(
      "INSERT INTO pupils (id, age) VALUES ('a', 1), (CAST(x'610062' AS TEXT), 2), (CAST(x'610063' AS TEXT), 3), (CAST(x'61ff' AS TEXT), 4), ('é', 5)",
    )
    school.program("UPDATE pupils SET age = age + 10; UPDATE pupils SET id = CAST(x'fe' AS TEXT) WHERE age = 14; DELETE FROM pupils WHERE age = 12")
    const changes = await school.freeze()
    expect(changes.filter(({ key }) => key[0] === "a").map(({ op, mine }) => [op, mine["age"]])).toEqual([
      ["insert", 1],
      ["update", 11],
    ])
    expect(changes.filter(({ key }) => key[0] === "é").map(({ op, mine }) => [op, mine["age"]])).toEqual([
      ["insert", 5],
      ["update", 15],
    ])
    const damaged = changes.filter(({ key }) => key[0] !== "a" && key[0] !== "é")
    expect(damaged.map(({ op }) => op)).toEqual(["insert", "insert", "insert", "update", "update", "update", "update", "delete"])
    for (const { base, mine } of damaged) expect(typeof (mine["id"] ?? base["id"])).toBe("object")
  })

  it("that Postgres computes are left out", async () => {
    const other = await openSchoolFile([table("sums", [column("id"), column("a", "int"), column("twice", "int", { generated: true })])])
    other.program("INSERT INTO sums (id, a, twice) VALUES ('1', 2, 4); UPDATE sums SET twice = 5; UPDATE sums SET a = 3")
    expect((await other.freeze()).map(({ base, mine }) => [base, mine])).toEqual([
      [{}, { id: "1", a: 2 }],
      [{ id: "1", a: 2 }, { a: 3 }],
    ])
    await other.close()
  })
})

describe("when triggers were away", () => {
  it("a row that is gone without a captured delete deletes nothing at head office", async () => {
    given("INSERT INTO pupils (id) VALUES ('1'), ('2')")
    school.program("UPDATE pupils SET age = 1; INSERT INTO pupils (id) VALUES ('3')")
    given("DELETE FROM pupils WHERE id <> '2'")
    expect(brief(await school.freeze())).toEqual([["update", "2", { age: 1 }]])
  })

  it("a table that is gone stops the freeze instead of looking empty", async () => {
    const other = await openSchoolFile([table("t", [column("id")])])
    other.program("INSERT INTO t VALUES ('1')")
    other.program("ALTER TABLE t RENAME TO t_old")
    await expect(other.freeze()).rejects.toThrow(/no such table: t/)
    other.program("ALTER TABLE t_old RENAME TO t")
    expect(brief(await other.freeze())).toEqual([["insert", "1", { id: "1" }]])
    await other.close()
  })

  it("writes to a table that left the manifest are kept for the record", async () => {
    const other = await openSchoolFile([table("t", [column("id"), column("a")])])
    other.program("INSERT INTO t VALUES ('1', 'x'); UPDATE t SET a = 'y'; DELETE FROM t")
    other.program("UPDATE schoolbus_tables SET name = 'public.gone'")
    expect(await other.freeze()).toMatchObject([
      { table: "public.gone", op: "insert", key: ["'1'"], base: { v0: "1" } },
      { table: "public.gone", op: "update", key: ["'1'"], base: { v0: "1", v1: "x" } },
      { table: "public.gone", op: "delete", key: ["'1'"], base: { v0: "1", v1: "y" } },
    ])
    await other.close()
  })
})

describe("any sequence of writes", () => {
  type Row = Record<string, unknown>
  const id = fc.constantFrom("a", "b", "c", "é", "d'e")
  const code = fc.option(fc.constantFrom("x", "y", "z", "ö"), { nil: null })
  const age = fc.option(fc.integer({ min: 0, max: 3 }), { nil: null })
  const verbs = [
    "INSERT",
    "REPLACE",
    "INSERT OR IGNORE",
    "UPDATE",
    "UPDATE OR REPLACE",
    "UPDATE OR IGNORE",
    "KEY",
    "KEY OR REPLACE",
    "SWAP",
    "DELETE",
    "UPSERT",
    "UPSERT CODE",
  ] as const
  const step = fc.record({
    verb: fc.constantFrom(...verbs),
    id,
    other: id,
    code,
    age,
    freeze: fc.integer({ min: 0, max: 9 }),
    recursive: fc.boolean(),
  })
  type Step = typeof step extends fc.Arbitrary<infer S> ? S : never

  const text = (value: string | null) => (value === null ? "NULL" : `'${value.replaceAll("'", "''")}'`)
  const toSql = ({ verb, id: key, other, code: c, age: n }: Step): string => {
    const values = `(id, code, age) VALUES (${text(key)}, ${text(c)}, ${n ?? "NULL"})`
    switch (verb) {
      case "INSERT":
      case "REPLACE":
      case "INSERT OR IGNORE":
        return `${verb} INTO pupils ${values}`
      case "UPSERT":
        return `INSERT INTO pupils ${values} ON CONFLICT (id) DO UPDATE SET code = excluded.code, age = excluded.age`
      case "UPSERT CODE":
        return `INSERT INTO pupils ${values} ON CONFLICT (code) DO UPDATE SET age = excluded.age`
      case "UPDATE":
      case "UPDATE OR REPLACE":
      case "UPDATE OR IGNORE":
        return `${verb} pupils SET code = ${text(c)}, age = ${n ?? "NULL"} WHERE id = ${text(key)}`
      case "KEY":
        return `UPDATE pupils SET id = ${text(other)} WHERE id = ${text(key)}`
      case "KEY OR REPLACE":
        return `UPDATE OR REPLACE pupils SET id = ${text(other)}, age = ${n ?? "NULL"} WHERE id = ${text(key)}`
      case "SWAP":
        return `UPDATE OR REPLACE pupils SET code = ${text(c)} WHERE id IN (${text(key)}, ${text(other)})`
      case "DELETE":
        return `DELETE FROM pupils WHERE id = ${text(key)}`
    }
  }

  /** What the hub's database would do with them, one by one; every base must be what it holds at that moment. */
  const replay = (model: Map<string, Row>, changes: ReadonlyArray<Change>): void => {
    const codeTaken = (row: Row, except: string) =>
      row["code"] !== null && [...model].some(([key, other]) => key !== except && other["code"] === row["code"])
    for (const change of changes) {
      const key = change.key.join()
      const held = model.get(key)
      if (change.op === "insert") {
        expect(held, `insert of ${key}`).toBeUndefined()
        expect(codeTaken(change.mine, key), `code of ${key}`).toBe(false)
        model.set(key, { ...change.mine })
      } else {
        expect(change.base, `${change.op} of ${key}`).toEqual(held)
        model.delete(key)
        if (change.op === "update") {
          const next = (change.newKey ?? change.key).join()
          const row = { ...held, ...change.mine }
          expect(model.has(next), `key ${next}`).toBe(false)
          expect(codeTaken(row, next), `code of ${next}`).toBe(false)
          model.set(next, row)
        }
      }
    }
  }

  it("replays to the same table, each base right at its moment, wherever batches are cut", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { minLength: 1, maxLength: 40 }),
        fc.record({ maxChanges: fc.integer({ min: 1, max: 9 }), pageRows: fc.constantFrom(1, 2, 3, 128) }),
        async (steps, options) => {
          school.program("UPDATE schoolbus_deliver SET active = 1; DELETE FROM pupils; DELETE FROM changes; UPDATE schoolbus_deliver SET active = 0")
          const model = new Map<string, Row>()
          for (const one of steps) {
            school.program(`PRAGMA recursive_triggers = ${one.recursive ? "ON" : "OFF"}`)
            try {
              school.program(toSql(one))
            } catch (error) {
              expect(String(error)).toMatch(/UNIQUE/)
            }
            if (one.freeze === 0) replay(model, await school.freeze(options))
          }
          replay(model, await school.freeze(options))
          const rows = school
            .read("SELECT id, code, age FROM pupils")
            .map(([key, c, n]) => [key, { ...whole, id: key, code: c, age: n === null ? null : Number(n) }] as const)
          expect(new Map(rows)).toEqual(model)
          expect(school.read("SELECT count(*) FROM changes WHERE op = 'R' OR batch IS NULL")).toEqual([[0n]])
        },
      ),
      { numRuns: 150 },
    )
  })
})

it("a number is never used twice, also after a statement that failed half way", async () => {
  const own = await openSchoolFile([table("a", [column("id"), column("v")])])
  own.program("INSERT INTO a (id, v) VALUES ('1', 'x'), ('2', 'x')")
  await own.freeze()
  expect(() => own.program("INSERT OR FAIL INTO a (id, v) VALUES ('3', 'x'), ('4', 'x'), ('1', 'x'), ('5', 'x')")).toThrow()
  const failed = await own.freeze()
  expect(failed.map(({ key }) => key)).toEqual([["3"], ["4"]])
  await own.write((tx) => tx.run("DELETE FROM changes"))
  own.program("INSERT INTO a (id, v) VALUES ('6', 'x')")
  const [next] = await own.freeze()
  expect(next).toMatchObject({ key: ["6"] })
  expect(next?.id).toBeGreaterThan(failed.at(-1)?.id ?? 0)
  await own.close()
})

it("what is opened again is found, also before what was frozen last", async () => {
  const own = await openSchoolFile([table("a", [column("id"), column("v")])])
  for (const id of [1, 2]) {
    own.program("INSERT INTO a (id, v) VALUES (?, 'x')", [String(id)])
    await own.freeze()
  }
  await own.write((tx) => newLife(tx, crypto.randomUUID()))
  expect((await own.freeze()).map(({ key }) => key)).toEqual([["1"], ["2"]])
  await own.close()
})

describe("a value for which no batch has room", () => {
  it("stays in the file, and the change says so; others beside and behind it travel", async () => {
    school.program("INSERT INTO pupils (id, code, photo) VALUES ('1', 'x', zeroblob(40000000)); INSERT INTO pupils (id) VALUES ('2')")
    const changes = [...(await school.freeze()), ...(await school.freeze())]
    expect(changes.map(({ key }) => key)).toEqual([["1"], ["2"]])
    const { photo, code } = changes[0]?.mine ?? {}
    expect(code).toBe("x")
    expect(photo).toMatchObject({ hex: "", refused: expect.stringContaining("a value of 80000002 bytes") })
  })

  it("may be replaced by a smaller one", async () => {
    given("INSERT INTO pupils (id, photo) VALUES ('3', zeroblob(40000000))")
    school.program("UPDATE pupils SET photo = x'01' WHERE id = '3'")
    const [change] = await school.freeze()
    expect(change?.mine).toEqual({ photo: "01" })
    expect(change?.base["photo"]).toMatchObject({ hex: "" })
  })
})

describe("a row of changes that a program wrote itself", () => {
  it("goes up as one that the hub keeps for a person, and the writes around it as they are", async () => {
    school.program("INSERT INTO pupils (id, code) VALUES ('1', 'x')")
    school.program("INSERT INTO changes (tbl, op, key, at, v0) SELECT id, 'X', 'odd', 1, 'odd' FROM schoolbus_tables WHERE name = 'public.pupils'")
    school.program("INSERT INTO changes (tbl, op, key, at) VALUES (999, 'U', 'garbage', 'never')")
    school.program("UPDATE pupils SET code = 'y' WHERE id = '1'")
    const changes = await school.freeze()
    expect(changes.map(({ op, table, mine }) => [op, table, mine])).toEqual([
      ["insert", "public.pupils", { ...whole, code: "x" }],
      ["insert", "changes", {}],
      ["update", "table 999", {}],
      ["update", "public.pupils", { code: "y" }],
    ])
  })
})
