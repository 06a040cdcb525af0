/**
 * Closes gaps (libsql/gap.ts): a table whose writes went uncaptured for a while is compared with head office at the school's
 * own cut. What differs there was written in the gap, and becomes captured changes that stand before everything captured
 * since, with head office's row as their base.
 *
 *     known state of a row: what its newest frozen change made of it, else head office's row at the cut
 *     state after the gap:  old values of the row's first change captured since, else the row as it stands
 *
 * Of rows that head office changed after the cut the feed knows what the school holds (held.ts), so both sides' edits meet as
 * always. Where it does not, whether a program wrote to such a row in the gap, or it is merely older than head office's, cannot
 * be told; sent up as an edit it would undo head office's own under `school_wins`. Then head office's row stands, and what stood
 * here is kept: in schoolbus_replaced, and as a record of a conflict (up/doubt.ts). Of a table that is empty, or lost most of its rows, nothing is
 * taken for a delete: it is filled again. Tables that only go up are sent again whole, and what head office has already is no
 * change there; the hub does not know their rows, so a delete is told from the kept batches: a row that this file sent in the
 * last 35 days and that is gone without a captured delete.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { captureExisting } from "../libsql/capture.ts"
import { ident, Libsql, type LibsqlFile } from "../libsql/client.ts"
import { closeGap, type Gap, readGaps } from "../libsql/gap.ts"
import { nameOfKey, wireKeyOf } from "../libsql/prints.ts"
import { bytesOf } from "../libsql/store-batch.ts"
import type { Identity, Link } from "../link/client.ts"
import { decodeBatch } from "../link/frame.ts"
import { MAX_ROWS_ASKED, type Point } from "../link/protocol.ts"
import type { Exception } from "../model/change.ts"
import { namesToText, textToNames } from "../model/digest.ts"
import { localKey, localKeySql, parseLocalKey } from "../model/key.ts"
import type { Manifest } from "../model/table.ts"
import type { Wire } from "../model/value.ts"
import type { Target } from "./delivery.ts"
import { readTargets } from "./delivery.ts"
import { captureGap, CHUNK, keepReplaced, rowsOfKeys, tellDoubts, type Values } from "./unseen.ts"
import { bothSides, type CompareError, findDifferences, isWritable, keysOf, NotComparable, sendAgain } from "./verify.ts"

/** Fewer rows than this may be deleted in a gap whatever the table holds; more must leave it at least half full. */
const FEW_DELETES = 10

export interface Reconciled {
  readonly table: string
  readonly reason: string
  /** Changes that were found; rows that head office sends again. */
  readonly up: number
  readonly down: number
}

/** By local key what the newest frozen change made of the row; null = no row. `unsettled`: of batches without verdict only, else of all that are kept. */
const frozenStates = (file: LibsqlFile, { table, tbl }: Target, which: "unsettled" | "kept") =>
  Effect.gen(function* () {
    const unsettled = "settled_at IS NULL AND EXISTS (SELECT 1 FROM changes c WHERE c.batch = number AND c.tbl = ?)"
    const batches = yield* file.read((tx) =>
      tx.all<{ number: number }>(`SELECT number FROM schoolbus_batch WHERE ${which === "unsettled" ? unsettled : "? IS NOT NULL"} ORDER BY number`, [
        tbl,
      ]),
    )
    const states = new Map<string, Values | null>()
    for (const { number } of batches) {
      const [row] = yield* file.read((tx) =>
        tx.all<{ pressed: Uint8Array; exceptions: string | null }>("SELECT bytes AS pressed, exceptions FROM schoolbus_batch WHERE number = ?", [
          number,
        ]),
      )
      if (row === undefined) continue
      const decoded = decodeBatch(new TextDecoder().decode(bytesOf(row.pressed)))
      if (!("ok" in decoded)) continue
      const exceptions = JSON.parse(row.exceptions ?? "[]") as ReadonlyArray<Exception>
      // What did not stand as it was sent is head office's row, or nobody's: its absence here says nothing.
      const fallen = new Set(which === "kept" ? exceptions.flatMap(({ id, verdict }) => (verdict === "merged" ? [] : [id])) : [])
      for (const change of decoded.ok.batch.changes) {
        if (change.table !== table.name) continue
        if (fallen.has(change.id)) {
          for (const key of [change.key, change.newKey ?? change.key]) states.set(localKey(table, key), null)
          continue
        }
        states.set(localKey(table, change.key), change.op === "delete" ? null : { ...change.base, ...change.mine })
        if (change.newKey === undefined) continue
        states.set(localKey(table, change.newKey), { ...change.base, ...change.mine })
        states.set(localKey(table, change.key), null)
      }
    }
    return states
  })

/** Of a table that only goes up: rows that this file has sent, and that went without a captured delete. */
const goneUnseen = (file: LibsqlFile, target: Target) =>
  Effect.gen(function* () {
    const { table, tbl } = target
    const sent = [...(yield* frozenStates(file, target, "kept"))].filter(([key, state]) => state !== null && parseLocalKey(key) !== null)
    const gone = new Map<string, Values | null>()
    for (let i = 0; i < sent.length; i += CHUNK) {
      const some = sent.slice(i, i + CHUNK)
      const here = yield* file.read((tx) =>
        tx.all<{ key: string }>(
          `SELECT ${localKeySql(table, "t.")} AS key FROM ${ident(table.local)} t
            WHERE (${table.key.map((name) => `t.${ident(name)}`).join(", ")}) IN ${rowsOfKeys(some.map(([key]) => key))}
           UNION SELECT key FROM changes WHERE tbl = ?1 UNION SELECT new_key FROM changes WHERE tbl = ?1 AND new_key IS NOT NULL
           UNION SELECT key FROM schoolbus_hold WHERE tbl = ?1`,
          [tbl],
        ),
      )
      const keys = new Set(here.map(({ key }) => key))
      for (const [key, state] of some) if (!keys.has(key)) gone.set(key, state)
    }
    const [left] = yield* file.read((tx) => tx.all<{ n: number }>(`SELECT count(*) AS n FROM ${ident(table.local)}`))
    return isLossOf(gone.size, left?.n ?? 0) ? new Map<string, Values | null>() : gone
  })

/** So much went at once that it is a loss of the table, and nobody's wish. */
const isLossOf = (gone: number, left: number): boolean => left === 0 || (gone > FEW_DELETES && gone > left)

/** What the feed holds of rows as of the cut; null = no such row. `unknown`: theirs is the present state. */
const hubRows = (link: Link, identity: Identity, at: Point, { table }: Target, keys: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const rows = new Map<string, Values | null>()
    const unknown = new Set<string>()
    const names = table.columns.map(({ name }) => name)
    for (let left = keys; left.length > 0; ) {
      const { answer } = yield* link.compare.rows(identity, { at, names: {}, keys: { [table.name]: left.slice(0, MAX_ROWS_ASKED) } })
      const before = rows.size
      for (const [key, body] of Object.entries(answer.rows[table.name] ?? {})) {
        const values = body === null ? null : (JSON.parse(body) as ReadonlyArray<Wire>)
        rows.set(key, values === null ? null : Object.fromEntries(names.map((name, i) => [name, values[i] ?? null])))
      }
      for (const key of answer.unknown[table.name] ?? []) unknown.add(key)
      if (rows.size === before) return yield* new NotComparable({ message: "the hub does not answer for the rows of a gap" })
      left = left.filter((key) => !rows.has(key))
    }
    return { rows, unknown }
  })

const keysOfNames = (link: Link, identity: Identity, at: Point, { table }: Target, names: ReadonlySet<string>) =>
  names.size === 0
    ? Effect.succeed<ReadonlyArray<string>>([])
    : Effect.map(
        link.compare.rows(identity, { at, names: { [table.name]: namesToText(names) }, keys: {} }),
        ({ answer }) => answer.keys[table.name] ?? [],
      )

/** Rows that wait for a person, or could not be applied: they are not as head office has them, and rightly so. */
const heldKeys = (file: LibsqlFile, tbl: number) =>
  Effect.map(
    file.read((tx) =>
      tx.all<{ key: string }>("SELECT key FROM schoolbus_hold WHERE tbl = ?1 UNION SELECT key FROM schoolbus_behind WHERE tbl = ?1", [tbl]),
    ),
    (rows) => new Set(rows.map(({ key }) => key)),
  )

/** Rows that may be older than the cursor: what differs comes again, and only rows that head office does not have are the school's. */
const takeAnew = (
  link: Link,
  identity: Identity,
  gap: Gap,
  target: Target,
  at: Point,
  { missing, extra, differing }: Pick<Effect.Success<ReturnType<typeof findDifferences>>["found"][number], "missing" | "extra" | "differing">,
) =>
  Effect.gen(function* () {
    const file = yield* Libsql
    const { table, tbl } = target
    const localsOf = (wires: ReadonlyArray<string>) => wires.map((wire) => localKey(table, JSON.parse(wire) as ReadonlyArray<Wire>))
    const waiting = yield* file.read((tx) =>
      tx.all<{ key: string }>(
        `SELECT key FROM changes WHERE tbl = ?1 UNION SELECT new_key FROM changes WHERE tbl = ?1 AND new_key IS NOT NULL
         UNION SELECT key FROM schoolbus_hold WHERE tbl = ?1 UNION SELECT key FROM schoolbus_behind WHERE tbl = ?1`,
        [tbl],
      ),
    )
    const isWaiting = new Set(waiting.map(({ key }) => key))
    const made = localsOf(yield* keysOf(target, extra)).filter((key) => !isWaiting.has(key))
    const up = yield* captureGap(file, gap, target, new Map(made.map((key) => [key, null])), false)
    yield* keepReplaced(file, target, localsOf(yield* keysOf(target, differing)), gap.firstId, yield* Clock.currentTimeMillis)
    const sent = yield* sendAgain(link, identity, at, [{ table: table.name, names: new Set([...missing, ...differing]), keys: [] }])
    return { up, down: sent.rows }
  })

const reconcileTable = (link: Link, identity: Identity, gap: Gap, target: Target, isNew: boolean) =>
  Effect.gen(function* () {
    const file = yield* Libsql
    const { table, tbl } = target
    if (table.direction === "up") {
      const deletes = isNew || gap.anew === 1 ? 0 : yield* captureGap(file, gap, target, yield* goneUnseen(file, target), true)
      const up = yield* file.write((tx) =>
        tx.run(
          `${captureExisting(table, tbl)} WHERE ${localKeySql(table, "")} NOT IN (SELECT key FROM changes WHERE tbl = ${tbl}
             UNION SELECT new_key FROM changes WHERE tbl = ${tbl} AND new_key IS NOT NULL UNION SELECT key FROM schoolbus_hold WHERE tbl = ${tbl})`,
        ),
      )
      return { up: up + deletes, down: 0 }
    }
    const sides = yield* bothSides(link, identity, new Set([table.name]))
    if (sides === null) return yield* new NotComparable({ message: "a table with a gap cannot be compared now" })
    // Its rows come when they have been read; what differs until then says nothing of programs here.
    if (sides.hub.settling.includes(table.name))
      return yield* new NotComparable({ message: `the hub is reading ${table.name} again; what programs wrote there is compared when it has` })
    const { found } = yield* findDifferences(link, identity, sides)
    const [difference] = found
    if (difference === undefined) return { up: 0, down: 0 }
    const { missing, extra, differing } = difference
    const { at } = sides.hub
    if (!isWritable(target)) {
      const keys = yield* keysOf(target, extra)
      const sent = yield* sendAgain(link, identity, at, [{ table: table.name, names: new Set([...missing, ...differing]), keys }])
      return { up: 0, down: sent.rows }
    }
    if (gap.anew === 1) return yield* takeAnew(link, identity, gap, target, at, difference)
    const localOf = (wire: string): string => localKey(table, JSON.parse(wire) as ReadonlyArray<Wire>)
    const held = yield* heldKeys(file, tbl)
    const frozen = yield* frozenStates(file, target, "unsettled")
    const newer = textToNames(sides.hub.tables[table.name]?.newer ?? "")
    const since = yield* file.read((tx) =>
      tx.all<{ key: string }>(
        `SELECT key FROM changes WHERE tbl = ?1 AND batch IS NULL AND id >= ?2 UNION SELECT new_key FROM changes WHERE tbl = ?1 AND batch IS NULL AND id >= ?2 AND new_key IS NOT NULL`,
        [tbl, gap.firstId],
      ),
    )
    const wires = new Map<string, string>()
    const note = (local: string, wire: string | null) => {
      if (wire !== null && parseLocalKey(local) !== null) wires.set(local, wire)
    }
    const gone = yield* keysOfNames(link, identity, at, target, missing)
    const changed = yield* keysOfNames(link, identity, at, target, newer)
    for (const wire of [...(yield* keysOf(target, new Set([...extra, ...differing]))), ...gone, ...changed]) note(localOf(wire), wire)
    for (const { key } of since) note(key, wireKeyOf(table, key))
    for (const key of frozen.keys()) note(key, wireKeyOf(table, key))

    const asked = [...wires].flatMap(([local, wire]) => (frozen.has(local) || held.has(local) ? [] : [wire]))
    const theirs = yield* hubRows(link, identity, at, target, asked)
    const known = new Map<string, Values | null>()
    const unknown = new Map<string, Values | null>()
    for (const [local, wire] of wires) {
      if (held.has(local)) continue
      const frozenState = frozen.get(local)
      const row = theirs.rows.get(wire) ?? null
      if (frozenState !== undefined) known.set(local, frozenState)
      else if (sides.hub.known ? theirs.unknown.has(wire) : !extra.has(nameOfKey(wire))) unknown.set(local, row)
      else known.set(local, row)
    }
    const now = yield* Clock.currentTimeMillis
    yield* keepReplaced(file, target, [...unknown.keys()], gap.firstId, now)
    const here = new Set(yield* keysOf(target, newer))
    const goneChanged = changed.filter((wire) => !here.has(wire) && (known.get(localOf(wire)) ?? unknown.get(localOf(wire)) ?? null) !== null)
    const [left] = yield* file.read((tx) => tx.all<{ n: number }>(`SELECT count(*) AS n FROM ${ident(table.local)}`))
    const isLoss = isLossOf(gone.length + goneChanged.length, left?.n ?? 0)
    const up = yield* captureGap(file, gap, target, known, !isLoss)
    yield* tellDoubts(file, gap, target, unknown, !isLoss)
    const refill = new Set([...(isLoss ? [...missing, ...newer] : []), ...(gap.lost.length > 0 ? differing : [])])
    const sent = yield* sendAgain(link, identity, at, refill.size === 0 ? [] : [{ table: table.name, names: refill, keys: [] }])
    return { up, down: sent.rows }
  })

/** Closes every open gap, one after the other; a table that is no longer synced has none. */
export const reconcile = (link: Link, identity: Identity): Effect.Effect<ReadonlyArray<Reconciled>, CompareError, Libsql> =>
  Effect.gen(function* () {
    const file = yield* Libsql
    const { gaps, targets, isNew } = yield* file.read((tx) =>
      Effect.gen(function* () {
        const [state] = yield* tx.all<{ manifest: string | null; seq: number }>("SELECT manifest, seq FROM schoolbus_state")
        const manifest: Manifest | null = state?.manifest == null ? null : (JSON.parse(state.manifest) as Manifest)
        const read = yield* readGaps(tx)
        return { gaps: read, targets: manifest === null ? null : (yield* readTargets(tx, manifest)).byTbl, isNew: (state?.seq ?? 0) === 0 }
      }),
    )
    const done: Array<Reconciled> = []
    for (const gap of gaps) {
      const target = targets?.get(gap.tbl)
      // Before the first copy head office has nothing here to compare with: what stands in the table was made here.
      const { up, down } =
        target === undefined
          ? { up: 0, down: 0 }
          : isNew && target.table.direction !== "up"
            ? yield* reconcileTable(link, identity, gap, { ...target, table: { ...target.table, direction: "up" } }, isNew)
            : yield* reconcileTable(link, identity, gap, target, isNew)
      yield* file.write((tx) => closeGap(tx, gap.tbl))
      done.push({ table: gap.name, reason: gap.reason, up, down })
    }
    return done
  })
