/** The synced tables as the hub's catalog last read them, by `"schema.table"`. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"
import type { Wire } from "../model/value.ts"

/** A row as the feed has it; null = deleted. Times are ms since 1970. */
export interface FeedCopy {
  readonly row: Readonly<Record<string, Wire>> | null
  /** Of a deleted row: when. */
  readonly at: number | null
  /** Of columns that the newer write decides: their last change, and the xid of its txn; null = unknown. */
  readonly columns: Readonly<Record<string, { readonly at: number; readonly xid: number } | null>>
}

export class Tables extends Context.Service<
  Tables,
  {
    readonly all: Effect.Effect<ReadonlyMap<string, Table>>
    /** Version of the manifest that schools are told now. Without it no change counts as frozen under an older one. */
    readonly version?: Effect.Effect<number>
    /**
     * Of these wire keys, those whose row the school has or had, as far as the feed remembers (tombstones included). Asked
     * only about rows that the school cannot see now, so that an edit of a row that head office deleted or moved away is
     * told from a guessed key; a guess gets the same answer whether or not another school has the row.
     */
    readonly had: (school: string, table: string, keys: ReadonlyArray<string>) => Effect.Effect<ReadonlySet<string>>
    /** By wire key, of rows that the feed has or had. Without it every row is as old as its last commit. */
    readonly times?: (table: string, keys: ReadonlyArray<string>) => Effect.Effect<ReadonlyMap<string, FeedCopy>>
  }
>()("schoolbus/up/Tables") {}
