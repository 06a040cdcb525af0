/**
 * The one status of a node: CLI, API, metrics and pages read it and nothing else, so they can never disagree.
 * A field may be added; none changes its meaning.
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { LibsqlError } from "../libsql/client.ts"
import type { SlotHealth } from "../postgres/health.ts"

export const SCHEMA_VERSION = 1

/**
 * `up_to_date` nothing waits on either side, and the other side has said so · `syncing` rows travel now ·
 * `catching_up` a long way behind, and moving · `pending` own changes wait to be sent · `offline` no contact ·
 * `paused` by a person · `stuck` needs help · `new` the first copy is not complete.
 */
export type State = "up_to_date" | "syncing" | "catching_up" | "pending" | "offline" | "paused" | "stuck" | "new"

export const STATES: ReadonlyArray<State> = ["up_to_date", "syncing", "catching_up", "pending", "offline", "paused", "stuck", "new"]

export interface Counts {
  /** At a school: changes that wait for their verdict. At the hub: rows that schools have not applied yet. */
  readonly pending: number
  /** Quarantined changes, and rows that cannot be shown in the school. */
  readonly failed: number
  /** Rows that both sides hold alike (at the hub: rows in the feed, remembered deletes included). */
  readonly synced: number
  /** Conflicts that wait for a person. */
  readonly conflicts: number
}

export interface TableStatus extends Counts {
  /** `"public.students"` */
  readonly table: string
  /** `loading`: its first copy is under way. `paused`: at the hub its changes are not taken, in a school it does not fit, or head office has paused it. */
  readonly state?: "active" | "loading" | "paused"
  /** Why it is paused, and the remedy; absent when it is not. */
  readonly reason?: string
  /** At the hub: rows that belong to nobody, because their audience is empty or names no enrolled school; absent: none. */
  readonly nobody?: number
  /** What is wrong with the table in the school's file, and what mends it; absent: nothing. */
  readonly fault?: string
}

/** Rows of a copy that is under way. */
export interface Progress {
  readonly table: string | null
  readonly rows: number
  readonly total: number
  /** Bytes of text, before compression; absent where nobody counts them. */
  readonly bytes?: number
  readonly totalBytes?: number
  /** 0 to 100, by bytes where they are known. */
  readonly percent?: number
}

/** How a metered link is used; sizes in bytes, as they went over the line this day. */
export interface MeteredView {
  readonly cycleMinutes: number
  readonly budgetBytes: number | null
  /** `"19:00-06:00"`; "" = always. */
  readonly hours: string
  readonly usedBytes: number
  /** What keeps it from calling now. */
  readonly waits: "budget" | "hours" | null
  readonly nextAt: string | null
}

interface Base {
  readonly schemaVersion: typeof SCHEMA_VERSION
  /** RFC 3339, UTC: everything below is as of this time. */
  readonly asOf: string
  readonly version: string
  readonly runtime: string
  readonly state: State
  /** Why, with the remedy; "" when there is nothing to say. */
  readonly reason: string
  /** One sentence for people. */
  readonly summary: string
  readonly totals: Counts
  readonly tables: ReadonlyArray<TableStatus>
  readonly progress: ReadonlyArray<Progress>
}

export interface SchoolSnapshot extends Base {
  readonly role: "school"
  readonly school: string | null
  readonly name: string | null
  readonly incarnation: string
  readonly link: {
    readonly state: "connecting" | "online" | "offline" | "stopped"
    readonly detail: string
    readonly lastContactAt: string | null
    readonly lastSyncAt: string | null
  }
  /** This computer's clock minus head office's at the last contact; null = none yet. */
  readonly clockAheadMs?: number | null
  readonly sending: { readonly pending: number; readonly oldestPendingAt: string | null; readonly batches: number; readonly lastBatch: number }
  readonly receiving: { readonly epoch: string; readonly seq: string; readonly behind: number; readonly applying: boolean }
  /** Bytes over the link this day, by this machine's clock. */
  readonly traffic?: { readonly sent: number; readonly received: number }
  /** null: the link may be used as it comes. */
  readonly metered?: MeteredView | null
  readonly devices: {
    readonly total: number
    readonly approved: number
    readonly waiting: number
    /** Terminals with something that a person should look at, in words. */
    readonly alerts: ReadonlyArray<{ readonly serial: string; readonly name: string; readonly alerts: ReadonlyArray<string> }>
  }
  readonly workers: ReadonlyArray<{ readonly module: string; readonly failed: number; readonly error: string | null }>
  /** The last comparison with head office; `left`: rows that differed and were not mended. null = none yet. */
  readonly verified: { readonly at: string; readonly differences: number; readonly left: number } | null
}

/** One school as the hub sees it. */
export interface SchoolView {
  readonly school: string
  readonly name: string
  readonly state: State
  readonly reason: string
  readonly connected: boolean
  readonly lastSeenAt: string | null
  /** Rows of the feed that it has not applied; counted up to `LAG_COUNTED` of each audience and class. */
  readonly lagRows: number
  /** The cut that it is receiving, by its own last word. */
  readonly progress?: Progress | null
  /** Changes that it has not pushed, by its own last word. */
  readonly pending: number
  readonly oldestPendingAt: string | null
  readonly failed: number
  readonly conflicts: number
  readonly devices: number
}

/** The hub's slot, and what it costs the server. */
export type SlotView = Omit<SlotHealth, "maxSlotWalKeepSize">

export interface HubSnapshot extends Base {
  readonly role: "hub"
  readonly postgres: boolean
  /** What Postgres answered when it was asked for its part of this, with the remedy; null = it told, or did not answer. */
  readonly fault: string | null
  /** This computer's clock minus Postgres', ms; null = not known. */
  readonly clockAheadMs?: number | null
  readonly stream: { readonly state: "starting" | "streaming" | "standby" | "down"; readonly detail: string }
  readonly feed: { readonly epoch: string; readonly seq: string; readonly lsn: string; readonly committedAt: string | null }
  readonly slot: SlotView | null
  readonly schools: ReadonlyArray<SchoolView>
}

export type Snapshot = HubSnapshot | SchoolSnapshot

/** Builds the snapshot of this node; a database that does not answer is part of the answer where it can be. */
export class Status extends Context.Service<
  Status,
  {
    /** At the hub, a school's id narrows schools, tables and totals to it. */
    readonly snapshot: (school?: string) => Effect.Effect<Snapshot, LibsqlError>
  }
>()("schoolbus/status/Status") {}

/** 0 to 100 with one decimal, by bytes where they are known; of nothing there is nothing left. */
export const percentOf = (rows: number, total: number, bytes = 0, totalBytes = 0): number => {
  const [part, whole] = totalBytes > 0 ? [bytes, totalBytes] : [rows, total]
  return whole === 0 ? 100 : Math.min(100, Math.floor((part / whole) * 1000) / 10)
}

export const sumOf = (tables: ReadonlyArray<Counts>): Counts =>
  tables.reduce<Counts>(
    (sum, table) => ({
      pending: sum.pending + table.pending,
      failed: sum.failed + table.failed,
      synced: sum.synced + table.synced,
      conflicts: sum.conflicts + table.conflicts,
    }),
    { pending: 0, failed: 0, synced: 0, conflicts: 0 },
  )

/** ms since 1970 -> RFC 3339; 0 and null mean never. */
export const timeOf = (ms: number | null): string | null => (ms === null || ms === 0 ? null : new Date(ms).toISOString())
