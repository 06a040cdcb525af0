/**
 * From a commit in Postgres to the row in the school's file, looked for every millisecond. The same commits go to a second
 * database by native logical replication, looked at as often.
 */
import { bench, under } from "./frame.ts"
import { insertRows, openGround } from "./ground.ts"
import { openNodes, reader, until } from "./nodes.ts"

/** Everything that has been seen up to now, by the highest id. */
const makeWatch = (look: () => Promise<number> | number, committed: ReadonlyMap<number, number>) => {
  const waits: Array<number> = []
  let seen = 0
  let isOver = false
  const loop = (async () => {
    while (!isOver) {
      const id = await look()
      const now = performance.now()
      for (; seen < id; seen++) {
        const at = committed.get(seen + 1)
        if (at !== undefined) waits.push(Math.max(0, now - at))
      }
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
  })()
  return {
    seen: () => seen,
    end: async (): Promise<ReadonlyArray<number>> => {
      isOver = true
      await loop
      return waits.sort((a, b) => a - b)
    },
  }
}
const at = (sorted: ReadonlyArray<number>, share: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN

export default bench({
  name: "latency",
  about: "from commit to the row in the school, beside native logical replication of the same commits",
  bars: {
    p50at50: { what: "50 tx/s, p50", unit: "ms", want: under(5, 3) },
    p99at50: { what: "50 tx/s, p99", unit: "ms", want: under(20, 5) },
    p50at100: { what: "100 tx/s, p50", unit: "ms", want: under(5, 3) },
    p99at100: { what: "100 tx/s, p99", unit: "ms", want: under(20, 5) },
  },
  run: async function* ({ rounds, size, say }) {
    const ground = await openGround()
    const nodes = openNodes(ground)
    try {
      await ground.backlog((sql) => insertRows(sql, 100, 100))
      const hub = await nodes.hub()
      const school = await nodes.school(hub)
      const file = reader(school.dir)
      await until("the first copy", () => file.one("SELECT count(*) FROM attendance") === 100)
      const native = await ground.native("now")
      await ground.sql`ALTER SYSTEM SET synchronous_commit = on`
      await ground.sql`SELECT pg_reload_conf()`
      let id = 100
      for (let round = 0; round < rounds; round++) {
        for (const rate of [50, 100] as const) {
          const first = id
          const committed = new Map<number, number>()
          const mine = makeWatch(() => file.one("SELECT max(id) FROM attendance") ?? 0, committed)
          const peer = makeWatch(async () => Number((await native.sql`SELECT coalesce(max(id), 0) AS n FROM attendance`)[0]?.["n"]), committed)
          const commits = rate * size(10, 3)
          const began = performance.now()
          for (let n = 0; n < commits; n++) {
            const wait = began + (n * 1000) / rate - performance.now()
            if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait))
            await insertRows(ground.sql, 1, 1, ++id)
            committed.set(id, performance.now())
          }
          await until("the last row", () => mine.seen() === id && peer.seen() === id)
          const [waits, peers] = [await mine.end(), await peer.end()]
          say(
            `${rate} tx/s, ${id - first} commits: p50 ${at(waits, 0.5).toFixed(1)} p99 ${at(waits, 0.99).toFixed(1)} ms, native ${at(peers, 0.5).toFixed(1)} ${at(peers, 0.99).toFixed(1)}`,
          )
          yield { bar: `p50at${rate}`, figure: at(waits, 0.5), peer: at(peers, 0.5) }
          yield { bar: `p99at${rate}`, figure: at(waits, 0.99), peer: at(peers, 0.99) }
        }
      }
      say(`${hub.late()}; ${school.late()}`)
      await native.drop()
      file.close()
      await school.stop()
      await hub.stop()
    } finally {
      nodes.close()
      await ground.close()
    }
  },
})
