/** Punches whose pin nobody had: kept as they came, and given to their person, with attendance, once it is known who that is. */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "../libsql/client.ts"
import { makeAttendance } from "./attend.ts"
import { normalPin } from "./cdata.ts"
import { timestamptz } from "./clock.ts"
import { readRows } from "./persons.ts"
import type { PunchingDevice } from "./punches.ts"
import type { School } from "./school.ts"

/** Punches that one transaction gives to people: no school program waits long for it. */
export const CHUNK_PUNCHES = 500

/** Gives some waiting punches of these pins to those who hold the pins now; how many. Fewer than a chunk: those were the last. */
export const mapUnknown = (
  tx: Tx,
  state: School,
  device: PunchingDevice,
  pins: ReadonlyArray<string>,
  now: number,
): Effect.Effect<number, LibsqlError> =>
  Effect.gen(function* () {
    if (pins.length === 0) return 0
    const rows = yield* tx.all<{ id: string; pin: string; at_utc: string; status: string; person_table: string; person_id: string }>(
      `SELECT p.id, p.pin, p.at_utc, p.status, m.person_table, m.person_id
         FROM punches p JOIN device_user_mappings m ON m.school = ?1 AND m.device_id = ?2 AND m.pin = p.pin
        WHERE p.device_serial = ?3 AND p.person_id IS NULL AND p.pin IN (SELECT value FROM json_each(?4)) LIMIT ${CHUNK_PUNCHES}`,
      [state.school, device.id, device.serial, JSON.stringify(pins)],
    )
    yield* tx.many(
      "UPDATE punches SET person_table = ?2, person_id = ?3 WHERE id = ?1",
      rows.map((row) => [row.id, row.person_table, row.person_id]),
    )
    const punches = rows.map((row) => ({
      id: row.id,
      at: Date.parse(`${row.at_utc.slice(0, 19).replace(" ", "T")}Z`),
      status: row.status,
      owner: { table: row.person_table, id: row.person_id },
    }))
    if (punches.length > 0) yield* makeAttendance(tx, { ...state, device, now }, punches)
    return rows.length
  })

/** The pin as it is kept, with its owner written down; or why it cannot be. */
export const claimPin = (
  tx: Tx,
  state: School,
  device: PunchingDevice,
  of: { readonly pin: string; readonly person: string; readonly table?: string },
  now: number,
): Effect.Effect<{ readonly pin: string } | { readonly fault: string }, LibsqlError> =>
  Effect.gen(function* () {
    const { manifest, school } = state
    const pin = normalPin(of.pin.trim())
    if (!/^[A-Za-z0-9]{1,24}$/.test(pin)) return { fault: `${of.pin} is no pin` }
    const ruled = manifest.tables.filter((table) => manifest.devices?.people[table.name] !== undefined)
    const table =
      of.table === undefined ? (ruled.length === 1 ? ruled[0] : undefined) : ruled.find((one) => [one.name, one.local].includes(of.table ?? ""))
    if (table === undefined)
      return { fault: `say which table the person is in: ${ruled.map((one) => one.local).join(", ") || "the config names none"}` }
    const rule = manifest.devices?.people[table.name]
    const known = rule === undefined ? null : yield* readRows(tx, table, rule.id, [of.person])
    if (known === null || !known.has(of.person)) return { fault: `there is nobody with ${rule?.id ?? "id"} ${of.person} in ${table.local}` }
    const [owner] = yield* tx.all<{ person_table: string; person_id: string }>(
      "SELECT person_table, person_id FROM device_user_mappings WHERE school = ? AND device_id = ? AND pin = ?",
      [school, device.id, pin],
    )
    if (owner !== undefined && (owner.person_id !== of.person || owner.person_table !== table.name))
      return { fault: `pin ${pin} of this terminal belongs to ${owner.person_id} in ${owner.person_table}; a pin never changes its owner` }
    if (owner === undefined) {
      const at = timestamptz(now)
      const [here] = yield* tx.all<{ user: number; other: number }>(
        `SELECT EXISTS (SELECT 1 FROM schoolbus_iclock_user WHERE device_id = ?1 AND pin = ?2) AS user,
                EXISTS (SELECT 1 FROM device_user_mappings WHERE device_id = ?1 AND person_table = ?3 AND person_id = ?4 AND to_at IS NULL) AS other`,
        [device.id, pin, table.name, of.person],
      )
      // Who is on the terminal under another pin stays there: the claimed one is of the past, unless the terminal has it too.
      const isPast = here?.user === 0 && here.other === 1
      yield* tx.run(
        "INSERT INTO device_user_mappings (school, device_id, pin, person_table, person_id, from_at, to_at) VALUES (?1,?2,?3,?4,?5,?6,?7)",
        [school, device.id, pin, table.name, of.person, at, isPast ? at : null],
      )
      if (isPast)
        yield* tx.run(
          `INSERT INTO device_user_sync_status (school, device_id, pin, person_table, person_id, name, status, attempts, updated_at)
           VALUES (?,?,?,?,?,'','deleted',0,?)`,
          [school, device.id, pin, table.name, of.person, at],
        )
    }
    return { pin }
  })
