/**
 * Opens the stream: schema, catalog, slot and life are checked against the feed, and resume.ts says how it goes on. Then
 * the stream runs, beside looks at the catalog and a pulse, until one of them fails. Never a silent start at "now".
 */
import { createHash, randomBytes } from "node:crypto"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import { elapsedMs } from "../elapsed.ts"
import type { Config } from "../config.ts"
import type { LibsqlError } from "../libsql/client.ts"
import { printLsn } from "../model/lsn.ts"
import { addressOf } from "../postgres/address.ts"
import { type Catalog, readCatalog } from "../postgres/catalog.ts"
import { readNames } from "../postgres/catalog-rows.ts"
import { ensureEventTriggers, watchTables } from "../postgres/watch.ts"
import type { PostgresError, PostgresPool } from "../postgres/client.ts"
import { looking } from "../postgres/health.ts"
import type { DatabaseUnfinished, HubMigrationRefused } from "../postgres/migrate.ts"
import { readGenerated } from "../postgres/generated.ts"
import { barredFrom, mendPublication, missingFrom, type PublicationRefused, readPublication } from "../postgres/publication.ts"
import {
  busyText,
  clusterIdentity,
  createSlot,
  dropSlot,
  endWalsender,
  findLeftSlots,
  findSlot,
  holdsTxn,
  isDecoding,
  isHeldUp,
  refusalOfOther,
  SlotRefused,
  type Walsender,
  waitOfMaking,
  walsenderOf,
} from "../postgres/slot.ts"
import { openWal, type WalStopped } from "../postgres/wal.ts"
import { isHubOnly, streamedTables } from "./audience.ts"
import { makeCompute } from "./computed.ts"
import { wal2jsonDecoder, wal2jsonOptions } from "./decode.ts"
import { pgoutputDecoder, pgoutputOptions } from "./pgoutput.ts"
import type { FeedChecks } from "./check.ts"
import { runDown } from "./down.ts"
import { ShapeChanged } from "./notices.ts"
import { MARKS, SCHEMA_CHANGES } from "./signals.ts"
import { Feed } from "./feed.ts"
import { type CatalogRefused, prepare, wantedTables } from "./prepare.ts"
import { beginLost } from "./lost.ts"
import { judgeStanding } from "./resume.ts"
import type { Shape } from "./shape.ts"

const LIFE_MS = 60_000
/** How often the catalog is looked at: beside the event trigger, and without one. */
const LOOK_MS = 30_000
const LOOK_ALONE_MS = 3_000
/** How often it is looked what the making of a slot waits for. */
const MAKING_LOOK_MS = 2_000
/** How long a walsender may take to end after its connection. */
const RELEASE_MS = 5_000
/** Streamed, but no tables of the feed. */
const SIGNALS = [MARKS, SCHEMA_CHANGES]
/** A commit at least this often: the pulse by which a stream without other traffic is known to be alive. */
const PULSE_MS = 10_000
/** A Postgres that takes longer to say what the walsender does is as good as away. */
const ANSWER_MS = 5_000

/** Another process reads the slot; this hub waits. */
export class SlotBusy extends Data.TaggedError("SlotBusy")<{ readonly slot: string; readonly message: string }> {}

export type SourceError =
  | CatalogRefused
  | SlotBusy
  | SlotRefused
  | PublicationRefused
  | HubMigrationRefused
  | DatabaseUnfinished
  | WalStopped
  | PostgresError
  | LibsqlError

/**
 * The slot's name, and that of the publication: `"schoolbus_head_office"`. Slots have lower case letters, digits and underscores, at most
 * 63; a name of a database that has more is told apart by six digits of its hash, `"schoolbus_head_office_5d8f0a"`, because a slot has
 * one name in the whole server.
 */
export const slotName = (url: string): string => {
  const { database } = addressOf(url)
  if (/^[a-z0-9_]{1,53}$/.test(database)) return `schoolbus_${database}`
  const plain = database
    .toLowerCase()
    .replace(/[^a-z0-9_]/g, "_")
    .slice(0, 46)
  return `schoolbus_${plain}_${createHash("sha256").update(database).digest("hex").slice(0, 6)}`
}

export interface SourceOptions {
  readonly url: string
  readonly pg: PostgresPool
  readonly config: Config
  readonly onStreaming: Effect.Effect<void>
  /** Told again and again while the slot cannot be made yet. */
  readonly onWaiting: (reason: string) => Effect.Effect<void>
  readonly onLoading: (table: string, rows: number, done: boolean) => Effect.Effect<void>
}

/** What Postgres says when the publication did not exist at the position that it decodes. */
const UNDEFINED_OBJECT = "42704"
/** What it says of a WAL segment that is gone, under the segment's name. */
const UNDEFINED_FILE = "58P01"
const SEGMENT = /\b[0-9A-F]{24}\b/
const DROP_RETRY_MS = 200

/**
 * A publication that was dropped and made again is missing at older positions for ever, as is WAL that somebody removed from Postgres'
 * folder or started anew (pg_resetwal): that slot can only be replaced.
 */
const isPastUse = ({ sqlstate, message }: WalStopped, { plugin }: Config): boolean =>
  (plugin === "pgoutput" && sqlstate === UNDEFINED_OBJECT) || (sqlstate === UNDEFINED_FILE && SEGMENT.test(message))
const replaceUnusable = (options: SourceOptions) => (error: SourceError | ShapeChanged) =>
  error._tag === "WalStopped" && isPastUse(error, options.config)
    ? Effect.gen(function* () {
        // The same SQLSTATE says that there is no slot.
        if ((yield* findSlot(options.pg, error.slot)) === null) return
        yield* Effect.logWarning(`${error.message}, at the position of the slot; the slot is replaced`)
        // Its walsender ends a moment after the connection.
        yield* Effect.retry(dropSlot(options.pg, error.slot), { times: 20, schedule: Schedule.spaced(DROP_RETRY_MS) })
      }).pipe(Effect.ignore({ log: "Warn" }))
    : Effect.void

/** Everything of the catalog that the sync depends on. */
const signatureOf = (catalog: Catalog): string => JSON.stringify(catalog.found.map(signatureOfTable))
const signatureOfTable = ({ columns, ...found }: Catalog["found"][number]): string => JSON.stringify([found, [...columns]])

const differing = (before: Catalog, now: Catalog): string =>
  now.found
    .flatMap((found, i) => {
      const old = before.found[i]
      return old !== undefined && signatureOfTable(old) === signatureOfTable(found) ? [] : [found.rule.name]
    })
    .join(", ")

const released = (pg: PostgresPool, name: string, ms: number): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    for (const until = (yield* elapsedMs) + ms; ; yield* Effect.sleep(10)) {
      const slot = yield* findSlot(pg, name)
      if (slot?.active !== true || (yield* elapsedMs) > until) return
    }
  })

/** SQLSTATE classes of statements that a DDL can make wrong: rights, names, types, values of another type. */
const ABOUT_SHAPES = /^(42|22|0A000)/

/** Nobody drops our own tables and makes them again but who restores a dump over them, be it one of this minute. */
const isMadeAnew = ({ found }: Catalog, shapes: ReadonlyArray<Shape>): boolean =>
  shapes.some(({ table, oid }) => {
    const now = isHubOnly(table) ? found.find(({ rule }) => rule.name === table.name) : undefined
    return now !== undefined && now.oid !== null && now.oid !== oid
  })

const streamedOf = ({ found, tables }: Catalog): ReadonlyArray<string> => {
  const wanted = streamedTables(tables)
  const fit = found.filter(({ rule, problems }) => wanted.has(rule.name) && problems.every(({ code }) => code === "link_column"))
  return [...fit.map(({ rule }) => rule.name), ...SIGNALS]
}

/** A table without a replica identity must not be published: its own updates would fail. */
const publishable = ({ found }: Catalog): ReadonlyArray<string> =>
  found.filter(({ problems }) => problems.every(({ code }) => code !== "no_key" && code !== "replica_identity")).map(({ rule }) => rule.name)

/** Tables that the publication lacks for want of a right pause alone. Not at their first start, and not our own: then nothing runs. */
const withBarred = (catalog: Catalog, publication: string, barred: ReadonlyMap<string, string>, shapes: ReadonlyArray<Shape>): Catalog => {
  const isKnown = (name: string) => !name.startsWith("schoolbus.") && shapes.some(({ table }) => table.name === name)
  if (barred.size === 0 || ![...barred.keys()].every(isKnown)) return catalog
  const found = catalog.found.map((one) => {
    const sql = barred.get(one.rule.name)
    if (sql === undefined) return one
    const text = `publication ${publication} does not hand over table ${one.rule.name}, and the hub's role, which owns not both, may not change that; a superuser runs: ${sql}`
    return { ...one, problems: [...one.problems, { code: "unpublished" as const, text }] }
  })
  return { ...catalog, found }
}

/** Asked when no byte has come for long. Of a dead line, what else waits for an answer over it is ended, and the slot is freed. */
const isLineDead = (pg: PostgresPool, walsender: Walsender | null): Effect.Effect<boolean> =>
  Effect.gen(function* () {
    const says = (asked: Effect.Effect<boolean, PostgresError>) => Effect.orElseSucceed(Effect.timeout(asked, ANSWER_MS), () => false)
    if (walsender !== null && (yield* says(isDecoding(pg, walsender)))) return false
    // The pulse may wait for one who holds our tables.
    if (yield* says(isHeldUp(pg))) return false
    yield* Effect.logWarning("the line to Postgres is dead, though nobody ended it; connecting again")
    yield* pg.reset
    if (walsender !== null) yield* Effect.ignore(Effect.timeout(endWalsender(pg, walsender), ANSWER_MS))
    return true
  })

/** One life of the stream, from the checks to the failure that ends it. A changed catalog is read again, and the stream goes on. */
export const runSource = (options: SourceOptions): Effect.Effect<never, SourceError, Feed | FeedChecks> =>
  Effect.gen(function* () {
    const feed = yield* Feed
    for (let isAgain = false; ; isAgain = true) {
      const changed: ShapeChanged = yield* runOnce(options, isAgain).pipe(Effect.catchTag("ShapeChanged", (error) => Effect.succeed(error)))
      yield* Effect.logInfo(`${changed.message}; reading the catalog again`)
      if (changed.recheck !== null) yield* feed.recheck(changed.recheck)
    }
  })

const runOnce = (options: SourceOptions, isAgain: boolean): Effect.Effect<never, SourceError | ShapeChanged, Feed | FeedChecks> =>
  Effect.scoped(
    Effect.gen(function* () {
      const { pg, url, config } = options
      const feed = yield* Feed
      const reopened = yield* Effect.forkScoped(feed.reopened)
      const shapes = yield* feed.shapes
      const prepared = yield* prepare(pg, config, shapes)
      const nameByOid = yield* readNames(
        pg,
        shapes.map(({ oid }) => oid),
      )
      const name = slotName(url)
      const identity = yield* clusterIdentity(pg)
      const state = yield* feed.state
      const isFresh = state.position.lsn === 0n
      // Its former walsender ends a moment after the connection.
      yield* released(pg, name, isAgain ? RELEASE_MS : RELEASE_MS / 10)
      const slot = yield* findSlot(pg, name)
      const refusal = slot === null ? null : refusalOfOther(slot)
      if (refusal !== null) return yield* new SlotRefused({ slot: name, message: refusal })
      if (slot?.active === true) {
        const wait = slot.confirmed === 0n ? yield* waitOfMaking(pg, name) : null
        return yield* new SlotBusy({ slot: name, message: wait ?? busyText(slot) })
      }

      const atFirst = config.plugin === "pgoutput" ? yield* readPublication(pg, name, streamedOf(prepared)) : null
      const barred = atFirst === null ? new Map<string, string>() : barredFrom(name, atFirst, streamedOf(prepared))
      const catalog = withBarred(prepared, name, barred, shapes)
      const streamed = streamedOf(catalog)
      const publication = catalog === prepared ? atFirst : yield* readPublication(pg, name, streamed)
      const held = publication === null ? [] : yield* feed.heldTables
      const marks = publication === null ? null : yield* feed.published
      const gaps =
        publication === null
          ? []
          : [...missingFrom(publication, streamed), ...streamed.filter((table) => marks?.[table] !== publication.marks[table])]
      const unpublished = held.filter((table) => gaps.includes(table))
      const [known] = yield* looking(pg, (session) =>
        session.query<{ life: string; older: boolean | null }>(
          "SELECT life, at < nullif($1, '')::timestamptz AS older FROM schoolbus.hub WHERE id = 1",
          [state.position.at],
        ),
      )
      const { compare, isUseless, isNewEpoch, isPutBack } = judgeStanding({
        feed: { ...state, lsn: state.position.lsn },
        slot,
        plugin: config.plugin,
        life: known?.life ?? null,
        isLifeOlder: known?.older === true,
        isOtherPast: !isFresh && (isMadeAnew(catalog, shapes) || (state.position.xid > 0 && !(yield* holdsTxn(pg, state.position)))),
        cluster: identity,
        publication: publication === null ? null : { name, exists: publication.exists, gaps: unpublished },
      })
      if (compare !== null) yield* Effect.logWarning(`${compare}: comparing every table by key; schools receive only what differs`)
      // First the slot goes, then the publication is mended: a start that breaks off between them finds no slot and compares too.
      if (isUseless) yield* dropSlot(pg, name)
      const noticed = [...new Set([...streamed, ...barred.keys()])]
      const readMarks = Effect.map(readPublication(pg, name, noticed), (found) => found.marks)
      if (publication !== null) yield* mendPublication(pg, name, streamed, publication, publishable(catalog))
      const published = publication === null ? {} : yield* readMarks
      if (publication !== null) yield* feed.setPublished(published)
      let from = state.position.lsn
      if (slot === null || isUseless) {
        const tellWait = Effect.flatMap(waitOfMaking(pg, name), (wait) => (wait === null ? Effect.void : options.onWaiting(wait)))
        from = yield* Effect.raceFirst(createSlot(pg, name, config.plugin), Effect.forever(Effect.delay(tellWait, MAKING_LOOK_MS)))
        yield* Effect.logInfo(`slot ${name} created for ${config.plugin} at ${printLsn(from)}`)
        for (const left of yield* findLeftSlots(pg, name))
          yield* Effect.logWarning(
            `nobody reads slot ${left} of this database, and Postgres keeps WAL for it; if it is from before the database got another name: SELECT pg_drop_replication_slot('${left}')`,
          )
      } else if (isFresh || compare !== null) from = slot.confirmed
      if (isNewEpoch) yield* feed.newEpoch
      // pgoutput may leave out what a transaction wrote before its table was published.
      const [next] = yield* pg.query<{ xid: string }>("SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS xid")
      const { tables, reread } = yield* feed.install(
        { catalog, nameByOid, sameDatabase: compare === null, now: yield* Clock.currentTimeMillis },
        config.devices,
      )
      // Links before the rows that they place.
      const copied = tables.filter((table) => table.paused === null && table.streamed).toSorted((a, b) => a.level - b.level)
      for (const { name: table, paused } of tables) {
        if (paused !== null)
          yield* Effect.logWarning(`table ${table} is paused: ${paused.reason}; when it is right: schoolbus tables resume ${table}`)
      }
      yield* watchTables(
        pg,
        tables.map((table) => table.name),
      )
      const hasTrigger = yield* ensureEventTriggers(pg)
      let walsender: Walsender | null = null
      const wal = yield* openWal({
        url,
        slot: name,
        from,
        plugin: config.plugin === "pgoutput" ? pgoutputOptions(name) : wal2jsonOptions([...copied.map((table) => table.name), ...SIGNALS]),
        isDead: Effect.suspend(() => isLineDead(pg, walsender)),
      })
      walsender = yield* walsenderOf(pg, name)
      const isExact = config.plugin === "pgoutput" || wal.tookOptional
      // From here on this hub is the one; what it found is made durable before the first row.
      const life = randomBytes(8).toString("hex")
      if (compare !== null || from !== state.position.lsn) {
        yield* feed.append((appender) =>
          Effect.gen(function* () {
            // A comparison that breaks off begins again with the next stream. What a first copy has read is as old as the rest.
            if (compare !== null) yield* appender.tx.run("INSERT OR IGNORE INTO unmet (tbl, key) SELECT id, '' FROM tables WHERE status <> 'up'")
            if (isPutBack) yield* beginLost(appender.tx, yield* Clock.currentTimeMillis)
            yield* appender.position({ lsn: from, xid: 0, at: "" })
          }),
        )
      }
      const renewLife = (value: string) =>
        Effect.gen(function* () {
          yield* feed.setLife(value, identity.systemId, identity.timeline)
          const { position } = yield* feed.state
          const [hub] = yield* pg.query<{ cluster: string }>(
            `INSERT INTO schoolbus.hub (id, life, lsn) VALUES (1, $1, $2)
             ON CONFLICT (id) DO UPDATE SET life = excluded.life, lsn = excluded.lsn, at = now() RETURNING cluster`,
            [value, printLsn(position.lsn)],
          )
          yield* feed.setCluster(hub?.cluster ?? "")
        })
      yield* renewLife(life)
      yield* options.onStreaming
      const generated = yield* pg.tx((session) => readGenerated(session, streamed))
      const opened = signatureOf(prepared)
      const notStreamed = config.plugin === "pgoutput" ? generated : generated.filter((column) => column.isVirtual)
      const look = Effect.gen(function* () {
        const now = yield* pg.tx((session) => readCatalog(session, wantedTables(config)))
        if (signatureOf(now) !== opened)
          return yield* new ShapeChanged({ recheck: null, message: `the catalog has changed (${differing(prepared, now)})` })
      })
      // Since Postgres 18 a publication that is gone stops nothing: its rows are left out in silence.
      const lookAtPublication = Effect.gen(function* () {
        const now = yield* readMarks
        if (noticed.some((table) => now[table] !== published[table]))
          return yield* new ShapeChanged({ recheck: null, message: `publication ${name} was changed beside the stream` })
      })
      const lookAround = Effect.gen(function* () {
        const { seq } = yield* feed.head
        yield* look
        if (publication !== null) yield* lookAtPublication
        yield* feed.setLooked(seq)
      })
      const watch = Effect.repeat(lookAround, Schedule.spaced(hasTrigger ? LOOK_MS : LOOK_ALONE_MS))
      const asked = Effect.andThen(
        Fiber.join(reopened),
        Effect.fail(new ShapeChanged({ recheck: null, message: "a table is to take its new shape" })),
      )
      return yield* Effect.raceAllFirst([
        runDown({
          pg,
          wal,
          decoder: config.plugin === "pgoutput" ? pgoutputDecoder : wal2jsonDecoder,
          isExact,
          notBefore: config.plugin === "pgoutput" ? BigInt(next?.xid ?? 0) : 0n,
          compute: makeCompute(pg, copied, notStreamed),
          tables: copied,
          reread: compare !== null ? new Set(copied.map((table) => table.id)) : reread,
          onLoading: options.onLoading,
          look,
        }).pipe(
          // A read that a DDL came in between of; else it would fail again and again.
          Effect.tapErrorTag("PostgresError", (error) => (ABOUT_SHAPES.test(error.sqlstate) ? look : Effect.void)),
        ),
        Effect.andThen(watch, Effect.never),
        asked,
        Effect.forever(
          Effect.delay(
            Effect.suspend(() => renewLife(randomBytes(8).toString("hex"))),
            LIFE_MS,
          ),
        ),
        Effect.forever(Effect.delay(pg.execute("UPDATE schoolbus.hub SET at = now()"), PULSE_MS)),
      ])
    }),
  ).pipe(Effect.tapError(replaceUnusable(options)))
