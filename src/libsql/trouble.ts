/** A file that cannot be used now, or is no longer where it was: the wait until it serves again. */
import { existsSync } from "node:fs"
import { dirname } from "node:path"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { LibsqlError, type LibsqlFile } from "./client.ts"
import { cureOf } from "./cure.ts"

/** How often a file is tried again at the start, and looked for while it is open. */
const AGAIN = Schedule.spaced("2 seconds")
const LOOK = "1 second"

const passes = (error: unknown): boolean => error instanceof LibsqlError && /^SQLITE_(BUSY|LOCKED|FULL|IOERR|READONLY|CANTOPEN)/.test(error.code)

/** What a person reads of a failure: what it is, and what mends it. */
export const sentence = (error: { readonly message: string }): string =>
  [error.message, error instanceof LibsqlError ? cureOf(error.code) : null].filter((text) => text !== null).join("; ")

/**
 * For a job beside the flows, which comes again at its time: a failure is one sentence in the log, and is not said again before the
 * job has worked or fails otherwise.
 */
export const quietly = (
  what: string,
): (<A, E extends { readonly message: string }, R>(job: Effect.Effect<A, E, R>) => Effect.Effect<void, never, R>) => {
  let told = ""
  return (job) =>
    job.pipe(
      Effect.andThen(
        Effect.sync(() => {
          told = ""
        }),
      ),
      Effect.catch((error) =>
        Effect.suspend(() => {
          const text = sentence(error)
          const isNew = text !== told
          told = text
          return isNew ? Effect.logWarning(`${what}: ${text}`) : Effect.void
        }),
      ),
      Effect.ignoreCause({ log: "Warn" }),
    )
}

/** Why a file that is gone from its place is not put back. */
const unsaved = (path: string, error: LibsqlError): string =>
  existsSync(dirname(path))
    ? `the file is gone from its place and cannot be saved yet: ${sentence(error)}`
    : `the folder ${dirname(path)} is gone or has another name: give it back its name, or stop this node and start it with the folder's new one. Programs that open ${path} now do not find it`

/**
 * Fails once the file is no longer where it was opened. A disk that has no room for what must be saved, or a folder that is gone, is
 * waited for; `tell` hears why, and "" when that is over.
 */
export const watchPlace = (file: LibsqlFile, tell: (trouble: string) => Effect.Effect<void>): Effect.Effect<never, LibsqlError> => {
  let told = ""
  const say = (trouble: string) =>
    Effect.suspend(() => {
      if (trouble === told) return Effect.void
      told = trouble
      return Effect.andThen(tell(trouble), trouble === "" ? Effect.void : Effect.logWarning(trouble))
    })
  return Effect.forever(
    Effect.sleep(LOOK).pipe(
      Effect.andThen(file.moved),
      Effect.tap(() => say("")),
      Effect.catch((error) => Effect.as(say(unsaved(file.path, error)), null)),
      Effect.flatMap((message) =>
        message === null ? Effect.void : Effect.fail(new LibsqlError({ file: file.path, sql: "", code: "SQLITE_READONLY_DBMOVED", message })),
      ),
    ),
  )
}

/** What runs on a file, begun again when the file could not be used and may be later: a program holds its lock, a full disk, a right that lacks. */
export const untilFileServes = <A, E, R>(program: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  program.pipe(
    Effect.tapError((error) => (error instanceof LibsqlError ? Effect.logWarning(`the file: ${sentence(error)}`) : Effect.void)),
    Effect.retry({ while: passes, schedule: AGAIN }),
  )
