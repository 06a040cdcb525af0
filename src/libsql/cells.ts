/**
 * Reading what any program may have written, without trusting it to be text: the native client ends the process on
 * invalid UTF-8 that it reads as text, and cuts text at a NUL. So text and blobs come as tagged bytes.
 */
import { type Cell, cellToWire, hexToBytes, type Kind, type Refused, type Wire } from "../model/value.ts"

const TEXT_TAG = 116 // t
const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
const lenient = new TextDecoder("utf-8", { ignoreBOM: true })

/** SQL that reads one value safely; `readCell` understands it. */
export const safely = (expression: string): string =>
  `CASE typeof(${expression}) WHEN 'text' THEN CAST('t' || ${expression} AS BLOB) WHEN 'blob' THEN CAST('b' || hex(${expression}) AS BLOB) ELSE ${expression} END`

/** A value as `safely` gave it -> cell; null bytes and valid text kept exactly, invalid UTF-8 as its bytes. */
export const readCell = (raw: Cell): Cell | { readonly invalid: Uint8Array } => {
  if (!(raw instanceof Uint8Array)) return raw
  const bytes = raw.subarray(1)
  if (raw[0] !== TEXT_TAG) return hexToBytes(lenient.decode(bytes))
  try {
    return strict.decode(bytes)
  } catch {
    return { invalid: bytes }
  }
}

export const readWire = (kind: Kind, raw: Cell): Wire | Refused => {
  const cell = readCell(raw)
  if (typeof cell === "object" && cell !== null && "invalid" in cell) {
    return { refused: "text is not valid UTF-8", hex: [...cell.invalid].map((byte) => byte.toString(16).padStart(2, "0")).join("") }
  }
  return cellToWire(kind, cell)
}

/** Text that is only shown or compared: damaged parts become U+FFFD. */
export const readText = (raw: Cell): string => (raw instanceof Uint8Array ? lenient.decode(raw.subarray(1)) : String(raw))

/** Same type and same bytes; neither collation nor 1 = 1.0 makes values equal. */
export const sameRaw = (left: Cell, right: Cell): boolean => {
  if (left instanceof Uint8Array && right instanceof Uint8Array) {
    if (left.length !== right.length) return false
    for (let i = 0; i < left.length; i++) if (left[i] !== right[i]) return false
    return true
  }
  return Object.is(left, right)
}
