/** Postgres for the commands that speak to it themselves, with their failures as exit codes. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { openPool, PostgresError, type PostgresPool } from "../postgres/client.ts"
import { isTurnedOff, remedyOf } from "../postgres/remedy.ts"
import { CommandFailed, EXIT, type Input } from "./options.ts"

/** A person waits for the command. */
const LOCK_TIMEOUT = "5s"

/** `postgres://user:***@host/db`: what may be printed. */
export const maskedUrl = (url: string): string => {
  try {
    const parsed = new URL(url)
    if (parsed.password !== "") parsed.password = "***"
    return parsed.href
  } catch {
    return "(not an address)"
  }
}

const hintOf = (error: PostgresError): string =>
  error.sqlstate.startsWith("28")
    ? "check user and password in --database-url"
    : error.sqlstate === "3D000"
      ? "create the database, or check its name in --database-url"
      : error.sqlstate === "42501" && !isTurnedOff(error)
        ? "the role lacks a right: take the hub's role, or have it granted; the hub makes schema schoolbus at its first start, or prints the SQL for a DBA"
        : /^(42P01|3F000)/.test(error.sqlstate)
          ? "the hub makes schema schoolbus at its first start: schoolbus hub; or is --database-url another database?"
          : error.sqlstate === ""
            ? "is Postgres running there? check --database-url"
            : (remedyOf(error.sqlstate, error.message, error.routine) ?? "see the server's log")

const postgresFailed = (error: PostgresError, url: string): CommandFailed =>
  new CommandFailed(
    error.sqlstate === "" || /^(08|57P|53)/.test(error.sqlstate)
      ? EXIT.unreachable
      : error.sqlstate === "55P03"
        ? EXIT.again
        : error.sqlstate.startsWith("28") || error.sqlstate === "42501"
          ? EXIT.forbidden
          : EXIT.failed,
    "postgres",
    `Postgres at ${maskedUrl(url)}: ${error.message}`,
    hintOf(error),
  )

/** Runs the body on a pool of one connection that is closed in any case. */
export const withPostgres = async <A, E>(input: Input, body: (pg: PostgresPool) => Effect.Effect<A, E>): Promise<A> => {
  const url = input.text("database-url")
  const exit = await Effect.runPromiseExit(Effect.scoped(Effect.flatMap(openPool(url, { name: "cli", max: 1, lockTimeout: LOCK_TIMEOUT }), body)))
  if (Exit.isSuccess(exit)) return exit.value
  const error = Cause.squash(exit.cause)
  throw error instanceof PostgresError ? postgresFailed(error, url) : error
}
