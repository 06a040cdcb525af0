/**
 * The school's end of a comparison (hub's end: compare.ts). One snapshot of the file is printed while the hub prints what
 * the school should hold at the same cut; buckets that differ are looked into, and only rows that differ are named.
 *
 *     snapshot: cursor, shielded keys, prints ─┬─> digests differ? ─> prints of those buckets ─> rows ─> repair
 *     hub: digests as of that cut ─────────────┘
 *
 * Nothing is repaired by a direct write: what the school could have written becomes a captured change and gets a verdict,
 * everything else is sent again through the feed. `takeUp` uses the same comparison when the hub does not know the
 * school's cut: only differences come down, and the cursor goes to the cut that was compared with.
 */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { captureExisting } from "../libsql/capture.ts"
import { ident, Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import { tearUnfit } from "../libsql/unfit.ts"
import { nameOfKey, printSql, wireKeyOf } from "../libsql/prints.ts"
import { type LinkError, LinkRefused } from "../link/answer.ts"
import type { Identity, Link } from "../link/client.ts"
import { type CompareDigests, MAX_COMPARED, MAX_SKIPPED, type Point } from "../link/protocol.ts"
import { compare, differingBuckets, digestsOf, namesToText, ofBuckets, rowsOf, textToNames, textToWords, without } from "../model/digest.ts"
import { localKey } from "../model/key.ts"
import type { Manifest } from "../model/table.ts"
import type { Wire } from "../model/value.ts"
import { Deliver } from "./deliver.ts"
import { LEDGER, readTargets, type Target } from "./delivery.ts"

/** Keys of a table that the report names. */
const EXAMPLES = 20
/** Keys of one statement, and of one write transaction. */
const CAPTURE_KEYS = 200
/** Of more differences, everything is sent anew. */
const MAX_DIFFERENCES = 200_000

/** `down`: only what head office alone writes is repaired. */
export type Repair = "none" | "down" | "all"

export interface TableReport {
  /** `"public.students"` */
  readonly table: string
  /** Rows that were compared here. */
  readonly rows: number
  /** Rows that only head office has, only the school has, or both with different values. */
  readonly missing: number
  readonly extra: number
  readonly differing: number
  /** Rows left out: with pending, held or waiting values here, changed at head office meanwhile, or of a table that the hub is reading again. */
  readonly skipped: number
  /** Wire keys of some extra and differing rows. */
  readonly keys: ReadonlyArray<string>
}

export interface VerifyReport {
  /** ms since 1970. */
  readonly startedAt: number
  readonly tookMs: number
  readonly at: Point
  /** Both directions, as they stood in the bodies. */
  readonly bytes: number
  readonly differences: number
  readonly tables: ReadonlyArray<TableReport>
  /** Rows that became changes and wait for their verdict; rows that head office sends again. */
  readonly repaired: { readonly up: number; readonly down: number }
}

/** The two cannot be compared now; the message says why and when they can. */
export class NotComparable extends Data.TaggedError("NotComparable")<{ readonly message: string }> {}

interface State {
  readonly incarnation: string
  readonly epoch: string
  readonly seq: number
  readonly cut: string
  readonly manifest: string | null
  readonly applying: string | null
  /** The newest batch that has its verdicts; 0 = none. */
  readonly batch: number
}

const readState = (tx: Tx) =>
  Effect.map(
    tx.all<State>(
      `SELECT incarnation, epoch, seq, cut, manifest, applying,
              (SELECT coalesce(max(number), 0) FROM schoolbus_batch WHERE answered_at IS NOT NULL OR settled_at IS NOT NULL) AS batch
         FROM schoolbus_state`,
    ),
    ([row]) => row as State,
  )

const SHIELDED = `SELECT tbl, key FROM changes UNION SELECT tbl, new_key FROM changes WHERE new_key IS NOT NULL
  UNION SELECT tbl, key FROM schoolbus_behind UNION SELECT tbl, key FROM schoolbus_hold`

/** Wire keys of rows that are not as head office has them, and rightly so; by table name. null: too many. */
const shieldedKeys = (tx: Tx, targets: ReadonlyArray<Target>) =>
  Effect.gen(function* () {
    const byTbl = new Map(targets.map((target) => [target.tbl, target]))
    const rows = yield* tx.all<{ tbl: number; key: string }>(`SELECT tbl, key FROM (${SHIELDED}) LIMIT ${MAX_SKIPPED + 1}`)
    if (rows.length > MAX_SKIPPED) return null
    const keys = new Map<string, Array<string>>()
    for (const { tbl, key } of rows) {
      const table = byTbl.get(tbl)?.table
      const wire = table === undefined ? null : wireKeyOf(table, key)
      if (table === undefined || wire === null) continue
      keys.set(table.name, [...(keys.get(table.name) ?? []), wire])
    }
    return keys
  })

const isCompared = ({ table }: Target): boolean => table.direction !== "up" && table.name !== LEDGER
export const isWritable = ({ table }: Target): boolean => table.direction === "both" && !table.system

/** A table or a column that a program dropped: nothing is there. */
const isGone = ({ code, message }: LibsqlError): boolean => code === "SQLITE_ERROR" && message.includes("no such ")

/** A table that a program dropped has no rows. */
const printsOf = (tx: Tx, { table, tbl }: Target, wanted: ReadonlySet<string> = new Set()) =>
  tx.prints({ sql: printSql(table, tbl), args: [], renumber: [], wanted: new Map([[tbl, wanted]]) }).pipe(
    Effect.map(({ byTable, keys }) => ({ prints: byTable.get(tbl) ?? new Uint32Array(), keys: keys.map(([, key]) => key) })),
    Effect.catch((error) => (isGone(error) ? Effect.succeed({ prints: new Uint32Array(), keys: [] }) : Effect.fail(error))),
  )

/** `only`: these tables, and nothing of them left out. What this side holds, and the hub's digests of the same cut. null: more rows are shielded than a comparison may leave out. */
export const bothSides = (link: Link, identity: Identity, only?: ReadonlySet<string>) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const side = yield* db.readApart((tx) =>
      Effect.gen(function* () {
        const state = yield* readState(tx)
        if (state.manifest === null || state.seq === 0)
          return yield* new NotComparable({ message: "the first copy is not complete yet; compare when it is" })
        if (state.applying !== null) return yield* new NotComparable({ message: "a long cut is being applied; compare when it is complete" })
        const manifest = JSON.parse(state.manifest) as Manifest
        const targets = [...(yield* readTargets(tx, manifest)).byName.values()].filter(
          (target) => isCompared(target) && target.unfit === null && only?.has(target.table.name) !== false,
        )
        const shielded = only === undefined ? yield* shieldedKeys(tx, targets) : new Map<string, Array<string>>()
        if (shielded === null) return null
        const at: Point = { epoch: state.epoch, seq: state.seq, cut: state.cut }
        const skip = Object.fromEntries([...shielded].map(([name, keys]) => [name, namesToText(new Set(keys.map(nameOfKey)))]))
        // The hub reads while this side does.
        const asking = yield* Effect.forkChild(
          Effect.exit(link.compare.digests(identity, { at, manifest: manifest.version, skip, batch: state.batch })),
          { startImmediately: true },
        )
        const prints = new Map<string, Uint32Array>()
        for (const target of targets) prints.set(target.table.name, (yield* printsOf(tx, target)).prints)
        return { state, targets, shielded, skip, prints, asking }
      }),
    )
    if (side === null) return null
    const { answer, bytes } = yield* yield* Fiber.join(side.asking)
    return { ...side, hub: answer, bytes }
  })

type Sides = NonNullable<Effect.Success<ReturnType<typeof bothSides>>>

interface Found {
  readonly target: Target
  readonly rows: number
  readonly skipped: number
  readonly missing: ReadonlySet<string>
  readonly extra: ReadonlySet<string>
  readonly differing: ReadonlySet<string>
}

const NONE: ReadonlySet<string> = new Set()

/** Rows that differ, table by table; the hub is asked for the prints of differing buckets, so many at once as one answer may carry. */
export const findDifferences = (link: Link, identity: Identity, sides: Sides) =>
  Effect.gen(function* () {
    const found: Array<Found> = []
    let bytes = 0
    for (const target of sides.targets) {
      const theirs: CompareDigests["tables"][string] | undefined = sides.hub.tables[target.table.name]
      if (theirs === undefined) continue
      const newer = textToNames(theirs.newer)
      const left = new Set([...newer, ...(sides.shielded.get(target.table.name) ?? []).map(nameOfKey)])
      const mine = without(sides.prints.get(target.table.name) ?? new Uint32Array(), left)
      const { bits } = theirs
      const buckets = differingBuckets(digestsOf(mine, bits), textToWords(theirs.digests))
      const perBucket = Math.max(1, Math.ceil(Math.max(theirs.rows, rowsOf(mine)) / (1 << bits)))
      const atOnce = Math.max(1, Math.floor(MAX_COMPARED / perBucket))
      const missing = new Set<string>()
      const extra = new Set<string>()
      const differing = new Set<string>()
      for (let i = 0; i < buckets.length; i += atOnce) {
        const list = buckets.slice(i, i + atOnce)
        const asked = { at: sides.hub.at, skip: sides.skip, buckets: { [target.table.name]: { bits, list } } }
        const { answer, bytes: more } = yield* link.compare.prints(identity, asked)
        bytes += more
        // A row that changed at head office since the first answer is on its way by itself.
        const known = textToNames(theirs.newer)
        const difference = compare(ofBuckets(mine, bits, new Set(list)), textToWords(answer.prints[target.table.name] ?? ""))
        for (const name of difference.missing) if (!known.has(name)) missing.add(name)
        for (const name of difference.extra) extra.add(name)
        for (const name of difference.differing) differing.add(name)
      }
      found.push({ target, rows: rowsOf(mine), skipped: left.size, missing, extra, differing })
    }
    return { found, bytes }
  })

/** Wire keys of rows of this file by their names. */
export const keysOf = (target: Target, names: ReadonlySet<string>) =>
  names.size === 0
    ? Effect.succeed<ReadonlyArray<string>>([])
    : Effect.flatMap(Libsql, (db) =>
        Effect.map(
          db.readApart((tx) => printsOf(tx, target, names)),
          ({ keys }) => keys,
        ),
      )

const union = (...sets: ReadonlyArray<ReadonlySet<string>>): ReadonlySet<string> => new Set(sets.flatMap((set) => [...set]))

/** Rows as they stand become captured writes, unless something of them waits already; how many. */
const captureRows = (target: Target, keys: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    let rows = 0
    for (let i = 0; i < keys.length; i += CAPTURE_KEYS) {
      const locals = keys.slice(i, i + CAPTURE_KEYS).flatMap((key) => {
        const values = parseKey(key)
        return values === null ? [] : [localKey(target.table, values)]
      })
      rows += yield* db.write((tx) =>
        Effect.gen(function* () {
          const waiting = new Set(
            (yield* tx.all<{ key: string }>(`SELECT key FROM (${SHIELDED}) WHERE tbl = ? AND key IN (SELECT value FROM json_each(?))`, [
              target.tbl,
              JSON.stringify(locals),
            ])).map(({ key }) => key),
          )
          const free = locals.filter((key) => !waiting.has(key))
          if (free.length === 0) return 0
          const columns = target.table.key.map((name) => ident(name)).join(", ")
          return yield* tx.run(
            `${captureExisting(target.table, target.tbl)} WHERE (${columns}) IN (VALUES ${free.map((key) => `(${key})`).join(", ")})`,
          )
        }),
      )
    }
    return rows
  })

/** What stands in a file under a value that no column of its kind has is no key. */
const parseKey = (key: string): ReadonlyArray<Wire> | null => {
  try {
    return JSON.parse(key) as ReadonlyArray<Wire>
  } catch {
    return null
  }
}

/** Asks head office to send rows again, in as many requests as it takes. */
export const sendAgain = (
  link: Link,
  identity: Identity,
  at: Point,
  wanted: ReadonlyArray<{ readonly table: string; readonly names: ReadonlySet<string>; readonly keys: ReadonlyArray<string> }>,
) =>
  Effect.gen(function* () {
    let rows = 0
    let bytes = 0
    for (const { table, names, keys } of wanted) {
      const all = [...names]
      for (let i = 0; i < Math.max(all.length, keys.length); i += MAX_COMPARED) {
        const some = all.slice(i, i + MAX_COMPARED)
        const { answer, bytes: more } = yield* link.compare.again(identity, {
          at,
          names: some.length === 0 ? {} : { [table]: namesToText(new Set(some)) },
          keys: { [table]: keys.slice(i, i + MAX_COMPARED) },
        })
        rows += answer.rows + answer.gone
        bytes += more
      }
    }
    return { rows, bytes }
  })

const sumOf = (found: ReadonlyArray<Found>): number =>
  found.reduce((sum, { missing, extra, differing }) => sum + missing.size + extra.size + differing.size, 0)

export type CompareError = LinkError | LibsqlError | NotComparable

/** Compares the file with head office at its own cut, and repairs as told. */
export const verify = (link: Link, identity: Identity, repair: Repair): Effect.Effect<VerifyReport, CompareError, Libsql> =>
  Effect.gen(function* () {
    const startedAt = yield* Clock.currentTimeMillis
    const sides = yield* bothSides(link, identity)
    if (sides === null)
      return yield* new NotComparable({ message: `more than ${MAX_SKIPPED} rows wait to be sent or shown; compare when they have been` })
    if (!sides.hub.known)
      return yield* new NotComparable({
        message: "the hub does not know the cut that this file holds; the next sync takes up from there, compare then",
      })
    const { found, bytes } = yield* findDifferences(link, identity, sides)
    const tables: Array<TableReport> = []
    const again: Array<{ table: string; names: ReadonlySet<string>; keys: ReadonlyArray<string> }> = []
    let up = 0
    let differences = 0
    for (const { target, rows, skipped, missing, extra, differing } of found) {
      if (sides.hub.settling.includes(target.table.name)) {
        tables.push({ table: target.table.name, rows: 0, missing: 0, extra: 0, differing: 0, skipped: rows + skipped, keys: [] })
        continue
      }
      const extraKeys = yield* keysOf(target, extra)
      const differingKeys = yield* keysOf(target, differing)
      differences += missing.size + extra.size + differing.size
      tables.push({
        table: target.table.name,
        rows,
        missing: missing.size,
        extra: extra.size,
        differing: differing.size,
        skipped,
        keys: [...extraKeys, ...differingKeys].slice(0, EXAMPLES),
      })
      if (repair === "none") continue
      if (!isWritable(target)) again.push({ table: target.table.name, names: union(missing, differing), keys: extraKeys })
      else if (repair === "all") {
        up += yield* captureRows(target, [...extraKeys, ...differingKeys])
        // What Postgres computes is in no change; where that is all that differs, only head office's row mends it.
        const isComputed = target.table.columns.some(({ generated }) => generated)
        again.push({ table: target.table.name, names: isComputed ? union(missing, differing) : missing, keys: [] })
      }
    }
    const sent = yield* sendAgain(link, identity, sides.hub.at, again)
    return {
      startedAt,
      tookMs: (yield* Clock.currentTimeMillis) - startedAt,
      at: sides.hub.at,
      bytes: sides.bytes + bytes + sent.bytes,
      differences,
      tables,
      repaired: { up, down: sent.rows },
    }
  })

/** The file's cursor goes where it was compared with; what was staged belonged to another state. */
const moveCursor = (at: Point) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const deliver = yield* Deliver
    yield* deliver.discardStaging
    yield* db.write((tx) =>
      Effect.andThen(tx.run("UPDATE schoolbus_state SET epoch = ?, seq = ?, cut = ?", [at.epoch, at.seq, at.cut]), tearUnfit(tx)),
    )
  })

/**
 * Goes on after head office, or its hub, was put back to another state: rows that differ are asked for, the others are
 * not sent again. Answers how many differ; null: too many to be named, everything comes anew with the next pull.
 */
export const takeUp = (link: Link, identity: Identity): Effect.Effect<number | null, CompareError | LibsqlError, Libsql | Deliver> =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const deliver = yield* Deliver
    yield* deliver.resume
    // The rest of a cut that is under way will never come.
    yield* deliver.discardStaging
    const sides = yield* bothSides(link, identity)
    const anew: Point = { epoch: "", seq: 0, cut: "0" }
    if (sides === null) return yield* Effect.as(moveCursor(anew), null)
    const { found } = yield* findDifferences(link, identity, sides)
    if (sumOf(found) > MAX_DIFFERENCES) return yield* Effect.as(moveCursor(anew), null)
    const again: Array<{ table: string; names: ReadonlySet<string>; keys: ReadonlyArray<string> }> = []
    for (const { target, missing, extra, differing } of found) {
      const keys = [...(yield* keysOf(target, extra)), ...(sides.shielded.get(target.table.name) ?? [])]
      again.push({ table: target.table.name, names: union(missing, differing), keys })
    }
    // Verdicts that have not come down are asked for by name: the school keeps no copy of the ledger.
    const unsettled = yield* db.read((tx) => tx.all<{ number: number }>("SELECT number FROM schoolbus_batch WHERE settled_at IS NULL"))
    again.push({ table: LEDGER, names: NONE, keys: unsettled.map(({ number }) => JSON.stringify([identity.incarnation, String(number)])) })
    yield* sendAgain(link, identity, sides.hub.at, again)
    yield* moveCursor(sides.hub.at)
    return sumOf(found)
  })

/** True when the hub has said that it does not know this file's cut. */
export const isUnknownCut = (error: LinkError): boolean => error instanceof LinkRefused && error.code === "compare"
