/**
 * Strategy × base × mine × theirs -> decision (pure). A column is in conflict when head office changed it too: its value
 * is neither the one that the school started from nor the one that the school wants. Different columns changed on both
 * sides merge by themselves. Whether the row exists is decided for the whole row, by the table's strategy.
 *
 *     op \ theirs   a row                                     none
 *     insert        equal: applied · else conflict, row       insert
 *     update        by column                                 conflict, row
 *     delete        as base: delete · else conflict, row      applied
 *
 * All values are as Postgres prints them; the same input always gives the same decision.
 */
import type { Op, Verdict } from "../model/change.ts"
import { type Strategy, strategyOf, type Table } from "../model/table.ts"
import type { Wire } from "../model/value.ts"

export type Row = Readonly<Record<string, Wire>>
export type Winner = "school" | "vps" | "open"

/** One disagreement to be recorded. column null: the whole row, as objects; null = no row. */
export interface Disagreement {
  readonly column: string | null
  readonly base: Wire | Row
  readonly mine: Wire | Row
  readonly theirs: Wire | Row
  readonly winner: Winner
  readonly strategy: Strategy
  readonly reason: string
}

/** One row's change as `resolve` sees it: values Postgres has printed, times in server time. */
export interface Proposal {
  readonly op: Op
  /** Old values that the school knew; a column that is not here has an unknown base. */
  readonly base: Row
  /** Wanted values; the key columns are among them when the key changes. */
  readonly mine: Row
  readonly at: number
  readonly columnAt: Readonly<Record<string, number>>
  /** Columns of `mine` that the school spells differently: they are written even when equal, so that the spelling comes down. */
  readonly respelled: ReadonlySet<string>
}

export interface Decision {
  readonly write: "insert" | "update" | "delete" | "nothing"
  /** Values to be written. */
  readonly set: Row
  readonly verdict: Exclude<Verdict, "quarantined" | "superseded">
  readonly disagreements: ReadonlyArray<Disagreement>
}

/** Of newest_wins: an unknown time is the oldest, and ties go to head office. */
export const winnerOf = (strategy: Strategy, mineAt: number, theirsAt: number | null): Winner => {
  switch (strategy) {
    case "school_wins":
      return "school"
    case "vps_wins":
      return "vps"
    case "newest_wins":
      return theirsAt === null || mineAt > theirsAt ? "school" : "vps"
    case "manual":
      return "open"
  }
}

const nothing = (verdict: Decision["verdict"]): Decision => ({ write: "nothing", set: {}, verdict, disagreements: [] })

/** `theirsAt`: time of head office's last write to the row, ms since 1970; null = unknown. */
export const resolve = (table: Table, proposal: Proposal, theirs: Row | null, theirsAt: number | null): Decision => {
  switch (proposal.op) {
    case "insert":
      return theirs === null
        ? { write: "insert", set: proposal.mine, verdict: "applied", disagreements: [] }
        : resolveInsert(table, proposal, theirs, theirsAt)
    case "update":
      return theirs === null ? resolveGone(table, proposal) : resolveUpdate(table, proposal, theirs, theirsAt)
    case "delete":
      return theirs === null ? nothing("applied") : resolveDelete(table, proposal, theirs, theirsAt)
  }
}

const wholeRow = (table: Table, proposal: Proposal, mine: Row | null, theirs: Row | null, winner: Winner, reason: string): Disagreement => ({
  column: null,
  base: proposal.op === "insert" ? null : proposal.base,
  mine,
  theirs,
  winner,
  strategy: table.strategy,
  reason,
})

/** The columns of `mine` that are to be written over `theirs`. */
const differing = (proposal: Proposal, theirs: Row): Row =>
  Object.fromEntries(Object.entries(proposal.mine).filter(([name, value]) => value !== (theirs[name] ?? null) || proposal.respelled.has(name)))

const writing = (set: Row, verdict: Decision["verdict"], disagreements: ReadonlyArray<Disagreement> = []): Decision => ({
  write: Object.keys(set).length > 0 ? "update" : "nothing",
  set,
  verdict,
  disagreements,
})

const resolveInsert = (table: Table, proposal: Proposal, theirs: Row, theirsAt: number | null): Decision => {
  const set = differing(proposal, theirs)
  if (Object.keys(set).every((name) => set[name] === (theirs[name] ?? null))) return writing(set, "applied")
  const winner = winnerOf(table.strategy, proposal.at, theirsAt)
  return writing(winner === "school" ? set : {}, "conflict", [wholeRow(table, proposal, proposal.mine, theirs, winner, "both sides created the row")])
}

const resolveDelete = (table: Table, proposal: Proposal, theirs: Row, theirsAt: number | null): Decision => {
  const generated = new Set(table.columns.filter((column) => column.generated).map((column) => column.name))
  const isAsKnown = Object.entries(proposal.base).every(([name, value]) => !(name in theirs) || generated.has(name) || value === theirs[name])
  if (isAsKnown) return { write: "delete", set: {}, verdict: "applied", disagreements: [] }
  const winner = winnerOf(table.strategy, proposal.at, theirsAt)
  return {
    write: winner === "school" ? "delete" : "nothing",
    set: {},
    verdict: "conflict",
    disagreements: [wholeRow(table, proposal, null, theirs, winner, "the school deleted the row, head office changed it")],
  }
}

/** Head office has no such row any more, and when it went is unknown. */
const resolveGone = (table: Table, proposal: Proposal): Decision => {
  const row = { ...proposal.base, ...proposal.mine }
  const isWhole = table.columns.every((column) => column.generated || column.name in row)
  const winner = winnerOf(table.strategy, proposal.at, null)
  // A row can only be made again when the school sent all of it.
  const decided = winner === "school" && !isWhole ? "open" : winner
  const set =
    decided === "school"
      ? Object.fromEntries(table.columns.flatMap((c) => (c.generated || !(c.name in row) ? [] : [[c.name, row[c.name] ?? null]])))
      : {}
  return {
    write: decided === "school" ? "insert" : "nothing",
    set,
    verdict: "conflict",
    disagreements: [wholeRow(table, proposal, row, null, decided, "the school changed the row, head office deleted it")],
  }
}

const resolveUpdate = (table: Table, proposal: Proposal, theirs: Row, theirsAt: number | null): Decision => {
  const set: Record<string, Wire> = {}
  const disagreements: Array<Disagreement> = []
  let isMerged = false
  for (const [name, mine] of Object.entries(proposal.mine)) {
    const now = theirs[name] ?? null
    const base = proposal.base[name]
    if (mine === now) {
      if (proposal.respelled.has(name)) set[name] = mine
      else if (base !== undefined && base !== now) isMerged = true
      continue
    }
    if (mine === base) continue
    if (base === now) {
      set[name] = mine
      continue
    }
    const strategy = strategyOf(table, name)
    const winner = winnerOf(strategy, proposal.columnAt[name] ?? proposal.at, theirsAt)
    if (winner === "school") set[name] = mine
    disagreements.push({ column: name, base: base ?? null, mine, theirs: now, winner, strategy, reason: "both sides changed the column" })
  }
  if (disagreements.length > 0) return writing(set, "conflict", disagreements)
  const generated = new Set(table.columns.filter((column) => column.generated).map((column) => column.name))
  isMerged ||= Object.entries(proposal.base).some(
    ([name, value]) => !(name in proposal.mine) && name in theirs && !generated.has(name) && value !== theirs[name],
  )
  return writing(set, isMerged && Object.keys(set).length > 0 ? "merged" : "applied")
}

/**
 * A capture time in server time, not after this push. The offset was measured at the last contact, so a write after it
 * cannot come out before it; a school clock in 1970 or 2099 moves a write only within the time that the school was away.
 */
export const correctedTime = (at: number, clock: { readonly offset: number; readonly contactAt: number; readonly now: number }): number =>
  Math.min(at >= clock.contactAt ? Math.max(at + clock.offset, clock.contactAt + clock.offset) : at + clock.offset, clock.now)
