/**
 * Columns that Postgres computes, as programs leave them: a REPLACE or a delete with a new insert empties them, and a program may
 * write anything there. Such a write travels nowhere, so the row gets back what it had; where Postgres computes anew, its row comes down.
 */
import * as Effect from "effect/Effect"
import { parseLocalKey } from "../model/key.ts"
import { sameRaw } from "./cells.ts"
import { ident, type LibsqlError, type Tx } from "./client.ts"
import { type Captured, keyId, type Outcome, type Values } from "./history.ts"
import type { Source } from "./open-writes.ts"

/** A row whose computed columns a write left otherwise than they were. */
export interface Emptied {
  readonly source: Source
  readonly row: Captured
  /** The captured write that holds what they were. */
  readonly from: number
}

/** What was taken away under a key so far: the write, and the row's values. */
export type Removed = Map<string, { readonly id: number; readonly old: Values }>

/** Positions of the columns that Postgres computes and the file has. */
export const computedAt = ({ table, present }: Pick<Source, "table" | "present">): ReadonlyArray<number> =>
  table?.columns.flatMap((column, i) => (column.generated && present.has(i) ? [i] : [])) ?? []

/** Looks at writes and what they did, in order (pure, but for `removed`, which goes on from page to page). */
export const emptiedBy = (
  rows: ReadonlyArray<Captured>,
  outcomes: ReadonlyArray<Outcome>,
  sources: ReadonlyMap<number, Source>,
  removed: Removed,
): ReadonlyArray<Emptied> => {
  const emptied: Array<Emptied> = []
  const positions = new Map([...sources].map(([tbl, source]) => [tbl, source.isGone === true ? [] : computedAt(source)]))
  if (![...positions.values()].some((own) => own.length > 0)) return emptied
  rows.forEach((row, i) => {
    const outcome = outcomes[i] as Outcome
    const source = sources.get(row.tbl)
    const own = positions.get(row.tbl) ?? []
    if (source === undefined || own.length === 0) return
    const differs = (was: Values, is: Values) => own.some((at) => !sameRaw(was[at] ?? null, is[at] ?? null))
    if (outcome.kind === "delete") removed.set(keyId(row.tbl, row.key), { id: row.id, old: outcome.base })
    else if (outcome.kind === "update" && differs(outcome.base, outcome.mine)) emptied.push({ source, row, from: outcome.note ?? row.id })
    else if (outcome.kind === "insert") {
      const before = removed.get(keyId(row.tbl, row.key))
      if (before !== undefined && differs(before.old, outcome.mine)) emptied.push({ source, row, from: before.id })
    }
  })
  return emptied
}

/** Gives them back what they had, also where later open writes have noted otherwise. The captured writes still stand. */
export const restoreComputed = (tx: Tx, emptied: ReadonlyArray<Emptied>): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    if (emptied.length === 0) return
    // A cut may be under way in the same transaction.
    const [capture] = yield* tx.all<{ active: number }>("SELECT active FROM schoolbus_deliver")
    yield* tx.run("UPDATE schoolbus_deliver SET active = 1")
    for (const { source, row, from } of emptied) {
      const { table } = source
      const local = row.newKey ?? row.key
      const cells = parseLocalKey(local)
      if (table === undefined || cells === null) continue
      const own = computedAt(source)
      const was = (at: number) => `(SELECT w.v${at} FROM changes w WHERE w.id = ?1)`
      const sets = own.map((at) => `${ident(table.columns[at]?.name ?? "")} = ${was(at)}`).join(", ")
      // A unique value that another row has by now stays there.
      yield* tx.run(
        `UPDATE OR IGNORE ${ident(table.local)} SET ${sets} WHERE ${table.key.map((name, n) => `${ident(name)} = ?${n + 2}`).join(" AND ")}`,
        [BigInt(from), ...cells],
      )
      yield* tx.run(
        `UPDATE changes SET ${own.map((at) => `v${at} = ${was(at)}`).join(", ")} WHERE tbl = ?2 AND key = ?3 AND batch IS NULL AND op <> 'I' AND id > ?4`,
        [BigInt(from), BigInt(row.tbl), local, BigInt(row.id)],
      )
    }
    yield* tx.run("UPDATE schoolbus_deliver SET active = ?", [capture?.active ?? 0])
  })
