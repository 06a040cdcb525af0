/** Punches: stored once each, mapped to people and to attendance by the config's rule, in the transaction that OK waits for. */
import { createHash, randomUUID } from "node:crypto"
import * as Effect from "effect/Effect"
import { safely, readText } from "../libsql/cells.ts"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"
import type { Manifest, Table } from "../model/table.ts"
import type { Cell } from "../model/value.ts"
import { type Attendance, normalPin } from "./cdata.ts"
import { timestamptz, utcToWall, wallToUtc } from "./clock.ts"

export interface PunchingDevice {
  readonly id: number
  readonly serial: string
  readonly zone: string
}

const DAY_MS = 86_400_000

/** A stable id in the form of a uuid, so that a punch can make its attendance row only once. */
const idFrom = (text: string): string => {
  const hex = createHash("sha256").update(text).digest("hex")
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-5${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`
}

/** A moment as the column's own type prints it. */
const momentAs = (type: string, at: number, zone: string): string => {
  const wall = utcToWall(at, zone)
  if (type.startsWith("timestamp") && type.includes("with time zone")) return timestamptz(at)
  if (type.startsWith("timestamp")) return wall
  if (type === "date") return wall.slice(0, 10)
  if (type.startsWith("time")) return wall.slice(11)
  return timestamptz(at)
}

interface NewPunch {
  readonly id: string
  readonly record: Attendance
  readonly at: number | null
  readonly person: { readonly table: string; readonly id: string } | null
}

/** Stores what is new of an upload; the number of new punches. */
export const storePunches = (
  tx: Tx,
  options: { readonly manifest: Manifest; readonly school: string; readonly device: PunchingDevice; readonly records: ReadonlyArray<Attendance>; readonly now: number },
): Effect.Effect<number, LibsqlError> =>
  Effect.gen(function* () {
    const { manifest, school, device, records, now } = options
    const keyOf = (record: Attendance) => JSON.stringify([device.serial, record.pin, record.at, record.status, record.verify])
    const fresh = new Map(records.map((record) => [keyOf(record), record]))
    const known = yield* tx.all<{ key: string }>(
      `SELECT j.value AS key FROM json_each(?1) j WHERE EXISTS (SELECT 1 FROM punches p WHERE p.school = ?2
          AND p.device_serial = j.value ->> 0 AND p.pin = j.value ->> 1 AND p.at = j.value ->> 2 AND p.status = j.value ->> 3 AND p.verify = j.value ->> 4)`,
      [`[${[...fresh.keys()].join(",")}]`, school],
    )
    for (const { key } of known) fresh.delete(key)
    if (fresh.size === 0) return 0

    const owners = new Map(
      (yield* tx.all<{ pin: string; person_table: string; person_id: string }>(
        "SELECT pin, person_table, person_id FROM device_user_mappings WHERE school = ? AND device_id = ?",
        [school, device.id],
      )).map((row) => [normalPin(row.pin), { table: row.person_table, id: row.person_id }]),
    )
    const punches = [...fresh.values()].map((record): NewPunch => {
      const at = wallToUtc(record.at, device.zone)
      return { id: randomUUID(), record, at, person: owners.get(normalPin(record.pin)) ?? null }
    })
    const received = timestamptz(now)
    yield* tx.many(
      `INSERT INTO punches (id, school, device_serial, pin, at, status, verify, at_utc, zone, work_code, raw, person_table, person_id, flags, received_at)
       VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
      punches.map(({ id, record, at, person }) => [
        id, school, device.serial, record.pin, record.at, record.status, record.verify, at === null ? null : timestamptz(at), device.zone,
        record.workCode, record.raw, person?.table ?? null, person?.id ?? null,
        at === null ? "no_time" : at > now + DAY_MS ? "future" : at < now - 365 * DAY_MS ? "past" : null, received,
      ]),
    )
    yield* makeAttendance(tx, manifest, school, device, punches)
    return punches.length
  })

const makeAttendance = (tx: Tx, manifest: Manifest, school: string, device: PunchingDevice, punches: ReadonlyArray<NewPunch>): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const rule = manifest.devices?.attendance
    const table = manifest.tables.find((t) => t.name === rule?.table)
    if (rule === undefined || table === undefined) return
    for (const punch of punches) {
      const { person } = punch
      const people = person === null ? undefined : manifest.tables.find((t) => t.name === person.table)
      if (person === null || people === undefined || punch.at === null) continue
      const row = yield* attendanceRow(tx, { table, people, rule, personId: person.id, punch, at: punch.at, school, device })
      if (typeof row === "string") {
        yield* tx.run("UPDATE punches SET flags = ? WHERE id = ?", [row, punch.id])
        continue
      }
      const names = Object.keys(row)
      // The table's own unique constraints decide whether a second punch makes a second row.
      yield* tx.many(`INSERT INTO ${ident(table.local)} (${names.map(ident).join(", ")}) VALUES (${names.map(() => "?").join(", ")})`, [
        names.map((name) => row[name] ?? null),
      ])
    }
  })

interface RowFor {
  readonly table: Table
  readonly people: Table
  readonly rule: NonNullable<NonNullable<Manifest["devices"]>["attendance"]>
  readonly personId: string
  readonly punch: NewPunch
  readonly at: number
  readonly school: string
  readonly device: PunchingDevice
}

/** The attendance row of a punch, or why none can be made. */
const attendanceRow = (tx: Tx, { table, people, rule, personId, punch, at, school, device }: RowFor): Effect.Effect<Record<string, Cell> | string, LibsqlError> =>
  Effect.gen(function* () {
    const personKey = manifestPersonKey(people)
    const [values] = yield* tx.values(
      `SELECT ${people.columns.map((column) => safely(ident(column.name))).join(", ")} FROM ${ident(people.local)} WHERE CAST(${ident(personKey)} AS TEXT) = ?`,
      [personId],
    )
    if (values === undefined) return "attendance: the person is not in this school"
    const ofPerson = new Map(people.columns.map((column, i) => [column.name, values[i] ?? null]))
    const cell = (raw: Cell): Cell => (raw instanceof Uint8Array ? readText(raw) : raw)
    const row: Record<string, Cell> = {}
    for (const column of table.columns) {
      if (column.generated) continue
      const { name } = column
      if (table.key.includes(name) && table.key.length === 1 && name !== rule.person) {
        if (column.kind !== "text") return `attendance: key column ${name} is ${column.type}; only uuid and text keys can be made here`
        row[name] = idFrom(`attendance ${punch.id}`)
      } else if (name === rule.person) row[name] = cell(ofPerson.get(personKey) ?? null)
      else if (name === rule.at) row[name] = momentAs(column.type, at, device.zone)
      else if (name === rule.status) row[name] = punch.record.status
      else if (name === rule.device) row[name] = device.serial
      else if (table.audience !== "all" && name === table.audience.column) row[name] = column.kind === "text" ? school : BigInt(school)
      else if (column.default !== undefined) continue
      else if (ofPerson.has(name) && (column.notNull || table.references.some((reference) => reference.columns.includes(name)))) row[name] = cell(ofPerson.get(name) ?? null)
      else if (column.notNull && column.type === "date") row[name] = momentAs("date", at, device.zone)
      else if (column.notNull && column.type.startsWith("timestamp")) row[name] = momentAs(column.type, at, device.zone)
      else if (column.notNull && name === "status") row[name] = "present"
      else if (column.notNull) return `attendance: column ${name} needs a value; give it a default at head office`
    }
    return row
  })

const manifestPersonKey = (people: Table): string => people.key[0] ?? "id"
