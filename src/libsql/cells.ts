/**
 * Reading what any program may have written, without trusting it to be text: the native client ends the process on
 * invalid UTF-8 that it reads as text, and cuts text at a NUL. So text that is not printable ASCII, and blobs, come as
 * tagged bytes; the plain rest comes as it is, which is several times faster.
 */
import { bytesToHex, type Cell, cellToWire, type Kind, type Refused, type Wire } from "../model/value.ts"

const TEXT_TAG = 116 // t
const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
const lenient = new TextDecoder("utf-8", { ignoreBOM: true })

/** SQL that reads one value safely; the functions below understand it. The same value always reads the same. */
export const safely = (expression: string): string => {
  // length() counts characters and stops at NUL, so a text with one is shorter than its bytes.
  const isPlain = `${expression} NOT GLOB '*[^ -~]*' AND length(${expression}) = length(CAST(${expression} AS BLOB))`
  const text = `CASE WHEN ${isPlain} THEN ${expression} ELSE CAST('t' || ${expression} AS BLOB) END`
  return `CASE typeof(${expression}) WHEN 'text' THEN ${text} WHEN 'blob' THEN CAST('b' || ${expression} AS BLOB) ELSE ${expression} END`
}

/** A value as `safely` gave it -> cell; NUL and valid text kept exactly, invalid UTF-8 as its bytes. */
export const readCell = (raw: Cell): Cell | { readonly invalid: Uint8Array } => {
  if (!(raw instanceof Uint8Array)) return raw
  const bytes = raw.subarray(1)
  if (raw[0] !== TEXT_TAG) return bytes
  try {
    return strict.decode(bytes)
  } catch {
    return { invalid: bytes }
  }
}

export const readWire = (kind: Kind, raw: Cell): Wire | Refused => {
  const cell = readCell(raw)
  if (typeof cell === "object" && cell !== null && "invalid" in cell) return { refused: "text is not valid UTF-8", hex: bytesToHex(cell.invalid) }
  return cellToWire(kind, cell)
}

/** Text that is only shown or compared: damaged parts become U+FFFD. */
export const readText = (raw: Cell): string => (raw instanceof Uint8Array ? lenient.decode(raw.subarray(1)) : String(raw))

/** Same type and same bytes; neither collation nor 1 = 1.0 makes values equal. 0.0 and -0.0 are one value. */
export const sameRaw = (left: Cell, right: Cell): boolean => {
  if (left instanceof Uint8Array && right instanceof Uint8Array) {
    if (left.length !== right.length) return false
    for (let i = 0; i < left.length; i++) if (left[i] !== right[i]) return false
    return true
  }
  return left === right
}
