/** Which position the slot may be told (pure): never beyond what the feed has committed. */
import type { Lsn } from "../model/lsn.ts"

export interface AckState {
  /** End of the last txn that stands in the feed or is being committed there, with its position row. */
  readonly written: Lsn
  /** End of the last txn, or keepalive, that held nothing for the feed and after which nothing was pending. */
  readonly idle: Lsn
  /** When a position was last written there, ms. */
  readonly savedAt: number
}

/** How often progress without rows is written down: often enough to free WAL, rarely enough not to feed itself. */
export const IDLE_SAVE_MS = 10_000

export type AckStep =
  | { readonly kind: "nothing" }
  /** Write this position to the feed first, then confirm it. */
  | { readonly kind: "save"; readonly position: Lsn }

export const idleStep = (state: AckState, now: number): AckStep =>
  state.idle > state.written && now - state.savedAt >= IDLE_SAVE_MS ? { kind: "save", position: state.idle } : { kind: "nothing" }
