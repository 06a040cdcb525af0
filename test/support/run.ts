/** The program as a process of the runtime that runs the tests: what it says, and how it ends. Nothing outlives its test file. */
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process"
import { join } from "node:path"
import { afterAll } from "vitest"
import { runtimeName } from "../../src/runtime.ts"
import { until } from "./until.ts"

const root = join(import.meta.dirname, "../..")
const SAYS_MS = 25_000

export interface Ran {
  readonly code: number | null
  readonly out: string
  readonly err: string
}

export interface Running {
  readonly child: ChildProcessWithoutNullStreams
  readonly ended: Promise<Ran>
  /** Both outputs so far, in the order in which they came. */
  readonly output: () => string
  /** When the output so far matches; fails when the process ends before. */
  readonly says: (what: RegExp | string) => Promise<RegExpExecArray>
  /** Where it listens on this machine. */
  readonly url: () => Promise<string>
  /** At once, as a power cut ends it. */
  readonly kill: () => Promise<void>
  /** SIGTERM; the exit code. */
  readonly stop: () => Promise<number | null>
}

const alive = new Set<Running>()
/** For tests that end what they started, whether they passed or not. */
export const killAll = async (): Promise<void> => {
  for (const one of [...alive]) await one.kill()
}
afterAll(killAll)

const escaped = (text: string): RegExp => new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"))

/** `env`: all that stands in its environment, beside PATH; absent: as ours. */
export const begin = (args: ReadonlyArray<string>, env?: Readonly<Record<string, string>>, script = "src/main.ts"): Running => {
  const child = spawn(process.execPath, [...(runtimeName.startsWith("deno") ? ["run", "-A"] : []), script, ...args], {
    cwd: root,
    env: env === undefined ? process.env : { PATH: process.env["PATH"], ...env },
  })
  let out = ""
  let err = ""
  let output = ""
  let isEnded = false
  child.stdout.on("data", (data) => {
    out += String(data)
    output += String(data)
  })
  child.stderr.on("data", (data) => {
    err += String(data)
    output += String(data)
  })
  const ended = new Promise<Ran>((done) =>
    child.on("close", (code) => {
      isEnded = true
      alive.delete(running)
      done({ code, out, err })
    }),
  )
  const says = async (what: RegExp | string): Promise<RegExpExecArray> => {
    const pattern = typeof what === "string" ? escaped(what) : what
    const match = await until(
      () => `${what} in:\n${output}`,
      () => pattern.exec(output) ?? (isEnded ? "ended" : null),
      SAYS_MS,
    )
    if (match === "ended") throw new Error(`it ended with ${(await ended).code} before it said ${what}:\n${output}`)
    return match
  }
  const running: Running = {
    child,
    ended,
    output: () => output,
    says,
    url: async () => (await says(/listens on (http:\/\/127\.0\.0\.1:\d+)/))[1] ?? "",
    kill: async () => {
      child.kill("SIGKILL")
      await ended
    },
    stop: async () => {
      // Deno reports a child that `child.kill` has ended as killed, whatever its exit code.
      process.kill(child.pid ?? 0, "SIGTERM")
      return (await ended).code
    },
  }
  alive.add(running)
  return running
}

/** One command: its exit code and what it said. */
export const run = (args: ReadonlyArray<string>, env?: Readonly<Record<string, string>>): Promise<Ran> => begin(args, env).ended
