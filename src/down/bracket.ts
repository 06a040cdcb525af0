/**
 * Reads of Postgres outside the stream. One REPEATABLE READ transaction takes its snapshot, reads, and writes a mark row;
 * while it is open, the hub remembers every key of the table that the stream touched, with the transaction that did it.
 * When the mark arrives in the stream, a row that was read enters the feed unless a transaction that its snapshot could
 * not see has touched the key: then what the stream said is newer.
 */
import { randomUUID } from "node:crypto"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { type Kind, textToToken, type Wire, wireToText } from "../model/value.ts"
import { ident, type PostgresError, type PostgresPool, qualified, type Session } from "../postgres/client.ts"
import { EQUALS, isBuiltIn, operatorOf } from "../postgres/settings.ts"
import type { FeedTable } from "./entry.ts"

/** Rows of one chunk: about 50 ms of reading, about 2 MB of memory. */
export const CHUNK_ROWS = 5_000
/** A bracket whose mark has not come by then is taken again, with twice the patience: the stream may be far behind. */
const MARK_TIMEOUT_MS = 30_000
const MARK_TIMEOUT_MAX_MS = 16 * MARK_TIMEOUT_MS
/** How often a snapshot is tried that does not yet see what was streamed already: soon at first, then every half second. */
const SNAPSHOT_RETRY_MS = 10
const SNAPSHOT_RETRY_MAX_MS = 500

/** `pg_current_snapshot()`: transactions below xmin are over, those from xmax on have not begun, `running` were under way. */
export interface Snapshot {
  readonly xmin: bigint
  readonly xmax: bigint
  readonly running: ReadonlySet<bigint>
}

/** `"720:725:721,722"` */
export const parseSnapshot = (text: string): Snapshot => {
  const [xmin, xmax, running] = text.split(":")
  return {
    xmin: BigInt(xmin ?? ""),
    xmax: BigInt(xmax ?? ""),
    running: new Set(
      (running ?? "")
        .split(",")
        .filter((part) => part !== "")
        .map(BigInt),
    ),
  }
}

/** Whether a committed transaction, named by the 32-bit id of the stream, is visible in the snapshot. */
export const isVisible = (snapshot: Snapshot, xid: number): boolean => {
  const epoch = snapshot.xmax >> 32n
  let full = (epoch << 32n) | BigInt(xid)
  // The stream's id is the low half; the nearest full id to xmax is meant.
  if (full > snapshot.xmax + (1n << 31n)) full -= 1n << 32n
  if (full + (1n << 31n) < snapshot.xmax) full += 1n << 32n
  if (full < snapshot.xmin) return true
  if (full >= snapshot.xmax) return false
  return !snapshot.running.has(full)
}

export interface ReadRow {
  readonly key: string
  readonly tokens: ReadonlyArray<string>
}

export type Want =
  | { readonly kind: "chunk"; readonly after: string | null }
  | { readonly kind: "keys"; readonly keys: ReadonlyArray<string>; readonly onlyNan: boolean }

export interface Read {
  readonly snapshot: Snapshot
  readonly rows: ReadonlyArray<ReadRow>
  /** Of a chunk: no row follows. */
  readonly last: boolean
}

export interface Bracket {
  readonly id: string
  readonly table: FeedTable
  readonly want: Want
  /** Keys that the stream touched since the bracket was opened, with the transactions that did it. */
  readonly touched: Map<string, Array<number>>
  readonly truncatedBy: Array<number>
  read: Read | null
  readonly closed: Deferred.Deferred<void>
}

/** Whether the stream said something about the key that the bracket's snapshot could not see. */
export const isOvertaken = (bracket: Bracket, read: Read, key: string): boolean => {
  const isNewer = (xid: number): boolean => !isVisible(read.snapshot, xid)
  return bracket.truncatedBy.some(isNewer) || (bracket.touched.get(key)?.some(isNewer) ?? false)
}

/** Rows of a bracket that may enter the feed now that its mark has come. */
export const settledRows = (bracket: Bracket, read: Read): ReadonlyArray<ReadRow> => read.rows.filter((row) => !isOvertaken(bracket, read, row.key))

/** The open brackets and the transactions that a snapshot must see before it may be used. */
export class Brackets {
  readonly open = new Map<string, Bracket>()
  /** Streamed transactions that touched a synced table and that no snapshot has been seen to contain yet. */
  readonly #streamed = new Set<number>()
  readonly #notBefore: bigint

  /** `notBefore`: a full transaction id; every older one must be over before a snapshot is good. */
  constructor(notBefore: bigint) {
    this.#notBefore = notBefore
  }

  note(table: FeedTable, key: string, xid: number): void {
    if (this.open.size === 0) return
    for (const bracket of this.open.values()) {
      if (bracket.table.id !== table.id) continue
      const xids = bracket.touched.get(key)
      if (xids === undefined) bracket.touched.set(key, [xid])
      else if (xids.at(-1) !== xid) xids.push(xid)
    }
  }

  noteTruncate(table: FeedTable, xid: number): void {
    for (const bracket of this.open.values()) if (bracket.table.id === table.id) bracket.truncatedBy.push(xid)
  }

  noteTxn(xid: number): void {
    this.#streamed.add(xid)
  }

  get remembered(): number {
    return this.#streamed.size
  }

  /** True when every streamed transaction is visible; those need not be asked for again. */
  covers(snapshot: Snapshot): boolean {
    for (const xid of this.#streamed) {
      if (isVisible(snapshot, xid)) this.#streamed.delete(xid)
    }
    return this.#streamed.size === 0 && snapshot.xmin >= this.#notBefore
  }

  /** The session's snapshot, and whether it may be used. In a REPEATABLE READ transaction its first statement. */
  look(session: Session): Effect.Effect<{ readonly snapshot: Snapshot; readonly isGood: boolean }, PostgresError> {
    return Effect.map(session.query<{ snapshot: string }>("SELECT pg_current_snapshot()::text AS snapshot"), ([row]) => {
      const snapshot = parseSnapshot(row?.snapshot ?? "")
      return { snapshot, isGood: this.covers(snapshot) }
    })
  }
}

const selectList = (table: FeedTable): string => table.columns.map((column) => ident(column.name)).join(", ")

interface KeyColumn {
  readonly name: string
  readonly kind: Kind
  readonly type: string
}

const keyColumns = (table: FeedTable): ReadonlyArray<KeyColumn> =>
  table.key.map((position) => {
    const column = table.table.columns[position]
    return { name: ident(column?.name ?? ""), kind: column?.kind ?? "text", type: column?.type ?? "text" }
  })

/** Of a key column's type: its base, which asks no check of a domain, and the operators of its order. */
interface Order {
  readonly base: string
  readonly equals: string
  readonly least: string
  readonly greater: string
}

const OWN = { equals: EQUALS, least: "OPERATOR(pg_catalog.>=)", greater: "OPERATOR(pg_catalog.>)" }

/** Types that are not Postgres' own may have an order of their own (citext), by which their index is. */
const readOrder = (session: Session, columns: ReadonlyArray<KeyColumn>): Effect.Effect<ReadonlyArray<Order>, PostgresError> =>
  columns.every(({ type }) => isBuiltIn(type))
    ? Effect.succeed(columns.map(({ type }) => ({ base: type, ...OWN })))
    : session.query<Order>(
        `SELECT format_type(b.oid, -1) AS base, ${operatorOf("b.oid", 3)} AS equals, ${operatorOf("b.oid", 4)} AS least, ${operatorOf("b.oid", 5)} AS greater
           FROM unnest($1::text[]) WITH ORDINALITY AS k (type, n) CROSS JOIN LATERAL (
             WITH RECURSIVE base AS (
               SELECT t.oid, t.typtype, t.typbasetype FROM pg_type t WHERE t.oid = k.type::regtype
               UNION ALL SELECT t.oid, t.typtype, t.typbasetype FROM base JOIN pg_type t ON t.oid = base.typbasetype)
             SELECT oid FROM base WHERE typtype <> 'd') AS b ORDER BY k.n`,
        [columns.map(({ type }) => type)],
      )

/** What stands after a key, in the order of the index; `values`: SQL of each part. */
const after = (columns: ReadonlyArray<KeyColumn>, order: ReadonlyArray<Order>, values: ReadonlyArray<string>): string => {
  const names = columns.map(({ name }) => name)
  if (order.every(({ greater }) => greater === order[0]?.greater)) return `(${names.join(", ")}) ${order[0]?.greater} (${values.join(", ")})`
  const equal = (count: number) => names.slice(0, count).map((name, i) => `${name} ${order[i]?.equals} ${values[i]} AND `)
  const beyond = names.map((name, i) => `(${equal(i).join("")}${name} ${order[i]?.greater} ${values[i]})`).join(" OR ")
  return `${names[0]} ${order[0]?.least} ${values[0]} AND (${beyond})`
}

const keyParams = (table: FeedTable, key: string): ReadonlyArray<string | null> => {
  const values = JSON.parse(key) as ReadonlyArray<Wire>
  return keyColumns(table).map((column, i) => wireToText(column.kind, values[i] ?? null))
}

const readRows = (session: Session, table: FeedTable, want: Want): Effect.Effect<Omit<Read, "snapshot">, PostgresError> => {
  const columns = keyColumns(table)
  const names = columns.map((column) => column.name).join(", ")
  const toRow = (texts: ReadonlyArray<string | null>): ReadRow => {
    const tokens = table.columns.map((column, i) => textToToken(column.kind, texts[i] ?? null))
    return { tokens, key: `[${table.key.map((position) => tokens[position]).join(",")}]` }
  }
  if (want.kind === "chunk") {
    const params = want.after === null ? [] : keyParams(table, want.after)
    return Effect.gen(function* () {
      const order = yield* readOrder(session, columns)
      const values = order.map(({ base }, i) => `$${i + 1}::text::${base}`)
      const where = want.after === null ? "" : `WHERE ${after(columns, order, values)}`
      const rows = yield* session.texts(
        `SELECT ${selectList(table)} FROM ${qualified(table.name)} ${where} ORDER BY ${names} LIMIT ${CHUNK_ROWS}`,
        params,
      )
      return { rows: rows.map(toRow), last: rows.length < CHUNK_ROWS }
    })
  }
  const params = want.keys.map((key) => keyParams(table, key))
  const arrays = columns.map((_, i) => params.map((values) => values[i] ?? null))
  const unnest = `unnest(${columns.map((_, i) => `$${i + 1}::text[]`).join(", ")}) AS k (${columns.map((_, i) => `k${i}`).join(", ")})`
  const special = table.columns
    .filter((column) => column.kind === "float" || column.kind === "numeric")
    .map((column) => `t.${ident(column.name)}::text IN ('NaN', 'Infinity', '-Infinity')`)
  const filter = want.onlyNan && special.length > 0 ? ` WHERE ${special.join(" OR ")}` : ""
  const list = table.columns.map((column) => `t.${ident(column.name)}`).join(", ")
  return Effect.gen(function* () {
    const order = yield* readOrder(session, columns)
    const join = columns.map((column, i) => `t.${column.name} ${order[i]?.equals} k.k${i}::${order[i]?.base}`).join(" AND ")
    const rows = yield* session.texts(`SELECT ${list} FROM ${unnest} JOIN ${qualified(table.name)} t ON ${join}${filter}`, arrays)
    return { rows: rows.map(toRow), last: true }
  })
}

/** One try: null when its mark did not come within the limit. */
const tryBracket = (pg: PostgresPool, brackets: Brackets, table: FeedTable, want: Want, limitMs: number): Effect.Effect<Read | null, PostgresError> =>
  Effect.suspend(() => {
    const id = randomUUID()
    const bracket: Bracket = { id, table, want, touched: new Map(), truncatedBy: [], read: null, closed: Deferred.makeUnsafe() }
    brackets.open.set(id, bracket)
    const attempt = pg.tx(
      (session) =>
        Effect.gen(function* () {
          // Before the snapshot: a TRUNCATE or a rewriting ALTER TABLE that commits after it would leave the table empty for it.
          yield* session.execute(`LOCK TABLE ${qualified(table.name)} IN ACCESS SHARE MODE`)
          const { snapshot, isGood } = yield* brackets.look(session)
          if (!isGood) return false
          const read = yield* readRows(session, table, want)
          // Set before the commit: the mark may come back before the commit's answer does.
          bracket.read = { snapshot, ...read }
          yield* session.execute("INSERT INTO schoolbus.marks (id) VALUES ($1)", [id])
          return true
        }),
      "repeatable read",
    )
    return Effect.gen(function* () {
      for (let waitMs = SNAPSHOT_RETRY_MS; !(yield* attempt); waitMs = Math.min(waitMs * 2, SNAPSHOT_RETRY_MAX_MS)) yield* Effect.sleep(waitMs)
      return yield* Deferred.await(bracket.closed).pipe(
        Effect.as(bracket.read),
        Effect.timeoutOrElse({ duration: limitMs, orElse: () => Effect.succeed(null) }),
      )
    }).pipe(Effect.ensuring(Effect.sync(() => void brackets.open.delete(id))))
  })

/** Takes a bracket, again and again if need be, and waits until its rows stand in the feed. `limitMs`: the first patience. */
export const takeBracket = (
  pg: PostgresPool,
  brackets: Brackets,
  table: FeedTable,
  want: Want,
  limitMs = MARK_TIMEOUT_MS,
): Effect.Effect<Read, PostgresError> =>
  Effect.gen(function* () {
    for (let limit = limitMs; ; limit = Math.min(limit * 2, MARK_TIMEOUT_MAX_MS)) {
      const read = yield* tryBracket(pg, brackets, table, want, limit)
      if (read !== null) return read
      yield* Effect.logInfo(`a read of ${table.name} did not come back through the stream within ${limit / 1000} s; reading it again`)
    }
  })
