/**
 * The stream's messages (pure): as the bytes that came, or as text with one character per byte. Texts of one piece are made together:
 * one by one that takes longer than all that is done with them later.
 */
import { Buffer } from "node:buffer"

/** Of a frame: where the CopyData's content begins, its position, and the plugin's message after two positions and a time. */
export const CONTENT_AT = 5
export const POSITION_AT = CONTENT_AT + 1
export const MESSAGE_AT = POSITION_AT + 24

/** What a plugin's messages are. */
export interface MessageForm {
  /** `utf8`: they stay bytes until somebody wants their text. `latin1`: one character per byte. */
  readonly encoding: "utf8" | "latin1"
  /** A commit's message has this byte at this place, and no other has. */
  readonly commit: { readonly at: number; readonly byte: number }
}

/** A message where it stands in its piece; the piece stays as it is until `freePieces`. */
export class RawMessage {
  constructor(
    readonly bytes: Buffer,
    readonly start: number,
    readonly end: number,
  ) {}

  /** Bytes. */
  get length(): number {
    return this.end - this.start
  }

  toString(): string {
    return this.bytes.toString("utf8", this.start, this.end)
  }
}

export type Message = string | RawMessage

/**
 * Gives back the memory of pieces whose messages nobody needs any more, in the order in which they came; `next`: the message after them,
 * whose piece stays. A large transaction passes in hundreds of pieces, far more than lie about until the runtime looks for them itself.
 */
export const freePieces = (messages: ReadonlyArray<Message>, next: Message | undefined): void => {
  const kept = typeof next === "object" ? next.bytes : null
  let last = kept
  for (const message of messages) {
    if (typeof message === "string" || message.bytes === last) continue
    last = message.bytes
    // A part of something larger belongs to others, too.
    if (last !== kept && last.byteLength === last.buffer.byteLength) (last.buffer as ArrayBuffer).transfer(0)
  }
}

const NONE = Buffer.alloc(0)

export class Messages {
  all: Array<Message> = []
  /** Which of them are commits, with the byte after the commit's record. */
  commits: Array<{ readonly index: number; readonly lsn: bigint }> = []
  /** Of all messages. */
  bytes = 0
  readonly #form: MessageForm
  /** Messages that lie side by side in one piece and are not text yet. */
  #piece: Buffer = NONE
  #start = 0
  #ends: Array<number> = []

  constructor(form: MessageForm) {
    this.#form = form
  }

  /** The message of a frame from `start` to `end`. The piece is the taker's from now on. */
  add(piece: Buffer, start: number, end: number): void {
    const { encoding, commit } = this.#form
    const isText = encoding === "latin1"
    if (isText && (piece !== this.#piece || start !== this.#ends.at(-1))) {
      this.close()
      this.#piece = piece
      this.#start = start + MESSAGE_AT
    }
    if (piece[start + MESSAGE_AT + commit.at] === commit.byte) {
      this.commits.push({
        index: this.all.length + this.#ends.length,
        lsn: piece.readBigUInt64BE(start + POSITION_AT),
      })
    }
    if (isText) this.#ends.push(end)
    else this.all.push(new RawMessage(piece, start + MESSAGE_AT, end))
    this.bytes += end - start - MESSAGE_AT
  }

  /** Makes text of what was added. */
  close(): void {
    const ends = this.#ends
    const last = ends.at(-1)
    if (last === undefined) return
    const start = this.#start
    const text = this.#piece.toString("latin1", start, last)
    if (ends.length === 1) this.all.push(text)
    else {
      let from = 0
      for (const end of ends) {
        this.all.push(text.slice(from, end - start))
        from = end - start + MESSAGE_AT
      }
    }
    this.#piece = NONE
    this.#ends = []
  }

  /** Hands over what is there. */
  take(): {
    readonly messages: ReadonlyArray<Message>
    readonly commits: ReadonlyArray<{
      readonly index: number
      readonly lsn: bigint
    }>
  } {
    const taken = { messages: this.all, commits: this.commits }
    this.all = []
    this.commits = []
    this.bytes = 0
    return taken
  }
}
