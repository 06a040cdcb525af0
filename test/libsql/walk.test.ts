/** A list read piece by piece in the worker: in order, to its end, and no further than its limits. */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import { afterAll, expect, test } from "vitest"
import { openFile, type Tx } from "../../src/libsql/client.ts"
import { type Piece, walk, type WalkLimits } from "../../src/libsql/walk.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-walk-"))
afterAll(() => rmSync(folder, { recursive: true }))

const limits: WalkLimits = { firstRows: 3, pieceRows: 10, pieceBytes: 40, mostPieceBytes: 1_000, mostBytes: 1_000_000 }

/** Numbers up to `most`, as text of `width` characters each. */
const numbers =
  (most: number, width = 2) =>
  (after: number, limit: number): Piece => {
    const last = Math.min(most, after + limit)
    const n = last - after
    return { rows: n === 0 ? null : "x".repeat(width * n), n, last: n === 0 ? null : last, next: last < most ? last + 1 : null, plain: 1 }
  }
const lasts = (read: (after: number, limit: number) => Piece, more: Partial<WalkLimits> = {}, after = 0) =>
  [...walk(read, { ...limits, ...more, after, rows: 0, bytes: 0 })].map(({ last, isEnd }) => [last, isEnd])

test("the first piece is short, the others as long as the size of the rows allows, up to the end", () => {
  expect(lasts(numbers(30))).toEqual([
    [3, false],
    [13, false],
    [23, false],
    [30, true],
  ])
  expect(lasts(numbers(12, 10))).toEqual([
    [3, false],
    [7, false],
    [11, false],
    [12, true],
  ])
  expect(lasts(numbers(3))).toEqual([[3, true]])
  expect(lasts(numbers(0))).toEqual([[null, true]])
  expect(lasts(numbers(30), {}, 27)).toEqual([[30, true]])
})

test("it ends with a piece that is too large, with one that is not plain, and with enough bytes", () => {
  expect(lasts(numbers(30, 500))).toEqual([[3, true]])
  expect(lasts((after, limit) => ({ ...numbers(30)(after, limit), plain: after === 3 ? 0 : 1 }))).toEqual([
    [3, false],
    [13, true],
  ])
  expect(lasts(numbers(30), { mostBytes: 20 })).toEqual([
    [3, false],
    [13, true],
  ])
})

const SQL = `WITH some AS (SELECT n, text FROM list WHERE n > ?2 AND n < ?1 ORDER BY n LIMIT ?3)
  SELECT group_concat(text, ',') AS rows, count(*) AS n, max(n) AS last, (SELECT min(n) FROM list WHERE n > (SELECT max(n) FROM some) AND n < ?1) AS next, 1 AS plain
    FROM some`

test("pieces come in their order beside other statements, and a walk that fails says so", async () => {
  const readAll = (tx: Tx, sql: string) =>
    Effect.gen(function* () {
      const next = tx.walk(sql, [900], { ...limits, after: 0, rows: 0, bytes: 0 })
      const beside = yield* tx.all<{ n: number }>("SELECT count(*) AS n FROM list")
      const pieces = []
      for (let isEnd = false; !isEnd; ) {
        const piece = yield* next
        pieces.push(piece.rows)
        isEnd = piece.isEnd
      }
      return { beside: beside[0]?.n, all: pieces.join(",") }
    })
  await Effect.runPromise(
    Effect.scoped(
      Effect.gen(function* () {
        const file = yield* openFile(join(folder, "list.db"))
        yield* file.write((tx) =>
          tx.exec(`CREATE TABLE list (n INTEGER PRIMARY KEY, text TEXT);
            WITH RECURSIVE i (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 1000) INSERT INTO list SELECT n, 'row ' || n FROM i`),
        )
        const found = yield* file.read((tx) => readAll(tx, SQL))
        expect(found).toEqual({ beside: 1_000, all: Array.from({ length: 899 }, (_, i) => `row ${i + 1}`).join(",") })
        const failed = yield* Effect.flip(file.read((tx) => readAll(tx, SQL.replaceAll("list", "absent"))))
        expect(failed.message).toContain("no such table")
        expect((yield* file.read((tx) => readAll(tx, SQL))).all).toBe(found.all)
      }),
    ),
  )
})
