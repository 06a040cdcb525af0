/**
 * What more schools cost the hub: processor time of this process, in which stream, routing and feed run, for one and the
 * same backlog. Rows of one school beside rows of fifty; rows of everybody in a feed that knows one school or 2,000.
 */
import process from "node:process"
import { type Bar, atMost, bench } from "./frame.ts"
import { type Ground, openGround } from "./ground.ts"

const ROWS_TOGETHER = 100
const SCHOOLS = 50
const MANY = 2_000

const insertSpread = (ground: Ground, rows: number, school: string) =>
  ground.backlog((sql) =>
    sql
      .unsafe(
        `DO $$ BEGIN
           FOR txn IN 0 .. ${rows / ROWS_TOGETHER - 1} LOOP
             INSERT INTO attendance SELECT n, ${school}, n % 1000, n % 30, date '2026-01-01', 'present', 'teacher ' || n % 40, 'a note of usual length', '2026-01-01 08:00Z'
               FROM generate_series(txn * ${ROWS_TOGETHER} + 1, (txn + 1) * ${ROWS_TOGETHER}) n;
             COMMIT;
           END LOOP;
         END $$`,
      )
      .simple(),
  )

const addSchools = (ground: Ground, count: number) =>
  ground.sql`INSERT INTO schoolbus.schools (id, name) SELECT 's' || i, 'School ' || i FROM generate_series(1, ${count}) i ON CONFLICT (id) DO NOTHING`

/** What else the processor is given in between would be counted too. */
const DRAINS = 3

/** Processor time of one drain, s, the least of some. */
const costOf = async (ground: Ground): Promise<number> => {
  const costs: Array<number> = []
  for (let run = 0; run < DRAINS; run++) {
    const before = process.cpuUsage()
    await ground.drain()
    const { user, system } = process.cpuUsage(before)
    costs.push((user + system) / 1e6)
  }
  return Math.min(...costs)
}

const what = (text: string): Bar => ({ what: text, unit: "cpu s", want: atMost(1.1) })

export default bench({
  name: "schools",
  about: "what a change costs the hub when there are more schools",
  bars: {
    routed: what(`rows of ${SCHOOLS} schools, against as many of one`),
    everybody: what(`rows of all schools, ${MANY.toLocaleString("en-US")} schools against one`),
  },
  run: async function* ({ rounds, size, say }) {
    const rows = size(200_000, 40_000)
    for (let round = 0; round < rounds; round++) {
      const own = await openGround()
      try {
        await addSchools(own, SCHOOLS)
        await insertSpread(own, rows, "'s1'")
        const peer = await costOf(own)
        await insertSpread(own, rows, `'s' || 1 + n % ${SCHOOLS}`)
        const figure = await costOf(own)
        say(`one school ${peer.toFixed(2)} s, ${SCHOOLS} schools ${figure.toFixed(2)} s`)
        yield { bar: "routed", figure, peer }
      } finally {
        await own.close()
      }
      const all = await openGround({ tables: { attendance: { audience: "all" } } })
      try {
        await insertSpread(all, rows, "'s1'")
        const peer = await costOf(all)
        await addSchools(all, MANY)
        await insertSpread(all, rows, "'s1'")
        const figure = await costOf(all)
        say(`for everybody: one school ${peer.toFixed(2)} s, ${MANY} schools ${figure.toFixed(2)} s`)
        yield { bar: "everybody", figure, peer }
      } finally {
        await all.close()
      }
    }
  },
})
