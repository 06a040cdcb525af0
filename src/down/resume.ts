/**
 * How the stream goes on, from what Postgres and the feed say of each other (pure).
 *
 *     slot gone, lost, of another kind, or tables were not published     a new slot, every table compared by key, the epoch stays
 *     slot ahead of the feed                                             the slot as it is, every table compared, the epoch stays
 *     another life, another past, another cluster or timeline            a new epoch, every table compared
 *     nothing of it, or a feed without a row                             from where the feed is
 */
import type { Lsn } from "../model/lsn.ts"

export interface Standing {
  readonly feed: {
    /** 0 = it has taken nothing yet. */
    readonly lsn: Lsn
    readonly life: string | null
    readonly lifeLast: string | null
    readonly systemId: string | null
    readonly timeline: number | null
  }
  /** null: Postgres has no such slot. */
  readonly slot: { readonly walStatus: string | null; readonly confirmed: Lsn; readonly plugin: string | null; readonly twoPhase: boolean } | null
  readonly plugin: string
  /** Life number that stands in Postgres; null = none. */
  readonly life: string | null
  /** It was written before the txn that the feed took last. */
  readonly isLifeOlder: boolean
  /** Postgres does not know the txn that the feed took last. */
  readonly isOtherPast: boolean
  readonly cluster: { readonly systemId: string; readonly timeline: number }
  /** null: the plugin needs none. `gaps`: tables whose rows the feed holds, and which were not in it all the time. */
  readonly publication: { readonly name: string; readonly exists: boolean; readonly gaps: ReadonlyArray<string> } | null
}

export interface Resume {
  /** Why every table is compared with Postgres by key; null = it is not. */
  readonly compare: string | null
  /** The slot that is there is of no use. */
  readonly isUseless: boolean
  readonly isNewEpoch: boolean
  /** Postgres, not the feed, is the one that was put back: what only the feed holds is lost there. */
  readonly isPutBack: boolean
}

export const judgeStanding = ({ feed, slot, plugin, life, isLifeOlder, isOtherPast, cluster, publication }: Standing): Resume => {
  const isFresh = feed.lsn === 0n
  const isLost = slot?.walStatus === "lost"
  const isOtherPlugin = slot !== null && slot.plugin !== plugin
  const isTwoPhase = slot?.twoPhase === true
  // What was committed while a table was not published is not in the stream.
  const isUnpublished = slot !== null && publication !== null && (!publication.exists || publication.gaps.length > 0)
  const isOtherLife = life !== null && feed.life !== null && life !== feed.life && life !== feed.lifeLast
  const isOtherCluster = feed.systemId !== null && (feed.systemId !== cluster.systemId || feed.timeline !== cluster.timeline)
  const reason =
    slot === null
      ? "the slot does not exist"
      : isLost
        ? "the slot is lost: Postgres removed WAL that it needed"
        : isOtherPlugin
          ? `the slot ${slot.plugin === null ? "is a physical one" : `was made for ${slot.plugin}, the config says ${plugin}`}: it is replaced`
          : isTwoPhase
            ? "the slot was made with two_phase, for prepared transactions before their commit: it is replaced"
            : isUnpublished
              ? `publication ${publication.name} did not hold ${publication.exists ? publication.gaps.join(", ") : "any table, it did not exist"} all the time: the slot is replaced`
              : isOtherCluster
                ? "Postgres is another cluster or timeline than the feed knows"
                : isOtherLife || isOtherPast
                  ? "Postgres was put back to an older state, or this feed was"
                  : slot.confirmed > feed.lsn
                    ? "the slot is ahead of the feed"
                    : null
  return {
    compare: isFresh ? null : reason,
    isUseless: isLost || isOtherPlugin || isTwoPhase || isUnpublished,
    isNewEpoch: !isFresh && (isOtherLife || isOtherPast || isOtherCluster),
    isPutBack: !isFresh && (isOtherPast || isOtherCluster || (isOtherLife && isLifeOlder)),
  }
}
