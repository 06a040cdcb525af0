/** Writing pulled rows into the school's tables, in bulk; what a constraint or a changed table refuses is told, never thrown. */
import * as Effect from "effect/Effect"
import { readWire, safely } from "../libsql/cells.ts"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"
import type { RowFailure } from "../libsql/messages.ts"
import { localKeySql } from "../model/key.ts"
import type { Table } from "../model/table.ts"
import { bytesToHex, type Cell, isRefused, type Kind, type Wire, wireToCell } from "../model/value.ts"
import { idOf, type Item, type Row, type Target } from "./delivery.ts"

export interface Refused {
  readonly item: Item
  readonly code: string
  readonly error: string
}

/** Keys of one lookup statement. */
const KEYS_AT_ONCE = 2_000
/** After so many rounds of a swap that does not come out, the rest waits behind. */
const SWAP_ROUNDS = 4

/** OR ABORT: a table that a program made may say `ON CONFLICT REPLACE`, which would delete another row. */
const upsertSql = (table: Table, columns: ReadonlyArray<string>, rows: number): string => {
  const set = columns.filter((name) => !table.key.includes(name)).map((name) => `${ident(name)} = excluded.${ident(name)}`)
  return `INSERT OR ABORT INTO ${ident(table.local)} (${columns.map(ident).join(", ")}) VALUES ${Array(rows)
    .fill(`(${columns.map(() => "?").join(", ")})`)
    .join(", ")}
    ON CONFLICT (${table.key.map(ident).join(", ")}) DO ${set.length === 0 ? "NOTHING" : `UPDATE SET ${set.join(", ")}`}`
}

const whereKey = (table: Table): string => table.key.map((name) => `${ident(name)} = ?`).join(" AND ")
const deleteSql = (table: Table): string => `DELETE FROM ${ident(table.local)} WHERE ${whereKey(table)}`
const updateSql = (table: Table, columns: ReadonlyArray<string>): string =>
  `UPDATE OR ABORT ${ident(table.local)} SET ${columns.map((name) => `${ident(name)} = ?`).join(", ")} WHERE ${whereKey(table)}`

/** A statement that does not fit the file (a program dropped the table or a column) refuses its rows, not the cut. */
const refusingAll = (rows: number, failures: Effect.Effect<ReadonlyArray<RowFailure>, LibsqlError>): typeof failures =>
  Effect.catch(failures, (error) =>
    error.code === "SQLITE_ERROR"
      ? Effect.succeed(Array.from({ length: rows }, (_, index) => ({ index, code: error.code, message: error.message })))
      : Effect.fail(error),
  )

const grouped = <A>(all: ReadonlyArray<A>, by: (one: A) => string): ReadonlyArray<ReadonlyArray<A>> => {
  const groups = new Map<string, Array<A>>()
  for (const one of all) {
    const id = by(one)
    const group = groups.get(id)
    if (group === undefined) groups.set(id, [one])
    else group.push(one)
  }
  return [...groups.values()]
}

/** Items of one table with the same columns; those of one page share their list of columns. */
const alike = (items: ReadonlyArray<Item>): ReadonlyArray<ReadonlyArray<Item>> => {
  const groups = new Map<string, Array<Item>>()
  let last: Item | undefined
  let group: Array<Item> = []
  for (const item of items) {
    if (last === undefined || item.target !== last.target || item.columns !== last.columns) {
      const id = `${item.target.tbl}\0${item.columns.join("\0")}`
      group = groups.get(id) ?? []
      groups.set(id, group)
      last = item
    }
    group.push(item)
  }
  return [...groups.values()]
}

/** All items of a table that have the same columns go together. */
const writeAll = (
  items: ReadonlyArray<Item>,
  write: (group: ReadonlyArray<Item>, target: Target, columns: ReadonlyArray<string>) => Effect.Effect<ReadonlyArray<RowFailure>, LibsqlError>,
): Effect.Effect<ReadonlyArray<Refused>, LibsqlError> =>
  Effect.gen(function* () {
    const refused: Array<Refused> = []
    for (const group of alike(items)) {
      const { target, columns } = group[0] as Item
      const failures = yield* refusingAll(group.length, write(group, target, columns))
      for (const { index, code, message } of failures) refused.push({ item: group[index] as Item, code, error: message })
    }
    return refused
  })

const kindsOf = (target: Target, columns: ReadonlyArray<string>): ReadonlyArray<Kind> => columns.map((name) => target.kinds.get(name) ?? "text")
const removeAll = (tx: Tx, items: ReadonlyArray<Item>) =>
  writeAll(items, (group, { table }) =>
    tx.many(
      deleteSql(table),
      group.map((item) => item.keyCells),
    ),
  )
const upsertAll = (tx: Tx, items: ReadonlyArray<Item>) =>
  writeAll(items, (group, target, columns) =>
    tx.manyWires(
      (rows) => upsertSql(target.table, columns, rows),
      kindsOf(target, columns),
      group.map((item) => item.values ?? []),
    ),
  )

/** Rows of tables that do not fit are refused unseen. */
const apart = (all: ReadonlyArray<Item>): { readonly items: ReadonlyArray<Item>; readonly unfit: ReadonlyArray<Refused> } => ({
  items: all.filter(({ target }) => target.unfit === null),
  unfit: all.flatMap((item) => (item.target.unfit === null ? [] : [{ item, code: "UNFIT", error: item.target.unfit }])),
})

/** Sets the named columns of rows that exist; the others are not touched. */
export const updateRows = (tx: Tx, all: ReadonlyArray<Item>): Effect.Effect<ReadonlyArray<Refused>, LibsqlError> => {
  const { items, unfit } = apart(all)
  const written = writeAll(items, (group, target, columns) =>
    tx.many(
      updateSql(target.table, columns),
      group.map((item) => [...kindsOf(target, columns).map((kind, i) => wireToCell(kind, item.values?.[i] ?? null)), ...item.keyCells]),
    ),
  )
  return Effect.map(written, (refused) => [...unfit, ...refused])
}

export interface Current {
  /** As `safely` reads them, in column order: same value, same bytes. */
  readonly raw: ReadonlyArray<Cell>
  readonly row: Row
}

const keyJson = (cells: ReadonlyArray<Cell>): string =>
  `[${cells.map((cell) => (typeof cell === "bigint" ? String(cell) : JSON.stringify(cell instanceof Uint8Array ? bytesToHex(cell) : cell))).join(",")}]`

/** A column equals the i-th value of a row that `keyJson` wrote. */
const equals = (column: string, kind: Kind | undefined, i: number): string =>
  `${column} = ${kind === "bytea" ? `unhex(j.value ->> ${i})` : `j.value ->> ${i}`}`

/** The rows as they stand, in the order of the keys; undefined = none. */
export const readRows = (
  tx: Tx,
  { table, keyKinds }: Target,
  keys: ReadonlyArray<ReadonlyArray<Cell>>,
): Effect.Effect<ReadonlyArray<Current | undefined>, LibsqlError> =>
  Effect.gen(function* () {
    const found: Array<Current | undefined> = keys.map(() => undefined)
    const on = table.key
      .map((name, i) => `t.${ident(name)} = ${keyKinds[i] === "bytea" ? `unhex(j.value ->> ${i})` : `j.value ->> ${i}`}`)
      .join(" AND ")
    const sql = `SELECT j.key, ${table.columns.map((column) => safely(`t.${ident(column.name)}`)).join(", ")}
      FROM json_each(?) j CROSS JOIN ${ident(table.local)} t ON ${on}`
    for (let from = 0; from < keys.length; from += KEYS_AT_ONCE) {
      const rows = yield* tx
        .values(sql, [
          `[${keys
            .slice(from, from + KEYS_AT_ONCE)
            .map(keyJson)
            .join(",")}]`,
        ])
        .pipe(Effect.catch((error) => (error.code === "SQLITE_ERROR" ? Effect.succeed([]) : Effect.fail(error))))
      for (const [index, ...raw] of rows) {
        const row: Record<string, Wire> = {}
        table.columns.forEach((column, i) => {
          const wire = readWire(column.kind, raw[i] ?? null)
          // A value that has no wire form can only be the school's own: it never equals the hub's.
          row[column.name] = isRefused(wire) ? `\0${wire.hex}` : wire
        })
        found[from + Number(index)] = { raw, row }
      }
    }
    return found
  })

const isWhole = (item: Item): boolean => item.columns.length >= item.target.table.columns.length

/** Items that name only some columns, completed with what the row holds: what an INSERT leaves out it would empty. */
const complete = (tx: Tx, items: ReadonlyArray<Item>): Effect.Effect<ReadonlyArray<Item>, LibsqlError> =>
  Effect.gen(function* () {
    if (items.every(isWhole)) return items
    const whole = items.filter(isWhole)
    for (const group of grouped(
      items.filter((item) => !isWhole(item)),
      (item) => String(item.target.tbl),
    )) {
      const target = (group[0] as Item).target
      const current = yield* readRows(
        tx,
        target,
        group.map((item) => item.keyCells),
      )
      group.forEach((item, i) => {
        const row = current[i]?.row
        const rest =
          row === undefined ? [] : Object.entries(row).filter(([name, value]) => !item.columns.includes(name) && !String(value).startsWith("\0"))
        whole.push({
          ...item,
          columns: [...item.columns, ...rest.map(([name]) => name)],
          values: [...(item.values ?? []), ...rest.map(([, value]) => value)],
        })
      })
    }
    return whole
  })

const isUnique = ({ code }: Refused): boolean => code === "SQLITE_CONSTRAINT_UNIQUE" || code === "SQLITE_CONSTRAINT_PRIMARYKEY"

/** For each item, the local keys of other rows that hold a unique value it wants. */
const holdersOf = (tx: Tx, items: ReadonlyArray<Item>): Effect.Effect<ReadonlyMap<Item, ReadonlyArray<string>>, LibsqlError> =>
  Effect.gen(function* () {
    const holders = new Map<Item, Array<string>>(items.map((item) => [item, []]))
    for (const group of grouped(items, (item) => String(item.target.tbl))) {
      const { table, kinds } = (group[0] as Item).target
      for (const unique of table.unique) {
        const values = group.map((item) =>
          keyJson(unique.map((name) => wireToCell(kinds.get(name) ?? "text", item.values?.[item.columns.indexOf(name)] ?? null))),
        )
        const rows = yield* tx.all<{ i: number; key: string }>(
          `SELECT j.key AS i, ${localKeySql(table, "t.")} AS key FROM json_each(?) j CROSS JOIN ${ident(table.local)} t
            ON ${unique.map((name, i) => equals(`t.${ident(name)}`, kinds.get(name), i)).join(" AND ")}`,
          [`[${values.join(",")}]`],
        )
        for (const { i, key } of rows) {
          const item = group[i]
          if (item !== undefined && item.key !== key) holders.get(item)?.push(key)
        }
      }
    }
    return holders
  })

/** Items that can all be written once their old versions are gone: whatever they want is free, or held by one of them. */
const swappable = (items: ReadonlyArray<Item>, holders: ReadonlyMap<Item, ReadonlyArray<string>>): ReadonlySet<Item> => {
  const inside = new Map(items.map((item) => [idOf(item.target.tbl, item.key), item]))
  const waitingFor = new Map<Item, Array<Item>>()
  const out: Array<Item> = []
  for (const item of items) {
    for (const key of holders.get(item) ?? []) {
      const holder = inside.get(idOf(item.target.tbl, key))
      if (holder === undefined) out.push(item)
      else waitingFor.set(holder, [...(waitingFor.get(holder) ?? []), item])
    }
  }
  const rest = new Set(items)
  for (let item = out.pop(); item !== undefined; item = out.pop()) {
    if (rest.delete(item)) out.push(...(waitingFor.get(item) ?? []))
  }
  return rest
}

/** An item without its row's key would become a row of its own. */
const isNamed = (item: Item): boolean => isWhole(item) || item.target.table.key.every((name) => item.columns.includes(name))
const unnamed = (item: Item): Refused => ({
  item,
  code: "PARTIAL",
  error: "only some of its columns are known here; the next write of the row at head office brings all of them",
})

/** Writes the items with their old versions out of the way, all of them or none; answers what was refused. */
const swap = (tx: Tx, items: ReadonlyArray<Item>): Effect.Effect<ReadonlyArray<Refused>, LibsqlError> =>
  Effect.gen(function* () {
    yield* tx.run("SAVEPOINT swap")
    const stuck = yield* removeAll(tx, items)
    const refused = stuck.length > 0 ? stuck : yield* upsertAll(tx, items)
    if (refused.length > 0) yield* tx.run("ROLLBACK TO swap")
    yield* tx.run("RELEASE swap")
    return refused
  })

/**
 * Shows the rows and removes the deleted ones. Unique values may move between rows in any order: what is refused at first
 * is tried after the rest, then together with its old versions out of the way. What is refused even then is returned.
 */
export const showRows = (tx: Tx, all: ReadonlyArray<Item>): Effect.Effect<ReadonlyArray<Refused>, LibsqlError> =>
  Effect.gen(function* () {
    const { items, unfit } = apart(all)
    const gone = items.filter((item) => item.values === null)
    const hopeless = [...(yield* removeAll(tx, gone))]
    const completed = yield* complete(
      tx,
      items.filter((item) => item.values !== null),
    )
    const puts = completed.filter(isNamed)
    if (puts.length < completed.length) hopeless.push(...completed.filter((item) => !isNamed(item)).map(unnamed))
    let colliding: ReadonlyArray<Refused> = yield* upsertAll(tx, puts)
    for (let round = 0; colliding.length > 0; round++) {
      hopeless.push(...colliding.filter((refused) => !isUnique(refused)))
      colliding = colliding.filter(isUnique)
      if (round === 0) {
        // The rest has moved by now; and values that all move on by one are free from the other end.
        colliding = yield* upsertAll(tx, colliding.map((refused) => refused.item).toReversed())
        continue
      }
      const wanting = colliding.map((refused) => refused.item)
      const can = swappable(wanting, yield* holdersOf(tx, wanting))
      hopeless.push(...colliding.filter(({ item }) => !can.has(item)))
      const refused = can.size === 0 ? [] : yield* swap(tx, [...can])
      if (refused.length === 0) break
      // A constraint that the manifest does not know, or a value that two of them want.
      hopeless.push(...refused)
      const out = new Set(refused.map(({ item }) => item))
      const rest = colliding.filter(({ item }) => can.has(item) && !out.has(item))
      if (round >= SWAP_ROUNDS) {
        hopeless.push(...rest)
        break
      }
      colliding = yield* upsertAll(
        tx,
        rest.map(({ item }) => item),
      )
    }
    return [...unfit, ...hopeless]
  })
