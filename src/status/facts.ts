/** What a running node knows about itself that stands in no table. Flows set it, the status snapshot reads it. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { PausedTable } from "../link/protocol.ts"

export interface HubFacts {
  /** `standby`: another hub holds the slot. */
  readonly stream: "starting" | "streaming" | "standby" | "down"
  /** Who holds the slot, or the last error with its remedy; "" when all is well. */
  readonly streamDetail: string
  /** Tables whose first copy is under way. */
  readonly loading: ReadonlyArray<{ readonly table: string; readonly rows: number; readonly total: number }>
  /** Ids of schools with an open request or one in the last minute. */
  readonly connected: ReadonlyArray<string>
  /** Postgres answered the last question put to it. */
  readonly postgres: boolean
  /** Why Postgres took nothing of the last push, with the remedy, and when, ms since 1970; null = it took it, or there was none. */
  readonly refused: { readonly text: string; readonly at: number } | null
}

export interface SchoolFacts {
  /** `stopped`: a named stop (`cloned`, `restored`, `wrong_cluster`, `schema_ahead`, `unauthorized`) needs a person. */
  readonly link: "connecting" | "online" | "offline" | "stopped"
  /** The last error with its remedy; "" when all is well. */
  readonly linkDetail: string
  /** Why the school's file is not where programs look for it, with the remedy; "" = it is. */
  readonly file: string
  /** ms since 1970; 0 = never. */
  readonly lastContactAt: number
  /** When a cut was applied, a push answered, or both sides had nothing for each other. */
  readonly lastSyncAt: number
  /** The cut under way: rows and bytes of text received, and in all. */
  readonly progress: { readonly rows: number; readonly total: number; readonly bytes: number; readonly totalBytes: number } | null
  /** Over a metered link: what keeps it from calling, and when it calls next, ms since 1970; null = not known yet, or not metered. */
  readonly metered: { readonly waits: "budget" | "hours" | null; readonly nextAt: number } | null
  readonly paused: boolean
  /** Tables that head office has paused, as of the last contact. */
  readonly pausedTables: ReadonlyArray<PausedTable>
}

export interface FactStore<F> {
  readonly get: Effect.Effect<F>
  readonly set: (part: Partial<F>) => Effect.Effect<void>
  /** Runs `listener` after each change; returns the way to stop it. */
  readonly listen: (listener: (facts: F) => void) => () => void
}

const makeStore = <F>(first: F): FactStore<F> => {
  let facts = first
  const listeners = new Set<(facts: F) => void>()
  return {
    get: Effect.sync(() => facts),
    set: (part) =>
      Effect.sync(() => {
        facts = { ...facts, ...part }
        for (const listener of listeners) listener(facts)
      }),
    listen: (listener) => {
      listeners.add(listener)
      return () => void listeners.delete(listener)
    },
  }
}

export class HubFactStore extends Context.Service<HubFactStore, FactStore<HubFacts>>()("schoolbus/status/HubFactStore") {
  static readonly layer = Layer.sync(HubFactStore, () =>
    makeStore<HubFacts>({ stream: "starting", streamDetail: "", loading: [], connected: [], postgres: true, refused: null }),
  )
}

export class SchoolFactStore extends Context.Service<SchoolFactStore, FactStore<SchoolFacts>>()("schoolbus/status/SchoolFactStore") {
  static readonly layer = Layer.sync(SchoolFactStore, () =>
    makeStore<SchoolFacts>({
      link: "connecting",
      linkDetail: "",
      file: "",
      lastContactAt: 0,
      lastSyncAt: 0,
      progress: null,
      metered: null,
      paused: false,
      pausedTables: [],
    }),
  )
}
