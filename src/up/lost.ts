/**
 * Columns that a change names and head office no longer has (pure): the change was frozen under an older manifest, or the
 * column has just gone. The rest of it is carried out; what cannot be is kept in a record.
 */
import type { Table } from "../model/table.ts"
import type { RowChange, Values } from "./coalesce.ts"
import type { Refusal } from "./authorise.ts"
import type { Shape } from "./shape.ts"

export interface Parted {
  readonly change: RowChange
  /** New values of columns that are gone; empty columns of a new row are no loss. */
  readonly lost: Values
}

const pick = (values: Values, isWanted: (name: string) => boolean): Values =>
  Object.fromEntries(Object.entries(values).filter(([name]) => isWanted(name)))

/** `isOlder`: the batch was frozen under a manifest that was told before the present one. */
export const partLost = (change: RowChange, table: Table, shape: Shape, isOlder: boolean): Parted => {
  const known = new Set(table.columns.map((column) => column.name))
  const isGone = (name: string): boolean => (known.has(name) ? !shape.columns.has(name) : isOlder && !shape.columns.has(name))
  const gone = Object.keys(change.mine).filter(isGone)
  if (gone.length === 0) return { change, lost: {} }
  const lost = pick(change.mine, (name) => gone.includes(name) && (change.op === "update" || change.mine[name] !== null))
  return { change: { ...change, base: pick(change.base, (name) => !isGone(name)), mine: pick(change.mine, (name) => !isGone(name)) }, lost }
}

/** An update of which nothing is left to carry out. */
export const isEmptied = (change: RowChange): boolean => change.op === "update" && change.newKey === null && Object.keys(change.mine).length === 0

/** Rows that the change names in a way in which head office no longer names them. */
export const rekeyed = (table: Table, manifest: number | undefined): Refusal | null =>
  manifest !== undefined && manifest < (table.keyedSince ?? 0)
    ? { reason: "rekeyed", detail: `rows of ${table.name} have another key at head office since this change was made` }
    : null
