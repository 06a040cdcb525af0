/** Settled batches are kept as long as head office may have to be put back to an older state, and no longer. */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile } from "../libsql/client.ts"

export const KEEP_DAYS = 35
/** All kept batches together; beyond it the oldest settled ones go first. */
export const KEEP_BYTES = 512 * 1024 * 1024
const RUNS_KEPT = 10_000

export const trim = (file: LibsqlFile, now: number): Effect.Effect<void, LibsqlError> =>
  file.write((tx) =>
    Effect.gen(function* () {
      yield* tx.run("DELETE FROM schoolbus_batch WHERE settled_at IS NOT NULL AND settled_at < ?", [now - KEEP_DAYS * 86_400_000])
      yield* tx.run(
        `DELETE FROM schoolbus_batch WHERE settled_at IS NOT NULL AND number IN (
           SELECT number FROM (SELECT number, sum(length(bytes)) OVER (ORDER BY number DESC) AS kept FROM schoolbus_batch) WHERE kept > ?)`,
        [KEEP_BYTES],
      )
      yield* tx.run("DELETE FROM schoolbus_run WHERE id <= (SELECT max(id) FROM schoolbus_run) - ?", [RUNS_KEPT])
    }),
  )
