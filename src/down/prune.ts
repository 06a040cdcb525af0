/**
 * How long the feed remembers deleted rows and former cuts: until every file that is in use has passed them. A file that nobody
 * shows any more holds nothing up for ever; should it come back, its rows are compared.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "../libsql/client.ts"
import type { Reader } from "./readers.ts"

/** A file that was not shown for so long has its rows compared when it comes back, instead of tombstones kept for it. */
const FORGET_MS = 365 * 86_400_000
/** The same when another life of the school's file is in use. */
const FORGET_REPLACED_MS = 35 * 86_400_000
/** A deleted row is remembered for this long at least: edits made before a school heard of it may still be on their way. */
const TOMBSTONE_MS = 7 * 24 * 3600 * 1000

/** What every live reader has passed (pure); `head` when there is none. `isOpen`: the school may still read. */
export const horizonOf = (
  readers: ReadonlyArray<Reader>,
  { epoch, seq }: { readonly epoch: string; readonly seq: number },
  isOpen: (school: string) => boolean,
  nowMs: number,
): number => {
  const newest = new Map<string, number>()
  for (const { school, seen_at } of readers) newest.set(school, Math.max(seen_at, newest.get(school) ?? 0))
  const isOver = (reader: Reader) => nowMs - reader.seen_at > FORGET_MS || (newest.get(reader.school) ?? 0) - reader.seen_at > FORGET_REPLACED_MS
  return readers
    .filter((reader) => reader.closed === 0 && reader.epoch === epoch && isOpen(reader.school) && !isOver(reader))
    .reduce((least, reader) => Math.min(least, reader.seq), seq)
}

export const prune = (tx: Tx, horizon: number, nowMs: number): Effect.Effect<number, LibsqlError> =>
  Effect.andThen(
    tx.run("DELETE FROM entry WHERE body IS NULL AND seq <= ? AND at < ? AND (class > 0 OR tbl IN (SELECT id FROM tables WHERE status = 'hidden'))", [
      horizon,
      (nowMs - TOMBSTONE_MS) * 1000,
    ]),
    tx.run("DELETE FROM cut WHERE seq < ? AND seq <> (SELECT seq FROM hub) AND seq NOT IN (SELECT seq FROM reader)", [horizon]),
  )
