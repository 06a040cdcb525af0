/**
 * The stream's messages as text (pure). Those of one piece become text together: one by one that takes longer than all that is
 * done with them later.
 */
import { Buffer } from "node:buffer"

/** Of a frame: where the CopyData's content begins, its position, and the plugin's message after two positions and a time. */
export const CONTENT_AT = 5
export const POSITION_AT = CONTENT_AT + 1
export const MESSAGE_AT = POSITION_AT + 24

/** What a plugin's messages are. */
export interface MessageForm {
  /** `latin1`: one character per byte. No message in `utf8` contains a NUL. */
  readonly encoding: "utf8" | "latin1"
  /** A commit's message has this byte at this place, and no other has. */
  readonly commit: { readonly at: number; readonly byte: number }
}

/** Stands in place of what precedes each message. */
const BETWEEN = "\0".repeat(MESSAGE_AT)
const NONE = Buffer.alloc(0)

export class Messages {
  texts: Array<string> = []
  /** Which of them are commits, with the byte after the commit's record. */
  commits: Array<{ readonly index: number; readonly lsn: bigint }> = []
  /** Of all texts. */
  bytes = 0
  readonly #form: MessageForm
  /** Messages that lie side by side in one piece and are not text yet. */
  #piece: Buffer = NONE
  #start = 0
  #ends: Array<number> = []

  constructor(form: MessageForm) {
    this.#form = form
  }

  /** The message of a frame from `start` to `end`. The piece is written to, and must stay as it is until `close`. */
  add(piece: Buffer, start: number, end: number): void {
    const { encoding, commit } = this.#form
    if (piece !== this.#piece || start !== this.#ends.at(-1)) {
      this.close()
      this.#piece = piece
      this.#start = start + MESSAGE_AT
    }
    if (piece[start + MESSAGE_AT + commit.at] === commit.byte) {
      this.commits.push({
        index: this.texts.length + this.#ends.length,
        lsn: piece.readBigUInt64BE(start + POSITION_AT),
      })
    }
    if (encoding === "utf8") for (let i = start; i < start + MESSAGE_AT; i++) piece[i] = 0
    this.#ends.push(end)
    this.bytes += end - start - MESSAGE_AT
  }

  /** Makes text of what was added. */
  close(): void {
    const ends = this.#ends
    const last = ends.at(-1)
    if (last === undefined) return
    const start = this.#start
    const text = this.#piece.toString(this.#form.encoding, start, last)
    if (ends.length === 1) this.texts.push(text)
    else if (this.#form.encoding === "utf8") for (const message of text.split(BETWEEN)) this.texts.push(message)
    else {
      let from = 0
      for (const end of ends) {
        this.texts.push(text.slice(from, end - start))
        from = end - start + MESSAGE_AT
      }
    }
    this.#piece = NONE
    this.#ends = []
  }

  /** Hands over what is there. */
  take(): {
    readonly messages: ReadonlyArray<string>
    readonly commits: ReadonlyArray<{
      readonly index: number
      readonly lsn: bigint
    }>
  } {
    const taken = { messages: this.texts, commits: this.commits }
    this.texts = []
    this.commits = []
    this.bytes = 0
    return taken
  }
}
