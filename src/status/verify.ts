/** "Verify": what API and CLI ask for, and what hub and school each do in their own way. */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import type * as Effect from "effect/Effect"

export interface VerifiedTable {
  /** `"public.students"` */
  readonly table: string
  /** Rows compared on this side. */
  readonly rows: number
  /** Rows that only head office has, only this side has, or both with different values. */
  readonly missing: number
  readonly extra: number
  readonly differing: number
  /** Rows left out, because something of them is on its way. */
  readonly skipped: number
  /** Wire keys of some extra and differing rows: `["b2f…"]`. */
  readonly keys: ReadonlyArray<string>
}

export interface Verified {
  /** RFC 3339, UTC. */
  readonly startedAt: string
  readonly seconds: number
  /** What was compared: Postgres with the hub's feed, or the feed with this school's file. */
  readonly compared: "postgres-feed" | "feed-school"
  readonly equal: boolean
  readonly differences: number
  /** Bytes that went over the link for it, both directions. */
  readonly bytes: number
  readonly tables: ReadonlyArray<VerifiedTable>
  /** Rows that go up as changes and get a verdict; rows that are sent again through the feed. */
  readonly repaired: { readonly up: number; readonly down: number }
}

export interface Lost {
  /** When it was noticed, RFC 3339, UTC; null = never. */
  readonly at: string | null
  readonly count: number
  /** The first of them. `was`, `now`: the row before and at present; null = there was, is none. `key`: JSON list. */
  readonly rows: ReadonlyArray<{
    readonly table: string
    readonly key: string
    readonly was: Readonly<Record<string, unknown>> | null
    readonly now: Readonly<Record<string, unknown>> | null
  }>
}

/** Not now: the message says why, and when. */
export class VerifyRefused extends Data.TaggedError("VerifyRefused")<{ readonly message: string }> {}

export class Verify extends Context.Service<
  Verify,
  {
    /** Returns when the comparison is finished. */
    readonly run: (repair: boolean) => Effect.Effect<Verified, VerifyRefused>
    /** The last finished one; null = none yet. */
    readonly last: Effect.Effect<Verified | null>
    /** At the hub, after its Postgres was put back: rows that stand otherwise than before. null: a school's node, which cannot know. */
    readonly lost: (limit: number) => Effect.Effect<Lost | null>
  }
>()("schoolbus/status/Verify") {}
