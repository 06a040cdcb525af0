/**
 * The rows of a line, read straight into what the driver binds (pure). JSON.parse would make objects of values that are handed on
 * at once, and looks every short text up among all that it has ever met, which takes longer than to cut it out.
 */
import { type Cell, type Kind, type Wire, wireToCell } from "../model/value.ts"

const QUOTE = 34
const COMMA = 44
const MINUS = 45
const ZERO = 48
const NINE = 57
const OPEN = 91
const CLOSE = 93
const BACKSLASH = 92
const FALSE = 102
const NULL = 110
const TRUE = 116

/** Digits of a whole number that a JS number holds exactly, its sign included. */
const EXACT_DIGITS = 15

export const isWhole = (kind: Kind): boolean => kind === "int" || kind === "bigint"

/** A cell, but for whole numbers, which SQLite makes of a number or a text: to hand a bigint over takes twice as long. */
export const wireToBind = (kind: Kind, wire: Wire): Cell =>
  !isWhole(kind) || wire === null
    ? wireToCell(kind, wire)
    : typeof wire === "number"
      ? wire
      : typeof wire === "string" && wire.length <= EXACT_DIGITS
        ? Number(wire)
        : String(wire)

/** A line of rows alone, up to them. */
interface OpenedPuts {
  readonly table: string
  readonly columns: ReadonlyArray<string>
  readonly rowsAt: number
}

const PUTS = '["puts",'
const HEAD_END = "],[["

/** null: a line of another kind. */
export const openPuts = (text: string): OpenedPuts | null => {
  if (!text.startsWith(PUTS)) return null
  const end = text.indexOf(HEAD_END)
  if (end < 0) return null
  try {
    const [, , , table, columns] = JSON.parse(`${text.slice(0, end + 1)}]`) as [string, number, number, string, ReadonlyArray<string>]
    return { table, columns, rowsAt: end + 2 }
  } catch {
    // A column's name looks like the end of the head.
    return null
  }
}

/** Where the text ends whose content begins here; -1: it does not. */
const textEnd = (text: string, from: number): number => {
  for (let end = text.indexOf('"', from); end >= 0; end = text.indexOf('"', end + 1)) {
    let escapes = 0
    while (text.charCodeAt(end - 1 - escapes) === BACKSLASH) escapes++
    if (escapes % 2 === 0) return end
  }
  return -1
}

/**
 * The values of rows, one row after the other, from the bracket that opens their list on; null: something stands there that
 * JSON.parse must read. The text is JSON, as whoever sealed it wrote it.
 */
export const scanRows = (text: string, from: number, kinds: ReadonlyArray<Kind>): Array<Cell> | null => {
  const width = kinds.length
  const wholes = kinds.map(isWhole)
  const texts = kinds.map((kind) => kind === "text" || kind === "numeric")
  const hasEscapes = text.includes("\\")
  const cells: Array<Cell> = []
  let at = from
  if (text.charCodeAt(at++) !== OPEN) return null
  for (;;) {
    if (text.charCodeAt(at++) !== OPEN) return null
    for (let i = 0; i < width; i++) {
      const first = text.charCodeAt(at)
      if (first === QUOTE) {
        const end = hasEscapes ? textEnd(text, at + 1) : text.indexOf('"', at + 1)
        if (end < 0) return null
        if (wholes[i] === true && end - at <= EXACT_DIGITS + 1) {
          at++
          const isBelow = text.charCodeAt(at) === MINUS
          if (isBelow) at++
          let value = 0
          for (; at < end; at++) value = value * 10 + text.charCodeAt(at) - ZERO
          cells.push(isBelow ? -value : value)
        } else {
          const written = text.slice(at + 1, end)
          const value = hasEscapes && written.includes("\\") ? (JSON.parse(`"${written}"`) as string) : written
          cells.push(texts[i] === true ? value : wireToBind(kinds[i] as Kind, value))
        }
        at = end + 1
      } else if (first === NULL) {
        cells.push(null)
        at += 4
      } else if (first === TRUE || first === FALSE) {
        cells.push(wireToCell(kinds[i] as Kind, first === TRUE))
        at += first === TRUE ? 4 : 5
      } else if (first === MINUS || (first >= ZERO && first <= NINE)) {
        const start = at++
        for (let code = text.charCodeAt(at); code !== COMMA && code !== CLOSE; code = text.charCodeAt(++at)) if (at >= text.length) return null
        cells.push(wireToBind(kinds[i] as Kind, Number(text.slice(start, at))))
      } else return null
      if (text.charCodeAt(at++) !== (i === width - 1 ? CLOSE : COMMA)) return null
    }
    const next = text.charCodeAt(at++)
    if (next === CLOSE) return cells
    if (next !== COMMA) return null
  }
}
