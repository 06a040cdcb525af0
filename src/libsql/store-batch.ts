/** A batch as it enters the file, and what `changes` says of its writes afterwards. In the caller's transaction. */
import { Buffer } from "node:buffer"
import { createHash } from "node:crypto"
import { promisify } from "node:util"
import { constants, zstdCompress, zstdCompressSync, zstdDecompressSync } from "node:zlib"
import * as Effect from "effect/Effect"
import { type BatchHeader, encodeBatch } from "../model/batch.ts"
import type { Manifest } from "../model/table.ts"
import { OPEN } from "./changes.ts"
import type { LibsqlError, Tx } from "./client.ts"
import { contactsOf } from "./contact.ts"

const utf8 = new TextEncoder()

/** Lines of one kind: higher levels take longer and make them no smaller. */
const ZSTD = { params: { [constants.ZSTD_c_compressionLevel]: 1, [constants.ZSTD_c_checksumFlag]: 1 } }
/** Larger ones are compressed beside this thread. */
const MOST_SYNC_BYTES = 8 * 1024 * 1024
const compressAside = promisify(zstdCompress)

/** A batch's bytes, of what stands in the file. */
export const bytesOf = (pressed: Uint8Array): Uint8Array => zstdDecompressSync(pressed)

export interface StoredBatch {
  readonly number: number
  /** SHA-256 of the bytes, hex. */
  readonly hash: string
  readonly bytes: Uint8Array
  /** The bytes as they stand in the file and go out. */
  readonly pressed: Uint8Array
  readonly changes: number
  /** Changes by table. */
  readonly tables: Readonly<Record<string, number>>
}

interface NewBatch {
  readonly manifest: Manifest
  readonly now: number
  readonly changes: number
  readonly tables: Readonly<Record<string, number>>
  readonly lines: ReadonlyArray<Uint8Array>
  /** Of the captured writes in it. */
  readonly firstId: number
  readonly lastId: number
}

interface Settled {
  /** Rows that stand as R or U and were deletes. */
  readonly deletes: ReadonlyArray<number>
  /** Inserts that were updates, with the R that holds their old values. */
  readonly updates: ReadonlyArray<readonly [id: number, note: number]>
  readonly dropped: ReadonlyArray<number>
}

/** `changes` says afterwards what really happened: REPLACE's updates and deletes as such, and nothing of what changed nothing. */
export const settleOps = (tx: Tx, width: number, taken: Settled): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    if (taken.deletes.length > 0)
      yield* tx.run("UPDATE changes SET op = 'D' WHERE id IN (SELECT value FROM json_each(?))", [JSON.stringify(taken.deletes)])
    if (taken.updates.length > 0) {
      const columns = Array.from({ length: width }, (_, i) => `v${i}`).join(", ")
      yield* tx.run(
        `UPDATE changes SET op = 'U', (${columns}) = (SELECT ${columns.replaceAll("v", "n.v")} FROM changes n WHERE n.id = j.value ->> 1)
           FROM json_each(?) j WHERE changes.id = j.value ->> 0`,
        [JSON.stringify(taken.updates)],
      )
    }
    if (taken.dropped.length > 0) yield* tx.run("DELETE FROM changes WHERE id IN (SELECT value FROM json_each(?))", [JSON.stringify(taken.dropped)])
  })

/** Writes the batch; its number follows the last one of this incarnation. `marked`: writes that it carries. */
export const storeBatch = (
  tx: Tx,
  { manifest, now, changes, tables, lines, firstId, lastId }: NewBatch,
): Effect.Effect<{ readonly batch: StoredBatch; readonly marked: number }, LibsqlError> =>
  Effect.gen(function* () {
    const [state] = yield* tx.all<{ incarnation: string; origin: string | null; last_batch: number }>(
      "SELECT incarnation, origin, last_batch FROM schoolbus_state",
    )
    if (state === undefined) return yield* Effect.die(new Error("schoolbus_state has no row: the file has no incarnation yet"))
    const header: BatchHeader = {
      incarnation: state.incarnation,
      ...(state.origin === null ? {} : { origin: state.origin }),
      number: state.last_batch + 1,
      manifest: manifest.version,
      contacts: yield* contactsOf(tx, firstId, lastId),
      changes,
    }
    const bytes = Buffer.concat([utf8.encode(encodeBatch(header, [])), ...lines])
    const hash = createHash("sha256").update(bytes).digest("hex")
    const pressed = bytes.length > MOST_SYNC_BYTES ? yield* Effect.promise(() => compressAside(bytes, ZSTD)) : zstdCompressSync(bytes, ZSTD)
    // A copy that is handed over is there much sooner than bytes that the message copies.
    yield* tx.ahead("INSERT INTO schoolbus_batch (number, hash, bytes, changes, frozen_at) VALUES (?, ?, ?, ?, ?)", [
      header.number,
      hash,
      new Uint8Array(pressed),
      changes,
      now,
    ])
    const marked = yield* tx.run(`UPDATE changes SET batch = ? WHERE ${OPEN} AND id <= ?`, [header.number, lastId])
    yield* tx.run("UPDATE schoolbus_state SET last_batch = ?, frozen_to = ?", [header.number, lastId])
    return { batch: { number: header.number, hash, bytes, pressed, changes, tables }, marked }
  })

/** A statement that ends with OR FAIL leaves its rows but not their numbers behind in SQLite's sequence: no number is given out twice. */
export const useUp = (tx: Tx, lastId: number): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    yield* tx.run("UPDATE sqlite_sequence SET seq = ?1 WHERE name = 'changes' AND seq < ?1", [lastId])
    yield* tx.run(
      "INSERT INTO sqlite_sequence (name, seq) SELECT 'changes', ?1 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'changes')",
      [lastId],
    )
  })
