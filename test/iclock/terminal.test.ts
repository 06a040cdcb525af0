/** A simulated terminal against the school node's port: what a school sees, end to end. */
import { rmSync } from "node:fs"
import { createServer, connect, type Server } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, expect, it } from "vitest"
import { startTerminal, type Terminal, type TerminalOptions } from "../../device/simulator.ts"
import { becomes } from "../support/until.ts"
import { type Node, openNode } from "./node.ts"

let node: Node
const terminals: Array<Terminal> = []
const servers: Array<Server> = []
afterEach(async () => {
  await Promise.all(terminals.splice(0).map((terminal) => terminal.stop()))
  for (const server of servers.splice(0)) server.close()
  await node.close()
})

const SN = "SIM0000001"
const start = (more: Partial<TerminalOptions> = {}): Terminal => {
  const terminal = startTerminal({ server: `http://127.0.0.1:${node.port}`, serial: SN, interval: 0.05, ...more })
  terminals.push(terminal)
  return terminal
}

const settled = async (terminal: Terminal, names: ReadonlyArray<string>): Promise<void> => {
  await node.run(node.roster.settle)
  await becomes(
    () =>
      terminal
        .users()
        .map((user) => user.name)
        .sort()
        .join(),
    (now) => now === [...names].sort().join(),
  )
  await becomes(
    () => node.rows("SELECT status, count(*) FROM device_commands WHERE status IN ('pending', 'sent') GROUP BY 1"),
    (open) => open.length === 0,
  )
}

it("a pupil who is entered, renamed and removed is so on the terminal, and the queue ends empty", async () => {
  node = await openNode()
  const terminal = start()
  const amina = await node.student("Amina Okafor", { card: "123456789" })
  await becomes(
    () => node.rows("SELECT status FROM devices"),
    (rows) => rows.length === 1,
  )
  await node.approve(SN)
  await settled(terminal, ["Amina Okafor"])
  expect(terminal.users()).toEqual([{ pin: "1", name: "Amina Okafor", card: "123456789" }])

  await node.program("UPDATE students SET full_name = 'Amina Hassan', rfid_card_id = '42' WHERE id = ?", [amina])
  await node.student("Bilal Haddad")
  await node.student("Not Active", { active: false })
  await node.student("No Card", { card: null })
  await settled(terminal, ["Amina Hassan", "Bilal Haddad"])

  await node.program("DELETE FROM students WHERE id = ?", [amina])
  await settled(terminal, ["Bilal Haddad"])
  const sync = await node.run(node.roster.status(SN))
  expect(sync.summary).toEqual({ total: 1, synced: 1, pending: 0, failed: 0, not_synced: 0 })
  expect(node.rows("SELECT pin, to_at IS NULL FROM device_user_mappings ORDER BY pin")).toEqual([
    ["1", 0n],
    ["2", 1n],
  ])
})

it("a pin stays with its person: whoever comes later gets another, who comes back gets the old one", async () => {
  node = await openNode()
  const terminal = start()
  const amina = await node.student("Amina")
  await node.approve(SN)
  await settled(terminal, ["Amina"])
  await node.program("UPDATE students SET is_active = 0 WHERE id = ?", [amina])
  await settled(terminal, [])
  await node.student("Bilal")
  await settled(terminal, ["Bilal"])
  await node.program("UPDATE students SET is_active = 1 WHERE id = ?", [amina])
  await settled(terminal, ["Amina", "Bilal"])
  expect(
    terminal
      .users()
      .map((user) => `${user.pin} ${user.name}`)
      .sort(),
  ).toEqual(["1 Amina", "2 Bilal"])
})

it("a name cannot become another field, nor another command", async () => {
  node = await openNode()
  const terminal = start()
  await node.student("Eve Pri=14\tCard=7\r\nC:9:CLEAR DATA")
  await node.approve(SN)
  await settled(terminal, ["Eve Pri 14 Card 7 C:9:CL"])
  expect(node.rows("SELECT command FROM device_commands")).toEqual([
    ["DATA UPDATE USERINFO PIN=1\tName=Eve Pri 14 Card 7 C:9:CL\tPri=0\tPasswd=\tCard=1234567\tGrp=1\tTZ=0000000100000000"],
  ])
})

it("punches made before the approval and while the cable was out arrive once each, also over a restart of the terminal", async () => {
  node = await openNode()
  const data = join(tmpdir(), `terminal-${crypto.randomUUID()}.json`)
  try {
    let terminal = start({ data })
    terminal.punch("7", "2026-03-03 07:41:15")
    await becomes(
      () => node.rows("SELECT status FROM devices"),
      (rows) => rows.length === 1,
    )
    expect(terminal.unsent()).toBe(1)
    await node.approve(SN, "Asia/Jakarta")
    await becomes(
      () => terminal.unsent(),
      (n) => n === 0,
    )
    terminal.cut()
    for (let i = 10; i < 40; i++) terminal.punch("7", `2026-03-03 08:00:${i}`)
    await terminal.stop()
    terminal = start({ data })
    await becomes(
      () => terminal.unsent(),
      (n) => n === 0,
    )
    expect(node.rows("SELECT count(*), min(at_utc) FROM punches")).toEqual([[31n, "2026-03-03 00:41:15+00"]])
  } finally {
    rmSync(data, { force: true })
  }
})

it("a punch without a time has the wall clock of the school's zone", async () => {
  node = await openNode()
  const terminal = start()
  await node.approve(SN, "Asia/Kolkata")
  await becomes(
    () => terminal.online(),
    (online) => online,
  )
  terminal.punch("7")
  await becomes(
    () => node.rows("SELECT abs(unixepoch(substr(at_utc, 1, 19)) - unixepoch('now')) < 30, flags FROM punches"),
    (rows) => rows.length === 1,
  )
  expect(node.rows("SELECT abs(unixepoch(substr(at_utc, 1, 19)) - unixepoch('now')) < 30, flags FROM punches")).toEqual([[1n, null]])
})

it("replies that are lost double nothing and lose nothing", async () => {
  node = await openNode()
  // Some answers break off after the node has done its work.
  let n = 0
  const flaky = createServer((client) => {
    const isLost = [3, 7, 9].includes(++n % 11)
    const up = connect(node.port, "127.0.0.1")
    client.pipe(up)
    up.on("data", (chunk) => (isLost ? client.destroy() : client.write(chunk as Uint8Array)))
    up.on("end", () => client.end())
    for (const socket of [client, up]) socket.on("error", () => socket.destroy())
  })
  servers.push(flaky)
  await new Promise<void>((resolve) => flaky.listen(0, "127.0.0.1", resolve))
  const address = flaky.address()
  const terminal = start({ server: `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}` })
  const names = Array.from({ length: 45 }, (_, i) => `Pupil ${i}`)
  for (const name of names) await node.student(name)
  await node.approve(SN)
  // Pins of nobody: the terminal had them before.
  for (let i = 10; i < 60; i++) terminal.punch(String(500 + i), `2026-03-03 08:00:${i}`)
  await becomes(
    () => terminal.unsent(),
    (left) => left === 0,
  )
  expect(node.rows("SELECT count(*), count(DISTINCT pin) FROM punches")).toEqual([[50n, 50n]])
  // What was sent in an answer that was lost comes again after a minute, with the same id.
  await becomes(
    async () => {
      await node.program("UPDATE device_commands SET sent_at = '2020-01-01 00:00:00+00' WHERE status = 'sent'")
      return node.rows("SELECT count(*) FROM device_commands WHERE status <> 'done'")
    },
    ([row]) => row?.[0] === 0n,
  )
  expect(
    terminal
      .users()
      .map((user) => user.name)
      .sort(),
  ).toEqual([...names].sort())
  expect(node.rows("SELECT count(*), max(id) FROM device_commands")).toEqual([[45n, 45n]])
})

it("a terminal without room says so for each pupil, and a later full sync tries again", async () => {
  node = await openNode()
  const terminal = start({ capacity: 2 })
  for (const name of ["A", "B", "C"]) await node.student(name)
  await node.approve(SN)
  await becomes(
    async () => (await node.run(node.roster.status(SN))).summary,
    (sum) => sum.synced === 2 && sum.failed === 1,
  )
  const { people } = await node.run(node.roster.status(SN))
  expect(people.filter((person) => person.status === "failed").map((person) => person.error)).toEqual(["the terminal's memory is full"])
  await node.program("DELETE FROM students WHERE id = ?", [people.find((person) => person.status === "synced")?.id ?? ""])
  await node.run(node.roster.settle)
  await becomes(
    () => terminal.users().length,
    (n) => n === 1,
  )
  expect(await node.run(node.roster.sync(SN))).toMatchObject({ people: 2, queued: 2 })
  await becomes(
    async () => (await node.run(node.roster.status(SN))).summary,
    (sum) => sum.synced === 2 && sum.failed === 0,
  )
})

it("what somebody removed at the terminal is put back by the verification, and only that", async () => {
  node = await openNode()
  const data = join(tmpdir(), `terminal-${crypto.randomUUID()}.json`)
  let terminal = start({ data })
  for (const name of ["A", "B", "C"]) await node.student(name)
  await node.approve(SN)
  await settled(terminal, ["A", "B", "C"])
  await terminal.stop()
  // The list counts people who were confirmed before it was asked for, to the second.
  await node.program("UPDATE device_user_sync_status SET synced_at = '2020-01-01 00:00:00+00'")
  const { writeFileSync, readFileSync } = await import("node:fs")
  const memory = JSON.parse(readFileSync(data, "utf8")) as { users: Array<{ pin: string; name: string }> }
  writeFileSync(
    data,
    JSON.stringify({ ...memory, users: [...memory.users.filter((user) => user.name !== "B"), { pin: "900", name: "Guest", card: "" }] }),
  )
  terminal = start({ data })
  await node.run(node.roster.verify)
  await becomes(
    () => node.rows("SELECT status FROM device_commands WHERE command = 'DATA QUERY USERINFO'"),
    (rows) => rows[0]?.[0] === "done",
  )
  expect((await node.run(node.roster.status(SN))).summary).toMatchObject({ synced: 2, pending: 1 })
  await node.student("D")
  await settled(terminal, ["A", "B", "C", "D", "Guest"])
  expect(node.rows("SELECT command FROM device_commands WHERE id > 3 AND pin IS NOT NULL ORDER BY id").length).toBe(2)
  expect((await node.run(node.roster.status(SN))).foreign.map(({ pin, name }) => [pin, name])).toEqual([["900", "Guest"]])
  expect(node.rows("SELECT users_reported FROM devices")).toEqual([[3n]])
  rmSync(data, { force: true })
})

it("marks that a crash left half done are done at the next start", async () => {
  node = await openNode()
  const terminal = start()
  await node.approve(SN)
  await settled(terminal, [])
  await node.student("A")
  await node.program("UPDATE schoolbus_roster_dirty SET taken = 1")
  await settled(terminal, ["A"])
})
