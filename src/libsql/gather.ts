/** Rows of a query of `lines.ts` -> the bytes of their lines, in the worker (pure). */
import { Buffer, isUtf8 } from "node:buffer"
import { MAX_CHANGE_BYTES } from "../model/batch.ts"

export interface Lines {
  /** Writes dealt with. */
  readonly count: number
  readonly firstId: number
  /** The last of them. */
  readonly lastId: number
  readonly lines: number
  readonly bytes: Uint8Array
  /** Writes that changed nothing. */
  readonly dropped: ReadonlyArray<number>
}

export interface LinesLimits {
  /** How many pieces come before those of the new values. */
  readonly heads: number
  readonly after: number
  /** Writes looked at. */
  readonly writes: number
  readonly maxBytes: number
  readonly isFirst: boolean
}

type Piece = null | number | bigint | Uint8Array

const utf8 = new TextEncoder()
const END = utf8.encode("}}\n")
const FIRST_BYTES = 64 * 1024

/** Rows read at once: few at first, then as many as their size allows. A read is always to its end: one that is left open holds its snapshot. */
const FIRST_ROWS = 32
const MOST_ROWS = 500
const ROWS_GROWTH = 8

type Row = ReadonlyArray<Piece>

/** The lines of some writes, one after the other. */
export interface Whole {
  readonly count: number
  readonly lastId: number
  readonly bytes: Uint8Array
}

/**
 * `read`: rows of a `linesSql` query after an id. `isFirst`: one line is taken whatever its size. `readWhole`: the same writes
 * as one piece; null: there are others among them than such as have their lines that way.
 */
export const gatherLines = (
  read: (after: number, limit: number) => ReadonlyArray<Row>,
  { heads, after, writes, maxBytes, isFirst }: LinesLimits,
  readWhole: (after: number, limit: number) => Whole | null = () => null,
): Lines => {
  let bytes = new Uint8Array(FIRST_BYTES)
  let end = 0
  const put = (piece: Uint8Array, from = 0): void => {
    const size = piece.length - from
    if (end + size > bytes.length) {
      const wider = new Uint8Array(Math.max(bytes.length * 2, end + size))
      wider.set(bytes.subarray(0, end))
      bytes = wider
    }
    bytes.set(from === 0 ? piece : piece.subarray(from), end)
    end += size
  }
  /** Its line stands at the end then, or nothing of it. */
  const putLine = (row: Row): "line" | "nothing" | "doubt" => {
    const start = end
    let isEmpty = true
    for (let i = 2; i < row.length; i++) {
      const piece = row[1] === 1n ? (row[i] ?? null) : null
      if (piece === null) {
        end = start
        return "doubt"
      }
      const part = piece instanceof Uint8Array ? piece : utf8.encode(numberText(Number(piece)))
      // The first new value has a comma before it.
      const isOpening = i >= heads + 2 && isEmpty && part.length > 0
      if (isOpening) isEmpty = false
      put(part, isOpening ? 1 : 0)
    }
    if (end - start > MAX_CHANGE_BYTES) {
      end = start
      return "doubt"
    }
    if (isEmpty) end = start
    else put(END)
    return isEmpty ? "nothing" : "line"
  }
  const dropped: Array<number> = []
  let [count, lines, firstId, lastId] = [0, 0, 0, after]
  const found = (): Lines => ({ count, firstId, lastId, lines, bytes: bytes.slice(0, end), dropped })
  let areWhole = true
  /** How many were taken as one piece; the first ones never are, as they tell how large the next ones will be. */
  const takeWhole = (limit: number): number => {
    if (!areWhole || count === 0) return 0
    const whole = readWhole(lastId, limit)
    areWhole = whole !== null && whole.bytes.length <= Math.min(MAX_CHANGE_BYTES, maxBytes - end)
    if (whole === null || !areWhole) return 0
    put(whole.bytes)
    count += whole.count
    lines += whole.count
    lastId = whole.lastId
    return whole.count
  }
  for (let limit = FIRST_ROWS; ; ) {
    const most = Math.min(limit, writes - count)
    const taken = takeWhole(most)
    const rows = taken > 0 ? [] : read(lastId, most)
    for (const row of rows) {
      const start = end
      const what = putLine(row)
      if (what === "doubt") return found()
      if (what === "line" && end > maxBytes && !(isFirst && lines === 0)) {
        end = start
        return found()
      }
      count++
      lastId = Number(row[0])
      firstId ||= lastId
      if (what === "line") lines++
      else dropped.push(lastId)
    }
    if (taken + rows.length < limit || count >= writes || end >= maxBytes) return found()
    limit = Math.max(1, Math.min(MOST_ROWS, limit * ROWS_GROWTH, Math.ceil((maxBytes - end) / Math.max(1, end / count))))
  }
}

const numberText = (value: number): string => (Number.isFinite(value) ? JSON.stringify(value) : value > 0 ? '"Infinity"' : '"-Infinity"')

const NUL = "\\u0000"

/** Text that a program wrote may be none, or hold a NUL, which no column of Postgres takes. */
export const isCleanText = (bytes: Uint8Array): boolean =>
  isUtf8(bytes) && !Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).includes(NUL)
