/** Wall clocks and zones (pure). A terminal only knows its wall clock; the zone is what a person told us when approving it. */

const formats = new Map<string, Intl.DateTimeFormat>()

const formatOf = (zone: string): Intl.DateTimeFormat => {
  let format = formats.get(zone)
  if (format === undefined) {
    format = new Intl.DateTimeFormat("en-US", {
      timeZone: zone,
      calendar: "gregory",
      numberingSystem: "latn",
      hourCycle: "h23",
      year: "numeric",
      month: "numeric",
      day: "numeric",
      hour: "numeric",
      minute: "numeric",
      second: "numeric",
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

const MINUTE_MS = 60_000

/** Zones change their offset on a quarter of an hour. */
const QUARTER_MS = 900_000
/** Quarters of which the offset is remembered: asking the runtime takes longer than storing a punch. */
const MAX_REMEMBERED = 50_000
const remembered = new Map<string, Map<number, number>>()

/** Minutes east of UTC in the zone at that moment (ms since 1970). */
export const offsetMinutes = (zone: string, at: number): number => {
  const quarter = Math.floor(at / QUARTER_MS)
  const known = remembered.get(zone) ?? new Map<number, number>()
  let offset = known.get(quarter)
  if (offset === undefined) {
    offset = askOffset(zone, at)
    if (known.size >= MAX_REMEMBERED) known.clear()
    known.set(quarter, offset)
    remembered.set(zone, known)
  }
  return offset
}

const askOffset = (zone: string, at: number): number => {
  const parts = Object.fromEntries(
    formatOf(zone)
      .formatToParts(at)
      .map((part) => [part.type, Number(part.value)]),
  )
  const { year = 0, month = 1, day = 1, hour = 0, minute = 0, second = 0 } = parts as Record<string, number>
  return Math.round((Date.UTC(year, month - 1, day, hour, minute, second) - Math.floor(at / 1000) * 1000) / MINUTE_MS)
}

const two = (text: string): string => text.padStart(2, "0")

const YEARS = { first: 1970, last: 9998 }
const isDay = (year: number, month: number, day: number): boolean =>
  year >= YEARS.first && year <= YEARS.last && month >= 1 && month <= 12 && day >= 1 && day <= new Date(Date.UTC(year, month, 0)).getUTCDate()

/**
 * A wall clock in its usual form, `"2026-03-03 07:41:09"`; null when it is none of 1970 to 9998, so that its moment has four
 * digits of the year in any zone. One-digit parts, a `T` and a time without seconds are accepted.
 */
export const readWall = (text: string): string | null => {
  const match = /^\s*(\d{4})[-/](\d{1,2})[-/](\d{1,2})[ T]+(\d{1,2}):(\d{1,2})(?::(\d{1,2}))?\s*$/.exec(text)
  if (match === null) return null
  const [, year = "", month = "", day = "", hour = "", minute = "", second = "0"] = match
  if (!isDay(Number(year), Number(month), Number(day)) || Number(hour) > 23 || Number(minute) > 59 || Number(second) > 59) return null
  return `${year}-${two(month)}-${two(day)} ${two(hour)}:${two(minute)}:${two(second)}`
}

/** The records of a body are of a few days: what a day is, is worked out when it changes. */
const wallDay = { text: "", at: Number.NaN, isOne: false }
const dayOf = (wall: string): typeof wallDay => {
  const text = wall.slice(0, 10)
  if (text !== wallDay.text) Object.assign(wallDay, { text, at: Date.parse(`${text}T00:00:00Z`), isOne: readWall(`${text} 00:00:00`) !== null })
  return wallDay
}

/** Of a text whose digits stand as in `"2026-03-03 07:41:09"`: whether `readWall` takes it, as it is. */
export const isWall = (text: string): boolean =>
  dayOf(text).isOne && text.slice(11, 13) < "24" && text.charCodeAt(14) < SIX && text.charCodeAt(17) < SIX
const SIX = 54

const number = (text: string, at: number): number => text.charCodeAt(at) * 10 + text.charCodeAt(at + 1) - 528

/** The wall clock's number, as if it were UTC: the same wherever the terminal hangs. */
export const naiveOf = (wall: string): number => dayOf(wall).at + (number(wall, 11) * 3600 + number(wall, 14) * 60 + number(wall, 17)) * 1000

/**
 * A wall clock in a zone -> ms since 1970. An hour that the end of summer time repeats is the moment nearer to `near`; one
 * that its start skips counts from the offset before it.
 */
export const wallToUtc = (wall: string, zone: string, near: number): number => {
  const naive = naiveOf(wall)
  if (zone === "UTC") return naive
  const before = naive - offsetMinutes(zone, naive - 86_400_000) * MINUTE_MS
  const after = naive - offsetMinutes(zone, naive + 86_400_000) * MINUTE_MS
  if (before === after) return before
  const possible = [before, after].filter((at) => utcToWall(at, zone) === wall)
  return possible.sort((a, b) => Math.abs(a - near) - Math.abs(b - near))[0] ?? before
}

const TWO = Array.from({ length: 60 }, (_, n) => String(n).padStart(2, "0"))
const utcDay = { at: Number.NaN, text: "" }

/** As Postgres prints timestamptz under UTC: `"2026-03-03 04:41:09+00"`. */
export const timestamptz = (at: number): string => {
  if (at % 1000 === 0) {
    const second = (((at / 1000) % 86_400) + 86_400) % 86_400
    const day = at - second * 1000
    if (day !== utcDay.at) Object.assign(utcDay, { at: day, text: new Date(day).toISOString().slice(0, 10) })
    return `${utcDay.text} ${TWO[Math.floor(second / 3600)]}:${TWO[Math.floor(second / 60) % 60]}:${TWO[second % 60]}+00`
  }
  const iso = new Date(at).toISOString()
  const fraction = iso.slice(20, 23).replace(/0+$/, "")
  return `${iso.slice(0, 10)} ${iso.slice(11, 19)}${fraction === "" ? "" : `.${fraction}`}+00`
}

/** What `timestamptz` printed -> ms since 1970. */
export const momentOf = (text: string): number => Date.parse(`${text.replace(" ", "T")}:00`)

/** Wall clock of a moment in a zone. */
export const utcToWall = (at: number, zone: string): string =>
  new Date(at + (zone === "UTC" ? 0 : offsetMinutes(zone, at)) * MINUTE_MS).toISOString().slice(0, 19).replace("T", " ")

/** The protocol's number for a zone: whole hours within ±11 as hours, everything else as minutes. */
export const zoneNumber = (zone: string, at: number): number => {
  const minutes = offsetMinutes(zone, at)
  return minutes % 60 === 0 && Math.abs(minutes) <= 11 * 60 ? minutes / 60 : minutes
}

/** The protocol's own encoding of a wall clock, used for stamps and clock commands: 2018-02-22 06:36:30 is 583050990. */
export const wallNumber = (wall: string): number => {
  const [year = 2000, month = 1, day = 1, hour = 0, minute = 0, second = 0] = wall.split(/[- :]/).map(Number)
  return ((year - 2000) * 372 + (month - 1) * 31 + (day - 1)) * 86_400 + hour * 3600 + minute * 60 + second
}

/** The wall clock of such a number; null when it is none. */
export const numberToWall = (text: string): string | null => {
  if (!/^\d{1,10}$/.test(text)) return null
  const seconds = Number(text)
  const days = Math.floor(seconds / 86_400)
  const rest = seconds % 86_400
  const parts = [Math.floor(days / 372) + 2000, Math.floor((days % 372) / 31) + 1, (days % 31) + 1]
  const time = [Math.floor(rest / 3600), Math.floor((rest % 3600) / 60), rest % 60]
  return readWall(`${parts.join("-")} ${time.join(":")}`)
}

/** `"+0300"` */
export const offsetText = (zone: string, at: number): string => {
  const minutes = offsetMinutes(zone, at)
  const size = Math.abs(minutes)
  return `${minutes < 0 ? "-" : "+"}${two(String(Math.floor(size / 60)))}${two(String(size % 60))}`
}
