/** School nodes as processes, on the hub of a test. */
import { afterEach } from "vitest"
import type { SchoolSnapshot } from "../../src/status/snapshot.ts"
import { begin, type Running } from "./run.ts"
import { until } from "./until.ts"

const started = new Set<Running>()
/** The hub of a test outlives its nodes. */
afterEach(async () => {
  for (const node of started) await node.kill()
  started.clear()
})

export interface Node extends Pick<Running, "child" | "output" | "stop" | "kill"> {
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
