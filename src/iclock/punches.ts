/**
 * Punches: stored once each, mapped to people and to attendance by the config's rule, in the transaction that OK waits for.
 * The id of a punch follows from what it is, so a terminal that sends its whole memory again, also to a school file that
 * was made anew, names the rows that exist.
 */
import { createHash } from "node:crypto"
import * as Effect from "effect/Effect"
import { readCell, safely } from "../libsql/cells.ts"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"
import type { Manifest, Table } from "../model/table.ts"
import type { Cell } from "../model/value.ts"
import { type AttendanceRule, attendanceRow, concerns } from "./attendance.ts"
import type { Attendance } from "./cdata.ts"
import { timestamptz, wallToUtc } from "./clock.ts"

const DAY_MS = 86_400_000
/** A clock that is further off than this is worth a word. */
export const SKEW_MS = 120_000

/** The school and its tables, as the last manifest left them. */
export interface School {
  readonly school: string
  readonly manifest: Manifest
}

export interface PunchingDevice {
  readonly id: number
  readonly serial: string
  readonly zone: string
}

export interface PunchUpload extends School {
  readonly device: PunchingDevice
  readonly records: ReadonlyArray<Attendance>
  readonly now: number
  /** The terminal's clock minus ours as measured by this upload; null = it does not tell. */
  readonly skewMs: number | null
}

const uuidOf = (...parts: ReadonlyArray<string>): string => {
  const hex = createHash("sha256").update(JSON.stringify(parts)).digest("hex")
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`
}

interface Owner {
  readonly table: string
  readonly id: string
}

interface NewPunch {
  readonly id: string
  readonly record: Attendance
  readonly at: number
  readonly owner: Owner | null
}

/** What the upload alone tells about the clock: a record from the future, or a single one from a terminal that was just in touch. */
export const skewOf = (records: ReadonlyArray<Attendance>, zone: string, now: number, isLive: boolean): number | null => {
  if (records.length === 0) return null
  const newest = Math.max(...records.map((record) => wallToUtc(record.at, zone, now)))
  return newest - now > SKEW_MS || (isLive && records.length === 1 && now - newest < DAY_MS) ? newest - now : null
}

const flagOf = (at: number, now: number, skewMs: number | null): string | null =>
  at > now + DAY_MS ? "future" : at < now - 365 * DAY_MS ? "past" : skewMs !== null && Math.abs(skewMs) > SKEW_MS ? "skew" : null

/** Stores what is new of an upload; the number of new punches. */
export const storePunches = (tx: Tx, upload: PunchUpload): Effect.Effect<number, LibsqlError> =>
  Effect.gen(function* () {
    const { school, device, records, now, skewMs } = upload
    const fresh = new Map(records.map((record) => [uuidOf(school, device.serial, record.pin, record.at, record.status, record.verify), record]))
    const known = yield* tx.all<{ id: string }>("SELECT id FROM punches WHERE id IN (SELECT value FROM json_each(?))", [
      JSON.stringify([...fresh.keys()]),
    ])
    for (const { id } of known) fresh.delete(id)
    if (fresh.size === 0) return 0
    const pins = [...new Set([...fresh.values()].map((record) => record.pin))]
    const mappings = yield* tx.all<{ pin: string; person_table: string; person_id: string }>(
      "SELECT pin, person_table, person_id FROM device_user_mappings WHERE school = ? AND device_id = ? AND pin IN (SELECT value FROM json_each(?))",
      [school, device.id, JSON.stringify(pins)],
    )
    const owners = new Map(mappings.map((row): [string, Owner] => [row.pin, { table: row.person_table, id: row.person_id }]))
    const punches = [...fresh].map(
      ([id, record]): NewPunch => ({ id, record, at: wallToUtc(record.at, device.zone, now), owner: owners.get(record.pin) ?? null }),
    )
    const received = timestamptz(now)
    const failures = yield* tx.many(
      `INSERT INTO punches (id, school, device_serial, pin, at, status, verify, at_utc, zone, work_code, raw, person_table, person_id, flags, received_at)
       VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
      punches.map(({ id, record, at, owner }) => [
        id,
        school,
        device.serial,
        record.pin,
        record.at,
        record.status,
        record.verify,
        timestamptz(at),
        device.zone,
        record.workCode,
        record.raw,
        owner?.table ?? null,
        owner?.id ?? null,
        flagOf(at, now, skewMs),
        received,
      ]),
    )
    // The same punch under another id is there already.
    const refused = new Set(failures.map((failure) => failure.index))
    const stored = punches.filter((_, index) => !refused.has(index))
    yield* makeAttendance(tx, upload, stored)
    return stored.length
  })

/** Rows of people by their id as text. Ids are compared by their own type, so that the key's index is used. */
const readRows = (tx: Tx, people: Table, idColumn: string, ids: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const isNumber = ["int", "bigint"].includes(people.columns.find((column) => column.name === idColumn)?.kind ?? "text")
    const list = isNumber ? `[${ids.filter((id) => /^-?\d{1,19}$/.test(id)).join(",")}]` : JSON.stringify(ids)
    const rows = yield* tx.values(
      `SELECT CAST(${ident(idColumn)} AS TEXT), ${people.columns.map((column) => safely(ident(column.name))).join(", ")} FROM ${ident(people.local)}
        WHERE ${ident(idColumn)} IN (SELECT value FROM json_each(?))`,
      [list],
    )
    return new Map(
      rows.map(([id, ...raw]) => {
        const cells = people.columns.flatMap((column, i): ReadonlyArray<readonly [string, Cell]> => {
          const cell = readCell(raw[i] ?? null)
          return typeof cell === "object" && cell !== null && "invalid" in cell ? [] : [[column.name, cell]]
        })
        return [String(id), new Map(cells)]
      }),
    )
  })

const makeAttendance = (tx: Tx, upload: PunchUpload, punches: ReadonlyArray<NewPunch>): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const { manifest, school, device } = upload
    const rule = manifest.devices?.attendance
    const table = manifest.tables.find((one) => one.name === rule?.table)
    if (rule === undefined || table === undefined) return
    const faults: Array<readonly [string, string]> = []
    for (const [name, people] of Object.entries(manifest.devices?.people ?? {})) {
      const theirs = punches.filter((punch) => punch.owner?.table === name)
      const peopleTable = manifest.tables.find((one) => one.name === name)
      if (theirs.length === 0 || peopleTable === undefined) continue
      const config: AttendanceRule = { table, rule, people: peopleTable, idColumn: people.id, groupColumn: people.group ?? null }
      if (!concerns(config)) continue
      const persons = yield* readRows(tx, peopleTable, people.id, [...new Set(theirs.flatMap((punch) => punch.owner?.id ?? []))])
      const rows = new Map<
        string,
        { readonly names: ReadonlyArray<string>; readonly cells: Array<ReadonlyArray<Cell>>; readonly ids: Array<string> }
      >()
      for (const punch of theirs) {
        const person = persons.get(punch.owner?.id ?? "")
        const made =
          person === undefined
            ? { fault: "attendance: the person is not in this school any more" }
            : attendanceRow(config, person, {
                rowId: uuidOf("attendance", punch.id),
                at: punch.at,
                status: punch.record.status,
                serial: device.serial,
                deviceId: device.id,
                zone: device.zone,
                school,
              })
        if ("fault" in made) {
          faults.push([punch.id, made.fault])
          continue
        }
        const names = [...made.row.keys()]
        const group = rows.get(names.join("\0")) ?? { names, cells: [], ids: [] }
        group.cells.push([...made.row.values()])
        group.ids.push(punch.id)
        rows.set(names.join("\0"), group)
      }
      for (const { names, cells, ids } of rows.values()) {
        const failures = yield* tx.many(
          `INSERT INTO ${ident(table.local)} (${names.map(ident).join(", ")}) VALUES (${names.map(() => "?").join(", ")})`,
          cells,
        )
        // A key or unique constraint says that this person's row for this day, lesson … is there already: nothing is missing.
        for (const { index, code, message } of failures) {
          if (!/UNIQUE|PRIMARYKEY|ROWID/.test(code)) faults.push([ids[index] ?? "", `attendance: ${message.slice(0, 200)}`])
        }
      }
    }
    yield* tx.many(
      "UPDATE punches SET flags = CASE WHEN flags IS NULL THEN ?2 ELSE flags || '; ' || ?2 END WHERE id = ?1",
      faults.map(([id, fault]) => [id, fault]),
    )
  })
