/**
 * Head office, two schools and a terminal on this machine: a private Postgres, the hub, two school nodes, each behind a
 * link that can be cut. `--check` plays a fixed scenario, prints one line per fact and exits 0 or 1.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { connect, createServer, type Server, type Socket } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import process from "node:process"
import { createClient } from "@libsql/client"
import postgres from "postgres"
import { startTerminal } from "../device/simulator.ts"
import { freePort, startCluster } from "./cluster.ts"

const root = new URL("..", import.meta.url).pathname
const isDeno = "Deno" in globalThis
const check = process.argv.includes("--check")
const FACT_SECONDS = 25

/** A TCP line between a school and the hub that a person can cut. */
const makeLine = async (target: number) => {
  const port = await freePort()
  const sockets = new Set<Socket>()
  let isCut = false
  const server: Server = createServer((near) => {
    if (isCut) return void near.destroy()
    const far = connect({ port: target, host: "127.0.0.1" })
    for (const socket of [near, far]) {
      sockets.add(socket)
      socket.on("error", () => socket.destroy()).on("close", () => sockets.delete(socket))
    }
    near.pipe(far).pipe(near)
    near.on("close", () => far.destroy())
    far.on("close", () => near.destroy())
  })
  await new Promise<void>((ready) => server.listen(port, "127.0.0.1", ready))
  return {
    port,
    isCut: () => isCut,
    cut: () => {
      isCut = true
      for (const socket of sockets) socket.destroy()
    },
    restore: () => {
      isCut = false
    },
    close: () => {
      for (const socket of sockets) socket.destroy()
      server.close()
    },
  }
}

const command = (args: ReadonlyArray<string>): readonly [string, ReadonlyArray<string>] =>
  isDeno ? [process.execPath, ["run", "-A", "src/main.ts", ...args]] : [process.execPath, ["src/main.ts", ...args]]

const folder = mkdtempSync(join(tmpdir(), "schoolbus-demo-"))
const children = new Map<string, ChildProcess>()
const output: Array<string> = []

const start = (name: string, args: ReadonlyArray<string>): void => {
  const [file, list] = command(args)
  const child = spawn(file, list, { cwd: root, stdio: ["ignore", "pipe", "pipe"] })
  for (const stream of [child.stdout, child.stderr])
    stream.on("data", (bytes: Uint8Array) => output.push(`[${name}] ${new TextDecoder().decode(bytes)}`))
  children.set(name, child)
}

const end = (name: string, signal: "SIGTERM" | "SIGKILL"): Promise<number | null> =>
  new Promise((done) => {
    const child = children.get(name)
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return done(child?.exitCode ?? null)
    child.once("exit", (code) => done(code))
    // Deno calls a child that child.kill ended killed, whatever its own exit code was.
    process.kill(child.pid ?? 0, signal)
  })

const run = (args: ReadonlyArray<string>): Promise<{ readonly code: number; readonly out: string }> =>
  new Promise((done) => {
    const [file, list] = command(args)
    const child = spawn(file, list, { cwd: root, stdio: ["ignore", "pipe", "pipe"] })
    let out = ""
    child.stdout.on("data", (bytes: Uint8Array) => {
      out += new TextDecoder().decode(bytes)
    })
    child.stderr.on("data", (bytes: Uint8Array) => output.push(`[${args[0]}] ${new TextDecoder().decode(bytes)}`))
    child.once("exit", (code) => done({ code: code ?? 1, out }))
  })

const say = (text: string): void => void process.stdout.write(`${text}\n`)

const cluster = await startCluster({ fsync: true })
const cleanups: Array<() => unknown> = []
let failures = 0
const stopAll = async (): Promise<void> => {
  for (const cleanup of cleanups.reverse()) await cleanup()
  await Promise.all([...children.keys()].map((name) => end(name, "SIGTERM")))
  await cluster.remove()
  rmSync(folder, { recursive: true, force: true })
}
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => void stopAll().then(() => process.exit(130)))

/** A sentence that must become true; failing, it names itself. */
const fact = async (text: string, holds: () => Promise<boolean>): Promise<void> => {
  const deadline = Date.now() + FACT_SECONDS * 1000
  for (;;) {
    const ok = await holds().catch(() => false)
    if (ok) return say(`  ok    ${text}`)
    if (Date.now() > deadline) {
      failures++
      return say(`  FAIL  ${text}`)
    }
    await new Promise((next) => setTimeout(next, 100))
  }
}

say(`Starting Postgres, the hub, two schools and a terminal (${isDeno ? "Deno" : "Bun"})`)
const url = cluster.url()
const sql = postgres(url, { onnotice: () => undefined, max: 4 })
cleanups.push(() => sql.end({ timeout: 2 }))
for (const file of ["0001_schema.sql", "0002_seed.sql"]) await sql.unsafe(readFileSync(join(root, "sql/example", file), "utf8"))

const hubPort = await freePort()
const hubArgs = ["hub", "--config", "schoolbus.config.ts", "--database-url", url, "--data-dir", join(folder, "hub"), "--port", String(hubPort)]

interface School {
  readonly id: string
  readonly args: ReadonlyArray<string>
  readonly url: string
  readonly line: Awaited<ReturnType<typeof makeLine>>
  readonly iclock: number
  readonly rows: (text: string) => Promise<ReadonlyArray<Record<string, unknown>>>
}

const makeSchool = async (id: string, name: string): Promise<School> => {
  const { out } = await run(["schools", "add", id, "--name", name, "--database-url", url, "--json"])
  const { key } = JSON.parse(out) as { key: string }
  const line = await makeLine(hubPort)
  cleanups.push(line.close)
  const [port, iclock] = [await freePort(), await freePort()]
  const dir = join(folder, id)
  // A program of the school: any SQLite client, with a busy timeout.
  let program: ReturnType<typeof createClient> | undefined
  cleanups.push(() => program?.close())
  return {
    id,
    line,
    iclock,
    url: `http://127.0.0.1:${port}`,
    args: [
      "school",
      "--hub",
      `http://127.0.0.1:${line.port}`,
      "--key",
      key,
      "--data-dir",
      dir,
      "--port",
      String(port),
      "--iclock-port",
      String(iclock),
    ],
    rows: async (text) => {
      program ??= createClient({ url: `file:${join(dir, "school.db")}`, timeout: 5000 } as never)
      return (await program.execute(text)).rows as never
    },
  }
}

const north = await makeSchool("north", "North Primary")
const south = await makeSchool("south", "South Primary")
start("hub", hubArgs)
for (const school of [north, south]) start(school.id, school.args)

const terminal = startTerminal({ server: `http://127.0.0.1:${north.iclock}`, serial: "SIM0000001", interval: 1, data: join(folder, "terminal.json") })
cleanups.push(() => terminal.stop())

const n = async (rows: Promise<ReadonlyArray<Record<string, unknown>>>): Promise<number> => Number(Object.values((await rows)[0] ?? {})[0] ?? -1)
const one = async (rows: Promise<ReadonlyArray<Record<string, unknown>>>): Promise<string> => String(Object.values((await rows)[0] ?? {})[0] ?? "")
/** Ids of the seed are made from names; see sql/example/0002_seed.sql. */
const idOf = (name: string): string =>
  createHash("md5")
    .update(name)
    .digest("hex")
    .replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-")
const pupil = (i: number): string => idOf(`north${i}`)
const office = async (text: string): Promise<string> => one(sql.unsafe(text) as never)

const scenario = async (): Promise<void> => {
  const amina = idOf("Amina of the demo")
  await fact(
    "each school has its own 40 pupils",
    async () => (await n(north.rows("SELECT count(*) FROM students"))) === 40 && (await n(south.rows("SELECT count(*) FROM students"))) === 40,
  )
  await fact("and its own announcement", async () => (await n(south.rows("SELECT count(*) FROM announcements"))) === 1)

  await sql`INSERT INTO students (id, school_id, class_id, admission_no, full_name, rfid_card_id) VALUES (${amina}, 'north', ${idOf("north1")}, 'D-1', 'Amina of the demo', '5551')`
  await fact(
    "a pupil entered at head office appears in her school",
    async () => (await n(north.rows(`SELECT count(*) FROM students WHERE id = '${amina}'`))) === 1,
  )
  await fact("and not in the other", async () => (await n(south.rows(`SELECT count(*) FROM students WHERE id = '${amina}'`))) === 0)
  await fact(
    "the terminal is approved",
    async () => (await run(["devices", "approve", "SIM0000001", "--url", north.url, "--zone", "Africa/Nairobi"])).code === 0,
  )
  const onTerminal = () => terminal.users().find((user) => user.name === "Amina of the demo")
  await fact("she is on the terminal, with the 30 others who have a card", async () => terminal.users().length === 31 && onTerminal() !== undefined)

  say("  ..    the school's line is cut")
  north.line.cut()
  terminal.punch(onTerminal()?.pin ?? "", "2026-11-24 07:41:09")
  await fact("offline, the node takes her punch", async () => terminal.unsent() === 0 && (await n(north.rows("SELECT count(*) FROM punches"))) === 1)
  await north.rows(`UPDATE marks SET score = '99.50' WHERE student_id = '${pupil(1)}' AND subject_id = '${idOf("MAT")}'`)
  await north.rows(`UPDATE payments SET note = 'from the school' WHERE student_id = '${pupil(1)}'`)
  await north.rows(`UPDATE students SET medical_notes = 'asthma (school)' WHERE id = '${pupil(3)}'`)
  await north.rows(
    `INSERT INTO audit_logs (id, school_id, actor, action, at) VALUES ('50000000-0000-4000-8000-000000000001', 'north', 'grace', 'offline work', '2026-11-24 05:00:00+00')`,
  )
  await sql`UPDATE payments SET note = 'from head office' WHERE student_id = ${pupil(1)}`
  await sql`UPDATE students SET medical_notes = 'none (office)' WHERE id = ${pupil(3)}`
  await sql`UPDATE students SET school_id = 'south', class_id = null, admission_no = 'T-5' WHERE id = ${pupil(5)}`
  await sql`DELETE FROM enrolments WHERE student_id = ${pupil(7)}`
  await fact("the other school goes on meanwhile", async () => (await n(south.rows(`SELECT count(*) FROM students WHERE id = '${pupil(5)}'`))) === 1)
  await fact(
    "the school's status says that it is offline",
    async () => (JSON.parse((await run(["status", "--url", north.url, "--json"])).out) as { state: string }).state === "offline",
  )

  say("  ..    the hub and the school are killed, then the line is back")
  await Promise.all([end("hub", "SIGKILL"), end("north", "SIGKILL")])
  north.line.restore()
  start("hub", hubArgs)
  start("north", north.args)

  await fact(
    "the punch is at head office, once, with the pupil it belongs to",
    async () => (await office(`SELECT string_agg(person_id, ',') FROM schoolbus.punches`)) === amina,
  )
  await fact(
    "and made one attendance row there",
    async () => (await office(`SELECT string_agg(student_id::text, ',') FROM attendance WHERE punched_at IS NOT NULL`)) === amina,
  )
  await fact(
    "the teacher's mark arrived",
    async () => (await office(`SELECT score::text FROM marks WHERE student_id = '${pupil(1)}' AND subject_id = '${idOf("MAT")}'`)) === "99.50",
  )
  await fact(
    "the payment's note is head office's (vps_wins), also in the school",
    async () =>
      (await office(`SELECT note FROM payments WHERE student_id = '${pupil(1)}'`)) === "from head office" &&
      (await one(north.rows(`SELECT note FROM payments WHERE student_id = '${pupil(1)}'`))) === "from head office",
  )
  await fact(
    "the medical note that both changed waits for a person (manual), both sides kept",
    async () =>
      (await office(`SELECT medical_notes FROM students WHERE id = '${pupil(3)}'`)) === "none (office)" &&
      (await one(north.rows(`SELECT medical_notes FROM students WHERE id = '${pupil(3)}'`))) === "asthma (school)" &&
      (await office(`SELECT count(*) FROM schoolbus.conflicts WHERE status = 'open'`)) === "1",
  )
  const open = await office(`SELECT id::text FROM schoolbus.conflicts WHERE status = 'open'`)
  await fact(
    "a person decides for the school, by the command line",
    async () => (await run(["conflicts", "resolve", open, "--keep", "school", "--url", `http://127.0.0.1:${hubPort}`])).code === 0,
  )
  await fact(
    "and both sides have the school's note",
    async () =>
      (await office(`SELECT medical_notes FROM students WHERE id = '${pupil(3)}'`)) === "asthma (school)" &&
      (await n(north.rows("SELECT count(*) FROM schoolbus_hold"))) === 0,
  )
  await fact(
    "the pupil who changed school is gone here",
    async () => (await n(north.rows(`SELECT count(*) FROM students WHERE id = '${pupil(5)}'`))) === 0,
  )
  await fact("and from the terminal", async () => terminal.users().length === 30)
  await fact(
    "the deleted enrolment is gone",
    async () => (await n(north.rows(`SELECT count(*) FROM enrolments WHERE student_id = '${pupil(7)}'`))) === 0,
  )
  await fact("the school's log row arrived, once", async () => (await office(`SELECT count(*) FROM audit_logs WHERE actor = 'grace'`)) === "1")

  const shared = new Set(["schools", "academic_years", "subjects"])
  const tables = [...shared, "users", "classes", "students", "enrolments", "marks", "attendance", "payments", "announcements"]
  for (const school of [north, south]) {
    await fact(`${school.id}: every table holds the same keys as head office, and nothing waits`, async () => {
      for (const table of tables) {
        const there = (
          await sql.unsafe(
            `SELECT id::text FROM ${table} ${shared.has(table) ? "" : `WHERE school_id = '${school.id}'`} ORDER BY id::text COLLATE "C"`,
          )
        ).map((row) => String(row["id"]))
        const here = (await school.rows(`SELECT id FROM ${table} ORDER BY id`)).map((row) => String(row["id"]))
        if (JSON.stringify(there) !== JSON.stringify(here)) return false
      }
      return (await n(school.rows("SELECT (SELECT count(*) FROM changes) + (SELECT count(*) FROM schoolbus_behind)"))) === 0
    })
  }
  await fact("services end with 0 on SIGTERM", async () =>
    (await Promise.all(["north", "south", "hub"].map((name) => end(name, "SIGTERM")))).every((code) => code === 0),
  )
}

if (check) {
  const started = Date.now()
  await scenario()
  if (failures > 0) say(output.slice(-60).join(""))
  say(failures === 0 ? `all facts hold (${Math.round((Date.now() - started) / 1000)} s)` : `${failures} facts do not hold`)
  await stopAll()
  process.exit(failures === 0 ? 0 : 1)
} else {
  await fact(
    "each school has its pupils",
    async () => (await n(north.rows("SELECT count(*) FROM students"))) === 40 && (await n(south.rows("SELECT count(*) FROM students"))) === 40,
  )
  await run(["devices", "approve", "SIM0000001", "--url", north.url, "--zone", "Africa/Nairobi"])
  say(`
Head office   psql ${url}
Hub           http://127.0.0.1:${hubPort}/api/sync/status
North         sqlite3 ${join(folder, "north", "school.db")}     ${north.url}
South         sqlite3 ${join(folder, "south", "school.db")}     ${south.url}

Try: UPDATE students SET full_name = 'You' WHERE id = '${pupil(1)}';  in psql, then read the row in North's file.
Lines: c cut or restore North's line · p a pupil punches · s status · q quit`)
  process.stdin.setEncoding("utf8")
  for await (const line of process.stdin) {
    const word = String(line).trim()
    if (word === "q") break
    if (word === "c") {
      if (north.line.isCut()) north.line.restore()
      else north.line.cut()
      say(`North's line is ${north.line.isCut() ? "cut" : "back"}`)
    } else if (word === "p") {
      const user = terminal.users()[0]
      if (user !== undefined) terminal.punch(user.pin)
      say(user === undefined ? "no pupil is on the terminal yet" : `${user.name} punches`)
    } else if (word === "s") say((await run(["status", "--url", `http://127.0.0.1:${hubPort}`])).out)
  }
  await stopAll()
  process.exit(0)
}
