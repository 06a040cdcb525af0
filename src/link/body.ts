/**
 * Bodies of the link: compressed as they go out, piece by piece, so that what arrived can be read up to the byte where the
 * line broke; and read with caps, so that neither a slow nor a hostile peer costs memory. Receivers look at the first
 * bytes, not at headers: runtimes and proxies undo some encodings by themselves and not others.
 */
import {
  constants,
  createGunzip,
  createGzip,
  createZstdCompress,
  createZstdDecompress,
  gunzipSync,
  gzipSync,
  zstdCompress,
  zstdDecompressSync,
} from "node:zlib"
import { runtimeName, undoZstdFrame, zstdFrame } from "../runtime.ts"
import { CODING_HEADER, MAX_INFLATE_RATIO } from "./protocol.ts"
import { frameAt } from "./zstd-frame.ts"

export type Encoding = "zstd" | "gzip" | "identity"

/** Deno 2.9.6 throws a damaged zstd stream's error at the process instead of the stream; there it is neither asked for nor read. */
const READS_ZSTD_STREAMS = !runtimeName.startsWith("deno")
export const ACCEPT_ENCODING = READS_ZSTD_STREAMS ? "zstd, gzip" : "gzip"
/** Deno undoes gzip by itself, but only its first member: a stream of pages would end after the first. */
export const OWN_CODING: Readonly<Record<string, string>> = READS_ZSTD_STREAMS ? {} : { [CODING_HEADER]: "gzip" }

/** A cap from the ratio alone would refuse small bodies of honest, very regular rows; this much is always allowed. */
export const INFLATE_FLOOR_BYTES = 8 * 1024 * 1024

/** The peer broke off, sent too much, or too slowly; `message` says which. */
export class BodyFault extends Error {}

/** From an Accept-Encoding header; a coding with q=0 is not taken. */
export const encodingFor = (accept: string | null): Encoding => {
  const offered = (accept ?? "").split(",").map((part) =>
    part
      .trim()
      .toLowerCase()
      .split(";")
      .map((piece) => piece.trim()),
  )
  const takes = (name: string) => offered.some(([coding, ...rest]) => coding === name && !rest.some((piece) => /^q=0(\.0*)?$/.test(piece)))
  return takes("zstd") ? "zstd" : takes("gzip") ? "gzip" : "identity"
}

const sniff = (first: Uint8Array): Encoding =>
  first[0] === 0x28 && first[1] === 0xb5 && first[2] === 0x2f && first[3] === 0xfd
    ? "zstd"
    : first[0] === 0x1f && first[1] === 0x8b
      ? "gzip"
      : "identity"

const ZSTD = { params: { [constants.ZSTD_c_compressionLevel]: 3, [constants.ZSTD_c_checksumFlag]: 1 } }

const GZIP = { level: 5 }
/** What a compressor hands on at once: smaller pieces cost more than the compression. */
const chunkSize = 64 * 1024

/** One body of a push. */
export const compress = (bytes: Uint8Array): Promise<Uint8Array> =>
  new Promise((done, fail) => zstdCompress(bytes, ZSTD, (error, result) => (error === null ? done(result) : fail(error))))

/**
 * Undoes zstd or gzip, whichever it is; BodyFault when it is damaged or grows beyond the caps. A zstd body that was cut short
 * may come out short without an error (Bun 1.4.4): the caller knows the length.
 */
export const inflate = (bytes: Uint8Array, maxBytes: number): Uint8Array => {
  const encoding = sniff(bytes)
  const cap = Math.min(maxBytes, Math.max(INFLATE_FLOOR_BYTES, bytes.length * MAX_INFLATE_RATIO))
  if (encoding === "identity") {
    if (bytes.length > maxBytes) throw new BodyFault(`more than ${maxBytes} bytes`)
    return bytes
  }
  try {
    // Synchronous: the asynchronous zstd of Deno 2.9.6 ends the process on damage. A part is small.
    return encoding === "zstd" ? zstdDecompressSync(bytes, { maxOutputLength: cap }) : gunzipSync(bytes, { maxOutputLength: cap })
  } catch (cause) {
    const { code, message } = cause as { code?: string; message?: string }
    throw new BodyFault(code === "ERR_BUFFER_TOO_LARGE" || cause instanceof RangeError ? `inflates to more than ${cap} bytes` : `damaged: ${message}`)
  }
}

const join = (chunks: ReadonlyArray<Uint8Array>): Uint8Array => {
  if (chunks.length === 1 && chunks[0] !== undefined) return chunks[0]
  const whole = new Uint8Array(chunks.reduce((n, chunk) => n + chunk.length, 0))
  let at = 0
  for (const chunk of chunks) {
    whole.set(chunk, at)
    at += chunk.length
  }
  return whole
}

/** Ends the compressed frame under way: what follows is readable without what came before, and nothing is kept between the two. */
export const END_OF_FRAME = Symbol("end of frame")
/** `frame`: text that is a frame of its own; most are, and no compressor needs to stand by for them. Between frames only. */
export type Piece = string | typeof END_OF_FRAME | { readonly frame: string }

/** A frame of one piece, in one go. */
export const frameOf = (text: string, encoding: Encoding): Uint8Array => {
  const plain = new TextEncoder().encode(text)
  return encoding === "zstd" ? zstdFrame(plain) : encoding === "gzip" ? gzipSync(plain, GZIP) : plain
}

/** An empty line outside of any frame, made once: it says only that the peer lives. */
const beats = new Map<Encoding, Uint8Array>()
export const beatOf = (encoding: Encoding): Uint8Array => {
  const beat = beats.get(encoding) ?? frameOf("\n", encoding)
  beats.set(encoding, beat)
  return beat.slice()
}

interface Press {
  readonly write: (text: string) => Promise<void>
  readonly end: () => Promise<void>
  readonly destroy: () => void
}

/** One frame; a compressor takes almost 1 MiB, so none stands by for a stream that is silent. */
const openPress = (encoding: Encoding, out: Array<Uint8Array>): Press => {
  const press = encoding === "zstd" ? createZstdCompress({ ...ZSTD, chunkSize }) : encoding === "gzip" ? createGzip({ ...GZIP, chunkSize }) : null
  if (press === null) {
    return {
      write: async (text) => void out.push(new TextEncoder().encode(text)),
      end: async () => undefined,
      destroy: () => undefined,
    }
  }
  const flushFlag = encoding === "zstd" ? constants.ZSTD_e_flush : constants.Z_SYNC_FLUSH
  let failed: (error: Error) => void = () => undefined
  press.on("data", (chunk: Uint8Array) => out.push(chunk))
  press.on("error", (error: Error) => failed(error))
  return {
    write: (text) =>
      new Promise((done, fail) => {
        failed = fail
        press.write(text, () => press.flush(flushFlag, () => done()))
      }),
    // "finish" comes before the last bytes do.
    end: () =>
      new Promise((done, fail) => {
        failed = fail
        press.once("end", () => done())
        press.end()
      }),
    destroy: () => press.destroy(),
  }
}

export interface Presser {
  /** The bytes of a piece, flushed. May be none at the end of a frame. */
  readonly press: (piece: Piece) => Promise<Uint8Array>
  readonly destroy: () => void
}

export const openPresser = (encoding: Encoding): Presser => {
  let press: Press | null = null
  let out: Array<Uint8Array> = []
  const destroy = (): void => {
    press?.destroy()
    press = null
    out = []
  }
  return {
    destroy,
    press: async (piece) => {
      if (piece === END_OF_FRAME) {
        await press?.end()
        press?.destroy()
        press = null
      } else if (typeof piece !== "string") out.push(frameOf(piece.frame, encoding))
      else if (piece === "\n" && press === null) out.push(beatOf(encoding))
      else {
        press ??= openPress(encoding, out)
        await press.write(piece)
      }
      const bytes = join(out)
      out.length = 0
      return bytes
    },
  }
}

/**
 * Lines -> body. Each piece is flushed, so the receiver can read every line whose bytes have arrived. Pulled on demand: a
 * slow reader holds nothing but the piece under way.
 */
export const pressLines = (
  pieces: AsyncIterator<Piece> | Iterator<Piece>,
  encoding: Encoding,
  onEnd: () => void = () => undefined,
): ReadableStream<Uint8Array> => {
  const { press, destroy } = openPresser(encoding)
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          for (;;) {
            const next = await pieces.next()
            const bytes = await press(next.done === true ? END_OF_FRAME : next.value)
            if (bytes.length > 0) controller.enqueue(bytes)
            if (next.done === true) {
              controller.close()
              return onEnd()
            }
            if (bytes.length > 0) return
          }
        } catch (cause) {
          destroy()
          onEnd()
          throw cause
        }
      },
      async cancel() {
        destroy()
        await pieces.return?.()
        onEnd()
      },
    },
    { highWaterMark: 1 },
  )
}

export interface BodyLimits {
  readonly maxBytes: number
  /** Between two chunks. */
  readonly idleMs: number
  /** In all; of `leastRate` bytes a second every byte that came adds its share. */
  readonly totalMs?: number
  readonly leastRate?: number
}

/** What is taken in ahead of whoever reads: a connection that breaks takes along what still waits inside the runtime. */
const AHEAD_BYTES = 1024 * 1024

/** Chunks as they arrive, within the limits; BodyFault else. Everything that came before a fault comes out before it. */
export const readChunks = async function* (body: ReadableStream<Uint8Array> | null, limits: BodyLimits): AsyncGenerator<Uint8Array> {
  if (body === null) return
  const reader = body.getReader()
  const arrived: Array<Uint8Array> = []
  let waiting = 0
  let isOver = false
  let fault: { readonly cause: unknown } | null = null
  let wake: () => void = () => undefined
  let room: () => void = () => undefined
  let timer: ReturnType<typeof setTimeout> | undefined
  const takeIn = async (): Promise<void> => {
    let total = 0
    let endAt = performance.now() + (limits.totalMs ?? Number.POSITIVE_INFINITY)
    while (!isOver) {
      const left = Math.max(0, Math.min(limits.idleMs, endAt - performance.now()))
      const silence = new Promise<never>((_, fail) => {
        timer = setTimeout(() => fail(new BodyFault(left < limits.idleMs ? "too slow" : `no byte for ${Math.round(limits.idleMs / 1000)} s`)), left)
      })
      const next = await Promise.race([reader.read(), silence])
      clearTimeout(timer)
      if (next.done) return
      total += next.value.length
      if (limits.leastRate !== undefined) endAt += (next.value.length * 1000) / limits.leastRate
      if (total > limits.maxBytes) throw new BodyFault(`more than ${limits.maxBytes} bytes`)
      arrived.push(next.value)
      waiting += next.value.length
      wake()
      while (waiting >= AHEAD_BYTES && !isOver)
        await new Promise<void>((done) => {
          room = done
        })
    }
  }
  const ending = takeIn()
    .catch((cause: unknown) => {
      fault = { cause }
    })
    .finally(() => {
      isOver = true
      wake()
    })
  try {
    for (;;) {
      const chunk = arrived.shift()
      if (chunk !== undefined) {
        waiting -= chunk.length
        room()
        yield chunk
      } else if (isOver) break
      else
        await new Promise<void>((done) => {
          wake = done
        })
    }
    if (fault !== null) throw (fault as { readonly cause: unknown }).cause
  } finally {
    isOver = true
    room()
    clearTimeout(timer)
    await reader.cancel().catch(() => undefined)
    await ending
  }
}

export const readAll = async (body: ReadableStream<Uint8Array> | null, limits: BodyLimits): Promise<Uint8Array> => {
  const chunks: Array<Uint8Array> = []
  for await (const chunk of readChunks(body, limits)) chunks.push(chunk)
  return chunks.length === 0 ? new Uint8Array() : join(chunks)
}

const wholeFrame = (bytes: Uint8Array, content: number): Uint8Array => {
  try {
    return undoZstdFrame(bytes, content)
  } catch (cause) {
    throw new BodyFault(`damaged: ${(cause as Error).message}`)
  }
}

/**
 * Undoes the compression of a body that is still arriving; when it breaks off, everything readable came out before the error. Frames
 * that were made in one go are undone in one go, too, until one comes that was not: the way through a decompressor's thread and back
 * takes longer than the work.
 */
export const unpress = async function* (chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let unpresser: ReturnType<typeof createGunzip> | ReturnType<typeof createZstdDecompress> | null = null
  let fault: Error | null = null
  let out: Array<Uint8Array> = []
  let head = new Uint8Array()
  /** zstd, of which no frame needed the decompressor so far. */
  let isFramed = false
  let isOpen = false
  let failed: () => void = () => undefined
  const write = (chunk: Uint8Array): Promise<void> =>
    new Promise((done) => {
      if (unpresser === null) {
        out.push(chunk)
        return done()
      }
      // A damaged stream calls back late or never.
      failed = done
      unpresser.write(chunk, () => setImmediate(done))
    })
  try {
    for await (const chunk of chunks) {
      let piece = chunk
      if (!isOpen) {
        head = join([head, chunk]) as Uint8Array<ArrayBuffer>
        if (head.length < 4) continue
        const encoding: Encoding = isFramed ? "zstd" : sniff(head)
        if (encoding === "zstd" && !READS_ZSTD_STREAMS) throw new BodyFault("a zstd stream that nobody asked for")
        isFramed ||= encoding === "zstd"
        let frame = isFramed ? frameAt(head) : "stream"
        while (typeof frame !== "string") {
          yield wholeFrame(head.subarray(0, frame.bytes), frame.content)
          head = head.subarray(frame.bytes)
          frame = frameAt(head)
        }
        if (frame === "more") continue
        isOpen = true
        piece = head
        unpresser = encoding === "zstd" ? createZstdDecompress({ chunkSize }) : encoding === "gzip" ? createGunzip({ chunkSize }) : null
        unpresser?.on("data", (bytes: Uint8Array) => out.push(bytes))
        unpresser?.on("error", (error: Error) => {
          fault = error
          failed()
        })
      }
      await write(piece)
      for (const bytes of out.splice(0)) yield bytes
      if (fault !== null) throw new BodyFault(`damaged: ${(fault as Error).message}`)
    }
    // The beginning of a frame is nothing that could be read.
    if (!isOpen && !isFramed && head.length > 0) yield head
  } finally {
    unpresser?.destroy()
    out = []
  }
}

const NEWLINE = 10

/** Text lines without their newline. A last line without one is not a line: it was cut. Empty lines say only that the peer lives. */
export const splitLines = async function* (chunks: AsyncIterable<Uint8Array>, maxLineBytes: number): AsyncGenerator<string> {
  const decoder = new TextDecoder()
  let rest: Array<Uint8Array> = []
  let restBytes = 0
  for await (const chunk of chunks) {
    let start = 0
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
      yield decoder.decode(join([...rest, chunk.subarray(start, end)]))
      rest = []
      restBytes = 0
      start = end + 1
    }
    rest.push(chunk.slice(start))
    restBytes += chunk.length - start
    if (restBytes > maxLineBytes) throw new BodyFault(`a line of more than ${maxLineBytes} bytes`)
  }
}
