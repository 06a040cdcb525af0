/** The one row of the feed's table `hub`: its seq space, how far it got, and of which Postgres. And the names of its cuts. */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "../libsql/client.ts"

export interface HubRow {
  /** Names the feed for as long as its file lives. */
  readonly file: string
  readonly epoch: string
  /** Head: the highest seq given out. */
  readonly seq: number
  readonly commit_lsn: string
  readonly commit_xid: number | null
  readonly commit_at: string | null
  readonly life: string | null
  readonly life_last: string | null
  readonly system_id: string | null
  readonly timeline: number | null
  readonly cluster: string | null
  /** The manifest's version. */
  readonly manifest: number
}

export const readHub = (tx: Tx): Effect.Effect<HubRow, LibsqlError> => Effect.map(tx.all<HubRow>("SELECT * FROM hub"), ([row]) => row as HubRow)

/** Id of the cut or page that ended at this seq; null when it is not remembered, or was of another feed. */
export const cutAt = (tx: Tx, seq: number): Effect.Effect<string | null, LibsqlError> =>
  Effect.map(tx.all<{ id: string }>("SELECT id FROM cut WHERE seq = ?", [seq]), ([row]) => row?.id ?? null)
