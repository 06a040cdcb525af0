/**
 * What becomes of a row that was kept `behind` when it is released (pure). A column shows the hub's value unless a
 * pending edit of the school still waits on it, or a person's decision does. A row is there or not as a whole.
 */
import { sameRaw } from "../libsql/cells.ts"
import type { Cell, Wire } from "../model/value.ts"

/** Columns by name; null = the row does not exist. */
export type RowState = Readonly<Record<string, Wire>> | null

/** `all`: something waits on the row as a whole, e.g. a pending insert or delete. */
export type Waiting = "all" | ReadonlySet<string>

export interface Release {
  /** The hub's latest state; a column that it does not name is left alone. */
  readonly behind: RowState
  /** The row as it stands in the school. */
  readonly current: RowState
  /** Columns with an edit that has no verdict yet. */
  readonly pending: Waiting
  /** Columns that wait for a person's decision. */
  readonly held: Waiting
}

/** `forget`: nothing waits on the row any more, so what was kept behind goes; else it stays for the columns that wait. */
export type Released =
  | { readonly kind: "keep" }
  | { readonly kind: "forget" }
  | { readonly kind: "insert"; readonly row: Readonly<Record<string, Wire>> }
  | { readonly kind: "delete"; readonly was: Readonly<Record<string, Wire>> }
  | {
      readonly kind: "update"
      readonly set: Readonly<Record<string, Wire>>
      readonly was: Readonly<Record<string, Wire>>
      readonly forget: boolean
    }

const isEmpty = (waiting: Waiting): boolean => waiting !== "all" && waiting.size === 0
const waitsOn = (waiting: Waiting, column: string): boolean => waiting === "all" || waiting.has(column)

export const release = ({ behind, current, pending, held }: Release): Released => {
  const isFree = isEmpty(pending) && isEmpty(held)
  if (behind === null || current === null) {
    if (!isFree) return { kind: "keep" }
    if (behind !== null) return { kind: "insert", row: behind }
    return current === null ? { kind: "forget" } : { kind: "delete", was: current }
  }
  const set: Record<string, Wire> = {}
  const was: Record<string, Wire> = {}
  for (const [column, value] of Object.entries(behind)) {
    if (waitsOn(pending, column) || waitsOn(held, column)) continue
    const now = current[column]
    if (now === undefined || now === value) continue
    set[column] = value
    was[column] = now
  }
  if (Object.keys(set).length > 0) return { kind: "update", set, was, forget: isFree }
  return isFree ? { kind: "forget" } : { kind: "keep" }
}

/** One pending change of a row, as `changes` holds it. */
export interface PendingChange {
  readonly op: string
  /** It gives the row another key, or gave it this one. */
  readonly isKeyChange: boolean
  /** Old values in column order, read `safely`. */
  readonly old: ReadonlyArray<Cell>
}

/**
 * The columns on which the row's pending changes, in their order, still wait: those that differ between one captured state
 * and the next, the last one being the row as it stands.
 */
export const waitingColumns = (changes: ReadonlyArray<PendingChange>, current: ReadonlyArray<Cell> | null, names: ReadonlyArray<string>): Waiting => {
  const columns = new Set<string>()
  for (let i = 0; i < changes.length; i++) {
    const change = changes[i] as PendingChange
    if (change.op !== "U" || change.isKeyChange || current === null) return "all"
    const after = changes[i + 1]?.old ?? current
    names.forEach((name, c) => {
      if (!sameRaw(change.old[c] ?? null, after[c] ?? null)) columns.add(name)
    })
  }
  return columns
}
