/** Writing pulled rows into the school's tables, in bulk; what a constraint refuses is told, never thrown. */
import * as Effect from "effect/Effect"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"
import type { Table } from "../model/table.ts"
import { type Cell, type Wire, wireToCell } from "../model/value.ts"

export interface Put {
  readonly table: Table
  readonly tbl: number
  readonly key: string
  readonly keyCells: ReadonlyArray<Cell>
  readonly row: Readonly<Record<string, Wire>>
}

export interface Refused {
  readonly put: Put
  readonly error: string
}

const upsertSql = (table: Table, columns: ReadonlyArray<string>): string => {
  const set = columns.filter((name) => !table.key.includes(name)).map((name) => `${ident(name)} = excluded.${ident(name)}`)
  return `INSERT INTO ${ident(table.local)} (${columns.map(ident).join(", ")}) VALUES (${columns.map(() => "?").join(", ")})
    ON CONFLICT (${table.key.map(ident).join(", ")}) DO ${set.length === 0 ? "NOTHING" : `UPDATE SET ${set.join(", ")}`}`
}

const deleteSql = (table: Table): string => `DELETE FROM ${ident(table.local)} WHERE ${table.key.map((name) => `${ident(name)} = ?`).join(" AND ")}`

export const deleteRows = (tx: Tx, table: Table, keys: ReadonlyArray<ReadonlyArray<Cell>>): Effect.Effect<void, LibsqlError> =>
  Effect.asVoid(tx.many(deleteSql(table), keys))

/** Groups by table and column list, so that each group is one prepared statement. */
const groupPuts = (puts: ReadonlyArray<Put>): ReadonlyArray<{ readonly table: Table; readonly columns: ReadonlyArray<string>; readonly puts: ReadonlyArray<Put> }> => {
  const groups = new Map<string, { table: Table; columns: ReadonlyArray<string>; puts: Array<Put> }>()
  for (const put of puts) {
    const columns = Object.keys(put.row)
    const id = `${put.table.name}\0${columns.join("\0")}`
    const group = groups.get(id)
    if (group === undefined) groups.set(id, { table: put.table, columns, puts: [put] })
    else group.puts.push(put)
  }
  return [...groups.values()]
}

const upsert = (tx: Tx, puts: ReadonlyArray<Put>): Effect.Effect<ReadonlyArray<Refused>, LibsqlError> =>
  Effect.gen(function* () {
    const refused: Array<Refused> = []
    for (const group of groupPuts(puts)) {
      const kinds = group.columns.map((name) => group.table.columns.find((column) => column.name === name)?.kind ?? "text")
      const failures = yield* tx.many(
        upsertSql(group.table, group.columns),
        group.puts.map((put) => group.columns.map((name, i) => wireToCell(kinds[i] ?? "text", put.row[name] ?? null))),
      )
      for (const failure of failures) refused.push({ put: group.puts[failure.index] as Put, error: failure.message })
    }
    return refused
  })

/**
 * Shows the rows. Unique values may move between rows of one cut in any order: what is refused at first is tried after the
 * rest, then together with its old versions out of the way. What is refused even then is returned.
 */
export const showRows = (tx: Tx, puts: ReadonlyArray<Put>): Effect.Effect<ReadonlyArray<Refused>, LibsqlError> =>
  Effect.gen(function* () {
    let refused = yield* upsert(tx, puts)
    if (refused.length === 0) return []
    refused = yield* upsert(tx, refused.map((r) => r.put))
    const hopeless: Array<Refused> = []
    while (refused.length > 0) {
      yield* tx.run("SAVEPOINT swap")
      for (const { put } of refused) yield* deleteRows(tx, put.table, [put.keyCells])
      const still = yield* upsert(tx, refused.map((r) => r.put))
      if (still.length > 0) yield* tx.run("ROLLBACK TO swap")
      yield* tx.run("RELEASE swap")
      if (still.length === 0) break
      hopeless.push(...still)
      const lost = new Set(still.map((r) => r.put))
      refused = refused.filter((r) => !lost.has(r.put))
      // With those out, the others may do without a swap.
      refused = yield* upsert(tx, refused.map((r) => r.put))
    }
    return hopeless
  })
