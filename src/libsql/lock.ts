/**
 * One process per database file. The lock is a transaction that is never committed, on a file of its own beside the
 * database, so the operating system ends it with the process, however that ends; there is nothing stale to clean up.
 * School programs never see it: they open the database, not the lock.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import Database from "libsql"

export class AlreadyRunning extends Data.TaggedError("AlreadyRunning")<{ readonly path: string; readonly message: string }> {}

/** Held until the scope closes. Never waits: whoever is second is told so at once. */
export const lockFile = (path: string): Effect.Effect<void, AlreadyRunning, Scope.Scope> =>
  Effect.asVoid(
    Effect.acquireRelease(
      Effect.try({
        try: () => {
          const lock = new Database(`${path}-lock`, { timeout: 0 })
          try {
            lock.exec("BEGIN EXCLUSIVE")
          } catch (cause) {
            lock.close()
            throw cause
          }
          return lock
        },
        catch: (cause) => {
          const isBusy = String((cause as { code?: unknown }).code).startsWith("SQLITE_BUSY")
          return new AlreadyRunning({
            path,
            message: isBusy
              ? `another schoolbus process is running on ${path}. Stop it first, or start this one with another --data-dir`
              : `${path}-lock cannot be written: ${cause instanceof Error ? cause.message : String(cause)}. Check the folder, its owner and the free space`,
          })
        },
      }),
      (lock) => Effect.sync(() => lock.close()),
    ),
  )
