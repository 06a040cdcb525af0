/** Wall clocks and zones (pure). A terminal only knows its wall clock; the zone is what a person told us when approving it. */

const formats = new Map<string, Intl.DateTimeFormat>()

const formatOf = (zone: string): Intl.DateTimeFormat => {
  let format = formats.get(zone)
  if (format === undefined) {
    format = new Intl.DateTimeFormat("en-US", {
      timeZone: zone, hourCycle: "h23", year: "numeric", month: "numeric", day: "numeric", hour: "numeric", minute: "numeric", second: "numeric",
    })
    formats.set(zone, format)
  }
  return format
}

export const isZone = (zone: string): boolean => {
  try {
    formatOf(zone)
    return true
  } catch {
    return false
  }
}

/** Minutes east of UTC in the zone at that moment (ms since 1970). */
export const offsetMinutes = (zone: string, at: number): number => {
  const parts = Object.fromEntries(formatOf(zone).formatToParts(at).map((part) => [part.type, Number(part.value)]))
  const { year = 0, month = 1, day = 1, hour = 0, minute = 0, second = 0 } = parts as Record<string, number>
  return Math.round((Date.UTC(year, month - 1, day, hour, minute, second) - Math.floor(at / 1000) * 1000) / 60_000)
}

/** `"2026-03-03 07:41:09"` in a zone -> ms since 1970; null when it is no date. An hour that DST repeats is its first. */
export const wallToUtc = (wall: string, zone: string): number | null => {
  const match = /^(\d{4})-(\d{2})-(\d{2}) (\d{2}):(\d{2}):(\d{2})$/.exec(wall)
  if (match === null) return null
  const [, year, month, day, hour, minute, second] = match.map(Number)
  const naive = Date.UTC(year ?? 0, (month ?? 1) - 1, day ?? 1, hour ?? 0, minute ?? 0, second ?? 0)
  const back = new Date(naive)
  if (back.getUTCMonth() + 1 !== month || back.getUTCDate() !== day || (hour ?? 0) > 23 || (minute ?? 0) > 59 || (second ?? 0) > 59) return null
  const first = naive - offsetMinutes(zone, naive) * 60_000
  return naive - offsetMinutes(zone, first) * 60_000
}

/** As Postgres prints timestamptz under UTC: `"2026-03-03 04:41:09+00"`. */
export const timestamptz = (at: number): string => {
  const iso = new Date(at).toISOString()
  const fraction = iso.slice(20, 23).replace(/0+$/, "")
  return `${iso.slice(0, 10)} ${iso.slice(11, 19)}${fraction === "" ? "" : `.${fraction}`}+00`
}

/** Wall clock of a moment in a zone. */
export const utcToWall = (at: number, zone: string): string => new Date(at + offsetMinutes(zone, at) * 60_000).toISOString().slice(0, 19).replace("T", " ")

/** The protocol's number for a zone: whole hours within ±11 as hours, everything else as minutes. */
export const zoneNumber = (zone: string, at: number): number => {
  const minutes = offsetMinutes(zone, at)
  return minutes % 60 === 0 && Math.abs(minutes) <= 11 * 60 ? minutes / 60 : minutes
}
