/** Numbers of audiences, given out as their values first appear. A number that a rolled back append gave out is forgotten again. */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "../libsql/client.ts"
import { NOBODY } from "./audience.ts"
import type { Append } from "./entry.ts"

export class AudienceNumbers {
  readonly #numberOf = new Map<string, number>()
  readonly #valueOf = new Map<number, string>()
  /** Given out by the open append. */
  #fresh: Array<readonly [value: string, no: number]> = []
  #named = 0
  #last = 0

  constructor(known: ReadonlyArray<{ readonly no: number; readonly value: string }>) {
    for (const { no, value } of known) this.#know(value, no)
  }

  #know(value: string, no: number): void {
    this.#numberOf.set(value, no)
    this.#valueOf.set(no, value)
    this.#last = Math.max(this.#last, no)
  }

  find(value: string): number | null {
    return this.#numberOf.get(value) ?? null
  }

  valueOf(no: number): string | undefined {
    return this.#valueOf.get(no)
  }

  numberOf(audience: Append["audience"]): number {
    if (audience === null || "numbers" in audience) return NOBODY
    if ("no" in audience) return audience.no
    const known = this.#numberOf.get(audience.value)
    if (known !== undefined) return known
    const no = this.#last + 1
    this.#know(audience.value, no)
    this.#fresh.push([audience.value, no])
    return no
  }

  /** Writes down those that were given out since the last time. */
  store(tx: Tx): Effect.Effect<void, LibsqlError> {
    const unnamed = this.#fresh.slice(this.#named)
    this.#named = this.#fresh.length
    const written = tx.many(
      "INSERT INTO audience (no, value) VALUES (?, ?)",
      unnamed.map(([value, no]) => [BigInt(no), value]),
    )
    // A number that is not written down would be given to another school after a restart.
    return Effect.flatMap(written, ([refused]) =>
      refused === undefined ? Effect.void : Effect.die(new Error(`audience ${JSON.stringify(unnamed[refused.index])}: ${refused.message}`)),
    )
  }

  /** The open append has given out some. */
  get hasFresh(): boolean {
    return this.#fresh.length > 0
  }

  /** The append that gave them out is in the file. */
  keep(): void {
    this.#fresh = []
    this.#named = 0
  }

  /** The append was rolled back. */
  forget(): void {
    for (const [value, no] of this.#fresh) {
      this.#numberOf.delete(value)
      this.#valueOf.delete(no)
    }
    this.#fresh = []
    this.#named = 0
  }
}
