/**
 * Which version of its rows a school has, and how the feed keeps a row's version that is replaced while a school still has it
 * (columns was, was_from, was_to of `entry`). A school whose triggers were away compares its rows with those: what differs a
 * program of its own wrote, also where head office has written since.
 */
import type { Table } from "../model/table.ts"
import type { Reader } from "./readers.ts"

/** Nobody has anything. */
const NOTHING = -1

/** A school writes to the table, so that one of its writes may go unseen. */
export const isWrittenBySchools = ({ table }: { readonly table: Pick<Table, "direction" | "system"> }): boolean =>
  table.direction === "both" && !table.system

/** By school, the seq up to which its newest file has what the feed sent; `sent`: what left this process, by incarnation. */
export const heldBySchool = (
  readers: Iterable<Pick<Reader, "incarnation" | "school" | "epoch" | "seq" | "seen_at" | "closed">>,
  sent: ReadonlyMap<string, number>,
  epoch: string,
): ReadonlyMap<string, number> => {
  const newest = new Map<string, number>()
  const held = new Map<string, number>()
  for (const reader of readers) {
    if (reader.closed === 1 || reader.epoch !== epoch || reader.seen_at < (newest.get(reader.school) ?? 0)) continue
    newest.set(reader.school, reader.seen_at)
    held.set(reader.school, Math.max(reader.seq, sent.get(reader.incarnation) ?? 0))
  }
  return held
}

/** Of the rows of every school: the one that is furthest behind. */
export const heldByAll = (held: ReadonlyMap<string, number>): number => (held.size === 0 ? NOTHING : Math.min(...held.values()))

export const heldBy = (held: ReadonlyMap<string, number>, school: string | undefined): number => held.get(school ?? "") ?? NOTHING

/** SQL of an UPDATE of `entry`: what stands there is kept when its seq is at most `held`; `next`: the seq that takes its place. */
export const keepWas = (held: string, next: string): string =>
  `(was, was_from, was_to) = (SELECT iif(c, entry.body, entry.was), iif(c, entry.seq, entry.was_from), iif(c, ${next}, entry.was_to) FROM (SELECT entry.seq <= ${held} AS c))`

/** SQL for what is held of the audience of an entry, out of a JSON object by audience number. */
export const heldIn = (json: string): string => `coalesce(${json} ->> ('$."' || entry.audience || '"'), ${NOTHING})`

/** What stood in an entry at a cut: undefined = not known. */
export const versionAt = (
  entry: {
    readonly seq: number
    readonly born: number
    readonly body: string | null
    readonly was: string | null
    readonly was_from: number | null
    readonly was_to: number | null
  },
  cut: number,
): string | null | undefined => {
  if (entry.seq <= cut) return entry.body
  if (entry.born > cut) return null
  return entry.was_from !== null && entry.was_from <= cut && cut < (entry.was_to ?? 0) ? entry.was : undefined
}
