/**
 * One process per database file. The lock is a transaction that is never committed, on a file of its own beside the
 * database, so the operating system ends it with the process, however that ends; there is nothing stale to clean up.
 * School programs never see it: they open the database, not the lock.
 */
import { mkdirSync } from "node:fs"
import { join } from "node:path"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import Database from "libsql"
import { LibsqlError } from "./client.ts"
import { faultOf } from "./fault.ts"

export class AlreadyRunning extends Data.TaggedError("AlreadyRunning")<{ readonly path: string; readonly message: string }> {}

/** Held until the scope closes. Never waits: whoever is second is told so at once. */
export const lockFile = (path: string): Effect.Effect<void, AlreadyRunning | LibsqlError, Scope.Scope> =>
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
          const { code, message } = faultOf(cause)
          // Room comes back by itself.
          if (code === "SQLITE_FULL")
            return new LibsqlError({ file: path, sql: "", code, message: `${path}-lock cannot be written: the disk is full` })
          const isBusy = code.startsWith("SQLITE_BUSY")
          return new AlreadyRunning({
            path,
            message: isBusy
              ? `another schoolbus process is running on ${path}. Stop it first, or start this one with another --data-dir`
              : `${path}-lock cannot be written: ${message}. Check the folder, its owner and the free space`,
          })
        },
      }),
      (lock) => Effect.sync(() => lock.close()),
    ),
  )

/** The lock of a file in a folder that is made when it is not there. */
export const lockIn = (folder: string, name: string): Effect.Effect<void, AlreadyRunning | LibsqlError, Scope.Scope> => {
  const made = Effect.try({
    try: () => mkdirSync(folder, { recursive: true }),
    catch: (cause) =>
      new AlreadyRunning({
        path: folder,
        message: `the folder ${folder} cannot be made: ${cause instanceof Error ? cause.message : String(cause)}. Make it, or let this process's user write the folder above it`,
      }),
  })
  return Effect.andThen(made, lockFile(join(folder, name)))
}
