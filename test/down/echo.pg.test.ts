/**
 * What a school pushed, and head office took away before the stream came by: all of it stands in one append of the feed, which
 * holds the last state of a row alone. The school shows what it pushed, so it must hear that it is gone; a school that a row
 * only passed through within a transaction never hears of it.
 */
import { afterEach, describe, expect, it } from "vitest"
import type { ConfigInput } from "../../src/config.ts"
import { makeWorld, type School, type World } from "../support/world.ts"

let world: World
let a: School
let b: School
afterEach(() => world.stop())

const open = async (plugin: "wal2json" | "pgoutput", schema: string, tables: ConfigInput["tables"]): Promise<void> => {
  world = await makeWorld(schema, { plugin, tables }, ["a", "b"])
  a = await world.school("a")
  b = await world.school("b")
  await a.pull()
  await b.pull()
}

/** While the stream is down: the school pushes what it wrote, then head office's statements run, each a transaction of its own. */
const meanwhile = async (...statements: ReadonlyArray<string>): Promise<void> => {
  await world.halt()
  const verdicts = await a.push()
  expect(verdicts.flatMap(({ exceptions }) => exceptions)).toEqual([])
  for (const statement of statements) await world.sql.unsafe(statement)
  await world.restart()
  await a.pull()
  await b.pull()
}

const ids = async (school: School, table: string): Promise<ReadonlyArray<unknown>> =>
  (await school.rows<{ id: unknown }>(`SELECT id FROM ${table} ORDER BY id`)).map(({ id }) => id)

/** Every key that the feed holds for the school, tombstones included. */
const traces = async (school: string, table: string): Promise<ReadonlyArray<string>> =>
  (
    await world.run(
      world.feedFile.read((tx) =>
        tx.all<{ key: string; body: string | null }>(
          "SELECT e.key, e.body FROM entry e JOIN tables t ON t.id = e.tbl JOIN audience x ON x.no = e.audience WHERE t.name = ? AND x.value = ? ORDER BY e.key",
          [`public.${table}`, school],
        ),
      ),
    )
  ).map(({ key, body }) => (body === null ? `gone ${key}` : key))

const pupils = "CREATE TABLE pupils (id text PRIMARY KEY, school_id text, name text)"
const byColumn: ConfigInput["tables"] = { pupils: { audience: { column: "school_id" }, strategy: "school_wins" } }

describe.each(["wal2json", "pgoutput"] as const)("%s", (plugin) => {
  const write = async (...names: ReadonlyArray<string>): Promise<void> => {
    for (const id of names) await a.write("INSERT INTO pupils VALUES (?, 'a', 'pushed')", [id])
  }

  it("a row that head office deleted leaves the school that pushed it", async () => {
    await open(plugin, pupils, byColumn)
    await write("gone", "back", "stays")
    await meanwhile(
      "DELETE FROM pupils WHERE id IN ('gone', 'back')",
      // In one transaction: of two the feed may have taken in the first alone.
      "INSERT INTO pupils VALUES ('back', 'a', 'made again'), ('never', 'b', 'made and deleted'); DELETE FROM pupils WHERE id = 'never'",
    )
    expect(await a.rows("SELECT id, name FROM pupils ORDER BY id")).toEqual([
      { id: "back", name: "made again" },
      { id: "stays", name: "pushed" },
    ])
    expect(await a.rows("SELECT * FROM changes")).toEqual([])
    expect(await ids(b, "pupils")).toEqual([])
    expect(await traces("b", "pupils")).toEqual([])
  })

  it("a row that head office moved leaves the school that pushed it, by whatever road", async () => {
    await open(plugin, pupils, byColumn)
    await write("moved", "to nobody", "moved and deleted", "renamed", "renamed and moved", "renamed, moved", "away and back", "new key", "emptied")
    await a.write("UPDATE pupils SET id = 'own new key' WHERE id = 'new key'")
    await meanwhile(
      "UPDATE pupils SET school_id = 'b' WHERE id IN ('moved', 'moved and deleted', 'own new key')",
      "UPDATE pupils SET school_id = NULL WHERE id = 'to nobody'",
      "DELETE FROM pupils WHERE id = 'moved and deleted'",
      "UPDATE pupils SET id = 'renamed by head office' WHERE id = 'renamed'",
      "UPDATE pupils SET id = 'renamed and moved by head office', school_id = 'b' WHERE id = 'renamed and moved'",
      "UPDATE pupils SET id = 'renamed first' WHERE id = 'renamed, moved'",
      "UPDATE pupils SET school_id = 'b' WHERE id = 'renamed first'",
      "UPDATE pupils SET school_id = 'b' WHERE id = 'away and back'",
      "UPDATE pupils SET school_id = 'a', name = 'returned' WHERE id = 'away and back'",
    )
    expect(await a.rows("SELECT id, name FROM pupils ORDER BY id")).toEqual([
      { id: "away and back", name: "returned" },
      { id: "emptied", name: "pushed" },
      { id: "renamed by head office", name: "pushed" },
    ])
    expect(await ids(b, "pupils")).toEqual(["moved", "own new key", "renamed and moved by head office", "renamed first"])
    expect(await a.rows("SELECT * FROM changes")).toEqual([])
  })

  it("a key that the school changed itself leaves it too", async () => {
    await open(plugin, pupils, byColumn)
    await write("first")
    await a.sync()
    await a.write("UPDATE pupils SET id = 'second' WHERE id = 'first'")
    await meanwhile("UPDATE pupils SET school_id = 'b' WHERE id = 'second'")
    expect(await ids(a, "pupils")).toEqual([])
    expect(await ids(b, "pupils")).toEqual(["second"])
  })

  it("a table that head office emptied is empty in the school that pushed rows of it", async () => {
    await open(plugin, pupils, byColumn)
    await write("one", "two")
    await meanwhile("INSERT INTO pupils VALUES ('passing', 'b', 'x')", "TRUNCATE pupils; INSERT INTO pupils VALUES ('two', 'b', 'made again')")
    expect(await ids(a, "pupils")).toEqual([])
    expect(await ids(b, "pupils")).toEqual(["two"])
  })

  it("more rows than a chunk holds, pushed in many batches and taken away in one transaction, all leave", async () => {
    await open(plugin, pupils, byColumn)
    await a.write("INSERT INTO pupils SELECT 'p' || value, 'a', 'pushed' FROM generate_series(1, 4500)")
    await meanwhile("UPDATE pupils SET school_id = 'b' WHERE id <> 'p17'")
    expect(await ids(a, "pupils")).toEqual(["p17"])
    expect(await b.rows("SELECT count(*) AS n FROM pupils")).toEqual([{ n: 4499 }])
  })

  it("rows of a batch that the feed took in two parts leave", async () => {
    await open(plugin, pupils, byColumn)
    await a.write("INSERT INTO pupils SELECT 'p' || value, 'a', 'pushed' FROM generate_series(1, 2500)")
    await meanwhile(
      "UPDATE pupils SET school_id = 'b' WHERE substr(id, 2)::int BETWEEN 1500 AND 1900",
      "UPDATE pupils SET name = 'later' WHERE id = 'p1500'",
    )
    expect(await a.rows("SELECT count(*) AS n FROM pupils")).toEqual([{ n: 2099 }])
    expect(await b.rows("SELECT count(*) AS n FROM pupils")).toEqual([{ n: 401 }])
  })

  it("a school that a row passes through within a transaction never hears of it, however large the transaction", async () => {
    await open(plugin, pupils, byColumn)
    await world.sql`INSERT INTO pupils VALUES ('there', 'a', 'x'), ('back', 'a', 'x')`
    await write("pushed")
    const filler = (from: number) => `INSERT INTO pupils SELECT 'f' || n, NULL, '' FROM generate_series(${from}, ${from + 3000}) n`
    await meanwhile(
      // Something before it, so that the first chunk holds rows of two transactions.
      "UPDATE pupils SET name = 'touched' WHERE id = 'pushed'",
      `INSERT INTO pupils VALUES ('new', 'b', 'x'), ('dropped', 'b', 'x'); UPDATE pupils SET school_id = 'b' WHERE id IN ('there', 'back', 'pushed'); ${filler(1)};
       UPDATE pupils SET school_id = 'a', name = 'y' WHERE id IN ('new', 'back', 'pushed'); UPDATE pupils SET school_id = NULL WHERE id = 'there'; DELETE FROM pupils WHERE id = 'dropped'; ${filler(10_000)}`,
    )
    expect(await ids(a, "pupils")).toEqual(["back", "new", "pushed"])
    expect(await traces("b", "pupils")).toEqual([])
  })

  describe("placed by links", () => {
    const schema = `
      CREATE TABLE classes (id text PRIMARY KEY, school text);
      CREATE TABLE seats (id text PRIMARY KEY, class text, pupil text);
      CREATE TABLE learners (id text PRIMARY KEY, name text);
      INSERT INTO classes VALUES ('1a', 'a'), ('2a', 'a'), ('1b', 'b');`
    const tables: ConfigInput["tables"] = {
      learners: { audience: { through: "seats", on: { id: "pupil" } }, strategy: "school_wins" },
      seats: { audience: { through: "classes", on: { class: "id" } }, strategy: "school_wins" },
      classes: { audience: { column: "school" }, strategy: "school_wins" },
    }
    const seat = async (cls: string, ...names: ReadonlyArray<string>): Promise<void> => {
      for (const id of names) {
        await a.write("INSERT INTO learners VALUES (?, 'pushed')", [id])
        await a.write("INSERT INTO seats VALUES (?, ?, ?)", [`seat of ${id}`, cls, id])
      }
    }

    it("a link that is moved or deleted takes along what the school pushed with it", async () => {
      await open(plugin, schema, tables)
      await seat("1a", "moved", "unseated", "renamed", "stays", "in both")
      await meanwhile(
        "UPDATE seats SET class = '1b' WHERE pupil = 'moved'",
        "DELETE FROM seats WHERE pupil = 'unseated'",
        "UPDATE learners SET id = 'renamed by head office' WHERE id = 'renamed'",
        "INSERT INTO seats VALUES ('other', '1b', 'in both')",
        "DELETE FROM seats WHERE id = 'seat of in both'",
      )
      expect(await ids(a, "learners")).toEqual(["stays"])
      expect(await ids(a, "seats")).toEqual(["seat of renamed", "seat of stays"])
      expect(await ids(b, "learners")).toEqual(["in both", "moved"])
    })

    it("so does a link further up the chain, that the school did not push", async () => {
      await open(plugin, schema, tables)
      await seat("1a", "one", "two")
      await seat("2a", "three")
      await meanwhile("UPDATE classes SET school = 'b' WHERE id = '1a'", "UPDATE learners SET name = 'changed' WHERE id = 'one'")
      expect([await ids(a, "classes"), await ids(a, "seats"), await ids(a, "learners")]).toEqual([["2a"], ["seat of three"], ["three"]])
      expect(await ids(b, "learners")).toEqual(["one", "two"])
    })

    it("and links that are emptied", async () => {
      await open(plugin, schema, tables)
      await seat("1a", "one", "two")
      await meanwhile("TRUNCATE seats", "INSERT INTO seats VALUES ('again', '2a', 'two')")
      expect([await ids(a, "seats"), await ids(a, "learners")]).toEqual([["again"], ["two"]])
    })

    it("what passes through a school within a transaction leaves no trace there", async () => {
      await open(plugin, schema, tables)
      await seat("1a", "pushed")
      await meanwhile(
        "UPDATE learners SET name = 'touched' WHERE id = 'pushed'",
        `UPDATE classes SET school = 'b' WHERE id = '1a'; INSERT INTO learners VALUES ('new', 'x'); INSERT INTO seats VALUES ('s', '1a', 'new');
         UPDATE classes SET school = 'a' WHERE id = '1a'`,
      )
      expect([await ids(a, "seats"), await ids(a, "learners")]).toEqual([
        ["s", "seat of pushed"],
        ["new", "pushed"],
      ])
      expect([await traces("b", "classes"), await traces("b", "seats"), await traces("b", "learners")]).toEqual([['["1b"]'], [], []])
    })
  })

  it("a row that the school wrote, edited and lost by its own delete of another leaves it", async () => {
    await open(
      plugin,
      `CREATE TABLE parents (id text PRIMARY KEY, school_id text);
       CREATE TABLE lines (id text PRIMARY KEY, school_id text, parent text REFERENCES parents ON DELETE CASCADE, note text);
       INSERT INTO parents VALUES ('p', 'a'), ('q', 'a')`,
      { parents: { audience: { column: "school_id" } }, lines: { audience: { column: "school_id" } } },
    )
    for (const id of ["written", "edited", "renamed"]) await a.write("INSERT INTO lines VALUES (?, 'a', 'p', 'new')", [id])
    await a.write("INSERT INTO lines VALUES ('stays', 'a', 'q', 'new')")
    await a.write("INSERT INTO lines VALUES ('replaced', 'a', 'p', 'new')")
    await a.write("REPLACE INTO lines VALUES ('replaced', 'a', 'p', 'replaced')")
    await a.write("UPDATE lines SET note = 'edited' WHERE id <> 'written'")
    await a.write("UPDATE lines SET id = 'with another name' WHERE id = 'renamed'")
    await a.write("UPDATE lines SET note = 'edited again' WHERE id = 'with another name'")
    await a.write("DELETE FROM parents WHERE id = 'p'")
    await a.sync()
    expect(await ids(a, "lines")).toEqual(["stays"])
    expect(await world.sql`SELECT id FROM lines`).toEqual([{ id: "stays" }])
  })
})
