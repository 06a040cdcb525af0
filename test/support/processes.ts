/**
 * Hub and school nodes as an operator starts them: processes with the documented commands, to be killed and started again
 * on the same folders.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process"
import { mkdirSync } from "node:fs"
import { join } from "node:path"
import Database from "libsql"
import { freePort } from "../../scripts/cluster.ts"
import { runtimeName } from "../../src/runtime.ts"
import type { HubSnapshot, SchoolSnapshot, Snapshot } from "../../src/status/snapshot.ts"

const root = join(import.meta.dirname, "../..")
const runtimeArgs = runtimeName.startsWith("deno") ? ["run", "-A"] : []
const LIMIT_MS = 40_000

export const until = async <A>(
  what: string | (() => string),
  look: () => A | undefined | null | false | Promise<A | undefined | null | false>,
  limitMs = LIMIT_MS,
): Promise<A> => {
  let last: unknown
  for (const deadline = Date.now() + limitMs; ; ) {
    const found = await Promise.resolve(look()).catch((cause: unknown) => {
      last = cause
      return undefined
    })
    if (found !== undefined && found !== null && found !== false) return found
    if (Date.now() > deadline)
      throw new Error(`waited too long for ${typeof what === "string" ? what : what()}${last === undefined ? "" : `: ${String(last)}`}`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}

/** One command; its exit code and what it said. Never throws. */
export const command = (...args: ReadonlyArray<string>): Promise<{ readonly code: number; readonly out: string; readonly err: string }> =>
  new Promise((done) =>
    execFile(process.execPath, [...runtimeArgs, "src/main.ts", ...args], { cwd: root, timeout: 120_000 }, (error, out, err) =>
      done({ code: error === null ? 0 : typeof error.code === "number" ? error.code : 1, out, err }),
    ),
  )

export interface Service<S extends Snapshot> {
  readonly dir: string
  readonly url: string
  readonly pid: () => number
  readonly log: () => string
  readonly status: () => Promise<S>
  /** Ends it at once, as a power cut does to a process. */
  readonly kill: () => Promise<void>
  /** SIGTERM; the exit code. */
  readonly stop: () => Promise<number | null>
  /** Again on the same folder and port. */
  readonly start: () => void
  readonly ended: () => Promise<number | null>
}

const alive = new Set<ChildProcess>()
/** For afterAll: nothing outlives its file. */
export const endAll = (): void => {
  for (const child of alive) child.kill("SIGKILL")
}

const service = async <S extends Snapshot>(dir: string, args: ReadonlyArray<string>): Promise<Service<S>> => {
  mkdirSync(dir, { recursive: true })
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  let child: ChildProcess
  let log = ""
  let code: Promise<number | null>
  const start = (): void => {
    const started = spawn(process.execPath, [...runtimeArgs, "src/main.ts", ...args, "--data-dir", dir, "--port", String(port)], { cwd: root })
    child = started
    alive.add(started)
    for (const stream of [started.stdout, started.stderr]) {
      stream.on("data", (data) => {
        log += String(data)
      })
    }
    code = new Promise((done) =>
      started.on("close", (status) => {
        alive.delete(started)
        done(status)
      }),
    )
  }
  start()
  return {
    dir,
    url,
    pid: () => child.pid ?? 0,
    log: () => log,
    status: async () => (await fetch(`${url}/api/sync/status`, { signal: AbortSignal.timeout(5_000) })).json() as Promise<S>,
    kill: async () => {
      child.kill("SIGKILL")
      await code
    },
    stop: async () => {
      process.kill(child.pid ?? 0, "SIGTERM")
      return code
    },
    start,
    ended: () => code,
  }
}

export const startHub = (dir: string, config: string, databaseUrl: string): Promise<Service<HubSnapshot>> =>
  service(dir, ["hub", "--config", config, "--database-url", databaseUrl])

export const startSchool = (dir: string, hub: string, key: string, more: ReadonlyArray<string> = []): Promise<Service<SchoolSnapshot>> =>
  service(dir, ["school", "--hub", hub, "--key", key, ...more])

/** SQL of a school program, on a connection of its own. Rows as objects. */
export const program = (dir: string, sql: string, args: ReadonlyArray<unknown> = []): ReadonlyArray<Record<string, unknown>> => {
  const db = new Database(join(dir, "school.db"), { timeout: 5000 })
  try {
    const statement = db.prepare(sql)
    if (statement.reader) return statement.all(...(args as Array<never>)) as ReadonlyArray<Record<string, unknown>>
    statement.run(...(args as Array<never>))
    return []
  } finally {
    db.close()
  }
}
