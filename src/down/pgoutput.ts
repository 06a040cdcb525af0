/**
 * The decoder for pgoutput, the plugin that every Postgres has (pure). A message comes as a string with one character per
 * byte; only text that is not ASCII is decoded. Its tokens are those of wal2json, and exact also for NaN and Infinity.
 * A relation's shape travels in messages of its own, so one decoder serves one connection. Generated columns are not in
 * the stream: their token stands as null until `computed.ts` fills it in.
 *
 * Formats: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html (version 1, text).
 */
import { Buffer } from "node:buffer"
import { textToToken } from "../model/value.ts"
import type { Message } from "../postgres/messages.ts"
import type { PluginOptions } from "../postgres/wal.ts"
import { type DecodeTable, type Decoder, type Event, isToken, keyOf } from "./decode.ts"

/** The options of START_REPLICATION. The name is read as an SQL identifier. */
export const pgoutputOptions = (publication: string): PluginOptions => ({
  required: [
    ["proto_version", "1"],
    ["publication_names", `"${publication.replaceAll('"', '""')}"`],
  ],
  optional: [],
  form: { encoding: "latin1", commit: { at: 0, byte: 67 } },
})

interface Relation<T> {
  readonly table: T
  /** Of each column of the relation: its position in the catalog; -1 = the catalog does not have it. */
  readonly positions: ReadonlyArray<number>
  /** Columns of the catalog that the relation does not have. */
  readonly missing: ReadonlyArray<number>
  /** A column that one of the two has and the other has not. */
  readonly stray: string | undefined
}

/** The message ended inside a value. */
class CutShort extends Error {}
/** A value that cannot be of the column's type. */
class OtherType extends Error {}

const NOT_ASCII = /[^\0-\x7f]/
const decodeUtf8 = (bytes: string): string => (NOT_ASCII.test(bytes) ? Buffer.from(bytes, "latin1").toString("utf8") : bytes)

const EPOCH_2000_MS = Date.UTC(2000, 0, 1)

/** Microseconds since 2000 -> `"2026-01-01 08:00:00.123456+00"`. */
const timeText = (micros: number): string => {
  const ms = Math.floor(micros / 1000)
  const iso = new Date(EPOCH_2000_MS + ms).toISOString()
  return `${iso.slice(0, 10)} ${iso.slice(11, 23)}${String(micros - ms * 1000).padStart(3, "0")}+00`
}

export const pgoutputDecoder = <T extends DecodeTable>(tables: ReadonlyArray<T>): Decoder<T> => {
  const byName = new Map(tables.map((table) => [table.name, table]))
  /** null: a table that is not synced. */
  const relations = new Map<number, Relation<T> | null>()

  let text = ""
  let at = 0
  const u8 = (): number => {
    if (at >= text.length) throw new CutShort()
    return text.charCodeAt(at++)
  }
  const i16 = (): number => u8() * 0x100 + u8()
  const i32 = (): number => i16() * 0x10000 + i16()
  const i64 = (): number => i32() * 0x1_0000_0000 + i32()
  const name = (): string => {
    const end = text.indexOf("\0", at)
    if (end === -1) throw new CutShort()
    const bytes = text.slice(at, end)
    at = end + 1
    return decodeUtf8(bytes)
  }

  const readRelation = (): void => {
    const oid = i32()
    const schema = name() || "pg_catalog"
    const table = byName.get(`${schema}.${name()}`)
    if (table === undefined) {
      relations.set(oid, null)
      return
    }
    u8() // replica identity
    const columns = Array.from({ length: i16() }, () => {
      u8() // part of the key
      const column = name()
      i32() // type
      i32() // type modifier
      return column
    })
    const positions = columns.map((column) => table.columns.findIndex((known) => known.name === column))
    const missing = table.columns.flatMap((column, i) => (column.generated || positions.includes(i) ? [] : [i]))
    const unknown = columns.find((_, i) => positions[i] === -1)
    relations.set(oid, { table, positions, missing, stray: unknown ?? table.columns[missing[0] ?? -1]?.name })
  }

  /** Tokens in the catalog's order; undefined = unchanged and stored out of line. */
  const readTuple = ({ table, positions }: Relation<T>): Array<string | undefined> => {
    const tokens: Array<string | undefined> = table.columns.map((column) => (column.generated ? "null" : undefined))
    const count = i16()
    for (let i = 0; i < count; i++) {
      const position = positions[i] as number
      switch (u8()) {
        case 110: // n
          if (position >= 0) tokens[position] = "null"
          break
        case 117: // u
          break
        case 116: {
          // t
          const length = i32()
          if (at + length > text.length) throw new CutShort()
          const bytes = text.slice(at, at + length)
          at += length
          const kind = table.columns[position]?.kind
          if (kind === undefined) break
          const token = textToToken(kind, kind === "text" ? decodeUtf8(bytes) : bytes)
          if (!isToken(kind, token) || (kind === "bool" && bytes.length !== 1))
            throw new OtherType(`column ${table.columns[position]?.name} has another type`)
          tokens[position] = token
          break
        }
        default:
          throw new CutShort()
      }
    }
    return tokens
  }

  const readRow = (action: number): Event<T> => {
    const relation = relations.get(i32())
    if (relation === null) return { kind: "none" }
    if (relation === undefined) throw new CutShort()
    try {
      return readRowOf(relation, action)
    } catch (cause) {
      if (cause instanceof OtherType) return { kind: "shape", table: relation.table, detail: cause.message }
      throw cause
    }
  }

  const readRowOf = (relation: Relation<T>, action: number): Event<T> => {
    const { table, missing, stray } = relation
    const shape = (detail: string): Event<T> => ({ kind: "shape", table, detail })

    let part = u8()
    // K: key columns of the old row, the others null; O: the old row whole (REPLICA IDENTITY FULL).
    const isWhole = part === 79
    const old = isWhole || part === 75 ? readTuple(relation) : null
    const oldKey = old === null ? null : keyOf(table, old)
    if (action === 68) return oldKey === null ? shape("a delete without its key") : { kind: "delete", table, key: oldKey }

    if (old !== null) part = u8()
    if (part !== 78) throw new CutShort()
    const tokens = readTuple(relation)
    if (isWhole) for (let i = 0; i < tokens.length; i++) tokens[i] ??= old?.[i]
    // A row that is older than a column.
    if (action === 73) for (const i of missing) tokens[i] ??= table.columns[i]?.fill
    const key = keyOf(table, tokens)
    if (key === null) return shape("a row without its key")
    const put = { kind: "put", table, key, tokens, oldKey: oldKey === key ? null : oldKey, isInsert: action === 73 } as const
    return stray === undefined ? put : { ...put, stray }
  }

  const readMessage = (): Event<T> => {
    const action = u8()
    switch (action) {
      case 66: {
        i64() // LSN of the commit
        const micros = i64()
        return { kind: "begin", xid: i32(), at: timeText(micros) }
      }
      case 67:
        return { kind: "commit" }
      case 82:
        readRelation()
        return { kind: "none" }
      case 73:
      case 85:
      case 68:
        return readRow(action)
      case 84: {
        const count = i32()
        u8() // cascade, restart identity
        const truncated = Array.from({ length: count }, () => relations.get(i32()))
        return { kind: "truncate", tables: truncated.flatMap((relation) => relation?.table ?? []) }
      }
      // Type, Origin, Message
      case 89:
      case 79:
      case 77:
        return { kind: "none" }
      default:
        throw new CutShort()
    }
  }

  const read = (message: Message): Event<T> => {
    text = String(message)
    at = 0
    try {
      return readMessage()
    } catch (cause) {
      // A RangeError: a time that no calendar has.
      if (cause instanceof CutShort || cause instanceof RangeError) return { kind: "unreadable", text: JSON.stringify(String(message).slice(0, 200)) }
      throw cause
    } finally {
      text = ""
    }
  }
  return { read, isBound: (message) => /^[BC]/.test(String(message)) }
}
