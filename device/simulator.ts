/**
 * An attendance terminal, or a fleet of them, that can be run without owning one. It speaks HTTP as such terminals do
 * (device/README.md).
 *
 *     bun device/simulator.ts --server http://127.0.0.1:4490 --serial SIM0000001 [--character face] [--data FILE]
 *     bun device/simulator.ts --server http://127.0.0.1:4490 --fleet 500 --interval 10 --punches 5
 *
 * A terminal reads commands: `punch 1201`, `users`, `unsent`, `resend`, `quit`.
 */
import { createInterface } from "node:readline"
import { parseArgs } from "node:util"
import { type CharacterName, characters } from "./characters.ts"
import { startFleet } from "./fleet.ts"
import { startTerminal } from "./terminal.ts"

export type { TerminalUser } from "./characters.ts"
export { type Fleet, fleetSerial, startFleet } from "./fleet.ts"
export { startTerminal, type Terminal, type TerminalOptions } from "./terminal.ts"

const USAGE = `simulator --server http://127.0.0.1:4490 --serial SIM0000001 [--data FILE] [--interval SECONDS]
          [--character ${Object.keys(characters).join("|")}] [--capacity USERS] [--lose 0.1] [--drift SECONDS] [--zone-minutes MINUTES]
simulator --server http://127.0.0.1:4490 --fleet 500 [--serial PREFIX] [--interval 10] [--punches PER_SECOND] [--character NAME]
`

const usage = (code: number): never => {
  process.stderr.write(USAGE)
  process.exit(code)
}

const main = async (): Promise<void> => {
  const text = { type: "string" } as const
  const { values } = parseArgs({
    options: {
      server: text,
      serial: text,
      data: text,
      interval: text,
      character: text,
      capacity: text,
      lose: text,
      drift: text,
      "zone-minutes": text,
      fleet: text,
      punches: text,
      help: { type: "boolean", short: "h" },
    },
  })
  if (values.help === true) usage(0)
  const number = (value: string | undefined): number | undefined => (value === undefined ? undefined : Number(value))
  const numbers = [values.interval, values.capacity, values.lose, values.drift, values["zone-minutes"], values.fleet, values.punches].map(number)
  const character = values.character as CharacterName | undefined
  const isBad =
    numbers.some((n) => n !== undefined && !Number.isFinite(n)) ||
    (values.interval !== undefined && !(Number(values.interval) > 0)) ||
    (character !== undefined && !Object.hasOwn(characters, character))
  if (isBad || values.server === undefined) return usage(64)
  const print = (line: string): void => void process.stdout.write(`${line}\n`)

  if (values.fleet !== undefined) {
    const fleet = await startFleet({
      server: values.server,
      count: Number(values.fleet),
      interval: Number(values.interval ?? 10),
      punchesPerSecond: Number(values.punches ?? 0),
      ...(values.serial === undefined ? {} : { prefix: values.serial }),
      ...(character === undefined ? {} : { character }),
    })
    const timer = setInterval(() => print(JSON.stringify({ online: fleet.online(), unsent: fleet.unsent(), ...fleet.stats() })), 10_000)
    const stop = (): void => {
      clearInterval(timer)
      void fleet.stop().then(() => process.exit(0))
    }
    process.on("SIGTERM", stop).on("SIGINT", stop)
    return
  }

  if (values.serial === undefined) return usage(64)
  const [interval, capacity, lose, drift, zoneMinutes] = numbers
  const terminal = startTerminal({
    server: values.server,
    serial: values.serial,
    ...(values.data === undefined ? {} : { data: values.data }),
    ...(interval === undefined ? {} : { interval }),
    ...(character === undefined ? {} : { character }),
    ...(capacity === undefined ? {} : { capacity }),
    ...(lose === undefined ? {} : { lose }),
    ...(drift === undefined ? {} : { drift }),
    ...(zoneMinutes === undefined ? {} : { zoneMinutes }),
    log: print,
  })
  const stop = (): void => void terminal.stop().then(() => process.exit(0))
  process.on("SIGTERM", stop).on("SIGINT", stop)
  createInterface({ input: process.stdin }).on("line", (line) => {
    const [word, pin, ...time] = line.trim().split(/\s+/)
    if (word === "punch" && pin !== undefined) terminal.punch(pin, time.length > 0 ? time.join(" ") : undefined)
    else if (word === "users") print(JSON.stringify(terminal.users()))
    else if (word === "unsent") print(String(terminal.unsent()))
    else if (word === "resend") terminal.resend()
    else if (word === "quit") stop()
  })
}

if (import.meta.main) await main()
