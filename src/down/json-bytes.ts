/** What of JSON is told from its bytes, without a text of it (pure). */

const PLUS = 43
const MINUS = 45
const POINT = 46
const EXPONENT = 101
const UNICODE = 117

/** Whether these bytes are the word. */
export const isWord = (word: Uint8Array, bytes: Uint8Array, from: number, to: number): boolean => {
  if (to - from !== word.length) return false
  for (let i = 0; i < word.length; i++) if (bytes[from + i] !== word[i]) return false
  return true
}

/** What may follow a backslash in JSON. */
const ESCAPED = new Uint8Array(256)
for (const character of '"\\/bfnrtu') ESCAPED[character.charCodeAt(0)] = 1
const isHex = (bytes: Uint8Array, at: number): boolean => {
  for (let i = at; i < at + 4; i++) if (!/[0-9a-f]/i.test(String.fromCharCode(bytes[i] ?? 0))) return false
  return true
}

/** Whether the byte may follow a backslash, and the four after it a `u`. */
export const isEscape = (bytes: Uint8Array, at: number): boolean => {
  const byte = bytes[at] as number
  return ESCAPED[byte] === 1 && (byte !== UNICODE || isHex(bytes, at + 1))
}

export const isDigit = (byte: number): boolean => byte >= 48 && byte <= 57
/** Of a number as Postgres prints it: digits, sign, point, exponent. */
export const isOfNumber = (byte: number): boolean => isDigit(byte) || byte === MINUS || byte === POINT || byte === EXPONENT || byte === PLUS

const pastDigits = (bytes: Uint8Array, at: number, end: number): number => {
  let i = at
  while (i < end && isDigit(bytes[i] as number)) i++
  return i
}
/** Digits on both sides of its point, and an exponent that has some. */
export const isNumber = (bytes: Uint8Array, from: number, end: number): boolean => {
  const start = bytes[from] === MINUS ? from + 1 : from
  let at = pastDigits(bytes, start, end)
  if (at === start) return false
  if (at < end && bytes[at] === POINT) {
    const point = at
    at = pastDigits(bytes, at + 1, end)
    if (at === point + 1) return false
  }
  if (at < end && bytes[at] === EXPONENT) {
    const first = bytes[at + 1] === MINUS || bytes[at + 1] === PLUS ? at + 2 : at + 1
    at = pastDigits(bytes, first, end)
    if (at === first) return false
  }
  return at === end
}
