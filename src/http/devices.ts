/** The operator's API for terminals, on the school's node; the second set of paths answers in the form that existing tools expect. */
import * as Effect from "effect/Effect"
import { type AnyElysia, Elysia } from "elysia"
import { z } from "zod"
import { type Device, Devices, type DeviceRefused, type DeviceSync } from "../iclock/devices.ts"
import { answering, Refusal } from "./server.ts"

const Approval = z.strictObject({ zone: z.string().max(60).optional(), name: z.string().max(80).optional(), address: z.string().max(45).optional() })
const Command = z.strictObject({ command: z.string().max(40) })

const toRefusal = (error: DeviceRefused): Refusal =>
  new Refusal({
    status: error.code === "not_found" ? 404 : error.code === "not_ready" ? 503 : 422,
    code: error.code,
    title: error.code === "not_found" ? "No such terminal" : error.code === "not_ready" ? "Not ready" : "Not possible",
    detail: error.message,
  })

const view = (device: Device) => ({
  id: device.id, serial: device.serial, name: device.name, status: device.status, zone: device.zone, address: device.address, pinnedAddress: device.pinned_address,
  model: device.model, firmware: device.firmware, usersReported: device.users_reported, punchesReported: device.punches_reported,
  firstSeenAt: device.first_seen_at, lastSeenAt: device.last_seen_at, approvedAt: device.approved_at,
})

const students = (sync: DeviceSync) =>
  sync.people.map((row) => ({
    id: row.person_id, table: row.person_table, name: row.name, card: row.card, pin: row.pin, status: row.status, attempts: row.attempts, lastSuccessAt: row.synced_at, error: row.error,
  }))

export const deviceRoutes: Effect.Effect<AnyElysia, never, Devices> = Effect.map(Effect.context<Devices>(), (context) => {
  const run = answering(context)
  const mapped = <A, E>(effect: Effect.Effect<A, E | DeviceRefused, Devices>) =>
    Effect.mapError(effect, (error) => ((error as { _tag?: string })._tag === "DeviceRefused" ? toRefusal(error as DeviceRefused) : error))
  const list = Devices.use((devices) => devices.list)
  const status = (id: string) => mapped(Devices.use((devices) => devices.status(id)))
  const sync = (id: string, everyone: boolean) => mapped(Devices.use((devices) => devices.sync(id, everyone)))
  return new Elysia()
    .get("/api/devices", ({ request }) => run(request, Effect.map(list, (items) => ({ items: items.map(view) }))))
    .post("/api/devices/:id/approve", ({ request, params, body }) => {
      const { zone, name, address } = body ?? {}
      const options = { ...(zone === undefined ? {} : { zone }), ...(name === undefined ? {} : { name }), ...(address === undefined ? {} : { address }) }
      return run(request, Effect.map(mapped(Devices.use((devices) => devices.approve(params.id, options))), view))
    }, { body: Approval.optional() })
    .get("/api/devices/:id/sync-status", ({ request, params }) => run(request, Effect.map(status(params.id), (sync_) => ({ device: view(sync_.device), summary: sync_.summary, students: students(sync_) }))))
    .post("/api/devices/:id/sync-students", ({ request, params }) =>
      run(request, Effect.map(sync(params.id, true), ({ device, people, queued }) => ({ deviceId: device.id, totalStudents: people, commandsQueued: queued }))))
    .post("/api/devices/:id/commands", ({ request, params, body }) => run(request, Effect.map(mapped(Devices.use((devices) => devices.command(params.id, body.command))), (id) => ({ id }))), { body: Command })
    .get("/api/v1/device/:id/sync-status", ({ request, params }) =>
      run(request, Effect.map(status(params.id), (sync_) => ({ success: true, data: { summary: sync_.summary, students: students(sync_) } }))))
    .post("/api/v1/device/:id/sync-students", ({ request, params }) =>
      run(request, Effect.map(sync(params.id, true), ({ device, people, queued }) => ({
        success: true,
        message: `${queued} commands queued for ${people} people`,
        data: { deviceId: device.id, totalStudents: people, commandsQueued: queued },
      }))))
})
