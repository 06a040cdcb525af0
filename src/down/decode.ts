/**
 * What a decoder makes of the stream, and the one for wal2json format 2 (pure): one message of text at a time -> events of
 * synced tables. Values are never parsed: a row is the list of its columns' JSON tokens, cut out of the message as they
 * stand, so that no number is ever rounded. `pgoutput.ts` has the other decoder.
 */
import type { Kind } from "../model/value.ts"
import type { Message } from "../postgres/messages.ts"
import { EXACT_NUMBERS } from "../postgres/probe.ts"
import type { PluginOptions } from "../postgres/wal.ts"

/** What the decoder must know of a table; `columns` in the order in which Postgres numbers them. */
export interface DecodeTable {
  readonly name: string
  readonly columns: ReadonlyArray<{
    readonly name: string
    readonly kind: Kind
    readonly toastable: boolean
    readonly generated: boolean
    /** The token that rows hold which are older than the column; absent = null. */
    readonly fill?: string
  }>
  /** Positions of the key columns, in key order. */
  readonly key: ReadonlyArray<number>
}

/** A column's JSON token; undefined = not in the message (unchanged and stored out of line). */
export type Tokens = ReadonlyArray<string | undefined>

export type Event<T extends DecodeTable> =
  | { readonly kind: "begin"; readonly xid: number; readonly at: string }
  | { readonly kind: "commit" }
  /** `oldKey`: the key before an update that changed it. `isInsert`: the key did not exist before. */
  | {
      readonly kind: "put"
      readonly table: T
      readonly key: string
      readonly tokens: Tokens
      readonly oldKey: string | null
      readonly isInsert: boolean
      /** A column that the row has and the table has not, else one of the other way round: the row is older or newer than the catalog. */
      readonly stray?: string
    }
  | { readonly kind: "delete"; readonly table: T; readonly key: string }
  | { readonly kind: "truncate"; readonly tables: ReadonlyArray<T> }
  /** A row whose key the message does not tell: NaN or an infinity in a numeric key, which came as null. */
  | { readonly kind: "unnamed"; readonly table: T }
  /** A table that is not synced, or a message of another kind. */
  | { readonly kind: "none" }
  /** The row does not have the shape that the catalog said: the catalog must be read again. */
  | { readonly kind: "shape"; readonly table: T; readonly detail: string }
  | { readonly kind: "unreadable"; readonly text: string }

/** Reads the messages of one connection in the order in which they came. */
export interface Decoder<T extends DecodeTable> {
  readonly read: (message: Message) => Event<T>
  /** A txn's beginning or end. */
  readonly isBound: (message: Message) => boolean
}

// {"action":"I",…
export const ACTION_AT = 11
const actionOf = (message: Message): number | undefined =>
  typeof message === "string" ? message.charCodeAt(ACTION_AT) : message.bytes[message.start + ACTION_AT]

/** The options of START_REPLICATION; each costs speed, so only what the decoder reads. */
export const wal2jsonOptions = (tables: ReadonlyArray<string>): PluginOptions => ({
  required: [
    ["format-version", "2"],
    ["include-types", "false"],
    ["include-pk", "false"],
    ["include-xids", "true"],
    ["include-timestamp", "true"],
    ["include-lsn", "false"],
    ["add-tables", tables.map(escapeTable).join(",")],
  ],
  optional: [[EXACT_NUMBERS, "true"]],
  form: { encoding: "utf8", commit: { at: ACTION_AT, byte: 67 } },
})

// In add-tables a name's space, comma, period and asterisk are escaped with a backslash; the first period splits schema from table.
const escapeName = (name: string): string => name.replace(/[ ,.*\\]/g, "\\$&")
const escapeTable = (name: string): string => {
  const dot = name.indexOf(".")
  return `${escapeName(name.slice(0, dot))}.${escapeName(name.slice(dot + 1))}`
}

const QUOTE = 34
const BACKSLASH = 92
const MINUS = 45

const BEGIN = /^\{"action":"B","xid":(\d+),"timestamp":"([^"\\]+)"\}$/
const COMMIT = { kind: "commit" } as const
export const COLUMNS = ',"columns":['
export const IDENTITY = ',"identity":['

/** Position after the closing quote of the JSON string that opens at `start`; -1 when it does not close. */
const endOfString = (text: string, start: number): number => {
  let close = text.indexOf('"', start + 1)
  while (close !== -1) {
    let slashes = 0
    for (let i = close - 1; text.charCodeAt(i) === BACKSLASH; i--) slashes++
    if (slashes % 2 === 0) return close + 1
    close = text.indexOf('"', close + 1)
  }
  return -1
}

/** The token as wire and feed write this kind. */
const canonical = (kind: Kind, raw: string): string => {
  if (raw === "null") return raw
  const quoted = raw.charCodeAt(0) === QUOTE
  switch (kind) {
    case "bigint":
    case "numeric":
      return quoted ? raw : `"${raw}"`
    case "int":
      return quoted ? raw.slice(1, -1) : raw
    // A domain's value comes quoted, whatever its base type.
    case "float":
      return quoted && !/[NI]/.test(raw) ? raw.slice(1, -1) : raw
    case "bool":
      return quoted ? (raw === '"t"' || raw === '"true"' ? "true" : "false") : raw
    case "bytea":
      return raw.startsWith('"\\\\x') ? `"${raw.slice(4)}` : raw
    case "text":
      return quoted ? raw : `"${raw}"`
  }
}

const isDigit = (code: number): boolean => code >= 48 && code <= 57

/** Whether a token is one of this kind: a column whose type has changed must never pass as its former self. */
export const isToken = (kind: Kind, token: string): boolean => {
  if (kind === "text" || token === "null") return true
  const first = token.charCodeAt(0)
  switch (kind) {
    case "bool":
      return token === "true" || token === "false"
    case "int":
      return isDigit(first) || first === 45
    case "float":
      return isDigit(first) || first === 45 || first === QUOTE
    case "bigint":
    case "numeric": {
      const second = token.charCodeAt(1)
      return first === QUOTE && (isDigit(second) || second === 45 || (kind === "numeric" && /^"(?:NaN|Infinity|-Infinity)"$/.test(token)))
    }
    case "bytea":
      return first === QUOTE
  }
}

/** The key as the feed writes it; null when a part of it is missing. */
export const keyOf = (table: DecodeTable, tokens: Tokens): string | null => {
  let key = "["
  for (let i = 0; i < table.key.length; i++) {
    const token = tokens[table.key[i] as number]
    if (token === undefined) return null
    key += i === 0 ? token : `,${token}`
  }
  return `${key}]`
}

export const wal2jsonDecoder = <T extends DecodeTable>(tables: ReadonlyArray<T>): Decoder<T> => {
  const byName = new Map(tables.map((table) => [table.name, table]))
  const byText = new Map<string, T | null>()
  const openings = new Map<T, ReadonlyArray<string>>(
    tables.map((table) => [table, table.columns.map((column) => `{"name":${JSON.stringify(column.name)},"value":`)]),
  )

  const tableOf = (text: string, start: number, end: number): T | null => {
    const piece = text.slice(start, end)
    let table = byText.get(piece)
    if (table === undefined) {
      const names = JSON.parse(`{${piece}}`) as { schema: string; table: string }
      table = byName.get(`${names.schema}.${names.table}`) ?? null
      byText.set(piece, table)
    }
    return table
  }

  /** The last column that was read and is not in the table. */
  let stray: string | undefined

  /** Past a column that the table does not have; -1 when it is none. */
  const skipColumn = (text: string, at: number): number => {
    const opening = '{"name":'
    const nameEnd = text.startsWith(opening, at) ? endOfString(text, at + opening.length) : -1
    if (nameEnd <= 0 || !text.startsWith(',"value":', nameEnd)) return -1
    stray = JSON.parse(text.slice(at + opening.length, nameEnd)) as string
    const from = nameEnd + ',"value":'.length
    return text.charCodeAt(from) === QUOTE ? endOfString(text, from) : text.indexOf("}", from)
  }

  /**
   * Reads `[{"name":…,"value":…},…]` from `start` (the bracket) into `tokens`, in the table's order; the position after it, or
   * what cannot be read.
   */
  const readColumns = (text: string, start: number, table: T, tokens: Array<string | undefined>): number | { readonly unknown: string } => {
    const open = openings.get(table) as ReadonlyArray<string>
    let at = start + 1
    let next = 0
    while (text.charCodeAt(at) !== 93) {
      let column = next
      while (column < open.length && !text.startsWith(open[column] as string, at)) column++
      if (column === open.length) {
        column = open.findIndex((opening) => text.startsWith(opening, at))
        if (column === -1) {
          const end = skipColumn(text, at)
          if (end <= 0) return { unknown: text.slice(at, at + 120) }
          at = end + 1
          if (text.charCodeAt(at) === 44) at++
          continue
        }
      }
      const from = at + (open[column] as string).length
      const first = text.charCodeAt(from)
      const to = first === QUOTE ? endOfString(text, from) : text.indexOf("}", from)
      if (to <= 0) return { unknown: text.slice(at, at + 120) }
      const { kind } = table.columns[column] as T["columns"][number]
      let token = text.slice(from, to)
      // Most tokens are the feed's as they stand, or but for their quotes.
      const isNumber = isDigit(first) || first === MINUS
      if (isNumber && (kind === "bigint" || kind === "numeric")) token = `"${token}"`
      else if (first === QUOTE ? kind !== "text" : !(isNumber && (kind === "int" || kind === "float"))) {
        token = canonical(kind, token)
        if (!isToken(kind, token)) return { unknown: text.slice(at, at + 120) }
      }
      if (column === tokens.length) tokens.push(token)
      else {
        while (tokens.length < column) tokens.push(undefined)
        tokens[column] = token
      }
      next = column + 1
      at = to + 1
      if (text.charCodeAt(at) === 44) at++
    }
    while (tokens.length < open.length) tokens.push(undefined)
    return at + 1
  }

  const unnamed = new Set(tables.filter((table) => table.key.some((i) => table.columns[i]?.kind === "numeric")))
  const isUnnamed = (table: T, tokens: Tokens): boolean => unnamed.has(table) && table.key.some((i) => tokens[i] === "null")

  // What stands before the columns is the same for the rows that a txn inserts, or updates, in one table.
  const lastBefore = { I: "-", U: "-" }
  const lastTable: { I: T | null; U: T | null } = { I: null, U: null }

  const readRow = (text: string, action: "I" | "U" | "D" | "T"): Event<T> => {
    let table: T | null
    let columnsAt: number
    let identityAt = -1
    if ((action === "I" || action === "U") && text.startsWith(lastBefore[action])) {
      table = lastTable[action]
      columnsAt = lastBefore[action].length - COLUMNS.length
    } else {
      const names = text.indexOf('"schema":')
      if (names === -1) return { kind: "unreadable", text }
      columnsAt = text.indexOf(COLUMNS, names)
      if (columnsAt === -1) identityAt = text.indexOf(IDENTITY, names)
      table = tableOf(text, names, columnsAt !== -1 ? columnsAt : identityAt !== -1 ? identityAt : text.length - 1)
      if (columnsAt !== -1 && (action === "I" || action === "U")) {
        lastBefore[action] = text.slice(0, columnsAt + COLUMNS.length)
        lastTable[action] = table
      }
    }
    if (table === null) return { kind: "none" }
    if (action === "T") return { kind: "truncate", tables: [table] }

    const shape = (detail: string): Event<T> => ({ kind: "shape", table: table as T, detail })
    stray = undefined
    if (action === "D") {
      const identity: Array<string | undefined> = []
      const end = identityAt === -1 ? { unknown: "no identity" } : readColumns(text, identityAt + IDENTITY.length - 1, table, identity)
      if (typeof end !== "number") return shape(end.unknown)
      if (isUnnamed(table, identity)) return { kind: "unnamed", table }
      const key = keyOf(table, identity)
      return key === null ? shape("a delete without its key") : { kind: "delete", table, key }
    }
    if (columnsAt === -1) return shape("a row without columns")
    const tokens: Array<string | undefined> = []
    const end = readColumns(text, columnsAt + COLUMNS.length - 1, table, tokens)
    if (typeof end !== "number") return shape(end.unknown)
    let identity: Array<string | undefined> | null = null
    let oldKey: string | null = null
    if (action === "U" && text.startsWith(IDENTITY, end)) {
      identity = []
      const after = readColumns(text, end + IDENTITY.length - 1, table, identity)
      if (typeof after !== "number") return shape(after.unknown)
      if (isUnnamed(table, identity)) return { kind: "unnamed", table }
      oldKey = keyOf(table, identity)
    }
    if (isUnnamed(table, tokens)) return { kind: "unnamed", table }
    for (let i = 0; i < tokens.length; i++) {
      if (tokens[i] !== undefined) continue
      const column = table.columns[i] as T["columns"][number]
      // A row that is older than the column, or newer than its end.
      if (action === "I" || !column.toastable) stray ??= column.name
      if (action === "I" && column.fill !== undefined) tokens[i] = column.fill
      // With REPLICA IDENTITY FULL the old row carries what the new one leaves out.
      if (identity?.[i] !== undefined) tokens[i] = identity[i]
    }
    const key = keyOf(table, tokens)
    if (key === null) return shape("a row without its key")
    const put = { kind: "put", table, key, tokens, oldKey: oldKey === key ? null : oldKey, isInsert: action === "I" } as const
    return stray === undefined ? put : { ...put, stray }
  }

  const readMessage = (text: string): Event<T> => {
    switch (actionOf(text)) {
      case 66: {
        const parts = BEGIN.exec(text)
        if (parts !== null) return { kind: "begin", xid: Number(parts[1]), at: parts[2] as string }
        const { xid, timestamp } = JSON.parse(text) as { xid: number; timestamp: string }
        return { kind: "begin", xid, at: timestamp }
      }
      case 67:
        return COMMIT
      case 73:
        return readRow(text, "I")
      case 85:
        return readRow(text, "U")
      case 68:
        return readRow(text, "D")
      case 84:
        return readRow(text, "T")
      case 77:
        return { kind: "none" }
      default:
        return { kind: "unreadable", text }
    }
  }
  const read = (message: Message): Event<T> => {
    const text = String(message)
    try {
      return readMessage(text)
    } catch (cause) {
      if (cause instanceof SyntaxError) return { kind: "unreadable", text }
      throw cause
    }
  }
  return { read, isBound: (message) => actionOf(message) === 66 || actionOf(message) === 67 }
}
