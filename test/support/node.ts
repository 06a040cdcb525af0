/** School nodes as processes, on the hub of a test. */
import { join } from "node:path"
import Database from "libsql"
import { afterEach } from "vitest"
import type { SchoolSnapshot } from "../../src/status/snapshot.ts"
import type { HubLink } from "./hub-link.ts"
import { begin, type Running } from "./run.ts"
import { until } from "./until.ts"
import type { World } from "./world.ts"

const started = new Set<Running>()
/** The hub of a test outlives its nodes. */
afterEach(async () => {
  for (const node of started) await node.kill()
  started.clear()
})

export interface Node extends Pick<Running, "child" | "output" | "stop" | "kill" | "url"> {
  readonly dir: string
  readonly code: Promise<number | null>
  readonly status: () => Promise<SchoolSnapshot>
  readonly post: (path: string) => Promise<Record<string, unknown>>
  /** `path` below `/api/`. */
  readonly call: (method: string, path: string, body?: unknown) => Promise<Record<string, unknown>>
}

export const startNode = (dir: string, key: string, url: string, more: ReadonlyArray<string> = []): Node => {
  const running = begin(["school", "--hub", url, "--key", key, "--data-dir", dir, "--port", "0", ...more])
  started.add(running)
  const call = async (method: string, path: string, body?: unknown) => {
    const init = body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }
    return (await fetch(`${await running.url()}/api/${path}`, { method, ...init })).json() as Promise<never>
  }
  const code = running.ended.then((ran) => ran.code)
  return { ...running, dir, code, status: () => call("GET", "sync/status"), post: (path) => call("POST", `sync/${path}`), call }
}

export const upToDate = (node: Node): Promise<true> =>
  until("the node to be up to date", async () => ((await node.status()).state === "up_to_date" ? (true as const) : undefined))

let enrolled = 0
/** A school that is new, with the rows that `write` gives it; its node is up to date. */
export const enrol = async (
  { world, hub, folder }: { readonly world: World; readonly hub: HubLink; readonly folder: string },
  write: (id: string) => Promise<void>,
): Promise<{ readonly id: string; readonly dir: string; readonly key: string; readonly node: Node }> => {
  const id = `s${++enrolled}`
  await world.sql`INSERT INTO schoolbus.schools (id, name) VALUES (${id}, ${id})`
  await write(id)
  const { text } = await hub.key(id)
  const dir = join(folder, id)
  const node = startNode(dir, text, hub.url)
  await upToDate(node)
  return { id, dir, key: text, node }
}

/** What a program of the school does on a connection of its own. */
export const script = (dir: string, sql: string): void => {
  const db = new Database(join(dir, "school.db"), { timeout: 5000 })
  db.exec(sql)
  db.close()
}
