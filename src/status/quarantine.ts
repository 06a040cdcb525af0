/** Changes that could not be written: the same questions and decisions at hub and school. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { LibsqlError } from "../libsql/client.ts"
import type { PostgresError } from "../postgres/client.ts"
import type { ConflictRefused, Page, Requested, SchoolUnknown, TablesUnknown } from "./records.ts"

export interface QuarantineRecord {
  readonly id: string
  readonly school: string
  readonly table: string
  /** JSON array of key values. */
  readonly key: string
  readonly op: string
  /** JSON of the change, or of the line that was none. */
  readonly change: string
  readonly reason: string
  readonly detail: string
  readonly status: string
  readonly at: string
  readonly decidedBy: string | null
  readonly decidedAt: string | null
  /** Its open conflict about a unique value, by which it is decided; null = none. */
  readonly conflict: string | null
  /** What people in the school have asked for and head office has not answered, or refused. */
  readonly requested: Requested | null
}

/** `inConflicts`: of those that wait, how many are decided as conflicts, and therefore not among `items`; 0 when others are asked for. */
export interface QuarantinePage extends Page<QuarantineRecord> {
  readonly inConflicts: number
}

export interface QuarantineQuery {
  /** false: those that wait and are decided here, which leaves out what stands in the list of conflicts. */
  readonly resolved?: boolean
  readonly table?: string
  /** As the record has it: `"foreign_key"`. */
  readonly reason?: string
  readonly school?: string
  readonly limit: number
  readonly cursor?: string
}

/** `edit`: values by column, which replace the change's own. */
export type QuarantineAction =
  | { readonly action: "retry" | "discard" }
  | { readonly action: "edit"; readonly values: Readonly<Record<string, unknown>> }

export class Quarantine extends Context.Service<
  Quarantine,
  {
    readonly list: (query: QuarantineQuery) => Effect.Effect<QuarantinePage, SchoolUnknown | TablesUnknown | LibsqlError | PostgresError>
    readonly show: (id: string) => Effect.Effect<QuarantineRecord, ConflictRefused | LibsqlError | PostgresError>
    readonly decide: (
      id: string,
      action: QuarantineAction,
      by: string,
    ) => Effect.Effect<QuarantineRecord, ConflictRefused | LibsqlError | PostgresError>
  }
>()("schoolbus/status/Quarantine") {}
