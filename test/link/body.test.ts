import { gzipSync, zstdCompressSync, zstdDecompressSync } from "node:zlib"
import { expect, it } from "vitest"
import {
  ACCEPT_ENCODING,
  BodyFault,
  compress,
  type Encoding,
  encodingFor,
  END_OF_FRAME,
  frameOf,
  inflate,
  INFLATE_FLOOR_BYTES,
  type Piece,
  pressLines,
  readAll,
  readChunks,
  splitLines,
  unpress,
} from "../../src/link/body.ts"

const lines = Array.from({ length: 40 }, (_, i) => JSON.stringify([i, crypto.randomUUID().repeat(200), "Ünï"]))
const pieces = () => lines.map((line) => `${line}\n`)[Symbol.iterator]()
const limits = { maxBytes: 1e9, idleMs: 5000 }

const collect = async (stream: AsyncIterable<string>): Promise<{ lines: Array<string>; error: unknown }> => {
  const got: Array<string> = []
  try {
    for await (const line of stream) got.push(line)
  } catch (error) {
    return { lines: got, error }
  }
  return { lines: got, error: null }
}

const from = async function* (chunks: Iterable<Uint8Array>, error?: Error) {
  yield* chunks
  if (error !== undefined) throw error
}
const chop = (bytes: Uint8Array, size: number) =>
  Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) => bytes.subarray(i * size, (i + 1) * size))

const readable: ReadonlyArray<Encoding> = ["gzip", "identity", ...(ACCEPT_ENCODING.includes("zstd") ? ["zstd" as const] : [])]

for (const encoding of readable) {
  it(`${encoding}: every line arrives, whatever the chunks`, async () => {
    const bytes = await readAll(pressLines(pieces(), encoding), limits)
    if (encoding !== "identity") expect(bytes.length).toBeLessThan(lines.join().length)
    for (const size of [1 + (bytes.length >> 6), 777, bytes.length]) {
      expect(await collect(splitLines(unpress(from(chop(bytes, size))), 1e6))).toEqual({ lines, error: null })
    }
  })

  it(`${encoding}: a body that breaks off gives every line that arrived whole`, async () => {
    const marks: Array<number> = []
    const chunks: Array<Uint8Array> = []
    for await (const chunk of readChunks(pressLines(pieces(), encoding), limits)) {
      chunks.push(chunk)
      marks.push(chunks.reduce((n, c) => n + c.length, 0))
    }
    const whole = Buffer.concat(chunks)
    const { lines: got, error } = await collect(splitLines(unpress(from([whole.subarray(0, (marks[9] ?? 0) + 1)], new Error("reset"))), 1e6))
    expect(got).toEqual(lines.slice(0, 10))
    expect(String(error)).toContain("reset")
  })
}

/** Lines in frames of their own, among empty lines; when `isLong`, then a large one and one of many pieces, and one of its own again. */
const framed = (isLong: boolean): ReadonlyArray<Piece> => {
  const own = lines.slice(0, 10).flatMap((line): ReadonlyArray<Piece> => ["\n", { frame: `${line}\n` }])
  if (!isLong) return own
  const long = lines.slice(11, 39).map((line) => `${line}\n`)
  return [...own, { frame: `${LARGE}\n` }, { frame: `${lines[10]}\n` }, ...long, END_OF_FRAME, { frame: `${lines[39]}\n` }]
}
const LARGE = "x".repeat(300_000)

for (const encoding of readable)
  for (const isLong of [false, true])
    it(`${encoding}: frames of their own arrive, whatever the chunks${isLong ? ", and long ones after them" : ""}`, async () => {
      const bytes = await readAll(pressLines(framed(isLong)[Symbol.iterator](), encoding), limits)
      const sent = isLong ? [...lines.slice(0, 10), LARGE, ...lines.slice(10)] : lines.slice(0, 10)
      for (const size of [1, 7, 1_000, bytes.length].filter((one) => one > 7 || bytes.length < 10_000)) {
        const { lines: got, error } = await collect(splitLines(unpress(from(chop(bytes, size))), 1e6))
        expect(got.filter((line) => line !== "")).toEqual(sent)
        expect(error).toBe(null)
      }
    })

it("a frame of its own is read as soon as its last byte is here", async () => {
  const encoding = encodingFor(ACCEPT_ENCODING)
  const first = await readAll(pressLines([{ frame: `${lines[0]}\n` }][Symbol.iterator](), encoding), limits)
  let isAsked = false
  const chunks = (async function* () {
    yield first
    isAsked = true
    yield first.subarray(0, 9)
    throw new Error("reset")
  })()
  const got = splitLines(unpress(chunks), 1e6)
  expect((await got.next()).value).toBe(lines[0])
  expect(isAsked).toBe(false)
  await expect(got.next()).rejects.toThrow("reset")
})

it("a frame is one that every zstd reads, with its checksum", () => {
  if (encodingFor(ACCEPT_ENCODING) !== "zstd") return
  for (const text of ["", "\n", lines.join("\n"), "x".repeat(200_000)]) {
    const frame = frameOf(text, "zstd")
    expect(zstdDecompressSync(frame).toString()).toBe(text)
    frame[frame.length - 1] = (frame[frame.length - 1] as number) ^ 1
    expect(() => zstdDecompressSync(frame)).toThrow()
  }
})

it("of frames with a damaged byte no line comes that was not sent", async () => {
  const pieces: ReadonlyArray<Piece> = lines.slice(0, 3).map((line) => ({ frame: `${line}\n` }))
  const bytes = Buffer.from(await readAll(pressLines(pieces[Symbol.iterator](), encodingFor(ACCEPT_ENCODING)), limits))
  for (let at = 0; at < bytes.length; at++) {
    const damaged = Buffer.from(bytes)
    damaged[at] = (damaged[at] ?? 0) ^ (1 << (at % 8))
    const { lines: got } = await collect(splitLines(unpress(from([damaged])), 1e6))
    // The name of a frame's kind is all that no checksum covers: bytes of another kind are none of its lines.
    expect(got.filter((line) => !lines.includes(line)).every((line) => !line.startsWith("["))).toBe(true)
    expect(got.filter((line) => lines.includes(line))).toEqual(lines.slice(0, got.filter((line) => lines.includes(line)).length))
  }
})

it("a damaged byte is a fault, never a line that was not sent", async () => {
  const bytes = Buffer.from(await readAll(pressLines(pieces(), encodingFor(ACCEPT_ENCODING)), limits))
  bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 0xff
  const { lines: got } = await collect(splitLines(unpress(from([bytes])), 1e6))
  expect(got.length).toBeLessThan(lines.length)
})

it("stops making what nobody reads", async () => {
  let made = 0
  let ended = 0
  const source = (async function* () {
    for (;;) {
      made++
      yield `${"x".repeat(1000)}\n`
    }
  })()
  const reader = pressLines(source, "identity", () => void ended++).getReader()
  await reader.read()
  await reader.cancel()
  expect(made).toBeLessThan(6)
  expect(ended).toBe(1)
})

it("what came before the line broke comes out, however slowly it is read; but only so much waits", async () => {
  const piece = 64 * 1024
  const readSlowly = async (pieces: number) => {
    let made = 0
    // As a runtime does it: the fault comes a moment after the last bytes, and drops what nobody has taken yet.
    const broken = new ReadableStream<Uint8Array>(
      {
        async pull(controller) {
          if (made === pieces) {
            await new Promise((resolve) => setImmediate(resolve))
            return controller.error(new Error("broken"))
          }
          made++
          controller.enqueue(new Uint8Array(piece))
        },
      },
      { highWaterMark: 8 },
    )
    let bytes = 0
    let mostWaiting = 0
    const read = async () => {
      for await (const chunk of readChunks(broken, limits)) {
        bytes += chunk.length
        await new Promise((resolve) => setImmediate(resolve))
        mostWaiting = Math.max(mostWaiting, made * piece - bytes)
      }
    }
    await expect(read()).rejects.toThrow("broken")
    return { bytes, mostWaiting }
  }
  expect((await readSlowly(12)).bytes).toBe(12 * piece)
  expect((await readSlowly(200)).mostWaiting).toBeLessThan(32 * piece)
})

it("undoes zstd, gzip and nothing at all", async () => {
  const text = new TextEncoder().encode(lines.join("\n"))
  for (const body of [await compress(text), zstdCompressSync(text), gzipSync(text), text]) {
    expect(Buffer.from(inflate(body, 1e7)).equals(Buffer.from(text))).toBe(true)
  }
})

it("refuses a bomb and keeps honest regular data", async () => {
  const bomb = zstdCompressSync(Buffer.alloc(INFLATE_FLOOR_BYTES + 1))
  expect(() => inflate(bomb, 1e9)).toThrow(/more than/)
  expect(() => inflate(gzipSync(Buffer.alloc(2000)), 1000)).toThrow(/more than 1000 bytes/)
  expect(inflate(zstdCompressSync(Buffer.alloc(INFLATE_FLOOR_BYTES)), 1e9).length).toBe(INFLATE_FLOOR_BYTES)
})

it("damage in a body is a fault", async () => {
  const body = await compress(Buffer.from(lines.join()))
  body[body.length - 20] = (body[body.length - 20] ?? 0) ^ 0xff
  expect(() => inflate(body, 1e7)).toThrow(BodyFault)
  expect(() => inflate(gzipSync("x").subarray(0, 8), 1e6)).toThrow(BodyFault)
})

it("a silent or endless sender is let go", async () => {
  const silent = new ReadableStream<Uint8Array>({ start: (controller) => controller.enqueue(new Uint8Array(1)) })
  await expect(readAll(silent, { maxBytes: 10, idleMs: 20 })).rejects.toThrow(/no byte/)
  const endless = new ReadableStream<Uint8Array>({ pull: (controller) => controller.enqueue(new Uint8Array(4)) })
  await expect(readAll(endless, { maxBytes: 10, idleMs: 1000 })).rejects.toThrow(/more than 10 bytes/)
  await expect(collect(splitLines(from([new Uint8Array(20).fill(65)]), 10))).resolves.toMatchObject({ error: expect.any(BodyFault) })
})

it("picks the best coding that the peer takes", () => {
  for (const [accept, encoding] of [
    ["zstd, gzip", "zstd"],
    ["gzip, deflate, br", "gzip"],
    ["GZIP;q=1, zstd;q=0", "gzip"],
    ["br", "identity"],
    [null, "identity"],
  ] as const) {
    expect(encodingFor(accept)).toBe(encoding)
  }
})
