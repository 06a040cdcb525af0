/** What a terminal asked, freed of the spellings of its firmware (pure). */

export interface IclockRequest {
  readonly method: string
  /** Last path segment without extension, lower case: `cdata`, `getrequest`, `devicecmd` … */
  readonly name: string
  /** Query by lower-case name; the first of each. */
  readonly query: ReadonlyMap<string, string>
}

/** Most firmware does not percent-encode; what cannot be decoded is taken as it stands. */
const decode = (text: string): string => {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

/** A terminal asks the same again and again: what its requests mean is worked out once. */
const MAX_REMEMBERED = 4_000
const MAX_REMEMBERED_LENGTH = 120
const remembered = new Map<string, IclockRequest>()

export const parseRequest = (method: string, path: string, search: string): IclockRequest => {
  const key = `${method} ${path}${search}`
  if (key.length > MAX_REMEMBERED_LENGTH) return readRequest(method, path, search)
  const known = remembered.get(key)
  if (known !== undefined) return known
  const read = readRequest(method, path, search)
  if (remembered.size >= MAX_REMEMBERED) remembered.clear()
  remembered.set(key, read)
  return read
}

/** Paths vary: `/iclock/cdata`, `/iclock/cdata.aspx`, `/school/x/iclock/CDATA/`. */
const readRequest = (method: string, path: string, search: string): IclockRequest => {
  const name = (path.replace(/\/+$/, "").split("/").at(-1) ?? "").toLowerCase().replace(/\.(aspx|php)$/, "")
  const query = new Map<string, string>()
  for (const pair of search.replace(/^\?/, "").split("&")) {
    if (pair === "") continue
    const equals = pair.indexOf("=")
    const key = decode(equals === -1 ? pair : pair.slice(0, equals)).toLowerCase()
    if (!query.has(key)) query.set(key, equals === -1 ? "" : decode(pair.slice(equals + 1)))
  }
  return { method: method.toUpperCase(), name, query }
}

/** The serial number that identifies the terminal, or null when there is none that could be one. */
export const serialOf = (request: IclockRequest): string | null => {
  const serial = request.query.get("sn") ?? ""
  return /^[A-Za-z0-9_-]{1,64}$/.test(serial) ? serial : null
}

const ipv4 = (text: string): number | null => {
  const parts = text.split(".").map(Number)
  return /^\d{1,3}(\.\d{1,3}){3}$/.test(text) && parts.every((part) => part <= 255) ? parts.reduce((all, part) => all * 256 + part, 0) : null
}

/** `"10.20.0.7"`, `"10.20.0.0/24"`, or an IPv6 address as it is printed. */
export const isAddressRule = (rule: string): boolean => {
  const [address = "", bits] = rule.split("/")
  if (ipv4(address) !== null) return bits === undefined || (/^\d{1,2}$/.test(bits) && Number(bits) <= 32)
  return bits === undefined && /^[0-9a-f:.]{2,45}$/i.test(address) && address.includes(":")
}

export const isFrom = (rule: string, address: string): boolean => {
  const [net = "", bits] = rule.split("/")
  const left = ipv4(net)
  const right = ipv4(address)
  if (bits === undefined || left === null || right === null) return rule.toLowerCase() === address.toLowerCase()
  const size = 2 ** (32 - Number(bits))
  return Math.floor(left / size) === Math.floor(right / size)
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
const gb18030 = new TextDecoder("gb18030")
const TAB = 9
const LF = 10
const CR = 13

/** One field: UTF-8 as newer firmware writes it, else GB18030. A name cut at the byte limit leaves up to three bytes of a character. */
const decodeField = (bytes: Uint8Array): string => {
  for (let cut = 0; cut <= 3 && cut <= bytes.length; cut++) {
    try {
      return strict.decode(bytes.subarray(0, bytes.length - cut))
    } catch {}
  }
  return gb18030.decode(bytes)
}

export interface Line {
  readonly size: number
  /** As received, without its line end. */
  readonly bytes: () => Uint8Array
  /** Decoded field by field: one terminal may hold names in both encodings. Control characters but TAB are U+FFFD. */
  readonly text: string
}

const decodeLine = (bytes: Uint8Array): string => {
  const fields: Array<string> = []
  for (let from = 0; ; ) {
    const tab = bytes.indexOf(TAB, from)
    fields.push(decodeField(bytes.subarray(from, tab === -1 ? bytes.length : tab)))
    if (tab === -1) break
    from = tab + 1
  }
  return fields.join("\t").replace(/[\0-\x08\x0a-\x1f\x7f]/g, "\ufffd")
}

/** Printable ASCII, TAB and line ends: what most bodies are. */
const isPlain = (body: Uint8Array): boolean => {
  for (let i = 0; i < body.length; i++) {
    const byte = body[i] as number
    if ((byte < 32 && byte !== TAB && byte !== LF && byte !== CR) || byte > 126) return false
  }
  return true
}

/** Such a body is decoded at once, and a byte is a character. */
const plainLines = (body: Uint8Array): ReadonlyArray<Line> => {
  const lines: Array<Line> = []
  let from = 0
  for (const text of Buffer.from(body.buffer, body.byteOffset, body.byteLength)
    .toString("latin1")
    .split(/[\r\n]/)) {
    const at = from
    if (/[^\t ]/.test(text)) lines.push({ size: text.length, bytes: () => body.subarray(at, at + text.length), text })
    from += text.length + 1
  }
  return lines
}

/** A mark that some software puts before text in UTF-8. */
const unmarked = (body: Uint8Array): Uint8Array => (body[0] === 0xef && body[1] === 0xbb && body[2] === 0xbf ? body.subarray(3) : body)

/** The non-empty lines of a body, ended by LF, CRLF, CR, NUL or nothing. What an answer counts. */
export const linesOf = (received: Uint8Array): ReadonlyArray<Line> => {
  const body = unmarked(received)
  if (isPlain(body)) return plainLines(body)
  const lines: Array<Line> = []
  for (let from = 0; from < body.length; ) {
    let to = from
    while (to < body.length && body[to] !== LF && body[to] !== CR) to++
    let end = to
    while (end > from && body[end - 1] === 0) end--
    const bytes = body.subarray(from, end)
    if (bytes.some((byte) => byte !== TAB && byte !== 32)) lines.push({ size: bytes.length, bytes: () => bytes, text: decodeLine(bytes) })
    from = to + 1
  }
  return lines
}
