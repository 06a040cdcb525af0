/** A synced table as hub and school agree on it: its shape, who may see its rows, which way they travel, who wins. */
import type { Kind, Wire } from "./value.ts"

/** Ships first and is pushed first: `critical` 10 … `background` 1. */
export type Priority = "critical" | "high" | "medium" | "low" | "background"
export const classOf: Readonly<Record<Priority, number>> = { critical: 10, high: 8, medium: 5, low: 3, background: 1 }

/** `down`: head office writes. `up`: schools write, rows do not come down. `both`: either. */
export type Direction = "both" | "up" | "down"

/** Who wins when both sides wrote a row. `merge`: column by column, each by its own rule; an update wins over a delete. */
export type Strategy = "school_wins" | "vps_wins" | "newest_wins" | "manual" | "merge"

/** How one column's two values become one: a side wins, or both are put together. */
export type ColumnRule = Exclude<Strategy, "merge"> | "sum" | "max" | "min" | "union" | "append"

/** What becomes of a row whose unique value another row has already. `manual`: it waits, with a suggestion. */
export type UniqueRule = "manual" | "rename_local" | "keep_local" | "keep_remote" | "merge"

/** Placed by the rows of another table: `on` says which own column equals which of theirs, compared as Postgres prints them. */
export interface Through {
  /** With its schema: `"public.student_enrollment"`. */
  readonly through: string
  /** Own column -> column of the other table: `{ student_id: "student_id" }`. */
  readonly on: Readonly<Record<string, string>>
}

/**
 * Which schools a row belongs to: every school, the one whose id stands in a column (compared as Postgres prints it), or
 * every school to which a matching row of another table belongs.
 */
export type Audience = "all" | { readonly column: string } | Through

export const isThrough = (audience: Audience): audience is Through => audience !== "all" && "through" in audience

/**
 * Whether a link names the row that it places, as an enrolment names a pupil. Not so when the placed row names its link, as a
 * mark names its pupil, or by a foreign key the one profile of a person that person: then links may come before the rows that they will place.
 */
export const linkNamesRow = (
  rule: Through,
  row: Pick<Table, "key" | "unique" | "references">,
  link: Pick<Table, "name" | "key" | "unique">,
): boolean => {
  const pairs = Object.entries(rule.on)
  const refers = ({ table, columns, to }: Reference) => table === link.name && pairs.every(([own, other]) => to[columns.indexOf(own)] === other)
  if (row.references.some(refers)) return false
  const isKey = (table: Pick<Table, "key" | "unique">, names: ReadonlyArray<string>) =>
    [table.key, ...table.unique].some((columns) => columns.every((name) => names.includes(name)))
  return isKey(row, Object.keys(rule.on)) || !isKey(link, Object.values(rule.on))
}

/** Whether the row that a foreign key points to is in every school that has the row itself. */
export const isWithin = (
  child: Pick<Table, "audience">,
  parent: Pick<Table, "name" | "audience">,
  reference: Pick<Reference, "columns" | "to">,
): boolean => {
  if (parent.audience === "all") return true
  const target = new Map(reference.columns.map((name, i) => [name, reference.to[i]]))
  if (isThrough(child.audience)) {
    // The row that places it is the one that it points to.
    const { through, on } = child.audience
    return through === parent.name && [...target].every(([name, to]) => on[name] === to)
  }
  const [own, theirs] = [audienceColumn(child.audience), audienceColumn(parent.audience)]
  return own !== null && theirs !== null && target.get(own) === theirs
}

/** The column that holds a school's id; null when the audience is another. */
export const audienceColumn = (audience: Audience): string | null => (audience !== "all" && "column" in audience ? audience.column : null)

/**
 * `now`: the moment; a date or time without a zone is that of the machine, as Postgres takes the server's. `utc`: the same in
 * UTC. `uuid4`, `uuid7`: a new uuid. `digits`: of a second's fraction.
 */
export type ComputedDefault =
  | { readonly value: "now" | "utc"; readonly as: "timestamptz" | "timestamp" | "date" | "time" | "timetz"; readonly digits: number }
  | { readonly value: "uuid4" }
  | { readonly value: "uuid7" }

export interface Column {
  readonly name: string
  /**
   * Names the column for as long as it lives, through renames; another number under the same name is another column.
   * Absent: its name does.
   */
  readonly number?: number
  readonly kind: Kind
  /** As `format_type` prints it: `"character varying(40)"`. For people. */
  readonly type: string
  readonly notNull: boolean
  /** A constant default as a wire value; absent when there is none or it is an expression. */
  readonly default?: Wire
  /** A default that is computed, where a school's file can compute the same. */
  readonly computed?: ComputedDefault
  /** What rows hold that are older than the column and were not sent again; absent = NULL. */
  readonly fill?: Wire
  /** Computed by Postgres; never written by either side. */
  readonly generated: boolean
}

/** Under manifests before `before`: column number by name. */
export interface FormerNames {
  readonly before: number
  readonly numbers: Readonly<Record<string, number>>
}

/** What txns wrote after seq `from` of the feed may not have been taken from the stream; by now the table was compared. */
export interface Missed {
  /** 1, 2, … of each table */
  readonly no: number
  readonly from: number
}

/** Of those before it is known that there were some. */
export const MISSES = 8

/** A foreign key: `columns` of this table point to `to` of `table`. */
export interface Reference {
  readonly columns: ReadonlyArray<string>
  readonly table: string
  readonly to: ReadonlyArray<string>
}

export interface Table {
  /** Always with its schema: `"public.students"`. */
  readonly name: string
  /** Its name in the school's file: `"students"`; of another schema `"library_books"`. */
  readonly local: string
  /** Another number: rows are named anew, and what the school holds of the table is replaced as a whole. Absent = 1. */
  readonly generation?: number
  /** Changes frozen under an older manifest name rows in another way than head office now does. */
  readonly keyedSince?: number
  /** The last times that something of it may not have been heard from the stream, oldest first; at most `MISSES`. */
  readonly missed?: ReadonlyArray<Missed>
  /** Postgres's own number of it and of its columns, as the hub last took it over; at the hub only. */
  readonly stands?: { readonly oid: string; readonly numbers: Readonly<Record<string, number>> }
  readonly columns: ReadonlyArray<Column>
  /** What columns were called in changes frozen before a manifest, oldest first. */
  readonly former?: ReadonlyArray<FormerNames>
  /** Primary key columns, in index order. */
  readonly key: ReadonlyArray<string>
  /** Other unique constraints that hold for whole rows (no expression, no predicate). */
  readonly unique: ReadonlyArray<ReadonlyArray<string>>
  readonly references: ReadonlyArray<Reference>
  readonly audience: Audience
  readonly direction: Direction
  readonly priority: Priority
  readonly strategy: Strategy
  /** Rules of single columns, where they differ from the table's. */
  readonly columnStrategies: Readonly<Record<string, ColumnRule>>
  /** Columns that never cause a conflict: the later write stays, without a record. */
  readonly exclude?: ReadonlyArray<string>
  /** Absent: `manual`. */
  readonly uniqueRule?: UniqueRule
  /** `"vps"`: new rows are made at head office only; absent: schools may insert as `direction` says. */
  readonly insert?: "vps"
  /** The key is a bigint that schools give out from their own range (`model/key-range.ts`). */
  readonly keyRange?: true
  /** True for tables of schema `schoolbus`: the sync's own rows, which no school program writes. */
  readonly system: boolean
}

/** How punches become attendance: column names of `table`, and the hours and days that decide. */
export interface AttendanceRules {
  readonly table: string
  readonly person: string
  /** The tables of people whose attendance it is, where no foreign key of `person` tells. */
  readonly people?: ReadonlyArray<string>
  readonly at: string
  readonly status?: string
  readonly device?: string
  /** `punch`: every punch makes a row. `day`: one row per person and day, `at` the first in, `out` the last out. */
  readonly rows?: "punch" | "day"
  /** The column of the day, where the table has one. */
  readonly day?: string
  readonly out?: string
  /** What stands in `status`; without it, the terminal's own number. */
  readonly values?: { readonly present?: string; readonly late?: string; readonly out?: string }
  /** `from`: later than this and the grace is late. Per day of the week where it differs: `friday: "08:00"`. */
  readonly hours?: { readonly from: string; readonly graceMinutes?: number; readonly days?: Readonly<Record<string, string>> }
  /** Days without attendance, lower case: `["saturday", "sunday"]`. */
  readonly weekend?: ReadonlyArray<string>
  /** Days and spans without attendance: `"2026-12-25"`, `"2026-12-19/2027-01-05"`. */
  readonly holidays?: ReadonlyArray<string>
}

/** Where people and attendance stand in the user's tables; everything is a column name of that table. */
export interface DeviceRules {
  /** Users whom somebody entered on a terminal: taken for the person with the same card, left alone, or removed. */
  readonly terminalUsers?: "adopt" | "keep" | "remove"
  readonly people: Readonly<
    Record<
      string,
      {
        readonly id: string
        readonly name: string
        readonly card?: string
        readonly pin?: string
        readonly active?: string
        readonly activeValues?: ReadonlyArray<string>
        readonly group?: string
        /** Where the group that `group` refers to has its name. */
        readonly groupFrom?: { readonly table: string; readonly name: string }
      }
    >
  >
  readonly attendance?: AttendanceRules
}

/** What the hub tells a school about its tables. A new version means: fetch, migrate, then apply. */
export interface Manifest {
  readonly version: number
  /** `keys`: the bigint keys that this school may give out; absent when it has no number yet. */
  readonly school: { readonly id: string; readonly name: string; readonly keys?: { readonly from: string; readonly to: string } }
  readonly tables: ReadonlyArray<Table>
  /** Names the feed that gave the tables their numbers. */
  readonly feed?: string
  /** A number per table: in the same feed, another one than before means that it was taken out and put back meanwhile. */
  readonly lives?: Readonly<Record<string, number>>
  readonly devices?: DeviceRules
}

/** Under `merge`, a column without a rule of its own takes the newer value. */
export const ruleOf = (table: Table, column: string): ColumnRule =>
  table.columnStrategies[column] ?? (table.strategy === "merge" ? "newest_wins" : table.strategy)

export const isExcluded = (table: Table, column: string): boolean => table.exclude?.includes(column) === true

/** True when the time of the column's last write can decide something. */
export const needsTime = (table: Table, column: string): boolean =>
  isExcluded(table, column) || ruleOf(table, column) === "newest_wins" || table.strategy === "newest_wins"

/** SQLite tells names apart without regard to the case of ASCII letters. */
export const sameName = (name: string): string => name.replace(/[A-Z]/g, (letter) => letter.toLowerCase())

/** Whether something else stands in a school's file under the name of this table, or may; a table hides SQLite's function of its name. */
export const isReservedName = ({ name, local }: Pick<Table, "name" | "local">): boolean =>
  /^(changes$|sqlite_|pragma_|json_each$|json_tree$)/.test(sameName(local)) ||
  (sameName(local).startsWith("schoolbus_") && !name.startsWith("schoolbus."))

const formerNumbers = (table: Table, manifest: number | undefined) =>
  manifest === undefined ? undefined : table.former?.find(({ before }) => manifest < before)?.numbers

/** The manifest from which on columns and keys are named as they are now: what is written down today holds for changes from it on. */
export const namedSince = ({ former = [], keyedSince = 0 }: Pick<Table, "former" | "keyedSince">): number =>
  Math.max(0, ...[keyedSince, former.at(-1)?.before ?? 0].filter((version) => version < Number.MAX_SAFE_INTEGER))

/**
 * By a column's name under one manifest its name under a later one, absent = the present; null: that column is gone. Others are called
 * as they were.
 */
export const namesSince = (table: Table, manifest: number | undefined, until?: number): ReadonlyMap<string, string | null> => {
  const was = formerNumbers(table, manifest)
  const now = formerNumbers(table, until)
  if (was === undefined || was === now) return new Map()
  const nameNow = new Map(
    now === undefined ? table.columns.map(({ name, number }) => [number, name]) : Object.entries(now).map(([name, number]) => [number, name]),
  )
  return new Map(
    Object.entries(was).flatMap(([name, number]) => {
      const later = nameNow.get(number) ?? null
      return later === name ? [] : [[name, later] as const]
    }),
  )
}

/** The seq after which something of the table may not have been heard that `before` does not tell of; null = there is nothing of the kind. */
export const missedSince = (before: Pick<Table, "missed">, now: Pick<Table, "missed">): number | null => {
  const fresh = (now.missed ?? []).filter(({ no, from }) => before.missed?.some((known) => known.no === no && known.from === from) !== true)
  if (fresh.length === 0) return null
  return fresh.length === MISSES ? 0 : Math.min(...fresh.map(({ from }) => from))
}
