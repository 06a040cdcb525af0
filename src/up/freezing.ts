/**
 * Open writes become batches while batches go up: at first all of them, then, after each answer, what has come together since.
 * What was just frozen is handed over from memory, so that its bytes are not read again.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile } from "../libsql/client.ts"
import { freeze, type Frozen } from "../libsql/freeze.ts"
import { freezeAhead } from "../libsql/freeze-ahead.ts"
import { OPEN } from "../libsql/changes.ts"
import type { StoredBatch } from "../libsql/store-batch.ts"
import type { Manifest } from "../model/table.ts"

/** While a push goes on, fewer open writes wait for the next one. */
export const LEAST_AGAIN = 500
/** Batches that are held in memory until they go; those beyond are read from the file. */
const MAX_HELD = 2

export interface Freezing {
  /** Freezes until `end`; run beside the sending. */
  readonly run: Effect.Effect<void, LibsqlError>
  /** A batch that was frozen just now. */
  readonly take: (number: number) => StoredBatch | undefined
  /** Looks once more. */
  readonly again: () => void
  readonly end: () => void
  /** Nothing is being frozen. */
  readonly isIdle: () => boolean
  /** How many batches there were so far. */
  readonly count: () => number
  /** Resolves when there are more batches than `seen`, or nothing is being frozen. */
  readonly more: (seen: number) => Effect.Effect<void>
}

const freezeUnderLock = (file: LibsqlFile, now: number, maxChanges: number): Effect.Effect<Frozen, LibsqlError> =>
  file.write((tx) =>
    Effect.gen(function* () {
      const [state] = yield* tx.all<{ manifest: string | null }>("SELECT manifest FROM schoolbus_state")
      if (state?.manifest == null) return { batches: 0, changes: 0, isMore: false }
      return yield* freeze(tx, JSON.parse(state.manifest) as Manifest, now, { maxChanges })
    }),
  )

const hasMany = (file: LibsqlFile): Effect.Effect<boolean, LibsqlError> =>
  Effect.map(
    file.read((tx) => tx.all<{ n: number }>(`SELECT count(*) AS n FROM (SELECT 1 FROM changes WHERE ${OPEN} LIMIT ?)`, [LEAST_AGAIN])),
    ([row]) => row?.n === LEAST_AGAIN,
  )

export const makeFreezing = (file: LibsqlFile, maxChanges: number): Freezing => {
  const held = new Map<number, StoredBatch>()
  let count = 0
  let isIdle = false
  let isEnded = false
  let goOn: () => void = () => undefined
  let wake: () => void = () => undefined
  const freezeAll: Effect.Effect<void, LibsqlError> = Effect.gen(function* () {
    for (;;) {
      const now = yield* Clock.currentTimeMillis
      const { batch, isMore } = (yield* freezeAhead(file, now, maxChanges)) ?? (yield* freezeUnderLock(file, now, maxChanges))
      if (batch !== undefined && held.size < MAX_HELD) held.set(batch.number, batch)
      if (batch !== undefined) count++
      wake()
      if (!isMore) return
    }
  })
  const asked = Effect.callback<void>((resume) => {
    goOn = () => resume(Effect.void)
    if (isEnded || !isIdle) goOn()
  })
  return {
    run: Effect.gen(function* () {
      for (let isFirst = true; ; isFirst = false) {
        if (isFirst || (yield* hasMany(file))) yield* freezeAll
        isIdle = true
        wake()
        yield* asked
        if (isEnded) return
      }
    }),
    take: (number) => {
      const batch = held.get(number)
      held.delete(number)
      return batch
    },
    again: () => {
      isIdle = false
      goOn()
    },
    end: () => {
      isEnded = true
      goOn()
    },
    isIdle: () => isIdle,
    count: () => count,
    more: (seen) =>
      Effect.callback<void>((resume) => {
        wake = () => {
          if (count !== seen || isIdle) resume(Effect.void)
        }
        wake()
      }),
  }
}
