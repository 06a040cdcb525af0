/** What a terminal asked, freed of the spellings of its firmware (pure). */

export interface IclockRequest {
  readonly method: string
  /** Last path segment without extension, lower case: `cdata`, `getrequest`, `devicecmd` … */
  readonly name: string
  /** Query by lower-case name; the first of each. */
  readonly query: ReadonlyMap<string, string>
  readonly body: Uint8Array
}

/** Firmware does not percent-encode; what cannot be decoded is taken as it stands. */
const decode = (text: string): string => {
  try {
    return decodeURIComponent(text.replaceAll("+", " "))
  } catch {
    return text
  }
}

/** Paths vary: `/iclock/cdata`, `/iclock/cdata.aspx`, `/school/x/iclock/CDATA/`. */
export const parseRequest = (method: string, path: string, search: string, body: Uint8Array): IclockRequest => {
  const name = (path.replace(/\/+$/, "").split("/").at(-1) ?? "").toLowerCase().replace(/\.(aspx|php)$/, "")
  const query = new Map<string, string>()
  for (const pair of search.replace(/^\?/, "").split("&")) {
    if (pair === "") continue
    const equals = pair.indexOf("=")
    const key = decode(equals === -1 ? pair : pair.slice(0, equals)).toLowerCase()
    if (!query.has(key)) query.set(key, equals === -1 ? "" : decode(pair.slice(equals + 1)))
  }
  return { method: method.toUpperCase(), name, query, body }
}

/** The serial number that identifies the terminal, or null when there is none that could be one. */
export const serialOf = (request: IclockRequest): string | null => {
  const serial = request.query.get("sn") ?? ""
  return /^[A-Za-z0-9_-]{1,64}$/.test(serial) ? serial : null
}

const strict = new TextDecoder("utf-8", { fatal: true })
const gb18030 = new TextDecoder("gb18030")

/** UTF-8 as newer firmware writes it, else GB18030. A name cut at the byte limit leaves up to three bytes of a character. */
export const decodeText = (bytes: Uint8Array): string => {
  for (let cut = 0; cut <= 3 && cut <= bytes.length; cut++) {
    try {
      return strict.decode(bytes.subarray(0, bytes.length - cut))
    } catch {}
  }
  return gb18030.decode(bytes)
}
