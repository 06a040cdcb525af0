/**
 * Changes of rows -> their effects in Postgres and an outcome for each, inside the caller's transaction.
 *
 *     form ─> values as Postgres prints them (spell.ts) ─> lock and read theirs (theirs.ts) ─> may the school? resolve (judge.ts)
 *          ─> foreign keys, cascades (authorise.ts) ─> write (placed.ts) ─> what became of it (aftermath.ts) ─> outcome
 *
 * Whatever is wrong with one row is that row's outcome; the others are carried out.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { isThrough } from "../model/table.ts"
import type { PostgresError, Session } from "../postgres/client.ts"
import { checkReach, checkReferences, formRefusal, notYours, type Refusal, textsOf } from "./authorise.ts"
import { findRemoved, isNewlyKeyed, mergedOf, readAltered } from "./aftermath.ts"
import { currentKey, type RowChange, type Values } from "./coalesce.ts"
import { judge } from "./judge.ts"
import { readKnownShapes } from "./known.ts"
import { isEmptied, partLost, rekeyed } from "./lost.ts"
import { chainOf, type Places } from "./place.ts"
import { writePlaced } from "./placed.ts"
import type { Decision } from "./resolve.ts"
import { readReferencing } from "./shape.ts"
import { spell } from "./spell.ts"
import { compare, findInside, lock } from "./theirs.ts"
import { isTimed, type Pushing, readOfficeTimes, recordTimes } from "./times.ts"
import { type Ground, type Outcome, startWork, type Work } from "./work.ts"

/** Head office's programs never wait longer for us, nor we for them. */
const LOCK_TIMEOUT_MS = 500
const STATEMENT_TIMEOUT_MS = 60_000

export const setTimeouts = (session: Session): Effect.Effect<unknown, PostgresError> =>
  session.execute(`SET LOCAL lock_timeout = ${LOCK_TIMEOUT_MS}; SET LOCAL statement_timeout = ${STATEMENT_TIMEOUT_MS}`)

export const carryOut = (session: Session, ground: Ground, changes: ReadonlyArray<RowChange>): Effect.Effect<ReadonlyArray<Outcome>, PostgresError> =>
  Effect.gen(function* () {
    const names = new Set<string>()
    for (const { table } of changes) {
      const known = ground.tables.get(table)
      if (known === undefined) continue
      names.add(table)
      for (const reference of known.references) names.add(reference.table)
      for (const child of ground.tables.values()) if (isThrough(child.audience) && child.audience.through === table) names.add(child.name)
    }
    for (const name of [...names]) {
      const known = ground.tables.get(name)
      if (known !== undefined) for (const link of chainOf(ground.tables, known)) names.add(link.name)
    }
    const shapes = yield* readKnownShapes(session, ground.tables, [...names])
    const places: Places = { tables: ground.tables, shapes }
    const refusals = new Map<RowChange, Refusal>()
    const works = new Map<RowChange, Work>()
    const lost = new Map<RowChange, Values>()
    for (const change of changes) {
      if (change.op === "none") continue
      const table = ground.tables.get(change.table)
      const shape = shapes.get(change.table)
      const manifest = change.manifest ?? ground.manifest
      const parted = table === undefined || shape === undefined ? null : partLost(change, table, shape, ground.isOlder === true, manifest)
      const refusal =
        (table === undefined ? null : rekeyed(table, manifest)) ?? formRefusal(table, shape, change.table, parted?.change ?? change, ground.keys)
      if (refusal !== null || table === undefined || shape === undefined || parted === null) {
        refusals.set(change, refusal ?? notYours)
        continue
      }
      if (Object.keys(parted.lost).length > 0) lost.set(change, parted.lost)
      if (!isEmptied(parted.change) || isEmptied(change)) works.set(change, startWork(parted.change, table, shape))
    }
    const all = [...works.values()]
    yield* spell(session, all)
    yield* lock(session, all, places)
    yield* findInside(session, all, places, ground.school)
    yield* compare(session, all)
    const times = yield* readOfficeTimes(
      session,
      ground.times,
      all.filter(({ refusal }) => refusal === null).map(metOf),
      yield* Clock.currentTimeMillis,
    )
    yield* judge(ground, all, new Map([...times].map(([met, office]) => [met.work, office])))
    const writing = () => all.filter((work) => work.refusal === null && work.decision !== null && work.decision.write !== "nothing")
    yield* checkReferences(
      session,
      writing().filter((work) => !work.isDelete),
      places,
      ground.school,
    )
    const leaving = writing().filter((work) => work.decision?.write !== "insert")
    if (leaving.length > 0) {
      const referencing = yield* readReferencing(session, [...ground.tables.keys()])
      const parents = new Set(leaving.map((work) => work.table.name))
      const isReaching = referencing.some((foreign) => parents.has(foreign.parent))
      if (isReaching || leaving.some((work) => isThrough(work.table.audience))) {
        const missing = isReaching ? [...ground.tables.keys()].filter((name) => !shapes.has(name)) : []
        const known = new Map([...shapes, ...(yield* readKnownShapes(session, ground.tables, missing))])
        yield* checkReach(session, leaving, referencing, { tables: ground.tables, shapes: known }, ground.school)
      }
    }
    yield* writePlaced(session, writing, places, ground.school)
    if (leaving.some((work) => work.isDelete) || writing().some((work) => isNewlyKeyed(work) && work.shape.hasTriggers))
      yield* findRemoved(session, writing(), places, ground.school)
    const altered = yield* readAltered(session, writing())
    const timed = new Set([...new Set(all.map(({ table }) => table))].filter(isTimed))
    yield* recordTimes(
      session,
      writing()
        .filter(({ table }) => timed.has(table))
        .map(pushingOf),
    )

    return changes.map((change): Outcome => {
      const work = works.get(change)
      if (work === undefined || work.refusal !== null || work.decision === null) {
        const refusal = refusals.get(change) ?? work?.refusal ?? null
        const decision: Decision | null = refusal === null ? { write: "nothing", set: {}, verdict: "applied", disagreements: [] } : null
        const wanted = work === undefined || work.decision === null ? null : work.row
        const gone = refusal === null ? lost.get(change) : undefined
        return {
          row: change,
          decision,
          refusal,
          wanted,
          shape: work?.shape ?? null,
          after: null,
          keyAfter: currentKey(change),
          altered: [],
          ...(gone && { lost: gone }),
        }
      }
      const { decision, table } = work
      const after = decision.write === "delete" ? null : decision.write === "nothing" ? work.theirs : { ...(work.theirs ?? {}), ...decision.set }
      const keyAfter = after === null ? currentKey(change) : table.key.map((name) => after[name] ?? null)
      return {
        row: change,
        decision,
        refusal: null,
        wanted: null,
        shape: work.shape,
        after,
        keyAfter,
        altered: [...mergedOf(work, after, altered.get(work) ?? [])],
        ...(lost.has(change) && { lost: lost.get(change) ?? {} }),
      }
    })
  })

const metOf = (work: Work) => ({
  work,
  table: work.table,
  shape: work.shape,
  key: work.key,
  keyWires: work.change.key,
  op: work.change.op,
  base: work.base,
  mine: work.mine,
  theirs: work.theirs,
  theirsAt: work.theirsAt,
  xmin: work.xmin,
})

const pushingOf = ({ table, shape, key, row, isDelete, change, decision }: Work): Pushing => {
  const { at, columnAt } = change
  const keyAfter = isDelete ? change.key : table.key.map((name) => row[name] ?? null)
  const keyTexts = isDelete ? key : textsOf(table, table.key, row)
  return { table, shape, keyAfter, keyTexts, write: decision?.write ?? "nothing", set: decision?.set ?? {}, at, columnAt }
}
