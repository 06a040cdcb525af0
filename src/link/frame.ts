/** Lines with their checksum, and batches as bytes. Plain functions; a damaged line is a value, never an exception. */
import { crc32 } from "node:zlib"
import { z } from "zod"
import type { BatchHeader } from "../model/batch.ts"
import type { Batch, Change } from "../model/change.ts"
import { BatchHeaderLine, ChangeLine, Header, type Line, type LineRow, type RowsLine, type RowsText, Trailer } from "./protocol.ts"

const hex8 = (n: number): string => (n >>> 0).toString(16).padStart(8, "0")

/** `["rows",5]` -> `["rows",5,"1c291ca3"]`; the checksum covers the text before its comma. */
export const sealLine = (json: string): string => {
  const body = json.slice(0, -1)
  return `${body},"${hex8(crc32(body))}"]`
}

export type Opened = { readonly ok: Line } | { readonly damaged: string }

const SEAL = 12 // ,"xxxxxxxx"]

const RowsForm = z.tuple([
  z.enum(["rows", "puts"]),
  z.number().int(),
  z.number().int(),
  z.string(),
  z.array(z.string()),
  z.array(z.unknown()),
  z.number().int().optional(),
])
/** What every hub writes before the rows of a line and after them; a line of another form is read as a whole. */
const ROWS_HEAD = /^\["(rows|puts)",(\d+),(\d+),("(?:[^"\\]|\\.)*"),\["/
const ROWS_COUNT = /\],(\d{1,9})$/

/** A rows line without its seal; null: it has another form. */
export const rowsLine = (text: string): RowsLine | null => {
  const head = ROWS_HEAD.exec(text)
  const count = ROWS_COUNT.exec(text.slice(-12, -1))
  if (head !== null && count !== null)
    return [head[1] as RowsLine[0], Number(head[2]), Number(head[3]), JSON.parse(head[4] as string) as string, Number(count[1]), text]
  const whole = RowsForm.safeParse(JSON.parse(text))
  if (!whole.success) return null
  const [kind, cls, last, table, , rows] = whole.data
  return [kind, cls, last, table, rows.length, text]
}

export const readRows = ([, , , , , text]: RowsLine): RowsText => JSON.parse(text) as RowsText

/** Rows with their keys, whose columns have these names. */
export const keyedRows = (text: RowsText, key: ReadonlyArray<string>): ReadonlyArray<LineRow> => {
  if (text[0] === "rows") return text[5]
  const at = key.map((name) => text[4].indexOf(name))
  return text[5].map((row) => [at.map((i) => row[i] ?? null), row])
}

export const isRows = (line: Line): line is RowsLine => line[0] === "rows" || line[0] === "puts"

export const openLine = (text: string): Opened => {
  const seal = text.slice(-SEAL)
  const body = text.slice(0, -SEAL)
  if (!/^,"[0-9a-f]{8}"\]$/.test(seal) || !body.startsWith("[")) return { damaged: "not a line of this protocol" }
  if (hex8(crc32(body)) !== seal.slice(2, 10)) return { damaged: "checksum of a line does not match" }
  let line: unknown
  try {
    if (body.startsWith('["rows",') || body.startsWith('["puts",')) {
      const rows = rowsLine(`${body}]`)
      return rows === null ? { damaged: "a rows line has another form" } : { ok: rows }
    }
    line = JSON.parse(`${body}]`)
  } catch {
    return { damaged: "a line is not JSON" }
  }
  if (!Array.isArray(line)) return { damaged: "a line is not an array" }
  if (line[0] === "cut") {
    const header = Header.safeParse(line[1])
    return header.success ? { ok: ["cut", header.data] } : { damaged: "a cut line has another form" }
  }
  if (line[0] === "page") {
    const trailer = Trailer.safeParse(line[1])
    return trailer.success ? { ok: ["page", trailer.data] } : { damaged: "a page line has another form" }
  }
  if (line[0] === "sync") return { ok: ["sync", {}] }
  return { damaged: `unknown line ${JSON.stringify(line[0])}` }
}

export interface DecodedBatch {
  readonly batch: Batch
  readonly header: BatchHeader
  /** Lines that are not a change of this protocol: kept raw, each gets the verdict `quarantined`. */
  readonly unreadable: ReadonlyArray<{ readonly id: number; readonly raw: string; readonly reason: string }>
}

const WIRES = new Set(["boolean", "number", "string"])
const isWire = (value: unknown): boolean => value === null || WIRES.has(typeof value)
const FIELDS = new Set(["id", "table", "op", "key", "newKey", "at", "base", "mine"])

/**
 * Quickly true for what nearly every line is, and for nothing that `ChangeLine` refuses or would give another form; all else
 * is left to `ChangeLine`, which takes several times as long as the parsing of the line.
 */
const isPlainChange = (json: unknown): json is Change => {
  if (json === null || typeof json !== "object") return false
  for (const field in json) if (!FIELDS.has(field)) return false
  const { id, table, op, key, newKey, at, base, mine } = json as Record<keyof Change, unknown>
  if (!Number.isSafeInteger(id) || typeof table !== "string" || !Number.isFinite(at)) return false
  if (op !== "insert" && op !== "update" && op !== "delete") return false
  if (!Array.isArray(key) || !key.every(isWire) || !(newKey === undefined || (Array.isArray(newKey) && newKey.every(isWire)))) return false
  for (const values of [base, mine]) {
    if (values === null || typeof values !== "object" || Array.isArray(values) || Object.hasOwn(values, "__proto__")) return false
    for (const name in values) if (!isWire((values as Record<string, unknown>)[name])) return false
  }
  return true
}

/** Bytes -> batch, or the reason why they are none (then nothing was promised for them: 422). */
export const decodeBatch = (text: string): { readonly ok: DecodedBatch } | { readonly refused: string } => {
  const lines = text.split("\n").filter((line) => line !== "")
  let first: unknown
  try {
    first = JSON.parse(lines[0] ?? "")
  } catch {
    return { refused: "the first line is not JSON" }
  }
  if (!Array.isArray(first) || first[0] !== "batch") return { refused: 'the first line is not ["batch", …]' }
  const header = BatchHeaderLine.safeParse(first[1])
  if (!header.success)
    return { refused: `the batch header is malformed: ${header.error.issues[0]?.path.join(".")} ${header.error.issues[0]?.message}` }
  const changes: Array<Change> = []
  const unreadable: Array<{ id: number; raw: string; reason: string }> = []
  for (const raw of lines.slice(1)) {
    let json: unknown
    try {
      json = JSON.parse(raw)
    } catch {
      json = undefined
    }
    if (isPlainChange(json)) {
      changes.push(json)
      continue
    }
    const change = ChangeLine.safeParse(json)
    if (change.success) changes.push(change.data as Change)
    else
      unreadable.push({
        id: Number((json as { id?: unknown } | undefined)?.id ?? -1 - unreadable.length),
        raw,
        reason: change.error.issues[0]?.message ?? "not a change",
      })
  }
  const { incarnation, number, manifest } = header.data
  return { ok: { batch: { incarnation, number, manifest, changes }, header: header.data, unreadable } }
}
