/**
 * Rows on their way into one statement (pure): numbers and two texts each, laid end to end. SQLite cuts a row out of a blob by
 * its place in half the time it takes to pick it out of JSON. The statement's parameters: ?1 the rows, ?2 the JSON list of their
 * places, ?3 the base in which a place is written; its own follow from ?4 on.
 */

/** Rows and characters of one statement. */
const SLAB_ROWS = 1_000
const SLAB_CHARS = 1024 * 1024
/** A place is (offset * base + bytes of the first text) * base + bytes of the second, in 63 bits. */
const BASE = 1_000_000
/** Three bytes a character at most: a text below this stays below the base. */
const SMALL_CHARS = 300_000
/** For a row that stands alone. */
const LARGE_BASE = 1_000_000_000
/** A number's characters. */
const WIDTH = 17
const PAD = " ".repeat(WIDTH)

const place = "j.value / (?3 * ?3)"
const firstBytes = "j.value / ?3 % ?3"
const part = (numbers: number, offset: string, length: string): string =>
  `CAST(substr(?1, ${place} + ${numbers * WIDTH}${offset}, ${length}) AS TEXT)`

/** SQL for what a row holds; `numbers`: how many it has. */
export const slabRow = (numbers: number) => ({
  from: "json_each(CAST(?2 AS TEXT)) j",
  number: (index: number): string => `CAST(substr(?1, ${place} + ${index * WIDTH}, ${WIDTH}) AS INTEGER)`,
  first: part(numbers, "", firstBytes),
  second: part(numbers, ` + ${firstBytes}`, "j.value % ?3"),
})

/** One statement's worth. */
export interface SlabPiece {
  readonly rows: Uint8Array
  readonly places: Uint8Array
  readonly base: number
}

/** A whole number as the text of its place. */
export const slabNumber = (value: number): string => {
  const text = String(value)
  return PAD.slice(text.length) + text
}

const encoder = new TextEncoder()

export class Slab {
  readonly pieces: Array<SlabPiece> = []
  #heads: Array<string> = []
  #firsts: Array<string> = []
  #seconds: Array<string> = []
  #chars = 0

  /** `head`: the row's numbers, each as `slabNumber` writes it. */
  add(head: string, first: string, second: string): void {
    const isLarge = first.length >= SMALL_CHARS || second.length >= SMALL_CHARS
    if (isLarge) this.close()
    this.#heads.push(head)
    this.#firsts.push(first)
    this.#seconds.push(second)
    this.#chars += head.length + first.length + second.length
    if (isLarge || this.#heads.length === SLAB_ROWS || this.#chars >= SLAB_CHARS) this.close(isLarge ? LARGE_BASE : BASE)
  }

  /** Makes a piece of the rows that none holds yet. */
  close(base: number = BASE): void {
    const rows = this.#heads.length
    if (rows === 0) return
    let text = ""
    for (let i = 0; i < rows; i++) text += (this.#heads[i] as string) + (this.#firsts[i] as string) + (this.#seconds[i] as string)
    const bytes = encoder.encode(text)
    const isAscii = bytes.length === text.length
    const length = (of: string): number => (isAscii ? of.length : Buffer.byteLength(of))
    let places = ""
    let offset = 1
    for (let i = 0; i < rows; i++) {
      const first = length(this.#firsts[i] as string)
      const second = length(this.#seconds[i] as string)
      const lengths =
        base === BASE
          ? String(BASE * BASE + first * BASE + second)
          : String(BigInt(base) * BigInt(base) + BigInt(first) * BigInt(base) + BigInt(second))
      // The leading 1 keeps the zeros.
      places += `${i === 0 ? "[" : ","}${offset}${lengths.slice(1)}`
      offset += (this.#heads[i] as string).length + first + second
    }
    this.pieces.push({ rows: bytes, places: encoder.encode(`${places}]`), base })
    this.#heads = []
    this.#firsts = []
    this.#seconds = []
    this.#chars = 0
  }
}
