import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import { afterAll, beforeAll, expect, it } from "vitest"
import { deviceRoutes } from "../../src/http/devices.ts"
import { makeApp } from "../../src/http/server.ts"
import { Devices } from "../../src/iclock/devices.ts"
import { Roster } from "../../src/iclock/fill.ts"
import { Commands } from "../../src/iclock/queue.ts"
import { Libsql } from "../../src/libsql/client.ts"
import { serve, type Served } from "../../src/runtime.ts"
import { type Node, openNode } from "../iclock/node.ts"
import { type Ran, run as runProgram } from "../support/run.ts"

const SN = "TSTA240300017"
let node: Node
let api: Served
let amina = ""
const folder = mkdtempSync(join(tmpdir(), "schoolbus-cli-devices-"))

const run = (...args: ReadonlyArray<string>): Promise<Ran> => runProgram(["devices", ...args, "--url", `http://127.0.0.1:${api.port}`], {})

beforeAll(async () => {
  node = await openNode()
  amina = await node.student("Amina Okafor", { card: "42" })
  const routes = await node.run(
    deviceRoutes.pipe(
      Effect.provideService(Devices, node.devices),
      Effect.provideService(Commands, node.commands),
      Effect.provideService(Roster, node.roster),
      Effect.provideService(Libsql, node.school.file),
    ),
  )
  const app = makeApp({ plugins: [routes], auth: { mode: "local" } })
  api = await serve({ port: 0, hostname: "127.0.0.1", idleSeconds: 30, maxBodyBytes: 100_000, fetch: (request) => app.handle(request) })
})
afterAll(async () => {
  await api.stop()
  await node.close()
  rmSync(folder, { recursive: true, force: true })
})

it("a terminal from its first call to its replacement", async () => {
  await node.get(`/iclock/cdata?SN=${SN}&options=all`)
  expect((await run("list")).out).toMatch(new RegExp(`1 +${SN} +${SN} +pending`))
  expect((await run("approve", SN, "--zone", "Africa/Nairobi", "--name", "Gate", "--address", "127.0.0.0/8")).out).toContain(
    "is approved, its clock in zone Africa/Nairobi;",
  )
  expect((await run("approve", SN, "--address", "gate")).code).toBe(64)
  await node.run(node.roster.settle)
  expect((await run("status", SN)).out).toMatch(
    /^total 1, synced 0, pending 1, failed 0, not synced 0\n[\s\S]*Class +State +Last success[\s\S]*Amina Okafor +42 +c1 +pending/,
  )
  expect((await run("sync", "1")).out).toBe("full sync of 1 people: 1 commands queued\n")

  await node.post(`/iclock/cdata?SN=${SN}&table=ATTLOG&Stamp=9999`, "77\t2026-03-03 07:41:15\t0\t1\n")
  expect((await run("status", SN)).out).toContain("nobody is known for pin 77: 1 punches")
  expect((await run("claim", SN, "77", amina)).out).toBe("1 punches of pin 77 have their person now.\n")
  expect((await run("claim", SN, "77", "nobody")).code).toBe(64)

  expect((await run("command", SN, "reboot")).out).toMatch(/^Queued as 3;/)
  expect((await run("command", SN, "QUERY_ATTLOG")).err).toContain("needs from and to")
  expect((await run("command", SN, "CLEAR_LOG")).err).toContain("confirm it with the serial number")
  expect((await run("command", SN, "CLEAR DATA")).code).toBe(64)
  expect((await run("history", SN, "--limit", "1")).out).toMatch(/^Id +Command[\s\S]*3 +REBOOT +pending/)
  expect(JSON.parse((await run("history", SN, "--json")).out).items).toHaveLength(3)

  const file = join(folder, "march.csv")
  expect((await run("export", SN, "--from", "2026-03-01", "--to", "2026-03-31", "--out", file)).err).toBe(`1 punches written to ${file}\n`)
  const csv = readFileSync(file, "utf8")
  expect(csv.startsWith("\ufeffterminal,serial,pin,person,name,time,")).toBe(true)
  expect(csv).toContain(`\r\nGate,${SN},77,${amina},Amina Okafor,2026-03-03 07:41:15,Africa/Nairobi,2026-03-03 04:41:15+00,0,1,,`)
  expect((await run("export", "--from", "March")).code).toBe(64)

  expect((await run("replace", SN, "NEW0000002")).out).toContain("Terminal NEW0000002 takes over")
  expect((await run("retire", "NEW0000002", "--json")).out).toContain('"status":"retired"')
  expect((await run("retire", "GONE0001")).code).toBe(1)
  expect((await run("approve", "NOTSEEN01")).out).toContain("has never called: see that this is its serial number")
  expect((await run("retire", "NOTSEEN01")).code).toBe(0)
  const list = JSON.parse((await run("list", "--json")).out) as {
    items: ReadonlyArray<{ serial: string; status: string; replacedBy: number | null }>
  }
  expect(list.items.map(({ serial, status, replacedBy }) => [serial, status, replacedBy])).toEqual([
    [SN, "retired", 2],
    ["NEW0000002", "retired", null],
    ["NOTSEEN01", "retired", null],
  ])
})
