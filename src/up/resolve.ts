/**
 * Strategy × base × mine × theirs -> decision (pure). A column is in conflict when head office changed it too: its value
 * is neither the one that the school started from nor the one that the school wants. Different columns changed on both
 * sides merge by themselves.
 */
import type { Verdict } from "../model/change.ts"
import { type Strategy, strategyOf, type Table } from "../model/table.ts"
import type { Kind, Wire } from "../model/value.ts"
import type { RowChange } from "./coalesce.ts"

type Values = Readonly<Record<string, Wire>>

/** One disagreement to be recorded. column null: the existence of the row is in question. */
export interface Disagreement {
  readonly column: string | null
  readonly base: Wire | Values
  readonly mine: Wire | Values
  readonly theirs: Wire | Values
  readonly winner: "school" | "vps" | "open"
  readonly strategy: Strategy
  readonly reason: string
}

export interface Decision {
  readonly write: "insert" | "update" | "delete" | "nothing"
  /** Columns to be written. */
  readonly set: Values
  readonly verdict: Exclude<Verdict, "quarantined">
  readonly disagreements: ReadonlyArray<Disagreement>
}

export interface Times {
  /** Of the school's write, corrected and clamped, ms since 1970. */
  readonly mineAt: number
  /** Of head office's last write to the row; null = unknown, counts as oldest. */
  readonly theirsAt: number | null
}

/** `"1.50"` and `"1.5"` are one number; scale is kept by numeric but says nothing. */
const plainNumber = (text: string): string => {
  const match = /^(-?)0*(\d+)(?:\.(\d*?)0*)?$/.exec(text)
  if (match === null) return text
  const fraction = match[3] ?? ""
  const digits = match[2] ?? "0"
  return digits === "0" && fraction === "" ? "0" : `${match[1]}${digits}${fraction === "" ? "" : `.${fraction}`}`
}

export const sameValue = (kind: Kind, left: Wire, right: Wire): boolean =>
  left === right || (kind === "numeric" && typeof left === "string" && typeof right === "string" && plainNumber(left) === plainNumber(right))

const winnerOf = (strategy: Strategy, times: Times): "school" | "vps" | "open" => {
  switch (strategy) {
    case "school_wins":
      return "school"
    case "vps_wins":
      return "vps"
    case "newest_wins":
      // Ties go to head office.
      return times.theirsAt === null || times.mineAt > times.theirsAt ? "school" : "vps"
    case "manual":
      return "open"
  }
}

const rowWide = (table: Table, change: RowChange, theirs: Values | null, times: Times, reason: string): Decision => {
  const winner = winnerOf(table.strategy, times)
  const mine = change.op === "delete" ? null : { ...change.base, ...change.mine }
  const disagreement: Disagreement = { column: null, base: change.op === "insert" ? null : change.base, mine, theirs, winner, strategy: table.strategy, reason }
  const write = winner !== "school" ? "nothing" : change.op === "delete" ? "delete" : "insert"
  return { write, set: write === "insert" ? (mine ?? {}) : {}, verdict: "conflict", disagreements: [disagreement] }
}

export const resolve = (table: Table, change: RowChange, theirs: Values | null, times: Times): Decision => {
  const kinds = new Map(table.columns.map((column) => [column.name, column.kind]))
  const same = (name: string, left: Wire | undefined, right: Wire | undefined) => sameValue(kinds.get(name) ?? "text", left ?? null, right ?? null)
  const done = (verdict: Decision["verdict"]): Decision => ({ write: "nothing", set: {}, verdict, disagreements: [] })

  if (change.op === "none") return done("superseded")
  if (change.op === "delete") {
    if (theirs === null) return done("applied")
    const isTouched = Object.entries(change.base).some(([name, value]) => name in theirs && !same(name, value, theirs[name]))
    if (isTouched) return rowWide(table, change, theirs, times, "the school deleted the row, head office changed it")
    return { write: "delete", set: {}, verdict: "applied", disagreements: [] }
  }
  if (theirs === null) {
    if (change.op === "update") return rowWide(table, change, null, times, "the school changed the row, head office deleted it")
    return { write: "insert", set: change.mine, verdict: "applied", disagreements: [] }
  }

  const set: Record<string, Wire> = {}
  const disagreements: Array<Disagreement> = []
  for (const [name, mine] of Object.entries(change.mine)) {
    const now = theirs[name] ?? null
    if (same(name, mine, now)) continue
    const base = change.base[name] ?? null
    if (change.op === "update" && same(name, base, now)) {
      set[name] = mine
      continue
    }
    const strategy = strategyOf(table, name)
    const winner = winnerOf(strategy, times)
    if (winner === "school") set[name] = mine
    const reason = change.op === "insert" ? "both sides created the row" : "both sides changed the column"
    disagreements.push({ column: name, base, mine, theirs: now, winner, strategy, reason })
  }
  const isMerged = change.op === "update" && Object.entries(change.base).some(([name, value]) => !(name in change.mine) && name in theirs && !same(name, value, theirs[name]))
  return {
    write: Object.keys(set).length > 0 ? "update" : "nothing",
    set,
    verdict: disagreements.length > 0 ? "conflict" : isMerged ? "merged" : "applied",
    disagreements,
  }
}

/**
 * A capture time in server time, clamped: not before the last contact that preceded it, not after this push. A school
 * clock in 1970 or 2099 can therefore only move a write within the time that the school was away.
 */
export const correctedTime = (at: number, clock: { readonly offset: number; readonly contactAt: number; readonly now: number }): number => {
  const corrected = at + clock.offset
  const earliest = at >= clock.contactAt ? clock.contactAt + clock.offset : Number.NEGATIVE_INFINITY
  return Math.min(Math.max(corrected, earliest), clock.now)
}
