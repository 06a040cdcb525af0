/** The synced tables as the hub's catalog last read them, by `"schema.table"`. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"

export class Tables extends Context.Service<
  Tables,
  {
    readonly all: Effect.Effect<ReadonlyMap<string, Table>>
    /**
     * Of these wire keys, those whose row the school has or had, as far as the feed remembers (tombstones included). Asked
     * only about rows that the school cannot see now, so that an edit of a row that head office deleted or moved away is
     * told from a guessed key; a guess gets the same answer whether or not another school has the row. Without it every
     * row that does not exist counts as deleted.
     */
    readonly had?: (school: string, table: string, keys: ReadonlyArray<string>) => Effect.Effect<ReadonlySet<string>>
  }
>()("schoolbus/up/Tables") {}
