/**
 * The hub's durable, compacted changefeed in feed.db. One writer appends whole txns with their commit LSN in one
 * transaction; readers get pages of one snapshot. A cut is complete when one snapshot has nothing left for the school.
 */
import { randomBytes, randomUUID } from "node:crypto"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { parseLsn } from "../model/lsn.ts"
import type { Cursor } from "../model/cursor.ts"
import type { DeviceRules, Manifest } from "../model/table.ts"
import { Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import { type Appender, type Installing, makeAppender } from "./append.ts"
import { EVERY_SCHOOL, planRoutes, type Route } from "./audience.ts"
import { AudienceNumbers } from "./audience-numbers.ts"
import { type EnrolledSchool, makeEnrolled, type SchoolKey } from "./enrolled.ts"
import type { FeedTable, Position } from "./entry.ts"
import { heldBySchool } from "./held.ts"
import { cutAt, readHub } from "./hub-row.ts"
import { type Installation, installShapes } from "./install.ts"
import { OpenAppend } from "./open-append.ts"
import { type FeedPage, makePages, type PageListener, type PageRequest } from "./page.ts"
import { horizonOf, prune } from "./prune.ts"
import { type Lost, readLosing, readLost } from "./lost.ts"
import { makeReaders, type Readers } from "./readers.ts"
import type { Shape } from "./shape.ts"
import { makeWatch, NEWCOMERS, type Waiter } from "./watch.ts"

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

const newCut = (): string => randomBytes(8).toString("hex")

/** The appends of one stream: each begins while the one before it is being committed, and goes with it when that fails. */
export interface Series {
  /** Answers when its commit is under way; `onCommitted` is called once it stands, of one append after the other. */
  readonly append: <A, E>(
    body: (appender: Appender) => Effect.Effect<A, E>,
    onCommitted: (value: A) => Effect.Effect<void>,
  ) => Effect.Effect<void, E | LibsqlError>
  /** All that was appended is committed. */
  readonly committed: Effect.Effect<void, LibsqlError>
  /** Fails with the first commit that does: nothing more can be appended then. */
  readonly failed: Effect.Effect<never, LibsqlError>
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
    readonly setLife: (life: string, systemId: string, timeline: number) => Effect.Effect<void, LibsqlError>
    /** Names head office for its schools, also after a dump was put into another server. */
    readonly setCluster: (cluster: string) => Effect.Effect<void, LibsqlError>
    readonly ready: Effect.Effect<boolean>
    readonly key: (id: string) => Effect.Effect<SchoolKey | null>
    /** The same as a plain call. */
    readonly keyNow: (id: string) => SchoolKey | null
    readonly schools: Effect.Effect<ReadonlyArray<EnrolledSchool>>
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

      const numbers = new AudienceNumbers(
        yield* db.read((tx) => tx.all<{ no: number; value: string }>("SELECT no, value FROM audience WHERE no > 0")),
      )
      const audienceNo = (school: string): number | null => numbers.find(school)
      const enrolled = makeEnrolled(db)
      yield* enrolled.load
      const readers = yield* makeReaders(db)
      const { touched: tell, wake, watch, unwatch, changed } = makeWatch(db, audienceNo)

      // One append at a time, from where the one before it ends. Only its body can be interrupted: what the file holds and what
      // is remembered of it never part.
      const alone = Semaphore.makeUnsafe(1)
      /** Where the next append begins: ahead of the head while a commit is under way. */
      let tip = { seq: head.seq, cut: head.cut }
      let underWay: Effect.Effect<void, LibsqlError> = Effect.void
      type Body<A, E> = (appender: Appender & Installing, open: OpenAppend) => Effect.Effect<A, E>
      /**
       * Answers when the commit is under way; `settled`: it stands, and so does what is remembered of it. `before`: the commit
       * that it goes with when that fails.
       */
      const begin = <A, E>(body: Body<A, E>, before: Effect.Effect<void, LibsqlError>) =>
        Effect.gen(function* () {
          const withReady = (ready: ReadonlyMap<number, Shape>) =>
            feedTables.map((table) => {
              const shape = ready.get(table.id)
              return shape === undefined ? table : { ...table, table: shape.table, shape, loading: false, recheck: false }
            })
          const written = db.writeAhead((tx) =>
            Effect.gen(function* () {
              const held = () => heldBySchool(readers.now(), readers.sent, head.epoch)
              const open = new OpenAppend({ tx, seq: tip.seq, tables: feedTables, routes, frozen, numbers, held })
              const { appender, settle } = makeAppender(open)
              const value = yield* body(appender, open)
              yield* settle
              const isPublished = open.ready.size > 0 && (yield* publish(tx, withReady(open.ready)))
              let { cut } = tip
              if (open.seq > tip.seq) {
                cut = newCut()
                yield* tx.ahead("UPDATE hub SET seq = ?", [open.seq])
                yield* tx.ahead("INSERT INTO cut (seq, id) VALUES (?, ?)", [open.seq, cut])
              }
              return { value, cut, isPublished, isNamed: numbers.hasFresh, open }
            }).pipe(
              // Whatever it met in a file without the one before.
              Effect.catchCause((cause) => Effect.andThen(before, Effect.failCause(cause))),
              Effect.tap(before),
            ),
          )
          const { value: done, committed } = yield* written.pipe(Effect.tapCause(() => Effect.sync(() => numbers.forget())))
          const { value, cut, isPublished, isNamed, open } = done
          const { seq } = open
          tip = { seq, cut }
          const apply = Effect.gen(function* () {
            head = { epoch: head.epoch, seq, cut }
            routes = open.routes
            if (open.ready.size > 0) feedTables = withReady(open.ready)
            if (isPublished) manifestVersion++
            if (open.hubRowsChanged) yield* enrolled.load
            if (isNamed) {
              numbers.keep()
              open.touch(NEWCOMERS)
            }
            tell(open.touched, seq)
            if (isPublished) wake(EVERY_SCHOOL)
          })
          const lose = Effect.sync(() => {
            tip = { seq: head.seq, cut: head.cut }
            if (isNamed) numbers.forget()
          })
          /** It changes nothing that is remembered but the head: the next append may begin before it has settled. */
          const isPlain = open.ready.size === 0 && !open.hubRowsChanged && !isNamed
          return {
            value,
            isPlain,
            settled: Effect.andThen(
              Effect.tapCause(committed, () => lose),
              apply,
            ),
          }
        })
      const append = <A, E>(body: Body<A, E>): Effect.Effect<A, E | LibsqlError> =>
        alone.withPermit(
          Effect.uninterruptibleMask((restore) =>
            Effect.gen(function* () {
              yield* Effect.ignore(underWay)
              const { value, settled } = yield* begin((appender, open) => restore(body(appender, open)), Effect.void)
              yield* settled
              return value
            }),
          ),
        )

      const series: Effect.Effect<Series, never, Scope.Scope> = Effect.gen(function* () {
        const failed = Deferred.makeUnsafe<never, LibsqlError>()
        let last: Effect.Effect<void, LibsqlError> = Effect.void
        yield* Effect.addFinalizer(() => Effect.ignore(last))
        const appendNext: Series["append"] = (body, onCommitted) =>
          alone.withPermit(
            Effect.uninterruptibleMask((restore) =>
              Effect.gen(function* () {
                const { value, isPlain, settled } = yield* begin((appender) => restore(body(appender)), last)
                const ending = Effect.andThen(
                  settled,
                  Effect.suspend(() => onCommitted(value)),
                )
                last = Fiber.join(yield* Effect.forkDetach(Effect.tapError(ending, (error) => Deferred.fail(failed, error))))
                underWay = last
                if (!isPlain) yield* last
              }),
            ),
          )
        return { append: appendNext, committed: Effect.suspend(() => last), failed: Deferred.await(failed) }
      })

      const install = Effect.fnUntraced(function* (installation: Installation, rules: DeviceRules | undefined) {
        devices = rules
        const installed = yield* append((appender, open) =>
          Effect.gen(function* () {
            const { tx, renumber, reroute, use } = appender
            const { tables, reread, rerouted } = yield* installShapes(tx, renumber, installation)
            const plan = planRoutes(tables)
            const levels = tables.map((table) => ({ ...table, level: plan.get(table.id)?.level ?? 0 }))
            use(levels, plan)
            frozen.clear()
            const isLoading = new Set(levels.flatMap(({ id, loading }) => (loading ? [id] : [])))
            for (const table of levels.toSorted((a, b) => a.level - b.level)) {
              if (!rerouted.has(table.id)) continue
              if (!table.loading && open.linksOf(table.id).some((link) => isLoading.has(link))) frozen.add(table.id)
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
        series,
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
        keyNow: enrolled.keyOf,
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
        unwatch,
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
