/** What runs in a school: its layers, wired once. */
import { join } from "node:path"
import { Cron } from "croner"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { Deliver } from "./down/deliver.ts"
import { guardTriggers, SCHEMA_POLL_MS } from "./down/guard.ts"
import { deviceRoutes } from "./http/devices.ts"
import { conflictRoutes } from "./http/conflicts.ts"
import { healthRoutes } from "./http/health.ts"
import { listen } from "./http/listen.ts"
import { authFor, makeApp } from "./http/server.ts"
import { settingsRoutes } from "./http/settings.ts"
import { syncRoutes } from "./http/sync.ts"
import { verifyRoutes } from "./http/verify.ts"
import { Devices } from "./iclock/devices.ts"
import { Roster } from "./iclock/fill.ts"
import { listenIclock } from "./iclock/front.ts"
import { Commands } from "./iclock/queue.ts"
import { Uploads } from "./iclock/uploads.ts"
import { Libsql } from "./libsql/client.ts"
import { newLife } from "./libsql/life.ts"
import { lockIn } from "./libsql/lock.ts"
import { migrateFile } from "./libsql/migrate.ts"
import { quietly, untilFileServes, watchPlace } from "./libsql/trouble.ts"
import type { Metered } from "./link/metered.ts"
import { OpenLink } from "./link/open.ts"
import { stopSignal } from "./runtime.ts"
import { sessions } from "./session/session.ts"
import { SchoolFactStore } from "./status/facts.ts"
import { refuseOtherSchool, refuseUnknownTables } from "./status/records.ts"
import { schoolConflicts, schoolQuarantine, schoolRuns } from "./status/school-records.ts"
import { Session } from "./status/run.ts"
import { meteredOf, Settings } from "./status/settings.ts"
import { schoolStatus } from "./status/school.ts"
import { schoolVerify, verifyNightly } from "./status/school-verify.ts"
import { SyncNow } from "./status/sync-now.ts"
import { trim } from "./up/trim.ts"
import { startWorkers, subscribedTables } from "./workers/host.ts"

export interface SchoolOptions {
  readonly hub: string
  readonly key: string
  readonly dataDir: string
  readonly port: number
  readonly iclockPort: number | null
  readonly host: string
  /** Where terminals call; null: `host`. They are on the LAN while operators may stay on this machine. */
  readonly iclockHost: string | null
  readonly adminToken: string | null
  readonly adopt: boolean
  /** Once, for a file that was copied or put back: it starts a new life under a new name. */
  readonly newLife?: boolean
  /** null: the link may be used as it comes. */
  readonly metered: Metered | null
  /** Folder of worker modules; null = none. */
  readonly workers: string | null
}

const SYNC_CRON = "* * * * *"
const TRIM_CRON = "17 3 * * *"
const VERIFY_CRON = "41 2 * * *"
/** Longer than a person waits for an answer; a live status sends sooner. */
const IDLE_SECONDS = 250
const MAX_BODY_BYTES = 1024 * 1024
/** Nightly comparisons of all schools do not meet at the hub at the same minute. */
const VERIFY_SPREAD_MS = 60 * 60_000

const syncNow = Layer.effect(
  SyncNow,
  Effect.gen(function* () {
    const session = yield* Session
    const facts = yield* SchoolFactStore
    const db = yield* Libsql
    const synced = Effect.orDie(db.read((tx) => tx.all<{ name: string; local: string }>("SELECT name, local FROM schoolbus_tables")))
    return SyncNow.of({
      trigger: (request) =>
        Effect.gen(function* () {
          const [own] = yield* Effect.orDie(db.read((tx) => tx.all<{ school: string | null }>("SELECT school FROM schoolbus_state")))
          yield* refuseOtherSchool(request.school, own?.school ?? null)
          const { link, paused } = yield* facts.get
          // Rows travel as whole batches and cuts, so a table that is named takes the others along.
          if (request.tables.length > 0) yield* refuseUnknownTables(request.tables, yield* synced)
          if (paused) {
            // It may have been resumed since the node last asked.
            yield* session.wake.open
            const message = `head office has paused this school; it goes on by itself after, at head office: schoolbus schools resume ${own?.school ?? ""}`
            return { started: false, message, run: null, schools: [] }
          }
          const asked = yield* session.ask(request.by, request.direction)
          const message = link === "online" ? "sync started" : "the hub is not reachable at the moment; trying now, and again by itself until it is"
          return { started: true, message, run: asked?.run ?? null, schools: [] }
        }),
    })
  }),
)

const cron = <E extends { readonly message: string }>(what: string, pattern: string, job: Effect.Effect<unknown, E>) => {
  const quiet = quietly(what)
  return Effect.acquireRelease(
    Effect.sync(() => new Cron(pattern, () => void Effect.runFork(quiet(job)))),
    (running) => Effect.sync(() => running.stop()),
  )
}

const school = (options: SchoolOptions) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const deliver = yield* Deliver
    const run = yield* Session
    yield* deliver.resume
    const streams = yield* subscribedTables(options.workers)
    const nightly = Effect.provide(verifyNightly, yield* Effect.context<Libsql | OpenLink | SchoolFactStore>())
    // A file that cannot be used stops the sync, not the node: terminals and programs go on.
    yield* guardTriggers({ streams, adopt: options.adopt }, true).pipe(Effect.catchTag("TableRefused", (error) => Effect.logError(error.message)))
    const plugins = [yield* healthRoutes, yield* syncRoutes, yield* settingsRoutes, yield* conflictRoutes, yield* verifyRoutes, yield* deviceRoutes]
    const app = makeApp({ plugins, auth: authFor(options) })
    const { port, host: hostname } = options
    const server = yield* listen({ port, hostname, idleSeconds: IDLE_SECONDS, maxBodyBytes: MAX_BODY_BYTES, fetch: (request) => app.handle(request) })
    yield* Effect.logInfo(`school node listens on http://${hostname}:${server.port}`)
    if (options.iclockPort !== null) {
      const host = options.iclockHost ?? options.host
      const terminals = yield* listenIclock({ port: options.iclockPort, host })
      yield* Effect.logInfo(`terminals may call http://${host}:${terminals.port}/iclock/`)
    }
    // Over a metered link only a person's wish wakes it.
    const settings = yield* Settings
    const wakeByItself = Effect.flatMap(settings.get, (now) => (now.auto && meteredOf(now) === null ? run.wake.open : Effect.void))
    yield* cron("sync", SYNC_CRON, Effect.andThen(run.closeRun, wakeByItself))
    yield* cron(
      "what was sent long ago is not trimmed",
      TRIM_CRON,
      Effect.flatMap(Clock.currentTimeMillis, (now) => trim(db, now)),
    )
    yield* cron(
      "the nightly comparison",
      VERIFY_CRON,
      Effect.suspend(() => Effect.delay(nightly, Math.random() * VERIFY_SPREAD_MS)),
    )
    yield* Effect.forkScoped(Effect.repeat(quietly("rows that wait are not tried again")(deliver.retry), Schedule.spaced("10 seconds")))
    yield* Effect.forkScoped(
      Effect.repeat(quietly("tables are not looked at")(guardTriggers({ streams, adopt: options.adopt })), Schedule.spaced(SCHEMA_POLL_MS)),
    )
    if (options.workers !== null) yield* startWorkers({ folder: options.workers, outDir: options.dataDir })
    const facts = yield* SchoolFactStore
    const place = watchPlace(db, (file) => facts.set({ file }))
    return yield* Effect.raceFirst(sessions({ ...options, streams }), place)
  })

const layers = (options: SchoolOptions) => {
  const file = Layer.effect(
    Libsql,
    Effect.gen(function* () {
      const db = yield* Libsql
      yield* migrateFile(db, "school")
      yield* db.write((tx) =>
        Effect.andThen(
          tx.run("INSERT INTO schoolbus_state (id, incarnation) SELECT 1, ? WHERE NOT EXISTS (SELECT 1 FROM schoolbus_state)", [crypto.randomUUID()]),
          options.newLife === true ? newLife(tx, crypto.randomUUID()) : Effect.void,
        ),
      )
      return db
    }),
  ).pipe(Layer.provide(Libsql.layer(join(options.dataDir, "school.db"))))
  const terminals = Layer.mergeAll(Roster.layer, Uploads.layer, schoolStatus).pipe(
    Layer.provideMerge(Commands.layer),
    Layer.provideMerge(Devices.layer),
  )
  const base = Layer.mergeAll(Session.layer, SchoolFactStore.layer, OpenLink.layer, Settings.layer(options.metered)).pipe(Layer.provideMerge(file))
  return Layer.mergeAll(Deliver.layer, terminals, schoolConflicts, schoolQuarantine, schoolRuns, schoolVerify, syncNow).pipe(Layer.provideMerge(base))
}

/** Exit code: 0 after SIGTERM or SIGINT, 69 when another process uses the file or the port, 78 when the file is newer than this program. */
export const runSchool = async (options: SchoolOptions): Promise<number> => {
  const stop = stopSignal()
  const fail = (code: number, text: string): number => {
    process.stderr.write(`${text}\n`)
    return code
  }
  const program = Effect.gen(function* () {
    yield* untilFileServes(lockIn(options.dataDir, "school.db"))
    // What runs ends before what it runs on, also before another attempt.
    return yield* untilFileServes(Effect.scoped(school(options)).pipe(Effect.provide(layers(options))))
  }).pipe(
    Effect.scoped,
    Effect.as(0),
    Effect.catchTags({
      AlreadyRunning: (error) => Effect.sync(() => fail(69, error.message)),
      CannotListen: (error) => Effect.sync(() => fail(69, error.message)),
      MigrationRefused: (error) => Effect.sync(() => fail(78, error.message)),
      IclockPortTaken: (error) => Effect.sync(() => fail(69, error.message)),
    }),
  )
  try {
    return await Effect.runPromise(program, { signal: stop })
  } catch (error) {
    if (stop.aborted) return 0
    return fail(1, `school node stopped: ${error instanceof Error ? error.message : String(error)}`)
  }
}
