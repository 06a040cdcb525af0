/**
 * Rows of the link's lines on their way into tables, in two steps. `load` reads the lines and lays their rows into temporary
 * tables of the writer's own connection: most of the work, done without any lock on the file. `show` then writes the rows of
 * some lines into their tables, one statement for each table, which takes a third of the time. Of one table all of them or none:
 * what a constraint or a changed table refuses is told, and the rows go in one by one by another way; so do those that wait.
 *
 * Rows of a line go in as they stand in it, and of a row that comes twice the later one counts.
 */
import { localKeyOf } from "../model/key.ts"
import type { Cell, Kind, Wire } from "../model/value.ts"
import { isWhole, openPuts, scanRows, wireToBind } from "./scan.ts"

/** How the rows of one table are written. */
export interface LoadPlan {
  readonly table: string
  /** All columns that a line must have, in this order; the rows of another line are not loaded. */
  readonly columns: ReadonlyArray<string>
  readonly kinds: ReadonlyArray<Kind>
  /** Where among them the key's columns stand, and their kinds. */
  readonly key: ReadonlyArray<number>
  readonly keyKinds: ReadonlyArray<Kind>
  /** Writes the loaded rows ?1 to ?2 of `loadTable`; `inOrder`: in the order of their keys. */
  readonly put: string
  readonly putInOrder: string
  /** Removes the row of one key. */
  readonly remove: string
}

/** Of each table the local keys of rows that something waits for or on; too many to be told: a query for those among a list of keys. */
export type WaitingKeys = ReadonlyMap<string, ReadonlySet<string> | WaitingAmong>
export interface WaitingAmong {
  /** Some of them that the query does not find. */
  readonly also: ReadonlySet<string>
  readonly tbl: number
  /** ?1: `tbl`, ?2: a JSON list of local keys. */
  readonly among: string
}

export interface Shown {
  /** Tables whose rows are written, but for those that wait. */
  readonly tables: ReadonlyArray<string>
  /** Which of the lines, counted from the first of them, hold rows that are not. */
  readonly rest: ReadonlyArray<number>
  /** Of each of these tables the local keys of rows that wait, at least all those of the lines. */
  readonly waiting: ReadonlyMap<string, ReadonlySet<string>>
}

/** The lines' own texts, or what a statement finds for each number. */
export type LoadSource = { readonly texts: ReadonlyArray<string> } | { readonly sql: string; readonly numbers: ReadonlyArray<number> }

/** The temporary table of rows with so many columns: c0, c1 and so on, without types, so that cells stay what they are. */
export const loadTable = (width: number): string => `temp.schoolbus_load_${width}`
export const loadColumn = (index: number): string => `c${index}`

type Values = ReadonlyArray<Wire>
type LineOf<Kind, Row> = readonly [kind: Kind, cls: number, seq: number, table: string, columns: ReadonlyArray<string>, rows: ReadonlyArray<Row>]
/** As the link writes it: every row with its key, null = it is gone; or rows alone, none of which is. */
type LineText = LineOf<"rows", readonly [key: Values, values: Values | null]> | LineOf<"puts", Values>

interface LoadedLine {
  readonly table: string
  readonly rows: number
  /** null: no plan is for this line. */
  readonly plan: LoadPlan | null
  /** Its rows in the temporary table. */
  readonly from: number
  readonly to: number
  readonly first: Place
  readonly last: Place
  readonly isSorted: boolean
  readonly keys: ReadonlyArray<Key>
  readonly gone: ReadonlyArray<Key>
  /** Rows of the temporary table that are not to be written. */
  readonly out: ReadonlyArray<number>
}

/** What a line says, as it is bound: of all rows that are put one after the other. */
interface ReadLine {
  readonly table: string
  readonly columns: ReadonlyArray<string>
  readonly rows: number
  /** null: no plan is for it. */
  readonly puts: { readonly plan: LoadPlan; readonly cells: ReadonlyArray<Cell>; readonly gone: ReadonlyArray<Key> } | null
}

/** Values of a key, as they are bound. */
type Key = ReadonlyArray<Cell>

/** Values that one statement of many rows binds: beyond that it is no quicker. */
const WIDE_VALUES = 200
const MOST_WIDE = 64
/** Statements that are remembered. */
const INSERTS = 128

/** Where a key goes, for the order in which rows are written: nothing depends on it but the time that takes. */
type Place = number | string | null
const placeOf = (kind: Kind, bound: Cell): Place => (bound === null ? null : isWhole(kind) ? Number(bound) : typeof bound === "string" ? bound : null)
const isLess = (a: Place, b: Place): boolean => a !== null && b !== null && a < b

/** Columns of which not every row has the same value. */
const varyingColumns = (width: number, cells: ReadonlyArray<Cell>): ReadonlyArray<number> => {
  let same = Array.from({ length: width }, (_, i) => i)
  const varying: Array<number> = []
  for (let at = width; at < cells.length; at += width) {
    if (same.every((i) => cells[at + i] === cells[i])) continue
    varying.push(...same.filter((i) => cells[at + i] !== cells[i]))
    same = same.filter((i) => cells[at + i] === cells[i])
  }
  return varying.toSorted((a, b) => a - b)
}

interface Connection {
  readonly prepare: (sql: string) => { readonly run: (args: Array<unknown>) => unknown }
  /** The one text that a statement finds for a number. */
  readonly text: (sql: string, number: number) => string
  readonly exec: (sql: string) => void
  /** The texts in the first column of what a statement finds. */
  readonly texts: (sql: string, args: Array<unknown>) => ReadonlyArray<string>
  /** Why a row was refused; null when the error is another one. */
  readonly refusal: (error: unknown) => string | null
}

const sameNames = (a: ReadonlyArray<string>, b: ReadonlyArray<string>): boolean => a.length === b.length && a.every((name, i) => name === b[i])

export class Loads {
  readonly #connection: Connection
  #lines: Array<LoadedLine> = []
  /** Whose lines these are; places are numbered as they come. */
  #place = 0
  /** Lines of this place are missing. */
  #isTorn = false
  readonly #plans = new Map<string, LoadPlan>()
  /** Rows of each temporary table, by width. */
  #tables = new Map<number, { rows: number }>()
  #inserts = new Map<string, string>()

  constructor(connection: Connection) {
    this.#connection = connection
  }

  /** The connection is gone, and what was loaded with it. */
  forget(): void {
    this.#isTorn = true
    this.#lines = []
    this.#tables.clear()
  }

  clear(): void {
    this.#isTorn = true
    this.#lines = []
    for (const [width, table] of this.#tables) {
      if (table.rows > 0) this.#connection.exec(`DELETE FROM ${loadTable(width)}`)
      table.rows = 0
    }
  }

  /** Adds lines, and plans for tables, to those of a place. Whatever was loaded at another one is gone. */
  load(place: number, source: LoadSource, plans: ReadonlyArray<LoadPlan>): void {
    if (place > this.#place) {
      this.clear()
      this.#place = place
      this.#isTorn = false
      this.#plans.clear()
    }
    if (place < this.#place || this.#isTorn) return
    for (const plan of plans) this.#plans.set(plan.table, plan)
    const texts = "texts" in source ? source.texts : source.numbers.map((number) => this.#connection.text(source.sql, number))
    this.#connection.exec("BEGIN")
    try {
      for (const text of texts) this.#add(this.#read(text))
      this.#connection.exec("COMMIT")
    } catch (error) {
      this.#connection.exec("ROLLBACK")
      for (const width of this.#tables.keys()) this.#connection.exec(`DROP TABLE IF EXISTS ${loadTable(width)}`)
      this.forget()
      throw error
    }
  }

  #table(width: number): { rows: number } {
    const known = this.#tables.get(width)
    if (known !== undefined) return known
    this.#connection.exec(`CREATE TABLE ${loadTable(width)} (${Array.from({ length: width }, (_, i) => loadColumn(i)).join(", ")})`)
    const table = { rows: 0 }
    this.#tables.set(width, table)
    return table
  }

  #planFor(table: string, columns: ReadonlyArray<string>): LoadPlan | null {
    const plan = this.#plans.get(table)
    return plan !== undefined && sameNames(plan.columns, columns) ? plan : null
  }

  #read(text: string): ReadLine {
    const opened = openPuts(text)
    if (opened !== null) {
      const { table, columns, rowsAt } = opened
      const plan = this.#planFor(table, columns)
      const cells = plan === null ? null : scanRows(text, rowsAt, plan.kinds)
      if (plan !== null && cells !== null) return { table, columns, rows: cells.length / plan.kinds.length, puts: { plan, cells, gone: [] } }
    }
    const line = JSON.parse(text) as LineText
    const [, , , table, columns, { length: rows }] = line
    const plan = this.#planFor(table, columns)
    if (plan === null) return { table, columns, rows, puts: null }
    const cells: Array<Cell> = []
    const gone: Array<Key> = []
    const put = (values: Values): void => plan.kinds.forEach((kind, i) => void cells.push(wireToBind(kind, values[i] ?? null)))
    if (line[0] === "puts") line[5].forEach(put)
    else
      for (const [key, values] of line[5]) {
        if (values === null) gone.push(plan.keyKinds.map((kind, i) => wireToBind(kind, key[i] ?? null)))
        else put(values)
      }
    return { table, columns, rows, puts: { plan, cells, gone } }
  }

  #add({ table: name, rows, puts }: ReadLine): void {
    if (puts === null) {
      const none = { plan: null, from: 1, to: 0, first: null, last: null, isSorted: true, keys: [], gone: [], out: [] }
      this.#lines.push({ table: name, rows, ...none })
      return
    }
    const { plan, cells, gone } = puts
    const { kinds } = plan
    const width = kinds.length
    const table = this.#table(width)
    const from = table.rows + 1
    const varying = varyingColumns(width, cells)
    const fixed = kinds.flatMap((_, i) => (varying.includes(i) ? [] : [i]))
    const shared = fixed.map((i) => cells[i] ?? null)
    const wide = Math.max(1, Math.min(MOST_WIDE, Math.floor(WIDE_VALUES / Math.max(1, varying.length))))
    const count = cells.length / width
    for (let at = 0; at < count; ) {
      const left = count - at
      // Few statements of few sizes, each prepared once.
      const n = left >= wide ? wide : 2 ** Math.floor(Math.log2(left))
      const bound = [...shared]
      for (const end = at + n; at < end; at++) for (const i of varying) bound.push(cells[at * width + i] ?? null)
      this.#connection.prepare(this.#insert(kinds, fixed, n)).run(bound)
      table.rows += n
    }
    const keys = Array.from({ length: count }, (_, row): Key => plan.key.map((i) => cells[row * width + i] ?? null))
    const places = keys.map((key) => placeOf(plan.keyKinds[0] ?? "text", key[0] ?? null))
    const isSorted = places.every((place, i) => i === 0 || !isLess(place, places[i - 1] ?? null))
    const ends = { from, to: table.rows, first: places[0] ?? null, last: places.at(-1) ?? null }
    this.#lines.push({ table: name, rows, plan, ...ends, isSorted, keys, gone, out: [] })
  }

  /** A statement for so many rows; what is the same in all of them is bound once, before the rest. */
  #insert(kinds: ReadonlyArray<Kind>, fixed: ReadonlyArray<number>, rows: number): string {
    const width = kinds.length
    const name = `${kinds.map((kind) => (isWhole(kind) ? "1" : "0")).join("")} ${fixed.join()} ${rows}`
    const known = this.#inserts.get(name)
    if (known !== undefined) return known
    let last = fixed.length
    const value = (i: number): string => {
      const bound = `?${fixed.includes(i) ? fixed.indexOf(i) + 1 : ++last}`
      return isWhole(kinds[i] as Kind) ? `CAST(${bound} AS INTEGER)` : bound
    }
    const one = (): string => Array.from({ length: width }, (_, i) => value(i)).join(", ")
    const sql = `INSERT INTO ${loadTable(width)} VALUES ${Array.from({ length: rows }, () => `(${one()})`).join(", ")}`
    if (this.#inserts.size >= INSERTS) this.#inserts.clear()
    this.#inserts.set(name, sql)
    return sql
  }

  /**
   * Writes the rows of a place's lines, `from` up to but not including `to`, but for the rows that `waiting` names. Of a table of
   * which anything is refused nothing is written. null, and nothing at all: the lines do not lie ready, or more than `most` rows
   * would be left.
   */
  show(place: number, from: number, to: number, waiting: WaitingKeys, most: number): Shown | null {
    const lines = this.#lines.slice(from, to)
    if (place !== this.#place || this.#isTorn || lines.length !== to - from) return null
    const tables: Array<string> = []
    const rest: Array<number> = []
    const found = new Map<string, ReadonlySet<string>>()
    let left = 0
    this.#connection.exec("SAVEPOINT show")
    for (const [table, own] of Map.groupBy(lines.keys(), (i) => (lines[i] as LoadedLine).table)) {
      const all = own.map((i) => lines[i] as LoadedLine)
      const keys = this.#waitingOf(all, waiting.get(table) ?? new Set())
      const kept = this.#showTable(all, keys)
      if (kept !== null) {
        tables.push(table)
        found.set(table, keys)
      }
      left += kept === null ? own.reduce((n, i) => n + (lines[i]?.rows ?? 0), 0) : kept.reduce((n, count) => n + count, 0)
      rest.push(...own.filter((_, n) => kept?.[n] !== 0))
    }
    if (left > most) this.#connection.exec("ROLLBACK TO show")
    this.#connection.exec("RELEASE show")
    return left > most ? null : { tables, rest: rest.toSorted((a, b) => a - b), waiting: found }
  }

  /** How many rows of each line are left out, or null: they go in another way, all of them. */
  #showTable(all: ReadonlyArray<LoadedLine>, waiting: ReadonlySet<string>): ReadonlyArray<number> | null {
    if (all.some(({ plan }) => plan === null)) return null
    const lines = waiting.size === 0 ? all : all.map((line) => this.#without(line, waiting))
    if (lines.some(({ gone }) => gone.length > 0) && isTangled(lines)) return null
    this.#connection.exec("SAVEPOINT one")
    try {
      lines.forEach(({ plan, out }) => {
        for (const row of out) this.#connection.prepare(`DELETE FROM ${loadTable(plan?.kinds.length ?? 0)} WHERE rowid = ?`).run([BigInt(row)])
      })
      for (const { plan, gone } of lines)
        if (plan !== null && gone.length > 0) {
          const remove = this.#connection.prepare(plan.remove)
          for (const key of gone) remove.run(cellsOf(plan, key))
        }
      for (const { plan, from: first, to: last, isSorted } of runsOf(lines))
        this.#connection.prepare(isSorted ? plan.put : plan.putInOrder).run([BigInt(first), BigInt(last)])
      this.#connection.exec("RELEASE one")
      return lines.map((line, n) => line.out.length + (all[n]?.gone.length ?? 0) - line.gone.length)
    } catch (error) {
      if (this.#connection.refusal(error) === null) throw error
      this.#connection.exec("ROLLBACK TO one")
      this.#connection.exec("RELEASE one")
      return null
    }
  }

  #waitingOf(lines: ReadonlyArray<LoadedLine>, waiting: ReadonlySet<string> | WaitingAmong): ReadonlySet<string> {
    if (!("among" in waiting)) return waiting
    const keys = lines.flatMap(({ plan, keys: put, gone }) => (plan === null ? [] : [...put, ...gone].map((key) => localKeyOf(cellsOf(plan, key)))))
    return new Set([...waiting.also, ...this.#connection.texts(waiting.among, [BigInt(waiting.tbl), JSON.stringify(keys)])])
  }

  #without(line: LoadedLine, waiting: ReadonlySet<string>): LoadedLine {
    const { plan } = line
    if (plan === null) return line
    const isOut = (key: Key): boolean => waiting.has(localKeyOf(cellsOf(plan, key)))
    const out = line.keys.flatMap((key, i) => (isOut(key) ? [line.from + i] : []))
    return { ...line, out, keys: out.length === 0 ? line.keys : line.keys.filter((key) => !isOut(key)), gone: line.gone.filter((key) => !isOut(key)) }
  }
}

const cellsOf = ({ keyKinds }: LoadPlan, key: Key): Array<Cell> =>
  key.map((bound, i) => (isWhole(keyKinds[i] ?? "text") && (typeof bound === "number" || typeof bound === "string") ? BigInt(bound) : bound))

/** Whether a row is written before a line says that it is gone: deletes go first, which would be the wrong way round. */
const isTangled = (lines: ReadonlyArray<LoadedLine>): boolean => {
  const local = ({ plan }: LoadedLine, key: Key): string => (plan === null ? "" : localKeyOf(cellsOf(plan, key)))
  const gone = new Set(lines.flatMap((line) => line.gone.map((key) => local(line, key))))
  return lines.some((line) => line.keys.some((key) => gone.has(local(line, key))))
}

interface Run {
  readonly plan: LoadPlan
  readonly from: number
  to: number
  isSorted: boolean
}

/** Of one table; lines that lie next to each other are written together. */
const runsOf = (lines: ReadonlyArray<LoadedLine>): ReadonlyArray<Run> => {
  const runs: Array<Run> = []
  let before: LoadedLine | undefined
  for (const line of lines) {
    if (line.plan === null || line.to < line.from) continue
    const run = runs.at(-1)
    if (run !== undefined && run.to + 1 === line.from) {
      run.to = line.to
      run.isSorted &&= line.isSorted && before !== undefined && !isLess(line.first, before.last)
    } else runs.push({ plan: line.plan, from: line.from, to: line.to, isSorted: line.isSorted })
    before = line
  }
  return runs
}
