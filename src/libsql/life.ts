/**
 * A new life for a school's file: what mends a file that was copied or put back from a backup. Nothing that a program wrote is
 * given up: writes without a verdict go up again under the new name, with that of the first life, by which the hub finds those that it
 * has from another copy already; everything of head office is fetched anew.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "./client.ts"

export const newLife = (tx: Tx, incarnation: string): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    yield* tx.run("UPDATE changes SET batch = NULL WHERE batch > 0")
    yield* tx.run("DELETE FROM schoolbus_batch")
    yield* tx.run("DELETE FROM schoolbus_stage")
    yield* tx.run("DELETE FROM schoolbus_staged")
    yield* tx.run(
      `UPDATE schoolbus_state SET origin = coalesce(origin, incarnation), incarnation = ?, token = '', epoch = '', seq = 0, cut = '0', last_batch = 0, frozen_to = 0, applying = NULL, cluster = NULL, stop = NULL,
        terminals = 2 * min(terminals, 1)`,
      [incarnation],
    )
  })
