/**
 * Punches: stored once each, mapped to people and to attendance by the config's rule, in the transaction that OK waits for.
 * The id of a punch follows from what it is, so a terminal that sends its whole memory again, also to a school file that
 * was made anew, names the rows that exist.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import type { Manifest } from "../model/table.ts"
import { makeAttendance } from "./attend.ts"
import type { Attendance } from "./cdata.ts"
import { timestamptz, wallToUtc } from "./clock.ts"
import { type Owner, uuidOf } from "./persons.ts"

const DAY_MS = 86_400_000
/** A clock that is further off than this is worth a word. */
export const SKEW_MS = 120_000
/** About 68 years, the most that head office's column holds: a clock that is wrong by more is not more wrong. */
const MAX_SKEW_MS = 2_147_483_647_000

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
  readonly now: number
  /** The terminal's clock minus ours as measured by this upload; null = it does not tell. */
  readonly skewMs: number | null
}

/** What the upload alone tells about the clock: a record from the future, or a single one from a terminal that was just in touch. */
export const skewOf = (records: ReadonlyArray<Attendance>, zone: string, now: number, isLive: boolean): number | null => {
  if (records.length === 0) return null
  const newest = records.reduce((max, record) => (record.at > max ? record.at : max), "")
  const at = wallToUtc(newest, zone, now)
  return at - now > SKEW_MS || (isLive && records.length === 1 && now - at < DAY_MS) ? Math.min(at - now, MAX_SKEW_MS) : null
}

const flagOf = (at: number, now: number, skewMs: number | null): string | null =>
  at > now + DAY_MS ? "future" : at < now - 365 * DAY_MS ? "past" : skewMs !== null && Math.abs(skewMs) > SKEW_MS ? "skew" : null

/** A record with the id and the moment that it gets. */
export interface Stamped {
  readonly id: string
  readonly record: Attendance
  readonly status: string
  /** ms since 1970. */
  readonly at: number
}

/** What is known of records before the file is asked; two that are the same count once. */
export const stamped = (school: string, device: PunchingDevice, records: ReadonlyArray<Attendance>, now: number): ReadonlyArray<Stamped> => {
  const byId = new Map<string, Stamped>()
  for (const record of records) {
    const id = uuidOf(school, device.serial, record.pin, record.at, record.status, record.verify)
    byId.set(id, { id, record, status: record.status, at: wallToUtc(record.at, device.zone, now) })
  }
  return [...byId.values()]
}

/** Those that the file does not have. Nothing is locked for it. */
export const unknownOf = (tx: Tx, punches: ReadonlyArray<Stamped>): Effect.Effect<ReadonlyArray<Stamped>, LibsqlError> =>
  punches.length === 0
    ? Effect.succeed([])
    : Effect.map(
        tx.all<{ id: string }>("SELECT id FROM punches WHERE id IN (SELECT value FROM json_each(?))", [JSON.stringify(punches.map(({ id }) => id))]),
        (known) => {
          const ids = new Set(known.map(({ id }) => id))
          return punches.filter(({ id }) => !ids.has(id))
        },
      )

const OWNER = (column: string): string => `(SELECT ${column} FROM device_user_mappings WHERE school = ?2 AND device_id = ?15 AND pin = ?4)`

const readOwners = (
  tx: Tx,
  school: string,
  deviceId: number,
  punches: ReadonlyArray<Stamped>,
): Effect.Effect<ReadonlyMap<string, Owner>, LibsqlError> =>
  Effect.map(
    tx.values(
      "SELECT pin, person_table, person_id FROM device_user_mappings WHERE school = ? AND device_id = ? AND pin IN (SELECT value FROM json_each(?))",
      [school, deviceId, JSON.stringify([...new Set(punches.map(({ record }) => record.pin))])],
    ),
    (rows) => new Map(rows.map(([pin, table, id]) => [String(pin), { table: String(table), id: String(id) }])),
  )

/** The statement that stores punches, owners included, and its rows. */
const insertOf = ({ school, device, now, skewMs }: PunchUpload, records: ReadonlyArray<Stamped>) => {
  const received = timestamptz(now)
  const skew = skewMs === null ? null : BigInt(Math.round(skewMs / 1000))
  const id = BigInt(device.id)
  const sql = `INSERT INTO punches (id, school, device_serial, pin, at, status, verify, at_utc, zone, skew_seconds, work_code, raw, flags, received_at, person_table, person_id)
       VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,${OWNER("person_table")},${OWNER("person_id")})`
  const rows = records.map(({ id: key, record, at }) => [
    key,
    school,
    device.serial,
    record.pin,
    record.at,
    record.status,
    record.verify,
    timestamptz(at),
    device.zone,
    skew,
    record.workCode,
    record.raw,
    flagOf(at, now, skewMs),
    received,
    id,
  ])
  return { sql, rows }
}

/** Stores what is new, when nothing else is to be done with it; a punch that is there already is left as it is. */
export const insertPunches = (db: LibsqlFile, upload: PunchUpload, records: ReadonlyArray<Stamped>): Effect.Effect<void, LibsqlError> => {
  const { sql, rows } = insertOf(upload, records)
  return Effect.asVoid(db.insert(sql, rows))
}

/** Punches make attendance here, so they are not all that an upload writes. */
export const makesAttendance = ({ manifest }: School): boolean => manifest.devices?.attendance !== undefined

/** Stores what is new, with attendance; a punch that is there already, under whatever id, is left as it is. The number of new ones. */
export const storePunches = (tx: Tx, upload: PunchUpload, records: ReadonlyArray<Stamped>): Effect.Effect<number, LibsqlError> =>
  Effect.gen(function* () {
    if (records.length === 0) return 0
    const { sql, rows } = insertOf(upload, records)
    const failures = yield* tx.many(sql, rows)
    const refused = new Set(failures.map((failure) => failure.index))
    const stored = records.filter((_, index) => !refused.has(index))
    if (!makesAttendance(upload) || stored.length === 0) return stored.length
    const owners = yield* readOwners(tx, upload.school, upload.device.id, stored)
    yield* makeAttendance(
      tx,
      upload,
      stored.map((one) => ({ ...one, owner: owners.get(one.record.pin) ?? null })),
    )
    return stored.length
  })
