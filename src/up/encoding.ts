/**
 * A head office whose database is not in UTF8 lacks most characters. A value with one that it lacks is refused by itself, with
 * its bytes, so that the rest of the batch is written; which those are Postgres is asked once for each character.
 */
import { Buffer } from "node:buffer"
import * as Effect from "effect/Effect"
import type { DecodedBatch } from "../link/frame.ts"
import type { Change } from "../model/change.ts"
import type { Refused, Wire } from "../model/value.ts"
import type { PostgresError, PostgresPool } from "../postgres/client.ts"

type Values = Change["mine"]

const NOT_ASCII = /[^\0-\x7f]/gu

/** What the database lacks. */
interface Lacking {
  /** `"LATIN1"` */
  readonly encoding: string
  readonly characters: ReadonlySet<string>
}

/** JSON without a character beyond ASCII, and of the same meaning. */
const escaped = (json: string): string => json.replace(/[^\0-\x7f]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`)

const lacks = ({ characters }: Lacking, value: Wire | Refused): string | undefined =>
  typeof value === "string" ? value.match(NOT_ASCII)?.find((character) => characters.has(character)) : undefined

const reason = ({ encoding }: Lacking, character: string): string =>
  `the database of head office is in ${encoding}, which has no U+${(character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}`

const refuseIn = (lacking: Lacking, values: Values): Values => {
  const bad = Object.entries(values).flatMap(([name, value]) => {
    const character = lacks(lacking, value)
    const hex = Buffer.from(String(value)).toString("hex")
    return character === undefined ? [] : [[name, { refused: reason(lacking, character), hex }] as const]
  })
  return bad.length === 0 ? values : { ...values, ...Object.fromEntries(bad) }
}

/** The batch as the database can take it (pure): values that it cannot hold are refused, rows that it cannot name are kept as lines. */
export const storable = (decoded: DecodedBatch, lacking: Lacking): DecodedBatch => {
  if (lacking.characters.size === 0) return decoded
  const unnamed: Array<DecodedBatch["unreadable"][number]> = []
  const changes = decoded.batch.changes.flatMap((change): ReadonlyArray<Change> => {
    const names = [...change.key, ...(change.newKey ?? []), ...Object.keys(change.base), ...Object.keys(change.mine), change.table]
    const character = names.map((name) => lacks(lacking, name)).find((found) => found !== undefined)
    if (character === undefined) return [{ ...change, base: refuseIn(lacking, change.base), mine: refuseIn(lacking, change.mine) }]
    unnamed.push({ id: change.id, raw: escaped(JSON.stringify(change)), reason: `key: ${reason(lacking, character)}` })
    return []
  })
  const lines = decoded.unreadable.map((line) => ({ ...line, raw: escaped(line.raw) }))
  return { ...decoded, batch: { ...decoded.batch, changes }, unreadable: [...lines, ...unnamed] }
}

/** Asks of batch after batch what the database lacks of their characters. */
export const makeEncoding = (pg: PostgresPool) => {
  let encoding: string | undefined
  const held = new Set<string>()
  const missing = new Set<string>()

  /** Whether the characters come back as they went; halved until it is known which do not. */
  const ask = (characters: ReadonlyArray<string>): Effect.Effect<void, PostgresError> =>
    Effect.gen(function* () {
      if (characters.length === 0) return
      const text = characters.join("")
      const name = "current_setting('server_encoding')"
      const back = yield* pg
        .texts(`SELECT convert_from(convert($1::text::bytea, 'UTF8', ${name}), ${name})`, [`\\x${Buffer.from(text).toString("hex")}`])
        .pipe(
          Effect.map(([row]) => row?.[0] ?? ""),
          // Untranslatable, or no such conversion.
          Effect.catchIf(
            ({ sqlstate }) => sqlstate.startsWith("22") || sqlstate === "42883",
            () => Effect.succeed(null),
          ),
        )
      if (back === text) for (const character of characters) held.add(character)
      else if (characters.length === 1) missing.add(text)
      else {
        const half = Math.ceil(characters.length / 2)
        yield* ask(characters.slice(0, half))
        yield* ask(characters.slice(half))
      }
    })

  /** The batch as the database can take it; itself where nothing is lacking. */
  return (decoded: DecodedBatch, text: string): Effect.Effect<DecodedBatch, PostgresError> =>
    Effect.gen(function* () {
      encoding ??= (yield* pg.query<{ encoding: string }>("SELECT current_setting('server_encoding') AS encoding"))[0]?.encoding ?? "UTF8"
      if (encoding === "UTF8") return decoded
      const said = text.includes("\\u") ? `${text}${JSON.stringify(decoded.batch.changes)}` : text
      const characters = new Set(said.match(NOT_ASCII) ?? [])
      yield* ask([...characters].filter((character) => character.isWellFormed() && !held.has(character) && !missing.has(character)))
      return storable(decoded, { encoding, characters: new Set([...characters].filter((character) => missing.has(character))) })
    })
}
