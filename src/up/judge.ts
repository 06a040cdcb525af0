/**
 * May the school, and what is to be written? The rows are locked and read; nothing is written yet. What a school started from
 * is its own base, unless the hub knows better.
 */
import * as Effect from "effect/Effect"
import { wireKey } from "../model/key.ts"
import { audienceColumn, ruleOf, type Table } from "../model/table.ts"
import type { Wire } from "../model/value.ts"
import { everybodys, notYours, placement, taken, textOf } from "./authorise.ts"
import { isOwnBaseRule } from "./merge.ts"
import { type Office, type Proposal, resolve, type Row } from "./resolve.ts"
import type { Ground, Work } from "./work.ts"
import { hidden } from "./left-out.ts"

/** Says of each row whether the school may, and what is to be written. */
export const judge = (ground: Ground, works: ReadonlyArray<Work>, times: ReadonlyMap<Work, Pick<Office, "at" | "columnAt">>): Effect.Effect<void> =>
  Effect.gen(function* () {
    const open = works.filter((work) => work.refusal === null)
    // Keys that another change of this batch frees: whoever takes them meets no row.
    const freed = new Set(open.flatMap((work) => (work.change.op !== "insert" && work.change.newKey !== null ? [work.id] : [])))
    const unseen = open.filter((work) => work.change.op !== "insert" && !work.isInside)
    const had = new Set<string>()
    for (const [table, own] of Map.groupBy(unseen, (work) => work.table)) {
      const keys = yield* ground.had(
        ground.school,
        table.name,
        own.map((work) => wireKey(work.change.key)),
      )
      for (const work of own) if (keys.has(wireKey(work.change.key)) || isOwnByKey(work, ground.school)) had.add(work.id)
    }

    for (const work of open) {
      const { change, table } = work
      const isOutside = work.theirs !== null && !work.isInside
      let theirs = isOutside ? null : work.theirs
      if (change.op === "insert") work.refusal = placement(table, work.mine, ground.school)
      if (change.op === "insert") {
        if (freed.has(work.id)) theirs = null
        else if (isOutside) work.refusal ??= taken
      } else if (theirs === null && !had.has(work.id)) {
        // Of rows that only go up nobody remembers who had them. A delete of one that the school cannot see does nothing.
        if (change.op === "delete" && table.direction === "up") {
          work.decision = { write: "nothing", set: {}, verdict: "applied", disagreements: [] }
          work.theirs = null
          continue
        }
        work.refusal = notYours
      } else if (theirs !== null && change.op === "delete" && table.audience === "all") {
        work.refusal = everybodys(table)
      } else if (work.theirs === null && work.shape.isFiltered) {
        // Not deleted for all one knows. Only of a row that the school had: a guessed key gets no other answer than any.
        work.refusal = hidden(work.shape)
      }
      if (change.op === "update" && work.refusal === null) work.refusal = placement(table, { ...(theirs ?? work.base), ...work.mine }, ground.school)
      if (work.refusal !== null) continue

      const { base, settled } = baseOf(ground, work, theirs)
      const proposal: Proposal = {
        op: change.op as Proposal["op"],
        base,
        settled,
        mine: work.mine,
        at: change.at,
        columnAt: change.columnAt,
        respelled: work.respelled,
        isOfAnother: change.isOfAnother === true,
      }
      // A row that was moved to another school is out of this one's reach, whatever the strategy.
      const rule: Table = isOutside && change.op === "update" ? { ...table, strategy: "vps_wins" } : table
      work.theirs = theirs
      const { isMineGreater } = work
      work.decision = resolve(rule, proposal, { at: work.theirsAt, columnAt: {}, ...times.get(work), row: theirs, isMineGreater })
      work.isDelete = work.decision.write === "delete"
      work.isInsert = work.decision.write === "insert"
      work.row = { ...(theirs ?? {}), ...work.decision.set }
      work.written = new Set(Object.keys(work.decision.set))
    }
  })

/** The key says the school, so no other school can have had the row. */
const isOwnByKey = ({ table, base, theirs }: Work, school: string): boolean => {
  const column = audienceColumn(table.audience)
  return theirs === null && column !== null && table.key.includes(column) && textOf(table, column, base[column] ?? null) === school
}

/** The school's base, unless the hub knows better what the school started from. */
const baseOf = (ground: Ground, work: Work, theirs: Row | null): Pick<Proposal, "base" | "settled"> => {
  const opened = ground.openBases.get(work.id)
  const stored = ground.stored.get(work.id)
  const settled = new Set<string>()
  if (opened === undefined && stored === undefined) return { base: work.base, settled }
  const base: Record<string, Wire> = { ...work.base }
  for (const [name, pairs] of stored ?? []) {
    // What this file sent and what became of it are one value to it, until it has seen the latter.
    if (theirs === null || !pairs.some((pair) => pair.sent === base[name] && pair.stored === theirs[name])) continue
    if (isOwnBaseRule(ruleOf(work.table, name))) settled.add(name)
    else base[name] = theirs[name] ?? null
  }
  for (const [name, value] of opened ?? []) base[name] = value
  return { base, settled }
}
