/** A backlog of single-school rows through slot, decoder, routing and feed, against a reader that throws it away. */
import { atLeast, bench } from "./frame.ts"
import { insertRows, openGround } from "./ground.ts"

export default bench({
  name: "slot-to-feed",
  about: "a backlog from the slot to the committed feed, against pg_recvlogical with the same options over the same TCP",
  bars: {
    hundreds: { what: "transactions of 100 rows", unit: "rows/s", want: atLeast(0.9) },
    singles: { what: "transactions of 1 row", unit: "rows/s", want: atLeast(0.7) },
    million: { what: "one transaction of 1,000,000 rows", unit: "rows/s", want: atLeast(0.9) },
  },
  run: async function* ({ rounds, size, say }) {
    const ground = await openGround()
    try {
      const loads = [
        ["hundreds", size(1_000_000, 20_000), 100],
        ["singles", size(200_000, 10_000), 1],
        ["million", size(1_000_000, 100_000), Number.POSITIVE_INFINITY],
      ] as const
      for (const [bar, rows, txn] of loads) {
        await ground.backlog((sql) => insertRows(sql, rows, txn))
        for (let round = 0; round < rounds; round++) {
          const figure = rows / (await ground.drain())
          const peer = rows / (await ground.drainPeer())
          say(`${bar}: ${Math.round(figure)} rows/s, pg_recvlogical ${Math.round(peer)}`)
          yield { bar, figure, peer }
        }
      }
    } finally {
      await ground.close()
    }
  },
})
