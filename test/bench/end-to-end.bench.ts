/** A backlog from the slot to the committed school file, by a hub that starts and a new school that waits for it. */
import { freePort } from "../../scripts/cluster.ts"
import { atLeast, bench } from "./frame.ts"
import { insertRows, openGround } from "./ground.ts"
import { openNodes, reader, until, untilAll } from "./nodes.ts"

export default bench({
  name: "end-to-end",
  about: "a backlog from the slot to a new school's file, the hub's start included, against native logical replication",
  bars: {
    rows: { what: "1,000,000 rows in transactions of 100", unit: "rows/s", want: atLeast(0.3) },
    hub: { what: "peak memory of the hub meanwhile", unit: "MiB" },
    school: { what: "peak memory of the school meanwhile", unit: "MiB" },
  },
  run: async function* ({ rounds, size, say }) {
    const ground = await openGround()
    const nodes = openNodes(ground)
    try {
      const rows = size(1_000_000, 50_000)
      await ground.backlog((sql) => insertRows(sql, rows, 100))
      for (let round = 0; round < rounds; round++) {
        let began = performance.now()
        const native = await ground.native("backlog")
        await until("native replication", async () => Number((await native.sql`SELECT max(id) AS n FROM attendance`)[0]?.["n"]) === rows)
        const peer = rows / ((performance.now() - began) / 1000)
        await native.drop()

        // It runs already, as the peer's server does.
        const port = await freePort()
        const school = await nodes.school({ url: `http://127.0.0.1:${port}` })
        began = performance.now()
        const hub = await nodes.hub(port)
        await fetch(`${school.url}/api/sync/trigger`, { method: "POST" })
        const file = reader(school.dir)
        await untilAll(file, rows)
        const figure = rows / ((performance.now() - began) / 1000)
        say(`${Math.round(figure)} rows/s, native ${Math.round(peer)}`)
        yield { bar: "rows", figure, peer }
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
