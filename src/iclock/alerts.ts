/** What a person should look at, at one terminal, in words. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import type { Device } from "./device.ts"
import { SKEW_MS } from "./punches.ts"
import { isFrom } from "./request.ts"

/** A terminal polls every ten seconds. */
const SILENT_MS = 600_000
const RIVAL_MS = 600_000
/** Lines that could not be read are spoken of for so long; they are kept for ever. */
const REJECT_MS = 86_400_000
/** The newest of them that are looked at. */
const MAX_REJECTS = 1_000
/** Cards of several people that are named; the rest follows when these are mended. */
const MAX_SHARED = 5

/** What the file says is wrong with a terminal. */
export interface Trouble {
  /** People whom it could not take, by reason. */
  readonly failed: ReadonlyArray<{ readonly error: string; readonly people: number }>
  /** Cards that several people on it carry. */
  readonly shared: ReadonlyArray<{ readonly card: string; readonly pins: string }>
  /** Lines of today that could not be read or stored. */
  readonly rejects: number
}
const NONE: Trouble = { failed: [], shared: [], rejects: 0 }

const ago = (ms: number): string => (ms < 7_200_000 ? `${Math.round(ms / 60_000)} minutes` : `${Math.round(ms / 3_600_000)} hours`)
const many = (n: number, one: string, more: string): string => `${n} ${n === 1 ? one : more}`

export const alertsOf = (device: Device, now: number, trouble: Trouble = NONE): ReadonlyArray<string> => {
  if (device.status !== "approved") return []
  const alerts: Array<string> = []
  const seenAt = device.last_seen_at === null ? null : Date.parse(`${device.last_seen_at.replace(" ", "T")}:00`)
  const rival = device.memory?.rival ?? null
  if (seenAt === null) alerts.push("it has never called: check its cloud settings")
  else if (now - Math.max(seenAt, device.listeningSince) > SILENT_MS) alerts.push(`it has not called for ${ago(now - seenAt)}`)
  if (rival !== null && now - rival.at < RIVAL_MS)
    alerts.push(`two terminals use this serial number, at ${device.address ?? "?"} and ${rival.address}; pin the right one with --address`)
  if (device.pinned_address !== null && device.address !== null && !isFrom(device.pinned_address, device.address))
    alerts.push(
      `its calls from ${device.address} are refused, only ${device.pinned_address} may call; let it in with: schoolbus devices approve ${device.serial} --address ADDRESS, or any`,
    )
  if (device.skew_seconds !== null && Math.abs(device.skew_seconds) * 1000 > SKEW_MS)
    alerts.push(`its clock is ${Math.abs(device.skew_seconds)} s ${device.skew_seconds > 0 ? "ahead" : "behind"}; check its zone (${device.zone})`)
  for (const { error, people } of trouble.failed) alerts.push(`${many(people, "person is", "people are")} not on it as they should be: ${error}`)
  for (const { card, pins } of trouble.shared)
    alerts.push(`the pins ${pins} have one card, ${card}: it cannot tell whose punch it is; give all but one of them another card`)
  if (trouble.rejects > 0)
    alerts.push(
      `${many(trouble.rejects, "line", "lines")} that it sent within a day could not be stored as punches; they are kept as they came, in school.db: SELECT reason, CAST(raw AS TEXT) FROM schoolbus_iclock_reject`,
    )
  return alerts
}

/** By the terminal's number. The same sentence about different cards is one trouble. */
export const readTroubles = (tx: Tx, devices: ReadonlyArray<Device>, now: number): Effect.Effect<ReadonlyMap<number, Trouble>, LibsqlError> =>
  Effect.gen(function* () {
    if (devices.length === 0) return new Map()
    const failed = yield* tx.all<{ id: number; error: string; people: number }>(
      `SELECT device_id AS id, CASE WHEN error LIKE 'the card %' THEN 'their cards are no numbers that terminals read' ELSE coalesce(error, 'it refused them') END AS error,
              count(*) AS people FROM device_user_sync_status WHERE status = 'failed' GROUP BY 1, 2 ORDER BY 3 DESC`,
    )
    const shared = yield* tx.all<{ id: number; card: string; pins: string }>(
      `SELECT device_id AS id, card, group_concat(pin, ', ' ORDER BY length(pin), pin) AS pins FROM device_user_sync_status
        WHERE status = 'synced' AND card IS NOT NULL AND ltrim(card, '0') <> '' GROUP BY device_id, card HAVING count(*) > 1`,
    )
    const rejects = yield* tx.all<{ serial: string; n: number }>(
      `SELECT serial, count(*) AS n FROM (SELECT serial, at FROM schoolbus_iclock_reject ORDER BY id DESC LIMIT ${MAX_REJECTS}) WHERE at > ? GROUP BY serial`,
      [now - REJECT_MS],
    )
    return new Map(
      devices.map(({ id, serial }) => [
        id,
        {
          failed: failed.filter((row) => row.id === id),
          shared: shared.filter((row) => row.id === id).slice(0, MAX_SHARED),
          rejects: rejects.find((row) => row.serial === serial)?.n ?? 0,
        },
      ]),
    )
  })

export interface DeviceAlerts {
  readonly serial: string
  readonly name: string
  readonly alerts: ReadonlyArray<string>
}

/** Of all terminals, those with something to look at. */
export const readAlerts = (
  db: LibsqlFile,
  list: Effect.Effect<ReadonlyArray<Device>, LibsqlError>,
): Effect.Effect<ReadonlyArray<DeviceAlerts>, LibsqlError> =>
  Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    const devices = yield* list
    const troubles = yield* db.read((tx) => readTroubles(tx, devices, now))
    return devices.flatMap((device) => {
      const alerts = alertsOf(device, now, troubles.get(device.id))
      return alerts.length === 0 ? [] : [{ serial: device.serial, name: device.name, alerts }]
    })
  })
