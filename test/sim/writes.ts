/** What programs write, at head office and in the schools: one random statement at a time, noted in what head office and the school must hold. */
import type { World } from "../support/world.ts"
import { fail, type Side } from "./agree.ts"
import type { Edit } from "./expect.ts"
import { insertSql, keyOf, newKey, newRow, newValue, type Row } from "./office.ts"
import type { Random } from "./random.ts"
import type { SimTable } from "./schema.ts"

export const SCHOOLS = ["s1", "s2", "s3", "s4"]

export class Writes {
  readonly #world: World
  readonly #random: Random
  readonly #tables: ReadonlyArray<SimTable>
  readonly #model: ReadonlyMap<string, Map<string, Row>>
  readonly #note: (what: string, ...values: ReadonlyArray<unknown>) => void
  #keys = 0
  /** Writes so far. */
  count = 0

  /** `model`: what head office must hold. */
  constructor(
    world: World,
    random: Random,
    tables: ReadonlyArray<SimTable>,
    model: ReadonlyMap<string, Map<string, Row>>,
    note: (what: string, ...values: ReadonlyArray<unknown>) => void,
  ) {
    this.#world = world
    this.#random = random
    this.#tables = tables
    this.#model = model
    this.#note = note
  }

  #model_(table: SimTable): Map<string, Row> {
    return this.#model.get(table.name) as Map<string, Row>
  }

  /** One of head office's programs: an insert, update, delete, or a move to another school. What Postgres refuses changes nothing. */
  async office(): Promise<void> {
    const random = this.#random
    const table = random.pick(this.#tables)
    const model = this.#model_(table)
    const keys = [...model.keys()]
    const what = keys.length < 3 ? 0 : random.below(100)
    this.count++
    if (what < 30) {
      const school = random.pick(SCHOOLS)
      const parents = table.parent === null ? [] : this.#keysOf(table.parent, school)
      const row = newRow(random, table, school, parents, () => `u${random.below(12)}`)
      if (row === null) return
      const key = newKey(table, ++this.#keys)
      const names = Object.keys(row)
      const params = [...key, ...Object.values(row)].map((_, i) => `$${i + 1}`)
      if (await this.#try(`${insertSql(table, names)} VALUES (${params.join(", ")})`, [...key, ...Object.values(row)])) model.set(keyOf(key), row)
      return
    }
    const key = random.pick(keys)
    const where = table.key.map((column, i) => `${column.name}::text = $${i + 1}`).join(" AND ")
    const values = JSON.parse(key) as ReadonlyArray<string>
    if (what < 75) {
      const change = this.#newValues(table, model.get(key) as Row)
      const sets = Object.keys(change).map((name, i) => `${name} = $${values.length + i + 1}`)
      if (sets.length === 0) return
      if (await this.#try(`UPDATE ${table.name} SET ${sets.join(", ")} WHERE ${where}`, [...values, ...Object.values(change)]))
        model.set(key, { ...(model.get(key) as Row), ...change })
    } else if (what < 90) {
      if (await this.#try(`DELETE FROM ${table.name} WHERE ${where}`, values)) model.delete(key)
    } else if (table.parent === null && !this.#tables.some((other) => other.parent === table)) {
      const school = random.pick(SCHOOLS)
      if (await this.#try(`UPDATE ${table.name} SET school_id = $${values.length + 1} WHERE ${where}`, [...values, school]))
        model.set(key, { ...(model.get(key) as Row), school_id: school })
    }
  }

  async #try(sql: string, params: ReadonlyArray<string | null>): Promise<boolean> {
    try {
      await this.#world.sql.unsafe(sql, [...params])
      this.#note("head office writes", sql, params)
      return true
    } catch (cause) {
      this.#note("Postgres refuses", sql, params)
      if (/^23/.test(String((cause as { code?: unknown }).code))) return false
      throw cause
    }
  }

  #keysOf(table: SimTable, school: string): ReadonlyArray<string> {
    return [...this.#model_(table)].flatMap(([key, row]) =>
      row["school_id"] === school ? [(JSON.parse(key) as ReadonlyArray<string>)[0] as string] : [],
    )
  }

  /** New values for one or two columns, each other than before. */
  #newValues(table: SimTable, row: Row): Row {
    const change: Record<string, string | null> = {}
    for (let i = 0; i <= this.#random.below(2); i++) {
      const column = this.#random.pick(table.columns)
      const value = column.rule === "sum" ? String(Number(row[column.name] ?? 0) + this.#random.below(20) + 1) : newValue(this.#random, column.type)
      if (value !== row[column.name]) change[column.name] = value
    }
    return change
  }

  /** One statement of a program in the school, on a row as the school shows it. */
  school(side: Side): void {
    const random = this.#random
    const { node } = side
    const table = random.pick(this.#tables)
    const rows = node.rows(table)
    const isBigint = (name: string) => table.columns.find((column) => column.name === name)?.type === "bigint"
    const bind = (name: string, value: string | null) => (value !== null && isBigint(name) ? BigInt(value) : value)
    const bindKey = (values: ReadonlyArray<string>) => values.map((value, i) => (table.key[i]?.type === "integer" ? BigInt(value) : value))
    const where = table.key.map((column) => `${column.name} = ?`).join(" AND ")
    const what = rows.size < 2 ? 0 : random.below(100)
    const done = (key: string, op: Edit["op"], base: Row | null, mine: Row | null, ids: ReadonlyArray<number>) => {
      if (ids.length !== 1) fail(`${op} of one row in ${node.id} was captured as ${ids.length} writes`, table.name, key, base, mine)
      this.#note(`${node.id} writes`, op, table.name, key, base, mine, ids)
      side.edits.set(ids[0] as number, { id: ids[0] as number, table, key, op, base, mine })
      this.count++
    }
    if (what < 35) {
      const parents =
        table.parent === null ? [] : [...node.rows(table.parent).keys()].map((key) => (JSON.parse(key) as ReadonlyArray<string>)[0] as string)
      const taken = new Set(table.unique === null ? [] : [...rows.values()].map((row) => row[table.unique as string]))
      const unique = () => {
        for (;;) {
          const value = `u${random.below(40)}`
          if (!taken.has(value)) return value
        }
      }
      const row = newRow(random, table, node.id, parents, unique)
      if (row === null) return
      const key = newKey(table, ++this.#keys)
      const names = Object.keys(row)
      const args = [...bindKey(key), ...names.map((name) => bind(name, row[name] ?? null))]
      done(keyOf(key), "insert", null, row, node.program(`${insertSql(table, names)} VALUES (${args.map(() => "?").join(", ")})`, args))
      return
    }
    const key = random.pick([...rows.keys()])
    // What waits for a person is left alone: its later edits are joined to it, which other tests try.
    if (side.refused.has(`${table.name} ${key}`)) return
    const base = rows.get(key) as Row
    const values = bindKey(JSON.parse(key) as ReadonlyArray<string>)
    if (what < 85) {
      const change = this.#newValues(table, base)
      const names = Object.keys(change)
      if (names.length === 0) return
      const args = [...names.map((name) => bind(name, change[name] ?? null)), ...values]
      const ids = node.program(`UPDATE ${table.name} SET ${names.map((name) => `${name} = ?`).join(", ")} WHERE ${where}`, args)
      done(key, "update", base, { ...base, ...change }, ids)
      return
    }
    if (this.#tables.some((other) => other.parent === table)) return
    done(key, "delete", base, null, node.program(`DELETE FROM ${table.name} WHERE ${where}`, values))
  }
}
