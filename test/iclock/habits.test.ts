/** Habits of firmware and of those who set it up: requests without an end, a terminal that changes its kind, commands done once. */
import { connect } from "node:net"
import { afterEach, beforeEach, describe, expect, it } from "vitest"
import { type Node, openNode, parseReply, rules, students } from "./node.ts"

const SN = "TSTA240300017"
let node: Node
beforeEach(async () => {
  node = await openNode({ tables: [students], devices: { people: rules.people } })
  await node.approve(SN, "UTC")
})
afterEach(() => node.close())

describe("requests that do not say where they end", () => {
  it("have no body where none is to be expected", async () => {
    for (const request of ["POST /iclock/push", "POST /iclock/getrequest", "post /iclock/PING.aspx/", "OPTIONS /iclock/cdata"])
      expect(parseReply(await node.send(`${request}?SN=${SN} HTTP/1.1\r\nHost: x\r\n\r\n`)).status).toBe(200)
    expect(parseReply(await node.send(`\r\nGET /iclock/ping?SN=${SN} HTTP/1.1\r\n\r\n`)).body).toBe("OK")
    // A terminal whose HTTPS is on is not left waiting.
    expect(parseReply(await node.send(Buffer.from([22, 3, 1, 2, 0, 1]))).status).toBe(400)
  })

  it.each([
    ["bare LF", "19\n7\t2026-03-03 07:41:15\t0\t1\n0\n\n"],
    ["trailers", "19\r\n7\t2026-03-03 07:41:15\t0\t1\r\n0\r\nX-Sum: 12\r\n\r\n"],
    ["an extension", "19;a=b\r\n7\t2026-03-03 07:41:15\t0\t1\r\n000;c\r\n\r\n"],
  ])("chunks with %s end with the empty one", async (_, chunks) => {
    const head = `POST /iclock/cdata?SN=${SN}&table=ATTLOG HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n`
    expect(parseReply(await node.send(head + chunks)).body).toBe("OK: 1")
    expect(node.rows("SELECT pin FROM punches")).toEqual([["7"]])
  })
})

it("a terminal was last heard when it last called, by the clock on the wall", async () => {
  const start = Date.now()
  for (const path of ["cdata", "getrequest", "getrequest"]) await node.get(`/iclock/${path}?SN=${SN}`)
  const device = await node.run(node.devices.find(SN))
  expect(Date.parse(`${device.last_seen_at?.replace(" ", "T")}:00`)).toBeGreaterThanOrEqual(start)
  expect(device.memory?.seenAt).toBeGreaterThanOrEqual(start)
})

it("a terminal that is retired while it sends is refused when it has sent", async () => {
  await node.get(`/iclock/getrequest?SN=${SN}`)
  const body = "7\t2026-03-03 07:41:15\t0\t1\n"
  const socket = connect(node.port, "127.0.0.1")
  socket.write(`POST /iclock/cdata?SN=${SN}&table=ATTLOG HTTP/1.1\r\nContent-Length: ${body.length}\r\n\r\n${body.slice(0, 5)}`)
  await node.run(node.devices.retire(SN))
  const reply = new Promise<string>((resolve) => socket.on("data", (bytes) => resolve(String(bytes))))
  socket.write(body.slice(5))
  expect(await reply).toMatch(/^HTTP\/1.1 403 /)
  expect(node.rows("SELECT count(*) FROM punches")).toEqual([[0n]])
})

it("a terminal that was switched from access control to attendance is spoken to as such", async () => {
  await node.student("Amina")
  await node.post(`/iclock/registry?SN=${SN}`, "DeviceType=acc")
  await node.run(node.roster.settle)
  expect((await node.get(`/iclock/getrequest?SN=${SN}`)).body).toContain("DATA UPDATE user ")
  await node.get(`/iclock/cdata?SN=${SN}&options=all&pushver=2.4.1`)
  await node.run(node.roster.settle)
  expect((await node.get(`/iclock/getrequest?SN=${SN}`)).body).toMatch(/^C:\d+:DATA UPDATE USERINFO [^\n]*\n$/)
})

describe("a word that the terminal has understood before", () => {
  it("is not given up because it refuses one person", async () => {
    await node.student("Amina")
    await node.run(node.roster.settle)
    await node.get(`/iclock/cdata?SN=${SN}&options=all&pushver=2.4.1`)
    await node.get(`/iclock/getrequest?SN=${SN}`)
    await node.post(`/iclock/devicecmd?SN=${SN}`, "ID=1&Return=0&CMD=DATA\n")
    await node.student("Bilal")
    await node.run(node.roster.settle)
    expect((await node.get(`/iclock/getrequest?SN=${SN}`)).body).toMatch(/^C:2:DATA UPDATE USERINFO /)
    await node.post(`/iclock/devicecmd?SN=${SN}`, "ID=2&Return=-1002&CMD=DATA\n")
    const { people } = await node.run(node.roster.status(SN))
    expect(people.map(({ name, status, error }) => [name, status, error]).sort()).toEqual([
      ["Amina", "synced", null],
      ["Bilal", "failed", "the terminal refused it (-1002)"],
    ])
    expect((await node.run(node.devices.list))[0]?.unsupported).toBe("")
  })
})

it("a restart and an open door are asked for once, also when no result comes", async () => {
  for (const command of ["REBOOT", "AC_UNLOCK", "LOG"]) await node.run(node.commands.send(SN, { command }))
  const poll = async () => (await node.get(`/iclock/getrequest?SN=${SN}`)).body
  expect(await poll()).toBe("C:1:REBOOT\n")
  expect(await poll()).toBe("C:2:AC_UNLOCK\nC:3:LOG\n")
  await node.program("UPDATE device_commands SET sent_at = '2020-01-01 00:00:00+00'")
  await node.run(node.commands.changed())
  expect(await poll()).toBe("C:3:LOG\n")
  await node.program("UPDATE device_commands SET expires_at = '2020-01-01 00:00:00+00' WHERE id < 3")
  await node.run(node.commands.changed())
  await poll()
  expect(node.rows("SELECT DISTINCT status, error FROM device_commands WHERE id < 3")).toEqual([
    ["expired", "sent, but the terminal did not say what became of it"],
  ])
})

it("a body of which nobody says what it is is read for the punches in it", async () => {
  expect((await node.post(`/iclock/cdata?SN=${SN}`, "7\t2026-03-03 07:41:15\t0\t1\n")).body).toBe("OK: 1")
  expect((await node.post(`/iclock/cdata?SN=${SN}&OpStamp=33&Stamp=5`, "8\t2026-03-03 07:41:15\t0\t1\n")).body).toBe("OK: 1")
  expect(node.rows("SELECT pin FROM punches ORDER BY pin")).toEqual([["7"], ["8"]])
})

describe("the terminal's clock", () => {
  const ago = (minutes: number) => new Date(Date.now() - minutes * 60_000).toISOString().slice(0, 19).replace("T", " ")
  const punch = (at: string) => node.post(`/iclock/cdata?SN=${SN}&table=ATTLOG&Stamp=1`, `7\t${at}\t0\t1\n`)

  it("is not wrong because the punch was made while the cable was out", async () => {
    await node.program("UPDATE devices SET last_seen_at = ?", [`${ago(180)}+00`])
    await node.run(node.devices.changed)
    await node.get(`/iclock/cdata?SN=${SN}&options=all`)
    await punch(ago(90))
    expect(node.rows("SELECT flags FROM punches")).toEqual([[null]])
    expect(node.rows("SELECT skew_seconds FROM devices")).toEqual([[null]])
  })

  it("is wrong when the punch names a moment at which the terminal was in touch", async () => {
    await node.program("UPDATE devices SET last_seen_at = ?", [`${ago(30)}+00`])
    await node.run(node.devices.changed)
    await node.get(`/iclock/cdata?SN=${SN}&options=all`)
    await punch(ago(90))
    expect(node.rows("SELECT flags FROM punches")).toEqual([["skew"]])
  })
})

it("a period is asked for by its days", async () => {
  await node.run(node.commands.send(SN, { command: "QUERY_ATTLOG", from: "2026-03-01", to: "2026-03-02" }))
  expect((await node.get(`/iclock/getrequest?SN=${SN}`)).body).toBe(
    "C:1:DATA QUERY ATTLOG StartTime=2026-03-01 00:00:00\tEndTime=2026-03-02 23:59:59\n",
  )
})
