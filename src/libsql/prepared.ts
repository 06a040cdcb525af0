/** The copy of a large table that `rebuild.ts` has made beside it: what is known of it, and its last rows, when it is taken. */
import * as Effect from "effect/Effect"
import { ident, type LibsqlError, type Tx } from "./client.ts"

/** Writes of programs that are looked at together. */
export const DIRTY_ROWS = 500

/** What a table is built anew from. */
export interface Plan {
  readonly local: string
  /** Name and SQL of the table beside it. */
  readonly fresh: string
  readonly sql: string
  /** Columns of the new one, and what each takes from a row of the old one. */
  readonly targets: string
  readonly sources: string
  /** The key under its old and its new names, and SQL for a row's local key (table `t`). */
  readonly key: ReadonlyArray<string>
  readonly keyNow: ReadonlyArray<string>
  readonly localKey: string
}

/** What stands in the file of a table that is being built. */
export interface Prepared {
  readonly sql: string
  /** The last change that the copies hold. */
  readonly since: number
  /** JSON list of keys that stay to be copied. */
  readonly owed: string
  readonly done: number
}

export const readPrepared = (tx: Tx, tbl: number) =>
  Effect.map(tx.all<Prepared>("SELECT sql, since, owed, done FROM schoolbus_rebuild WHERE tbl = ?", [tbl]), ([row]) => row)

/** Rows that programs wrote after change `since`, by their local keys. */
export const readDirty = (tx: Tx, tbl: number, since: number, limit: number) =>
  Effect.map(
    tx.all<{ id: number; key: string; new_key: string | null }>("SELECT id, key, new_key FROM changes WHERE tbl = ? AND id > ? ORDER BY id LIMIT ?", [
      tbl,
      since,
      limit,
    ]),
    (rows) => ({
      keys: rows.flatMap(({ key, new_key }) => (new_key === null ? [key] : [key, new_key])),
      upTo: rows.at(-1)?.id ?? since,
      isMore: rows.length === limit,
    }),
  )

export const valuesOf = (keys: ReadonlyArray<string>): string => `(VALUES ${keys.map((key) => `(${key})`).join(", ")})`
export const tuple = (names: ReadonlyArray<string>, prefix = ""): string => `(${names.map((name) => `${prefix}${ident(name)}`).join(", ")})`

/** Takes rows out of the new table. */
export const forget = (tx: Tx, { fresh, keyNow }: Plan, keys: ReadonlyArray<string>): Effect.Effect<unknown, LibsqlError> =>
  keys.length === 0 ? Effect.void : tx.run(`DELETE FROM ${ident(fresh)} WHERE ${tuple(keyNow)} IN ${valuesOf(keys)}`)

/** Copies rows as they stand; `or` says what becomes of one that has a unique value of a row that is yet to be copied again. */
export const copy = (tx: Tx, plan: Plan, keys: ReadonlyArray<string>, or = ""): Effect.Effect<unknown, LibsqlError> =>
  keys.length === 0
    ? Effect.void
    : tx.run(
        `INSERT ${or} INTO ${ident(plan.fresh)} (${plan.targets}) SELECT ${plan.sources} FROM ${ident(plan.local)} WHERE ${tuple(plan.key)} IN ${valuesOf(keys)}`,
      )

/** Brings a prepared copy up to the present; false: there is none that can be taken. */
export const takePrepared = (tx: Tx, tbl: number, plan: Plan): Effect.Effect<boolean, LibsqlError> =>
  Effect.gen(function* () {
    const prepared = yield* readPrepared(tx, tbl)
    yield* tx.run("DELETE FROM schoolbus_rebuild WHERE tbl = ?", [tbl])
    if (prepared === undefined || prepared.done === 0 || prepared.sql !== plan.sql) return false
    const keys = new Set(JSON.parse(prepared.owed) as ReadonlyArray<string>)
    for (let since = prepared.since, isMore = true; isMore; ) {
      const dirty = yield* readDirty(tx, tbl, since, DIRTY_ROWS)
      for (const key of dirty.keys) keys.add(key)
      since = dirty.upTo
      isMore = dirty.isMore
    }
    const all = [...keys]
    for (let i = 0; i < all.length; i += DIRTY_ROWS) yield* forget(tx, plan, all.slice(i, i + DIRTY_ROWS))
    for (let i = 0; i < all.length; i += DIRTY_ROWS) yield* copy(tx, plan, all.slice(i, i + DIRTY_ROWS))
    // What was written unseen would be missing: then all is copied anew.
    const [count] = yield* tx.all<{ same: number }>(
      `SELECT (SELECT count(*) FROM ${ident(plan.local)}) = (SELECT count(*) FROM ${ident(plan.fresh)}) AS same`,
    )
    return count?.same === 1
  })
