/**
 * One libSQL connection in a Web Worker. Answers the messages of `messages.ts`, in order; knows SQL and nothing else.
 * The native driver's synchronous interface is used here: one connection that is really ours, prepared statements that
 * stay prepared, values bound by their exact type.
 */
import { getPriority, setPriority } from "node:os"
import process from "node:process"
import Database from "libsql"
import { Hasher, keyName, Prints } from "../model/digest.ts"
import { EarlySync } from "./early-sync.ts"
import { faultOf } from "./fault.ts"
import { gatherLines, type Whole } from "./gather.ts"
import { Loads } from "./load.ts"
import type { Bind, Held, PrintScan, PrintsFound, Request, Requests, Response, Responses, Showing, Statement } from "./messages.ts"
import { type Piece, walk } from "./walk.ts"
import { isRefusal, runRows, writeWires } from "./write-rows.ts"
import { movedFrom, type Place, placeOf, Watch } from "./place.ts"

const STATEMENT_CACHE = 256
/** How often the write lock is looked for while a program has it. */
const LOOK_MS = 1
/** How long the last act on a file, to move its -wal into it, waits for programs. */
const LAST_WAIT_MS = 200
const MOST_NICENESS = 19

let path = ""
let earlySync = new EarlySync("")
let pragmas: ReadonlyArray<string> = []
let timeoutMs = 0
let db: Database.Database | undefined
let place: Place = { main: null, wal: null }
let watch = new Watch("", 0)
let statements = new Map<string, Database.Statement>()
/** Bytes of answers that are handed over. */
let given: Array<ArrayBuffer> = []
/** Why the transaction cannot go on: what nobody waited for has failed, its beginning or a statement, so others may have been sent after it. */
let spoiled: unknown = null

/** On Linux the priority is this thread's own; elsewhere it would be the whole program's. */
const giveWay = (niceness: number): void => {
  if (niceness === 0 || process.platform !== "linux") return
  try {
    setPriority(0, Math.min(MOST_NICENESS, getPriority(0) + niceness))
  } catch {
    // Not allowed here: it is as urgent as everything else.
  }
}

const open = (): Database.Database => {
  if (db !== undefined) return db
  const fresh = new Database(path, { timeout: timeoutMs })
  for (const pragma of pragmas) fresh.prepare(`PRAGMA ${pragma}`).all()
  db = fresh
  place = placeOf(path)
  return fresh
}

/** The -wal comes with the first statement. */
const placeNow = (): Place => {
  if (place.wal === null) place = { ...place, wal: placeOf(path).wal }
  return place
}

const close = (): void => {
  statements = new Map()
  loads.forget()
  const old = db
  db = undefined
  old?.close()
}

/** The driver closes a connection when its statements are collected, so never at an end: a file that is stopped would not stand without its -wal. */
const emptyLog = (): void => {
  try {
    if (db === undefined) return
    if (movedFrom(placeNow(), placeOf(path)) !== null) watch.last(db, place)
    else db.exec(`PRAGMA busy_timeout = ${LAST_WAIT_MS}; PRAGMA wal_checkpoint(TRUNCATE)`)
  } catch {
    // A program reads in it: the -wal stays for the next start.
  }
}

const prepare = (sql: string): Database.Statement => {
  const connection = open()
  let statement = statements.get(sql)
  if (statement === undefined) {
    statement = connection.prepare(sql).safeIntegers(true)
    if (statements.size >= STATEMENT_CACHE) {
      const oldest = statements.keys().next().value
      if (oldest !== undefined) statements.delete(oldest)
    }
    statements.set(sql, statement)
  }
  return statement
}

// The driver ends the process when it is given a boolean, and binds every JS number as REAL.
const bind = (value: Bind): null | bigint | number | string | Uint8Array =>
  typeof value === "boolean"
    ? value
      ? 1n
      : 0n
    : typeof value === "number" && Number.isSafeInteger(value) && !Object.is(value, -0)
      ? BigInt(value)
      : value

/**
 * A program that writes without a pause leaves the lock free for moments only. SQLite looks for it ever more seldom, and would
 * meet none of them for seconds.
 */
const beginWrite = (): void => {
  const connection = open()
  connection.exec(`PRAGMA busy_timeout = ${LOOK_MS}`)
  try {
    for (const began = performance.now(); ; ) {
      try {
        connection.exec("BEGIN IMMEDIATE")
        return
      } catch (error) {
        if (!faultOf(error).code.startsWith("SQLITE_BUSY") || performance.now() - began >= timeoutMs) throw error
      }
    }
  } finally {
    connection.exec(`PRAGMA busy_timeout = ${timeoutMs}`)
  }
}

const toArray = (args: ReadonlyArray<Bind> | undefined): Array<unknown> => (args === undefined ? [] : args.map(bind))

const utf8 = new TextEncoder()
const text = new TextDecoder()
const NULL = utf8.encode("null")

const print = ({ sql, args, renumber, wanted }: PrintScan): PrintsFound => {
  const found = new Map<number, Prints>()
  const keys: Array<readonly [number, string]> = []
  const hasher = new Hasher()
  let table = -1
  let prints = new Prints()
  let isRenumbered = false
  for (const row of prepare(sql).raw(true).iterate(toArray(args)) as Iterable<ReadonlyArray<null | bigint | number | Uint8Array>>) {
    const of = Number(row[0])
    if (of !== table) {
      table = of
      prints = found.get(of) ?? new Prints()
      found.set(of, prints)
      isRenumbered = renumber.includes(of)
    }
    const { words, at } = prints.add()
    const key = row[1] as Uint8Array
    hasher.start().bytes(key).finish(words, at)
    for (let i = 2; i < row.length; i++) {
      const piece = row[i]
      if (typeof piece === "number") hasher.ascii(JSON.stringify(piece))
      else if (piece instanceof Uint8Array) hasher.bytes(isRenumbered ? utf8.encode(JSON.stringify(JSON.parse(text.decode(piece)))) : piece)
      else hasher.bytes(NULL)
    }
    hasher.finish(words, at + 2)
    if (wanted.get(of)?.has(keyName(words, at)) === true) keys.push([of, text.decode(key)])
  }
  return { byTable: new Map([...found].map(([of, list]) => [of, list.take()])), keys }
}

const loads = new Loads({
  prepare,
  text: (sql, number) =>
    (
      prepare(sql)
        .raw(true)
        .get([BigInt(number)]) as [string]
    )[0],
  texts: (sql, args) => prepare(sql).pluck(true).all(args) as ReadonlyArray<string>,
  exec: (sql) => open().exec(sql),
  refusal: (error) => {
    const { code, message } = faultOf(error)
    // A statement that does not fit the file: a program dropped the table or a column.
    return isRefusal(code) || code === "SQLITE_ERROR" ? message : null
  },
})

const rollback = (): void => {
  spoiled = null
  // Some failures have ended the transaction already; a connection that could not even begin is gone.
  if (db?.inTransaction === true) db.exec("ROLLBACK")
}

/** One that fails rolls back: the next transaction may stand in line behind it. */
const commit = (): void => {
  try {
    if (spoiled !== null) throw spoiled
    open().exec("COMMIT")
  } catch (error) {
    try {
      rollback()
    } catch {
      close()
    }
    throw error
  }
}

const showAlone = ({ place, lines, guard, before, after }: Showing): Held | null => {
  const run = ({ sql, args }: Statement): void => void prepare(sql).run(toArray(args))
  beginWrite()
  const began = performance.now()
  try {
    if (JSON.stringify(objectsOf(guard.sql, [])) === guard.found) {
      before.forEach(run)
      if (loads.show(place, 0, lines, new Map(), 0)?.rest.length === 0) {
        after.forEach(run)
        const written = performance.now()
        commit()
        const ended = performance.now()
        return { heldMs: ended - began, commitMs: ended - written }
      }
    }
  } catch (error) {
    rollback()
    throw error
  }
  rollback()
  return null
}

const objectsOf = (sql: string, args: ReadonlyArray<Bind> | undefined): ReadonlyArray<Record<string, unknown>> => {
  const statement = prepare(sql).raw(true)
  const names = statement.columns().map((column) => column.name)
  return statement.all(toArray(args)).map((values) => {
    const row: Record<string, unknown> = {}
    for (let i = 0; i < names.length; i++) {
      const value = (values as Array<unknown>)[i]
      row[names[i] as string] = typeof value === "bigint" && value >= -9007199254740991n && value <= 9007199254740991n ? Number(value) : value
    }
    return row
  })
}

const readWhole = (sql: string, after: number, limit: number): Whole | null => {
  try {
    const row = prepare(sql)
      .raw(true)
      .get([BigInt(after), BigInt(limit)]) as [count: bigint, plain: bigint, lastId: bigint, bytes: Uint8Array]
    const [count, plain, lastId, bytes] = row
    return count > 0n && count === plain ? { count: Number(count), lastId: Number(lastId), bytes } : null
  } catch {
    // Together they may be longer than a value can be; read one by one they say what is wrong.
    return null
  }
}

/** Answers to what has been dealt with of a message. */
let answers: Array<Response> = []
const sendAnswers = (): void => {
  self.postMessage(answers satisfies Responses, given)
  answers = []
  given = []
}

/** Every piece but the last one goes out at once, and first what was asked before. */
const walkAlong = ({ id, sql, args, walk: from }: Extract<Request, { readonly op: "walk" }>): unknown => {
  if (answers.length > 0) sendAnswers()
  for (const piece of walk((after, limit) => objectsOf(sql, [...args, after, limit])[0] as unknown as Piece, from)) {
    if (piece.isEnd) return piece
    answers.push({ id, ok: piece, isMore: true })
    sendAnswers()
  }
  throw new Error("a walk without an end")
}

const answer = (request: Request): unknown => {
  // Without this, what was sent after the failure would stand without it, or even outside the transaction, which some failures end.
  if (spoiled !== null && request.op !== "close" && request.op !== "empty" && request.op !== "reset" && request.op !== "end") throw spoiled
  switch (request.op) {
    case "open":
      path = request.path
      earlySync = new EarlySync(path)
      pragmas = request.pragmas
      timeoutMs = request.timeoutMs
      watch = new Watch(path, request.stillMs)
      giveWay(request.niceness)
      open()
      return null
    case "begin":
      try {
        if (request.write) beginWrite()
        else open().exec("BEGIN")
      } catch (error) {
        // Nobody waits for the beginning.
        spoiled = error
        throw error
      }
      return null
    case "end":
      earlySync.ended()
      if (request.commit) commit()
      else rollback()
      return null
    case "exec":
      open().exec(request.sql)
      // Schema may have changed under the prepared statements.
      statements = new Map()
      return null
    case "ahead":
      try {
        prepare(request.sql).run(toArray(request.args))
        // A large transaction would pile its bytes up until this thread collects them.
        for (const arg of request.args) {
          if (!(arg instanceof Uint8Array)) continue
          void earlySync.wrote(arg.length)
          ;(arg.buffer as ArrayBuffer).transfer(0)
        }
      } catch (error) {
        spoiled = error
        throw error
      }
      return null
    case "run":
      return Number(prepare(request.sql).run(toArray(request.args)).changes)
    case "values": {
      return prepare(request.sql)
        .raw(true)
        .all(toArray(request.args))
        .map((row) => [...(row as Array<unknown>)])
    }
    case "all":
      return objectsOf(request.sql, request.args)
    case "many":
      return runRows(prepare, request)
    case "wires":
      return writeWires(prepare, request)
    case "load":
      loads.load(request.place, request.source, request.plans)
      return null
    case "show":
      return loads.show(request.place, request.from, request.to, request.waiting, request.most)
    case "showAlone":
      return showAlone(request)
    case "unload":
      loads.clear()
      return null
    case "walk":
      return walkAlong(request)
    case "lines": {
      const statement = prepare(request.sql).raw(true)
      const read = (after: number, limit: number) => statement.all([BigInt(after), BigInt(limit)]) as ReadonlyArray<ReadonlyArray<Uint8Array>>
      const found = gatherLines(read, request, (after, limit) => (request.whole === null ? null : readWhole(request.whole, after, limit)))
      given.push(found.bytes.buffer as ArrayBuffer)
      return found
    }
    case "prints":
      return print(request)
    case "keep":
      return db === undefined ? null : watch.look(db, placeNow())
    case "reset":
      close()
      spoiled = null
      return null
    case "empty":
      emptyLog()
      return null
    case "close":
      close()
      return null
  }
}

const respond = (request: Request): Response => {
  try {
    return { id: request.id, ok: answer(request) }
  } catch (error) {
    const fault = faultOf(error)
    // One SQLITE_BUSY leaves this driver's connection unable to commit; a transaction that did not end cleanly is no better.
    if (fault.code.startsWith("SQLITE_BUSY") || (request.op === "end" && request.commit === false)) {
      try {
        close()
      } catch {
        db = undefined
      }
    }
    return { id: request.id, error: fault }
  }
}

self.onmessage = (event: MessageEvent<Requests>) => {
  for (const request of event.data) {
    const response = respond(request)
    answers.push(response)
  }
  sendAnswers()
  if (event.data.some(({ op }) => op === "close")) self.close()
}
