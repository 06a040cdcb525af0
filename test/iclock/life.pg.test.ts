/** A school's file is lost and made anew: terminals, pins and punches are what they were. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { afterAll, beforeAll, expect, test } from "vitest"
import { startTerminal, type Terminal } from "../../device/simulator.ts"
import { installRoster } from "../../src/iclock/fill.ts"
import type { Manifest } from "../../src/model/table.ts"
import { becomes } from "../support/until.ts"
import { makeWorld, type School, type World } from "../support/world.ts"
import { parseReply, sendTo, serveFile } from "./node.ts"

const SN = "SIM0000001"
const amina = "00000000-0000-0000-0000-00000000000a"
const bilal = "00000000-0000-0000-0000-00000000000b"
const schema = `
  CREATE TABLE students (id uuid PRIMARY KEY, school_id text NOT NULL, full_name text NOT NULL, rfid_card_id text, is_active boolean NOT NULL DEFAULT true);
  CREATE TABLE attendance (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), school_id text NOT NULL, student_id uuid NOT NULL REFERENCES students (id),
    punched_at timestamptz NOT NULL);`

type Served = Awaited<ReturnType<typeof serveFile>>
let world: World
const scopes: Array<Scope.Closeable> = []

/** A node with an empty file; `serve` opens its port. */
const newFile = async (): Promise<{ school: School; serve: () => Promise<Served> }> => {
  const school = await world.school("a")
  const [row] = await school.rows<{ manifest: string }>("SELECT manifest FROM schoolbus_state")
  await world.run(school.file.write((tx) => installRoster(tx, JSON.parse(row?.manifest ?? "{}") as Manifest)))
  const scope = Scope.makeUnsafe()
  scopes.push(scope)
  return { school, serve: () => serveFile(school.file, scope) }
}

beforeAll(async () => {
  world = await makeWorld(
    schema,
    {
      tables: { students: { audience: { column: "school_id" } }, attendance: { audience: { column: "school_id" }, strategy: "school_wins" } },
      devices: {
        people: { students: { id: "id", name: "full_name", card: "rfid_card_id", active: "is_active" } },
        attendance: { table: "attendance", person: "student_id", at: "punched_at" },
      },
    },
    ["a"],
  )
})
afterAll(async () => {
  for (const scope of scopes) await Effect.runPromise(Scope.close(scope, Exit.void))
  await world?.stop()
})

let terminal: Terminal
const memory: Array<string> = []
const punch = (pin: string, time: string): void => {
  memory.push(`${pin}\t${time}`)
  terminal.punch(pin, time)
}

test("before the first cut a node answers no terminal, and approves none", async () => {
  const { serve, school } = await newFile()
  const node = await serve()
  const reply = parseReply(await sendTo(node.port, `GET /iclock/cdata?SN=${SN}&options=all HTTP/1.1\r\n\r\n`))
  expect(reply.status).toBe(503)
  const refused = await Effect.runPromise(Effect.flip(node.devices.approve(SN, {})))
  expect(refused).toMatchObject({ code: "not_ready" })
  expect(await school.rows("SELECT * FROM devices")).toEqual([])
})

test("a first life: two pupils, one leaves, punches go up", async () => {
  await world.sql`INSERT INTO students (id, school_id, full_name, rfid_card_id) VALUES (${amina}, 'a', 'Amina', '11'), (${bilal}, 'a', 'Bilal', '22')`
  await world.settle()
  const { school, serve } = await newFile()
  await school.pull()
  const node = await serve()
  await Effect.runPromise(node.devices.approve(SN, { zone: "Africa/Nairobi", name: "Gate" }))
  terminal = startTerminal({ server: `http://127.0.0.1:${node.port}`, serial: SN, interval: 0.05 })
  await becomes(
    () => terminal.users().length,
    (n) => n === 2,
  )
  punch("1", "2026-03-03 07:41:09")
  punch("99", "2026-03-03 07:41:10")
  await becomes(
    () => terminal.unsent(),
    (n) => n === 0,
  )
  await becomes(
    async () => (await Effect.runPromise(node.roster.status(SN))).summary.synced,
    (n) => n === 2,
  )
  await terminal.stop()
  await school.push()
  expect(await world.sql`SELECT pin, person_id FROM schoolbus.device_user_mappings ORDER BY pin`).toEqual([
    { pin: "1", person_id: amina },
    { pin: "2", person_id: bilal },
  ])
  expect(await world.sql`SELECT att_stamp FROM schoolbus.devices`).toEqual([{ att_stamp: "9999" }])
  // The terminal has been there for a week.
  await world.sql`UPDATE schoolbus.devices SET first_seen_at = now() - interval '7 days'`
})

test("a second life: no new approval, the same pins, who left meanwhile is removed, the whole memory again changes nothing", async () => {
  await world.sql`UPDATE students SET is_active = false WHERE id = ${amina}`
  await world.sql`INSERT INTO students (id, school_id, full_name, rfid_card_id) VALUES (gen_random_uuid(), 'a', 'Chausiku', '33')`
  const before = await world.sql`SELECT id, received_at FROM schoolbus.punches ORDER BY id`
  await world.settle()
  const { school, serve } = await newFile()
  await school.pull()
  const node = await serve()
  const held = terminal.users()
  // What it told the lost file, and that one had not sent up, is asked for again.
  const hello = parseReply(await sendTo(node.port, `GET /iclock/cdata?SN=${SN}&options=all&pushver=2.4.1 HTTP/1.1\r\n\r\n`)).body
  expect(hello).toContain("\nATTLOGStamp=0\n")
  terminal = startTerminal({ server: `http://127.0.0.1:${node.port}`, serial: SN, interval: 0.05, users: held })
  for (const line of memory) terminal.punch(...(line.split("\t") as [string, string]))
  await becomes(
    () =>
      terminal
        .users()
        .map((user) => `${user.pin} ${user.name}`)
        .sort()
        .join(),
    (now) => now === "100 Chausiku,2 Bilal" || now === "2 Bilal,3 Chausiku",
  )
  await becomes(
    () => terminal.unsent(),
    (n) => n === 0,
  )
  await becomes(
    async () => (await Effect.runPromise(node.roster.status(SN))).summary,
    (sum) => sum.synced === 2 && sum.total === 2,
  )
  // A result for a command of the former life means nothing in this one.
  const [first] = await school.rows<{ id: number }>("SELECT min(id) AS id FROM device_commands")
  expect(first?.id).toBeGreaterThan(1_000_000)
  await school.sync()
  expect(await world.sql`SELECT reason FROM schoolbus.quarantine`).toEqual([])
  expect(await world.sql`SELECT table_name, reason FROM schoolbus.conflicts`).toEqual([])
  expect(await world.sql`SELECT id, received_at FROM schoolbus.punches ORDER BY id`).toEqual(before)
  expect(await world.sql`SELECT count(*)::int AS n FROM attendance`).toEqual([{ n: 1 }])
  expect(await world.sql`SELECT serial, name, status FROM schoolbus.devices`).toEqual([{ serial: SN, name: "Gate", status: "approved" }])
})

test("a terminal that head office approves or renames in SQL is so in the school", async () => {
  const { school, serve } = await newFile()
  await school.pull()
  const node = await serve()
  expect((await Effect.runPromise(node.devices.list)).length).toBe(1)
  await school.sync()
  await world.sql`UPDATE schoolbus.devices SET status = 'retired', name = 'Old gate'`
  await world.settle()
  await school.pull()
  await becomes(
    async () => (await Effect.runPromise(node.devices.list)).map((device) => [device.status, device.name].join()).join(),
    (now) => now === "retired,Old gate",
  )
  await terminal.stop()
})
