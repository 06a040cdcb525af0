/**
 * Head office's side of each change: its rows, locked until the transaction ends, whether they belong to the school, and
 * which of its values only Postgres can put in order.
 */
import * as Effect from "effect/Effect"
import { isThrough, ruleOf, type Table } from "../model/table.ts"
import { ident, type PostgresError, qualified, type Session } from "../postgres/client.ts"
import { placement, textOf, textsOf } from "./authorise.ts"
import { textToWire } from "./canonical.ts"
import { matching, tupleText, unnest } from "./lists.ts"
import { type Compared, whichGreater } from "./order.ts"
import { chainOf, lockLinks, type Places, whichBelong } from "./place.ts"
import type { Row } from "./resolve.ts"
import type { Work } from "./work.ts"

/** Locks and reads head office's rows: one statement per table, links before the rows that they place, rows in key order. */
export const lock = (session: Session, works: ReadonlyArray<Work>, places: Places): Effect.Effect<void, PostgresError> =>
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
      const rows = yield* session.texts(
        `SELECT ${time}, t.xmin::text, ${columns.map((column) => `t.${ident(column.name)}`).join(", ")} FROM ${from} JOIN ${qualified(table.name)} AS t ON ${matching(shape, table.key)}
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
export const findInside = (session: Session, works: ReadonlyArray<Work>, places: Places, school: string): Effect.Effect<void, PostgresError> =>
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
export const compare = (session: Session, works: ReadonlyArray<Work>): Effect.Effect<void, PostgresError> =>
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
