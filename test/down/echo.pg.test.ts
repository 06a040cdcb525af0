import { afterEach, expect, it } from "vitest"
import { makeWorld, type World } from "../support/world.ts"

let world: World
afterEach(() => world.stop())

for (const plugin of ["wal2json", "pgoutput"] as const) {
  it(`${plugin}: a row that a school pushed and head office deleted before the stream came by leaves the school`, async () => {
    world = await makeWorld(
      "CREATE TABLE pupils (id text PRIMARY KEY, school_id text, name text)",
      { plugin, tables: { pupils: { audience: { column: "school_id" }, strategy: "school_wins" } } },
      ["a", "b"],
    )
    const school = await world.school("a")
    const other = await world.school("b")
    await school.pull()
    await other.pull()
    for (const id of ["gone", "back", "stays"]) await school.write("INSERT INTO pupils VALUES (?, 'a', 'pushed')", [id])
    await world.halt()
    await school.push()
    await world.sql`DELETE FROM pupils WHERE id IN ('gone', 'back')`
    await world.sql`INSERT INTO pupils VALUES ('back', 'a', 'made again'), ('never', 'b', 'made and deleted')`
    await world.sql`DELETE FROM pupils WHERE id = 'never'`
    await world.restart()
    await school.pull()
    await other.pull()
    expect(await school.rows("SELECT id, name FROM pupils ORDER BY id")).toEqual([
      { id: "back", name: "made again" },
      { id: "stays", name: "pushed" },
    ])
    expect(await school.rows("SELECT * FROM changes")).toEqual([])
    expect(await other.rows("SELECT id FROM pupils")).toEqual([])
  })
}
