/** One terminal: its row in the school's file, and what is done to such rows. Inside the caller's transaction. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { Tx } from "../libsql/client.ts"
import { timestamptz } from "./clock.ts"

export class DeviceRefused extends Data.TaggedError("DeviceRefused")<{
  readonly code: "not_found" | "not_ready" | "invalid"
  readonly message: string
}> {}

export interface Device {
  /** Small and stable: 1, 2, 3 … */
  readonly id: number
  readonly serial: string
  readonly name: string
  readonly status: "pending" | "approved" | "retired"
  readonly zone: string
  readonly address: string | null
  readonly pinned_address: string | null
  /** `att`: attendance; `acc`: access control (3.x). */
  readonly family: "att" | "acc"
  readonly model: string | null
  readonly firmware: string | null
  readonly push_version: string | null
  readonly users_reported: number | null
  readonly punches_reported: number | null
  readonly skew_seconds: number | null
  readonly card_form: "decimal" | "bracket" | null
  /** Commands that it does not know, by comma. */
  readonly unsupported: string
  readonly offset_told: number | null
  readonly replaced_by: number | null
  readonly att_stamp: string
  readonly op_stamp: string
  readonly first_seen_at: string
  readonly last_seen_at: string | null
  readonly approved_at: string | null
  /** Since when this process could hear it, ms since 1970; before that nobody knows whether it called. */
  readonly listeningSince: number
  /** What only the memory of this process knows. */
  readonly memory: DeviceMemory | null
}

export interface DeviceMemory {
  readonly seenAt: number
  /** When the terminal last told how many users it holds; null: not since this node started. */
  readonly countedAt: number | null
  /** Another address that takes turns with the present one: two terminals with one serial number. */
  readonly rival: { readonly address: string; readonly at: number } | null
}

export type DeviceFacts = Partial<
  Pick<
    Device,
    | "family"
    | "model"
    | "firmware"
    | "push_version"
    | "users_reported"
    | "punches_reported"
    | "skew_seconds"
    | "card_form"
    | "unsupported"
    | "offset_told"
    | "att_stamp"
    | "op_stamp"
  >
>

const COLUMNS = `id, serial, name, status, zone, address, pinned_address, family, model, firmware, push_version, users_reported, punches_reported,
  skew_seconds, card_form, unsupported, offset_told, replaced_by, att_stamp, op_stamp, first_seen_at, last_seen_at, approved_at`

export const notApproved = (device: Device): DeviceRefused =>
  new DeviceRefused({ code: "invalid", message: `terminal ${device.serial} is not approved; run: schoolbus devices approve ${device.serial}` })

export const invalid = (message: string) => new DeviceRefused({ code: "invalid", message })
export const SERIAL = /^(?!\d{1,4}$)[A-Za-z0-9_-]{3,64}$/

export const insertPending = (tx: Tx, school: string, serial: string, address: string | null, now: number) =>
  tx.run(
    `INSERT INTO devices (school, id, serial, name, status, zone, address, family, unsupported, att_stamp, op_stamp, first_seen_at, last_seen_at)
     SELECT ?1, (SELECT coalesce(max(id), 0) + 1 FROM (SELECT id FROM devices UNION ALL SELECT device_id FROM device_user_mappings)), ?2, ?2, 'pending', 'UTC', ?3, 'att', '', '0', '0', ?4,
            CASE WHEN ?3 IS NULL THEN NULL ELSE ?4 END
      WHERE NOT EXISTS (SELECT 1 FROM devices WHERE serial = ?2)`,
    [school, serial, address, timestamptz(now)],
  )

export const readDevices = (tx: Tx) => tx.all<Omit<Device, "memory" | "listeningSince">>(`SELECT ${COLUMNS} FROM devices ORDER BY id`)

/** A short number is the number in the list before it is a serial one: who calls as terminal 1 is not taken for it. */
export const pick = <D extends { readonly serial: string; readonly id: number }>(devices: ReadonlyArray<D>, wanted: string): D | undefined => {
  const bySerial = devices.find((device) => device.serial === wanted)
  const byId = devices.find((device) => String(device.id) === wanted)
  return /^\d{1,4}$/.test(wanted) ? (byId ?? bySerial) : (bySerial ?? byId)
}

/** Open commands of a terminal that is not served any more. */
export const cancelOpen = (tx: Tx, deviceId: number, now: number) =>
  tx.run("UPDATE device_commands SET status = 'cancelled', done_at = ? WHERE device_id = ? AND status IN ('pending', 'sent')", [
    timestamptz(now),
    deviceId,
  ])

/** The new terminal gets the pins of the old one; who had left stays off it. */
export const copyPins = (tx: Tx, from: number, to: number, now: number) =>
  Effect.gen(function* () {
    yield* tx.run(
      `INSERT INTO device_user_mappings (school, device_id, pin, person_table, person_id, from_at, to_at)
       SELECT school, ?2, pin, person_table, person_id, CASE WHEN to_at IS NULL THEN ?3 ELSE from_at END, to_at FROM device_user_mappings
        WHERE device_id = ?1 ON CONFLICT DO NOTHING`,
      [from, to, timestamptz(now)],
    )
    yield* tx.run(
      `INSERT INTO device_user_sync_status (school, device_id, pin, person_table, person_id, name, status, attempts, updated_at)
       SELECT school, device_id, pin, person_table, person_id, '', 'deleted', 0, ?2 FROM device_user_mappings
        WHERE device_id = ?1 AND to_at IS NOT NULL ON CONFLICT DO NOTHING`,
      [to, timestamptz(now)],
    )
  })
