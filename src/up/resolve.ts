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
 * `merge` puts rows that both sides made together column by column, and an update wins over a delete. All values are as
 * Postgres prints them; the same input always gives the same decision.
 */
import type { Contact } from "../model/batch.ts"
import { isOwnOfNode } from "../model/builtin.ts"
import type { Op, Verdict } from "../model/change.ts"
import { type Column, type ColumnRule, isExcluded, ruleOf, type Strategy, type Table } from "../model/table.ts"
import type { Wire } from "../model/value.ts"
import { isMergeRule, isOwnBaseRule, mergeValues } from "./merge.ts"

export type Row = Readonly<Record<string, Wire>>
/** `merged`: both sides' values were put together. */
export type Winner = "school" | "vps" | "merged" | "open"

/** One disagreement to be recorded. column null: the whole row, as objects; null = no row. */
export interface Disagreement {
  readonly column: string | null
  readonly base: Wire | Row
  readonly mine: Wire | Row
  readonly theirs: Wire | Row
  /** What stands after the decision. */
  readonly kept: Wire | Row
  readonly winner: Winner
  readonly strategy: Strategy | ColumnRule
  readonly reason: string
  /** When either side wrote it, ms since 1970; null = unknown. */
  readonly mineAt: number | null
  readonly theirsAt: number | null
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
  /** Columns where head office still holds what it made of this file's former value, which the file has not seen yet. */
  readonly settled: ReadonlySet<string>
  /** Of an insert: head office's row is another one, into which this goes. */
  readonly isOfAnother?: boolean
}

/** Head office's side of the row. Times are ms since 1970; null = unknown, which counts as the oldest. */
export interface Office {
  /** null: there is no such row. */
  readonly row: Row | null
  /** Last write to the row, or when it was deleted. */
  readonly at: number | null
  /** Last write to single columns, where that is known. */
  readonly columnAt: Readonly<Record<string, number | null>>
  /** Columns of `max` and `min` whose value in `mine` stands after head office's. */
  readonly isMineGreater: ReadonlySet<string>
}

export interface Decision {
  readonly write: "insert" | "update" | "delete" | "nothing"
  /** Values to be written. */
  readonly set: Row
  readonly verdict: Exclude<Verdict, "quarantined">
  readonly disagreements: ReadonlyArray<Disagreement>
}

/** Of newest_wins: an unknown time is the oldest, and ties go to head office. `merge`: of a whole row, see above. */
const winnerOf = (rule: Exclude<ColumnRule, "sum" | "max" | "min" | "union" | "append">, mineAt: number, theirsAt: number | null): Winner => {
  switch (rule) {
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

export const resolve = (table: Table, proposal: Proposal, office: Office): Decision => {
  const { row } = office
  switch (proposal.op) {
    case "insert":
      return row === null
        ? { write: "insert", set: proposal.mine, verdict: "applied", disagreements: [] }
        : table.strategy === "merge"
          ? mergeInsert(table, proposal, row, office)
          : resolveInsert(table, table.strategy, proposal, row, office)
    case "update":
      return row === null ? resolveGone(table, proposal, office) : resolveUpdate(table, proposal, row, office)
    case "delete":
      return row === null ? nothing("applied") : resolveDelete(table, proposal, row, office)
  }
}

const columnOf = (table: Table, name: string): Pick<Column, "kind" | "type" | "default"> =>
  table.columns.find((column) => column.name === name) ?? { kind: "text", type: "text" }

const mineTime = (proposal: Proposal, name: string): number => proposal.columnAt[name] ?? proposal.at
const officeTime = (office: Office, name: string): number | null => {
  const at = office.columnAt[name]
  return at === undefined ? office.at : at
}

/** The last write of head office to any of these columns. */
const latest = (office: Office, names: ReadonlyArray<string>): number | null =>
  names.reduce<number | null>((newest, name) => {
    const at = officeTime(office, name)
    return at !== null && (newest === null || at > newest) ? at : newest
  }, null)

const wholeRow = (
  table: Table,
  proposal: Proposal,
  side: Pick<Disagreement, "mine" | "theirs" | "kept" | "winner" | "theirsAt" | "reason">,
): Disagreement => ({
  ...side,
  column: null,
  base: proposal.op === "insert" ? null : proposal.base,
  strategy: table.strategy,
  mineAt: proposal.at,
})

/** The columns of `mine` that are to be written over head office's row. */
const differing = (proposal: Proposal, theirs: Row): Row =>
  Object.fromEntries(Object.entries(proposal.mine).filter(([name, value]) => value !== (theirs[name] ?? null) || proposal.respelled.has(name)))

const writing = (set: Row, verdict: Decision["verdict"], disagreements: ReadonlyArray<Disagreement> = []): Decision => ({
  write: Object.keys(set).length > 0 ? "update" : "nothing",
  set,
  verdict,
  disagreements,
})

/** Of an excluded column: the later write, and nobody is told. */
const isLater = (proposal: Proposal, office: Office, name: string): boolean =>
  winnerOf("newest_wins", mineTime(proposal, name), officeTime(office, name)) === "school"

const resolveInsert = (table: Table, strategy: Exclude<Strategy, "merge">, proposal: Proposal, theirs: Row, office: Office): Decision => {
  const set = differing(proposal, theirs)
  const apart = Object.keys(set).filter((name) => set[name] !== (theirs[name] ?? null))
  const disputed = apart.filter((name) => !isExcluded(table, name))
  const quiet = Object.fromEntries(Object.entries(set).filter(([name]) => !isExcluded(table, name) || isLater(proposal, office, name)))
  if (disputed.length === 0) return writing(quiet, "applied")
  // A terminal that sends its memory again to a new file of the school: the punch is here, with the time it first came.
  if (isOwnOfNode(table)) return /^schoolbus\.(punches|requests)$/.test(table.name) ? nothing("applied") : writing(set, "applied")
  const theirsAt = latest(office, disputed)
  const winner = winnerOf(strategy, proposal.at, theirsAt)
  const kept = winner === "school" ? { ...theirs, ...set } : theirs
  return writing(winner === "school" ? set : {}, "conflict", [
    wholeRow(table, proposal, { mine: proposal.mine, theirs, kept, winner, theirsAt, reason: "both sides created the row" }),
  ])
}

/** Two rows that both sides made under one key: each column by its rule; what has no common base starts at its default. */
const mergeInsert = (table: Table, proposal: Proposal, theirs: Row, office: Office): Decision => {
  const disputed = Object.keys(proposal.mine).filter((name) => proposal.mine[name] !== (theirs[name] ?? null) && !isExcluded(table, name))
  const counted = proposal.isOfAnother === true ? Object.keys(proposal.mine).filter((name) => ruleOf(table, name) === "sum") : []
  const base = Object.fromEntries(
    [...disputed, ...counted].flatMap((name) => (isOwnBaseRule(ruleOf(table, name)) ? [[name, columnOf(table, name).default ?? null] as const] : [])),
  )
  const { set, disagreements, isMerged } = decideColumns(table, { ...proposal, base }, theirs, office)
  if (disputed.length === 0) return writing(set, isMerged ? "merged" : "applied")
  const open = disagreements.filter((one) => one.winner === "open")
  const row = wholeRow(table, proposal, {
    mine: proposal.mine,
    theirs,
    kept: { ...theirs, ...set },
    winner: "merged",
    theirsAt: latest(office, disputed),
    reason: "both sides created the row",
  })
  return writing(set, "conflict", [...(open.length < disagreements.length || open.length === 0 ? [row] : []), ...open])
}

const generatedOf = (table: Table): ReadonlySet<string> => new Set(table.columns.filter((column) => column.generated).map((column) => column.name))

const resolveDelete = (table: Table, proposal: Proposal, theirs: Row, office: Office): Decision => {
  const generated = generatedOf(table)
  const changed = Object.entries(proposal.base).flatMap(([name, value]) =>
    !(name in theirs) || generated.has(name) || isExcluded(table, name) || value === theirs[name] ? [] : [name],
  )
  if (changed.length === 0) return { write: "delete", set: {}, verdict: "applied", disagreements: [] }
  const theirsAt = latest(office, changed)
  const winner = table.strategy === "merge" ? "vps" : winnerOf(table.strategy, proposal.at, theirsAt)
  return {
    write: winner === "school" ? "delete" : "nothing",
    set: {},
    verdict: "conflict",
    disagreements: [
      wholeRow(table, proposal, {
        mine: null,
        theirs,
        kept: winner === "school" ? null : theirs,
        winner,
        theirsAt,
        reason: "the school deleted the row, head office changed it",
      }),
    ],
  }
}

/** Head office has no such row any more. */
const resolveGone = (table: Table, proposal: Proposal, office: Office): Decision => {
  const edited = Object.keys(proposal.mine)
  if (edited.length > 0 && edited.every((name) => isExcluded(table, name))) return nothing("merged")
  const row = { ...proposal.base, ...proposal.mine }
  const isWhole = table.columns.every((column) => column.generated || column.name in row)
  const winner = table.strategy === "merge" ? "school" : winnerOf(table.strategy, proposal.at, office.at)
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
    disagreements: [
      wholeRow(table, proposal, {
        mine: row,
        theirs: null,
        kept: decided === "school" ? row : null,
        winner: decided,
        theirsAt: office.at,
        reason: "the school changed the row, head office deleted it",
      }),
    ],
  }
}

const resolveUpdate = (table: Table, proposal: Proposal, theirs: Row, office: Office): Decision => {
  const { set, disagreements, isMerged } = decideColumns(table, proposal, theirs, office)
  if (disagreements.length > 0) return writing(set, "conflict", disagreements)
  const generated = generatedOf(table)
  const isBeside = Object.entries(proposal.base).some(
    ([name, value]) => !(name in proposal.mine) && name in theirs && !generated.has(name) && value !== theirs[name],
  )
  return writing(set, (isMerged || isBeside) && Object.keys(set).length > 0 ? "merged" : "applied")
}

/** Each column of `mine` by its own rule. */
const decideColumns = (table: Table, proposal: Proposal, theirs: Row, office: Office) => {
  const set: Record<string, Wire> = {}
  const disagreements: Array<Disagreement> = []
  let isMerged = false
  for (const [name, mine] of Object.entries(proposal.mine)) {
    const now = theirs[name] ?? null
    const base = proposal.base[name]
    const rule = ruleOf(table, name)
    if (isExcluded(table, name)) {
      if (mine === base && mine !== now) continue
      const isWritten = base === now || isLater(proposal, office, name)
      if (isWritten && (mine !== now || proposal.respelled.has(name))) set[name] = mine
      isMerged ||= base !== now
      continue
    }
    const disagree = (winner: Winner, kept: Wire) =>
      disagreements.push({
        column: name,
        base: base ?? null,
        mine,
        theirs: now,
        kept,
        winner,
        strategy: rule,
        reason: "both sides changed the column",
        mineAt: mineTime(proposal, name),
        theirsAt: officeTime(office, name),
      })
    if (isOwnBaseRule(rule) && base !== undefined && mine !== base && base !== now) {
      const value = mergeValues(rule, columnOf(table, name), { base, mine, theirs: now, isMineGreater: false })
      if (value !== undefined) {
        if (value !== now) set[name] = value
        if (mine === now || proposal.settled.has(name)) isMerged = true
        else disagree("merged", value)
        continue
      }
    }
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
    if (isMergeRule(rule)) {
      const values = { base: base ?? null, mine, theirs: now, isMineGreater: office.isMineGreater.has(name) }
      // What cannot be put together is for a person.
      const value = isOwnBaseRule(rule) ? undefined : mergeValues(rule, columnOf(table, name), values)
      if (value !== undefined && value !== now) set[name] = value
      disagree(value === undefined ? "open" : "merged", value === undefined ? now : value)
      continue
    }
    const winner = winnerOf(rule, mineTime(proposal, name), officeTime(office, name))
    if (winner === "school") set[name] = mine
    disagree(winner, winner === "school" ? mine : now)
  }
  return { set, disagreements, isMerged }
}

/**
 * A capture time in server time: never before the last contact that came before the write, never after the next one or this
 * push, whatever the school's clock said. Between them the clock counts as it was measured at the one contact or the other.
 */
export const correctedTime = (change: { readonly id: number; readonly at: number }, contacts: ReadonlyArray<Contact>, now: number): number => {
  const after = contacts.findIndex(([last]) => last >= change.id)
  const before = contacts.at(after === -1 ? -1 : after - 1)
  const last = after === 0 ? undefined : before
  const next = after === -1 ? undefined : contacts[after]
  const from = Math.min(last?.[2] ?? 0, now)
  const to = Math.max(from, Math.min(next?.[2] ?? now, now))
  const times = [last, next].flatMap((contact) => (contact === undefined ? [] : [change.at + contact[2] - contact[1]]))
  return times.find((at) => at >= from && at <= to) ?? Math.min(Math.max(times[0] ?? change.at, from), to)
}
