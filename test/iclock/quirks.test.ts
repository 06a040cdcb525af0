/** What terminals in the field do that no manual says: nothing is lost, nothing is doubled, and a person is told. */
import { connect } from "node:net"
import { afterEach, beforeEach, describe, expect, it } from "vitest"
import { alertsOf, readTroubles } from "../../src/iclock/alerts.ts"
import { column } from "../support/school-file.ts"
import { becomes } from "../support/until.ts"
import { type Node, openNode, parseReply, rules, sendTo, students } from "./node.ts"

const SN = "TSTA240300017"
let node: Node
beforeEach(async () => {
  node = await openNode({ tables: [students], devices: { people: rules.people } })
  await node.approve(SN, "UTC")
})
afterEach(() => node.close())

const attlog = (body: string, query = "&Stamp=9999") => node.post(`/iclock/cdata?SN=${SN}&table=ATTLOG${query}`, body)
const punches = () => node.rows("SELECT pin, at, flags FROM punches ORDER BY id")
const alerts = async () => {
  const device = await node.run(node.devices.find(SN))
  const troubles = await node.run(node.school.file.read((tx) => readTroubles(tx, [device], Date.now())))
  return alertsOf(device, Date.now(), troubles.get(device.id))
}
const PUNCH = "7\t2026-03-03 07:41:15\t0\t1"

describe("uploads", () => {
  it.each([
    ["the same line twice in one body", `${PUNCH}\n${PUNCH}\n`, "OK: 2"],
    ["CRLF", `${PUNCH}\r\n`, "OK: 1"],
    ["CR alone", `${PUNCH}\r${PUNCH}\r`, "OK: 2"],
    ["NUL bytes at line ends", `${PUNCH}\0\n\0\0`, "OK: 1"],
    ["a pin with zeros in front, and without", `${PUNCH}\n000${PUNCH}\n`, "OK: 2"],
    ["blank lines and blanks", `\n\n  \n${PUNCH}\n\t\n`, "OK: 1"],
  ])("%s: one punch", async (_, body, answer) => {
    for (let i = 0; i < 2; i++) expect((await attlog(body)).body).toBe(answer)
    expect(punches()).toEqual([["7", "2026-03-03 07:41:15", null]])
    expect(node.rows("SELECT count(*) FROM schoolbus_iclock_reject")).toEqual([[0n]])
  })

  it("only line ends: nothing, and no complaint", async () => {
    expect((await attlog("\r\n\r\n")).body).toBe("OK: 0")
    expect(punches()).toEqual([])
  })

  it("a NUL inside a line is no punch, but it is kept, counted and said", async () => {
    expect((await attlog(`7\0 2026-03-03 07:41:15\t0\n${PUNCH}\n`)).body).toBe("OK: 2")
    expect(punches()).toEqual([["7", "2026-03-03 07:41:15", null]])
    expect(await alerts()).toEqual([
      expect.stringMatching(
        /^1 line that it sent within a day could not be stored as punches; .* in school\.db: SELECT .* FROM schoolbus_iclock_reject$/,
      ),
    ])
  })

  it.each(["1970-01-01 00:00:00", "1999-12-31 23:59:59", "2000-01-01 00:00:00", "9998-12-31 23:59:59"])(
    "a clock that says %s: the punch is there, flagged",
    async (at) => {
      expect((await attlog(`7\t${at}\t0\t1\n`)).body).toBe("OK: 1")
      expect(punches()).toEqual([["7", at, expect.stringMatching(/^(past|future)$/)]])
      expect(node.rows("SELECT at_utc GLOB '[0-9][0-9][0-9][0-9]-*' FROM punches")).toEqual([[1n]])
    },
  )

  it("a year that no zone can turn into four digits is kept as it came", async () => {
    expect((await attlog("7\t9999-12-31 23:59:59\t0\t1\n")).body).toBe("OK: 1")
    expect(node.rows("SELECT CAST(raw AS TEXT) FROM schoolbus_iclock_reject")).toEqual([["7\t9999-12-31 23:59:59\t0\t1"]])
  })

  it("a clock that jumps back and forth: every punch once, in whatever order", async () => {
    const times = ["2026-03-03 08:00:00", "2026-03-01 08:00:00", "2027-01-01 00:00:00", "2026-03-03 08:00:01", "2026-03-01 08:00:00"]
    for (const at of times) await attlog(`7\t${at}\t0\t1\n`)
    expect(node.rows("SELECT count(*) FROM punches")).toEqual([[4n]])
  })

  it("pins of 16 digits stay as they are, and do not run into each other", async () => {
    await attlog("9007199254740993\t2026-03-03 07:41:15\t0\t1\n9007199254740992\t2026-03-03 07:41:15\t0\t1\n")
    expect(node.rows("SELECT pin FROM punches ORDER BY pin")).toEqual([["9007199254740992"], ["9007199254740993"]])
  })

  it("10,000 lines in one body, and again: each once", async () => {
    const start = Date.parse("2026-03-03T00:00:00Z")
    const body = Array.from(
      { length: 10_000 },
      (_, i) => `${i % 700}\t${new Date(start + i * 1000).toISOString().slice(0, 19).replace("T", " ")}\t0\t1`,
    ).join("\r\n")
    for (let i = 0; i < 2; i++) expect((await attlog(body)).body).toBe("OK: 10000")
    expect(node.rows("SELECT count(*) FROM punches")).toEqual([[10_000n]])
  })

  it.each(["&Stamp=None", "&ATTLOGStamp=0", "&Stamp=0", "&stamp=", ""])("%j is no stamp to give back", async (query) => {
    expect((await attlog(`${PUNCH}\n`, query)).body).toBe("OK: 1")
    expect((await node.get(`/iclock/cdata?SN=${SN}&options=all`)).body).toContain("\nATTLOGStamp=0\n")
  })

  it.each(["ATTLOGStamp", "Stamp"])("a stamp named %s is given back at the next handshake", async (name) => {
    await attlog(`${PUNCH}\n`, `&${name}=809077275`)
    expect((await node.get(`/iclock/cdata?SN=${SN}&options=all`)).body).toContain("\nATTLOGStamp=809077275\n")
  })

  it("OPERLOG with operations, users and templates in one body: the users are known, the operations kept, the templates not", async () => {
    const body =
      "OPLOG 4\t0\t2026-03-03 07:30:02\t0\t0\t0\t0\r\nUSER PIN=0012\tName=Amina\tPri=0\tPasswd=\tCard=[15CD5B0700]\tGrp=1\r\nFP PIN=12\tFID=0\tSize=4\tValid=1\tTMP=AAA=\r\n"
    expect((await node.post(`/iclock/cdata?sn=${SN}&table=operlog&opstamp=9999`, body)).body).toBe("OK: 3")
    expect(node.rows("SELECT pin, name, card FROM schoolbus_iclock_user")).toEqual([["12", "Amina", "123456789"]])
    expect(node.rows("SELECT count(*) FROM schoolbus_iclock_event")).toEqual([[1n]])
    expect(node.rows("SELECT count(*) FROM schoolbus_iclock_reject")).toEqual([[0n]])
  })

  it.each(["fdata", "edata"])("%s with a picture takes no punch along", async (name) => {
    const reply = await node.post(
      `/iclock/${name}?SN=${SN}&table=ATTPHOTO&PhotoStamp=1`,
      "PIN=20260303074115-7.jpg\nSN=x\nsize=3\nCMD=uploadphoto\0abc",
    )
    // What is not known here is not acknowledged: the terminal keeps it.
    expect([reply.status, reply.body]).toEqual(name === "fdata" ? [200, "OK"] : [404, "unknown request"])
    expect(punches()).toEqual([])
  })

  it("punches that come by fdata are punches", async () => {
    expect((await node.post(`/iclock/fdata?SN=${SN}&table=ATTLOG&Stamp=1`, `${PUNCH}\n`)).body).toBe("OK: 1")
    expect(punches()).toHaveLength(1)
  })

  it("a body that comes byte by byte, in chunks, is one upload", async () => {
    const socket = connect(node.port, "127.0.0.1")
    const received: Array<Buffer> = []
    const closed = new Promise((resolve) => socket.on("close", resolve))
    socket.on("data", (chunk) => received.push(chunk as Buffer))
    const bytes = Buffer.from(
      `POST /iclock/cdata?SN=${SN}&table=ATTLOG HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n${PUNCH.slice(0, 5)}\r\n${(PUNCH.length - 5).toString(16)}\r\n${PUNCH.slice(5)}\r\n0\r\n\r\n`,
    )
    for (const byte of bytes) await new Promise((resolve) => socket.write(Uint8Array.of(byte), resolve))
    await closed
    expect(parseReply(Buffer.concat(received)).body).toBe("OK: 1")
    expect(punches()).toHaveLength(1)
  })

  it("of two requests on one connection the first is answered and the connection ends: the second was not acknowledged, and is not stored", async () => {
    const post = (second: number) => {
      const body = `7\t2026-03-03 07:41:1${second}\t0\t1\n`
      return `POST /iclock/cdata?SN=${SN}&table=ATTLOG HTTP/1.1\r\nConnection: keep-alive\r\nContent-Length: ${body.length}\r\n\r\n${body}`
    }
    const reply = (await sendTo(node.port, post(1) + post(2))).toString()
    expect(reply.match(/HTTP\/1\.1 200 OK/g)).toHaveLength(1)
    expect(reply).toContain("Connection: close")
    expect(node.rows("SELECT at FROM punches")).toEqual([["2026-03-03 07:41:11"]])
  })
})

describe("results", () => {
  const command = (name: string) => node.run(node.commands.send(SN, { command: name }))
  it("several in one body, out of order, repeated, and of unknown ids", async () => {
    for (const name of ["INFO", "CHECK", "LOG"]) await command(name)
    await becomes(
      () => node.get(`/iclock/getrequest?SN=${SN}`),
      ({ body }) => body.includes("C:1:"),
    )
    const body =
      "ID=3&Return=0&CMD=LOG\r\nID=999&Return=0&CMD=DATA\nID=1&Return=0&CMD=INFO\nUserCount=0\nID=3&Return=-1&CMD=LOG\n\nID=2&Return=-1002&CMD=CHECK"
    for (let i = 0; i < 2; i++) expect((await node.post(`/iclock/devicecmd?SN=${SN}`, body)).body).toBe("OK")
    expect(node.rows("SELECT id, status FROM device_commands WHERE id <= 3 ORDER BY id")).toEqual([
      [1n, "done"],
      [2n, "failed"],
      [3n, "done"],
    ])
  })
})

describe("identity", () => {
  it.each(["SN=", "sn=", "SN", ""])("an empty serial number, as %j, is refused", async (query) => {
    expect((await node.post(`/iclock/cdata?${query}&table=ATTLOG`, `${PUNCH}\n`)).status).toBe(403)
    expect(punches()).toEqual([])
  })

  it("the same pin on two terminals is two people, and each punch is its own's", async () => {
    await node.approve("OTHER1", "UTC")
    const [amina, bilal] = [await node.student("Amina"), await node.student("Bilal")]
    await node.program("DELETE FROM device_user_mappings")
    for (const [device, id] of [
      [1, amina],
      [2, bilal],
    ] as const)
      await node.program(
        "INSERT INTO device_user_mappings (school, device_id, pin, person_table, person_id, from_at) VALUES ('s1', ?, '7', 'public.students', ?, '2026-01-01 00:00:00+00')",
        [device, id],
      )
    for (const serial of [SN, "OTHER1"]) await node.post(`/iclock/cdata?SN=${serial}&table=ATTLOG`, `${PUNCH}\n`)
    expect(node.rows("SELECT device_serial, person_id FROM punches ORDER BY device_serial")).toEqual([
      ["OTHER1", bilal],
      [SN, amina],
    ])
  })
})

describe("what a person is told", () => {
  /** The answer to a poll, when it holds that. */
  const said = async (poll: () => Promise<string>, words: string): Promise<string> => {
    let text = ""
    await becomes(
      async () => (text = await poll()),
      (answer) => answer.includes(words),
    )
    return text
  }

  it("a terminal that shows another card than it confirmed: the pupil is failed with the reason, and is sent again", async () => {
    const id = await node.student("Amina", { card: "1234567" })
    await node.run(node.roster.settle)
    const poll = async () => (await node.get(`/iclock/getrequest?SN=${SN}`)).body
    const answerAll = async (text: string) => {
      const ids = [...text.matchAll(/^C:(\d+):/gm)].map(([, n]) => n)
      if (ids.length > 0) await node.post(`/iclock/devicecmd?SN=${SN}`, ids.map((n) => `ID=${n}&Return=0&CMD=DATA`).join("\n"))
    }
    await answerAll(await poll())
    const [row] = node.rows(`SELECT pin FROM device_user_mappings WHERE person_id = '${id}'`)
    await node.program("UPDATE device_user_sync_status SET synced_at = '2026-01-01 00:00:00+00'")
    await node.run(node.roster.verify)
    const asked = await said(poll, "DATA QUERY USERINFO")
    await node.post(`/iclock/cdata?SN=${SN}&table=OPERLOG&OpStamp=1`, `USER PIN=${row?.[0]}\tName=Amina\tPri=0\tCard=7654321\n`)
    await answerAll(asked)
    const status = await node.run(node.roster.status(SN))
    expect(status.people).toMatchObject([{ status: "failed", error: "the terminal shows the card 7654321; it is sent again" }])
    await node.run(node.roster.settle)
    expect(await said(poll, "DATA UPDATE USERINFO")).toContain("Card=1234567\t")
  })

  it("a full memory and cards that no terminal reads are summed up by reason", async () => {
    await node.get(`/iclock/ping?SN=${SN}`)
    await node.student("Amina")
    await node.student("Bilal")
    await node.run(node.roster.settle)
    await node.program("UPDATE device_user_sync_status SET status = 'failed', error = 'the terminal''s memory is full'")
    expect(await alerts()).toEqual(["2 people are not on it as they should be: the terminal's memory is full"])
    await node.program(
      "UPDATE device_user_sync_status SET error = 'the card ' || pin || ' is no number that terminals read: decimal, at most 4294967295'",
    )
    expect(await alerts()).toEqual(["2 people are not on it as they should be: their cards are no numbers that terminals read"])
  })

  it("silence is spoken of only when this node was there to hear it", async () => {
    await node.get(`/iclock/ping?SN=${SN}`)
    const device = await node.run(node.devices.find(SN))
    const later = Date.now() + 3_600_000
    expect(alertsOf(device, later)).toEqual(["it has not called for 60 minutes"])
    expect(alertsOf({ ...device, listeningSince: later - 1000 }, later)).toEqual([])
  })
})

it("a terminal that names no pushver gets its options, cards in brackets, and decimal ones as soon as it writes such or says its version", async () => {
  await node.student("Amina", { card: "123456789" })
  await node.run(node.roster.settle)
  const greet = async () => {
    const { body } = await node.get(`/iclock/cdata?SN=${SN}&options=all`)
    expect(body).toMatch(new RegExp(`^GET OPTION FROM: ${SN}\nStamp=0\n[^]*\nServerVer=2\\.4\\.1\n[^]*\n$`))
  }
  const card = async () => {
    await node.program("UPDATE device_commands SET sent_at = '2020-01-01 00:00:00+00' WHERE status = 'sent'")
    await node.run(node.commands.changed())
    return /\tCard=([^\t]*)/.exec((await node.get(`/iclock/getrequest?SN=${SN}`)).body)?.[1]
  }
  await greet()
  expect(node.rows("SELECT family, push_version FROM devices")).toEqual([["att", null]])
  expect(await card()).toBe("[15CD5B0700]")
  await node.post(`/iclock/cdata?SN=${SN}&table=OPERLOG&OpStamp=9999`, "USER PIN=99\tName=Own\tPri=14\tPasswd=\tCard=42\tGrp=1\tTZ=\n")
  expect(await card()).toBe("123456789")
  await node.program("UPDATE devices SET card_form = NULL")
  await node.run(node.devices.changed)
  expect(await card()).toBe("[15CD5B0700]")
  await node.post(`/iclock/cdata?SN=${SN}&table=options`, "~DeviceName=K14,FWVersion=Ver 6.60,PushVersion=Ver 2.2.14")
  await greet()
  expect(await card()).toBe("123456789")
})

it("two people with one card on a terminal are pointed out, until one of them has another", async () => {
  const confirmAll = async () => {
    await node.run(node.roster.settle)
    for (;;) {
      const ids = [...(await node.get(`/iclock/getrequest?SN=${SN}`)).body.matchAll(/^C:(\d+):/gm)].map(([, id]) => id)
      if (ids.length === 0) return
      await node.post(`/iclock/devicecmd?SN=${SN}`, ids.map((id) => `ID=${id}&Return=0&CMD=DATA`).join("\n"))
    }
  }
  const shared = async () => (await alerts()).filter((alert) => alert.includes("card"))
  await node.program(
    "INSERT INTO students (id, school_id, full_name, is_active, rfid_card_id) VALUES ('p1', 's1', 'Amina', 1, '123'), ('p2', 's1', 'Bilal', 1, '123'), ('p3', 's1', 'Chen', 1, NULL), ('p4', 's1', 'Dana', 1, '0')",
  )
  await confirmAll()
  expect(await shared()).toEqual([expect.stringMatching(/^the pins 1, 2 have one card, 123: .*give all but one of them another card$/)])
  await node.program("UPDATE students SET rfid_card_id = '124' WHERE id = 'p2'")
  await confirmAll()
  expect(await shared()).toEqual([])
})

it("a pin with letters goes to the terminal that has shown to read it, with the punches that it made before; another gets a number, and says why", async () => {
  await node.close()
  const coded = { ...students, columns: [...students.columns, column("code", "text")] }
  const people = { "public.students": { id: "id", name: "full_name", pin: "code", active: "is_active" } }
  node = await openNode({ tables: [coded], devices: { people } })
  await node.approve(SN, "UTC")
  await node.approve("TSTB240300018", "UTC")
  await node.program("INSERT INTO students (id, school_id, full_name, is_active, code) VALUES ('p1', 's1', 'Amina', 1, 'A17')")
  await node.run(node.roster.settle)
  const pins = () => node.rows("SELECT device_id, pin FROM device_user_sync_status WHERE status <> 'deleted' ORDER BY device_id, pin")
  expect(pins()).toEqual([
    [1n, "1"],
    [2n, "1"],
  ])
  await attlog("A17\t2026-03-03 07:41:15\t0\t1\n")
  await node.run(node.roster.sync(SN))
  await node.run(node.roster.settle)
  const told = async (serial: string) => (await node.run(node.roster.status(serial))).people.filter(({ removed }) => !removed)
  expect(await told(SN)).toMatchObject([{ pin: "A17", error: null }])
  expect(await told("TSTB240300018")).toMatchObject([{ pin: "1", error: expect.stringMatching(/A17 has letters.*it is 1 there/) }])
  expect(node.rows("SELECT person_id FROM punches WHERE pin = 'A17'")).toEqual([["p1"]])
  const sent = await node.get(`/iclock/getrequest?SN=${SN}`)
  expect(sent.body).toContain("DATA UPDATE USERINFO PIN=A17\tName=Amina\t")
})
