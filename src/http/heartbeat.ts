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

/** A school at rest says the same again and again but for the time: the text around that, and what was read out of it. */
interface Said {
  readonly before: string
  readonly after: string
  readonly beat: Heartbeat
}

const CLOCK = '"clock":'
const MILLIS = /^\d{1,15}$/

/** null: the time does not stand there once, as whole milliseconds. */
const splitAtClock = (text: string, beat: Heartbeat): Said | null => {
  const at = text.indexOf(CLOCK) + CLOCK.length
  if (at < CLOCK.length || text.indexOf(CLOCK, at) >= 0) return null
  const [clock = ""] = /^\d*/.exec(text.slice(at)) ?? []
  return MILLIS.test(clock) && Number(clock) === beat.clock ? { before: text.slice(0, at), after: text.slice(at + clock.length), beat } : null
}

/** What a text says that differs from the last one in nothing but the time; null: it is to be read. */
const again = ({ before, after, beat }: Said, text: string): Heartbeat | null => {
  if (!text.startsWith(before) || !text.endsWith(after)) return null
  const clock = text.slice(before.length, text.length - after.length)
  return MILLIS.test(clock) ? { ...beat, clock: Number(clock) } : null
}

interface Listening {
  readonly feed: Context.Service.Shape<typeof Feed>
  readonly calls: Context.Service.Shape<typeof Calls>
  readonly clock: Clock.Clock
}

/** Answers null when the key opens nothing. */
export const openHeartbeats = ({ feed, calls, clock }: Listening): ((request: Request) => Promise<Response | null>) => {
  const saidBySchool = new Map<string, Said>()
  const read = (school: string, text: string): Heartbeat => {
    const said = saidBySchool.get(school)
    const same = said === undefined ? null : again(said, text)
    if (same !== null) return same
    const beat = parse(Heartbeat, jsonOf(text))
    const split = splitAtClock(text, beat)
    if (split === null) saidBySchool.delete(school)
    else saidBySchool.set(school, split)
    return beat
  }
  return async (request) => {
    const key = callerOf(feed, request)
    if (key === null) return null
    try {
      const { incarnation, cursor, ...status } = read(key.school, await takeText(request))
      const reader = feed.reader.find(incarnation)
      if (reader === null || reader.school !== key.school) return sayHello.respond()
      // Forwards only, and only to a cut that this hub knows: what is counted as applied is forgotten here.
      const isNews = cursor !== undefined && cursor.epoch === reader.epoch && cursor.seq > reader.seq && (await Effect.runPromise(feed.knows(cursor)))
      const now = clock.currentTimeMillisUnsafe()
      feed.reader.tell(incarnation, now, { pending: status.pending, status: JSON.stringify(status), ...(isNews ? cursor : {}) })
      calls.touch(key.school)
      const pulse: Pulse = { clock: now, sync: calls.take(key.school), paused: key.paused }
      return answerJson(pulse)
    } catch (cause) {
      if (cause instanceof Answer) return cause.respond()
      throw cause
    }
  }
}
