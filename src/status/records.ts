/** What is kept about single syncs and conflicts: the same questions at hub and school, each answered from its own database. */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { LibsqlError } from "../libsql/client.ts"
import type { Choice } from "../model/choice.ts"
import type { PostgresError } from "../postgres/client.ts"
import type { Recommendation } from "./recommend.ts"

/** `base`, `mine`, `theirs`, `kept` are JSON values, or JSON objects for whole rows; null = no row. */
export interface ConflictRecord {
  readonly id: string
  readonly school: string
  readonly table: string
  /** JSON array of key values. */
  readonly key: string
  /** null: the whole row (one side deleted it, or both inserted it). */
  readonly column: string | null
  readonly base: string | null
  /** The school's. */
  readonly mine: string | null
  /** Head office's. */
  readonly theirs: string | null
  readonly kept: string | null
  readonly winner: string
  readonly strategy: string
  readonly reason: string
  readonly status: string
  readonly at: string
  readonly decidedBy: string | null
  readonly decidedAt: string | null
  /** `column`, `row`, or `unique`: another row has the value already. */
  readonly kind: string
  /** When either side wrote it; null = unknown. */
  readonly mineAt: string | null
  readonly theirsAt: string | null
  /** Of `unique`: JSON list of the columns that must differ together, a free value (JSON), and the change that waits. */
  readonly uniqueColumns: string | null
  readonly suggestion: string | null
  readonly quarantine: string | null
  readonly recommendation: Recommendation | null
  readonly requested: Requested | null
}

/** A decision made in a school, on its way. status: `sent`, `done`, `refused`. */
export interface Requested {
  readonly action: string
  readonly choice: string | null
  readonly by: string
  readonly at: string
  readonly status: string
  readonly message: string | null
}

export interface AutoQuery {
  readonly max: number
  readonly table?: string
  readonly school?: string
}

/** What was done, and what was left to a person with the reason. */
export interface AutoResult {
  readonly resolved: ReadonlyArray<{ readonly id: string; readonly keep: string; readonly value?: unknown; readonly why: string }>
  readonly skipped: ReadonlyArray<{ readonly id: string; readonly why: string }>
}

export interface ConflictQuery {
  /** true: decided or resolved ones; false: open ones; absent: all. */
  readonly resolved?: boolean
  readonly table?: string
  readonly school?: string
  readonly limit: number
  /** From a former page. */
  readonly cursor?: string
}

export interface Page<A> {
  readonly items: ReadonlyArray<A>
  readonly nextCursor: string | null
}

/** `code`: `not_found`, `decided` (already so), `not_possible` (Postgres or a rule refuses). */
export class ConflictRefused extends Data.TaggedError("ConflictRefused")<{
  readonly code: "not_found" | "decided" | "not_possible"
  readonly message: string
}> {}

/** A school was named that is not known here. */
export class SchoolUnknown extends Data.TaggedError("SchoolUnknown")<{ readonly message: string }> {}

/** Schools that one sentence names. */
const NAMED_SCHOOLS = 10

/** At the hub. */
export const refuseUnknownSchool = (asked: string, known: ReadonlyArray<string>): Effect.Effect<void, SchoolUnknown> => {
  if (known.includes(asked)) return Effect.void
  const named = [...known].sort().slice(0, NAMED_SCHOOLS).join(", ")
  const more = known.length > NAMED_SCHOOLS ? ` and ${known.length - NAMED_SCHOOLS} more` : ""
  const schools =
    known.length === 0 ? "no school is enrolled: schoolbus schools add" : `schools are ${named}${more}; all of them: schoolbus schools list`
  return Effect.fail(new SchoolUnknown({ message: `no school is called ${asked}; ${schools}` }))
}

/** At a school's node. `own`: null before the first contact. */
export const refuseOtherSchool = (asked: string | undefined, own: string | null): Effect.Effect<void, SchoolUnknown> =>
  asked === undefined || own === null || asked === own
    ? Effect.void
    : Effect.fail(new SchoolUnknown({ message: `this is the node of school ${own}; ask the hub about ${asked}: --url HUB --school ${asked}` }))

/** Tables were named that are not synced here. */
export class TablesUnknown extends Data.TaggedError("TablesUnknown")<{
  readonly unknown: ReadonlyArray<string>
  /** The user's own; ours can be named too. */
  readonly known: ReadonlyArray<string>
}> {}

/** Each table goes by its full name and by the name it has in a school's file. */
export const refuseUnknownTables = (
  asked: ReadonlyArray<string>,
  tables: ReadonlyArray<{ readonly name: string; readonly local: string }>,
): Effect.Effect<void, TablesUnknown> => {
  const unknown = asked.filter((name) => !tables.some((table) => table.name === name || table.local === name))
  if (unknown.length === 0) return Effect.void
  const known = tables.map((table) => table.name).filter((name) => !name.startsWith("schoolbus."))
  return Effect.fail(new TablesUnknown({ unknown, known: known.sort() }))
}

/**
 * A list of a table that has no records: it may not be there at all. Of one that is no longer synced there may still be some, so that
 * is asked only then.
 */
export const refuseUnknownTable = <E, R>(
  asked: string | undefined,
  tables: Effect.Effect<ReadonlyArray<{ readonly name: string; readonly local: string }>, E, R>,
): Effect.Effect<void, TablesUnknown | E, R> =>
  asked === undefined ? Effect.void : Effect.flatMap(tables, (all) => refuseUnknownTables([asked], all))

export class Conflicts extends Context.Service<
  Conflicts,
  {
    readonly list: (query: ConflictQuery) => Effect.Effect<Page<ConflictRecord>, SchoolUnknown | TablesUnknown | LibsqlError | PostgresError>
    readonly show: (id: string) => Effect.Effect<ConflictRecord, ConflictRefused | LibsqlError | PostgresError>
    /** At a school: asked of head office, with the next push. */
    readonly resolve: (id: string, choice: Choice, by: string) => Effect.Effect<ConflictRecord, ConflictRefused | LibsqlError | PostgresError>
    readonly undo: (id: string, by: string) => Effect.Effect<ConflictRecord, ConflictRefused | LibsqlError | PostgresError>
    /** Does what is safely recommended, oldest first. */
    readonly autoResolve: (query: AutoQuery, by: string) => Effect.Effect<AutoResult, SchoolUnknown | TablesUnknown | LibsqlError | PostgresError>
  }
>()("schoolbus/status/Conflicts") {}

/** One sync run of a school; at the hub: one batch that a school pushed. */
export interface RunRecord {
  readonly id: string
  readonly school: string | null
  readonly trigger: string
  readonly startedAt: string
  readonly endedAt: string | null
  /** What was asked for; a run that nobody asked for goes both ways. */
  readonly direction: string
  readonly up: number
  readonly down: number
  /** Records by table: `{"public.students": {"up": 1, "down": 12}}`. */
  readonly tables: Readonly<Record<string, { readonly up: number; readonly down: number }>>
  readonly conflicts: number
  readonly error: string | null
}

export class Runs extends Context.Service<
  Runs,
  {
    /** Newest first. */
    readonly list: (query: {
      readonly school?: string
      readonly limit: number
      readonly cursor?: string
    }) => Effect.Effect<Page<RunRecord>, SchoolUnknown | LibsqlError | PostgresError>
  }
>()("schoolbus/status/Runs") {}

/** Cursors are opaque to callers: they name the last item of a page. */
const encodeCursor = (parts: ReadonlyArray<string>): string => Buffer.from(JSON.stringify(parts)).toString("base64url")

/** null: not one of ours; the caller starts from the beginning. */
export const decodeCursor = (cursor: string | undefined, length: number): ReadonlyArray<string> | null => {
  if (cursor === undefined) return null
  try {
    const parts: unknown = JSON.parse(Buffer.from(cursor, "base64url").toString("utf8"))
    return Array.isArray(parts) && parts.length === length && parts.every((part) => typeof part === "string") ? parts : null
  } catch {
    return null
  }
}

/** A page from one row more than was asked for. */
export const pageOf = <A>(rows: ReadonlyArray<A>, limit: number, cursorOf: (row: A) => ReadonlyArray<string>): Page<A> => {
  const items = rows.slice(0, limit)
  const last = items.at(-1)
  return { items, nextCursor: rows.length > limit && last !== undefined ? encodeCursor(cursorOf(last)) : null }
}
