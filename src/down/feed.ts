/**
 * The hub's durable, compacted changefeed in feed.db. One writer appends whole txns with their commit LSN in one
 * transaction (`appends.ts`); readers get pages of one snapshot. A cut is complete when one snapshot has nothing left for the
 * school.
 */
import { quietly } from "../libsql/trouble.ts"
import { randomUUID } from "node:crypto"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { PausedTable } from "../link/protocol.ts"
import { parseLsn } from "../model/lsn.ts"
import type { Cursor } from "../model/cursor.ts"
import type { DeviceRules, Manifest } from "../model/table.ts"
import { Libsql, type LibsqlError } from "../libsql/client.ts"
import type { Appender } from "./append.ts"
import { type Known, makeAppends, publish, type Series } from "./appends.ts"
import { EVERY_SCHOOL, planRoutes } from "./audience.ts"
import { AudienceNumbers } from "./audience-numbers.ts"
import { type EnrolledSchool, makeEnrolled, type SchoolKey } from "./enrolled.ts"
import type { FeedTable, Position } from "./entry.ts"
import { cutAt, readHub } from "./hub-row.ts"
import { type Installation, installShapes } from "./install.ts"
import { type FeedPage, makePages, type PageListener, type PageRequest } from "./page.ts"
import { horizonOf, prune } from "./prune.ts"
import { type Lost, readLosing, readLost } from "./lost.ts"
import { makeReaders, type Readers } from "./readers.ts"
import { type Shape, withFormer } from "./shape.ts"
import { makeWatch, type Waiter } from "./watch.ts"

const PRUNE_MS = 60_000

export interface FeedState {
  readonly epoch: string
  readonly seq: number
  readonly position: Position
  readonly life: string | null
  readonly lifeLast: string | null
  readonly systemId: string | null
  readonly timeline: number | null
}

export class Feed extends Context.Service<
  Feed,
  {
    readonly state: Effect.Effect<FeedState, LibsqlError>
    readonly head: Effect.Effect<{ readonly epoch: string; readonly seq: number; readonly cut: string }>
    /** One transaction: everything the body appends, with the position that the slot may be told afterwards. */
    readonly append: <A, E>(body: (appender: Appender) => Effect.Effect<A, E>) => Effect.Effect<A, E | LibsqlError>
    /** Its scope ends when its last commit has. */
    readonly series: Effect.Effect<Series, never, Scope.Scope>
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
    /** Tables that are still compared with a Postgres that was put back; what that has lost. */
    readonly losing: Effect.Effect<ReadonlySet<number>, LibsqlError>
    readonly lost: (limit: number) => Effect.Effect<Lost, LibsqlError>
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
    /** The catalog was as the stream was opened with, when the feed had reached this seq. */
    readonly setLooked: (seq: number) => Effect.Effect<void, LibsqlError>
    readonly setLife: (life: string, systemId: string, timeline: number) => Effect.Effect<void, LibsqlError>
    /** Names head office for its schools, also after a dump was put into another server. */
    readonly setCluster: (cluster: string) => Effect.Effect<void, LibsqlError>
    readonly ready: Effect.Effect<boolean>
    readonly key: (id: string) => Effect.Effect<SchoolKey | null>
    /** The same as a plain call. */
    readonly keyNow: (id: string) => SchoolKey | null
    /** All keys as they stand: another object when any of them may have changed. */
    readonly keysNow: () => ReadonlyMap<string, SchoolKey>
    readonly schools: Effect.Effect<ReadonlyArray<EnrolledSchool>>
    /** Those of the schools' tables whose changes are not taken. */
    readonly pausedNow: () => ReadonlyArray<PausedTable>
    readonly manifest: (school: string) => Effect.Effect<Manifest>
    readonly cluster: Effect.Effect<string>
    readonly page: (request: PageRequest, listener?: PageListener) => Effect.Effect<FeedPage, LibsqlError>
    readonly changed: (school: string, seq: number) => Effect.Effect<void>
    /** The number under which the rows of this school alone stand; null before its first row. */
    readonly audienceNo: (school: string) => Effect.Effect<number | null>
    /** Tells once when something after `seq` is there for the waiter's school, `seq` being the head of a page or later. */
    readonly watch: (waiter: Waiter, seq: number) => void
    readonly unwatch: (waiter: Waiter) => void
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
      let cluster = first.cluster ?? ""
      let looked: number | null = null
      let paused: ReadonlyArray<PausedTable> = []
      let reopen = yield* Deferred.make<void>()
      const known: Known = {
        head: { epoch: first.epoch, seq: first.seq, cut: (yield* db.read((tx) => cutAt(tx, first.seq))) ?? "0" },
        manifest: first.manifest,
        devices: undefined,
        tables: [],
        routes: new Map(),
        frozen: new Set(),
      }

      const numbers = new AudienceNumbers(
        yield* db.read((tx) => tx.all<{ no: number; value: string }>("SELECT no, value FROM audience WHERE no > 0")),
      )
      const audienceNo = (school: string): number | null => numbers.find(school)
      const enrolled = makeEnrolled(db)
      yield* enrolled.load
      const readers = yield* makeReaders(db)
      const { touched: tell, wake, watch, unwatch, changed } = makeWatch(db, audienceNo)
      const { append, series, newEpoch } = makeAppends({ db, known, numbers, readers, enrol: enrolled.load, tell, wake })

      const install = Effect.fnUntraced(function* (installation: Installation, rules: DeviceRules | undefined) {
        known.devices = rules
        const installed = yield* append((appender, open) =>
          Effect.gen(function* () {
            const { tx, renumber, reroute, use } = appender
            const { tables, reread, rerouted } = yield* installShapes(tx, renumber, installation)
            const plan = planRoutes(tables)
            const levels = tables.map((table) => ({ ...table, level: plan.get(table.id)?.level ?? 0 }))
            use(levels, plan)
            known.frozen.clear()
            const isLoading = new Set(levels.flatMap(({ id, loading }) => (loading ? [id] : [])))
            for (const table of levels.toSorted((a, b) => a.level - b.level)) {
              if (!rerouted.has(table.id)) continue
              if (!table.loading && open.linksOf(table.id).some((link) => isLoading.has(link))) known.frozen.add(table.id)
              else yield* reroute(table)
            }
            yield* publish(tx, levels, rules)
            return { tables: levels, reread }
          }),
        )
        known.tables = installed.tables
        paused = installed.tables.flatMap(({ name, hubOnly, paused }) =>
          hubOnly || paused === null ? [] : [{ table: name, reason: paused.reason, since: paused.since }],
        )
        const before = known.manifest
        known.manifest = (yield* db.read(readHub)).manifest
        if (known.manifest !== before) wake(EVERY_SCHOOL)
        yield* enrolled.load
        return installed
      })

      const forget = Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const horizon = horizonOf(yield* readers.all, known.head, enrolled.isOpen, now)
        yield* db.write((tx) => prune(tx, horizon, now))
      })
      // Not at once: what schools told a hub that was killed may not have been written down; by then they have told it again.
      yield* Effect.forkScoped(Effect.repeat(Effect.delay(quietly("old deletes are not forgotten")(forget), PRUNE_MS), Schedule.forever))

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
        head: Effect.sync(() => known.head),
        append,
        series,
        install,
        tables: Effect.sync(() => known.tables),
        heldTables: db.read((tx) =>
          Effect.map(tx.all<{ name: string }>("SELECT name FROM tables WHERE status = 'ready' AND paused IS NULL AND recheck = 0"), (rows) =>
            rows.map(({ name }) => name),
          ),
        ),
        shapes: Effect.map(
          db.read((tx) => tx.all<{ shape: string }>("SELECT shape FROM tables")),
          (rows) => rows.map(({ shape }) => JSON.parse(shape) as Shape),
        ),
        losing: db.read(readLosing),
        lost: (limit) => db.read((tx) => readLost(tx, limit)),
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
            const table = known.tables.find((one) => one.name === name)
            if (table === undefined) return Effect.succeed(new Set<string>())
            const rows = db.read((tx) =>
              tx.all<{ key: string }>(
                `SELECT e.key FROM json_each(?) j CROSS JOIN entry e ON e.tbl = ? AND e.key = j.value WHERE e.audience IN (${EVERY_SCHOOL}, ?)`,
                [JSON.stringify(keys), table.id, audienceNo(school) ?? EVERY_SCHOOL],
              ),
            )
            return Effect.orDie(Effect.map(rows, (found) => new Set(found.map(({ key }) => key))))
          }),
        newEpoch: Effect.suspend(() => newEpoch(randomUUID())),
        published: db.read((tx) =>
          Effect.map(tx.all<{ publication: string | null }>("SELECT publication FROM hub"), ([row]) =>
            row?.publication == null ? null : (JSON.parse(row.publication) as Readonly<Record<string, string>>),
          ),
        ),
        setPublished: (marks) => Effect.asVoid(db.write((tx) => tx.run("UPDATE hub SET publication = ?", [JSON.stringify(marks)]))),
        setLooked: (seq) =>
          seq === looked
            ? Effect.void
            : Effect.gen(function* () {
                yield* db.write((tx) => tx.run("UPDATE hub SET looked = ?", [seq]))
                looked = seq
              }),
        setLife: (life, system, timeline) =>
          Effect.gen(function* () {
            yield* db.write((tx) => tx.run("UPDATE hub SET life_last = life, life = ?, system_id = ?, timeline = ?", [life, system, timeline]))
          }),
        setCluster: (name) =>
          Effect.gen(function* () {
            if (name !== cluster) yield* db.write((tx) => tx.run("UPDATE hub SET cluster = ?", [name]))
            cluster = name
          }),
        ready: Effect.sync(() => known.tables.length > 0 && known.tables.every((table) => !table.loading || table.paused !== null)),
        key: (id) => Effect.sync(() => enrolled.keyOf(id)),
        keyNow: enrolled.keyOf,
        keysNow: enrolled.keys,
        schools: Effect.sync(enrolled.all),
        pausedNow: () => paused,
        manifest: (school) =>
          Effect.sync(() => ({
            version: known.manifest,
            school: enrolled.tell(school),
            tables: known.tables.filter((table) => !table.hubOnly).map(({ shape }) => withFormer(shape.told, shape)),
            feed: first.file,
            lives: Object.fromEntries(known.tables.filter((table) => !table.hubOnly).map((table) => [table.name, table.id])),
            ...(known.devices === undefined ? {} : { devices: known.devices }),
          })),
        cluster: Effect.sync(() => cluster),
        page: makePages(db, audienceNo),
        changed,
        watch,
        unwatch,
        audienceNo: (school) => Effect.sync(() => audienceNo(school)),
        knows: (cursor) =>
          cursor.epoch !== known.head.epoch
            ? Effect.succeed(false)
            : db.read((tx) => Effect.map(tx.all("SELECT 1 FROM cut WHERE seq = ? AND id = ?", [cursor.seq, cursor.cut]), (rows) => rows.length > 0)),
        reader: readers,
      })
    }),
  )
}
