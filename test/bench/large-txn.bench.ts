/** Memory while one large transaction passes. */
import { bench, under } from "./frame.ts"
import { insertRows, openGround } from "./ground.ts"
import { openNodes, reader, until } from "./nodes.ts"

export default bench({
  name: "large-txn",
  about: "peak memory of hub and school while one large transaction passes",
  bars: {
    hub: { what: "hub, one transaction of 1,000,000 rows", unit: "MiB", want: under(300) },
    school: { what: "school, the same rows", unit: "MiB" },
  },
  run: async function* ({ rounds, size, say }) {
    const ground = await openGround()
    const nodes = openNodes(ground)
    try {
      const rows = size(1_000_000, 100_000)
      await ground.backlog((sql) => insertRows(sql, rows, rows))
      for (let round = 0; round < rounds; round++) {
        const hub = await nodes.hub()
        const school = await nodes.school(hub)
        const file = reader(school.dir)
        await until("all rows in the school", () => file.one("SELECT count(*) FROM attendance") === rows, 600_000, 100)
        say(`${hub.late()}; ${school.late()}`)
        yield { bar: "hub", figure: hub.peakMiB() }
        yield { bar: "school", figure: school.peakMiB() }
        file.close()
        await school.stop()
        await hub.stop()
      }
    } finally {
      nodes.close()
      await ground.close()
    }
  },
})
