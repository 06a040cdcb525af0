/**
 * What a batch must make of head office's rows, worked out beside the product from the rules alone (pure): three-way by
 * column against the rows of the moment, edits of one row folded.
 */
import type { Row } from "./office.ts"
import { type SimTable, valueColumns } from "./schema.ts"

/** One write of a school program, with what stood there before and after. */
export interface Edit {
  readonly id: number
  readonly table: SimTable
  readonly key: string
  readonly op: "insert" | "update" | "delete"
  readonly base: Row | null
  readonly mine: Row | null
}

export interface Folded {
  readonly table: SimTable
  readonly key: string
  readonly op: "insert" | "update" | "delete" | "none"
  readonly base: Row | null
  readonly mine: Row | null
  readonly ids: ReadonlyArray<number>
}

export const fold = (edits: ReadonlyArray<Edit>): ReadonlyArray<Folded> => {
  const rows = new Map<string, Folded>()
  for (const edit of edits) {
    const id = `${edit.table.name} ${edit.key}`
    const before = rows.get(id)
    if (before === undefined) {
      rows.set(id, { ...edit, ids: [edit.id] })
      continue
    }
    const ids = [...before.ids, edit.id]
    const op = before.op === "insert" ? (edit.op === "delete" ? "none" : "insert") : edit.op
    rows.set(id, { ...before, op, mine: edit.mine, ids })
  }
  return [...rows.values()]
}

/** Columns of which head office made another value (a sum) than a file sent and still shows; as `table key column`. */
export type Flight = ReadonlySet<string>

export interface Expected {
  /** The row afterwards; null = none; "either": the rules leave it open, and the record must say what happened. */
  readonly row: Row | null | "either"
  /** Columns in conflict; "" = the whole row. */
  readonly conflicts: ReadonlyArray<string>
  /** Head office cannot or may not take it: then nothing changes, and it waits for a person. */
  readonly refused: boolean
}

export interface Moment {
  readonly school: string
  readonly before: Row | undefined
  readonly flight: Flight
  /** Whether a row of head office has this value in the unique column already, other than this row. */
  readonly isTaken: (value: string) => boolean
  readonly hasParent: (key: string) => boolean
}

export const expected = (change: Folded, moment: Moment): Expected => {
  const { before, school } = moment
  const there = before ?? null
  const is = (row: Row | null, conflicts: ReadonlyArray<string> = []): Expected => ({ row, conflicts, refused: false })
  const refused: Expected = { row: there, conflicts: [], refused: true }
  const fits = (row: Row): boolean => {
    const { parent, unique } = change.table
    if (parent !== null && !moment.hasParent(row["parent"] ?? "")) return false
    return unique === null || row[unique] == null || !moment.isTaken(row[unique] as string)
  }
  switch (change.op) {
    case "none":
      return is(there)
    case "insert":
      return before !== undefined || change.mine === null ? refused : fits(change.mine) ? is(change.mine) : refused
    case "delete":
      return expectedDelete(change, moment)
    case "update": {
      if (before === undefined || before["school_id"] !== school) {
        // Deleted or moved away: only a deleted row can be made again.
        if (change.table.strategy !== "school_wins" || before !== undefined) return is(there, [""])
        return fits(change.mine as Row) ? is(change.mine, [""]) : refused
      }
      const result: Record<string, string | null> = { ...before }
      const conflicts: Array<string> = []
      for (const name of valueColumns(change.table)) {
        const [base, mine, theirs] = [change.base?.[name] ?? null, change.mine?.[name] ?? null, before[name] ?? null]
        if (mine === base) continue
        const rule = change.table.columns.find((column) => column.name === name)?.rule ?? change.table.strategy
        if (rule === "sum") {
          result[name] = String(BigInt(theirs ?? 0) + BigInt(mine ?? 0) - BigInt(base ?? 0))
          continue
        }
        if (theirs === mine) continue
        if (theirs === base) result[name] = mine
        else {
          conflicts.push(name)
          if (rule === "school_wins") result[name] = mine
        }
      }
      const isChanged = Object.keys(result).some((name) => result[name] !== before[name])
      return isChanged && !fits(result) ? refused : is(result, conflicts)
    }
  }
}

const expectedDelete = (change: Folded, { before, school, flight }: Moment): Expected => {
  if (before === undefined) return { row: null, conflicts: [], refused: false }
  // Moved away: gone from this school, as it wanted.
  if (before["school_id"] !== school) return { row: before, conflicts: [], refused: false }
  const names = valueColumns(change.table)
  const differs = names.filter((name) => (change.base?.[name] ?? null) !== (before[name] ?? null))
  if (differs.length === 0) return { row: null, conflicts: [], refused: false }
  if (differs.some((name) => flight.has(`${change.table.name} ${change.key} ${name}`))) return { row: "either", conflicts: [], refused: false }
  return { row: change.table.strategy === "school_wins" ? null : before, conflicts: [""], refused: false }
}
