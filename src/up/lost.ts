/**
 * Columns that a change names and head office calls otherwise or no longer has (pure): the change was frozen under an older
 * manifest, or the column has just gone. A renamed one is written under its present name, never another that has taken its
 * own. The rest of the change is carried out; what cannot be is kept in a record.
 */
import { namedSince, namesSince, type Table } from "../model/table.ts"
import type { RowChange, Values } from "./coalesce.ts"
import type { Refusal } from "./authorise.ts"
import type { Shape } from "./shape.ts"

export interface Parted {
  readonly change: RowChange
  /** New values of columns that are gone, under their names in the change; empty columns of a new row are no loss. */
  readonly lost: Values
}

const pick = (values: Values, isWanted: (name: string) => boolean): Values =>
  Object.fromEntries(Object.entries(values).filter(([name]) => isWanted(name)))

const renamed = <V>(values: Readonly<Record<string, V>>, names: ReadonlyMap<string, string | null>): Readonly<Record<string, V>> =>
  Object.fromEntries(
    Object.entries(values).flatMap(([name, value]) => {
      const now = names.has(name) ? names.get(name) : name
      return now == null ? [] : [[now, value]]
    }),
  )

/** `manifest`: the one under which the change was frozen. `isOlder`: it was told before the present one. */
export const partLost = (frozen: RowChange, table: Table, shape: Shape, isOlder: boolean, manifest?: number): Parted => {
  const names = namesSince(table, manifest)
  const nameNow = (name: string) => (names.has(name) ? (names.get(name) ?? null) : name)
  const change =
    names.size === 0
      ? frozen
      : { ...frozen, base: renamed(frozen.base, names), mine: renamed(frozen.mine, names), columnAt: renamed(frozen.columnAt, names) }
  const known = new Set(table.columns.map((column) => column.name))
  const isGone = (name: string): boolean => (known.has(name) ? !shape.columns.has(name) : isOlder && !shape.columns.has(name))
  const lost = pick(frozen.mine, (name) => {
    const now = nameNow(name)
    return (frozen.op === "update" || frozen.mine[name] !== null) && (now === null || isGone(now))
  })
  const gone = Object.keys(change.mine).filter(isGone)
  if (gone.length === 0) return { change, lost }
  return {
    change: { ...change, base: pick(change.base, (name) => !isGone(name)), mine: pick(change.mine, (name) => !isGone(name)) },
    lost,
  }
}

/**
 * A change that has waited since an older manifest, as one of `manifest`, to be joined with what was edited since: one name may mean two
 * columns. null: it stays by itself, for its rows are named in another way now.
 */
export const asUnder = (manifest: number | undefined, waiting: RowChange, table: Table | undefined): RowChange | null => {
  const { manifest: frozen, ...change } = waiting
  if (frozen === undefined || frozen === manifest || table === undefined) return waiting
  if (rekeyed(table, frozen) !== null) return null
  const names = namesSince(table, frozen, manifest)
  return { ...change, base: renamed(change.base, names), mine: renamed(change.mine, names), columnAt: renamed(change.columnAt, names) }
}

/** A kept change under the names of now, as a person speaks of them. null: its rows are named in another way. */
export const asPresent = (kept: RowChange, table: Table): RowChange | null => {
  const now = asUnder(undefined, kept, table)
  return now === null || kept.manifest === undefined ? now : { ...now, manifest: namedSince(table) }
}

/** An update of which nothing is left to carry out. */
export const isEmptied = (change: RowChange): boolean => change.op === "update" && change.newKey === null && Object.keys(change.mine).length === 0

/** Rows that the change names in a way in which head office no longer names them. */
export const rekeyed = (table: Table, manifest: number | undefined): Refusal | null =>
  manifest !== undefined && manifest < (table.keyedSince ?? 0)
    ? { reason: "rekeyed", detail: `rows of ${table.name} have another key at head office since this change was made` }
    : null
