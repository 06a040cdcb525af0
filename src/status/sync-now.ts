/** "Sync now": what API and CLI ask for, and what hub and school each do in their own way. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { SchoolUnknown, TablesUnknown } from "./records.ts"

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

export class SyncNow extends Context.Service<
  SyncNow,
  {
    /** Returns when the sync has been started, not when it is finished. */
    readonly trigger: (request: SyncRequest) => Effect.Effect<SyncResult, TablesUnknown | SchoolUnknown>
  }
>()("schoolbus/status/SyncNow") {}
