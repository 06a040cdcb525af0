/**
 * Postgres -> feed. One consumer, in commit order:
 *
 *     take (wal.ts) ─> decode ─> compact per key ─> route ─> one feed transaction: rows + commit LSN ─> confirm the slot
 *                                     ▲
 *                   brackets (bracket.ts): first copy, re-reads, comparisons, entering at their mark
 *
 * What arrived while a transaction was being written is the next batch. A batch ends at a commit; a txn larger than a
 * batch is written chunk by chunk inside one feed transaction, so nothing of it shows before its commit.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { elapsedMs } from "../elapsed.ts"
import type { LibsqlError } from "../libsql/client.ts"
import type { Lsn } from "../model/lsn.ts"
import type { PostgresError, PostgresPool } from "../postgres/client.ts"
import { freePieces, type Message } from "../postgres/messages.ts"
import { type WalReader, WalStopped } from "../postgres/wal.ts"
import { idleStep } from "./ack.ts"
import type { Appender } from "./append.ts"
import { planRoutes } from "./audience.ts"
import { tokenize } from "./body.ts"
import { type Bracket, Brackets } from "./bracket.ts"
import { FeedChecks } from "./check.ts"
import { rememberSecond } from "./commit-time.ts"
import type { Compute } from "./computed.ts"
import type { DecodeTable, Decoder, Event } from "./decode.ts"
import { type FeedTable, rowKey } from "./entry.ts"
import { Feed } from "./feed.ts"
import { makeFlush } from "./flush.ts"
import { makeNotices, type ShapeChanged } from "./notices.ts"
import { type CurrentTxn, Pending, rolesOf } from "./pending.ts"
import { PlainReader, plainTables } from "./plain.ts"
import { makeComparing, makeReads } from "./read-whole.ts"
import { changesTable, type Decoded, isSignal, marksTable } from "./signals.ts"

/** Messages of an unfinished txn that are held before it is written chunk by chunk. */
const LARGE_TXN = 5_000
/** Compacted rows handed to the writer at once; it is at work on them while the next are decoded. */
const CHUNK = 2_000
const CHUNK_CHARS = 4 * 1024 * 1024
/** After so many messages others of this process, and the socket, have their turn: pages go out at the pace of such turns. */
const TURN_MESSAGES = 500
/** What one feed transaction takes of a backlog: the more, the fewer commits; the less, the sooner it shows. */
const BACKLOG_MESSAGES = 50_000
const BACKLOG_MS = 100
/** How often it is looked for rows that must be read again. */
const REREAD_MS = 500

/** Streamed txns that are remembered until a snapshot shows them; beyond this one is taken for that alone. */
const REMEMBERED_TXNS = 10_000

export interface DownOptions {
  readonly pg: PostgresPool
  readonly wal: WalReader
  readonly decoder: <T extends DecodeTable>(tables: ReadonlyArray<T>) => Decoder<T>
  /** The decoder gives NaN and infinities as they are; false: as null. */
  readonly isExact: boolean
  /** Fills in what the decoder leaves out of every row. */
  readonly compute: Compute
  readonly tables: ReadonlyArray<FeedTable>
  /** A full transaction id: what older transactions wrote may be missing from the stream, so no bracket opens while one runs. */
  readonly notBefore: bigint
  /** Tables to be read whole: not loaded yet, or to be compared. */
  readonly reread: ReadonlySet<number>
  readonly onLoading: (table: string, rows: number, done: boolean) => Effect.Effect<void>
  /** Fails when the catalog is no longer the one that this stream was opened with. */
  readonly look: Effect.Effect<void, ShapeChanged | PostgresError>
}

/** Runs until the stream stops or the catalog no longer fits. */
export const runDown = (
  options: DownOptions,
): Effect.Effect<never, WalStopped | ShapeChanged | LibsqlError | PostgresError, Feed | FeedChecks | Scope.Scope> =>
  Effect.gen(function* () {
    const feed = yield* Feed
    const checks = yield* FeedChecks
    const { pg, wal } = options
    const brackets = new Brackets(options.notBefore)
    const decoder = options.decoder<Decoded>([...options.tables, marksTable, changesTable])
    const plain = new PlainReader(plainTables(options.tables, planRoutes(yield* feed.tables), options.isExact))
    const first = yield* feed.state
    /** End of the last txn that stands in the feed or is being committed there. */
    let written = first.position.lsn
    let idle: Lsn = 0n
    let savedAt = yield* elapsedMs
    const microsOf = rememberSecond()
    const { xid, at } = first.position
    const txn: CurrentTxn = { xid, at, micros: microsOf(at) }
    const roles = rolesOf(options.tables)
    const compared = makeComparing()
    const flush = makeFlush({ ...options, onWritten: compared.written })
    const losing = yield* feed.losing
    const series = yield* feed.series
    const reads = makeReads({ ...options, feed, brackets, flush, txn, compared, losing })

    const { lookNow, unreadable, notice } = makeNotices({ ...options, feed, txn })

    let touchedTxn = false
    /** Characters of the messages behind what is pending. */
    let chars = 0
    const touch = (): void => {
      if (touchedTxn) return
      touchedTxn = true
      brackets.noteTxn(txn.xid)
    }

    let special: Event<Decoded> | null = null
    /**
     * Takes messages from `from` on that need nothing but to be remembered, up to a chunk; a plain loop, for nearly all are such.
     * Answers where it stopped, with the message that needs more in `special`.
     */
    const takePlain = (pending: Pending, messages: ReadonlyArray<Message>, from: number): number => {
      special = null
      if (pending.rows.size === 0) plain.forget()
      let i = from
      const until = Math.min(messages.length, from + TURN_MESSAGES)
      while (i < until && pending.rows.size < CHUNK && (chars < CHUNK_CHARS || pending.rows.size === 0)) {
        const message = messages[i++] as Message
        chars += message.length
        const row = typeof message === "string" || pending.hasPushed ? null : plain.read(message)
        if (row !== null) {
          touch()
          if (brackets.open.size > 0) brackets.note(row.table, row.key, txn.xid)
          pending.putPlain(row)
          continue
        }
        const event = decoder.read(message)
        if (
          event.kind === "put" &&
          event.oldKey === null &&
          event.stray === undefined &&
          !isSignal(event.table) &&
          !pending.takesAway(event.table, event.key, event.isInsert)
        ) {
          touch()
          brackets.note(event.table, event.key, txn.xid)
          pending.put(event.table, event)
        } else if (event.kind === "begin") {
          txn.xid = event.xid
          txn.at = event.at
          txn.micros = microsOf(event.at)
          touchedTxn = false
        } else if (event.kind !== "commit" && event.kind !== "none") {
          special = event
          break
        }
      }
      return i
    }

    /** Takes messages that end with a commit, whose position is given, or a piece of one large txn, into the open append. */
    const takeIn = Effect.fnUntraced(function* (
      appender: Appender,
      pending: Pending,
      closed: Array<Bracket>,
      messages: ReadonlyArray<Message>,
      end: Lsn | null,
    ) {
      chars = 0
      for (let i = 0, turn = 0; i < messages.length; ) {
        if (i - turn >= TURN_MESSAGES) {
          yield* Effect.yieldNow
          turn = i
        }
        i = takePlain(pending, messages, i)
        const event = special as Event<Decoded> | null
        switch (event?.kind) {
          case "put": {
            const { table } = event
            if (table.id === changesTable.id) {
              yield* lookNow
              break
            }
            if (isSignal(table)) {
              const bracket = brackets.open.get(JSON.parse(event.tokens[0] ?? "null") as string)
              if (bracket !== undefined) {
                if (pending.hasPushed) yield* flush.earlier(appender, pending)
                yield* reads.closeBracket(appender, pending, bracket)
                closed.push(bracket)
              }
              break
            }
            if (event.stray !== undefined) yield* notice(table, event.stray)
            if (pending.takesAway(table, event.key, event.isInsert) || (event.oldKey !== null && pending.takesAway(table, event.oldKey, false)))
              yield* flush.earlier(appender, pending)
            touch()
            if (event.oldKey !== null) {
              brackets.note(table, event.oldKey, txn.xid)
              // Columns that the message leaves out stand under the old key.
              if (event.tokens.includes(undefined)) {
                yield* flush.all(appender, pending)
                const body = (yield* appender.bodies([[table.id, event.oldKey]])).get(rowKey(table.id, event.oldKey))
                if (body !== undefined) {
                  const before = tokenize(body)
                  const tokens = event.tokens.map((token, i) => token ?? before[i])
                  pending.set(table, event.key, tokens)
                }
              }
              pending.set(table, event.oldKey, null)
            }
            brackets.note(table, event.key, txn.xid)
            pending.put(table, event)
            break
          }
          case "delete":
            if (isSignal(event.table)) break
            if (pending.takesAway(event.table, event.key, false)) yield* flush.earlier(appender, pending)
            touch()
            brackets.note(event.table, event.key, txn.xid)
            pending.set(event.table, event.key, null)
            break
          case "unnamed":
            if (isSignal(event.table)) break
            yield* appender.tx.run("INSERT OR IGNORE INTO reread (tbl, key, why) VALUES (?, '', 'table')", [event.table.id])
            break
          case "truncate":
            brackets.noteTxn(txn.xid)
            yield* flush.all(appender, pending)
            for (const table of event.tables) {
              if (isSignal(table)) continue
              brackets.noteTruncate(table, txn.xid)
              yield* appender.truncate(table, txn.micros)
            }
            break
          case "shape":
            if (!isSignal(event.table)) yield* unreadable(event.table, event.detail)
            break
          case "unreadable":
            return yield* new WalStopped({
              slot: "",
              busy: false,
              sqlstate: "",
              message: `the stream sent something that the decoder does not know: ${event.text.slice(0, 200)}`,
            })
        }
        if (pending.rows.size >= CHUNK || (chars >= CHUNK_CHARS && pending.rows.size > 0)) {
          // Others of this process, and the socket, have waited for as long as half a chunk takes.
          yield* Effect.yieldNow
          yield* flush.all(appender, pending)
          chars = 0
          yield* Effect.yieldNow
        }
      }
      return end === null ? null : { lsn: end, xid: txn.xid, at: txn.at }
    })

    const consume = Effect.gen(function* () {
      // What has come and is not written yet; it ends before the first commit that is not.
      let carry: Array<Message> = []
      while (true) {
        const taken = yield* wal.take
        const messages = carry
        let last = taken.commits.at(-1)
        let end = last === undefined ? 0 : messages.length + last.index + 1
        for (const message of taken.messages) messages.push(message)
        carry = []
        if (messages.length === 0) {
          if (taken.keepalive !== null && taken.keepalive > idle) idle = taken.keepalive
        } else {
          if (last === undefined && messages.length < LARGE_TXN) {
            carry = messages
            continue
          }
          // A txn without synced rows is two messages: nothing to write.
          if (last !== undefined && messages.every((message, i) => i >= end || decoder.isBound(message))) {
            idle = last.lsn
            carry = messages.slice(end)
          } else {
            const closed: Array<Bracket> = []
            let size = end
            const body = (appender: Appender) =>
              Effect.gen(function* () {
                const pending = new Pending(txn, roles)
                const split = (all: ReadonlyArray<Message>): ReadonlyArray<Message> => {
                  if (end === all.length || last === undefined) return all
                  carry = all.slice(end)
                  return all.slice(0, end)
                }
                const takeUp = Effect.fnUntraced(function* (all: ReadonlyArray<Message>) {
                  const part = split(all)
                  const reached = yield* takeIn(appender, pending, closed, part, last?.lsn ?? null)
                  freePieces(part, carry[0])
                  return reached
                })
                const began = yield* elapsedMs
                let reached = yield* takeUp(messages)
                for (;;) {
                  if (reached !== null) {
                    if (size < CHUNK || size >= BACKLOG_MESSAGES || (yield* elapsedMs) - began >= BACKLOG_MS) break
                    if (!(yield* wal.brings(CHUNK))) break
                  }
                  const more = yield* wal.take
                  const next = carry
                  carry = []
                  last = more.commits.at(-1)
                  end = last === undefined ? 0 : next.length + last.index + 1
                  for (const message of more.messages) next.push(message)
                  size += next.length
                  reached = yield* takeUp(next)
                }
                yield* flush.all(appender, pending)
                yield* appender.position(reached)
                written = reached.lsn
                return reached.lsn
              })
            const onCommitted = (lsn: Lsn) =>
              Effect.gen(function* () {
                yield* wal.confirm(lsn)
                for (const bracket of closed) {
                  brackets.open.delete(bracket.id)
                  yield* Deferred.succeed(bracket.closed, undefined)
                }
              })
            yield* series.append(body, onCommitted)
            savedAt = yield* elapsedMs
            // Without a backlog what comes meanwhile is the next batch; the more of it, the fewer commits.
            if (size < CHUNK) yield* series.committed
          }
        }
        const step = idleStep({ written, idle, savedAt }, yield* elapsedMs)
        if (step.kind === "save" && carry.length === 0) {
          const { position } = step
          yield* series.append((appender) => Effect.as(appender.position({ lsn: position, xid: txn.xid, at: txn.at }), position), wal.confirm)
          written = position
          savedAt = yield* elapsedMs
        }
      }
    })

    // Transactions that became visible need not be remembered, whether or not a bracket asks.
    const forget = Effect.suspend(() => (brackets.remembered < REMEMBERED_TXNS ? Effect.void : Effect.asVoid(brackets.look(pg))))

    // Both are only ever read from the stream.
    const sweep = Effect.ignore(
      pg.execute(
        "DELETE FROM schoolbus.marks WHERE at < now() - interval '1 hour'; DELETE FROM schoolbus.schema_changes WHERE at < now() - interval '1 year'",
      ),
    )

    // The first failure of any of them ends all.
    yield* Effect.all(
      [
        consume,
        series.failed,
        Effect.andThen(
          reads.copy,
          Effect.all([Effect.repeat(reads.rereadKeys, Schedule.spaced(REREAD_MS)), checks.serve(reads.check)], {
            concurrency: "unbounded",
            discard: true,
          }),
        ),
        Effect.repeat(forget, Schedule.spaced("1 second")),
        Effect.repeat(sweep, Schedule.spaced("1 hour")),
      ],
      { concurrency: "unbounded", discard: true },
    )
    return yield* Effect.never
  })
