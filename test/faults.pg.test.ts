/**
 * What operators and machines do to Postgres and the hub, on processes and a server of this file's own. After each fault
 * the school must hold exactly what head office holds, without a person, and must not have downloaded everything again.
 */
import { execFileSync, spawn } from "node:child_process"
import { cpSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import postgres from "postgres"
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest"
import { type Cluster, startCluster } from "../scripts/cluster.ts"
import { checkOf } from "../src/status/check.ts"
import type { HubSnapshot, SchoolSnapshot } from "../src/status/snapshot.ts"
import { command, program, type Service, startHub, startSchool } from "./support/processes.ts"
import { startRelay } from "./support/relay.ts"
import { killAll } from "./support/run.ts"
import { until } from "./support/until.ts"

const ROWS = 2_000
const folder = mkdtempSync(join(tmpdir(), "schoolbus-faults-"))
const config = join(folder, "schoolbus.config.ts")
const slot = "schoolbus_office"

let cluster: Cluster
let sql: postgres.Sql
let hub: Service<HubSnapshot>
let school: Service<SchoolSnapshot>
let written = 0

const connectSql = () => {
  sql = postgres(cluster.url("office"), { max: 2, onnotice: () => undefined })
}

beforeAll(async () => {
  writeFileSync(
    config,
    `export default { tables: { pupils: { audience: { column: "school_id" }, strategy: "school_wins" }, notices: { audience: "all" } } }\n`,
  )
  cluster = await startCluster({ fsync: false })
  const admin = postgres(cluster.url(), { max: 1, onnotice: () => undefined })
  await admin.unsafe("CREATE DATABASE office")
  await admin.unsafe("CREATE DATABASE neighbour")
  await admin.end()
  connectSql()
  await sql.unsafe(`CREATE TABLE pupils (id bigint PRIMARY KEY, school_id text, name text, note text);
    CREATE TABLE notices (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), text text);
    INSERT INTO pupils SELECT i, 'a', 'Pupil ' || i, md5(i::text) FROM generate_series(1, ${ROWS}) i`)
  hub = await startHub(join(folder, "hub"), config, cluster.url("office"))
  await until("the hub to stream", async () => (await hub.status()).stream.state === "streaming")
  const added = await command("schools", "add", "a", "--name", "A", "--database-url", cluster.url("office"), "--json")
  school = await startSchool(join(folder, "school"), hub.url, (JSON.parse(added.out) as { key: string }).key)
  await until(
    () => `the first copy: ${school.log()}`,
    async () => (await school.status()).state === "up_to_date",
  )
  await equal()
}, 120_000)

afterAll(async () => {
  await killAll()
  await sql?.end({ timeout: 1 })
  await cluster?.remove()
  rmSync(folder, { recursive: true, force: true })
})

beforeEach(async () => {
  await cameDown()
  received = receivedSoFar()
})

const office = async () =>
  (await sql`SELECT id::text, name, note FROM pupils WHERE school_id = 'a' ORDER BY pupils.id`).map((row) =>
    [row["id"], row["name"], row["note"]].join("|"),
  )
const here = () =>
  program(school.dir, "SELECT id, name, note FROM pupils ORDER BY id").map((row) => [String(row["id"]), row["name"], row["note"]].join("|"))

/** The school shows what Postgres holds, and nothing waits. */
const equal = () => {
  let asked = 0
  return until(
    () => `school and head office to be equal; ${lastStatus}; hub: ${hub.log().slice(-1500)}\nschool: ${school.log().slice(-1500)}`,
    async () => {
      // A node that has been offline waits for up to half a minute unless somebody asks it to sync now.
      if (Date.now() - asked > 500) {
        asked = Date.now()
        lastStatus = JSON.stringify(await school.status()).slice(0, 900)
        await fetch(`${school.url}/api/sync/trigger`, { method: "POST" })
      }
      if ((await office()).join("\n") !== here().join("\n")) return false
      const waiting = program(school.dir, "SELECT (SELECT count(*) FROM changes) + (SELECT count(*) FROM schoolbus_behind) AS n")
      return Number(waiting[0]?.["n"]) === 0
    },
  )
}
const write = async (n = 20) => {
  for (let i = 0; i < n; i++) await sql`UPDATE pupils SET note = ${`w${++written}`} WHERE id = ${1 + (written % ROWS)}`
}
const editHere = (id: number, note: string) => program(school.dir, "UPDATE pupils SET note = ? WHERE id = ?", [note, id])

/** Rows that came down so far, by the school's own runs. */
const receivedSoFar = () => Number(program(school.dir, "SELECT coalesce(sum(down), 0) AS n FROM schoolbus_run")[0]?.["n"] ?? 0)
let lastStatus = ""
let received = 0
const cameDown = async (): Promise<number> => {
  await command("sync", "--url", school.url)
  return receivedSoFar() - received
}
const epoch = async () => (await hub.status()).feed.epoch
const streaming = () =>
  until(
    () => `the hub to stream again: ${hub.log().slice(-1500)}`,
    async () => (await hub.status()).stream.state === "streaming",
  )

it("Postgres restarted, stopped at once, and killed while rows flow", async () => {
  for (const fault of [() => cluster.restart("fast"), () => cluster.restart("immediate"), () => cluster.kill().then(() => cluster.start())]) {
    await write(5)
    editHere(7, `school ${++written}`)
    await fault()
    await write(5)
    await equal()
  }
}, 90_000)

/** Once it is free: the walsender of a hub that has just ended holds it for a moment more. */
const onSlot = (what: string, act: () => Promise<unknown>) => until(`the slot to be ${what}`, () => act().then(() => true))
const dropSlot = () => onSlot("dropped", async () => sql`SELECT pg_drop_replication_slot(${slot})`)

it("a slot that was dropped is made anew, and only what differs comes down", async () => {
  const before = await epoch()
  await hub.stop()
  await dropSlot()
  await write(30)
  await sql`DELETE FROM pupils WHERE id = 11`
  hub.start()
  await equal()
  expect(await epoch()).toBe(before)
  expect(hub.log()).toContain("the slot does not exist: comparing every table by key")
  expect(await cameDown()).toBeLessThan(100)
}, 60_000)

it("a hub killed while it compares begins to compare again", async () => {
  for (let round = 0; round < 3; round++) {
    await hub.stop()
    await dropSlot()
    await write(10)
    await sql`INSERT INTO notices (text) VALUES (${`round ${round}`})`
    const said = hub.log().length
    hub.start()
    await until("the comparison", () =>
      hub
        .log()
        .slice(said)
        .includes(round === 2 ? "streaming from" : "comparing every table"),
    )
    await hub.kill()
    hub.start()
    await equal()
    await until("the notice", () => program(school.dir, `SELECT 1 FROM notices WHERE text = 'round ${round}'`).length === 1)
  }
}, 60_000)

it("a slot that was moved past rows that the feed has not", async () => {
  const before = await epoch()
  await hub.stop()
  await write(30)
  await onSlot("moved", async () => sql`SELECT pg_replication_slot_advance(${slot}, pg_current_wal_lsn())`)
  hub.start()
  await equal()
  expect(await epoch()).toBe(before)
  expect(await cameDown()).toBeLessThan(100)
}, 60_000)

it("a slot that Postgres gave up because too much WAL waited, after every look at it had warned", async () => {
  await hub.stop()
  await write(10)
  await sql.unsafe("ALTER SYSTEM SET max_slot_wal_keep_size = '160MB'")
  await sql`SELECT pg_reload_conf()`
  const url = cluster.url("office")
  const stages: Array<string> = []
  for (let i = 0; i < 40 && stages.at(-1) !== "lost"; i++) {
    await sql`SELECT pg_logical_emit_message(false, 'ballast', 'x')`
    await sql`SELECT pg_switch_wal()`
    if (i % 4 === 3) await sql.unsafe("CHECKPOINT")
    const [seen] = await sql`SELECT stage, advice, wal_status, budget_bytes::int AS budget FROM schoolbus.slot_health WHERE slot_name = ${slot}`
    expect(seen?.["budget"]).toBe(160 * 1024 ** 2)
    expect(seen?.["advice"] === null).toBe(seen?.["stage"] === "ok")
    if (stages.at(-1) === seen?.["stage"]) continue
    stages.push(String(seen?.["stage"]))
    if (seen?.["stage"] === "ok") continue
    // Before it is lost, Postgres itself says nothing yet.
    if (seen?.["stage"] === "warning") expect(["reserved", "extended"]).toContain(seen["wal_status"])
    const slots = await command("slots", "--database-url", url)
    expect(slots.err).toContain(`${slot}: ${seen?.["stage"]}, `)
    if (seen?.["stage"] !== "lost") expect(slots.err).toContain("start its consumer (the hub)")
    const doctor = await command("doctor", "--database-url", url, "--json")
    const checks = (JSON.parse(doctor.out) as { checks: ReadonlyArray<{ id: string; status: string }> }).checks
    expect(checks.find(({ id }) => id === "slot-wal-budget")?.status).toBe(seen?.["stage"] === "warning" ? "warn" : "fail")
  }
  expect(stages).toEqual(["ok", "warning", "critical", "lost"])
  expect((await command("slots", "--database-url", url, "--json")).out).toContain('"lost"')
  hub.start()
  await equal()
  expect(await cameDown()).toBeLessThan(100)
  await sql.unsafe("ALTER SYSTEM RESET max_slot_wal_keep_size")
  await sql`SELECT pg_reload_conf()`
}, 60_000)

it("a transaction that the making of a slot waits for is named by every look at the slot, also after a restart, and all goes on when it ends", async () => {
  await equal()
  await hub.stop()
  await dropSlot()
  const open = await sql.reserve()
  await open`BEGIN`
  const [own] = await open`SELECT pg_backend_pid() AS pid, pg_current_xact_id()`
  const isTold = async () => (await hub.status()).stream.detail.includes(`SELECT pg_terminate_backend(${own?.["pid"]});`)
  hub.start()
  await until("the reason", isTold)
  const end = `SELECT pg_terminate_backend(${own?.["pid"]});`
  const [seen] = await sql`SELECT stage, advice, lag_bytes FROM schoolbus.slot_health WHERE slot_name = ${slot}`
  expect(seen).toMatchObject({ stage: "making", advice: expect.stringContaining(end), lag_bytes: null })
  const slots = await command("slots", "--database-url", cluster.url("office"))
  expect([slots.out, slots.err]).toEqual([expect.stringContaining("being made"), expect.stringContaining(end)])
  await until("the check", async () => checkOf(await hub.status(), "slots").line.includes(end))
  expect(checkOf(await hub.status(), "slots").level).toBe("WARNING")
  await hub.kill()
  hub.start()
  await until("the reason again", isTold)
  await open`COMMIT`
  open.release()
  await write(5)
  await equal()
}, 60_000)

it("WAL that somebody removed by hand while the hub was off: the slot is replaced, and only what differs comes down", async () => {
  await equal()
  await hub.stop()
  await write(5)
  const [held] = await sql`SELECT pg_walfile_name(restart_lsn) AS file FROM pg_replication_slots WHERE slot_name = ${slot}`
  for (let i = 0; i < 2; i++) {
    await write(5)
    await sql`SELECT pg_switch_wal()`
  }
  await sql`CHECKPOINT`
  rmSync(join(cluster.dir, "data/pg_wal", String(held?.["file"])))
  hub.start()
  await equal()
  expect(hub.log()).toContain("at the position of the slot; the slot is replaced")
}, 60_000)

it("another consumer holds the slot: the hub waits, says who, and takes over", async () => {
  await hub.stop()
  const other = spawn(
    join(cluster.binaries.bin, "pg_recvlogical"),
    ["-d", cluster.url("office"), "--slot", slot, "--start", "-f", "-", "-o", "format-version=2"],
    {
      stdio: "ignore",
    },
  )
  await until(
    "the other consumer",
    async () => (await sql`SELECT active FROM pg_replication_slots WHERE slot_name = ${slot}`)[0]?.["active"] === true,
  )
  hub.start()
  const waiting = await until("standby", async () => {
    const status = await hub.status()
    return status.stream.state === "standby" && status
  })
  expect(waiting.stream.detail).toContain("pg_recvlogical")
  other.kill("SIGKILL")
  await write(5)
  await equal()
}, 60_000)

it("a second hub on another folder stands by and takes over when the first is killed", async () => {
  const second = await startHub(join(folder, "second"), config, cluster.url("office"))
  await until("standby", async () => (await second.status()).stream.state === "standby")
  await hub.kill()
  await until("the second hub to stream", async () => (await second.status()).stream.state === "streaming")
  await write(5)
  await second.stop()
  hub.start()
  await equal()
}, 60_000)

it("a lost feed is made anew, and schools download only what differs", async () => {
  const before = await epoch()
  await hub.kill()
  for (const file of ["feed.db", "feed.db-wal", "feed.db-shm"]) rmSync(join(hub.dir, file), { force: true })
  await write(10)
  editHere(9, "written while the feed was lost")
  hub.start()
  await equal()
  expect(await epoch()).not.toBe(before)
  expect(await cameDown()).toBeLessThan(100)
  expect((await office()).some((row) => row.includes("written while the feed was lost"))).toBe(true)
}, 60_000)

const copyOf = (name: string) => join(folder, `copy-${name}`)
const restore = (name: string, to: string): void => {
  rmSync(to, { recursive: true, force: true })
  cpSync(copyOf(name), to, { recursive: true, preserveTimestamps: true })
  // The server's files belong to the user that runs it.
  const { uid, gid } = statSync(cluster.dir)
  execFileSync("chown", ["-R", `${uid}:${gid}`, to])
}

it("Postgres alone was put back from a copy of its disk: other contents under the same positions", async () => {
  await equal()
  await sql.end({ timeout: 1 })
  await cluster.stop("fast")
  cpSync(join(cluster.dir, "data"), copyOf("data"), { recursive: true, preserveTimestamps: true })
  await cluster.start()
  connectSql()
  await sql`UPDATE pupils SET note = 'only in the life that is gone' WHERE id BETWEEN 100 AND 104`
  await equal()
  await sql.end({ timeout: 1 })
  await cluster.stop("immediate")
  restore("data", join(cluster.dir, "data"))
  await cluster.start()
  connectSql()
  await sql`UPDATE pupils SET note = 'only in the new life' WHERE id BETWEEN 102 AND 106`
  await equal()
  expect(here().filter((row) => row.includes("life that is gone"))).toEqual([])
  expect(await cameDown()).toBeLessThan(200)
}, 90_000)

it("Postgres and hub were put back together: every number looks right, and the school's own work comes back", async () => {
  await equal()
  await hub.stop()
  await sql.end({ timeout: 1 })
  await cluster.stop("fast")
  cpSync(join(cluster.dir, "data"), copyOf("both"), { recursive: true, preserveTimestamps: true })
  cpSync(hub.dir, copyOf("hub"), { recursive: true })
  await cluster.start()
  connectSql()
  hub.start()
  await sql`UPDATE pupils SET note = 'lost at head office' WHERE id BETWEEN 200 AND 204`
  editHere(300, "sent before the restore")
  await equal()
  expect((await office()).some((row) => row.includes("sent before the restore"))).toBe(true)

  await hub.kill()
  await sql.end({ timeout: 1 })
  await cluster.stop("immediate")
  restore("both", join(cluster.dir, "data"))
  rmSync(hub.dir, { recursive: true, force: true })
  cpSync(copyOf("hub"), hub.dir, { recursive: true })
  await cluster.start()
  connectSql()
  await sql`UPDATE pupils SET note = 'written after the restore' WHERE id = 400`
  hub.start()
  await equal()
  expect(here().filter((row) => row.includes("lost at head office"))).toEqual([])
  expect((await office()).some((row) => row.includes("sent before the restore"))).toBe(true)
  expect(await cameDown()).toBeLessThan(200)
}, 90_000)

it("an idle database beside a busy one lets the slot go on", async () => {
  await equal()
  const neighbour = postgres(cluster.url("neighbour"), { max: 1, onnotice: () => undefined })
  await neighbour.unsafe("CREATE TABLE noise AS SELECT i, md5(i::text) AS t FROM generate_series(1, 100000) i")
  const [{ lsn } = { lsn: "0/0" }] = await neighbour<Array<{ lsn: string }>>`SELECT pg_current_wal_lsn()::text AS lsn`
  await neighbour.end()
  await until(
    "the slot to pass the neighbour's WAL",
    async () =>
      (await sql`SELECT confirmed_flush_lsn >= ${lsn}::pg_lsn AS passed FROM pg_replication_slots WHERE slot_name = ${slot}`)[0]?.["passed"] === true,
    75_000,
  )
}, 90_000)

it("a connection to Postgres that is dead without an end is found, and nothing is lost", async () => {
  await hub.stop()
  const relay = await startRelay(cluster.port)
  const url = new URL(cluster.url("office"))
  url.port = String(relay.port)
  const behind = await startHub(hub.dir, config, url.href)
  await until("the hub to stream", async () => (await behind.status()).stream.state === "streaming")
  relay.freeze()
  await write(5)
  relay.thaw()
  await until(
    () => `the hub to stream again: ${behind.log().slice(-3000)}`,
    () => behind.log().split("streaming from slot").length > 2,
    90_000,
  )
  expect(await behind.stop()).toBe(0)
  await relay.close()
  hub.start()
  await streaming()
  await equal()
}, 120_000)
