import { createHash } from "node:crypto"
import { existsSync, readdirSync } from "node:fs"
import { join } from "node:path"
import { zstdCompressSync } from "node:zlib"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { afterAll, beforeAll, expect, it } from "vitest"
import { Feed } from "../../src/down/feed.ts"
import { Calls } from "../../src/http/calls.ts"
import { ofSchool, type PushGates } from "../../src/http/push.ts"
import { openStreams, stream } from "../../src/http/stream.ts"
import { Libsql } from "../../src/libsql/client.ts"
import { splitLines, unpress } from "../../src/link/body.ts"
import { isRows, openLine } from "../../src/link/frame.ts"
import { newKey } from "../../src/link/keys.ts"
import { type Header, PROTOCOL, sliceOf, SYNC_HEADER, type Trailer, type Welcome } from "../../src/link/protocol.ts"
import type { Cursor } from "../../src/model/cursor.ts"
import { type HubLink, openHubLink } from "../support/hub-link.ts"
import { until } from "../support/until.ts"
import { makeWorld, type School, type World } from "../support/world.ts"
import { bytesOf } from "../../src/libsql/store-batch.ts"

const schema = `
  CREATE TABLE pupils (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), school_id text, name text NOT NULL);
  INSERT INTO pupils (school_id, name) SELECT 'a', 'Amina ' || n FROM generate_series(1, 20) n;
  INSERT INTO pupils (school_id, name) SELECT 'b', 'secret of b ' || n FROM generate_series(1, 5) n;`

let world: World
let hub: HubLink
let key: { readonly id: string; readonly text: string }
beforeAll(async () => {
  world = await makeWorld(schema, { tables: { pupils: { audience: { column: "school_id" }, strategy: "school_wins" } } }, ["a", "b", "c"])
  hub = await openHubLink(world)
  key = await hub.key("a")
})
afterAll(async () => {
  await hub?.stop()
  await world?.stop()
})

const none: Cursor = { epoch: "", seq: 0, cut: "0" }
const helloOf = (incarnation: string, more: Record<string, unknown> = {}) => ({
  protocol: PROTOCOL,
  incarnation,
  token: "",
  ...none,
  lastBatch: 0,
  manifest: 0,
  clock: Date.now(),
  version: "0",
  ...more,
})
/** Says hello; what the hub answers. */
const greet = async (incarnation: string, more: Record<string, unknown> = {}, as = key.text): Promise<Welcome> => {
  const response = await hub.post(as, "hello", helloOf(incarnation, more))
  expect(response.status).toBe(200)
  return (await response.json()) as Welcome
}
const codeOf = async (response: Response): Promise<readonly [number, string]> => {
  expect(response.headers.get("content-type")).toContain("application/problem+json")
  return [response.status, ((await response.json()) as { code: string }).code]
}
const query = (values: Record<string, string | number>): string =>
  new URLSearchParams(Object.entries(values).map(([k, v]) => [k, String(v)])).toString()
const pull = (who: { incarnation: string; token: string }, cursor: Cursor = none, more: Record<string, string | number> = {}, init?: RequestInit) =>
  hub.call(key.text, `pull?${query({ ...who, ...cursor, ...more })}`, init)
const stateOf = async (school: School) =>
  (await school.rows<{ incarnation: string }>("SELECT incarnation FROM schoolbus_state"))[0]?.incarnation ?? ""

interface Page {
  readonly header: Header
  readonly rows: number
  readonly trailer: Trailer | null
  readonly text: string
}
const readPage = async (response: Response): Promise<Page> => {
  expect(response.headers.get("content-type")).toBe("application/x-ndjson")
  let header: Header | null = null
  let trailer: Trailer | null = null
  let rows = 0
  let text = ""
  for await (const line of splitLines(unpress(response.body as unknown as AsyncIterable<Uint8Array>), 1e7)) {
    const opened = openLine(line)
    if ("damaged" in opened) throw new Error(opened.damaged)
    text += line
    if (opened.ok[0] === "cut") header = opened.ok[1]
    else if (opened.ok[0] === "page") trailer = opened.ok[1]
    else if (isRows(opened.ok) && opened.ok[3] === "public.pupils") rows += opened.ok[4]
  }
  if (header === null) throw new Error("no header")
  return { header, trailer, rows, text }
}
const cursorOf = ({ header }: Page): Cursor => ({ epoch: header.epoch, seq: header.head, cut: header.headCut })

it("gives one answer to keys that are missing, malformed, unknown, wrong or revoked, on every route", async () => {
  const revoked = await hub.key("a")
  await world.sql`UPDATE schoolbus.school_keys SET revoked_at = now() WHERE id = ${revoked.id}`
  await world.settle()
  const other = newKey()
  const half = other.text.split("_")
  const wrongSecret = newKey(Buffer.from(key.id + "00".repeat(32), "hex"))
  const incarnation = crypto.randomUUID()
  const bodies: Array<string> = []
  for (const text of [null, "x", half.join("-"), other.text, wrongSecret.text, revoked.text]) {
    for (const [method, path] of [
      ["POST", "hello"],
      ["GET", "manifest"],
      ["GET", `pull?${query({ incarnation, token: "", ...none })}`],
      ["GET", "stream"],
      ["POST", "push"],
      ["POST", "heartbeat"],
    ] as const) {
      const response = await hub.call(text, path, { method, ...(method === "POST" ? { body: JSON.stringify(helloOf(incarnation)) } : {}) })
      expect(response.status).toBe(401)
      bodies.push(await response.text())
    }
  }
  expect(new Set(bodies).size).toBe(1)
})

it("refuses a hello of another protocol or form, and repeats nothing of it", async () => {
  expect(await codeOf(await hub.post(key.text, "hello", helloOf(crypto.randomUUID(), { protocol: 99 })))).toEqual([426, "protocol"])
  const bad = await hub.post(key.text, "hello", helloOf("not-a-uuid", { version: "hunter2" }))
  const text = await bad.text()
  expect(bad.status).toBe(422)
  expect(text).not.toContain("hunter2")
  expect((await hub.call(key.text, "hello", { method: "POST", body: "{" })).status).toBe(400)
})

it("tells a copy from the file by its token, also when the two strictly alternate", async () => {
  const incarnation = crypto.randomUUID()
  const first = await greet(incarnation)
  expect(first).toMatchObject({ school: { id: "a" }, lastBatch: 0, paused: false })
  // The answer was lost: the same again.
  expect((await greet(incarnation)).token).toBe(first.token)
  expect((await pull({ incarnation, token: first.token })).status).toBe(200)
  const second = await greet(incarnation, { token: first.token })
  expect((await pull({ incarnation, token: second.token })).status).toBe(200)
  expect(await codeOf(await hub.post(key.text, "hello", helloOf(incarnation, { token: first.token })))).toEqual([409, "cloned"])
  expect(await codeOf(await pull({ incarnation, token: first.token }))).toEqual([409, "cloned"])
  expect((await greet(incarnation, { token: second.token })).token).not.toBe(second.token)
})

it("tells an older copy by its cursor or its batches", async () => {
  const incarnation = crypto.randomUUID()
  const { token } = await greet(incarnation)
  const page = await readPage(await pull({ incarnation, token }))
  const cursor = cursorOf(page)
  expect((await pull({ incarnation, token }, cursor)).status).toBe(204)
  const older = await hub.post(key.text, "hello", helloOf(incarnation, { token, epoch: cursor.epoch, seq: cursor.seq - 1, cut: cursor.cut }))
  expect(await codeOf(older)).toEqual([409, "restored"])
  await world.sql`UPDATE schoolbus.incarnations SET last_batch = 3 WHERE id = ${incarnation}`
  expect(await codeOf(await hub.post(key.text, "hello", helloOf(incarnation, { token, ...cursor, lastBatch: 2 })))).toEqual([409, "restored"])
  expect((await greet(incarnation, { token, ...cursor, lastBatch: 3 })).lastBatch).toBe(3)
})

it("goes on with a school whose token is ahead: the hub was put back", async () => {
  const incarnation = crypto.randomUUID()
  await greet(incarnation)
  const { token } = await greet(incarnation, { token: `41.${"ab".repeat(16)}`, epoch: "old", seq: 900, cut: "f" })
  expect(token).toMatch(/^42\./)
  expect(await codeOf(await pull({ incarnation, token: `77.${"ab".repeat(16)}` }))).toEqual([409, "hello"])
})

it("a key opens no file of another school", async () => {
  const incarnation = crypto.randomUUID()
  const { token } = await greet(incarnation)
  const other = await hub.key("b")
  expect(await codeOf(await hub.post(other.text, "hello", helloOf(incarnation, { token })))).toEqual([409, "wrong_school"])
  for (const path of [
    `pull?${query({ incarnation, token, ...none })}`,
    `manifest?${query({ incarnation, token })}`,
    `stream?${query({ incarnation, token, ...none })}`,
  ]) {
    expect(await codeOf(await hub.call(other.text, path))).toEqual([409, "hello"])
  }
})

it("serves the school's rows as lines, in the coding that was asked for", async () => {
  const incarnation = crypto.randomUUID()
  const { token } = await greet(incarnation)
  for (const encoding of ["zstd", "gzip", null]) {
    const response = await pull({ incarnation, token }, none, {}, encoding === null ? {} : { headers: { "accept-encoding": encoding } })
    expect(response.headers.get("content-encoding")).toBe(encoding)
    if (encoding === "zstd" && typeof (globalThis as { Deno?: unknown }).Deno === "object") continue
    const page = await readPage(response)
    expect(page).toMatchObject({ rows: 20, header: { school: "a", full: true, from: 0 }, trailer: { complete: true } })
    expect(page.text).not.toContain("secret of b")
  }
  const manifest = (await (await hub.call(key.text, `manifest?${query({ incarnation, token })}`)).json()) as {
    tables: ReadonlyArray<{ name: string }>
  }
  expect(manifest.tables.map((table) => table.name)).toContain("public.pupils")
})

it("a pull waits for something new, and remembers what was applied", async () => {
  const incarnation = crypto.randomUUID()
  const { token } = await greet(incarnation)
  const who = { incarnation, token }
  const cursor = cursorOf(await readPage(await pull(who)))
  expect((await pull(who, cursor)).status).toBe(204)
  const waiting = pull(who, cursor, { wait: 20 })
  await world.sql`INSERT INTO pupils (school_id, name) VALUES ('b', 'of no concern'), ('a', 'Zuri')`
  const page = await readPage(await waiting)
  expect(page).toMatchObject({ rows: 1, header: { full: false, from: cursor.seq } })
  expect(await world.run(world.feed.reader.get(incarnation))).toMatchObject({ school: "a", ...cursor, shown: 1 })
})

it("nothing counts as applied of a cut that the hub does not know", async () => {
  const incarnation = crypto.randomUUID()
  const { token } = await greet(incarnation)
  const { epoch } = await world.run(world.feed.head)
  const answer = await pull({ incarnation, token }, { epoch, seq: 5, cut: "feedfeedfeedfeed" })
  expect([answer.status, ((await answer.json()) as { code: string }).code]).toEqual([409, "compare"])
  expect(await world.run(world.feed.reader.get(incarnation))).toMatchObject({ epoch, seq: 0 })
})

it("a school that waits hears at once that it is asked to sync", async () => {
  const other = await hub.key("c")
  const incarnation = crypto.randomUUID()
  const { token } = await greet(incarnation, {}, other.text)
  const call = (cursor: Cursor, wait: number) => hub.call(other.text, `pull?${query({ incarnation, token, ...cursor, wait })}`)
  const cursor = cursorOf(await readPage(await call(none, 0)))
  const waiting = call(cursor, 20)
  let isAnswered = false
  void waiting.then(() => (isAnswered = true))
  while (!isAnswered) {
    await world.run(hub.calls.ask("c"))
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  const response = await waiting
  expect([response.status, response.headers.get(SYNC_HEADER)]).toEqual([204, "1"])
  expect((await world.run(hub.facts.get)).connected).toContain("c")
  await world.run(hub.calls.ask("c"))
  expect((await call(cursor, 20)).headers.get(SYNC_HEADER)).toBe("1")
})

it("a stream brings what comes, and ends when its key is revoked", async () => {
  const other = await hub.key("a")
  const incarnation = crypto.randomUUID()
  const { token } = await greet(incarnation, {}, other.text)
  const response = await fetch(`${hub.url}/api/sync/stream?${query({ incarnation, token, ...none })}`, {
    headers: { authorization: `Bearer ${other.text}`, "accept-encoding": "identity" },
  })
  expect(response.status).toBe(200)
  const kinds: Array<string> = []
  let complete = 0
  for await (const line of splitLines(response.body as unknown as AsyncIterable<Uint8Array>, 1e7)) {
    if (line === "") continue
    const opened = openLine(line)
    if ("damaged" in opened) throw new Error(opened.damaged)
    kinds.push(opened.ok[0])
    if (opened.ok[0] !== "page") continue
    complete++
    if (complete === 1) await world.sql`INSERT INTO pupils (school_id, name) VALUES ('a', 'Later')`
    if (complete === 2) await world.sql`UPDATE schoolbus.school_keys SET revoked_at = now() WHERE id = ${other.id}`
  }
  expect(complete).toBe(2)
  expect(kinds.filter((kind) => kind === "cut").length).toBe(2)
})

it("a stream holds back what there is for its school while that pushes", async () => {
  const other = await hub.key("a")
  const incarnation = crypto.randomUUID()
  const { token } = await greet(incarnation, {}, other.text)
  const scope = Scope.makeUnsafe()
  const services = Context.make(Feed, world.feed).pipe(Context.add(Calls, hub.calls))
  const inHub = <A, E>(effect: Effect.Effect<A, E, Feed | Calls | Scope.Scope>) =>
    Effect.runPromise(effect.pipe(Effect.provide(services), Scope.provide(scope)))
  const gates: Pick<PushGates, "bySchool"> = { bySchool: new Map() }
  const streams = await inHub(openStreams(gates))
  const headers = { authorization: `Bearer ${other.text}`, "accept-encoding": "identity" }
  const request = new Request(`http://localhost/api/sync/stream?${query({ incarnation, token, ...none })}`, { headers })
  const response = await inHub(stream(request, streams))
  let complete = 0
  const reading = (async () => {
    for await (const line of splitLines(response.body as unknown as AsyncIterable<Uint8Array>, 1e7)) if (line.includes('["page"')) complete++
  })()
  await until("the first page", () => complete === 1)
  const end = Promise.withResolvers<void>()
  const push = inHub(ofSchool(gates, "a", () => Effect.promise(() => end.promise)))
  await world.sql`INSERT INTO pupils (school_id, name) VALUES ('a', 'While it pushes')`
  await until("the stream to wait for the push", () => gates.bySchool.get("a")?.waiting.size === 1)
  expect(complete).toBe(1)
  end.resolve()
  await push
  await until("the page", () => complete === 2)
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await reading
})

it("a stream tells a school that it is asked to sync: the one that was opened last, once", async () => {
  const incarnation = crypto.randomUUID()
  const { token } = await greet(incarnation)
  const open = async () => {
    const response = await hub.call(key.text, `stream?${query({ incarnation, token, ...none })}`, { headers: { "accept-encoding": "identity" } })
    const lines = splitLines(response.body as unknown as AsyncIterable<Uint8Array>, 1e7)
    const next = async (): Promise<string> => {
      for (;;) {
        const { value, done } = await lines.next()
        if (done === true) throw new Error("the stream ended")
        if (value === "") continue
        const opened = openLine(value)
        if ("damaged" in opened) throw new Error(opened.damaged)
        return opened.ok[0]
      }
    }
    return {
      next,
      page: async () => {
        while ((await next()) !== "page");
      },
      end: () => lines.return(undefined),
    }
  }
  const older = await open()
  await older.page()
  await world.run(hub.calls.ask("a"))
  expect(await older.next()).toBe("sync")
  const newer = await open()
  await newer.page()
  expect(await world.run(hub.calls.ask("a"))).toBe(true)
  expect(await newer.next()).toBe("sync")
  // What comes next on both is a row, not the same wish again.
  await world.sql`INSERT INTO pupils (school_id, name) VALUES ('a', 'After the wish')`
  expect([await older.next(), await newer.next()]).toEqual(["cut", "cut"])
  await older.end()
  await newer.end()
  expect(hub.calls.take("a")).toBe(false)
})

it("paused means: contact, but no rows either way", async () => {
  const incarnation = crypto.randomUUID()
  const { token } = await greet(incarnation)
  await world.sql`UPDATE schoolbus.schools SET paused = true WHERE id = 'a'`
  await world.settle()
  expect(await codeOf(await pull({ incarnation, token }))).toEqual([403, "paused"])
  expect((await greet(incarnation, { token })).paused).toBe(true)
  await world.sql`UPDATE schoolbus.schools SET paused = false WHERE id = 'a'`
  await world.settle()
})

it("a heartbeat is kept for the status and brings the wish to sync", async () => {
  const incarnation = crypto.randomUUID()
  await greet(incarnation)
  const beat = {
    incarnation,
    pending: 7,
    oldestPendingAt: 5,
    conflicts: 1,
    behind: 0,
    quarantined: 0,
    devices: 2,
    state: "syncing",
    reason: null,
    clock: 1,
  }
  await world.run(hub.calls.ask("a"))
  expect(await (await hub.post(key.text, "heartbeat", beat)).json()).toMatchObject({ sync: true, paused: false })
  expect(await (await hub.post(key.text, "heartbeat", beat)).json()).toMatchObject({ sync: false })
  const reader = await world.run(world.feed.reader.get(incarnation))
  expect(reader?.pending).toBe(7)
  expect(JSON.parse(reader?.status ?? "{}")).toMatchObject({ state: "syncing", devices: 2 })
  expect(await codeOf(await hub.post(key.text, "heartbeat", { ...beat, incarnation: crypto.randomUUID() }))).toEqual([409, "hello"])
})

it("heartbeats that differ in the time alone are each taken with their own; anything else is read and judged anew", async () => {
  const incarnation = crypto.randomUUID()
  await greet(incarnation)
  const rest = { oldestPendingAt: null, conflicts: 0, behind: 0, quarantined: 0, devices: 0, state: "up_to_date" }
  // A text of the school's own that looks like the time stands before and after it.
  const textOf = (clock: string, pending = 0) =>
    JSON.stringify({ incarnation, pending, ...rest, clock: 0, reason: '"clock":7,' }).replace('"clock":0', `"clock":${clock}`)
  const say = async (text: string) => {
    const response = await hub.call(key.text, "heartbeat", { method: "POST", body: text })
    const reader = await world.run(world.feed.reader.get(incarnation))
    return [response.status, reader?.pending, JSON.parse(reader?.status ?? "{}").clock]
  }
  expect(await say(textOf("1000"))).toEqual([200, 0, 1000])
  expect(await say(textOf("2000"))).toEqual([200, 0, 2000])
  expect(await say(textOf("3000"))).toEqual([200, 0, 3000])
  expect(await say(textOf("4000", 5))).toEqual([200, 5, 4000])
  expect(await say(textOf("-5000.5", 5))).toEqual([200, 5, -5000.5])
  expect(await say(textOf("6000", 5))).toEqual([200, 5, 6000])
  for (const damaged of ["", "70x0", '7000,"pending":"no"', "7000}", "null", '"7000"', "[7000]", "0x7000"])
    expect([400, 422]).toContain((await say(textOf(damaged, 5)))[0])
  // The last of two holds, as everywhere in JSON.
  expect(await say(textOf('8000,"clock":9000', 5))).toEqual([200, 5, 9000])
  expect(await say(textOf('8001,"clock":9000', 5))).toEqual([200, 5, 9000])
  expect(await say(textOf("9500", 5))).toEqual([200, 5, 9500])
  // Through the router, under another spelling of the path.
  expect(await codeOf(await hub.call(key.text, "heartbeat?again", { method: "POST", body: textOf("nothing") }))).toEqual([400, "invalid"])
  const other = await hub.key("b")
  expect(await codeOf(await hub.call(other.text, "heartbeat", { method: "POST", body: textOf("9600", 5) }))).toEqual([409, "hello"])
  expect(await say(textOf("9700", 5))).toEqual([200, 5, 9700])
})

interface Sent {
  readonly number: number
  readonly hash: string
  readonly bytes: Uint8Array
}

/** A school's file with one frozen batch per write, and its way to push them. */
const outbox = async (writes: ReadonlyArray<string>) => {
  const school = await world.school("a")
  for (const sql of writes) {
    await school.write(sql)
    await school.freeze()
  }
  const incarnation = await stateOf(school)
  const { token } = await greet(incarnation)
  const kept = await school.rows<Sent>("SELECT number, hash, bytes FROM schoolbus_batch ORDER BY number")
  const batches = kept.map((batch) => ({ ...batch, bytes: bytesOf(batch.bytes) }))
  const part = (batch: Sent, n: number, parts: number, more: Record<string, string | number> = {}, body?: Uint8Array) =>
    hub.call(
      key.text,
      `push?${query({ incarnation, token, batch: batch.number, hash: batch.hash, size: batch.bytes.length, part: n, parts, ...more })}`,
      {
        method: "POST",
        body: (body ?? (n === 0 ? new Uint8Array() : zstdCompressSync(batch.bytes.subarray(...sliceOf(batch.bytes.length, n, parts))))) as BodyInit,
      },
    )
  return { incarnation, token, batches: batches as ReadonlyArray<Sent>, part, get: (n: number) => batches[n - 1] as Sent }
}
const pupil = (id: number, name: string) =>
  `INSERT INTO pupils (id, school_id, name) VALUES ('00000000-0000-0000-0000-${String(id).padStart(12, "0")}', 'a', '${name}')`
const known = async (name: string) => (await world.sql`SELECT count(*)::int AS n FROM pupils WHERE name = ${name}`)[0]?.["n"]
const uploads = () =>
  existsSync(join(hub.dataDir, "uploads"))
    ? readdirSync(join(hub.dataDir, "uploads"), { recursive: true, withFileTypes: true }).filter((f) => f.isFile()).length
    : 0

it("a batch is applied once, however often it comes, and only after the one before", async () => {
  const { part, get, incarnation } = await outbox([pupil(1, "one"), pupil(2, "two")])
  const gap = await part(get(2), 1, 1)
  expect(gap.status).toBe(409)
  expect(await gap.json()).toMatchObject({ code: "batch_gap", expected: 1 })
  const answers = [await part(get(1), 1, 1), await part(get(1), 1, 1)]
  for (const answer of answers) expect(await answer.json()).toMatchObject({ batch: 1, hash: get(1).hash, changes: 1, exceptions: [] })
  expect((await part(get(2), 1, 1)).status).toBe(200)
  expect([await known("one"), await known("two")]).toEqual([1, 1])
  expect(await world.run(world.feed.reader.get(incarnation))).toMatchObject({ batch: 2 })
})

it("what keeps Postgres from taking any batch is known at the hub until it takes one again", async () => {
  const { part, get } = await outbox([pupil(70, "later")])
  const refused = async () => (await world.run(hub.facts.get)).refused?.text ?? ""
  // As a full disk answers, which a test cannot make.
  await world.sql.unsafe(`CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'could not extend file "base/1/2": No space left on device' USING ERRCODE = '53100'; END $$;
    CREATE TRIGGER full_disk BEFORE INSERT ON pupils FOR EACH ROW EXECUTE FUNCTION full_disk()`)
  const answer = await part(get(1), 1, 1)
  expect([answer.status, await refused()]).toEqual([
    503,
    `Postgres takes nothing that schools send: could not extend file "base/1/2": No space left on device (53100); free space on Postgres' disk`,
  ])
  await world.sql.unsafe("DROP TRIGGER full_disk ON pupils; DROP FUNCTION full_disk")
  expect([(await part(get(1), 1, 1)).status, await refused(), await known("later")]).toEqual([200, "", 1])
})

it("a hub that has not read its tables from Postgres yet takes no batch, tells no manifest and serves no page", async () => {
  const { part, get, incarnation, token } = await outbox([pupil(60, "early")])
  const scope = Scope.makeUnsafe()
  const layer = Feed.layer.pipe(Layer.provide(Layer.succeed(Libsql, world.feedFile)))
  const feed = Context.get(await Effect.runPromise(Scope.provide(Layer.build(layer), scope)), Feed)
  const starting = await openHubLink({ ...world, feed })
  try {
    const batch = get(1)
    const where = query({ incarnation, token, batch: 1, hash: batch.hash, size: batch.bytes.length, part: 1, parts: 1 })
    const sent = await starting.call(key.text, `push?${where}`, { method: "POST", body: zstdCompressSync(batch.bytes) as BodyInit })
    expect(await codeOf(sent)).toEqual([503, "loading"])
    // A page without tables would count as complete, and the school would pass over every row.
    const at = await world.run(world.feed.head)
    for (const path of ["manifest", "pull", "stream"])
      expect(await codeOf(await starting.call(key.text, `${path}?${query({ incarnation, token, ...at })}`))).toEqual([503, "loading"])
    expect(await codeOf(await starting.post(key.text, "hello", helloOf(incarnation, { token })))).toEqual([503, "loading"])
  } finally {
    await starting.stop()
    await Effect.runPromise(Scope.close(scope, Exit.void))
  }
  expect(await (await part(get(1), 1, 1)).json()).toMatchObject({ exceptions: [] })
  expect(await known("early")).toBe(1)
})

it("parts come in any order, twice, and over restarts; the batch is applied when the last is there", async () => {
  const { part, get } = await outbox([
    Array.from({ length: 50 }, (_, i) => pupil(100 + i, `part ${i}`))
      .join(";")
      .replaceAll(/;INSERT INTO pupils \(id, school_id, name\) VALUES/g, ","),
  ])
  const batch = get(1)
  expect(await (await part(batch, 0, 4)).json()).toEqual({ missing: [1, 2, 3, 4] })
  expect(await (await part(batch, 3, 4)).json()).toEqual({ missing: [1, 2, 4] })
  expect(await (await part(batch, 3, 4)).json()).toEqual({ missing: [1, 2, 4] })
  const again = await openHubLink(world)
  await again.stop()
  await part(batch, 4, 4)
  await part(batch, 1, 4)
  expect(uploads()).toBe(3)
  expect(await known("part 49")).toBe(0)
  expect(await (await part(batch, 2, 4)).json()).toMatchObject({ batch: 1, changes: 50, exceptions: [] })
  expect(await known("part 49")).toBe(1)
  expect(uploads()).toBe(0)
})

it("what is not the announced batch is refused, forgotten and written nowhere", async () => {
  const { part, get, incarnation, token } = await outbox([pupil(3, "three")])
  const batch = get(1)
  const forged = Buffer.from(batch.bytes)
  forged[forged.length - 5] = 65
  const bodies: ReadonlyArray<readonly [Uint8Array, Record<string, string | number>]> = [
    [zstdCompressSync(forged), {}],
    [zstdCompressSync(batch.bytes.subarray(1)), {}],
    [zstdCompressSync(batch.bytes).subarray(0, 20), {}],
    [zstdCompressSync(Buffer.alloc(50_000_000)), {}],
    [Buffer.from("<html>login</html>"), {}],
  ]
  for (const [body, more] of bodies) expect(await codeOf(await part(batch, 1, 1, more, body))).toEqual([422, "not_a_batch"])
  for (const more of [{ hash: "x" }, { size: 0 }, { size: 1e9 }, { part: 2 }, { batch: 0 }, { parts: 1e6 }])
    expect(await codeOf(await part(batch, 1, 1, more))).toEqual([422, "invalid"])
  const text = new TextEncoder().encode("not a batch at all")
  const hash = createHash("sha256").update(text).digest("hex")
  expect(await codeOf(await part({ number: 1, hash, bytes: text }, 1, 1))).toEqual([422, "not_a_batch"])
  await part(batch, 1, 2)
  expect(await codeOf(await part(batch, 2, 2, {}, zstdCompressSync(forged.subarray(...sliceOf(forged.length, 2, 2)))))).toEqual([422, "not_a_batch"])
  expect(uploads()).toBe(0)
  expect(
    await codeOf(
      await hub.call(key.text, `push?${query({ incarnation: crypto.randomUUID(), token, batch: 1, hash: batch.hash, size: 5, part: 1, parts: 1 })}`, {
        method: "POST",
        body: "x",
      }),
    ),
  ).toEqual([409, "hello"])
  expect(await known("three")).toBe(0)
  expect(Number((await world.sql`SELECT last_batch FROM schoolbus.incarnations WHERE id = ${incarnation}`)[0]?.["last_batch"])).toBe(0)
  expect((await part(batch, 1, 1)).status).toBe(200)
})

it("other bytes under a used number are noticed", async () => {
  const { part, get } = await outbox([pupil(4, "four")])
  expect((await part(get(1), 1, 1)).status).toBe(200)
  const text = new TextEncoder().encode(new TextDecoder().decode(get(1).bytes).replace("four", "five"))
  const hash = createHash("sha256").update(text).digest("hex")
  expect(await codeOf(await part({ number: 1, hash, bytes: text }, 1, 1))).toEqual([409, "batch_differs"])
})
