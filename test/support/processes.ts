/**
 * Hub and school nodes as an operator starts them: processes with the documented commands, to be killed and started again
 * on the same folders.
 */
import { mkdirSync } from "node:fs"
import { join } from "node:path"
import Database from "libsql"
import { freePort } from "../../scripts/cluster.ts"
import type { HubSnapshot, SchoolSnapshot, Snapshot } from "../../src/status/snapshot.ts"
import { begin, type Ran, run } from "./run.ts"

/** One command, as a person types it. */
export const command = (...args: ReadonlyArray<string>): Promise<Ran> => run(args)

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

const service = async <S extends Snapshot>(dir: string, args: ReadonlyArray<string>): Promise<Service<S>> => {
  mkdirSync(dir, { recursive: true })
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  const argv = [...args, "--data-dir", dir, "--port", String(port)]
  let running = begin(argv)
  let before = ""
  return {
    dir,
    url,
    pid: () => running.child.pid ?? 0,
    log: () => before + running.output(),
    status: async () => (await fetch(`${url}/api/sync/status`, { signal: AbortSignal.timeout(5_000) })).json() as Promise<S>,
    kill: () => running.kill(),
    stop: () => running.stop(),
    start: () => {
      before += running.output()
      running = begin(argv)
    },
    ended: async () => (await running.ended).code,
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
