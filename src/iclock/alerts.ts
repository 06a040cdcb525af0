/** What a person should look at, at one terminal, in words (pure). */
import type { Device } from "./devices.ts"
import { SKEW_MS } from "./punches.ts"

/** A terminal polls every ten seconds. */
const SILENT_MS = 600_000
const RIVAL_MS = 600_000

const ago = (ms: number): string => (ms < 7_200_000 ? `${Math.round(ms / 60_000)} minutes` : `${Math.round(ms / 3_600_000)} hours`)

export const alertsOf = (device: Device, now: number): ReadonlyArray<string> => {
  if (device.status !== "approved") return []
  const alerts: Array<string> = []
  const seenAt = device.last_seen_at === null ? null : Date.parse(`${device.last_seen_at.replace(" ", "T")}:00`)
  const rival = device.memory?.rival ?? null
  if (seenAt === null) alerts.push("it has never called: check its cloud settings")
  else if (now - seenAt > SILENT_MS) alerts.push(`it has not called for ${ago(now - seenAt)}`)
  if (rival !== null && now - rival.at < RIVAL_MS)
    alerts.push(`two terminals use this serial number, at ${device.address ?? "?"} and ${rival.address}; pin the right one with --address`)
  if (device.skew_seconds !== null && Math.abs(device.skew_seconds) * 1000 > SKEW_MS)
    alerts.push(`its clock is ${Math.abs(device.skew_seconds)} s ${device.skew_seconds > 0 ? "ahead" : "behind"}; check its zone (${device.zone})`)
  return alerts
}
