/** Programs that rebuild, alter or strip a synced table, and what they write before anybody notices. */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type * as Effect from "effect/Effect"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
import type { LibsqlError, Tx } from "../../src/libsql/client.ts"
import { writtenBy } from "../../src/libsql/gap.ts"
import { type HubLink, openHubLink } from "../support/hub-link.ts"
import { enrol, type Node, script, startNode, upToDate } from "../support/node.ts"
import { program } from "../support/processes.ts"
import { until } from "../support/until.ts"
import { makeWorld, type World } from "../support/world.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-gap-"))
let world: World
let hub: HubLink
beforeAll(async () => {
  world = await makeWorld(
    `CREATE TABLE pupils (id text PRIMARY KEY, school_id text, name text NOT NULL, code text, points bigint, size double precision, photo bytea);
     CREATE TABLE seen (id text PRIMARY KEY, school_id text, at text);
     CREATE TABLE notes (id text PRIMARY KEY, school_id text, body text, extra text);`,
    {
      tables: {
        pupils: { audience: { column: "school_id" }, strategy: "vps_wins" },
        notes: { audience: { column: "school_id" }, strategy: "school_wins" },
        seen: { audience: { column: "school_id" }, direction: "up", strategy: "school_wins" },
      },
    },
    [],
  )
  hub = await openHubLink(world)
})
afterAll(async () => {
  await hub?.stop()
  await world?.stop()
  rmSync(folder, { recursive: true, force: true })
})

/** A school with rows 1 to 6, its node up to date. */
const newSchool = () =>
  enrol({ world, hub, folder }, async (id) => {
    for (let i = 1; i <= 6; i++)
      await world.sql`INSERT INTO pupils VALUES (${`${id}-${i}`}, ${id}, ${`name ${i}`}, ${`c${i}`}, ${i}, ${i / 10}, ${Buffer.from([i, 255])})`
  })
/** As a mapper's migration does it: a new table, the rows, the old one dropped, the new one renamed. */
const rebuild = (more = "") => `
  PRAGMA foreign_keys = OFF;
  BEGIN;
  CREATE TABLE "__new_pupils" (id text PRIMARY KEY NOT NULL, school_id text, name text NOT NULL, code text, points bigint, size real, photo blob, nick text);
  INSERT INTO "__new_pupils" (id, school_id, name, code, points, size, photo) SELECT id, school_id, name, code, points, size, photo FROM pupils;
  DROP TABLE pupils;
  ALTER TABLE "__new_pupils" RENAME TO "pupils";
  ${more}
  COMMIT;`
const office = (id: string) =>
  world.sql`SELECT replace(id, ${`${id}-`}, '') AS id, name, points::int AS points FROM pupils WHERE school_id = ${id} ORDER BY id`
const local = (dir: string, id: string) =>
  program(dir, `SELECT replace(id, '${id}-', '') AS id, name, points FROM pupils ORDER BY id`) as ReadonlyArray<Record<string, unknown>>
const agree = async (node: Node, dir: string, id: string) => {
  await until(
    "both sides to agree",
    async () => JSON.stringify(local(dir, id)) === JSON.stringify([...(await office(id))]) && (await node.status()).state === "up_to_date",
  )
  expect(program(dir, "SELECT count(*) AS n FROM schoolbus_gap")).toEqual([{ n: 0 }])
}
const conflicts = async (id: string) => (await world.sql`SELECT count(*)::int AS n FROM schoolbus.conflicts WHERE school = ${id}`)[0]?.["n"]

const edits = (id: string) =>
  `UPDATE pupils SET name = 'in the gap', points = 77 WHERE id = '${id}-1';
   INSERT INTO pupils (id, school_id, name) VALUES ('${id}-7', '${id}', 'new in the gap');
   DELETE FROM pupils WHERE id = '${id}-2';
   UPDATE pupils SET code = 'c5b' WHERE id = '${id}-5';`

describe("what a program writes while triggers are away reaches head office, exactly and without a conflict,", () => {
  it("when it rebuilds the table beside a running node", async () => {
    const { id, dir, node } = await newSchool()
    script(dir, rebuild(edits(id)))
    script(dir, `UPDATE pupils SET points = points + 1 WHERE id IN ('${id}-1', '${id}-3')`)
    await agree(node, dir, id)
    expect((await office(id)).map(({ id: key, name, points }) => `${key} ${name} ${points}`)).toEqual([
      "1 in the gap 78",
      "3 name 3 4",
      "4 name 4 4",
      "5 name 5 5",
      "6 name 6 6",
      "7 new in the gap null",
    ])
    expect(await conflicts(id)).toBe(0)
    expect(node.output()).toMatch(/table public\.pupils: a program rebuilt/)
    await node.stop()
  })

  it("when it drops triggers and alters columns while the node is off", async () => {
    const { id, dir, key, node } = await newSchool()
    script(dir, `UPDATE pupils SET points = 40 WHERE id = '${id}-4'`)
    await until("the edit", async () => (await office(id))[3]?.["points"] === 40)
    await node.stop()
    // A captured write, a gap in the same rows and beside them, and head office's own edits meanwhile.
    script(dir, `UPDATE pupils SET points = 60 WHERE id = '${id}-6'`)
    script(
      dir,
      `DROP TRIGGER schoolbus_pupils_au; DROP TRIGGER schoolbus_pupils_ai; DROP TRIGGER schoolbus_pupils_ad; ALTER TABLE pupils ADD COLUMN extra TEXT`,
    )
    script(dir, edits(id))
    script(dir, `UPDATE pupils SET name = 'twice' WHERE id = '${id}-6'`)
    await world.sql`UPDATE pupils SET name = 'of head office' WHERE id = ${`${id}-3`}`
    const again = startNode(dir, key, hub.url)
    await agree(again, dir, id)
    expect((await office(id)).map(({ id: row, name, points }) => `${row} ${name} ${points}`)).toEqual([
      "1 in the gap 77",
      "3 of head office 3",
      "4 name 4 40",
      "5 name 5 5",
      "6 twice 60",
      "7 new in the gap null",
    ])
    expect(await conflicts(id)).toBe(0)
    await again.stop()
  })

  it("when REPLACE displaces rows through a unique index that is newer than the triggers", async () => {
    const { id, dir, key, node } = await newSchool()
    await node.stop()
    script(
      dir,
      `CREATE UNIQUE INDEX by_code ON pupils (code); REPLACE INTO pupils (id, school_id, name, code) VALUES ('${id}-9', '${id}', 'nine', 'c1')`,
    )
    const again = startNode(dir, key, hub.url)
    await agree(again, dir, id)
    expect((await office(id)).map(({ id: row }) => row).join("")).toBe("234569")
    await again.stop()
  })

  it("also when its own trigger is newer than ours, and writes on top of a write before that is captured", async () => {
    const { id, dir, key, node } = await newSchool()
    await node.stop()
    script(
      dir,
      `CREATE TRIGGER bonus AFTER UPDATE OF name ON pupils BEGIN UPDATE pupils SET points = points + 10, code = NEW.name WHERE id = NEW.id; END;
       UPDATE pupils SET name = 'renamed' WHERE id = '${id}-1';
       UPDATE pupils SET points = 30 WHERE id = '${id}-3'; UPDATE pupils SET points = 31 WHERE id = '${id}-3';
       INSERT INTO pupils (id, school_id, name, points) VALUES ('${id}-7', '${id}', 'new', 7); UPDATE pupils SET name = 'newer' WHERE id = '${id}-7';
       DELETE FROM pupils WHERE id = '${id}-6'`,
    )
    const again = await startNode(dir, key, hub.url)
    await agree(again, dir, id)
    expect((await office(id)).map((row) => Object.values(row).join(" "))).toEqual([
      "1 renamed 11",
      "2 name 2 2",
      "3 name 3 31",
      "4 name 4 4",
      "5 name 5 5",
      "7 newer 17",
    ])
    expect(await conflicts(id)).toBe(0)
    await again.stop()
  })

  it("in a table that only goes up", async () => {
    const { id, dir, node } = await newSchool()
    script(dir, `INSERT INTO seen VALUES ('${id}-a', '${id}', '1')`)
    script(dir, `DROP TRIGGER schoolbus_seen_ai; INSERT INTO seen VALUES ('${id}-b', '${id}', '2')`)
    const seen = async () =>
      (await world.sql`SELECT id FROM seen WHERE school_id = ${id} ORDER BY id`).map((row) => String(row["id"]).slice(-1)).join("")
    await until("both rows", async () => (await seen()) === "ab")
    await upToDate(node)
    // Its deletes, too: of rows that this file has sent.
    await world.sql`INSERT INTO seen VALUES (${`${id}-x`}, ${id}, 'of head office')`
    script(dir, `DROP TRIGGER schoolbus_seen_ad; DELETE FROM seen WHERE id = '${id}-a'; INSERT INTO seen VALUES ('${id}-c', '${id}', '3')`)
    await until("the delete", async () => (await seen()) === "bcx")
    await upToDate(node)
    expect(await conflicts(id)).toBe(0)
    // A table that lost all its rows is no delete.
    script(dir, "DROP TRIGGER schoolbus_seen_ad; DELETE FROM seen")
    await until("the gap", () => (node.output().match(/table public\.seen: .* head office: \d/g) ?? []).length === 3)
    await upToDate(node)
    expect(await seen()).toBe("bcx")
    await node.stop()
  })
})

describe("a row that a program wrote while triggers were away, and head office too,", () => {
  const recorded = (id: string) =>
    world.sql`SELECT id::text AS id, replace(row_key, ${id}, '') AS key, column_name AS col, base, mine, theirs, winner, reason FROM schoolbus.conflicts WHERE school = ${id} ORDER BY row_key, column_name`
  const feed = <A>(body: (tx: Tx) => Effect.Effect<A, LibsqlError>) => world.run(world.feedFile.write(body))
  const noTriggers = (table: string) => ["ai", "au", "ad"].map((end) => `DROP TRIGGER schoolbus_${table}_${end};`).join(" ")

  it("is a conflict of the columns that both wrote, decided by the table's rule, and what only one of them wrote stands", async () => {
    const { id, dir, key, node } = await newSchool()
    for (const n of [1, 2, 3, 4, 5]) await world.sql`INSERT INTO notes VALUES (${`${id}-${n}`}, ${id}, ${`body ${n}`}, 'x')`
    await until("the notes", () => program(dir, "SELECT 1 FROM notes").length === 5)
    await upToDate(node)
    await node.stop()
    script(dir, rebuild(`UPDATE pupils SET name = 'of the school', code = 'own' WHERE id = '${id}-1'; DELETE FROM pupils WHERE id = '${id}-2';`))
    script(
      dir,
      `${noTriggers("notes")} UPDATE notes SET body = 'of the school' WHERE id IN ('${id}-1', '${id}-4'); DELETE FROM notes WHERE id = '${id}-2';
       INSERT INTO notes VALUES ('${id}-6', '${id}', 'of the school', NULL)`,
    )
    // Head office: a row that both wrote, one that the school deleted, one that only it wrote, one that it deletes, one that both made.
    await world.sql`UPDATE pupils SET name = 'of head office', points = points + 50 WHERE school_id = ${id} AND id <> ${`${id}-6`}`
    await world.sql`UPDATE notes SET extra = 'first' WHERE school_id = ${id}`
    await world.sql`UPDATE notes SET body = 'of head office', extra = 'y' WHERE id IN (${`${id}-1`}, ${`${id}-2`}, ${`${id}-3`})`
    await world.sql`DELETE FROM notes WHERE id = ${`${id}-4`}`
    await world.sql`INSERT INTO notes VALUES (${`${id}-6`}, ${id}, 'of head office', 'z')`
    const again = startNode(dir, key, hub.url)
    await agree(again, dir, id)
    expect((await office(id)).map((row) => Object.values(row).join(" "))).toEqual([
      "1 of head office 51",
      "2 of head office 52",
      "3 of head office 53",
      "4 of head office 54",
      "5 of head office 55",
      "6 name 6 6",
    ])
    expect((await world.sql`SELECT code FROM pupils WHERE id = ${`${id}-1`}`)[0]).toEqual({ code: "own" })
    const notes = await world.sql`SELECT replace(id, ${`${id}-`}, '') AS id, body, extra FROM notes WHERE school_id = ${id} ORDER BY id`
    expect(notes.map((row) => Object.values(row).join(" "))).toEqual([
      "1 of the school y",
      "3 of head office y",
      "4 of the school x",
      "5 body 5 first",
      "6 of the school ",
    ])
    const records = await recorded(id)
    expect(records.map(({ key: row, col, winner }) => `${row} ${col} ${winner}`)).toEqual([
      '["-1"] body school',
      '["-1"] name vps',
      '["-2"] null vps',
      '["-2"] null school',
      '["-4"] null school',
      '["-6"] null school',
    ])
    await again.stop()
  })

  it("is recorded and can be undone also when nobody knows any more what it was before", async () => {
    const { id, dir, key, node } = await newSchool()
    await node.stop()
    script(dir, rebuild(`UPDATE pupils SET name = 'of the school' WHERE id = '${id}-1'; DELETE FROM pupils WHERE id = '${id}-2';`))
    // The feed of a hub that was put back holds nothing older than the present.
    await world.sql`UPDATE pupils SET points = points + 50 WHERE school_id = ${id} AND id IN (${`${id}-1`}, ${`${id}-2`}, ${`${id}-3`})`
    await until(
      "the feed",
      async () => (await feed((tx) => tx.all("SELECT 1 FROM entry WHERE key LIKE ? AND was IS NOT NULL", [`["${id}-%`]))).length === 3,
    )
    await feed((tx) => tx.run("UPDATE entry SET was = NULL, was_from = NULL"))
    const again = startNode(dir, key, hub.url)
    await agree(again, dir, id)
    const [record, ...others] = await until("the record", async () => {
      const found = await recorded(id)
      return found.length > 0 && found
    })
    expect(record).toMatchObject({ key: '["-1"]', col: null, winner: "vps" })
    expect(JSON.parse(String(record?.["mine"]))).toMatchObject({ name: "of the school", points: "1" })
    expect(JSON.parse(String(record?.["theirs"]))).toMatchObject({ name: "name 1", points: "51" })
    const undone = await again.call("POST", `sync/conflicts/${record?.["id"]}/undo`, {})
    expect(undone).not.toHaveProperty("detail")
    await until("the school's values again", async () => (await office(id))[0]?.["name"] === "of the school")
    await agree(again, dir, id)
    expect(others.map(({ key: row, mine }) => `${row} ${mine === "null" || JSON.parse(String(mine)).points}`)).toEqual(['["-2"] true', '["-3"] 3'])
    await again.stop()
  })
})

describe("what a program destroys is filled again from head office", () => {
  it("when the table is made anew without its rows", async () => {
    const { id, dir, node } = await newSchool()
    const before = [...(await office(id))]
    script(
      dir,
      `BEGIN; DROP TABLE pupils; CREATE TABLE pupils (id text PRIMARY KEY NOT NULL, school_id text, name text NOT NULL, code text, points bigint, size real, photo blob); COMMIT`,
    )
    await agree(node, dir, id)
    expect([...(await office(id))]).toEqual(before)
    await node.stop()
  })

  it("when a column is renamed away: its values come back and are nobody's edit", async () => {
    const { id, dir, node } = await newSchool()
    script(dir, `ALTER TABLE pupils RENAME COLUMN points TO score; UPDATE pupils SET name = 'kept' WHERE id = '${id}-1'`)
    await until("the column", () => program(dir, "SELECT 1 FROM pragma_table_info('pupils') WHERE name = 'points'").length === 1)
    await agree(node, dir, id)
    expect((await office(id)).map(({ name, points }) => `${name} ${points}`)).toEqual([
      "kept 1",
      "name 2 2",
      "name 3 3",
      "name 4 4",
      "name 5 5",
      "name 6 6",
    ])
    expect(await conflicts(id)).toBe(0)
    await node.stop()
  })
})

describe("a node", () => {
  it("whose table a program made unfit says so, also when it starts, and goes on once it is mended", async () => {
    const { id, dir, key, node } = await newSchool()
    script(dir, "ALTER TABLE pupils RENAME COLUMN id TO pid")
    const isStuck = (one: Node) =>
      until("the stop", async () => {
        const { state, reason } = await one.status()
        return state === "stuck" && reason
      })
    expect(await isStuck(node)).toContain("table public.pupils: its key is (pid)")
    await node.stop()
    const again = startNode(dir, key, hub.url)
    expect(await isStuck(again)).toContain("table public.pupils: its key is (pid)")
    script(dir, `ALTER TABLE pupils RENAME COLUMN pid TO id; UPDATE pupils SET name = 'mended' WHERE id = '${id}-1'`)
    await agree(again, dir, id)
    expect((await office(id))[0]?.["name"]).toBe("mended")
    await again.stop()
  })

  it("without contact says which table has a gap, and goes on capturing", async () => {
    const { id, dir, key, node } = await newSchool()
    await node.stop()
    const offline = startNode(dir, key, "http://127.0.0.1:9")
    await until("offline", async () => (await offline.status()).state === "offline")
    script(dir, rebuild(`UPDATE pupils SET name = 'gap' WHERE id = '${id}-1';`))
    const status = await until("the gap in the status", async () => {
      const one = await offline.status()
      return one.tables.some(({ fault }) => fault !== undefined) && one
    })
    expect(status.reason).toContain("table public.pupils")
    script(dir, `UPDATE pupils SET points = 5 WHERE id = '${id}-1'`)
    await offline.stop()
    const back = startNode(dir, key, hub.url)
    await agree(back, dir, id)
    expect((await office(id))[0]).toMatchObject({ name: "gap", points: 5 })
    expect((await back.status()).tables.every(({ fault }) => fault === undefined)).toBe(true)
    await back.stop()
  })

  it("lists a program's trigger that writes to a synced table as that table's fault, while all goes on", async () => {
    const { id, dir, node } = await newSchool()
    script(dir, `CREATE TRIGGER touch AFTER UPDATE OF name ON pupils BEGIN UPDATE pupils SET code = 'touched' WHERE id = NEW.id; END`)
    await until("the fault", async () =>
      (await node.status()).tables.find(({ table }) => table === "public.pupils")?.fault?.includes("trigger touch"),
    )
    const isNewest = "SELECT 1 FROM sqlite_master a, sqlite_master b WHERE a.name = 'schoolbus_pupils_au' AND b.name = 'touch' AND a.rowid > b.rowid"
    await until("our triggers to come first again", () => program(dir, isNewest).length === 1)
    script(dir, `UPDATE pupils SET name = 'x' WHERE id = '${id}-1'`)
    await until("the write of the trigger", async () => (await world.sql`SELECT 1 FROM pupils WHERE code = 'touched' AND name = 'x'`).length === 1)
    await node.stop()
  })
})

it("the tables that a trigger writes to are read from its text", () => {
  const trigger = (body: string) => [...writtenBy(`CREATE TRIGGER t AFTER UPDATE ON a BEGIN ${body}; END`)]
  expect(trigger(`INSERT OR IGNORE INTO "My Log" VALUES (1); UPDATE b SET x = 1; DELETE FROM [c]; REPLACE INTO \`d\` VALUES (2)`)).toEqual([
    "my log",
    "b",
    "c",
    "d",
  ])
  expect(trigger("SELECT RAISE(ABORT, 'no')")).toEqual([])
})
