/**
 * No byte leaves the hub for a school that the school may not see. Every value in Postgres is a token of its own; after every
 * transaction Postgres itself is asked which tokens each school may see, by plain joins. Whatever goes out afterwards (lines
 * of pages with their tombstones and records, manifests, answers to pushes, texts of errors) is searched for all others.
 */
import { afterAll, beforeAll, expect, test } from "vitest"
import { createHash, randomUUID } from "node:crypto"
import { encodeBatch, encodeChange } from "../src/model/batch.ts"
import { noCursor } from "../src/model/cursor.ts"
import { type HubLink, openHubLink } from "./support/hub-link.ts"
import { makeWorld, type School, type World } from "./support/world.ts"

const SCHEMA = `
  CREATE TABLE news (id text PRIMARY KEY, text text);
  CREATE TABLE staff (id text PRIMARY KEY, school text, username text UNIQUE, name text);
  CREATE TABLE pupils (id text PRIMARY KEY, username text UNIQUE, name text, secret text);
  CREATE TABLE enrolments (id text PRIMARY KEY, school text, pupil text REFERENCES pupils ON DELETE CASCADE ON UPDATE CASCADE, note text);
  CREATE TABLE marks (id text PRIMARY KEY, pupil text, mark text);
  CREATE TABLE members (id text PRIMARY KEY, school text, club text);
  CREATE TABLE clubs (id text PRIMARY KEY, code text, text text);
  CREATE TABLE hidden (id text PRIMARY KEY, pupil text REFERENCES pupils ON DELETE SET NULL ON UPDATE CASCADE, text text);`

/** The rows of each table that a school may see. */
const SEEN: Readonly<Record<string, string>> = {
  news: "SELECT * FROM news",
  staff: "SELECT * FROM staff WHERE school = $1",
  enrolments: "SELECT * FROM enrolments WHERE school = $1",
  pupils: "SELECT p.* FROM pupils p WHERE p.id IN (SELECT pupil FROM enrolments WHERE school = $1)",
  marks: "SELECT m.* FROM marks m WHERE m.pupil IN (SELECT p.id FROM pupils p JOIN enrolments e ON e.pupil = p.id WHERE e.school = $1)",
  members: "SELECT * FROM members WHERE school = $1",
  clubs: "SELECT * FROM clubs WHERE code IN (SELECT club FROM members WHERE school = $1)",
}
const TOKEN = /tok\d+x/g
const ROUNDS = 14

/** As mulberry32: small, and the same everywhere. */
const random = (seed: number) => {
  let a = seed
  return (below: number): number => {
    a = (a + 0x6d2b79f5) | 0
    let t = Math.imul(a ^ (a >>> 15), 1 | a)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 4294967296) * below)
  }
}

const IDS = ["s1", "s2", "s3", "s4"]
/** Tokens that a school may know: rows that it could see after some transaction, and what it wrote itself. */
const known = new Map<string, Set<string>>(IDS.map((id) => [id, new Set<string>()]))

let world: World
let link: HubLink
beforeAll(async () => {
  world = await makeWorld(
    SCHEMA,
    {
      tables: {
        marks: { audience: { through: "pupils", on: { pupil: "id" } }, strategy: "school_wins" },
        pupils: { audience: { through: "enrolments", on: { id: "pupil" } }, strategy: "manual", columns: { secret: "newest_wins" } },
        enrolments: { audience: { column: "school" }, strategy: "vps_wins" },
        staff: { audience: { column: "school" }, strategy: "vps_wins", unique: "rename_local" },
        news: { audience: "all", direction: "down" },
        clubs: { audience: { through: "members", on: { code: "club" } } },
        members: { audience: { column: "school" } },
      },
    },
    IDS,
  )
  link = await openHubLink(world)
})
afterAll(async () => {
  await link?.stop()
  await world?.stop()
})

const seeds = [20261125, Number(process.env["SEED"] ?? Math.floor(Math.random() * 2 ** 31))]
test.each(seeds)("seed %i", { timeout: 60_000 }, async (seed) => {
  console.log(`isolation: seed ${seed}; again with SEED=${seed}`)
  const below = random(seed)
  const pick = <A>(list: ReadonlyArray<A>): A | undefined => list[below(list.length)]
  let tokens = seed % 1000 === 0 ? 0 : (seed % 1000) * 1_000_000
  const fresh = () => `tok${++tokens}x`
  const quoted = (value: string | null | undefined) => (value == null ? "NULL" : `'${value}'`)
  const ids = IDS.slice(0, 2 + below(3))
  const schools = new Map<string, School>()
  for (const id of ids) schools.set(id, await world.school(id))

  const now = new Map<string, Set<string>>()
  const look = async () => {
    for (const id of IDS) {
      const seen = new Set<string>()
      for (const sql of Object.values(SEEN)) {
        const rows = await world.sql.unsafe(`SELECT x::text AS row FROM (${sql}) x WHERE $1::text IS NOT NULL`, [id])
        for (const { row } of rows) for (const [token] of String(row).matchAll(TOKEN)) seen.add(token)
      }
      now.set(id, seen)
      for (const token of seen) known.get(id)?.add(token)
    }
  }
  let searched = 0
  const search = (id: string, what: string, text: string, allowed = known.get(id)) => {
    for (const [token] of text.matchAll(TOKEN)) {
      searched++
      if (allowed?.has(token) !== true) throw new Error(`seed ${seed}: ${token} left the hub for ${id} in ${what}: ${text.slice(0, 2000)}`)
    }
  }
  const some = async (table: string, column = "id"): Promise<string | undefined> =>
    pick((await world.sql.unsafe(`SELECT ${column} AS v FROM ${table} WHERE ${column} IS NOT NULL ORDER BY 1`)).map(({ v }) => String(v)))
  const anySchool = () => pick([...ids, ...ids, "nowhere", null])

  const statement = async (): Promise<string> => {
    const pupil = await some("pupils")
    const enrolment = await some("enrolments")
    switch (below(17)) {
      case 15: {
        const code = below(2) === 0 ? ((await some("clubs", "code")) ?? fresh()) : fresh()
        return `INSERT INTO clubs VALUES ('${fresh()}', '${code}', '${fresh()}'); INSERT INTO members VALUES ('${fresh()}', ${quoted(anySchool())}, '${code}')`
      }
      case 16:
        return `UPDATE members SET club = ${quoted(await some("clubs", "code"))} WHERE id = ${quoted(await some("members"))}; UPDATE clubs SET text = '${fresh()}' WHERE id = ${quoted(await some("clubs"))}`
      case 0:
      case 1: {
        const id = fresh()
        return `INSERT INTO pupils VALUES ('${id}', '${fresh()}', '${fresh()}', '${fresh()}');
          INSERT INTO enrolments VALUES ('${fresh()}', ${quoted(anySchool())}, '${id}', '${fresh()}'); INSERT INTO marks VALUES ('${fresh()}', '${id}', '${fresh()}')`
      }
      case 2:
        return `INSERT INTO enrolments VALUES ('${fresh()}', ${quoted(anySchool())}, ${quoted(pupil)}, '${fresh()}')`
      case 3:
        return `UPDATE enrolments SET school = ${quoted(anySchool())}, note = '${fresh()}' WHERE id = ${quoted(enrolment)}`
      case 4: {
        // There and back, with a value in between that nobody may learn of.
        const [row] = await world.sql.unsafe("SELECT school FROM enrolments WHERE id = $1", [enrolment ?? ""])
        return `UPDATE enrolments SET school = ${quoted(anySchool())}, note = '${fresh()}' WHERE id = ${quoted(enrolment)}; UPDATE pupils SET secret = '${fresh()}' WHERE id = ${quoted(pupil)};
          UPDATE pupils SET secret = '${fresh()}' WHERE id = ${quoted(pupil)}; UPDATE enrolments SET school = ${quoted(row?.["school"] as string | null)}, note = '${fresh()}' WHERE id = ${quoted(enrolment)}`
      }
      case 5:
        return `DELETE FROM enrolments WHERE id = ${quoted(enrolment)}`
      case 6:
        return `DELETE FROM pupils WHERE id = ${quoted(pupil)}`
      case 7:
        return `UPDATE pupils SET id = '${fresh()}', name = '${fresh()}' WHERE id = ${quoted(pupil)}`
      case 8:
        return `UPDATE pupils SET name = '${fresh()}', secret = '${fresh()}' WHERE id = ${quoted(pupil)}`
      case 9:
        return `UPDATE marks SET pupil = ${quoted(pupil)}, mark = '${fresh()}' WHERE id = ${quoted(await some("marks"))}`
      case 10:
        return `INSERT INTO staff VALUES ('${fresh()}', ${quoted(anySchool())}, '${fresh()}', '${fresh()}')`
      case 11:
        return `UPDATE staff SET school = ${quoted(anySchool())}, name = '${fresh()}' WHERE id = ${quoted(await some("staff"))}`
      case 12:
        return `INSERT INTO news VALUES ('${fresh()}', '${fresh()}'); INSERT INTO hidden VALUES ('${fresh()}', ${quoted(pupil)}, '${fresh()}')`
      case 13:
        return below(4) === 0 ? "TRUNCATE marks" : `DELETE FROM marks WHERE id = ${quoted(await some("marks"))}`
      default:
        return `UPDATE enrolments SET pupil = ${quoted(pupil)}, id = '${fresh()}' WHERE id = ${quoted(enrolment)}`
    }
  }

  /** A program of the school writes; what it writes it knows, also a guessed key. */
  const write = async (id: string, school: School, sql: string) => {
    for (const [token] of sql.matchAll(TOKEN)) known.get(id)?.add(token)
    await school.write(sql).catch(() => undefined)
  }
  const schoolWrites = async (id: string, school: School) => {
    const own = pick(await school.rows<{ id: string }>("SELECT id FROM pupils ORDER BY id"))?.id
    const guess = await some("pupils")
    const mark = pick(await school.rows<{ id: string }>("SELECT id FROM marks ORDER BY id"))?.id
    switch (below(11)) {
      case 9:
        return write(id, school, `INSERT INTO members (id, school, club) VALUES ('${fresh()}', '${id}', ${quoted(await some("clubs", "code"))})`)
      case 10: {
        // A code that nobody has yet: whoever has it later must not come along.
        const code = fresh()
        await write(id, school, `INSERT INTO members (id, school, club) VALUES ('${fresh()}', '${id}', '${code}')`)
        await world.sql.unsafe(`INSERT INTO clubs VALUES ('${fresh()}', '${code}', '${fresh()}')`)
        return look()
      }
      case 0:
        return write(id, school, `UPDATE pupils SET name = '${fresh()}', secret = '${fresh()}' WHERE id = ${quoted(own)}`)
      case 1: {
        const key = fresh()
        await write(id, school, `INSERT INTO pupils (id, username, name) VALUES ('${key}', '${fresh()}', '${fresh()}')`)
        return write(id, school, `INSERT INTO enrolments (id, school, pupil) VALUES ('${fresh()}', '${id}', '${key}')`)
      }
      case 2:
        return write(id, school, `INSERT INTO enrolments (id, school, pupil) VALUES ('${fresh()}', '${id}', ${quoted(guess)})`)
      case 3:
        return write(id, school, `INSERT INTO marks (id, pupil, mark) VALUES ('${fresh()}', ${quoted(below(2) === 0 ? own : guess)}, '${fresh()}')`)
      case 4:
        return write(id, school, `INSERT INTO pupils (id, username, name) VALUES (${quoted(guess)}, '${fresh()}', '${fresh()}')`)
      case 5:
        return write(
          id,
          school,
          `INSERT INTO staff (id, school, username, name) VALUES ('${fresh()}', '${pick(ids)}', ${quoted(await some("staff", "username"))}, '${fresh()}')`,
        )
      case 6:
        return write(id, school, `DELETE FROM pupils WHERE id = ${quoted(own)}`)
      case 7:
        return write(id, school, `UPDATE marks SET mark = '${fresh()}', pupil = ${quoted(below(2) === 0 ? own : guess)} WHERE id = ${quoted(mark)}`)
      default:
        return write(id, school, `DELETE FROM enrolments WHERE pupil = ${quoted(own)}`)
    }
  }

  const push = async (id: string, school: School) => {
    await look()
    const before = new Set(known.get(id))
    const answer = await school.push().catch((error: unknown) => [String(error)])
    await look()
    // By its own push a school sees nothing that it did not see before or write itself.
    for (const token of now.get(id) ?? [])
      if (!before.has(token)) throw new Error(`seed ${seed}: ${id} pulled ${token} by a push: ${JSON.stringify(answer)}`)
    search(id, "a push answer", JSON.stringify(answer))
  }

  /** Everything there is for the school, as a new file of it would get it, and the manifest. */
  const searchAll = async (id: string) => {
    for (let cursor = noCursor; ; ) {
      const page = await world.run(world.feed.page({ school: id, cursor, staged: null }))
      for (const line of page.lines) {
        search(id, "a page", line)
        const [kind, , , table] = JSON.parse(line) as ReadonlyArray<unknown>
        if ((kind !== "rows" && kind !== "puts") || typeof table !== "string" || table.startsWith("schoolbus.")) continue
        const [, , , , , rows] = JSON.parse(line) as ReadonlyArray<ReadonlyArray<readonly [unknown, unknown]>>
        for (const body of rows?.map((row) => (kind === "puts" ? row : row[1])) ?? [])
          if (body !== null) search(id, `a row of ${table}`, JSON.stringify(body), now.get(id))
      }
      if (page.complete) break
      cursor = { epoch: page.header.epoch, seq: page.header.head, cut: page.header.headCut }
    }
    search(id, "the manifest", JSON.stringify(await world.run(world.feed.manifest(id))))
  }

  for (let round = 0; round < ROUNDS; round++) {
    for (let n = 1 + below(4); n > 0; n--) {
      const statements = []
      for (let m = 1 + below(3); m > 0; m--) statements.push(await statement())
      await world.sql.unsafe(statements.join("; ")).catch((error: unknown) => {
        if (!/unique|foreign key/.test(String(error))) throw error
      })
      await look()
    }
    for (const [id, school] of schools) {
      for (let n = below(3); n > 0; n--) await schoolWrites(id, school)
      if (below(3) > 0) await push(id, school)
    }
    await world.settle()
    await look()
    for (const [id, school] of schools) {
      await searchAll(id)
      if (below(3) > 0) await school.pull()
    }
  }
  // Quiet: what a school shows is what it may see, but for its own writes that wait for a person and what they stand in the way of.
  for (let n = 0; n < 2; n++) for (const school of schools.values()) await school.sync()
  await look()
  for (const [id, school] of schools) {
    const waiting = new Set(
      (await school.rows<{ key: string }>("SELECT key FROM schoolbus_hold UNION SELECT key FROM schoolbus_behind")).map(({ key }) => key),
    )
    for (const [table, sql] of Object.entries(SEEN)) {
      const rows = await world.sql.unsafe(`SELECT x.id FROM (${sql}) x WHERE $1::text IS NOT NULL ORDER BY x.id`, [id])
      const free = (key: unknown) => !waiting.has(`'${String(key)}'`)
      const shown = (await school.rows<{ id: string }>(`SELECT id FROM ${table} ORDER BY id`)).map((row) => row.id)
      expect([seed, id, table, shown.filter(free).toSorted()]).toEqual([
        seed,
        id,
        table,
        rows
          .map((row) => row["id"])
          .filter(free)
          .toSorted(),
      ])
    }
  }
  expect(searched).toBeGreaterThan(1_000)

  // What the link itself answers to a school that asks for another's.
  const key = await link.key(ids[0] ?? "")
  const [victim] = await world.sql`SELECT id FROM enrolments WHERE school IS DISTINCT FROM ${ids[0] ?? ""} LIMIT 1`
  const incarnation = randomUUID()
  const text = encodeBatch({ incarnation, number: 1, manifest: 1, contacts: [], changes: 1 }, [
    encodeChange({ id: 1, table: "public.enrolments", op: "delete", key: [String(victim?.["id"])], at: 0, base: {}, mine: {} }),
  ])
  const hash = createHash("sha256").update(text).digest("hex")
  for (const path of [
    `manifest?incarnation=${incarnation}&token=x`,
    `pull?incarnation=${incarnation}&token=&epoch=&seq=0&cut=0&staged=&wait=0&school=${ids[1]}`,
    `stream?incarnation=${incarnation}&token=&epoch=&seq=0&cut=0&staged=&wait=0`,
    "pull?seq=-1",
  ]) {
    const response = await link.call(key.text, path)
    if (response.status >= 400) search(ids[0] ?? "", path, await response.text())
    else await response.body?.cancel()
  }
  const pushed = await link.call(key.text, `push?incarnation=${incarnation}&token=&batch=1&hash=${hash}&part=1&parts=1&size=${text.length}`, {
    method: "POST",
    body: text,
  })
  search(ids[0] ?? "", "the answer to a push", await pushed.text(), new Set([String(victim?.["id"]), ...(known.get(ids[0] ?? "") ?? [])]))
})
