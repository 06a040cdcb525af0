/**
 * Who waits for rows, and who is to be woken by an append. Whoever waits stands under the audiences whose rows it may see, so an
 * append costs as much as it has audiences, however many schools are connected.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile } from "../libsql/client.ts"
import { EVERY_SCHOOL } from "./audience.ts"

/** No audience: whoever waits for the first row of its own. */
export const NEWCOMERS = -2

/** Told once when something is there for its school; while it waits, this is all that is kept of it here. */
export interface Waiter {
  readonly school: string
  readonly changed: () => void
}

/** `audienceNo`: the number under which the rows of one school alone stand; null before its first row. */
export const makeWatch = (db: LibsqlFile, audienceNo: (school: string) => number | null) => {
  /** The newest seq of an audience, filled on first question. */
  const newest = new Map<number, number>()
  const waiters = new Map<number, Set<Waiter>>()

  const wake = (audience: number): void => {
    const waiting = waiters.get(audience)
    if (waiting === undefined) return
    waiters.delete(audience)
    for (const waiter of waiting) {
      unwatch(waiter)
      waiter.changed()
    }
  }

  /** An append up to `seq` was committed, with rows of these audiences. */
  const touched = (audiences: ReadonlySet<number>, seq: number): void => {
    for (const audience of audiences) newest.set(audience, seq)
    for (const audience of audiences) wake(audience)
  }

  const newestOf = (audience: number): Effect.Effect<number, LibsqlError> =>
    Effect.gen(function* () {
      const known = newest.get(audience)
      if (known !== undefined) return known
      const [row] = yield* db.read((tx) =>
        tx.all<{ seq: number | null }>(
          `SELECT max(s) AS seq FROM (SELECT (SELECT max(seq) FROM entry WHERE audience = ?1 AND class = c.value) AS s FROM json_each('[10,8,5,3,1]') c)`,
          [audience],
        ),
      )
      // An append may have come in between.
      const seq = Math.max(row?.seq ?? 0, newest.get(audience) ?? 0)
      newest.set(audience, seq)
      return seq
    })

  const watch = (waiter: Waiter, seq: number): void => {
    const audiences = [EVERY_SCHOOL, audienceNo(waiter.school) ?? NEWCOMERS]
    if (audiences.some((audience) => (newest.get(audience) ?? 0) > seq)) {
      queueMicrotask(() => waiter.changed())
      return
    }
    for (const audience of audiences) {
      const waiting = waiters.get(audience) ?? new Set()
      waiting.add(waiter)
      waiters.set(audience, waiting)
    }
  }

  /** Its school may have got an audience of its own since it began to wait. */
  const unwatch = (waiter: Waiter): void => {
    for (const audience of [EVERY_SCHOOL, NEWCOMERS, audienceNo(waiter.school) ?? NEWCOMERS]) waiters.get(audience)?.delete(waiter)
  }

  /** Completes when something after `seq` is there for the school. */
  const changed = (school: string, seq: number): Effect.Effect<void> =>
    Effect.gen(function* () {
      const own = audienceNo(school)
      for (const audience of own === null ? [EVERY_SCHOOL] : [EVERY_SCHOOL, own]) if ((yield* newestOf(audience)) > seq) return
      yield* Effect.callback<void>((resume) => {
        const waiter: Waiter = { school, changed: () => resume(Effect.void) }
        watch(waiter, seq)
        return Effect.sync(() => unwatch(waiter))
      })
    }).pipe(Effect.orDie)

  return { touched, wake, watch, unwatch, changed }
}
