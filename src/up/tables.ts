/** The synced tables as the hub's catalog last read them, by `"schema.table"`. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"

export class Tables extends Context.Service<Tables, { readonly all: Effect.Effect<ReadonlyMap<string, Table>> }>()("schoolbus/up/Tables") {}
