/**
 * Rows of a school of which the feed may not have heard: what it wrote while a table was not taken from the stream. Head office's own
 * rows are right again once the table was compared; but a school shows what it wrote itself, and where head office wrote back what stood
 * there, or deleted what the school had made, the comparison finds no difference. So the school asks for its own rows once more.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import { bytesOf } from "../libsql/store-batch.ts"
import { decodeBatch } from "../link/frame.ts"
import type { Point } from "../link/protocol.ts"
import { type Manifest, missedSince, type Table } from "../model/table.ts"
import { ident } from "../libsql/client.ts"
import { wireKeyOf } from "../libsql/prints.ts"
import { localKeySql } from "../model/key.ts"
import { CONFLICTS, QUARANTINE } from "./delivery.ts"

/** Keys that are asked for at once. */
const ASKED = 5_000

/** By table name wire keys of its rows: they shall come down once more, or be taken away where head office has them no more. */
export type AskAgain<E> = (at: Point, keys: Record<string, Array<string>>) => Effect.Effect<unknown, E>

/** Batches of which it is not certain that the feed had their rows by seq `?1`: not settled yet, or by the cut that led beyond it, or later. */
const BATCHES = `SELECT number FROM schoolbus_batch WHERE settled_after IS NULL
    OR settled_after >= coalesce((SELECT max(settled_after) FROM schoolbus_batch WHERE settled_after <= ?1), 0) ORDER BY number`

/** Keys of rows whose values were held until somebody decided. */
const recordKeys = (tx: Tx, tables: ReadonlyArray<Table>, name: string) =>
  Effect.map(
    tx.all<{ tbl: string; key: string }>(
      `SELECT table_name AS tbl, row_key AS key FROM ${name.replace(".", "_")} WHERE table_name IN (SELECT value FROM json_each(?))`,
      [JSON.stringify(tables.map((table) => table.name))],
    ),
    (rows) => rows.map(({ tbl, key }) => [tbl, key] as const),
  )

/** Local keys of a table's rows after one of them, in their order; of a table that a program dropped there are none. */
const rowKeys = (file: LibsqlFile, table: Table, after: string | null): Effect.Effect<ReadonlyArray<string>, LibsqlError> => {
  const columns = table.key.map(ident).join(", ")
  const beyond = after === null ? "" : `WHERE (${columns}) > (${after})`
  const page = `SELECT ${localKeySql(table, "")} AS key FROM ${ident(table.local)} ${beyond} ORDER BY ${columns} LIMIT ${ASKED}`
  return file
    .read((tx) => Effect.map(tx.all<{ key: string }>(page), (rows) => rows.map(({ key }) => key)))
    .pipe(Effect.catch((error) => (error.code === "SQLITE_ERROR" ? Effect.succeed([]) : Effect.fail(error))))
}

/** Asks for what the manifest makes the school ask for; it is taken over afterwards, so what breaks off is asked again. */
export const hearMissed = <E>(file: LibsqlFile, now: Manifest, ask: AskAgain<E>): Effect.Effect<void, E | LibsqlError> =>
  Effect.gen(function* () {
    const [state] = yield* file.read((tx) =>
      tx.all<{ manifest: string | null; epoch: string; seq: number; cut: string }>("SELECT manifest, epoch, seq, cut FROM schoolbus_state"),
    )
    if (state?.manifest == null) return
    const before = new Map((JSON.parse(state.manifest) as Manifest).tables.map((table) => [table.name, table]))
    const since = new Map(
      now.tables.flatMap((table) => {
        const known = before.get(table.name)
        const from = known === undefined || table.direction === "up" ? null : missedSince(known, table)
        return from === null ? [] : [[table, from] as const]
      }),
    )
    const { epoch, seq, cut } = state
    for (const table of now.tables) {
      if (table.direction === "up" || before.get(table.name)?.direction !== "up") continue
      for (let after: string | null | undefined = null; after !== undefined; ) {
        const locals: ReadonlyArray<string> = yield* rowKeys(file, table, after)
        const keys = locals.flatMap((local) => wireKeyOf(table, local) ?? [])
        if (keys.length > 0) yield* ask({ epoch, seq, cut }, { [table.name]: keys })
        after = locals.length < ASKED ? undefined : locals.at(-1)
      }
    }
    if (since.size === 0) return
    const records = yield* file.read((tx) => Effect.all([CONFLICTS, QUARANTINE].map((name) => recordKeys(tx, [...since.keys()], name))))
    for (const [{ name }, from] of since) {
      const keys = new Set(records.flat().flatMap(([table, key]) => (table === name ? [key] : [])))
      for (const { number } of yield* file.read((tx) => tx.all<{ number: number }>(BATCHES, [from]))) {
        const [batch] = yield* file.read((tx) => tx.all<{ bytes: Uint8Array }>("SELECT bytes FROM schoolbus_batch WHERE number = ?", [number]))
        const decoded = batch === undefined ? null : decodeBatch(new TextDecoder().decode(bytesOf(batch.bytes)))
        if (decoded === null || !("ok" in decoded)) continue
        for (const { table, key, newKey } of decoded.ok.batch.changes) {
          if (table !== name) continue
          keys.add(JSON.stringify(key))
          if (newKey !== undefined) keys.add(JSON.stringify(newKey))
        }
      }
      const all = [...keys]
      for (let i = 0; i < all.length; i += ASKED) yield* ask({ epoch, seq, cut }, { [name]: all.slice(i, i + ASKED) })
    }
  })
