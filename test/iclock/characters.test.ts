/** Generations of firmware, and what goes wrong with terminals, against the school node's port. */
import { afterEach, beforeEach, describe, expect, it } from "vitest"
import { type Terminal, type TerminalOptions, startTerminal } from "../../device/simulator.ts"
import { becomes } from "../support/until.ts"
import { type Node, openNode } from "./node.ts"

const SN = "SIM0000001"
let node: Node
const terminals: Array<Terminal> = []
beforeEach(async () => {
  node = await openNode()
})
afterEach(async () => {
  await Promise.all(terminals.splice(0).map((terminal) => terminal.stop()))
  await node.close()
})

const start = (more: Partial<TerminalOptions> = {}): Terminal => {
  const terminal = startTerminal({ server: `http://127.0.0.1:${node.port}`, serial: SN, interval: 0.05, ...more })
  terminals.push(terminal)
  return terminal
}
const names = (terminal: Terminal): string =>
  terminal
    .users()
    .map((user) => user.name)
    .sort()
    .join()
const holds = async (terminal: Terminal, wanted: string): Promise<void> => {
  await node.run(node.roster.settle)
  await becomes(
    () => names(terminal),
    (now) => now === wanted,
  )
}
const summary = async () => (await node.run(node.roster.status(SN))).summary
const synced = (n: number) => becomes(summary, (sum) => sum.synced === n && sum.total === n)
const sent = (terminal: Terminal) =>
  becomes(
    () => terminal.unsent(),
    (n) => n === 0,
  )
const commands = (where = "1") => node.rows(`SELECT command, status, result FROM device_commands WHERE ${where} ORDER BY id`)

describe.each(["oldest", "att", "att3", "face", "access"] as const)("%s firmware", (character) => {
  it("holds the right people with their cards, and its punches are stored once", async () => {
    const amina = await node.student("Amina", { card: "123456789" })
    await node.student("Bilal", { card: "7" })
    await node.approve(SN, "Asia/Kathmandu")
    const terminal = start({ character })
    await holds(terminal, "Amina,Bilal")
    expect(terminal.users().find(({ name }) => name === "Amina")?.card).toBe("123456789")
    await synced(2)
    if (character === "access") expect([...terminal.authorized()].sort()).toEqual(["1", "2"])

    const pin = terminal.users().find(({ name }) => name === "Amina")?.pin ?? ""
    terminal.punch(pin)
    terminal.punch(pin, "2026-03-03 07:41:15", 0, 15)
    await sent(terminal)
    terminal.resend()
    await sent(terminal)
    expect(node.rows("SELECT pin, person_id FROM punches")).toEqual([
      [pin, amina],
      [pin, amina],
    ])
    // Without a time the terminal used its own clock, which it has from us: in the school's zone.
    expect(node.rows("SELECT count(*) FROM punches WHERE abs(unixepoch(substr(at_utc, 1, 19)) - unixepoch('now')) < 30")).toEqual([[1n]])
    expect(node.rows("SELECT count(*) FROM attendance")).toEqual([[2n]])

    await node.program("DELETE FROM students WHERE id = ?", [amina])
    await holds(terminal, "Bilal")
    await becomes(
      () => commands("status IN ('pending', 'sent')"),
      (open) => open.length === 0,
    )
    expect(await summary()).toMatchObject({ total: 1, synced: 1 })
    // Photos and templates are taken and not kept.
    expect(node.rows("SELECT count(*) FROM schoolbus_iclock_reject")).toEqual([[0n]])
  })

  it("is verified: who was wiped off it comes back", async () => {
    await node.student("Amina")
    await node.approve(SN)
    const terminal = start({ character })
    await holds(terminal, "Amina")
    await synced(1)
    await node.program("UPDATE device_user_sync_status SET synced_at = '2020-01-01 00:00:00+00'")
    terminal.wipe()
    if (character === "oldest" || character === "att3") {
      // It cannot tell whom it holds, only how many, and only when it is asked for facts.
      await node.run(node.roster.verify)
      await becomes(
        () => node.rows("SELECT users_reported FROM devices"),
        ([row]) => row?.[0] === 0n,
      )
      expect(await node.run(node.roster.sync(SN))).toMatchObject({ queued: 1 })
    } else await node.run(node.roster.verify)
    await becomes(
      () => names(terminal),
      (now) => now === "Amina",
    )
  })
})

it("old firmware is spoken to in its own words from its first refusal on", async () => {
  await node.student("Amina", { card: "123456789" })
  await node.approve(SN)
  const terminal = start({ character: "oldest" })
  await holds(terminal, "Amina")
  await synced(1)
  expect(node.rows("SELECT unsupported FROM devices")).toEqual([["DATA UPDATE USERINFO"]])
  expect(commands("pin IS NOT NULL").length).toBe(1)
  await node.student("Bilal")
  await holds(terminal, "Amina,Bilal")
  await synced(2)
  expect(commands("pin IS NOT NULL").map(([, status, result]) => [status, result])).toEqual([
    ["done", 0n],
    ["done", 0n],
  ])
})

it("what a terminal does not know is not asked again", async () => {
  await node.approve(SN)
  start({ character: "oldest" })
  await node.run(node.roster.verify)
  await becomes(
    () => commands("status IN ('pending', 'sent')"),
    (open) => open.length === 0,
  )
  await becomes(
    async () => (await node.run(node.devices.find(SN))).unsupported,
    (unsupported) => unsupported === "DATA QUERY USERINFO",
  )
  await node.run(node.roster.verify)
  expect(commands().map(([command]) => command)).toEqual(["INFO", "DATA QUERY USERINFO", "INFO"])
  await expect(node.run(node.commands.send(SN, { command: "QUERY_USERS" }))).rejects.toThrow(/does not know DATA QUERY USERINFO/)
})

describe("people of the terminal's own", () => {
  const owned = [
    { pin: "1", name: "Old Hand", card: "" },
    { pin: "2", name: "Amina by hand", card: "123456789" },
  ]
  it("are asked for before anybody is sent; who has a pupil's card is that pupil, the others stay and are shown", async () => {
    await node.student("Amina", { card: "123456789" })
    await node.student("Bilal", { card: "55" })
    await node.approve(SN)
    // Numbers were given already, but nothing has been sent.
    expect(node.rows("SELECT pin FROM device_user_mappings ORDER BY pin")).toEqual([["1"], ["2"]])
    const terminal = start({ users: owned })
    await holds(terminal, "Amina,Bilal,Old Hand")
    expect(
      terminal
        .users()
        .map((user) => `${user.pin} ${user.name}`)
        .sort(),
    ).toEqual(["1 Old Hand", "2 Amina", "3 Bilal"])
    await synced(2)
    expect((await node.run(node.roster.status(SN))).foreign).toMatchObject([{ pin: "1", name: "Old Hand" }])
  })

  it("leave when the config says so, but not who may open its menu", async () => {
    await node.close()
    const { rules } = await import("./node.ts")
    node = await openNode({ devices: { ...rules, terminalUsers: "remove" } })
    await node.student("Bilal", { card: "55" })
    await node.approve(SN)
    const terminal = start({ users: [...owned, { pin: "9", name: "Head", card: "" }] })
    await becomes(
      () => node.rows("SELECT count(*) FROM schoolbus_iclock_user"),
      ([row]) => Number(row?.[0]) >= 3,
    )
    await node.post(`/iclock/cdata?SN=${SN}&table=OPERLOG&OpStamp=1`, "USER PIN=9\tName=Head\tPri=14\tPasswd=\tCard=\tGrp=1\tTZ=0\n")
    await node.run(node.roster.settle)
    await becomes(
      () => names(terminal).split(",").includes("Bilal") && !names(terminal).includes("Old Hand"),
      (is) => is,
    )
  })
})

describe("faults", () => {
  it("the power fails in the middle of an upload, and again answers are lost: every punch is there once", async () => {
    await node.approve(SN)
    const terminal = start({ lose: 0.3, character: "face" })
    terminal.failNextUpload()
    for (let i = 100; i < 350; i++) terminal.punch(String(i), `2026-03-03 08:0${i % 10}:${10 + (i % 50)}`)
    await becomes(
      () => terminal.unsent(),
      (n) => n === 0,
      20_000,
    )
    expect(node.rows("SELECT count(*), count(DISTINCT pin) FROM punches")).toEqual([[250n, 250n]])
  })

  it("a clock that drifts and a zone that somebody set wrong are noticed and said", async () => {
    await node.approve(SN, "Africa/Nairobi")
    const terminal = start({ drift: 900 })
    await becomes(
      () => terminal.online(),
      (is) => is,
    )
    terminal.punch("7")
    await sent(terminal)
    expect(node.rows("SELECT flags, skew_seconds BETWEEN 890 AND 910 FROM punches")).toEqual([["skew", 1n]])
    await terminal.stop()
    const other = start({ zoneMinutes: 0 })
    await becomes(
      () => other.online(),
      (is) => is,
    )
    other.punch("7")
    await sent(other)
    const { alertsOf } = await import("../../src/iclock/alerts.ts")
    await becomes(
      async () => alertsOf(await node.run(node.devices.find(SN)), Date.now()).join(),
      (alerts) => /its clock is 10\d\d\d s behind; check its zone \(Africa\/Nairobi\)/.test(alerts),
    )
  })

  it("a full memory, a card that no terminal reads, and a refusal are said for each pupil", async () => {
    await node.student("A", { card: "1" })
    await node.student("B", { card: "04:A3:B2" })
    await node.approve(SN)
    const terminal = start({ capacity: 2, character: "access" })
    await holds(terminal, "A,B")
    await node.student("C", { card: "3" })
    await becomes(
      async () =>
        (await node.run(node.roster.status(SN))).people.map(({ name, status, error }) => [name, status, error?.slice(0, 40)].join("|")).sort(),
      (rows) =>
        rows.join("\n") === ["A|synced|", "B|failed|the card 04:A3:B2 is no number that term", "C|failed|the terminal's memory is full"].join("\n"),
    )
    // Nobody is let in who is not there.
    expect([...terminal.authorized()].length).toBe(2)
  })

  it("two terminals with one serial number are noticed", async () => {
    await node.approve(SN)
    for (const from of ["10.0.0.1", "10.0.0.2", "10.0.0.1"]) await node.run(node.devices.meet(SN, from))
    const { alertsOf } = await import("../../src/iclock/alerts.ts")
    expect(alertsOf(await node.run(node.devices.find(SN)), Date.now()).join()).toMatch(
      /two terminals use this serial number, at 10\.0\.0\.1 and 10\.0\.0\.2/,
    )
  })
})
