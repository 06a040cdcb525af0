/**
 * Whether a school may have head office's row be what it decides: its decision about a record is a write like a pushed one,
 * and may say what no push has been asked about, as a value that lost.
 */
import * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"
import type { PostgresError, Session } from "../postgres/client.ts"
import { checkReach, checkReferences, notYours, placement, type Pointing, type Refusal, textsOf } from "./authorise.ts"
import { readKnownShapes } from "./known.ts"
import { readMade } from "./made.ts"
import { type Places, whichBelong } from "./place.ts"
import { isPlacedLate, notPlaced, restless } from "./placed.ts"
import { DecideRefused } from "./refused.ts"
import type { Row } from "./resolve.ts"
import type { Place } from "./rows.ts"
import { readReferencing } from "./shape.ts"

const answer = (refusal: Refusal | null): Effect.Effect<void, DecideRefused> =>
  refusal === null ? Effect.void : Effect.fail(new DecideRefused({ code: "not_possible", message: `${refusal.reason}: ${refusal.detail}` }))

const belongs = (session: Session, places: Places, table: Table, row: Row, school: string): Effect.Effect<boolean, PostgresError> =>
  Effect.map(whichBelong(session, places, table, [textsOf(table, table.key, row)], school), (inside) => inside.has(0))

/** Whether the row belongs to the school. */
export const isOfSchool = (
  session: Session,
  tables: ReadonlyMap<string, Table>,
  school: string,
  table: Table,
  row: Row,
): Effect.Effect<boolean, PostgresError> =>
  Effect.flatMap(readKnownShapes(session, tables, [...tables.keys()]), (shapes) => belongs(session, { tables, shapes }, table, row, school))

/** Writes with `write` what the school wants; `row`: the columns to be written, null = no row. In a savepoint of the caller. */
export const writeAsSchool = <A>(
  session: Session,
  tables: ReadonlyMap<string, Table>,
  school: string,
  { table, key }: Place,
  current: Row | null,
  row: Row | null,
  write: Effect.Effect<A, PostgresError>,
): Effect.Effect<void, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const shapes = yield* readKnownShapes(session, tables, [...tables.keys()])
    const places: Places = { tables, shapes }
    if (current !== null && !(yield* belongs(session, places, table, current, school))) return yield* answer(notYours)
    if (row === null) {
      const texts = textsOf(table, table.key, Object.fromEntries(table.key.map((name, i) => [name, key[i] ?? null])))
      const leaving = { table, key: texts, isDelete: true, written: new Set<string>(), refusal: null as Refusal | null }
      if (table.audience === "all") return yield* answer(notYours)
      yield* checkReach(session, [leaving], yield* readReferencing(session, [...tables.keys()]), places, school)
      yield* answer(leaving.refusal)
      return yield* Effect.asVoid(write)
    }
    const whole = { ...current, ...row }
    yield* answer(placement(table, whole, school))
    const written = new Set(Object.keys(row))
    const pointing: Pointing = {
      ...{ table, row: whole, written, made: {}, isInsert: current === null },
      ...{ at: Number.POSITIVE_INFINITY, refusal: null, needs: new Set() },
    }
    const check = Effect.andThen(
      checkReferences(session, [pointing], places, school),
      Effect.suspend(() => answer(pointing.refusal)),
    )
    yield* check
    yield* session.execute("SAVEPOINT written_row")
    yield* write
    pointing.made = (yield* readMade(session, [pointing], places)).get(pointing) ?? {}
    if (Object.keys(pointing.made).length > 0) {
      // What Postgres made of it is judged by what stood there before.
      yield* session.execute("ROLLBACK TO SAVEPOINT written_row")
      yield* check
      yield* write
      if ((yield* readMade(session, [pointing], places)).size > 0) return yield* answer(restless)
    }
    yield* session.execute("RELEASE SAVEPOINT written_row")
    if (isPlacedLate(table, places.shapes.get(table.name), pointing.isInsert, written) && !(yield* belongs(session, places, table, whole, school)))
      return yield* answer(notPlaced(table))
  })
