/** What runs on the VPS: its layers, wired once. */
import { join } from "node:path"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { type Config, loadConfig } from "./config.ts"
import { FeedChecks } from "./down/check.ts"
import { Compare } from "./down/compare.ts"
import { Feed } from "./down/feed.ts"
import { feedTimes } from "./down/times.ts"
import { pushedTable, type Shape } from "./down/shape.ts"
import { CatalogRefused, prepare } from "./down/prepare.ts"
import { reopen } from "./down/reopen.ts"
import { runSource, type SourceError, slotName } from "./down/source.ts"
import { Calls, hubSyncNow } from "./http/calls.ts"
import { listen } from "./http/listen.ts"
import { authFor, makeApp } from "./http/server.ts"
import { conflictRoutes } from "./http/conflicts.ts"
import { healthRoutes } from "./http/health.ts"
import { openLink } from "./http/link.ts"
import { tableRoutes } from "./http/tables.ts"
import { settingsRoutes } from "./http/settings.ts"
import { slotRoutes, syncRoutes } from "./http/sync.ts"
import { verifyRoutes } from "./http/verify.ts"
import { Libsql } from "./libsql/client.ts"
import { cureOf } from "./libsql/cure.ts"
import { lockIn } from "./libsql/lock.ts"
import { migrateFile } from "./libsql/migrate.ts"
import { untilFileServes, watchPlace } from "./libsql/trouble.ts"
import type { Catalog } from "./postgres/catalog.ts"
import { Postgres, type PostgresPool } from "./postgres/client.ts"
import { keyProblems } from "./postgres/key-types.ts"
import { hubScript } from "./postgres/migrate.ts"
import { addressOf } from "./postgres/address.ts"
import { isTurnedOff, withRemedy } from "./postgres/remedy.ts"
import { stopSignal } from "./runtime.ts"
import { HubFactStore } from "./status/facts.ts"
import { hubVerify } from "./status/hub-verify.ts"
import { hubStatus } from "./status/hub.ts"
import { Settings } from "./status/settings.ts"
import { SyncNow } from "./status/sync-now.ts"
import { hubConflicts, hubQuarantine, hubRuns } from "./status/hub-records.ts"
import { Apply } from "./up/apply.ts"
import { Tables } from "./up/tables.ts"
import { tendConflicts, tendQuarantine } from "./up/tend.ts"
import { forgetTaken } from "./up/taken.ts"
import { forgetTimes } from "./up/times.ts"

export interface HubOptions {
  readonly config: string
  readonly databaseUrl: string
  readonly dataDir: string
  readonly port: number
  readonly host: string
  readonly adminToken: string | null
}

/** How often a Postgres that does not answer is asked whether it does again. */
const ANSWER_LOOK_MS = 1_000
/** While another hub holds the slot. */
const STANDBY_MS = 2_000
/** Between two looks at what waits in quarantine. */
const TEND_MS = 10_000
/** One request of the link: a part of a batch is the largest. */
/** While processors are scarce, those who ask the hub something come before the feed. */
const FEED_NICENESS = 5
const MAX_BODY_BYTES = 16 * 1024 * 1024
const IDLE_SECONDS = 250

const sentence = (error: SourceError): string => {
  switch (error._tag) {
    case "PostgresError":
      return error.sqlstate === ""
        ? `Postgres does not answer: ${error.message}`
        : withRemedy(`${error.message} (${error.sqlstate})`, error.sqlstate, error.routine)
    case "WalStopped":
      return withRemedy(error.message, error.sqlstate, error.routine)
    case "LibsqlError":
      return [error.message, cureOf(error.code)].filter((part) => part !== null).join("; ")
    default:
      return error.message
  }
}

/** The stream, opened again whenever it ends; what it is doing stands in the facts. */
const streamLoop = (options: { readonly url: string; readonly pg: PostgresPool; readonly config: Config }) =>
  Effect.gen(function* () {
    const facts = yield* HubFactStore
    const onLoading = (table: string, rows: number, done: boolean) =>
      Effect.gen(function* () {
        const { loading } = yield* facts.get
        const others = loading.filter((entry) => entry.table !== table)
        yield* facts.set({ loading: done ? others : [...others, { table, rows, total: rows }] })
      })
    let told = ""
    const tell = (text: string) =>
      Effect.suspend(() => {
        const isNew = text !== told
        told = text
        return isNew ? Effect.logWarning(`stream: ${text}`) : Effect.void
      })
    const life = runSource({
      ...options,
      onStreaming: Effect.andThen(
        facts.set({ stream: "streaming", streamDetail: "", postgres: true, loading: [] }),
        Effect.suspend(() => {
          told = ""
          return Effect.logInfo(`streaming from slot ${slotName(options.url)}`)
        }),
      ),
      onWaiting: (reason) => Effect.andThen(facts.set({ stream: "down", streamDetail: reason, postgres: true }), tell(reason)),
      onLoading,
    })
    // On a line that is dead without an end, everything else would wait for answers that never come.
    const isUnanswered = (error: SourceError) => error._tag === "PostgresError" && error.sqlstate === ""
    const attempt = life.pipe(
      Effect.tapError((error) => (isUnanswered(error) ? options.pg.reset : Effect.void)),
      Effect.tapError((error) =>
        error._tag === "SlotBusy" || (error._tag === "WalStopped" && error.busy)
          ? facts.set({ stream: "standby", streamDetail: sentence(error), postgres: true })
          : Effect.andThen(facts.set({ stream: "down", streamDetail: sentence(error), postgres: !isUnanswered(error) }), tell(sentence(error))),
      ),
    )
    const answers = Effect.delay(options.pg.query("SELECT 1"), ANSWER_LOOK_MS).pipe(Effect.eventually, Effect.asVoid)
    yield* reopen(attempt, (error) => (error._tag === "SlotBusy" ? Effect.sleep(STANDBY_MS) : isUnanswered(error) ? answers : Effect.never))
  })

const refuseUnsafeKeys = ({ tables }: Catalog, known: ReadonlyArray<Shape>) => {
  const problems = keyProblems(tables.filter((table) => !known.some((shape) => shape.table.name === table.name)))
  return problems.length === 0 ? Effect.void : Effect.fail(new CatalogRefused({ problems }))
}

/** What waits in quarantine for something of head office is looked at from time to time. */
const tend = (pg: PostgresPool, tables: Context.Service.Shape<typeof Tables>) =>
  Effect.gen(function* () {
    let after = { quarantine: "", conflicts: "" }
    const round = Effect.gen(function* () {
      const all = yield* tables.all
      const quarantine = yield* tendQuarantine(pg, { ...tables, tables: all }, after.quarantine)
      after = { quarantine, conflicts: yield* tendConflicts(pg, all, after.conflicts) }
    })
    yield* Effect.forkScoped(Effect.repeat(Effect.ignoreCause(round, { log: "Debug" }), Schedule.spaced(TEND_MS)))
    const forget = Effect.andThen(forgetTimes(pg), forgetTaken(pg))
    yield* Effect.forkScoped(Effect.repeat(Effect.ignoreCause(forget, { log: "Debug" }), Schedule.spaced("1 hour")))
  })

/** Every school is asked to sync when the hub starts, and again in the interval that a person has set. */
const askSchools = Effect.gen(function* () {
  const feed = yield* Feed
  const settings = yield* Settings
  const syncNow = yield* SyncNow
  while (!(yield* feed.ready)) yield* Effect.sleep(STANDBY_MS)
  for (let by = "start"; ; by = "schedule") {
    const { auto, intervalMinutes } = yield* settings.get
    if (by === "start" || (auto && intervalMinutes > 0)) {
      const { message } = yield* Effect.orDie(syncNow.trigger({ direction: "both", tables: [], by }))
      yield* Effect.logInfo(`sync (${by}): ${message}`)
    }
    yield* Effect.race(auto && intervalMinutes > 0 ? Effect.sleep(intervalMinutes * 60_000) : Effect.never, settings.changed)
  }
})

/** Runs until it is interrupted; its layers close in reverse. */
const hub = (options: HubOptions, config: Config) =>
  Effect.gen(function* () {
    const pg = yield* Postgres
    const facts = yield* HubFactStore
    const { shapes } = yield* Feed
    yield* facts.set({ stream: "starting" })
    // A config that Postgres contradicts is refused before anything runs; a Postgres that is away is waited for.
    const known = yield* shapes
    yield* prepare(pg, config, known).pipe(
      Effect.flatMap((catalog) => refuseUnsafeKeys(catalog, known)),
      Effect.catchTag("PostgresError", (error) =>
        error.sqlstate === "42501" || error.sqlstate === "3D000" || error.sqlstate.startsWith("28")
          ? Effect.fail(error)
          : Effect.logWarning(error.sqlstate === "" ? `Postgres does not answer yet: ${error.message}` : sentence(error)),
      ),
      // Told and waited for where the stream is opened.
      Effect.catchTag("DatabaseUnfinished", () => Effect.void),
    )
    const link = yield* openLink({ dataDir: options.dataDir })
    const plugins = [
      link.routes,
      yield* healthRoutes,
      yield* syncRoutes,
      yield* settingsRoutes,
      yield* conflictRoutes,
      yield* verifyRoutes,
      yield* tableRoutes,
      yield* slotRoutes,
    ]
    const app = makeApp({ plugins, auth: authFor(options) })
    const { port, host: hostname } = options
    const fetch = (request: Request) => link.direct(request) ?? app.handle(request)
    const server = yield* listen({ port, hostname, idleSeconds: IDLE_SECONDS, maxBodyBytes: MAX_BODY_BYTES, fetch })
    yield* Effect.logInfo(`hub listens on http://${hostname}:${server.port}`)
    yield* tend(pg, yield* Tables)
    yield* Effect.forkScoped(askSchools)
    return yield* Effect.raceFirst(
      streamLoop({ url: options.databaseUrl, pg, config }),
      watchPlace(yield* Libsql, () => Effect.void),
    )
  })

const layers = (options: HubOptions) => {
  const file = Layer.effect(
    Libsql,
    Effect.gen(function* () {
      const db = yield* Libsql
      yield* migrateFile(db, "feed")
      return db
    }),
  ).pipe(Layer.provide(Libsql.layer(join(options.dataDir, "feed.db"), { niceness: FEED_NICENESS })))
  const postgres = Postgres.layer(options.databaseUrl, "hub")
  const feed = Feed.layer.pipe(Layer.provideMerge(file))
  const tables = Layer.effect(
    Tables,
    Effect.gen(function* () {
      const { tables: list, had, manifest } = yield* Feed
      const db = yield* Libsql
      return {
        all: Effect.map(list, (all) => new Map(all.map((entry) => [entry.name, pushedTable(entry)]))),
        version: Effect.map(manifest(""), ({ version }) => version),
        had,
        times: (name, keys) => Effect.flatMap(list, (all) => feedTimes(db, all, name, keys)),
      }
    }),
  )
  const base = Layer.mergeAll(
    postgres,
    FeedChecks.layer,
    Calls.layer.pipe(Layer.provideMerge(HubFactStore.layer)),
    Settings.layer(null).pipe(Layer.provide(file)),
    tables.pipe(Layer.provideMerge(feed)),
  )
  const services = Layer.mergeAll(Compare.layer, hubVerify, Apply.layer, hubStatus, hubConflicts, hubQuarantine, hubRuns, hubSyncNow)
  return services.pipe(Layer.provideMerge(base))
}

const roleOf = (url: string): string => addressOf(url).user
const databaseOf = (url: string): string => addressOf(url).database

/** Exit code: 0 after SIGTERM or SIGINT, 69 when another process uses the feed file or the port, 77 when Postgres does not let the role do it, 78 when the config cannot be used. */
export const runHub = async (options: HubOptions): Promise<number> => {
  const stop = stopSignal()
  const fail = (code: number, text: string): number => {
    process.stderr.write(`${text}\n`)
    return code
  }
  const program = Effect.gen(function* () {
    const config = yield* loadConfig(options.config)
    yield* untilFileServes(lockIn(options.dataDir, "feed.db"))
    // What runs ends before what it runs on, also before another attempt.
    return yield* untilFileServes(Effect.scoped(hub(options, config)).pipe(Effect.provide(layers(options))))
  }).pipe(
    Effect.scoped,
    Effect.as(0),
    Effect.catchTags({
      ConfigRefused: (error) => Effect.sync(() => fail(78, `config refused: ${error.message}`)),
      CatalogRefused: (error) => Effect.sync(() => fail(78, `these tables cannot be synced as the config says:\n${error.message}`)),
      AlreadyRunning: (error) => Effect.sync(() => fail(69, error.message)),
      CannotListen: (error) => Effect.sync(() => fail(69, error.message)),
      HubMigrationRefused: (error) => Effect.sync(() => fail(78, error.message)),
      MigrationRefused: (error) => Effect.sync(() => fail(78, error.message)),
      PostgresError: (error) =>
        error.sqlstate === "42501" && !isTurnedOff(error)
          ? Effect.map(hubScript(roleOf(options.databaseUrl), error.message.includes("schoolbus")), (script) => {
              process.stdout.write(script)
              return fail(
                77,
                `the role of --database-url may not set up schema "schoolbus": ${error.message}.\nA DBA can do it once: the SQL stands on standard output (schoolbus hub … > schoolbus.sql; psql -f schoolbus.sql).\nOr: GRANT CREATE ON DATABASE ${databaseOf(options.databaseUrl)} TO ${roleOf(options.databaseUrl)};`,
              )
            })
          : Effect.sync(() =>
              fail(
                /^(28|42501)/.test(error.sqlstate) ? 77 : 69,
                withRemedy(`Postgres refuses the connection: ${error.message}`, error.sqlstate, error.routine),
              ),
            ),
    }),
  )
  try {
    return await Effect.runPromise(program, { signal: stop })
  } catch (error) {
    if (stop.aborted) return 0
    return fail(1, `hub stopped: ${error instanceof Error ? error.message : String(error)}`)
  }
}
