/**
 * The host of worker modules: each in its own Web Worker, with a durable cursor over the writes of the tables it listens
 * to. A batch is delivered until it is handled; one that fails again and again becomes a dead letter and the rest goes on.
 */
import { readdir } from "node:fs/promises"
import { basename, join, resolve } from "node:path"
import { pathToFileURL } from "node:url"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { ident, Libsql, type LibsqlError } from "../libsql/client.ts"
import { parseLocalKey } from "../model/key.ts"
import type { Manifest } from "../model/table.ts"
import type { WorkerEvent, WorkerModule } from "./define.ts"
import type { FromWorker, ToWorker } from "./worker.ts"

const BATCH_EVENTS = 200
const POLL_MS = 500
const HANDLE_TIMEOUT_MS = 60_000
/** Tries of one batch before it becomes a dead letter. */
const TRIES = 5

class ModuleFailed extends Data.TaggedError("ModuleFailed")<{ readonly message: string }> {}

const moduleFiles = async (folder: string): Promise<ReadonlyArray<string>> =>
  (await readdir(folder).catch(() => [])).filter((name) => /\.(ts|js|mjs)$/.test(name) && !name.endsWith(".d.ts")).sort().map((name) => resolve(join(folder, name)))

/** Tables that the modules of a folder listen to, by their local names. */
export const subscribedTables = async (folder: string | null): Promise<ReadonlyArray<string>> => {
  if (folder === null) return []
  const tables = new Set<string>()
  for (const file of await moduleFiles(folder)) {
    const module = ((await import(pathToFileURL(file).href)) as { default?: WorkerModule }).default
    for (const table of Object.keys(module?.on ?? {})) tables.add(table)
  }
  return [...tables]
}

interface Running {
  readonly on: WorkerModule["on"]
  readonly handle: (events: ReadonlyArray<WorkerEvent>) => Effect.Effect<void, ModuleFailed>
}

/** One Web Worker with its module loaded; ended with the scope. */
const start = (file: string, outDir: string): Effect.Effect<Running, ModuleFailed, Scope.Scope> =>
  Effect.gen(function* () {
    const worker = yield* Effect.acquireRelease(
      Effect.sync(() => new Worker(new URL("./worker.ts", import.meta.url), { type: "module" })),
      (running) => Effect.sync(() => running.terminate()),
    )
    const ask = (message: ToWorker) =>
      Effect.callback<FromWorker, ModuleFailed>((answer) => {
        worker.onmessage = (event: MessageEvent<FromWorker>) => {
          if (event.data.kind === "log") Effect.runFork(Effect.logInfo(`${basename(file)}: ${event.data.line}`))
          else answer(Effect.succeed(event.data))
        }
        worker.onerror = (event) => answer(Effect.fail(new ModuleFailed({ message: event.message })))
        worker.postMessage(message)
      }).pipe(
        Effect.timeoutOrElse({ duration: HANDLE_TIMEOUT_MS, orElse: () => Effect.fail(new ModuleFailed({ message: `no answer within ${HANDLE_TIMEOUT_MS / 1000} s` })) }),
        Effect.flatMap((said) => (said.kind === "failed" ? Effect.fail(new ModuleFailed({ message: said.error })) : Effect.succeed(said))),
      )
    const loaded = yield* ask({ kind: "load", url: pathToFileURL(file).href, outDir })
    return { on: loaded.kind === "loaded" ? loaded.on : {}, handle: (events) => Effect.asVoid(ask({ kind: "batch", events })) }
  })

/** The next events for a module, with their rows as they stand. */
const readEvents = (after: number, on: WorkerModule["on"]): Effect.Effect<{ readonly events: ReadonlyArray<WorkerEvent>; readonly last: number }, LibsqlError, Libsql> =>
  Effect.gen(function* () {
    const db = yield* Libsql
    return yield* db.read((tx) =>
      Effect.gen(function* () {
        const rows = yield* tx.all<{ id: number; tbl: string; op: WorkerEvent["op"]; key: string }>("SELECT id, tbl, op, key FROM schoolbus_stream WHERE id > ? ORDER BY id LIMIT ?", [after, BATCH_EVENTS])
        const [state] = yield* tx.all<{ manifest: string | null }>("SELECT manifest FROM schoolbus_state")
        const manifest = JSON.parse(state?.manifest ?? '{"tables":[]}') as Manifest
        const events: Array<WorkerEvent> = []
        for (const { id, tbl, op, key } of rows) {
          if (on[tbl]?.includes(op) !== true) continue
          const table = manifest.tables.find((t) => t.local === tbl)
          const cells = parseLocalKey(key)
          const [row] =
            table === undefined || cells === null
              ? []
              : yield* tx.all<Record<string, unknown>>(`SELECT * FROM ${ident(tbl)} WHERE ${table.key.map((name) => `${ident(name)} = ?`).join(" AND ")}`, cells)
          events.push({ id, table: tbl, op, key, row: row ?? null })
        }
        return { events, last: rows.at(-1)?.id ?? after }
      }),
    )
  })

const runModule = (file: string, outDir: string): Effect.Effect<never, LibsqlError | ModuleFailed, Libsql> =>
  Effect.scoped(
    Effect.gen(function* () {
      const db = yield* Libsql
      const name = basename(file)
      const running = yield* start(file, outDir)
      // A module that is new begins with what happens from now on.
      yield* db.write((tx) => tx.run("INSERT INTO schoolbus_worker (module, cursor) SELECT ?, coalesce((SELECT max(id) FROM schoolbus_stream), 0) WHERE NOT EXISTS (SELECT 1 FROM schoolbus_worker WHERE module = ?)", [name, name]))
      for (;;) {
        const [state] = yield* db.read((tx) => tx.all<{ cursor: number; failed: number }>("SELECT cursor, failed FROM schoolbus_worker WHERE module = ?", [name]))
        const cursor = state?.cursor ?? 0
        const { events, last } = yield* readEvents(cursor, running.on)
        if (last === cursor) {
          yield* Effect.sleep(POLL_MS)
          continue
        }
        const failure = events.length === 0 ? null : yield* running.handle(events).pipe(Effect.as(null), Effect.catch((error) => Effect.succeed(error)))
        const now = yield* Clock.currentTimeMillis
        if (failure === null) {
          yield* db.write((tx) => tx.run("UPDATE schoolbus_worker SET cursor = ?, failed = 0, error = NULL WHERE module = ?", [last, name]))
          continue
        }
        const tries = (state?.failed ?? 0) + 1
        yield* db.write((tx) =>
          Effect.gen(function* () {
            if (tries < TRIES) return yield* tx.run("UPDATE schoolbus_worker SET failed = ?, error = ? WHERE module = ?", [tries, failure.message, name])
            yield* tx.run("INSERT INTO schoolbus_dead_letter (module, events, error, at) VALUES (?, ?, ?, ?)", [name, JSON.stringify(events), failure.message, now])
            return yield* tx.run("UPDATE schoolbus_worker SET cursor = ?, failed = 0, error = ? WHERE module = ?", [last, failure.message, name])
          }),
        )
        // A fresh worker for the next try: the old one may hold what made it fail.
        return yield* failure
      }
    }),
  )

const backoff = Schedule.min([Schedule.exponential("1 second"), Schedule.spaced("1 minute")]).pipe(Schedule.jittered)

/** Trims what every module has finished. */
const trimStream = Effect.gen(function* () {
  const db = yield* Libsql
  yield* db.write((tx) => tx.run("DELETE FROM schoolbus_stream WHERE id <= (SELECT min(cursor) FROM schoolbus_worker)"))
})

export const startWorkers = (options: { readonly folder: string; readonly outDir: string }): Effect.Effect<void, never, Libsql | Scope.Scope> =>
  Effect.gen(function* () {
    const files = yield* Effect.promise(() => moduleFiles(options.folder))
    for (const file of files) {
      yield* Effect.forkScoped(
        runModule(file, options.outDir).pipe(
          Effect.tapError((error) => Effect.logWarning(`worker module ${basename(file)}: ${error.message}`)),
          Effect.retry(backoff),
        ),
      )
      yield* Effect.logInfo(`worker module ${basename(file)} started`)
    }
    yield* Effect.forkScoped(Effect.repeat(Effect.ignoreCause(trimStream, { log: "Warn" }), Schedule.spaced("1 minute")))
  })
