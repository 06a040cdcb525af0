/** The hub's link over a world's feed and Postgres, as a server on a free port or as a plain function. */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { Compare } from "../../src/down/compare.ts"
import { Feed } from "../../src/down/feed.ts"
import { Calls } from "../../src/http/calls.ts"
import { openLink } from "../../src/http/link.ts"
import type { StreamWatch } from "../../src/http/stream.ts"
import { Libsql } from "../../src/libsql/client.ts"
import { makeApp } from "../../src/http/server.ts"
import { newKey } from "../../src/link/keys.ts"
import { Postgres } from "../../src/postgres/client.ts"
import { serve } from "../../src/runtime.ts"
import { HubFactStore } from "../../src/status/facts.ts"
import { Apply } from "../../src/up/apply.ts"
import type { World } from "./world.ts"

export interface HubLink {
  readonly url: string
  readonly calls: Context.Service.Shape<typeof Calls>
  readonly facts: Context.Service.Shape<typeof HubFactStore>
  /** `null` as key: no Authorization header. */
  readonly call: (key: string | null, path: string, init?: RequestInit) => Promise<Response>
  readonly post: (key: string | null, path: string, body: unknown) => Promise<Response>
  /** A key that the feed already holds. */
  readonly key: (school: string) => Promise<{ readonly id: string; readonly text: string }>
  readonly dataDir: string
  readonly stop: () => Promise<void>
}

export const openHubLink = async (world: World, watch?: StreamWatch): Promise<HubLink> => {
  const dataDir = mkdtempSync(join(tmpdir(), "schoolbus-hub-"))
  const scope = Scope.makeUnsafe()
  const services = Layer.mergeAll(
    Compare.layer.pipe(Layer.provide(Layer.succeed(Libsql, world.feedFile)), Layer.provideMerge(Layer.succeed(Feed, world.feed))),
    Layer.succeed(Apply, world.apply),
    Layer.succeed(Postgres, world.pg),
    Calls.layer.pipe(Layer.provideMerge(HubFactStore.layer)),
  )
  const context = await Effect.runPromise(Scope.provide(Layer.build(services), scope))
  const link = await Effect.runPromise(
    Scope.provide(Effect.provide(openLink({ dataDir, ...(watch === undefined ? {} : { watch }) }), context), scope),
  )
  const app = makeApp({ plugins: [link.routes], auth: { mode: "closed" } })
  const fetch = (request: Request) => link.direct(request) ?? app.handle(request)
  const server = await serve({
    port: 0,
    hostname: "127.0.0.1",
    idleSeconds: 60,
    maxBodyBytes: 16 * 1024 * 1024,
    fetch,
  })
  const call: HubLink["call"] = (key, path, init = {}) =>
    Promise.resolve(
      fetch(
        new Request(`http://localhost/api/sync/${path}`, {
          ...init,
          headers: { ...(key === null ? {} : { authorization: `Bearer ${key}` }), ...(init.headers as Record<string, string>) },
        }),
      ),
    )
  return {
    url: `http://127.0.0.1:${server.port}`,
    calls: Context.get(context, Calls),
    facts: Context.get(context, HubFactStore),
    call,
    post: (key, path, body) => call(key, path, { method: "POST", body: JSON.stringify(body) }),
    key: async (school) => {
      const key = newKey()
      await world.sql`INSERT INTO schoolbus.school_keys (id, school, hash) VALUES (${key.id}, ${school}, ${key.hash})`
      await world.settle()
      return key
    },
    dataDir,
    stop: async () => {
      await server.stop()
      await Effect.runPromise(Scope.close(scope, Exit.void))
      rmSync(dataDir, { recursive: true, force: true })
    },
  }
}
