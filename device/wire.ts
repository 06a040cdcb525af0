/** One request on one connection, as firmware makes it, and the answer as firmware reads it. */
import { connect, type Socket } from "node:net"

const TIMEOUT_MS = 10_000

export interface Answer {
  readonly body: string
  /** The `Date` header, ms since 1970: where the terminal takes its clock from. */
  readonly date: number | null
}

export interface Call {
  readonly method: "GET" | "POST"
  /** Path and query as they stand in the request line; nothing is percent-encoded. */
  readonly path: string
  readonly body: string | Uint8Array
  readonly version: "1.0" | "1.1"
  /** Header lines after the request line, without Content-Length. */
  readonly headers: ReadonlyArray<string>
}

export interface Mishap {
  /** The answer never arrives, though the server has done its work. */
  readonly loseReply: boolean
  /** The power goes after so many bytes of the body; null: it does not. */
  readonly cutAfter: number | null
}

export const NO_MISHAP: Mishap = { loseReply: false, cutAfter: null }

const requestBytes = ({ method, path, body, version, headers }: Call): { readonly head: Buffer; readonly body: Buffer } => {
  const bytes = typeof body === "string" ? Buffer.from(body, "utf8") : Buffer.from(body)
  const lines = [`${method} ${path} HTTP/${version}`, ...headers, ...(method === "POST" ? [`Content-Length: ${bytes.length}`] : [])]
  return { head: Buffer.from(`${lines.join("\r\n")}\r\n\r\n`, "latin1"), body: method === "POST" ? bytes : Buffer.alloc(0) }
}

/** A 200 answer, or null. */
export const exchange = (server: URL, wires: Set<Socket>, call: Call, mishap: Mishap = NO_MISHAP): Promise<Answer | null> =>
  new Promise((resolve) => {
    const socket = connect({ host: server.hostname.replace(/^\[|\]$/g, ""), port: Number(server.port || 80) })
    wires.add(socket)
    const chunks: Array<Buffer> = []
    let done = false
    const finish = (answer: Answer | null): void => {
      if (done) return
      done = true
      wires.delete(socket)
      clearTimeout(timer)
      socket.destroy()
      resolve(mishap.loseReply ? null : answer)
    }
    const timer = setTimeout(() => finish(null), TIMEOUT_MS)
    const read = (isEnd: boolean): void => {
      const bytes = Buffer.concat(chunks)
      const end = bytes.indexOf("\r\n\r\n")
      if (end === -1) {
        if (isEnd) finish(null)
        return
      }
      const head = bytes.subarray(0, end).toString("latin1")
      const content = bytes.subarray(end + 4)
      // Letter by letter, as firmware looks for them: another case is not found.
      const length = /^Content-Length: *(\d+)/m.exec(head)?.[1]
      const isWhole = length === undefined ? isEnd : content.length >= Number(length)
      if (!isWhole && !isEnd) return
      // Only this status line counts as success; nothing else does. Without text/plain the clock is not taken.
      const isAccepted = isWhole && /^HTTP\/1\.[01] 200 /.test(head)
      const date = head.includes("text/plain") ? Date.parse(/^Date: *(.*)/m.exec(head)?.[1] ?? "") : Number.NaN
      const body = content.subarray(0, length === undefined ? content.length : Number(length)).toString("utf8")
      finish(isAccepted ? { body, date: Number.isNaN(date) ? null : date } : null)
    }
    socket.on("data", (chunk) => {
      chunks.push(typeof chunk === "string" ? Buffer.from(chunk) : chunk)
      read(false)
    })
    socket.on("end", () => read(true))
    socket.on("error", () => finish(null))
    socket.on("close", () => read(true))
    const { head, body } = requestBytes(call)
    if (mishap.cutAfter === null) socket.write(Buffer.concat([head, body]))
    else socket.write(Buffer.concat([head, body.subarray(0, mishap.cutAfter)]), () => setTimeout(() => finish(null), 20))
  })
