/** The operator's API of disagreements: conflicts and quarantined changes. The same words on hub and school. */
import * as Effect from "effect/Effect"
import { type AnyElysia, Elysia } from "elysia"
import { z } from "zod"
import { type Choice, KEEPS, keepOf } from "../model/choice.ts"
import { Quarantine, type QuarantineAction } from "../status/quarantine.ts"
import { type ConflictRefused, Conflicts } from "../status/records.ts"
import { answering, Refusal } from "./server.ts"

const AUTO_MAX = { default: 100, most: 1_000 }

const Filter = z.object({
  resolved: z.enum(["true", "false"]).optional(),
  table: z.string().min(1).max(200).optional(),
  school: z.string().min(1).max(200).optional(),
  limit: z.coerce.number().int().min(1).max(500).default(50),
  cursor: z.string().max(500).optional(),
})
const QuarantineFilter = Filter.extend({ reason: z.string().min(1).max(100).optional() })
const Id = z.object({ id: z.uuid() })
const By = z.string().min(1).max(100).default("api")

const Keep = z.string().transform((text, context) => {
  const keep = keepOf(text)
  if (keep !== null) return keep
  context.addIssue({ code: "custom", message: `must be one of ${KEEPS.join(", ")}` })
  return z.NEVER
})
/** `keep`, or what other systems call it; a value alone is kept as it is. */
const choiceFields = { keep: Keep.optional(), resolution: Keep.optional(), strategy: Keep.optional(), value: z.json().optional(), by: By }
type ChoiceBody = { readonly [name in "keep" | "resolution" | "strategy"]?: Choice["keep"] | undefined } & {
  readonly value?: unknown
}
const isOneChoice = (body: ChoiceBody): boolean => {
  const named = [body.keep, body.resolution, body.strategy].filter((keep) => keep !== undefined)
  const keep = named[0] ?? "value"
  const hasValue = body.value !== undefined
  return named.length <= 1 && (keep === "value" ? hasValue : keep === "rename_local" || !hasValue)
}
const CHOICE = "give one of keep, resolution, strategy; with value only to keep that value, or as the new one of rename_local"
const ResolveBody = z.strictObject(choiceFields).refine(isOneChoice, CHOICE)
const ResolveOneBody = z
  .strictObject({ ...choiceFields, id: z.uuid().optional(), conflictId: z.uuid().optional() })
  .refine(isOneChoice, CHOICE)
  .refine((body) => (body.id === undefined) !== (body.conflictId === undefined), "give the conflict's id")
const choiceOf = (body: ChoiceBody): Choice => {
  const keep = body.keep ?? body.resolution ?? body.strategy ?? "value"
  return body.value === undefined ? { keep } : { keep, value: body.value }
}

const ByBody = z.strictObject({ by: By }).optional()
const AutoBody = z
  .strictObject({
    max: z.number().int().min(1).max(AUTO_MAX.most).default(AUTO_MAX.default),
    table: z.string().min(1).max(200).optional(),
    school: z.string().min(1).max(200).optional(),
    by: By,
  })
  .optional()
const EditBody = z.strictObject({
  values: z.record(z.string().min(1).max(200), z.union([z.string(), z.number(), z.boolean(), z.null()])),
  by: By,
})

/** Table names may be given without their schema. */
const qualify = (table: string): string => (table.includes(".") ? table : `public.${table}`)
const queryOf = ({ resolved, table, school, limit, cursor }: z.infer<typeof Filter>) => ({
  limit,
  ...(resolved === undefined ? {} : { resolved: resolved === "true" }),
  ...(table === undefined ? {} : { table: qualify(table) }),
  ...(school === undefined ? {} : { school }),
  ...(cursor === undefined ? {} : { cursor }),
})

const told =
  (what: "conflict" | "change") =>
  <A, E, R>(body: Effect.Effect<A, E | ConflictRefused, R>) =>
    Effect.mapError(body, (error) => {
      const refused = error as ConflictRefused
      return refused._tag !== "ConflictRefused"
        ? (error as Exclude<E, ConflictRefused>)
        : new Refusal({
            status: refused.code === "not_found" ? 404 : 409,
            code: `${what}_${refused.code}`,
            title: refused.code === "not_found" ? `No such ${what}` : `This ${what} cannot be decided so`,
            detail: refused.message,
          })
    })

export const conflictRoutes: Effect.Effect<AnyElysia, never, Conflicts | Quarantine> = Effect.map(
  Effect.context<Conflicts | Quarantine>(),
  (context) => {
    const answer = answering(context)
    const resolve = (id: string, body: ChoiceBody & { readonly by: string }) =>
      told("conflict")(Conflicts.use((conflicts) => conflicts.resolve(id, choiceOf(body), body.by)))
    const decide = (id: string, action: QuarantineAction, by: string) =>
      told("change")(Quarantine.use((quarantine) => quarantine.decide(id, action, by)))

    return new Elysia({ name: "conflicts" })
      .get(
        "/api/sync/conflicts",
        ({ request, query }) =>
          answer(
            request,
            Conflicts.use((conflicts) => conflicts.list(queryOf(query))),
          ),
        {
          query: Filter,
        },
      )
      .post(
        "/api/sync/conflicts/auto-resolve",
        ({ request, body }) => {
          const { max = AUTO_MAX.default, table, school, by = "api" } = body ?? {}
          const query = { max, ...(table === undefined ? {} : { table: qualify(table) }), ...(school === undefined ? {} : { school }) }
          return answer(
            request,
            Conflicts.use((conflicts) => conflicts.autoResolve(query, by)),
          )
        },
        { body: AutoBody },
      )
      .get(
        "/api/sync/conflicts/:id",
        ({ request, params }) => answer(request, told("conflict")(Conflicts.use((conflicts) => conflicts.show(params.id)))),
        {
          params: Id,
        },
      )
      .post("/api/sync/conflicts/:id/resolve", ({ request, params, body }) => answer(request, resolve(params.id, body)), {
        params: Id,
        body: ResolveBody,
      })
      .post(
        "/api/sync/conflicts/:id/undo",
        ({ request, params, body }) => answer(request, told("conflict")(Conflicts.use((conflicts) => conflicts.undo(params.id, body?.by ?? "api")))),
        { params: Id, body: ByBody },
      )
      .post("/api/sync/resolve", ({ request, body }) => answer(request, resolve(body.id ?? body.conflictId ?? "", body)), { body: ResolveOneBody })
      .get(
        "/api/sync/quarantine",
        ({ request, query }) =>
          answer(
            request,
            Quarantine.use((quarantine) => quarantine.list({ ...queryOf(query), ...(query.reason === undefined ? {} : { reason: query.reason }) })),
          ),
        {
          query: QuarantineFilter,
        },
      )
      .get(
        "/api/sync/quarantine/:id",
        ({ request, params }) => answer(request, told("change")(Quarantine.use((quarantine) => quarantine.show(params.id)))),
        {
          params: Id,
        },
      )
      .post(
        "/api/sync/quarantine/:id/retry",
        ({ request, params, body }) => answer(request, decide(params.id, { action: "retry" }, body?.by ?? "api")),
        { params: Id, body: ByBody },
      )
      .post(
        "/api/sync/quarantine/:id/discard",
        ({ request, params, body }) => answer(request, decide(params.id, { action: "discard" }, body?.by ?? "api")),
        { params: Id, body: ByBody },
      )
      .post(
        "/api/sync/quarantine/:id/edit",
        ({ request, params, body }) => answer(request, decide(params.id, { action: "edit", values: body.values }, body.by)),
        { params: Id, body: EditBody },
      )
  },
)
