/** From a pupil at head office to the terminal, and from a punch to Postgres: no road but the ordinary flows. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { afterAll, beforeAll, expect, test } from "vitest"
import { startTerminal, type Terminal } from "../../device/simulator.ts"
import { installRoster } from "../../src/iclock/fill.ts"
import type { Manifest } from "../../src/model/table.ts"
import { becomes } from "../support/until.ts"
import { makeWorld, type School, type World } from "../support/world.ts"
import { serveFile } from "./node.ts"

const SN = "SIM0000001"
const pupil = "00000000-0000-0000-0000-000000000001"
const schema = `
  CREATE TABLE students (id uuid PRIMARY KEY, school_id text NOT NULL, full_name text NOT NULL, rfid_card_id text, is_active boolean NOT NULL DEFAULT true);
  CREATE TABLE attendance (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), school_id text NOT NULL, student_id uuid NOT NULL REFERENCES students (id),
    punched_at timestamptz NOT NULL, source text NOT NULL DEFAULT 'terminal', created_at timestamptz NOT NULL DEFAULT now());`

let world: World
let school: School
let node: Awaited<ReturnType<typeof serveFile>>
let terminal: Terminal
const scope = Scope.makeUnsafe()

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
  school = await world.school("a")
  const [row] = await school.rows<{ manifest: string }>("SELECT manifest FROM schoolbus_state")
  await world.run(school.file.write((tx) => installRoster(tx, JSON.parse(row?.manifest ?? "{}") as Manifest)))
  await school.pull()
  node = await serveFile(school.file, scope)
  await Effect.runPromise(node.devices.approve(SN, { zone: "Africa/Nairobi" }))
  terminal = startTerminal({ server: `http://127.0.0.1:${node.port}`, serial: SN, interval: 0.05 })
})
afterAll(async () => {
  await terminal?.stop()
  await Effect.runPromise(Scope.close(scope, Exit.void))
  await world?.stop()
})

test("a pupil entered at head office is on the terminal", async () => {
  await world.sql`INSERT INTO students (id, school_id, full_name, rfid_card_id) VALUES (${pupil}, 'a', 'Amina Okafor', '123')`
  await world.settle()
  await school.pull()
  await becomes(
    () => terminal.users(),
    (users) => users.length === 1,
  )
  expect(terminal.users()).toEqual([{ pin: "1", name: "Amina Okafor", card: "123" }])
})

test("a punch is in Postgres once, with its attendance row and the terminal's own rows", async () => {
  terminal.punch("1", "2026-03-03 07:41:09")
  terminal.punch("77", "2026-03-03 07:41:12")
  await becomes(
    () => terminal.unsent(),
    (n) => n === 0,
  )
  await becomes(
    async () => (await Effect.runPromise(node.roster.status(SN))).summary,
    (sum) => sum.synced === 1,
  )
  await school.push()
  expect(await world.sql`SELECT pin, at, at_utc::text, person_id, device_serial FROM schoolbus.punches ORDER BY pin`).toEqual([
    { pin: "1", at: "2026-03-03 07:41:09", at_utc: "2026-03-03 04:41:09+00", person_id: pupil, device_serial: SN },
    { pin: "77", at: "2026-03-03 07:41:12", at_utc: "2026-03-03 04:41:12+00", person_id: null, device_serial: SN },
  ])
  expect(await world.sql`SELECT school_id, student_id, punched_at::text, source FROM attendance`).toEqual([
    { school_id: "a", student_id: pupil, punched_at: "2026-03-03 04:41:09+00", source: "terminal" },
  ])
  expect(
    await world.sql`SELECT d.serial, d.status, s.name, s.status AS sync FROM schoolbus.devices d JOIN schoolbus.device_user_sync_status s ON s.school = d.school AND s.device_id = d.id`,
  ).toEqual([{ serial: SN, status: "approved", name: "Amina Okafor", sync: "synced" }])
  expect(await world.sql`SELECT reason, detail FROM schoolbus.quarantine`).toEqual([])
})

test("the terminal is cleared only when head office has confirmed all that it holds", async () => {
  const clear = () => Effect.runPromise(Effect.result(node.commands.send(SN, { command: "CLEAR_LOG", confirm: SN })))
  await Effect.runPromise(node.commands.send(SN, { command: "INFO" }))
  await becomes(
    async () => (await Effect.runPromise(node.devices.find(SN))).punches_reported,
    (n) => n === 2,
  )
  // Postgres has them, but the school has not heard so: they may still be refused there.
  expect(await clear()).toMatchObject({ _tag: "Failure", failure: { message: expect.stringMatching(/not at head office yet/) } })
  await school.sync()
  expect(await clear()).toMatchObject({ _tag: "Success" })
  await becomes(
    async () => (await Effect.runPromise(node.commands.history(SN, 1)))[0],
    (command) => command?.command === "CLEAR LOG" && command.status === "done",
  )
  expect(await world.sql`SELECT count(*)::int AS n FROM schoolbus.punches`).toEqual([{ n: 2 }])
})

test("the terminal's whole memory again adds nothing anywhere", async () => {
  await school.sync()
  terminal.punch("1", "2026-03-03 07:41:09")
  terminal.punch("77", "2026-03-03 07:41:12")
  await becomes(
    () => terminal.unsent(),
    (n) => n === 0,
  )
  await school.push()
  expect(
    await world.sql`SELECT (SELECT count(*)::int FROM schoolbus.punches) AS punches, (SELECT count(*)::int FROM attendance) AS attendance`,
  ).toEqual([{ punches: 2, attendance: 1 }])
})

test("a pupil who leaves at head office leaves the terminal", async () => {
  await world.sql`UPDATE students SET is_active = false WHERE id = ${pupil}`
  await world.settle()
  await school.pull()
  await becomes(
    () => terminal.users().length,
    (n) => n === 0,
  )
})

test("a terminal whose clock stands in another century is at head office with its punches, flagged", async () => {
  terminal.punch("77", "2199-12-31 23:59:59")
  await becomes(
    () => terminal.unsent(),
    (n) => n === 0,
  )
  await school.push()
  expect(await world.sql`SELECT at, flags FROM schoolbus.punches WHERE flags = 'future'`).toEqual([{ at: "2199-12-31 23:59:59", flags: "future" }])
  expect(await world.sql`SELECT skew_seconds FROM schoolbus.devices`).toEqual([{ skew_seconds: 2_147_483_647 }])
  expect(await world.sql`SELECT reason, detail FROM schoolbus.quarantine`).toEqual([])
})
