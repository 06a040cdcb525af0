/**
 * Rows of an append -> what its statements need of them (pure): rows to be put, laid end to end by table, and those that leave
 * or may leave an audience. Every row takes the next seq.
 */
import type { Cell } from "../model/value.ts"
import { Slab, slabNumber } from "../libsql/slab.ts"
import { NOBODY } from "./audience.ts"
import { tokenize } from "./body.ts"
import { type Append, type FeedTable, untoldFrom } from "./entry.ts"
import { isTimed } from "./times.ts"

/** Cells in the order in which the statements take them: seq, time, table, key, and the audiences that stay. */
export interface Gathered {
  readonly puts: ReadonlyMap<FeedTable, Slab>
  /** Written only where they differ from what the feed holds. */
  readonly careful: ReadonlyMap<FeedTable, Slab>
  /** Rows of careful tables with columns that nobody is told of yet: body, table, key, and what is told of them, twice. */
  readonly completed: ReadonlyArray<Array<Cell>>
  /** Rows of one audience that may have stood in another. */
  readonly rewritten: ReadonlyArray<Array<Cell>>
  /** The same of several audiences. */
  readonly spreads: ReadonlyArray<Array<Cell>>
  readonly deletes: ReadonlyArray<Array<Cell>>
  /** Deleted rows whose columns have times. */
  readonly timed: ReadonlyArray<Array<Cell>>
  /** Audiences of rows that may have stood there before. */
  readonly replaced: ReadonlySet<number>
  /** The last seq that was taken. */
  readonly seq: number
  /** Commit time of the last row; of none, the one before. */
  readonly now: number
  /** Rows of the hub's own tables are among them. */
  readonly isOfHub: boolean
}

const slabOf = (slabs: Map<FeedTable, Slab>, table: FeedTable): Slab => {
  const slab = slabs.get(table) ?? new Slab()
  slabs.set(table, slab)
  return slab
}

export const gather = (
  appends: ReadonlyArray<Append>,
  before: { readonly seq: number; readonly now: number },
  numberOf: (audience: Append["audience"]) => number,
  touch: (audience: number) => void,
): Gathered => {
  let { seq, now } = before
  let isOfHub = false
  const puts = new Map<FeedTable, Slab>()
  const careful = new Map<FeedTable, Slab>()
  const completed: Array<Array<Cell>> = []
  const rewritten: Array<Array<Cell>> = []
  const spreads: Array<Array<Cell>> = []
  const deletes: Array<Array<Cell>> = []
  const timed: Array<Array<Cell>> = []
  const replaced = new Set<number>()
  let slab = new Slab()
  let slabTable: FeedTable | null = null
  let slabCareful = false
  let no = NOBODY
  let noText = slabNumber(no)
  let atText = ""
  /** Audiences of rows that are there as bytes, by their identity: the reader remembers those that it has met. */
  const plainNumbers = new Map<Append["audience"], number>()
  let plainAudience: Append["audience"] = null
  let plainNo = NOBODY
  let plainTable: FeedTable | null = null
  let plainSlab: Slab | null = null
  for (const append of appends) {
    const { table, at, isInsert, bytes } = append
    seq++
    if (bytes != null) {
      // Nothing else is known of it: it comes from the stream, for one audience, and its table is no table of the hub's own.
      if (at !== now) atText = ""
      now = at
      if (append.audience !== plainAudience) {
        plainAudience = append.audience
        const known = plainNumbers.get(plainAudience)
        plainNo = known ?? numberOf(plainAudience)
        if (known === undefined) {
          plainNumbers.set(plainAudience, plainNo)
          touch(plainNo)
        }
      }
      if (table !== plainTable || plainSlab === null) {
        plainTable = table
        plainSlab = slabOf(puts, table)
      }
      plainSlab.addBytes(plainNo, seq, at, bytes)
      if (isInsert) continue
      replaced.add(plainNo)
      rewritten.push([BigInt(seq), BigInt(at), BigInt(table.id), append.key, BigInt(plainNo)])
      continue
    }
    const { key, body: row, audience, ifDifferent } = append
    if (at !== now || atText === "") atText = slabNumber(at)
    now = at
    if (table.hubOnly) isOfHub = true
    if (row === null) {
      deletes.push([BigInt(seq), BigInt(at), BigInt(table.id), key])
      if (isTimed(table)) timed.push([BigInt(table.id), key])
      continue
    }
    const numbers = audience !== null && "numbers" in audience ? audience.numbers : null
    const own = table.hubOnly ? NOBODY : (numbers?.[0] ?? numberOf(audience))
    if (own !== no) {
      no = own
      noText = slabNumber(no)
    }
    touch(no)
    if (table !== slabTable || ifDifferent !== slabCareful) {
      slabTable = table
      slabCareful = ifDifferent
      slab = slabOf(ifDifferent ? careful : puts, table)
    }
    const place = slabNumber(seq) + atText
    slab.add(noText + place, key, row, no)
    const untold = ifDifferent ? untoldFrom(table) : -1
    if (untold > 0) {
      const told = `[${tokenize(row).slice(0, untold).join(",")},`
      completed.push([row, BigInt(table.id), key, told, told])
    }
    for (const other of numbers?.slice(1) ?? []) {
      slab.add(slabNumber(other) + place, key, row, other)
      touch(other)
    }
    if (isInsert || table.hubOnly) continue
    for (const one of numbers ?? [no]) replaced.add(one)
    if (numbers === null || numbers.length === 1) rewritten.push([BigInt(seq), BigInt(at), BigInt(table.id), key, BigInt(no)])
    else spreads.push([BigInt(seq), BigInt(at), BigInt(table.id), key, JSON.stringify(numbers)])
  }
  return { puts, careful, completed, rewritten, spreads, deletes, timed, replaced, seq, now, isOfHub }
}
