/** Bodies of the link: read within their bounds of bytes and time, or refused with a reason. */
import * as Effect from "effect/Effect"
import type { z } from "zod"
import { BodyFault, readAll } from "../link/body.ts"
import { IDLE_MS, MAX_BODY_MS } from "../link/protocol.ts"
import { parsed, refuse } from "./link-caller.ts"

const MAX_JSON_BYTES = 64 * 1024

export const bodyFault = (status: 400 | 422, code: "invalid" | "not_a_batch") => (cause: unknown) =>
  refuse(status, code, "The body could not be read", cause instanceof BodyFault ? cause.message : "the connection broke")

export const readBody = (request: Request, maxBytes: number) =>
  Effect.tryPromise({ try: () => readAll(request.body, { maxBytes, idleMs: IDLE_MS, totalMs: MAX_BODY_MS }), catch: bodyFault(400, "invalid") })

export const readJson = <S extends z.ZodType>(request: Request, schema: S, maxBytes = MAX_JSON_BYTES) =>
  Effect.gen(function* () {
    const bytes = yield* readBody(request, maxBytes)
    const value = yield* Effect.try({
      try: () => JSON.parse(new TextDecoder().decode(bytes)) as unknown,
      catch: () => refuse(400, "invalid", "Malformed body", "the body is not valid JSON"),
    })
    return yield* parsed(schema, value)
  })

export const answerJson = (body: unknown): Response => Response.json(body, { headers: { "cache-control": "no-store" } })
