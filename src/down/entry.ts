/** What the feed holds: synced tables, and a row's state on its way in. */
import type { TextBytes } from "../libsql/slab.ts"
import type { Lsn } from "../model/lsn.ts"
import type { Table } from "../model/table.ts"
import type { DecodeTable } from "./decode.ts"
import type { Pause, Shape } from "./shape.ts"

export interface Paused extends Pause {
  /** ms since 1970 */
  readonly since: number
}

/** A synced table as the feed holds it. */
export interface FeedTable extends DecodeTable {
  readonly id: number
  readonly table: Table
  readonly hubOnly: boolean
  readonly class: number
  readonly audienceAt: number
  /** Links before the rows that they place. */
  readonly level: number
  /** Its rows are read from Postgres: they come down, or place rows that do. */
  readonly streamed: boolean
  readonly shape: Shape
  /** As installed: in no cut until its first copy is complete. */
  readonly loading: boolean
  /** As installed: its rows are to be compared with Postgres by key. */
  readonly recheck: boolean
  /** Why its changes are not taken; null = they are. */
  readonly paused: Paused | null
  /**
   * As installed: a seq. What txns wrote after it may not have been taken, and a school shows what it wrote itself: where head office
   * wrote back what stood there, no comparison finds that. null = nothing of the kind.
   */
  readonly since: number | null
}

/** One row's state to be appended. body null = deleted. */
export interface Append {
  /** The same as key and body, where they are there as bytes: then their texts are only made when somebody asks. */
  readonly bytes?: TextBytes | null
  readonly table: FeedTable
  readonly key: string
  readonly body: string | null
  readonly audience: { readonly no: number } | { readonly value: string } | { readonly numbers: ReadonlyArray<number> } | null
  /** Microseconds since 1970. */
  readonly at: number
  /** The key is new, so no other audience can hold it. */
  readonly isInsert: boolean
  /** Write only if it differs from what the feed holds: rows read outside the stream. */
  readonly ifDifferent: boolean
}

/** How far the stream is in the feed. */
export interface Position {
  readonly lsn: Lsn
  readonly xid: number
  readonly at: string
}

export const rowKey = (tableId: number, key: string): string => `${tableId} ${key}`

/** New columns whose values are not known yet, or a whole new shape that is still being read. */
export const isUntold = ({ shape }: Pick<FeedTable, "shape">): boolean => JSON.stringify(shape.told) !== JSON.stringify(shape.table)

/** Position of the first column that the schools are not told of while its values are being read; -1 = there is none. */
export const untoldFrom = ({ shape, table }: Pick<FeedTable, "shape" | "table">): number => {
  if (shape.told.columns.length >= table.columns.length) return -1
  const told = new Set(shape.told.columns.map((column) => column.number))
  return table.columns.findIndex((column) => !told.has(column.number))
}
