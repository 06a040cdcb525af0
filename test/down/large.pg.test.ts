import { createHash } from "node:crypto"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { makeWorld, type School, type World } from "../support/world.ts"

const MIB = 1024 * 1024
/** 10 MB of text, stored out of line and not plain ASCII. */
const longText = (mark: string, bytes = 10 * MIB): string => {
  let block = mark
  for (let i = 0; block.length < MIB / 16; i++) block += `${createHash("sha256").update(`${mark} ${i}`).digest("base64")} é😀\\"\n`
  return block.repeat(Math.ceil(bytes / block.length))
}

describe.each(["wal2json", "pgoutput"] as const)("%s", (plugin) => {
  let world: World
  let school: School
  const large = longText("large", MIB / 4)
  beforeAll(async () => {
    world = await makeWorld(
      "CREATE TABLE essays (id int PRIMARY KEY, school text NOT NULL, title text NOT NULL, body text, scan bytea)",
      { plugin, tables: { essays: { audience: { column: "school" }, strategy: "school_wins" } } },
      ["a", "b"],
    )
    school = await world.school("a")
  })
  afterAll(() => world?.stop())
  const hash = (text: string) => createHash("md5").update(text).digest("hex")
  const bodyHash = async (of: School, id: number) => {
    const [row] = await of.rows<{ body: string | null }>("SELECT body FROM essays WHERE id = ?", [id])
    return row?.body == null ? null : hash(row.body)
  }
  const arrive = async () => {
    await world.settle()
    await school.pull()
  }

  test("10 MB of text come down and stay when another column changes", async () => {
    const text = longText("first")
    await world.sql`INSERT INTO essays (id, school, title, body) VALUES (1, 'a', 'one', ${text})`
    await arrive()
    expect(await bodyHash(school, 1)).toBe(hash(text))
    await world.sql`UPDATE essays SET title = 'two' WHERE id = 1`
    await arrive()
    expect(await school.rows("SELECT title FROM essays")).toEqual([{ title: "two" }])
    expect(await bodyHash(school, 1)).toBe(hash(text))
    await world.sql`DELETE FROM essays`
  })

  test("large values move with their row, to another key and another school", async () => {
    const bytes = Buffer.alloc(MIB / 4, 0)
    bytes[1000] = 255
    await world.sql`INSERT INTO essays VALUES (1, 'a', 'one', ${large}, ${bytes})`
    await world.sql`UPDATE essays SET id = 2 WHERE id = 1`
    await arrive()
    expect(await school.rows("SELECT id, hex(substr(scan, 1000, 3)) AS h FROM essays")).toEqual([{ id: 2, h: "00FF00" }])
    expect(await bodyHash(school, 2)).toBe(hash(large))
    await world.sql`UPDATE essays SET school = 'b' WHERE id = 2`
    await arrive()
    expect(await school.rows("SELECT id FROM essays")).toEqual([])
    const other = await world.school("b")
    await other.pull()
    expect(await bodyHash(other, 2)).toBe(hash(large))
  })

  test("unchanged large values of a row that the feed does not hold are read again", async () => {
    await world.run(world.feedFile.write((tx) => tx.run("DELETE FROM entry WHERE tbl = (SELECT id FROM tables WHERE name = 'public.essays')")))
    await world.sql`UPDATE essays SET school = 'a', title = 'three' WHERE id = 2`
    for (const deadline = Date.now() + 20_000; (await bodyHash(school, 2)) === null && Date.now() < deadline; ) await arrive()
    expect(await school.rows("SELECT id, title FROM essays")).toEqual([{ id: 2, title: "three" }])
    expect(await bodyHash(school, 2)).toBe(hash(large))
  })

  // The way up knows nothing of decoders.
  test.runIf(plugin === "pgoutput")("10 MB of text go up", async () => {
    const second = longText("second")
    await school.write("UPDATE essays SET body = ? WHERE id = 2", [second])
    const verdicts = await school.push()
    expect(verdicts.flatMap((one) => one.exceptions)).toEqual([])
    expect(await world.sql`SELECT md5(body) AS hash FROM essays`).toEqual([{ hash: hash(second) }])
    await arrive()
    expect(await bodyHash(school, 2)).toBe(hash(second))
    expect(await school.rows("SELECT count(*) AS n FROM changes")).toEqual([{ n: 0 }])
  })
})
