/**
 * Rows of a school of which the feed may not have heard: what it wrote while a table was not taken from the stream. Head office's own
 * rows are right again once the table was compared; but a school shows what it wrote itself, and where head office wrote back what stood
 * there, or deleted what the school had made, the comparison finds no difference. So the school asks for its own rows once more.
 */
import * as Effect from "effect/Effect"
import { ident, type LibsqlError, type LibsqlFile, type Tx } from "../libsql/client.ts"
import { wireKeyOf } from "../libsql/prints.ts"
import { bytesOf } from "../libsql/store-batch.ts"
import { decodeBatch } from "../link/frame.ts"
import type { Point } from "../link/protocol.ts"
import { localKeySql } from "../model/key.ts"
import { type Manifest, missedSince, type Table } from "../model/table.ts"
import { CONFLICTS, QUARANTINE } from "./delivery.ts"

/** Keys that are asked for at once. */
const ASKED = 5_000

/** By table name wire keys of its rows: they shall come down once more, or be taken away where head office has them no more. */
export type AskAgain<E> = (at: Point, keys: Record<string, Array<string>>) => Effect.Effect<unknown, E>

/** Batches of which it is not certain that the feed had their rows by seq `?1`: not settled yet, or by the cut that led beyond it, or later. */
const BATCHES = `SELECT number FROM schoolbus_batch WHERE settled_after IS NULL
    OR settled_after >= coalesce((SELECT max(settled_after) FROM schoolbus_batch WHERE settled_after <= ?1), 0) ORDER BY number`

/** Keys of rows whose values were held until somebody decided. */
const recordKeys = (tx: Tx, { name }: Table) =>
  tx.all<{ key: string }>(
    [CONFLICTS, QUARANTINE].map((records) => `SELECT row_key AS key FROM ${records.replace(".", "_")} WHERE table_name = ?1`).join(" UNION "),
    [name],
  )

/** Wire keys of rows that the school wrote, and of which the feed may not have heard since a seq. */
const keysSince = (file: LibsqlFile, table: Table, from: number): Effect.Effect<ReadonlyArray<string>, LibsqlError> =>
  Effect.gen(function* () {
    const keys = new Set((yield* file.read((tx) => recordKeys(tx, table))).map(({ key }) => key))
    for (const { number } of yield* file.read((tx) => tx.all<{ number: number }>(BATCHES, [from]))) {
      const [batch] = yield* file.read((tx) => tx.all<{ bytes: Uint8Array }>("SELECT bytes FROM schoolbus_batch WHERE number = ?", [number]))
      const decoded = batch === undefined ? null : decodeBatch(new TextDecoder().decode(bytesOf(batch.bytes)))
      if (decoded === null || !("ok" in decoded)) continue
      for (const { table: name, key, newKey } of decoded.ok.batch.changes) {
        if (name !== table.name) continue
        keys.add(JSON.stringify(key))
        if (newKey !== undefined) keys.add(JSON.stringify(newKey))
      }
    }
    return [...keys]
  })

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
    const { epoch, seq, cut } = state
    const askFor = ({ name }: Table, keys: ReadonlyArray<string>) =>
      keys.length === 0 ? Effect.void : ask({ epoch, seq, cut }, { [name]: [...keys] })
    const before = new Map((JSON.parse(state.manifest) as Manifest).tables.map((table) => [table.name, table]))
    for (const table of now.tables) {
      const known = before.get(table.name)
      if (known === undefined || table.direction === "up") continue
      // While its rows only went up nothing was heard of any, nor of what the school deleted and may yet show again.
      for (let after: string | null | undefined = known.direction === "up" ? null : undefined; after !== undefined; ) {
        const locals: ReadonlyArray<string> = yield* rowKeys(file, table, after)
        yield* askFor(
          table,
          locals.flatMap((local) => wireKeyOf(table, local) ?? []),
        )
        after = locals.length < ASKED ? undefined : locals.at(-1)
      }
      const from = known.direction === "up" ? 0 : missedSince(known, table)
      const keys = from === null ? [] : yield* keysSince(file, table, from)
      for (let i = 0; i < keys.length; i += ASKED) yield* askFor(table, keys.slice(i, i + ASKED))
    }
  })
