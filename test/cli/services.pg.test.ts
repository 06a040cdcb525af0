import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
import type { HubSnapshot, SchoolSnapshot } from "../../src/status/snapshot.ts"
import { createDatabase, type Database, run as query } from "../support/postgres.ts"
import { begin as beginProgram, killAll, type Ran, type Running } from "../support/run.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-services-"))

/** Nothing in its environment but what is given. */
const begin = (args: ReadonlyArray<string>, env: Record<string, string> = {}): Running => beginProgram(args, env)
const run = (args: ReadonlyArray<string>, env: Record<string, string> = {}): Promise<Ran> => begin(args, env).ended

let db: Database
const config = join(folder, "schoolbus.config.ts")
beforeAll(async () => {
  db = await createDatabase()
  await query(
    db.url,
    "CREATE TABLE pupils (id bigint PRIMARY KEY, school_id text, name text); CREATE TABLE rooms (id serial PRIMARY KEY, school_id text); INSERT INTO pupils SELECT i, 'north', 'p' || i FROM generate_series(1, 25) i; CREATE TABLE keyless (x int)",
  )
  writeFileSync(config, `export default { tables: { pupils: { audience: { column: "school_id" } } } }`)
})
afterAll(async () => {
  await killAll()
  await db?.drop()
  rmSync(folder, { recursive: true, force: true })
})

describe("schools", () => {
  it("are added once, with a key that is shown once and stored as a hash", async () => {
    const added = await run(["schools", "add", "north", "--name", "North Primary", "--database-url", db.url, "--json"])
    expect(added).toMatchObject({ code: 0, err: "" })
    const { id, key } = JSON.parse(added.out) as { id: string; key: string }
    expect(id).toBe("north")
    expect(key).toMatch(/^sb_/)
    const stored = JSON.stringify(await query(db.url, "SELECT * FROM schoolbus.school_keys"))
    expect(stored).not.toContain(key.split("_")[2])
    const again = await run(["schools", "add", "north", "--database-url", db.url, "--json"])
    expect([again.code, JSON.parse(again.out).code]).toEqual([1, "school_exists"])
    expect((await run(["schools", "list"], { SCHOOLBUS_DATABASE_URL: db.url })).out).toMatch(/north\s+North Primary\s+new\s+1\s+-\s+never/)
  })

  it("keep two keys at most, and none after revoke", async () => {
    await run(["schools", "add", "east", "--database-url", db.url])
    const active = async () =>
      (await query(db.url, "SELECT count(*)::int AS n FROM schoolbus.school_keys WHERE school = 'east' AND revoked_at IS NULL"))[0]?.["n"]
    for (const keys of [2, 2]) {
      expect((await run(["schools", "rotate-key", "east", "--database-url", db.url])).code).toBe(0)
      expect(await active()).toBe(keys)
    }
    await run(["schools", "rotate-key", "east", "--now", "--database-url", db.url])
    expect(await active()).toBe(1)
    expect((await run(["schools", "pause", "east", "--database-url", db.url])).out).toBe("School east is paused.\n")
    expect((await run(["schools", "resume", "east", "--database-url", db.url])).code).toBe(0)
    expect((await run(["schools", "revoke", "east", "--database-url", db.url])).code).toBe(64)
    expect((await run(["schools", "revoke", "east", "--yes", "--database-url", db.url])).code).toBe(0)
    expect(await active()).toBe(0)
    expect((await run(["schools", "pause", "east", "--database-url", db.url])).code).toBe(1)
    expect((await run(["schools", "pause", "nowhere", "--database-url", db.url])).code).toBe(1)
  })

  it("doctor finds what is missing and says how to mend it", async () => {
    const ran = await run(["doctor", "--database-url", db.url, "--json"])
    const { checks } = JSON.parse(ran.out) as { checks: ReadonlyArray<{ id: string; status: string; message: string; fix?: string }> }
    expect(ran.code).toBe(0)
    expect(checks.find((check) => check.id === "wal-level")?.status).toBe("ok")
    expect(checks.find((check) => check.id === "slot-exists")).toMatchObject({ status: "warn", fix: "start the hub: it makes it" })
    // Tried on a slot of its own, which is gone again.
    expect(["wal2json 2.6", "wal2json before 2.6"].some((known) => checks.find((check) => check.id === "decoder")?.message.startsWith(known))).toBe(
      true,
    )
    expect(await query(db.url, "SELECT 1 FROM pg_replication_slots WHERE slot_name LIKE 'schoolbus_probe%'")).toEqual([])
    expect((await run(["doctor", "--database-url", "postgres://x@127.0.0.1:1/x"])).code).toBe(1)
  })

  it("before the hub's first start, and where its files were run by hand, say what is missing and what to do", async () => {
    const fresh = await createDatabase()
    const early = await run(["schools", "pause", "north", "--database-url", fresh.url])
    expect([early.code, early.err]).toEqual([1, expect.stringContaining("the hub makes schema schoolbus at its first start")])
    for (const file of ["0001_init", "0002_devices", "0003_views", "0004_schema_changes"])
      await query(fresh.url, readFileSync(new URL(`../../sql/hub/${file}.sql`, import.meta.url), "utf8"))
    const added = await run(["schools", "add", "north", "--database-url", fresh.url])
    expect([added.code, added.err]).toEqual([69, expect.stringContaining("lacks schoolbus.migrations")])
    await fresh.drop()
  })

  it("doctor does not miss what the hub makes at its first start", async () => {
    const fresh = await createDatabase()
    await query(fresh.url, "CREATE TABLE pupils (id uuid PRIMARY KEY, school_id text)")
    const config = join(folder, "first.config.ts")
    writeFileSync(config, 'export default { tables: { pupils: { audience: { column: "school_id" } } } }\n')
    const ran = await run(["doctor", "--database-url", fresh.url, "--config", config, "--json"])
    const { checks } = JSON.parse(ran.out) as { checks: ReadonlyArray<{ id: string; status: string }> }
    expect(checks.filter((check) => check.status === "fail")).toEqual([])
    expect(ran.code).toBe(0)
    await fresh.drop()
  })
})

describe("services", () => {
  const hubArgs = (data: string, port = "0", more: ReadonlyArray<string> = []) => [
    "hub",
    "--config",
    config,
    "--database-url",
    db.url,
    "--data-dir",
    join(folder, data),
    "--port",
    port,
    ...more,
  ]

  it("refuse a config that Postgres contradicts, every problem at once", async () => {
    const bad = join(folder, "bad.config.ts")
    writeFileSync(
      bad,
      `export default { tables: { keyless: { audience: "all" }, nowhere: { audience: "all" }, pupils: { audience: { column: "skool" } } } }`,
    )
    const ran = await run(["hub", "--config", bad, "--database-url", db.url, "--data-dir", join(folder, "bad"), "--port", "0"])
    expect(ran.code).toBe(78)
    for (const word of ["keyless", "nowhere", "skool"]) expect(ran.err).toContain(word)
  })

  it("refuse keys that two schools would both give out, with the ALTER that mends it; doctor says so too", async () => {
    const unsafe = join(folder, "unsafe.config.ts")
    writeFileSync(unsafe, `export default { tables: { rooms: { audience: { column: "school_id" } } } }`)
    const ran = await run(["hub", "--config", unsafe, "--database-url", db.url, "--data-dir", join(folder, "unsafe"), "--port", "0"])
    expect(ran.code).toBe(78)
    expect(ran.err).toContain('ALTER TABLE "public"."rooms" ALTER COLUMN "id" TYPE bigint')
    const doctor = await run(["doctor", "--database-url", db.url, "--config", unsafe, "--json"])
    const { checks } = JSON.parse(doctor.out) as { checks: ReadonlyArray<{ id: string; status: string; message: string }> }
    expect([doctor.code, checks.find((check) => check.id === "key-types")?.status]).toEqual([1, "fail"])
    writeFileSync(unsafe.replace("unsafe.", "safe."), `export default { tables: { rooms: { audience: { column: "school_id" }, insert: "vps" } } }`)
    expect((await run(["doctor", "--database-url", db.url, "--config", unsafe.replace("unsafe.", "safe."), "--json"])).code).toBe(0)
  })

  it("doctor says what the role lacks to write what schools write, with the GRANT", async () => {
    const fresh = await createDatabase()
    const role = `weak_${crypto.randomUUID().slice(0, 8)}`
    const file = join(folder, "weak.config.ts")
    writeFileSync(
      file,
      `export default { tables: { pupils: { audience: "all" }, rooms: { audience: "all", insert: "vps" }, rules: { audience: "all", direction: "down" } } }`,
    )
    await query(
      fresh.url,
      `CREATE TABLE pupils (id uuid PRIMARY KEY); CREATE TABLE rooms (id int PRIMARY KEY); CREATE TABLE rules (id uuid PRIMARY KEY);
       CREATE ROLE ${role} LOGIN REPLICATION; GRANT SELECT, INSERT ON pupils TO ${role}; GRANT SELECT, UPDATE ON rooms, rules TO ${role}`,
    )
    const url = Object.assign(new URL(fresh.url), { username: role }).href
    const writes = async () => {
      const ran = await run(["doctor", "--database-url", url, "--config", file, "--json"])
      return (JSON.parse(ran.out) as { checks: ReadonlyArray<{ id: string }> }).checks.find(({ id }) => id === "school-writes")
    }
    const fix = `GRANT UPDATE, DELETE ON public.pupils TO ${role}; GRANT DELETE ON public.rooms TO ${role};`
    expect(await writes()).toMatchObject({ status: "warn", message: expect.stringContaining("public.pupils (UPDATE, DELETE)"), fix })
    await query(fresh.url, fix)
    expect(await writes()).toMatchObject({ status: "ok" })
    await fresh.drop()
  })

  it("doctor says which columns of people and attendance are none", async () => {
    const typo = join(folder, "typo.config.ts")
    writeFileSync(
      typo,
      `export default { tables: { pupils: { audience: { column: "school_id" } } },
        devices: { people: { pupils: { id: "id", name: "nmae" } }, attendance: { table: "pupils", person: "id", at: "came" } } }`,
    )
    const doctor = await run(["doctor", "--database-url", db.url, "--config", typo, "--json"])
    const { checks } = JSON.parse(doctor.out) as { checks: ReadonlyArray<{ id: string; status: string; message: string }> }
    const found = checks.find((check) => check.id === "devices")
    expect([doctor.code, found?.status]).toEqual([1, "fail"])
    expect(found?.message).toMatch(/names column nmae of table public.pupils, which does not exist.*names column came of table public.pupils/)
  })

  it("run, tell their status, keep others from their files, and end with 0 on SIGTERM", async () => {
    const hub = begin(hubArgs("hub"))
    const [, hubUrl = ""] = await hub.says(/hub listens on (http:\S+)/)
    const { key } = JSON.parse((await run(["schools", "add", "west", "--database-url", db.url, "--json"])).out) as { key: string }
    await run(["schools", "add", "north", "--name", "North Primary", "--database-url", db.url]) // there already, unless this test runs alone
    const north = JSON.parse((await run(["schools", "rotate-key", "north", "--database-url", db.url, "--json"])).out) as { key: string }
    expect(key).not.toBe(north.key)

    const second = await run(hubArgs("hub"))
    expect([second.code, second.err]).toEqual([69, expect.stringContaining("feed.db")])

    const school = begin(["school", "--hub", hubUrl, "--data-dir", join(folder, "north"), "--port", "0"], { SCHOOLBUS_KEY: north.key })
    const [, schoolUrl = ""] = await school.says(/school node listens on (http:\S+)/)
    const snapshot = async <S>(url: string): Promise<S> => JSON.parse((await run(["status", "--json", "--url", url])).out) as S
    await expect.poll(async () => (await snapshot<SchoolSnapshot>(schoolUrl)).state, { timeout: 20_000 }).toBe("up_to_date")
    expect(await snapshot<SchoolSnapshot>(schoolUrl)).toMatchObject({
      role: "school",
      school: "north",
      name: "North Primary",
      totals: { pending: 0, synced: 25 },
    })
    await expect
      .poll(async () => (await snapshot<HubSnapshot>(hubUrl)).schools.find((s) => s.school === "north"), { timeout: 10_000 })
      .toMatchObject({ state: "up_to_date", connected: true })
    const seen = await snapshot<HubSnapshot>(hubUrl)
    expect(seen.schools.map((s) => s.school)).toEqual(["north", "west"])
    expect(seen.slot).toMatchObject({ active: true })

    const taken = await run(["school", "--hub", hubUrl, "--key", north.key, "--data-dir", join(folder, "taken"), "--port", new URL(hubUrl).port])
    expect([taken.code, taken.err]).toEqual([69, expect.stringContaining("another program has this port")])
    const hubTaken = await run(hubArgs("taken-hub", new URL(hubUrl).port))
    expect([hubTaken.code, hubTaken.err]).toEqual([69, expect.stringContaining("choose another one with --port")])

    const stranger = new URL(db.url)
    stranger.username = "nobody_here"
    const unknown = await run(["hub", "--config", config, "--database-url", stranger.href, "--data-dir", join(folder, "stranger"), "--port", "0"])
    expect([unknown.code, unknown.err]).toEqual([77, expect.stringContaining("mend the role or its password")])

    const elsewhere = await run(["school", "--hub", hubUrl, "--key", north.key, "--data-dir", join(folder, "north"), "--port", "0"])
    expect([elsewhere.code, elsewhere.err]).toEqual([69, expect.stringContaining("school.db")])
    expect((await run(["check", "--url", schoolUrl])).code).toBe(0)
    expect((await run(["check", "--url", hubUrl])).out).toContain("SCHOOLBUS OK")
    expect((await run(["sync", "--url", schoolUrl])).code).toBe(0)
    expect((await run(["sync", "--url", hubUrl, "--school", "north"])).code).toBe(0)
    for (const at of [schoolUrl, hubUrl]) {
      const refused = await run(["sync", "--url", at, "--tables", "nowhere,pupils"])
      expect([refused.code, refused.err]).toEqual([64, expect.stringContaining("not synced here: nowhere; synced are: public.pupils")])
      expect((await run(["tables", "list", "--url", at])).out).toMatch(/public\.pupils\s+active\s+25/)
    }
    for (const list of [
      ["conflicts", "list", "--all"],
      ["conflicts", "auto-resolve"],
      ["quarantine", "list"],
      ["quarantine", "retry"],
    ]) {
      for (const at of [schoolUrl, hubUrl]) {
        const refused = await run([...list, "--url", at, "--table", "pupil"])
        expect([refused.code, refused.err]).toEqual([64, expect.stringContaining("not synced here: public.pupil; synced are: public.pupils")])
        expect((await run([...list, "--url", at, "--table", "pupils"])).code).toBe(0)
      }
    }
    for (const list of [["sync"], ["logs"], ["conflicts", "list"], ["conflicts", "auto-resolve"], ["quarantine", "list"], ["status"]]) {
      const of = (at: string, school: string) => run([...list, "--url", at, "--school", school])
      const unknown = await of(hubUrl, "nowhere")
      expect([unknown.code, unknown.err]).toEqual([
        1,
        expect.stringMatching(/no school is called nowhere; schools are .*north, west; .*schoolbus schools list/),
      ])
      const other = await of(schoolUrl, "west")
      expect([other.code, other.err]).toEqual([1, expect.stringContaining("this is the node of school north; ask the hub about west")])
      expect([(await of(hubUrl, "west")).code, (await of(schoolUrl, "north")).code]).toEqual([0, 0])
    }
    expect((await run(["sync", "--url", schoolUrl, "--direction", "down", "--tables", "pupils"])).code).toBe(0)
    await hub.says(/sync \(start\): \d+ of \d+ schools asked/)
    const asked = await expect.poll(async () => {
      const { items } = JSON.parse((await run(["logs", "--url", schoolUrl, "--json"])).out) as { items: ReadonlyArray<Record<string, unknown>> }
      return items.map(({ trigger, direction }) => `${trigger} ${direction}`)
    })
    await asked.toEqual(expect.arrayContaining(["hub both", "api down", "api both"]))
    // The hub asks every school when it begins, also one whose first copy is under way.
    expect((await run(["logs", "--url", schoolUrl])).out).toMatch(/(start|hub)\s.*pupils ↓/)
    const every = await run(["config", "set", "--url", hubUrl, "--set", "intervalMinutes=5", "--json"])
    expect(JSON.parse(every.out)).toMatchObject({ auto: true, intervalMinutes: 5 })
    await hub.says(/sync \(schedule\)/)
    expect((await run(["config", "set", "--url", schoolUrl, "--set", "hours=late"])).code).toBe(64)
    expect((await run(["config", "set", "--url", schoolUrl])).out).toContain("retryMaxSeconds")
    expect((await run(["devices", "list", "--url", schoolUrl])).code).toBe(0)
    expect(JSON.parse((await run(["slots", "--url", hubUrl, "--json"])).out).items).toHaveLength(1)
    expect((await run(["slots", "--database-url", db.url])).out).toMatch(/yes\s+reserved/)
    expect((await fetch(`${hubUrl}/metrics`).then((r) => r.text())).includes('schoolbus_node_state{node="north",state="up_to_date"} 1')).toBe(true)

    await run(["schools", "pause", "north", "--database-url", db.url])
    await expect.poll(async () => (await run(["status", "--url", schoolUrl])).out, { timeout: 30_000 }).toContain("Paused")
    const paused = await run(["sync", "--url", schoolUrl])
    expect([paused.code, paused.out]).toEqual([75, expect.stringMatching(/^head office has paused this school; .*schoolbus schools resume north\n$/)])
    await run(["schools", "resume", "north", "--database-url", db.url])
    // Whoever asks lets the node look at once whether it still is.
    await expect.poll(async () => (await run(["sync", "--url", schoolUrl])).code, { timeout: 30_000 }).toBe(0)

    expect(await school.stop()).toBe(0)
    expect(await hub.stop()).toBe(0)
  }, 90_000)

  it("listening to others without a token serve the link and /health, nothing else", async () => {
    const hub = begin(hubArgs("open", "0", ["--host", "0.0.0.0"]))
    const [, port = ""] = await hub.says(/hub listens on http:\/\/0\.0\.0\.0:(\d+)/)
    const url = `http://127.0.0.1:${port}`
    expect((await fetch(`${url}/health`)).status).toBe(200)
    expect((await fetch(`${url}/api/sync/manifest`)).status).toBe(401)
    for (const path of ["/ready", "/metrics", "/api/sync/status", "/api/slots", "/api/events"])
      expect([path, (await fetch(url + path)).status]).toEqual([path, 403])
    expect((await run(["status", "--url", url])).code).toBe(77)
    expect(await hub.stop()).toBe(0)
  })
})
