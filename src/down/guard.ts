/**
 * Keeps capture whole in a school: programs of the school may rebuild or alter its tables at any time. Triggers are put back
 * as soon as SQLite's schema_version moves; what they missed meanwhile is compared with head office before anything else goes on.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { reconcile } from "./reconcile.ts"
import { Deliver } from "./deliver.ts"
import { countRefused } from "./refused.ts"
import { ident, Libsql, type Tx } from "../libsql/client.ts"
import { isSchemaMoved, readGaps } from "../libsql/gap.ts"
import { HAS_ROWS, type InstallOptions, installTables, missingTriggers } from "../libsql/schema.ts"
import { isStillShared, noteUnenforced, readUnenforced, type Unenforced, unenforcedText } from "../libsql/unenforced.ts"
import { readUnfit } from "../libsql/unfit.ts"
import { LinkDown } from "../link/answer.ts"
import type { Identity, Link } from "../link/client.ts"
import type { Manifest } from "../model/table.ts"

/** How often it is asked whether a program has altered the schema. */
export const SCHEMA_POLL_MS = 250

/** A program's table of a synced name no longer has rows, which moves no schema version. */
const isEmptied = (tx: Tx, manifest: Manifest) =>
  Effect.gen(function* () {
    for (const { name, reason } of (yield* readUnfit(tx)).filter(({ taken }) => taken === 1)) {
      const local = manifest.tables.find((table) => table.name === name)?.local
      if (local === undefined || reason !== HAS_ROWS) continue
      if ((yield* tx.all(`SELECT 1 FROM ${ident(local)} LIMIT 1`)).length === 0) return true
    }
    return false
  })

/** Counts anew where the rows that were named differ by now; true: one of the constraints is kept by every row. */
const keptByNow = (shared: ReadonlyArray<Unenforced>, manifest: Manifest, now: number) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    for (const one of shared) {
      const table = manifest.tables.find(({ name }) => name === one.name)
      if (table === undefined || (yield* db.read((tx) => isStillShared(tx, one, table.key)))) continue
      if ((yield* db.write((tx) => noteUnenforced(tx, one.tbl, table, one.columns, now))) === 0) return true
    }
    return false
  })

/** `isStart`: another version of this program, or other worker modules, may want other triggers; or a person adopts tables. */
export const guardTriggers = ({ streams, adopt }: InstallOptions, isStart = false) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const isMoved = yield* isSchemaMoved(db)
    const unfit = new Map((yield* db.read(readUnfit)).map((one) => [one.name, one]))
    const now = yield* Clock.currentTimeMillis
    const shared = yield* db.read(readUnenforced)
    if (!isMoved && !isStart && unfit.size === 0 && shared.length === 0) return
    const [state] = yield* db.read((tx) => tx.all<{ manifest: string | null }>("SELECT manifest FROM schoolbus_state"))
    if (state?.manifest == null) return
    const manifest = JSON.parse(state.manifest) as Manifest
    const isAdopted = isStart && adopt && unfit.size > 0
    const isWanted = isMoved || isAdopted || (isStart && (yield* db.read((tx) => missingTriggers(tx, manifest, streams))).length > 0)
    const isKept = yield* keptByNow(shared, manifest, now)
    if (!isWanted && !isKept && !(yield* db.read((tx) => isEmptied(tx, manifest)))) return
    const before = new Set((yield* db.read(readGaps)).map(({ tbl }) => tbl))
    const known = new Set((yield* db.read(readUnenforced)).map(({ name, columns }) => `${name} ${columns.join()}`))
    yield* db.write((tx) => installTables(tx, manifest, { streams, adopt }))
    for (const one of yield* db.read(readUnenforced))
      if (!known.has(`${one.name} ${one.columns.join()}`)) yield* Effect.logWarning(`table ${one.name}: ${unenforcedText(one)}`)
    for (const { name, reason, remedy } of yield* db.read(readUnfit)) {
      if (unfit.get(name)?.reason === reason) continue
      yield* Effect.logError(`table ${name}: ${reason}; it is paused, the others go on. ${remedy}`)
    }
    for (const gap of yield* db.read(readGaps)) {
      if (before.has(gap.tbl)) continue
      yield* Effect.logWarning(`table ${gap.name}: ${gap.reason}; its triggers are restored, and it will be compared with head office`)
    }
    // What kept rows of head office out may be what has changed.
    if (isMoved && (yield* db.read((tx) => countRefused(tx, 1))) > 0) yield* (yield* Deliver).retryAll
  })

/** Compares what programs have rebuilt or altered; true: head office is too far ahead for that, and pulling comes first. */
export const closeGaps = (link: Link, identity: Identity) =>
  Effect.gen(function* () {
    const reconciled = yield* reconcile(link, identity)
    for (const { table, reason, up, down } of reconciled)
      yield* Effect.logWarning(`table ${table}: ${reason}; compared with head office: ${up} changes go up, ${down} rows come down again`)
    // What waited behind for a table that did not fit.
    if (reconciled.length > 0) yield* (yield* Deliver).retryAll
    return false
  }).pipe(
    Effect.catchTag("NotComparable", (error) => Effect.fail(new LinkDown({ message: error.message }))),
    Effect.catchTag("LinkRefused", (error) => (error.code === "far_apart" ? Effect.succeed(true) : Effect.fail(error))),
  )
