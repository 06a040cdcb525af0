/**
 * Recognises batches that nothing stands in the way of (pure): new rows, and edits of single rows, of tables that the school's
 * id places by a column or not at all, with values that Postgres prints as they were sent. What they are carried out with is
 * in `plainly.ts`. A batch of which anything is not certain is none of these, and goes the whole way through `carry-out.ts`.
 */
import type { Change } from "../model/change.ts"
import { isInRange, rangedColumn } from "../model/key-range.ts"
import { audienceColumn, isThrough, namesSince, type Reference, type Table } from "../model/table.ts"
import { type Kind, type Wire, wireToText } from "../model/value.ts"
import { formRefusal } from "./authorise.ts"
import { isByValue } from "./by-value.ts"
import { isSettled, textToWire } from "./canonical.ts"
import { rekeyed } from "./lost.ts"
import type { ColumnShape, Shape } from "./shape.ts"
import type { Ground } from "./work.ts"

/** Sets of columns that one batch may write; each is a statement of its own. */
const MAX_GROUPS = 32

/** Before the name of a new value, in the JSON object of an edit that has the old values under their own names. */
export const NEW = "="

export interface PlainColumn {
  readonly name: string
  readonly kind: Kind
  readonly shape: ColumnShape
}

/** Values that a foreign key points to, by the text of the tuple. */
export interface Pointed {
  readonly reference: Reference
  readonly tuples: Map<string, ReadonlyArray<string | null>>
}

/** Changes of one table, kind and set of columns: one statement. */
export interface Group {
  readonly table: Table
  readonly shape: Shape
  readonly op: "insert" | "update"
  /** Of an edit: old values. */
  readonly base: ReadonlyArray<PlainColumn>
  readonly mine: ReadonlyArray<PlainColumn>
  readonly pointed: ReadonlyArray<Pointed>
  readonly changes: Array<Change>
}

export interface Plain {
  readonly groups: ReadonlyArray<Group>
  /** Values whose form only Postgres knows: plain if it prints them as they are. */
  readonly asked: ReadonlyMap<ColumnShape, Set<string>>
}

type Check = (value: unknown) => boolean

const INTEGERS: Readonly<Record<string, number>> = { int2: 2 ** 15, int4: 2 ** 31 }

/** Says of a value whether it is certain that Postgres stores and prints it so. Texts are known to be well formed. */
const settledCheck = (kind: Kind, shape: ColumnShape): Check => {
  const limit = INTEGERS[shape.typname]
  if (kind === "int" && limit !== undefined && !shape.isDomain)
    return (value) => typeof value === "number" && Number.isInteger(value) && value < limit && value >= -limit
  if (kind === "text" && !shape.isDomain && (shape.typname === "text" || (shape.typname === "varchar" && !shape.isLimited)))
    return (value) => typeof value === "string"
  return (value) => {
    const text = wireToText(kind, value as Wire)
    return text !== null && isSettled(shape, text) && textToWire(kind, text) === value
  }
}

/** The columns of such names; null when one of them is not written as it is sent. */
const columnsOf = (table: Table, shape: Shape, values: Readonly<Record<string, unknown>>): ReadonlyArray<PlainColumn> | null => {
  const columns: Array<PlainColumn> = []
  for (const name of Object.keys(values)) {
    const column = table.columns.find((one) => one.name === name)
    const own = shape.columns.get(name)
    if (column === undefined || own === undefined || own.generated || column.generated || name.startsWith(NEW)) return null
    columns.push({ name, kind: column.kind, shape: own })
  }
  return columns
}

/** Whether Postgres has the columns that the stream was opened with. */
const isAsKnown = (table: Table, { columns }: Shape): boolean =>
  table.columns.length === columns.size && table.columns.every(({ name, type }) => columns.get(name)?.type === type)

/** What a table asks of every batch, whatever it says; null: not plain. */
const isPlainTable = (ground: Pick<Ground, "tables" | "manifest">, table: Table, shape: Shape): boolean =>
  !isThrough(table.audience) &&
  !shape.hasTriggers &&
  isAsKnown(table, shape) &&
  !table.references.some(({ columns }) => columns.some((name) => shape.columns.get(name)?.generated === true)) &&
  table.name !== "schoolbus.requests" &&
  rekeyed(table, ground.manifest) === null &&
  namesSince(table, ground.manifest).size === 0 &&
  ![...ground.tables.values()].some(({ audience }) => isThrough(audience) && audience.through === table.name)

interface Recognised extends Group {
  readonly baseChecks: ReadonlyArray<Check>
  readonly mineChecks: ReadonlyArray<Check>
  readonly isRanged: boolean
}

/** Names in the same order. */
const hasNames = (values: object, columns: ReadonlyArray<PlainColumn>): boolean => {
  let i = 0
  for (const name in values) if (columns[i++]?.name !== name) return false
  return i === columns.length
}

const openGroup = (ground: Pick<Ground, "tables" | "manifest" | "keys">, shapes: ReadonlyMap<string, Shape>, change: Change): Recognised | null => {
  const table = ground.tables.get(change.table)
  const shape = shapes.get(change.table)
  const { op } = change
  if (table === undefined || shape === undefined || op === "delete" || !isPlainTable(ground, table, shape)) return null
  if (formRefusal(table, shape, change.table, { ...change, newKey: null }, ground.keys) !== null) return null
  const [base, mine] = [columnsOf(table, shape, change.base), columnsOf(table, shape, change.mine)]
  if (base === null || mine === null || mine.length === 0) return null
  const names = new Set((op === "insert" ? mine : base).map(({ name }) => name))
  const place = audienceColumn(table.audience)
  if (![...table.key, ...(place === null ? [] : [place])].every((name) => names.has(name))) return null
  if (op === "update" && !mine.every(({ name }) => names.has(name) && !table.key.includes(name))) return null
  const written = new Set(mine.map(({ name }) => name))
  const pointed = table.references.flatMap((reference) => {
    const isOwnSchool = place !== null && reference.columns.length === 1 && reference.columns[0] === place
    return isOwnSchool || !reference.columns.some((name) => written.has(name)) ? [] : [{ reference, tuples: new Map() }]
  })
  if (pointed.some(({ reference }) => isByValue(reference, ground.tables.get(reference.table) ?? { key: [] }))) return null
  return {
    ...{ table, shape, op, base, mine, pointed, changes: [] },
    baseChecks: base.map((column) => settledCheck(column.kind, column.shape)),
    mineChecks: mine.map((column) => settledCheck(column.kind, column.shape)),
    isRanged: ground.keys !== undefined && op === "insert" && rangedColumn(table) !== null,
  }
}

/** `isOpen`: whether something waits for a person in the row of this table and key. null: not plain. */
export const recognise = (
  ground: Pick<Ground, "tables" | "manifest" | "keys" | "school">,
  shapes: ReadonlyMap<string, Shape>,
  changes: ReadonlyArray<Change>,
  isOpen: ((table: string, key: ReadonlyArray<Wire>) => boolean) | null,
): Plain | null => {
  const groups: Array<Recognised> = []
  const asked = new Map<ColumnShape, Set<string>>()
  let group: Recognised | undefined
  const isSpelled = (column: PlainColumn, check: Check, value: unknown): boolean => {
    if (value === null || check(value)) return true
    if (value === undefined || typeof value === "object") return false
    const text = wireToText(column.kind, value as Wire) as string
    if (textToWire(column.kind, text) !== value) return false
    const texts = asked.get(column.shape)
    if (texts === undefined) asked.set(column.shape, new Set([text]))
    else texts.add(text)
    return true
  }
  for (const change of changes) {
    const isOf = (one: Recognised): boolean =>
      one.table.name === change.table && one.op === change.op && hasNames(change.mine, one.mine) && hasNames(change.base, one.base)
    if (group === undefined || !isOf(group)) {
      group = groups.find(isOf)
      if (group === undefined) {
        const fresh = groups.length < MAX_GROUPS ? openGroup(ground, shapes, change) : null
        if (fresh === null || !isOf(fresh)) return null
        groups.push(fresh)
        group = fresh
      }
    }
    const { table, op, base, mine, baseChecks, mineChecks } = group
    const row = (op === "insert" ? change.mine : change.base) as Record<string, Wire>
    if (change.newKey !== undefined || change.key.length !== table.key.length || isOpen?.(change.table, change.key) === true) return null
    for (let i = 0; i < table.key.length; i++) if (change.key[i] === null || change.key[i] !== row[table.key[i] as string]) return null
    if (group.isRanged && ground.keys !== undefined && !isInRange(ground.keys, change.key[0])) return null
    for (let i = 0; i < base.length; i++) {
      const column = base[i] as PlainColumn
      if (!isSpelled(column, baseChecks[i] as Check, row[column.name])) return null
    }
    for (let i = 0; i < mine.length; i++) {
      const column = mine[i] as PlainColumn
      const value = change.mine[column.name]
      if (!isSpelled(column, mineChecks[i] as Check, value) || value === change.base[column.name]) return null
    }
    const place = audienceColumn(table.audience)
    if (place !== null && (!isSchool(row[place], ground.school) || (place in change.mine && !isSchool(change.mine[place], ground.school))))
      return null
    for (const one of group.pointed) note(one, table, row, change.mine)
    group.changes.push(change)
  }
  return { groups, asked }
}

/** The values of new rows, column by column. */
export const newTexts = ({ mine, changes }: Group): ReadonlyArray<ReadonlyArray<string | null>> =>
  mine.map(({ name }) =>
    changes.map((change) => {
      const value = change.mine[name] as Wire
      return value === null ? null : String(value)
    }),
  )

/** Edits as JSON: the old values, and the new ones under their names after `NEW`. */
export const editsJson = ({ mine, changes }: Group): string =>
  JSON.stringify(
    changes.map((change) => {
      const row: Record<string, unknown> = { ...change.base }
      for (const { name } of mine) row[NEW + name] = change.mine[name]
      return row
    }),
  )

/** What tuples of a foreign key look like that new rows of the batch have, by the text of the tuple. */
export const madeTuples = ({ groups }: Plain, { table, to }: { readonly table: string; readonly to: ReadonlyArray<string> }): ReadonlySet<string> => {
  const made = new Set<string>()
  for (const group of groups) {
    if (group.op !== "insert" || group.table.name !== table) continue
    for (const { mine } of group.changes) {
      const tuple = tupleOf(group.table, to, mine)
      if (tuple !== null) made.add(tuple.id)
    }
  }
  return made
}

/** New rows before those of the batch that point to them; else in the order in which they came. */
export const parentsFirst = (groups: ReadonlyArray<Group>): ReadonlyArray<Group> => {
  const ordered: Array<Group> = []
  const visit = (group: Group, above: ReadonlySet<Group>): void => {
    if (ordered.includes(group) || above.has(group)) return
    const parents = new Set(group.pointed.filter(({ tuples }) => tuples.size > 0).map(({ reference }) => reference.table))
    for (const other of groups) if (other.op === "insert" && parents.has(other.table.name)) visit(other, new Set([...above, group]))
    ordered.push(group)
  }
  for (const group of groups) visit(group, new Set())
  return ordered
}

const isSchool = (value: unknown, school: string): boolean => value === school || (typeof value === "number" && String(value) === school)

/** The values that a foreign key will have; one of which a part is empty points nowhere. */
const note = (
  { reference, tuples }: Pointed,
  table: Table,
  row: Readonly<Record<string, unknown>>,
  mine: Readonly<Record<string, unknown>>,
): void => {
  const tuple = tupleOf(table, reference.columns, mine, row)
  if (tuple !== null && !tuples.has(tuple.id)) tuples.set(tuple.id, tuple.values)
}

/** null: a part of it is empty, or not known. */
const tupleOf = (
  table: Table,
  names: ReadonlyArray<string>,
  mine: Readonly<Record<string, unknown>>,
  row: Readonly<Record<string, unknown>> = {},
): { readonly id: string; readonly values: ReadonlyArray<string> } | null => {
  const values: Array<string> = []
  for (const name of names) {
    const value = name in mine ? mine[name] : row[name]
    if (value === null || value === undefined) return null
    values.push(wireToText(table.columns.find((column) => column.name === name)?.kind ?? "text", value as Wire) as string)
  }
  return { id: values.length === 1 ? (values[0] as string) : JSON.stringify(values), values }
}
