/** What travels. Down: rows of the feed. Up: changes, as a school program made them, in numbered frozen batches. */
import type { Refused, Wire } from "./value.ts"

export type Op = "insert" | "update" | "delete"

/** One captured write of a school program, as a batch carries it. */
export interface Change {
  /** `changes.id` at the school: rising in the order in which the program wrote; a number is never used twice. */
  readonly id: number
  /** `"public.students"` */
  readonly table: string
  readonly op: Op
  /** Key values before the write (of an insert: the new ones), in the order of the table's key. */
  readonly key: ReadonlyArray<Wire>
  /** Only of an update that changed the key: the new key values. */
  readonly newKey?: ReadonlyArray<Wire>
  /** Capture time, ms since 1970 by the school's own clock. */
  readonly at: number
  /** Update and delete: all old values. Insert: empty. */
  readonly base: Readonly<Record<string, Wire | Refused>>
  /** Update: new values of the columns it changed. Insert: all values. Delete: empty. */
  readonly mine: Readonly<Record<string, Wire | Refused>>
}

/** A numbered, frozen set of changes. Its bytes never change once they exist. */
export interface Batch {
  readonly incarnation: string
  /** 1, 2, 3 … without gaps within an incarnation. */
  readonly number: number
  readonly manifest: number
  readonly changes: ReadonlyArray<Change>
}

/**
 * The hub's answer for one change. `applied`: written as sent (or already so). `merged`: written beside columns that the
 * other side had changed. `superseded`: made void by a later write. `conflict`: decided by a rule, or waiting for a
 * person; there is a record. `quarantined`: could not be written; kept whole, there is a record.
 */
export type Verdict = "applied" | "merged" | "superseded" | "conflict" | "quarantined"

/** One change whose verdict is not plain `applied`. `hold` true: the school keeps its value, marked, until a person decides. */
export interface Exception {
  readonly id: number
  readonly verdict: Exclude<Verdict, "applied">
  readonly reason?: string
  /** Id of the conflict or quarantine record. */
  readonly record?: string
  readonly hold?: boolean
  /** With `hold`: the columns that wait; absent means the whole row. */
  readonly columns?: ReadonlyArray<string>
}

/** The hub's row per batch; every change not listed among the exceptions was `applied`. */
export interface Verdicts {
  readonly batch: number
  readonly hash: string
  readonly changes: number
  readonly exceptions: ReadonlyArray<Exception>
}
