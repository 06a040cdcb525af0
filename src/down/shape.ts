/**
 * What a table's present shape in Postgres means for the sync (pure). The shape that was accepted last stands in the feed:
 *
 *     still fits, perhaps with more columns ─> goes on at once; new columns are shown when their values are known
 *     anything else                         ─> the table pauses, with a reason, until a person accepts the new shape
 *
 * A column is told by Postgres's own number of it, which stays through a rename and is never given again.
 */
import type { Column, Table } from "../model/table.ts"
import type { Kind, Wire } from "../model/value.ts"
import type { Found, Stamp } from "../postgres/catalog.ts"
import { spelled, spelledTable } from "../postgres/spelling.ts"

/** A table's shape as the feed holds it. */
export interface Shape {
  /** The columns of the feed's rows, in their order. */
  readonly table: Table
  /** What the schools are told; differs while new columns or a whole new shape are being read. */
  readonly told: Table
  readonly oid: string
  readonly filenode: string
  readonly stamp: Stamp
  /** Postgres's number of each column, and how its text comes about. */
  readonly live: Readonly<Record<string, { readonly number: number; readonly spelling: Readonly<Record<string, string>> }>>
  /** Column numbers given so far. */
  readonly given: number
  /** What schools that have not heard of the present names call the columns. */
  readonly former?: Table["former"]
}

export interface Pause {
  /** One word, for scripts: `column_dropped`, `type_changed`, … */
  readonly code: string
  readonly reason: string
}

export interface Fitting {
  readonly kind: "fits"
  readonly shape: Shape
  /** The rows must be read again: Postgres has written the table anew, spells values in another way, or had it otherwise for a while. */
  readonly compare: boolean
}

export interface Accepted {
  readonly kind: "accepted"
  readonly shape: Shape
  /** For each column of the new shape, the old one whose values its rows keep until they are read again; null = none. */
  readonly from: ReadonlyArray<string | null>
  /** `anew`: rows are named in another way, nothing of the old ones is kept. `all`: every row is sent again. `differences`: what differs. */
  readonly send: "anew" | "all" | "differences"
}

/** Of a table that is new to the feed. */
export const firstShape = (table: Table, found: Found): Shape => {
  const numbered: Table = { ...table, columns: table.columns.map((column, i) => ({ ...column, number: i + 1 })) }
  return { table: numbered, told: numbered, ...standing(found), given: numbered.columns.length }
}

const standing = (found: Found): Pick<Shape, "oid" | "filenode" | "stamp" | "live"> => ({
  oid: found.oid ?? "",
  filenode: found.filenode,
  stamp: found.stamp,
  live: Object.fromEntries([...found.columns].map(([name, { number, spelling }]) => [name, { number, spelling }])),
})

/** `"character varying(40)"` -> base, limits; `"numeric(8,2)[]"` is its own base. */
const parts = (type: string): { readonly base: string; readonly limits: ReadonlyArray<number> } => {
  const match = /^([^()]+?)\((\d+(?:,-?\d+)?)\)([^()[\]]*)$/.exec(type)
  return match === null ? { base: type, limits: [] } : { base: `${match[1]}${match[3]}`, limits: (match[2] ?? "").split(",").map(Number) }
}

const TEXTS = new Set(["text", "character varying"])

/** True when every value of the old type is spelled the same under the new one, so that no row changes. */
export const isWidening = (from: Pick<Column, "type" | "kind">, to: Pick<Column, "type" | "kind">): boolean => {
  if (from.type === to.type) return from.kind === to.kind
  if (from.kind !== to.kind) return false
  const old = parts(from.type)
  const now = parts(to.type)
  if (TEXTS.has(old.base) && TEXTS.has(now.base)) {
    if (now.limits.length === 0) return true
    return old.limits.length > 0 && (old.limits[0] ?? 0) <= (now.limits[0] ?? 0)
  }
  if (old.base !== now.base) return false
  switch (old.base) {
    case "numeric": {
      if (now.limits.length === 0) return true
      const [oldDigits = 0, oldScale = 0] = old.limits
      const [digits = 0, scale = 0] = now.limits
      return old.limits.length > 0 && scale === oldScale && digits >= oldDigits
    }
    case "bit varying":
    case "timestamp without time zone":
    case "timestamp with time zone":
    case "time without time zone":
    case "time with time zone":
    case "interval":
      return now.limits.length === 0 || (old.limits.length > 0 && (old.limits[0] ?? 0) <= (now.limits[0] ?? 0))
    default:
      return false
  }
}

/** True when values of the old type that the new one takes are spelled the same: of a key, rows keep their names. */
const isSpelledAlike = (from: Pick<Column, "type" | "kind">, to: Pick<Column, "type" | "kind">): boolean => {
  if (isWidening(from, to)) return true
  const [old, now] = [parts(from.type), parts(to.type)]
  if (TEXTS.has(now.base)) return TEXTS.has(old.base) || from.type === "uuid"
  return old.base === "numeric" && old.limits.length > 0 && isWidening(to, from)
}

const pause = (code: string, reason: string): { readonly kind: "pause" } & Pause => ({ kind: "pause", code, reason })

const list = (names: ReadonlyArray<string>): string => `(${names.join(", ")})`

/** Facts that a new catalog may change without a row changing; the column keeps its number and what old rows hold. */
const carried = (before: Column, now: Column): Column => ({
  ...now,
  ...(before.number === undefined ? {} : { number: before.number }),
  ...(before.fill === undefined ? {} : { fill: before.fill }),
})

const tokenOf = (value: Wire): string => JSON.stringify(value)

/** The token that an older row's place for the column holds. */
export const fillToken = (column: Pick<Column, "fill">): string => tokenOf(column.fill ?? null)

/**
 * `renamedTo`: where the table's oid stands now, when it is not under its name. `sameDatabase` false: Postgres was put back
 * or replaced, so its own numbers say nothing and names must do.
 */
export const judge = (
  shape: Shape,
  found: Found,
  renamedTo: string | null,
  sameDatabase: boolean,
): Fitting | ({ readonly kind: "pause" } & Pause) => {
  const { table: accepted } = shape
  const { name } = accepted
  if (sameDatabase && found.oid !== shape.oid) {
    if (renamedTo !== null) {
      const isMoved = renamedTo.slice(renamedTo.indexOf(".")) === name.slice(name.indexOf("."))
      return pause(isMoved ? "table_moved" : "table_renamed", `table ${name} is now ${renamedTo}; ${putBack(isMoved, name, renamedTo)}`)
    }
    if (found.oid !== null) return pause("table_replaced", `table ${name} was dropped and made anew, so its rows are other rows`)
  }
  // What another table lacks is that table's reason to pause.
  const problem = found.problems.find(({ code }) => code !== "link_column")
  if (found.table === null || problem !== undefined) {
    // A column that the config names may have been renamed or dropped: that says more than that it is missing.
    const column = found.table === null || problem?.code !== "column_missing" ? null : judgeColumns(shape, found, found.table, sameDatabase)
    if (column !== null && column.kind === "pause") return column
    const code = problem?.code ?? "missing"
    return pause(
      code === "missing" ? "table_dropped" : code,
      code === "missing" ? `table ${name} no longer exists; make it again, or take it out of the config` : (problem?.text ?? ""),
    )
  }
  if (found.table.key.join("\0") !== accepted.key.join("\0")) {
    const column = judgeColumns(shape, found, found.table, sameDatabase)
    if (column.kind === "pause") return column
    return pause("key_changed", `the key of table ${name} was ${list(accepted.key)} and is now ${list(found.table.key)}`)
  }
  return judgeColumns(shape, found, found.table, sameDatabase)
}

const putBack = (isMoved: boolean, name: string, now: string): string => {
  const [schema, table] = [name.slice(0, name.indexOf(".")), name.slice(name.indexOf(".") + 1)]
  return isMoved
    ? `move it back (ALTER TABLE ${spelledTable(now)} SET SCHEMA ${spelled(schema)}), or list it in the config under its new name`
    : `rename it back (ALTER TABLE ${spelledTable(now)} RENAME TO ${spelled(table)}), or list it in the config under its new name`
}

const judgeColumns = (shape: Shape, found: Found, now: Table, sameDatabase: boolean): Fitting | ({ readonly kind: "pause" } & Pause) => {
  const { table: accepted } = shape
  const { name } = accepted
  const byName = new Map(now.columns.map((column) => [column.name, column]))
  const nameByNumber = new Map([...found.columns].map(([column, { number }]) => [number, column]))
  for (const column of accepted.columns) {
    const before = shape.live[column.name]
    if (sameDatabase && before !== undefined && found.columns.get(column.name)?.number !== before.number) {
      const other = nameByNumber.get(before.number)
      if (other !== undefined) return pause("column_renamed", `column ${column.name} of table ${name} is now called ${other}`)
      if (byName.has(column.name)) return pause("column_replaced", `column ${column.name} of table ${name} was dropped and added anew`)
    }
    const present = byName.get(column.name)
    if (present === undefined) return pause("column_dropped", `column ${column.name} of table ${name} was dropped`)
    if (!isWidening(column, present)) {
      return pause("type_changed", `column ${column.name} of table ${name} was ${column.type} and is now ${present.type}`)
    }
  }
  const isRewritten = sameDatabase && found.filenode !== shape.filenode
  const { columns, given, isKnown } = withNew(shape, found, now, isRewritten || !sameDatabase)
  const table: Table = { ...now, ...ownOf(accepted), columns }
  const isSpelledAnew = accepted.columns.some(({ name: column }) => {
    const spelling = found.columns.get(column)?.spelling ?? {}
    return sameDatabase && Object.entries(shape.live[column]?.spelling ?? {}).some(([part, was]) => spelling[part] !== was)
  })
  return {
    kind: "fits",
    shape: { table, told: toldWhile(shape, table, isKnown), ...standing(found), given },
    compare: isRewritten || isSpelledAnew || (sameDatabase && wasOtherwise(shape.stamp, found.stamp)),
  }
}

/** The catalog was written, and what stands there does not say why. */
const wasOtherwise = (before: Stamp, now: Stamp): boolean => before.key !== now.key || (before.written !== now.written && before.facts === now.facts)

/** What the hub itself has to say of a table, whatever the catalog says. */
const ownOf = (table: Table): Pick<Table, "generation" | "keyedSince" | "missed"> => ({
  ...(table.missed === undefined ? {} : { missed: table.missed }),
  ...(table.generation === undefined ? {} : { generation: table.generation }),
  ...(table.keyedSince === undefined ? {} : { keyedSince: table.keyedSince }),
})

/** The accepted columns as they are now, and behind them the new ones. `isKnown`: it is known what older rows hold in a new one. */
const withNew = (shape: Shape, found: Found, now: Table, isRewritten: boolean) => {
  const accepted = new Map(shape.table.columns.map((column) => [column.name, column]))
  const byName = new Map(now.columns.map((column) => [column.name, column]))
  let given = shape.given
  const known = new Set(shape.told.columns.map((column) => column.name))
  const kept = shape.table.columns.flatMap((column) => {
    const present = byName.get(column.name)
    return present === undefined ? [] : [carried(column, present)]
  })
  const added = now.columns.flatMap((column): ReadonlyArray<Column> => {
    if (accepted.has(column.name)) return []
    given++
    const isFilled = !isRewritten && !column.generated
    const fill = isFilled ? (found.columns.get(column.name)?.missing ?? null) : null
    // Rows that travel only up are not held here: there is nothing to wait for.
    if (isFilled || now.direction === "up") known.add(column.name)
    return [{ ...column, number: given, ...(fill === null ? {} : { fill }) }]
  })
  return { columns: [...kept, ...added], given, isKnown: (name: string) => known.has(name) }
}

/** While a whole new shape is being read the schools keep the old one; else they are told all columns whose values are known. */
const toldWhile = (shape: Shape, table: Table, isKnown: (name: string) => boolean): Table => {
  const isReplacing = shape.told.columns.some((column) => !shape.table.columns.some((other) => other.number === column.number))
  const isOtherShape =
    isReplacing ||
    (shape.told.generation ?? 1) !== (table.generation ?? 1) ||
    shape.told.columns.some((column) => kindIn(shape.table, column.name) !== column.kind)
  if (isOtherShape) return { ...shape.told, ...rulesOf(table) }
  const columns = table.columns.filter((column) => isKnown(column.name))
  const names = new Set(columns.map((column) => column.name))
  return {
    ...table,
    columns,
    unique: table.unique.filter((unique) => unique.every((name) => names.has(name))),
    references: table.references.filter((reference) => reference.columns.every((name) => names.has(name))),
  }
}

const kindIn = (table: Table, name: string): Kind | undefined => table.columns.find((column) => column.name === name)?.kind

/** What the config says of a table, whatever its shape. */
export const rulesOf = (
  table: Table,
): Pick<Table, "audience" | "direction" | "priority" | "strategy" | "columnStrategies" | "exclude" | "uniqueRule"> => ({
  audience: table.audience,
  direction: table.direction,
  priority: table.priority,
  strategy: table.strategy,
  columnStrategies: table.columnStrategies,
  ...(table.exclude === undefined ? {} : { exclude: table.exclude }),
  ...(table.uniqueRule === undefined ? {} : { uniqueRule: table.uniqueRule }),
})

/** The present shape, as a person has accepted it. Must be one without problems. */
export const accept = (shape: Shape, found: Found, now: Table): Accepted => {
  const { table: accepted } = shape
  const byNumber = new Map(accepted.columns.map((column) => [shape.live[column.name]?.number ?? -1, column]))
  const oldOf = (name: string): Column | undefined => byNumber.get(found.columns.get(name)?.number ?? -2)
  const sameKey =
    now.key.length === accepted.key.length &&
    now.key.every((name, i) => {
      const [old, column] = [oldOf(name), now.columns.find((one) => one.name === name)]
      return old !== undefined && column !== undefined && old.name === accepted.key[i] && old.kind === column.kind && isSpelledAlike(old, column)
    })
  if (found.oid !== shape.oid || !sameKey) {
    const columns = now.columns.map((column, i) => ({ ...column, number: i + 1 }))
    const table: Table = { ...now, generation: (accepted.generation ?? 1) + 1, keyedSince: Number.MAX_SAFE_INTEGER, columns }
    const told: Table = { ...shape.told, ...rulesOf(table) }
    return { kind: "accepted", shape: { table, told, ...standing(found), given: columns.length }, from: columns.map(() => null), send: "anew" }
  }
  let { given } = shape
  let sendAll = false
  const from: Array<string | null> = []
  const place = (column: Column): number => {
    const old = oldOf(column.name)
    return old === undefined ? accepted.columns.length : accepted.columns.indexOf(old)
  }
  const columns = now.columns
    .toSorted((a, b) => place(a) - place(b))
    .map((column): Column => {
      const old = oldOf(column.name)
      if (old !== undefined && isWidening(old, column)) {
        from.push(old.name)
        return carried(old, column)
      }
      from.push(null)
      if (old !== undefined) {
        // The same column under another type: a school converts what it has until the rows have come.
        sendAll = true
        return { ...column, ...(old.number === undefined ? {} : { number: old.number }) }
      }
      given++
      const isFilled = found.filenode === shape.filenode && !column.generated
      const fill = isFilled ? (found.columns.get(column.name)?.missing ?? null) : null
      if (!isFilled) sendAll = true
      return { ...column, number: given, ...(fill === null ? {} : { fill }) }
    })
  const table: Table = { ...now, ...ownOf(accepted), columns }
  const told: Table = sendAll ? { ...shape.told, ...rulesOf(table) } : table
  return { kind: "accepted", shape: { table, told, ...standing(found), given }, from, send: sendAll ? "all" : "differences" }
}

/** Changes of names that are remembered; batches that are older are long gone. */
const FORMER = 50

const numbersOf = (table: Table): Readonly<Record<string, number>> =>
  Object.fromEntries(table.columns.flatMap(({ name, number }) => (number === undefined ? [] : [[name, number]])))

/** `after` with the names that schools were told before, when a name means another column from manifest `version` on. */
export const rememberNames = (before: Shape, after: Shape, version: number): Shape => {
  const [was, now] = [numbersOf(before.told), numbersOf(after.told)]
  const former = before.former ?? []
  // Rows that are named in another way are not written by what came before.
  if ((before.told.generation ?? 1) !== (after.told.generation ?? 1)) return { ...after, former: [] }
  const isOther = Object.entries(was).some(([name, number]) => now[name] !== number)
  return { ...after, former: isOther ? [...former, { before: version, numbers: was }].slice(-FORMER) : former }
}

/** Pauses under which a school's changes may meet other rows than they mean, or none. (A column that was made anew is none to them, and without its key's a table is away.) */
const UNNAMED = new Set(["key_changed", "table_replaced", "no_key"])

/** The table with the names that schools were told before. */
export const withFormer = (table: Table, { former = [] }: Pick<Shape, "former">): Table => (former.length === 0 ? table : { ...table, former })

/** While a new shape is being read schools are told the old one still: what they write by its names is meant by its columns. */
const withTold = (table: Table, { told }: Pick<Shape, "told">): Table => {
  const [was, now] = [numbersOf(told), numbersOf(table)]
  const isOther = (told.generation ?? 1) === (table.generation ?? 1) && Object.entries(was).some(([name, number]) => now[name] !== number)
  return isOther ? { ...table, former: [...(table.former ?? []), { before: Number.MAX_SAFE_INTEGER, numbers: was }] } : table
}

/** The table as a push is to see it. */
export const pushedTable = ({ table, paused, shape }: { readonly table: Table; readonly paused: Pause | null; readonly shape: Shape }): Table => ({
  ...withTold(withFormer(table, shape), shape),
  stands: { oid: shape.oid, numbers: Object.fromEntries(Object.entries(shape.live).map(([name, { number }]) => [name, number])) },
  ...(paused !== null && UNNAMED.has(paused.code) && { keyedSince: Number.MAX_SAFE_INTEGER }),
})
