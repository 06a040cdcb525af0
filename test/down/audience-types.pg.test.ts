/** Schools whose ids are no text at head office: the audience column is a uuid, a number, a name of fixed length, or a domain over one. */
import { afterEach, expect, test } from "vitest"
import { makeWorld, type World } from "../support/world.ts"

let world: World
afterEach(() => world?.stop())

test.each<[type: string, a: string, b: string, nobody: string]>([
  ["uuid", "6f1c6f0e-5a53-4e55-9d13-0a5d5c8f0a01", "6f1c6f0e-5a53-4e55-9d13-0a5d5c8f0a02", "6f1c6f0e-5a53-4e55-9d13-0a5d5c8f0a03"],
  ["bigint", "9007199254740993", "7", "8"],
  ["integer", "1", "12", "3"],
  ["numeric(20,0)", "12345678901234567890", "2", "3"],
  ["school_id", "41", "42", "43"],
])("%s", async (type, idA, idB, nobody) => {
  world = await makeWorld(
    `CREATE DOMAIN school_id AS bigint CHECK (VALUE > 0);
     CREATE TABLE offices (id ${type} PRIMARY KEY, name text);
     CREATE TABLE pupils (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), school ${type} REFERENCES offices (id), name text NOT NULL);
     CREATE TABLE marks (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), pupil uuid REFERENCES pupils (id), mark int);
     INSERT INTO offices VALUES ('${idA}', 'A'), ('${idB}', 'B'), ('${nobody}', 'nobody''s');
     INSERT INTO pupils (school, name) VALUES ('${idA}', 'one'), ('${idA}', 'two'), ('${idB}', 'three'), ('${nobody}', 'four'), (NULL, 'five');
     INSERT INTO marks (pupil, mark) SELECT id, 1 FROM pupils;`,
    {
      tables: {
        offices: { audience: { column: "id" }, direction: "down" },
        pupils: { audience: { column: "school" }, strategy: "school_wins" },
        marks: { audience: { through: "pupils", on: { pupil: "id" } }, strategy: "school_wins" },
      },
    },
    [idA, idB],
  )
  const a = await world.school(idA)
  const b = await world.school(idB)
  const names = async () => {
    await world.settle()
    for (const school of [a, b]) await school.pull()
    const of = async (school: typeof a) => [
      (await school.rows<{ name: string }>("SELECT name FROM offices")).map(({ name }) => name).join(),
      (await school.rows<{ name: string }>("SELECT name FROM pupils ORDER BY name")).map(({ name }) => name).join(),
      (await school.rows<{ n: number }>("SELECT count(*) AS n FROM marks"))[0]?.n,
    ]
    return [await of(a), await of(b)]
  }
  expect(await names()).toEqual([
    ["A", "one,two", 2],
    ["B", "three", 1],
  ])
  await world.sql`UPDATE pupils SET school = ${idB} WHERE name = 'two'`
  await world.sql`UPDATE pupils SET school = ${idA} WHERE name = 'five'`
  expect(await names()).toEqual([
    ["A", "five,one", 2],
    ["B", "three,two", 2],
  ])

  // A program writes the id as its own office row has it.
  await a.write("INSERT INTO pupils (school, name) SELECT id, 'pushed' FROM offices")
  await a.write("INSERT INTO marks (pupil, mark) SELECT id, 5 FROM pupils WHERE name IN ('pushed', 'one')")
  expect((await a.push()).flatMap(({ exceptions }) => exceptions)).toEqual([])
  expect(await names()).toEqual([
    ["A", "five,one,pushed", 4],
    ["B", "three,two", 2],
  ])
  const [pushed] =
    await world.sql`SELECT school::text, (SELECT count(*)::int FROM marks WHERE pupil = p.id) AS marks FROM pupils p WHERE name = 'pushed'`
  expect(pushed).toEqual({ school: idA, marks: 1 })

  // Another school's id is not its own to give, by insert or by update.
  await a.write("PRAGMA foreign_keys = OFF")
  await a.write("INSERT INTO pupils (school, name) VALUES (?, 'for b')", [idB])
  await a.write("UPDATE pupils SET school = ? WHERE name = 'pushed'", [idB])
  const verdicts = (await a.push()).flatMap(({ exceptions }) => exceptions.map(({ verdict }) => verdict))
  expect(verdicts).toEqual(["quarantined", "quarantined"])
  expect([...(await world.sql`SELECT name FROM pupils WHERE school = ${idB} ORDER BY name`)].map(({ name }) => name)).toEqual(["three", "two"])
})
