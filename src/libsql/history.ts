/**
 * What captured writes mean (pure). Triggers store old values only, so each write learns its new values from what comes
 * next for the same key: the old values of the row's next captured write, else the row as it stands now.
 *
 *     I   a row came to be                      U   old values before an update, maybe to another key
 *     D   old values before a delete            R   a row that the next insert or update of its table may displace (REPLACE)
 *
 * An R whose row is next seen in place says nothing. One whose key is next made anew by the very insert it belongs to was
 * an update; one whose row is gone, or made anew by something else, was a delete that no trigger could see, also when an action
 * of a foreign key still wrote to it before.
 */
import type { Cell } from "../model/value.ts"

export type Values = ReadonlyArray<Cell>

export interface Captured {
  readonly id: number
  readonly tbl: number
  /** `?`: something else, which a program put there. */
  readonly op: "I" | "U" | "D" | "R" | "?"
  /** Local key before the write; of I the new one. */
  readonly key: string
  /** Local key after an update that changed it. */
  readonly newKey: string | null
  /** ms since 1970, school's clock. */
  readonly at: number
  /** Old values in column order; of I only the key. */
  readonly old: Values
}

export type Outcome =
  | { readonly kind: "drop" }
  | { readonly kind: "insert"; readonly mine: Values }
  /** `note`: id of the R that held the base, when a REPLACE made this update. */
  | { readonly kind: "update"; readonly base: Values; readonly mine: Values; readonly note: number | null }
  | { readonly kind: "delete"; readonly base: Values }
  /** No trigger wrote it. */
  | { readonly kind: "strange" }

export const keyId = (tbl: number, key: string): string => `${tbl} ${key}`

/** A key whose next state lies beyond the given rows: the write that touched it last, and under which of its two keys. */
export interface End {
  readonly row: Captured
  readonly key: string
}

/** The keys of which something beyond these rows must be known; deleted and left keys are not among them. */
export const openEnds = (rows: ReadonlyArray<Captured>): ReadonlyArray<End> => {
  const ends = new Map<string, End>()
  for (const row of rows) {
    if (row.op === "?") continue
    const id = keyId(row.tbl, row.key)
    if (row.op === "D" || row.newKey !== null) ends.delete(id)
    else ends.set(id, { row, key: row.key })
    if (row.newKey !== null) ends.set(keyId(row.tbl, row.newKey), { row, key: row.newKey })
  }
  return [...ends.values()]
}

/** One outcome per row. `beyond` holds what `openEnds` asked for: the row's values after all of these rows; absent = gone. */
export const resolve = (rows: ReadonlyArray<Captured>, beyond: ReadonlyMap<string, Values>): ReadonlyArray<Outcome> => {
  const outcomes: Array<Outcome> = new Array(rows.length)
  // Going backwards: what the next write of a key says of the key's state before it. A position: made anew by that write.
  const next = new Map<string, Values | number>()
  // The next insert or update of each table: what an R belongs to.
  const writer = new Map<number, number>()
  // Updates whose row is gone afterwards, by key: an action of a foreign key may write to a row that REPLACE then displaces.
  const lastSeen = new Map<string, number>()
  const valuesAfter = (id: string): Values | null => {
    const state = next.get(id) ?? beyond.get(id)
    return state === undefined || typeof state === "number" ? null : state
  }
  for (let i = rows.length - 1; i >= 0; i--) {
    const row = rows[i] as Captured
    const id = keyId(row.tbl, row.key)
    switch (row.op) {
      case "?":
        outcomes[i] = { kind: "strange" }
        continue
      case "D":
        outcomes[i] = { kind: "delete", base: row.old }
        break
      case "I": {
        const mine = valuesAfter(id)
        outcomes[i] = mine === null ? { kind: "drop" } : { kind: "insert", mine }
        break
      }
      case "U": {
        const newId = row.newKey === null ? id : keyId(row.tbl, row.newKey)
        const mine = valuesAfter(newId)
        // Gone without a captured delete: the triggers were away, and what is gone is not taken for a delete.
        outcomes[i] = mine === null ? { kind: "drop" } : { kind: "update", base: row.old, mine, note: null }
        if (mine === null && row.newKey === null) lastSeen.set(id, i)
        if (row.newKey !== null) next.set(newId, i)
        break
      }
      case "R": {
        const state = next.get(id) ?? beyond.get(id)
        const isOwn = typeof state === "number" && state === writer.get(row.tbl)
        const made = isOwn ? outcomes[state] : undefined
        if (isOwn && made?.kind === "insert") outcomes[state] = { kind: "update", base: row.old, mine: made.mine, note: row.id }
        const last = lastSeen.get(id)
        if (last !== undefined) outcomes[last] = { kind: "delete", base: (rows[last] as Captured).old }
        lastSeen.delete(id)
        const isInPlace = state !== undefined && typeof state !== "number"
        outcomes[i] = isInPlace || made?.kind === "insert" || made?.kind === "drop" ? { kind: "drop" } : { kind: "delete", base: row.old }
        break
      }
    }
    next.set(id, row.op === "I" ? i : row.old)
    if (row.op === "I" || row.op === "D") lastSeen.delete(id)
    if (row.op === "I" || row.op === "U") writer.set(row.tbl, i)
  }
  return outcomes
}

/** How many captured writes may lie between an R and the write it belongs to, cascaded deletes not counted. */
const NOTE_SPAN = 64

/**
 * Where the rows may be cut so that no R is parted from the write it belongs to: `cuts[n]` true = the first n rows may go.
 * `isMore`: more captured rows follow.
 */
export const safeCuts = (rows: ReadonlyArray<Captured>, isMore: boolean): ReadonlyArray<boolean> => {
  // Differences: how many R-to-write spans begin or end at a cut.
  const spans: Array<number> = new Array(rows.length + 2).fill(0)
  const writer = new Map<number, { readonly at: number; readonly passed: number }>()
  let passed = 0
  for (let i = rows.length - 1; i >= 0; i--) {
    const row = rows[i] as Captured
    if (row.op === "R") {
      const write = writer.get(row.tbl) ?? (isMore ? { at: rows.length, passed: 0 } : undefined)
      if (write !== undefined && passed - write.passed <= NOTE_SPAN) {
        spans[i + 1] = (spans[i + 1] ?? 0) + 1
        spans[write.at + 1] = (spans[write.at + 1] ?? 0) - 1
      }
    }
    if (row.op !== "D") passed++
    if (row.op === "I" || row.op === "U") writer.set(row.tbl, { at: i, passed })
  }
  let open = 0
  return spans.slice(0, rows.length + 1).map((difference) => {
    open += difference
    return open === 0
  })
}
