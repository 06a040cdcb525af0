/** The lines of a body, put together to pages: of one answer, or of a stream without end. */
import { BodyFault, type BodyLimits, readChunks, splitLines, unpress } from "./body.ts"
import { isRows, openLine } from "./frame.ts"
import { type Header, LEAST_RATE, MAX_BODY_MS, MAX_LINE_BYTES, type RowsLine, type Trailer } from "./protocol.ts"

/** A page is about 1 MiB of rows, or 2; one row may be large. */
const MAX_PAGE_BYTES = 256 * 1024 * 1024

export interface PulledPage {
  readonly header: Header
  readonly lines: ReadonlyArray<RowsLine>
  /** null: the line broke before the page's end; what came before is good. */
  readonly trailer: Trailer | null
  readonly bytes: number
}

/** Hears of each line as it comes; the page that has the same header is handed on later, or never. */
export type OnLine = (header: Header, line: RowsLine) => void

/** A generator that waits for a byte ends only when its request is given up; that has happened before. */
export const closeQuietly = async (pages: AsyncGenerator<unknown>): Promise<void> => {
  await Promise.race([pages.return(undefined).catch(() => undefined), new Promise((done) => setTimeout(done, 1_000))])
}

const limitsOf = (isEndless: boolean, idleMs: number): BodyLimits =>
  isEndless ? { maxBytes: Number.POSITIVE_INFINITY, idleMs } : { maxBytes: MAX_PAGE_BYTES, idleMs, totalMs: MAX_BODY_MS, leastRate: LEAST_RATE }

/**
 * The pages of a body, whole ones and at its end perhaps the beginning of one; what came whole before the line broke is kept,
 * and the next request goes on after it. `nothing`: an empty line beside the one that a stream begins with.
 */
export const pagesOf = async function* (
  body: ReadableStream<Uint8Array> | null,
  isEndless: boolean,
  idleMs: number,
  onBytes: (bytes: number) => void,
  onLine: OnLine = () => undefined,
): AsyncGenerator<PulledPage | "nothing" | "asked"> {
  let header: Header | null = null
  let hasBegun = false
  let bytes = 0
  let slowAt = Number.POSITIVE_INFINITY
  let lines: Array<PulledPage["lines"][number]> = []
  const counted = async function* () {
    for await (const chunk of readChunks(body, limitsOf(isEndless, idleMs))) {
      onBytes(chunk.length)
      bytes += chunk.length
      if (isEndless && header !== null) {
        slowAt += (chunk.length * 1000) / LEAST_RATE
        if (performance.now() > slowAt) throw new BodyFault("too slow")
      }
      yield chunk
    }
  }
  try {
    for await (const text of splitLines(unpress(counted()), MAX_LINE_BYTES)) {
      if (text === "") {
        if (hasBegun && header === null) yield "nothing"
        hasBegun = true
        continue
      }
      const opened = openLine(text)
      if ("damaged" in opened) throw new BodyFault(opened.damaged)
      const line = opened.ok
      if (line[0] === "cut") {
        if (header !== null) throw new BodyFault("a page began inside another")
        header = line[1]
        slowAt = performance.now() + MAX_BODY_MS
      } else if (line[0] === "sync") yield "asked"
      else if (header === null) throw new BodyFault("rows without a page")
      else if (isRows(line)) {
        lines.push(line)
        onLine(header, line)
      } else {
        const page = { header, lines, trailer: line[1], bytes }
        header = null
        lines = []
        bytes = 0
        yield page
      }
    }
  } catch (cause) {
    if (header === null || lines.length === 0) throw cause
  }
  if (header !== null && lines.length > 0) yield { header, lines, trailer: null, bytes }
  else throw new Error(header === null ? "the connection ended" : "the page broke off before its first row")
}
