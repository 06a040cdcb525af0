/** Terminals: polls beside a bare route, punches beside plain inserts, a fleet beside a catch-up, a whole memory again. */
import { spawn } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { connect } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import process from "node:process"
import { createInterface } from "node:readline"
import Database from "libsql"
import { freePort } from "../../scripts/cluster.ts"
import { fleetSerial, startFleet } from "../../device/simulator.ts"
import { atLeast, bench, under } from "./frame.ts"
import { insertRows, openGround } from "./ground.ts"
import { openNodes, reader, until } from "./nodes.ts"

const SENDERS = 16
const WARM_MS = 2_000
const POLL_MS = 3_000
const BODY_LINES = 100
const WARM_ROWS = 3_000
const FLEET = 500
const FLEET_INTERVAL = 10

interface Server {
  readonly port: number
  readonly file: string
  readonly stop: () => void
}

const startServer = async (...args: ReadonlyArray<string>): Promise<Server> => {
  const child = spawn(process.execPath, [join(import.meta.dirname, "devices-server.ts"), ...args], { stdio: ["pipe", "pipe", "inherit"] })
  for await (const line of createInterface({ input: child.stdout })) {
    if (line.startsWith('{"port"')) return { ...(JSON.parse(line) as { port: number; file: string }), stop: () => void child.stdin.end() }
  }
  throw new Error(`${args.join(" ")} did not start`)
}

/** One request on one connection, as terminals make it; the answer's last bytes. */
const call = (port: number, bytes: Uint8Array): Promise<string> =>
  new Promise((resolve, reject) => {
    const socket = connect({ port, host: "127.0.0.1", noDelay: true })
    let answer = ""
    socket.on("data", (chunk) => {
      answer += String(chunk)
      // Not every server closes by itself; the answers are short and come whole.
      if (/\r\n\r\n[\s\S]/.test(answer)) {
        socket.destroy()
        resolve(answer)
      }
    })
    socket.on("error", reject)
    socket.write(bytes)
  })

const getrequest = (n: number): Uint8Array =>
  Buffer.from(
    `GET /iclock/getrequest?SN=BENCH${String(n).padStart(4, "0")} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: iClock Proxy/1.09\r\nConnection: close\r\nAccept: */*\r\n\r\n`,
  )

/** Polls per second of so many terminals that do nothing else. */
const polls = async (port: number, ms: number): Promise<number> => {
  const end = performance.now() + ms
  let done = 0
  await Promise.all(
    Array.from({ length: SENDERS }, async (_, i) => {
      const bytes = getrequest(i + 1)
      while (performance.now() < end) {
        const answer = await call(port, bytes)
        if (!answer.endsWith("OK")) throw new Error(`unexpected: ${answer}`)
        done++
      }
    }),
  )
  return done / (ms / 1000)
}

let moment = Date.parse("2026-03-03T06:00:00Z")
const lines = (count: number): ReadonlyArray<string> =>
  Array.from({ length: count }, (_, i) => {
    moment += 1000
    return `${(i % 200) + 1}\t${new Date(moment).toISOString().slice(0, 19).replace("T", " ")}\t0\t1\t0\t0\t0\t`
  })
const attlog = (serial: string, body: string): Uint8Array =>
  Buffer.from(
    `POST /iclock/cdata?SN=${serial}&table=ATTLOG&Stamp=9999 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  )
const bodiesOf = (all: ReadonlyArray<string>): ReadonlyArray<string> =>
  Array.from({ length: Math.ceil(all.length / BODY_LINES) }, (_, i) => `${all.slice(i * BODY_LINES, (i + 1) * BODY_LINES).join("\n")}\n`)

/** Seconds for these bodies, each sent when the one before is answered, by some terminals at once. */
const ingest = async (port: number, bodies: ReadonlyArray<string>, senders: number): Promise<number> => {
  const startedAt = performance.now()
  let next = 0
  await Promise.all(
    Array.from({ length: senders }, async (_, i) => {
      for (let body = bodies[next++]; body !== undefined; body = bodies[next++]) {
        const answer = await call(port, attlog(fleetSerial("BENCH", i + 1), body))
        if (!answer.endsWith(`OK: ${body.split("\n").length - 1}`)) throw new Error(`unexpected: ${answer}`)
      }
    }),
  )
  return (performance.now() - startedAt) / 1000
}

/** Seconds for the same rows in the same table of a file of its own: plain inserts, 100 in a transaction, synchronous=FULL. */
const plainInserts = (like: string, rows: number): number => {
  const folder = mkdtempSync(join(tmpdir(), "schoolbus-plain-"))
  const source = new Database(like, { timeout: 5000 })
  const db = new Database(join(folder, "plain.db"))
  try {
    for (const pragma of ["journal_mode=WAL", "synchronous=FULL", "cache_size=-65536", "wal_autocheckpoint=4000"]) db.exec(`PRAGMA ${pragma}`)
    for (const row of source
      .prepare("SELECT sql FROM sqlite_schema WHERE tbl_name = 'punches' AND type IN ('table', 'index') AND sql IS NOT NULL")
      .raw(true)
      .all())
      db.exec(String((row as ReadonlyArray<unknown>)[0]))
    const some = source.prepare("SELECT * FROM punches LIMIT 1").raw(true).all()[0] as ReadonlyArray<unknown>
    const names = source.prepare("SELECT name FROM pragma_table_info('punches')").raw(true).all().flat() as ReadonlyArray<string>
    const insert = db.prepare(`INSERT INTO punches VALUES (${names.map(() => "?").join(",")})`)
    const idAt = names.indexOf("id")
    const timeAt = names.indexOf("at")
    const startedAt = performance.now()
    for (let n = 0; n < rows; n += BODY_LINES) {
      db.exec("BEGIN IMMEDIATE")
      for (let i = n; i < n + BODY_LINES; i++)
        insert.run([...some.map((cell, c) => (c === idAt ? crypto.randomUUID() : c === timeAt ? String(i) : cell))] as never)
      db.exec("COMMIT")
    }
    return (performance.now() - startedAt) / 1000
  } finally {
    source.close()
    db.close()
    rmSync(folder, { recursive: true, force: true })
  }
}

const count = (file: string, sql: string): number => {
  const db = new Database(file, { timeout: 5000 })
  const [n] = db.prepare(sql).raw(true).get() as ReadonlyArray<number>
  db.close()
  return n ?? 0
}

/** p99 of a fleet's exchanges while a school takes a cut of so many rows. */
const fleetBesideCatchUp = async (rows: number, say: (line: string) => void): Promise<number> => {
  const ground = await openGround()
  const nodes = openNodes(ground)
  try {
    await ground.backlog(() => Promise.resolve())
    const hub = await nodes.hub()
    const iclockPort = await freePort()
    const school = await nodes.school(hub, ["--iclock-port", String(iclockPort)])
    const at = (path: string, body: unknown) =>
      fetch(`${school.url}${path}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) })
    const serials = Array.from({ length: FLEET }, (_, i) => fleetSerial("FLEET", i + 1))
    await until("the school to know its terminals", async () => (await at(`/api/devices/${serials[0]}/approve`, { zone: "UTC" })).ok, 60_000, 100)
    for (const serial of serials) await at(`/api/devices/${serial}/approve`, { zone: "UTC" })
    const fleet = await startFleet({ server: `http://127.0.0.1:${iclockPort}`, count: FLEET, interval: FLEET_INTERVAL, punchesPerSecond: 5 })
    await until("the fleet", () => fleet.online() === FLEET, 60_000, 100)
    fleet.stats()
    await insertRows(ground.sql, rows, 10_000)
    const file = reader(school.dir)
    await until("the catch-up", () => file.one("SELECT count(*) FROM attendance") === rows, 600_000, 200)
    file.close()
    const stats = fleet.stats()
    say(`${FLEET} terminals beside ${rows} rows: ${JSON.stringify(stats)}, ${fleet.unsent()} unsent`)
    await fleet.stop()
    if (stats.failed > 0) throw new Error(`${stats.failed} exchanges were not answered`)
    return stats.p99
  } finally {
    nodes.close()
    await ground.close()
  }
}

export default bench({
  name: "devices",
  about: "terminals: polls, punches, a fleet beside a catch-up, a whole memory again",
  bars: {
    polls: { what: "polls with nothing to do, against a bare Elysia route", unit: "polls/s", want: atLeast(0.5) },
    ingest: { what: "punches in bodies of 100, one terminal, against plain inserts of 100", unit: "punches/s", want: atLeast(0.5) },
    many: { what: "the same, four terminals at once", unit: "punches/s" },
    attendance: { what: "the same with a row of attendance each, one terminal", unit: "punches/s" },
    again: { what: "100,000 punches sent again", unit: "s", want: under(60) },
    fleet: { what: "p99 of 500 terminals beside a 1,000,000-row catch-up", unit: "ms", want: under(100) },
  },
  run: async function* ({ rounds, size, say }) {
    for (let round = 0; round < rounds; round++) {
      const node = await startServer("node", String(SENDERS))
      const bare = await startServer("bare")
      for (const { port } of [node, bare]) await polls(port, WARM_MS)
      yield { bar: "polls", figure: await polls(node.port, POLL_MS), peer: await polls(bare.port, POLL_MS) }
      bare.stop()
      const rows = size(20_000, 10_000)
      await ingest(node.port, bodiesOf(lines(WARM_ROWS)), 1)
      const seconds = await ingest(node.port, bodiesOf(lines(rows)), 1)
      const plain = rows / plainInserts(node.file, rows)
      yield { bar: "ingest", figure: rows / seconds, peer: plain }
      yield { bar: "many", figure: rows / (await ingest(node.port, bodiesOf(lines(rows)), 4)), peer: plain }
      node.stop()
      const full = await startServer("node", "1", "attendance")
      await ingest(full.port, bodiesOf(lines(WARM_ROWS)), 1)
      yield { bar: "attendance", figure: rows / (await ingest(full.port, bodiesOf(lines(rows)), 1)), peer: plain }
      full.stop()
    }
    const node = await startServer("node", "1")
    const memory = bodiesOf(lines(100_000))
    await ingest(node.port, memory, 1)
    const [stored, changes] = ["punches", "changes"].map((table) => count(node.file, `SELECT count(*) FROM ${table}`))
    yield { bar: "again", figure: await ingest(node.port, memory, 1) }
    const after = ["punches", "changes"].map((table) => count(node.file, `SELECT count(*) FROM ${table}`))
    if (stored !== 100_000 || after[0] !== stored || after[1] !== changes) throw new Error(`rows were added: ${stored}, ${changes} -> ${after}`)
    node.stop()
    yield { bar: "fleet", figure: await fleetBesideCatchUp(size(1_000_000, 100_000), say) }
  },
})
