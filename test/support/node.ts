/** School nodes as processes, and what programs of a school do beside them. */
import { type ChildProcess, spawn } from "node:child_process"
import { join } from "node:path"
import Database from "libsql"
import { afterEach } from "vitest"
import { runtimeName } from "../../src/runtime.ts"
import type { SchoolSnapshot } from "../../src/status/snapshot.ts"

const root = join(import.meta.dirname, "../..")
const alive = new Set<ChildProcess>()
afterEach(() => {
  for (const child of alive) child.kill("SIGKILL")
})

export interface Node {
  readonly dir: string
  readonly child: ChildProcess
  readonly code: Promise<number | null>
  readonly output: () => string
  readonly status: () => Promise<SchoolSnapshot>
  readonly post: (path: string) => Promise<Record<string, unknown>>
  /** `path` below `/api/`. */
  readonly call: (method: string, path: string, body?: unknown) => Promise<Record<string, unknown>>
}

export const until = async <A>(what: string, look: () => A | undefined | false | Promise<A | undefined | false>): Promise<A> => {
  for (const deadline = Date.now() + 25_000; ; ) {
    const found = await look()
    if (found !== undefined && found !== false) return found
    if (Date.now() > deadline) throw new Error(`waited too long for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}

export const startNode = async (dir: string, key: string, url: string, more: ReadonlyArray<string> = []): Promise<Node> => {
  const args = ["src/main.ts", "school", "--hub", url, "--key", key, "--data-dir", dir, "--port", "0", ...more]
  const child = spawn(process.execPath, [...(runtimeName.startsWith("deno") ? ["run", "-A"] : []), ...args], { cwd: root })
  alive.add(child)
  let output = ""
  child.stdout.on("data", (data) => (output += String(data)))
  child.stderr.on("data", (data) => (output += String(data)))
  const code = new Promise<number | null>((done) =>
    child.on("close", (status) => {
      alive.delete(child)
      done(status)
    }),
  )
  const port = async () => /listens on http:\/\/127\.0\.0\.1:(\d+)/.exec(output)?.[1]
  const ended = code.then((status) => {
    throw new Error(`the node ended with ${status}:\n${output}`)
  })
  ended.catch(() => undefined)
  const call = async (method: string, path: string, body?: unknown) => {
    const at = await Promise.race([until("the node to listen", port), ended])
    const init = body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }
    return (await fetch(`http://127.0.0.1:${at}/api/${path}`, { method, ...init })).json() as Promise<never>
  }
  return { dir, child, code, output: () => output, status: () => call("GET", "sync/status"), post: (path) => call("POST", `sync/${path}`), call }
}

/** What a program of the school does, on a connection of its own. */
export const program = (dir: string, sql: string): ReadonlyArray<unknown> => {
  const db = new Database(join(dir, "school.db"), { timeout: 5000 })
  try {
    const statement = db.prepare(sql)
    return statement.reader ? statement.all() : [statement.run()]
  } finally {
    db.close()
  }
}
export const upToDate = (node: Node): Promise<true> =>
  until("the node to be up to date", async () => ((await node.status()).state === "up_to_date" ? (true as const) : undefined))
export const stop = async (node: Node): Promise<number | null> => {
  // Deno reports a child that `child.kill` has ended as killed, whatever its exit code.
  process.kill(node.child.pid ?? 0, "SIGTERM")
  return node.code
}
