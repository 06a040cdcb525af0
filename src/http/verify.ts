/** The operator's API of comparisons: `POST /api/sync/verify {repair}` compares now, `GET` tells the last result, `GET …/lost` what a restore lost. */
import * as Effect from "effect/Effect"
import { type AnyElysia, Elysia } from "elysia"
import { z } from "zod"
import { Verify } from "../status/verify.ts"
import { answering, Refusal } from "./server.ts"

const Body = z.strictObject({ repair: z.boolean().default(false) }).optional()

const Query = z.object({ limit: z.coerce.number().int().min(1).max(1000).default(100) })

const notTheHub = new Refusal({
  status: 404,
  code: "no_hub",
  title: "Not a hub",
  detail: "this is a school's node; what Postgres lost when it was put back the hub knows: verify --lost --url HUB",
})

export const verifyRoutes: Effect.Effect<AnyElysia, never, Verify> = Effect.map(Effect.context<Verify>(), (context) => {
  const answer = answering(context)
  const run = (repair: boolean) =>
    Verify.use((service) => service.run(repair)).pipe(
      Effect.catchTag("VerifyRefused", (error) =>
        Effect.fail(new Refusal({ status: 503, code: "not_now", title: "Not to be compared now", detail: error.message })),
      ),
    )
  return new Elysia({ name: "verify" })
    .post("/api/sync/verify", ({ request, body }) => answer(request, run(body?.repair ?? false)), { body: Body })
    .get(
      "/api/sync/verify/lost",
      ({ request, query }) =>
        answer(
          request,
          Effect.flatMap(
            Verify.use((service) => service.lost(query.limit)),
            (lost) => (lost === null ? Effect.fail(notTheHub) : Effect.succeed(lost)),
          ),
        ),
      { query: Query },
    )
    .get("/api/sync/verify", ({ request }) =>
      answer(
        request,
        Effect.map(
          Verify.use((service) => service.last),
          (last) => ({ last }),
        ),
      ),
    )
})
