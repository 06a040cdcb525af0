/**
 * Rows of wal2json whose bytes go into the feed as they stand (pure). Nearly all are such: every column is there, in the
 * catalog's order, and each value is written as the feed writes it but for quotes around some numbers. They are cut out of the
 * stream's bytes without a text or a token of their own, at a third of the cost. What is not plain is for the decoder.
 */
import { Buffer, isUtf8 } from "node:buffer"
import type { Kind } from "../model/value.ts"
import type { TextBytes } from "../libsql/slab.ts"
import type { RawMessage } from "../postgres/messages.ts"
import { type AudienceValue, audienceOf, rememberAudiences } from "./audience.ts"
import { tokenize } from "./body.ts"
import { ACTION_AT, COLUMNS, IDENTITY, type Tokens } from "./decode.ts"
import type { FeedTable } from "./entry.ts"
import { isDigit, isEscape, isNumber, isOfNumber, isWord } from "./json-bytes.ts"
import type { PendingRow } from "./pending.ts"
import { isTimed } from "./times.ts"

/** A larger message is for the decoder. */
const MOST_BYTES = 64 * 1024
/** Rows are cut out into pieces of memory of this size. */
const ARENA_BYTES = 1024 * 1024
/** Audiences that are remembered, and bytes of what names one: rows of many schools come among each other. */
const AUDIENCES = 4_096
const AUDIENCE_BYTES = 128
/** What a row takes at most beside the bytes of its message, written twice: its id, brackets, and quotes of numbers. */
const SPARE_BYTES = 64

const INSERT = 73
const UPDATE = 85
const QUOTE = 34
const COMMA = 44
const MINUS = 45
const BACKSLASH = 92
const SPACE = 32
const OPEN = 91
const CLOSE = 93
const END = 125

const SCHEMA = ',"schema":'

/** How a value stands in the feed: text as in the message, a number with quotes, a number without, or true and false. */
const FORMS: { readonly [K in Kind]: "text" | "quoted" | "number" | "bool" | null } = {
  text: "text",
  bigint: "quoted",
  numeric: "quoted",
  int: "number",
  float: "number",
  bool: "bool",
  // Its prefix goes.
  bytea: null,
}

/** Bytes to be met, as words: four are compared at once, and the last four end where the bytes do. */
class Pattern {
  readonly length: number
  readonly #words: Int32Array
  readonly #last: number

  /** Of four bytes or more. */
  constructor(text: string) {
    const bytes = new TextEncoder().encode(text)
    const view = new DataView(bytes.buffer)
    this.length = bytes.length
    this.#words = Int32Array.from({ length: bytes.length >> 2 }, (_, i) => view.getInt32(4 * i, true))
    this.#last = view.getInt32(bytes.length - 4, true)
  }

  /** Whether it stands at this place. */
  isAt(view: DataView, at: number, end: number): boolean {
    if (at + this.length > end) return false
    const words = this.#words
    for (let i = 0; i < words.length; i++) if (view.getInt32(at + 4 * i, true) !== words[i]) return false
    return view.getInt32(at + this.length - 4, true) === this.#last
  }
}

const NULL = Buffer.from("null")
const TRUE = Buffer.from("true")
const FALSE = Buffer.from("false")
interface PlainTable {
  readonly table: FeedTable
  /** What stands before the columns, from the schema on. */
  readonly opening: Pattern
  readonly columns: ReadonlyArray<{ readonly opening: Pattern; readonly form: (typeof FORMS)[Kind] }>
  /** Positions of the key's columns, in the order of the columns. */
  readonly keyInOrder: ReadonlyArray<number>
  /** Before the key in the row's id. */
  readonly id: Uint8Array
}

const openingOf = ({ name }: FeedTable): string => {
  const dot = name.indexOf(".")
  return `${SCHEMA}${JSON.stringify(name.slice(0, dot))},"table":${JSON.stringify(name.slice(dot + 1))}${COLUMNS}`
}

/** A row whose key and body are bytes; texts are made of them when somebody asks. */
export class PlainRow implements PendingRow, TextBytes {
  bytes: TextBytes | null = this
  at = 0
  xid = 0
  readonly ifDifferent = false
  readonly earlier: undefined
  #body: string | null = null
  #tokens: Tokens | null = null

  constructor(
    readonly table: FeedTable,
    public isInsert: boolean,
    public audience: AudienceValue | null,
    /** Of table and key. */
    readonly id: string,
    readonly source: Buffer,
    readonly keyFrom: number,
    readonly keyTo: number,
    readonly bodyFrom: number,
    readonly bodyTo: number,
  ) {}

  get key(): string {
    return this.id.slice(this.id.indexOf(" ") + 1)
  }
  get body(): string {
    this.#body ??= this.source.toString("utf8", this.bodyFrom, this.bodyTo)
    return this.#body
  }
  set body(body: string) {
    this.#body = body
    this.bytes = null
  }
  get tokens(): Tokens | null {
    this.#tokens ??= tokenize(this.body)
    return this.#tokens
  }
  set tokens(tokens: Tokens | null) {
    this.#tokens = tokens
    this.bytes = null
  }
}

/**
 * Tables whose rows may be plain: all that is done with them on their way into the feed is to find their one audience. `isExact`: the
 * decoder gives NaN and infinities as they are, so that no null is looked into.
 */
export const plainTables = (tables: ReadonlyArray<FeedTable>, routes: ReadonlyMap<number, unknown>, isExact: boolean): ReadonlyArray<FeedTable> =>
  tables.filter(
    (table) =>
      !table.hubOnly &&
      !isTimed(table) &&
      !routes.has(table.id) &&
      (isExact || table.columns.every(({ kind }) => kind !== "float" && kind !== "numeric")),
  )

export class PlainReader {
  readonly #byOpening: ReadonlyMap<string, PlainTable>
  readonly #audienceOf = rememberAudiences()
  /** The table of the last row, and where in its message the opening began. */
  #last: PlainTable | null = null
  #openingAt = 0
  /** Audiences met before, with their tokens, each at the place that its token's bytes give. */
  readonly #audiences: Array<{ readonly token: Uint8Array; readonly audience: AudienceValue | null } | undefined> = new Array(AUDIENCES)
  #piece: Buffer | null = null
  #view: DataView = new DataView(new ArrayBuffer(0))
  #arena = Buffer.alloc(0)
  #used = 0
  /** Of each column, where its value stands in the arena. */
  readonly #from: Int32Array
  readonly #to: Int32Array

  constructor(tables: ReadonlyArray<FeedTable>) {
    const most = Math.max(0, ...tables.map(({ columns }) => columns.length))
    this.#from = new Int32Array(most)
    this.#to = new Int32Array(most)
    this.#byOpening = new Map(
      tables.map((table) => [
        Buffer.from(openingOf(table)).toString("latin1"),
        {
          table,
          opening: new Pattern(openingOf(table)),
          columns: table.columns.map(({ name, kind }) => ({ opening: new Pattern(`{"name":${JSON.stringify(name)},"value":`), form: FORMS[kind] })),
          keyInOrder: [...table.key].sort((a, b) => a - b),
          id: new TextEncoder().encode(`${table.id} `),
        },
      ]),
    )
  }

  /** No row that was read is needed any more: their memory is used again. */
  forget(): void {
    this.#used = 0
  }

  /** null: the decoder must read it. */
  read({ bytes, start, end }: RawMessage): PlainRow | null {
    const action = bytes[start + ACTION_AT]
    if ((action !== INSERT && action !== UPDATE) || end - start > MOST_BYTES) return null
    if (bytes !== this.#piece) {
      this.#piece = bytes
      this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    }
    const found = this.#tableAt(bytes, start, end)
    if (found === null) return null
    if (this.#arena.length - this.#used < 2 * (end - start + SPARE_BYTES + 2 * found.columns.length)) {
      this.#arena = Buffer.allocUnsafeSlow(ARENA_BYTES)
      this.#used = 0
    }
    const after = this.#readColumns(found, bytes, start + this.#openingAt + found.opening.length, end)
    if (after === -1 || (action === UPDATE && !this.#hasSameKey(found, bytes, after, end))) return null
    return this.#row(found, action === INSERT)
  }

  #tableAt(bytes: Buffer, start: number, end: number): PlainTable | null {
    // Before it stand only the txn's id and time: what is met there can be nothing else.
    if (this.#last?.opening.isAt(this.#view, start + this.#openingAt, end) === true) return this.#last
    const at = bytes.indexOf(SCHEMA, start)
    const columns = at === -1 || at >= end ? -1 : bytes.indexOf(COLUMNS, at)
    if (columns === -1 || columns >= end) return null
    const found = this.#byOpening.get(bytes.toString("latin1", at, columns + COLUMNS.length))
    if (found === undefined) return null
    this.#last = found
    this.#openingAt = at - start
    return found
  }

  /** Writes the row's body into the arena; answers the place after the columns, -1 when the row is not plain. */
  #readColumns({ columns }: PlainTable, bytes: Buffer, first: number, end: number): number {
    const view = this.#view
    const out = this.#arena
    let at = first
    let to = this.#used
    let high = 0
    out[to++] = OPEN
    for (let i = 0; i < columns.length; i++) {
      const { opening, form } = columns[i] as PlainTable["columns"][number]
      if (!opening.isAt(view, at, end)) return -1
      at += opening.length
      this.#from[i] = to
      let byte = bytes[at] as number
      if (byte === QUOTE && form !== "text") {
        // With exact numbers all of them come as text. NaN and the infinities, and what is none, are for the decoder.
        if (form !== "quoted" && form !== "number") return -1
        const from = to
        for (byte = bytes[++at] as number; byte !== QUOTE; byte = bytes[++at] as number) {
          if (at >= end || !isOfNumber(byte)) return -1
          if (to === from && form === "quoted") out[to++] = QUOTE
          out[to++] = byte
        }
        if (!isNumber(out, form === "quoted" ? from + 1 : from, to)) return -1
        if (form === "quoted") out[to++] = QUOTE
        at++
      } else if (byte === QUOTE) {
        do {
          if (byte === BACKSLASH) {
            out[to++] = byte
            byte = bytes[++at] as number
            if (!isEscape(bytes, at)) return -1
          } else if (byte < SPACE) return -1
          out[to++] = byte
          high |= byte
          byte = bytes[++at] as number
          if (at >= end) return -1
        } while (byte !== QUOTE)
        out[to++] = byte
        at++
      } else if (isDigit(byte) || byte === MINUS) {
        if (form !== "quoted" && form !== "number") return -1
        if (form === "quoted") out[to++] = QUOTE
        const from = to
        do {
          out[to++] = byte
          byte = bytes[++at] as number
          if (at >= end || !(isOfNumber(byte) || byte === END)) return -1
        } while (byte !== END)
        if (!isNumber(out, from, to)) return -1
        if (form === "quoted") out[to++] = QUOTE
      } else {
        // null, true or false
        const from = to
        while (byte !== END && to - from < 6) {
          out[to++] = byte
          byte = bytes[++at] as number
        }
        if (!isWord(NULL, out, from, to) && (form !== "bool" || !(isWord(TRUE, out, from, to) || isWord(FALSE, out, from, to)))) return -1
      }
      this.#to[i] = to
      if (bytes[at++] !== END) return -1
      const isLast = i === columns.length - 1
      if (bytes[at++] !== (isLast ? CLOSE : COMMA)) return -1
      out[to++] = isLast ? CLOSE : COMMA
    }
    if (at >= end || (high > 127 && !isUtf8(out.subarray(this.#used, to)))) return -1
    this.#bodyTo = to
    return at
  }
  #bodyTo = 0

  /** An update tells its old key, or the whole old row where the table says so. */
  #hasSameKey({ columns, keyInOrder }: PlainTable, bytes: Buffer, after: number, end: number): boolean {
    if (bytes[after] === END) return after + 1 === end
    if (!IDENTITY_PATTERN.isAt(this.#view, after, end)) return false
    let at = after + IDENTITY_PATTERN.length
    for (let k = 0; k < keyInOrder.length; k++) {
      const column = keyInOrder[k] as number
      const { opening, form } = columns[column] as PlainTable["columns"][number]
      if (!opening.isAt(this.#view, at, end)) return false
      at += opening.length
      const quotes = form === "quoted" ? 1 : 0
      const isQuoted = form !== "text" && bytes[at] === QUOTE
      if (isQuoted) at++
      const to = (this.#to[column] as number) - quotes
      for (let i = (this.#from[column] as number) + quotes; i < to; i++) if (this.#arena[i] !== bytes[at++]) return false
      if (isQuoted && bytes[at++] !== QUOTE) return false
      if (bytes[at++] !== END || bytes[at++] !== (k === keyInOrder.length - 1 ? CLOSE : COMMA)) return false
    }
    return bytes[at] === END && at + 1 === end
  }

  #row({ table, id }: PlainTable, isInsert: boolean): PlainRow | null {
    const out = this.#arena
    const bodyFrom = this.#used
    const bodyTo = this.#bodyTo
    let to = bodyTo
    for (let i = 0; i < id.length; i++) out[to++] = id[i] as number
    const keyFrom = to
    let high = 0
    for (let k = 0; k < table.key.length; k++) {
      const column = table.key[k] as number
      const from = this.#from[column] as number
      out[to++] = k === 0 ? OPEN : COMMA
      for (let i = from; i < (this.#to[column] as number); i++) {
        const byte = out[i] as number
        out[to++] = byte
        high |= byte
      }
      // Only a NaN or an infinity of a numeric key comes as null.
      if (out[from] === 110) return null
    }
    out[to++] = CLOSE
    this.#used = to
    const name = out.toString(high > 127 ? "utf8" : "latin1", bodyTo, to)
    return new PlainRow(table, isInsert, this.#audienceAt(table.audienceAt), name, out, keyFrom, to, bodyFrom, bodyTo)
  }

  #audienceAt(column: number): AudienceValue | null {
    if (column === -1) return audienceOf(-1, [])
    const [from, to] = [this.#from[column] as number, this.#to[column] as number]
    if (to - from > AUDIENCE_BYTES) return this.#audienceOf(0, [this.#arena.toString("utf8", from, to)])
    let hash = 0
    for (let i = from; i < to; i++) hash = (Math.imul(hash, 31) + (this.#arena[i] as number)) | 0
    const place = hash & (AUDIENCES - 1)
    const known = this.#audiences[place]
    if (known !== undefined && isWord(known.token, this.#arena, from, to)) return known.audience
    const token = Uint8Array.from(this.#arena.subarray(from, to))
    const audience = this.#audienceOf(0, [this.#arena.toString("utf8", from, to)])
    this.#audiences[place] = { token, audience }
    return audience
  }
}

const IDENTITY_PATTERN = new Pattern(IDENTITY)
