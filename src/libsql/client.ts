/**
 * A libSQL file as a service: one writer connection and one reader connection, each in its own Web Worker, so that no
 * statement and no wait for another program's lock stands on the event loop.
 *
 * `write` runs its body in one BEGIN IMMEDIATE transaction and commits when the body succeeds; any failure or
 * interruption rolls back. Bodies queue: one writer. `read` runs its body on one snapshot. Neither may wait for the
 * network inside. After SQLITE_BUSY the connection is thrown away and opened again.
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { Cell, Kind, Wire } from "../model/value.ts"
import type { LoadPlan, LoadSource, Shown, WaitingKeys } from "./load.ts"
import type { Lines } from "./gather.ts"
import {
  type Bind,
  type Command,
  type Held,
  type LinesScan,
  pack,
  packWires,
  type PrintScan,
  type PrintsFound,
  type Request,
  type Requests,
  type Responses,
  type RowFailure,
  type Showing,
} from "./messages.ts"
import { STILL_MS } from "./place.ts"
import type { Slab } from "./slab.ts"
import type { Piece, Step, Walk } from "./walk.ts"

/** How long a statement waits for another program's write lock before it fails with SQLITE_BUSY. */
const BUSY_TIMEOUT_MS = 5_000

const PRAGMAS = ["journal_mode=WAL", "synchronous=FULL", "foreign_keys=OFF", "recursive_triggers=OFF", "wal_autocheckpoint=4000", "temp_store=MEMORY"]

/** KiB of pages that a connection keeps: rows are written all over the file, and read one after another. */
const WRITER_CACHE_KIB = 32_768
const READER_CACHE_KIB = 16_384

/** `code` is SQLite's extended name, e.g. `SQLITE_BUSY`, `SQLITE_FULL`, `SQLITE_CONSTRAINT_UNIQUE`. */
export class LibsqlError extends Data.TaggedError("LibsqlError")<{
  readonly file: string
  readonly code: string
  readonly message: string
  readonly sql: string
}> {}

export interface Tx {
  /** Rows as objects. INTEGER comes as number when it fits exactly, else bigint. Do not read unchecked text of school programs with it: use a CAST to BLOB. */
  readonly all: <Row>(sql: string, args?: ReadonlyArray<Bind>) => Effect.Effect<ReadonlyArray<Row>, LibsqlError>
  /** Rows as arrays of cells; INTEGER always as bigint, REAL as number. */
  readonly values: (sql: string, args?: ReadonlyArray<Bind>) => Effect.Effect<ReadonlyArray<ReadonlyArray<Cell>>, LibsqlError>
  /** One statement; the number of rows it changed. */
  readonly run: (sql: string, args?: ReadonlyArray<Bind>) => Effect.Effect<number, LibsqlError>
  /** One prepared statement for many rows, cells bound exactly as they are. Rows that violate a constraint are reported, not thrown. */
  readonly many: (sql: string, rows: ReadonlyArray<ReadonlyArray<Cell>>) => Effect.Effect<ReadonlyArray<RowFailure>, LibsqlError>
  /**
   * The same for wire values, as many in each row: rows go together in one statement where none of them is refused. `sql` is the
   * statement for so many rows.
   */
  readonly manyWires: (
    sql: (rows: number) => string,
    kinds: ReadonlyArray<Kind>,
    rows: ReadonlyArray<ReadonlyArray<Wire>>,
  ) => Effect.Effect<ReadonlyArray<RowFailure>, LibsqlError>
  /**
   * One statement over many rows, the quickest way to write them: `slabRow` has the SQL for a row's parts, `args` are bound from
   * ?4 on. It does not wait: what fails, fails the transaction at its end.
   */
  readonly bulk: (sql: string, rows: Slab, args?: ReadonlyArray<Bind>) => Effect.Effect<void, LibsqlError>
  /** As `run`, for a statement whose answer nobody needs. It does not wait either; bytes among the arguments are handed over, and nobody else has them afterwards. */
  readonly ahead: (sql: string, args?: ReadonlyArray<Bind>) => Effect.Effect<void>
  /** Writes loaded lines, from one up to but not including another, but for what waits; null: nothing, as more than `most` rows would be left. */
  readonly show: (place: number, from: number, to: number, waiting: WaitingKeys, most: number) => Effect.Effect<Shown | null, LibsqlError>
  /**
   * A statement again and again, see walk.ts, each time with the place after which it begins and the most rows as its last parameters. It
   * begins at once; the effect gives the next piece, in their order, until one is the end.
   */
  readonly walk: <P extends Piece>(sql: string, args: ReadonlyArray<Bind>, from: Walk) => Effect.Effect<Step<P>, LibsqlError>
  /** DDL or a script. */
  readonly exec: (sql: string) => Effect.Effect<void, LibsqlError>
  /** Reads open writes as the lines of a batch, see lines.ts. */
  readonly lines: (scan: LinesScan) => Effect.Effect<Lines, LibsqlError>
  /** Reads rows and keeps only their prints (model/digest.ts), so that a table of any size may be compared. */
  readonly prints: (scan: PrintScan) => Effect.Effect<PrintsFound, LibsqlError>
}

export interface LibsqlFile {
  readonly path: string
  readonly write: <A, E, R>(body: (tx: Tx) => Effect.Effect<A, E, R>) => Effect.Effect<A, E | LibsqlError, R>
  /**
   * As `write`, but answers when the commit is under way, and lets the next body begin behind it. What the body wrote stands
   * when `committed` has succeeded; when it fails, the transaction has been rolled back.
   */
  readonly writeAhead: <A, E, R>(
    body: (tx: Tx) => Effect.Effect<A, E, R>,
  ) => Effect.Effect<{ readonly value: A; readonly committed: Effect.Effect<void, LibsqlError> }, E | LibsqlError, R>
  /** One statement that is a transaction of its own, in one message: what is small and waited for is not sent to and fro three times. */
  readonly alone: (sql: string, args?: ReadonlyArray<Bind>) => Effect.Effect<number, LibsqlError>
  /** Where lines may be laid ready. There is room for one: what lay ready at another goes when the first line comes to a newer one. */
  readonly newPlace: () => number
  /**
   * Lays the rows of lines ready for `show`, outside of the file and of any lock, behind those that are there; `plans`: more of them
   * than the place has. It does not wait: of a place where lines could not be loaded nothing is shown.
   */
  readonly load: (place: number, source: LoadSource, plans: ReadonlyArray<LoadPlan>) => Effect.Effect<void>
  /**
   * Writes all lines of a place in a transaction of its own, in one message, so that nothing waits between them and the commit; null:
   * nothing was written, as the guard's query finds something else or a row would be left.
   */
  readonly showAlone: (showing: Showing) => Effect.Effect<Held | null, LibsqlError>
  readonly unload: Effect.Effect<void>
  readonly read: <A, E, R>(body: (tx: Tx) => Effect.Effect<A, E, R>) => Effect.Effect<A, E | LibsqlError, R>
  /** What has happened to the file on the disk while it is open, see place.ts; null: nothing. After anything else it must be opened anew. */
  readonly moved: Effect.Effect<string | null, LibsqlError>
  /** A read on a connection and worker of its own: for scans that others shall not wait for. */
  readonly readApart: <A, E, R>(body: (tx: Tx) => Effect.Effect<A, E, R>) => Effect.Effect<A, E | LibsqlError, R>
}

/** Bytes on their way to the worker that do not wait for what is said in the same moment: it shall begin with them. */
const PROMPT_BYTES = 64 * 1024

/** Bytes that may be on their way to the worker: enough work for as long as a commit takes, and for the caller's pauses. */
const AHEAD_BYTES = 4 * 1024 * 1024

interface Port {
  /** Opens the connection; before that the worker only starts. */
  readonly open: Effect.Effect<void, LibsqlError, Scope.Scope>
  readonly tx: Tx
  readonly send: (command: Command) => Effect.Effect<unknown, LibsqlError>
  /** Does not wait for the answer. */
  readonly post: (command: Command, onAnswer: (answer: Effect.Effect<unknown, LibsqlError>) => void) => void
}

/** `niceness`: of the threads that work on the file, above the program's own, where threads have one. `stillMs`: see place.ts. */
export interface FileOptions {
  readonly stillMs?: number
  readonly niceness?: number
}

const makePort = (path: string, cacheKiB: number, { stillMs = STILL_MS, niceness = 0 }: FileOptions): Effect.Effect<Port, never, Scope.Scope> =>
  Effect.gen(function* () {
    const waiting = new Map<number, { readonly sql: string; readonly resume: (effect: Effect.Effect<unknown, LibsqlError>) => void }>()
    let last = 0
    // A worker that is gone answers nobody; whoever asks it must hear so.
    let fault: LibsqlError | null = null
    const failAll = (error: LibsqlError): void => {
      for (const entry of waiting.values()) entry.resume(Effect.fail(error))
      waiting.clear()
    }
    const worker = yield* Effect.acquireRelease(
      Effect.sync(() => new Worker(new URL("./worker.ts", import.meta.url), { type: "module" })),
      (w) =>
        Effect.sync(() => {
          w.terminate()
          fault = new LibsqlError({ file: path, sql: "", code: "CLOSED", message: `${path} is closed` })
          failAll(fault)
        }),
    )
    worker.onmessage = (event: MessageEvent<Responses>) => {
      for (const response of event.data) {
        const entry = waiting.get(response.id)
        if (entry === undefined) continue
        if (!("isMore" in response)) waiting.delete(response.id)
        entry.resume(
          "error" in response
            ? Effect.fail(new LibsqlError({ file: path, sql: entry.sql, code: response.error.code, message: `${response.error.message} (${path})` }))
            : Effect.succeed(response.ok),
        )
      }
    }
    worker.onerror = (event) => {
      fault = new LibsqlError({ file: path, sql: "", code: "WORKER", message: `database worker of ${path} failed: ${event.message}` })
      failAll(fault)
    }
    // What is said in one moment goes in one message.
    let said: Array<Request> = []
    let given: Array<ArrayBuffer> = []
    const flush = (): void => {
      if (said.length === 0) return
      const [requests, buffers] = [said, given]
      said = []
      given = []
      worker.postMessage(requests satisfies Requests, buffers)
    }
    const say = (request: Request): void => {
      said.push(request)
      if (said.length === 1) queueMicrotask(flush)
    }
    // Uninterruptible: an answer that nobody waits for would leave a transaction in an unknown state.
    const send = (command: Command): Effect.Effect<unknown, LibsqlError> =>
      Effect.uninterruptible(
        Effect.callback<unknown, LibsqlError>((resume) => {
          if (fault !== null) return resume(Effect.fail(fault))
          const id = ++last
          waiting.set(id, { sql: "sql" in command ? command.sql : command.op, resume })
          say({ ...command, id })
        }),
      )
    const post: Port["post"] = (command, onAnswer) => {
      if (fault !== null) return onAnswer(Effect.fail(fault))
      const id = ++last
      waiting.set(id, { sql: command.op, resume: onAnswer })
      say({ ...command, id })
    }
    // Bytes of statements under way that nobody waits for. When one fails, the worker refuses what follows it up to the rollback.
    let ahead = 0
    let room = (): void => undefined
    const sendAhead = (sql: string, args: ReadonlyArray<Bind>, bytes: ReadonlyArray<Uint8Array>): void => {
      const id = ++last
      const size = bytes.reduce((sum, { buffer }) => sum + buffer.byteLength, 0)
      ahead += size
      waiting.set(id, {
        sql,
        resume: () => {
          ahead -= size
          room()
        },
      })
      if (fault !== null) {
        failAll(fault)
        return
      }
      say({ op: "ahead", sql, args, id })
      // Bytes are handed over; texts would be copied twice.
      for (const { buffer } of bytes) given.push(buffer as ArrayBuffer)
      if (size >= PROMPT_BYTES) flush()
    }
    const untilRoom: Effect.Effect<void> = Effect.callback((resume) => {
      room = () => {
        if (ahead >= AHEAD_BYTES) return
        room = () => undefined
        resume(Effect.void)
      }
      room()
    })
    const tx: Tx = {
      all: <Row>(sql: string, args?: ReadonlyArray<Bind>) => send({ op: "all", sql, args }) as Effect.Effect<ReadonlyArray<Row>, LibsqlError>,
      values: (sql, args) => send({ op: "values", sql, args }) as Effect.Effect<ReadonlyArray<ReadonlyArray<Cell>>, LibsqlError>,
      run: (sql, args) => send({ op: "run", sql, args }) as Effect.Effect<number, LibsqlError>,
      many: (sql, rows) =>
        rows.length === 0 ? Effect.succeed([]) : (send({ op: "many", sql, ...pack(rows) }) as Effect.Effect<ReadonlyArray<RowFailure>, LibsqlError>),
      manyWires: (sql, kinds, rows) => {
        if (rows.length === 0) return Effect.succeed([])
        return send({ op: "wires", ...packWires(sql, kinds, rows) }) as Effect.Effect<ReadonlyArray<RowFailure>, LibsqlError>
      },
      bulk: Effect.fnUntraced(function* (sql, rows, args = []) {
        rows.close()
        for (const piece of rows.pieces.splice(0)) {
          if (ahead >= AHEAD_BYTES) yield* untilRoom
          sendAhead(sql, [piece.rows, piece.places, piece.base, ...args], [piece.rows, piece.places])
        }
      }),
      ahead: (sql, args = []) =>
        Effect.sync(() =>
          sendAhead(
            sql,
            args,
            args.filter((arg) => arg instanceof Uint8Array),
          ),
        ),
      show: (place, from, to, waiting, most) => send({ op: "show", place, from, to, waiting, most }) as Effect.Effect<Shown | null, LibsqlError>,
      walk: <P extends Piece>(sql: string, args: ReadonlyArray<Bind>, from: Walk) => {
        const came: Array<Effect.Effect<Step<P>, LibsqlError>> = []
        let wake: (() => void) | null = null
        post({ op: "walk", sql, args, walk: from }, (answer) => {
          came.push(answer as Effect.Effect<Step<P>, LibsqlError>)
          wake?.()
        })
        return Effect.callback<Step<P>, LibsqlError>((resume) => {
          wake = () => {
            const next = came.shift()
            if (next === undefined) return
            wake = null
            resume(next)
          }
          wake()
        })
      },
      exec: (sql) => Effect.asVoid(send({ op: "exec", sql })),
      lines: (scan) => send({ op: "lines", ...scan }) as Effect.Effect<Lines, LibsqlError>,
      prints: (scan) => send({ op: "prints", ...scan }) as Effect.Effect<PrintsFound, LibsqlError>,
    }
    const open = Effect.gen(function* () {
      yield* send({ op: "open", path, pragmas: [...PRAGMAS, `cache_size=-${cacheKiB}`], timeoutMs: BUSY_TIMEOUT_MS, stillMs, niceness })
      // The worker leaves its connection by itself: ending it first would leave the WAL behind.
      yield* Effect.addFinalizer(() => Effect.ignoreCause(send({ op: "close" })))
    })
    return { open, tx, send, post }
  })

const movedOf = (port: Port) => Effect.suspend(() => port.send({ op: "keep" }) as Effect.Effect<string | null, LibsqlError>)

/**
 * A read waits for nothing but its statements: its transaction begins and ends on the way to and from them. When it does not
 * begin, the worker refuses the statements that follow.
 */
const makeRead = (port: Port): Pick<LibsqlFile, "read" | "moved"> => {
  const one = Semaphore.makeUnsafe(1)
  const begin = Effect.sync(() => port.post({ op: "begin", write: false }, () => undefined))
  const end = (commit: boolean) => Effect.sync(() => port.post({ op: "end", commit }, () => undefined))
  const read: LibsqlFile["read"] = (body) =>
    one.withPermit(
      Effect.acquireUseRelease(
        begin,
        () => body(port.tx),
        (_, exit) => end(Exit.isSuccess(exit)),
      ),
    )
  return { read, moved: one.withPermit(movedOf(port)) }
}

const makeWrite = (port: Port) => {
  const one = Semaphore.makeUnsafe(1)
  // As for a read: the first statement that is waited for fails when it did not begin, and the commit does.
  const begin = Effect.sync(() => port.post({ op: "begin", write: true }, () => undefined))
  const write = <A, E, R>(body: (tx: Tx) => Effect.Effect<A, E, R>): Effect.Effect<A, E | LibsqlError, R> =>
    one.withPermit(
      Effect.acquireUseRelease(
        begin,
        () => Effect.flatMap(body(port.tx), (value) => Effect.as(port.send({ op: "end", commit: true }), value)),
        (_, exit) => (Exit.isSuccess(exit) ? Effect.void : Effect.ignoreCause(port.send({ op: "end", commit: false }))),
      ),
    )
  const commitAhead = Effect.sync(() => {
    const committed = Deferred.makeUnsafe<void, LibsqlError>()
    port.post({ op: "end", commit: true }, (answer) => Deferred.doneUnsafe(committed, Effect.asVoid(answer)))
    return Deferred.await(committed)
  })
  const writeAhead: LibsqlFile["writeAhead"] = (body) =>
    one.withPermit(
      Effect.acquireUseRelease(
        begin,
        () => Effect.flatMap(body(port.tx), (value) => Effect.map(commitAhead, (committed) => ({ value, committed }))),
        (_, exit) => (Exit.isSuccess(exit) ? Effect.void : Effect.ignoreCause(port.send({ op: "end", commit: false }))),
      ),
    )
  const alone: LibsqlFile["alone"] = (sql, args) => one.withPermit(port.send({ op: "run", sql, args }) as Effect.Effect<number, LibsqlError>)
  let places = 0
  const newPlace = (): number => ++places
  // Between two transactions: it is one of its own.
  const load: LibsqlFile["load"] = (place, source, plans) =>
    one.withPermit(Effect.sync(() => port.post({ op: "load", place, source, plans }, () => undefined)))
  const showAlone: LibsqlFile["showAlone"] = (showing) =>
    one.withPermit(port.send({ op: "showAlone", ...showing }) as Effect.Effect<Held | null, LibsqlError>)
  const unload: LibsqlFile["unload"] = one.withPermit(Effect.sync(() => port.post({ op: "unload" }, () => undefined)))
  return { write, writeAhead, alone, newPlace, load, showAlone, unload, moved: one.withPermit(movedOf(port)) }
}

/** Opens the file, creating it when it does not exist; closed with the scope. */
export const openFile = (path: string, options: FileOptions = {}): Effect.Effect<LibsqlFile, LibsqlError, Scope.Scope> =>
  Effect.gen(function* () {
    const writer = yield* makePort(path, WRITER_CACHE_KIB, options)
    const reader = yield* makePort(path, READER_CACHE_KIB, options)
    // The workers start side by side; the writer makes the file.
    yield* writer.open
    yield* reader.open
    // A file that is stopped stands alone: whoever copies it, or deletes what lies beside it, loses nothing.
    let isJudged = false
    yield* Effect.addFinalizer(() => (isJudged ? Effect.void : Effect.ignoreCause(writer.send({ op: "empty" }))))
    const [write, read] = [makeWrite(writer), makeRead(reader)]
    // After a failure a connection is closed until its next statement, and knows nothing.
    const look = Effect.flatMap(write.moved, (message) => (message === null ? read.moved : Effect.succeed(message)))
    return {
      path,
      ...write,
      read: read.read,
      moved: Effect.tap(look, (message) =>
        Effect.sync(() => {
          isJudged ||= message !== null
        }),
      ),
      readApart: (body) =>
        Effect.scoped(Effect.flatMap(makePort(path, READER_CACHE_KIB, options), (port) => Effect.andThen(port.open, makeRead(port).read(body)))),
    }
  })

/** The file of this node: `feed.db` at the hub, `school.db` in a school. */
export class Libsql extends Context.Service<Libsql, LibsqlFile>()("schoolbus/libsql/Libsql") {
  static readonly layer = (path: string, options?: FileOptions): Layer.Layer<Libsql, LibsqlError> => Layer.effect(Libsql, openFile(path, options))
}

/** Quotes an identifier. */
export const ident = (name: string): string => `"${name.replaceAll('"', '""')}"`
