/**
 * Punches: stored once each, mapped to people and to attendance by the config's rule, in the transaction that OK waits for.
 * The id of a punch follows from what it is, so a terminal that sends its whole memory again, also to a school file that
 * was made anew, names the rows that exist.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import type { Bind } from "../libsql/messages.ts"
import { makeAttendance } from "./attend.ts"
import type { Attendance, Reject } from "./cdata.ts"
import { naiveOf, timestamptz, wallToUtc } from "./clock.ts"
import { type Owner, uuidOf } from "./persons.ts"
import type { Contact } from "./devices.ts"
import type { School } from "./school.ts"

const DAY_MS = 86_400_000
/** A clock that is further off than this is worth a word. */
export const SKEW_MS = 120_000
/** About 68 years, the most that head office's column holds: a clock that is wrong by more is not more wrong. */
const MAX_SKEW_MS = 2_147_483_647_000

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
  /** Ids of punches that were made before their pin was given to somebody of whom the terminal has not been told: another's. */
  readonly strangers: ReadonlySet<string>
}

/**
 * What the upload alone tells about the clock: a record from the future, or a single one from a terminal that was just in touch,
 * unless it may have been made while the terminal was not.
 */
export const skewOf = (records: ReadonlyArray<Attendance>, zone: string, now: number, { isLive, silence }: Contact): number | null => {
  if (records.length === 0) return null
  const newest = records.reduce((max, record) => (record.at > max ? record.at : max), "")
  const at = wallToUtc(newest, zone, now)
  const wasSilent = silence !== null && at > silence.from - SKEW_MS && at < silence.to + SKEW_MS
  const isOfNow = isLive && !wasSilent && records.length === 1 && now - at < DAY_MS
  return at - now > SKEW_MS || isOfNow ? Math.min(at - now, MAX_SKEW_MS) : null
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
  /** How often more the upload has it. */
  extra: number
}

/** What is known of records before the file is asked; two that are the same count once. */
export const stamped = (school: string, device: PunchingDevice, records: ReadonlyArray<Attendance>, now: number): ReadonlyArray<Stamped> => {
  const byId = new Map<string, Stamped>()
  for (const record of records) {
    const { pin, at, moment, status, verify } = record
    // A record that names its moment stays the same when the terminal's zone is corrected; its wall clock does not.
    const id =
      moment === null
        ? uuidOf(naiveOf(at), school, device.serial, pin, status, verify)
        : uuidOf(moment, "utc", school, device.serial, pin, status, verify)
    const twin = byId.get(id)
    if (twin === undefined) byId.set(id, { id, record, status, at: moment ?? wallToUtc(at, device.zone, now), extra: 0 })
    else twin.extra++
  }
  return [...byId.values()]
}

/** Of those that an upload had more than once, the ones of which the file does not know it. */
export const unknownTwins = (tx: Tx, punches: ReadonlyArray<Stamped>): Effect.Effect<ReadonlyArray<Stamped>, LibsqlError> => {
  const twins = punches.filter(({ extra }) => extra > 0)
  if (twins.length === 0) return Effect.succeed([])
  const known = tx.all<{ punch: string; extra: number }>(
    "SELECT punch, extra FROM schoolbus_iclock_twin WHERE punch IN (SELECT value FROM json_each(?))",
    [JSON.stringify(twins.map(({ id }) => id))],
  )
  return Effect.map(known, (rows) => {
    const extras = new Map(rows.map(({ punch, extra }) => [punch, extra]))
    return twins.filter(({ id, extra }) => extra > (extras.get(id) ?? 0))
  })
}

export const storeTwins = (tx: Tx, twins: ReadonlyArray<Stamped>) =>
  tx.many(
    "INSERT INTO schoolbus_iclock_twin (punch, extra) VALUES (?,?) ON CONFLICT (punch) DO UPDATE SET extra = max(extra, excluded.extra)",
    twins.map(({ id, extra }) => [id, BigInt(extra)]),
  )

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

/**
 * A punch on its way into SQL is one text: its parts side by side, each as wide as the widest of the upload, then the raw line. SQL
 * cuts them out sooner than out of JSON.
 */
const PARTS = ["id", "at", "atUtc", "pin", "status", "verify", "workCode", "flag"] as const
type Part = (typeof PARTS)[number]

/** Parameters: the texts and what they have in common, then for each part where it begins and how wide it is, then where the raw line begins. */
const COMMON = 7
const cut = (part: Part): string => {
  const n = COMMON + 1 + 2 * PARTS.indexOf(part)
  return `rtrim(substr(j.value, ?${n}, ?${n + 1}))`
}
const RAW = `substr(j.value, ?${COMMON + 1 + 2 * PARTS.length})`

/** Stores punches that are not there, owners included: ?1 their texts as a JSON list, then what they have in common. */
const INSERT = `INSERT INTO punches (id, school, device_serial, pin, at, status, verify, at_utc, zone, skew_seconds, work_code, raw, flags, received_at, person_table, person_id)
  SELECT ${cut("id")}, ?2, ?3, ${cut("pin")}, ${cut("at")}, ${cut("status")}, ${cut("verify")}, ${cut("atUtc")}, ?4, ?5,
         nullif(${cut("workCode")}, ''), ${RAW}, nullif(${cut("flag")}, ''), ?6, m.person_table, m.person_id
    FROM json_each(?1) j LEFT JOIN device_user_mappings m ON m.school = ?2 AND m.device_id = ?7 AND m.pin = ${cut("pin")}
   WHERE NOT EXISTS (SELECT 1 FROM punches p WHERE p.id = ${cut("id")}) ON CONFLICT DO NOTHING`

const padded = (text: string, width: number): string => (text.length === width ? text : text.padEnd(width))

const argsOf = ({ school, device, now, skewMs }: PunchUpload, records: ReadonlyArray<Stamped>): ReadonlyArray<Bind> => {
  const widths = { id: 36, at: 19, atUtc: 22, pin: 0, status: 0, verify: 0, workCode: 0, flag: 0 }
  const flags = records.map(({ at }) => flagOf(at, now, skewMs) ?? "")
  for (const [i, { record }] of records.entries()) {
    widths.pin = Math.max(widths.pin, record.pin.length)
    widths.status = Math.max(widths.status, record.status.length)
    widths.verify = Math.max(widths.verify, record.verify.length)
    widths.workCode = Math.max(widths.workCode, record.workCode?.length ?? 0)
    widths.flag = Math.max(widths.flag, flags[i]?.length ?? 0)
  }
  const texts = records.map(
    ({ id, record, at }, i) =>
      id +
      record.at +
      timestamptz(at) +
      padded(record.pin, widths.pin) +
      padded(record.status, widths.status) +
      padded(record.verify, widths.verify) +
      padded(record.workCode ?? "", widths.workCode) +
      padded(flags[i] ?? "", widths.flag) +
      record.raw,
  )
  let at = 1
  const places = PARTS.flatMap((part) => {
    at += widths[part]
    return [at - widths[part], widths[part]]
  })
  return [
    JSON.stringify(texts),
    school,
    device.serial,
    device.zone,
    skewMs === null ? null : Math.round(skewMs / 1000),
    timestamptz(now),
    device.id,
    ...places,
    at,
  ]
}

/** Punches make attendance here, so they are not all that an upload writes. */
export const makesAttendance = ({ manifest }: School): boolean => manifest.devices?.attendance !== undefined

/** Stores what is new, when nothing else is to be done with it, in a transaction of its own; false: some of it is refused, so they go one by one. */
export const insertPunches = (db: LibsqlFile, upload: PunchUpload, records: ReadonlyArray<Stamped>): Effect.Effect<boolean, LibsqlError> =>
  records.length === 0
    ? Effect.succeed(true)
    : Effect.catch(Effect.as(db.alone(INSERT, argsOf(upload, records)), true), (error) =>
        isRefusal(error) ? Effect.succeed(false) : Effect.fail(error),
      )

/** A program's trigger or constraint of this file refuses a row: the terminal's sending it again would not help. */
const isRefusal = (error: LibsqlError): boolean => error.code.startsWith("SQLITE_CONSTRAINT")

/** No terminal has this number, so none of its pins is anybody's. */
const NO_DEVICE = -1

interface Inserted {
  /** Owners by punch, null: nobody. */
  readonly stored: ReadonlyMap<string, Owner | null>
  readonly refused: ReadonlyArray<Reject>
}

const encoder = new TextEncoder()
const refusal = ({ record }: Stamped, { message }: LibsqlError): Reject => ({
  raw: encoder.encode(record.raw),
  reason: `not stored: ${message.slice(0, 200)}`,
})

/** Stores what is new, all at once, or one by one when that is refused; what a program's trigger does not let in is kept as it came. */
const insertIn = (tx: Tx, upload: PunchUpload, records: ReadonlyArray<Stamped>): Effect.Effect<Inserted, LibsqlError> => {
  if (records.length === 0) return Effect.succeed({ stored: new Map(), refused: [] })
  const inserted = Effect.map(
    tx.values(`${INSERT} RETURNING id, person_table, person_id`, argsOf(upload, records)),
    (rows): Inserted => ({
      stored: new Map(rows.map(([id, table, person]) => [String(id), table === null ? null : { table: String(table), id: String(person) }])),
      refused: [],
    }),
  )
  const oneByOne = (error: LibsqlError): Effect.Effect<Inserted, LibsqlError> => {
    const [only, ...others] = records
    if (only !== undefined && others.length === 0) return Effect.succeed({ stored: new Map(), refused: [refusal(only, error)] })
    return Effect.map(
      Effect.forEach(records, (record) => insertIn(tx, upload, [record])),
      (all) => ({
        stored: new Map(all.flatMap(({ stored }) => [...stored])),
        refused: all.flatMap(({ refused }) => refused),
      }),
    )
  }
  return Effect.catch(inserted, (error) => (isRefusal(error) ? oneByOne(error) : Effect.fail(error)))
}

/** Stores what is new, with attendance; a punch that is there already, under whatever id, is left as it is. What could not be stored. */
export const storePunches = (tx: Tx, upload: PunchUpload, records: ReadonlyArray<Stamped>): Effect.Effect<ReadonlyArray<Reject>, LibsqlError> =>
  Effect.gen(function* () {
    if (records.length === 0) return []
    const mapped = yield* insertIn(
      tx,
      upload,
      records.filter(({ id }) => !upload.strangers.has(id)),
    )
    const others = records.filter(({ id }) => upload.strangers.has(id))
    const unmapped = yield* insertIn(tx, { ...upload, device: { ...upload.device, id: NO_DEVICE } }, others)
    const stored = new Map([...mapped.stored, ...unmapped.stored])
    const refused = [...mapped.refused, ...unmapped.refused]
    if (makesAttendance(upload) && stored.size > 0)
      yield* makeAttendance(
        tx,
        upload,
        records.flatMap((one) => (stored.has(one.id) ? [{ ...one, owner: stored.get(one.id) ?? null }] : [])),
      )
    return refused
  })
