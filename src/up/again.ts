/**
 * Head office was put back to an older state: batches that it does not have any more count as pending again, as if their
 * verdicts had never come. Their bytes go out unchanged, and until then no pulled row is shown over what they changed.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import { bytesOf } from "../libsql/store-batch.ts"
import { decodeBatch } from "../link/frame.ts"
import type { Change } from "../model/change.ts"
import { localKey } from "../model/key.ts"
import type { Manifest, Table } from "../model/table.ts"
import { type Cell, isRefused, wireToCell } from "../model/value.ts"

/** A frozen change as `changes` held it while its batch was pending; null: its key has no form here. */
const rowOf = (table: Table, tbl: number, batch: number, change: Change): ReadonlyArray<Cell> | null => {
  try {
    const old = change.op === "insert" ? change.mine : change.base
    const cells = table.columns.map(({ name, kind }): Cell => {
      const wire = change.op === "insert" && !table.key.includes(name) ? null : (old[name] ?? null)
      return isRefused(wire) ? null : wireToCell(kind, wire)
    })
    const op = change.op === "insert" ? "I" : change.op === "delete" ? "D" : "U"
    const newKey = change.newKey === undefined ? null : localKey(table, change.newKey)
    return [BigInt(change.id), BigInt(tbl), op, localKey(table, change.key), newKey, BigInt(Math.round(change.at)), BigInt(batch), ...cells]
  } catch {
    return null
  }
}

const revive = (tx: Tx, manifest: Manifest, batch: { readonly number: number; readonly bytes: Uint8Array }) =>
  Effect.gen(function* () {
    const decoded = decodeBatch(new TextDecoder().decode(batch.bytes))
    if (!("ok" in decoded)) return
    const ids = new Map((yield* tx.all<{ id: number; name: string }>("SELECT id, name FROM schoolbus_tables")).map(({ id, name }) => [name, id]))
    for (const [name, changes] of Map.groupBy(decoded.ok.batch.changes, (change) => change.table)) {
      const table = manifest.tables.find((one) => one.name === name)
      const tbl = ids.get(name)
      if (table === undefined || tbl === undefined) continue
      const columns = table.columns.map((_, i) => `, v${i}`).join("")
      const rows = changes.flatMap((change) => {
        const row = rowOf(table, tbl, batch.number, change)
        return row === null ? [] : [row]
      })
      if (rows.length === 0) continue
      yield* tx.many(
        `INSERT INTO changes (id, tbl, op, key, new_key, at, batch${columns}) VALUES (?, ?, ?, ?, ?, ?, ?${", ?".repeat(table.columns.length)}) ON CONFLICT (id) DO NOTHING`,
        rows,
      )
    }
  })

/** Batches from this number on count as pending again; those whose bytes are gone cannot be. */
export const sendAgainFrom = (file: LibsqlFile, number: number): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const batches = yield* file.read((tx) =>
      tx.all<{ number: number }>(
        "SELECT number FROM schoolbus_batch WHERE number >= ? AND (answered_at IS NOT NULL OR settled_at IS NOT NULL) ORDER BY number",
        [number],
      ),
    )
    // Each in a transaction of its own: programs write in between. One that breaks off here is found again by `answered_at`.
    for (const batch of batches.toReversed()) {
      yield* file.write((tx) =>
        Effect.gen(function* () {
          const [state] = yield* tx.all<{ manifest: string | null }>("SELECT manifest FROM schoolbus_state")
          const [row] = yield* tx.all<{ pressed: Uint8Array }>("SELECT bytes AS pressed FROM schoolbus_batch WHERE number = ?", [batch.number])
          if (state?.manifest != null && row !== undefined) {
            yield* revive(tx, JSON.parse(state.manifest) as Manifest, { number: batch.number, bytes: bytesOf(row.pressed) })
          }
          yield* tx.run(
            "UPDATE schoolbus_batch SET answered_at = NULL, settled_at = NULL, settled_after = NULL, exceptions = NULL WHERE number = ?",
            [batch.number],
          )
        }),
      )
    }
  })
