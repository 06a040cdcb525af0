/** Punches of known people -> rows of the school's attendance table, in the transaction that stores the punches. */
import * as Effect from "effect/Effect"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"
import type { Table } from "../model/table.ts"
import type { Cell } from "../model/value.ts"
import {
  type AttendancePunch,
  type AttendanceRow,
  type AttendanceRule,
  attendanceRow,
  concerned,
  dayColumnOf,
  isDayOff,
  isOurs,
  statusFor,
  textAs,
} from "./attendance.ts"
import { momentOf, timestamptz, utcToWall, wallToUtc } from "./clock.ts"
import { type Owner, type PersonRow, readRows, TIME_CHARS, timeOfUuid, uuidOf } from "./persons.ts"
import type { PunchingDevice } from "./punches.ts"
import type { School } from "./school.ts"

export interface AttendUpload extends School {
  readonly device: PunchingDevice
  readonly now: number
}

export interface Attended {
  readonly id: string
  /** ms since 1970 */
  readonly at: number
  readonly status: string
  readonly owner: Owner | null
}

type Fault = readonly [punchId: string, fault: string]

export const makeAttendance = (tx: Tx, upload: AttendUpload, punches: ReadonlyArray<Attended>): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const { manifest } = upload
    const rule = manifest.devices?.attendance
    const table = manifest.tables.find((one) => one.name === rule?.table)
    if (rule === undefined || table === undefined) return
    const faults: Array<Fault> = []
    const all = Object.entries(manifest.devices?.people ?? {}).flatMap(([name, people]) => {
      const peopleTable = manifest.tables.find((one) => one.name === name)
      return peopleTable === undefined ? [] : [{ people: peopleTable, idColumn: people.id, groupColumn: people.group ?? null }]
    })
    const wanted = concerned(table, rule, all)
    for (const one of all) {
      const { people: peopleTable, idColumn } = one
      const theirs = punches.filter((punch) => punch.owner?.table === peopleTable.name)
      if (theirs.length === 0 || !wanted.includes(peopleTable.name)) continue
      const config: AttendanceRule = { table, rule, ...one }
      const onDuty = theirs.filter((punch) => !isDayOff(rule, utcToWall(punch.at, upload.device.zone).slice(0, 10)))
      const persons = yield* readRows(tx, peopleTable, idColumn, [...new Set(onDuty.flatMap((punch) => punch.owner?.id ?? []))])
      const isThere = (punch: Attended) => persons.has(punch.owner?.id ?? "")
      for (const punch of onDuty) if (!isThere(punch)) faults.push([punch.id, "attendance: the person is not in this school any more"])
      const write = rule.rows === "day" ? writeDays : writeEach
      faults.push(...(yield* write(tx, upload, config, persons, onDuty.filter(isThere))))
    }
    if (faults.length > 0)
      yield* tx.many(
        "UPDATE punches SET flags = CASE WHEN flags IS NULL THEN ?2 ELSE flags || '; ' || ?2 END WHERE id = ?1",
        faults.map(([id, fault]) => [id, fault]),
      )
  })

interface RowGroup {
  readonly names: ReadonlyArray<string>
  readonly cells: Array<ReadonlyArray<Cell>>
  readonly ids: Array<string>
}

/** Rows with equal columns by one statement. */
const insertRows = (tx: Tx, table: Table, made: ReadonlyArray<{ readonly row: ReadonlyMap<string, Cell>; readonly punchId: string }>) =>
  Effect.gen(function* () {
    const groups = new Map<string, RowGroup>()
    for (const { row, punchId } of made) {
      const names = [...row.keys()]
      const group = groups.get(names.join("\0")) ?? { names, cells: [], ids: [] }
      group.cells.push([...row.values()])
      group.ids.push(punchId)
      groups.set(names.join("\0"), group)
    }
    const faults: Array<Fault> = []
    for (const { names, cells, ids } of groups.values()) {
      const failures = yield* tx.many(
        `INSERT INTO ${ident(table.local)} (${names.map(ident).join(", ")}) VALUES (${names.map(() => "?").join(", ")})`,
        cells,
      )
      // A key or unique constraint says that this person's row for this day, lesson … is there already: nothing is missing.
      for (const { index, code, message } of failures) {
        if (!/UNIQUE|PRIMARYKEY|ROWID/.test(code)) faults.push([ids[index] ?? "", `attendance: ${message.slice(0, 200)}`])
      }
    }
    return faults
  })

/** The person's punches of a day: parameters are these. */
const OF_DAY = "person_id = ? AND person_table = ? AND at_utc >= ? AND at_utc < ?"
const ofDay = (owner: Owner, day: string, zone: string): ReadonlyArray<string> => [
  owner.id,
  owner.table,
  timestamptz(wallToUtc(`${day} 00:00:00`, zone, 0)),
  timestamptz(wallToUtc(`${new Date(Date.parse(`${day}T00:00:00Z`) + 86_400_000).toISOString().slice(0, 10)} 00:00:00`, zone, 0)),
]

/** The person's first and last moment of a day, from all punches in the file. */
const spanOf = (tx: Tx, owner: Owner, day: string, zone: string) =>
  Effect.map(
    tx.all<{ first: string | null; last: string | null }>(
      `SELECT min(at_utc) AS first, max(at_utc) AS last FROM punches WHERE ${OF_DAY}`,
      ofDay(owner, day, zone),
    ),
    ([row]) => ({ first: row?.first == null ? null : momentOf(row.first), last: row?.last == null ? null : momentOf(row.last) }),
  )

/** A punch makes its row once, whatever zone its terminal is given meanwhile. */
const rowIdOf = (punchId: string): string => uuidOf(timeOfUuid(punchId), "attendance", punchId.slice(TIME_CHARS))

/** What is the same for every row of an upload. */
const rowOf = (
  { device, school }: AttendUpload,
  config: AttendanceRule,
  person: PersonRow | undefined,
  of: Pick<AttendancePunch, "rowId" | "at" | "out" | "status">,
): AttendanceRow => attendanceRow(config, person ?? new Map(), { ...of, serial: device.serial, deviceId: device.id, zone: device.zone, school })

/** A row for every punch. */
const writeEach = (
  tx: Tx,
  upload: AttendUpload,
  config: AttendanceRule,
  persons: ReadonlyMap<string, PersonRow>,
  punches: ReadonlyArray<Attended>,
): Effect.Effect<ReadonlyArray<Fault>, LibsqlError> =>
  Effect.gen(function* () {
    const { device } = upload
    const faults: Array<Fault> = []
    const made: Array<{ row: ReadonlyMap<string, Cell>; punchId: string }> = []
    const firsts = new Map<string, { readonly owner: Owner; readonly day: string }>()
    const isJudged = config.rule.values !== undefined || config.rule.hours !== undefined
    for (const punch of punches) {
      const wall = utcToWall(punch.at, device.zone)
      const span = isJudged && punch.owner !== null ? yield* spanOf(tx, punch.owner, wall.slice(0, 10), device.zone) : null
      const isFirst = span?.first == null || punch.at <= span.first
      const result = rowOf(upload, config, persons.get(punch.owner?.id ?? ""), {
        rowId: rowIdOf(punch.id),
        at: punch.at,
        status: isJudged ? statusFor(config.rule, wall, isFirst) : punch.status,
      })
      if ("fault" in result) faults.push([punch.id, result.fault])
      else made.push({ row: result.row, punchId: punch.id })
      if (isJudged && isFirst && punch.owner !== null)
        firsts.set(`${punch.owner.id}\0${wall.slice(0, 10)}`, { owner: punch.owner, day: wall.slice(0, 10) })
    }
    const here = new Set(punches.map(({ id }) => id))
    for (const { owner, day } of firsts.values()) yield* judgeLater(tx, upload, config, owner, day, here)
    return [...faults, ...(yield* insertRows(tx, config.table, made))]
  })

/**
 * A punch came that is earlier than what came before it: one of those was judged as the first of the day, and is not. A status
 * that a person entered stays.
 */
const judgeLater = (tx: Tx, upload: AttendUpload, config: AttendanceRule, owner: Owner, day: string, here: ReadonlySet<string>) =>
  Effect.gen(function* () {
    const { table, rule } = config
    const [key = ""] = table.key
    const column = rule.status === undefined ? undefined : table.columns.find(({ name }) => name === rule.status)
    if (column === undefined || table.key.length !== 1) return
    const later = yield* tx.all<{ id: string; at: string; zone: string }>(
      `SELECT id, at_utc AS at, zone FROM punches WHERE ${OF_DAY} ORDER BY at_utc`,
      ofDay(owner, day, upload.device.zone),
    )
    const first = later[0]?.at
    for (const punch of later) {
      if (here.has(punch.id) || punch.at === first) continue
      const status = textAs(column, statusFor(rule, utcToWall(momentOf(punch.at), punch.zone), false))
      const where = `${ident(key)} = ?`
      const [row] = yield* tx.all<{ status: string | null }>(
        `SELECT CAST(${ident(column.name)} AS TEXT) AS status FROM ${ident(table.local)} WHERE ${where}`,
        [rowIdOf(punch.id)],
      )
      if (status === null || row === undefined || row.status === String(status) || !isOurs(rule, row.status)) continue
      yield* tx.run(`UPDATE ${ident(table.local)} SET ${ident(column.name)} = ? WHERE ${where}`, [status, rowIdOf(punch.id)])
    }
  })

/** One row per person and day, whatever order the punches come in: the first in, the last out. */
const writeDays = (
  tx: Tx,
  upload: AttendUpload,
  config: AttendanceRule,
  persons: ReadonlyMap<string, PersonRow>,
  punches: ReadonlyArray<Attended>,
): Effect.Effect<ReadonlyArray<Fault>, LibsqlError> =>
  Effect.gen(function* () {
    const { device, school } = upload
    const faults: Array<Fault> = []
    const days = new Map<string, { readonly owner: Owner; readonly day: string; readonly punch: Attended }>()
    for (const punch of punches) {
      const day = utcToWall(punch.at, device.zone).slice(0, 10)
      if (punch.owner !== null) days.set(`${punch.owner.id}\0${day}`, { owner: punch.owner, day, punch })
    }
    for (const { owner, day, punch } of days.values()) {
      const { first, last } = yield* spanOf(tx, owner, day, device.zone)
      const at = first ?? punch.at
      const result = rowOf(upload, config, persons.get(owner.id), {
        rowId: uuidOf(Date.parse(`${day}T00:00:00Z`), "attendance-day", school, owner.table, owner.id, day),
        at,
        out: last !== null && last > at ? last : null,
        status: statusFor(config.rule, utcToWall(at, device.zone), true),
      })
      if ("fault" in result) faults.push([punch.id, result.fault])
      else faults.push(...(yield* writeDay(tx, config, result.row, day, punch.id)))
    }
    return faults
  })

/** Makes the day's row, or carries it along; what a person entered in it stays. */
const writeDay = (tx: Tx, config: AttendanceRule, row: ReadonlyMap<string, Cell>, day: string, punchId: string) =>
  Effect.gen(function* () {
    const { table, rule } = config
    const dayColumn = dayColumnOf(config)
    const [key = ""] = table.key
    const byKey = table.key.length === 1 && row.has(key) ? [{ where: `${ident(key)} = ?`, args: [row.get(key) ?? null] }] : []
    const byDay =
      dayColumn === null
        ? []
        : [{ where: `${ident(rule.person)} = ? AND ${ident(dayColumn)} = ?`, args: [row.get(rule.person) ?? null, row.get(dayColumn) ?? day] }]
    for (const { where, args } of [...byKey, ...byDay]) {
      const [found] = yield* tx.all<{ at: string | null; status: string | null }>(
        `SELECT ${ident(rule.at)} AS at, ${rule.status === undefined ? "NULL" : `CAST(${ident(rule.status)} AS TEXT)`} AS status FROM ${ident(table.local)} WHERE ${where} LIMIT 1`,
        args,
      )
      if (found === undefined) continue
      const set = new Map<string, Cell>()
      if (byKey.some((one) => one.where === where) || found.at === null) set.set(rule.at, row.get(rule.at) ?? null)
      if (rule.out !== undefined && row.has(rule.out)) set.set(rule.out, row.get(rule.out) ?? null)
      if (rule.status !== undefined && row.has(rule.status) && isOurs(rule, found.status)) set.set(rule.status, row.get(rule.status) ?? null)
      for (const name of table.key) set.delete(name)
      const names = [...set.keys()]
      // A row that would not change is not written: it would travel for nothing.
      if (names.length > 0)
        yield* tx.run(
          `UPDATE ${ident(table.local)} SET ${names.map((name) => `${ident(name)} = ?`).join(", ")} WHERE ${where}
              AND (${names.map((name) => `${ident(name)} IS NOT ?`).join(" OR ")})`,
          [...set.values(), ...args, ...set.values()],
        )
      return []
    }
    return yield* insertRows(tx, table, [{ row, punchId }])
  })
