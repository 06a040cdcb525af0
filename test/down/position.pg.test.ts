/**
 * The feed's rows and the position that the slot may be told are one: whoever looks, at any moment, finds every row that
 * Postgres committed up to the position, and none from beyond it. So a hub that is killed at any moment loses nothing.
 */
import { afterAll, beforeAll, expect, test } from "vitest"
import { parseLsn } from "../../src/model/lsn.ts"
import { makeWorld, type World } from "../support/world.ts"

const TXNS = 250

let world: World
beforeAll(async () => {
  world = await makeWorld(
    "CREATE TABLE steps (n int PRIMARY KEY, school text, note text)",
    { tables: { steps: { audience: { column: "school" } } } },
    ["a", "b"],
  )
})
afterAll(() => world?.stop())

test("at every moment the feed holds the rows up to its position, and no others", async () => {
  /** WAL positions just before the commit of each txn, and at some moment after it. */
  const before: Array<bigint> = []
  const after: Array<bigint> = []
  const seen: Array<{ readonly lsn: bigint; readonly rows: ReadonlySet<number> }> = []
  let isWriting = true
  const look = async (): Promise<void> => {
    while (isWriting) {
      const [row] = await world.run(
        world.feedFile.read((tx) =>
          tx.all<{ lsn: string; rows: string }>(
            `SELECT commit_lsn AS lsn, (SELECT json_group_array(key ->> 0) FROM entry e JOIN tables t ON t.id = e.tbl WHERE t.name = 'public.steps' AND e.body IS NOT NULL) AS rows FROM hub`,
          ),
        ),
      )
      seen.push({ lsn: parseLsn(row?.lsn ?? "0/0"), rows: new Set(JSON.parse(row?.rows ?? "[]") as ReadonlyArray<number>) })
      await new Promise((resolve) => setImmediate(resolve))
    }
  }
  const looking = look()
  const here = async (sql: typeof world.sql): Promise<bigint> => parseLsn(String((await sql`SELECT pg_current_wal_insert_lsn() AS lsn`)[0]?.["lsn"]))
  const session = await world.sql.reserve()
  for (let n = 0; n < TXNS; n++) {
    await session`BEGIN`
    await session`INSERT INTO steps VALUES (${n}, ${n % 2 === 0 ? "a" : "b"}, 'x')`
    if (n > 0) await session`UPDATE steps SET note = note || 'y' WHERE n = ${n - 1}`
    before.push(await here(session as never))
    await session`COMMIT`
    after.push(await here(session as never))
  }
  session.release()
  await world.settle()
  isWriting = false
  await looking
  // Half-way states were there to be seen.
  expect(seen.filter(({ rows }) => rows.size > 0 && rows.size < TXNS).length).toBeGreaterThan(10)
  for (const { lsn, rows } of seen) {
    const lost = after.flatMap((end, n) => (end <= lsn && !rows.has(n) ? [n] : []))
    const early = before.flatMap((start, n) => (start >= lsn && rows.has(n) ? [n] : []))
    expect({ lsn, lost, early }).toEqual({ lsn, lost: [], early: [] })
  }
})

test("wherever the stream is cut into pieces, no message of a txn is lost and none comes into another's commit", async () => {
  await world.sql.unsafe(`TRUNCATE steps`)
  await world.halt()
  // Long and short rows, so that pieces end anywhere; every txn also writes a row of the one before it.
  await world.sql.unsafe(`
    DO $$ BEGIN
      FOR t IN 1..400 LOOP
        INSERT INTO steps SELECT t * 100 + n, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, repeat('x', (t * n) % 700) FROM generate_series(1, 40) n;
        UPDATE steps SET note = 'of ' || t WHERE n = (t - 1) * 100 + 7;
        COMMIT;
      END LOOP;
    END $$`)
  await world.restart()
  const held = await world.run(
    world.feedFile.read((tx) =>
      tx.all<{ body: string }>(
        "SELECT e.body FROM entry e JOIN tables t ON t.id = e.tbl WHERE t.name = 'public.steps' AND e.body IS NOT NULL ORDER BY e.key ->> 0",
      ),
    ),
  )
  const rows = await world.sql`SELECT json_build_array(n, school, note)::text AS body FROM steps ORDER BY n`
  expect(held.map(({ body }) => JSON.stringify(JSON.parse(body)))).toEqual(rows.map(({ body }) => JSON.stringify(JSON.parse(String(body)))))
}, 30_000)

test("when the disk is full in the middle of a backlog, the slot is told no more than the feed holds, and it goes on from there", async () => {
  const [txns, size] = [400, 100]
  await world.sql.unsafe("TRUNCATE steps")
  await world.settle()
  const inFile = async () => {
    const [row] = await world.run(
      world.feedFile.read((tx) =>
        tx.all<{
          lsn: string
          seq: number
          pages: number
          rows: number
          last: number
          again: number
        }>(
          `SELECT commit_lsn AS lsn, hub.seq, p.page_count AS pages, count(e.key) AS rows, coalesce(max(e.key ->> 0), 0) AS last,
                  coalesce(sum(e.seq <> e.born), 0) AS again
             FROM hub, pragma_page_count p LEFT JOIN entry e ON e.body IS NOT NULL AND e.tbl = (SELECT id FROM tables WHERE name = 'public.steps')`,
        ),
      ),
    )
    if (row === undefined) throw new Error("no hub row")
    return row
  }
  const confirmed = async () =>
    parseLsn(String((await world.sql`SELECT confirmed_flush_lsn AS lsn FROM pg_replication_slots WHERE database = current_database()`)[0]?.["lsn"]))
  const limitPages = (pages: number) => world.run(world.feedFile.write((tx) => tx.all(`PRAGMA max_page_count = ${pages}`)))
  await world.halt()
  await world.sql.unsafe(`
    DO $$ BEGIN
      FOR t IN 0..${txns - 1} LOOP
        INSERT INTO steps SELECT 200000 + t * ${size} + n, 'a', 'of txn ' || t || repeat(' x', 200) FROM generate_series(1, ${size}) n;
        COMMIT;
      END LOOP;
    END $$`)
  await limitPages((await inFile()).pages + 900)
  await expect(world.restart()).rejects.toThrow("full")
  const full = await inFile()
  // Whole txns from the first on, and the memory of the head is the file's.
  expect(full.rows % size).toBe(0)
  expect(full.rows).toBeLessThan(txns * size)
  expect(full.rows === 0 ? 0 : full.last - 200_000).toBe(full.rows)
  expect((await world.run(world.feed.head)).seq).toBe(full.seq)
  expect(await confirmed()).toBeLessThanOrEqual(parseLsn(full.lsn))

  await limitPages(1_000_000_000)
  let isBehind = true
  const early: Array<bigint> = []
  const look = async (): Promise<void> => {
    while (isBehind) {
      const told = await confirmed()
      if (told > (await world.run(world.feed.state)).position.lsn) early.push(told)
    }
  }
  const looking = look()
  await world.restart()
  isBehind = false
  await looking
  expect(early).toEqual([])
  expect(await inFile()).toMatchObject({
    rows: txns * size,
    last: 200_000 + txns * size,
    again: 0,
  })
}, 60_000)
