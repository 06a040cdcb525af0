/** "Sync now": what API and CLI ask for, and what hub and school each do in their own way. */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { SchoolUnknown } from "./records.ts"

export type SyncDirection = "both" | "up" | "down"

export interface SyncRequest {
  readonly direction: SyncDirection
  /** Qualified or local names; empty = all tables. */
  readonly tables: ReadonlyArray<string>
  /** At the hub: one school; absent = every school. A school ignores it. */
  readonly school?: string
  /** Who asked, for the log: `"api"`, `"cli"`, `"start"`. */
  readonly by: string
}

export interface SyncResult {
  /** False: nothing was started; `message` says why and what to do. */
  readonly started: boolean
  readonly message: string
  /** At a school: the run in `schoolbus_run`; null when none was written. */
  readonly run: number | null
  /** At the hub: the schools that were reached at once; the others are asked at their next contact. */
  readonly schools: ReadonlyArray<string>
}

/** Tables were named that are not synced here. */
export class TablesUnknown extends Data.TaggedError("TablesUnknown")<{
  readonly unknown: ReadonlyArray<string>
  /** The user's own; ours can be named too. */
  readonly known: ReadonlyArray<string>
}> {}

/** Each table goes by its full name and by the name it has in a school's file. */
export const refuseUnknown = (
  asked: ReadonlyArray<string>,
  tables: ReadonlyArray<{ readonly name: string; readonly local: string }>,
): Effect.Effect<void, TablesUnknown> => {
  const unknown = asked.filter((name) => !tables.some((table) => table.name === name || table.local === name))
  if (unknown.length === 0) return Effect.void
  const known = tables.map((table) => table.name).filter((name) => !name.startsWith("schoolbus."))
  return Effect.fail(new TablesUnknown({ unknown, known: known.sort() }))
}

export class SyncNow extends Context.Service<
  SyncNow,
  {
    /** Returns when the sync has been started, not when it is finished. */
    readonly trigger: (request: SyncRequest) => Effect.Effect<SyncResult, TablesUnknown | SchoolUnknown>
  }
>()("schoolbus/status/SyncNow") {}
