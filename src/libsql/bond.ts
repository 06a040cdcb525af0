/**
 * Rows that other rows place travel with their links: in one batch, whatever its limits say. Of two batches the first would
 * bring a row that belongs to nobody, or a link to a row that does not exist yet; and a row whose link left with the batch
 * before could not be deleted any more.
 */
import * as Effect from "effect/Effect"
import { localKeySql } from "../model/key.ts"
import { isThrough, linkNamesRow, type Table } from "../model/table.ts"
import { isRefused } from "../model/value.ts"
import { readWire, sameRaw } from "./cells.ts"
import { ident, type LibsqlError, type Tx } from "./client.ts"
import type { Captured, Outcome, Values } from "./history.ts"

/** A table and its number in this file. */
interface Numbered {
  readonly tbl: number
  readonly table: Table
}

/** The two sides of a rule; `columns` as positions, in the rule's order. */
interface Side extends Numbered {
  readonly columns: ReadonlyArray<number>
}
export interface Bond {
  readonly row: Side
  readonly link: Side
  readonly linkNamesRow: boolean
}

/** The rules between tables that this file captures. */
export const bondsOf = (tables: ReadonlyArray<Numbered>): ReadonlyArray<Bond> => {
  const byName = new Map(tables.map((one) => [one.table.name, one]))
  const side = (one: Numbered, names: ReadonlyArray<string>): Side => ({
    ...one,
    columns: names.map((name) => one.table.columns.findIndex((column) => column.name === name)),
  })
  return tables.flatMap((one) => {
    const { audience } = one.table
    const link = isThrough(audience) ? byName.get(audience.through) : undefined
    if (!isThrough(audience) || link === undefined) return []
    return [
      {
        row: side(one, Object.keys(audience.on)),
        link: side(link, Object.values(audience.on)),
        linkNamesRow: linkNamesRow(audience, one.table, link.table),
      },
    ]
  })
}

const textsSql = (expressions: ReadonlyArray<string>): string => `json_array(${expressions.map((one) => `CAST(${one} AS TEXT)`).join(", ")})`

/** As `textsSql` prints it; null meets nothing. */
const valueOf = ({ table, columns }: Side, values: Values): string | null => {
  const texts = columns.map((i) => {
    const wire = readWire(table.columns[i]?.kind ?? "text", values[i] ?? null)
    return wire === null || isRefused(wire) ? null : typeof wire === "boolean" ? String(Number(wire)) : String(wire)
  })
  return texts.includes(null) ? null : JSON.stringify(texts)
}

/** Where a side's rows came to a value, or left it: first and last position. */
type Places = Map<string, { first: number; last: number }>

const note = (places: Places, value: string | null, at: number): void => {
  if (value === null) return
  const known = places.get(value)
  if (known === undefined) places.set(value, { first: at, last: at })
  else known.last = at
}

const placesOf = (side: Side, rows: ReadonlyArray<Captured>, outcomes: ReadonlyArray<Outcome>) => {
  const made: Places = new Map()
  const left: Places = new Map()
  for (const [at, row] of rows.entries()) {
    const outcome = outcomes[at]
    if (row.tbl !== side.tbl || outcome === undefined || outcome.kind === "drop" || outcome.kind === "strange") continue
    const base = outcome.kind === "insert" ? null : outcome.base
    const mine = outcome.kind === "delete" ? null : outcome.mine
    if (base !== null && mine !== null && side.columns.every((i) => sameRaw(base[i] ?? null, mine[i] ?? null))) continue
    if (mine !== null) note(made, valueOf(side, mine), at)
    if (base !== null) note(left, valueOf(side, base), at)
  }
  return { made, left }
}

const list = (values: Iterable<string>): string => `[${[...values].join(",")}]`

/** Of these values, those that open writes after `after` bring to the side's table. */
const madeLater = (
  tx: Tx,
  { tbl, table, columns }: Side,
  values: ReadonlyArray<string>,
  after: number,
): Effect.Effect<ReadonlySet<string>, LibsqlError> =>
  Effect.gen(function* () {
    const open = "FROM changes WHERE batch IS NULL AND id > ?1 AND tbl = ?2 AND op IN ('I', 'U')"
    if (values.length === 0 || (yield* tx.all(`SELECT 1 ${open} LIMIT 1`, [after, tbl])).length === 0) return new Set()
    const old = textsSql(columns.map((i) => `v${i}`))
    const now = textsSql(columns.map((i) => `t.${ident(table.columns[i]?.name ?? "")}`))
    const found = yield* tx.all<{ value: string }>(
      `WITH written AS MATERIALIZED (SELECT coalesce(new_key, key) AS key, CASE op WHEN 'U' THEN ${old} END AS old ${open})
       SELECT DISTINCT ${now} AS value FROM ${ident(table.local)} t JOIN written w ON w.key = (${localKeySql(table, "t.")})
        WHERE ${now} IN (SELECT value FROM json_each(?3)) AND w.old IS NOT ${now}`,
      [after, tbl, list(values)],
    )
    return new Set(found.map((row) => row.value))
  })

/** Of these values, those that open writes after `after` take away from the side's table. */
const leftLater = (tx: Tx, { tbl, columns }: Side, values: ReadonlyArray<string>, after: number): Effect.Effect<ReadonlySet<string>, LibsqlError> =>
  Effect.gen(function* () {
    if (values.length === 0) return new Set()
    const value = textsSql(columns.map((i) => `v${i}`))
    const found = yield* tx.all<{ value: string }>(
      `SELECT DISTINCT ${value} AS value FROM changes
        WHERE batch IS NULL AND id > ? AND tbl = ? AND op IN ('D', 'R') AND ${value} IN (SELECT value FROM json_each(?))`,
      [after, tbl, list(values)],
    )
    return new Set(found.map((row) => row.value))
  })

/** Where the rows must not be cut: `[n]` true = the first n rows may not go without the next. */
export const bondedCuts = (
  tx: Tx,
  bonds: ReadonlyArray<Bond>,
  rows: ReadonlyArray<Captured>,
  outcomes: ReadonlyArray<Outcome>,
  isMore: boolean,
): Effect.Effect<ReadonlyArray<boolean>, LibsqlError> =>
  Effect.gen(function* () {
    const spans: Array<number> = new Array(rows.length + 2).fill(0)
    const hold = (from: number, to: number) => {
      spans[from + 1] = (spans[from + 1] ?? 0) + 1
      spans[to + 1] = (spans[to + 1] ?? 0) - 1
    }
    const after = rows.at(-1)?.id ?? 0
    /** What waits on one side for the other, beyond these rows. */
    const holdLater = (alone: Places, later: ReadonlySet<string>) => {
      for (const value of later) hold(alone.get(value)?.first ?? 0, rows.length)
    }
    for (const bond of bonds) {
      const row = placesOf(bond.row, rows, outcomes)
      const link = placesOf(bond.link, rows, outcomes)
      for (const [value, { first, last }] of row.made) {
        const partner = link.made.get(value)
        if (partner === undefined) continue
        // What leaves again meets nothing: of each side the last may be the one that stays.
        if (row.left.has(value) || link.left.has(value)) hold(Math.min(first, partner.first), Math.max(last, partner.last))
        else if (first < partner.first) hold(first, partner.first)
        else if (bond.linkNamesRow) hold(partner.first, first)
      }
      for (const [value, { first, last }] of row.left) {
        const partner = link.left.get(value)
        if (partner !== undefined) hold(Math.min(first, partner.first), Math.max(last, partner.last))
      }
      if (!isMore) continue
      const lone = (own: Places, other: typeof row) => [...own.keys()].filter((value) => !other.made.has(value) || other.left.has(value))
      holdLater(row.made, yield* madeLater(tx, bond.link, lone(row.made, link), after))
      if (bond.linkNamesRow) holdLater(link.made, yield* madeLater(tx, bond.row, lone(link.made, row), after))
      holdLater(row.left, yield* leftLater(tx, bond.link, [...row.left.keys()], after))
      holdLater(link.left, yield* leftLater(tx, bond.row, [...link.left.keys()], after))
    }
    let open = 0
    return spans.slice(0, rows.length + 1).map((difference) => {
      open += difference
      return open > 0
    })
  })
