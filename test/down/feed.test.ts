import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { afterAll, beforeAll, expect, test } from "vitest"
import type { Appender } from "../../src/down/append.ts"
import type { Append, FeedTable } from "../../src/down/entry.ts"
import { Feed } from "../../src/down/feed.ts"
import type { FeedPage } from "../../src/down/page.ts"
import { Libsql, type LibsqlFile, openFile } from "../../src/libsql/client.ts"
import { migrateFile } from "../../src/libsql/migrate.ts"
import { keyedRows } from "../../src/link/frame.ts"
import { MAX_ROW_BYTES, PAGE_BYTES, type RowsText, type Staged } from "../../src/link/protocol.ts"
import { noCursor } from "../../src/model/cursor.ts"
import type { Table } from "../../src/model/table.ts"
import { installation } from "../support/found.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-feed-"))
const scope = Scope.makeUnsafe()
const run = <A, E>(effect: Effect.Effect<A, E>): Promise<A> => Effect.runPromise(effect)

const terms: Table = {
  name: "public.terms",
  local: "terms",
  columns: [{ name: "id", kind: "int", type: "integer", notNull: true, generated: false }],
  key: ["id"],
  unique: [],
  references: [],
  audience: "all",
  direction: "down",
  priority: "medium",
  strategy: "vps_wins",
  columnStrategies: {},
  system: false,
}

let file: LibsqlFile
let feed: Context.Service.Shape<typeof Feed>
let table: FeedTable
beforeAll(async () => {
  file = await run(Scope.provide(openFile(join(folder, "feed.db")), scope))
  await run(migrateFile(file, "feed"))
  feed = Context.get(await run(Scope.provide(Layer.build(Feed.layer.pipe(Layer.provide(Layer.succeed(Libsql, file)))), scope)), Feed)
  const installed = await run(feed.install(installation([terms, { ...terms, name: "public.rooms", local: "rooms" }]), undefined))
  table = installed.tables[0] as FeedTable
})
afterAll(async () => {
  await run(Scope.close(scope, Exit.void))
  rmSync(folder, { recursive: true, force: true })
})

const row = (id: number): Append => ({ table, key: `[${id}]`, body: `[${id}]`, audience: { no: 0 }, at: 0, isInsert: true, ifDifferent: false })
const put = (id: number) => (appender: Appender) => appender.rows([row(id)])
const stored = async () => (await run(file.read((tx) => tx.all<{ seq: number }>("SELECT seq FROM hub"))))[0]?.seq
const head = async () => (await run(feed.head)).seq

test("no search reads the bodies of the rows that it passes", async () => {
  // SQLite compares a key of a WITHOUT ROWID table with whole rows: each search past a body of some megabytes copies it.
  const sql = "SELECT l.wr FROM pragma_table_list l JOIN pragma_table_info(l.name) c WHERE l.name = 'entry' AND c.name = 'body'"
  expect(await run(file.read((tx) => tx.all(sql)))).toEqual([{ wr: 0 }])
})

test("appends that meet take their seqs one after the other", async () => {
  await run(
    Effect.all([feed.append(put(1)), feed.append((appender) => appender.tx.all("SELECT 1")), feed.append(put(2)), feed.append(() => Effect.void)], {
      concurrency: "unbounded",
    }),
  )
  expect(await head()).toBe(2)
  expect(await stored()).toBe(2)
})

test("an append that is interrupted at any moment leaves memory and file at the same head", async () => {
  for (let id = 10; id < 60; id++) {
    const fiber = Effect.runFork(feed.append(put(id)))
    // From before its first step to long after its commit.
    for (let turn = 0; turn < id - 10; turn++) await new Promise((resolve) => setImmediate(resolve))
    await run(Fiber.interrupt(fiber))
    expect(await head()).toBe(await stored())
  }
  await run(feed.append(put(100)))
  expect(await head()).toBe(await stored())
})

test("appends of a series begin before the one before is committed, and are told of in their order once they stand", async () => {
  const from = await head()
  const told: Array<number> = []
  const heads: Array<number> = []
  await run(
    Effect.scoped(
      Effect.gen(function* () {
        const series = yield* feed.series
        for (let i = 1; i <= 5; i++) {
          yield* series.append(put(200 + i), () =>
            Effect.sync(() => {
              told.push(i)
            }),
          )
          heads.push((yield* feed.head).seq - from)
        }
        yield* series.committed
      }),
    ),
  )
  expect(told).toEqual([1, 2, 3, 4, 5])
  expect(await head()).toBe(from + 5)
  expect(await stored()).toBe(from + 5)
  // The head is never ahead of what was told.
  for (const [i, seen] of heads.entries()) expect(seen).toBeLessThanOrEqual(i + 1)
})

test("when a commit fails, the append behind it goes with it, and the next one begins where the file ends", async () => {
  const from = await head()
  const told: Array<string> = []
  const tell = (name: string) => () => Effect.sync(() => void told.push(name))
  const bodies: Array<string> = []
  const outcome = await run(
    Effect.scoped(
      Effect.gen(function* () {
        const series = yield* feed.series
        yield* series.append(put(301), tell("first"))
        // What nobody waits for fails at the commit.
        const failing = (appender: Appender) => Effect.andThen(put(302)(appender), appender.tx.ahead("INSERT INTO hub (id) VALUES (1)"))
        yield* series.append(failing, tell("failing"))
        const behind = yield* Effect.exit(
          series.append((appender) => Effect.tap(put(303)(appender), () => Effect.sync(() => void bodies.push("behind"))), tell("behind")),
        )
        const later = yield* Effect.exit(series.append(put(304), tell("later")))
        const failed = yield* Effect.exit(series.failed)
        return [behind, later, failed, yield* Effect.exit(series.committed)].map(Exit.isSuccess)
      }),
    ),
  )
  expect(outcome).toEqual([false, false, false, false])
  expect(told).toEqual(["first"])
  expect(bodies).toEqual(["behind"])
  expect([await head(), await stored()]).toEqual([from + 1, from + 1])
  await run(feed.append(put(305)))
  expect([await head(), await stored()]).toEqual([from + 2, from + 2])
  const keys = await run(file.read((tx) => tx.all<{ key: string }>("SELECT key FROM entry WHERE seq > ? ORDER BY seq", [from])))
  expect(keys.map(({ key }) => key)).toEqual(["[301]", "[305]"])
})

test("an append of another waits for a commit under way and does not share its failure", async () => {
  const from = await head()
  await run(
    Effect.scoped(
      Effect.gen(function* () {
        const series = yield* feed.series
        yield* series.append(
          (appender) => Effect.andThen(put(401)(appender), appender.tx.ahead("INSERT INTO hub (id) VALUES (1)")),
          () => Effect.void,
        )
        yield* feed.append(put(402))
      }),
    ),
  )
  expect([await head(), await stored()]).toEqual([from + 1, from + 1])
})

test("a school's number that an append gave out is forgotten with it, also when another commit ended meanwhile", async () => {
  const outcome = await run(
    Effect.exit(
      Effect.scoped(
        Effect.gen(function* () {
          const series = yield* feed.series
          yield* series.append(put(601), () => Effect.void)
          yield* series.append(
            (appender) =>
              Effect.gen(function* () {
                yield* appender.rows([{ ...row(602), audience: { value: "newcomer" } }])
                yield* series.committed
                return yield* Effect.fail("given up")
              }),
            () => Effect.void,
          )
        }),
      ),
    ),
  )
  expect(Exit.isFailure(outcome)).toBe(true)
  expect(await run(feed.audienceNo("newcomer"))).toBeNull()
  await run(feed.append((appender) => appender.rows([{ ...row(603), audience: { value: "another" } }])))
  const [stored] = await run(file.read((tx) => tx.all<{ no: number }>("SELECT no FROM audience WHERE value = 'another'")))
  expect(await run(feed.audienceNo("another"))).toBe(stored?.no)
})

test("a series that is interrupted at any moment leaves memory and file at the same head", async () => {
  for (let id = 500; id < 560; id += 2) {
    const two = Effect.scoped(
      Effect.gen(function* () {
        const series = yield* feed.series
        yield* series.append(put(id), () => Effect.void)
        yield* series.append(put(id + 1), () => Effect.void)
        return yield* Effect.never
      }),
    )
    const fiber = Effect.runFork(two)
    for (let turn = 0; turn < (id - 500) / 2; turn++) await new Promise((resolve) => setImmediate(resolve))
    await run(Fiber.interrupt(fiber))
    expect(await head()).toBe(await stored())
  }
})

/** The seq, rows and table of a line; its first column is the key. */
const listOf = (line: string): readonly [last: number, rows: ReadonlyArray<readonly [[number], readonly [number] | null]>, table: string] => {
  const text = JSON.parse(line) as RowsText
  const isRows = text[0] === "rows" || text[0] === "puts"
  const rows = isRows ? keyedRows(text, [text[4][0] as string]) : []
  return [text[2], rows as ReadonlyArray<readonly [[number], readonly [number] | null]>, text[3]]
}

test("where a row leaves one audience for another, its tombstone and its row are read together", async () => {
  await run(feed.append((appender) => appender.loaded(table)))
  const [loaded] = await run(feed.tables)
  const cursor = await run(feed.head)
  const rows = Array.from({ length: 100 }, (_, i) => ({ ...row(1_000 + i), table: loaded as FeedTable }))
  // One that stays, so that pairs begin at an odd place.
  await run(feed.append((appender) => appender.rows([{ ...row(999), table: loaded as FeedTable }])))
  await run(feed.append((appender) => appender.rows(rows.map((one) => ({ ...one, audience: { value: "north" } })))))
  await run(feed.append((appender) => appender.rows(rows.map((one) => ({ ...one, isInsert: false })))))
  const page = await run(feed.page({ school: "north", cursor, staged: null }))
  const seen = page.lines.flatMap((line) => {
    return listOf(line)[1]
  })
  const moved = seen.filter(([[id]]) => id >= 1_000)
  expect(moved.map(([[id], values]) => [id, values !== null])).toEqual(
    rows.flatMap((_, i) => [
      [1_000 + i, false],
      [1_000 + i, true],
    ]),
  )
  expect(page.complete).toBe(true)
})

test("rows among which nothing is gone travel without their keys, and with them where something is", async () => {
  await run(feed.append((appender) => appender.loaded(table)))
  const [loaded] = await run(feed.tables)
  const put = (ids: ReadonlyArray<number>, body: (id: number) => string | null) =>
    run(feed.append((appender) => appender.rows(ids.map((id) => ({ ...row(id), table: loaded as FeedTable, body: body(id) })))))
  const read = async () => {
    const cursor = await run(feed.head)
    return async () =>
      (await run(feed.page({ school: "north", cursor, staged: null }))).lines.slice(1, -1).map((line) => JSON.parse(line).slice(0, -1))
  }
  const name = (loaded as FeedTable).name
  const head = await run(feed.head)
  const plain = await read()
  await put([5_001, 5_002], (id) => JSON.stringify([id]))
  expect(await plain()).toEqual([["puts", 5, head.seq + 2, name, ["id"], [[5_001], [5_002]], 2]])
  const mixed = await read()
  await put([5_003], (id) => JSON.stringify([id]))
  await put([5_002], () => null)
  expect(await mixed()).toEqual([
    [
      "rows",
      5,
      head.seq + 4,
      name,
      ["id"],
      [
        [[5_003], [5_003]],
        [[5_002], null],
      ],
      2,
    ],
  ])
})

interface SeenLine {
  readonly last: number
  readonly table: string
  readonly rows: ReadonlyArray<readonly [table: string, id: number, isRow: boolean]>
}
const linesOf = ({ lines }: { readonly lines: ReadonlyArray<string> }): ReadonlyArray<SeenLine> =>
  lines.flatMap((line) => {
    const [last, list, name] = listOf(line)
    return list.length > 0 ? [{ last, table: name, rows: list.map(([[id], values]) => [name, id, values !== null] as const) }] : []
  })

test("rows of two tables that lie among each other go in few lines, and a page that breaks off after any of them loses none", async () => {
  const loaded = await run(feed.tables)
  for (const one of loaded) await run(feed.append((appender) => appender.loaded(one)))
  const [first, second] = (await run(feed.tables)) as [FeedTable, FeedTable]
  const cursor = await run(feed.head)
  // Some of them in turns, some in runs.
  const ids = Array.from({ length: 3_000 }, (_, i) => i)
  const isFirst = (i: number): boolean => (i < 1_500 ? i % 2 === 0 : i < 2_000)
  await run(feed.append((appender) => appender.rows(ids.map((i) => ({ ...row(10_000 + i), table: isFirst(i) ? first : second })))))
  await run(feed.append((appender) => appender.rows([{ ...row(10_000), table: first, body: null, isInsert: false }])))
  const whole = await run(feed.page({ school: "north", cursor, staged: null }))
  const lines = linesOf(whole)
  expect(lines.length).toBeLessThan(30)
  const rows = lines.flatMap((line) => line.rows)
  const names = rows.map(([name, id]) => `${name} ${id}`)
  expect(new Set(names).size).toBe(3_000)
  expect(names.length).toBe(3_000)
  expect(rows.filter(([, , isRow]) => !isRow)).toEqual([[first.table.name, 10_000, false]])
  expect(whole.reached).toEqual({ 5: whole.header.head })
  for (let cut = 0; cut < lines.length; cut++) {
    const here = lines.slice(0, cut)
    const after = Math.max(0, ...here.map(({ last }) => last))
    const staged = here.length === 0 ? null : { head: whole.header.head, headCut: whole.header.headCut, after: { 5: after } }
    const rest = linesOf(await run(feed.page({ school: "north", cursor, staged })))
    const got = new Set([...here, ...rest].flatMap((line) => line.rows.map(([name, id]) => `${name} ${id}`)))
    expect(got.size).toBe(3_000)
  }
})

test("a receiver that is quick gets larger pages, another one pages of the usual size, and neither misses a row", async () => {
  const cursor = await run(feed.head)
  const first = (await run(feed.tables))[0] as FeedTable
  const wide = "x".repeat(2_000)
  const ids = Array.from({ length: 5_000 }, (_, i) => 50_000 + i)
  await run(feed.append((appender) => appender.rows(ids.map((id) => ({ ...row(id), table: first, body: `[${id},"${wide}"]` })))))
  /** Rows of each page, when so long lies between two askings. */
  const pagesAt = async (ms: number) => {
    const counts: Array<number> = []
    let staged: Staged | null = null
    for (let at = 0, complete = false; !complete; at += ms) {
      const clock = { ...Clock.Clock.defaultValue(), monotonicTimeNanosUnsafe: () => BigInt(at) * 1_000_000n }
      const page: FeedPage = await run(Effect.provideService(feed.page({ school: `at ${ms}`, cursor, staged }), Clock.Clock, clock))
      complete = page.complete
      counts.push(linesOf(page).reduce((sum, { rows }) => sum + rows.length, 0))
      staged = { head: page.header.head, headCut: page.header.headCut, after: { ...(staged as Staged | null)?.after, ...page.reached } }
    }
    return counts
  }
  const bytes = (rows = 0): number => (rows * 2_000) / PAGE_BYTES
  for (const [ms, most] of [
    [100, 2],
    [2_000, 1],
  ] as const) {
    const counts = await pagesAt(ms)
    expect(counts.reduce((sum, n) => sum + n)).toBe(ids.length)
    expect(bytes(counts[0])).toBeCloseTo(1, 0)
    expect(bytes(counts[1])).toBeCloseTo(most, 0)
  }
  await run(feed.append((appender) => appender.rows(ids.map((id) => ({ ...row(id), table: first, body: null, isInsert: false })))))
})

test("a row that no line can hold keeps nothing else from a school", async () => {
  const large = { ...row(900), body: `["${"x".repeat(MAX_ROW_BYTES)}"]` }
  await run(feed.append((appender) => appender.rows([large, row(901)])))
  const { lines, complete } = await run(feed.page({ school: "north", cursor: noCursor, staged: null }))
  expect(complete).toBe(true)
  expect(lines.map((line) => line.length).every((length) => length < 100_000)).toBe(true)
  const text = lines.join("\n")
  expect(text).toContain("[[900],null]")
  expect(text).toContain("[[901],[901]]")
})

test("rows of many schools among each other, there as bytes, stand each under its own school and no other", async () => {
  const schools = ["north", "south", "east"].map((value) => ({ value }))
  const schoolOf = (id: number) => schools[(id * id) % 3 === 1 ? id % 2 : 2] as { readonly value: string }
  const ids = Array.from({ length: 300 }, (_, i) => 90_000 + i)
  const rows = ids.map((id): Append => {
    const source = Buffer.from(`[${id}]`)
    const bytes = { source, keyFrom: 0, keyTo: source.length, bodyFrom: 0, bodyTo: source.length }
    return { ...row(id), bytes, audience: schoolOf(id) }
  })
  await run(feed.append((appender) => appender.rows(rows)))
  const sql =
    "SELECT a.value, e.key, e.body FROM entry e JOIN audience a ON a.no = e.audience WHERE a.value IS NOT NULL AND e.key >= '[90000]' ORDER BY e.key"
  expect(await run(file.read((tx) => tx.all(sql)))).toEqual(ids.map((id) => ({ value: schoolOf(id).value, key: `[${id}]`, body: `[${id}]` })))
})
