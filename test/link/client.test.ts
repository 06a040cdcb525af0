import { createHash, randomBytes } from "node:crypto"
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import * as Effect from "effect/Effect"
import { afterEach, expect, it } from "vitest"
import { down } from "../../src/link/answer.ts"
import { inflate, pressLines, readAll } from "../../src/link/body.ts"
import { type Identity, type Link, makeLink } from "../../src/link/client.ts"
import { sealLine } from "../../src/link/frame.ts"
import { type Header, sliceOf, SYNC_HEADER } from "../../src/link/protocol.ts"
import { noCursor } from "../../src/model/cursor.ts"

const ended: Array<() => void> = []
afterEach(() => {
  for (const end of ended.splice(0)) end()
})

/** A peer that answers as the test says, hub or not. */
const peer = async (answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<Link> => {
  const server = createServer(answer)
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  ended.push(() => {
    server.closeAllConnections()
    server.close()
  })
  return makeLink({ hub: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, key: "k" })
}

const who: Identity = { incarnation: crypto.randomUUID(), token: "1.aa" }
const hello = { protocol: 1, incarnation: who.incarnation, token: "", ...noCursor, lastBatch: 0, manifest: 0, clock: 0, version: "0" }
const header: Header = { school: "a", epoch: "e", from: 0, full: true, resumed: false, manifest: 1, head: 9, headCut: "c", left: 3 } as Header
const rows = (n: number) =>
  sealLine(JSON.stringify(["rows", 5, n, "public.pupils", ["id", "name"], [[[`p${n}`], [`p${n}`, randomBytes(400).toString("hex")]]]]))
const page = [sealLine(JSON.stringify(["cut", header])), rows(1), rows(2), rows(3), sealLine(JSON.stringify(["page", { rows: 3, complete: true }]))]
const NDJSON = { "content-type": "application/x-ndjson" }

const outcome = async (effect: Effect.Effect<unknown, { readonly _tag: string; readonly message: string }>) => {
  const result = await Effect.runPromise(Effect.result(effect))
  return result._tag === "Failure" ? `${result.failure._tag}: ${result.failure.message}` : result.success
}
const pull = (link: Link) => link.pull(who, noCursor, null, 0)

it.each(["", "/", "/sync", "/sync/"])("a hub below the path %j of an address is asked there", async (path) => {
  const asked: Array<string> = []
  const server = createServer((request, response) => {
    asked.push(String(request.url).split("?")[0] as string)
    response.writeHead(204, { [SYNC_HEADER]: "0" }).end()
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  ended.push(() => server.close())
  const hub = `http://127.0.0.1:${(server.address() as AddressInfo).port}${path}`
  expect(await outcome(pull(makeLink({ hub, key: "k" })))).toBe("nothing")
  expect(asked).toEqual([`${path.replace(/\/$/, "")}/api/sync/pull`])
})

it("what is no hub is the line being down, never data and never a verdict", async () => {
  const login = "<html>please log in</html>"
  for (const [status, headers, body] of [
    [200, { "content-type": "text/html" }, login],
    [302, { location: "http://login.example/" }, ""],
    [511, { "content-type": "text/html" }, login],
    [401, { "content-type": "text/html" }, login],
    [204, {}, ""],
    [200, {}, ""],
    [200, { "content-type": "application/json" }, login],
    [200, { "content-type": "application/json" }, "{}"],
    [200, { "content-type": "application/json" }, "null"],
    [200, NDJSON, login],
    [200, NDJSON, ""],
    [403, { "content-type": "application/problem+json" }, JSON.stringify({ type: "about:blank", code: "unauthorized" })],
    [403, { "content-type": "application/problem+json" }, "{"],
  ] as ReadonlyArray<readonly [number, Record<string, string>, string]>) {
    const link = await peer((_, response) => response.writeHead(status, headers).end(body))
    const bytes = new TextEncoder().encode("batch")
    const calls: ReadonlyArray<Effect.Effect<unknown, { _tag: string; message: string }>> = [
      pull(link),
      link.manifest(who),
      link.hello(hello),
      link.push(who, { number: 1, hash: "00", bytes }),
    ]
    for (const call of calls) expect(await outcome(call)).toMatch(/^LinkDown: .*$/)
  }
})

it("a peer that is not there is the line being down, told with its address and what to look at", async () => {
  expect(await outcome(pull(makeLink({ hub: "http://u:secret@127.0.0.1:1/", key: "k" })))).toMatch(
    /^LinkDown: the hub at http:\/\/127\.0\.0\.1:1 cannot be reached \(.*\); it is tried again by itself\. Check whether this computer is online and the address in --hub/,
  )
})

it("an answer that breaks off is told in words for a person", async () => {
  const link = await peer((_, response) => {
    response.writeHead(200, NDJSON)
    response.write("[", () => response.destroy())
  })
  expect(await outcome(pull(link))).toMatch(/^LinkDown: the hub's answer did not come whole \(.+\); it is tried again by itself$/)
})

it("a request that fails is told without what it asks, which carries the file's token", () => {
  const asked = "http://hub.example/api/sync/push?incarnation=b947&token=9.506545a52e86&batch=39"
  const { message } = down(new TypeError(`error sending request from 10.0.0.2:57984 for ${asked} (10.0.0.1:80): connection closed`))
  expect(message).toContain("(error sending request from 10.0.0.2:57984 for http://hub.example/api/sync/push (10.0.0.1:80): connection closed)")
})

it("tells a refusal of the hub from its being busy", async () => {
  const answer = (status: number, code: string) => (_: IncomingMessage, response: ServerResponse) =>
    void response
      .writeHead(status, { "content-type": "application/problem+json", "retry-after": "7" })
      .end(JSON.stringify({ type: `urn:schoolbus:problem:${code}`, code, title: "Title", detail: "what to do", expected: 4 }))
  const refused = await Effect.runPromise(Effect.flip(pull(await peer(answer(409, "batch_gap")))))
  expect(refused).toMatchObject({ _tag: "LinkRefused", status: 409, code: "batch_gap", expected: 4, message: "Title: what to do" })
  const busy = await Effect.runPromise(Effect.flip(pull(await peer(answer(503, "unavailable")))))
  expect(busy).toMatchObject({ _tag: "LinkDown", retryAfterMs: 7000 })
})

it("hears that nothing is new, or that a sync is wanted", async () => {
  for (const [value, expected] of [
    ["0", "nothing"],
    ["1", "asked"],
  ] as const) {
    expect(await outcome(pull(await peer((_, response) => response.writeHead(204, { [SYNC_HEADER]: value }).end())))).toBe(expected)
  }
})

it("asks with its cursor and its key, and reads a page in any coding", async () => {
  const asked: Array<string> = []
  const link = await peer(async (request, response) => {
    asked.push(`${request.headers.authorization} ${new URL(request.url ?? "", "http://x.y").searchParams.get("staged")}`)
    const encoding = String(request.headers["accept-encoding"]).includes("zstd") ? "zstd" : "gzip"
    const body = await readAll(pressLines(page.map((line) => `${line}\n`)[Symbol.iterator](), encoding), { maxBytes: 1e6, idleMs: 1000 })
    response.writeHead(200, { ...NDJSON, "content-encoding": encoding }).end(body)
  })
  const got = await Effect.runPromise(link.pull(who, noCursor, { head: 9, headCut: "c", after: { 5: 1 } }, 0))
  expect(got).toMatchObject({ header, trailer: { complete: true } })
  expect(typeof got === "string" ? 0 : got.lines.length).toBe(3)
  expect(asked).toEqual([`Bearer k {"head":9,"headCut":"c","after":{"5":1}}`])
})

it("keeps what arrived whole of a page that breaks off", async () => {
  for (const encoding of ["gzip", "identity"] as const) {
    const link = await peer(async (_, response) => {
      response.writeHead(200, { ...NDJSON, ...(encoding === "gzip" ? { "content-encoding": "gzip" } : {}) })
      const reader = pressLines(page.map((line) => `${line}\n`)[Symbol.iterator](), encoding).getReader()
      for (let i = 0; i < 3; i++) {
        const { value } = await reader.read()
        await new Promise<void>((resolve) => response.write(value, () => resolve()))
      }
      // The peer has read it: only then is the line cut.
      await new Promise((resolve) => setTimeout(resolve, 100))
      response.destroy()
    })
    const got = await Effect.runPromise(pull(link))
    expect(got).toMatchObject({ header, trailer: null })
    expect(typeof got === "string" ? 0 : got.lines.length).toBe(2)
  }
})

it("takes nothing after a damaged line", async () => {
  const damaged = [...page]
  damaged[2] = (damaged[2] ?? "").replace("p2", "p7")
  const link = await peer((_, response) => response.writeHead(200, NDJSON).end(`${damaged.join("\n")}\n`))
  const got = await Effect.runPromise(pull(link))
  expect(typeof got === "string" ? got : [got.trailer, got.lines.map((line) => line[2])]).toEqual([null, [1]])
  damaged[1] = "[]"
  expect(await outcome(pull(link))).toMatch(/^LinkDown: /)
})

/** The hub's side of a push, with a memory; `fault` may break a request before it is stored. */
const pushPeer = (bytes: Uint8Array, fault: (part: number, nth: number) => boolean = () => false) => {
  let parts = new Map<number, Uint8Array>()
  let cut = 0
  const log: Array<number> = []
  const sizes: Array<number> = []
  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    const chunks: Array<Uint8Array> = []
    for await (const chunk of request) chunks.push(chunk as Uint8Array)
    const query = new URL(request.url ?? "", "http://x.y").searchParams
    const [part, count, size] = ["part", "parts", "size"].map((name) => Number(query.get(name))) as [number, number, number]
    if (count !== cut) parts = new Map()
    cut = count
    log.push(part)
    if (fault(part, log.length)) return void response.destroy()
    if (part > 0) {
      const body = Buffer.concat(chunks)
      sizes.push(body.length)
      const [start, end] = sliceOf(size, part, count)
      parts.set(part, inflate(body, end - start))
    }
    const missing = Array.from({ length: count }, (_, i) => i + 1).filter((n) => !parts.has(n))
    response.setHeader("content-type", "application/json")
    if (missing.length > 0) return void response.writeHead(202).end(JSON.stringify({ missing }))
    const whole = Buffer.concat([...parts].sort(([a], [b]) => a - b).map(([, slice]) => slice))
    const hash = createHash("sha256").update(whole).digest("hex")
    expect(whole.equals(Buffer.from(bytes))).toBe(true)
    response.end(JSON.stringify({ batch: 1, hash, changes: 1, exceptions: [] }))
  }
  return { answer: (request: IncomingMessage, response: ServerResponse) => void answer(request, response), log, sizes }
}
const batchOf = (bytes: Uint8Array) => ({ number: 1, hash: createHash("sha256").update(bytes).digest("hex"), bytes })

it("a small batch goes in one request", async () => {
  const bytes = randomBytes(2000)
  const { answer, log } = pushPeer(bytes)
  expect(await outcome((await peer(answer)).push(who, batchOf(bytes)))).toMatchObject({ batch: 1 })
  expect(log).toEqual([1])
})

it("a large batch goes in parts, and only what is missing goes again after a break", async () => {
  const bytes = randomBytes(300_000)
  let isCut = true
  const { answer, log, sizes } = pushPeer(bytes, (part) => isCut && part >= 3)
  const link = await peer(answer)
  expect(await outcome(link.push(who, batchOf(bytes)))).toMatch(/^LinkDown/)
  expect(log.slice(0, 4)).toEqual([0, 1, 2, 3])
  isCut = false
  log.length = 0
  expect(await outcome(link.push(who, batchOf(bytes)))).toMatchObject({ batch: 1 })
  expect(log).toEqual([0, 3, 4, 5])
  expect(Math.max(...sizes)).toBeLessThan(66_000)
})

it("parts grow with the measured rate", async () => {
  const [warm, second] = [randomBytes(300_000), randomBytes(900_000)]
  let current = pushPeer(warm)
  const link = await peer((request, response) => current.answer(request, response))
  await Effect.runPromise(link.push(who, batchOf(warm)))
  current = pushPeer(second)
  await Effect.runPromise(link.push(who, batchOf(second)))
  expect(current.log).toEqual([1])
})

/** What lies on the way and takes only so much; how it says so is its own affair. */
const narrow =
  (most: number, refuse: (response: ServerResponse) => void, inner: (request: IncomingMessage, response: ServerResponse) => void) =>
  (request: IncomingMessage, response: ServerResponse): void => {
    if (Number(request.headers["content-length"] ?? 0) > most) request.resume().on("end", () => refuse(response))
    else inner(request, response)
  }
const tooLarge = (response: ServerResponse) => void response.writeHead(413, { "content-type": "text/html" }).end("<html>413</html>")

it("a batch passes a proxy that takes small requests only, at once, and the next one knows", async () => {
  const bytes = Buffer.concat([Buffer.alloc(200_000, "regular"), randomBytes(200_000), Buffer.alloc(200_000, "rows")])
  const first = pushPeer(bytes)
  let refused = 0
  let current = first
  const link = await peer(
    narrow(
      30_000,
      (response) => {
        refused++
        tooLarge(response)
      },
      (request, response) => current.answer(request, response),
    ),
  )
  expect(await outcome(link.push(who, batchOf(bytes)))).toMatchObject({ batch: 1 })
  expect(Math.max(...first.sizes)).toBeLessThanOrEqual(30_000)
  const next = randomBytes(300_000)
  current = pushPeer(next)
  refused = 0
  expect(await outcome(link.push(who, batchOf(next)))).toMatchObject({ batch: 1 })
  expect(refused).toBe(0)
})

it("a batch passes what breaks large requests off without a word, after a few attempts", async () => {
  const bytes = randomBytes(60_000)
  const { answer, sizes } = pushPeer(bytes)
  const link = await peer(narrow(30_000, (response) => void response.destroy(), answer))
  let attempts = 0
  while (typeof (await outcome(link.push(who, batchOf(bytes)))) === "string" && attempts < 10) attempts++
  expect(attempts).toBeLessThan(7)
  expect(Math.max(...sizes)).toBeLessThanOrEqual(30_000)
})

it("a proxy that takes next to nothing is named, with what to do", async () => {
  const bytes = randomBytes(100_000)
  const link = await peer(narrow(1_000, tooLarge, pushPeer(bytes).answer))
  expect(await outcome(link.push(who, batchOf(bytes)))).toMatch(/^LinkDown: a proxy before the hub refused a request as too large; raise its limit/)
})

it("very regular rows stay within the hub's limits", async () => {
  const regular = Buffer.alloc(20 * 1024 * 1024, "the same row again ")
  const many = pushPeer(regular)
  await Effect.runPromise((await peer(many.answer)).push(who, batchOf(regular)))
  expect(Math.max(...many.log)).toBe(3)
})
