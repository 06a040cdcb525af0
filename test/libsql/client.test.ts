import { spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import process from "node:process"
import Database from "libsql"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { afterEach, beforeEach, expect, test } from "vitest"
import { type LibsqlFile, openFile } from "../../src/libsql/client.ts"
import { Slab, slabNumber, slabRow } from "../../src/libsql/slab.ts"

const row = slabRow(1)
const BULK = `INSERT INTO t (a, b) SELECT ${row.number(0)}, ${row.second} FROM ${row.from}`

let folder: string
let scope: Scope.Closeable
let file: LibsqlFile
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "schoolbus-client-"))
  scope = Scope.makeUnsafe()
  file = await Effect.runPromise(Scope.provide(openFile(join(folder, "t.db")), scope))
  await Effect.runPromise(file.write((tx) => tx.exec("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")))
})
afterEach(async () => {
  await Effect.runPromise(Scope.close(scope, Exit.void))
  rmSync(folder, { recursive: true, force: true })
})

const slabOf = (rows: Iterable<readonly [number, string, string]>, groupOf: (number: number) => number = () => 0): Slab => {
  const slab = new Slab()
  for (const [number, first, second] of rows) slab.add(slabNumber(number), first, second, groupOf(number))
  return slab
}
const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => [from + i, "a", "b"] as const)
const rows = (...ranges: ReadonlyArray<readonly [from: number, to: number]>) => slabOf(ranges.flatMap(([from, to]) => range(from, to)))
const spoiling = () => rows([0, 1000], [0, 1000], [5000, 9000])
const count = () => Effect.runPromise(file.read((tx) => tx.all<{ n: number }>("SELECT count(*) AS n FROM t")))

test("a bulk of many pieces stands whole at the commit, and every text stands as it was written", async () => {
  const odd = String.raw`[1e400,-0,1.50,9007199254740993123,"\u0000","a\/b","\ud83d\ude00","é😀",null,[" ,"]]`
  await Effect.runPromise(file.write((tx) => Effect.andThen(tx.bulk(BULK, rows([0, 12_345])), tx.bulk(BULK, slabOf([[99_999, odd, odd]])))))
  expect(await count()).toEqual([{ n: 12_346 }])
  expect(await Effect.runPromise(file.read((tx) => tx.all("SELECT b FROM t WHERE a = 99999")))).toEqual([{ b: odd }])
})

test("rows of a bulk are written group by group, those of a group in the order in which they came, and none is left out", async () => {
  const sent = Array.from({ length: 1_500 }, (_, i): readonly [number, string, string] => [i, `k${i}`, "é".repeat(i % 40)])
  await Effect.runPromise(file.write((tx) => tx.exec("CREATE TABLE g (n INTEGER PRIMARY KEY, a INTEGER, first TEXT, second TEXT)")))
  const sql = `INSERT INTO g (a, first, second) SELECT ${row.number(0)}, ${row.first}, ${row.second} FROM ${row.from}`
  const groupOf = (number: number) => (number * 7) % 11
  await Effect.runPromise(file.write((tx) => tx.bulk(sql, slabOf(sent, groupOf))))
  const found = await Effect.runPromise(
    file.read((tx) => tx.all<{ a: number; first: string; second: string }>("SELECT a, first, second FROM g ORDER BY n")),
  )
  const wanted = [...Map.groupBy(sent, ([number]) => groupOf(number)).values()].flat()
  expect(found.map(({ a, first, second }) => [a, first, second])).toEqual(wanted)
})

test("rows that are there as bytes are written group by group, too, and none is left out", async () => {
  const sent = Array.from({ length: 1_500 }, (_, i) => ({ no: (i * 7) % 11, seq: i + 1, first: `k${i}`, second: "é".repeat(i % 40) }))
  const slab = new Slab()
  for (const { no, seq, first, second } of sent) {
    const source = Buffer.from(first + second)
    slab.addBytes(no, seq, 5, { source, keyFrom: 0, keyTo: first.length, bodyFrom: first.length, bodyTo: source.length })
  }
  const of = slabRow(3)
  await Effect.runPromise(
    file.write((tx) => tx.exec("CREATE TABLE g (n INTEGER PRIMARY KEY, no INTEGER, seq INTEGER, at INTEGER, first TEXT, second TEXT)")),
  )
  const sql = `INSERT INTO g (no, seq, at, first, second) SELECT ${of.number(0)}, ${of.number(1)}, ${of.number(2)}, ${of.first}, ${of.second} FROM ${of.from}`
  await Effect.runPromise(file.write((tx) => tx.bulk(sql, slab)))
  const found = await Effect.runPromise(file.read((tx) => tx.all("SELECT no, seq, at, first, second FROM g ORDER BY n")))
  expect(found).toEqual([...Map.groupBy(sent, ({ no }) => no).values()].flat().map((one) => ({ ...one, at: 5 })))
})

test("rows of a bulk keep their numbers and texts, whatever their sizes and scripts, in the order in which they came", async () => {
  const sizes = [0, 1, 299_999, 300_000, 3, 1_100_000, 0, 2_000_000, 2, 400_000, 299_998]
  const sent = sizes.flatMap(
    (size, i): Array<readonly [number, string, string]> => [
      [-i - 1, "k".repeat(size % 1_000_003), ["x", "é", "語", "\u{1f600}"][i % 4]?.repeat(size / (i % 4 === 3 ? 2 : 1)) ?? ""],
      [2 ** 53 - 1 - i, i % 2 === 0 ? "ключ" : "key", ""],
    ],
  )
  await Effect.runPromise(file.write((tx) => tx.exec("CREATE TABLE u (n INTEGER PRIMARY KEY, a INTEGER, first TEXT, second TEXT, c TEXT)")))
  const sql = `INSERT INTO u (a, first, second, c) SELECT ${row.number(0)}, ${row.first}, ${row.second}, ?4 FROM ${row.from}`
  await Effect.runPromise(file.write((tx) => tx.bulk(sql, slabOf(sent), ["bound"])))
  const found = await Effect.runPromise(
    file.read((tx) =>
      tx.values("SELECT a, first, second FROM u WHERE c = 'bound' AND typeof(first) = 'text' AND typeof(second) = 'text' ORDER BY n"),
    ),
  )
  expect(found.length).toBe(sent.length)
  expect(found.every(([a, first, second], i) => a === BigInt(sent[i]?.[0] ?? 0) && first === sent[i]?.[1] && second === sent[i]?.[2])).toBe(true)
})

test("a piece that fails spoils the whole transaction, also what was sent after it, and the next one is clean", async () => {
  const spoiled = file.write((tx) => Effect.andThen(tx.bulk(BULK, spoiling()), Effect.succeed("done")))
  await expect(Effect.runPromise(spoiled)).rejects.toMatchObject({ code: "SQLITE_CONSTRAINT_PRIMARYKEY" })
  expect(await count()).toEqual([{ n: 0 }])
  // A failure that ends the transaction by itself: what follows must not stand outside of one.
  const ended = file.write((tx) =>
    Effect.andThen(tx.bulk(BULK.replace("INSERT", "INSERT OR ROLLBACK"), spoiling()), tx.run("INSERT INTO t VALUES (-1, '')")),
  )
  await expect(Effect.runPromise(ended)).rejects.toMatchObject({ code: "SQLITE_CONSTRAINT_PRIMARYKEY" })
  expect(await count()).toEqual([{ n: 0 }])
  await Effect.runPromise(file.write((tx) => tx.bulk(BULK, rows([0, 10]))))
  expect(await count()).toEqual([{ n: 10 }])
})

test("a read stands on one snapshot, and one that fails or does not end leaves the next one clean", async () => {
  const counts = await Effect.runPromise(
    file.read((tx) =>
      Effect.gen(function* () {
        const before = yield* tx.all("SELECT count(*) AS n FROM t")
        yield* file.write((writing) => writing.run("INSERT INTO t VALUES (1, '')"))
        return [before, yield* tx.all("SELECT count(*) AS n FROM t")]
      }),
    ),
  )
  expect(counts).toEqual([[{ n: 0 }], [{ n: 0 }]])
  expect(await count()).toEqual([{ n: 1 }])
  await expect(Effect.runPromise(file.read((tx) => tx.all("SELECT * FROM missing")))).rejects.toMatchObject({ code: "SQLITE_ERROR" })
  expect(await count()).toEqual([{ n: 1 }])
  await Effect.runPromise(file.read((tx) => tx.exec("COMMIT")))
  await Effect.runPromise(file.write((tx) => tx.run("INSERT INTO t VALUES (2, '')")))
  await expect(count()).resolves.toEqual([{ n: 2 }])
})

test("of rows that go together, those that a constraint refuses are named and the others stand", async () => {
  await Effect.runPromise(
    file.write((tx) => tx.exec("CREATE TABLE v (id BIGINT PRIMARY KEY, ok INT, raw BLOB, real REAL, big TEXT CHECK (big <> '13'))")),
  )
  const sql = (rows: number) =>
    `INSERT OR ABORT INTO v VALUES ${Array(rows).fill("(?, ?, ?, ?, ?)").join(", ")} ON CONFLICT (id) DO UPDATE SET big = excluded.big`
  const values = Array.from({ length: 1_000 }, (_, i) => [
    String(i),
    i % 2 === 0,
    "00ff",
    i === 500 ? "NaN" : 0.1 + i / 3,
    i % 100 === 13 ? "13" : "9007199254740993",
  ])
  const failures = await Effect.runPromise(file.write((tx) => tx.manyWires(sql, ["bigint", "bool", "bytea", "float", "numeric"], values)))
  expect(failures.map(({ index, code }) => [index, code])).toEqual(Array.from({ length: 10 }, (_, i) => [i * 100 + 13, "SQLITE_CONSTRAINT_CHECK"]))
  const found = await Effect.runPromise(file.read((tx) => tx.values("SELECT id, ok, raw, real, big FROM v ORDER BY id")))
  expect(found).toEqual(
    values.flatMap(([id, ok, , real, big]) =>
      big === "13" ? [] : [[BigInt(String(id)), ok === true ? 1n : 0n, new Uint8Array([0, 255]), real, big]],
    ),
  )
})

test("a statement sent ahead stands in its place among the others, and fails the transaction when it fails", async () => {
  const written = await Effect.runPromise(
    file.write((tx) =>
      Effect.gen(function* () {
        yield* tx.bulk(BULK, rows([0, 1000]))
        yield* tx.ahead("UPDATE t SET b = ? WHERE a < ?", ["first", 10])
        yield* tx.bulk(BULK, rows([1000, 2000]))
        return yield* tx.run("DELETE FROM t WHERE b <> 'first'")
      }),
    ),
  )
  expect(written).toBe(1990)
  const spoiled = file.write((tx) => Effect.andThen(tx.ahead("INSERT INTO t VALUES (0, 'again')"), tx.ahead("INSERT INTO t VALUES (-1, 'after')")))
  await expect(Effect.runPromise(spoiled)).rejects.toMatchObject({ code: "SQLITE_CONSTRAINT_PRIMARYKEY" })
  expect(await count()).toEqual([{ n: 10 }])
})

test("a write begins behind a commit under way; when that fails, it alone is rolled back", async () => {
  const ended = (effect: Effect.Effect<void, unknown>) => Effect.runPromise(Effect.exit(effect)).then(Exit.isSuccess)
  const put = (a: number) => file.writeAhead((tx) => tx.ahead("INSERT INTO t VALUES (?, '')", [a]))
  const [good, refused, next] = await Effect.runPromise(Effect.all([put(1), put(1), put(2)]))
  const after = file.write((tx) => tx.all<{ a: number }>("SELECT a FROM t ORDER BY a"))
  expect(await Effect.runPromise(after)).toEqual([{ a: 1 }, { a: 2 }])
  expect(await Promise.all([good, refused, next].map(({ committed }) => ended(committed)))).toEqual([true, false, true])
})

test("a write that does not get the lock says so, also when no statement of it needs one; the next one is clean", async () => {
  const other = new Database(join(folder, "t.db"))
  other.exec("BEGIN IMMEDIATE")
  const reading = file.write((tx) => tx.all("SELECT a FROM t"))
  await expect(Effect.runPromise(reading)).rejects.toMatchObject({ code: "SQLITE_BUSY" })
  const freed = setTimeout(() => other.exec("COMMIT"), 100)
  await Effect.runPromise(file.write((tx) => tx.run("INSERT INTO t VALUES (2, 'next')")))
  clearTimeout(freed)
  other.close()
  expect(await Effect.runPromise(file.read((tx) => tx.all("SELECT a FROM t")))).toEqual([{ a: 2 }])
}, 20_000)

test("a write gets its turn beside a program that leaves the lock free for moments only", async () => {
  const program = `import Database from "libsql"; const d = new Database(process.argv[1], { timeout: 20000 })
    for (;;) { d.exec("BEGIN IMMEDIATE"); for (const end = performance.now() + 15; performance.now() < end; ); d.exec("COMMIT"); process.stdout.write(".") }`
  await Effect.runPromise(file.write((tx) => tx.run("INSERT INTO t VALUES (0, 'first')")))
  const writing = spawn(process.execPath, ["-e", program, join(folder, "t.db")], { cwd: import.meta.dirname, stdio: ["ignore", "pipe", "inherit"] })
  try {
    await once(writing.stdout, "data")
    for (let a = 1; a <= 10; a++) await Effect.runPromise(file.write((tx) => tx.run("INSERT INTO t VALUES (?, 'node')", [a])))
  } finally {
    writing.kill("SIGKILL")
    await once(writing, "exit")
  }
  expect(await Effect.runPromise(file.read((tx) => tx.all("SELECT count(*) AS n FROM t WHERE b = 'node'")))).toEqual([{ n: 10 }])
}, 60_000)

test.runIf(process.platform === "linux")("the threads of a file that gives way are less urgent, and nothing else in the process is", async () => {
  /** From proc(5): the 19th field of stat, the first two of which are an id and a name in parentheses. */
  const niceness = () =>
    readdirSync("/proc/self/task").map((id) => {
      const stat = readFileSync(`/proc/self/task/${id}/stat`, "utf8")
      return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[16])
    })
  const own = niceness()
  const usual = Math.min(...own)
  await Effect.runPromise(Scope.provide(openFile(join(folder, "polite.db"), { niceness: 3 }), scope))
  expect(niceness().filter((one) => one === usual + 3)).toHaveLength(own.filter((one) => one === usual + 3).length + 2)
})
