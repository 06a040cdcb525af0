import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { afterEach, beforeEach, expect, test } from "vitest"
import { type LibsqlFile, openFile } from "../../src/libsql/client.ts"

const BULK = "INSERT INTO t (a, b) SELECT value->>0, value->1 FROM json_each(CAST(? AS TEXT))"

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

const rows = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => `[${from + i},"b"]`)
const count = () => Effect.runPromise(file.read((tx) => tx.all<{ n: number }>("SELECT count(*) AS n FROM t")))

test("a bulk of many pieces stands whole at the commit, and JSON inside a row stands as it was written", async () => {
  const odd = String.raw`[1e400,-0,1.50,9007199254740993123,"\u0000","a\/b","\ud83d\ude00","é😀",null,[" ,"]]`
  await Effect.runPromise(file.write((tx) => Effect.andThen(tx.bulk(BULK, rows(0, 12_345)), tx.bulk(BULK, [`[99999,${odd}]`]))))
  expect(await count()).toEqual([{ n: 12_346 }])
  expect(await Effect.runPromise(file.read((tx) => tx.all("SELECT b FROM t WHERE a = 99999")))).toEqual([{ b: odd }])
})

test("a piece that fails spoils the whole transaction, also what was sent after it, and the next one is clean", async () => {
  const spoiled = file.write((tx) => Effect.andThen(tx.bulk(BULK, [...rows(0, 1000), ...rows(0, 1000), ...rows(5000, 9000)]), Effect.succeed("done")))
  await expect(Effect.runPromise(spoiled)).rejects.toMatchObject({ code: "SQLITE_CONSTRAINT_PRIMARYKEY" })
  expect(await count()).toEqual([{ n: 0 }])
  // A failure that ends the transaction by itself: what follows must not stand outside of one.
  const ended = file.write((tx) =>
    Effect.andThen(
      tx.bulk(BULK.replace("INSERT", "INSERT OR ROLLBACK"), [...rows(0, 1000), ...rows(0, 1000), ...rows(5000, 9000)]),
      tx.run("INSERT INTO t VALUES (-1, '')"),
    ),
  )
  await expect(Effect.runPromise(ended)).rejects.toMatchObject({ code: "SQLITE_CONSTRAINT_PRIMARYKEY" })
  expect(await count()).toEqual([{ n: 0 }])
  await Effect.runPromise(file.write((tx) => tx.bulk(BULK, rows(0, 10))))
  expect(await count()).toEqual([{ n: 10 }])
})
