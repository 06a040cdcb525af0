/** The changes of a batch -> one change per row (pure), in the order in which rows were first touched. Key changes are followed. */
import type { Change, Op } from "../model/change.ts"
import { wireKey } from "../model/key.ts"
import type { Wire } from "../model/value.ts"

type Values = Readonly<Record<string, Wire>>

export interface RowChange {
  readonly table: string
  /** `none`: the row was made and removed again within the batch. */
  readonly op: Op | "none"
  /** Key at head office: as it was before the batch. */
  readonly key: ReadonlyArray<Wire>
  /** The key after the batch, when it changed. */
  readonly newKey: ReadonlyArray<Wire> | null
  /** All old values; of an insert empty. */
  readonly base: Values
  /** New values of the columns that changed; of an insert all values. */
  readonly mine: Values
  /** Capture time of the last write, ms by the school's clock. */
  readonly at: number
  /** The captured changes that it stands for, in order. */
  readonly changes: ReadonlyArray<Change>
}

const values = (record: Change["base"]): Values => record as Values

const without = (base: Values, mine: Values): Values => Object.fromEntries(Object.entries(mine).filter(([name, value]) => base[name] !== value))

const start = (change: Change): RowChange => ({
  table: change.table,
  op: change.op,
  key: change.key,
  newKey: change.newKey ?? null,
  base: values(change.base),
  mine: values(change.mine),
  at: change.at,
  changes: [change],
})

/** What two changes of one row, one after the other, come to. */
const join = (row: RowChange, next: Change): RowChange => {
  const joined = { ...row, at: next.at, changes: [...row.changes, next] }
  if (next.op === "delete") return row.op === "insert" ? { ...joined, op: "none", mine: {} } : { ...joined, op: "delete", newKey: null, base: { ...values(next.base), ...row.base }, mine: {} }
  if (next.op === "insert") {
    // The key was free again: after a delete the two are an update of the old row; after insert and delete, an insert.
    if (row.op === "delete") return { ...joined, op: "update", mine: without(row.base, values(next.mine)) }
    return { ...joined, op: "insert", key: next.key, newKey: null, base: {}, mine: values(next.mine) }
  }
  const newKey = next.newKey ?? row.newKey
  if (row.op === "insert") return { ...joined, key: newKey ?? row.key, newKey: null, mine: { ...row.mine, ...values(next.mine) } }
  return { ...joined, newKey, mine: without(row.base, { ...row.mine, ...values(next.mine) }) }
}

export const coalesce = (changes: ReadonlyArray<Change>): ReadonlyArray<RowChange> => {
  const rows: Array<RowChange> = []
  const byKey = new Map<string, number>()
  for (const change of changes) {
    const id = `${change.table}\0${wireKey(change.key)}`
    const index = byKey.get(id)
    const before = index === undefined ? undefined : rows[index]
    let position: number
    if (before === undefined || index === undefined) position = rows.push(start(change)) - 1
    else {
      position = index
      rows[index] = join(before, change)
    }
    if (change.newKey !== undefined) byKey.delete(id)
    byKey.set(`${change.table}\0${wireKey(change.newKey ?? change.key)}`, position)
  }
  return rows
}
