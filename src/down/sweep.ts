/**
 * The end of a full cut: rows that it did not name no longer exist at head office. Found while reading, without the write
 * lock; removed some at a time. A row that a program made meanwhile is pending by then, and waits behind like any other.
 */
import * as Effect from "effect/Effect"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"
import { localKeySql, parseLocalKey } from "../model/key.ts"
import { idOf, type Item, LEDGER, type Target, type Targets } from "./delivery.ts"

/** Rows looked at in one read. */
const SCAN_ROWS = 5_000

const sweptTargets = (targets: Targets): ReadonlyArray<Target> =>
  [...targets.byName.values()].filter(({ table }) => table.direction !== "up" && table.name !== LEDGER)

/** A table that a program dropped has nothing to sweep. */
const orNothing = <A>(rows: Effect.Effect<ReadonlyArray<A>, LibsqlError>): Effect.Effect<ReadonlyArray<A>, LibsqlError> =>
  Effect.catch(rows, (error) => (error.code === "SQLITE_ERROR" ? Effect.succeed([]) : Effect.fail(error)))

export const hasRows = (tx: Tx, targets: Targets): Effect.Effect<boolean, LibsqlError> =>
  Effect.gen(function* () {
    for (const { table } of sweptTargets(targets)) {
      const rows = yield* orNothing(tx.all<{ n: number }>(`SELECT 1 AS n FROM ${ident(table.local)} LIMIT 1`))
      if (rows.length > 0) return true
    }
    return false
  })

/** Rows that the cut did not name, as deletes, page by page to `remove`. */
export const sweep = <E>(
  targets: Targets,
  read: <A>(body: (tx: Tx) => Effect.Effect<A, LibsqlError>) => Effect.Effect<A, LibsqlError>,
  remove: (gone: ReadonlyMap<string, Item>) => Effect.Effect<void, E>,
): Effect.Effect<void, E | LibsqlError> =>
  Effect.gen(function* () {
    for (const target of sweptTargets(targets)) {
      const { table, tbl } = target
      const key = localKeySql(table, "t.")
      const columns = table.key.map((name) => `t.${ident(name)}`).join(", ")
      for (let after: string | null = null; ; ) {
        // A local key is a list of SQL literals, whatever a program wrote into it.
        const beyond: string = after === null ? "" : `WHERE (${columns}) > (${after})`
        const rows: ReadonlyArray<{ key: string; met: number }> = yield* read((tx) =>
          orNothing(
            tx.all<{ key: string; met: number }>(
              `SELECT k AS key, EXISTS (SELECT 1 FROM schoolbus_met m WHERE m.tbl = ? AND m.key = k) AS met
                 FROM (SELECT ${key} AS k FROM ${ident(table.local)} t ${beyond} ORDER BY ${columns} LIMIT ${SCAN_ROWS})`,
              [tbl],
            ),
          ),
        )
        const gone = rows.flatMap((row): ReadonlyArray<readonly [string, Item]> => {
          const keyCells = row.met === 1 ? null : parseLocalKey(row.key)
          return keyCells === null ? [] : [[idOf(tbl, row.key), { target, key: row.key, keyCells, columns: [], values: null }]]
        })
        if (gone.length > 0) yield* remove(new Map(gone))
        after = rows.at(-1)?.key ?? null
        if (rows.length < SCAN_ROWS || after === null) break
      }
    }
  })
