/**
 * The snapshot as server-sent events: one at once, then one whenever something in it has changed. All listeners share one
 * builder, which works only while somebody listens. An event is the whole state, so a client that comes back needs no replay.
 */
import * as Effect from "effect/Effect"
import { Status } from "../status/snapshot.ts"
import { problem } from "./server.ts"

const EVERY_MS = 1_000
/** Shorter than any proxy's patience; a comment line keeps the connection alive. */
const PING_MS = 15_000
const MAX_LISTENERS = 100
/** Events that a client has not read yet; one that is further behind is let go and comes back by itself. */
const MAX_UNREAD = 20

interface Listener {
  readonly send: (text: string) => void
}

const encoder = new TextEncoder()

export const openEvents: Effect.Effect<(request: Request) => Response, never, Status> = Effect.gen(function* () {
  const status = yield* Status
  const listeners = new Set<Listener>()
  let timer: ReturnType<typeof setInterval> | null = null
  let building = false
  let last = ""
  let event = ""
  let id = 0
  let quietMs = 0

  const build = async (): Promise<void> => {
    if (building) return
    building = true
    try {
      const snapshot = await Effect.runPromise(status.snapshot())
      const content = JSON.stringify({ ...snapshot, asOf: "" })
      quietMs += EVERY_MS
      if (content !== last) {
        last = content
        event = `id: ${++id}\nevent: status\ndata: ${JSON.stringify(snapshot)}\n\n`
        quietMs = 0
        for (const listener of listeners) listener.send(event)
      } else if (quietMs >= PING_MS) {
        quietMs = 0
        for (const listener of listeners) listener.send(": ping\n\n")
      }
    } catch {
      for (const listener of listeners) listener.send(": status not available\n\n")
    } finally {
      building = false
    }
  }

  const leave = (listener: Listener): void => {
    listeners.delete(listener)
    if (listeners.size === 0 && timer !== null) {
      clearInterval(timer)
      timer = null
      last = ""
    }
  }

  return (request) => {
    if (listeners.size >= MAX_LISTENERS) return problem(503, "too_many_listeners", "Too many open pages", undefined, {}, { "retry-after": "30" })
    let listener: Listener | null = null
    const body = new ReadableStream<Uint8Array>(
      {
        start: (controller) => {
          const end = () => {
            if (listener === null) return
            leave(listener)
            listener = null
            try {
              controller.close()
            } catch {
              // The client was gone first.
            }
          }
          listener = {
            send: (text) => {
              if ((controller.desiredSize ?? 0) <= 0) end()
              else controller.enqueue(encoder.encode(text))
            },
          }
          request.signal.addEventListener("abort", end)
          listeners.add(listener)
          controller.enqueue(encoder.encode(`retry: 3000\n\n${listeners.size > 1 ? event : ""}`))
          timer ??= setInterval(() => void build(), EVERY_MS)
          void build()
        },
        cancel: () => {
          if (listener !== null) leave(listener)
          listener = null
        },
      },
      { highWaterMark: MAX_UNREAD },
    )
    return new Response(body, { headers: { "content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no" } })
  }
})
