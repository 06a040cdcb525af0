import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { expect, test } from "vitest"
import { openPool } from "../../src/postgres/client.ts"
import { createDatabase, run as query } from "../support/postgres.ts"

test("a transaction that meets a plan from before a DDL is done once more", async () => {
  const db = await createDatabase()
  await query(db.url, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "test", max: 1 }), scope))
  let attempts = 0
  const rows = await Effect.runPromise(
    pg.tx((session) =>
      Effect.gen(function* () {
        attempts++
        if (attempts === 1) {
          yield* session.execute("PREPARE p AS SELECT * FROM t")
          yield* session.execute("ALTER TABLE t ADD COLUMN b int")
          return yield* session.query("EXECUTE p")
        }
        return yield* session.query("SELECT a FROM t")
      }),
    ),
  )
  expect([attempts, rows]).toEqual([2, [{ a: 1 }]])
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})

test("texts come as they stand in Postgres, from their first character on", async () => {
  const db = await createDatabase()
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "test", max: 1 }), scope))
  const [row] = await Effect.runPromise(pg.texts("SELECT chr(65279) || 'a', 'b' || chr(65279), '', NULL::text"))
  expect(row).toEqual(["\uFEFFa", "b\uFEFF", "", null])
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})
