/**
 * Rows of the stream on their way into one append, compacted: of each key the last state (pure). Between txns that is all the
 * feed needs, with one exception: a school shows what it pushed before the feed tells it. When a later txn takes such a row
 * away, the txn that pushed it must end in the feed first; else no tombstone would ever tell that school.
 */
import { planRoutes } from "./audience.ts"
import type { Event } from "./decode.ts"
import { type Append, type FeedTable, rowKey } from "./entry.ts"
import type { PlainRow } from "./plain.ts"
import type { Decoded } from "./signals.ts"
import { isTimed, type Written } from "./times.ts"

export interface PendingRow extends Append {
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

/** The txn at hand. */
export interface CurrentTxn {
  xid: number
  /** Commit time as it came, and in microseconds since 1970. */
  at: string
  micros: number
}

/** What the tables say of a row that comes: asked once for all. */
export interface Roles {
  /** Tables that place rows of others. */
  readonly links: ReadonlySet<number>
  /** What a school is told of its own writes stands here, in their txn. */
  readonly told: ReadonlySet<unknown>
}

export const rolesOf = (tables: ReadonlyArray<FeedTable>): Roles => ({
  links: new Set([...planRoutes(tables)].flatMap(([id, { places }]) => (places.length > 0 ? [id] : []))),
  told: new Set(tables.filter(({ name, hubOnly }) => name.startsWith("schoolbus.") && !hubOnly)),
})

export class Pending {
  readonly rows = new Map<string, PendingRow>()
  /** Txns that carried a school's writes and have not ended in the feed. */
  readonly #pushed = new Set<number>()
  /** The txn of which the feed may hold a part already. */
  #parted = 0
  readonly #txn: Readonly<CurrentTxn>
  readonly #roles: Roles

  constructor(txn: Readonly<CurrentTxn>, roles: Roles) {
    this.#txn = txn
    this.#roles = roles
  }

  set(table: FeedTable, key: string, tokens: PendingRow["tokens"], rest: { readonly isInsert?: boolean; readonly ifDifferent?: boolean } = {}): void {
    this.rows.set(rowKey(table.id, key), {
      table,
      key,
      body: null,
      audience: null,
      at: this.#txn.micros,
      isInsert: rest.isInsert ?? false,
      ifDifferent: rest.ifDifferent ?? false,
      tokens,
      earlier: undefined,
      xid: this.#txn.xid,
    })
  }

  /** A row's new state, together with what is pending of it. */
  put(table: FeedTable, event: Extract<Event<Decoded>, { kind: "put" }>): void {
    const { xid, micros } = this.#txn
    if (this.#roles.told.has(table)) this.#pushed.add(xid)
    const before = this.rows.get(rowKey(table.id, event.key))
    if (before === undefined) {
      this.set(table, event.key, event.tokens, event)
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

  /** The same for a row that is there whole, of a table whose columns have no times. */
  putPlain(row: PlainRow): void {
    const { xid, micros } = this.#txn
    if (this.#roles.told.has(row.table)) this.#pushed.add(xid)
    const before = this.rows.get(row.id)
    if (before !== undefined) row.isInsert = before.isInsert && (before.bytes != null || before.tokens !== null)
    row.at = micros
    row.xid = xid
    this.rows.set(row.id, row)
  }

  /** Earlier txns carried a school's writes and have not ended in the feed. */
  get hasPushed(): boolean {
    return this.#pushed.size > (this.#pushed.has(this.#txn.xid) ? 1 : 0)
  }

  /** Whether they must end there before this row of the txn at hand is taken. */
  takesAway(table: FeedTable, key: string, isInsert: boolean): boolean {
    if (this.#pushed.size === 0 || !this.hasPushed) return false
    const before = this.rows.get(rowKey(table.id, key))
    if (before !== undefined) return before.xid !== this.#txn.xid && this.#pushed.has(before.xid)
    return !isInsert && (this.#roles.links.has(table.id) || this.#pushed.has(this.#parted))
  }

  /** Takes out what is pending of earlier txns, which end in the feed with it. */
  takeEarlier(): ReadonlyArray<PendingRow> {
    const { xid } = this.#txn
    const earlier = [...this.rows].filter(([, row]) => row.xid !== xid)
    for (const [id] of earlier) this.rows.delete(id)
    for (const one of this.#pushed) if (one !== xid) this.#pushed.delete(one)
    return earlier.map(([, row]) => row)
  }

  takeAll(): ReadonlyArray<PendingRow> {
    const all = [...this.rows.values()]
    this.rows.clear()
    this.#parted = this.#txn.xid
    return all
  }
}
