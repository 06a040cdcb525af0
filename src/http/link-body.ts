/** Bodies of the link: read within their bounds of bytes and time, or refused with a reason. */
import { setTimeout } from "node:timers"
import * as Effect from "effect/Effect"
import type { z } from "zod"
import { BodyFault, readAll } from "../link/body.ts"
import { IDLE_MS, MAX_BODY_MS } from "../link/protocol.ts"
import { type Answer, parse, refuse } from "./link-caller.ts"

const MAX_JSON_BYTES = 64 * 1024

export const bodyFault = (status: 400 | 422, code: "invalid" | "not_a_batch") => (cause: unknown) =>
  refuse(status, code, "The body could not be read", cause instanceof BodyFault ? cause.message : "the connection broke")

/** A body whose length is told beforehand, and so short that the runtime has it at once or not at all. */
const SMALL_BYTES = 16 * 1024

/** A body that has not come yet. */
interface Awaited {
  readonly since: number
  readonly fail: (cause: BodyFault) => void
}

/** One timer looks after all of them: nearly every body is there at once, and never hears of it. */
const LOOK_MS = 5_000
const awaited = new Set<Awaited>()
let isLooking = false
const look = (): void => {
  const now = performance.now()
  for (const one of awaited) if (now - one.since >= IDLE_MS) one.fail(new BodyFault(`no body for ${IDLE_MS / 1000} s`))
  isLooking = awaited.size > 0
  if (isLooking) setTimeout(look, LOOK_MS).unref()
}

const inTime = <A>(body: Promise<A>): Promise<A> =>
  new Promise((done, fail) => {
    const one: Awaited = { since: performance.now(), fail }
    awaited.add(one)
    if (!isLooking) {
      isLooking = true
      setTimeout(look, LOOK_MS).unref()
    }
    body.then(done, fail).finally(() => awaited.delete(one))
  })

const isSmall = (request: Request, maxBytes: number): boolean => {
  const length = request.headers.get("content-length")
  return length !== null && /^\d+$/.test(length) && Number(length) <= Math.min(SMALL_BYTES, maxBytes)
}

const bytesOf = async (request: Request, maxBytes: number): Promise<Uint8Array> =>
  isSmall(request, maxBytes)
    ? new Uint8Array(await inTime(request.arrayBuffer()))
    : await readAll(request.body, { maxBytes, idleMs: IDLE_MS, totalMs: MAX_BODY_MS })

export const readBody = (request: Request, maxBytes: number) =>
  Effect.tryPromise({ try: () => bytesOf(request, maxBytes), catch: bodyFault(400, "invalid") })

const decoder = new TextDecoder()

/** The body's text; rejects with the Answer that refuses it. */
export const takeText = async (request: Request, maxBytes = MAX_JSON_BYTES): Promise<string> => {
  try {
    return isSmall(request, maxBytes) ? await inTime(request.text()) : decoder.decode(await bytesOf(request, maxBytes))
  } catch (cause) {
    throw bodyFault(400, "invalid")(cause)
  }
}

export const jsonOf = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    throw refuse(400, "invalid", "Malformed body", "the body is not valid JSON")
  }
}

const takeJson = async <S extends z.ZodType>(request: Request, schema: S, maxBytes: number): Promise<z.infer<S>> =>
  parse(schema, jsonOf(await takeText(request, maxBytes)))

/** What the body says. */
export const readJson = <S extends z.ZodType>(request: Request, schema: S, maxBytes = MAX_JSON_BYTES) =>
  Effect.tryPromise({ try: () => takeJson(request, schema, maxBytes), catch: (cause) => cause as Answer })

export const answerJson = (body: unknown): Response => Response.json(body, { headers: { "cache-control": "no-store" } })
