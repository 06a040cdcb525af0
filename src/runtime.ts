/**
 * The only file that touches a runtime's own globals: serving HTTP on Bun and on Deno, which runtime this is, zstd in one go, and
 * ending a process by signal. Everything else is Web APIs or `node:`.
 */
import process from "node:process"
import { constants, zstdCompressSync, zstdDecompressSync } from "node:zlib"

export interface Served {
  readonly port: number
  readonly stop: () => Promise<void>
}

export interface ServeOptions {
  readonly port: number
  readonly hostname: string
  /** Seconds without a byte from us before the connection is closed; at most 255. */
  readonly idleSeconds: number
  readonly maxBodyBytes: number
  readonly fetch: (request: Request) => Response | Promise<Response>
}

interface BunLike {
  readonly version: string
  readonly serve: (options: {
    port: number
    hostname: string
    idleTimeout: number
    maxRequestBodySize: number
    fetch: (request: Request) => Response | Promise<Response>
  }) => { readonly port: number; readonly stop: (closeActive?: boolean) => Promise<void> }
  readonly zstdCompressSync: (bytes: Uint8Array, options: { level: number }) => Uint8Array
  readonly zstdDecompressSync: (bytes: Uint8Array) => Uint8Array
  readonly hash: { readonly xxHash64: (bytes: Uint8Array) => bigint }
}
interface DenoLike {
  readonly version: { readonly deno: string }
  readonly serve: (
    options: { port: number; hostname: string; onListen: () => void },
    fetch: (request: Request) => Response | Promise<Response>,
  ) => { readonly addr: { readonly port: number }; readonly shutdown: () => Promise<void>; readonly finished: Promise<void> }
}

const { Bun: bun, Deno: deno } = globalThis as { readonly Bun?: BunLike; readonly Deno?: DenoLike }

/** `"bun 1.4.4"` or `"deno 2.9.6"`. */
export const runtimeName = bun !== undefined ? `bun ${bun.version}` : `deno ${deno?.version.deno ?? "?"}`

const LEVEL = 3
const DESCRIPTOR_AT = 4
const CHECKSUM_FLAG = 4

/** Its descriptor says that a checksum follows: the lower half of the content's XXH64. RFC 8878, section 3.1.1. */
const withChecksum = (frame: Uint8Array, digest: bigint): Uint8Array => {
  const whole = new Uint8Array(frame.length + 4)
  whole.set(frame)
  whole[DESCRIPTOR_AT] = (whole[DESCRIPTOR_AT] as number) | CHECKSUM_FLAG
  new DataView(whole.buffer).setUint32(frame.length, Number(BigInt.asUintN(32, digest)), true)
  return whole
}

/** One zstd frame with a checksum, which says how large its content is. */
export const zstdFrame = (content: Uint8Array): Uint8Array =>
  // That of `node:zlib` makes a stream for each call, which takes four times as long as the compression of some 100 KiB.
  bun !== undefined
    ? withChecksum(bun.zstdCompressSync(content, { level: LEVEL }), bun.hash.xxHash64(content))
    : zstdCompressSync(content, { params: { [constants.ZSTD_c_compressionLevel]: LEVEL, [constants.ZSTD_c_checksumFlag]: 1 } })

/** Its content, of so many bytes as the frame says; throws when it is damaged. */
export const undoZstdFrame = (frame: Uint8Array, bytes: number): Uint8Array =>
  bun?.zstdDecompressSync(frame) ?? zstdDecompressSync(frame, { maxOutputLength: Math.max(1, bytes) })

/** A host of four characters or more, then names alone: nothing that one reader of a URL takes otherwise than another. */
const PLAIN_URL = /^http:\/\/[\w.:[\]-]{4,}(?:\/[\w-]+)+(?:\?|$)/

// Elysia looks for the path from the 11th character on, and Bun hands out a relative URL when HTTP/1.0 comes without a Host.
const normalised = (request: Request): Request => {
  if (PLAIN_URL.test(request.url)) return request
  const url = new URL(request.url, "http://node.local")
  const path = url.pathname.replace(/^\/{2,}/, "/")
  return new Request(`http://node.local${path}${url.search}`, request)
}

/** Listens; rejects when the port is taken. Port 0 takes a free one. */
export const serve = async (options: ServeOptions): Promise<Served> => {
  const hand = (request: Request) => options.fetch(normalised(request))
  if (bun !== undefined) {
    const server = bun.serve({
      port: options.port,
      hostname: options.hostname,
      idleTimeout: options.idleSeconds,
      maxRequestBodySize: options.maxBodyBytes,
      fetch: hand,
    })
    return { port: server.port, stop: () => server.stop(true) }
  }
  if (deno !== undefined) {
    const server = deno.serve({ port: options.port, hostname: options.hostname, onListen: () => undefined }, hand)
    return { port: server.addr.port, stop: () => Promise.race([server.shutdown(), new Promise<void>((done) => setTimeout(done, 2000))]) }
  }
  throw new Error("schoolbus runs on Bun or Deno; neither was found")
}

/** What has not closed by then is ended as by a power cut, which every file here is made for. Below systemd's own limit. */
const CLOSE_MS = 15_000

/** Aborted by SIGTERM and SIGINT. The process ends with 0 soon after, also when a line that is dead keeps something from closing. */
export const stopSignal = (): AbortSignal => {
  const stop = new AbortController()
  const onSignal = (): void => {
    stop.abort()
    setTimeout(() => {
      process.stderr.write(`still closing after ${CLOSE_MS / 1000} s; ending\n`)
      process.exit(0)
    }, CLOSE_MS).unref()
  }
  process.once("SIGTERM", onSignal).once("SIGINT", onSignal)
  return stop.signal
}
