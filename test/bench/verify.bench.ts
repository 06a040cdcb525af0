/**
 * A comparison of a school with the hub when all rows are equal: bytes over the link, and its time against reading all
 * columns of the same rows into a process, from the school's file and from the feed, whichever takes longer.
 */
import { join } from "node:path"
import Database from "libsql"
import { atMost, bench, under } from "./frame.ts"
import { insertRows, openGround } from "./ground.ts"
import { openNodes, reader, untilAll } from "./nodes.ts"

/** Seconds for reading every row of a query as an array of cells. */
const readAll = (path: string, sql: string, rows: number): number => {
  const db = new Database(path, { timeout: 5000, readonly: true })
  const began = performance.now()
  let read = 0
  for (const row of db.prepare(sql).safeIntegers(true).raw(true).iterate()) read += (row as ReadonlyArray<unknown>).length > 0 ? 1 : 0
  const seconds = (performance.now() - began) / 1000
  db.close()
  if (read < rows) throw new Error(`${read} rows of ${rows}`)
  return seconds
}

interface Verified {
  readonly seconds: number
  readonly bytes: number
  readonly equal: boolean
  readonly tables: ReadonlyArray<{ readonly table: string; readonly rows: number }>
}

export default bench({
  name: "verify",
  about: "a school that is equal to head office is compared, against reading all columns of its table into a process",
  bars: {
    bytes: { what: "1,000,000 equal rows, both directions over the link", unit: "KiB", want: under(64) },
    time: { what: "the same, on the slower side", unit: "s", want: atMost(3) },
  },
  run: async function* ({ rounds, size, say }) {
    const ground = await openGround()
    const nodes = openNodes(ground)
    try {
      const rows = size(1_000_000, 200_000)
      await ground.backlog((sql) => insertRows(sql, rows, 10_000))
      const hub = await nodes.hub()
      const school = await nodes.school(hub)
      const file = reader(school.dir)
      await untilAll(file, rows)
      file.close()
      const verify = async (): Promise<Verified> => {
        const response = await fetch(`${school.url}/api/sync/verify`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({ repair: false }),
        })
        if (!response.ok) throw new Error(await response.text())
        return (await response.json()) as Verified
      }
      for (let round = 0; round < rounds; round++) {
        const here = readAll(join(school.dir, "school.db"), "SELECT * FROM attendance", rows)
        const there = readAll(join(hub.dir, "feed.db"), "SELECT * FROM entry", rows)
        const { seconds, bytes, equal, tables } = await verify()
        const compared = tables.find(({ table }) => table === "public.attendance")?.rows
        if (!equal || compared !== rows) throw new Error(`${compared} rows of ${rows} compared, equal: ${equal}`)
        say(`${seconds.toFixed(2)} s, ${(bytes / 1024).toFixed(1)} KiB; reading ${here.toFixed(2)} s in the school, ${there.toFixed(2)} s at the hub`)
        yield { bar: "bytes", figure: bytes / 1024 }
        yield { bar: "time", figure: seconds, peer: Math.max(here, there) }
      }
      await school.stop()
      await hub.stop()
    } finally {
      nodes.close()
      await ground.close()
    }
  },
})
