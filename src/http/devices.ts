/** The operator's API for terminals, on the school's node; the paths below `/api/v1` answer in the form that existing tools expect. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { type AnyElysia, Elysia } from "elysia"
import { z } from "zod"
import { alertsOf, readTroubles, type Trouble } from "../iclock/alerts.ts"
import type { Device, DeviceRefused } from "../iclock/device.ts"
import { Devices } from "../iclock/devices.ts"
import { csvStart, type PunchFilter, punchPage } from "../iclock/export.ts"
import { Roster } from "../iclock/fill.ts"
import type { CommandRecord } from "../iclock/outbox.ts"
import { Commands } from "../iclock/queue.ts"
import type { DeviceSync } from "../iclock/sync-status.ts"
import { Libsql, type LibsqlError } from "../libsql/client.ts"
import { answering, Refusal } from "./server.ts"

const Approval = z
  .strictObject({
    zone: z.string().min(1).max(60).exactOptional(),
    name: z.string().min(1).max(80).exactOptional(),
    /** An address or a net; empty: from anywhere. */
    address: z.string().max(45).exactOptional(),
  })
  .default({})
const Command = z.strictObject({
  command: z.string().min(1).max(40),
  from: z.string().max(40).exactOptional(),
  to: z.string().max(40).exactOptional(),
  confirm: z.string().max(64).exactOptional(),
})
const Replacement = z.strictObject({ serial: z.string().min(1).max(64) })
const Claim = z.strictObject({
  pin: z.string().min(1).max(24),
  person: z.string().min(1).max(200),
  table: z.string().min(1).max(130).exactOptional(),
})
const History = z.object({ limit: z.coerce.number().int().min(1).max(1000).default(100) })
const isDay = (text: string): boolean => {
  const day = text.slice(0, 10)
  const date = new Date(`${day}T00:00:00Z`)
  return !Number.isNaN(date.getTime()) && date.toISOString().startsWith(day)
}
const Moment = z
  .string()
  .regex(/^\d{4}-\d\d-\d\d([ T]([01]\d|2[0-3])(:[0-5]\d){0,2})?$/, "write it like 2026-03-03 or 2026-03-03 07:30:00")
  .refine(isDay, "there is no such day")
const Export = z.object({ device: z.string().max(64).exactOptional(), from: Moment.exactOptional(), to: Moment.exactOptional() })

const STATUS = { not_found: 404, not_ready: 503, invalid: 422 } as const
const TITLE = { not_found: "No such terminal", not_ready: "Not ready", invalid: "Not possible" } as const

const toRefusal = (error: DeviceRefused | LibsqlError): Refusal | LibsqlError =>
  error._tag === "DeviceRefused"
    ? new Refusal({ status: STATUS[error.code], code: `device_${error.code}`, title: TITLE[error.code], detail: error.message })
    : error

const view = (device: Device, now: number, trouble?: Trouble) => ({
  id: device.id,
  serial: device.serial,
  name: device.name,
  status: device.status,
  zone: device.zone,
  address: device.address,
  pinnedAddress: device.pinned_address,
  model: device.model,
  firmware: device.firmware,
  pushVersion: device.push_version,
  usersReported: device.users_reported,
  punchesReported: device.punches_reported,
  skewSeconds: device.skew_seconds,
  firstSeenAt: device.first_seen_at,
  lastSeenAt: device.last_seen_at,
  approvedAt: device.approved_at,
  family: device.family,
  unsupported: device.unsupported === "" ? [] : device.unsupported.split(","),
  replacedBy: device.replaced_by,
  alerts: alertsOf(device, now, trouble),
})

const commandView = (row: CommandRecord) => ({
  id: row.id,
  command: row.command,
  pin: row.pin,
  status: row.status,
  attempts: row.attempts,
  result: row.result,
  error: row.error,
  createdAt: row.created_at,
  expiresAt: row.expires_at,
  sentAt: row.sent_at,
  doneAt: row.done_at,
})

const studentsOf = (sync: DeviceSync) =>
  sync.people.map((person) => ({
    id: person.id,
    table: person.table,
    name: person.name,
    card: person.card,
    class: person.group,
    pin: person.pin,
    status: person.status,
    removed: person.removed,
    lastSuccessAt: person.syncedAt,
    attempts: person.attempts,
    error: person.error,
  }))

/** Punches as a stream of pages: none is held longer than it takes to send. */
const csvStream = (
  filter: PunchFilter,
  page: (filter: PunchFilter, after: number) => Promise<{ readonly lines: string; readonly next: number | null }>,
) => {
  const encoder = new TextEncoder()
  let after: number | null = 0
  return new ReadableStream<Uint8Array>({
    start: (controller) => controller.enqueue(encoder.encode(csvStart())),
    pull: async (controller) => {
      if (after === null) return controller.close()
      const { lines, next } = await page(filter, after)
      after = next
      if (lines !== "") controller.enqueue(encoder.encode(lines))
      if (next === null) controller.close()
    },
  })
}

type Needs = Devices | Commands | Roster | Libsql

export const deviceRoutes: Effect.Effect<AnyElysia, never, Needs> = Effect.map(Effect.context<Needs>(), (context) => {
  const answer = answering(context)
  const run = <A>(request: Request, effect: Effect.Effect<A, DeviceRefused | LibsqlError, Needs>) =>
    answer(request, Effect.mapError(effect, toRefusal))
  /** Another zone reaches the terminal at its next handshake, which it is told to make. */
  const approve = (id: string, body: z.infer<typeof Approval>) =>
    Effect.tap(
      Devices.use((devices) => devices.approve(id, body)),
      () => Roster.use((roster) => roster.tellZones),
    )
  const viewAll = Effect.fnUntraced(function* (devices: ReadonlyArray<Device>) {
    const now = yield* Clock.currentTimeMillis
    const troubles = yield* Libsql.use((db) => db.read((tx) => readTroubles(tx, devices, now)))
    return devices.map((device) => view(device, now, troubles.get(device.id)))
  })
  const viewOne = (device: Device) => Effect.map(viewAll([device]), ([only]) => only ?? view(device, 0))
  const shown = <E, R>(device: Effect.Effect<Device, E, R>) => Effect.flatMap(device, viewOne)
  const status = (id: string) => Roster.use((roster) => roster.status(id))
  const sync = (id: string) =>
    Effect.map(
      Roster.use((roster) => roster.sync(id)),
      ({ device, people, queued }) => ({ deviceId: device.id, totalStudents: people, commandsQueued: queued }),
    )
  const queued = (data: { readonly totalStudents: number; readonly commandsQueued: number }): string =>
    `full sync of ${data.totalStudents} people: ${data.commandsQueued} commands queued`
  const page = (filter: PunchFilter, after: number) =>
    Effect.runPromiseWith(context)(Libsql.use((db) => db.read((tx) => punchPage(tx, filter, after))))
  const command = (id: string, body: z.infer<typeof Command>) =>
    Effect.map(
      Commands.use((commands) => commands.send(id, body)),
      (commandId) => ({ id: commandId }),
    )

  const retire = (id: string) => Devices.use((devices) => devices.retire(id))
  const replace = (id: string, serial: string) => Devices.use((devices) => devices.replace(id, serial))
  const claim = (id: string, body: z.infer<typeof Claim>) =>
    Effect.map(
      Roster.use((roster) => roster.claim(id, body)),
      (punches) => ({ punches }),
    )
  const history = (id: string, limit: number) =>
    Effect.map(
      Commands.use((commands) => commands.history(id, limit)),
      (rows) => ({ items: rows.map(commandView) }),
    )
  const succeeded = <A>(request: Request, effect: Effect.Effect<A, DeviceRefused | LibsqlError, Needs>) =>
    run(
      request,
      Effect.map(effect, (data) => ({ success: true, data })),
    )

  return new Elysia({ name: "devices" })
    .get("/api/devices", ({ request }) =>
      run(
        request,
        Devices.use((devices) => Effect.map(Effect.flatMap(devices.list, viewAll), (items) => ({ items }))),
      ),
    )
    .post("/api/devices/:id/approve", ({ request, params, body }) => run(request, shown(approve(params.id, body))), {
      body: Approval,
    })
    .post("/api/devices/:id/retire", ({ request, params }) => run(request, shown(retire(params.id))))
    .post("/api/devices/:id/replace", ({ request, params, body }) => run(request, shown(replace(params.id, body.serial))), {
      body: Replacement,
    })
    .post("/api/devices/:id/claims", ({ request, params, body }) => run(request, claim(params.id, body)), { body: Claim })
    .get("/api/devices/:id/sync-status", ({ request, params }) =>
      run(
        request,
        Effect.flatMap(status(params.id), (found) =>
          Effect.map(viewOne(found.device), (device) => ({
            device,
            summary: found.summary,
            students: studentsOf(found),
            unknownPins: found.unknown,
            terminalUsers: found.foreign,
            comparedAt: found.comparedAt,
          })),
        ),
      ),
    )
    .post("/api/devices/:id/sync-students", ({ request, params }) =>
      run(
        request,
        Effect.map(sync(params.id), (data) => ({ ...data, message: queued(data) })),
      ),
    )
    .get("/api/devices/:id/commands", ({ request, params, query }) => run(request, history(params.id, query.limit)), { query: History })
    .post("/api/devices/:id/commands", ({ request, params, body }) => run(request, command(params.id, body)), { body: Command })
    .get(
      "/api/punches.csv",
      ({ query }) =>
        new Response(csvStream({ serial: query.device ?? null, from: query.from ?? null, to: query.to?.replace("T", " ") ?? null }, page), {
          headers: {
            "content-type": "text/csv; charset=utf-8",
            "content-disposition": 'attachment; filename="punches.csv"',
            "cache-control": "no-store",
          },
        }),
      { query: Export },
    )
    .get("/api/v1/device/:id/sync-status", ({ request, params }) =>
      run(
        request,
        Effect.map(status(params.id), (found) => ({ success: true, data: { summary: found.summary, students: studentsOf(found) } })),
      ),
    )
    .post("/api/v1/device/:id/sync-students", ({ request, params }) =>
      run(
        request,
        Effect.map(sync(params.id), (data) => ({ success: true, message: queued(data), data })),
      ),
    )
    .post("/api/v1/device/:id/approve", ({ request, params, body }) => succeeded(request, shown(approve(params.id, body))), { body: Approval })
    .post("/api/v1/device/:id/retire", ({ request, params }) => succeeded(request, shown(retire(params.id))))
    .post("/api/v1/device/:id/replace", ({ request, params, body }) => succeeded(request, shown(replace(params.id, body.serial))), {
      body: Replacement,
    })
    .post("/api/v1/device/:id/claims", ({ request, params, body }) => succeeded(request, claim(params.id, body)), { body: Claim })
    .get("/api/v1/device/:id/commands", ({ request, params, query }) => succeeded(request, history(params.id, query.limit)), {
      query: History,
    })
    .post(
      "/api/v1/device/:id/commands",
      ({ request, params, body }) =>
        run(
          request,
          Effect.map(command(params.id, body), (data) => ({ success: true, message: "command queued", data })),
        ),
      { body: Command },
    )
})
