/**
 * Changes of rows -> their effects in Postgres and an outcome for each, inside the caller's transaction.
 *
 *     form ─> values as Postgres prints them ─> lock and read theirs ─> may the school? ─> resolve
 *          ─> foreign keys, cascades ─> write ─> outcome
 *
 * Whatever is wrong with one row is that row's outcome; the others are carried out.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { wireKey } from "../model/key.ts"
import type { KeyRange } from "../model/key-range.ts"
import { audienceColumn, isThrough, ruleOf, type Table } from "../model/table.ts"
import { isRefused, type Wire, wireToText } from "../model/value.ts"
import { ident, type PostgresError, qualified, type Session } from "../postgres/client.ts"
import {
  checkReach,
  checkReferences,
  formRefusal,
  homeless,
  type Leaving,
  notYours,
  placement,
  type Pointing,
  type Refusal,
  refuseDependants,
  taken,
  textOf,
  textsOf,
} from "./authorise.ts"
import { type Canonical, canonicalise, textToWire } from "./canonical.ts"
import { currentKey, rowId, type RowChange, type Values } from "./coalesce.ts"
import { isEmptied, partLost, rekeyed } from "./lost.ts"
import { matching, tupleText, unnest } from "./lists.ts"
import { isOwnBaseRule } from "./merge.ts"
import { type Compared, whichGreater } from "./order.ts"
import { chainOf, lockLinks, type Places, whichBelong } from "./place.ts"
import { type Decision, type Office, type Proposal, resolve, type Row } from "./resolve.ts"
import { readReferencing, readShapes, type Shape } from "./shape.ts"
import type { Tables } from "./tables.ts"
import { type Pushing, readOfficeTimes, recordTimes } from "./times.ts"
import { isMovable, type Step, type Write, writeAll } from "./write.ts"

export interface Ground {
  readonly school: string
  /** Under which manifest the changes were frozen; absent: under the present one. */
  readonly manifest?: number
  readonly isOlder?: boolean
  readonly tables: ReadonlyMap<string, Table>
  readonly had: Tables["Service"]["had"]
  readonly times?: Tables["Service"]["times"]
  /** The bigint keys that the school may give out; absent: a person has looked at the change. */
  readonly keys?: KeyRange
  /** What Postgres made of values that this file sent and may not have seen come down yet, by `rowId`, then by column. */
  readonly stored: ReadonlyMap<string, ReadonlyMap<string, ReadonlyArray<{ readonly sent: Wire; readonly stored: Wire }>>>
  /** Bases of columns that wait for a person, by `rowId`: an open conflict is measured from where it began. */
  readonly openBases: ReadonlyMap<string, ReadonlyMap<string, Wire>>
}

export interface Outcome {
  readonly row: RowChange
  /** null when the row could not be written: then `refusal` says why. */
  readonly decision: Decision | null
  readonly refusal: Refusal | null
  /** Of a refused row: as it would be. */
  readonly wanted: Row | null
  readonly shape: Shape | null
  /** The row in Postgres after the batch, as far as the decision tells; null = no row. */
  readonly after: Row | null
  /** The row's key after the batch, at the school when Postgres has no such row. */
  readonly keyAfter: ReadonlyArray<Wire>
  /** Columns where Postgres stored another value than was sent. */
  readonly altered: ReadonlyArray<{ readonly column: string; readonly sent: Wire; readonly stored: Wire }>
  /** What it says of columns that head office no longer has. */
  readonly lost?: Values
}

interface Work extends Pointing, Leaving {
  readonly change: RowChange
  readonly shape: Shape
  /** Values as Postgres prints them. */
  key: ReadonlyArray<string | null>
  readonly id: string
  base: Row
  mine: Row
  respelled: ReadonlySet<string>
  theirs: Row | null
  theirsAt: number | null
  xmin: string | null
  isMineGreater: ReadonlySet<string>
  decision: Decision | null
  refusal: Refusal | null
  row: Row
  written: ReadonlySet<string>
  isDelete: boolean
  isInsert: boolean
  /** Head office's row belongs to the school. */
  isInside: boolean
}

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
    const shapes = yield* readShapes(session, [...names])
    const places: Places = { tables: ground.tables, shapes }
    const refusals = new Map<RowChange, Refusal>()
    const works = new Map<RowChange, Work>()
    const lost = new Map<RowChange, Values>()
    for (const change of changes) {
      if (change.op === "none") continue
      const table = ground.tables.get(change.table)
      const shape = shapes.get(change.table)
      const parted = table === undefined || shape === undefined ? null : partLost(change, table, shape, ground.isOlder === true)
      const refusal =
        (table === undefined ? null : rekeyed(table, ground.manifest)) ??
        formRefusal(table, shape, change.table, parted?.change ?? change, ground.keys)
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
    yield* decide(ground, all, new Map([...times].map(([met, office]) => [met.work, office])))
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
        const known = new Map([...shapes, ...(yield* readShapes(session, missing))])
        yield* checkReach(session, leaving, referencing, { tables: ground.tables, shapes: known }, ground.school)
      }
    }
    yield* writePlaced(session, writing, places, ground.school)
    if (leaving.some((work) => work.isDelete)) yield* findRemoved(session, writing())
    const altered = yield* readAltered(session, writing())
    yield* recordTimes(session, writing().map(pushingOf))

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

/** What became of sent values: a trigger's change of them, and sums and lists, which took in what head office had written. */
const mergedOf = (work: Work, after: Row | null, altered: Outcome["altered"]): Outcome["altered"] => {
  if (after === null || work.theirs === null) return altered
  const byColumn = new Map(altered.map((one) => [one.column, one]))
  for (const [column, sent] of Object.entries(work.mine)) {
    if (!isOwnBaseRule(ruleOf(work.table, column))) continue
    const stored = byColumn.get(column)?.stored ?? after[column] ?? null
    if (stored !== sent) byColumn.set(column, { column, sent, stored })
  }
  return [...byColumn.values()]
}

/** Values without those of columns that are no longer there: only empty ones get so far. */
const present = (values: Row, shape: Shape): Row => Object.fromEntries(Object.entries(values).filter(([name]) => shape.columns.has(name)))

/** Values without those that cannot travel: their base is unknown. */
const known = (values: RowChange["base"]): Row =>
  Object.fromEntries(Object.entries(values).flatMap(([name, value]) => (isRefused(value) ? [] : [[name, value] as const])))

const startWork = (change: RowChange, table: Table, shape: Shape): Work => {
  const old = Object.fromEntries(table.key.map((name, i) => [name, change.key[i] ?? null]))
  const now = Object.fromEntries(table.key.map((name, i) => [name, currentKey(change)[i] ?? null]))
  const keyed = change.op === "insert" || (change.op === "update" && change.newKey !== null)
  return {
    change,
    table,
    shape,
    id: rowId(change.table, change.key),
    key: textsOf(table, table.key, old),
    base: change.op === "insert" ? {} : { ...known(change.base), ...old },
    mine: present(keyed ? { ...known(change.mine), ...now } : known(change.mine), shape),
    respelled: new Set(),
    theirs: null,
    theirsAt: null,
    xmin: null,
    isMineGreater: new Set(),
    decision: null,
    refusal: null,
    row: {},
    written: new Set(),
    isDelete: false,
    isInsert: false,
    isInside: false,
    needs: new Set(),
  }
}

const refusedValue = (change: RowChange): Refusal | null => {
  for (const [name, value] of Object.entries(change.mine)) if (isRefused(value)) return { reason: "type", detail: `column ${name}: ${value.refused}` }
  return null
}

/** Gives every value the form in which Postgres prints it; refuses rows with a value that a column cannot hold. */
const spell = (session: Session, works: ReadonlyArray<Work>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const texts = new Map<Shape, Map<string, Set<string>>>()
    const each = function* (work: Work): Generator<readonly [side: "base" | "mine", name: string, text: string]> {
      for (const side of ["base", "mine"] as const) {
        for (const [name, value] of Object.entries(work[side])) {
          const text = textOf(work.table, name, value)
          if (text !== null && work.shape.columns.has(name)) yield [side, name, text]
        }
      }
    }
    for (const work of works) {
      work.refusal = refusedValue(work.change)
      if (work.refusal !== null) continue
      const columns = texts.get(work.shape) ?? new Map<string, Set<string>>()
      texts.set(work.shape, columns)
      for (const [, name, text] of each(work)) {
        const set = columns.get(name)
        if (set === undefined) columns.set(name, new Set([text]))
        else set.add(text)
      }
    }
    const wanted = [...texts].flatMap(([shape, columns]) =>
      [...columns].flatMap(([name, set]) => {
        const column = shape.columns.get(name)
        return column === undefined ? [] : [{ column, texts: [...set] }]
      }),
    )
    const results = yield* canonicalise(session, wanted)
    const byColumn = new Map(wanted.map(({ column }, i) => [column, results[i]]))
    for (const work of works) {
      if (work.refusal !== null) continue
      const spelled = { base: { ...work.base } as Record<string, Wire>, mine: { ...work.mine } as Record<string, Wire> }
      const respelled = new Set<string>()
      const lookUp = (name: string, text: string): Canonical => {
        const column = work.shape.columns.get(name)
        return (column === undefined ? undefined : byColumn.get(column)?.get(text)) ?? { text }
      }
      for (const [side, name, text] of each(work)) {
        const found = lookUp(name, text)
        const isKey = work.table.key.includes(name)
        if ("refused" in found) {
          if (side === "mine" || isKey) work.refusal ??= { reason: "type", detail: `column ${name}: ${found.refused}` }
          else delete spelled.base[name]
          continue
        }
        const kind = work.table.columns.find((column) => column.name === name)?.kind ?? "text"
        const value = textToWire(kind, found.text)
        if (value === spelled[side][name]) continue
        spelled[side][name] = value
        if (found.text === text) continue
        // Under another spelling of its key the row would come down as a second one.
        if (isKey)
          work.refusal ??= {
            reason: "type",
            detail: `key column ${name}: Postgres spells ${JSON.stringify(text)} as ${JSON.stringify(found.text)}; write it so`,
          }
        if (side === "mine") respelled.add(name)
      }
      work.base = spelled.base
      work.mine = spelled.mine
      work.respelled = respelled
    }
  })

/** Locks and reads head office's rows: one statement per table, links before the rows that they place, rows in key order. */
const lock = (session: Session, works: ReadonlyArray<Work>, places: Places): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const byTable = Map.groupBy(
      works.filter((work) => work.refusal === null),
      (work) => work.table,
    )
    if (byTable.size === 0) return
    const [setting] = yield* session.query<{ on: string }>("SELECT current_setting('track_commit_timestamp') AS on")
    const time = setting?.on === "on" ? "extract(epoch FROM pg_xact_commit_timestamp(t.xmin)) * 1000" : "NULL"
    const level = (table: Table) => chainOf(places.tables, table).length
    for (const [table, own] of [...byTable].sort(([a], [b]) => level(a) - level(b) || (a.name < b.name ? -1 : 1))) {
      const shape = own[0]?.shape
      if (shape === undefined) continue
      const keys = [...new Map(own.map((work) => [work.id, work.key])).values()]
      if (isThrough(table.audience)) {
        const columns = Object.keys(table.audience.on)
        const naming = own.filter((work) => columns.some((name) => name in work.mine))
        yield* lockLinks(
          session,
          places,
          table,
          keys,
          naming.map((work) => textsOf(table, columns, { ...work.base, ...work.mine })),
        )
      }
      const { from, params } = unnest(keys, table.key.length)
      const columns = table.columns.filter((column) => shape.columns.has(column.name))
      const types = table.key.map((name) => shape.columns.get(name)?.base ?? "text")
      const rows = yield* session.texts(
        `SELECT ${time}, t.xmin::text, ${columns.map((column) => `t.${ident(column.name)}`).join(", ")} FROM ${from} JOIN ${qualified(table.name)} AS t ON ${matching(table.key, types)}
          ORDER BY ${table.key.map((name) => `t.${ident(name)}`).join(", ")}${shape.can.update ? " FOR UPDATE OF t" : ""}`,
        params,
      )
      const found = new Map(
        rows.map(([at, xmin, ...cells]) => {
          const row: Row = Object.fromEntries(columns.map((column, i) => [column.name, textToWire(column.kind, cells[i] ?? null)]))
          return [tupleText(textsOf(table, table.key, row)), { row, at: at == null ? null : Number(at), xmin: xmin ?? null }] as const
        }),
      )
      for (const work of own) {
        const present = found.get(tupleText(work.key))
        work.theirs = present?.row ?? null
        work.theirsAt = present?.at ?? null
        work.xmin = present?.xmin ?? null
      }
    }
  })

/** Which of head office's rows belong to the school, as it stands now that they are locked. */
const findInside = (session: Session, works: ReadonlyArray<Work>, places: Places, school: string): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const present = works.filter((work) => work.refusal === null && work.theirs !== null)
    for (const work of present) work.isInside = work.theirs !== null && placement(work.table, work.theirs, school) === null
    const placedByOthers = present.filter((work) => isThrough(work.table.audience))
    for (const [table, own] of Map.groupBy(placedByOthers, (work) => work.table)) {
      const inside = yield* whichBelong(
        session,
        places,
        table,
        own.map((work) => work.key),
        school,
      )
      for (const [i, work] of own.entries()) work.isInside = inside.has(i)
    }
  })

/** Asks Postgres which values of `max` and `min` columns stand after head office's: only it knows the order of every type. */
const compare = (session: Session, works: ReadonlyArray<Work>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const asked = works.flatMap((work) =>
      work.refusal !== null || work.theirs === null
        ? []
        : Object.entries(work.mine).flatMap(([name, mine]): ReadonlyArray<Compared & { readonly work: Work; readonly name: string }> => {
            const theirs = work.theirs?.[name] ?? null
            const column = work.shape.columns.get(name)
            if (!/^(max|min)$/.test(ruleOf(work.table, name)) || mine === null || theirs === null || mine === theirs || column === undefined)
              return []
            const texts = [textOf(work.table, name, mine), textOf(work.table, name, theirs)] as const
            return [{ work, name, column, left: texts[0] ?? "", right: texts[1] ?? "" }]
          }),
    )
    const greater = yield* whichGreater(session, asked)
    for (const { work, name } of greater) work.isMineGreater = new Set([...work.isMineGreater, name])
  })

/** Says of each row whether the school may, and what is to be written. */
const decide = (ground: Ground, works: ReadonlyArray<Work>, times: ReadonlyMap<Work, Pick<Office, "at" | "columnAt">>): Effect.Effect<void> =>
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

const textsOfSet = (table: Table, set: Row): Record<string, string | null> =>
  Object.fromEntries(
    Object.entries(set).map(([name, value]) => [name, wireToText(table.columns.find((column) => column.name === name)?.kind ?? "text", value)]),
  )

/**
 * Rows that the batch inserted and a cascade of its own deletes took away again. No stream will ever tell of them, so the
 * verdict does.
 */
const findRemoved = (session: Session, works: ReadonlyArray<Work>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const inserted = works.filter((work) => work.refusal === null && work.isInsert)
    for (const [table, own] of Map.groupBy(inserted, (work) => work.table)) {
      const types = table.key.map((name) => own[0]?.shape.columns.get(name)?.base ?? "text")
      const { from, params } = unnest(
        own.map((work, i) => [...textsOf(table, table.key, work.row), String(i)]),
        table.key.length + 1,
      )
      const rows = yield* session.texts(
        `SELECT u.u${table.key.length} FROM ${from} WHERE NOT EXISTS (SELECT 1 FROM ${qualified(table.name)} t WHERE ${matching(table.key, types)})`,
        params,
      )
      for (const [index] of rows) {
        const work = own[Number(index)]
        if (work !== undefined) work.decision = { write: "nothing", set: {}, verdict: "superseded", disagreements: [] }
      }
    }
  })

/** Writes, and takes back what no link places once all is written; the others are written without it. */
const writePlaced = (session: Session, writing: () => ReadonlyArray<Work>, places: Places, school: string): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const isAsked = ({ table, isDelete, isInsert, written }: Work) =>
      !isDelete && isThrough(table.audience) && (isInsert || Object.keys(table.audience.on).some((name) => written.has(name)))
    while (true) {
      const works = writing()
      if (!works.some(isAsked)) return yield* write(session, works)
      yield* session.execute("SAVEPOINT placed_rows")
      yield* write(session, works)
      const homelessOnes: Array<Work> = []
      for (const [table, own] of Map.groupBy(
        works.filter((work) => work.refusal === null && isAsked(work)),
        (work) => work.table,
      )) {
        const keys = own.map((work) => textsOf(table, table.key, work.row))
        const inside = yield* whichBelong(session, places, table, keys, school)
        homelessOnes.push(...own.filter((_, i) => !inside.has(i)))
      }
      if (homelessOnes.length === 0) {
        yield* session.execute("RELEASE SAVEPOINT placed_rows")
        return
      }
      yield* session.execute("ROLLBACK TO SAVEPOINT placed_rows; RELEASE SAVEPOINT placed_rows")
      // What Postgres refused may have been in the way of a row that is left out now.
      for (const work of works) if (isMovable(work.refusal)) work.refusal = null
      for (const work of homelessOnes) work.refusal = homeless(isThrough(work.table.audience) ? work.table.audience.through : "")
      refuseDependants(works)
    }
  })

const write = (session: Session, works: ReadonlyArray<Work>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const writes = new Map<Work, Write & { needs: Array<Write> }>()
    for (const work of works) {
      const { decision, table, shape, key } = work
      if (decision === null || decision.write === "nothing") continue
      const set = textsOfSet(table, decision.set)
      writes.set(work, { table, shape, kind: decision.write, key, set, steps: stepsOf(work, decision, set), needs: [] })
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

/** The school's single writes, limited to the columns that the decision lets through. */
const stepsOf = (work: Work, decision: Decision, set: Readonly<Record<string, string | null>>): ReadonlyArray<Step> => {
  const { change, table, key } = work
  const { changes, joined } = change
  const last = changes.at(-1)?.id ?? 0
  const kind = decision.write === "nothing" ? "update" : decision.write
  const isPlain = joined.length === 0 && kind === change.op && kind !== "delete" && changes.every((one, i) => one.op === (i === 0 ? kind : "update"))
  if (!isPlain || changes.length === 1) return [{ id: last, kind, key, set }]
  return changes.map((one): Step => {
    const keys =
      one.op === "update" && one.newKey !== undefined ? Object.fromEntries(table.key.map((name, i) => [name, one.newKey?.[i] ?? null])) : {}
    const values = textsOfSet(table, { ...known(one.mine), ...keys })
    return {
      id: one.id,
      kind: one.op,
      key: table.key.map((name, i) => textOf(table, name, one.key[i] ?? null)),
      set: Object.fromEntries(Object.entries(values).filter(([name]) => name in set)),
    }
  })
}

/** Reads written rows of tables with triggers again: what the school sent may not be what stands there. */
const readAltered = (session: Session, works: ReadonlyArray<Work>): Effect.Effect<ReadonlyMap<Work, Outcome["altered"]>, PostgresError> =>
  Effect.gen(function* () {
    const altered = new Map<Work, Outcome["altered"]>()
    const watched = works.filter((work) => work.shape.hasTriggers && work.refusal === null && !work.isDelete)
    for (const [table, own] of Map.groupBy(watched, (work) => work.table)) {
      const shape = own[0]?.shape
      if (shape === undefined) continue
      const types = table.key.map((name) => shape.columns.get(name)?.base ?? "text")
      const columns = table.columns.filter((column) => own.some((work) => work.written.has(column.name)))
      const { from, params } = unnest(
        own.map((work, i) => [...textsOf(table, table.key, work.row), String(i)]),
        table.key.length + 1,
      )
      const rows = yield* session.texts(
        `SELECT u.u${table.key.length}${columns.map((column) => `, t.${ident(column.name)}`).join("")} FROM ${from} JOIN ${qualified(table.name)} AS t ON ${matching(table.key, types)}`,
        params,
      )
      for (const [index, ...cells] of rows) {
        const work = own[Number(index)]
        if (work === undefined) continue
        const differences = columns.flatMap((column, i) => {
          const stored = textToWire(column.kind, cells[i] ?? null)
          const sent = work.row[column.name] ?? null
          return work.written.has(column.name) && stored !== sent ? [{ column: column.name, sent, stored }] : []
        })
        if (differences.length > 0) altered.set(work, differences)
      }
    }
    return altered
  })
