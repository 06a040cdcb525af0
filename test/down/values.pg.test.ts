import { Buffer } from "node:buffer"
import fc from "fast-check"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import type { ConfigInput } from "../../src/config.ts"
import { asOffice, ident } from "../../src/postgres/client.ts"
import { derive, keyable, scalars, type TypeSpec } from "../support/values.ts"
import { makeWorld, type School, type World } from "../support/world.ts"

const seed = Number(process.env["SEED"] ?? Math.floor(Math.random() * 2 ** 31))
console.log(`values: SEED=${seed}`)

const TABLES = 6
const DERIVED = 30
const RANDOM_ROWS = 6
/** Rows of a school are numbered from here. */
const COPIES = 1_000_000

const sample = <A>(arbitrary: fc.Arbitrary<A>, n: number, salt: number): ReadonlyArray<A> => fc.sample(arbitrary, { numRuns: n, seed: seed + salt })
const below = (n: number, salt: number): number => sample(fc.nat(n - 1), 1, salt)[0] ?? 0

/** Every scalar type once, and random derivations of them, in random order. */
const columns: ReadonlyArray<TypeSpec> = (() => {
  const pool = [...scalars]
  const shapes = ["domain", "array", "composite", "domain", "array", "range", "enum"] as const
  for (let i = 0; i < DERIVED; i++) {
    const shape = shapes[i % shapes.length] ?? "domain"
    // A domain or an array of something derived comes about too.
    const base = pool[below(pool.length, 100 + i)] as TypeSpec
    const other = scalars[below(scalars.length, 200 + i)] as TypeSpec
    if (base.sql.endsWith("[]") && shape === "array") continue
    pool.push(derive(i, base, shape, other))
  }
  return pool
    .map((spec, i) => ({ spec, at: below(1 << 30, 300 + i) }))
    .sort((a, b) => a.at - b.at)
    .map(({ spec }) => spec)
})()

interface TestTable {
  readonly name: string
  readonly key: TypeSpec
  readonly columns: ReadonlyArray<TypeSpec>
}

const tables: ReadonlyArray<TestTable> = Array.from({ length: TABLES }, (_, t) => ({
  name: `things ${t}`,
  key: scalars.find(({ sql }) => sql === keyable[below(keyable.length, 400 + t)]) as TypeSpec,
  columns: columns.filter((_, i) => i % TABLES === t),
}))

const columnName = (i: number) => `c${i}`

const schema = [
  "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION cube",
  ...new Set(columns.flatMap((spec) => spec.ddl)),
  ...tables.map(
    (table) =>
      `CREATE TABLE ${ident(table.name)} (n int, k ${table.key.sql}, school text NOT NULL DEFAULT 'a', ${table.columns
        .map((spec, i) => `${columnName(i)} ${spec.sql}`)
        .join(", ")}, half numeric GENERATED ALWAYS AS (n * 0.50) STORED, PRIMARY KEY (k, n))`,
  ),
].join(";\n")

/** Of each table its rows as input texts: every edge of every column, then random values; null now and then. */
const rowsOf = (table: TestTable, t: number): ReadonlyArray<ReadonlyArray<string | null>> => {
  const edges = Math.max(...table.columns.map((spec) => spec.edges.length))
  const lists = [table.key, ...table.columns].map((spec, i) => {
    const random = sample(spec.value, edges + RANDOM_ROWS, 1000 + t * 100 + i)
    return Array.from({ length: edges + RANDOM_ROWS }, (_, row) => spec.edges[row] ?? (i > 0 && (row + i) % 7 === 0 ? null : (random[row] ?? null)))
  })
  return (lists[0] ?? []).map((_, row) => lists.map((list) => list[row] ?? null))
}

const insert = async (world: World, table: TestTable, n: number, values: ReadonlyArray<string | null>): Promise<void> => {
  const types = [table.key, ...table.columns].map((spec) => spec.sql)
  const names = ["k", ...table.columns.map((_, i) => columnName(i))]
  const sql = `INSERT INTO ${ident(table.name)} (n, ${names.join(", ")}) VALUES (${n}, ${types.map((type, i) => `$${i + 1}::text::${type}`).join(", ")})`
  try {
    await world.run(world.pg.tx((session) => asOffice(session, session.execute(sql, values))))
  } catch (cause) {
    throw new Error(`SEED=${seed} ${table.name} row ${n}: ${String(cause)}\n${JSON.stringify(names.map((name, i) => [name, types[i], values[i]]))}`)
  }
}

type Expected = readonly [type: string, value: string | number | null]

/** What design and documentation promise for a text that Postgres prints; `base` is the type without its domains. */
const expected = (base: string, text: string | null): Expected => {
  if (text === null) return ["null", null]
  switch (base) {
    case "int2":
    case "int4":
    case "int8":
    case "oid":
      return ["integer", text]
    case "bool":
      return ["integer", text === "t" ? "1" : "0"]
    case "float4":
    case "float8":
      return /[a-zA-Z]{3}/.test(text) ? ["text", Buffer.from(text).toString("hex")] : ["real", Number(text) === 0 ? 0 : Number(text)]
    case "bytea":
      return ["blob", text.slice(2)]
    default:
      return ["text", Buffer.from(text).toString("hex")]
  }
}

const bases = async (world: World, table: string): Promise<ReadonlyMap<string, string>> => {
  const rows = await world.run(
    world.pg.query<{ name: string; base: string }>(
      `WITH RECURSIVE b AS (SELECT attname, atttypid AS typ FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0
         UNION ALL SELECT b.attname, t.typbasetype FROM b JOIN pg_type t ON t.oid = b.typ AND t.typtype = 'd')
       SELECT b.attname::text AS name, t.typname::text AS base FROM b JOIN pg_type t ON t.oid = b.typ AND t.typtype <> 'd'`,
      [`public.${ident(table)}`],
    ),
  )
  return new Map(rows.map((row) => [row.name, row.base]))
}

const namesOf = (table: TestTable) => ["n", "k", "school", ...table.columns.map((_, i) => columnName(i)), "half"]

const inPostgres = async (world: World, table: TestTable): Promise<ReadonlyArray<ReadonlyArray<string | null>>> =>
  world.run(world.pg.texts(`SELECT ${namesOf(table).join(", ")} FROM public.${ident(table.name)} ORDER BY n`))

const inSchool = async (school: School, table: TestTable): Promise<ReadonlyArray<ReadonlyArray<Expected>>> => {
  const list = namesOf(table).map(
    (name) =>
      `typeof(${name}) AS t_${name}, CASE typeof(${name}) WHEN 'real' THEN ${name} WHEN 'integer' THEN CAST(${name} AS TEXT) WHEN 'null' THEN NULL ELSE lower(hex(${name})) END AS v_${name}`,
  )
  const rows = await school.rows<Record<string, string | number | null>>(`SELECT ${list.join(", ")} FROM ${ident(table.name)} ORDER BY n`)
  return rows.map((row) => namesOf(table).map((name) => [String(row[`t_${name}`]), row[`v_${name}`] ?? null] as const))
}

const compare = async (world: World, school: School): Promise<number> => {
  let rows = 0
  for (const table of tables) {
    const base = await bases(world, table.name)
    const names = namesOf(table)
    const texts = await inPostgres(world, table)
    const cells = await inSchool(school, table)
    const label = (i: number) => `${names[i]} ${[undefined, table.key, undefined, ...table.columns][i]?.sql ?? ""}`
    // A failure names the type.
    const told = (all: ReadonlyArray<ReadonlyArray<Expected>>) => all.map((row) => Object.fromEntries(row.map((cell, i) => [label(i), cell])))
    expect(told(cells), `SEED=${seed} ${table.name}`).toEqual(
      told(texts.map((row) => row.map((text, i) => expected(base.get(names[i] ?? "") ?? "", text)))),
    )
    rows += texts.length
  }
  return rows
}

const config = (plugin: "wal2json" | "pgoutput"): ConfigInput => ({
  plugin,
  tables: Object.fromEntries(tables.map(({ name }) => [`public.${name}`, { audience: { column: "school" }, strategy: "school_wins" as const }])),
})

const quiet = async (world: World): Promise<void> => {
  await world.settle()
  for (const deadline = Date.now() + 20_000; ; ) {
    const [left] = await world.run(
      world.feedFile.read((tx) => tx.all<{ n: number }>("SELECT (SELECT count(*) FROM reread) + (SELECT count(*) FROM unmet) AS n")),
    )
    if (left?.n === 0) break
    if (Date.now() > deadline) throw new Error("rows wait to be read")
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

describe.each(["wal2json", "pgoutput"] as const)("%s", (plugin) => {
  let world: World
  let school: School
  beforeAll(async () => {
    world = await makeWorld(schema, config(plugin), ["a"])
    school = await world.school("a")
  })
  afterAll(() => world?.stop())

  test("every value of every type comes through the stream as Postgres prints it", async () => {
    for (const [t, table] of tables.entries()) for (const [n, row] of rowsOf(table, t).entries()) await insert(world, table, n, row)
    await quiet(world)
    await school.pull()
    expect(await compare(world, school)).toBeGreaterThan(TABLES * RANDOM_ROWS)
  })

  test("updates that leave most columns alone keep them", async () => {
    for (const table of tables)
      await world.sql.unsafe(
        `UPDATE ${ident(table.name)} SET n = n + 1000 WHERE n % 3 = 0; UPDATE ${ident(table.name)} SET school = 'a', c0 = NULL WHERE n % 3 = 1`,
      )
    await quiet(world)
    await school.pull()
    await compare(world, school)
  })

  test("reads outside the stream give the same bytes as the stream: nothing comes twice", async () => {
    const before = (await world.run(world.feed.head)).seq
    // Another plugin means a new slot, and every row is compared.
    await world.restart(config(plugin === "wal2json" ? "pgoutput" : "wal2json"))
    await quiet(world)
    for (const table of tables) {
      const rows = await world.run(
        world.feedFile.read((tx) =>
          tx.all<{ body: string }>("SELECT e.body FROM entry e JOIN tables t ON t.id = e.tbl WHERE t.name = ? AND e.seq > ?", [
            `public.${table.name}`,
            before,
          ]),
        ),
      )
      expect(rows, `SEED=${seed} ${table.name}`).toEqual([])
    }
    await world.restart(config(plugin))
  })

  test("a first copy gives a school the same as the stream did", async () => {
    const other = await world.school("a")
    await other.pull()
    await compare(world, other)
  })

  test("what the school writes back stands in Postgres as it stood before", async () => {
    for (const table of tables) {
      const names = namesOf(table).filter((name) => name !== "half")
      await school.write(
        `INSERT INTO ${ident(table.name)} (${names.join(", ")}) SELECT ${names.map((name) => (name === "n" ? `n + ${COPIES}` : name)).join(", ")} FROM ${ident(table.name)}`,
      )
    }
    const verdicts = await school.push()
    expect(
      verdicts.flatMap((one) => one.exceptions),
      `SEED=${seed}`,
    ).toEqual([])
    for (const table of tables) {
      const rows = await inPostgres(world, table)
      const originals = rows.filter(([n]) => Number(n) < COPIES)
      const copies = rows.filter(([n]) => Number(n) >= COPIES)
      const base = await bases(world, table.name)
      // A floating-point -0 is 0 in every SQLite.
      const zero = (name: string, text: string | null | undefined) => (text === "-0" && base.get(name)?.startsWith("float") === true ? "0" : text)
      const values = (all: typeof rows) =>
        all.map((row) => namesOf(table).map((name, i) => (name === "n" || name === "half" ? name : zero(name, row[i]))))
      expect(values(copies), `SEED=${seed} ${table.name}`).toEqual(values(originals))
    }
    await world.settle()
    await school.pull()
    expect(await school.rows("SELECT count(*) AS n FROM changes")).toEqual([{ n: 0 }])
    await quiet(world)
    await school.pull()
    await compare(world, school)
  })
})
