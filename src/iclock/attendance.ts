/**
 * A punch -> the row of the school's attendance table, by the config's rule (pure). What the rule does not name is taken from
 * what is known: the school, the person's own row, the moment. A row that cannot be made is a fault in words, never a guess.
 */
import { type AttendanceRules, audienceColumn, type Column, type Table } from "../model/table.ts"
import type { Cell } from "../model/value.ts"
import { timestamptz, utcToWall } from "./clock.ts"

export interface AttendanceRule {
  readonly table: Table
  readonly rule: AttendanceRules
  /** The table of the person who punched, its id column by the people rule, and that person's row. */
  readonly people: Table
  readonly idColumn: string
  readonly groupColumn: string | null
}

export interface AttendancePunch {
  /** Makes the attendance row's own id, so that a punch makes its row once. */
  readonly rowId: string
  /** ms since 1970. */
  readonly at: number
  /** The last out of the day; null or absent: none yet. */
  readonly out?: number | null
  readonly status: string
  readonly serial: string
  readonly deviceId: number
  readonly zone: string
  readonly school: string
}

export type AttendanceRow = { readonly row: ReadonlyMap<string, Cell> } | { readonly fault: string }

/** Days and times of day are the school's; moments are UTC, as Postgres prints them. null: the column holds no time. */
const momentAs = (column: Column, at: number, zone: string): string | null => {
  if (column.kind !== "text") return null
  if (column.type === "date") return utcToWall(at, zone).slice(0, 10)
  if (column.type.startsWith("timestamp"))
    return column.type.includes("without") || !column.type.includes("with time zone") ? utcToWall(at, "UTC") : timestamptz(at)
  if (column.type.startsWith("time")) return utcToWall(at, zone).slice(11)
  return timestamptz(at)
}

const isTime = (column: Column): boolean => /^(date|time)/.test(column.type)

/** Text as the column's kind; null when it cannot be. */
export const textAs = (column: Column, text: string): Cell => {
  switch (column.kind) {
    case "text":
      return text
    case "numeric":
      return /^-?\d+(\.\d+)?$/.test(text) ? text : null
    case "int":
    case "bigint":
      return /^-?\d{1,18}$/.test(text) ? BigInt(text) : null
    default:
      return null
  }
}

const DAYS = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"] as const
const weekday = (day: string): string => DAYS[new Date(`${day}T00:00:00Z`).getUTCDay()] ?? ""

/** `day`: `"2026-03-03"`, where the terminal hangs. */
export const isDayOff = (rule: AttendanceRules, day: string): boolean =>
  (rule.weekend ?? []).includes(weekday(day)) ||
  (rule.holidays ?? []).some((span) => {
    const [from = "", to = from] = span.split("/")
    return from <= day && day <= to
  })

/** What stands in the status column for a punch at this wall clock; `isFirst`: the person's first of the day. */
export const statusFor = (rule: AttendanceRules, wall: string, isFirst: boolean): string => {
  const present = rule.values?.present ?? "present"
  if (!isFirst) return rule.values?.out ?? present
  const from = rule.hours?.days?.[weekday(wall.slice(0, 10))] ?? rule.hours?.from
  if (from === undefined) return present
  const minutes = (time: string): number => Number(time.slice(0, 2)) * 60 + Number(time.slice(3, 5))
  return minutes(wall.slice(11, 16)) > minutes(from) + (rule.hours?.graceMinutes ?? 0) ? (rule.values?.late ?? "late") : present
}

/** A status that this rule wrote; anything else was written by a person. */
export const isOurs = (rule: AttendanceRules, status: string | null): boolean =>
  status === null || [rule.values?.present ?? "present", rule.values?.late ?? "late", rule.values?.out].includes(status)

/** The column that says which day a row is of. */
export const dayColumnOf = ({ table, rule }: Pick<AttendanceRule, "table" | "rule">): string | null =>
  rule.day ?? (table.columns.find((column) => column.name === rule.at)?.type === "date" ? rule.at : null)

const isNumber = (column: Column | undefined): boolean => column !== undefined && ["int", "bigint", "numeric"].includes(column.kind)

/** Where ids of people stand: a table and its id column by the people rule. */
export interface PeopleIds {
  readonly people: Table
  readonly idColumn: string
}

/**
 * Whose attendance the table is about, by table name: those that the rule names, else the table that the person column refers to,
 * else those whose ids the column can hold. A number says nothing of its table, so of several with numbers only the first.
 */
export const concerned = (table: Table, rule: AttendanceRules, all: ReadonlyArray<PeopleIds>): ReadonlyArray<string> => {
  const named = rule.people
  if (named !== undefined) return all.flatMap(({ people }) => (named.includes(people.name) ? [people.name] : []))
  const reference = table.references.find((one) => one.columns.length === 1 && one.columns[0] === rule.person)
  if (reference !== undefined) return all.flatMap(({ people }) => (people.name === reference.table ? [people.name] : []))
  const column = table.columns.find(({ name }) => name === rule.person)
  const idOf = ({ people, idColumn }: PeopleIds) => people.columns.find(({ name }) => name === idColumn)
  const fitting = all.filter((one) => {
    const id = idOf(one)
    return isNumber(column) ? isNumber(id) : column?.type !== "uuid" || id?.type === "uuid"
  })
  const firstNumber = fitting.find((one) => isNumber(idOf(one)))
  return fitting.filter((one) => one === firstNumber || !isNumber(idOf(one))).map(({ people }) => people.name)
}

export const attendanceRow = (config: AttendanceRule, person: ReadonlyMap<string, Cell>, punch: AttendancePunch): AttendanceRow => {
  const { table, rule, idColumn, groupColumn } = config
  const row = new Map<string, Cell>()
  const references = (column: string) => table.references.find((one) => one.columns.length === 1 && one.columns[0] === column)
  const valueOf = (column: Column): Cell | undefined => {
    const { name } = column
    if (name === rule.person) return person.get(references(name)?.to[0] ?? idColumn) ?? person.get(idColumn) ?? null
    if (name === rule.at) return momentAs(column, punch.at, punch.zone)
    if (name === rule.day) return momentAs(column, punch.at, punch.zone)
    if (name === rule.out) return punch.out == null ? null : momentAs(column, punch.out, punch.zone)
    if (name === rule.status) return textAs(column, punch.status)
    if (name === rule.device) return textAs(column, column.kind === "text" ? punch.serial : String(punch.deviceId))
    if (name === audienceColumn(table.audience)) return textAs(column, punch.school)
    if (table.key.length === 1 && table.key[0] === name) return column.kind === "text" ? punch.rowId : undefined
    if (column.default !== undefined) return undefined
    const isLink = references(name) !== undefined || name === groupColumn || /(_id|Id)$/.test(name)
    if (isLink && person.has(name)) return person.get(name) ?? null
    if (!column.notNull) return undefined
    if (isTime(column)) return momentAs(column, punch.at, punch.zone)
    return name === "status" && column.kind === "text" ? "present" : undefined
  }
  for (const column of table.columns) {
    if (column.generated) continue
    const value = valueOf(column)
    if (value !== undefined && value !== null) row.set(column.name, value)
    else if (table.key.includes(column.name) && table.key.length === 1 && column.name !== rule.person) {
      return { fault: `attendance: the key ${column.name} is ${column.type}; the school can make keys of uuid or text only` }
    } else if (column.name === rule.person || column.name === rule.at || (column.notNull && column.default === undefined)) {
      return {
        fault: `attendance: ${table.local}.${column.name} (${column.type}) cannot be filled from a punch; give it a constant default at head office`,
      }
    }
  }
  return { row }
}
