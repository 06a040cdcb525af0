/**
 * When the hub was heard, by both clocks, and which writes had been captured by then. A capture time is only as good as the
 * school's clock; that a write was captured after one contact and before another is certain, whatever the clock says.
 */
import * as Effect from "effect/Effect"
import type { Contact } from "../model/batch.ts"
import { OPEN } from "./changes.ts"
import type { LibsqlError, Tx } from "./client.ts"

/** Contacts that one batch carries; of more, some in between are left out, which only widens what is certain. */
export const CONTACTS_OF_BATCH = 50

/** `own`, `server`: ms since 1970 by either clock, measured before this transaction began. */
export const noteContact = (tx: Tx, own: number, server: number): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    yield* tx.run(
      `INSERT INTO schoolbus_contact (change, own, server) VALUES (coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0), ?, ?)
       ON CONFLICT (change) DO UPDATE SET own = excluded.own, server = excluded.server`,
      [Math.round(own), Math.round(server)],
    )
    // Of those before the oldest open write only the last says something.
    yield* tx.run(
      `DELETE FROM schoolbus_contact WHERE change < (SELECT max(change) FROM schoolbus_contact
         WHERE change < coalesce((SELECT min(id) FROM changes WHERE ${OPEN}), 9223372036854775807))`,
    )
  })

/** How far this computer's clock was ahead of head office's at the last contact, ms; null = none yet. */
export const clockAhead = (tx: Tx): Effect.Effect<number | null, LibsqlError> =>
  Effect.map(tx.all<{ ms: number }>("SELECT own - server AS ms FROM schoolbus_contact ORDER BY change DESC LIMIT 1"), ([last]) => last?.ms ?? null)

/** The last contact before the writes `first` … `last`, and those between them, in order. */
export const contactsOf = (tx: Tx, first: number, last: number): Effect.Effect<ReadonlyArray<Contact>, LibsqlError> =>
  Effect.map(
    tx.all<{ change: number; own: number; server: number }>(
      `SELECT change, own, server FROM schoolbus_contact
        WHERE change >= coalesce((SELECT max(change) FROM schoolbus_contact WHERE change < ?1), 0) AND change < ?2 ORDER BY change`,
      [first, last],
    ),
    (rows) => {
      const step = Math.ceil(rows.length / CONTACTS_OF_BATCH)
      return rows.filter((_, i) => i % step === 0 || i === rows.length - 1).map(({ change, own, server }) => [change, own, server])
    },
  )
