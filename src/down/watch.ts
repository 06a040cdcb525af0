/**
 * Who waits for rows, and who is to be woken by an append. Whoever waits stands under the audiences whose rows it may see, so an
 * append costs as much as it has audiences, however many schools are connected.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile } from "../libsql/client.ts"
import { EVERY_SCHOOL } from "./audience.ts"

/** No audience: whoever waits for the first row of its own. */
export const NEWCOMERS = -2

/** `audienceNo`: the number under which the rows of one school alone stand; null before its first row. */
export const makeWatch = (db: LibsqlFile, audienceNo: (school: string) => number | null) => {
  /** The newest seq of an audience, filled on first question. */
  const newest = new Map<number, number>()
  const waiters = new Map<number, Set<() => void>>()

  const wake = (audience: number): void => {
    const waiting = waiters.get(audience)
    if (waiting === undefined) return
    waiters.delete(audience)
    for (const onChange of waiting) onChange()
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

  const watch = (school: string, seq: number, onChange: () => void): (() => void) => {
    const audiences = [EVERY_SCHOOL, audienceNo(school) ?? NEWCOMERS]
    if (audiences.some((audience) => (newest.get(audience) ?? 0) > seq)) {
      queueMicrotask(onChange)
      return () => undefined
    }
    const leave = (): void => {
      for (const audience of audiences) waiters.get(audience)?.delete(once)
    }
    const once = (): void => {
      leave()
      onChange()
    }
    for (const audience of audiences) {
      const waiting = waiters.get(audience) ?? new Set()
      waiting.add(once)
      waiters.set(audience, waiting)
    }
    return leave
  }

  /** Completes when something after `seq` is there for the school. */
  const changed = (school: string, seq: number): Effect.Effect<void> =>
    Effect.gen(function* () {
      const own = audienceNo(school)
      for (const audience of own === null ? [EVERY_SCHOOL] : [EVERY_SCHOOL, own]) if ((yield* newestOf(audience)) > seq) return
      yield* Effect.callback<void>((resume) => Effect.sync(watch(school, seq, () => resume(Effect.void))))
    }).pipe(Effect.orDie)

  return { touched, wake, watch, changed }
}
