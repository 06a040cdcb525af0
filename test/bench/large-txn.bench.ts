/** Memory while one large transaction passes: many rows, and many bytes. */
import type postgres from "postgres"
import { bench, under } from "./frame.ts"
import { insertRows, openGround, rowsSql } from "./ground.ts"
import { openNodes, reader, untilAll } from "./nodes.ts"

/** Rows of about 1 kB, which compress to a half. */
const insertWide = (sql: postgres.Sql, rows: number) =>
  sql.unsafe(
    `INSERT INTO attendance
     SELECT id, school, student, class, day, status, by, (SELECT string_agg(md5(id::text || n), ' ') FROM generate_series(1, 29) n), at
       FROM (${rowsSql(1, rows)}) r (id, school, student, class, day, status, by, note, at)`,
  )

export default bench({
  name: "large-txn",
  about: "peak memory of hub and school while one large transaction passes",
  bars: {
    hub: { what: "hub, one transaction of 1,000,000 rows", unit: "MiB", want: under(300) },
    school: { what: "school, the same rows", unit: "MiB" },
    wide: { what: "hub, one transaction of 1 GB", unit: "MiB", want: under(512) },
    wideSchool: { what: "school, the same rows", unit: "MiB" },
  },
  run: async function* ({ rounds, size, say }) {
    const ground = await openGround()
    const nodes = openNodes(ground)
    try {
      const rows = size(1_000_000, 100_000)
      await ground.backlog((sql) => insertRows(sql, rows, rows))
      const pass = async (): Promise<readonly [hub: number, school: number]> => {
        const hub = await nodes.hub()
        const school = await nodes.school(hub)
        const file = reader(school.dir)
        await untilAll(file, rows)
        say(`${hub.late()}; ${school.late()}`)
        const peaks = [hub.peakMiB(), school.peakMiB()] as const
        file.close()
        await school.stop()
        await hub.stop()
        return peaks
      }
      for (let round = 0; round < rounds; round++) {
        const [hub, school] = await pass()
        yield { bar: "hub", figure: hub }
        yield { bar: "school", figure: school }
      }
      await ground.backlog((sql) => insertWide(sql, rows))
      const [hub, school] = await pass()
      yield { bar: "wide", figure: hub }
      yield { bar: "wideSchool", figure: school }
    } finally {
      nodes.close()
      await ground.close()
    }
  },
})
