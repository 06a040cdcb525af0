/**
 * Cuts what a socket delivers into the messages of Postgres' protocol (pure): a type byte, a length of four bytes that counts
 * itself, the content. What a piece ends with and is not whole yet waits for the next one.
 */
const HEADER_BYTES = 5
const FIRST_BYTES = 4 * 1024
const NONE = Buffer.alloc(0)

/** A message stands in `bytes` from `start` to `end`, header included; the bytes are the taker's. */
export type TakeFrame = (bytes: Buffer, start: number, end: number) => void

export class Frames {
  #held: Buffer = NONE
  #size = 0
  readonly #take: TakeFrame

  constructor(take: TakeFrame) {
    this.#take = take
  }

  push(piece: Buffer): void {
    let from = 0
    if (this.#size > 0) {
      // The message that was begun, and nothing beyond it.
      from = this.#hold(piece, 0, HEADER_BYTES)
      if (this.#size < HEADER_BYTES) return
      const length = 1 + this.#held.readUInt32BE(1)
      from = this.#hold(piece, from, length)
      if (this.#size < length) return
      this.#size = 0
      const whole = this.#held
      this.#held = NONE
      this.#take(whole, 0, length)
    }
    while (from + HEADER_BYTES <= piece.length) {
      const end = from + 1 + piece.readUInt32BE(from + 1)
      if (end > piece.length) break
      this.#take(piece, from, end)
      from = end
    }
    if (from < piece.length) this.#hold(piece, from, piece.length - from)
  }

  /** Adds bytes of the piece until `length` are held, as far as it goes; answers where in the piece that ends. */
  #hold(piece: Buffer, from: number, length: number): number {
    const end = Math.min(piece.length, from + Math.max(0, length - this.#size))
    const size = this.#size + end - from
    if (size > this.#held.length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(FIRST_BYTES, size, 2 * this.#held.length))
      this.#held.copy(larger, 0, 0, this.#size)
      this.#held = larger
    }
    piece.copy(this.#held, this.#size, from, end)
    this.#size = size
    return end
  }
}
