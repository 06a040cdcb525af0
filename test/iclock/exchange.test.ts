import * as Effect from "effect/Effect"
import fc from "fast-check"
import { afterEach, describe, expect, it } from "vitest"
import { attendance, type Node, openNode, parseReply, students } from "./node.ts"

let node: Node
const open = async (...args: Parameters<typeof openNode>) => {
  node = await openNode(...args)
  return node
}
afterEach(() => node.close())

const SN = "TSTA240300017"
const handshake = `/iclock/cdata?SN=${SN}&options=all&language=69&pushver=2.4.1&PushOptionsFlag=1`
const attlog = `/iclock/cdata?SN=${SN}&table=ATTLOG&Stamp=9999`

describe("before a terminal is approved", () => {
  it("the node says neither OK nor commands before it knows its school", async () => {
    await open({ ready: false })
    for (const reply of [await node.get(handshake), await node.post(attlog, "7\t2026-03-03 07:41:15\t0\t1\n")]) {
      expect(reply.status).toBe(503)
      expect(reply.body).not.toContain("OK")
    }
  })

  it("an unknown terminal is listed, refused in words without OK, and leaves nothing", async () => {
    await open()
    await node.student("Amina Okafor")
    const replies = [
      await node.get(handshake),
      await node.post(attlog, "7\t2026-03-03 07:41:15\t0\t1\n"),
      await node.get(`/iclock/getrequest?SN=${SN}`),
      await node.post(`/iclock/devicecmd?SN=${SN}`, "ID=1&Return=0&CMD=DATA\n"),
    ]
    for (const reply of replies) {
      expect(reply.head).toMatch(/^HTTP\/1\.1 403 Forbidden\r\n/)
      expect(reply.head + reply.body).not.toContain("OK")
    }
    expect(node.rows("SELECT serial, status, att_stamp FROM devices")).toEqual([[SN, "pending", "0"]])
    expect(node.rows("SELECT count(*) FROM punches")).toEqual([[0n]])
  })

  it("at most 50 unknown terminals are listed", async () => {
    await open()
    for (let i = 0; i < 60; i++) await node.get(`/iclock/cdata?SN=NEW${i}&options=all`)
    expect(node.rows("SELECT count(*) FROM devices")).toEqual([[50n]])
    await node.approve("LATE99")
    expect((await node.get("/iclock/cdata?SN=LATE99&options=all")).status).toBe(200)
  })

  it.each(["", "SN=", "SN=a%20b", "SN=../x", `SN=${"9".repeat(65)}`])("a request with %j has no serial number", async (query) => {
    await open()
    expect((await node.get(`/iclock/cdata?${query}&options=all`)).status).toBe(403)
    expect(node.rows("SELECT count(*) FROM devices")).toEqual([[0n]])
  })

  it("a terminal that is bound to an address is refused from another", async () => {
    await open()
    await node.run(node.devices.approve(SN, { zone: "UTC", address: "10.9.9.9" }))
    expect((await node.get(handshake)).body).toBe("refused: another address is expected")
  })
})

describe("handshake", () => {
  it("answers the options, stamps of zero at first, the zone's number, every line ended", async () => {
    await open()
    await node.approve(SN)
    const reply = await node.get(handshake)
    expect(reply.body).toBe(
      [
        `GET OPTION FROM: ${SN}`,
        "Stamp=0",
        "OpStamp=0",
        "PhotoStamp=0",
        "ATTLOGStamp=0",
        "OPERLOGStamp=0",
        "ATTPHOTOStamp=0",
        "ErrorDelay=30",
        "Delay=10",
        "TransTimes=00:00;14:05",
        "TransInterval=1",
        "TransFlag=TransData AttLog\tOpLog\tEnrollUser\tChgUser",
        "TimeZone=3",
        "Realtime=1",
        "Encrypt=0",
        "ServerVer=2.4.1",
        "PushProtVer=2.4.1",
        "PushOptionsFlag=1\n",
      ].join("\n"),
    )
  })

  it("speaks digits to firmware that reads nothing else, and makes it shake hands again when it says what it is", async () => {
    await open()
    await node.approve(SN)
    expect((await node.get(handshake)).body).toContain("TransFlag=TransData")
    await node.post(`/iclock/cdata?SN=${SN}&table=options`, "~DeviceName=LX35,FWVersion=Ver 8.0.4 AK3750")
    expect((await node.get(`/iclock/getrequest?SN=${SN}`)).body).toBe("C:1:CHECK\n")
    expect((await node.get(handshake)).body).toContain("\nTransFlag=1100101000\n")
  })

  it("has the header names in firmware's letter case, in a small block", async () => {
    await open()
    await node.approve(SN)
    const { head, body } = await node.get(handshake)
    expect(head.split("\r\n").map((line) => line.replace(/: .*/, ""))).toEqual([
      "HTTP/1.1 200 OK",
      "Date",
      "Content-Type",
      "Content-Length",
      "Connection",
    ])
    expect(head).toContain("Content-Type: text/plain\r\n")
    expect(head).toContain(`Content-Length: ${Buffer.byteLength(body)}\r\n`)
    expect(head).toMatch(/\r\nDate: (Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r\n/)
    expect(head.length).toBeLessThan(2000)
  })

  it("answers the stamp of the last upload that was stored, never a zero", async () => {
    await open()
    await node.approve(SN)
    await node.post(`/iclock/cdata?SN=${SN}&table=ATTLOG&Stamp=809077275`, "7\t2026-03-03 07:41:15\t0\t1\n")
    await node.post(`/iclock/cdata?SN=${SN}&table=ATTLOG&Stamp=0`, "8\t2026-03-03 07:41:15\t0\t1\n")
    await node.post(`/iclock/cdata?SN=${SN}&OpStamp=77`, "OPLOG 4\t0\t2026-03-03 07:30:02\t0\t0\t0\t0\n")
    const { body } = await node.get(handshake)
    expect(body).toContain("\nStamp=809077275\n")
    expect(body).toContain("\nATTLOGStamp=809077275\n")
    expect(body).toContain("\nOPERLOGStamp=77\n")
  })
})

describe("spellings", () => {
  it.each([
    `/iclock/cdata.aspx?SN=${SN}&options=all`,
    `/iclock/cdata.php?sn=${SN}&OPTIONS=all`,
    `/ICLOCK/CDATA?SN=${SN}&options=all`,
    `/s/5a1/iclock/cdata/?SN=${SN}&options=all`,
    `//iclock/cdata?SN=${SN}&options=all`,
  ])("%s is a handshake", async (path) => {
    await open()
    await node.approve(SN)
    expect((await node.get(path)).body).toContain("ServerVer=")
  })

  it.each([
    ["a space in the query", `GET /iclock/getrequest?SN=${SN}&INFO=Ver 6.60 Apr 2,12,3,4,10.0.0.1 HTTP/1.1\r\nHost: a\r\n\r\n`],
    ["HTTP/1.0 without a Host", `GET /iclock/getrequest?SN=${SN} HTTP/1.0\r\n\r\n`],
    ["no Host", `GET /iclock/getrequest?SN=${SN} HTTP/1.1\r\n\r\n`],
    ["bare LF", `GET /iclock/getrequest?SN=${SN} HTTP/1.1\nHost: a\n\n`],
    ["no version", `GET /iclock/getrequest?SN=${SN}\r\n\r\n`],
    ["a whole address", `GET http://10.0.0.1:8081/iclock/getrequest?SN=${SN} HTTP/1.1\r\n\r\n`],
    ["lower-case method", `get /iclock/getrequest?SN=${SN} HTTP/1.1\r\n\r\n`],
  ])("a request with %s is served", async (_, bytes) => {
    await open()
    await node.approve(SN)
    const reply = parseReply(await node.send(bytes))
    expect([reply.status, reply.body]).toEqual([200, "OK"])
  })

  it.each([
    ["Expect: 100-continue", "Expect: 100-continue\r\nContent-Length: 26\r\n\r\n7\t2026-03-03 07:41:15\t0\t1\n"],
    ["chunks", "Transfer-Encoding: chunked\r\n\r\n6\r\n7\t2026\r\n14\r\n-03-03 07:41:15\t0\t1\n\r\n0\r\n\r\n"],
  ])("an upload with %s is stored", async (_, rest) => {
    await open()
    await node.approve(SN)
    const bytes = await node.send(`POST ${attlog} HTTP/1.1\r\nHost: a\r\n${rest}`)
    expect(bytes.toString()).toMatch(/OK: 1$/)
    expect(node.rows("SELECT raw FROM punches")).toEqual([["7\t2026-03-03 07:41:15\t0\t1"]])
  })

  it("an upload without a length ends with its sender, one by GET counts as well", async () => {
    await open()
    await node.approve(SN)
    const without = parseReply(await node.send(`POST ${attlog} HTTP/1.0\r\n\r\n7\t2026-03-03 07:41:15\t0\t1`, true))
    expect(without.body).toBe("OK: 1")
    const byGet = parseReply(await node.send(`GET ${attlog} HTTP/1.1\r\nContent-Length: 25\r\n\r\n8\t2026-03-03 07:41:15\t0\t1`))
    expect(byGet.body).toBe("OK: 1")
    expect((await node.get(attlog)).body).toBe("OK")
    expect(node.rows("SELECT pin FROM punches ORDER BY pin")).toEqual([["7"], ["8"]])
  })

  it("an upload that breaks off is not answered and stores nothing", async () => {
    await open()
    await node.approve(SN)
    const bytes = await node.send(`POST ${attlog} HTTP/1.1\r\nContent-Length: 500\r\n\r\n7\t2026-03-03 07:41:15\t0\t1\n`, true)
    expect(bytes.length).toBe(0)
    expect(node.rows("SELECT count(*) FROM punches")).toEqual([[0n]])
  })

  it.each([
    ["10485761", 413],
    ["99999999999", 413],
    ["1".repeat(20), 400],
  ])("an upload that announces %s bytes is refused at once, in words without OK", async (length, status) => {
    await open()
    await node.approve(SN)
    const reply = parseReply(await node.send(`POST ${attlog} HTTP/1.1\r\nContent-Length: ${length}\r\n\r\n7\t2026`))
    expect(reply.status).toBe(status)
    expect(reply.body).not.toContain("OK")
  })

  it.each([
    ["without a length", ""],
    ["in chunks", "Transfer-Encoding: chunked\r\n"],
  ])("an upload that grows over 10 MB %s is refused", async (_, header) => {
    await open()
    await node.approve(SN)
    const bytes = Buffer.concat([
      Buffer.from(`POST ${attlog} HTTP/1.1\r\n${header}\r\n`),
      Buffer.from("b00000\r\n"),
      Buffer.alloc(11 * 1024 * 1024, 55),
    ])
    expect(parseReply(await node.send(bytes)).status).toBe(413)
    expect(node.rows("SELECT count(*) FROM punches")).toEqual([[0n]])
  })
})

describe("punches", () => {
  it("are stored as they came, once each, and OK counts every line", async () => {
    await open()
    await node.approve(SN)
    const body =
      "1201\t2026-03-03 07:41:09\t0\t1\t0\t0\t0\t\r\n7\t2026-03-03 07:41:15\t0\t15\t\t0\t0\t255\t0\t0\n\nnonsense\n007\t2026-03-03 07:41:15\t0\t15\n"
    expect((await node.post(attlog, body)).body).toBe("OK: 4")
    expect((await node.post(attlog, body)).body).toBe("OK: 4")
    expect(node.rows("SELECT pin, at, at_utc, status, verify, work_code, zone FROM punches ORDER BY pin")).toEqual([
      ["1201", "2026-03-03 07:41:09", "2026-03-03 04:41:09+00", "0", "1", "0", "Africa/Nairobi"],
      ["7", "2026-03-03 07:41:15", "2026-03-03 04:41:15+00", "0", "15", null, "Africa/Nairobi"],
    ])
    expect(node.rows(`SELECT serial, "table", CAST(raw AS TEXT), reason FROM schoolbus_iclock_reject`)).toEqual([
      [SN, "ATTLOG", "nonsense", "no time that could be one"],
    ])
  })

  it("equal pin and time with another status are two punches", async () => {
    await open()
    await node.approve(SN)
    await node.post(attlog, "7\t2026-03-03 07:41:15\t0\t1\n7\t2026-03-03 07:41:15\t1\t1\n")
    expect(node.rows("SELECT count(*) FROM punches")).toEqual([[2n]])
  })

  it("make an attendance row of the person whose pin it is, with what the person's row knows", async () => {
    await open()
    const amina = await node.student("Amina Okafor", { classId: "5b" })
    await node.approve(SN)
    const pin = String(node.rows("SELECT pin FROM device_user_mappings")[0]?.[0])
    await node.post(attlog, `${pin}\t2026-03-03 07:41:15\t0\t1\n999\t2026-03-03 07:41:16\t0\t1\n`)
    await node.post(attlog, `${pin}\t2026-03-03 07:41:15\t0\t1\n`)
    expect(node.rows("SELECT school_id, student_id, class_id, punched_at FROM attendance")).toEqual([["s1", amina, "5b", "2026-03-03 04:41:15+00"]])
    expect(node.rows("SELECT pin, person_table, person_id, flags FROM punches ORDER BY pin")).toEqual([
      [pin, "public.students", amina, null],
      ["999", null, null, null],
    ])
  })

  it("go up: punch and attendance are captured in one transaction", async () => {
    await open()
    await node.student("Amina Okafor")
    await node.approve(SN)
    await node.school.freeze()
    await node.post(attlog, "1\t2026-03-03 07:41:15\t0\t1\n")
    const changes = await node.school.freeze()
    expect(changes.filter((change) => change.op === "insert").map((change) => change.table)).toEqual(["schoolbus.punches", "public.attendance"])
  })

  it("that the attendance table cannot take stay stored, with the fault shown", async () => {
    const strict = {
      ...attendance,
      columns: [...attendance.columns, { name: "teacher", kind: "text", type: "text", notNull: true, generated: false } as const],
    }
    await open({ tables: [students, strict] })
    await node.student("Amina Okafor")
    await node.approve(SN)
    expect((await node.post(attlog, "1\t2026-03-03 07:41:15\t0\t1\n")).body).toBe("OK: 1")
    expect(node.rows("SELECT count(*) FROM attendance")).toEqual([[0n]])
    expect(node.rows("SELECT flags FROM punches")[0]?.[0]).toContain("attendance.teacher (text) cannot be filled")
  })

  it("a unique constraint of the attendance table decides that one row a day is enough", async () => {
    const daily = {
      ...attendance,
      columns: attendance.columns.map((column) => (column.name === "punched_at" ? { ...column, type: "date" } : column)),
      unique: [["student_id", "punched_at"]],
    }
    await open({ tables: [students, daily] })
    await node.student("Amina Okafor")
    await node.approve(SN)
    // 23:30 UTC of the day before is 02:30 in Nairobi: the day is the school's.
    await node.post(attlog, "1\t2026-03-03 02:30:00\t0\t1\n1\t2026-03-03 12:41:15\t1\t1\n")
    expect(node.rows("SELECT punched_at FROM attendance")).toEqual([["2026-03-03"]])
    expect(node.rows("SELECT flags FROM punches")).toEqual([[null], [null]])
  })

  it("are not acknowledged when the file refuses them", async () => {
    await open()
    await node.approve(SN)
    await node.program("ALTER TABLE punches RENAME TO gone")
    const reply = await node.post(attlog, "1\t2026-03-03 07:41:15\t0\t1\n")
    expect(reply.status).toBe(503)
    expect(reply.body).not.toContain("OK")
    await node.program("ALTER TABLE gone RENAME TO punches")
    expect((await node.post(attlog, "1\t2026-03-03 07:41:15\t0\t1\n")).body).toBe("OK: 1")
  })

  it("of a terminal whose clock is wrong say so", async () => {
    await open()
    await node.approve(SN, "UTC")
    await node.get(`/iclock/getrequest?SN=${SN}`)
    await node.get(`/iclock/getrequest?SN=${SN}`)
    const wrong = new Date(Date.now() - 3_600_000).toISOString().slice(0, 19).replace("T", " ")
    await node.post(attlog, `1\t${wrong}\t0\t1\n`)
    expect(node.rows("SELECT flags FROM punches")).toEqual([["skew"]])
    const [device] = await node.run(node.devices.list)
    expect(device?.skew_seconds).toBeGreaterThan(-3605)
    expect(device?.skew_seconds).toBeLessThan(-3595)
  })
})

describe("other tables", () => {
  it("users that the terminal reports are known, templates are counted and not kept, operations are kept", async () => {
    await open()
    await node.approve(SN)
    const body = Buffer.concat([
      Buffer.from("OPLOG 4\t0\t2026-03-03 07:30:02\t0\t0\t0\t0\nUSER PIN=1201\tName="),
      Buffer.from([0xc0, 0xee, 0xc3, 0xf7]),
      Buffer.from("\tPri=0\tPasswd=\tCard=[15cd5b0700]\tGrp=1\tTZ=0000000100000000\nFP PIN=1201\tFID=6\tSize=8\tValid=1\tTMP=AAAA=\nwhat is this\n"),
    ])
    expect((await node.post(`/iclock/cdata?SN=${SN}&table=OPERLOG&Stamp=9999`, body)).body).toBe("OK: 4")
    expect(node.rows("SELECT pin, name, card FROM schoolbus_iclock_user")).toEqual([["1201", "李明", "123456789"]])
    expect(node.rows("SELECT CAST(raw AS TEXT) FROM schoolbus_iclock_event")).toEqual([["OPLOG 4\t0\t2026-03-03 07:30:02\t0\t0\t0\t0"]])
    expect(node.rows("SELECT CAST(raw AS TEXT) FROM schoolbus_iclock_reject")).toEqual([["what is this"]])
  })

  it("options and INFO tell what the terminal is", async () => {
    await open()
    await node.approve(SN)
    expect(
      (
        await node.post(
          `/iclock/cdata?SN=${SN}&table=options`,
          "~DeviceName=K40/ID,MAC=00:17:61:00:00:01,FWVersion=Ver 6.60 Apr 2 2020,UserCount=214,TransactionCount=5120",
        )
      ).body,
    ).toBe("OK")
    expect(node.rows("SELECT model, firmware, users_reported, punches_reported FROM devices")).toEqual([
      ["K40/ID", "Ver 6.60 Apr 2 2020", 214n, 5120n],
    ])
    await node.get(`/iclock/getrequest?SN=${SN}&INFO=Ver 6.61,215,0,5121,10.0.0.1`)
    expect(node.rows("SELECT firmware, users_reported, punches_reported FROM devices")).toEqual([["Ver 6.61", 215n, 5121n]])
  })

  it.each([
    ["ATTPHOTO", "PIN=20250303074115-7.jpg\nSN=A\nsize=4\nCMD=uploadphoto\0\xff\xd8\xff", "OK"],
    ["BIODATA", "BIODATA Pin=7\tNo=0\tIndex=0\tTmp=AA==\nBIODATA Pin=8\tNo=0\tTmp=AA==\n", "OK: 2"],
    ["ERRORLOG", "ErrCode=1\tErrMsg=x\n", "OK"],
    ["SOMETHING", "a\nb\n", "OK: 2"],
    ["rtstate", "time=2026-03-03 07:41:15\tsensor=00", "OK"],
  ])("table %s is answered", async (table, body, answer) => {
    await open()
    await node.approve(SN)
    expect((await node.post(`/iclock/cdata?SN=${SN}&table=${table}`, Buffer.from(body, "latin1"))).body).toBe(answer)
  })

  it.each([
    ["/iclock/ping", "OK"],
    ["/iclock/test", "OK"],
    ["/iclock/cdata", "OK"],
  ])("GET %s is %s", async (path, answer) => {
    await open()
    await node.approve(SN)
    expect((await node.get(`${path}?SN=${SN}`)).body).toBe(answer)
  })

  it("a POST that nobody here can read is not acknowledged", async () => {
    await open()
    await node.approve(SN)
    for (const name of ["nothing", "exchange"]) {
      const reply = await node.post(`/iclock/${name}?SN=${SN}`, "x=1\n")
      expect(reply.status).toBe(404)
      expect(reply.head + reply.body).not.toContain("OK")
    }
  })

  it("nobody is verified by us: a terminal that asks is refused without an OK", async () => {
    await open()
    await node.approve(SN)
    const reply = await node.post(`/iclock/cdata?SN=${SN}&AuthType=CARD`, "CardNo=7\n")
    expect([reply.status, reply.body.includes("OK")]).toEqual([403, false])
  })

  it("a person whom a roaming terminal meets is told, or NONE", async () => {
    await open()
    await node.student("Amina Okafor")
    await node.approve(SN)
    expect((await node.get(`/iclock/cdata?SN=${SN}&table=RemoteAtt&PIN=01`)).body).toMatch(/^DATA UPDATE USERINFO PIN=1\tName=Amina Okafor\t/)
    expect((await node.get(`/iclock/cdata?SN=${SN}&table=RemoteAtt&PIN=77`)).body).toBe("NONE")
  })
})

describe("3.x access-control terminals", () => {
  it("register, get their options, and their punches are stored; events of the device itself are kept apart", async () => {
    await open()
    await node.approve(SN, "UTC")
    const hello = `/iclock/cdata?SN=${SN}&options=all&pushver=3.1.2&DeviceType=acc`
    expect((await node.get(hello)).body).toBe("OK")
    expect((await node.post(`/iclock/registry?SN=${SN}`, "DeviceType=acc,~DeviceName=SenseFace 2A")).body).toBe(`RegistryCode=${SN}`)
    expect((await node.get(hello)).body).toMatch(/^registry=ok\nRegistryCode=/)
    expect((await node.post(`/iclock/push?SN=${SN}`, "")).body).toContain("\nTransTables=User Transaction\n")
    const rtlog =
      "time=2025-03-03 07:41:15\tpin=7\tcardno=0\teventaddr=1\tevent=0\tinoutstatus=0\tverifytype=15\tindex=9001\r\n" +
      "time=2025-03-03 07:41:16\tpin=8\tevent=27\tinoutstatus=0\tverifytype=15\tindex=9002\r\ntime=2025-03-03 07:41:17\tpin=0\tevent=206\tindex=9003\r\n"
    expect((await node.post(`/iclock/cdata?SN=${SN}&table=rtlog`, rtlog)).body).toBe("OK")
    expect(node.rows("SELECT pin, at, status, verify FROM punches")).toEqual([["7", "2025-03-03 07:41:15", "0", "15"]])
    expect(node.rows("SELECT count(*) FROM schoolbus_iclock_event")).toEqual([[2n]])
    const user = "user uid=1\tcardno=\tpin=7\tpassword=\tgroup=1\tname=Amina\tprivilege=0\r\n"
    expect((await node.post(`/iclock/cdata?SN=${SN}&table=tabledata&tablename=user&count=1`, user)).body).toBe("user=1")
    expect((await node.post(`/iclock/querydata?SN=${SN}&type=tabledata&cmdid=1&tablename=user&count=1&packcnt=1&packidx=1`, user)).body).toBe(
      "user=1",
    )
    expect((await node.get(`/iclock/rtdata?SN=${SN}&type=time`)).body).toMatch(/^DateTime=\d+,ServerTZ=\+0000$/)
  })
})

it("a write of a program is never failed by our triggers, whatever its conflict clause", async () => {
  await open()
  await Effect.runPromise(node.roster.settle)
  for (const clause of ["ABORT", "FAIL", "ROLLBACK", "REPLACE", "IGNORE"]) {
    for (let i = 0; i < 2; i++) {
      await node.program(`INSERT OR ${clause} INTO students (id, school_id, full_name) VALUES ('${clause}${i}', 's1', 'A')`)
      await node.program(`UPDATE OR ${clause} students SET full_name = 'B' WHERE id = '${clause}${i}'`)
    }
  }
  expect(node.rows("SELECT count(*) FROM students")).toEqual([[10n]])
})

it("noise on the port is answered or dropped, never acknowledged, and the next terminal is served", async () => {
  await open()
  await node.approve(SN)
  for (const noise of fc.sample(fc.uint8Array({ minLength: 1, maxLength: 300 }), { numRuns: 40, seed: 7 })) {
    expect((await node.send(noise, true)).toString("latin1")).not.toContain("OK")
  }
  for (const noise of fc.sample(fc.string({ unit: "binary", maxLength: 60 }), { numRuns: 40, seed: 7 })) {
    const reply = await node.send(`POST /iclock/${noise}?SN=${SN} HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello`, true)
    expect(reply.toString("latin1")).not.toContain("OK")
  }
  expect((await node.get(`/iclock/getrequest?SN=${SN}`)).body).toBe("OK")
  expect(node.rows("SELECT count(*) FROM punches")).toEqual([[0n]])
})

it("any bytes as an upload: OK is said for lines that stand in the file, and the same bytes again add no row and nothing to send", async () => {
  await open()
  await node.approve(SN, "UTC")
  const word = fc.oneof(
    fc.constantFrom(
      "7",
      "007",
      "2026-03-03 07:41:15",
      "2026-13-41 07:41:15",
      "\t",
      "\t",
      "\n",
      "\r\n",
      "USER PIN=3",
      "FP PIN=1\tTMP=AA==",
      "OPLOG 4",
      "=",
      "\0",
    ),
    fc.string({ unit: "binary", maxLength: 6 }),
  )
  const body = fc.array(word, { minLength: 1, maxLength: 40 }).map((words) => words.join(""))
  const tables = ["ATTLOG", "OPERLOG", "rtlog", "tabledata", "ERRORLOG", "nonsense"]
  const held = () =>
    node.rows(
      "SELECT (SELECT count(*) FROM punches), (SELECT count(*) FROM schoolbus_iclock_user), (SELECT count(*) FROM schoolbus_iclock_event), (SELECT count(*) FROM schoolbus_iclock_reject)",
    )
  for (const [i, text] of fc.sample(body, { numRuns: 60, seed: 11 }).entries()) {
    const path = `/iclock/cdata?SN=${SN}&table=${tables[i % tables.length]}&Stamp=9999`
    const reply = await node.post(path, text)
    expect([reply.status, /^(OK(: \d+)?|user=\d+)$/.test(reply.body)]).toEqual([200, true])
    const before = held()
    await node.post(path, text)
    expect(held()).toEqual(before)
  }
  // Every non-empty line of an ATTLOG upload is a punch or is kept as it came.
  const lines = fc
    .sample(fc.string({ minLength: 1, maxLength: 30 }), { numRuns: 50, seed: 3 })
    .map((line, i) => `${i}${line.replace(/[\r\n\0]/g, "")}`)
  const [before] = node.rows("SELECT (SELECT count(*) FROM punches) + (SELECT count(*) FROM schoolbus_iclock_reject)")
  expect((await node.post(attlog, lines.join("\n"))).body).toBe("OK: 50")
  const stored = "1\t2026-03-03 07:41:15\t0\t1\n2\t2026-03-03 07:41:16\t0\t1\n"
  expect((await node.post(attlog, stored)).body).toBe("OK: 2")
  // As if everything had gone up.
  await node.program("DELETE FROM changes")
  expect((await node.post(attlog, stored)).body).toBe("OK: 2")
  expect(node.rows("SELECT count(*) FROM changes c JOIN schoolbus_tables t ON t.id = c.tbl WHERE t.name = 'schoolbus.punches'")).toEqual([[0n]])
  const [after] = node.rows("SELECT (SELECT count(*) FROM punches) + (SELECT count(*) FROM schoolbus_iclock_reject)")
  expect(Number(after?.[0]) - Number(before?.[0])).toBe(new Set(lines).size + 2)
})

it("an upload of more at once than a terminal makes is told to wait, without an OK", async () => {
  await open()
  await node.approve(SN, "UTC")
  const replies = await Promise.all(Array.from({ length: 40 }, (_, i) => node.post(attlog, `${i + 1}\t2026-03-03 07:41:15\t0\t1\n`)))
  const accepted = replies.filter((reply) => reply.status === 200).length
  for (const reply of replies) expect(reply.status === 200 || (reply.status === 503 && !reply.body.includes("OK"))).toBe(true)
  expect(node.rows("SELECT count(*) FROM punches")).toEqual([[BigInt(accepted)]])
})
