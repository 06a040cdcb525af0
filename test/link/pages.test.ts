/** Pages over a line that breaks, lies or falls silent: what came whole is kept, nothing else ever counts. */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import { gzipSync, zstdCompressSync } from "node:zlib"
import * as Effect from "effect/Effect"
import { afterEach, expect, it } from "vitest"
import { ACCEPT_ENCODING, BodyFault, END_OF_FRAME, type Piece, pressLines, readAll, readChunks, splitLines, unpress } from "../../src/link/body.ts"
import { type Identity, type Link, makeLink } from "../../src/link/client.ts"
import { sealLine } from "../../src/link/frame.ts"
import { pagesOf } from "../../src/link/pages.ts"
import type { Header } from "../../src/link/protocol.ts"
import { noCursor } from "../../src/model/cursor.ts"

const ended: Array<() => void> = []
afterEach(() => {
  for (const end of ended.splice(0)) end()
})
const patience = { idle: 10_000, poll: 10_000, firstByte: 10_000 }
const peer = async (answer: (request: IncomingMessage, response: ServerResponse) => void, less: Partial<typeof patience> = {}): Promise<Link> => {
  const server = createServer(answer)
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  ended.push(() => {
    server.closeAllConnections()
    server.close()
  })
  return makeLink({ hub: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, key: "k", patience: { ...patience, ...less } })
}

const who: Identity = { incarnation: crypto.randomUUID(), token: "1.aa" }
const header: Header = { school: "a", epoch: "e", from: 0, full: true, resumed: false, manifest: 1, head: 9, headCut: "c", left: 3 }
const rows = (n: number) => sealLine(JSON.stringify(["rows", 5, n, "public.pupils", ["id", "name"], [[[`p${n}`], [`p${n}`, `pupil number ${n}`]]]]))
const page = [sealLine(JSON.stringify(["cut", header])), rows(1), rows(2), rows(3), sealLine(JSON.stringify(["page", { rows: 3, complete: true }]))]
const text = page.map((line) => `${line}\n`).join("")
const NDJSON = { "content-type": "application/x-ndjson" }
const encodings = (["identity", "gzip", "zstd"] as const).filter((name) => name === "identity" || ACCEPT_ENCODING.includes(name))

const body = (bytes: Uint8Array, chunk = 97): ReadableStream<Uint8Array> => {
  let at = 0
  return new ReadableStream({
    pull(controller) {
      if (at >= bytes.length) return controller.close()
      controller.enqueue(bytes.slice(at, at + chunk))
      at += chunk
    },
  })
}
/** Everything that came of a body: the number of lines of each page, and whether it was whole. */
const pages = async (bytes: Uint8Array, chunk?: number) => {
  const got: Array<{ readonly lines: ReadonlyArray<string>; readonly whole: boolean }> = []
  let fault: unknown = null
  try {
    for await (const one of pagesOf(body(bytes, chunk), false, 1_000, () => undefined)) {
      if (typeof one !== "string") got.push({ lines: one.lines.map((line) => sealLine(line[5])), whole: one.trailer !== null })
    }
  } catch (cause) {
    fault = cause
  }
  return { got, fault }
}
const pressed = (encoding: (typeof encodings)[number], pieces: ReadonlyArray<Piece>) =>
  readAll(pressLines(pieces[Symbol.iterator](), encoding), { maxBytes: 1e7, idleMs: 1_000 })

for (const encoding of encodings) {
  it(`${encoding}: cut off at any byte, a page gives only lines that came whole`, async () => {
    const bytes = await pressed(
      encoding,
      page.map((line) => `${line}\n`),
    )
    const counts = new Set<number>()
    for (let cut = 0; cut < bytes.length; cut++) {
      const { got, fault } = await pages(bytes.slice(0, cut))
      expect(got.length).toBeLessThanOrEqual(1)
      if (got.length === 0) expect(fault).not.toBe(null)
      const [only] = got
      if (only === undefined) continue
      counts.add(only.lines.length)
      expect(only.lines).toEqual(page.slice(1, 1 + only.lines.length))
      // Only the end of a frame may be missing of a whole page.
      if (only.whole) expect(only.lines.length).toBe(3)
    }
    expect(counts).toContain(2)
    expect((await pages(bytes)).got).toEqual([{ lines: page.slice(1, 4), whole: true }])
  })

  it(`${encoding}: with any byte damaged, a page gives only lines that were sent`, async () => {
    const bytes = await pressed(
      encoding,
      page.map((line) => `${line}\n`),
    )
    for (let at = 0; at < bytes.length; at++) {
      const damaged = bytes.slice()
      damaged[at] = (damaged[at] ?? 0) ^ (1 << (at % 8))
      const { got } = await pages(damaged)
      for (const one of got) expect(one.lines).toEqual(page.slice(1, 1 + one.lines.length))
    }
  })

  it(`${encoding}: frames that follow each other are one text, and an empty line needs none of them`, async () => {
    const pieces: ReadonlyArray<Piece> = ["\n", "one\n", "two\n", END_OF_FRAME, "\n", "\n", { frame: "three\nfour\n" }, "five\n", END_OF_FRAME]
    const bytes = await pressed(encoding, pieces)
    for (const chunk of [1, 7, 1000]) {
      const lines: Array<string> = []
      for await (const line of splitLines(unpress(readChunks(body(bytes, chunk), { maxBytes: 1e6, idleMs: 1_000 })), 1e6)) lines.push(line)
      expect(lines).toEqual(["", "one", "two", "", "", "three", "four", "five"])
    }
  })
}

it("a peer that sends a byte now and then does not hold a reader for ever", async () => {
  const drip = new ReadableStream<Uint8Array>({
    async pull(controller) {
      await new Promise((resolve) => setTimeout(resolve, 10))
      controller.enqueue(new Uint8Array([32]))
    },
  })
  const limits = { maxBytes: 1e6, idleMs: 1_000, totalMs: 200, leastRate: 1_000 }
  await expect(readAll(drip, limits)).rejects.toThrow(new BodyFault("too slow"))
})

it("a peer that is slow but faster than the least rate is waited for", async () => {
  let sent = 0
  const steady = new ReadableStream<Uint8Array>({
    async pull(controller) {
      await new Promise((resolve) => setTimeout(resolve, 20))
      if (++sent > 20) return controller.close()
      controller.enqueue(new Uint8Array(100))
    },
  })
  expect((await readAll(steady, { maxBytes: 1e6, idleMs: 1_000, totalMs: 100, leastRate: 1_000 })).length).toBe(2_000)
})

const firsts = (link: Link, count: number) =>
  Effect.runPromise(
    Effect.scoped(
      Effect.gen(function* () {
        const stream = yield* link.stream(who, noCursor, null)
        if (stream === "unsuited") return ["unsuited"]
        const got: Array<string> = []
        for (let i = 0; i < count; i++) {
          const next = yield* Effect.result(stream.next)
          if (next._tag === "Failure") return [...got, `${next.failure._tag}: ${next.failure.message}`]
          got.push(typeof next.success === "string" ? next.success : `${next.success.lines.length} ${next.success.trailer?.complete ?? "part"}`)
        }
        return got
      }),
    ),
  )

it("a stream gives page after page, between them wishes and that nothing is left, and the beginning of one that breaks off", async () => {
  const link = await peer((request, response) => {
    expect(request.url).toMatch(/^\/api\/sync\/stream\?/)
    response.writeHead(200, { ...NDJSON, "content-encoding": "gzip" })
    const frames = ["\n", text, "\n", `${sealLine('["sync",{}]')}\n`, text, page.slice(0, 3).join("\n"), "\n"]
    for (const frame of frames) response.write(gzipSync(frame))
    response.end()
  })
  expect(await firsts(link, 6)).toEqual(["3 true", "nothing", "asked", "3 true", "2 part", "LinkDown: the stream ended"])
})

it("a stream whose first byte is held back is unsuited, and one whose head is", async () => {
  const held = await peer(
    (_, response) => {
      response.writeHead(200, NDJSON)
      response.flushHeaders()
    },
    { firstByte: 200 },
  )
  expect(await firsts(held, 1)).toEqual(["unsuited"])
  expect(await firsts(await peer(() => undefined, { firstByte: 200 }), 1)).toEqual(["unsuited"])
})

it("a stream that falls silent is down, also in the middle of a page", async () => {
  const silent = await peer((_, response) => void response.writeHead(200, NDJSON).write("\n"), { idle: 300 })
  expect(await firsts(silent, 1)).toEqual(["LinkDown: the hub's answer did not come whole (no byte for 0 s); it is tried again by itself"])
  const half = await peer((_, response) => void response.writeHead(200, NDJSON).write(`\n${page.slice(0, 3).join("\n")}\n`), { idle: 300 })
  expect(await firsts(half, 2)).toEqual(["2 part", "LinkDown: the stream ended"])
})

it("an empty line now and then keeps a stream alive", async () => {
  const link = await peer(
    (_, response) => {
      response.writeHead(200, { ...NDJSON, "content-encoding": "zstd" })
      let beats = 0
      const timer = setInterval(() => {
        response.write(ACCEPT_ENCODING.includes("zstd") ? zstdCompressSync(++beats < 8 ? "\n" : text) : ++beats < 8 ? "\n" : text)
        if (beats > 8) clearInterval(timer)
      }, 50)
      ended.push(() => clearInterval(timer))
      response.write(ACCEPT_ENCODING.includes("zstd") ? zstdCompressSync("\n") : "\n")
    },
    { idle: 300 },
  )
  expect((await firsts(link, 8)).at(-1)).toBe("3 true")
})

it("a long poll that is never answered is down after its wait and a little more", async () => {
  const link = await peer(() => undefined, { poll: 300 })
  const failed = await Effect.runPromise(Effect.flip(link.pull(who, noCursor, null, 0)))
  expect(failed).toMatchObject({ _tag: "LinkDown", isSilent: true })
})

it("what is no hub is no stream", async () => {
  for (const [status, type] of [
    [200, "text/html"],
    [302, "text/html"],
    [511, "text/html"],
    [200, "application/json"],
  ] as const) {
    const link = await peer((_, response) => response.writeHead(status, { "content-type": type, location: "/login" }).end("<html>log in</html>"))
    const failed = await Effect.runPromise(Effect.flip(Effect.scoped(link.stream(who, noCursor, null))))
    expect(failed._tag).toBe("LinkDown")
  }
})

it("counts what goes over the line", async () => {
  const link = await peer((_, response) => response.writeHead(200, NDJSON).end(text))
  await Effect.runPromise(link.pull(who, noCursor, null, 0))
  expect(link.traffic.received).toBeGreaterThanOrEqual(text.length)
  expect(link.traffic.received).toBeLessThan(text.length + 2_000)
  expect(link.traffic.sent).toBeGreaterThan(100)
})

it("a row with a photo of 40 MB comes whole", async () => {
  const photo = sealLine(JSON.stringify(["rows", 5, 1, "public.pupils", ["id", "photo"], [[["p1"], ["p1", "00ff".repeat(20_000_000)]]]]))
  const lines = [page[0] as string, photo, page.at(-1) as string]
  const { got } = await pages(new TextEncoder().encode(lines.map((line) => `${line}\n`).join("")), 1024 * 1024)
  expect(got.map((one) => [one.lines.map((line) => line.length), one.whole])).toEqual([[[photo.length], true]])
})
