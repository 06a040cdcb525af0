/**
 * The ground on which the downstream benchmarks stand: a private Postgres with a table of 9 columns of about 120 bytes a
 * row, a feed that has loaded it while it was empty, and a slot from there on, which each drain gets a copy of. Unlike in
 * tests everything is as durable as in production: fsync here, synchronous=FULL in the files.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { cpSync, existsSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import postgres from "postgres"
import { type Cluster, startCluster } from "../../scripts/cluster.ts"
import { type ConfigInput, parseConfig } from "../../src/config.ts"
import { FeedChecks } from "../../src/down/check.ts"
import { wal2jsonOptions } from "../../src/down/decode.ts"
import { Feed } from "../../src/down/feed.ts"
import { runSource, slotName } from "../../src/down/source.ts"
import { Libsql, openFile } from "../../src/libsql/client.ts"
import { migrateFile } from "../../src/libsql/migrate.ts"
import { newKey } from "../../src/link/keys.ts"
import { parseLsn } from "../../src/model/lsn.ts"
import { openPool } from "../../src/postgres/client.ts"
import { migrateHub } from "../../src/postgres/migrate.ts"

export const SCHEMA = `CREATE TABLE attendance (
  id bigint PRIMARY KEY, school_id text NOT NULL, student_id bigint NOT NULL, class_id int, day date, status text,
  marked_by text, note text, updated_at timestamptz)`
export const CONFIG: ConfigInput = { tables: { attendance: { audience: { column: "school_id" } } } }
export const SCHOOL = "north"

/** A SELECT of rows `from` to `to`, both included, for an INSERT. */
export const rowsSql = (from: number | string, to: number | string): string =>
  `SELECT n, '${SCHOOL}', n % 1000, n % 30, date '2026-01-01' + (n % 180)::int, (array['present', 'absent', 'late'])[1 + n % 3],
          'teacher ' || n % 40, 'a note of usual length', timestamptz '2026-01-01 08:00:00Z' + n * interval '1 s'
     FROM generate_series(${from}::bigint, ${to}::bigint) n`

export interface OpenFeed {
  readonly feed: Context.Service.Shape<typeof Feed>
  readonly start: () => Promise<void>
  /** Resolves when the feed has committed everything up to there. */
  readonly reaches: (lsn: string) => Promise<void>
  readonly close: () => Promise<void>
}

/** The hub's stream and feed in this process. */
export const openFeed = async (url: string, path: string, input: ConfigInput = CONFIG): Promise<OpenFeed> => {
  const scope = Scope.makeUnsafe()
  const inScope = <A, E>(effect: Effect.Effect<A, E, Scope.Scope>): Promise<A> => Effect.runPromise(Scope.provide(effect, scope))
  const config = parseConfig("bench", input)
  if ("problems" in config) throw config
  const file = await inScope(openFile(path))
  await Effect.runPromise(migrateFile(file, "feed"))
  const pg = await inScope(openPool(url, { name: "bench" }))
  const feed = Context.get(await inScope(Layer.build(Feed.layer.pipe(Layer.provide(Layer.succeed(Libsql, file))))), Feed)
  let stream: Fiber.Fiber<never, unknown> | undefined
  let failure: unknown
  const until = async (condition: () => Promise<boolean>): Promise<void> => {
    while (!(await condition())) {
      if (failure !== undefined) throw failure
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
  }
  return {
    feed,
    start: async () => {
      stream = Effect.runFork(
        runSource({ url, pg, config, onStreaming: Effect.void, onWaiting: () => Effect.void, onLoading: () => Effect.void }).pipe(
          Effect.provideService(Feed, feed),
          Effect.provide(FeedChecks.layer),
          Effect.tapCause((cause) =>
            Effect.sync(() => {
              failure = cause
            }),
          ),
        ),
      )
      await until(() => Effect.runPromise(feed.ready))
    },
    reaches: (lsn) => until(async () => (await Effect.runPromise(feed.state)).position.lsn >= parseLsn(lsn)),
    close: async () => {
      if (stream !== undefined) await Effect.runPromise(Fiber.interrupt(stream))
      await Effect.runPromise(Scope.close(scope, Exit.void))
    },
  }
}

export interface Ground {
  readonly cluster: Cluster
  readonly url: string
  readonly sql: postgres.Sql
  /** A folder that goes away with the ground. */
  readonly dir: string
  /** The school's key, known to every feed of this ground. */
  readonly key: string
  /** Every transaction that `make` commits is what a drain finds; `make` gets a connection. */
  readonly backlog: (make: (sql: postgres.Sql) => Promise<unknown>) => Promise<void>
  /** Seconds that the stream and the feed take for the backlog. */
  readonly drain: () => Promise<number>
  /** Seconds that pg_recvlogical takes to throw the same backlog away, with the same plugin options over the same TCP. */
  readonly drainPeer: () => Promise<number>
  /** End of the backlog. */
  readonly end: () => string
  /** Native logical replication into a second database: from before the backlog, or from now on. */
  readonly native: (from: "backlog" | "now") => Promise<Native>
  /** The slot and a copy of the feed as they were before the backlog, for a hub process. */
  readonly rewind: (dataDir: string) => Promise<void>
  readonly close: () => Promise<void>
}

export interface Native {
  readonly sql: postgres.Sql
  readonly drop: () => Promise<void>
}

/** Inserts `rows` rows in transactions of `size`. */
export const insertRows = (sql: postgres.Sql, rows: number, size: number, first = 1): Promise<unknown> =>
  size >= rows
    ? sql.unsafe(`INSERT INTO attendance ${rowsSql(first, first + rows - 1)}`)
    : sql
        .unsafe(
          `DO $$ BEGIN
             FOR txn IN 0 .. ${Math.ceil(rows / size) - 1} LOOP
               INSERT INTO attendance ${rowsSql(`(${first} + txn * ${size})`, `least(${first + rows - 1}, ${first - 1} + (txn + 1) * ${size})`)};
               COMMIT;
             END LOOP;
           END $$`,
        )
        .simple()

const ended = (child: ChildProcess): Promise<number | null> => new Promise((resolve) => child.once("exit", resolve))

export const openGround = async (input: ConfigInput = CONFIG): Promise<Ground> => {
  const dir = mkdtempSync(join(tmpdir(), "schoolbus-bench-"))
  const cluster = await startCluster({ settings: { max_wal_size: "8GB", shared_buffers: "512MB", synchronous_commit: "off" } })
  const url = cluster.url()
  const slot = slotName(url)
  const sql = postgres(url, { max: 2, onnotice: () => undefined })
  const base = join(dir, "base")
  let copies = 0
  let end = "0/0"

  await sql.unsafe(SCHEMA)
  const pool = Scope.makeUnsafe()
  await Effect.runPromise(migrateHub(await Effect.runPromise(Scope.provide(openPool(url, { name: "bench", max: 1 }), pool))))
  await Effect.runPromise(Scope.close(pool, Exit.void))
  await sql`INSERT INTO schoolbus.schools (id, name) VALUES (${SCHOOL}, ${SCHOOL})`
  const key = newKey()
  await sql`INSERT INTO schoolbus.school_keys (id, school, hash) VALUES (${key.id}, ${SCHOOL}, ${key.hash})`
  await sql`CREATE PUBLICATION bench FOR TABLE attendance`

  const dropSlot = async (name: string): Promise<void> => {
    // A slot is free a moment after its reader has left.
    for (const deadline = Date.now() + 20_000; Date.now() < deadline; await new Promise((resolve) => setTimeout(resolve, 20))) {
      const [row] = await sql`SELECT active FROM pg_replication_slots WHERE slot_name = ${name}`
      if (row === undefined) return
      if (row["active"] === false) await sql`SELECT pg_drop_replication_slot(${name})`
    }
  }
  const copyFeed = (to: string): void => {
    for (const suffix of ["", "-wal", "-shm"]) if (existsSync(base + suffix)) cpSync(base + suffix, to + suffix)
  }
  let life: ReadonlyArray<Record<string, unknown>> = []

  const backlog: Ground["backlog"] = async (make) => {
    for (const suffix of ["", "-wal", "-shm"]) rmSync(base + suffix, { force: true })
    await sql.unsafe("TRUNCATE attendance")
    await dropSlot("bench_base")
    await dropSlot(slot)
    const opened = await openFeed(url, base, input)
    await opened.start()
    await opened.close()
    life = await sql`SELECT * FROM schoolbus.hub`
    await sql`SELECT pg_copy_logical_replication_slot(${slot}, 'bench_base')`
    await dropSlot(slot)
    await make(sql)
    await sql`CHECKPOINT`
    // The end of the last transaction. What comes after it lets a reader see that it is there.
    await sql`INSERT INTO schoolbus.schools (id, name) VALUES ('end', ${crypto.randomUUID()}) ON CONFLICT (id) DO UPDATE SET name = excluded.name`
    const [row] = await sql`SELECT pg_current_wal_insert_lsn()::text AS lsn`
    end = String(row?.["lsn"])
  }
  const rewind = async (dataDir: string): Promise<void> => {
    await dropSlot(slot)
    copyFeed(join(dataDir, "feed.db"))
    for (const row of life) await sql`UPDATE schoolbus.hub SET ${sql(row as Record<string, never>)}`
    await sql`SELECT pg_copy_logical_replication_slot('bench_base', ${slot})`
  }
  return {
    cluster,
    url,
    sql,
    dir,
    key: key.text,
    end: () => end,
    backlog,
    rewind,
    drain: async () => {
      const folder = mkdtempSync(join(dir, "feed-"))
      await rewind(folder)
      const opened = await openFeed(url, join(folder, "feed.db"), input)
      const began = performance.now()
      await opened.start()
      await opened.reaches(end)
      const seconds = (performance.now() - began) / 1000
      await opened.close()
      rmSync(folder, { recursive: true, force: true })
      return seconds
    },
    drainPeer: async () => {
      const name = `bench_peer_${++copies}`
      await sql`SELECT pg_copy_logical_replication_slot('bench_base', ${name})`
      const options = wal2jsonOptions(["public.attendance", "schoolbus.schools", "schoolbus.marks"]).required.flatMap(([key, value]) => [
        "-o",
        `${key}=${value}`,
      ])
      const began = performance.now()
      const child = spawn(
        join(cluster.binaries.bin, "pg_recvlogical"),
        [
          ...["-h", "127.0.0.1", "-p", String(cluster.port), "-U", "postgres", "-d", "postgres", "--slot", name, "--start", "--no-loop"],
          ...["--endpos", end, "-f", "/dev/null", ...options],
        ],
        { stdio: ["ignore", "ignore", "inherit"] },
      )
      // It looks at the end only when something arrives: without new WAL it would wait for ever.
      const nudge = setInterval(
        () => void sql`UPDATE schoolbus.schools SET name = ${crypto.randomUUID()} WHERE id = 'end'`.catch(() => undefined),
        50,
      )
      const timer = setTimeout(() => child.kill("SIGKILL"), 120_000)
      const code = await ended(child)
      const seconds = (performance.now() - began) / 1000
      clearInterval(nudge)
      clearTimeout(timer)
      if (code !== 0) throw new Error(`pg_recvlogical ended with ${code}`)
      await dropSlot(name)
      return seconds
    },
    native: async (from) => {
      const name = `bench_native_${++copies}`
      if (from === "backlog") await sql`SELECT pg_copy_logical_replication_slot('bench_base', ${name}, false, 'pgoutput')`
      else await sql`SELECT pg_create_logical_replication_slot(${name}, 'pgoutput')`
      await sql.unsafe(`CREATE DATABASE ${name}`)
      const other = postgres(cluster.url(name), { max: 1, onnotice: () => undefined })
      await other.unsafe(SCHEMA)
      await other.unsafe(
        `CREATE SUBSCRIPTION ${name} CONNECTION '${url}' PUBLICATION bench WITH (create_slot = false, slot_name = '${name}', copy_data = false)`,
      )
      return {
        sql: other,
        drop: async () => {
          await other.unsafe(`ALTER SUBSCRIPTION ${name} DISABLE`)
          await other.unsafe(`ALTER SUBSCRIPTION ${name} SET (slot_name = NONE)`)
          await other.unsafe(`DROP SUBSCRIPTION ${name}`)
          await other.end({ timeout: 2 })
          await dropSlot(name)
          await sql.unsafe(`DROP DATABASE ${name} WITH (FORCE)`)
        },
      }
    },
    close: async () => {
      await sql.end({ timeout: 2 })
      await cluster.remove()
      rmSync(dir, { recursive: true, force: true })
    },
  }
}
