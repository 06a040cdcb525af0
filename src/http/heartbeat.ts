/**
 * A school says how it is, and hears whether it is wanted. Every school says so three times a minute, so this is the most frequent
 * request by far: it runs without a fiber, and what it brings is kept in memory, to be written down with that of others.
 */
import type * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { Feed } from "../down/feed.ts"
import { Heartbeat, type Pulse } from "../link/protocol.ts"
import type { Calls } from "./calls.ts"
import { answerJson, takeJson } from "./link-body.ts"
import { Answer, callerOf, sayHello } from "./link-caller.ts"

interface Listening {
  readonly feed: Context.Service.Shape<typeof Feed>
  readonly calls: Context.Service.Shape<typeof Calls>
  readonly clock: Clock.Clock
}

/** null: the key opens nothing. */
export const heartbeat = async (request: Request, { feed, calls, clock }: Listening): Promise<Response | null> => {
  const key = callerOf(feed, request)
  if (key === null) return null
  try {
    const { incarnation, cursor, ...status } = await takeJson(request, Heartbeat)
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
