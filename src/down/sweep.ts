/**
 * The end of a cut that names all rows, of every table or of those that have another key now: what it did not name no longer
 * exists at head office. Found while reading, without the write lock; removed some at a time. A row that a program made meanwhile is pending by then, and waits behind like any other.
 */
import * as Effect from "effect/Effect"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"
import { localKeySql, parseLocalKey } from "../model/key.ts"
import { idOf, type Item, LEDGER, type Target, type Targets } from "./delivery.ts"

/** Rows looked at in one read, and removed in one transaction. */
const SCAN_ROWS = 2_000

const sweptTargets = (targets: Targets, isFull: boolean): ReadonlyArray<Target> =>
  [...targets.byName.values()].filter(
    ({ table, unfit, isRenewed }) => unfit === null && table.direction !== "up" && table.name !== LEDGER && (isFull || isRenewed),
  )

/** A table that a program dropped has nothing to sweep. */
const orNothing = <A>(rows: Effect.Effect<ReadonlyArray<A>, LibsqlError>): Effect.Effect<ReadonlyArray<A>, LibsqlError> =>
  Effect.catch(rows, (error) => (error.code === "SQLITE_ERROR" ? Effect.succeed([]) : Effect.fail(error)))

/** Whether a cut could end anything here. */
export const endsRows = (tx: Tx, targets: Targets, isFull: boolean): Effect.Effect<boolean, LibsqlError> =>
  Effect.gen(function* () {
    for (const { table } of sweptTargets(targets, isFull)) {
      const rows = yield* orNothing(tx.all<{ n: number }>(`SELECT 1 AS n FROM ${ident(table.local)} LIMIT 1`))
      if (rows.length > 0) return true
    }
    if (!isFull) return false
    const waiting = yield* tx.all("SELECT 1 FROM schoolbus_behind UNION ALL SELECT 1 FROM schoolbus_hold UNION ALL SELECT 1 FROM changes LIMIT 1")
    return waiting.length > 0
  })

/** `met`: the cut named it. */
interface Seen {
  readonly key: string
  readonly met: number
}

/** One page of rows after a key, in key order. */
type Scan = (tx: Tx, after: string | null) => Effect.Effect<ReadonlyArray<Seen>, LibsqlError>

const MET = "EXISTS (SELECT 1 FROM schoolbus_met m WHERE m.tbl = ?1 AND m.key = k) AS met"

const shownRows = ({ table, tbl }: Target): Scan => {
  const columns = table.key.map((name) => `t.${ident(name)}`).join(", ")
  return (tx, after) => {
    // A local key is a list of SQL literals, whatever a program wrote into it.
    const beyond = after === null ? "" : `WHERE (${columns}) > (${after})`
    const rows = `SELECT ${localKeySql(table, "t.")} AS k FROM ${ident(table.local)} t ${beyond} ORDER BY ${columns} LIMIT ${SCAN_ROWS}`
    return orNothing(tx.all(`SELECT k AS key, ${MET} FROM (${rows})`, [tbl]))
  }
}

/** Rows that the school does not show, but of which something waits: a state, a verdict or a decision. */
const waitingRows =
  ({ tbl }: Target): Scan =>
  (tx, after) => {
    const rows = [
      "SELECT key AS k FROM schoolbus_behind WHERE tbl = ?1 AND row IS NOT NULL",
      "SELECT key FROM schoolbus_hold WHERE tbl = ?1",
      "SELECT key FROM changes WHERE tbl = ?1",
      "SELECT new_key FROM changes WHERE tbl = ?1 AND new_key IS NOT NULL",
    ].join(" UNION ")
    return tx.all(`SELECT k AS key, ${MET} FROM (SELECT k FROM (${rows}) WHERE k > ?2 ORDER BY k LIMIT ${SCAN_ROWS})`, [tbl, after ?? ""])
  }

/** Rows that the cut did not name, as deletes, page by page to `remove`. */
export const sweep = <E>(
  targets: Targets,
  isFull: boolean,
  read: <A>(body: (tx: Tx) => Effect.Effect<A, LibsqlError>) => Effect.Effect<A, LibsqlError>,
  remove: (gone: ReadonlyMap<string, Item>) => Effect.Effect<void, E>,
): Effect.Effect<void, E | LibsqlError> =>
  Effect.gen(function* () {
    for (const target of sweptTargets(targets, isFull)) {
      for (const scan of [shownRows(target), waitingRows(target)]) {
        for (let after: string | null = null; ; ) {
          const from: string | null = after
          const rows: ReadonlyArray<Seen> = yield* read((tx) => scan(tx, from))
          const gone = rows.flatMap((row): ReadonlyArray<readonly [string, Item]> => {
            const keyCells = row.met === 1 ? null : parseLocalKey(row.key)
            return keyCells === null ? [] : [[idOf(target.tbl, row.key), { target, key: row.key, keyCells, columns: [], values: null }]]
          })
          if (gone.length > 0) yield* remove(new Map(gone))
          after = rows.at(-1)?.key ?? null
          if (rows.length < SCAN_ROWS) break
        }
      }
    }
  })
