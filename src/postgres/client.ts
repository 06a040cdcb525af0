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
import * as Semaphore from "effect/Semaphore"
import type postgres from "postgres"
import { ask, endStatement, type Lane, loseLane, openLane, watchLanes } from "./lane.ts"
import { COMMIT, SESSION, TO_HUB, TO_OFFICE } from "./settings.ts"

/** Connections of one pool: pushes, brackets and status queries share them. */
const POOL_SIZE = 8
/** A connection that nobody needs is closed. */
const IDLE_MS = 60_000
/** What still runs on a connection that is given up. */
const END_SECONDS = 2
/** Statements that a connection keeps prepared; with more of them the rest is parsed each time. */
const MAX_KEPT = 100

/** `sqlstate` is "" when no server answered (down, refused, timed out). */
export class PostgresError extends Data.TaggedError("PostgresError")<{
  readonly sqlstate: string
  /** It ended the session, or there was none: nothing can be said of what was asked. */
  readonly isFatal?: boolean
  /** The server's function that raised it: the same whatever language its messages are in. */
  readonly routine?: string
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

export type Statements = ReadonlyArray<Effect.Effect<unknown, PostgresError>>
export type Answers<A extends Statements> = { readonly [K in keyof A]: Effect.Success<A[K]> }

/** Sends statements of one session together and waits for all answers; the first failure is that of all, what came after it did nothing or is rolled back. */
export const inOneGo = <const A extends Statements>(statements: A): Effect.Effect<Answers<A>, PostgresError> =>
  Effect.flatMap(Effect.all(statements.map(Effect.exit), { concurrency: "unbounded" }), (exits) => Effect.all(exits) as never)

/** In a transaction: a statement in which code of head office runs, its triggers among it. Names in it are written in full. */
export const asOffice = <A>(session: Session, statement: Effect.Effect<A, PostgresError>): Effect.Effect<A, PostgresError> =>
  Effect.map(inOneGo([session.execute(TO_OFFICE), statement, session.execute(TO_HUB)]), ([, answer]) => answer)

export type Isolation = "read committed" | "repeatable read"

const begin = (isolation: Isolation): string => `BEGIN ISOLATION LEVEL ${isolation}`

export interface PostgresPool extends Session {
  readonly url: string
  /**
   * Commits when the body succeeds, rolls back otherwise. `keeping`: the same session for statements that come again and again, which
   * the connection keeps prepared: that saves their parsing and a way there and back.
   */
  readonly tx: <A, E, R>(
    body: (session: Session, keeping: Session) => Effect.Effect<A, E, R>,
    isolation?: Isolation,
  ) => Effect.Effect<A, E | PostgresError, R>
  /**
   * As `tx` with a session that keeps, in fewer ways there and back: `first` goes out with the beginning, and `last`, SQL that the body
   * answers, with the commit. `first` only reads or locks: if there is no transaction, that is known before the body.
   */
  readonly txInRounds: <const F extends Statements, A, E, R>(
    first: (session: Session) => F,
    body: (session: Session, answers: Answers<F>) => Effect.Effect<{ readonly value: A; readonly last: string }, E, R>,
  ) => Effect.Effect<A, E | PostgresError, R>
  /** Ends every connection and what runs on it: for a line that was found dead, on which an answer would be waited for in vain. */
  readonly reset: Effect.Effect<void>
}

/**
 * Retrying makes sense: the server was away, busy, or chose this transaction as a victim. What writes is read committed: there
 * a serialization failure is what somebody's trigger says of a row, each time.
 */
export const isTransient = (error: PostgresError): boolean =>
  error.sqlstate === "" || error.isFatal === true || /^(08|40P01|53|55P03|57P0|57014|25006)/.test(error.sqlstate) || isStalePlan(error)

/** A statement that took too long, or that somebody cancelled: fewer rows may pass. */
export const isTooLong = (error: PostgresError): boolean => error.sqlstate === "57014"

/** A plan that the server kept, of a prepared statement or in a function, was made before a DDL: the transaction is lost, not its work. */
const isStalePlan = (error: unknown): boolean =>
  error instanceof PostgresError && error.sqlstate === "0A000" && error.routine === "RevalidateCachedQuery"

/** Of whatever the driver threw. Only what the server said has a severity: EPIPE, of the line, looks like a SQLSTATE too. */
export const toError =
  (sql: string) =>
  (cause: unknown): PostgresError => {
    const e = cause as {
      code?: string
      severity?: string
      routine?: string
      message?: string
      detail?: string
      constraint_name?: string
      table_name?: string
      column_name?: string
    }
    const code = e.severity === undefined ? "" : (e.code ?? "")
    return new PostgresError({
      sqlstate: code,
      isFatal: e.severity === "FATAL" || e.severity === "PANIC",
      routine: e.routine ?? "",
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

/** `{"a","b \\" c",NULL}` */
const arrayText = (values: ReadonlyArray<string | null>): string =>
  // Value by value it takes longer than what becomes of most lists.
  values.length > 0 && !values.includes(null) && !/[\\"]/.test(values.join(""))
    ? `{"${values.join('","')}"}`
    : `{${values.map((value) => (value === null ? "NULL" : `"${value.replace(/[\\"]/g, "\\$&")}"`)).join(",")}}`

const sessionsOf = (lane: Lane): readonly [session: Session, keeping: Session] => {
  const unsafe = (sql: postgres.Sql, text: string, params: ReadonlyArray<Param>, prepare: boolean) =>
    sql.unsafe(text, params.map((param) => (Array.isArray(param) ? arrayText(param) : param)) as never, { prepare })
  const keeps = (text: string, params: ReadonlyArray<Param>): boolean => {
    if (lane.kept.size < MAX_KEPT && params.length > 0) lane.kept.add(text)
    return lane.kept.has(text)
  }
  const asked = <A>(text: string, send: (sql: postgres.Sql) => Promise<A>) => Effect.tryPromise({ try: () => ask(lane, send), catch: toError(text) })
  const session = (prepares: typeof keeps): Session => ({
    query: (text, params = []) => asked(text, async (sql) => [...(await unsafe(sql, text, params, prepares(text, params)))] as never),
    values: (text, params = []) => asked(text, async (sql) => [...(await unsafe(sql, text, params, prepares(text, params)).values())] as never),
    texts: (text, params = []) =>
      asked(text, async (sql) =>
        (await unsafe(sql, text, params, prepares(text, params)).raw()).map((row) => row.map((cell) => (cell === null ? null : utf8.decode(cell)))),
      ),
    execute: (text, params = []) => asked(text, async (sql) => (await unsafe(sql, text, params, prepares(text, params))).count ?? 0),
  })
  return [session(() => false), session(keeps)]
}

export interface PoolOptions {
  readonly name: string
  /** How long a statement waits for a lock, `"5s"`; else as long as it takes. */
  readonly lockTimeout?: string
  readonly max?: number
  /** How long a statement may wait before Postgres is asked whether it is at work on it. */
  readonly lookMs?: number
}

/** Opens a pool; closed with the scope. Connects on first use, so an absent server is an error of the query, not of this. */
export const openPool = (url: string, options: PoolOptions): Effect.Effect<PostgresPool, never, Scope.Scope> =>
  Effect.gen(function* () {
    const gate = yield* Semaphore.make(options.max ?? POOL_SIZE)
    const lanes = new Set<Lane>()
    const idle: Array<Lane> = []
    const drop = (lane: Lane): void => {
      lanes.delete(lane)
      const at = idle.indexOf(lane)
      if (at >= 0) idle.splice(at, 1)
      if (!lane.isLost) loseLane(lane)
    }
    const open = (): Lane => {
      const lane = openLane(
        url,
        { ...SESSION, lock_timeout: options.lockTimeout ?? SESSION.lock_timeout, application_name: `schoolbus ${options.name}` },
        (closed) => {
          // What ended one may have ended the others, without a word to those that only wait.
          if (!closed.isLost) for (const other of [...idle]) drop(other)
          drop(closed)
        },
      )
      lanes.add(lane)
      return lane
    }
    const take = Effect.sync(() => {
      const lane = idle.pop() ?? open()
      clearTimeout(lane.idle)
      return lane
    })
    const give = (lane: Lane) =>
      Effect.sync(() => {
        if (lane.isLost) return drop(lane)
        // A statement that nobody waits for any more would keep the next one waiting.
        if (lane.waiting.size > 0) {
          drop(lane)
          void endStatement(url, lane)
          return
        }
        lane.idle = setTimeout(() => drop(lane), IDLE_MS)
        idle.push(lane)
      })
    const onLane = <A, E, R>(
      use: (session: Session, keeping: Session, rollback: Effect.Effect<void>) => Effect.Effect<A, E, R>,
    ): Effect.Effect<A, E, R> =>
      gate.withPermit(
        Effect.acquireUseRelease(
          take,
          (lane) => {
            const [session, keeping] = sessionsOf(lane)
            // It would wait behind a statement that nobody waits for any more, which may wait for a lock itself; the lane is given up with its transaction.
            const rollback = Effect.suspend(() => (lane.waiting.size > 0 ? Effect.void : Effect.ignoreCause(session.execute("ROLLBACK"))))
            return use(session, keeping, rollback)
          },
          give,
        ),
      )
    const endWatch = watchLanes(url, lanes, drop, options.lookMs)
    yield* Effect.addFinalizer(() =>
      Effect.promise(async () => {
        endWatch()
        for (const lane of idle) clearTimeout(lane.idle)
        await Promise.all([...lanes].map((lane) => lane.sql.end({ timeout: END_SECONDS })))
      }),
    )
    const once: PostgresPool["tx"] = (body, isolation = "read committed") =>
      onLane((session, keeping, rollback) =>
        Effect.acquireUseRelease(
          session.execute(begin(isolation)),
          () => Effect.flatMap(body(session, keeping), (value) => Effect.as(session.execute(COMMIT), value)),
          (_, exit) => (Exit.isSuccess(exit) ? Effect.void : rollback),
        ),
      )
    // Connections that nobody uses may keep such plans too.
    const forgetPlans = Effect.sync(() => {
      for (const lane of [...idle]) if (lane.kept.size > 0) drop(lane)
    })
    const onceMore = <A, E, R>(run: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
      Effect.retry(
        Effect.tapError(run, (error) => (isStalePlan(error) ? forgetPlans : Effect.void)),
        { times: 1, while: isStalePlan },
      )
    const txInRounds: PostgresPool["txInRounds"] = (first, body) => {
      const rounds = (session: Session, keeping: Session, rollback: Effect.Effect<void>) =>
        Effect.gen(function* () {
          const [, ...answers] = yield* inOneGo([session.execute(begin("read committed")), ...first(keeping)])
          const { value, last } = yield* body(keeping, answers as never)
          // One message, of which nothing is done after what fails. A statement of its own might be sent again by the driver, behind the commit.
          yield* session.execute(`${last}${COMMIT}`)
          return value
        }).pipe(Effect.onError(() => rollback))
      return onceMore(onLane(rounds))
    }
    return {
      url,
      tx: (body, isolation) => onceMore(once(body, isolation)),
      txInRounds,
      reset: Effect.sync(() => {
        for (const lane of [...lanes]) drop(lane)
      }),
      query: (sql, params) => onLane((session) => session.query(sql, params)),
      values: (sql, params) => onLane((session) => session.values(sql, params)),
      texts: (sql, params) => onLane((session) => session.texts(sql, params)),
      execute: (sql, params) => onLane((session) => session.execute(sql, params)),
    }
  })

export class Postgres extends Context.Service<Postgres, PostgresPool>()("schoolbus/postgres/Postgres") {
  static readonly layer = (url: string, name: string): Layer.Layer<Postgres> => Layer.effect(Postgres, openPool(url, { name }))
}

/** Quotes a text without NUL. */
export const literal = (text: string): string => `'${text.replaceAll("'", "''")}'`

/** Quotes an identifier. */
export const ident = (name: string): string => `"${name.replaceAll('"', '""')}"`

/** `"public.students"` -> `"public"."students"`. The schema ends at the first dot. */
export const qualified = (table: string): string => {
  const dot = table.indexOf(".")
  return `${ident(table.slice(0, dot))}.${ident(table.slice(dot + 1))}`
}
