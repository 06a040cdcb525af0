/** A page on its way out: what the feed has read of it goes while the rest is read, whoever takes it however slowly. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { FeedPage, PageListener } from "../down/page.ts"
import type { LibsqlError } from "../libsql/client.ts"
import { END_OF_FRAME, type Piece } from "../link/body.ts"
import { type Header, PAGE_BYTES } from "../link/protocol.ts"

/** Text that is compressed and flushed together: what a broken download may lose. */
const PIECE_BYTES = 64 * 1024
/** The header, and the first rows. */
const FIRST_LINES = 2

/** Bun 1.4.4 keeps up to 16 KiB of an answer back until its event loop turns. */
const turn = (): Promise<void> => new Promise((done) => setImmediate(done))

export interface Outgoing {
  readonly header: Header
  /** Nothing after the cursor. */
  readonly empty: boolean
  /** The next line; null: that was all. Fails when the rest cannot be read. */
  readonly next: () => Promise<string | null>
  /** Whether the next line is there already. */
  readonly hasNext: () => boolean
  readonly whole: Promise<FeedPage>
}

/** Answers as soon as it is known that there is a page, and how it begins. */
export const openPage = (read: (listener: PageListener) => Effect.Effect<FeedPage, LibsqlError>): Effect.Effect<Outgoing, LibsqlError> =>
  Effect.callback<Outgoing, LibsqlError>((resume) => {
    const lines: Array<string> = []
    let at = 0
    let isOver = false
    let wake = (): void => undefined
    const next = async (whole: Promise<unknown>): Promise<string | null> => {
      while (at === lines.length) {
        if (isOver) {
          await whole
          return null
        }
        await new Promise<void>((done) => {
          wake = done
        })
      }
      const line = lines[at] as string
      lines[at++] = ""
      return line
    }
    const outgoing = (header: Header, empty: boolean): Outgoing => ({
      header,
      empty,
      next: () => next(whole),
      hasNext: () => at < lines.length,
      whole,
    })
    let isStarted = false
    const listener: PageListener = {
      start: (header) => {
        isStarted = true
        resume(Effect.succeed(outgoing(header, false)))
      },
      line: (text) => {
        lines.push(text)
        wake()
      },
    }
    const ending = Effect.runPromiseExit(read(listener))
    const whole = ending.then((exit) => {
      isOver = true
      if (Exit.isFailure(exit)) {
        if (!isStarted) resume(Effect.failCause(exit.cause))
        wake()
        throw new Error(`a page broke off: ${String(exit.cause)}`)
      }
      if (!isStarted) {
        lines.push(...exit.value.lines)
        resume(Effect.succeed(outgoing(exit.value.header, exit.value.empty)))
      }
      wake()
      return exit.value
    })
    // Whoever takes the lines hears of the failure from `next`; a receiver that has left does not want to know.
    whole.catch(() => undefined)
  })

/**
 * What is likely to end its cut goes in frames of one piece each, which are made at once; a page of a long copy in one frame
 * for all its pieces, which is smaller.
 */
export const piecesOf = async function* (page: Outgoing): AsyncGenerator<Piece> {
  const isShort = (page.header.leftBytes ?? PAGE_BYTES) < PAGE_BYTES
  let piece = ""
  let count = 0
  for (let line = await page.next(); line !== null; line = await page.next()) {
    piece += `${line}\n`
    count++
    // The first rows go before the many that follow have been read: a receiver has most to get ready for those.
    const isFirst = isShort && count === FIRST_LINES && !page.hasNext()
    if (!isFirst && piece.length < PIECE_BYTES) continue
    yield isShort ? { frame: piece } : piece
    piece = ""
    if (isShort) await turn()
  }
  if (piece !== "") yield isShort ? { frame: piece } : piece
  if (!isShort) yield END_OF_FRAME
}
