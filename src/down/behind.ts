/**
 * What becomes of a row that was kept `behind` when its row is released (pure). A column shows the hub's value unless a
 * pending edit of the school still waits on it, or a person's decision does.
 */
import type { Wire } from "../model/value.ts"

/** Columns by name; null = the row does not exist. */
export type RowState = Readonly<Record<string, Wire>> | null

/** `all`: a pending insert or delete waits on the whole row. */
export type Waiting = "all" | ReadonlySet<string>

export interface Release {
  /** The hub's latest state. */
  readonly behind: RowState
  /** The row as it stands in the school. */
  readonly current: RowState
  readonly pending: Waiting
  readonly held: Waiting
}

export type Released =
  | { readonly kind: "keep" }
  | { readonly kind: "insert"; readonly row: Readonly<Record<string, Wire>>; readonly forget: boolean }
  | { readonly kind: "update"; readonly set: Readonly<Record<string, Wire>>; readonly was: Readonly<Record<string, Wire>>; readonly forget: boolean }
  | { readonly kind: "delete"; readonly was: Readonly<Record<string, Wire>>; readonly forget: boolean }
  /** Nothing differs; the row behind is no longer needed. */
  | { readonly kind: "forget" }

const isEmpty = (waiting: Waiting): boolean => waiting !== "all" && waiting.size === 0
const waitsOn = (waiting: Waiting, column: string): boolean => waiting === "all" || waiting.has(column)

export const release = ({ behind, current, pending, held }: Release): Released => {
  const isFree = isEmpty(pending) && isEmpty(held)
  // A row is there or not as a whole: existence changes only when nothing waits on it.
  if (behind === null) return current === null ? (isFree ? { kind: "forget" } : { kind: "keep" }) : isFree ? { kind: "delete", was: current, forget: true } : { kind: "keep" }
  if (current === null) return isFree ? { kind: "insert", row: behind, forget: true } : { kind: "keep" }
  const set: Record<string, Wire> = {}
  const was: Record<string, Wire> = {}
  for (const [column, value] of Object.entries(behind)) {
    if (waitsOn(pending, column) || waitsOn(held, column)) continue
    const now = current[column]
    if (now === undefined || now === value) continue
    set[column] = value
    was[column] = now
  }
  if (Object.keys(set).length === 0) return isFree ? { kind: "forget" } : { kind: "keep" }
  return { kind: "update", set, was, forget: isFree }
}
