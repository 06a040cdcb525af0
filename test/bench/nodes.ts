/** Hub and school as processes of their own, from the documented commands, on a ground. */
import { existsSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { execFileSync } from "node:child_process"
import Database from "libsql"
import { freePort } from "../../scripts/cluster.ts"
import { service, watch } from "../../scripts/demo/process.ts"
import { CONFIG, type Ground } from "./ground.ts"

export interface Node {
  readonly dir: string
  readonly url: string
  readonly pid: number
  /** Most memory that the process has had so far, MiB (without /proc: has now). */
  readonly peakMiB: () => number
  /** How late its event loop was since it was ready. */
  readonly late: () => string
  readonly stop: () => Promise<void>
}

export interface Nodes {
  /** A hub on the rewound slot and feed. */
  readonly hub: (port?: number) => Promise<Node>
  /** A school that is new. */
  readonly school: (hub: Pick<Node, "url">, more?: ReadonlyArray<string>) => Promise<Node>
  readonly close: () => void
}

const START_MS = 60_000

const peakMiB = (pid: string): number => {
  const status = `/proc/${pid}/status`
  const kib = existsSync(status)
    ? /^VmHWM:\s+(\d+)/m.exec(readFileSync(status, "utf8"))?.[1]
    : execFileSync("ps", ["-o", "rss=", "-p", pid], { encoding: "utf8" }).trim()
  return Number(kib) / 1024
}

/** `isWatched` false: nothing but the program runs in the nodes; `late` knows nothing of them. */
export const openNodes = (ground: Ground, { isWatched = true }: { readonly isWatched?: boolean } = {}): Nodes => {
  const folder = mkdtempSync(join(ground.dir, "nodes-"))
  const watchdog = watch(folder)
  const config = join(folder, "schoolbus.config.ts")
  writeFileSync(config, `export default ${JSON.stringify(CONFIG)}\n`)
  let count = 0
  const start = async (kind: "hub" | "school", dir: string, args: ReadonlyArray<string>, wanted?: number): Promise<Node> => {
    const name = `${kind}${++count}`
    const port = wanted ?? (await freePort())
    const process = service(folder, name, isWatched ? "test/bench/watched.ts" : "src/main.ts", [
      kind,
      ...args,
      "--data-dir",
      dir,
      "--port",
      String(port),
    ])
    process.start()
    const url = `http://127.0.0.1:${port}`
    for (const deadline = Date.now() + START_MS; ; await new Promise((resolve) => setTimeout(resolve, 10))) {
      const isUp = await fetch(`${url}/${kind === "hub" ? "ready" : "health"}`).then(
        (response) => response.ok,
        () => false,
      )
      if (isUp) break
      if (!process.isRunning() || Date.now() > deadline) throw new Error(`${name} did not start:\n${process.log()}`)
    }
    const pid = readFileSync(join(folder, `${name}.pid`), "utf8")
    // What starting takes is nobody's wait.
    if (isWatched) globalThis.process.kill(Number(pid), "SIGUSR2")
    return {
      dir,
      url,
      pid: Number(pid),
      peakMiB: () => peakMiB(pid),
      late: () => {
        const { p999, most } = JSON.parse(readFileSync(join(folder, `${pid}.loop.json`), "utf8")) as { p999: number; most: number }
        return `event loop of ${name} late by ${p999.toFixed(0)} ms (p99.9), ${most.toFixed(0)} ms at most`
      },
      stop: async () => void (await process.stop()),
    }
  }
  return {
    hub: async (port) => {
      const dir = mkdtempSync(join(folder, "hub-"))
      await ground.rewind(dir)
      return start("hub", dir, ["--config", config, "--database-url", ground.url], port)
    },
    school: (hub, more = []) => start("school", mkdtempSync(join(folder, "school-")), ["--hub", hub.url, "--key", ground.key, ...more]),
    close: () => void watchdog.stdin?.end(),
  }
}

/** Waits for a condition; the wait is part of what is measured, so it looks often. */
export const until = async (what: string, condition: () => boolean | Promise<boolean>, limitMs = 300_000, everyMs = 20): Promise<void> => {
  for (const deadline = Date.now() + limitMs; !(await condition()); await new Promise((resolve) => setTimeout(resolve, everyMs)))
    if (Date.now() > deadline) throw new Error(`waited too long for ${what}`)
}

/** One number out of a file, as another program reads it; undefined while the file or the table is not there. */
export const reader = (dir: string, name = "school.db"): { readonly one: (sql: string) => number | undefined; readonly close: () => void } => {
  let db: Database.Database | undefined
  const prepared = new Map<string, Database.Statement>()
  return {
    one: (sql) => {
      const file = join(dir, name)
      if (db === undefined && !existsSync(file)) return undefined
      db ??= new Database(file, { timeout: 5000 })
      try {
        const statement = prepared.get(sql) ?? db.prepare(sql).raw(true)
        prepared.set(sql, statement)
        const row = statement.get() as ReadonlyArray<number | null> | undefined
        return row?.[0] ?? undefined
      } catch {
        return undefined
      }
    },
    close: () => db?.close(),
  }
}

/**
 * Waits until a school has rows 1 to `rows` of the ground's table. They come in order, so the last one is looked for: to count them all
 * again and again takes a good part of a core from what is measured.
 */
export const untilAll = async (file: ReturnType<typeof reader>, rows: number, limitMs = 600_000, everyMs = 50): Promise<void> => {
  await until("the last row in the school", () => file.one("SELECT max(id) FROM attendance") === rows, limitMs, everyMs)
  const arrived = file.one("SELECT count(*) FROM attendance")
  if (arrived !== rows) throw new Error(`${arrived} rows of ${rows} arrived with the last one`)
}
