/**
 * What a gap hid (reconcile.ts), told by the rows as they stood when capture began again: written into `changes` where it is
 * known what they were before, kept aside and recorded where it is not.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { lookAnew } from "../libsql/changes.ts"
import { readWire, safely } from "../libsql/cells.ts"
import { ident, type LibsqlFile, type Tx } from "../libsql/client.ts"
import { type Gap, RESERVED_IDS } from "../libsql/gap.ts"
import { wireKeyOf } from "../libsql/prints.ts"
import { DIFFERS } from "../model/choice.ts"
import { localKeySql } from "../model/key.ts"
import { type Cell, isRefused, type Refused, type Wire, wireToCell } from "../model/value.ts"
import type { Target } from "./delivery.ts"

/** Rows of one gap that are recorded without it being known what they were. */
const MAX_DOUBTS = 1_000
/** Rows of one write transaction. */
export const CHUNK = 200

export type Values = Readonly<Record<string, Wire | Refused>>

export const rowsOfKeys = (keys: ReadonlyArray<string>) => `(VALUES ${keys.map((key) => `(${key})`).join(", ")})`

/** By local key the raw cells of rows as they stood when capture began again. */
const statesAfterGap = (tx: Tx, { table, tbl }: Target, keys: ReadonlyArray<string>, firstId: number) =>
  Effect.gen(function* () {
    const states = new Map<string, ReadonlyArray<Cell>>()
    const columns = table.columns.map(({ name }) => safely(`t.${ident(name)}`)).join(", ")
    const key = table.key.map((name) => `t.${ident(name)}`).join(", ")
    for (const [local, ...cells] of yield* tx.values(
      `SELECT ${localKeySql(table, "t.")}, ${columns} FROM ${ident(table.local)} t WHERE (${key}) IN ${rowsOfKeys(keys)}`,
    ))
      states.set(String(local), cells)
    const olds = table.columns.map((_, i) => safely(`c.v${i}`)).join(", ")
    for (const [local, op, ...cells] of yield* tx.values(
      `SELECT c.key, c.op, ${olds} FROM changes c WHERE c.id IN (
         SELECT min(id) FROM changes WHERE tbl = ? AND batch IS NULL AND id >= ? AND key IN (SELECT value FROM json_each(?)) GROUP BY key)`,
      [tbl, firstId, JSON.stringify(keys)],
    )) {
      if (op === "I") states.delete(String(local))
      else states.set(String(local), cells)
    }
    return states
  })

const wiresOf = ({ table }: Target, cells: ReadonlyArray<Cell>): Values =>
  Object.fromEntries(table.columns.map(({ name, kind }, i) => [name, readWire(kind, cells[i] ?? null)]))

const same = (left: Wire | Refused | undefined, right: Wire | Refused | undefined) => JSON.stringify(left ?? null) === JSON.stringify(right ?? null)

/** Writes what a gap hid into `changes`; the number of changes. */
export const captureGap = (file: LibsqlFile, gap: Gap, target: Target, known: ReadonlyMap<string, Values | null>, mayDelete: boolean) =>
  Effect.gen(function* () {
    const { table, tbl } = target
    const all = [...known.keys()]
    const compared = table.columns.filter((column) => !column.generated && !gap.lost.includes(column.name))
    let found = 0
    for (let i = 0; i < all.length; i += CHUNK) {
      const keys = all.slice(i, i + CHUNK)
      found += yield* file.write((tx) =>
        Effect.gen(function* () {
          const states = yield* statesAfterGap(tx, target, keys, gap.firstId)
          const [last] = yield* tx.all<{ id: number }>("SELECT coalesce(max(id), ?1 - 1) AS id FROM changes WHERE id >= ?1 AND id < ?2", [
            gap.firstId,
            gap.firstId + RESERVED_IDS,
          ])
          let id = last?.id ?? gap.firstId - 1
          const rows: Array<Array<Cell>> = []
          for (const key of keys) {
            const before = known.get(key) ?? null
            const cells = states.get(key)
            const after = cells === undefined ? null : wiresOf(target, cells)
            const isSame = before === null ? after === null : after !== null && compared.every(({ name }) => same(before[name], after[name]))
            if (isSame || (after === null && !mayDelete)) continue
            const op = before === null ? "I" : after === null ? "D" : "U"
            // Columns that were gone are empty here and were not emptied by anybody.
            const from = (name: string): Wire | Refused => (op === "I" || gap.lost.includes(name) ? after?.[name] : before?.[name]) ?? null
            const old = table.columns.map(({ name, kind }): Cell => {
              const value = op === "I" && !table.key.includes(name) ? null : from(name)
              return isRefused(value) ? null : wireToCell(kind, value)
            })
            rows.push([BigInt(++id), BigInt(tbl), op, key, BigInt(gap.at), ...old])
          }
          if (rows.length > 0) {
            const columns = table.columns.map((_, n) => `v${n}`).join(", ")
            yield* tx.many(`INSERT INTO changes (id, tbl, op, key, at, ${columns}) VALUES (?, ?, ?, ?, ?${", ?".repeat(table.columns.length)})`, rows)
            yield* lookAnew(tx)
          }
          return rows.length
        }),
      )
    }
    return found
  })

/** What stood in rows that head office changed meanwhile, before its values are shown over them. */
export const keepReplaced = (file: LibsqlFile, target: Target, keys: ReadonlyArray<string>, firstId: number, now: number) =>
  Effect.forEach(
    Array.from({ length: Math.ceil(keys.length / CHUNK) }, (_, i) => keys.slice(i * CHUNK, (i + 1) * CHUNK)),
    (some) =>
      file.write((tx) =>
        Effect.gen(function* () {
          const states = yield* statesAfterGap(tx, target, some, firstId)
          const rows = [...states].map(([key, cells]) => [target.tbl, key, JSON.stringify(wiresOf(target, cells)), now])
          yield* tx.run(
            "INSERT INTO schoolbus_replaced (tbl, key, was, at) SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?)",
            [JSON.stringify(rows)],
          )
        }),
      ),
    { discard: true },
  )

/** Has rows recorded of which nobody can tell whether a program wrote them in the gap; by local key with head office's present row. */
export const tellDoubts = (file: LibsqlFile, gap: Gap, target: Target, unknown: ReadonlyMap<string, Values | null>, mayDelete: boolean) =>
  Effect.gen(function* () {
    const { table, tbl } = target
    const compared = table.columns.filter((column) => !column.generated && !gap.lost.includes(column.name))
    let told = 0
    for (let i = 0; i < unknown.size && told < MAX_DOUBTS; i += CHUNK) {
      const keys = [...unknown.keys()].slice(i, i + CHUNK)
      told += yield* file.write((tx) =>
        Effect.gen(function* () {
          const states = yield* statesAfterGap(tx, target, keys, gap.firstId)
          const touched = yield* tx.all<{ key: string }>(
            "SELECT DISTINCT key FROM changes WHERE tbl = ? AND key IN (SELECT value FROM json_each(?))",
            [tbl, JSON.stringify(keys)],
          )
          // What was captured since speaks for itself.
          const captured = new Set(touched.map(({ key }) => key))
          const doubts = keys.flatMap((key) => {
            const wire = wireKeyOf(table, key)
            const theirs = unknown.get(key) ?? null
            const cells = states.get(key)
            const mine = cells === undefined ? null : wiresOf(target, cells)
            const isSame =
              mine === null ? theirs === null || !mayDelete : theirs !== null && compared.every(({ name }) => same(theirs[name], mine[name]))
            if (isSame || wire === null || captured.has(key)) return []
            const values = mine === null ? null : Object.fromEntries(Object.entries(mine).filter(([, value]) => !isRefused(value)))
            return [JSON.stringify({ key: JSON.parse(wire) as ReadonlyArray<Wire>, mine: values })]
          })
          const at = new Date(yield* Clock.currentTimeMillis).toISOString()
          yield* tx.many(
            `INSERT INTO schoolbus_requests (id, school, action, target, choice, "by", at, status)
             SELECT ?, coalesce(school, ''), ?, ?, ?, ?, ?, 'sent' FROM schoolbus_state`,
            doubts.map((doubt) => [crypto.randomUUID(), DIFFERS, table.name, doubt, "the node", at]),
          )
          return doubts.length
        }),
      )
    }
    if (told >= MAX_DOUBTS)
      yield* Effect.logWarning(
        `table ${table.name}: ${unknown.size} rows differ from head office's; ${told} are recorded as conflicts, head office's rows stand`,
      )
  })
