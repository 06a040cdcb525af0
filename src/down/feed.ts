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
import type { DeviceRules, Manifest, Table } from "../model/table.ts"
import type { Cell } from "../model/value.ts"
import { Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import { Slab, slabNumber, slabRow } from "../libsql/slab.ts"
import { EVERY_SCHOOL, NOBODY, planRoutes, type Route } from "./audience.ts"
import { tokenize } from "./body.ts"
import type { DecodeTable } from "./decode.ts"
import { type EnrolledSchool, makeEnrolled, type SchoolKey } from "./enrolled.ts"
import { heldByAll, heldBy as heldOf, heldBySchool, heldIn, isWrittenBySchools, keepWas } from "./held.ts"
import { cutAt, readHub } from "./hub-row.ts"
import { type Installation, installShapes, isUntold, type Paused, untoldFrom } from "./install.ts"
import { type FeedPage, makePages, type PageRequest } from "./page.ts"
import { horizonOf, prune } from "./prune.ts"
import { makeReaders, type Readers } from "./readers.ts"
import { makeRouting } from "./route.ts"
import { fillToken, type Shape } from "./shape.ts"
import { isTimed } from "./times.ts"
import { makeWatch, NEWCOMERS } from "./watch.ts"

const PRUNE_MS = 60_000

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

/** The open write transaction of an append; what it wrote becomes visible with its commit. */
export interface Appender {
  readonly rows: (rows: ReadonlyArray<Append>) => Effect.Effect<void, LibsqlError>
  readonly truncate: (table: FeedTable, at: number) => Effect.Effect<void, LibsqlError>
  /**
   * Everything so far is of txns that have ended: who got a row by them hears of it when the row goes. Whoever gets and loses
   * a row after the last such point never does.
   */
  readonly ended: Effect.Effect<void, LibsqlError>
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
const upsert = (more: string): string => `INSERT INTO entry (audience, class, seq, tbl, key, body, at, born)
  SELECT ${appended.number(0)}, ?4, ${appended.number(1)}, ?5, ${appended.first}, ${appended.second}, ${appended.number(2)}, ${appended.number(1)}
    FROM ${appended.from} WHERE true
  ON CONFLICT (tbl, key, audience) DO UPDATE SET class = excluded.class, seq = excluded.seq, body = excluded.body, at = excluded.at${more}`
const UPSERT = upsert("")
/** ?6: a JSON object, audience -> what its school has. */
const UPSERT_KEEPING = upsert(`, ${keepWas(heldIn("?6"), "excluded.seq")}`)

const NONE_HELD = "{}"

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
    readonly schools: Effect.Effect<ReadonlyArray<EnrolledSchool>>
    readonly manifest: (school: string) => Effect.Effect<Manifest>
    readonly cluster: Effect.Effect<string>
    readonly page: (request: PageRequest) => Effect.Effect<FeedPage, LibsqlError>
    readonly changed: (school: string, seq: number) => Effect.Effect<void>
    /** The number under which the rows of this school alone stand; null before its first row. */
    readonly audienceNo: (school: string) => Effect.Effect<number | null>
    /** Calls once when something after `seq` is there for the school, `seq` being the head of a page or later; the result ends the waiting. */
    readonly watch: (school: string, seq: number, onChange: () => void) => () => void
    /** A cut of this feed's present epoch, by number and name. */
    readonly knows: (cursor: Cursor) => Effect.Effect<boolean, LibsqlError>
    readonly reader: Readers
  }
>()("schoolbus/down/Feed") {
  static readonly layer: Layer.Layer<Feed, LibsqlError, Libsql> = Layer.effect(
    Feed,
    Effect.gen(function* () {
      const db = yield* Libsql
      yield* db.write((tx) =>
        tx.run(`INSERT INTO hub (id, epoch, commit_lsn) SELECT 1, ?, '0/0' WHERE NOT EXISTS (SELECT 1 FROM hub)`, [randomUUID()]),
      )

      const first = yield* db.read(readHub)
      let head = {
        epoch: first.epoch,
        seq: first.seq,
        cut: (yield* db.read((tx) => cutAt(tx, first.seq))) ?? "0",
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
      const valueOf = new Map<number, string>()
      for (const row of yield* db.read((tx) => tx.all<{ no: number; value: string }>("SELECT no, value FROM audience WHERE no > 0"))) {
        numberOf.set(row.value, row.no)
        valueOf.set(row.no, row.value)
      }

      const audienceNo = (school: string): number | null => numberOf.get(school) ?? null
      const enrolled = makeEnrolled(db)
      yield* enrolled.load
      const readers = yield* makeReaders(db)
      const { touched: tell, wake, watch, changed } = makeWatch(db, audienceNo)

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
          // Entries that were born after it are of txns that have not ended.
          let ended = head.seq
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
          let held: ReadonlyMap<string, number> | null = null
          const heldBy = (no: number): number => {
            held ??= heldBySchool(readers.now(), readers.sent, head.epoch)
            return no === EVERY_SCHOOL ? heldByAll(held) : heldOf(held, valueOf.get(no))
          }
          const heldText = (audiences: Iterable<number>): string => JSON.stringify(Object.fromEntries([...audiences].map((no) => [no, heldBy(no)])))
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
                    valueOf.set(no, audience.value)
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
                  ended: () => ended,
                  nextSeq: () => ++seq,
                  numberOf: intern,
                  classOf: classIn,
                  touch,
                  heldBy,
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
                  const replaced = new Set<number>()
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
                    for (const one of numbers ?? [no]) replaced.add(one)
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
                  let heldHere = NONE_HELD
                  const isKept = new Set(feedTables.flatMap((table) => (isWrittenBySchools(table) ? [table.id] : [])))
                  // Whoever held a row that is deleted or moved must be woken.
                  const gone = [...deletes, ...moves, ...spreads].map((row) => [row[2], row[3]])
                  if (gone.length > 0) {
                    const holders = yield* tx.all<{ audience: number }>(
                      `SELECT DISTINCT e.audience FROM json_each(?) j CROSS JOIN entry e ON e.tbl = j.value->>0 AND e.key = j.value->>1 WHERE e.body IS NOT NULL`,
                      [JSON.stringify(gone.map(([id, key]) => [Number(id), key]))],
                    )
                    for (const { audience } of holders) touch(audience)
                    heldHere = heldText(holders.map(({ audience }) => audience))
                  }
                  yield* tx.many("DELETE FROM column_time WHERE tbl = ? AND key = ?", timed)
                  const others = { deletes: "", moves: "AND audience <> ?", spreads: "AND audience NOT IN (SELECT value FROM json_each(?))" }
                  for (const [kind, leaving] of [
                    ["deletes", deletes],
                    ["moves", moves],
                    ["spreads", spreads],
                  ] as const) {
                    if (written > 0)
                      yield* tx.many(
                        `DELETE FROM entry WHERE tbl = ? AND key = ? AND body IS NOT NULL AND born > ? ${others[kind]}`,
                        leaving.map(([, , id = null, key = null, ...rest]) => [id, key, BigInt(ended), ...rest]),
                      )
                    yield* tx.many(
                      `UPDATE entry SET ${keepWas(heldIn("?3"), "?1")}, body = NULL, seq = ?1, at = ?2 WHERE tbl = ?4 AND key = ?5 AND body IS NOT NULL ${others[kind]}`,
                      leaving.map(([to = null, at = null, id = null, ...rest]) => [
                        to,
                        at,
                        isKept.has(Number(id)) ? heldHere : NONE_HELD,
                        id,
                        ...rest,
                      ]),
                    )
                  }
                  written += appends.length
                  const put = (table: FeedTable, rows: Slab, more = "") =>
                    replaced.size > 0 && isWrittenBySchools(table)
                      ? tx.bulk(`${UPSERT_KEEPING}${more}`, rows, [classIn(table), table.id, heldText(replaced)])
                      : tx.bulk(`${UPSERT}${more}`, rows, [classIn(table), table.id])
                  for (const [table, slab] of puts) yield* put(table, slab)
                  // What only completes columns that nobody is told of yet is no news.
                  yield* tx.many("UPDATE entry SET body = ? WHERE tbl = ? AND key = ? AND substr(body, 1, length(?)) = ?", completed)
                  for (const [table, slab] of careful) yield* put(table, slab, " WHERE entry.body IS NOT excluded.body")
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
                  if (written > 0) yield* tx.run("DELETE FROM entry WHERE tbl = ? AND born > ?", [table.id, ended])
                  const [count] = yield* tx.all<{ n: number }>("SELECT count(*) AS n FROM entry WHERE tbl = ? AND body IS NOT NULL", [table.id])
                  const holders = yield* tx.all<{ audience: number }>("SELECT DISTINCT audience FROM entry WHERE tbl = ? AND body IS NOT NULL", [
                    table.id,
                  ])
                  yield* tx.run("DELETE FROM column_time WHERE tbl = ?", [table.id])
                  yield* tx.run(
                    `UPDATE entry SET ${keepWas(heldIn("?4"), "?2 + r.n")}, body = NULL, at = ?1, seq = ?2 + r.n
                       FROM (SELECT audience AS a, key AS k, row_number() OVER () AS n FROM entry WHERE tbl = ?3 AND body IS NOT NULL) r
                      WHERE tbl = ?3 AND key = r.k AND audience = r.a`,
                    [at, seq, table.id, isWrittenBySchools(table) ? heldText(holders.map(({ audience }) => audience)) : NONE_HELD],
                  )
                  seq += count?.n ?? 0
                  for (const { audience } of holders) touch(audience)
                })
                const allEnded = Effect.gen(function* () {
                  yield* routing.settle
                  ended = seq
                })
                const position = (p: Position) =>
                  tx.ahead("UPDATE hub SET commit_lsn = ?, commit_xid = ?, commit_at = ?", [printLsn(p.lsn), p.xid, p.at])
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
                    `UPDATE entry SET ${keepWas("?5", "?1")}, seq = ?1 WHERE tbl = ?2 AND key = ?3 AND audience = ?4`,
                    rows.map(({ tbl, key, audience }) => [BigInt(++seq), BigInt(tbl), key, BigInt(audience), BigInt(heldBy(audience))]),
                  )
                  yield* tx.many(
                    `INSERT INTO entry (audience, class, seq, tbl, key, body, at, born) VALUES (?, ?, ?, ?, ?, NULL, 0, 0)
                       ON CONFLICT (tbl, key, audience) DO UPDATE SET seq = excluded.seq, born = 0`,
                    gone.map(([table, key]) => [BigInt(own), BigInt(table.class), BigInt(++seq), BigInt(table.id), key]),
                  )
                  if (gone.length > 0) touch(own)
                  return { rows: rows.length, gone: gone.length }
                })
                const appender: Appender & Installing = {
                  rows,
                  truncate,
                  ended: allEnded,
                  position,
                  bodies,
                  loaded,
                  again,
                  tx,
                  renumber,
                  reroute,
                  use,
                }
                const value = yield* body(appender)
                yield* routing.settle
                const isPublished = ready.size > 0 && (yield* publish(tx, withReady()))
                let cut = head.cut
                if (seq > head.seq) {
                  cut = newCut()
                  yield* tx.ahead("UPDATE hub SET seq = ?", [seq])
                  yield* tx.ahead("INSERT INTO cut (seq, id) VALUES (?, ?)", [seq, cut])
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
          if (hubRowsChanged) yield* enrolled.load
          if (fresh.length > 0) touched.add(NEWCOMERS)
          tell(touched, seq)
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
        yield* enrolled.load
        return installed
      })

      const forget = Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const horizon = horizonOf(yield* readers.all, head, enrolled.isOpen, now)
        yield* db.write((tx) => prune(tx, horizon, now))
      })
      // Not at once: what schools told a hub that was killed may not have been written down; by then they have told it again.
      yield* Effect.forkScoped(Effect.repeat(Effect.delay(Effect.ignoreCause(forget, { log: "Warn" }), PRUNE_MS), Schedule.forever))

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
                [JSON.stringify(keys), table.id, audienceNo(school) ?? EVERY_SCHOOL],
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
        key: (id) => Effect.sync(() => enrolled.keyOf(id)),
        schools: Effect.sync(enrolled.all),
        manifest: (school) =>
          Effect.sync(() => ({
            version: manifestVersion,
            school: enrolled.tell(school),
            tables: feedTables.filter((table) => !table.hubOnly).map((table) => table.shape.told),
            lives: Object.fromEntries(feedTables.filter((table) => !table.hubOnly).map((table) => [table.name, table.id])),
            ...(devices === undefined ? {} : { devices }),
          })),
        cluster: Effect.sync(() => cluster),
        page: makePages(db, audienceNo),
        changed,
        watch,
        audienceNo: (school) => Effect.sync(() => audienceNo(school)),
        knows: (cursor) =>
          cursor.epoch !== head.epoch
            ? Effect.succeed(false)
            : db.read((tx) => Effect.map(tx.all("SELECT 1 FROM cut WHERE seq = ? AND id = ?", [cursor.seq, cursor.cut]), (rows) => rows.length > 0)),
        reader: readers,
      })
    }),
  )
}
