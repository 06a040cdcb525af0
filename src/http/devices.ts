/** The operator's API for terminals, on the school's node; the paths below `/api/v1` answer in the form that existing tools expect. */
import * as Effect from "effect/Effect"
import { type AnyElysia, Elysia } from "elysia"
import { z } from "zod"
import { type Device, type DeviceRefused, Devices } from "../iclock/devices.ts"
import { type DeviceSync, Roster } from "../iclock/fill.ts"
import type { LibsqlError } from "../libsql/client.ts"
import { answering, Refusal } from "./server.ts"

const Approval = z
  .strictObject({
    zone: z.string().min(1).max(60).exactOptional(),
    name: z.string().min(1).max(80).exactOptional(),
    address: z.string().min(1).max(45).exactOptional(),
  })
  .default({})
const Command = z.strictObject({ command: z.string().min(1).max(40) })

const STATUS = { not_found: 404, not_ready: 503, invalid: 422 } as const
const TITLE = { not_found: "No such terminal", not_ready: "Not ready", invalid: "Not possible" } as const

const toRefusal = (error: DeviceRefused | LibsqlError): Refusal | LibsqlError =>
  error._tag === "DeviceRefused"
    ? new Refusal({ status: STATUS[error.code], code: `device_${error.code}`, title: TITLE[error.code], detail: error.message })
    : error

const view = (device: Device) => ({
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

export const deviceRoutes: Effect.Effect<AnyElysia, never, Devices | Roster> = Effect.map(Effect.context<Devices | Roster>(), (context) => {
  const answer = answering(context)
  const run = <A>(request: Request, effect: Effect.Effect<A, DeviceRefused | LibsqlError, Devices | Roster>) =>
    answer(request, Effect.mapError(effect, toRefusal))
  const status = (id: string) => Roster.use((roster) => roster.status(id))
  const sync = (id: string) =>
    Effect.map(
      Roster.use((roster) => roster.sync(id)),
      ({ device, people, queued }) => ({ deviceId: device.id, totalStudents: people, commandsQueued: queued }),
    )
  const queued = (data: { readonly totalStudents: number; readonly commandsQueued: number }): string =>
    `full sync of ${data.totalStudents} people: ${data.commandsQueued} commands queued`

  return new Elysia({ name: "devices" })
    .get("/api/devices", ({ request }) =>
      run(
        request,
        Devices.use((devices) => Effect.map(devices.list, (items) => ({ items: items.map(view) }))),
      ),
    )
    .post(
      "/api/devices/:id/approve",
      ({ request, params, body }) =>
        run(
          request,
          Devices.use((devices) => Effect.map(devices.approve(params.id, body), view)),
        ),
      { body: Approval },
    )
    .get("/api/devices/:id/sync-status", ({ request, params }) =>
      run(
        request,
        Effect.map(status(params.id), (found) => ({
          device: view(found.device),
          summary: found.summary,
          students: studentsOf(found),
          unknownPins: found.foreign,
        })),
      ),
    )
    .post("/api/devices/:id/sync-students", ({ request, params }) =>
      run(
        request,
        Effect.map(sync(params.id), (data) => ({ ...data, message: queued(data) })),
      ),
    )
    .post(
      "/api/devices/:id/commands",
      ({ request, params, body }) =>
        run(
          request,
          Devices.use((devices) => Effect.map(devices.command(params.id, body.command), (id) => ({ id }))),
        ),
      { body: Command },
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
})
