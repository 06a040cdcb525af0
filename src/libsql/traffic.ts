/** Bytes that went over the link, day by day of this machine's clock. */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "./client.ts"

export interface Traffic {
  readonly sent: number
  readonly received: number
}

/** Days that are kept. */
const DAYS = 60

/** Adds to a day (`"2026-03-01"`); answers what it holds then. */
export const addTraffic = (tx: Tx, day: string, more: Traffic): Effect.Effect<Traffic, LibsqlError> =>
  Effect.gen(function* () {
    const [row] = yield* tx.all<Traffic>(
      `INSERT INTO schoolbus_traffic (day, sent, received) VALUES (?, ?, ?) ON CONFLICT (day) DO UPDATE SET
         sent = sent + excluded.sent, received = received + excluded.received RETURNING sent, received`,
      [day, more.sent, more.received],
    )
    yield* tx.run("DELETE FROM schoolbus_traffic WHERE day NOT IN (SELECT day FROM schoolbus_traffic ORDER BY day DESC LIMIT ?)", [DAYS])
    return row ?? more
  })

/** What a day holds so far. */
export const trafficOf = (tx: Tx, day: string): Effect.Effect<Traffic, LibsqlError> =>
  Effect.map(tx.all<Traffic>("SELECT sent, received FROM schoolbus_traffic WHERE day = ?", [day]), ([row]) => row ?? { sent: 0, received: 0 })

/** The day of a moment, by this machine's clock and zone. */
export const dayOf = (ms: number): string => {
  const at = new Date(ms)
  const two = (n: number) => String(n).padStart(2, "0")
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`
}
