/** What a person does with terminals: replace, retire, claim, command, export. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { afterEach, beforeEach, describe, expect, it } from "vitest"
import { startTerminal, type Terminal } from "../../device/simulator.ts"
import { alertsOf } from "../../src/iclock/alerts.ts"
import { csvField, punchPage } from "../../src/iclock/export.ts"
import { timestamptz, offsetMinutes } from "../../src/iclock/clock.ts"
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
const start = (serial = SN): Terminal => {
  const terminal = startTerminal({ server: `http://127.0.0.1:${node.port}`, serial, interval: 0.05 })
  terminals.push(terminal)
  return terminal
}
const attlog = (serial: string, ...lines: ReadonlyArray<string>) =>
  node.post(`/iclock/cdata?SN=${serial}&table=ATTLOG&Stamp=9999`, lines.map((line) => `${line}\n`).join(""))
const poll = async (serial = SN) => (await node.get(`/iclock/getrequest?SN=${serial}`)).body
const result = (id: string | number, code = 0, serial = SN) => node.post(`/iclock/devicecmd?SN=${serial}`, `ID=${id}&Return=${code}&CMD=DATA\n`)
const send = (command: string, more: { from?: string; to?: string; confirm?: string } = {}) => node.run(node.commands.send(SN, { command, ...more }))
const refusal = <E>(effect: Effect.Effect<unknown, E>) => node.run(Effect.flip(effect)) as Promise<{ message: string }>

describe("a new terminal for a broken one", () => {
  it("takes over name, zone, pins and people; the old one gets no answer any more, and who had left stays off", async () => {
    const old = start()
    const amina = await node.student("Amina")
    const bilal = await node.student("Bilal")
    await node.run(node.devices.approve(SN, { zone: "Asia/Kolkata", name: "Gate" }))
    await becomes(
      () => old.users().length,
      (n) => n === 2,
    )
    const pins = new Map(old.users().map(({ pin, name }) => [name, pin]))
    await node.program("DELETE FROM students WHERE id = ?", [amina])
    await becomes(
      () => old.users().length,
      (n) => n === 1,
    )
    await old.stop()
    expect(await node.run(node.devices.replace(SN, "NEW0000002"))).toMatchObject({
      serial: "NEW0000002",
      name: "Gate",
      zone: "Asia/Kolkata",
    })
    const next = start("NEW0000002")
    await becomes(
      () => next.users().map(({ pin, name }) => `${pin} ${name}`),
      (users) => users.join() === `${pins.get("Bilal")} Bilal`,
    )
    expect((await node.get(`/iclock/cdata?SN=${SN}&options=all`)).status).toBe(403)
    expect(node.rows("SELECT serial, status, replaced_by FROM devices ORDER BY id")).toEqual([
      [SN, "retired", 2n],
      ["NEW0000002", "approved", null],
    ])
    next.punch(pins.get("Amina") ?? "", "2026-03-03 07:00:00")
    next.punch(pins.get("Bilal") ?? "", "2026-03-03 07:00:00")
    await becomes(
      () => next.unsent(),
      (n) => n === 0,
    )
    expect(new Set(node.rows("SELECT person_id FROM punches").flat())).toEqual(new Set([amina, bilal]))
  })

  it("is refused when it is in use, unknown, or the same", async () => {
    await node.approve(SN)
    await node.approve("NEW0000002")
    expect((await refusal(node.devices.replace(SN, "NEW0000002"))).message).toMatch(/in use already/)
    expect((await refusal(node.devices.replace(SN, SN))).message).toMatch(/cannot replace itself/)
    expect((await refusal(node.devices.replace("GONE1", "NEW3"))).message).toMatch(/no terminal GONE1/)
  })
})

it("a retired terminal gets neither OK nor commands, and its open commands end", async () => {
  await node.student("Amina")
  await node.approve(SN)
  await node.run(node.devices.retire("1"))
  expect(await attlog(SN, "7\t2026-03-03 07:41:15\t0\t1")).toMatchObject({ status: 403, body: "refused: this terminal is not approved" })
  expect(node.rows("SELECT DISTINCT status FROM device_commands")).toEqual([["cancelled"]])
  // Approved again, it is what it was.
  await node.approve(SN)
  expect(node.rows("SELECT status FROM devices")).toEqual([["approved"]])
})

it("a terminal that is bound to a net is heard from there only", async () => {
  await node.run(node.devices.approve(SN, { zone: "UTC", address: "127.0.0.0/8" }))
  expect((await node.get(`/iclock/getrequest?SN=${SN}`)).status).toBe(200)
  await node.run(node.devices.approve(SN, { address: "10.20.0.0/24" }))
  expect((await node.get(`/iclock/getrequest?SN=${SN}`)).status).toBe(403)
  const alerts = async () => alertsOf(await node.run(node.devices.find(SN)), Date.now())
  expect(await alerts()).toEqual([
    `its calls from 127.0.0.1 are refused, only 10.20.0.0/24 may call; let it in with: schoolbus devices approve ${SN} --address ADDRESS, or any`,
  ])
  await node.run(node.devices.approve(SN, { address: "" }))
  expect(await alerts()).toEqual([])
  expect((await node.get(`/iclock/getrequest?SN=${SN}`)).status).toBe(200)
  expect((await refusal(node.devices.approve(SN, { address: "gate" }))).message).toMatch(/neither an address nor a net/)
})

describe("unknown pins", () => {
  it("are kept, shown, and given with their attendance to the person who is named; a number is not given out while nobody is known for it", async () => {
    await node.approve(SN, "UTC")
    await attlog(SN, "1\t2026-03-02 07:00:00\t0\t1", "77\t2026-03-03 07:41:15\t0\t1", "77\t2026-03-04 07:41:15\t0\t1")
    const amina = await node.student("Amina")
    await node.run(node.roster.settle)
    expect(node.rows("SELECT pin FROM device_user_mappings")).toEqual([["78"]])
    expect((await node.run(node.roster.status(SN))).unknown).toMatchObject([
      { pin: "1", punches: 1 },
      { pin: "77", punches: 2, first: "2026-03-03 07:41:15", last: "2026-03-04 07:41:15" },
    ])
    expect(await node.run(node.roster.claim(SN, { pin: "077", person: amina }))).toBe(2)
    expect(node.rows("SELECT student_id, punched_at FROM attendance ORDER BY punched_at")).toEqual([
      [amina, "2026-03-03 07:41:15+00"],
      [amina, "2026-03-04 07:41:15+00"],
    ])
    // She stays under the number that she is told to the terminal with, and later punches of the old one are hers too.
    await node.run(node.roster.settle)
    expect(node.rows("SELECT pin, to_at IS NULL FROM device_user_mappings ORDER BY pin")).toEqual([
      ["77", 0n],
      ["78", 1n],
    ])
    await attlog(SN, "77\t2026-03-05 07:41:15\t0\t1")
    expect(node.rows("SELECT count(*) FROM punches WHERE person_id IS NULL")).toEqual([[1n]])
    expect((await refusal(node.roster.claim(SN, { pin: "1", person: "nobody" }))).message).toMatch(/there is nobody with id nobody in students/)
    const bilal = await node.student("Bilal")
    expect((await refusal(node.roster.claim(SN, { pin: "77", person: bilal }))).message).toMatch(/a pin never changes its owner/)
  })

  it("that a person's row names are theirs as soon as the person comes", async () => {
    await node.close()
    const { rules, students } = await import("./node.ts")
    const { column } = await import("../support/school-file.ts")
    node = await openNode({
      tables: [{ ...students, columns: [...students.columns, column("badge", "text")] }],
      devices: { people: { "public.students": { ...rules.people["public.students"], id: "id", name: "full_name", pin: "badge" } } },
    })
    await node.approve(SN, "UTC")
    await attlog(SN, "500\t2026-03-03 07:41:15\t0\t1")
    await node.program("INSERT INTO students (id, school_id, full_name, badge, is_active) VALUES ('p1', 's1', 'Amina', '500', 1)")
    await node.run(node.roster.settle)
    expect(node.rows("SELECT person_id FROM punches")).toEqual([["p1"]])
  })
})

describe("commands", () => {
  it("expire, so that a door does not open an hour later", async () => {
    await node.approve(SN)
    await send("AC_UNLOCK")
    await node.program("UPDATE device_commands SET expires_at = ?", [timestamptz(Date.now() - 1000)])
    expect(await poll()).toBe("OK")
    expect(node.rows("SELECT status, error FROM device_commands")).toEqual([["expired", "the terminal did not call in time"]])
    await send("AC_UNLOCK")
    expect(await poll()).toBe("C:2:AC_UNLOCK\n")
  })

  it("are kept with their results, newest first", async () => {
    await node.approve(SN)
    await send("INFO")
    await send("REBOOT")
    await poll()
    await result(1)
    await result(2, -1003)
    await result(9)
    expect(await node.run(node.commands.history(SN, 10))).toMatchObject([
      { id: 2, command: "REBOOT", status: "sent", attempts: 1, error: "the terminal is busy" },
      { id: 1, command: "INFO", status: "done", result: 0, error: null },
    ])
  })

  it("ask for a period again, and set the clock to the moment of sending", async () => {
    await node.approve(SN, "Africa/Nairobi")
    expect((await refusal(node.commands.send(SN, { command: "QUERY_ATTLOG" }))).message).toMatch(/needs from and to/)
    await send("data query attlog", { from: "2026-03-01 00:00:00", to: "2026-03-01 23:59:59" })
    await send("set time")
    const [query, time] = (await poll()).split("\n")
    expect(query).toBe("C:1:DATA QUERY ATTLOG StartTime=2026-03-01 00:00:00\tEndTime=2026-03-01 23:59:59")
    expect(time).toMatch(/^C:2:SET OPTION DateTime=8\d{8}$/)
  })

  it("that were answered never come back with a removal behind them: a delete does not lose to a repeated add", async () => {
    const amina = await node.student("Amina")
    await node.approve(SN)
    expect(await poll()).toMatch(/^C:1:DATA UPDATE USERINFO PIN=1\t/)
    await node.program("DELETE FROM students WHERE id = ?", [amina])
    await node.run(node.roster.settle)
    await node.program("UPDATE device_commands SET sent_at = '2020-01-01 00:00:00+00' WHERE sent_at IS NOT NULL")
    expect(await poll()).toBe("C:2:DATA DELETE USERINFO PIN=1\n")
    // The result of the add arrives late, and once more.
    await result(1)
    await result(2)
    await result(1)
    expect(await poll()).toBe("OK")
    expect(node.rows("SELECT status FROM device_user_sync_status")).toEqual([["deleted"]])
    expect((await node.get(`/iclock/cdata?SN=${SN}&table=RemoteAtt&PIN=1`)).body).toBe("NONE")
  })

  it("who was removed but is still in the terminal's own list is removed again", async () => {
    const amina = await node.student("Amina")
    await node.approve(SN)
    await poll()
    await result(1)
    await node.program("DELETE FROM students WHERE id = ?", [amina])
    await node.run(node.roster.settle)
    await poll()
    await result(2)
    await node.program("UPDATE device_user_sync_status SET updated_at = '2020-01-01 00:00:00+00'")
    await send("QUERY_USERS")
    await poll()
    await node.post(`/iclock/cdata?SN=${SN}&table=OPERLOG&OpStamp=1`, "USER PIN=1\tName=Amina\tPri=0\tPasswd=\tCard=\tGrp=1\tTZ=0\n")
    await result(3)
    await node.run(node.roster.settle)
    expect(await poll()).toBe("C:4:DATA DELETE USERINFO PIN=1\n")
  })

  it("CLEAR_LOG goes out only when it is confirmed, the terminal has sent all, and all is at head office", async () => {
    await node.approve(SN, "UTC")
    const why = async (confirm = SN) => (await refusal(node.commands.send(SN, { command: "CLEAR LOG", confirm }))).message
    expect(await why("")).toMatch(/confirm it with the serial number/)
    expect(await why()).toMatch(/has not told how many punches it holds/)
    await attlog(SN, "7\t2026-03-03 07:41:15\t0\t1")
    await node.get(`/iclock/getrequest?SN=${SN}&INFO=Ver 6.60,0,0,2,10.0.0.1`)
    expect(await why()).toMatch(/1 punches are not at head office yet/)
    await node.program("DELETE FROM changes")
    expect(await why()).toMatch(/holds 2 punches, 1 are stored/)
    await attlog(SN, "7\t2026-03-03 07:41:16\t0\t1")
    await node.program("DELETE FROM changes")
    await send("clear_log", { confirm: SN })
    // It is asked once more, and something has come meanwhile.
    expect(await poll()).toBe("C:1:INFO\n")
    await node.post(`/iclock/devicecmd?SN=${SN}`, "ID=1&Return=0&CMD=INFO\nTransactionCount=3\n")
    expect(await poll()).toBe("OK")
    expect(node.rows("SELECT status, error FROM device_commands WHERE id = 2")).toEqual([
      ["pending", "the terminal holds 3 punches, 2 are stored; send QUERY_ATTLOG first"],
    ])
    await attlog(SN, "7\t2026-03-03 07:41:17\t0\t1")
    await node.program("DELETE FROM changes")
    await becomes(
      () => poll(),
      (answer) => answer === "C:2:CLEAR LOG\n",
    )
    // What was stored before the clearing says nothing of what the terminal makes after it.
    await result(2)
    await attlog(SN, "7\t2026-03-03 07:41:18\t0\t1")
    await node.get(`/iclock/getrequest?SN=${SN}&INFO=Ver 6.60,0,0,2,10.0.0.1`)
    await node.program("DELETE FROM changes")
    expect(await why()).toMatch(/holds 2 punches, 1 are stored/)
  })
})

it("CLEAR_LOG: records that a terminal has twice count twice when one upload shows both, and only since it was last cleared", async () => {
  await node.approve(SN, "UTC")
  const why = async () => {
    await node.program("DELETE FROM changes")
    return (await refusal(node.commands.send(SN, { command: "CLEAR LOG", confirm: SN }))).message
  }
  const holds = (n: number) => node.get(`/iclock/getrequest?SN=${SN}&INFO=Ver 6.60,0,0,${n},10.0.0.1`)
  const [one, two, garbage] = ["7\t2026-03-03 07:41:15\t0\t1", "8\t2026-03-03 07:42:00\t0\t1", "no record at all"]
  await attlog(SN, one)
  await attlog(SN, one)
  await holds(3)
  // Sent again is not held twice.
  expect(await why()).toMatch(/holds 3 punches, 1 are stored/)
  await attlog(SN, `${one}\n${two}\n${one}`)
  await holds(4)
  expect(await why()).toMatch(/holds 4 punches, 3 are stored/)
  await attlog(SN, `${one}\n${one}\n${garbage}\n${garbage}`)
  await holds(6)
  expect(await why()).toMatch(/holds 6 punches, 5 are stored/)
  await holds(5)
  await node.program("DELETE FROM changes")
  await send("clear_log", { confirm: SN })
  expect(await poll()).toBe("C:1:INFO\n")
  await node.post(`/iclock/devicecmd?SN=${SN}`, "ID=1&Return=0&CMD=INFO\nTransactionCount=5\n")
  expect(await poll()).toBe("C:2:CLEAR LOG\n")
  await result(2)
  // The same upload once more, by whoever kept it, says nothing of what came after.
  await attlog(SN, `${one}\n${two}\n${one}\n${garbage}\n${garbage}`)
  await holds(1)
  expect(await why()).toMatch(/holds 1 punches, 0 are stored/)
})

it("daylight saving begins at its moment: not a minute before it, once after it", async () => {
  await node.approve(SN, "Europe/Berlin")
  await node.program("UPDATE devices SET offset_told = 60")
  await node.run(node.devices.changed)
  const tellAt = async (moment: string) => {
    const at = Date.parse(moment)
    const real = await node.run(Effect.clockWith((clock) => Effect.succeed(clock)))
    const clock: Clock.Clock = Object.assign(Object.create(real), { currentTimeMillis: Effect.succeed(at), currentTimeMillisUnsafe: () => at })
    await node.run(Effect.provideService(node.roster.tellZones, Clock.Clock, clock))
    return node.rows("SELECT count(*) FROM device_commands WHERE command = 'CHECK'")
  }
  expect(await tellAt("2026-03-29T00:59:59Z")).toEqual([[0n]])
  expect(await tellAt("2026-03-29T01:00:00Z")).toEqual([[1n]])
  expect(await tellAt("2026-03-29T01:00:30Z")).toEqual([[1n]])
  await node.program("UPDATE devices SET offset_told = 120")
  await node.run(node.devices.changed)
  expect(await tellAt("2026-10-25T00:59:59Z")).toEqual([[1n]])
  expect(await tellAt("2026-10-25T01:00:00Z")).toEqual([[2n]])
})

it("a command that got no answer before the node's clock was put back is sent again", async () => {
  await node.approve(SN, "Europe/Berlin")
  await node.run(node.commands.send(SN, { command: "INFO" }))
  const real = await node.run(Effect.clockWith((clock) => Effect.succeed(clock)))
  const takeAt = async (offset: number) => {
    const wall = () => real.currentTimeMillisUnsafe() + offset
    const clock: Clock.Clock = Object.assign(Object.create(real), { currentTimeMillis: Effect.sync(wall), currentTimeMillisUnsafe: wall })
    const device = await node.run(node.devices.find(SN))
    return node.run(Effect.provideService(node.commands.take(device), Clock.Clock, clock))
  }
  expect(await takeAt(0)).toContain("INFO")
  expect(await takeAt(0)).toBeNull()
  const year = 365 * 86_400_000
  expect(await takeAt(-year)).toContain("INFO")
  expect(await takeAt(-year)).toBeNull()
})

it("daylight saving: a terminal whose hour has changed is told to shake hands, once", async () => {
  await node.approve(SN, "Europe/Berlin")
  await node.get(`/iclock/cdata?SN=${SN}&options=all`)
  await node.run(node.roster.tellZones)
  expect(await poll()).toBe("OK")
  const now = offsetMinutes("Europe/Berlin", Date.now())
  expect(node.rows("SELECT offset_told FROM devices")).toEqual([[BigInt(now)]])
  await node.program("UPDATE devices SET offset_told = ?", [now === 60 ? 120 : 60])
  await node.run(node.devices.changed)
  await node.run(node.roster.tellZones)
  await node.run(node.roster.tellZones)
  expect(await poll()).toBe("C:1:CHECK\n")
  await result(1)
  await node.get(`/iclock/cdata?SN=${SN}&options=all`)
  await node.run(node.roster.tellZones)
  expect(await poll()).toBe("OK")
})

describe("export", () => {
  it.each([
    ["=1+1", "'=1+1"],
    ["+254", "'+254"],
    ["@x", "'@x"],
    ["-1", "'-1"],
    ['a"b,c', '"a""b,c"'],
    ["a\nb", '"a\nb"'],
    ["Amina", "Amina"],
  ])("the field %j is %j", (text, field) => expect(csvField(text)).toBe(field))

  it("has punches in the order in which they came, with names, of one terminal and period", async () => {
    await node.student('=HYPERLINK("x") Amina')
    await node.approve(SN, "UTC")
    await node.approve("OTHER00002", "UTC")
    await attlog(SN, "1\t2026-03-03 07:41:15\t0\t1", "1\t2026-03-04 07:41:15\t0\t1", "9\t2026-03-05 00:00:00\t0\t1")
    await attlog("OTHER00002", "1\t2026-03-03 08:00:00\t0\t1")
    const page = async (filter: { serial: string | null; from: string | null; to: string | null }) =>
      (await node.run(node.school.file.read((tx) => punchPage(tx, filter, 0)))).lines.split("\r\n").slice(0, -1)
    expect((await page({ serial: null, from: null, to: null })).length).toBe(4)
    const lines = await page({ serial: SN, from: "2026-03-03", to: "2026-03-04" })
    expect(lines.map((line) => line.split(",").slice(0, 3).join())).toEqual([`${SN},${SN},1`, `${SN},${SN},1`])
    expect(lines[0]).toContain(`"'=HYPERLINK(""x"") Amina",2026-03-03 07:41:15,UTC,2026-03-03 07:41:15+00,0,1`)
  })
})
