/**
 * A school says how it is, and hears whether it is wanted. Every school says so three times a minute, so this is the most frequent
 * request by far: it runs without a fiber and past the router, and what it brings is kept in memory, to be written down with that
 * of others. A call comes alone, on a processor that has done something else since: what counts is how much code it runs.
 */
import type * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { Feed } from "../down/feed.ts"
import { Heartbeat, type Pulse } from "../link/protocol.ts"
import type { Calls } from "./calls.ts"
import { answerJson, jsonOf, takeText } from "./link-body.ts"
import { Answer, callerOf, parse, sayHello } from "./link-caller.ts"

const PATH = "/api/sync/heartbeat"
/** Behind `http://`. */
const HOST_AT = 7

/** As nodes call it; another spelling of the path finds its way through the router. */
export const isHeartbeat = ({ method, url }: Request): boolean =>
  method === "POST" && url.endsWith(PATH) && url.indexOf("/", HOST_AT) === url.length - PATH.length

/** What is kept of a beat. */
interface Told {
  readonly incarnation: string
  readonly cursor: Heartbeat["cursor"]
  readonly pending: number
  /** JSON of what the school says of itself, up to the time. */
  readonly status: string
}

const CLOCK = '"clock":'

const toldBy = ({ incarnation, cursor, clock: _, ...status }: Heartbeat): Told => ({
  incarnation,
  cursor,
  pending: status.pending,
  status: `${JSON.stringify(status).slice(0, -1)},${CLOCK}`,
})

/** A school at rest says the same again and again but for the time: the text around that, and what was read out of it. */
interface Said {
  readonly before: string
  readonly after: string
  readonly told: Told
}

const MILLIS = /^\d{1,15}$/

/** null: the time does not stand there once, as whole milliseconds. */
const splitAtClock = (text: string, { clock: said }: Heartbeat, told: Told): Said | null => {
  const at = text.indexOf(CLOCK) + CLOCK.length
  if (at < CLOCK.length || text.indexOf(CLOCK, at) >= 0) return null
  const [clock = ""] = /^\d*/.exec(text.slice(at)) ?? []
  return MILLIS.test(clock) && Number(clock) === said ? { before: text.slice(0, at), after: text.slice(at + clock.length), told } : null
}

/** The time in a text that differs from the last one in nothing else; null: it is to be read. */
const clockIn = ({ before, after }: Said, text: string): string | null => {
  if (!text.startsWith(before) || !text.endsWith(after)) return null
  const clock = text.slice(before.length, text.length - after.length)
  return MILLIS.test(clock) ? String(Number(clock)) : null
}

interface Listening {
  readonly feed: Context.Service.Shape<typeof Feed>
  readonly calls: Context.Service.Shape<typeof Calls>
  readonly clock: Clock.Clock
}

/** Answers null when the key opens nothing. */
export const openHeartbeats = ({ feed, calls, clock: time }: Listening): ((request: Request) => Promise<Response | null>) => {
  const saidBySchool = new Map<string, Said>()
  const read = (school: string, text: string): readonly [told: Told, clock: string] => {
    const said = saidBySchool.get(school)
    const clock = said === undefined ? null : clockIn(said, text)
    if (said !== undefined && clock !== null) return [said.told, clock]
    const beat = parse(Heartbeat, jsonOf(text))
    const told = toldBy(beat)
    const split = splitAtClock(text, beat, told)
    if (split === null) saidBySchool.delete(school)
    else saidBySchool.set(school, split)
    return [told, JSON.stringify(beat.clock)]
  }
  return async (request) => {
    const key = callerOf(feed, request)
    if (key === null) return null
    try {
      const [told, clock] = read(key.school, await takeText(request))
      const { incarnation, cursor, pending } = told
      const reader = feed.reader.find(incarnation)
      if (reader === null || reader.school !== key.school) return sayHello.respond()
      // Forwards only, and only to a cut that this hub knows: what is counted as applied is forgotten here.
      const isNews = cursor !== undefined && cursor.epoch === reader.epoch && cursor.seq > reader.seq && (await Effect.runPromise(feed.knows(cursor)))
      const now = time.currentTimeMillisUnsafe()
      const status = `${told.status}${clock}}`
      if (isNews) feed.reader.note(incarnation, now, { ...cursor, pending, status })
      else feed.reader.tell(incarnation, now, { pending, status })
      calls.touch(key.school)
      const pausedTables = feed.pausedNow()
      const pulse: Pulse = {
        clock: now,
        sync: calls.take(key.school),
        paused: key.paused,
        ...(pausedTables.length === 0 ? {} : { pausedTables: [...pausedTables] }),
      }
      return answerJson(pulse)
    } catch (cause) {
      if (cause instanceof Answer) return cause.respond()
      throw cause
    }
  }
}
