/**
 * Digests by which two sides find rows that differ without sending them (pure). A row is one print: 64 bits of its key and
 * 64 bits of its content. Prints fall into buckets by the highest bits of the key's half; a bucket's digest is the XOR of
 * the content halves, so it needs no order and any key can be taken out of it again. Not for secrets: chance alone is
 * guarded against, one in 2^64.
 */

/** Words (32 bits) of one print: key, key, content, content. */
export const PRINT_WORDS = 4
const DIGEST_WORDS = 2
/** Rows of one bucket that are about right: its prints are what must travel when one of them differs. */
const BUCKET_ROWS = 512
const MAX_BITS = 10

/** Buckets of a table, as a power of two: enough that one that differs is cheap to look into. */
export const bitsFor = (rows: number): number => {
  let bits = 0
  while (bits < MAX_BITS && rows > BUCKET_ROWS << bits) bits++
  return bits
}

const bucketOf = (keyHigh: number, bits: number): number => (bits === 0 ? 0 : keyHigh >>> (32 - bits))

/** Two lanes that take bytes one by one; `finish` mixes them so that every bit of the input reaches every bit of the output. */
export class Hasher {
  #a = 0
  #b = 0

  start(): this {
    this.#a = 0x6a09e667
    this.#b = 0xbb67ae85
    return this
  }

  bytes(bytes: Uint8Array): this {
    let a = this.#a
    let b = this.#b
    for (let i = 0; i < bytes.length; i++) {
      const byte = bytes[i] as number
      a = Math.imul(a ^ byte, 0x01000193)
      b = Math.imul((b ^ (b >>> 13)) + byte, 0x5bd1e995)
    }
    this.#a = a
    this.#b = b
    return this
  }

  /** ASCII only. */
  ascii(text: string): this {
    let a = this.#a
    let b = this.#b
    for (let i = 0; i < text.length; i++) {
      const byte = text.charCodeAt(i)
      a = Math.imul(a ^ byte, 0x01000193)
      b = Math.imul((b ^ (b >>> 13)) + byte, 0x5bd1e995)
    }
    this.#a = a
    this.#b = b
    return this
  }

  /** Writes two words. The state stays, so that more may follow. */
  finish(into: Uint32Array, at: number): void {
    const a = mix(this.#a ^ Math.imul(this.#b, 0x9e3779b1))
    into[at] = a
    into[at + 1] = mix(this.#b + Math.imul(a, 0x85ebca77))
  }
}

const mix = (word: number): number => {
  let x = word ^ (word >>> 16)
  x = Math.imul(x, 0x7feb352d)
  x ^= x >>> 15
  x = Math.imul(x, 0x846ca68b)
  return (x ^ (x >>> 16)) >>> 0
}

/** A list of prints that grows. */
export class Prints {
  #words = new Uint32Array(PRINT_WORDS * 1024)
  #length = 0

  /** Room for one more; its words begin at the position answered. */
  add(): { readonly words: Uint32Array; readonly at: number } {
    if (this.#length + PRINT_WORDS > this.#words.length) {
      const wider = new Uint32Array(this.#words.length * 2)
      wider.set(this.#words)
      this.#words = wider
    }
    const at = this.#length
    this.#length += PRINT_WORDS
    return { words: this.#words, at }
  }

  take(): Uint32Array {
    return this.#words.slice(0, this.#length)
  }
}

export const rowsOf = (prints: Uint32Array): number => prints.length / PRINT_WORDS

/** The XOR of each bucket's contents, two words a bucket. */
export const digestsOf = (prints: Uint32Array, bits: number): Uint32Array => {
  const digests = new Uint32Array(DIGEST_WORDS << bits)
  for (let i = 0; i < prints.length; i += PRINT_WORDS) {
    const bucket = bucketOf(prints[i] as number, bits) * DIGEST_WORDS
    digests[bucket] = (digests[bucket] as number) ^ (prints[i + 2] as number)
    digests[bucket + 1] = (digests[bucket + 1] as number) ^ (prints[i + 3] as number)
  }
  return digests
}

export const differingBuckets = (mine: Uint32Array, theirs: Uint32Array): ReadonlyArray<number> => {
  const buckets: Array<number> = []
  for (let i = 0; i < mine.length; i += DIGEST_WORDS) {
    if (mine[i] !== theirs[i] || mine[i + 1] !== theirs[i + 1]) buckets.push(i / DIGEST_WORDS)
  }
  return buckets
}

/** A key's half of a print as one name, for sets and maps. */
export const keyName = (words: Uint32Array, at: number): string => `${words[at]}.${words[at + 1]}`

/** Only the prints of the given buckets. */
export const ofBuckets = (prints: Uint32Array, bits: number, buckets: ReadonlySet<number>): Uint32Array => {
  const some = new Prints()
  for (let i = 0; i < prints.length; i += PRINT_WORDS) {
    if (!buckets.has(bucketOf(prints[i] as number, bits))) continue
    const { words, at } = some.add()
    words.set(prints.subarray(i, i + PRINT_WORDS), at)
  }
  return some.take()
}

/** Without the rows of these keys. */
export const without = (prints: Uint32Array, keys: ReadonlySet<string>): Uint32Array => {
  if (keys.size === 0) return prints
  const rest = new Prints()
  for (let i = 0; i < prints.length; i += PRINT_WORDS) {
    if (keys.has(keyName(prints, i))) continue
    const { words, at } = rest.add()
    words.set(prints.subarray(i, i + PRINT_WORDS), at)
  }
  return rest.take()
}

export interface Difference {
  /** Names of keys that only this side has, only the other has, or both with another content. */
  readonly extra: ReadonlySet<string>
  readonly missing: ReadonlySet<string>
  readonly differing: ReadonlySet<string>
}

export const compare = (mine: Uint32Array, theirs: Uint32Array): Difference => {
  const at = new Map<string, number>()
  for (let i = 0; i < theirs.length; i += PRINT_WORDS) at.set(keyName(theirs, i), i)
  const extra = new Set<string>()
  const differing = new Set<string>()
  for (let i = 0; i < mine.length; i += PRINT_WORDS) {
    const name = keyName(mine, i)
    const other = at.get(name)
    if (other === undefined) extra.add(name)
    else if (theirs[other + 2] !== mine[i + 2] || theirs[other + 3] !== mine[i + 3]) differing.add(name)
    at.delete(name)
  }
  return { extra, missing: new Set(at.keys()), differing }
}

/** Words as base64, least byte first whatever the machine. */
export const wordsToText = (words: Uint32Array): string => {
  const bytes = new Uint8Array(words.length * 4)
  const view = new DataView(bytes.buffer)
  for (let i = 0; i < words.length; i++) view.setUint32(i * 4, words[i] as number, true)
  return bytes.toBase64()
}

export const textToWords = (text: string): Uint32Array => {
  const bytes = Uint8Array.fromBase64(text)
  if (bytes.length % 4 !== 0) throw new TypeError("not a list of words")
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  return Uint32Array.from({ length: bytes.length / 4 }, (_, i) => view.getUint32(i * 4, true))
}

/** Names of keys <-> words on the wire. */
export const namesToText = (names: ReadonlySet<string>): string =>
  wordsToText(Uint32Array.from([...names].flatMap((name) => name.split(".").map(Number))))

export const textToNames = (text: string): ReadonlySet<string> => {
  const words = textToWords(text)
  const names = new Set<string>()
  for (let i = 0; i + 1 < words.length; i += 2) names.add(keyName(words, i))
  return names
}
