/**
 * Whole-number keys that a school may give out (pure). Every school has a number and with it a range of its own, so that two
 * schools never make the same key. What lies below the first range belongs to head office's own sequences. Up to school
 * 8191 every key is one that programs whose numbers are doubles hold exactly.
 */
import type { Table } from "./table.ts"

const BITS = 40n
/** The ranges end with those of this school; beyond it a bigint has no room. */
export const MAX_SCHOOL_NUMBER = 2 ** 22

/** Both ends inclusive, as decimal text. */
export interface KeyRange {
  readonly from: string
  readonly to: string
}

export const keyRangeOf = (school: number): KeyRange | null => {
  if (!Number.isInteger(school) || school < 1 || school > MAX_SCHOOL_NUMBER) return null
  const from = BigInt(school) << BITS
  return { from: String(from), to: String(from + (1n << BITS) - 1n) }
}

/** An SQLite expression for a key of the range. */
export const randomKeySql = (range: KeyRange): string => `${range.from} + (random() & ${(1n << BITS) - 1n})`

/** The column whose values schools give out from their range; null: the table has none. */
export const rangedColumn = (table: Pick<Table, "key" | "keyRange">): string | null => (table.keyRange === true ? (table.key[0] ?? null) : null)

export const isInRange = ({ from, to }: KeyRange, key: unknown): boolean => {
  if (typeof key !== "string" || !/^-?\d{1,19}$/.test(key)) return false
  // As many digits as both ends have: compared as they stand.
  if (key.length === from.length && key.length === to.length && !key.startsWith("-")) return key >= from && key <= to
  return BigInt(key) >= BigInt(from) && BigInt(key) <= BigInt(to)
}
