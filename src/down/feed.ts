/**
 * The hub's durable, compacted changefeed in feed.db. One writer appends whole txns with their commit LSN in one
 * transaction; readers get pages of one snapshot. A cut is complete when one snapshot has nothing left for the school.
 */
import { randomBytes, randomUUID } from "node:crypto"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Semaphore from "effect/Semaphore"
import { type Lsn, parseLsn, printLsn } from "../model/lsn.ts"
import type { Cursor } from "../model/cursor.ts"
import { keyRangeOf } from "../model/key-range.ts"
import type { DeviceRules, Manifest, Table } from "../model/table.ts"
import type { Cell } from "../model/value.ts"
import { Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import { Slab, slabNumber, slabRow } from "../libsql/slab.ts"
import { sealLine } from "../link/frame.ts"
import { type Header, LINE_BYTES, LINE_ROWS, PAGE_BYTES, type Staged } from "../link/protocol.ts"
import { EVERY_SCHOOL, NOBODY, planRoutes, type Route } from "./audience.ts"
import { tokenize } from "./body.ts"
import type { DecodeTable } from "./decode.ts"
import { type Installation, installShapes, isUntold, type Paused, untoldFrom } from "./install.ts"
import { makeRouting } from "./route.ts"
import { isTimed } from "./times.ts"
import { fillToken, type Shape } from "./shape.ts"

/** No audience: whoever waits for the first row of its own. */
const NEWCOMERS = -2
/** Rows that one statement of a page reads. */
const READ_ROWS = 1000
const FLUSH_READERS_MS = 1000
const PRUNE_MS = 60_000
/** A file that was not shown for so long has its rows compared when it comes back, instead of tombstones kept for it. */
const FORGET_MS = 365 * 86_400_000
/** The same when another life of the school's file is in use. */
const FORGET_REPLACED_MS = 35 * 86_400_000
/** A deleted row is remembered for this long at least: edits made before a school heard of it may still be on their way. */
const TOMBSTONE_MS = 7 * 24 * 3600 * 1000

/** A synced table as the feed holds it. */
export interface FeedTable extends DecodeTable {
  readonly id: number
  readonly table: Table
  readonly hubOnly: boolean
  readonly class: number
  readonly audienceAt: number
  /** Links before the rows that they place. */
  readonly level: number
  /** Its rows are read from Postgres: they come down, or place rows that do. */
  readonly streamed: boolean
  readonly shape: Shape
  /** As installed: in no cut until its first copy is complete. */
  readonly loading: boolean
  /** As installed: its rows are to be compared with Postgres by key. */
  readonly recheck: boolean
  /** Why its changes are not taken; null = they are. */
  readonly paused: Paused | null
}

/** One row's state to be appended. body null = deleted. */
export interface Append {
  readonly table: FeedTable
  readonly key: string
  readonly body: string | null
  readonly audience: { readonly no: number } | { readonly value: string } | { readonly numbers: ReadonlyArray<number> } | null
  /** Microseconds since 1970. */
  readonly at: number
  /** The key is new, so no other audience can hold it. */
  readonly isInsert: boolean
  /** Write only if it differs from what the feed holds: rows read outside the stream. */
  readonly ifDifferent: boolean
}

export interface Position {
  readonly lsn: Lsn
  readonly xid: number
  readonly at: string
}

export interface FeedState {
  readonly epoch: string
  readonly seq: number
  readonly position: Position
  readonly life: string | null
  readonly lifeLast: string | null
  readonly systemId: string | null
  readonly timeline: number | null
}

/** What a school has not received: rows, and bytes of their text. */
interface Left {
  readonly rows: number
  readonly bytes: number
}

export interface FeedPage {
  readonly header: Header
  /** Sealed, header and trailer included. */
  readonly lines: ReadonlyArray<string>
  readonly complete: boolean
  /** Nothing after the cursor. */
  readonly empty: boolean
}

/** One life of a school's file as the link knows it: the row of table `reader`. */
export interface Reader {
  readonly incarnation: string
  readonly school: string
  readonly token: number
  readonly secret: string
  readonly secret_last: string
  readonly shown: number
  readonly epoch: string
  readonly seq: number
  readonly cut: string
  readonly batch: number
  readonly pending: number | null
  readonly seen_at: number
  readonly status: string | null
  readonly closed: number
}

export interface SchoolKey {
  readonly school: string
  readonly name: string
  readonly hash: string
  readonly revoked: boolean
  readonly paused: boolean
}

/** The open write transaction of an append; what it wrote becomes visible with its commit. */
export interface Appender {
  readonly rows: (rows: ReadonlyArray<Append>) => Effect.Effect<void, LibsqlError>
  readonly truncate: (table: FeedTable, at: number) => Effect.Effect<void, LibsqlError>
  readonly position: (position: Position) => Effect.Effect<void, LibsqlError>
  /** Bodies of present entries, by `tableId key`: for columns that a message leaves out. */
  readonly bodies: (keys: ReadonlyArray<readonly [tableId: number, key: string]>) => Effect.Effect<ReadonlyMap<string, string>, LibsqlError>
  /** A table's first copy is complete: its rows take new seqs and enter the cuts. */
  readonly loaded: (table: FeedTable) => Effect.Effect<void, LibsqlError>
  /**
   * Sends rows to a school once more: what it may see of them takes new seqs, of what it may not see a tombstone stands
   * for it. Entries beyond `seq` are on their way anyway. Answers how many of each.
   */
  readonly again: (
    school: string,
    keys: ReadonlyArray<readonly [table: FeedTable, key: string]>,
    seq: number,
  ) => Effect.Effect<{ readonly rows: number; readonly gone: number }, LibsqlError>
  readonly tx: Tx
}

/** What only the installation of tables does in an append. */
interface Installing {
  /** Moves a table's entries to new seqs at the head, in their order, under another class. */
  readonly renumber: (tableId: number, cls: number) => Effect.Effect<void, LibsqlError>
  /** Places all rows of the table anew. */
  readonly reroute: (table: FeedTable) => Effect.Effect<void, LibsqlError>
  /** From here on the append works with these tables. */
  readonly use: (tables: ReadonlyArray<FeedTable>, routes: ReadonlyMap<number, Route>) => void
}

const slabOf = (slabs: Map<FeedTable, Slab>, table: FeedTable): Slab => {
  const slab = slabs.get(table) ?? new Slab()
  slabs.set(table, slab)
  return slab
}

/** A row of an append: audience, seq and time, then its key and its body. */
const appended = slabRow(3)
const UPSERT = `INSERT INTO entry (audience, class, seq, tbl, key, body, at, born)
  SELECT ${appended.number(0)}, ?4, ${appended.number(1)}, ?5, ${appended.first}, ${appended.second}, ${appended.number(2)}, ${appended.number(1)}
    FROM ${appended.from} WHERE true
  ON CONFLICT (tbl, key, audience) DO UPDATE SET class = excluded.class, seq = excluded.seq, body = excluded.body, at = excluded.at`

const newCut = (): string => randomBytes(8).toString("hex")

export const rowKey = (tableId: number, key: string): string => `${tableId} ${key}`

export class Feed extends Context.Service<
  Feed,
  {
    readonly state: Effect.Effect<FeedState, LibsqlError>
    readonly head: Effect.Effect<{ readonly epoch: string; readonly seq: number; readonly cut: string }>
    /** One transaction: everything the body appends, with the position that the slot may be told afterwards. */
    readonly append: <A, E>(body: (appender: Appender) => Effect.Effect<A, E>) => Effect.Effect<A, E | LibsqlError>
    /** Makes the feed's tables those of the catalog; answers them with their ids and which need to be read again. */
    readonly install: (
      installation: Installation,
      devices: DeviceRules | undefined,
    ) => Effect.Effect<{ readonly tables: ReadonlyArray<FeedTable>; readonly reread: ReadonlySet<number> }, LibsqlError>
    readonly tables: Effect.Effect<ReadonlyArray<FeedTable>>
    /** Names of the tables whose rows it holds whole, as the stream left them. */
    readonly heldTables: Effect.Effect<ReadonlyArray<string>, LibsqlError>
    /** Tables that the feed holds from before, with the shape that was accepted last. */
    readonly shapes: Effect.Effect<ReadonlyArray<Shape>, LibsqlError>
    /** The table's rows are compared with Postgres when the stream is next opened. */
    readonly recheck: (tableId: number) => Effect.Effect<void, LibsqlError>
    /** The table takes the shape that is found next; false: there is no such table here. */
    readonly accept: (name: string) => Effect.Effect<boolean, LibsqlError>
    /** Completes when somebody wants the catalog to be read again. */
    readonly reopened: Effect.Effect<void>
    /** Keys to be read again outside the stream, at most `limit`. */
    readonly waitingRereads: (
      limit: number,
    ) => Effect.Effect<ReadonlyArray<{ readonly tbl: number; readonly key: string; readonly why: string }>, LibsqlError>
    /** Of these keys of a table, those whose row the school has or had, as far as the feed remembers. */
    readonly had: (school: string, table: string, keys: ReadonlyArray<string>) => Effect.Effect<ReadonlySet<string>>
    readonly newEpoch: Effect.Effect<void, LibsqlError>
    /** Of each published table its mark, as the stream in this feed was read under; null = never. */
    readonly published: Effect.Effect<Readonly<Record<string, string>> | null, LibsqlError>
    readonly setPublished: (marks: Readonly<Record<string, string>>) => Effect.Effect<void, LibsqlError>
    readonly setLife: (life: string, systemId: string, timeline: number) => Effect.Effect<void, LibsqlError>
    /** Names head office for its schools, also after a dump was put into another server. */
    readonly setCluster: (cluster: string) => Effect.Effect<void, LibsqlError>
    readonly ready: Effect.Effect<boolean>
    readonly key: (id: string) => Effect.Effect<SchoolKey | null>
    readonly schools: Effect.Effect<
      ReadonlyArray<{ readonly id: string; readonly name: string; readonly paused: boolean; readonly revoked: boolean }>
    >
    readonly manifest: (school: string) => Effect.Effect<Manifest>
    readonly cluster: Effect.Effect<string>
    readonly page: (request: {
      readonly school: string
      readonly cursor: Cursor
      readonly staged: Staged | null
      /** The version that the school has; another one is worth a page without rows. */
      readonly manifest?: number | undefined
    }) => Effect.Effect<FeedPage, LibsqlError>
    readonly changed: (school: string, seq: number) => Effect.Effect<void>
    /** The number under which the rows of this school alone stand; null before its first row. */
    readonly audienceNo: (school: string) => Effect.Effect<number | null>
    /** Calls once when something after `seq` is there for the school, `seq` being the head of a page or later; the result ends the waiting. */
    readonly watch: (school: string, seq: number, onChange: () => void) => () => void
    /** A cut of this feed's present epoch, by number and name. */
    readonly knows: (cursor: Cursor) => Effect.Effect<boolean, LibsqlError>
    readonly reader: {
      readonly get: (incarnation: string) => Effect.Effect<Reader | null, LibsqlError>
      readonly all: Effect.Effect<ReadonlyArray<Reader>, LibsqlError>
      readonly put: (reader: Reader) => Effect.Effect<void, LibsqlError>
      readonly seen: (incarnation: string, part: Partial<Reader>) => Effect.Effect<void, LibsqlError>
    }
  }
>()("schoolbus/down/Feed") {
  static readonly layer: Layer.Layer<Feed, LibsqlError, Libsql> = Layer.effect(
    Feed,
    Effect.gen(function* () {
      const db = yield* Libsql
      yield* db.write((tx) =>
        tx.run(`INSERT INTO hub (id, epoch, commit_lsn) SELECT 1, ?, '0/0' WHERE NOT EXISTS (SELECT 1 FROM hub)`, [randomUUID()]),
      )

      interface HubRow {
        readonly epoch: string
        readonly seq: number
        readonly commit_lsn: string
        readonly commit_xid: number | null
        readonly commit_at: string | null
        readonly life: string | null
        readonly life_last: string | null
        readonly system_id: string | null
        readonly timeline: number | null
        readonly cluster: string | null
        readonly manifest: number
      }
      const readHub = (tx: Tx) => Effect.map(tx.all<HubRow>("SELECT * FROM hub"), ([row]) => row as HubRow)
      const first = yield* db.read(readHub)
      let head = {
        epoch: first.epoch,
        seq: first.seq,
        cut: yield* db.read((tx) => Effect.map(tx.all<{ id: string }>("SELECT id FROM cut WHERE seq = ?", [first.seq]), ([row]) => row?.id ?? "0")),
      }
      let cluster = first.cluster ?? ""
      let manifestVersion = first.manifest
      let devices: DeviceRules | undefined
      let feedTables: ReadonlyArray<FeedTable> = []
      let routes: ReadonlyMap<number, Route> = new Map()
      // Tables with another rule than before, whose rows stay where they are until their links are loaded.
      const frozen = new Set<number>()
      let reopen = yield* Deferred.make<void>()

      /** A new version when what the schools are told has changed; answers whether it has. */
      const publish = (tx: Tx, tables: ReadonlyArray<FeedTable>): Effect.Effect<boolean, LibsqlError> =>
        Effect.map(
          tx.run("UPDATE hub SET manifest = manifest + 1, tables_hash = ?1 WHERE tables_hash IS NOT ?1", [
            JSON.stringify([tables.map(({ shape }) => shape.told), devices]),
          ]),
          (changed) => changed > 0,
        )

      // Audience numbers, interned. A number that a rolled back append made is forgotten again.
      const numberOf = new Map<string, number>()
      for (const row of yield* db.read((tx) => tx.all<{ no: number; value: string }>("SELECT no, value FROM audience WHERE no > 0")))
        numberOf.set(row.value, row.no)

      // Keys and schools as the feed holds them.
      let keys = new Map<string, { readonly school: string; readonly hash: string; readonly revoked: boolean }>()
      let schools = new Map<
        string,
        { readonly id: string; readonly name: string; readonly number: number; readonly paused: boolean; readonly revoked: boolean }
      >()
      const loadKeys = Effect.gen(function* () {
        const rows = yield* db.read((tx) =>
          tx.all<{ name: string; columns: string; body: string }>(
            `SELECT t.name, t.columns, e.body FROM entry e JOIN tables t ON t.id = e.tbl
              WHERE t.name IN ('schoolbus.schools', 'schoolbus.school_keys') AND e.body IS NOT NULL`,
          ),
        )
        const nextKeys: typeof keys = new Map()
        const nextSchools: typeof schools = new Map()
        for (const row of rows) {
          const names = JSON.parse(row.columns) as ReadonlyArray<string>
          const values = JSON.parse(row.body) as ReadonlyArray<string | boolean | null>
          const value = (name: string) => values[names.indexOf(name)] ?? null
          if (row.name === "schoolbus.schools") {
            const id = String(value("id"))
            nextSchools.set(id, {
              id,
              name: String(value("name")),
              number: Number(value("number")),
              paused: value("paused") === true,
              revoked: value("revoked_at") !== null,
            })
          } else {
            nextKeys.set(String(value("id")), { school: String(value("school")), hash: String(value("hash")), revoked: value("revoked_at") !== null })
          }
        }
        keys = nextKeys
        schools = nextSchools
      })
      yield* loadKeys

      // Who waits for what. lastTouched: the newest seq of an audience, filled on first question.
      const lastTouched = new Map<number, number>()
      const waiters = new Map<number, Set<() => void>>()
      const wake = (audience: number): void => {
        const waiting = waiters.get(audience)
        if (waiting === undefined) return
        waiters.delete(audience)
        for (const onChange of waiting) onChange()
      }

      const readers = new Map<string, Reader>()
      const unsaved = new Set<string>()
      const saveReader = (tx: Tx, reader: Reader) =>
        tx.run(
          `INSERT INTO reader (incarnation, school, token, secret, secret_last, shown, epoch, seq, cut, batch, pending, seen_at, status, closed)
           VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)
           ON CONFLICT (incarnation) DO UPDATE SET school = excluded.school, token = excluded.token, secret = excluded.secret,
             secret_last = excluded.secret_last, shown = excluded.shown, epoch = excluded.epoch, seq = excluded.seq, cut = excluded.cut,
             batch = excluded.batch, pending = excluded.pending, seen_at = excluded.seen_at, status = excluded.status, closed = excluded.closed`,
          [
            reader.incarnation,
            reader.school,
            reader.token,
            reader.secret,
            reader.secret_last,
            reader.shown,
            reader.epoch,
            reader.seq,
            reader.cut,
            reader.batch,
            reader.pending,
            reader.seen_at,
            reader.status,
            reader.closed,
          ],
        )
      for (const row of yield* db.read((tx) => tx.all<Reader>("SELECT * FROM reader"))) readers.set(row.incarnation, row)
      const flushReaders = Effect.suspend(() => {
        if (unsaved.size === 0) return Effect.void
        const batch = [...unsaved].flatMap((id) => readers.get(id) ?? [])
        unsaved.clear()
        return db.write((tx) => Effect.forEach(batch, (reader) => saveReader(tx, reader), { discard: true }))
      })
      yield* Effect.forkScoped(Effect.repeat(Effect.ignoreCause(flushReaders, { log: "Warn" }), Schedule.spaced(FLUSH_READERS_MS)))
      yield* Effect.addFinalizer(() => Effect.ignoreCause(flushReaders))

      /** The table's links, their links, and so on. */
      const linksOf = (id: number): ReadonlyArray<number> => {
        const link = routes.get(id)?.own?.link
        return link === undefined ? [] : [link, ...linksOf(link)]
      }

      // One append at a time, from the head it starts at to the head it leaves. Only its body can be interrupted: what the
      // file holds and what is remembered of it never part.
      const alone = Semaphore.makeUnsafe(1)
      const append = <A, E>(body: (appender: Appender) => Effect.Effect<A, E>): Effect.Effect<A, E | LibsqlError> =>
        alone.withPermit(Effect.uninterruptibleMask((restore) => appendAlone((appender) => restore(body(appender)))))
      const appendAlone = <A, E>(body: (appender: Appender) => Effect.Effect<A, E>): Effect.Effect<A, E | LibsqlError> =>
        Effect.gen(function* () {
          let seq = head.seq
          const touched = new Set<number>()
          const fresh: Array<[string, number]> = []
          let hubRowsChanged = false
          const ready = new Map<number, Shape>()
          const withReady = () =>
            feedTables.map((table) => {
              const shape = ready.get(table.id)
              return shape === undefined ? table : { ...table, table: shape.table, shape, loading: false, recheck: false }
            })
          const loading = new Set(feedTables.filter((table) => table.loading).map((table) => table.id))
          const touch = (audience: number) => void touched.add(audience)
          let tables = new Map(feedTables.map((table) => [table.id, table]))
          let written = 0
          let named = 0
          let now = 0
          const classIn = (table: FeedTable): number => (loading.has(table.id) || table.table.direction === "up" ? -table.class : table.class)

          const result = yield* db
            .write((tx) =>
              Effect.gen(function* () {
                const intern = (audience: Append["audience"]): number => {
                  if (audience === null || "numbers" in audience) return NOBODY
                  if ("no" in audience) return audience.no
                  let no = numberOf.get(audience.value)
                  if (no === undefined) {
                    no = numberOf.size + 1
                    numberOf.set(audience.value, no)
                    fresh.push([audience.value, no])
                  }
                  return no
                }
                const nameFresh = Effect.suspend(() => {
                  const unnamed = fresh.slice(named)
                  named = fresh.length
                  return tx.many(
                    "INSERT INTO audience (no, value) VALUES (?, ?)",
                    unnamed.map(([value, no]) => [BigInt(no), value]),
                  )
                })
                const routing = makeRouting({
                  tx,
                  get tables() {
                    return tables
                  },
                  get routes() {
                    return routes
                  },
                  frozen,
                  start: head.seq,
                  nextSeq: () => ++seq,
                  numberOf: intern,
                  classOf: classIn,
                  touch,
                  at: () => now,
                })
                const write = Effect.fnUntraced(function* (appends: ReadonlyArray<Append>) {
                  const puts = new Map<FeedTable, Slab>()
                  const careful = new Map<FeedTable, Slab>()
                  const completed: Array<Array<Cell>> = []
                  const rewritten: Array<Array<Cell>> = []
                  const spreads: Array<Array<Cell>> = []
                  const deletes: Array<Array<Cell>> = []
                  const timed: Array<Array<Cell>> = []
                  let slab = new Slab()
                  let slabTable: FeedTable | null = null
                  let slabCareful = false
                  let no = NOBODY
                  let noText = slabNumber(no)
                  let atText = ""
                  for (const { table, key, body: row, audience, at, isInsert, ifDifferent } of appends) {
                    seq++
                    if (at !== now || atText === "") atText = slabNumber(at)
                    now = at
                    if (table.hubOnly) hubRowsChanged = true
                    if (row === null) {
                      deletes.push([BigInt(seq), BigInt(at), BigInt(table.id), key])
                      if (isTimed(table)) timed.push([BigInt(table.id), key])
                      continue
                    }
                    const numbers = audience !== null && "numbers" in audience ? audience.numbers : null
                    const own = table.hubOnly ? NOBODY : (numbers?.[0] ?? intern(audience))
                    if (own !== no) {
                      no = own
                      noText = slabNumber(no)
                    }
                    touch(no)
                    if (table !== slabTable || ifDifferent !== slabCareful) {
                      slabTable = table
                      slabCareful = ifDifferent
                      slab = slabOf(ifDifferent ? careful : puts, table)
                    }
                    const place = slabNumber(seq) + atText
                    slab.add(noText + place, key, row)
                    const untold = ifDifferent ? untoldFrom(table) : -1
                    if (untold > 0) {
                      const told = `[${tokenize(row).slice(0, untold).join(",")},`
                      completed.push([row, BigInt(table.id), key, told, told])
                    }
                    for (const other of numbers?.slice(1) ?? []) {
                      slab.add(slabNumber(other) + place, key, row)
                      touch(other)
                    }
                    if (isInsert || table.hubOnly) continue
                    if (numbers === null || numbers.length === 1) rewritten.push([BigInt(seq), BigInt(at), BigInt(table.id), key, BigInt(no)])
                    else spreads.push([BigInt(seq), BigInt(at), BigInt(table.id), key, JSON.stringify(numbers)])
                  }
                  yield* nameFresh
                  // Few of the rows that were written again were somewhere else before.
                  const moved =
                    rewritten.length === 0
                      ? []
                      : yield* tx.all<{ i: number }>(
                          `SELECT DISTINCT j.key AS i FROM json_each(?) j CROSS JOIN entry e ON e.tbl = j.value->>0 AND e.key = j.value->>1
                            WHERE e.body IS NOT NULL AND e.audience <> j.value->>2`,
                          [JSON.stringify(rewritten.map(([, , id, key, no]) => [Number(id), key, Number(no)]))],
                        )
                  const moves = moved.map(({ i }) => rewritten[i] as Array<Cell>)
                  // Whoever held a row that is deleted or moved must be woken.
                  const gone = [...deletes, ...moves, ...spreads].map((row) => [row[2], row[3]])
                  if (gone.length > 0) {
                    const holders = yield* tx.all<{ audience: number }>(
                      `SELECT DISTINCT e.audience FROM json_each(?) j CROSS JOIN entry e ON e.tbl = j.value->>0 AND e.key = j.value->>1 WHERE e.body IS NOT NULL`,
                      [JSON.stringify(gone.map(([id, key]) => [Number(id), key]))],
                    )
                    for (const { audience } of holders) touch(audience)
                  }
                  yield* tx.many("DELETE FROM column_time WHERE tbl = ? AND key = ?", timed)
                  const others = { deletes: "", moves: "AND audience <> ?", spreads: "AND audience NOT IN (SELECT value FROM json_each(?))" }
                  for (const [kind, leaving] of [
                    ["deletes", deletes],
                    ["moves", moves],
                    ["spreads", spreads],
                  ] as const) {
                    // Whoever got a row earlier in this append, and loses it in this append, never hears of it.
                    if (written > 0)
                      yield* tx.many(
                        `DELETE FROM entry WHERE tbl = ? AND key = ? AND body IS NOT NULL AND born > ? ${others[kind]}`,
                        leaving.map(([, , id = null, key = null, ...rest]) => [id, key, BigInt(head.seq), ...rest]),
                      )
                    yield* tx.many(
                      `UPDATE entry SET body = NULL, seq = ?, at = ? WHERE tbl = ? AND key = ? AND body IS NOT NULL ${others[kind]}`,
                      leaving,
                    )
                  }
                  written += appends.length
                  for (const [table, slab] of puts) yield* tx.bulk(UPSERT, slab, [classIn(table), table.id])
                  // What only completes columns that nobody is told of yet is no news.
                  yield* tx.many("UPDATE entry SET body = ? WHERE tbl = ? AND key = ? AND substr(body, 1, length(?)) = ?", completed)
                  for (const [table, slab] of careful)
                    yield* tx.bulk(`${UPSERT} WHERE entry.body IS NOT excluded.body`, slab, [classIn(table), table.id])
                })
                const rows = Effect.fnUntraced(function* (appends: ReadonlyArray<Append>) {
                  if (routes.size === 0) return yield* write(appends)
                  const byTable = Map.groupBy(appends, ({ table }) => (routes.has(table.id) ? table : null))
                  const routed = [...byTable].flatMap(([table, own]) => (table === null ? [] : [[table, own] as const]))
                  yield* write(byTable.get(null) ?? [])
                  for (const [table, own] of routed.sort(([a], [b]) => a.level - b.level)) yield* write(yield* routing.place(table, own))
                })
                const truncate = Effect.fnUntraced(function* (table: FeedTable, at: number) {
                  now = at
                  if (table.hubOnly) hubRowsChanged = true
                  yield* routing.clear(table)
                  if (written > 0) yield* tx.run("DELETE FROM entry WHERE tbl = ? AND born > ?", [table.id, head.seq])
                  const [count] = yield* tx.all<{ n: number }>("SELECT count(*) AS n FROM entry WHERE tbl = ? AND body IS NOT NULL", [table.id])
                  const holders = yield* tx.all<{ audience: number }>("SELECT DISTINCT audience FROM entry WHERE tbl = ? AND body IS NOT NULL", [
                    table.id,
                  ])
                  yield* tx.run("DELETE FROM column_time WHERE tbl = ?", [table.id])
                  yield* tx.run(
                    `UPDATE entry SET body = NULL, at = ?1, seq = ?2 + r.n
                       FROM (SELECT audience AS a, key AS k, row_number() OVER () AS n FROM entry WHERE tbl = ?3 AND body IS NOT NULL) r
                      WHERE tbl = ?3 AND key = r.k AND audience = r.a`,
                    [at, seq, table.id],
                  )
                  seq += count?.n ?? 0
                  for (const { audience } of holders) touch(audience)
                })
                const position = (p: Position) =>
                  Effect.asVoid(tx.run("UPDATE hub SET commit_lsn = ?, commit_xid = ?, commit_at = ?", [printLsn(p.lsn), p.xid, p.at]))
                const bodies: Appender["bodies"] = (wanted) =>
                  Effect.map(
                    tx.all<{ tbl: number; key: string; body: string }>(
                      `SELECT e.tbl, e.key, e.body FROM json_each(?) j CROSS JOIN entry e ON e.tbl = j.value->>0 AND e.key = j.value->>1 WHERE e.body IS NOT NULL`,
                      [JSON.stringify(wanted)],
                    ),
                    (found) => new Map(found.map((row) => [rowKey(row.tbl, row.key), row.body])),
                  )
                const newSeqs = Effect.fnUntraced(function* (tableId: number, cls: number, where: string, args: ReadonlyArray<string>) {
                  const [count] = yield* tx.all<{ n: number }>(`SELECT count(*) AS n FROM entry WHERE tbl = ?1 ${where}`, [tableId, ...args])
                  yield* tx.run(
                    `UPDATE entry SET class = ?, seq = ? + r.n
                       FROM (SELECT audience AS a, key AS k, row_number() OVER (ORDER BY seq) AS n FROM entry WHERE tbl = ? ${where}) r
                      WHERE tbl = ? AND key = r.k AND audience = r.a`,
                    [cls, seq, tableId, ...args, tableId],
                  )
                  seq += count?.n ?? 0
                  for (const row of yield* tx.all<{ audience: number }>("SELECT DISTINCT audience FROM entry WHERE tbl = ?", [tableId]))
                    touch(row.audience)
                })
                const renumber: Installing["renumber"] = (tableId, cls) => newSeqs(tableId, cls, "", [])
                /** Rows whose new columns hold something else than what a school fills in by itself go down again. */
                const resend = (table: FeedTable) => {
                  const first = untoldFrom(table)
                  if (first === -1) return Effect.void
                  const filled = `,${table.table.columns.slice(first).map(fillToken).join(",")}]`
                  return newSeqs(table.id, classIn(table), "AND substr(body, -length(?)) <> ?", [filled, filled])
                }
                /** By which rule its rows stand where they are. */
                const reroute = Effect.fnUntraced(function* (table: FeedTable) {
                  yield* routing.reroute(table)
                  yield* nameFresh
                  yield* tx.run("UPDATE tables SET audience = ? WHERE id = ?", [JSON.stringify(table.table.audience), table.id])
                })
                const loaded = Effect.fnUntraced(function* (table: FeedTable) {
                  if (loading.delete(table.id)) {
                    // Nobody has had its rows yet.
                    if (!table.recheck) yield* tx.run("DELETE FROM entry WHERE tbl = ? AND body IS NULL", [table.id])
                    yield* renumber(table.id, classIn(table))
                  } else if (isUntold(table)) yield* resend(table)
                  else if (!table.recheck) return
                  const { generation } = table.shape.told
                  const [hub] = yield* tx.all<{ manifest: number }>("SELECT manifest FROM hub")
                  const told: Table = generation === table.table.generation ? table.table : { ...table.table, keyedSince: (hub?.manifest ?? 0) + 1 }
                  const shape: Shape = { ...table.shape, table: told, told }
                  yield* tx.run("UPDATE tables SET status = ?, after = NULL, recheck = 0, shape = ? WHERE id = ?", [
                    table.table.direction === "up" ? "hidden" : "ready",
                    JSON.stringify(shape),
                    table.id,
                  ])
                  ready.set(table.id, shape)
                  for (const id of [...frozen]) {
                    const other = tables.get(id)
                    if (other === undefined || linksOf(id).some((link) => loading.has(link))) continue
                    frozen.delete(id)
                    yield* reroute(other)
                  }
                })
                const use = (installed: ReadonlyArray<FeedTable>, plan: ReadonlyMap<number, Route>) => {
                  tables = new Map(installed.map((table) => [table.id, table]))
                  routes = plan
                  for (const table of installed) if (table.loading) loading.add(table.id)
                }
                const again: Appender["again"] = Effect.fnUntraced(function* (school, keys, beyond) {
                  const own = intern({ value: school })
                  yield* nameFresh
                  const found = yield* tx.all<{ tbl: number; key: string; audience: number; seq: number; isRow: number }>(
                    `SELECT e.tbl, e.key, e.audience, e.seq, e.body IS NOT NULL AS isRow FROM json_each(?1) j
                       CROSS JOIN entry e ON e.tbl = j.value->>0 AND e.key = j.value->>1 AND e.audience IN (?2, ?3)`,
                    [JSON.stringify(keys.map(([table, key]) => [table.id, key])), EVERY_SCHOOL, own],
                  )
                  const isComing = new Set(
                    found.filter((entry) => entry.seq > beyond || entry.isRow === 1).map((entry) => rowKey(entry.tbl, entry.key)),
                  )
                  const rows = found.filter((entry) => entry.isRow === 1 && entry.seq <= beyond)
                  const gone = keys.filter(([table, key]) => !table.loading && !table.hubOnly && !isComing.has(rowKey(table.id, key)))
                  for (const { audience } of rows) touch(audience)
                  yield* tx.many(
                    "UPDATE entry SET seq = ? WHERE tbl = ? AND key = ? AND audience = ?",
                    rows.map(({ tbl, key, audience }) => [BigInt(++seq), BigInt(tbl), key, BigInt(audience)]),
                  )
                  yield* tx.many(
                    `INSERT INTO entry (audience, class, seq, tbl, key, body, at, born) VALUES (?, ?, ?, ?, ?, NULL, 0, 0)
                       ON CONFLICT (tbl, key, audience) DO UPDATE SET seq = excluded.seq, born = 0`,
                    gone.map(([table, key]) => [BigInt(own), BigInt(table.class), BigInt(++seq), BigInt(table.id), key]),
                  )
                  if (gone.length > 0) touch(own)
                  return { rows: rows.length, gone: gone.length }
                })
                const appender: Appender & Installing = { rows, truncate, position, bodies, loaded, again, tx, renumber, reroute, use }
                const value = yield* body(appender)
                yield* routing.settle
                const isPublished = ready.size > 0 && (yield* publish(tx, withReady()))
                let cut = head.cut
                if (seq > head.seq) {
                  cut = newCut()
                  yield* tx.run("UPDATE hub SET seq = ?", [seq])
                  yield* tx.run("INSERT INTO cut (seq, id) VALUES (?, ?)", [seq, cut])
                }
                return { value, cut, isPublished }
              }),
            )
            .pipe(
              Effect.tapCause(() =>
                Effect.sync(() => {
                  for (const [value] of fresh) numberOf.delete(value)
                }),
              ),
            )
          head = { epoch: head.epoch, seq, cut: result.cut }
          if (ready.size > 0) feedTables = withReady()
          if (result.isPublished) manifestVersion++
          if (hubRowsChanged) yield* loadKeys
          if (fresh.length > 0) touched.add(NEWCOMERS)
          for (const audience of touched) lastTouched.set(audience, seq)
          for (const audience of touched) wake(audience)
          if (result.isPublished) wake(EVERY_SCHOOL)
          return result.value
        })

      const install = Effect.fnUntraced(function* (installation: Installation, rules: DeviceRules | undefined) {
        devices = rules
        const installed = yield* append((appender) =>
          Effect.gen(function* () {
            const { tx, renumber, reroute, use } = appender as Appender & Installing
            const { tables, reread, rerouted } = yield* installShapes(tx, renumber, installation)
            const plan = planRoutes(tables)
            const levels = tables.map((table) => ({ ...table, level: plan.get(table.id)?.level ?? 0 }))
            use(levels, plan)
            frozen.clear()
            const isLoading = new Set(levels.flatMap(({ id, loading }) => (loading ? [id] : [])))
            for (const table of levels.toSorted((a, b) => a.level - b.level)) {
              if (!rerouted.has(table.id)) continue
              if (!table.loading && linksOf(table.id).some((link) => isLoading.has(link))) frozen.add(table.id)
              else yield* reroute(table)
            }
            yield* publish(tx, levels)
            return { tables: levels, reread }
          }),
        )
        feedTables = installed.tables
        const before = manifestVersion
        manifestVersion = (yield* db.read(readHub)).manifest
        if (manifestVersion !== before) wake(EVERY_SCHOOL)
        yield* loadKeys
        return installed
      })

      const schoolOf = (id: string): Manifest["school"] => {
        const known = schools.get(id)
        const keys = keyRangeOf(known?.number ?? 0)
        return { id, name: known?.name ?? id, ...(keys === null ? {} : { keys }) }
      }
      const schoolAudience = (school: string): number | null => numberOf.get(school) ?? null
      const newestOf = (audience: number) =>
        Effect.gen(function* () {
          const known = lastTouched.get(audience)
          if (known !== undefined) return known
          const [row] = yield* db.read((tx) =>
            tx.all<{ seq: number | null }>(
              `SELECT max(s) AS seq FROM (SELECT (SELECT max(seq) FROM entry WHERE audience = ?1 AND class = c.value) AS s FROM json_each('[10,8,5,3,1]') c)`,
              [audience],
            ),
          )
          const seq = row?.seq ?? 0
          // An append may have come in between.
          const newest = Math.max(seq, lastTouched.get(audience) ?? 0)
          lastTouched.set(audience, newest)
          return newest
        })

      const watch = (school: string, seq: number, onChange: () => void): (() => void) => {
        const audiences = [EVERY_SCHOOL, schoolAudience(school) ?? NEWCOMERS]
        if (audiences.some((audience) => (lastTouched.get(audience) ?? 0) > seq)) {
          queueMicrotask(onChange)
          return () => undefined
        }
        const leave = (): void => {
          for (const audience of audiences) waiters.get(audience)?.delete(once)
        }
        const once = (): void => {
          leave()
          onChange()
        }
        for (const audience of audiences) {
          const waiting = waiters.get(audience) ?? new Set()
          waiting.add(once)
          waiters.set(audience, waiting)
        }
        return leave
      }
      const changed = (school: string, seq: number): Effect.Effect<void> =>
        Effect.gen(function* () {
          const own = schoolAudience(school)
          for (const audience of own === null ? [EVERY_SCHOOL] : [EVERY_SCHOOL, own]) if ((yield* newestOf(audience)) > seq) return
          yield* Effect.callback<void>((resume) => Effect.sync(watch(school, seq, () => resume(Effect.void))))
        }).pipe(Effect.orDie)

      interface EntryRow {
        readonly seq: number
        readonly tbl: number
        readonly key: string
        readonly body: string | null
      }
      /** What a school that goes on exactly after its last page has left. */
      const remaining = new Map<string, { readonly at: string; readonly left: Left }>()
      const countLeft = (tx: Tx, own: number, from: number, staged: Staged | null) =>
        Effect.gen(function* () {
          const left = { rows: 0, bytes: 0 }
          for (const cls of [10, 8, 5, 3, 1]) {
            const [row] = yield* tx.all<Left>(
              `SELECT count(*) AS rows, coalesce(sum(length(key) + coalesce(length(body), 4) + 3), 0) AS bytes FROM entry
                WHERE audience IN (?, ?) AND class = ? AND seq > ?`,
              [EVERY_SCHOOL, own, cls, Math.max(from, staged?.after[String(cls)] ?? 0)],
            )
            left.rows += row?.rows ?? 0
            left.bytes += row?.bytes ?? 0
          }
          return left
        })

      const page = Effect.fnUntraced(function* (request: {
        readonly school: string
        readonly cursor: Cursor
        readonly staged: Staged | null
        readonly manifest?: number | undefined
      }) {
        const own = schoolAudience(request.school) ?? NOBODY - 1
        return yield* db.read((tx) =>
          Effect.gen(function* () {
            const hub = yield* readHub(tx)
            // Names and rows of one snapshot: a table may be taking another shape at this moment.
            const tableById = new Map(
              (yield* tx.all<{ id: number; name: string; columns: string }>("SELECT id, name, columns FROM tables")).map((table) => [
                table.id,
                table,
              ]),
            )
            const cutAt = (seq: number) => Effect.map(tx.all<{ id: string }>("SELECT id FROM cut WHERE seq = ?", [seq]), ([row]) => row?.id ?? null)
            const { cursor } = request
            const known = cursor.epoch === hub.epoch && cursor.seq > 0 && cursor.cut === (yield* cutAt(cursor.seq))
            const full = !known
            const from = known ? cursor.seq : 0
            const staged = request.staged !== null && request.staged.headCut === (yield* cutAt(request.staged.head)) ? request.staged : null
            const headCut = (yield* cutAt(hub.seq)) ?? "0"

            const lines: Array<string> = []
            let bytes = 0
            let count = 0
            let complete = true
            let line: {
              cls: number
              table: { readonly name: string; readonly columns: string }
              rows: Array<string>
              bytes: number
              last: number
            } | null = null
            const lastOf = new Map<number, number>()
            const flush = () => {
              if (line === null) return
              lastOf.set(line.cls, line.last)
              lines.push(
                sealLine(`["rows",${line.cls},${line.last},${JSON.stringify(line.table.name)},${line.table.columns},[${line.rows.join(",")}]]`),
              )
              line = null
            }
            outer: for (const cls of [10, 8, 5, 3, 1]) {
              let after = Math.max(from, staged?.after[String(cls)] ?? 0)
              for (;;) {
                const entries = yield* tx.all<EntryRow>(
                  `SELECT * FROM (
                     SELECT seq, tbl, key, body FROM entry WHERE audience = ?1 AND class = ?3 AND seq > ?4
                     UNION ALL SELECT seq, tbl, key, body FROM entry WHERE audience = ?2 AND class = ?3 AND seq > ?4)
                   ORDER BY seq, body IS NOT NULL LIMIT ${READ_ROWS}`,
                  [EVERY_SCHOOL, own, cls, after],
                )
                for (const entry of entries) {
                  const table = tableById.get(entry.tbl)
                  if (table === undefined) continue
                  if (bytes >= PAGE_BYTES) {
                    // A seq is never split: its tombstone and its row go together.
                    if (entry.seq !== after) {
                      complete = false
                      break outer
                    }
                  }
                  const text = `[${entry.key},${entry.body ?? "null"}]`
                  if (
                    line !== null &&
                    (line.table !== table ||
                      line.cls !== cls ||
                      ((line.rows.length >= LINE_ROWS || line.bytes >= LINE_BYTES) && line.last !== entry.seq))
                  )
                    flush()
                  line ??= { cls, table, rows: [], bytes: 0, last: 0 }
                  line.rows.push(text)
                  line.bytes += text.length
                  line.last = entry.seq
                  bytes += text.length
                  count++
                  after = entry.seq
                }
                if (entries.length < READ_ROWS) break
              }
            }
            flush()
            const asked = JSON.stringify([from, staged?.after ?? null])
            let left = { rows: count, bytes }
            if (!complete) {
              const known = remaining.get(request.school)
              // After a line that broke the school is elsewhere than the last page would have taken it: counted anew.
              left = known?.at === asked ? known.left : yield* countLeft(tx, own, from, staged)
              const next = Object.fromEntries([...lastOf].map(([cls, seq]) => [String(cls), seq]))
              const rest = { rows: Math.max(0, left.rows - count), bytes: Math.max(0, left.bytes - bytes) }
              remaining.set(request.school, { at: JSON.stringify([from, { ...staged?.after, ...next }]), left: rest })
              left = { rows: Math.max(left.rows, count), bytes: Math.max(left.bytes, bytes) }
            } else remaining.delete(request.school)
            const header: Header = {
              school: request.school,
              epoch: hub.epoch,
              from,
              full,
              resumed: staged !== null,
              manifest: hub.manifest,
              head: hub.seq,
              headCut,
              left: left.rows,
              leftBytes: left.bytes,
            }
            const empty = count === 0 && staged === null && !full && (request.manifest ?? hub.manifest) === hub.manifest
            return {
              header,
              lines: [sealLine(JSON.stringify(["cut", header])), ...lines, sealLine(JSON.stringify(["page", { rows: count, complete }]))],
              complete,
              empty,
            }
          }),
        )
      })

      const prune = Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const newest = new Map<string, number>()
        for (const { school, seen_at } of readers.values()) newest.set(school, Math.max(seen_at, newest.get(school) ?? 0))
        // A life of a file that nobody shows any more, because the file was lost or began a new one, holds nothing up for ever.
        const isOver = (reader: Reader) => now - reader.seen_at > FORGET_MS || (newest.get(reader.school) ?? 0) - reader.seen_at > FORGET_REPLACED_MS
        const live = [...readers.values()].filter(
          (reader) => reader.closed === 0 && reader.epoch === head.epoch && schools.get(reader.school)?.revoked === false && !isOver(reader),
        )
        const before = (now - TOMBSTONE_MS) * 1000
        const horizon = live.reduce((least, reader) => Math.min(least, reader.seq), head.seq)
        yield* db.write((tx) =>
          Effect.andThen(
            tx.run(
              "DELETE FROM entry WHERE body IS NULL AND seq <= ? AND at < ? AND (class > 0 OR tbl IN (SELECT id FROM tables WHERE status = 'hidden'))",
              [horizon, before],
            ),
            tx.run("DELETE FROM cut WHERE seq < ? AND seq <> (SELECT seq FROM hub) AND seq NOT IN (SELECT seq FROM reader)", [horizon]),
          ),
        )
      })
      // Not at once: what schools told a hub that was killed may not have been written down; by then they have told it again.
      yield* Effect.forkScoped(Effect.repeat(Effect.delay(Effect.ignoreCause(prune, { log: "Warn" }), PRUNE_MS), Schedule.forever))

      return Feed.of({
        state: Effect.map(db.read(readHub), (row) => ({
          epoch: row.epoch,
          seq: row.seq,
          position: { lsn: parseLsn(row.commit_lsn), xid: row.commit_xid ?? 0, at: row.commit_at ?? "" },
          life: row.life,
          lifeLast: row.life_last,
          systemId: row.system_id,
          timeline: row.timeline,
        })),
        head: Effect.sync(() => head),
        append,
        install,
        tables: Effect.sync(() => feedTables),
        heldTables: db.read((tx) =>
          Effect.map(tx.all<{ name: string }>("SELECT name FROM tables WHERE status = 'ready' AND paused IS NULL AND recheck = 0"), (rows) =>
            rows.map(({ name }) => name),
          ),
        ),
        shapes: Effect.map(
          db.read((tx) => tx.all<{ shape: string }>("SELECT shape FROM tables")),
          (rows) => rows.map(({ shape }) => JSON.parse(shape) as Shape),
        ),
        recheck: (tableId) => Effect.asVoid(db.write((tx) => tx.run("UPDATE tables SET recheck = 1 WHERE id = ?", [tableId]))),
        accept: (name) =>
          Effect.gen(function* () {
            const known = yield* db.write((tx) => tx.run("UPDATE tables SET accept = 1 WHERE name = ?", [name]))
            const before = reopen
            reopen = yield* Deferred.make<void>()
            yield* Deferred.succeed(before, undefined)
            return known > 0
          }),
        reopened: Effect.suspend(() => Deferred.await(reopen)),
        waitingRereads: (limit) =>
          db.read((tx) => tx.all<{ tbl: number; key: string; why: string }>("SELECT tbl, key, why FROM reread LIMIT ?", [limit])),
        had: (school, name, keys) =>
          Effect.suspend(() => {
            const table = feedTables.find((one) => one.name === name)
            if (table === undefined) return Effect.succeed(new Set<string>())
            const rows = db.read((tx) =>
              tx.all<{ key: string }>(
                `SELECT e.key FROM json_each(?) j CROSS JOIN entry e ON e.tbl = ? AND e.key = j.value WHERE e.audience IN (${EVERY_SCHOOL}, ?)`,
                [JSON.stringify(keys), table.id, schoolAudience(school) ?? EVERY_SCHOOL],
              ),
            )
            return Effect.orDie(Effect.map(rows, (found) => new Set(found.map(({ key }) => key))))
          }),
        newEpoch: alone.withPermit(
          Effect.uninterruptible(
            Effect.gen(function* () {
              const epoch = randomUUID()
              yield* db.write((tx) =>
                Effect.andThen(tx.run("UPDATE hub SET epoch = ?", [epoch]), tx.run("DELETE FROM cut WHERE seq <> (SELECT seq FROM hub)")),
              )
              head = { ...head, epoch }
            }),
          ),
        ),
        published: db.read((tx) =>
          Effect.map(tx.all<{ publication: string | null }>("SELECT publication FROM hub"), ([row]) =>
            row?.publication == null ? null : (JSON.parse(row.publication) as Readonly<Record<string, string>>),
          ),
        ),
        setPublished: (marks) => Effect.asVoid(db.write((tx) => tx.run("UPDATE hub SET publication = ?", [JSON.stringify(marks)]))),
        setLife: (life, system, timeline) =>
          Effect.gen(function* () {
            yield* db.write((tx) => tx.run("UPDATE hub SET life_last = life, life = ?, system_id = ?, timeline = ?", [life, system, timeline]))
          }),
        setCluster: (name) =>
          Effect.gen(function* () {
            if (name !== cluster) yield* db.write((tx) => tx.run("UPDATE hub SET cluster = ?", [name]))
            cluster = name
          }),
        ready: Effect.sync(() => feedTables.length > 0 && feedTables.every((table) => !table.loading || table.paused !== null)),
        key: (id) =>
          Effect.sync(() => {
            const key = keys.get(id)
            const school = key === undefined ? undefined : schools.get(key.school)
            if (key === undefined || school === undefined) return null
            return { school: school.id, name: school.name, hash: key.hash, revoked: key.revoked || school.revoked, paused: school.paused }
          }),
        schools: Effect.sync(() => [...schools.values()]),
        manifest: (school) =>
          Effect.sync(() => ({
            version: manifestVersion,
            school: schoolOf(school),
            tables: feedTables.filter((table) => !table.hubOnly).map((table) => table.shape.told),
            lives: Object.fromEntries(feedTables.filter((table) => !table.hubOnly).map((table) => [table.name, table.id])),
            ...(devices === undefined ? {} : { devices }),
          })),
        cluster: Effect.sync(() => cluster),
        page,
        changed,
        watch,
        audienceNo: (school) => Effect.sync(() => schoolAudience(school)),
        knows: (cursor) =>
          cursor.epoch !== head.epoch
            ? Effect.succeed(false)
            : db.read((tx) => Effect.map(tx.all("SELECT 1 FROM cut WHERE seq = ? AND id = ?", [cursor.seq, cursor.cut]), (rows) => rows.length > 0)),
        reader: {
          get: (incarnation) => Effect.sync(() => readers.get(incarnation) ?? null),
          all: Effect.sync(() => [...readers.values()]),
          put: (reader) =>
            Effect.gen(function* () {
              yield* db.write((tx) => saveReader(tx, reader))
              readers.set(reader.incarnation, reader)
            }),
          seen: (incarnation, part) =>
            Effect.gen(function* () {
              const before = readers.get(incarnation)
              if (before === undefined) return
              readers.set(incarnation, { ...before, seen_at: yield* Clock.currentTimeMillis, ...part })
              unsaved.add(incarnation)
            }),
        },
      })
    }),
  )
}
