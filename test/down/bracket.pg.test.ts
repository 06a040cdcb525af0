import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import type { ConfigInput } from "../../src/config.ts"
import { Brackets, takeBracket } from "../../src/down/bracket.ts"
import { startCluster } from "../../scripts/cluster.ts"
import { probeWal2json } from "../../src/postgres/probe.ts"
import { run } from "../support/postgres.ts"
import { makeWorld, type World } from "../support/world.ts"
import { until } from "../support/until.ts"

const schema = `
  CREATE TABLE things (id int PRIMARY KEY, v text, points numeric);
  CREATE TABLE others (id int PRIMARY KEY, v text);
  CREATE TABLE crowd (id int PRIMARY KEY, v int NOT NULL);
  INSERT INTO things SELECT n, 'first ' || n FROM generate_series(1, 9) n;
  INSERT INTO others SELECT n, 'first ' || n FROM generate_series(1, 9) n;
  INSERT INTO crowd SELECT n, 0 FROM generate_series(1, 12000) n;`

const config = (plugin: "wal2json" | "pgoutput", ...tables: ReadonlyArray<string>): ConfigInput => ({
  plugin,
  tables: Object.fromEntries(tables.map((name) => [name, { audience: "all" as const }])),
})

const feedRows = (world: World, table: string) =>
  world.run(
    world.feedFile.read((tx) =>
      tx.all<{ body: string; seq: number }>(
        "SELECT e.body, e.seq FROM entry e JOIN tables t ON t.id = e.tbl WHERE t.name = ? AND e.body IS NOT NULL ORDER BY json_extract(e.body, '$[0]')",
        [`public.${table}`],
      ),
    ),
  )
const feedValue = async (world: World, table: string, id: number): Promise<string | undefined> =>
  (await feedRows(world, table)).map(({ body }) => JSON.parse(body) as [number, string]).find(([key]) => key === id)?.[1]
/** The feed holds what Postgres holds. */
const expectEqual = async (world: World, table: string): Promise<void> => {
  const rows = await world.sql.unsafe(`SELECT row_to_json(t) AS row FROM (SELECT id, v FROM ${table} ORDER BY id) t`)
  const held = (await feedRows(world, table)).map(({ body }) => JSON.parse(body) as [number, unknown]).map(([id, v]) => ({ id, v }))
  expect(held).toEqual(rows.map(({ row }) => row))
}
const waiting = async (world: World): Promise<number> =>
  (await world.run(world.feedFile.read((tx) => tx.all<{ n: number }>("SELECT (SELECT count(*) FROM reread) + (SELECT count(*) FROM unmet) AS n"))))[0]
    ?.n ?? 0
const quiet = (world: World) => until("rows that wait to be read", async () => (await waiting(world)) === 0)
const reread = (world: World, table: string, id: number) =>
  world.run(
    world.feedFile.write((tx) =>
      tx.run("INSERT OR REPLACE INTO reread (tbl, key, why) SELECT id, ?, 'toast' FROM tables WHERE name = ?", [`[${id}]`, `public.${table}`]),
    ),
  )

/** Holds every bracket between its snapshot and its mark while the body runs; the body is called when one waits. */
const betweenSnapshotAndMark = async (world: World, begin: () => Promise<unknown>, body: () => Promise<unknown>): Promise<void> => {
  await world.sql.begin(async (holder) => {
    await holder`LOCK TABLE schoolbus.marks IN SHARE MODE`
    await begin()
    await until("a bracket at its mark", async () => {
      const rows =
        await world.sql`SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'INSERT INTO schoolbus.marks%'`
      return rows.length > 0
    })
    await body()
    await world.settle()
  })
}

const changeEverything = async (world: World, table: string): Promise<void> => {
  await run(world.database.url, `DELETE FROM ${table} WHERE id = 1`)
  await run(world.database.url, `UPDATE ${table} SET v = 'new 2' WHERE id = 2`)
  await run(world.database.url, `UPDATE ${table} SET id = 30 WHERE id = 3`)
  await run(world.database.url, `BEGIN; DELETE FROM ${table} WHERE id = 4; INSERT INTO ${table} (id, v) VALUES (4, 'again'); COMMIT`)
  // The stream names a transaction, a snapshot may meet its subtransactions.
  await run(
    world.database.url,
    `BEGIN; SAVEPOINT one; UPDATE ${table} SET v = 'sub 5' WHERE id = 5; SAVEPOINT two; UPDATE ${table} SET v = 'sub 6' WHERE id = 6;
    ROLLBACK TO two; UPDATE ${table} SET v = 'sub 7' WHERE id = 7; RELEASE one; COMMIT`,
  )
  await run(world.database.url, `BEGIN; UPDATE ${table} SET v = 'undone' WHERE id = 8; ROLLBACK`)
  await run(world.database.url, `INSERT INTO ${table} (id, v) VALUES (10, 'new 10')`)
}

describe.each(["wal2json", "pgoutput"] as const)("%s", (plugin) => {
  let world: World
  beforeAll(async () => {
    world = await makeWorld(schema, config(plugin, "things"), ["a"])
  })
  afterAll(() => world?.stop())

  test("a first copy does not bring back what was deleted, changed or given another key since its snapshot", async () => {
    await betweenSnapshotAndMark(
      world,
      () => world.restart(config(plugin, "things", "others")),
      () => changeEverything(world, "others"),
    )
    await until("the first copy", () => world.run(world.feed.ready))
    await expectEqual(world, "others")
    expect(await feedValue(world, "others", 6)).toBe("first 6")
  })

  test.each([
    ["rewritten", "ALTER TABLE others ALTER v TYPE text USING v || ''"],
    ["truncated and filled again", "TRUNCATE others; INSERT INTO others VALUES (11, 'after')"],
  ])("a table that is %s while a read waits for it is read as it is afterwards", async (_, statements) => {
    await world.sql.begin(async (holder) => {
      for (const statement of statements.split("; ")) await holder.unsafe(statement)
      await world.run(
        world.feedFile.write((tx) => tx.run("DELETE FROM entry WHERE key = '[2]' AND tbl = (SELECT id FROM tables WHERE name = 'public.others')")),
      )
      await reread(world, "others", 2)
      await until("a bracket at the table", async () => {
        const rows = await world.sql`SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'others'::regclass`
        return rows.length > 0
      })
    })
    await quiet(world)
    await world.settle()
    await expectEqual(world, "others")
  })

  test("a row that is read again keeps what the stream said meanwhile", async () => {
    await betweenSnapshotAndMark(
      world,
      async () => {
        for (let id = 1; id <= 9; id++) await reread(world, "things", id)
      },
      () => changeEverything(world, "things"),
    )
    await quiet(world)
    await expectEqual(world, "things")
  })

  test("a row whose null hides NaN is read again when it was written while an older null of it was being read", async ({ skip }) => {
    if (plugin === "pgoutput" || (await world.run(probeWal2json(world.pg))) === "exact") return skip("this decoder hides nothing")
    await world.sql`UPDATE things SET points = 1 WHERE id = 9`
    await world.settle()
    await betweenSnapshotAndMark(
      world,
      () => world.sql`UPDATE things SET points = NULL WHERE id = 9`,
      () => world.sql`UPDATE things SET points = 'NaN' WHERE id = 9`,
    )
    await quiet(world)
    expect((await feedRows(world, "things")).find(({ body }) => body.startsWith("[9,"))?.body).toBe('[9,"first 9","NaN"]')
  })

  test("a first copy of many chunks among writers ends with what Postgres holds", async () => {
    const seed = Number(process.env["SEED"] ?? Math.floor(Math.random() * 2 ** 31))
    console.log(`bracket: SEED=${seed}`)
    let state = seed
    const random = (n: number): number => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      return state % n
    }
    let isCopying = true
    const writer = async (): Promise<void> => {
      while (isCopying) {
        await new Promise((resolve) => setTimeout(resolve, 4))
        const id = 1 + random(12_500)
        const kind = random(6)
        const value = random(1_000_000)
        if (kind === 0) await world.sql`DELETE FROM crowd WHERE id = ${id}`
        else if (kind === 1)
          await world.sql`UPDATE crowd SET id = ${20_000 + value} WHERE id = ${id} AND NOT EXISTS (SELECT 1 FROM crowd WHERE id = ${20_000 + value})`
        else if (kind === 2)
          await world.sql.begin(async (tx) => {
            await tx`UPDATE crowd SET v = -1 WHERE id = ${id}`
            await tx.savepoint((sp) => sp`UPDATE crowd SET v = ${value} WHERE id BETWEEN ${id} AND ${id + 20}`)
          })
        else await world.sql`INSERT INTO crowd VALUES (${id}, ${value}) ON CONFLICT (id) DO UPDATE SET v = excluded.v`
      }
    }
    const writers = [writer(), writer()]
    try {
      await world.restart(config(plugin, "things", "others", "crowd"))
      await until("the first copy", () => world.run(world.feed.ready))
    } finally {
      isCopying = false
      await Promise.all(writers)
    }
    await world.settle()
    await expectEqual(world, "crowd")
  })
})

test("a bracket whose mark does not come is taken again, and a mark that comes too late means nothing", async () => {
  const world = await makeWorld(schema, config("wal2json", "things"), [])
  try {
    const brackets = new Brackets(0n)
    const [table] = (await world.run(world.feed.tables)).filter(({ name }) => name === "public.things")
    if (table === undefined) throw new Error("no table")
    const fiber = Effect.runFork(takeBracket(world.pg, brackets, table, { kind: "chunk", after: null }, 30))
    const ids = new Set<string>()
    await until("a third try", async () => {
      for (const id of brackets.open.keys()) ids.add(id)
      return ids.size >= 3
    })
    expect(brackets.open.size).toBeLessThanOrEqual(1)
    // The mark of whichever try is open comes.
    await until("its end", async () => {
      for (const bracket of brackets.open.values()) if (bracket.read !== null) await Effect.runPromise(Deferred.succeed(bracket.closed, undefined))
      return brackets.open.size === 0 && fiber.pollUnsafe() !== undefined
    })
    expect((await Effect.runPromise(Fiber.join(fiber))).rows).toHaveLength(9)
  } finally {
    await world.stop()
  }
})

describe("commits that Postgres streams before its snapshots show them", () => {
  let world: World
  beforeAll(async () => {
    const cluster = await startCluster({
      fsync: false,
      settings: { max_prepared_transactions: "5", synchronous_standby_names: "'nobody'", synchronous_commit: "local" },
    })
    world = await makeWorld(schema, config("wal2json", "things", "others"), ["a"], { url: cluster.url(), name: "postgres", drop: cluster.remove })
  })
  afterAll(() => world?.stop())

  /** Its commit waits for a standby that does not exist: in the WAL and in the stream, but in no snapshot. */
  const withInvisible = async (statement: string, body: () => Promise<unknown>): Promise<void> => {
    const session = await world.sql.reserve()
    await session`SET synchronous_commit = 'on'`
    const pid = (await session`SELECT pg_backend_pid() AS pid`)[0]?.["pid"] as number
    const committing = session.unsafe(statement).execute()
    try {
      await until(
        "the commit to wait",
        async () => (await world.sql`SELECT 1 FROM pg_stat_activity WHERE pid = ${pid} AND wait_event = 'SyncRep'`).length > 0,
      )
      await body()
    } finally {
      // Ends the wait; the transaction is committed.
      await world.sql`SELECT pg_cancel_backend(${pid})`
      await committing
      await session`SET synchronous_commit = 'local'`
      session.release()
    }
  }

  test("a read that begins while such a commit waits does not put the old row back", async () => {
    await withInvisible("UPDATE things SET v = 'streamed' WHERE id = 1", async () => {
      await until("the stream", async () => (await feedValue(world, "things", 1)) === "streamed")
      expect(await world.sql`SELECT v FROM things WHERE id = 1`).toEqual([{ v: "first 1" }])
      await reread(world, "things", 1)
      // Time enough to do wrong.
      for (const until = Date.now() + 1_000; Date.now() < until && (await waiting(world)) > 0; )
        await new Promise((resolve) => setTimeout(resolve, 20))
      expect(await feedValue(world, "things", 1)).toBe("streamed")
      expect(await waiting(world)).toBe(1)
    })
    await quiet(world)
    await expectEqual(world, "things")
  })

  test("such a commit between snapshot and mark stands", async () => {
    await betweenSnapshotAndMark(
      world,
      () => reread(world, "things", 2),
      () =>
        withInvisible("UPDATE things SET v = 'streamed' WHERE id = 2", () =>
          until("the stream", async () => (await feedValue(world, "things", 2)) === "streamed"),
        ),
    )
    await quiet(world)
    expect(await feedValue(world, "things", 2)).toBe("streamed")
  })

  test("a transaction prepared before the snapshot and committed before the mark stands", async () => {
    await run(world.database.url, "BEGIN; UPDATE things SET v = 'prepared' WHERE id = 3; DELETE FROM things WHERE id = 4; PREPARE TRANSACTION 'p1'")
    await betweenSnapshotAndMark(
      world,
      async () => {
        await reread(world, "things", 3)
        await reread(world, "things", 4)
      },
      () => world.sql.unsafe("COMMIT PREPARED 'p1'"),
    )
    await quiet(world)
    expect(await feedValue(world, "things", 3)).toBe("prepared")
    expect(await feedValue(world, "things", 4)).toBeUndefined()
    await expectEqual(world, "things")
  })
})
