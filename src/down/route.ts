/**
 * Keeps the rows of `through` tables where their links say, inside the feed's open append. A row that is written is placed
 * by the links that stand there at that moment; a link that comes, goes or moves only notes the value that it places by.
 * `settle` then looks at the rows of the noted values, links before the rows that they place in turn: at the end of a txn, or
 * of several, so that what happened in between leaves no trace.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError } from "../libsql/client.ts"
import type { Cell } from "../model/value.ts"
import { audienceOf, meetingValue, NOBODY, placed, type Route, type Side } from "./audience.ts"
import { tokenize } from "./body.ts"
import type { Append, FeedTable } from "./entry.ts"
import { keepWas } from "./held.ts"
import type { OpenAppend } from "./open-append.ts"

/** Rows that are looked at together. */
const ROWS_AT_ONCE = 5_000
const ROW = 0
const LINK = 1

/** A row with the audiences that it should have. */
interface Wanted {
  readonly key: string
  readonly audiences: ReadonlyArray<number>
}

const same = (a: ReadonlyArray<number>, b: ReadonlyArray<number>): boolean => a.length === b.length && a.every((no) => b.includes(no))

export type Routing = ReturnType<typeof makeRouting>

export const makeRouting = (open: OpenAppend) => {
  const { tx } = open
  let isTouched = false

  const touchValues = (rule: number, values: Iterable<string>): Effect.Effect<void, LibsqlError> => {
    const rows = [...new Set(values)].map((value): ReadonlyArray<Cell> => [BigInt(rule), value])
    if (rows.length > 0) isTouched = true
    return Effect.asVoid(tx.many("INSERT OR IGNORE INTO touched (rule, value) VALUES (?, ?)", rows))
  }

  /** Live audiences by key. */
  const liveOf = (table: FeedTable, keys: ReadonlyArray<string>): Effect.Effect<ReadonlyMap<string, ReadonlyArray<number>>, LibsqlError> =>
    Effect.map(
      keys.length === 0
        ? Effect.succeed([])
        : tx.all<{ key: string; audience: number }>(
            `SELECT e.key, e.audience FROM json_each(?) j CROSS JOIN entry e ON e.tbl = ? AND e.key = j.value WHERE e.body IS NOT NULL`,
            [JSON.stringify(keys), table.id],
          ),
      (rows) => {
        const live = new Map<string, Array<number>>()
        for (const { key, audience } of rows) {
          const some = live.get(key)
          if (some === undefined) live.set(key, [audience])
          else some.push(audience)
        }
        return live
      },
    )

  /** Audiences that the links give, by meeting value; a value without a link is missing. */
  const audiencesBy = (own: NonNullable<Route["own"]>, values: Iterable<string | null>) =>
    Effect.gen(function* () {
      const distinct = [...new Set(values)].filter((value) => value !== null)
      const found = new Map<string, Array<number>>()
      if (distinct.length === 0) return found
      const rows = yield* tx.all<{ value: string; audience: number }>(
        `SELECT DISTINCT j.value AS value, e.audience FROM json_each(?1) j CROSS JOIN tie t ON t.rule = ?2 AND t.side = ${LINK} AND t.value = j.value
           CROSS JOIN entry e ON e.tbl = ?3 AND e.key = t.key WHERE e.body IS NOT NULL AND e.audience <> ${NOBODY}`,
        [JSON.stringify(distinct), own.rule, own.link],
      )
      for (const { value, audience } of rows) {
        const some = found.get(value)
        if (some === undefined) found.set(value, [audience])
        else some.push(audience)
      }
      return found
    })

  /** Remembers by what the rows meet others; answers the former and the new value of each. */
  const tie = (side: Side, kind: typeof ROW | typeof LINK, rows: ReadonlyArray<Append>, tokens: ReadonlyArray<ReadonlyArray<string> | null>) =>
    Effect.gen(function* () {
      const known = rows.filter((row) => !row.isInsert).map((row) => row.key)
      const before = new Map(
        known.length === 0
          ? []
          : (yield* tx.all<{ key: string; value: string }>(
              `SELECT t.key, t.value FROM json_each(?) j CROSS JOIN tie t ON t.rule = ? AND t.side = ${kind} AND t.key = j.value`,
              [JSON.stringify(known), side.rule],
            )).map(({ key, value }) => [key, value] as const),
      )
      const puts: Array<ReadonlyArray<Cell>> = []
      const removals: Array<ReadonlyArray<Cell>> = []
      const values = rows.map(({ key }, i) => {
        const own = tokens[i]
        const value = own == null ? null : meetingValue(side, own)
        const former = before.get(key) ?? null
        if (value !== null && value !== former) puts.push([BigInt(side.rule), BigInt(kind), key, value])
        else if (value === null && former !== null) removals.push([BigInt(side.rule), BigInt(kind), key])
        return { value, former }
      })
      yield* tx.many("DELETE FROM tie WHERE rule = ? AND side = ? AND key = ?", removals)
      yield* tx.many(
        "INSERT INTO tie (rule, side, key, value) VALUES (?, ?, ?, ?) ON CONFLICT (rule, side, key) DO UPDATE SET value = excluded.value",
        puts,
      )
      return values
    })

  /** Where rows of one routed table belong now; notes what they, as links, place elsewhere. */
  const place = Effect.fnUntraced(function* (table: FeedTable, rows: ReadonlyArray<Append>) {
    const route = open.routes.get(table.id)
    if (route === undefined) return rows
    const tokens = rows.map(({ body }) => (body === null ? null : tokenize(body)))
    const live =
      route.places.length > 0 || open.frozen.has(table.id)
        ? yield* liveOf(
            table,
            rows.map(({ key }) => key),
          )
        : new Map<string, ReadonlyArray<number>>()
    let audiences: ReadonlyArray<ReadonlyArray<number>>
    if (route.own === null) audiences = rows.map((row) => (row.body === null ? [] : [open.numberOf(row.audience)]))
    else {
      const values = yield* tie(route.own, ROW, rows, tokens)
      if (open.frozen.has(table.id)) audiences = rows.map(({ key, body }) => (body === null ? [] : (live.get(key) ?? [NOBODY])))
      else {
        const found = yield* audiencesBy(
          route.own,
          values.map(({ value }) => value),
        )
        audiences = rows.map(({ body }, i) => (body === null ? [] : placed(found.get(values[i]?.value ?? "") ?? [])))
      }
    }
    for (const side of route.places) {
      const values = yield* tie(side, LINK, rows, tokens)
      const noted = new Set<string>()
      for (const [i, { value, former }] of values.entries()) {
        const stays = value === former && same(audiences[i] ?? [], live.get(rows[i]?.key ?? "") ?? [])
        if (stays) continue
        if (value !== null) noted.add(value)
        if (former !== null) noted.add(former)
      }
      yield* touchValues(side.rule, noted)
    }
    return rows.map(
      (row, i): Append =>
        row.body === null ? row : { ...row, key: row.key, body: row.body, bytes: null, audience: { numbers: audiences[i] ?? [NOBODY] } },
    )
  })

  /** Rows of a table that was emptied meet nothing any more. */
  const clear = Effect.fnUntraced(function* (table: FeedTable) {
    const route = open.routes.get(table.id)
    if (route === undefined) return
    if (route.own !== null) yield* tx.run(`DELETE FROM tie WHERE rule = ? AND side = ${ROW}`, [table.id])
    for (const { rule } of route.places) {
      const noted = yield* tx.run(`INSERT OR IGNORE INTO touched (rule, value) SELECT rule, value FROM tie WHERE rule = ? AND side = ${LINK}`, [rule])
      if (noted > 0) isTouched = true
      yield* tx.run(`DELETE FROM tie WHERE rule = ? AND side = ${LINK}`, [rule])
    }
  })

  /** Gives rows the audiences that they should have; their bodies stand in the feed. */
  const move = Effect.fnUntraced(function* (table: FeedTable, wanted: ReadonlyArray<Wanted>) {
    const live = yield* liveOf(
      table,
      wanted.map(({ key }) => key),
    )
    const id = BigInt(table.id)
    const cls = BigInt(open.classOf(table))
    const adds: Array<ReadonlyArray<Cell>> = []
    const removals: Array<{ readonly no: number; readonly key: string; readonly seq: bigint }> = []
    const moved: Array<string> = []
    for (const { key, audiences } of wanted) {
      const present = live.get(key)
      if (present === undefined || same(present, audiences)) continue
      const seq = BigInt(open.nextSeq())
      moved.push(key)
      for (const no of audiences) {
        if (present.includes(no)) continue
        adds.push([BigInt(no), cls, seq, id, key, BigInt(open.heldBy(no))])
        open.touch(no)
      }
      for (const no of present) {
        if (audiences.includes(no)) continue
        removals.push({ no, key, seq })
        open.touch(no)
      }
    }
    yield* tx.many(
      `INSERT INTO entry (audience, class, seq, tbl, key, body, at, born)
       SELECT ?1, ?2, ?3, tbl, key, body, at, ?3 FROM entry WHERE tbl = ?4 AND key = ?5 AND body IS NOT NULL LIMIT 1
       ON CONFLICT (tbl, key, audience) DO UPDATE SET class = excluded.class, seq = excluded.seq, body = excluded.body, at = excluded.at,
         ${keepWas("?6", "excluded.seq")}`,
      adds,
    )
    // Whoever got it only in a txn that goes on never hears of it; nobody needs no tombstone.
    yield* tx.many(
      `DELETE FROM entry WHERE tbl = ? AND key = ? AND audience = ? AND (born > ? OR audience = ${NOBODY})`,
      removals.map(({ no, key }) => [id, key, BigInt(no), BigInt(open.ended)]),
    )
    yield* tx.many(
      `UPDATE entry SET ${keepWas("?6", "?1")}, body = NULL, seq = ?1, at = ?2 WHERE tbl = ?3 AND key = ?4 AND audience = ?5`,
      removals.map(({ no, key, seq }) => [seq, BigInt(open.now), id, key, BigInt(no), BigInt(open.heldBy(no))]),
    )
    if (moved.length === 0) return
    for (const { rule } of open.routes.get(table.id)?.places ?? []) {
      const noted = yield* tx.run(
        `INSERT OR IGNORE INTO touched (rule, value) SELECT t.rule, t.value FROM json_each(?) j CROSS JOIN tie t ON t.rule = ? AND t.side = ${LINK} AND t.key = j.value`,
        [JSON.stringify(moved), rule],
      )
      if (noted > 0) isTouched = true
    }
  })

  /** Looks at every row whose links changed. */
  const settle = Effect.gen(function* () {
    if (!isTouched) return
    const byLevel = [...open.routes].filter(([, route]) => route.own !== null).sort(([, a], [, b]) => a.level - b.level)
    for (const [id, { own }] of byLevel) {
      const table = open.tables.get(id)
      if (own === null || table === undefined || open.frozen.has(id)) continue
      let last: { readonly key: string; readonly value: string } = { key: "", value: "" }
      for (;;) {
        const rows: ReadonlyArray<{ readonly key: string; readonly value: string }> = yield* tx.all<{ key: string; value: string }>(
          `SELECT c.key, c.value FROM touched t CROSS JOIN tie c INDEXED BY tie_value ON c.rule = t.rule AND c.side = ${ROW} AND c.value = t.value
            WHERE t.rule = ?1 AND t.value >= ?2 AND (t.value, c.key) > (?2, ?3) ORDER BY t.value, c.key LIMIT ${ROWS_AT_ONCE}`,
          [id, last.value, last.key],
        )
        const found = yield* audiencesBy(
          own,
          rows.map(({ value }) => value),
        )
        yield* move(
          table,
          rows.map(({ key, value }) => ({ key, audiences: placed(found.get(value) ?? []) })),
        )
        const end = rows.at(-1)
        if (end === undefined || rows.length < ROWS_AT_ONCE) break
        last = end
      }
    }
    yield* tx.run("DELETE FROM touched")
    isTouched = false
  })

  /** The rows of a table by key, some at a time. */
  const eachRow = <A>(id: number, take: (rows: ReadonlyArray<{ readonly key: string; readonly body: string }>) => Effect.Effect<A, LibsqlError>) =>
    Effect.gen(function* () {
      for (let after: string | undefined = ""; after !== undefined; ) {
        const rows: ReadonlyArray<{ readonly key: string; readonly body: string }> = yield* tx.all<{ key: string; body: string }>(
          `SELECT key, body FROM entry WHERE tbl = ? AND key > ? AND body IS NOT NULL GROUP BY key ORDER BY key LIMIT ${ROWS_AT_ONCE}`,
          [id, after],
        )
        yield* take(rows)
        after = rows.length < ROWS_AT_ONCE ? undefined : rows.at(-1)?.key
      }
    })

  const tieAll = (side: Side, kind: typeof ROW | typeof LINK, rows: ReadonlyArray<{ readonly key: string; readonly body: string }>) => {
    const values = rows.map(({ key, body }) => ({ key, value: meetingValue(side, tokenize(body)) }))
    return Effect.as(
      tx.many(
        "INSERT OR REPLACE INTO tie (rule, side, key, value) VALUES (?, ?, ?, ?)",
        values.flatMap(({ key, value }) => (value === null ? [] : [[BigInt(side.rule), BigInt(kind), key, value]])),
      ),
      values,
    )
  }

  /** The table has another rule than its rows were placed by: all of them are placed anew, from the feed alone. */
  const reroute = Effect.fnUntraced(function* (table: FeedTable) {
    const own = open.routes.get(table.id)?.own ?? null
    yield* tx.run("DELETE FROM tie WHERE rule = ?", [table.id])
    if (own === null) {
      yield* eachRow(table.id, (rows) =>
        move(
          table,
          rows.map(({ key, body }) => ({ key, audiences: [open.numberOf(audienceOf(table.audienceAt, tokenize(body)))] })),
        ),
      )
      return
    }
    const link = open.routes.get(own.link)?.places.find(({ rule }) => rule === table.id)
    if (link !== undefined) yield* eachRow(own.link, (rows) => tieAll(link, LINK, rows))
    yield* eachRow(table.id, (rows) =>
      Effect.gen(function* () {
        const values = yield* tieAll(own, ROW, rows)
        const found = yield* audiencesBy(
          own,
          values.map(({ value }) => value),
        )
        yield* move(
          table,
          values.map(({ key, value }) => ({ key, audiences: placed(found.get(value ?? "") ?? []) })),
        )
      }),
    )
  })

  return { place, clear, settle, reroute }
}
