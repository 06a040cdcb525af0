/**
 * Hub and school as processes, killed at the boundaries where something is durable on one side and not yet on the other.
 * Each boundary is held from outside: by another program's lock on the file, or by a proxy that withholds a confirmation or
 * an answer. After the restart nothing is lost and nothing is written twice; head office's audit trigger counts.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import Database from "libsql"
import postgres from "postgres"
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest"
import { type Cluster, startCluster } from "../scripts/cluster.ts"
import { newKey } from "../src/link/keys.ts"
import { type Gate, openGate } from "./support/gate.ts"
import { begin, killAll, type Running } from "./support/run.ts"
import { until } from "./support/until.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-kill-"))
const config = join(folder, "schoolbus.config.ts")
const feedFile = join(folder, "hub", "feed.db")
const schoolFile = join(folder, "school", "school.db")

/** Another program with the file open: looks, or holds its write lock. */
const inFile = <A>(file: string, use: (db: Database.Database) => A): A => {
  const db = new Database(file, { timeout: 5000 })
  try {
    return use(db)
  } finally {
    db.close()
  }
}
let locked: Database.Database | null = null
const unlock = (): void => {
  locked?.close()
  locked = null
}
const lock = (file: string): void => {
  locked = new Database(file, { timeout: 5000 })
  locked.exec("BEGIN IMMEDIATE")
}

let cluster: Cluster
let sql: postgres.Sql
let toPostgres: Gate
let toHub: Gate
let key: string
beforeAll(async () => {
  cluster = await startCluster({ fsync: false, settings: { autovacuum: "off" } })
  toPostgres = await openGate()
  toHub = await openGate()
  toPostgres.target(cluster.port)
  sql = postgres(cluster.url(), { max: 2, onnotice: () => undefined })
  await sql.unsafe(`
    CREATE TABLE pupils (id text PRIMARY KEY, school_id text, name text NOT NULL);
    CREATE TABLE audit (n serial, id text, op text);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      INSERT INTO audit (id, op) VALUES (coalesce(new.id, old.id), tg_op); RETURN NULL; END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON pupils FOR EACH ROW EXECUTE FUNCTION note();
    INSERT INTO pupils VALUES ('first', 'a', 'Amina');`)
  writeFileSync(config, `export default { tables: { pupils: { audience: { column: "school_id" }, strategy: "school_wins" } } }`)
})
afterAll(async () => {
  await sql?.end({ timeout: 2 })
  await toHub?.close()
  await toPostgres?.close()
  await cluster?.remove()
  rmSync(folder, { recursive: true, force: true })
})

let hub: Running
let school: Running
const startHub = async (): Promise<void> => {
  const url = `postgres://postgres@127.0.0.1:${toPostgres.port}/postgres`
  hub = begin(["hub", "--config", config, "--database-url", url, "--data-dir", join(folder, "hub"), "--port", "0"])
  toHub.target(Number(new URL(await hub.url()).port))
  await hub.says("streaming from slot")
}
const startSchool = async (): Promise<void> => {
  school = begin(["school", "--hub", `http://127.0.0.1:${toHub.port}`, "--key", key, "--data-dir", join(folder, "school"), "--port", "0"])
  await school.url()
}
beforeEach(async () => {
  toPostgres.open()
  toHub.open()
  await startHub()
  if (key === undefined) {
    const made = newKey()
    await sql`INSERT INTO schoolbus.schools (id, name) VALUES ('a', 'A')`
    await sql`INSERT INTO schoolbus.school_keys (id, school, hash) VALUES (${made.id}, 'a', ${made.hash})`
    key = made.text
  }
  await startSchool()
  await allEqual()
})
afterEach(async () => {
  unlock()
  await killAll()
})

const atOffice = async () => (await sql`SELECT id, name FROM pupils ORDER BY id`).map((row) => `${row["id"]} ${row["name"]}`)
const inSchool = () =>
  inFile(schoolFile, (db) =>
    (db.prepare("SELECT id, name FROM pupils ORDER BY id").all() as ReadonlyArray<{ id: string; name: string }>).map(
      (row) => `${row.id} ${row.name}`,
    ),
  )
/** Nothing on its way in either direction, and both sides hold the same. */
const allEqual = async (): Promise<void> => {
  const quiet = () =>
    inFile(schoolFile, (db) => {
      const { n } = db
        .prepare(
          `SELECT (SELECT count(*) FROM changes WHERE batch IS NULL) + (SELECT count(*) FROM schoolbus_batch WHERE settled_at IS NULL) + (SELECT count(*) FROM schoolbus_behind) AS n`,
        )
        .get() as { n: number }
      return n === 0
    })
  await until("both sides to be equal", async () => {
    try {
      return quiet() && JSON.stringify(await atOffice()) === JSON.stringify(inSchool())
    } catch (error) {
      if (/no such table|unable to open/.test(String(error))) return false
      throw error
    }
  })
}
const audit = async (id: string) => (await sql`SELECT op FROM audit WHERE id = ${id} ORDER BY n`).map((row) => row["op"])
const officeLsn = async () => BigInt((await sql`SELECT (pg_current_wal_insert_lsn() - '0/0')::text AS n`)[0]?.["n"])
const slot = async () =>
  (
    await sql`SELECT (s.confirmed_flush_lsn - '0/0')::text AS confirmed, coalesce((r.sent_lsn - '0/0')::text, '0') AS sent
      FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid`
  ).map((row) => ({ confirmed: BigInt(row["confirmed"]), sent: BigInt(row["sent"]) }))[0] as { confirmed: bigint; sent: bigint }
const entry = (id: string) =>
  inFile(feedFile, (db) => db.prepare("SELECT seq, audience FROM entry WHERE key = ? AND body IS NOT NULL").raw(true).all(`["${id}"]`))
const isStream = (first: Buffer): boolean => first.includes("replication")

test("hub killed before the feed has committed: the slot still has the change", async () => {
  lock(feedFile)
  await sql`INSERT INTO pupils VALUES ('k1', 'a', 'Bilal')`
  const lsn = await officeLsn()
  await until("the change to reach the hub", async () => (await slot()).sent >= lsn)
  await hub.kill()
  unlock()
  expect(entry("k1")).toEqual([])
  expect((await slot()).confirmed).toBeLessThan(lsn)
  await startHub()
  await allEqual()
  expect(entry("k1")).toHaveLength(1)
})

test("hub killed after the feed's commit and before the slot is told: the change is not taken a second time", async () => {
  const COPY_DATA = 0x64
  toPostgres.rule(({ up, first, bytes }) => (up && isStream(first) && bytes[0] === COPY_DATA ? 0 : bytes.length))
  await sql`INSERT INTO pupils VALUES ('k2', 'a', 'Chidi')`
  const lsn = await officeLsn()
  await until("the feed's commit", () => entry("k2").length === 1)
  const before = entry("k2")
  await until("a confirmation to be withheld", () => toPostgres.holds())
  await hub.kill()
  expect((await slot()).confirmed).toBeLessThan(lsn)
  toPostgres.open()
  await startHub()
  await sql`INSERT INTO pupils VALUES ('k3', 'a', 'Dina')`
  await allEqual()
  expect(entry("k2")).toEqual(before)
  await until("the slot to be told", async () => (await slot()).confirmed >= lsn)
})

test("hub killed between two adjacent commits, the first confirmed: the second is not skipped", async () => {
  const started = (await slot()).confirmed
  // The first commit that comes is the last thing that the hub hears.
  let isOver = false
  toPostgres.rule(({ up, first, bytes }) => {
    if (up || !isStream(first)) return bytes.length
    if (isOver) return 0
    const commit = bytes.indexOf('"action":"C"')
    isOver = commit !== -1
    return isOver ? bytes.indexOf("}", commit) + 1 : bytes.length
  })
  await sql.unsafe("INSERT INTO pupils VALUES ('k4', 'a', 'Esi'); COMMIT; INSERT INTO pupils VALUES ('k5', 'a', 'Femi')").simple()
  await until("the first to be in the feed", () => entry("k4").length === 1)
  await until("the first to be confirmed", async () => (await slot()).confirmed > started)
  expect(entry("k5")).toEqual([])
  await hub.kill()
  toPostgres.open()
  await startHub()
  await allEqual()
  expect([entry("k4").length, entry("k5").length]).toEqual([1, 1])
  // By the stream, not by a comparison that makes up for a slot told too much.
  expect(hub.output()).not.toContain("comparing")
})

test("school killed before it has committed a page: it comes again", async () => {
  lock(schoolFile)
  let answers = 0
  toHub.rule(({ up, bytes }) => {
    if (!up && entry("k6").length === 1) answers++
    return bytes.length
  })
  await sql`INSERT INTO pupils VALUES ('k6', 'a', 'Gakuru')`
  await until("the page to reach the school", () => answers > 0)
  await school.kill()
  unlock()
  expect(inSchool()).not.toContain("k6 Gakuru")
  await startSchool()
  await allEqual()
  expect(await audit("k6")).toEqual(["INSERT"])
})

test("school killed after it has committed a page and before the hub hears of it: what a program writes then is not undone", async () => {
  // Written down up to a second after it was heard: what came before the page may still follow.
  const heard = () => inFile(feedFile, (db) => db.prepare("SELECT max(seq) AS seq FROM reader").get() as { seq: number }).seq
  // From then on nothing more is heard from the school.
  toHub.rule(({ up, bytes }) => (up && inSchool().includes("k7 Halima") ? 0 : bytes.length))
  await sql`INSERT INTO pupils VALUES ('k7', 'a', 'Halima')`
  await until("the page in the school's file", () => inSchool().includes("k7 Halima"))
  await school.kill()
  const page = inFile(feedFile, (db) => db.prepare(`SELECT seq FROM entry WHERE key = '["k7"]'`).get() as { seq: number }).seq
  expect(heard()).toBeLessThan(page)
  inFile(schoolFile, (db) => db.exec("UPDATE pupils SET name = 'Halima A.' WHERE id = 'k7'"))
  toHub.open()
  await startSchool()
  await until("the edit at head office", async () => (await atOffice()).includes("k7 Halima A."))
  await allEqual()
  expect(await audit("k7")).toEqual(["INSERT", "UPDATE"])
})

test("hub killed after Postgres has committed a batch and before its verdicts go out: it is not applied again", async () => {
  // Postgres's answer to a COMMIT does not arrive, so the hub cannot answer the school.
  const applying = new Set<Buffer>()
  const committing = new Set<Buffer>()
  toPostgres.rule(({ up, first, bytes }) => {
    if (up && bytes.includes("k8")) applying.add(first)
    if (up && applying.has(first) && /\bcommit\b/i.test(bytes.toString("latin1"))) committing.add(first)
    return !up && committing.has(first) ? 0 : bytes.length
  })
  inFile(schoolFile, (db) => db.exec("INSERT INTO pupils (id, school_id, name) VALUES ('k8', 'a', 'Imani')"))
  await until("the commit in Postgres", async () => (await atOffice()).includes("k8 Imani"))
  await until("its answer to be withheld", () => toPostgres.holds())
  expect(inFile(schoolFile, (db) => db.prepare("SELECT answered_at FROM schoolbus_batch ORDER BY number DESC LIMIT 1").raw(true).get())).toEqual([
    null,
  ])
  await hub.kill()
  toPostgres.open()
  await startHub()
  await allEqual()
  expect(await audit("k8")).toEqual(["INSERT"])
  expect((await sql`SELECT count(*)::int AS n FROM schoolbus.conflicts`)[0]?.["n"]).toBe(0)
})

test("school killed after Postgres has committed its batch and before the verdicts arrive: it is not applied again", async () => {
  let isPush = false
  toHub.rule(({ up, bytes }) => {
    if (up && bytes.includes("POST /api/sync/push")) isPush = true
    return !up && isPush ? 0 : bytes.length
  })
  inFile(schoolFile, (db) => db.exec("INSERT INTO pupils (id, school_id, name) VALUES ('k9', 'a', 'Juma')"))
  await until("the commit in Postgres", async () => (await atOffice()).includes("k9 Juma"))
  await school.kill()
  toHub.open()
  await startSchool()
  await allEqual()
  expect(await audit("k9")).toEqual(["INSERT"])
})
