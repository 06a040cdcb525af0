/** The operator's API: status, sync now, runs, live events. The same words on hub and school. */
import * as Effect from "effect/Effect"
import { type AnyElysia, Elysia } from "elysia"
import { z } from "zod"
import { Postgres } from "../postgres/client.ts"
import { looking, readSlots } from "../postgres/health.ts"
import { checkOf } from "../status/check.ts"
import { refuseOtherSchool, refuseUnknownSchool, Runs } from "../status/records.ts"
import { type Snapshot, Status } from "../status/snapshot.ts"
import { SyncNow, type SyncRequest, type SyncResult } from "../status/sync-now.ts"
import { openEvents } from "./events.ts"
import { answering } from "./server.ts"

const School = z.string().min(1).max(200)

const TriggerBody = z
  .strictObject({
    direction: z.enum(["both", "up", "down"]).default("both"),
    tables: z.array(z.string().min(1).max(200)).max(1000).default([]),
    school: School.exactOptional(),
  })
  .optional()

const ASKED = { direction: "both", tables: [] } as const

const DatabaseBody = z
  .strictObject({
    direction: z.enum(["BIDIRECTIONAL", "TO_SERVER", "FROM_SERVER"]).default("BIDIRECTIONAL"),
    tables: z.array(z.string().min(1).max(200)).max(1000).default([]),
  })
  .optional()
const DIRECTIONS = { BIDIRECTIONAL: "both", TO_SERVER: "up", FROM_SERVER: "down" } as const

const Limit = z.coerce.number().int().min(1).max(500).default(50)
const RunFilter = z.object({ school: School.optional(), limit: Limit, cursor: z.string().max(500).optional() })

const networkOf = (snapshot: Snapshot) =>
  snapshot.role === "school"
    ? { online: snapshot.link.state === "online", lastCheck: snapshot.asOf, lastContactAt: snapshot.link.lastContactAt, detail: snapshot.link.detail }
    : {
        online: snapshot.postgres,
        lastCheck: snapshot.asOf,
        lastContactAt: null,
        detail: snapshot.stream.detail,
        schoolsOnline: snapshot.schools.filter((school) => school.connected).length,
        schools: snapshot.schools.length,
      }

const databaseOf = (snapshot: Snapshot) => ({
  isOnline: snapshot.role === "hub" ? snapshot.postgres : snapshot.link.state === "online",
  localDbConnected: true,
  remoteDbConnected: snapshot.role === "hub" ? snapshot.postgres : snapshot.link.state === "online",
  lastSyncTime: snapshot.role === "hub" ? snapshot.feed.committedAt : snapshot.link.lastSyncAt,
  pendingChanges: snapshot.totals.pending,
  state: snapshot.state,
  asOf: snapshot.asOf,
})

const tablesOf = ({ asOf, tables }: Snapshot) => ({ schemaVersion: 1, asOf, items: tables })

const resultOf = (result: SyncResult) => ({ success: result.started, ...result })

export const syncRoutes: Effect.Effect<AnyElysia, never, Status | SyncNow | Runs> = Effect.gen(function* () {
  const context = yield* Effect.context<Status | SyncNow | Runs>()
  const answer = answering(context)
  const events = yield* openEvents
  /** An unknown `?school=` is a mistake to tell, not an empty answer. */
  const snapshotOf = (school: string | undefined) =>
    Effect.gen(function* () {
      const status = yield* Status
      const snapshot = yield* status.snapshot(school)
      if (snapshot.role === "school") yield* refuseOtherSchool(school, snapshot.school)
      else if (school !== undefined && snapshot.schools.length === 0) {
        const all = yield* status.snapshot()
        yield* refuseUnknownSchool(school, all.role === "hub" ? all.schools.map((one) => one.school) : [])
      }
      return snapshot
    })
  const trigger = (request: SyncRequest) =>
    Effect.map(
      SyncNow.use((service) => service.trigger(request)),
      resultOf,
    )
  const ofSchool = { query: z.object({ school: School.exactOptional() }) }

  return new Elysia({ name: "sync" })
    .get("/api/sync/status", ({ request, query }) => answer(request, snapshotOf(query.school)), ofSchool)
    .get(
      "/api/sync/health",
      ({ request, query }) =>
        answer(
          request,
          Effect.map(snapshotOf(query.school), (snapshot) => {
            const { level, items } = checkOf(snapshot)
            return { status: level.toLowerCase(), healthy: level === "OK", asOf: snapshot.asOf, summary: snapshot.summary, checks: items }
          }),
        ),
      ofSchool,
    )
    .get("/api/sync/network-status", ({ request, query }) => answer(request, Effect.map(snapshotOf(query.school), networkOf)), ofSchool)
    .get("/api/sync/tables", ({ request, query }) => answer(request, Effect.map(snapshotOf(query.school), tablesOf)), ofSchool)
    .post("/api/sync/trigger", ({ request, query, body }) => answer(request, trigger({ ...ASKED, ...query, ...body, by: "api" })), {
      ...ofSchool,
      body: TriggerBody,
    })
    .post("/api/sync/sync", ({ request, query, body }) => answer(request, trigger({ ...ASKED, ...query, ...body, by: "api" })), {
      ...ofSchool,
      body: TriggerBody,
    })
    .post("/api/sync/all", ({ request }) => answer(request, trigger({ ...ASKED, by: "api" })))
    .get(
      "/api/sync/logs",
      ({ request, query: { school, limit, cursor } }) =>
        answer(
          request,
          Runs.use((runs) => runs.list({ limit, ...(school === undefined ? {} : { school }), ...(cursor === undefined ? {} : { cursor }) })),
        ),
      { query: RunFilter },
    )
    .get("/api/database/status", ({ request }) => answer(request, Effect.map(snapshotOf(undefined), databaseOf)))
    .post(
      "/api/database/status",
      ({ request, query, body }) =>
        answer(request, trigger({ ...query, direction: DIRECTIONS[body?.direction ?? "BIDIRECTIONAL"], tables: body?.tables ?? [], by: "api" })),
      { ...ofSchool, body: DatabaseBody },
    )
    .get("/api/events", ({ request }) => events(request))
})

/** Only at the hub: what Postgres says about every logical slot of the database, others' too: they hold WAL as well. */
export const slotRoutes: Effect.Effect<AnyElysia, never, Postgres> = Effect.map(Effect.context<Postgres>(), (context) => {
  const answer = answering(context)
  return new Elysia({ name: "slots" }).get("/api/slots", ({ request }) =>
    answer(
      request,
      Effect.gen(function* () {
        const slots = yield* looking(yield* Postgres, readSlots)
        return { schemaVersion: 1, asOf: new Date().toISOString(), items: slots }
      }),
    ),
  )
})
