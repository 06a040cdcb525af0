/** Writes what was decided, and leaves out rows that no link places once all are written: only then is it known. */
import * as Effect from "effect/Effect"
import { isThrough, type Table } from "../model/table.ts"
import { wireToText } from "../model/value.ts"
import type { PostgresError, Session } from "../postgres/client.ts"
import { checkReferences, homeless, type Refusal, refuseDependants, textOf, textsOf } from "./authorise.ts"
import { readMade, tellingColumns } from "./made.ts"
import { type Places, whichBelong } from "./place.ts"
import type { Decision, Row } from "./resolve.ts"
import type { Shape } from "./shape.ts"
import { known, type Work } from "./work.ts"
import { isMovable, type Step, type Write, writeAll } from "./write.ts"

export const restless: Refusal = { reason: "not_allowed", detail: "what Postgres makes of the row points to another row each time it is written" }

/** By other rows, or by what Postgres computes of this one. */
export const isPlacedLate = ({ audience }: Table, shape: Shape | undefined, isInsert: boolean, written: ReadonlySet<string>): boolean => {
  if (audience === "all") return false
  const own = isThrough(audience) ? Object.keys(audience.on) : [audience.column]
  if (own.some((name) => shape?.columns.get(name)?.generated === true)) return true
  return isThrough(audience) && (isInsert || own.some((name) => written.has(name)))
}

export const notPlaced = ({ audience }: Table): Refusal =>
  audience === "all" || isThrough(audience)
    ? homeless(audience === "all" ? "" : audience.through)
    : { reason: "not_allowed", detail: `${audience.column}, which Postgres computes, does not name this school` }

/**
 * Writes, and takes back what does not belong to the school once all is written; the others are written without it. Where
 * Postgres made of a row one that points elsewhere, all is taken back, judged by that, and written again.
 */
export const writePlaced = (
  session: Session,
  writing: () => ReadonlyArray<Work>,
  places: Places,
  school: string,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const isAsked = ({ table, shape, isDelete, isInsert, written }: Work) => !isDelete && isPlacedLate(table, shape, isInsert, written)
    while (true) {
      const works = writing()
      const isLate = works.some(isAsked)
      const isMade = works.some((work) => !work.isDelete && tellingColumns(places, work.table).size > 0)
      if (!isLate && !isMade) return yield* write(session, works)
      yield* session.execute("SAVEPOINT placed_rows")
      yield* write(session, works)
      const written = works.filter((work) => work.refusal === null && !work.isDelete)
      const homelessOnes: Array<Work> = []
      for (const [table, own] of Map.groupBy(written.filter(isAsked), (work) => work.table)) {
        const keys = own.map((work) => textsOf(table, table.key, work.row))
        const inside = yield* whichBelong(session, places, table, keys, school)
        homelessOnes.push(...own.filter((_, i) => !inside.has(i)))
      }
      const made = isMade ? yield* readMade(session, written, places) : new Map<Work, Row>()
      if (homelessOnes.length === 0 && made.size === 0) {
        yield* session.execute("RELEASE SAVEPOINT placed_rows")
        return
      }
      yield* session.execute("ROLLBACK TO SAVEPOINT placed_rows; RELEASE SAVEPOINT placed_rows")
      // What Postgres refused may have been in the way of a row that is left out now.
      for (const work of works) if (isMovable(work.refusal)) work.refusal = null
      for (const [work, row] of made) {
        if (Object.keys(work.made).length > 0) work.refusal = restless
        work.made = row
      }
      for (const work of homelessOnes) if (!made.has(work)) work.refusal = notPlaced(work.table)
      refuseDependants(works)
      if (made.size > 0)
        yield* checkReferences(
          session,
          writing().filter((work) => !work.isDelete),
          places,
          school,
        )
    }
  })

const write = (session: Session, works: ReadonlyArray<Work>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const writes = new Map<Work, Write & { needs: Array<Write> }>()
    for (const work of works) {
      const { decision, table, shape, key } = work
      if (decision === null || decision.write === "nothing") continue
      const set = textsOfSet(table, decision.set)
      const keyElse = followedKey(work)
      const where = { key, ...(keyElse !== null && { keyElse }) }
      writes.set(work, { table, shape, kind: decision.write, ...where, set, steps: stepsOf(work, decision, set), needs: [] })
    }
    for (const [work, own] of writes) {
      for (const needed of work.needs) {
        const other = writes.get(needed as Work)
        if (other !== undefined) own.needs.push(other)
      }
    }
    const refused = yield* writeAll(session, [...writes.values()])
    for (const [work, own] of writes) work.refusal = refused.get(own) ?? null
  })

/** The row's key after rows of this batch that it refers to have theirs, if Postgres takes it along (ON UPDATE CASCADE); null: the same. */
const followedKey = ({ table, key, row, written, needs }: Work): ReadonlyArray<string | null> | null => {
  const moved = new Set(
    [...needs].flatMap((needed) =>
      needed.isInsert ? [] : table.references.flatMap((reference) => (reference.table === needed.table.name ? reference.columns : [])),
    ),
  )
  const names = table.key.filter((name) => moved.has(name) && written.has(name))
  return names.length === 0 ? null : table.key.map((name, i) => (names.includes(name) ? textOf(table, name, row[name] ?? null) : (key[i] ?? null)))
}

/**
 * The school's single writes, limited to the columns that the decision lets through. Of a column for which it decides another value
 * than the school's last one (a sum, a list to which both sides added) only the last write stands, with that value.
 */
const stepsOf = (work: Work, decision: Decision, set: Readonly<Record<string, string | null>>): ReadonlyArray<Step> => {
  const { change, table, key } = work
  const { changes, joined } = change
  const last = changes.at(-1)?.id ?? 0
  const kind = decision.write === "nothing" ? "update" : decision.write
  const isPlain = joined.length === 0 && kind === change.op && kind !== "delete" && changes.every((one, i) => one.op === (i === 0 ? kind : "update"))
  if (!isPlain || changes.length === 1) return [{ id: last, kind, key, set }]
  const own = changes.map((one) => {
    const keys =
      one.op === "update" && one.newKey !== undefined ? Object.fromEntries(table.key.map((name, i) => [name, one.newKey?.[i] ?? null])) : {}
    return textsOfSet(table, { ...known(one.mine), ...keys })
  })
  const lastOf = new Map(own.flatMap((values, i) => Object.keys(values).map((name) => [name, i] as const)))
  const isOwn = (name: string): boolean => own[lastOf.get(name) ?? -1]?.[name] === set[name]
  return changes.map((one, i): Step => {
    const texts: Record<string, string | null> = {}
    for (const [name, text] of Object.entries(set)) {
      if (i === (lastOf.get(name) ?? changes.length - 1)) texts[name] = text
      else if (name in (own[i] ?? {}) && (isOwn(name) || one.op === "insert")) texts[name] = own[i]?.[name] ?? null
    }
    return { id: one.id, kind: one.op, key: table.key.map((name, n) => textOf(table, name, one.key[n] ?? null)), set: texts }
  })
}

const textsOfSet = (table: Table, set: Row): Record<string, string | null> =>
  Object.fromEntries(
    Object.entries(set).map(([name, value]) => [name, wireToText(table.columns.find((column) => column.name === name)?.kind ?? "text", value)]),
  )
