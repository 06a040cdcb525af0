/**
 * The changes of a batch -> one change per row (pure), in the order in which rows were first touched. Key changes are
 * followed. A change that waits for a person at the hub is joined with the later edits of its row: one change, with the
 * base of the first.
 */
import type { Change, Op } from "../model/change.ts"
import { wireKey } from "../model/key.ts"
import type { Refused, Wire } from "../model/value.ts"

export type Values = Readonly<Record<string, Wire | Refused>>

export interface RowChange {
  readonly table: string
  /** `none`: the row was made and removed again within the batch. */
  readonly op: Op | "none"
  /** Key at head office: as it was before the batch. Of an insert: the row's own. */
  readonly key: ReadonlyArray<Wire>
  /** The key after the batch, when it changed. */
  readonly newKey: ReadonlyArray<Wire> | null
  /** Old values of the first change; of an insert empty. */
  readonly base: Values
  /** New values of the columns that changed; of an insert all values. */
  readonly mine: Values
  /** Capture time of the last write, in server time, ms since 1970. */
  readonly at: number
  /** Capture times of columns whose last write was an earlier one. */
  readonly columnAt: Readonly<Record<string, number>>
  /** The changes of this batch that it stands for, in order. */
  readonly changes: ReadonlyArray<Change>
  /** Of a kept change: the manifest under which it was frozen. Else that of its batch. */
  readonly manifest?: number
  /** Quarantine records whose kept change is part of this one. */
  readonly joined: ReadonlyArray<string>
  /** An insert whose row goes into another that head office has: equal sums of the two are two. */
  readonly isOfAnother?: true
}

export const rowId = (table: string, key: ReadonlyArray<Wire>): string => `${table}\0${wireKey(key)}`

/** Key of the row in the school's file after the change. */
export const currentKey = (row: Pick<RowChange, "key" | "newKey">): ReadonlyArray<Wire> => row.newKey ?? row.key

export const startRow = (change: Change): RowChange => ({
  table: change.table,
  op: change.op,
  key: change.key,
  newKey: change.newKey ?? null,
  base: change.base,
  mine: change.mine,
  at: change.at,
  columnAt: {},
  changes: [change],
  joined: [],
})

const net = (base: Values, mine: Values): Values =>
  Object.fromEntries(Object.entries(mine).filter(([name, value]) => base[name] === undefined || base[name] !== value))

const times = (row: RowChange, next: Change): Readonly<Record<string, number>> => {
  const at: Record<string, number> = {}
  for (const name of Object.keys(row.mine)) {
    const was = row.columnAt[name] ?? row.at
    if (!(name in next.mine) && was !== next.at) at[name] = was
  }
  return at
}

/** What two changes of one row, one after the other, come to. */
const joinRow = (row: RowChange, next: Change): RowChange => {
  const joined: RowChange = { ...row, at: next.at, columnAt: times(row, next), changes: [...row.changes, next] }
  const newKey = next.newKey ?? row.newKey
  // After an insert and its delete nothing is left of the row: what follows stands alone.
  if (row.op === "none") return { ...joined, op: next.op, key: next.key, newKey: next.newKey ?? null, base: next.base, mine: next.mine }
  switch (next.op) {
    case "delete":
      if (row.op === "insert") return { ...joined, op: "none", base: {}, mine: {} }
      return { ...joined, op: "delete", base: { ...next.base, ...row.base }, mine: {} }
    case "insert":
      if (row.op === "insert") return { ...joined, mine: { ...row.mine, ...next.mine } }
      // The key was free again after a delete: the two are an update of the old row.
      return { ...joined, op: "update", mine: net(row.base, { ...row.mine, ...next.mine }) }
    case "update":
      if (row.op === "insert") return { ...joined, key: newKey ?? row.key, newKey: null, mine: { ...row.mine, ...next.mine } }
      return { ...joined, op: "update", newKey, base: { ...next.base, ...row.base }, mine: net(row.base, { ...row.mine, ...next.mine }) }
  }
}

/** `waiting`: by `rowId` of the key in the school's file, the changes that earlier batches left with a person. */
export const coalesce = (changes: ReadonlyArray<Change>, waiting: ReadonlyMap<string, RowChange> = new Map()): ReadonlyArray<RowChange> => {
  const rows: Array<RowChange> = []
  const positionById = new Map<string, number>()
  // What waits belongs to the row that has the key first: it may leave it to another row.
  const joined = new Set<string>()
  for (const change of changes) {
    const id = rowId(change.table, change.key)
    const known = positionById.get(id)
    let position: number
    if (known === undefined) {
      const before = joined.has(id) ? undefined : waiting.get(id)
      joined.add(id)
      position = rows.push(before === undefined ? startRow(change) : joinRow(before, change)) - 1
    } else {
      position = known
      rows[known] = joinRow(rows[known] as RowChange, change)
    }
    // A row that stood under the new key was displaced: its own change stays, and what follows belongs to this row.
    if (change.newKey !== undefined) positionById.delete(id)
    positionById.set(change.newKey === undefined ? id : rowId(change.table, change.newKey), position)
  }
  return rows
}
