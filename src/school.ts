/** What runs in a school: its layers, wired once, and the session with the hub. */
import { mkdir } from "node:fs/promises"
import { join } from "node:path"
import { Cron } from "croner"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { Deliver } from "./down/deliver.ts"
import { pullOnce, type PullOptions, refreshManifest } from "./down/pull.ts"
import { isUnknownCut, takeUp } from "./down/verify.ts"
import { deviceRoutes } from "./http/devices.ts"
import { healthRoutes } from "./http/health.ts"
import { authFor, makeApp } from "./http/server.ts"
import { syncRoutes } from "./http/sync.ts"
import { verifyRoutes } from "./http/verify.ts"
import { Devices } from "./iclock/devices.ts"
import { installRoster, Roster } from "./iclock/fill.ts"
import { listenIclock } from "./iclock/front.ts"
import { Commands } from "./iclock/queue.ts"
import { pendingByTable } from "./libsql/changes.ts"
import { Libsql } from "./libsql/client.ts"
import { noteContact } from "./libsql/contact.ts"
import { newLife } from "./libsql/life.ts"
import { lockFile } from "./libsql/lock.ts"
import { migrateFile } from "./libsql/migrate.ts"
import { missingTriggers, installTables } from "./libsql/schema.ts"
import { type Identity, LinkDown, LinkRefused, makeLink } from "./link/client.ts"
import { OpenLink } from "./link/open.ts"
import { PROTOCOL } from "./link/protocol.ts"
import type { Manifest } from "./model/table.ts"
import { serve } from "./runtime.ts"
import { SchoolFactStore } from "./status/facts.ts"
import { stopReason } from "./status/judge.ts"
import { schoolConflicts, schoolRuns } from "./status/school-records.ts"
import { schoolStatus } from "./status/school.ts"
import { schoolVerify, verifyNightly } from "./status/school-verify.ts"
import { Status } from "./status/snapshot.ts"
import { SyncNow } from "./status/sync-now.ts"
import { pushAll, sendAgainFrom } from "./up/up.ts"
import { trim } from "./up/trim.ts"
import { VERSION } from "./version.ts"
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
  /** Folder of worker modules; null = none. */
  readonly workers: string | null
}

/** How often the file is asked whether a program has written something. */
const OPEN_POLL_MS = 200
const HEARTBEAT_MS = 20_000
const WAIT_SECONDS = 25
/** Between two attempts to reach the hub: from 0.5 s to 30 s, jittered; a session of a minute starts the waits anew. */
const backoff = Schedule.min([Schedule.exponential("500 millis"), Schedule.spaced("30 seconds")]).pipe(Schedule.jittered)
const HEALTHY_MS = 60_000
const SYNC_CRON = "* * * * *"
const TRIM_CRON = "17 3 * * *"
const VERIFY_CRON = "41 2 * * *"
/** Nightly comparisons of all schools do not meet at the hub at the same minute. */
const VERIFY_SPREAD_MS = 60 * 60_000

/** Codes after which calling again at once makes no sense: a person must act. */
const STOPS = new Set([
  "unauthorized",
  "cloned",
  "restored",
  "wrong_school",
  "wrong_cluster",
  "schema_ahead",
  "protocol",
  "batch_differs",
  "batch_lost",
])
/** Those that stand in the file, so that the status tells them before the hub is asked again. */
const KEPT_STOPS = new Set(["cloned", "restored", "wrong_school", "wrong_cluster", "schema_ahead", "batch_lost"])

interface StateRow {
  readonly incarnation: string
  readonly school: string | null
  readonly cluster: string | null
  readonly token: string
  readonly epoch: string
  readonly seq: number
  readonly cut: string
  readonly manifest: string | null
  readonly last_batch: number
}

/** Counts of the sync run under way, and the way to ask for one now. */
class Session extends Context.Service<
  Session,
  {
    readonly counts: { up: number; down: number; conflicts: number; error: string | null; startedAt: number }
    readonly wake: Latch.Latch
    /** Writes the run down and starts the next; null when nothing happened and nobody asked. */
    readonly closeRun: (trigger: string, always: boolean) => Effect.Effect<number | null>
  }
>()("schoolbus/Session") {
  static readonly layer = Layer.effect(
    Session,
    Effect.gen(function* () {
      const db = yield* Libsql
      const counts = { up: 0, down: 0, conflicts: 0, error: null as string | null, startedAt: yield* Clock.currentTimeMillis }
      const closeRun = (trigger: string, always: boolean) =>
        Effect.gen(function* () {
          const now = yield* Clock.currentTimeMillis
          const { up, down, conflicts, error, startedAt } = counts
          Object.assign(counts, { up: 0, down: 0, conflicts: 0, error: null, startedAt: now })
          if (!always && up + down === 0 && error === null) return null
          const [row] = yield* db.write((tx) =>
            tx.all<{ id: number }>(
              "INSERT INTO schoolbus_run (trigger, started_at, ended_at, up, down, conflicts, error) VALUES (?,?,?,?,?,?,?) RETURNING id",
              [trigger, startedAt, now, up, down, conflicts, error],
            ),
          )
          return row?.id ?? null
        }).pipe(Effect.catch((error) => Effect.as(Effect.logWarning(`the run could not be written: ${error.message}`), null)))
      return Session.of({ counts, wake: yield* Latch.make(), closeRun })
    }),
  )
}

const syncNow = Layer.effect(
  SyncNow,
  Effect.gen(function* () {
    const session = yield* Session
    const facts = yield* SchoolFactStore
    return SyncNow.of({
      trigger: (request) =>
        Effect.gen(function* () {
          const { link } = yield* facts.get
          const run = yield* session.closeRun(request.by, true)
          yield* session.wake.open
          return {
            started: true,
            message: link === "online" ? "sync started" : "the hub is not reachable at the moment; trying now, and again by itself until it is",
            run,
            schools: [],
          }
        }),
    })
  }),
)

const readState = Effect.gen(function* () {
  const db = yield* Libsql
  const [row] = yield* db.read((tx) =>
    tx.all<StateRow>("SELECT incarnation, school, cluster, token, epoch, seq, cut, manifest, last_batch FROM schoolbus_state"),
  )
  return row as StateRow
})

const hello = (link: ReturnType<typeof makeLink>) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const state = yield* readState
    const clock = yield* Clock.currentTimeMillis
    const welcome = yield* link.hello({
      protocol: PROTOCOL,
      incarnation: state.incarnation,
      token: state.token,
      epoch: state.epoch,
      seq: state.seq,
      cut: state.cut,
      lastBatch: state.last_batch,
      manifest: state.manifest === null ? 0 : (JSON.parse(state.manifest) as Manifest).version,
      clock,
      version: VERSION,
    })
    const now = yield* Clock.currentTimeMillis
    // A hub that has not seen Postgres yet does not know which one it is.
    const isOther = welcome.cluster !== "" && state.cluster !== null && state.cluster !== welcome.cluster
    if (isOther || (state.school !== null && state.school !== welcome.school.id)) {
      const code = isOther ? "wrong_cluster" : "wrong_school"
      const other = `the key belongs to school ${welcome.school.id}, this file to ${state.school}; start the node with the right key, or with another --data-dir`
      return yield* new LinkRefused({ status: 409, code, message: isOther ? stopReason(code) : other, expected: null })
    }
    // The token is durable before it is used for the first time.
    yield* db.write((tx) =>
      Effect.andThen(
        tx.run(
          "UPDATE schoolbus_state SET token = ?, school = ?, cluster = coalesce(nullif(?, ''), cluster), clock_offset = ?, contact_at = ?, stop = NULL",
          [welcome.token, welcome.school.id, welcome.cluster, Math.round(welcome.clock - (clock + now) / 2), now],
        ),
        noteContact(tx, (clock + now) / 2, welcome.clock),
      ),
    )
    return { welcome, identity: { incarnation: state.incarnation, token: welcome.token } satisfies Identity }
  })

const knowsMore = (lastBatch: number) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const [row] = yield* db.read((tx) =>
      tx.all<{ n: number }>(
        "SELECT EXISTS (SELECT 1 FROM schoolbus_batch WHERE number > ? AND (answered_at IS NOT NULL OR settled_at IS NOT NULL)) AS n",
        [lastBatch],
      ),
    )
    return row?.n === 1
  })

/** One session with the hub, from hello to the failure that ends it. */
const session = (options: SchoolOptions, link: ReturnType<typeof makeLink>, streams: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const facts = yield* SchoolFactStore
    const status = yield* Status
    const { counts, wake } = yield* Session
    const install: PullOptions = { streams, adopt: options.adopt, alsoInstall: installRoster }
    const { welcome, identity } = yield* hello(link)
    const state = yield* readState
    let pushFault = ""
    const touch = Effect.flatMap(Clock.currentTimeMillis, (now) =>
      facts.set({ link: "online", linkDetail: pushFault, lastContactAt: now, paused: false }),
    )
    yield* touch
    if (state.manifest === null || (JSON.parse(state.manifest) as Manifest).version !== welcome.manifest)
      yield* refreshManifest(link, identity, install)
    if (welcome.paused) yield* facts.set({ paused: true })
    // A hub that was put back knows fewer batches than it has answered: they go up again before anything is pulled.
    if (yield* knowsMore(welcome.lastBatch)) {
      yield* sendAgainFrom(db, welcome.lastBatch + 1)
      yield* pushAll(db, link, identity)
    }

    /** Head office, or its hub, was put back: only what differs comes down, and the next pull goes on from there. */
    const goOn = Effect.gen(function* () {
      yield* Effect.logWarning("the hub does not know this file's cut; comparing, so that only differences come down")
      const rows = yield* takeUp(link, identity)
      yield* Effect.logInfo(rows === null ? "too much differs: everything comes anew" : `${rows} rows differ from head office`)
    }).pipe(Effect.catchTag("NotComparable", (error) => Effect.fail(new LinkDown({ message: error.message }))))

    let received = 0
    const pull = Effect.gen(function* () {
      const pulled = yield* pullOnce(link, identity, install, WAIT_SECONDS).pipe(
        Effect.catchTag("LinkRefused", (error) =>
          isUnknownCut(error) ? Effect.as(goOn, { kind: "nothing", asked: false } as const) : Effect.fail(error),
        ),
      )
      yield* touch
      if (pulled.kind === "nothing") return yield* pulled.asked ? wake.open : Effect.void
      received += pulled.delivered.rows
      counts.down += pulled.delivered.rows
      const now = yield* Clock.currentTimeMillis
      if (pulled.delivered.applied) {
        received = 0
        yield* facts.set({ progress: null, lastSyncAt: now })
      } else yield* facts.set({ progress: { rows: received, total: Math.max(received, pulled.left + received - pulled.delivered.rows) } })
      if (pulled.kind === "part") return yield* new LinkDown({ message: "the line broke inside a page; going on after what arrived" })
    })
    const push = Effect.gen(function* () {
      const [waiting] = yield* db.read((tx) =>
        tx.all<{ n: number }>(
          `SELECT EXISTS (SELECT 1 FROM changes WHERE batch IS NULL) OR EXISTS (SELECT 1 FROM schoolbus_batch WHERE answered_at IS NULL AND settled_at IS NULL) AS n`,
        ),
      )
      if (waiting?.n !== 1) return
      const { changes, conflicts } = yield* pushAll(db, link, identity)
      pushFault = ""
      counts.up += changes
      counts.conflicts += conflicts
      const now = yield* Clock.currentTimeMillis
      yield* facts.set({ lastSyncAt: now })
      yield* touch
    })
    const beat = Effect.gen(function* () {
      const snapshot = yield* status.snapshot()
      const pending = yield* db.read((tx) =>
        Effect.gen(function* () {
          const tables = yield* pendingByTable(tx)
          const [behind] = yield* tx.all<{ n: number }>("SELECT count(*) AS n FROM schoolbus_behind")
          return { tables, behind: behind?.n ?? 0 }
        }),
      )
      const clock = yield* Clock.currentTimeMillis
      const pulse = yield* link.heartbeat(identity, {
        incarnation: identity.incarnation,
        pending: pending.tables.reduce((n, table) => n + table.pending, 0),
        oldestPendingAt: pending.tables.length === 0 ? null : Math.min(...pending.tables.map((table) => table.oldestAt)),
        conflicts: snapshot.totals.conflicts,
        behind: pending.behind,
        quarantined: snapshot.totals.failed,
        devices: snapshot.role === "school" ? snapshot.devices.approved : 0,
        state: snapshot.state,
        reason: snapshot.reason === "" ? null : snapshot.reason.slice(0, 500),
        clock,
      })
      const answered = yield* Clock.currentTimeMillis
      yield* db.write((tx) => noteContact(tx, (clock + answered) / 2, pulse.clock))
      yield* touch
      if (pulse.paused) yield* facts.set({ paused: true })
      if (pulse.sync) yield* wake.open
    })
    // A hub that cannot write to Postgres now still has rows for us: only what waits to go up waits.
    let pushWait = yield* Schedule.toStepWithSleep(backoff)
    const pushSoon = push.pipe(
      Effect.andThen(
        Effect.flatMap(Schedule.toStepWithSleep(backoff), (fresh) =>
          Effect.sync(() => {
            pushWait = fresh
          }),
        ),
      ),
      Effect.andThen(Effect.race(Effect.sleep(OPEN_POLL_MS), wake.await)),
      Effect.catchTag("LinkDown", (error) =>
        Effect.gen(function* () {
          pushFault = `changes wait here: ${error.message}`
          yield* facts.set({ linkDetail: pushFault })
          yield* Effect.logInfo(`push: ${error.message}`)
          yield* Effect.race(Effect.andThen(Effect.sleep(error.retryAfterMs ?? 0), Effect.orDie(pushWait(undefined))), wake.await)
        }),
      ),
      Effect.andThen(wake.close),
    )
    const beatAnyway = Effect.catchTag(beat, "LinkDown", (error) => Effect.logDebug(`heartbeat: ${error.message}`))
    const loops = [Effect.forever(pull), Effect.forever(pushSoon), Effect.repeat(beatAnyway, Schedule.spaced(HEARTBEAT_MS))]
    return yield* (yield* OpenLink).during({ link, identity })(Effect.all(loops, { concurrency: "unbounded", discard: true }))
  })

/** Sessions, one after the other, for ever. What ended the last stands in the facts. */
const sessions = (options: SchoolOptions, streams: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const facts = yield* SchoolFactStore
    const { counts, wake } = yield* Session
    const link = makeLink(options)
    const refused = (error: LinkRefused) =>
      Effect.gen(function* () {
        if (error.code === "hello") return
        if (error.code === "paused") return yield* facts.set({ link: "online", linkDetail: "", paused: true })
        const isStop = STOPS.has(error.code)
        const detail = error.code === "unauthorized" ? `${stopReason("unauthorized")} (${error.message})` : error.message
        yield* facts.set({ link: isStop ? "stopped" : "offline", linkDetail: detail })
        if (KEPT_STOPS.has(error.code)) {
          yield* db.write((tx) => tx.run("UPDATE schoolbus_state SET stop = ?", [error.code]))
        }
        yield* Effect.logWarning(`hub refuses (${error.code}): ${detail}`)
      })
    yield* facts.set({ linkDetail: `connecting to ${options.hub}` })
    let step = yield* Schedule.toStepWithSleep(backoff)
    while (true) {
      const [took, exit] = yield* session(options, link, streams).pipe(
        Effect.catchTag("LinkRefused", refused),
        Effect.catchTags({
          LinkDown: (error) => Effect.andThen(facts.set({ link: "offline", linkDetail: error.message }), Effect.logInfo(`offline: ${error.message}`)),
          LibsqlError: (error) =>
            Effect.andThen(facts.set({ linkDetail: `${error.code}: ${error.message}` }), Effect.logWarning(`the school's file: ${error.message}`)),
          TableRefused: (error) => Effect.andThen(facts.set({ link: "stopped", linkDetail: error.message }), Effect.logError(error.message)),
          DeliverRefused: (error) => Effect.andThen(facts.set({ link: "offline", linkDetail: error.message }), Effect.logWarning(error.message)),
        }),
        Effect.exit,
        Effect.timed,
      )
      if (exit._tag === "Failure") {
        yield* Effect.logError("session", exit.cause)
        counts.error = "internal error; see the log"
      }
      const { linkDetail } = yield* facts.get
      if (linkDetail !== "") counts.error ??= linkDetail
      if (Duration.toMillis(took) >= HEALTHY_MS) step = yield* Schedule.toStepWithSleep(backoff)
      yield* Effect.race(Effect.orDie(step(undefined)), wake.await)
      yield* wake.close
    }
  })

/** A program may have rebuilt a table or dropped our triggers: they are put back, and what was missed is found by comparison. */
const guardTriggers = (streams: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const state = yield* readState
    if (state.manifest === null) return
    const manifest = JSON.parse(state.manifest) as Manifest
    const missing = yield* db.read((tx) => missingTriggers(tx, manifest, streams))
    if (missing.length === 0) return
    yield* Effect.logWarning(`triggers were missing or altered and are restored: ${missing.join(", ")}`)
    yield* db.write((tx) => installTables(tx, manifest, { streams, adopt: false }))
  })

const cron = (pattern: string, job: Effect.Effect<unknown>) =>
  Effect.acquireRelease(
    Effect.sync(() => new Cron(pattern, () => void Effect.runPromise(job).catch(() => undefined))),
    (running) => Effect.sync(() => running.stop()),
  )

const listen = (
  options: { readonly port: number; readonly host: string; readonly maxBodyBytes: number },
  fetch: (request: Request) => Response | Promise<Response>,
) =>
  Effect.acquireRelease(
    Effect.tryPromise(() => serve({ port: options.port, hostname: options.host, idleSeconds: 250, maxBodyBytes: options.maxBodyBytes, fetch })),
    (server) => Effect.promise(() => server.stop()),
  )

const school = (options: SchoolOptions) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const deliver = yield* Deliver
    const run = yield* Session
    yield* deliver.resume
    const streams = yield* subscribedTables(options.workers)
    const nightly = Effect.provide(verifyNightly, yield* Effect.context<Libsql | OpenLink>())
    yield* guardTriggers(streams)
    const plugins = [yield* healthRoutes, yield* syncRoutes, yield* verifyRoutes, yield* deviceRoutes]
    const app = makeApp({ plugins, auth: authFor(options) })
    const server = yield* listen({ ...options, maxBodyBytes: 1024 * 1024 }, (request) => app.handle(request))
    yield* Effect.logInfo(`school node listens on http://${options.host}:${server.port}`)
    if (options.iclockPort !== null) {
      const host = options.iclockHost ?? options.host
      const terminals = yield* listenIclock({ port: options.iclockPort, host })
      yield* Effect.logInfo(`terminals may call http://${host}:${terminals.port}/iclock/`)
    }
    yield* cron(SYNC_CRON, Effect.andThen(run.closeRun("schedule", false), run.wake.open))
    yield* cron(
      TRIM_CRON,
      Effect.flatMap(Clock.currentTimeMillis, (now) => Effect.ignoreCause(trim(db, now), { log: "Warn" })),
    )
    yield* cron(
      VERIFY_CRON,
      Effect.suspend(() => Effect.delay(nightly, Math.random() * VERIFY_SPREAD_MS)),
    )
    yield* Effect.forkScoped(Effect.repeat(Effect.ignoreCause(guardTriggers(streams), { log: "Warn" }), Schedule.spaced("10 seconds")))
    if (options.workers !== null) yield* startWorkers({ folder: options.workers, outDir: options.dataDir })
    return yield* sessions(options, streams)
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
          Effect.andThen(
            tx.run("UPDATE schoolbus_deliver SET active = 0"),
            options.newLife === true ? newLife(tx, crypto.randomUUID()) : Effect.void,
          ),
        ),
      )
      return db
    }),
  ).pipe(Layer.provide(Libsql.layer(join(options.dataDir, "school.db"))))
  const terminals = Roster.layer.pipe(Layer.provideMerge(Commands.layer), Layer.provideMerge(Devices.layer))
  const base = Layer.mergeAll(Session.layer, SchoolFactStore.layer, OpenLink.layer).pipe(Layer.provideMerge(file))
  return Layer.mergeAll(Deliver.layer, terminals, schoolStatus, schoolConflicts, schoolRuns, schoolVerify, syncNow).pipe(Layer.provideMerge(base))
}

/** Exit code: 0 after SIGTERM or SIGINT, 69 when another process uses the file, 78 when the file is newer than this program. */
export const runSchool = async (options: SchoolOptions): Promise<number> => {
  const stop = new AbortController()
  const onSignal = () => stop.abort()
  process.once("SIGTERM", onSignal).once("SIGINT", onSignal)
  const fail = (code: number, text: string): number => {
    process.stderr.write(`${text}\n`)
    return code
  }
  const program = Effect.gen(function* () {
    yield* Effect.promise(() => mkdir(options.dataDir, { recursive: true }))
    yield* lockFile(join(options.dataDir, "school.db"))
    return yield* school(options).pipe(Effect.provide(layers(options)))
  }).pipe(
    Effect.scoped,
    Effect.as(0),
    Effect.catchTags({
      AlreadyRunning: (error) => Effect.sync(() => fail(69, error.message)),
      MigrationRefused: (error) => Effect.sync(() => fail(78, error.message)),
      TableRefused: (error) => Effect.sync(() => fail(78, error.message)),
      IclockPortTaken: (error) => Effect.sync(() => fail(69, error.message)),
    }),
  )
  try {
    return await Effect.runPromise(program, { signal: stop.signal })
  } catch (error) {
    if (stop.signal.aborted) return 0
    return fail(1, `school node stopped: ${error instanceof Error ? error.message : String(error)}`)
  }
}
