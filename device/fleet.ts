/** Many terminals in one process, for load: they poll and punch, and it is measured how long each exchange takes. */
import { type CharacterName, characters } from "./characters.ts"
import { startTerminal, type Terminal } from "./terminal.ts"

export interface FleetOptions {
  readonly server: string
  readonly count: number
  /** Serial numbers: `FLEET0001` … */
  readonly prefix?: string
  /** Seconds between two polls of one terminal. */
  readonly interval: number
  /** Punches per second of all together; 0: none. */
  readonly punchesPerSecond: number
  /** One generation for all; else they take turns. */
  readonly character?: CharacterName
}

export interface FleetStats {
  readonly exchanges: number
  readonly failed: number
  readonly punches: number
  /** ms */
  readonly p50: number
  readonly p99: number
  readonly max: number
}

export interface Fleet {
  readonly serials: ReadonlyArray<string>
  readonly online: () => number
  readonly unsent: () => number
  /** Since the last time it was asked. */
  readonly stats: () => FleetStats
  readonly stop: () => Promise<void>
}

/** Two punches of one person never have the same second. */
const PEOPLE = 1000

export const fleetSerial = (prefix: string, n: number): string => `${prefix}${String(n).padStart(4, "0")}`

export const startFleet = async (options: FleetOptions): Promise<Fleet> => {
  const names = Object.keys(characters) as ReadonlyArray<CharacterName>
  const serials = Array.from({ length: options.count }, (_, i) => fleetSerial(options.prefix ?? "FLEET", i + 1))
  let times: Array<number> = []
  let failed = 0
  let punches = 0
  let counted = 0
  const terminals: Array<Terminal> = []
  let running = true
  // They do not all poll in the same moment.
  for (const [i, serial] of serials.entries()) {
    terminals.push(
      startTerminal({
        server: options.server,
        serial,
        character: options.character ?? names[i % names.length] ?? "att",
        interval: options.interval,
        onExchange: (ms, answered) => {
          times.push(ms)
          if (!answered) failed++
        },
      }),
    )
    if (i % 10 === 9) await new Promise((resolve) => setTimeout(resolve, (options.interval * 1000 * 10) / options.count))
  }
  const startedAt = Date.now()
  const timer = setInterval(() => {
    const due = Math.floor(((Date.now() - startedAt) / 1000) * options.punchesPerSecond)
    for (; running && punches < due; punches++) terminals[punches % terminals.length]?.punch(String((punches % PEOPLE) + 1))
  }, 50)
  return {
    serials,
    online: () => terminals.filter((terminal) => terminal.online()).length,
    unsent: () => terminals.reduce((n, terminal) => n + terminal.unsent(), 0),
    stats: () => {
      const sorted = times.sort((a, b) => a - b)
      const at = (share: number): number => Math.round((sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0) * 10) / 10
      const stats = { exchanges: sorted.length, failed, punches: punches - counted, p50: at(0.5), p99: at(0.99), max: at(1) }
      times = []
      failed = 0
      counted = punches
      return stats
    },
    stop: async () => {
      running = false
      clearInterval(timer)
      await Promise.all(terminals.map((terminal) => terminal.stop()))
    },
  }
}
