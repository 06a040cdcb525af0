/**
 * The host of worker modules. Each module has its own Web Worker and a durable position in the file's stream of writes, and
 * gets every event at least once. A module that throws, hangs or dies is restarted with growing waits and gets its events
 * one by one; an event that fails again and again is put aside, whole and with its error, and the rest goes on.
 */
import { quietly } from "../libsql/trouble.ts"
import { readdir } from "node:fs/promises"
import { basename, extname, join, resolve } from "node:path"
import { pathToFileURL } from "node:url"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { Libsql, type LibsqlError } from "../libsql/client.ts"
import type { WorkerEvent, WorkerOp } from "./define.ts"
import type { FromWorker, ToWorker } from "./messages.ts"
import { localName, readRow, readSlice } from "./stream.ts"

/** Events of one call. */
const BATCH_EVENTS = 100
/** An event that fails this often by itself is put aside. */
const MAX_TRIES = 5
const LOAD_TIMEOUT_SECONDS = 30
const POLL_MS = 500
const TRIM_MS = 60_000

/** How long a module waits after a failure: from 0.1 s to 30 s, jittered; a minute of work starts the waits anew. */
const HEALTHY_MS = 60_000
const backoff = Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("30 seconds")]).pipe(Schedule.jittered)

/** The module threw, hung, died, or is no worker module; `error` says which. */
export class WorkerFailed extends Data.TaggedError("WorkerFailed")<{ readonly module: string; readonly error: string }> {}

interface ModuleFile {
  readonly name: string
  readonly url: string
}

const moduleFiles = (folder: string): Effect.Effect<ReadonlyArray<ModuleFile>> =>
  Effect.tryPromise(async () =>
    (await readdir(folder, { withFileTypes: true }))
      .filter((entry) => entry.isFile() && [".ts", ".js", ".mjs"].includes(extname(entry.name)) && !/^[._]|\.d\.ts$|\.test\.\w+$/.test(entry.name))
      .map(({ name }) => ({ name: basename(name, extname(name)), url: pathToFileURL(resolve(folder, name)).href }))
      .sort((a, b) => (a.name < b.name ? -1 : 1)),
  ).pipe(Effect.catch((error) => Effect.as(Effect.logWarning(`worker modules of ${folder} cannot be read: ${String(error.cause ?? error)}`), [])))

/** Bun puts the source around the place into the message. */
const sentenceOf = (message: string): string => (/^(?:\w*error: .*)$/im.exec(message)?.[0] ?? message).slice(0, 500)

interface Running {
  readonly on: ReadonlyMap<string, ReadonlySet<WorkerOp>>
  readonly handle: (events: ReadonlyArray<WorkerEvent>) => Effect.Effect<void, WorkerFailed>
}

/** A loaded module in a fresh Web Worker; ended with the scope. */
const start = (file: ModuleFile, outDir: string): Effect.Effect<Running, WorkerFailed, Scope.Scope | Libsql> =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const fail = (error: string) => new WorkerFailed({ module: file.name, error })
    const worker = yield* Effect.acquireRelease(
      Effect.sync(() => new Worker(new URL("./worker.ts", import.meta.url), { type: "module" })),
      (one) => Effect.sync(() => one.terminate()),
    )
    const send = (message: ToWorker): void => worker.postMessage(message)
    const died = yield* Deferred.make<never, WorkerFailed>()
    let answer: Deferred.Deferred<FromWorker> = yield* Deferred.make<FromWorker>()
    const readAsked = (table: string, key: Extract<FromWorker, { kind: "ask" }>["key"]) =>
      db.read((tx) =>
        readRow(
          tx,
          localName(table),
          key.map((value) => (typeof value === "number" && Number.isInteger(value) ? BigInt(value) : value)),
        ),
      )
    worker.onmessage = (event: MessageEvent<FromWorker>) => {
      const message = event.data
      switch (message.kind) {
        case "log":
          Effect.runFork(Effect.logInfo(message.line).pipe(Effect.annotateLogs({ worker: file.name })))
          return
        case "ask":
          Effect.runFork(
            readAsked(message.table, message.key).pipe(
              Effect.match({
                onSuccess: (row) => send({ kind: "row", ask: message.ask, row, error: null }),
                onFailure: (error) => send({ kind: "row", ask: message.ask, row: null, error: error.message }),
              }),
            ),
          )
          return
        default:
          Effect.runFork(Deferred.succeed(answer, message))
      }
    }
    worker.onerror = (event) => {
      // Deno ends the process for a worker's error that nobody claims.
      event.preventDefault()
      Effect.runFork(Deferred.fail(died, fail(`its worker died: ${sentenceOf(event.message)}`)))
    }
    const call = (message: ToWorker, timeoutSeconds: number): Effect.Effect<FromWorker, WorkerFailed> =>
      Effect.gen(function* () {
        const next = yield* Deferred.make<FromWorker>()
        answer = next
        send(message)
        return yield* Effect.raceFirst(Deferred.await(next), Deferred.await(died)).pipe(
          Effect.timeoutOrElse({ duration: Duration.seconds(timeoutSeconds), orElse: () => fail(`took longer than ${timeoutSeconds} s`) }),
        )
      })
    const loaded = yield* call({ kind: "load", url: file.url, module: file.name, folder: join(outDir, "workers", file.name) }, LOAD_TIMEOUT_SECONDS)
    if (loaded.kind !== "loaded") return yield* fail(loaded.kind === "refused" ? loaded.error : `answered ${loaded.kind}`)
    return {
      on: new Map(Object.entries(loaded.on).map(([table, ops]) => [localName(table), new Set(ops)])),
      handle: (events) =>
        Effect.flatMap(call({ kind: "events", events }, loaded.timeoutSeconds), (done) =>
          done.kind === "done" ? Effect.void : fail(done.kind === "failed" ? done.error : `answered ${done.kind}`),
        ),
    }
  })

/** Tables that the modules of a folder listen to, by their local names. A module that cannot be loaded is told in the log. */
export const subscribedTables = (folder: string | null): Effect.Effect<ReadonlyArray<string>, never, Libsql> =>
  Effect.gen(function* () {
    if (folder === null) return []
    const tables = new Set<string>()
    for (const file of yield* moduleFiles(folder)) {
      const on = yield* Effect.scoped(Effect.map(start(file, folder), (running) => running.on)).pipe(
        Effect.catchTag("WorkerFailed", (failed) =>
          Effect.as(Effect.logError(`worker module ${failed.module}: ${failed.error}`), new Map<string, ReadonlySet<WorkerOp>>()),
        ),
      )
      for (const table of on.keys()) tables.add(table)
    }
    return [...tables].sort()
  })

/** What a module has behind it. Kept while its worker is restarted. */
interface Progress {
  /** Failures of the event that is next. */
  tries: number
  /** Events up to here come one by one: a batch that held them failed, and the bad one is not to take others along. */
  singlyTo: number
}

const position = (module: string) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const [row] = yield* db.read((tx) => tx.all<{ cursor: number }>("SELECT cursor FROM schoolbus_worker WHERE module = ?", [module]))
    return row?.cursor ?? 0
  })

/** The first modules begin with the stream, a module added to others begins now. */
const enlist = (modules: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    yield* db.write((tx) =>
      tx.run(
        `INSERT INTO schoolbus_worker (module, cursor)
         SELECT value, CASE WHEN EXISTS (SELECT 1 FROM schoolbus_worker) THEN coalesce((SELECT max(id) FROM schoolbus_stream), 0) ELSE 0 END FROM json_each(?)
          WHERE value NOT IN (SELECT module FROM schoolbus_worker)`,
        [JSON.stringify(modules)],
      ),
    )
  })

const putAside = (module: string, events: ReadonlyArray<WorkerEvent>, cursor: number, error: string) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const now = yield* Clock.currentTimeMillis
    const json = JSON.stringify(events, (_, value: unknown) =>
      typeof value === "bigint" ? String(value) : value instanceof Uint8Array ? `\\x${Buffer.from(value).toString("hex")}` : value,
    )
    yield* db.write((tx) =>
      Effect.andThen(
        tx.run("INSERT INTO schoolbus_dead_letter (module, events, error, at) VALUES (?, ?, ?, ?)", [module, json, error, now]),
        tx.run("UPDATE schoolbus_worker SET cursor = ?, failed = failed + ?, error = ? WHERE module = ?", [cursor, events.length, error, module]),
      ),
    )
    yield* Effect.logError(`worker module ${module} failed ${MAX_TRIES} times with an event; it was put aside: ${error}`)
  })

const note = (module: string, error: string | null) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    yield* db.write((tx) => tx.run("UPDATE schoolbus_worker SET error = ?1 WHERE module = ?2 AND error IS NOT ?1", [error, module]))
  })

/** Events to the module, as long as it does its work; what it has done is remembered before the next. */
const feedModule = (file: ModuleFile, outDir: string, progress: Progress) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const running = yield* start(file, outDir)
    for (;;) {
      const cursor = yield* position(file.name)
      const slice = yield* db.read((tx) => readSlice(tx, running.on, cursor, cursor < progress.singlyTo ? 1 : BATCH_EVENTS))
      if (slice.events.length > 0) {
        const failure = yield* Effect.match(running.handle(slice.events), { onSuccess: () => null, onFailure: (failed) => failed })
        if (failure !== null) {
          const isAlone = slice.events.length === 1
          progress.tries = isAlone ? progress.tries + 1 : 0
          progress.singlyTo = Math.max(progress.singlyTo, slice.cursor)
          if (!isAlone || progress.tries < MAX_TRIES) return yield* failure
          yield* putAside(file.name, slice.events, slice.cursor, failure.error)
          progress.tries = 0
          // What is left in a worker that has just failed is not trusted.
          return
        }
        progress.tries = 0
      }
      if (slice.cursor !== cursor) {
        yield* db.write((tx) => tx.run("UPDATE schoolbus_worker SET cursor = ?, error = NULL WHERE module = ?", [slice.cursor, file.name]))
      }
      if (slice.events.length === 0) yield* Effect.sleep(POLL_MS)
    }
  })

const keepRunning = (file: ModuleFile, outDir: string): Effect.Effect<never, never, Libsql> =>
  Effect.gen(function* () {
    const progress: Progress = { tries: 0, singlyTo: 0 }
    let wait = yield* Schedule.toStepWithSleep(backoff)
    for (;;) {
      const [took, failed] = yield* Effect.scoped(feedModule(file, outDir, progress)).pipe(
        Effect.as<WorkerFailed | LibsqlError | null>(null),
        Effect.catch((error) => Effect.succeed(error)),
        Effect.catchCause((cause) =>
          Effect.as(Effect.logError(`worker module ${file.name}`, cause), new WorkerFailed({ module: file.name, error: "internal error" })),
        ),
        Effect.timed,
      )
      if (failed === null || Duration.toMillis(took) > HEALTHY_MS) wait = yield* Schedule.toStepWithSleep(backoff)
      if (failed === null) continue
      const text = failed._tag === "WorkerFailed" ? failed.error : failed.message
      yield* Effect.logWarning(`worker module ${file.name}: ${text}`)
      yield* Effect.ignoreCause(note(file.name, text))
      yield* Effect.orDie(wait(undefined))
    }
  })

const trim = (modules: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    yield* db.write((tx) =>
      tx.run("DELETE FROM schoolbus_stream WHERE id <= (SELECT min(cursor) FROM schoolbus_worker WHERE module IN (SELECT value FROM json_each(?)))", [
        JSON.stringify(modules),
      ]),
    )
  })

export interface WorkersOptions {
  readonly folder: string
  /** Modules write below `<outDir>/workers/`. */
  readonly outDir: string
}

/** Runs every module of the folder until the scope closes. */
export const startWorkers = (options: WorkersOptions): Effect.Effect<void, LibsqlError, Libsql | Scope.Scope> =>
  Effect.gen(function* () {
    const files = yield* moduleFiles(options.folder)
    if (files.length === 0) return yield* Effect.logWarning(`no worker modules in ${options.folder}`)
    const names = files.map((file) => file.name)
    yield* enlist(names)
    yield* Effect.forEach(files, (file) => Effect.forkScoped(keepRunning(file, options.outDir)), { discard: true })
    yield* Effect.forkScoped(Effect.repeat(quietly("events of worker modules are not trimmed")(trim(names)), Schedule.spaced(TRIM_MS)))
    yield* Effect.logInfo(`worker modules: ${names.join(", ")}`)
  })
