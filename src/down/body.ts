/** A row as the feed keeps it: a JSON array of its columns' tokens (pure). */
import type { Kind } from "../model/value.ts"

/** The elements of a JSON array as they stand, without parsing them. */
export const tokenize = (body: string): ReadonlyArray<string> => {
  const tokens: Array<string> = []
  let depth = 0
  let inString = false
  let start = 1
  for (let i = 0; i < body.length; i++) {
    const c = body.charCodeAt(i)
    if (inString) {
      if (c === 92) i++
      else if (c === 34) inString = false
    } else if (c === 34) inString = true
    else if (c === 91) depth++
    else if (c === 93) {
      depth--
      if (depth === 0 && i > start) tokens.push(body.slice(start, i))
    } else if (c === 44 && depth === 1) {
      tokens.push(body.slice(start, i))
      start = i + 1
    }
  }
  return tokens
}

/** A token -> the text that Postgres prints; null for null. */
export const tokenText = (kind: Kind, token: string): string | null => {
  if (token === "null") return null
  const text = token.charCodeAt(0) === 34 ? (JSON.parse(token) as string) : token
  return kind === "bool" ? (text === "true" ? "t" : "f") : kind === "bytea" ? `\\x${text}` : text
}
