/**
 * Keeps capture whole in a school: programs of the school may rebuild or alter its tables at any time. Triggers are put back
 * as soon as SQLite's schema_version moves; what they missed meanwhile is compared with head office before anything else goes on.
 */
import * as Effect from "effect/Effect"
import { reconcile } from "./reconcile.ts"
import { Libsql } from "../libsql/client.ts"
import { isSchemaMoved, readGaps } from "../libsql/gap.ts"
import { installTables, missingTriggers } from "../libsql/schema.ts"
import { type Identity, type Link, LinkDown } from "../link/client.ts"
import type { Manifest } from "../model/table.ts"

/** How often it is asked whether a program has altered the schema. */
export const SCHEMA_POLL_MS = 250

/** `isStart`: another version of this program, or other worker modules, may want other triggers. */
export const guardTriggers = (streams: ReadonlyArray<string>, isStart = false) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const isMoved = yield* isSchemaMoved(db)
    if (!isMoved && !isStart) return
    const [state] = yield* db.read((tx) => tx.all<{ manifest: string | null }>("SELECT manifest FROM schoolbus_state"))
    if (state?.manifest == null) return
    const manifest = JSON.parse(state.manifest) as Manifest
    if (!isMoved && (yield* db.read((tx) => missingTriggers(tx, manifest, streams))).length === 0) return
    const before = new Set((yield* db.read(readGaps)).map(({ tbl }) => tbl))
    yield* db.write((tx) => installTables(tx, manifest, { streams, adopt: false }))
    for (const gap of yield* db.read(readGaps)) {
      if (before.has(gap.tbl)) continue
      yield* Effect.logWarning(`table ${gap.name}: ${gap.reason}; its triggers are restored, and it will be compared with head office`)
    }
  })

/** Compares what programs have rebuilt or altered; true: head office is too far ahead for that, and pulling comes first. */
export const closeGaps = (link: Link, identity: Identity) =>
  Effect.gen(function* () {
    for (const { table, reason, up, down } of yield* reconcile(link, identity))
      yield* Effect.logWarning(`table ${table}: ${reason}; compared with head office: ${up} changes go up, ${down} rows come down again`)
    return false
  }).pipe(
    Effect.catchTag("NotComparable", (error) => Effect.fail(new LinkDown({ message: error.message }))),
    Effect.catchTag("LinkRefused", (error) => (error.code === "far_apart" ? Effect.succeed(true) : Effect.fail(error))),
  )
