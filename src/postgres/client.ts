/**
 * Postgres as a service: queries, transactions on one connection, errors with their SQLSTATE. Every session is pinned to
 * the settings under which values are compared and stored as text; a session that does not have them is refused.
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import postgres from "postgres"

/** Connections of one pool: pushes, brackets and status queries share them. */
const POOL_SIZE = 8
const CONNECT_TIMEOUT_SECONDS = 10

/** Under these settings Postgres prints a value in one way only. */
export const SESSION = {
  TimeZone: "UTC",
  DateStyle: "ISO, MDY",
  IntervalStyle: "iso_8601",
  bytea_output: "hex",
  extra_float_digits: "1",
  client_encoding: "UTF8",
} as const

/** `sqlstate` is "" when no server answered (down, refused, timed out). */
export class PostgresError extends Data.TaggedError("PostgresError")<{
  readonly sqlstate: string
  readonly message: string
  readonly detail: string
  readonly constraint: string
  readonly table: string
  readonly column: string
  readonly sql: string
}> {}

export type Param = string | number | bigint | boolean | null | ReadonlyArray<string | null>
export type Row = Record<string, string | null>

/** One session: inside `tx` every statement runs in the same transaction. */
export interface Session {
  /** Types decode as the driver does for int4, text and bool; cast to `text` what must stay exact. */
  readonly query: <A = Row>(sql: string, params?: ReadonlyArray<Param>) => Effect.Effect<ReadonlyArray<A>, PostgresError>
  /** Rows as arrays, in select order. */
  readonly values: (sql: string, params?: ReadonlyArray<Param>) => Effect.Effect<ReadonlyArray<ReadonlyArray<string | null>>, PostgresError>
  /** Rows as arrays of exactly what each type's output function prints. */
  readonly texts: (sql: string, params?: ReadonlyArray<Param>) => Effect.Effect<ReadonlyArray<ReadonlyArray<string | null>>, PostgresError>
  /** Rows written or read by one statement. */
  readonly execute: (sql: string, params?: ReadonlyArray<Param>) => Effect.Effect<number, PostgresError>
}

export type Isolation = "read committed" | "repeatable read"

export interface PostgresPool extends Session {
  readonly url: string
  /** Commits when the body succeeds, rolls back otherwise. */
  readonly tx: <A, E, R>(body: (session: Session) => Effect.Effect<A, E, R>, isolation?: Isolation) => Effect.Effect<A, E | PostgresError, R>
  /** Ends every connection and what runs on it: for a line that was found dead, on which an answer would be waited for in vain. */
  readonly reset: Effect.Effect<void>
}

/** Retrying makes sense: the server was away, busy, or chose this transaction as a victim. */
export const isTransient = (error: PostgresError): boolean => error.sqlstate === "" || /^(08|40|53|55P03|57P0|57014|25006)/.test(error.sqlstate)

/** A plan that the server kept, in a function for one, was made before a DDL: the transaction is lost, not its work. */
const isStalePlan = (error: unknown): boolean =>
  error instanceof PostgresError && error.sqlstate === "0A000" && error.message.includes("cached plan must not change result type")

const toError =
  (sql: string) =>
  (cause: unknown): PostgresError => {
    const e = cause as { code?: string; message?: string; detail?: string; constraint_name?: string; table_name?: string; column_name?: string }
    const code = typeof e.code === "string" && /^[0-9A-Z]{5}$/.test(e.code) ? e.code : ""
    return new PostgresError({
      sqlstate: code,
      message: e.message ?? String(cause),
      detail: e.detail ?? "",
      constraint: e.constraint_name ?? "",
      table: e.table_name ?? "",
      column: e.column_name ?? "",
      sql,
    })
  }

/** A text may begin with a byte order mark, which belongs to it. */
const utf8 = new TextDecoder("utf-8", { ignoreBOM: true })

const sessionOf = (sql: () => Pick<postgres.Sql, "unsafe">): Session => {
  const unsafe = (text: string, params: ReadonlyArray<Param> = []) => sql().unsafe(text, params as never, { prepare: false })
  return {
    query: (text, params) => Effect.tryPromise({ try: async () => [...(await unsafe(text, params))] as never, catch: toError(text) }),
    values: (text, params) => Effect.tryPromise({ try: async () => [...(await unsafe(text, params).values())] as never, catch: toError(text) }),
    texts: (text, params) =>
      Effect.tryPromise({
        try: async () => (await unsafe(text, params).raw()).map((row) => row.map((cell) => (cell === null ? null : utf8.decode(cell)))),
        catch: toError(text),
      }),
    execute: (text, params) => Effect.tryPromise({ try: async () => (await unsafe(text, params)).count ?? 0, catch: toError(text) }),
  }
}

/** Opens a pool; closed with the scope. Connects on first use, so an absent server is an error of the query, not of this. */
export const openPool = (url: string, options: { readonly name: string; readonly max?: number }): Effect.Effect<PostgresPool, never, Scope.Scope> =>
  Effect.gen(function* () {
    const connect = () =>
      postgres(url, {
        max: options.max ?? POOL_SIZE,
        connect_timeout: CONNECT_TIMEOUT_SECONDS,
        idle_timeout: 60,
        // Without it, reserving the first connection of a pool never returns (postgres 3.4.9).
        fetch_types: true,
        onnotice: () => undefined,
        connection: { ...SESSION, application_name: `schoolbus ${options.name}` },
      })
    let sql = connect()
    yield* Effect.addFinalizer(() => Effect.promise(() => sql.end({ timeout: 2 })))
    const reset = Effect.sync(() => {
      const dead = sql
      sql = connect()
      void dead.end({ timeout: 0 }).catch(() => undefined)
    })
    const once: PostgresPool["tx"] = (body, isolation = "read committed") =>
      Effect.acquireUseRelease(
        Effect.tryPromise({ try: () => sql.reserve(), catch: toError("connect") }),
        (reserved) => {
          const session = sessionOf(() => reserved)
          return Effect.acquireUseRelease(
            session.execute(`BEGIN ISOLATION LEVEL ${isolation}`),
            () => Effect.flatMap(body(session), (value) => Effect.as(session.execute("COMMIT"), value)),
            (_, exit) => (Exit.isSuccess(exit) ? Effect.void : Effect.ignoreCause(session.execute("ROLLBACK"))),
          )
        },
        (reserved) => Effect.sync(() => reserved.release()),
      )
    const tx: PostgresPool["tx"] = (body, isolation) => Effect.retry(once(body, isolation), { times: 1, while: isStalePlan })
    return { url, tx, reset, ...sessionOf(() => sql) }
  })

export class Postgres extends Context.Service<Postgres, PostgresPool>()("schoolbus/postgres/Postgres") {
  static readonly layer = (url: string, name: string): Layer.Layer<Postgres> => Layer.effect(Postgres, openPool(url, { name }))
}

/** Quotes an identifier. */
export const ident = (name: string): string => `"${name.replaceAll('"', '""')}"`

/** `"public.students"` -> `"public"."students"`. The schema ends at the first dot. */
export const qualified = (table: string): string => {
  const dot = table.indexOf(".")
  return `${ident(table.slice(0, dot))}.${ident(table.slice(dot + 1))}`
}
