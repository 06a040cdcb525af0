import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
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
import { Libsql, type LibsqlFile, openFile } from "../../src/libsql/client.ts"
import { migrateFile } from "../../src/libsql/migrate.ts"
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
  const installed = await run(feed.install(installation([terms]), undefined))
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
    const [kind, , , , , list] = JSON.parse(line) as [string, number, number, string, unknown, ReadonlyArray<[[number], [number] | null]>]
    return kind === "rows" ? list : []
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
