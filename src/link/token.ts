/**
 * Tokens tell one school file from its copies. Numbered, handed out by hello, stored by the school before use: a copy that
 * comes second shows a number that has been used up. Plain functions.
 *
 *     shown token                         verdict
 *     the newest                          newest: hello hands out the next
 *     the one before, newest never shown  repeated: its answer was lost; the same newest is handed out again
 *     a number above ours                 ahead: this hub was put back to an older state, and goes on from there
 *     anything else                       wrong: two copies, or an older copy, of one file
 */
import { timingSafeEqual } from "node:crypto"

/** What the hub remembers for one incarnation. `number` 0: none was handed out yet, and the empty token is right. */
export interface TokenState {
  readonly number: number
  readonly secret: string
  readonly secretLast: string
  /** The newest one has been used. */
  readonly shown: boolean
}

export const noTokens: TokenState = { number: 0, secret: "", secretLast: "", shown: true }

/** `"7.6f1c…"`; the token before the first is `""`. */
export const printToken = (number: number, secret: string): string => (number === 0 ? "" : `${number}.${secret}`)

const FORM = /^(\d{1,15})\.([0-9a-f]{32})$/

const parse = (text: string): { readonly number: number; readonly secret: string } | null => {
  if (text === "") return { number: 0, secret: "" }
  const [, number, secret] = FORM.exec(text) ?? []
  return number === undefined || secret === undefined || number === "0" ? null : { number: Number(number), secret }
}

const same = (left: string, right: string): boolean => left.length === right.length && timingSafeEqual(Buffer.from(left), Buffer.from(right))

export type TokenVerdict = "newest" | "repeated" | "ahead" | "wrong"

export const judgeToken = (state: TokenState, text: string): TokenVerdict => {
  const shown = parse(text)
  if (shown === null) return "wrong"
  if (shown.number > state.number) return "ahead"
  if (shown.number === state.number && same(shown.secret, state.secret)) return "newest"
  return shown.number === state.number - 1 && !state.shown && same(shown.secret, state.secretLast) ? "repeated" : "wrong"
}

/** What hello hands out after a right token; `random`: 32 hex digits. */
export const nextToken = (state: TokenState, text: string, random: string): TokenState => {
  switch (judgeToken(state, text)) {
    case "repeated":
    case "wrong":
      return state
    case "newest":
      return { number: state.number + 1, secret: random, secretLast: state.secret, shown: false }
    case "ahead": {
      const shown = parse(text)
      return { number: (shown?.number ?? 0) + 1, secret: random, secretLast: shown?.secret ?? "", shown: false }
    }
  }
}
