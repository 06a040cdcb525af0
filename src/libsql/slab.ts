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
const ZERO = 48
const SPACE = 32

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

/** The texts of a row as UTF-8. */
export interface TextBytes {
  readonly source: Uint8Array
  readonly keyFrom: number
  readonly keyTo: number
  readonly bodyFrom: number
  readonly bodyTo: number
}

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

/** The same, into bytes. */
const writeNumber = (out: Uint8Array, at: number, value: number): void => {
  let i = at + WIDTH - 1
  let high = Math.floor(value / PART)
  if (high < 0) {
    const text = slabNumber(value)
    for (let k = 0; k < WIDTH; k++) out[at + k] = text.charCodeAt(k)
    return
  }
  let rest = value - high * PART
  if (high > 0) {
    for (let k = 0; k < 9; k++) {
      out[i--] = ZERO + (rest % 10)
      rest = Math.floor(rest / 10)
    }
    rest = high
    high = 0
  }
  do {
    out[i--] = ZERO + (rest % 10)
    rest = Math.floor(rest / 10)
  } while (rest > 0)
  while (i >= at) out[i--] = SPACE
}

const encoder = new TextEncoder()

/** Digits of a place's lengths, and characters of a place at most, a comma included. */
const BASE_DIGITS = 6
const PLACE_CHARS = 20
/** At least so many digits; answers the place after them. */
const writeDigits = (out: Uint8Array, at: number, value: number, least: number): number => {
  let count = least
  for (let beyond = 10 ** least; value >= beyond; beyond *= 10) count++
  let rest = value
  for (let i = at + count - 1; i >= at; i--) {
    out[i] = ZERO + (rest % 10)
    rest = Math.floor(rest / 10)
  }
  return at + count
}

const digits = (bytes: number): string => String(BASE + bytes).slice(1)
const SHORT = Array.from({ length: 1024 }, (_, bytes) => digits(bytes))

/** The place's digits after its offset. */
const lengths = (base: number, first: number, second: number): string =>
  base === BASE
    ? (SHORT[first] ?? digits(first)) + (SHORT[second] ?? digits(second))
    : String((BigInt(base) + BigInt(first)) * BigInt(base) + BigInt(second)).slice(1)

/** Rows that are there as bytes, up to a piece. */
class ByteRows {
  readonly #bytes = new Uint8Array(SLAB_CHARS)
  #end = 0
  #count = 0
  /** Of each row: where it begins, bytes of its two texts, and its group, which is also its first number. */
  readonly #offsets = new Int32Array(SLAB_ROWS)
  readonly #firsts = new Int32Array(SLAB_ROWS)
  readonly #seconds = new Int32Array(SLAB_ROWS)
  readonly #groups = new Int32Array(SLAB_ROWS)
  /** Of each group's number its index, and how many rows it has. */
  readonly #indexes = new Map<number, number>()
  readonly #sizes: Array<number> = []
  #no = Number.NaN
  #at = Number.NaN

  /** false: it has no room for the row. */
  add(no: number, seq: number, at: number, { source, keyFrom, keyTo, bodyFrom, bodyTo }: TextBytes): boolean {
    const out = this.#bytes
    let to = this.#end
    if (this.#count === SLAB_ROWS || to + 3 * WIDTH + keyTo - keyFrom + bodyTo - bodyFrom > out.length) return false
    const before = this.#count === 0 ? -1 : (this.#offsets[this.#count - 1] as number)
    this.#offsets[this.#count] = to
    this.#firsts[this.#count] = keyTo - keyFrom
    this.#seconds[this.#count] = bodyTo - bodyFrom
    // Most rows have the first and the last number of the one before.
    if (no === this.#no) for (let i = 0; i < WIDTH; i++) out[to + i] = out[before + i] as number
    else writeNumber(out, to, no)
    writeNumber(out, to + WIDTH, seq)
    if (before !== -1 && this.#at === at) for (let i = 2 * WIDTH; i < 3 * WIDTH; i++) out[to + i] = out[before + i] as number
    else writeNumber(out, to + 2 * WIDTH, at)
    to += 3 * WIDTH
    for (let i = keyFrom; i < keyTo; i++) out[to++] = source[i] as number
    for (let i = bodyFrom; i < bodyTo; i++) out[to++] = source[i] as number
    this.#end = to
    this.#at = at
    this.#groups[this.#count] = no === this.#no ? (this.#groups[this.#count - 1] as number) : this.#indexOf(no)
    this.#no = no
    const group = this.#groups[this.#count++] as number
    this.#sizes[group] = (this.#sizes[group] as number) + 1
    return true
  }

  #indexOf(no: number): number {
    const known = this.#indexes.get(no)
    if (known !== undefined) return known
    this.#indexes.set(no, this.#sizes.length)
    return this.#sizes.push(0) - 1
  }

  piece(): SlabPiece {
    const order = this.#inGroups()
    const places = new Uint8Array(this.#count * PLACE_CHARS + 2)
    let to = 0
    places[to++] = 91
    for (let k = 0; k < this.#count; k++) {
      const i = order === null ? k : (order[k] as number)
      if (k > 0) places[to++] = 44
      to = writeDigits(places, to, 1 + (this.#offsets[i] as number), 1)
      to = writeDigits(places, to, this.#firsts[i] as number, BASE_DIGITS)
      to = writeDigits(places, to, this.#seconds[i] as number, BASE_DIGITS)
    }
    places[to++] = 93
    return { rows: this.#bytes.subarray(0, this.#end), places: places.subarray(0, to), base: BASE }
  }

  /** Indexes of rows group by group; null: there is but one. */
  #inGroups(): Int32Array | null {
    if (this.#sizes.length < 2) return null
    const order = new Int32Array(this.#count)
    const next = new Int32Array(this.#sizes.length)
    for (let group = 1; group < next.length; group++) next[group] = (next[group - 1] as number) + (this.#sizes[group - 1] as number)
    for (let i = 0; i < this.#count; i++) {
      const group = this.#groups[i] as number
      const place = next[group] as number
      order[place] = i
      next[group] = place + 1
    }
    return order
  }
}

export class Slab {
  readonly pieces: Array<SlabPiece> = []
  #byteRows: ByteRows | null = null
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
    if (isLarge) this.#closeTexts(BASE)
    this.#texts.push(head, first, second)
    this.#groups.push(group)
    this.#chars += head.length + first.length + second.length
    if (isLarge || this.#texts.length === 3 * SLAB_ROWS || this.#chars >= SLAB_CHARS) this.#closeTexts(isLarge ? LARGE_BASE : BASE)
  }

  /** A row of three numbers, the first of which is its group, and texts that are there as bytes, far fewer than a piece has. */
  addBytes(no: number, seq: number, at: number, texts: TextBytes): void {
    this.#byteRows ??= new ByteRows()
    if (this.#byteRows.add(no, seq, at, texts)) return
    this.#closeBytes()
    this.#byteRows = new ByteRows()
    if (!this.#byteRows.add(no, seq, at, texts)) throw new RangeError(`a row of ${texts.bodyTo - texts.bodyFrom} bytes in a slab`)
  }

  #closeBytes(): void {
    if (this.#byteRows !== null) this.pieces.push(this.#byteRows.piece())
    this.#byteRows = null
  }

  /** Makes pieces of the rows that none holds yet. */
  close(): void {
    this.#closeBytes()
    this.#closeTexts(BASE)
  }

  #closeTexts(base: number): void {
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
