import { randomUUID } from "node:crypto"
import { afterAll, beforeAll, expect, test } from "vitest"
import { openOffice } from "./office.ts"

let o: Awaited<ReturnType<typeof openOffice>>
beforeAll(async () => {
  o = await openOffice(
    `CREATE TABLE stock (id text PRIMARY KEY, school_id text, qty bigint NOT NULL, place text CHECK (place <> 'nowhere'));
     CREATE FUNCTION trim_place() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.place := trim(NEW.place); RETURN NEW; END $$;
     CREATE TRIGGER trim_place BEFORE INSERT OR UPDATE ON stock FOR EACH ROW EXECUTE FUNCTION trim_place();`,
    { stock: { columns: { qty: "sum", place: "school_wins" } } },
  )
})
afterAll(async () => {
  await o?.close()
})

const AT = Date.UTC(2026, 0, 1)
const stock = async (school = "a"): Promise<string> => {
  const id = randomUUID()
  await o.sql(`INSERT INTO stock VALUES ('${id}', '${school}', 10, 'shelf')`)
  return id
}
const add = (id: number, key: string, from: number, by: number, at = AT + id) => ({
  id,
  at,
  table: "stock",
  op: "update" as const,
  key: [key],
  base: { id: key, school_id: "a", qty: from, place: "shelf" },
  mine: { qty: from + by },
})
const rowOf = async (id: string) => (await o.sql(`SELECT qty::int AS qty, place FROM stock WHERE id = '${id}'`))[0]
const openRecords = () => o.sql("SELECT id::text AS id, incarnation::text AS incarnation FROM schoolbus.quarantine WHERE status = 'open' ORDER BY at")

test("a file that was put back brings what it had sent once more in its new life: that counts once, what is new counts", async () => {
  const key = await stock()
  const before = o.school("a")
  await before.push([add(1, key, 10, 3)])
  await before.push([add(2, key, 13, 2), add(3, key, 15, 4)])
  await o.sql(`UPDATE stock SET qty = qty + 100 WHERE id = '${key}'`)

  const after = o.school("a")
  const again = await after.push([add(1, key, 10, 3), add(2, key, 13, 2), add(4, key, 15, 1)], { origin: before.incarnation })
  expect(again.exceptions.filter(({ id }) => id < 4)).toEqual([])
  expect(await rowOf(key)).toMatchObject({ qty: 10 + 3 + 2 + 4 + 100 + 1 })
  // A third life knows both.
  await o.school("a").push([add(3, key, 15, 4), add(4, key, 15, 1), add(5, key, 16, 1)], { origin: before.incarnation })
  expect(await rowOf(key)).toMatchObject({ qty: 121 })
})

test("a file that was put back and went on otherwise gives numbers a second time: those writes are new", async () => {
  const key = await stock()
  const before = o.school("a")
  await before.push([add(1, key, 10, 3), add(2, key, 13, 2)])
  await o.school("a").push([add(1, key, 10, 3), add(2, key, 13, 2, AT + 86_400_000)], { origin: before.incarnation })
  expect(await rowOf(key)).toMatchObject({ qty: 17 })
})

test("of copies whichever comes first is taken, also when they come at once, with their first batches or later ones", async () => {
  for (const order of ["copy first", ...Array.from({ length: 8 }, () => "at once")]) {
    const key = await stock()
    const [one, two, three] = [o.school("a"), o.school("a"), o.school("a")] as const
    await one.push([add(1, key, 10, 0)])
    const origin = one.incarnation
    const inOrder = async (pushes: ReadonlyArray<() => Promise<unknown>>) => {
      if (order === "at once") await Promise.all(pushes.map((push) => push()))
      else for (const push of pushes) await push()
    }
    await inOrder([
      () => two.push([add(1, key, 10, 0), add(2, key, 10, 5)], { origin }),
      () => one.push([add(2, key, 10, 5), add(3, key, 15, 1)]),
      () => three.push([add(2, key, 10, 5)], { origin }),
    ])
    expect([order, await rowOf(key)]).toMatchObject([order, { qty: 16 }])
    await inOrder([two, three].map((file) => () => file.push([add(4, key, 16, 2)], { origin })))
    expect([order, await rowOf(key)]).toMatchObject([order, { qty: 18 }])
  }
})

test("what waits for a person goes on in the new life, and its next edit is joined to it; what a trigger made of a value is known", async () => {
  const [key, bad] = [await stock(), randomUUID()]
  const refused = { id: 2, at: AT, table: "stock", op: "insert" as const, key: [bad], mine: { id: bad, school_id: "a", qty: 1, place: "nowhere" } }
  const spaced = { ...add(1, key, 10, 0), mine: { place: " attic " } }
  const before = o.school("a")
  const first = await before.push([spaced, refused])
  expect(first.verdict(1)).toBe("quarantined")

  const after = o.school("a")
  const again = await after.push([spaced, refused], { origin: before.incarnation })
  expect(again.exceptions).toEqual(first.exceptions)
  expect(await openRecords()).toEqual([{ id: first.record(1), incarnation: after.incarnation }])
  const next = await after.push([
    {
      ...add(3, key, 10, 0),
      base: { id: key, school_id: "a", qty: 10, place: " attic " },
      mine: { place: "cellar" },
    },
    { ...add(4, bad, 1, 0), base: { id: bad, school_id: "a", qty: 1, place: "nowhere" }, mine: { place: "attic" } },
  ])
  expect(next.exceptions).toEqual([])
  expect([await rowOf(key), await rowOf(bad)]).toEqual([
    { qty: 10, place: "cellar" },
    { qty: 1, place: "attic" },
  ])
  expect(await openRecords()).toEqual([])
})

test("a school that gives another school's file as its first life changes nothing with that", async () => {
  const [key, own] = [await stock(), await stock("b")]
  const theirs = o.school("a")
  await theirs.push([add(1, key, 10, 3)])
  const change = { ...add(1, own, 10, 3), base: { id: own, school_id: "b", qty: 10, place: "shelf" } }
  await o.school("b").push([change], { origin: theirs.incarnation })
  expect(await rowOf(own)).toMatchObject({ qty: 13 })
  await theirs.push([add(2, key, 13, 1)])
  expect(await rowOf(key)).toMatchObject({ qty: 14 })
  expect(await o.sql(`SELECT origin FROM schoolbus.incarnations WHERE id = '${theirs.incarnation}'`)).toEqual([{ origin: null }])
})
