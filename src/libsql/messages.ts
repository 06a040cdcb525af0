/**
 * What a file's service and the worker that holds its connection say to each other. Rows travel in the forms that are there soonest: a
 * message of nested lists, or of bigints, takes longer than the statements themselves.
 */
import type { Cell, Kind, Wire } from "../model/value.ts"
import type { LinesLimits } from "./gather.ts"
import type { LinesQuery } from "./lines.ts"
import type { LoadPlan, LoadSource, WaitingKeys } from "./load.ts"
import type { Walk } from "./walk.ts"

/** Whole JS numbers bind as INTEGER, others as REAL, booleans as 0 and 1. */
export type Bind = Cell | boolean

/** One row of `many` that a constraint refused; the other rows stand. */
export interface RowFailure {
  readonly index: number
  readonly code: string
  readonly message: string
}

export interface LinesScan extends LinesQuery, LinesLimits {}

/** A query whose rows are: table number, key as BLOB, then the content in pieces: BLOB, REAL or NULL. */
export interface PrintScan {
  readonly sql: string
  readonly args: ReadonlyArray<Bind>
  /** Tables whose content is JSON with numbers that Postgres may print otherwise than JavaScript does. */
  readonly renumber: ReadonlyArray<number>
  /** Names of keys whose text is wanted, by table. */
  readonly wanted: ReadonlyMap<number, ReadonlySet<string>>
}

export interface PrintsFound {
  readonly byTable: ReadonlyMap<number, Uint32Array>
  readonly keys: ReadonlyArray<readonly [table: number, key: string]>
}

/** All cells of some rows in one list, and which of them are INTEGER though they stand there as numbers. */
export interface Packed {
  readonly width: number
  readonly cells: ReadonlyArray<Cell>
  readonly integers: Uint8Array
}

export const pack = (rows: ReadonlyArray<ReadonlyArray<Cell>>): Packed => {
  const width = rows[0]?.length ?? 0
  const cells: Array<Cell> = new Array(width * rows.length)
  const integers = new Uint8Array(cells.length)
  let at = 0
  for (const row of rows) {
    if (row.length !== width) throw new TypeError(`rows of one statement differ in width: ${row.length} and ${width}`)
    for (const cell of row) {
      if (typeof cell === "bigint" && cell >= -9007199254740991n && cell <= 9007199254740991n) {
        cells[at] = Number(cell)
        integers[at] = 1
      } else cells[at] = cell
      at++
    }
  }
  return { width, cells, integers }
}

/** Wire values as one text. */
export interface PackedWires {
  readonly kinds: ReadonlyArray<Kind>
  /** A JSON list of rows. */
  readonly json: string
  /** The statement for `wide` rows. */
  readonly wideSql: string
  readonly wide: number
}

/** Values that one statement of many rows binds: beyond that it is no quicker. */
const WIDE_VALUES = 200

/** `sql` is the statement for so many rows. */
export const packWires = (
  sql: (rows: number) => string,
  kinds: ReadonlyArray<Kind>,
  rows: ReadonlyArray<ReadonlyArray<Wire>>,
): PackedWires & { readonly sql: string } => {
  const wide = Math.max(1, Math.floor(WIDE_VALUES / Math.max(1, kinds.length)))
  return { sql: sql(1), kinds, json: JSON.stringify(rows), wideSql: sql(wide), wide }
}

export interface Statement {
  readonly sql: string
  readonly args: ReadonlyArray<Bind>
}

/** Loaded lines on their way into the file, as a transaction of its own. */
export interface Showing {
  readonly place: number
  /** How many lines it has. */
  readonly lines: number
  /** A query, and the JSON list of the rows that it finds as long as what the caller knows is so. */
  readonly guard: { readonly sql: string; readonly found: string }
  readonly before: ReadonlyArray<Statement>
  readonly after: ReadonlyArray<Statement>
}

/** How long the write lock was held, and how much of that the commit took. */
export interface Held {
  readonly heldMs: number
  readonly commitMs: number
}

export type Command =
  | {
      readonly op: "open"
      readonly path: string
      readonly pragmas: ReadonlyArray<string>
      readonly timeoutMs: number
      readonly stillMs: number
      readonly niceness: number
    }
  | { readonly op: "begin"; readonly write: boolean }
  | { readonly op: "end"; readonly commit: boolean }
  | { readonly op: "exec"; readonly sql: string }
  | { readonly op: "ahead"; readonly sql: string; readonly args: ReadonlyArray<Bind> }
  | { readonly op: "run" | "all" | "values"; readonly sql: string; readonly args: ReadonlyArray<Bind> | undefined }
  | ({ readonly op: "many"; readonly sql: string } & Packed)
  | ({ readonly op: "wires"; readonly sql: string } & PackedWires)
  | { readonly op: "load"; readonly source: LoadSource; readonly plans: ReadonlyArray<LoadPlan>; readonly place: number }
  | {
      readonly op: "show"
      readonly place: number
      readonly from: number
      readonly to: number
      readonly waiting: WaitingKeys
      readonly most: number
    }
  | ({ readonly op: "showAlone" } & Showing)
  | { readonly op: "unload" }
  | ({ readonly op: "lines" } & LinesScan)
  | ({ readonly op: "prints" } & PrintScan)
  | { readonly op: "walk"; readonly sql: string; readonly args: ReadonlyArray<Bind>; readonly walk: Walk }
  | { readonly op: "keep" | "reset" | "empty" | "close" }
export type Request = Command & { readonly id: number }
/** What goes to the worker, and what comes back: lists, for a message wakes a thread, which costs more than most statements. */
export type Requests = ReadonlyArray<Request>
export type Responses = ReadonlyArray<Response>
export type Response =
  | { readonly id: number; readonly ok: unknown; readonly isMore?: true }
  | { readonly id: number; readonly error: { readonly code: string; readonly message: string } }
