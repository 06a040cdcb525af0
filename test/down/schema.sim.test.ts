/**
 * Random schema changes among random writes of head office and a school, with both decoders: one school follows, one is away
 * until the end. Whoever pauses is resumed at random moments. Once quiet, both schools equal Postgres. The seed is in the name.
 */
import { expect, test } from "vitest"
import { makeWorld, type School, type World } from "../support/world.ts"

const random = (seed: number) => () => {
  seed = (seed * 1664525 + 1013904223) % 4294967296
  return seed / 4294967296
}

const TYPES = ["text", "varchar(20)", "int", "bigint", "numeric(10,2)", "boolean", "timestamptz", "uuid", "double precision", "text[]", "bytea"]
const VALUES: Readonly<Record<string, string>> = {
  text: "'t' || g",
  "varchar(20)": "'v' || g",
  int: "g",
  bigint: "9000000000000000000 + g",
  "numeric(10,2)": "g / 3.0",
  boolean: "g % 2 = 0",
  timestamptz: "'2026-01-01'::timestamptz + g * interval '1 second'",
  uuid: "md5(g::text)::uuid",
  "double precision": "g / 7.0",
  "text[]": "ARRAY['a', g::text]",
  bytea: "decode(md5(g::text), 'hex')",
}

const schema = `CREATE TABLE things (id int PRIMARY KEY, school_id text NOT NULL, c0 text, c1 int);
  CREATE TABLE other (id int PRIMARY KEY, school_id text, v text);
  INSERT INTO things SELECT g, CASE WHEN g % 3 = 0 THEN 'b' ELSE 'a' END, 'x' || g, g FROM generate_series(1, 40) g;`

const rowsOf = async (world: World, school: School, name: string) => {
  const columns = (await school.rows<{ name: string }>("SELECT name FROM pragma_table_info(?)", [name])).map((column) => column.name).sort()
  const inOffice = await world.sql<Array<{ name: string; kind: string }>>`
    SELECT attname AS name, format_type(atttypid, atttypmod) AS kind FROM pg_attribute WHERE attrelid = ${name}::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attname COLLATE "C"`
  const text = ({ name: column, kind }: { name: string; kind: string }) =>
    kind === "bytea"
      ? `encode("${column}", 'hex')`
      : kind === "boolean"
        ? `"${column}"::int::text`
        : kind === "double precision"
          ? `round("${column}"::numeric, 6)::text`
          : `"${column}"::text`
  const cell = ({ name: column, kind }: { name: string; kind: string }) =>
    kind === "bytea" ? `lower(hex("${column}"))` : kind === "double precision" ? `printf('%.6f', "${column}")` : `CAST("${column}" AS TEXT)`
  const key = `"id"`
  const office = await world.sql.unsafe(
    `SELECT ${inOffice.map((one) => `${text(one)} AS "${one.name}"`).join(", ")} FROM ${name} WHERE school_id = '${school.id}' ORDER BY ${key}`,
  )
  const held = await school.rows(
    `SELECT ${inOffice
      .filter((one) => columns.includes(one.name))
      .map((one) => `CASE WHEN "${one.name}" IS NULL THEN NULL ELSE ${cell(one)} END AS "${one.name}"`)
      .join(", ")} FROM ${name} ORDER BY ${key}`,
  )
  return { office: [inOffice.map((one) => one.name), office.map((row) => ({ ...row }))], held: [columns, held] }
}

const settled = async (world: World, school: School): Promise<void> => {
  for (const deadline = Date.now() + 20_000; ; ) {
    await school.push()
    await world.settle()
    await school.pull()
    const isQuiet = (await world.run(world.feed.tables)).every((table) => !table.loading && !table.recheck && table.paused === null)
    const both = [await rowsOf(world, school, "things"), await rowsOf(world, school, "other")]
    if (isQuiet && both.every(({ office, held }) => JSON.stringify(office) === JSON.stringify(held))) return
    if (Date.now() > deadline) for (const { office, held } of both) expect(held).toEqual(office)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

const play = async (seed: number, plugin: "wal2json" | "pgoutput", steps: number): Promise<void> => {
  const next = random(seed)
  const pick = <A>(list: ReadonlyArray<A>): A => list[Math.floor(next() * list.length)] as A
  const world = await makeWorld(
    schema,
    { plugin, tables: { things: { audience: { column: "school_id" }, strategy: "school_wins" }, other: { audience: { column: "school_id" } } } },
    ["a", "b"],
  )
  const log: Array<string> = []
  try {
    const online = await world.school("a")
    const away = await world.school("a")
    await online.pull()
    await away.pull()
    const columns = new Map<string, string>([
      ["c0", "text"],
      ["c1", "int"],
    ])
    let made = 1
    let id = 1000
    /** Rows that the school makes: head office deletes some of them again. */
    let own = 5000
    const ddl = (): ReadonlyArray<string> => {
      const names = [...columns.keys()]
      const name = names.length === 0 ? null : pick(names)
      const kind = pick(TYPES)
      const value = `(${(VALUES[kind] ?? "NULL").replaceAll("g", "7")})`
      switch (Math.floor(next() * 10)) {
        case 9: {
          const other = pick(names.filter((one) => one !== name))
          if (name === null || other === undefined) return []
          const [kindOfName, kindOfOther] = [columns.get(name), columns.get(other)]
          columns.set(name, kindOfOther ?? "text")
          columns.set(other, kindOfName ?? "text")
          return [
            `ALTER TABLE things RENAME COLUMN ${name} TO swapped`,
            `ALTER TABLE things RENAME COLUMN ${other} TO ${name}`,
            `ALTER TABLE things RENAME COLUMN swapped TO ${other}`,
          ]
        }
        case 0:
        case 1: {
          const added = `c${++made}`
          columns.set(added, kind)
          const constant = next() < 0.5
          return [
            `ALTER TABLE things ADD COLUMN ${added} ${kind}${next() < 0.5 ? "" : constant ? ` DEFAULT ${value}` : ` DEFAULT CASE WHEN random() < 2 THEN ${value} END`}`,
          ]
        }
        case 2:
          if (name === null) return []
          columns.delete(name)
          return [`ALTER TABLE things DROP COLUMN ${name}`]
        case 3: {
          if (name === null) return []
          const renamed = `c${++made}`
          columns.set(renamed, columns.get(name) ?? "text")
          columns.delete(name)
          return [`ALTER TABLE things RENAME COLUMN ${name} TO ${renamed}`]
        }
        case 4:
          if (name === null) return []
          columns.set(name, "text")
          return [`ALTER TABLE things ALTER COLUMN ${name} DROP DEFAULT`, `ALTER TABLE things ALTER COLUMN ${name} TYPE text USING ${name}::text`]
        case 5:
          if (name === null) return []
          columns.set(name, kind)
          return [`ALTER TABLE things DROP COLUMN ${name}`, `ALTER TABLE things ADD COLUMN ${name} ${kind} DEFAULT ${value}`]
        case 6:
          return name === null ? [] : [`ALTER TABLE things ALTER COLUMN ${name} SET DEFAULT NULL`, `CREATE INDEX ON things (school_id)`]
        case 7:
          return [
            `ALTER TABLE things DROP CONSTRAINT things_pkey`,
            `ALTER TABLE things ADD CONSTRAINT things_pkey PRIMARY KEY (${pick(["id", "id, school_id", "school_id, id"])})`,
          ]
        default:
          return [`ALTER TABLE things RENAME TO away`, `ALTER TABLE away RENAME TO things`]
      }
    }
    const dml = (): string => {
      const entries = [...columns]
      const set =
        entries.length === 0
          ? "school_id = school_id"
          : entries
              .slice(0, 3)
              .map(([name, kind]) => `${name} = ${(VALUES[kind] ?? "NULL").replaceAll("g", "(id + 1)")}`)
              .join(", ")
      switch (Math.floor(next() * 5)) {
        case 0: {
          const names = entries.map(([name]) => `, ${name}`).join("")
          const values = entries.map(([, kind]) => `, ${VALUES[kind] ?? "NULL"}`).join("")
          id += 3
          return `INSERT INTO things (id, school_id${names}) SELECT g, 'a'${values} FROM generate_series(${id - 3}, ${id - 1}) g`
        }
        case 1:
          return `DELETE FROM things WHERE id % 11 = ${Math.floor(next() * 11)}`
        case 2:
          return `UPDATE things SET school_id = CASE school_id WHEN 'a' THEN 'b' ELSE 'a' END WHERE id % 13 = ${Math.floor(next() * 13)}`
        case 3:
          return `INSERT INTO other VALUES (${id++}, 'a', 'v')`
        default:
          return `UPDATE things SET ${set} WHERE id % 5 = ${Math.floor(next() * 5)}`
      }
    }
    for (let step = 0; step < steps; step++) {
      const statements: Array<string> = []
      const n = 1 + Math.floor(next() * 4)
      for (let i = 0; i < n; i++) statements.push(...(next() < 0.35 ? ddl() : [dml()]))
      log.push(statements.join("; "))
      if (next() < 0.6)
        await world.sql.begin(async (tx) => {
          for (const one of statements) await tx.unsafe(one)
        })
      else for (const one of statements) await world.sql.unsafe(one)
      if (next() < 0.3) {
        const [row] = await online.rows<{ name: string }>(
          "SELECT name FROM pragma_table_info('things') WHERE name LIKE 'c%' AND type = 'TEXT' ORDER BY name LIMIT 1",
        )
        if (row !== undefined) await online.write(`UPDATE things SET "${row.name}" = NULL WHERE id % 7 = ${Math.floor(next() * 7)}`)
      }
      if (next() < 0.3) {
        const write =
          next() < 0.5 ? `INSERT INTO things (id, school_id) VALUES (${++own}, 'a')` : `DELETE FROM things WHERE id % 19 = ${Math.floor(next() * 19)}`
        log.push(`-- school: ${write}`)
        await online.write(write)
      }
      if (next() < 0.4) {
        await world.settle()
        await online.pull()
      }
      if (next() < 0.3) await online.push()
      if (next() < 0.3) await world.run(world.feed.accept("public.things"))
      if (next() < 0.1) await world.restart()
    }
    for (let isPaused = true; isPaused; ) {
      await world.settle()
      await world.run(world.feed.accept("public.things"))
      await new Promise((resolve) => setTimeout(resolve, 150))
      await world.settle()
      isPaused = (await world.run(world.feed.tables)).some((table) => table.paused !== null)
    }
    // What waits for a person is given up: head office's rows count.
    await online.push()
    await world.sql`UPDATE schoolbus.quarantine SET status = 'discarded' WHERE status = 'open'`
    await world.sql`UPDATE schoolbus.conflicts SET status = 'resolved', winner = 'vps' WHERE status = 'open'`
    await settled(world, online)
    await settled(world, away)
    expect(await online.rows("SELECT * FROM schoolbus_behind")).toEqual([])
    expect(await online.rows("SELECT * FROM changes")).toEqual([])
  } catch (cause) {
    throw new Error(`seed ${seed}:\n${log.join("\n")}`, { cause })
  } finally {
    await world.stop()
  }
}

const seeds = process.env["SEEDS"] === undefined ? [1, 10] : process.env["SEEDS"].split(",").map(Number)
test.each(seeds.flatMap((seed) => [[seed, "wal2json"] as const, [seed, "pgoutput"] as const]))(
  "both schools end with what Postgres has (seed %i, %s)",
  (seed, plugin) => play(seed, plugin, 12),
)
