/**
 * Punches: stored once each, mapped to people and to attendance by the config's rule, in the transaction that OK waits for.
 * The id of a punch follows from what it is, so a terminal that sends its whole memory again, also to a school file that
 * was made anew, names the rows that exist.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "../libsql/client.ts"
import type { Manifest } from "../model/table.ts"
import { makeAttendance } from "./attend.ts"
import type { Attendance } from "./cdata.ts"
import { timestamptz, wallToUtc } from "./clock.ts"
import { type Owner, uuidOf } from "./persons.ts"

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
  readonly now: number
  /** The terminal's clock minus ours as measured by this upload; null = it does not tell. */
  readonly skewMs: number | null
}

/** What the upload alone tells about the clock: a record from the future, or a single one from a terminal that was just in touch. */
export const skewOf = (records: ReadonlyArray<Attendance>, zone: string, now: number, isLive: boolean): number | null => {
  if (records.length === 0) return null
  const newest = records.reduce((max, record) => (record.at > max ? record.at : max), "")
  const at = wallToUtc(newest, zone, now)
  return at - now > SKEW_MS || (isLive && records.length === 1 && now - at < DAY_MS) ? at - now : null
}

const flagOf = (at: number, now: number, skewMs: number | null): string | null =>
  at > now + DAY_MS ? "future" : at < now - 365 * DAY_MS ? "past" : skewMs !== null && Math.abs(skewMs) > SKEW_MS ? "skew" : null

export type Fresh = ReadonlyMap<string, Attendance>

/** Of the records, those that the file does not have, by the id that they get. Nothing is locked for it. */
export const freshOf = (tx: Tx, school: string, serial: string, records: ReadonlyArray<Attendance>): Effect.Effect<Fresh, LibsqlError> =>
  Effect.gen(function* () {
    const fresh = new Map(records.map((record) => [uuidOf(school, serial, record.pin, record.at, record.status, record.verify), record]))
    if (fresh.size === 0) return fresh
    const known = yield* tx.all<{ id: string }>("SELECT id FROM punches WHERE id IN (SELECT value FROM json_each(?))", [
      JSON.stringify([...fresh.keys()]),
    ])
    for (const { id } of known) fresh.delete(id)
    return fresh
  })

/** Stores what is new; the number of new punches. */
export const storePunches = (tx: Tx, upload: PunchUpload, fresh: Fresh): Effect.Effect<number, LibsqlError> =>
  Effect.gen(function* () {
    if (fresh.size === 0) return 0
    const { school, device, now, skewMs } = upload
    const pins = [...new Set([...fresh.values()].map((record) => record.pin))]
    const mappings = yield* tx.all<{ pin: string; person_table: string; person_id: string }>(
      "SELECT pin, person_table, person_id FROM device_user_mappings WHERE school = ? AND device_id = ? AND pin IN (SELECT value FROM json_each(?))",
      [school, device.id, JSON.stringify(pins)],
    )
    const owners = new Map(mappings.map((row): [string, Owner] => [row.pin, { table: row.person_table, id: row.person_id }]))
    const punches = [...fresh].map(([id, record]) => ({
      id,
      record,
      status: record.status,
      at: wallToUtc(record.at, device.zone, now),
      owner: owners.get(record.pin) ?? null,
    }))
    const received = timestamptz(now)
    const skew = skewMs === null ? null : BigInt(Math.round(skewMs / 1000))
    const failures = yield* tx.many(
      `INSERT INTO punches (id, school, device_serial, pin, at, status, verify, at_utc, zone, skew_seconds, work_code, raw, person_table, person_id, flags, received_at)
       VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
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
        skew,
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
