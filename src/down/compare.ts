/**
 * The hub's end of a comparison: what a school should hold as of a cut, as prints (model/digest.ts). Rows that changed
 * after that cut are named so that the school leaves them out; the feed keeps no older state of them. What differs is sent
 * again through the feed, never written directly.
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"
import { Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import { nameOfKey } from "../libsql/prints.ts"
import {
  type CompareAgain,
  type CompareDigests,
  type ComparePrints,
  type CompareRows,
  MAX_COMPARED,
  MAX_SKIPPED,
  type Point,
  ROWS_BYTES,
} from "../link/protocol.ts"
import { bitsFor, digestsOf, namesToText, ofBuckets, rowsOf, textToNames, without, wordsToText } from "../model/digest.ts"
import { LEDGER } from "./delivery.ts"
import { EVERY_SCHOOL, NOBODY } from "./audience.ts"
import type { FeedTable } from "./entry.ts"
import { Feed } from "./feed.ts"
import { versionAt } from "./held.ts"

/** Comparisons that scan the feed at the same time; the others wait. */
const MAX_SCANS = 1
const CLASSES = "(10, 8, 5, 3, 1)"

/** The two cannot be compared now; `code` as in the protocol. */
export class CompareRefused extends Data.TaggedError("CompareRefused")<{ readonly code: "manifest" | "far_apart"; readonly message: string }> {}

export interface Buckets {
  readonly [table: string]: { readonly bits: number; readonly list: ReadonlyArray<number> }
}
type ByTable = Readonly<Record<string, string>>

/** A key as the feed writes it, or null: what a school names is never trusted to be one. */
const feedKey = (table: FeedTable, text: string): string | null => {
  let key: unknown
  try {
    key = JSON.parse(text)
  } catch {
    return null
  }
  const isKey = Array.isArray(key) && key.length === table.key.length && key.every((value) => ["string", "number", "boolean"].includes(typeof value))
  return isKey ? JSON.stringify(key) : null
}

export class Compare extends Context.Service<
  Compare,
  {
    /** `batch`: the newest of this file; to be in the feed before a head is compared with. 0 = none. */
    readonly digests: (
      school: string,
      at: Point,
      manifest: number,
      skip: ByTable,
      newest: { readonly incarnation: string; readonly batch: number },
    ) => Effect.Effect<CompareDigests, LibsqlError | CompareRefused>
    readonly prints: (school: string, at: Point, skip: ByTable, buckets: Buckets) => Effect.Effect<ComparePrints, LibsqlError | CompareRefused>
    readonly rows: (
      school: string,
      at: Point,
      names: ByTable,
      keys: Readonly<Record<string, ReadonlyArray<string>>>,
    ) => Effect.Effect<CompareRows, LibsqlError | CompareRefused>
    readonly again: (
      school: string,
      at: Point,
      names: ByTable,
      keys: Readonly<Record<string, ReadonlyArray<string>>>,
    ) => Effect.Effect<CompareAgain, LibsqlError>
  }
>()("schoolbus/down/Compare") {
  static readonly layer: Layer.Layer<Compare, never, Feed | Libsql> = Layer.effect(
    Compare,
    Effect.gen(function* () {
      const db = yield* Libsql
      const feed = yield* Feed
      const scans = yield* Semaphore.make(MAX_SCANS)

      const comparable = Effect.map(feed.tables, (tables) =>
        tables.filter((table) => !table.hubOnly && !table.loading && table.table.direction !== "up" && table.name !== LEDGER),
      )
      const apart = <A, E>(body: (tx: Tx) => Effect.Effect<A, E>) => scans.withPermit(db.readApart(body))
      const ownOf = (school: string) => Effect.map(feed.audienceNo(school), (no) => no ?? NOBODY - 1)
      const floats = (tables: ReadonlyArray<FeedTable>) =>
        tables.filter((table) => table.columns.some((column) => column.kind === "float")).map((table) => table.id)

      const scan = (tx: Tx, tables: ReadonlyArray<FeedTable>, own: number, seq: number, wanted: ReadonlyMap<number, ReadonlySet<string>>) =>
        tx.prints({
          sql: `SELECT tbl, CAST(key AS BLOB), CAST(body AS BLOB) FROM entry
                 WHERE audience IN (?, ?) AND class IN ${CLASSES} AND seq <= ? AND body IS NOT NULL`,
          args: [EVERY_SCHOOL, own, seq],
          renumber: floats(tables),
          wanted,
        })

      /** Keys that changed after the cut, by table number, then by how prints name them. */
      const newerThan = (tx: Tx, own: number, seq: number) =>
        Effect.gen(function* () {
          const rows = yield* tx.all<{ tbl: number; key: string }>(
            `SELECT tbl, key FROM entry WHERE audience IN (?, ?) AND class IN ${CLASSES} AND seq > ? LIMIT ${MAX_SKIPPED + 1}`,
            [EVERY_SCHOOL, own, seq],
          )
          if (rows.length > MAX_SKIPPED)
            return yield* new CompareRefused({ code: "far_apart", message: `more than ${MAX_SKIPPED} rows wait for this school: pull first` })
          const byTable = new Map<number, Map<string, string>>()
          for (const { tbl, key } of rows) {
            const names = byTable.get(tbl) ?? new Map<string, string>()
            byTable.set(tbl, names.set(nameOfKey(key), key))
          }
          return byTable
        })
      const skipped = (skip: ByTable, name: string, newer: ReadonlyMap<string, string> | undefined): ReadonlySet<string> =>
        new Set([...textToNames(skip[name] ?? ""), ...(newer?.keys() ?? [])])

      return Compare.of({
        digests: (school, at, manifest, skip, newest) =>
          Effect.gen(function* () {
            const own = yield* ownOf(school)
            const tables = yield* comparable
            const settling = (yield* feed.tables).flatMap(({ name, loading, recheck, paused }) =>
              (loading || recheck) && paused === null ? [name] : [],
            )
            return yield* apart((tx) =>
              Effect.gen(function* () {
                const [hub] = yield* tx.all<{ epoch: string; seq: number; manifest: number; cut: string | null; head: string | null }>(
                  `SELECT epoch, seq, manifest, (SELECT id FROM cut WHERE seq = ?) AS cut, (SELECT id FROM cut WHERE cut.seq = hub.seq) AS head FROM hub`,
                  [at.seq],
                )
                if (hub === undefined || hub.manifest !== manifest)
                  return yield* new CompareRefused({ code: "manifest", message: "the tables have changed: fetch the manifest first" })
                const known = hub.epoch === at.epoch && at.seq > 0 && hub.cut === at.cut
                const point: Point = known ? at : { epoch: hub.epoch, seq: hub.seq, cut: hub.head ?? "0" }
                if (!known && newest.batch > 0) {
                  const [ledger] = yield* tx.all<{ n: number }>(
                    "SELECT EXISTS (SELECT 1 FROM entry JOIN tables ON tables.id = entry.tbl WHERE tables.name = ? AND entry.key = ?) AS n",
                    [LEDGER, JSON.stringify([newest.incarnation, String(newest.batch)])],
                  )
                  if (ledger?.n !== 1)
                    return yield* new CompareRefused({ code: "far_apart", message: `batch ${newest.batch} has not come through the feed yet` })
                }
                const newer = yield* newerThan(tx, own, point.seq)
                const { byTable } = yield* scan(tx, tables, own, point.seq, new Map())
                const answers = tables.map((table) => {
                  const prints = without(byTable.get(table.id) ?? new Uint32Array(), skipped(skip, table.name, undefined))
                  const bits = bitsFor(rowsOf(prints))
                  const answer = {
                    rows: rowsOf(prints),
                    bits,
                    digests: wordsToText(digestsOf(prints, bits)),
                    newer: namesToText(new Set(newer.get(table.id)?.keys())),
                  }
                  return [table.name, answer] as const
                })
                return { at: point, known, settling, tables: Object.fromEntries(answers) }
              }),
            )
          }),
        prints: (school, at, skip, buckets) =>
          Effect.gen(function* () {
            const own = yield* ownOf(school)
            const tables = (yield* comparable).filter((table) => table.name in buckets)
            return yield* apart((tx) =>
              Effect.gen(function* () {
                const newer = yield* newerThan(tx, own, at.seq)
                const { byTable } = yield* scan(tx, tables, own, at.seq, new Map())
                const prints: Record<string, string> = {}
                let rows = 0
                for (const table of tables) {
                  const { bits, list } = buckets[table.name] ?? { bits: 0, list: [] }
                  const all = without(byTable.get(table.id) ?? new Uint32Array(), skipped(skip, table.name, newer.get(table.id)))
                  const some = ofBuckets(all, bits, new Set(list))
                  rows += rowsOf(some)
                  if (rows > MAX_COMPARED * 2) return yield* new CompareRefused({ code: "far_apart", message: "ask for fewer buckets at once" })
                  prints[table.name] = wordsToText(some)
                }
                return { prints }
              }),
            )
          }),
        rows: (school, at, names, keys) =>
          Effect.gen(function* () {
            const own = yield* ownOf(school)
            const tables = new Map((yield* comparable).map((table) => [table.name, table]))
            const nameOf = new Map([...tables.values()].map((table) => [table.id, table.name]))
            const wanted = new Map(
              Object.entries(names).flatMap(([name, text]) => {
                const table = tables.get(name)
                return table === undefined ? [] : [[table.id, textToNames(text)] as const]
              }),
            )
            const named = wanted.size === 0 ? [] : (yield* apart((tx) => scan(tx, [], own, at.seq, wanted))).keys
            const found: Record<string, Array<string>> = {}
            for (const [id, key] of named) {
              const name = nameOf.get(id)
              if (name !== undefined) found[name] = [...(found[name] ?? []), key]
            }
            // Those that changed since the cut, too; they are few, or the two would be too far apart to be compared.
            for (const [tbl, list] of wanted.size === 0 ? [] : yield* db.read((tx) => newerThan(tx, own, at.seq))) {
              const name = nameOf.get(tbl)
              const some = [...list].flatMap(([printed, key]) => (wanted.get(tbl)?.has(printed) === true ? [key] : []))
              if (name !== undefined && some.length > 0) found[name] = [...(found[name] ?? []), ...some]
            }
            const rows: Record<string, Record<string, string | null>> = {}
            const unknown: Record<string, Array<string>> = {}
            let bytes = 0
            for (const [name, list] of Object.entries(keys)) {
              const table = tables.get(name)
              if (table === undefined) continue
              const byKey: Record<string, string | null> = {}
              rows[name] = byKey
              for (const text of list) {
                if (bytes > ROWS_BYTES) break
                const key = feedKey(table, text)
                const entries =
                  key === null
                    ? []
                    : yield* db.read((tx) =>
                        tx.all<Parameters<typeof versionAt>[0]>(
                          "SELECT seq, born, body, was, was_from, was_to FROM entry WHERE tbl = ? AND key = ? AND audience IN (?, ?) AND class > 0",
                          [table.id, key, EVERY_SCHOOL, own],
                        ),
                      )
                const versions = entries.map((entry) => versionAt(entry, at.seq))
                const version = versions.find((one) => typeof one === "string")
                // Of what is not known any more, the present state: what differs from it is at least told.
                const isUnknown = version === undefined && versions.includes(undefined)
                if (isUnknown) unknown[name] = [...(unknown[name] ?? []), text]
                const body = version ?? (isUnknown ? entries.find((entry) => entry.body !== null)?.body : undefined) ?? null
                byKey[text] = body
                bytes += text.length + (body?.length ?? 0)
              }
            }
            return { keys: found, rows, unknown }
          }),
        again: (school, at, names, keys) =>
          Effect.gen(function* () {
            const own = yield* ownOf(school)
            const tables = new Map(
              (yield* feed.tables).filter((table) => !table.hubOnly && table.table.direction !== "up").map((table) => [table.name, table]),
            )
            const byId = new Map([...tables.values()].map((table) => [table.id, table]))
            const wanted = new Map(
              Object.entries(names).flatMap(([name, text]) => {
                const table = tables.get(name)
                return table === undefined ? [] : [[table.id, textToNames(text)] as const]
              }),
            )
            const named = wanted.size === 0 ? [] : (yield* apart((tx) => scan(tx, [], own, at.seq, wanted))).keys
            const all = [
              ...named.flatMap(([id, key]) => {
                const table = byId.get(id)
                return table === undefined ? [] : [[table, key] as const]
              }),
              ...Object.entries(keys).flatMap(([name, list]) => {
                const table = tables.get(name)
                if (table === undefined) return []
                return list.flatMap((text) => {
                  const key = feedKey(table, text)
                  return key === null ? [] : [[table, key] as const]
                })
              }),
            ]
            return yield* feed.append((appender) => appender.again(school, all, at.seq))
          }),
      })
    }),
  )
}
