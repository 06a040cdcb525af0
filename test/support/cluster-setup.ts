/** One private Postgres for the whole run, started when the first test asks for it and removed at the end. */
import type { TestProject } from "vitest/node"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { type Cluster, startCluster } from "../../scripts/cluster.ts"
import { fastFolder } from "./fast-folder.ts"

declare module "vitest" {
  interface ProvidedContext {
    /** Answers any request with the URL of the cluster's database `postgres`; the first one starts it. */
    readonly clusterDoor: string
  }
}

export default async (project: TestProject): Promise<() => Promise<void>> => {
  let cluster: Promise<Cluster> | undefined
  const door = createServer((_, response) => {
    cluster ??= startCluster({ fsync: false, folder: fastFolder() })
    cluster.then(
      (started) => response.end(started.url()),
      (cause) => response.writeHead(500).end(String(cause)),
    )
  })
  await new Promise<void>((resolve) => door.listen(0, "127.0.0.1", resolve))
  project.provide("clusterDoor", `http://127.0.0.1:${(door.address() as AddressInfo).port}/`)
  return async () => {
    door.close()
    await (await cluster?.catch(() => undefined))?.remove()
  }
}
