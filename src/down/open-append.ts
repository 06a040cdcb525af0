/** What an open append has reached: plain data that its parts share. All of it goes with a rollback. */
import type { Tx } from "../libsql/client.ts"
import { EVERY_SCHOOL, type Route } from "./audience.ts"
import type { AudienceNumbers } from "./audience-numbers.ts"
import type { Append, FeedTable } from "./entry.ts"
import { heldByAll, heldBy as heldOf } from "./held.ts"
import type { Shape } from "./shape.ts"

/** What it begins with. */
export interface Beginning {
  readonly tx: Tx
  /** The feed's head. */
  readonly seq: number
  readonly tables: ReadonlyArray<FeedTable>
  readonly routes: ReadonlyMap<number, Route>
  /** Tables with another rule than before, whose rows stay where they are until their links are loaded. */
  readonly frozen: Set<number>
  readonly numbers: AudienceNumbers
  /** By school, the seq up to which it has what the feed sent. */
  readonly held: () => ReadonlyMap<string, number>
}

export class OpenAppend {
  readonly tx: Tx
  readonly frozen: Set<number>
  readonly numbers: AudienceNumbers
  tables: ReadonlyMap<number, FeedTable>
  routes: ReadonlyMap<number, Route>
  /** The last that was given out. */
  seq: number
  /** Entries that were born after it are of txns that have not ended. */
  ended: number
  /** Commit time of what is being appended, microseconds since 1970. */
  now = 0
  /** Rows so far. */
  written = 0
  /** Audiences that something came or went for. */
  readonly touched = new Set<number>()
  readonly loading: Set<number>
  /** Tables that were loaded in it, as they are told from now on. */
  readonly ready = new Map<number, Shape>()
  hubRowsChanged = false
  readonly #heldNow: Beginning["held"]
  #held: ReadonlyMap<string, number> | null = null

  constructor(from: Beginning) {
    this.tx = from.tx
    this.frozen = from.frozen
    this.numbers = from.numbers
    this.tables = new Map(from.tables.map((table) => [table.id, table]))
    this.routes = from.routes
    this.seq = from.seq
    this.ended = from.seq
    this.loading = new Set(from.tables.filter((table) => table.loading).map((table) => table.id))
    this.#heldNow = from.held
  }

  readonly numberOf = (audience: Append["audience"]): number => this.numbers.numberOf(audience)

  readonly touch = (audience: number): void => void this.touched.add(audience)

  nextSeq(): number {
    return ++this.seq
  }

  classOf(table: FeedTable): number {
    return this.loading.has(table.id) || table.table.direction === "up" ? -table.class : table.class
  }

  /** The seq up to which the schools of an audience have what the feed sent. */
  heldBy(no: number): number {
    this.#held ??= this.#heldNow()
    return no === EVERY_SCHOOL ? heldByAll(this.#held) : heldOf(this.#held, this.numbers.valueOf(no))
  }

  heldText(audiences: Iterable<number>): string {
    return JSON.stringify(Object.fromEntries([...audiences].map((no) => [no, this.heldBy(no)])))
  }

  /** From here on it works with these tables. */
  use(installed: ReadonlyArray<FeedTable>, plan: ReadonlyMap<number, Route>): void {
    this.tables = new Map(installed.map((table) => [table.id, table]))
    this.routes = plan
    for (const table of installed) if (table.loading) this.loading.add(table.id)
  }

  /** The table's links, their links, and so on. */
  linksOf(id: number): ReadonlyArray<number> {
    const link = this.routes.get(id)?.own?.link
    return link === undefined ? [] : [link, ...this.linksOf(link)]
  }
}
