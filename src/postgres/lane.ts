/**
 * One connection of a pool, of one user at a time. The driver would go on after a loss with another session under the same
 * name, in which the rest of a transaction would stand alone, and may leave a statement that is sent meanwhile without an
 * answer; so a lane that lost its connection is never used again, and who waits on it is told.
 *
 * A line can die without a word: then nobody says that it is lost. Postgres knows better what it still works on, so lanes
 * that wait for long are looked up there, over a new connection.
 */
import postgres from "postgres"
import { queryOptions } from "./address.ts"
import { HUB_PATH, SETTLE } from "./settings.ts"

const CONNECT_TIMEOUT_SECONDS = 10
/** A lane that waits for longer is looked up at Postgres; one that is not at work there at two looks in a row is lost. */
const LOOK_MS = 15_000

/** Names one session: a pid alone may be another's by now. */
interface Backend {
  readonly pid: number
  readonly startedAt: string
}

export interface Lane {
  readonly sql: postgres.Sql
  readonly waiting: Set<(cause: Error) => void>
  /** Text that stands prepared. */
  readonly kept: Set<string>
  /** The session is as it must be. */
  readonly isReady: Promise<unknown>
  isLost: boolean
  idle?: ReturnType<typeof setTimeout>
  /** Unknown until Postgres has answered for the first time. */
  backend?: Backend
  /** Why there is no connection. */
  refusal?: Error
  /** The statement that it waits for, by number, as long as it waits. */
  statement: number
  askedAt: number
  /** The statement for which Postgres was found not to be at work. */
  doubted: number
}

export const openLane = (url: string, connection: Record<string, string>, onclose: (lane: Lane) => void): Lane => {
  const sql = postgres({
    ...queryOptions(url),
    max: 1,
    connect_timeout: CONNECT_TIMEOUT_SECONDS,
    // Closed here, never by the driver between two statements of a transaction.
    max_lifetime: null,
    // A connection that is lost while the driver asks for types on its own would end the process.
    fetch_types: false,
    onnotice: () => undefined,
    onclose: () => onclose(lane),
    connection: connection as Partial<postgres.ConnectionParameters>,
  })
  const isReady = sql.unsafe(SETTLE).then(() => undefined)
  const lane: Lane = { sql, isReady, waiting: new Set(), kept: new Set(), isLost: false, statement: 0, askedAt: 0, doubted: 0 }
  void isReady
    .then(() => sql.unsafe('SELECT pid, backend_start::text AS "startedAt" FROM pg_stat_activity WHERE pid = pg_backend_pid()'))
    .then(([row]) => {
      lane.backend = row as unknown as Backend
    })
    .catch((cause: Error) => {
      lane.refusal = cause
      if (!lane.isLost) loseLane(lane)
    })
  return lane
}

const lost = (): Error => new Error("the connection to Postgres was lost")

export const loseLane = (lane: Lane): void => {
  lane.isLost = true
  clearTimeout(lane.idle)
  const waiting = [...lane.waiting]
  lane.waiting.clear()
  for (const refuse of waiting) refuse(lane.refusal ?? lost())
  void lane.sql.end({ timeout: 0 }).catch(() => undefined)
}

/** What a lane answers, or its loss, whichever comes first. */
export const ask = <A>(lane: Lane, send: (sql: postgres.Sql) => Promise<A>): Promise<A> =>
  new Promise((done, refuse) => {
    if (lane.isLost) return refuse(lost())
    lane.waiting.add(refuse)
    lane.statement++
    lane.askedAt = performance.now()
    // Who is told goes on at once: the lane must be free by then.
    const told =
      <B>(tell: (answer: B) => void) =>
      (answer: B): void => {
        lane.waiting.delete(refuse)
        tell(answer)
      }
    void lane.isReady.then(() => send(lane.sql)).then(told(done), told(refuse))
  })

/** A new connection of its own, and its answer within the time in which a lane may be looked up again. */
const askAside = async <A>(url: string, ms: number, send: (sql: postgres.Sql) => Promise<A>): Promise<A> => {
  const connection = { search_path: HUB_PATH }
  const sql = postgres({
    ...queryOptions(url),
    ...{ max: 1, connect_timeout: CONNECT_TIMEOUT_SECONDS, fetch_types: false },
    onnotice: () => undefined,
    connection,
  })
  let timer: ReturnType<typeof setTimeout> | undefined
  try {
    return await Promise.race([
      send(sql),
      new Promise<never>((_, refuse) => {
        timer = setTimeout(() => refuse(lost()), ms)
      }),
    ])
  } finally {
    clearTimeout(timer)
    void sql.end({ timeout: 0 }).catch(() => undefined)
  }
}

/** Sessions among these that Postgres is at work for. */
const atWork = async (sql: postgres.Sql, backends: ReadonlyArray<Backend>): Promise<ReadonlySet<number>> => {
  const rows = await sql.unsafe(
    `SELECT a.pid FROM pg_stat_activity a JOIN json_to_recordset($1::text::json) AS b (pid int, "startedAt" text)
     ON a.pid = b.pid AND a.backend_start::text = b."startedAt" WHERE a.state = 'active'`,
    [JSON.stringify(backends)],
  )
  return new Set(rows.map(({ pid }) => pid as number))
}

/** Ends them at Postgres too: what such a session has locked would stay locked until the server finds its line dead. */
const endBackends = (sql: postgres.Sql, backends: ReadonlyArray<Backend>) =>
  sql.unsafe(
    `SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN json_to_recordset($1::text::json) AS b (pid int, "startedAt" text)
     ON a.pid = b.pid AND a.backend_start::text = b."startedAt"`,
    [JSON.stringify(backends)],
  )

const backendsOf = (lanes: ReadonlyArray<Lane>): ReadonlyArray<Backend> => lanes.flatMap(({ backend }) => (backend === undefined ? [] : [backend]))

/**
 * For a lane that was given up with a statement under way: Postgres finds out that nobody waits for it only once it is done, and what
 * waits for a lock is not done for as long as that is held. Best effort.
 */
export const endStatement = (url: string, lane: Lane): Promise<void> =>
  askAside(url, LOOK_MS, (sql) => endBackends(sql, backendsOf([lane]))).then(
    () => undefined,
    () => undefined,
  )

/**
 * Looks up the lanes that have waited for longer than `ms`, and calls `lose` for those whose line is dead. A Postgres that does not
 * answer the question tells nothing about them.
 */
const look = async (url: string, ms: number, lanes: Iterable<Lane>, lose: (lane: Lane) => void): Promise<void> => {
  const late = [...lanes].filter((lane) => lane.waiting.size > 0 && performance.now() - lane.askedAt > ms)
  if (late.length === 0) return
  const asked = late.map(({ statement }) => statement)
  await askAside(url, ms, async (sql) => {
    const working = await atWork(sql, backendsOf(late))
    const dead: Array<Lane> = []
    for (const [i, lane] of late.entries()) {
      if (lane.isLost || lane.waiting.size === 0 || lane.statement !== asked[i]) continue
      if (lane.backend !== undefined && working.has(lane.backend.pid)) continue
      if (lane.doubted === lane.statement) dead.push(lane)
      else lane.doubted = lane.statement
    }
    for (const lane of dead) lose(lane)
    if (dead.length > 0) await endBackends(sql, backendsOf(dead))
  })
}

/** Looks again and again, until the answer is called. `ms`: how long a statement may wait before it is looked up. */
export const watchLanes = (url: string, lanes: Iterable<Lane>, lose: (lane: Lane) => void, ms: number = LOOK_MS): (() => void) => {
  let timer: ReturnType<typeof setTimeout> | undefined
  let isOver = false
  const next = (): void => {
    if (!isOver)
      timer = setTimeout(() => {
        void look(url, ms, lanes, lose)
          .catch(() => undefined)
          .finally(next)
      }, ms)
  }
  next()
  return () => {
    isOver = true
    clearTimeout(timer)
  }
}
