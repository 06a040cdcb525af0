import * as Effect from "effect/Effect"
import { afterEach, beforeEach, describe, expect, it } from "vitest"
import { deviceRoutes } from "../../src/http/devices.ts"
import { type Auth, makeApp } from "../../src/http/server.ts"
import { Devices } from "../../src/iclock/devices.ts"
import { Roster } from "../../src/iclock/fill.ts"
import { Commands } from "../../src/iclock/queue.ts"
import { Libsql } from "../../src/libsql/client.ts"
import { type Node, openNode, students } from "../iclock/node.ts"
import { column, table } from "../support/school-file.ts"

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

it("a short number is the number in the list, also when a terminal calls itself by it", async () => {
  await node.approve(SN, "UTC")
  await node.get("/iclock/cdata?SN=1&options=all")
  expect((await call("POST", "/api/devices/1/approve", { name: "Gate" })).body).toMatchObject({ id: 1, serial: SN, name: "Gate" })
  expect((await call("POST", "/api/devices/2/approve")).body).toMatchObject({ id: 2, serial: "1", status: "approved" })
  // It is spoken to as itself.
  await node.run(node.commands.send("2", { command: "LOG" }))
  expect((await node.get("/iclock/getrequest?SN=1&INFO=Ver 6.60,0,0,0,10.0.0.1")).body).toBe("C:1:LOG\n")
})

it("a terminal that head office approved in SQL keeps its zone, and another can take its place", async () => {
  await node.get(`/iclock/cdata?SN=${SN}&options=all`)
  await node.program("UPDATE devices SET status = 'approved', zone = 'Asia/Kolkata'")
  await node.run(node.devices.changed)
  expect((await call("POST", `/api/devices/${SN}/approve`, { name: "Gate" })).body).toMatchObject({ zone: "Asia/Kolkata" })
  await node.program("UPDATE devices SET approved_at = NULL")
  await node.run(node.devices.changed)
  expect((await call("POST", `/api/devices/${SN}/replace`, { serial: "NEW0000002" })).body).toMatchObject({ name: "Gate", zone: "Asia/Kolkata" })
  expect((await call("POST", "/api/devices/NEW0000002/replace", { serial: SN })).body["detail"]).toMatch(/was in use already, with pins of its own/)
})

it("what is under /api/devices is under /api/v1/device too, in the form that other tools expect", async () => {
  const amina = await node.student("Amina")
  await node.approve(SN, "UTC")
  await node.post(`/iclock/cdata?SN=${SN}&table=ATTLOG&Stamp=1`, "77\t2026-03-03 07:41:15\t0\t1\n")
  const v1 = async (method: string, path: string, body?: unknown) => (await call(method, `/api/v1/device/${path}`, body)).body
  expect(await v1("POST", "1/claims", { pin: "77", person: amina })).toEqual({ success: true, data: { punches: 1 } })
  expect(await v1("GET", "1/commands?limit=1")).toMatchObject({ success: true, data: { items: [{ id: 1 }] } })
  expect(await v1("POST", "1/replace", { serial: "NEW0000002" })).toMatchObject({ success: true, data: { serial: "NEW0000002" } })
  expect(await v1("POST", "NEW0000002/retire")).toMatchObject({ success: true, data: { status: "retired" } })
  expect(await v1("POST", "9/retire")).toMatchObject({ status: 404, code: "device_not_found" })
})

it("a class is shown by its name, where the config says where that stands", async () => {
  await node.close()
  const classes = table("classes", [column("code", "text", { notNull: true }), column("label", "text")], { key: ["code"] })
  const people = { "public.students": { id: "id", name: "full_name", card: "rfid_card_id", group: "class_id" } }
  const groupFrom = { table: "public.classes", name: "label" }
  node = await openNode({ tables: [students, classes], devices: { people: { "public.students": { ...people["public.students"], groupFrom } } } })
  await node.program("INSERT INTO classes (code, label) VALUES ('5b', 'Form 5 B')")
  await node.student("Amina", { classId: "5b" })
  await node.student("Bilal", { classId: "gone" })
  await node.approve(SN, "UTC")
  const { students: shown } = (await call("GET", "/api/devices/1/sync-status")).body as { students: ReadonlyArray<{ class: string }> }
  expect(shown.map((one) => one.class).sort()).toEqual(["Form 5 B", "gone"])
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
      ["GET", "/api/v1/device/1/commands"],
      ["POST", "/api/v1/device/1/retire"],
      ["POST", "/api/v1/device/1/replace"],
      ["POST", "/api/v1/device/1/claims"],
    ] as const) {
      expect((await call(method, path, undefined, { mode: "token", token: "right" })).status).toBe(401)
      expect((await call(method, path, undefined, { mode: "closed" })).status).toBe(403)
    }
  })
})
