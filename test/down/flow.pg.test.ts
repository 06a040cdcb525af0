import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { makeWorld, type School, type World } from "../support/world.ts"

const schema = `
  CREATE TYPE mood AS ENUM ('glad', 'sad');
  CREATE TABLE terms (id int PRIMARY KEY, name text NOT NULL);
  CREATE TABLE pupils (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), school_id text, name text NOT NULL, username text UNIQUE, phone text,
    points numeric(10,2) NOT NULL DEFAULT 0, big bigint, ratio float8, photo bytea, born date, seen timestamptz, mood mood, tags text[], extra jsonb,
    term int REFERENCES terms (id), active boolean NOT NULL DEFAULT true);
  INSERT INTO terms VALUES (1, 'spring'), (2, 'autumn');
  INSERT INTO pupils (id, school_id, name, username, points, big, ratio, photo, born, seen, mood, tags, extra, term) VALUES
    ('00000000-0000-0000-0000-000000000001', 'a', 'Amina', 'amina', 1.50, 9223372036854775807, 0.1, '\\x00ff', '2015-01-02', '2026-01-01 08:00:00.123456+00', 'glad', '{x,"y z"}', '{"k": [1, 2.50]}', 1),
    ('00000000-0000-0000-0000-000000000002', 'a', 'Bilal', 'bilal', 2, -1, 1e300, null, null, null, null, null, null, 2),
    ('00000000-0000-0000-0000-000000000003', 'b', 'Chidi', 'chidi', 3, 0, 'NaN', '', null, 'infinity', 'sad', '{}', 'null', 1);`
const id = (n: number) => `00000000-0000-0000-0000-00000000000${n}`

describe.each(["wal2json", "pgoutput"] as const)("%s", (plugin) => {
  let world: World
  let a: School
  let b: School
  beforeAll(async () => {
    world = await makeWorld(
      schema,
      {
        plugin,
        tables: {
          terms: { audience: "all", direction: "down" },
          pupils: { audience: { column: "school_id" }, strategy: "vps_wins", columns: { phone: "school_wins", name: "manual", seen: "newest_wins" } },
        },
      },
      ["a", "b"],
    )
    a = await world.school("a")
    b = await world.school("b")
    await a.pull()
    await b.pull()
  })
  afterAll(() => world?.stop())

  test("each school gets its own rows and shared ones, value for value", async () => {
    expect(await a.rows("SELECT id FROM pupils ORDER BY id")).toEqual([{ id: id(1) }, { id: id(2) }])
    expect(await b.rows("SELECT id FROM pupils")).toEqual([{ id: id(3) }])
    expect(await b.rows("SELECT name FROM terms ORDER BY id")).toEqual([{ name: "spring" }, { name: "autumn" }])
    const [row] = await a.rows(
      `SELECT points, typeof(points) tp, CAST(big AS TEXT) big, ratio, typeof(ratio) tr, hex(photo) photo, born, seen, mood, tags, extra, active FROM pupils WHERE id = ?`,
      [id(1)],
    )
    expect(row).toEqual({
      points: "1.50",
      tp: "text",
      big: "9223372036854775807",
      ratio: 0.1,
      tr: "real",
      photo: "00FF",
      born: "2015-01-02",
      seen: "2026-01-01 08:00:00.123456+00",
      mood: "glad",
      tags: '{x,"y z"}',
      extra: '{"k": [1, 2.50]}',
      active: 1,
    })
    const [c] = await b.rows("SELECT ratio, seen, typeof(photo) t, length(photo) n, extra FROM pupils")
    expect(c).toEqual({ ratio: "NaN", seen: "infinity", t: "blob", n: 0, extra: "null" })
  })

  test("a moved row leaves one school and appears in the other", async () => {
    await world.sql`UPDATE pupils SET school_id = 'b' WHERE id = ${id(2)}`
    await world.settle()
    await a.pull()
    await b.pull()
    expect(await a.rows("SELECT id FROM pupils")).toEqual([{ id: id(1) }])
    expect(await b.rows("SELECT id FROM pupils ORDER BY id")).toEqual([{ id: id(2) }, { id: id(3) }])
  })

  test("a school's insert, update and delete reach Postgres once, also when the batch is sent twice", async () => {
    await a.write("INSERT INTO pupils (id, school_id, name, points, active) VALUES (?, 'a', 'Dina', '7.25', 1)", [id(4)])
    await a.write("UPDATE pupils SET phone = '123' WHERE id = ?", [id(1)])
    await a.push()
    await a.push()
    expect(await world.sql`SELECT name, points::text, phone FROM pupils WHERE school_id = 'a' ORDER BY id`).toEqual([
      { name: "Amina", points: "1.50", phone: "123" },
      { name: "Dina", points: "7.25", phone: null },
    ])
    await world.settle()
    await a.pull()
    expect(await a.rows("SELECT count(*) AS n FROM changes")).toEqual([{ n: 0 }])
    await a.write("DELETE FROM pupils WHERE id = ?", [id(4)])
    await a.sync()
    expect(await world.sql`SELECT count(*)::int AS n FROM pupils WHERE id = ${id(4)}`).toEqual([{ n: 0 }])
    expect(await a.rows("SELECT count(*) AS n FROM changes")).toEqual([{ n: 0 }])
    expect(await a.rows("SELECT count(*) AS n FROM schoolbus_behind")).toEqual([{ n: 0 }])
  })

  test("a vps_wins loss writes nothing in Postgres and gives way in the school; school_wins stands; other columns merge", async () => {
    await a.write("UPDATE pupils SET username = 'from-school', phone = 'school' WHERE id = ?", [id(1)])
    await world.sql`UPDATE pupils SET username = 'from-office', phone = 'office', points = 9 WHERE id = ${id(1)}`
    await world.settle()
    await a.pull()
    // Not undone before its verdict.
    expect(await a.rows("SELECT username, phone, points FROM pupils WHERE id = ?", [id(1)])).toEqual([
      { username: "from-school", phone: "school", points: "1.50" },
    ])
    const [before] = await world.sql`SELECT xmin::text FROM pupils WHERE id = ${id(1)}`
    const [verdicts] = await a.push()
    expect(verdicts?.exceptions.map((e) => e.verdict)).toEqual(["conflict"])
    const [after] = await world.sql`SELECT username, phone, points::text, xmin::text FROM pupils WHERE id = ${id(1)}`
    expect(after).toMatchObject({ username: "from-office", phone: "school", points: "9.00" })
    expect(before?.xmin).not.toBe(after?.xmin)
    await world.settle()
    await a.pull()
    expect(await a.rows("SELECT username, phone, points FROM pupils WHERE id = ?", [id(1)])).toEqual([
      { username: "from-office", phone: "school", points: "9.00" },
    ])
    expect(await world.sql`SELECT column_name, base, mine, theirs, kept, winner FROM schoolbus.conflicts ORDER BY column_name`).toEqual([
      { column_name: "phone", base: '"123"', mine: '"school"', theirs: '"office"', kept: '"school"', winner: "school" },
      { column_name: "username", base: '"amina"', mine: '"from-school"', theirs: '"from-office"', kept: '"from-office"', winner: "vps" },
    ])
    expect(await a.rows("SELECT count(*) AS n FROM schoolbus_conflicts")).toEqual([{ n: 2 }])
  })

  test("a loss in every column writes nothing at all and still converges", async () => {
    await a.write("UPDATE pupils SET username = 'again' WHERE id = ?", [id(1)])
    await world.sql`UPDATE pupils SET username = 'office-2' WHERE id = ${id(1)}`
    const [before] = await world.sql`SELECT xmin::text FROM pupils WHERE id = ${id(1)}`
    await a.push()
    const [after] = await world.sql`SELECT xmin::text FROM pupils WHERE id = ${id(1)}`
    expect(after?.xmin).toBe(before?.xmin)
    await world.settle()
    await a.pull()
    expect(await a.rows("SELECT username FROM pupils WHERE id = ?", [id(1)])).toEqual([{ username: "office-2" }])
  })

  test("a manual conflict keeps both sides until it is decided", async () => {
    await a.write("UPDATE pupils SET name = 'School name' WHERE id = ?", [id(1)])
    await world.sql`UPDATE pupils SET name = 'Office name' WHERE id = ${id(1)}`
    await a.sync()
    expect(await a.rows("SELECT name FROM pupils WHERE id = ?", [id(1)])).toEqual([{ name: "School name" }])
    expect(await world.sql`SELECT name FROM pupils WHERE id = ${id(1)}`).toEqual([{ name: "Office name" }])
    await world.sql`UPDATE schoolbus.conflicts SET status = 'resolved', winner = 'vps' WHERE status = 'open'`
    await world.settle()
    await a.pull()
    expect(await a.rows("SELECT name FROM pupils WHERE id = ?", [id(1)])).toEqual([{ name: "Office name" }])
    expect(await a.rows("SELECT count(*) AS n FROM schoolbus_hold")).toEqual([{ n: 0 }])
  })

  test("a row of another school is quarantined, nothing is written, the rest goes on", async () => {
    await a.write("INSERT INTO pupils (id, school_id, name, points, active) VALUES (?, 'b', 'Spy', '0', 1)", [id(5)])
    await a.write("INSERT INTO pupils (id, school_id, name, points, active, born) VALUES (?, 'a', 'Bad', '0', 1, 'not a date')", [id(6)])
    await a.write("INSERT INTO pupils (id, school_id, name, points, active) VALUES (?, 'a', 'Good', '0', 1)", [id(7)])
    const [verdicts] = await a.push()
    expect(verdicts?.exceptions.map((e) => [e.verdict, e.reason])).toEqual([
      ["quarantined", "not_allowed"],
      ["quarantined", "type"],
    ])
    expect(await world.sql`SELECT name FROM pupils WHERE id IN (${id(5)}, ${id(6)}, ${id(7)})`).toEqual([{ name: "Good" }])
    await world.settle()
    await a.pull()
    expect(await a.rows("SELECT name FROM pupils WHERE id IN (?, ?, ?) ORDER BY name", [id(5), id(6), id(7)])).toEqual([
      { name: "Bad" },
      { name: "Good" },
      { name: "Spy" },
    ])
    await b.pull()
    expect(await b.rows("SELECT name FROM pupils WHERE name IN ('Spy', 'Good', 'Bad')")).toEqual([])
  })

  test("unique values that swap between rows arrive", async () => {
    await world.sql.begin(async (tx) => {
      await tx`UPDATE pupils SET username = 'tmp' WHERE id = ${id(2)}`
      await tx`UPDATE pupils SET username = 'bilal' WHERE id = ${id(3)}`
      await tx`UPDATE pupils SET username = 'chidi' WHERE id = ${id(2)}`
    })
    await world.settle()
    await b.pull()
    expect(await b.rows("SELECT username FROM pupils WHERE id IN (?, ?) ORDER BY id", [id(2), id(3)])).toEqual([
      { username: "chidi" },
      { username: "bilal" },
    ])
    expect(await b.rows("SELECT count(*) AS n FROM schoolbus_behind")).toEqual([{ n: 0 }])
  })

  test("after a restart of the stream nothing is lost and nothing comes twice", async () => {
    const head = (await world.run(world.feed.head)).seq
    await world.restart()
    await world.sql`UPDATE pupils SET phone = 'after' WHERE id = ${id(3)}`
    await world.settle()
    await b.pull()
    expect(await b.rows("SELECT phone FROM pupils WHERE id = ?", [id(3)])).toEqual([{ phone: "after" }])
    expect((await world.run(world.feed.head)).seq - head).toBeLessThanOrEqual(4)
  })

  test("when the slot is dropped, only what differs comes down", async () => {
    const before = (await world.run(world.feed.head)).seq
    await world.restart().catch(() => undefined)
    const [slot] = await world.sql`SELECT slot_name FROM pg_replication_slots WHERE database = current_database()`
    await world.sql`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = ${slot?.slot_name} AND active`
    for (let dropped = false; !dropped; ) {
      dropped = await world.sql`SELECT pg_drop_replication_slot(${slot?.slot_name})`.then(
        () => true,
        () => false,
      )
    }
    await world.sql`UPDATE pupils SET phone = 'missed' WHERE id = ${id(3)}`
    await world.sql`DELETE FROM pupils WHERE id = ${id(2)}`
    await world.restart()
    for (let n = 1; n > 0; ) {
      await world.settle()
      await b.pull()
      n = Number((await b.rows<{ n: number }>("SELECT count(*) AS n FROM pupils WHERE id = ?", [id(2)]))[0]?.n)
    }
    expect(await b.rows("SELECT id, phone FROM pupils")).toEqual([{ id: id(3), phone: "missed" }])
    expect((await world.run(world.feed.head)).seq - before).toBeLessThan(200)
  })
})
