/**
 * A link that costs by the byte (pure): when a node calls, what it sends then, and for how long the day's bytes last. Times of
 * day are minutes since midnight, of this machine's clock.
 */
import type { Priority } from "../model/table.ts"

export interface Metered {
  readonly cycleMinutes: number
  /** Both directions, from midnight to midnight; null = no limit. */
  readonly budgetBytes: number | null
  /** When it may call; empty = always. */
  readonly hours: ReadonlyArray<Hours>
}

/** From a minute of the day to another, exclusive; over midnight when the second is the smaller. */
export interface Hours {
  readonly from: number
  readonly to: number
}

const TIME = /^([01]?\d|2[0-3]):([0-5]\d)$|^24:00$/
const minuteOf = (text: string): number | null => {
  const match = TIME.exec(text.trim())
  if (match === null) return null
  return match[1] === undefined ? 0 : Number(match[1]) * 60 + Number(match[2])
}

/** `"19:00-06:00, 12:00-13:00"`; or what is wrong with it. */
export const parseHours = (parts: ReadonlyArray<string>): ReadonlyArray<Hours> | { readonly refused: string } => {
  const hours: Array<Hours> = []
  for (const part of parts) {
    const [from, to, ...more] = part.split("-").map(minuteOf)
    if (from == null || to == null || more.length > 0) return { refused: `"${part}" is not a time of day like 19:00-06:00` }
    hours.push({ from, to })
  }
  return hours
}

const printTime = (minute: number): string => `${String(Math.floor(minute / 60)).padStart(2, "0")}:${String(minute % 60).padStart(2, "0")}`
export const printHours = (hours: ReadonlyArray<Hours>): string => hours.map(({ from, to }) => `${printTime(from)}-${printTime(to)}`).join(", ")

const DAY = 24 * 60
export const isWithin = (hours: ReadonlyArray<Hours>, minute: number): boolean =>
  hours.length === 0 || hours.some(({ from, to }) => (from < to ? minute >= from && minute < to : minute >= from || minute < to))

/** 0 = now. */
export const minutesUntilWithin = (hours: ReadonlyArray<Hours>, minute: number): number =>
  isWithin(hours, minute) ? 0 : Math.min(...hours.map(({ from }) => (from - minute + DAY) % DAY))

/** Every so many cycles; `background` only when somebody asks. */
const EVERY: Readonly<Record<Exclude<Priority, "background">, number>> = { critical: 1, high: 1, medium: 2, low: 5 }

/** What makes a node send in its n-th cycle (from 1). A critical change does not wait for a cycle. What is due takes all along that waits. */
export const isDue = (priority: Priority, cycle: number): boolean => priority !== "background" && cycle % EVERY[priority] === 0

export interface Moment {
  readonly minute: number
  readonly usedBytes: number
  /** A person asked for a sync now. */
  readonly isAsked: boolean
}

/** Why it does not call now; null = it does. Whoever asks for a sync gets it. */
export const waitsFor = (metered: Metered, moment: Moment): "budget" | "hours" | null => {
  if (moment.isAsked) return null
  if (metered.budgetBytes !== null && moment.usedBytes >= metered.budgetBytes) return "budget"
  return isWithin(metered.hours, moment.minute) ? null : "hours"
}
