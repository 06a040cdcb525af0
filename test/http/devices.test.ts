import * as Effect from "effect/Effect"
import { afterEach, beforeEach, describe, expect, it } from "vitest"
import { deviceRoutes } from "../../src/http/devices.ts"
import { type Auth, makeApp } from "../../src/http/server.ts"
import { Devices } from "../../src/iclock/devices.ts"
import { Roster } from "../../src/iclock/fill.ts"
import { Commands } from "../../src/iclock/queue.ts"
import { Libsql } from "../../src/libsql/client.ts"
import { type Node, openNode } from "../iclock/node.ts"

const SN = "TSTA240300017"
let node: Node
beforeEach(async () => {
  node = await openNode()
})
afterEach(() => node.close())

const call = async (method: string, path: string, body?: unknown, auth: Auth = { mode: "local" }) => {
  const routes = await node.run(
    deviceRoutes.pipe(
      Effect.provideService(Devices, node.devices),
      Effect.provideService(Commands, node.commands),
      Effect.provideService(Roster, node.roster),
      Effect.provideService(Libsql, node.school.file),
    ),
  )
  const response: Response = await makeApp({ plugins: [routes], auth }).handle(
    new Request(`http://node.local${path}`, {
      method,
      headers: { host: "127.0.0.1", ...(body === undefined ? {} : { "content-type": "application/json" }) },
      ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
    }),
  )
  return { status: response.status, type: response.headers.get("content-type") ?? "", body: (await response.json()) as Record<string, unknown> }
}

it("lists terminals, approves one by serial, queues its people and shows what it holds", async () => {
  await node.student("Amina Okafor", { card: "42", classId: "5b" })
  await node.get(`/iclock/cdata?SN=${SN}&options=all`)
  expect((await call("GET", "/api/devices")).body["items"]).toMatchObject([{ id: 1, serial: SN, status: "pending", address: "127.0.0.1" }])

  const approved = await call("POST", `/api/devices/${SN}/approve`, { zone: "Africa/Nairobi", name: "Gate" })
  expect(approved.body).toMatchObject({ id: 1, status: "approved", zone: "Africa/Nairobi", name: "Gate" })
  await node.run(node.roster.settle)
  expect((await call("GET", "/api/devices/1/sync-status")).body).toMatchObject({
    device: { serial: SN },
    summary: { total: 1, synced: 0, pending: 1, failed: 0, not_synced: 0 },
    students: [{ name: "Amina Okafor", card: "42", class: "5b", pin: "1", status: "pending", lastSuccessAt: null, attempts: 0, error: null }],
  })

  expect((await node.get(`/iclock/getrequest?SN=${SN}`)).body).toMatch(/^C:1:DATA UPDATE USERINFO PIN=1\t/)
  await node.post(`/iclock/devicecmd?SN=${SN}`, "ID=1&Return=0&CMD=DATA\n")
  expect((await call("GET", "/api/v1/device/1/sync-status")).body).toMatchObject({
    success: true,
    data: { summary: { total: 1, synced: 1, pending: 0, failed: 0, not_synced: 0 }, students: [{ name: "Amina Okafor", status: "synced" }] },
  })
  expect((await call("POST", "/api/v1/device/1/sync-students")).body).toEqual({
    success: true,
    message: "full sync of 1 people: 1 commands queued",
    data: { deviceId: 1, totalStudents: 1, commandsQueued: 1 },
  })
  expect((await call("POST", `/api/devices/${SN}/sync-students`)).body).toMatchObject({ deviceId: 1, totalStudents: 1, commandsQueued: 1 })
  expect(node.rows("SELECT status, count(*) FROM device_commands GROUP BY 1 ORDER BY 1")).toEqual([
    ["cancelled", 1n],
    ["done", 1n],
    ["pending", 1n],
  ])
})

it("a serial can be approved before the terminal has called, without a body, in the node's own zone", async () => {
  const { status, body } = await call("POST", "/api/devices/NEW123/approve")
  expect(status).toBe(200)
  expect(body).toMatchObject({ serial: "NEW123", status: "approved", zone: Intl.DateTimeFormat().resolvedOptions().timeZone, lastSeenAt: null })
})

it("another zone of an approved terminal reaches it by a new handshake", async () => {
  await node.approve(SN, "Africa/Nairobi")
  await node.get(`/iclock/cdata?SN=${SN}&options=all`)
  await call("POST", `/api/devices/${SN}/approve`, { zone: "Asia/Kolkata" })
  expect(node.rows("SELECT command, status FROM device_commands")).toEqual([["CHECK", "pending"]])
  expect((await node.get(`/iclock/cdata?SN=${SN}&options=all`)).body).toContain("\nTimeZone=330\n")
})

it("commands are queued by name; those that harm a terminal are none", async () => {
  await node.approve(SN)
  expect((await call("POST", "/api/devices/1/commands", { command: "reboot" })).body).toEqual({ id: 1 })
  for (const command of ["CLEAR DATA", "Shell ls", "SET OPTION x=1"]) {
    expect(await call("POST", "/api/devices/1/commands", { command })).toMatchObject({ status: 422, body: { code: "device_invalid" } })
  }
  expect((await node.get(`/iclock/getrequest?SN=${SN}`)).body).toBe("C:1:REBOOT\n")
})

describe("problems", () => {
  it.each([
    ["GET", "/api/devices/99/sync-status", undefined, 404, "device_not_found"],
    ["POST", "/api/devices/99/sync-students", undefined, 404, "device_not_found"],
    ["POST", "/api/devices/12/approve", {}, 404, "device_not_found"],
    ["POST", "/api/devices/NEW123/approve", { zone: "Mars/Olympus" }, 422, "device_invalid"],
    ["POST", "/api/devices/NEW123/approve", { colour: "red" }, 422, "invalid"],
    ["POST", "/api/devices/NEW123/approve", "{", 400, "malformed"],
    ["POST", "/api/devices/NEW123/commands", {}, 422, "invalid"],
    ["GET", "/api/punches.csv?from=2026-02-30", undefined, 422, "invalid"],
    ["GET", "/api/punches.csv?to=2026-02-03%2025:00", undefined, 422, "invalid"],
  ] as const)("%s %s %j is %i %s", async (method, path, body, status, code) => {
    expect(await call(method, path, body)).toMatchObject({ status, type: "application/problem+json", body: { code } })
    expect(node.rows("SELECT count(*) FROM devices")).toEqual([[0n]])
  })

  it("a terminal that is not approved gets no people and no commands", async () => {
    await node.get(`/iclock/cdata?SN=${SN}&options=all`)
    for (const [path, body] of [["sync-students"], ["commands", { command: "INFO" }]] as const) {
      expect(await call("POST", `/api/devices/1/${path}`, body)).toMatchObject({ status: 422, body: { code: "device_invalid" } })
    }
  })

  it("all of it is for operators", async () => {
    for (const [method, path] of [
      ["GET", "/api/devices"],
      ["POST", `/api/devices/${SN}/approve`],
      ["POST", "/api/v1/device/1/sync-students"],
      ["POST", `/api/devices/${SN}/commands`],
      ["GET", `/api/devices/${SN}/commands`],
      ["POST", `/api/devices/${SN}/retire`],
      ["POST", `/api/devices/${SN}/replace`],
      ["POST", `/api/devices/${SN}/claims`],
      ["GET", "/api/punches.csv"],
      ["POST", "/api/v1/device/1/commands"],
    ] as const) {
      expect((await call(method, path, undefined, { mode: "token", token: "right" })).status).toBe(401)
      expect((await call(method, path, undefined, { mode: "closed" })).status).toBe(403)
    }
  })
})
