/**
 * Rows on their way into one statement (pure): numbers and two texts each, laid end to end. SQLite cuts a row out of a blob by
 * its place in half the time it takes to pick it out of JSON. The statement's parameters: ?1 the rows, ?2 the JSON list of their
 * places, ?3 the base in which a place is written; its own follow from ?4 on.
 */

/** Rows and characters of one statement. */
const SLAB_ROWS = 2_000
const SLAB_CHARS = 512 * 1024
/** A place is (offset * base + bytes of the first text) * base + bytes of the second, in 63 bits. */
const BASE = 1_000_000
/** Three bytes a character at most: a text below this stays below the base. */
const SMALL_CHARS = 300_000
/** For a row that stands alone. */
const LARGE_BASE = 1_000_000_000
/** A number's characters. */
const WIDTH = 17
const PADS = Array.from({ length: WIDTH }, (_, length) => " ".repeat(WIDTH - length))
/** A number beyond 32 bits is written in two parts, which takes a fraction of the time. */
const PART = 1_000_000_000

const place = "j.value / (?3 * ?3)"
const firstBytes = "j.value / ?3 % ?3"
const part = (numbers: number, offset: string, length: string): string =>
  `CAST(substr(?1, ${place} + ${numbers * WIDTH}${offset}, ${length}) AS TEXT)`

/** SQL for what a row holds; `numbers`: how many it has. The limit is none: with it SQLite reads a place once, not for every part anew. */
export const slabRow = (numbers: number) => ({
  from: "(SELECT value FROM json_each(CAST(?2 AS TEXT)) LIMIT -1) j",
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
  const high = Math.floor(value / PART)
  const text = high <= 0 ? String(value) : `${high}${String(PART + (value - high * PART)).slice(1)}`
  return (PADS[text.length] ?? "") + text
}

const encoder = new TextEncoder()

const digits = (bytes: number): string => String(BASE + bytes).slice(1)
const SHORT = Array.from({ length: 1024 }, (_, bytes) => digits(bytes))

/** The place's digits after its offset. */
const lengths = (base: number, first: number, second: number): string =>
  base === BASE
    ? (SHORT[first] ?? digits(first)) + (SHORT[second] ?? digits(second))
    : String((BigInt(base) + BigInt(first)) * BigInt(base) + BigInt(second)).slice(1)

export class Slab {
  readonly pieces: Array<SlabPiece> = []
  /** Head, first and second text of each row. */
  #texts: Array<string> = []
  #groups: Array<number> = []
  #chars = 0

  /**
   * `head`: the row's numbers, each as `slabNumber` writes it. Rows of a piece are written group by group: of a group that an index
   * keeps together, each finds its place near the one before it.
   */
  add(head: string, first: string, second: string, group: number): void {
    const isLarge = first.length >= SMALL_CHARS || second.length >= SMALL_CHARS
    if (isLarge) this.close()
    this.#texts.push(head, first, second)
    this.#groups.push(group)
    this.#chars += head.length + first.length + second.length
    if (isLarge || this.#texts.length === 3 * SLAB_ROWS || this.#chars >= SLAB_CHARS) this.close(isLarge ? LARGE_BASE : BASE)
  }

  /** Makes a piece of the rows that none holds yet. */
  close(base: number = BASE): void {
    const texts = this.#texts
    if (texts.length === 0) return
    const text = texts.join("")
    const rows = encoder.encode(text)
    const isAscii = rows.length === text.length
    const placesByGroup = new Map<number, Array<string>>()
    let group = Number.NaN
    let places: Array<string> = []
    let offset = 1
    for (let i = 0; i < texts.length; i += 3) {
      const first = texts[i + 1] as string
      const second = texts[i + 2] as string
      const firstLength = isAscii ? first.length : Buffer.byteLength(first)
      const secondLength = isAscii ? second.length : Buffer.byteLength(second)
      const own = this.#groups[i / 3] as number
      if (own !== group) {
        group = own
        places = placesByGroup.get(group) ?? []
        placesByGroup.set(group, places)
      }
      places.push(offset + lengths(base, firstLength, secondLength))
      offset += (texts[i] as string).length + firstLength + secondLength
    }
    this.pieces.push({ rows, places: encoder.encode(`[${[...placesByGroup.values()].join(",")}]`), base })
    this.#texts = []
    this.#groups = []
    this.#chars = 0
  }
}
