/** Text for a terminal (pure): tables by display width, sizes, ages, states as symbol and word. */
import { stripVTControlCharacters } from "node:util"
import { labelOf } from "../status/judge.ts"
import type { State } from "../status/snapshot.ts"

export interface Look {
  readonly color: boolean
  /** False where the locale cannot print more than ASCII. */
  readonly unicode: boolean
}

const segmenter = new Intl.Segmenter(undefined, { granularity: "grapheme" })
const WIDE =
  /^[\p{Emoji_Presentation}\u{1100}-\u{115F}\u{2E80}-\u{303E}\u{3041}-\u{33FF}\u{3400}-\u{4DBF}\u{4E00}-\u{9FFF}\u{A000}-\u{A4CF}\u{AC00}-\u{D7A3}\u{F900}-\u{FAFF}\u{FE30}-\u{FE6F}\u{FF00}-\u{FF60}\u{FFE0}-\u{FFE6}\u{20000}-\u{3FFFD}]/u
const NONE = /^[\p{Mn}\p{Me}\p{Cf}]+$/u

/** Columns that a text takes: CJK and emoji two, combining marks none. */
export const widthOf = (text: string): number => {
  let width = 0
  for (const { segment } of segmenter.segment(stripVTControlCharacters(text))) width += NONE.test(segment) ? 0 : WIDE.test(segment) ? 2 : 1
  return width
}

/** Names come from other people's input: no control character of theirs reaches the terminal. */
export const clean = (text: string): string => text.replace(/[\u0000-\u001F\u007F-\u009F\u2028-\u202E\u2066-\u2069]/g, " ")

const paint = (look: Look, code: string, text: string): string => (look.color ? `\u001B[${code}m${text}\u001B[0m` : text)
export const bold = (look: Look, text: string): string => paint(look, "1", text)
export const dim = (look: Look, text: string): string => paint(look, "2", text)
export const red = (look: Look, text: string): string => paint(look, "31", text)
export const green = (look: Look, text: string): string => paint(look, "32", text)
export const yellow = (look: Look, text: string): string => paint(look, "33", text)

/** `right`: numbers. Cells may carry colour. */
export interface TableColumn {
  readonly title: string
  readonly right?: true
}

export const table = (look: Look, columns: ReadonlyArray<TableColumn>, rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = columns.map((column, i) => Math.max(widthOf(column.title), ...rows.map((row) => widthOf(row[i] ?? ""))))
  const pad = (text: string, i: number): string => {
    const space = " ".repeat((widths[i] ?? 0) - widthOf(text))
    return columns[i]?.right === true ? space + text : i === columns.length - 1 ? text : text + space
  }
  const line = (cells: ReadonlyArray<string>) => cells.map(pad).join("  ").trimEnd()
  return [bold(look, line(columns.map((column) => column.title))), ...rows.map(line)].map((text) => `${text}\n`).join("")
}

const SYMBOLS: Readonly<Record<State, readonly [unicode: string, ascii: string, color: string]>> = {
  up_to_date: ["✔", "ok", "32"],
  syncing: ["⇅", "~", "36"],
  catching_up: ["⇊", ">>", "36"],
  pending: ["…", "..", "33"],
  offline: ["○", "--", "33"],
  paused: ["‖", "||", "33"],
  stuck: ["✖", "!!", "31"],
  new: ["·", "*", "2"],
}

/** A state is always a symbol and a word, never a colour alone. */
export const stateText = (look: Look, state: State): string => {
  const [unicode, ascii, color] = SYMBOLS[state]
  return paint(look, color, `${look.unicode ? unicode : ascii} ${labelOf(state)}`)
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
export const sizeText = (bytes: number | null): string => {
  if (bytes === null) return "-"
  let n = bytes
  let unit = 0
  while (n >= 1024 && unit < UNITS.length - 1) {
    n /= 1024
    unit++
  }
  return `${unit === 0 ? n : n.toFixed(1)} ${UNITS[unit]}`
}

export const countText = (n: number): string => n.toLocaleString("en-US")
