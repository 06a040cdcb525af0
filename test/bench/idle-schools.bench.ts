/**
 * What connected schools cost a hub that has nothing for them: each holds its stream open and says a heartbeat every 20 s,
 * as nodes do. Memory is what the hub's process grew by for all but the first of them, greetings, streams and heartbeats;
 * processor time is what it took while they stood open.
 */
import { existsSync, readFileSync } from "node:fs"
import { connect, type Socket } from "node:net"
import { newKey } from "../../src/link/keys.ts"
import { PROTOCOL } from "../../src/link/protocol.ts"
import { bench, under } from "./frame.ts"
import { type Ground, openGround } from "./ground.ts"
import { type Node, openNodes, until } from "./nodes.ts"

const HEARTBEAT_MS = 20_000
const GREETINGS_AT_ONCE = 16
const CLOCK_TICKS = 100

/** Schools, and heartbeats of them, before the measurement: what a hub needs for its first ones is not what one of them costs. */
const WARM = 100
const WARM_BEATS = 20

interface School {
  readonly key: string
  readonly incarnation: string
  token: string
  cursor: { readonly epoch: string; readonly seq: number; readonly cut: string }
}

const rssKiB = (pid: number): number => Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0)
const cpuSeconds = (pid: number): number => {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? []
  return (Number(fields[11]) + Number(fields[12])) / CLOCK_TICKS
}

const enrol = async (ground: Ground, round: number, count: number): Promise<ReadonlyArray<School>> => {
  const keys = Array.from({ length: count }, () => newKey())
  const schools = keys.map((_, i) => ({ id: `idle${round}-${i}`, name: `Idle ${i}` }))
  await ground.sql`INSERT INTO schoolbus.schools ${ground.sql(schools)}`
  await ground.sql`INSERT INTO schoolbus.school_keys ${ground.sql(keys.map(({ id, hash }, i) => ({ id, school: `idle${round}-${i}`, hash })))}`
  return keys.map(({ text }) => ({ key: text, incarnation: crypto.randomUUID(), token: "", cursor: { epoch: "", seq: 0, cut: "0" } }))
}

const post = (hub: Node, school: School, path: string, body: unknown) =>
  fetch(`${hub.url}/api/sync/${path}`, { method: "POST", headers: { authorization: `Bearer ${school.key}` }, body: JSON.stringify(body) })

const greet = async (hub: Node, school: School): Promise<void> => {
  const none = { epoch: "", seq: 0, cut: "0", lastBatch: 0, manifest: 0 }
  for (;;) {
    const response = await post(hub, school, "hello", {
      protocol: PROTOCOL,
      incarnation: school.incarnation,
      token: "",
      ...none,
      clock: Date.now(),
      version: "bench",
    })
    if (response.ok) {
      school.token = ((await response.json()) as { token: string }).token
      return
    }
    await response.body?.cancel()
    await new Promise((resolve) => setTimeout(resolve, 200))
  }
}

/**
 * A request by hand: a client of a runtime holds only so many connections to one host. Resolves with the first page's end; the
 * school stands where the last page left it.
 */
const openStream = (hub: Node, school: School): Promise<Socket> =>
  new Promise((resolve, reject) => {
    const { hostname, port } = new URL(hub.url)
    const query = new URLSearchParams({ incarnation: school.incarnation, token: school.token, epoch: "", seq: "0", cut: "0" })
    const socket = connect({ host: hostname, port: Number(port) })
    let text = ""
    socket.on("data", (data) => {
      text += String(data)
      if (!/\["page",.*\n/.test(text)) return
      const [, head] = [...text.matchAll(/\["cut",(\{.*?\}),"/g)].at(-1) ?? []
      text = ""
      if (head === undefined) return
      const { epoch, head: seq, headCut: cut } = JSON.parse(head) as { epoch: string; head: number; headCut: string }
      school.cursor = { epoch, seq, cut }
      resolve(socket)
    })
    socket.once("error", reject)
    socket.once("close", () => reject(new Error(`the hub closed a stream: ${text.slice(0, 200)}`)))
    socket.write(`GET /api/sync/stream?${query} HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer ${school.key}\r\nAccept-Encoding: identity\r\n\r\n`)
  })

const inGroups = async <A>(all: ReadonlyArray<A>, work: (one: A) => Promise<unknown>): Promise<void> => {
  const left = [...all]
  await Promise.all(
    Array.from({ length: GREETINGS_AT_ONCE }, async () => {
      for (let next = left.pop(); next !== undefined; next = left.pop()) await work(next)
    }),
  )
}

export default bench({
  name: "idle-schools",
  about: "what 2,000 connected schools cost the hub while nothing happens",
  bars: {
    memory: { what: "memory of one school's connection", unit: "KiB", want: under(20) },
    processor: { what: "of one core, heartbeats included", unit: "%", want: under(5) },
  },
  run: async function* ({ rounds, size, say }) {
    if (!existsSync("/proc/self/stat")) return say("needs /proc")
    const ground = await openGround()
    // What watches an event loop wakes up more often than all these schools.
    const nodes = openNodes(ground, { isWatched: false })
    const count = size(2_000, 500)
    try {
      await ground.backlog((sql) => sql`SELECT 1`)
      for (let round = 0; round < rounds; round++) {
        const hub = await nodes.hub()
        const schools = await enrol(ground, round, count)
        const sockets: Array<Socket> = []
        let beats = 0
        let isOver = false
        const join = async (school: School) => {
          await greet(hub, school)
          sockets.push(await openStream(hub, school))
        }
        const beat = async (school: School) => {
          if (isOver) return
          const said = { pending: 0, oldestPendingAt: null, conflicts: 0, behind: 0, quarantined: 0, devices: 0, state: "up_to_date", reason: null }
          const body = { incarnation: school.incarnation, cursor: school.cursor, ...said, clock: Date.now() }
          const response = await post(hub, school, "heartbeat", body)
          beats++
          await response.text()
        }
        const warm = schools.slice(0, WARM)
        await inGroups(warm, join)
        for (let i = 0; i < WARM_BEATS; i++) await inGroups(warm, beat)
        await new Promise((resolve) => setTimeout(resolve, 1_000))
        const before = rssKiB(hub.pid)
        beats = 0
        await inGroups(schools.slice(WARM), join)
        const timers = schools.map((school, i) =>
          setInterval(() => setTimeout(() => void beat(school).catch(() => undefined), (i / count) * HEARTBEAT_MS), HEARTBEAT_MS),
        )
        await until("every heartbeat to have come once", () => beats >= count, 120_000, 500)
        const cpu = cpuSeconds(hub.pid)
        const began = performance.now()
        await new Promise((resolve) => setTimeout(resolve, size(30_000, 10_000)))
        const share = (100 * (cpuSeconds(hub.pid) - cpu)) / ((performance.now() - began) / 1000)
        const each = (rssKiB(hub.pid) - before) / (count - WARM)
        say(`${count} schools: ${each.toFixed(1)} KiB each, ${share.toFixed(1)} % of a core`)
        yield { bar: "memory", figure: each }
        yield { bar: "processor", figure: share }
        isOver = true
        for (const timer of timers) clearInterval(timer)
        for (const socket of sockets) socket.destroy()
        await hub.stop()
      }
    } finally {
      nodes.close()
      await ground.close()
    }
  },
})
