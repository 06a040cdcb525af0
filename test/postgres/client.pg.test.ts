import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import postgres from "postgres"
import { expect, test } from "vitest"
import { inOneGo, isTransient, literal, openPool, type PostgresPool, toError } from "../../src/postgres/client.ts"
import { remedyOf } from "../../src/postgres/remedy.ts"
import { isHeldUp } from "../../src/postgres/slot.ts"
import { ensureEventTriggers } from "../../src/postgres/watch.ts"
import { createDatabase, run as query, testCluster } from "../support/postgres.ts"
import { startRelay } from "../support/relay.ts"
import { until } from "../support/until.ts"

test("a transaction that meets a plan from before a DDL is done once more", async () => {
  const db = await createDatabase()
  await query(db.url, "CREATE TABLE public.t (a int); INSERT INTO public.t VALUES (1)")
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "test", max: 1 }), scope))
  let attempts = 0
  const rows = await Effect.runPromise(
    pg.tx((session) =>
      Effect.gen(function* () {
        attempts++
        if (attempts === 1) {
          yield* session.execute("PREPARE p AS SELECT * FROM public.t")
          yield* session.execute("ALTER TABLE public.t ADD COLUMN b int")
          return yield* session.query("EXECUTE p")
        }
        return yield* session.query("SELECT a FROM public.t")
      }),
    ),
  )
  expect([attempts, rows]).toEqual([2, [{ a: 1 }]])
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})

test("a line that broke while it was written to has no SQLSTATE, whatever the system calls that", () => {
  const error = toError("SELECT 1")(Object.assign(new Error("This socket has been ended by the other party"), { code: "EPIPE" }))
  expect([error.sqlstate, isTransient(error)]).toEqual(["", true])
})

test("kept statements go on over a DDL, on every connection that keeps them", async () => {
  const db = await createDatabase()
  await query(db.url, "CREATE TABLE public.t (a int); INSERT INTO public.t VALUES (1)")
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "test", max: 2 }), scope))
  const read = pg.tx((_, keeping) => keeping.query("SELECT * FROM public.t WHERE a = $1::text::int", ["1"]))
  const both = () => Effect.runPromise(Effect.all([read, read], { concurrency: 2 }))
  expect([await both(), await both()].flat()).toEqual([[{ a: 1 }], [{ a: 1 }], [{ a: 1 }], [{ a: 1 }]])
  await query(db.url, "ALTER TABLE public.t ADD COLUMN b int")
  expect(await both()).toEqual([[{ a: 1, b: null }], [{ a: 1, b: null }]])
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})

test("one after the other, statements and transactions go over one connection, also after one that failed", async () => {
  const db = await createDatabase()
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "test" }), scope))
  const pid = "SELECT pg_backend_pid() AS pid"
  const ask = [
    pg.query<{ pid: number }>(pid),
    pg.tx((session) => session.query<{ pid: number }>(pid)),
    pg.tx((_, keeping) => keeping.query<{ pid: number }>(`${pid} WHERE $1::text IS NOT NULL`, ["a"])),
  ]
  const pids: Array<number> = []
  for (let i = 0; i < 3; i++) {
    for (const one of ask) pids.push((await Effect.runPromise(one))[0]?.pid ?? 0)
    expect(Exit.isFailure(await Effect.runPromiseExit(pg.query("SELECT nothing")))).toBe(true)
    expect(Exit.isFailure(await Effect.runPromiseExit(pg.tx((session) => session.query("SELECT nothing"))))).toBe(true)
  }
  expect(new Set(pids).size, String(pids)).toBe(1)
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})

test("statements in one go run in their order, and the first failure is told", async () => {
  const db = await createDatabase()
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "test", max: 1 }), scope))
  const some = (divisor: string) =>
    pg.tx((session, keeping) =>
      inOneGo([
        session.execute("CREATE TABLE IF NOT EXISTS public.t (a int)"),
        keeping.execute("INSERT INTO public.t VALUES ($1::text::int)", ["7"]),
        keeping.query<{ n: number }>("SELECT a / $1::text::int AS n FROM public.t", [divisor]),
        session.query("SELECT nothing"),
      ]),
    )
  for (const divisor of ["0", "1", "0"])
    expect((await Effect.runPromise(Effect.flip(some(divisor)))).sqlstate).toBe(divisor === "0" ? "22012" : "42703")
  const order = Array.from({ length: 20 }, (_, i) =>
    pg.tx((__, keeping) => inOneGo([keeping.query("SELECT $1 AS n", [String(i)]), keeping.query("SELECT $1 AS n", ["x"])])),
  )
  expect(await Effect.runPromise(Effect.all(order))).toEqual(Array.from({ length: 20 }, (_, i) => [[{ n: String(i) }], [{ n: "x" }]]))
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})

test("a transaction in rounds stands whole or not at all, whatever part of it fails", async () => {
  const db = await createDatabase()
  await query(db.url, "CREATE TABLE public.t (a text UNIQUE)")
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "test", max: 1 }), scope))
  const odd = String.raw`it's "a" \' b; ROLLBACK --`
  const insert = (text: string) => `INSERT INTO public.t VALUES (${literal(text)});`
  let bodies = 0
  const attempt = (part: { readonly first?: string; readonly within?: string; readonly last?: string; readonly ends?: boolean }) =>
    Effect.runPromise(
      Effect.result(
        pg.txInRounds(
          (session) => [session.query<{ a: number }>("SELECT $1::text::int AS a", ["7"]), session.execute(part.first ?? "SELECT 1")],
          (session, [[row]]) =>
            Effect.gen(function* () {
              bodies++
              yield* session.execute(part.within ?? insert("within"))
              if (part.ends === true) return yield* Effect.fail("ended" as const)
              return { value: row?.a, last: part.last ?? insert(odd) }
            }),
        ),
      ),
    )
  const rows = () => query(db.url, "SELECT a FROM public.t ORDER BY a")
  expect(await attempt({ first: "SELECT 1 / 0" })).toMatchObject({ failure: { sqlstate: "22012" } })
  expect(bodies).toBe(0)
  expect(await attempt({ within: "SELECT 1 / 0" })).toMatchObject({ failure: { sqlstate: "22012" } })
  expect(await attempt({ last: `${insert("x")} ${insert("x")}` })).toMatchObject({ failure: { sqlstate: "23505" } })
  expect(await attempt({ last: `${insert("x")} SELECT 1 / 0; ${insert("y")}` })).toMatchObject({ failure: { sqlstate: "22012" } })
  expect(await attempt({ ends: true })).toMatchObject({ failure: "ended" })
  // Nothing of them is left open on the connection, which is the only one.
  await Effect.runPromise(pg.execute(insert("alone")))
  expect(await rows()).toEqual([{ a: "alone" }])
  expect(await attempt({})).toMatchObject({ success: 7 })
  expect((await rows()).map((row) => row["a"]).sort()).toEqual(["alone", odd, "within"])
  expect(await attempt({ within: "SELECT 1", last: "" })).toMatchObject({ success: 7 })
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})

test("texts come as they stand in Postgres, from their first character on", async () => {
  const db = await createDatabase()
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "test", max: 1 }), scope))
  const [row] = await Effect.runPromise(pg.texts("SELECT chr(65279) || 'a', 'b' || chr(65279), '', NULL::text"))
  expect(row).toEqual(["\uFEFFa", "b\uFEFF", "", null])
  const list = ["a", "", null, "NULL", '"', "\\", '\\"', "{x,y}", " b ", "ü☃\n\t'"]
  const back = await Effect.runPromise(pg.texts("SELECT u FROM unnest($1::text[]) WITH ORDINALITY AS l (u, n) ORDER BY n", [list]))
  expect(back.flat()).toEqual(list)
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})

/** Ends connections of the pool from the server's side, as a restart does. */
const end = (url: string, which = "true") =>
  query(
    url,
    `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'schoolbus test' AND datname = current_database() AND ${which}`,
  )

test("a transaction whose connection is lost between two statements fails whole, and nothing of it lands in another", async () => {
  const db = await createDatabase()
  await query(db.url, "CREATE TABLE public.t (a int)")
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "test", max: 2 }), scope))
  let seen = 0
  const ran = await Effect.runPromiseExit(
    pg.tx((session) =>
      Effect.gen(function* () {
        yield* session.execute("INSERT INTO public.t VALUES (1)")
        yield* Effect.promise(() => end(db.url))
        for (const _ of Array.from({ length: 20 })) {
          seen++
          yield* Effect.ignore(session.execute("INSERT INTO public.t VALUES (2)"))
          yield* Effect.sleep(5)
        }
      }),
    ),
  )
  expect([seen, Exit.isFailure(ran)]).toEqual([20, true])
  expect(await Effect.runPromise(pg.query("SELECT a FROM public.t"))).toEqual([])
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})

test("however often connections are lost, every statement is answered, and transactions stand whole or not at all", async () => {
  const db = await createDatabase()
  await query(db.url, "CREATE TABLE public.t (a int, b int)")
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "test", max: 4 }), scope))
  let done = 0
  const written: Array<number> = []
  const work = Array.from({ length: 8 }, (_, worker) =>
    Array.from({ length: 40 }, (__, i) => worker * 100 + i).reduce(
      (before, a) =>
        before.then(async () => {
          const ran = await Effect.runPromiseExit(
            pg.tx((session) =>
              Effect.gen(function* () {
                for (const b of [1, 2, 3]) yield* session.execute("INSERT INTO public.t VALUES ($1::int, $2::int)", [a, b])
              }),
            ),
          )
          if (Exit.isSuccess(ran)) written.push(a)
          await Effect.runPromiseExit(pg.query("SELECT 1"))
        }),
      Promise.resolve(),
    ),
  ).map((one) => one.finally(() => done++))
  while (done < work.length) await end(db.url, "random() < 0.4")
  await Promise.all(work)
  // The pool may not have heard yet of the last connection that was ended.
  const read = pg.query<{ a: number; n: number }>("SELECT a, count(*)::int AS n FROM public.t GROUP BY a")
  const rows = await Effect.runPromise(Effect.retry(read, { times: 4, while: isTransient }))
  expect(rows.filter(({ n }) => n !== 3)).toEqual([])
  expect(written.filter((a) => !rows.some((row) => row.a === a))).toEqual([])
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})

test("a connection that died without a word answers its statement with an error, and what it had locked is free", async () => {
  const db = await createDatabase()
  await query(db.url, "CREATE TABLE public.t (a int); INSERT INTO public.t VALUES (1)")
  const relay = await startRelay(Number(new URL(db.url).port))
  const url = new URL(db.url)
  url.port = String(relay.port)
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(url.href, { name: "test", max: 2, lookMs: 300 }), scope))
  const ran = await Effect.runPromiseExit(
    pg.tx((session) =>
      Effect.gen(function* () {
        yield* session.execute("UPDATE public.t SET a = 2")
        relay.freeze()
        relay.thaw()
        yield* session.execute("UPDATE public.t SET a = 3")
      }),
    ),
  )
  expect(String(ran)).toContain("the connection to Postgres was lost")
  await query(db.url, "SET lock_timeout = '10s'; UPDATE public.t SET a = a + 10")
  expect(await Effect.runPromise(pg.query("SELECT a FROM public.t"))).toEqual([{ a: 11 }])
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await relay.close()
  await db.drop()
})

test("a statement that Postgres is long at work on, or waits for a lock with, keeps its connection", async () => {
  const db = await createDatabase()
  await query(db.url, "CREATE TABLE public.t (a int)")
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "test", max: 2, lookMs: 50 }), scope))
  const held = query(db.url, "BEGIN; LOCK TABLE public.t; SELECT pg_sleep(1); COMMIT")
  const [slept, counted] = await Promise.all([
    Effect.runPromise(pg.query("SELECT 1 AS one FROM pg_sleep(1)")),
    Effect.runPromise(pg.query("SELECT count(*)::int AS n FROM public.t")),
  ])
  expect([slept, counted]).toEqual([[{ one: 1 }], [{ n: 0 }]])
  await held
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})

test("a statement that waits for a lock ends at Postgres too when nobody waits for it any more, alone or in a transaction", async () => {
  const db = await createDatabase()
  await query(db.url, "CREATE TABLE public.t (a int)")
  const held = postgres(db.url, { max: 1, onnotice: () => undefined })
  await held.unsafe("BEGIN; LOCK TABLE public.t")
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "given up", max: 4 }), scope))
  const waiting = () => query(db.url, "SELECT 1 FROM pg_stat_activity WHERE application_name = 'schoolbus given up' AND wait_event_type = 'Lock'")
  const read = pg.query("SELECT * FROM public.t")
  const write = pg.tx((session) => session.execute("INSERT INTO public.t VALUES (1)"))
  const inRounds = pg.txInRounds(
    () => [],
    (session) => Effect.map(session.execute("INSERT INTO public.t VALUES (1)"), () => ({ value: null, last: "" })),
  )
  const asked = Effect.runFork(Effect.all([read, write, inRounds], { concurrency: 3 }))
  await until("all to wait for the lock", async () => (await waiting()).length === 3)
  expect(await Effect.runPromise(isHeldUp(pg))).toBe(true)
  await Effect.runPromise(Fiber.interrupt(asked))
  await until("none to wait for it", async () => (await waiting()).length === 0)
  expect(await Effect.runPromise(isHeldUp(pg))).toBe(false)
  await held.unsafe("COMMIT")
  expect(await Effect.runPromise(pg.query("SELECT count(*)::int AS n FROM public.t"))).toEqual([{ n: 0 }])
  await held.end()
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})

test("an absent server is named by what was tried", async () => {
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool("postgres://nobody@127.0.0.1:1/none", { name: "test", max: 1 }), scope))
  expect(String(await Effect.runPromiseExit(pg.query("SELECT 1")))).toContain("ECONNREFUSED")
  await Effect.runPromise(Scope.close(scope, Exit.void))
})

test("a kept statement is planned for the rows that it is given, however often it comes: the table may have grown a thousandfold", async () => {
  const db = await createDatabase()
  await query(db.url, "CREATE TABLE t (a int PRIMARY KEY)")
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "test", max: 1 }), scope))
  const found = await Effect.runPromise(
    pg.tx((session, keeping) =>
      Effect.gen(function* () {
        for (let i = 0; i < 10; i++) yield* keeping.query("SELECT a FROM public.t WHERE a = $1::text::int", ["1"])
        return yield* session.query(
          "SELECT custom_plans::int AS custom, generic_plans::int AS generic FROM pg_prepared_statements WHERE statement LIKE '%public.t %'",
        )
      }),
    ),
  )
  expect(found).toEqual([{ custom: 10, generic: 0 }])
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})

test("settings that a database has as its own change nothing: not how values are read, nor printed, nor how long a statement may take", async () => {
  const db = await createDatabase()
  const own = {
    array_nulls: "off",
    standard_conforming_strings: "off",
    transform_null_equals: "on",
    quote_all_identifiers: "on",
    xmloption: "document",
    DateStyle: "SQL, DMY",
    statement_timeout: "50ms",
    idle_in_transaction_session_timeout: "50ms",
    idle_session_timeout: "50ms",
    lock_timeout: "50ms",
  }
  await query(db.url, "CREATE TABLE public.t (id uuid DEFAULT gen_random_uuid())")
  for (const [name, value] of Object.entries(own))
    await query(db.url, `DO $do$ BEGIN EXECUTE format('ALTER DATABASE %I SET ${name} = %L', current_database(), '${value}'); END $do$`)
  const scope = Scope.makeUnsafe()
  const pg = await Effect.runPromise(Scope.provide(openPool(db.url, { name: "test", max: 1 }), scope))
  const one = (sql: string, params: ReadonlyArray<string | null | ReadonlyArray<string | null>> = []) =>
    Effect.runPromise(Effect.map(pg.texts(sql, params), ([row]) => row))
  expect(await one("SELECT ($1::text::int[])[2]::text, '\\'::text, (NULL = $2::text)::text, '<a/><b/>'::xml::text", [["1", null], null])).toEqual([
    null,
    "\\",
    null,
    "<a/><b/>",
  ])
  expect(await one("SELECT pg_get_expr(adbin, adrelid), date '2026-02-01'::text FROM pg_attrdef")).toEqual(["gen_random_uuid()", "2026-02-01"])
  expect(await one("SELECT pg_sleep(0.2)::text")).toEqual([""])
  expect(
    await Effect.runPromise(
      pg.tx((session) =>
        Effect.gen(function* () {
          yield* session.execute("SELECT 1")
          yield* Effect.sleep(200)
          return yield* session.query("SELECT 2 AS n")
        }),
      ),
    ),
  ).toEqual([{ n: 2 }])
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await db.drop()
})

test("triggers and foreign keys act whatever a role or a database has as its own; a role that may not turn them on is refused with the remedy", async () => {
  const db = await createDatabase()
  const setting = "SELECT current_setting('session_replication_role') AS role"
  await query(
    db.url,
    `ALTER DATABASE "${db.name}" SET session_replication_role = replica; DROP ROLE IF EXISTS bystander; CREATE ROLE bystander LOGIN`,
  )
  const used = <A, E>(use: (pg: PostgresPool) => Effect.Effect<A, E>, user = "postgres"): Promise<A> =>
    Effect.runPromise(Effect.scoped(Effect.flatMap(openPool(Object.assign(new URL(db.url), { username: user }).href, { name: "test", max: 1 }), use)))
  const roles = await used((pg) => Effect.all([pg.query(setting), pg.tx((session) => session.query(setting)), pg.query(setting)]))
  expect(roles).toEqual([[{ role: "origin" }], [{ role: "origin" }], [{ role: "origin" }]])
  const refused = await used((pg) => Effect.flip(pg.query("SELECT 1")), "bystander")
  expect(remedyOf(refused.sqlstate, refused.message, refused.routine)).toContain("RESET session_replication_role")
  await query(db.url, `ALTER DATABASE "${db.name}" RESET session_replication_role`)
  expect(await used((pg) => pg.query("SELECT 1 AS one"), "bystander")).toEqual([{ one: 1 }])
  await db.drop()
  await query((await testCluster()).url(), "DROP ROLE bystander")
})

test("a role that may not make event triggers is told once what a superuser can run, however often it is asked", async () => {
  const db = await createDatabase()
  await query(db.url, "DROP ROLE IF EXISTS plain_role; CREATE ROLE plain_role LOGIN")
  const lines: Array<string> = []
  const logger = Logger.layer([Logger.make(({ message }) => lines.push(String(message)))])
  const url = Object.assign(new URL(db.url), { username: "plain_role" }).href
  const asked = Effect.flatMap(openPool(url, { name: "test", max: 1 }), (pg) => Effect.all([ensureEventTriggers(pg), ensureEventTriggers(pg)]))
  expect(await Effect.runPromise(Effect.scoped(asked).pipe(Effect.provide(logger)))).toEqual([false, false])
  expect(lines).toEqual([expect.stringContaining("CREATE EVENT TRIGGER schoolbus_ddl")])
  await db.drop()
  await query((await testCluster()).url(), "DROP ROLE plain_role")
})
