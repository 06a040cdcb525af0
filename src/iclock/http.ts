/**
 * HTTP/1.x as terminals write and read it (pure). Taken in: bare LF, a space inside the query, no Host, HTTP/1.0, GET with a
 * body, POST without a length. Given out: the header names in the letter case and the order that firmware compares, because
 * it finds its clock and the end of the body by them (reference: `Date:`, `Content-Length:`, both case-sensitive).
 */

/** Request line and headers; a terminal sends some 300 bytes. */
export const MAX_HEAD_BYTES = 16 * 1024
/** Bodies; firmware fills them up to about 60 KB, newer ones to 1 MB. */
export const MAX_BODY_BYTES = 10 * 1024 * 1024

export interface Head {
  readonly method: string
  /** Path and query as they came: `"/iclock/cdata"`, `"?SN=A&INFO=Ver 6.60,1"`. */
  readonly path: string
  readonly search: string
  /** Bytes of the body; null = everything until the sender ends; `"chunked"`. */
  readonly length: number | null | "chunked"
  /** The sender waits for our 100 before it sends the body. */
  readonly expectsContinue: boolean
  /** Where the body begins in the bytes received so far. */
  readonly bodyAt: number
}

const LF = 10
const CR = 13
const isLetter = (byte: number): boolean => (byte >= 65 && byte <= 90) || (byte >= 97 && byte <= 122)
const latin1 = (bytes: Uint8Array): string => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1")

/** Where the empty line after the headers ends; -1 = not yet. */
const endOfHead = (bytes: Uint8Array): number => {
  for (let at = bytes.indexOf(LF); at !== -1; at = bytes.indexOf(LF, at + 1)) {
    if (bytes[at + 1] === LF) return at + 2
    if (bytes[at + 1] === 13 && bytes[at + 2] === LF) return at + 3
  }
  return -1
}

/** What a sender of the body would have to end by hanging up: only where there is one to expect. */
const mayHaveBody = (method: string, path: string): boolean =>
  /^(POST|PUT)$/.test(method) && !/\/(push|ping|getrequest|rtdata)(\.\w+)?\/*$/i.test(path)

/** The head of a request; `"more"` while it is incomplete, `"bad"` when it cannot become one. */
export const readHead = (received: Uint8Array): Head | "more" | "bad" => {
  // Some firmware ends the body before with a line end more than it announced.
  let start = 0
  while (received[start] === CR || received[start] === LF) start++
  const bytes = received.subarray(start)
  if (start > 2) return "bad"
  if (bytes.length > 0 && !isLetter(bytes[0] as number)) return "bad"
  const bodyAt = endOfHead(bytes)
  if (bodyAt === -1) return received.length > MAX_HEAD_BYTES ? "bad" : "more"
  const [first = "", ...rest] = latin1(bytes.subarray(0, bodyAt)).split(/\r?\n/)
  const line = /^([A-Za-z]{1,16}) +(\S.*?)(?: +HTTP\/\d(?:\.\d)?)? *$/.exec(first)
  if (line === null || start + bodyAt > MAX_HEAD_BYTES) return "bad"
  const headers = new Map<string, string>()
  for (const header of rest) {
    const colon = header.indexOf(":")
    if (colon > 0) headers.set(header.slice(0, colon).trim().toLowerCase(), header.slice(colon + 1).trim())
  }
  const method = (line[1] ?? "").toUpperCase()
  const target = (line[2] ?? "").replace(/^https?:\/\/[^/?]*/i, "").replace(/#.*$/, "")
  const query = target.indexOf("?")
  const path = query === -1 ? target : target.slice(0, query)
  const declared = headers.get("content-length")
  if (declared !== undefined && !/^\d{1,15}$/.test(declared)) return "bad"
  return {
    method,
    path,
    search: query === -1 ? "" : target.slice(query),
    length:
      headers.get("transfer-encoding")?.toLowerCase() === "chunked"
        ? "chunked"
        : declared !== undefined
          ? Number(declared)
          : mayHaveBody(method, path)
            ? null
            : 0,
    expectsContinue: headers.get("expect")?.toLowerCase() === "100-continue",
    bodyAt: start + bodyAt,
  }
}

/** The last bytes of a chunked body, with trailers that nobody needs: only when they are here is it worth looking at the whole. */
export const isMaybeLastChunk = (received: Uint8Array): boolean => /(^|\n)0+(;[^\n]*)?\r?\n/.test(latin1(received.subarray(-MAX_TRAILER_BYTES)))
const MAX_TRAILER_BYTES = 1_024

/** Chunks joined; `"more"` while the last one is missing, `"bad"` when they are none. */
export const readChunks = (bytes: Uint8Array): Uint8Array | "more" | "bad" => {
  const parts: Array<Uint8Array> = []
  let size = 0
  for (let at = 0; ; ) {
    const end = bytes.indexOf(LF, at)
    if (end === -1) return bytes.length - at > 32 ? "bad" : "more"
    const hex = /^([0-9A-Fa-f]{1,7})(?:;.*)?\r?$/.exec(latin1(bytes.subarray(at, end)))?.[1]
    if (hex === undefined) return "bad"
    const length = Number.parseInt(hex, 16)
    if (length === 0) break
    if (bytes.length < end + 1 + length + 1) return "more"
    parts.push(bytes.subarray(end + 1, end + 1 + length))
    size += length
    at = end + 1 + length
    if (bytes[at] === 13) at++
    if (bytes[at] === undefined) return "more"
    if (bytes[at] !== LF) return "bad"
    at++
  }
  const whole = new Uint8Array(size)
  let at = 0
  for (const part of parts) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}

const REASONS: Readonly<Record<number, string>> = {
  200: "OK",
  400: "Bad Request",
  403: "Forbidden",
  404: "Not Found",
  413: "Content Too Large",
  503: "Service Unavailable",
}

export interface IclockAnswer {
  readonly status: number
  readonly text: string
}

const encoder = new TextEncoder()

/** Answers of this second: most terminals have nothing to do, and are told so in the same bytes. */
let second = -1
let date = ""
const made = new Map<string, Uint8Array>()

/** The bytes of an answer; `now` is the terminal's clock source. */
export const writeAnswer = ({ status, text }: IclockAnswer, now: number): Uint8Array => {
  if (Math.floor(now / 1000) !== second) {
    second = Math.floor(now / 1000)
    date = new Date(now).toUTCString()
    made.clear()
  }
  const name = `${status} ${text}`
  const known = text.length < 100 ? made.get(name) : undefined
  if (known !== undefined) return known
  const body = encoder.encode(text)
  const head = encoder.encode(
    [
      `HTTP/1.1 ${status} ${REASONS[status] ?? "Error"}`,
      `Date: ${date}`,
      "Content-Type: text/plain",
      `Content-Length: ${body.length}`,
      "Connection: close",
      "\r\n",
    ].join("\r\n"),
  )
  const bytes = new Uint8Array(head.length + body.length)
  bytes.set(head)
  bytes.set(body, head.length)
  if (text.length < 100 && made.size < 100) made.set(name, bytes)
  return bytes
}

export const CONTINUE: Uint8Array = encoder.encode("HTTP/1.1 100 Continue\r\n\r\n")
