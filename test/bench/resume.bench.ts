/**
 * A first copy over a line of 256 kbit/s that breaks every 10 s: what it takes of the line, beside the same copy over a line
 * that lets everything pass. The figure is bytes, which no noise of the machine moves: one round says it.
 */
import { openBadLine } from "../support/bad-line.ts"
import { atMost, bench } from "./frame.ts"
import { insertRows, openGround } from "./ground.ts"
import { openNodes, reader, untilAll } from "./nodes.ts"

const BYTES_PER_SECOND = 256_000 / 8
const CUT_MS = 10_000
const KIB = 1024
const LIMIT_MS = 14 * 60_000

export default bench({
  name: "resume",
  about: "bytes of a first copy over a slow line that breaks every 10 s",
  bars: { bytes: { what: "1,000,000 rows at 256 kbit/s, broken every 10 s, against unbroken", unit: "KiB", want: atMost(1.2) } },
  run: async function* ({ size, say }) {
    const ground = await openGround()
    const nodes = openNodes(ground)
    try {
      const rows = size(1_000_000, 50_000)
      await ground.backlog((sql) => insertRows(sql, rows, 10_000))
      const hub = await nodes.hub()
      const copy = async (isBad: boolean): Promise<number> => {
        const line = await openBadLine(hub.url)
        if (isBad) {
          line.bytesPerSecond = BYTES_PER_SECOND
          line.cutAfterMs = CUT_MS
        }
        const began = performance.now()
        const school = await nodes.school({ ...hub, url: line.url })
        const file = reader(school.dir)
        await untilAll(file, rows, LIMIT_MS)
        const seconds = (performance.now() - began) / 1000
        say(`${Math.round(line.received() / KIB)} KiB over ${line.connections()} connections in ${seconds.toFixed(0)} s`)
        file.close()
        await school.stop()
        line.close()
        return line.received() / KIB
      }
      const peer = await copy(false)
      yield { bar: "bytes", figure: await copy(true), peer }
      await hub.stop()
    } finally {
      nodes.close()
      await ground.close()
    }
  },
})
