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
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Semaphore from "effect/Semaphore"
import type * as Scope from "effect/Scope"
import type { LibsqlError } from "../libsql/client.ts"
import type { Lsn } from "../model/lsn.ts"
import type { PostgresError, PostgresPool } from "../postgres/client.ts"
import { type WalReader, WalStopped } from "../postgres/wal.ts"
import { idleStep } from "./ack.ts"
import { planRoutes, rememberAudiences } from "./audience.ts"
import { tokenize } from "./body.ts"
import { type Bracket, Brackets, isOvertaken, type ReadRow, settledRows, takeBracket, isVisible, parseSnapshot } from "./bracket.ts"
import { EXAMPLES, FeedChecks, type TableCheck } from "./check.ts"
import type { Compute } from "./computed.ts"
import type { DecodeTable, Decoder, Event } from "./decode.ts"
import type { Appender } from "./append.ts"
import { type Append, type FeedTable, rowKey } from "./entry.ts"
import { Feed } from "./feed.ts"
import { isTimed, noteTimes, type Written } from "./times.ts"

/** Messages of an unfinished txn that are held before it is written chunk by chunk. */
const LARGE_TXN = 20_000
/** Compacted rows handed to the writer at once; it is at work on them while the next are decoded. */
const CHUNK = 2_000
const CHUNK_CHARS = 4 * 1024 * 1024
/** Keys of one re-read, and how often re-reads are looked for. */
const REREAD_KEYS = 1_000
const REREAD_MS = 500

/** Streamed txns that are remembered until a snapshot shows them; beyond this one is taken for that alone. */
const REMEMBERED_TXNS = 10_000

/** How often it is looked whether a streamed txn can be seen by others. */
const VISIBLE_RETRY_MS = 5

/** The flow starts again with a fresh catalog. `recheck`: id of a table that is to be compared as a whole then; null = none. */
export class ShapeChanged extends Data.TaggedError("ShapeChanged")<{ readonly recheck: number | null; readonly message: string }> {}

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

/** Marks are decoded like rows but stand in no table of the feed. */
export const MARKS = "schoolbus.marks"
const marksTable = {
  id: 0,
  name: MARKS,
  columns: [
    { name: "id", kind: "text" as const, toastable: true, generated: false },
    { name: "at", kind: "text" as const, toastable: false, generated: false },
  ],
  key: [0],
}
/** A row here says that the catalog has changed at this place of the stream. */
export const SCHEMA_CHANGES = "schoolbus.schema_changes"
const changesTable = {
  id: -1,
  name: SCHEMA_CHANGES,
  columns: ["id", "command", "object", "at"].map((name) => ({
    name,
    kind: name === "id" ? ("bigint" as const) : ("text" as const),
    toastable: name !== "id" && name !== "at",
    generated: false,
  })),
  key: [0],
}
type Decoded = FeedTable | typeof marksTable | typeof changesTable
const isSignal = (table: Decoded): table is typeof marksTable | typeof changesTable => table.id <= 0

interface Pending extends Append {
  body: string | null
  audience: Append["audience"]
  tokens: ReadonlyArray<string | undefined> | null
  at: number
  isInsert: boolean
  ifDifferent: boolean
  /** Of tables whose columns have times: what earlier txns wrote to the row since the last flush. */
  earlier: Array<Written> | undefined
  xid: number
}

/** `"2026-01-01 08:00:00.123456+00"` -> microseconds since 1970. */
export const commitMicros = (text: string): number => {
  const match = /^(\d{4}-\d{2}-\d{2}) (\d{2}:\d{2}:\d{2})(?:\.(\d{1,6}))?([+-]\d{2})$/.exec(text)
  if (match === null) return 0
  return Date.parse(`${match[1]}T${match[2]}${match[4]}:00`) * 1000 + Number((match[3] ?? "").padEnd(6, "0"))
}

/** The same, quicker for the many commits of one second. */
const rememberSecond = (): typeof commitMicros => {
  let opening = "-"
  let zone = ""
  let base = 0
  return (text) => {
    // ….123456+00
    if (text.length !== 29 || !text.startsWith(opening) || !text.endsWith(zone)) {
      if (text.length === 29 && commitMicros(text) !== 0) {
        opening = text.slice(0, 20)
        zone = text.slice(26)
        base = commitMicros(`${opening}000000${zone}`)
      }
      return commitMicros(text)
    }
    return base + (Number(text.slice(20, 26)) || 0)
  }
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
    const comparing = new Set<number>()
    const checking = new Map<number, { readonly repair: boolean; readonly result: TableCheck }>()
    // Columns in which a null may stand for NaN or an infinity.
    const floats = new Map(
      options.isExact
        ? []
        : options.tables.map((table) => [table.id, table.columns.flatMap((c, i) => (c.kind === "float" || c.kind === "numeric" ? [i] : []))]),
    )
    const hasFloats = [...floats.values()].some((positions) => positions.length > 0)
    const audienceAt = rememberAudiences()
    const first = yield* feed.state
    let durable = first.position.lsn
    let idle: Lsn = 0n
    let savedAt = yield* Clock.currentTimeMillis
    let xid = first.position.xid
    let at = first.position.at
    const microsOf = rememberSecond()
    let micros = microsOf(at)

    const forgetMet = (appender: Appender, rows: ReadonlyArray<{ readonly table: FeedTable; readonly key: string }>) =>
      appender.tx.run(`DELETE FROM unmet WHERE (tbl, key) IN (SELECT value->>0, value->>1 FROM json_each(?))`, [
        JSON.stringify(rows.map(({ table, key }) => [table.id, key])),
      ])

    const hasTimes = options.tables.some(isTimed)
    /** Tables that place rows of others. */
    const links = new Set([...planRoutes(options.tables)].flatMap(([id, { places }]) => (places.length > 0 ? [id] : [])))
    /** What a school is told of its own writes stands here, in their txn. */
    const told = new Set(options.tables.filter(({ name, hubOnly }) => name.startsWith("schoolbus.") && !hubOnly))
    const toPending = (
      table: FeedTable,
      key: string,
      tokens: Pending["tokens"],
      rest: { readonly isInsert?: boolean; readonly ifDifferent?: boolean } = {},
    ): Pending => ({
      table,
      key,
      body: null,
      audience: null,
      at: micros,
      isInsert: rest.isInsert ?? false,
      ifDifferent: rest.ifDifferent ?? false,
      tokens,
      earlier: undefined,
      xid,
    })

    /** Writes compacted rows; rows whose message left something out are completed from the feed, or read again. */
    const writePending = Effect.fnUntraced(function* (appender: Appender, pending: ReadonlyMap<string, Pending>) {
      if (pending.size === 0) return
      const all = [...pending.values()]
      if (hasTimes) {
        const timed = all.filter(({ table }) => isTimed(table))
        yield* noteTimes(
          appender.tx,
          timed.map((row) => ({ ...row, isRead: row.ifDifferent, earlier: row.earlier ?? [] })),
          tokenize,
        )
      }
      const incomplete = all.filter(({ tokens }) => tokens?.includes(undefined) === true)
      const unknown: Array<readonly [number, string, string]> = []
      if (incomplete.length > 0) {
        const present = yield* appender.bodies(incomplete.map((row) => [row.table.id, row.key] as const))
        for (const row of incomplete) {
          const body = present.get(rowKey(row.table.id, row.key))
          if (body === undefined) {
            unknown.push([row.table.id, row.key, "toast"])
            continue
          }
          const before = tokenize(body)
          row.tokens = row.tokens?.map((token, i) => token ?? before[i]) ?? null
        }
      }
      yield* options.compute(all)
      for (const row of all) {
        const { table, tokens } = row
        if (tokens === null) continue
        if (hasFloats && !row.ifDifferent && floats.get(table.id)?.some((position) => tokens[position] === "null") === true)
          unknown.push([table.id, row.key, "nan"])
        row.body = `[${tokens.join(",")}]`
        row.audience = audienceAt(table.audienceAt, tokens)
      }
      const rows = unknown.length === 0 ? all : all.filter(({ tokens }) => tokens?.includes(undefined) !== true)
      yield* appender.rows(rows)
      if (unknown.length > 0) {
        yield* appender.tx.run(
          `INSERT INTO reread (tbl, key, why) SELECT value->>0, value->>1, value->>2 FROM json_each(?) WHERE true
             ON CONFLICT (tbl, key) DO UPDATE SET why = excluded.why WHERE excluded.why = 'toast'`,
          [JSON.stringify(unknown)],
        )
      }
      const met = comparing.size === 0 ? [] : all.filter((row) => comparing.has(row.table.id))
      if (met.length > 0) yield* forgetMet(appender, met)
    })

    /**
     * Txns that carried a school's writes, whose rows that school shows before the feed tells it, until their end is told to the
     * feed. A later txn that may take such a row away waits for that: else the row's last state alone would remain, and the
     * school would never hear that it is gone.
     */
    const pushed = new Set<number>()
    /** The txn of which the feed holds a part already. */
    let parted = 0

    const hasEarlier = (): boolean => pushed.size > (pushed.has(xid) ? 1 : 0)

    /** Writes what is pending of earlier txns, and tells the feed that they have ended. */
    const endEarlier = Effect.fnUntraced(function* (appender: Appender, pending: Map<string, Pending>) {
      const earlier = new Map([...pending].filter(([, row]) => row.xid !== xid))
      yield* writePending(appender, earlier)
      for (const id of earlier.keys()) pending.delete(id)
      yield* appender.ended
      for (const one of pushed) if (one !== xid) pushed.delete(one)
    })

    const writeRows = Effect.fnUntraced(function* (appender: Appender, pending: Map<string, Pending>) {
      if (hasEarlier()) yield* endEarlier(appender, pending)
      yield* writePending(appender, pending)
      pending.clear()
      parted = xid
    })

    /** Whether earlier txns must end in the feed before this row of the present one is taken. */
    const takesAway = (pending: ReadonlyMap<string, Pending>, table: FeedTable, key: string, isInsert: boolean): boolean => {
      if (!hasEarlier()) return false
      const before = pending.get(rowKey(table.id, key))
      if (before !== undefined) return before.xid !== xid && pushed.has(before.xid)
      return !isInsert && (links.has(table.id) || pushed.has(parted))
    }

    /** Counts the rows that the feed does not hold as Postgres does; what the stream brought before them is in the feed. */
    const countDifferences = Effect.fnUntraced(function* (appender: Appender, table: FeedTable, rows: ReadonlyArray<ReadRow>, result: TableCheck) {
      const present = yield* appender.bodies(rows.map((row) => [table.id, row.key] as const))
      // What the stream left out is on its way by itself.
      const coming = new Set((yield* appender.tx.all<{ key: string }>("SELECT key FROM reread WHERE tbl = ?", [table.id])).map(({ key }) => key))
      for (const { key, tokens } of rows) {
        const body = present.get(rowKey(table.id, key))
        if (body === `[${tokens.join(",")}]` || coming.has(key)) continue
        if (body === undefined) result.missing++
        else result.differing++
        if (result.keys.length < EXAMPLES) result.keys.push(key)
      }
      result.rows += rows.length
    })

    /** The mark of a bracket has come: its rows enter, and the progress that they mean is written with them. */
    const closeBracket = Effect.fnUntraced(function* (appender: Appender, pending: Map<string, Pending>, bracket: Bracket) {
      const { read, table, want } = bracket
      if (read === null) return
      const settled = settledRows(bracket, read)
      const check = want.kind === "chunk" ? checking.get(table.id) : undefined
      if (check !== undefined) {
        yield* writeRows(appender, pending)
        yield* countDifferences(appender, table, settled, check.result)
        if (!check.repair)
          yield* forgetMet(
            appender,
            settled.map(({ key }) => ({ table, key })),
          )
      }
      for (const row of check?.repair === false ? [] : settled) {
        pending.set(rowKey(table.id, row.key), toPending(table, row.key, row.tokens, { ifDifferent: true }))
      }
      if (want.kind === "keys") {
        // A row that was written again meanwhile may again have left something out.
        const done = want.keys.filter((key) => !isOvertaken(bracket, read, key))
        yield* appender.tx.run(`DELETE FROM reread WHERE tbl = ? AND key IN (SELECT value FROM json_each(?))`, [table.id, JSON.stringify(done)])
        return
      }
      yield* writeRows(appender, pending)
      if (!read.last) {
        yield* appender.tx.run("UPDATE tables SET after = ? WHERE id = ?", [read.rows.at(-1)?.key ?? null, table.id])
        return
      }
      if (comparing.has(table.id)) {
        const unmet = yield* appender.tx.all<{ key: string }>("SELECT key FROM unmet WHERE tbl = ? AND key <> ''", [table.id])
        if (check !== undefined) {
          check.result.extra += unmet.length
          check.result.keys.push(...unmet.slice(0, EXAMPLES - check.result.keys.length).map(({ key }) => key))
        }
        const gone = check?.repair === false ? [] : unmet
        for (let i = 0; i < gone.length; i += CHUNK) {
          yield* appender.rows(
            gone.slice(i, i + CHUNK).map(({ key }) => ({ table, key, body: null, audience: null, at: micros, isInsert: false, ifDifferent: false })),
          )
        }
        yield* appender.tx.run("DELETE FROM unmet WHERE tbl = ?", [table.id])
        yield* appender.tx.run("UPDATE tables SET after = NULL WHERE id = ?", [table.id])
        comparing.delete(table.id)
      }
      yield* appender.loaded(table)
    })

    /** Looks at the catalog as the txn at hand left it: a commit is streamed before others can see it. */
    const lookNow = Effect.gen(function* () {
      for (;;) {
        const [row] = yield* pg.query<{ snapshot: string }>("SELECT pg_current_snapshot()::text AS snapshot")
        if (isVisible(parseSnapshot(row?.snapshot ?? ""), xid)) break
        yield* Effect.sleep(VISIBLE_RETRY_MS)
      }
      yield* options.look
    })
    const noticed = new Set<string>()
    /** A row with a column too many or too few: either it is older than the catalog, or the catalog has changed. */
    const notice = (table: FeedTable, column: string) => {
      const id = `${table.id} ${column}`
      if (noticed.has(id)) return Effect.void
      noticed.add(id)
      return lookNow
    }
    /** A row that says nothing under the present catalog, and never will: its table is compared as a whole. */
    const unreadable = Effect.fnUntraced(function* (table: FeedTable, detail: string) {
      yield* lookNow
      if (table.recheck || table.loading) return
      return yield* new ShapeChanged({ recheck: table.id, message: `a row of ${table.name} is of another shape (${detail}): comparing the table` })
    })

    let touchedTxn = false
    /** Characters of the messages behind what is pending. */
    let chars = 0
    const touch = (): void => {
      if (touchedTxn) return
      touchedTxn = true
      brackets.noteTxn(xid)
    }

    /** A row's new state, together with what is pending of it. */
    const put = (pending: Map<string, Pending>, table: FeedTable, event: Extract<Event<Decoded>, { kind: "put" }>): void => {
      brackets.note(table, event.key, xid)
      if (told.has(table)) pushed.add(xid)
      const id = rowKey(table.id, event.key)
      const before = pending.get(id)
      if (before === undefined) {
        pending.set(id, toPending(table, event.key, event.tokens, event))
        return
      }
      if (isTimed(table)) before.earlier = [...(before.earlier ?? []), { tokens: before.tokens, at: before.at, xid: before.xid }]
      before.xid = xid
      const known = before.tokens
      before.tokens = known !== null && event.tokens.includes(undefined) ? event.tokens.map((token, i) => token ?? known[i]) : event.tokens
      before.at = micros
      // A key that was deleted and inserted again may have been held by another audience before.
      before.isInsert = before.isInsert && known !== null
      before.ifDifferent = false
    }

    let special: Event<Decoded> | null = null
    /**
     * Takes messages from `from` on that need nothing but to be remembered, up to a chunk; a plain loop, for nearly all are such.
     * Answers where it stopped, with the message that needs more in `special`.
     */
    const takePlain = (pending: Map<string, Pending>, messages: ReadonlyArray<string>, from: number): number => {
      special = null
      let i = from
      while (i < messages.length && pending.size < CHUNK && (chars < CHUNK_CHARS || pending.size === 0)) {
        const message = messages[i++] as string
        chars += message.length
        const event = decoder.read(message)
        if (
          event.kind === "put" &&
          event.oldKey === null &&
          event.stray === undefined &&
          !isSignal(event.table) &&
          (pushed.size === 0 || !takesAway(pending, event.table, event.key, event.isInsert))
        ) {
          touch()
          put(pending, event.table, event)
        } else if (event.kind === "begin") {
          xid = event.xid
          at = event.at
          micros = microsOf(at)
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
      pending: Map<string, Pending>,
      closed: Array<Bracket>,
      messages: ReadonlyArray<string>,
      end: Lsn | null,
    ) {
      chars = 0
      for (let i = 0; i < messages.length; ) {
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
                if (hasEarlier()) yield* endEarlier(appender, pending)
                yield* closeBracket(appender, pending, bracket)
                closed.push(bracket)
              }
              break
            }
            if (event.stray !== undefined) yield* notice(table, event.stray)
            if (takesAway(pending, table, event.key, event.isInsert) || (event.oldKey !== null && takesAway(pending, table, event.oldKey, false)))
              yield* endEarlier(appender, pending)
            touch()
            if (event.oldKey !== null) {
              brackets.note(table, event.oldKey, xid)
              // Columns that the message leaves out stand under the old key.
              if (event.tokens.includes(undefined)) {
                yield* writeRows(appender, pending)
                const body = (yield* appender.bodies([[table.id, event.oldKey]])).get(rowKey(table.id, event.oldKey))
                if (body !== undefined) {
                  const before = tokenize(body)
                  const tokens = event.tokens.map((token, i) => token ?? before[i])
                  pending.set(rowKey(table.id, event.key), toPending(table, event.key, tokens))
                }
              }
              pending.set(rowKey(table.id, event.oldKey), toPending(table, event.oldKey, null))
            }
            put(pending, table, event)
            break
          }
          case "delete":
            if (isSignal(event.table)) break
            if (takesAway(pending, event.table, event.key, false)) yield* endEarlier(appender, pending)
            touch()
            brackets.note(event.table, event.key, xid)
            pending.set(rowKey(event.table.id, event.key), toPending(event.table, event.key, null))
            break
          case "unnamed":
            if (isSignal(event.table)) break
            yield* appender.tx.run("INSERT OR IGNORE INTO reread (tbl, key, why) VALUES (?, '', 'table')", [event.table.id])
            break
          case "truncate":
            brackets.noteTxn(xid)
            yield* writeRows(appender, pending)
            for (const table of event.tables) {
              if (isSignal(table)) continue
              brackets.noteTruncate(table, xid)
              yield* appender.truncate(table, micros)
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
        if (pending.size >= CHUNK || (chars >= CHUNK_CHARS && pending.size > 0)) {
          yield* writeRows(appender, pending)
          chars = 0
        }
      }
      return end === null ? null : { lsn: end, xid, at }
    })

    const consume = Effect.gen(function* () {
      // What has come and is not written yet; it ends before the first commit that is not.
      let carry: Array<string> = []
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
            const position = yield* feed.append((appender) =>
              Effect.gen(function* () {
                const pending = new Map<string, Pending>()
                pushed.clear()
                const split = (all: ReadonlyArray<string>): ReadonlyArray<string> => {
                  if (end === all.length || last === undefined) return all
                  carry = all.slice(end)
                  return all.slice(0, end)
                }
                let reached = yield* takeIn(appender, pending, closed, split(messages), last?.lsn ?? null)
                while (reached === null) {
                  const more = yield* wal.take
                  last = more.commits.at(-1)
                  end = last === undefined ? 0 : last.index + 1
                  reached = yield* takeIn(appender, pending, closed, split(more.messages), last?.lsn ?? null)
                }
                yield* writeRows(appender, pending)
                yield* appender.position(reached)
                return reached
              }),
            )
            durable = position.lsn
            savedAt = yield* Clock.currentTimeMillis
            yield* wal.confirm(durable)
            for (const bracket of closed) {
              brackets.open.delete(bracket.id)
              yield* Deferred.succeed(bracket.closed, undefined)
            }
          }
        }
        const step = idleStep({ durable, idle, savedAt }, yield* Clock.currentTimeMillis)
        if (step.kind === "save" && carry.length === 0) {
          yield* feed.append((appender) => appender.position({ lsn: step.position, xid, at }))
          durable = step.position
          savedAt = yield* Clock.currentTimeMillis
          yield* wal.confirm(durable)
        }
      }
    })

    /** Reads a whole table, chunk by chunk, each chunk in the feed before the next is read. Of a loaded one, what is not met is gone. */
    const readWhole = Effect.fnUntraced(function* (table: FeedTable, isLoading: boolean) {
      const [row] = yield* feed.append((appender) =>
        appender.tx.all<{ after: string | null; n: number }>(
          "SELECT after, (SELECT count(*) FROM entry WHERE tbl = tables.id AND body IS NOT NULL) AS n FROM tables WHERE id = ?",
          [table.id],
        ),
      )
      let after = isLoading ? (row?.after ?? null) : null
      if (!isLoading) {
        comparing.add(table.id)
        // The empty key is no row's: it says that a comparison is under way, also of a table without rows.
        yield* feed.append((appender) =>
          Effect.all(
            [
              appender.tx.run("DELETE FROM unmet WHERE tbl = ?", [table.id]),
              appender.tx.run("INSERT INTO unmet (tbl, key) SELECT DISTINCT tbl, key FROM entry WHERE tbl = ? AND body IS NOT NULL", [table.id]),
              appender.tx.run("INSERT INTO unmet (tbl, key) VALUES (?, '')", [table.id]),
              checking.has(table.id) ? Effect.void : appender.tx.run("DELETE FROM reread WHERE tbl = ? AND why = 'table'", [table.id]),
            ],
            { discard: true },
          ),
        )
      }
      let rows = isLoading ? (row?.n ?? 0) : 0
      for (;;) {
        const read = yield* takeBracket(pg, brackets, table, { kind: "chunk", after })
        rows += read.rows.length
        yield* options.onLoading(table.name, rows, read.last)
        if (read.last) break
        after = read.rows.at(-1)?.key ?? after
      }
    })

    const copy = Effect.forEach(
      options.tables.filter((table) => options.reread.has(table.id)),
      (table) => readWhole(table, table.loading && !table.recheck),
      { discard: true },
    )

    /** One table is compared at a time. */
    const comparison = Semaphore.makeUnsafe(1)
    /** Every table against Postgres, and how many rows differed. */
    const check = Effect.fnUntraced(function* (repair: boolean) {
      const results: Array<TableCheck> = []
      for (const table of options.tables) {
        const result: TableCheck = { table: table.name, rows: 0, missing: 0, extra: 0, differing: 0, keys: [] }
        yield* comparison.withPermit(
          Effect.acquireUseRelease(
            Effect.sync(() => void checking.set(table.id, { repair, result })),
            () => readWhole(table, false),
            () => Effect.sync(() => void checking.delete(table.id)),
          ),
        )
        results.push(result)
      }
      return results
    })

    const tableById = new Map(options.tables.map((table) => [table.id, table]))
    /** Rows that must be read again by key, in bulk. */
    const rereadKeys = Effect.gen(function* () {
      const wanted = yield* feed.waitingRereads(REREAD_KEYS)
      const groups = new Map<string, { table: FeedTable; why: string; keys: Array<string> }>()
      for (const row of wanted) {
        const table = tableById.get(row.tbl)
        if (table === undefined) continue
        if (row.why === "table") {
          yield* comparison.withPermit(readWhole(table, false))
          continue
        }
        const group = groups.get(`${row.tbl} ${row.why}`) ?? { table, why: row.why, keys: [] }
        group.keys.push(row.key)
        groups.set(`${row.tbl} ${row.why}`, group)
      }
      for (const { table, why, keys } of groups.values()) {
        yield* takeBracket(pg, brackets, table, { kind: "keys", keys, onlyNan: why === "nan" })
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
        Effect.andThen(
          copy,
          Effect.all([Effect.repeat(rereadKeys, Schedule.spaced(REREAD_MS)), checks.serve(check)], { concurrency: "unbounded", discard: true }),
        ),
        Effect.repeat(forget, Schedule.spaced("1 second")),
        Effect.repeat(sweep, Schedule.spaced("1 hour")),
      ],
      { concurrency: "unbounded", discard: true },
    )
    return yield* Effect.never
  })
