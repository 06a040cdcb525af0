import fc from "fast-check"
import { describe, expect, it } from "vitest"
import {
  MAX_LINE_BYTES,
  normalCard,
  normalPin,
  parseAttlog,
  parseEvents,
  parseOperlog,
  parseOptions,
  parseRtlog,
  parseTableData,
  parseUnknown,
  type Upload,
} from "../../src/iclock/cdata.ts"
import { parseResults } from "../../src/iclock/command.ts"

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)
const attlog = (text: string): Upload => parseAttlog(bytes(text), "Africa/Nairobi")

describe("ATTLOG", () => {
  it.each([
    ["4 fields", "7\t2025-03-03 07:41:15\t0\t1\n", ["7", "2025-03-03 07:41:15", "0", "1", null]],
    ["2 fields", "7\t2025-03-03 07:41:15", ["7", "2025-03-03 07:41:15", "", "", null]],
    ["a trailing TAB and no work code", "7\t2025-03-03 07:41:15\t0\t15\t\t0\t0\t", ["7", "2025-03-03 07:41:15", "0", "15", null]],
    ["10 fields", "7\t2025-03-03 07:41:15\t255\t15\t12\t0\t0\t255\t36.5\t97\n", ["7", "2025-03-03 07:41:15", "255", "15", "12"]],
    ["the table's name in front", "ATTLOG\t7\t2025-03-03 07:41:15\t0\t1", ["7", "2025-03-03 07:41:15", "0", "1", null]],
    ["names", "PIN=7\tDateTime=2025-03-03 07:41:15\tVerified=1\tStatus=0", ["7", "2025-03-03 07:41:15", "0", "1", null]],
    ["names in another order", "Time=2025-03-03 07:41:15\tPIN=7", ["7", "2025-03-03 07:41:15", "", "", null]],
    ["spaces", "7 2025-03-03 07:41:15 0 1 3", ["7", "2025-03-03 07:41:15", "0", "1", "3"]],
    ["PUSH 1.0", "CHECK LOG: stamp=392232960 7 2025-03-03 07:41:15 0 1", ["7", "2025-03-03 07:41:15", "0", "1", null]],
    ["seconds since 1970, which are UTC", "7\t1740976875\t0\t1", ["7", "2025-03-03 07:41:15", "0", "1", null]],
    ["leading zeros", "0007\t2025-03-03 07:41:15\t0\t1", ["7", "2025-03-03 07:41:15", "0", "1", null]],
    ["letters in the PIN", "T12a\t2025-03-03 07:41:15\t0\t1", ["T12a", "2025-03-03 07:41:15", "0", "1", null]],
    ["one-digit parts", "7\t2025-3-3 7:41:15\t0\t1", ["7", "2025-03-03 07:41:15", "0", "1", null]],
    ["a NUL at the end", "7\t2025-03-03 07:41:15\t0\t1\0", ["7", "2025-03-03 07:41:15", "0", "1", null]],
  ])("a line with %s", (_, line, [pin, at, status, verify, workCode]) => {
    const upload = attlog(line as string)
    expect(upload.rejects).toEqual([])
    expect(upload.count).toBe(1)
    expect(upload.punches).toMatchObject([{ pin, at, status, verify, workCode }])
  })

  it.each([
    ["nonsense"],
    ["\t2025-03-03 07:41:15\t0\t1"],
    ["7\t2025-02-30 07:41:15\t0\t1"],
    ["7\t2025-03-03 24:00:00\t0\t1"],
    ["7\t0000-00-00 00:00:00\t0\t1"],
    ["7\tyesterday\t0\t1"],
    ["a b c\t2025-03-03 07:41:15\t0\t1"],
    [`${"9".repeat(25)}\t2025-03-03 07:41:15\t0\t1`],
    ["7;2025-03-03 07:41:15;0;1"],
    ["\ufffd\t2025-03-03 07:41:15"],
  ])("%j is kept as it came", (line) => {
    const upload = attlog(`${line}\r\n`)
    expect(upload.punches).toEqual([])
    expect(upload.rejects.map((reject) => Buffer.from(reject.raw).toString())).toEqual([line])
    expect(upload.count).toBe(1)
  })

  it("one bad line does not touch its neighbours, whatever ends the lines", () => {
    const upload = attlog("1\t2025-03-03 07:41:15\t0\t1\r\nbad\n\n  \r2\t2025-03-03 07:41:16\t0\t1")
    expect(upload.punches.map((punch) => punch.pin)).toEqual(["1", "2"])
    expect(upload.count).toBe(3)
  })

  it("the raw line is the line as it came", () => {
    expect(attlog("007\t2025-03-03 07:41:15\t0\t1\t\t0\t0\t\r\n").punches[0]?.raw).toBe("007\t2025-03-03 07:41:15\t0\t1\t\t0\t0\t")
  })

  it("a line without end is not a punch of a megabyte", () => {
    const upload = attlog(`7\t2025-03-03 07:41:15\t0\t1\t${"x".repeat(1_000_000)}`)
    expect(upload.punches).toEqual([])
    expect(upload.rejects[0]?.raw.length).toBe(MAX_LINE_BYTES)
  })
})

describe("OPERLOG and USERINFO", () => {
  it("tells lines apart by their first word", () => {
    const upload = parseOperlog(
      bytes(
        "OPLOG 4\t0\t2025-03-03 07:30:02\t0\t0\t0\t0\nUSER PIN=1201\tName=Amina=Okafor\tPri=0\tPasswd=\tCard=[15cd5b0700]\tGrp=1\nuser pin=0042\tname=B\tprivilege=0\tcard=\n" +
          "FP PIN=1\tFID=6\tTMP=AA==\nFACE PIN=1\tTMP=AA==\nPIN=77\tName=C\tCard=0\nUSER Name=nobody\nHELLO there\n" +
          "7\t2026-03-03 07:41\t0\t1\nPIN=8\tTime=2026-03-03 07:42:00\n",
      ),
      "UTC",
    )
    expect(upload.count).toBe(10)
    // Whatever table it comes in, a punch is one.
    expect(upload.punches.map(({ pin, at }) => `${pin} ${at}`)).toEqual(["7 2026-03-03 07:41:00", "8 2026-03-03 07:42:00"])
    expect(upload.users).toEqual([
      { pin: "1201", name: "Amina=Okafor", card: "123456789", cardForm: "bracket", privilege: 0 },
      { pin: "42", name: "B", card: null, cardForm: null, privilege: 0 },
      { pin: "77", name: "C", card: null, cardForm: null, privilege: 0 },
    ])
    expect(upload.events.length).toBe(1)
    expect(upload.rejects.map((reject) => reject.reason)).toEqual(["a user without a PIN", "an unknown kind of line"])
  })

  it("reads a body that begins with a mark of its encoding", () => {
    const upload = parseOperlog(bytes("\ufeffUSER PIN=202\tName=Zoë\r\n"), "UTC")
    expect(upload.users.map(({ pin, name }) => [pin, name])).toEqual([["202", "Zoë"]])
    expect(parseOptions(bytes("\ufeff~DeviceName=K40,UserCount=3")).get("devicename")).toBe("K40")
  })

  it("reads names in UTF-8, cut UTF-8 and GB18030 side by side", () => {
    const lines = [
      Buffer.from("USER PIN=1\tName=Zoë\tCard="),
      Buffer.concat([Buffer.from("USER PIN=2\tName=李"), Buffer.from([0xe6, 0x98]), Buffer.from("\tCard=")]),
      Buffer.concat([Buffer.from("USER PIN=3\tName="), Buffer.from([0xc0, 0xee, 0xc3, 0xf7]), Buffer.from("\tCard=")]),
    ]
    const upload = parseOperlog(Buffer.concat(lines.flatMap((line) => [line, Buffer.from("\n")])), "UTC")
    expect(upload.users.map((user) => user.name)).toEqual(["Zoë", "李", "李明"])
  })
})

it.each([
  ["[15CD5B07]", "123456789"],
  ["[15cd5b0700]", "123456789"],
  ["[0000000000]", null],
  ["0", null],
  ["", null],
  ["0000123", "123"],
  ["AB-12", "AB-12"],
])("card %j is %j", (text, card) => expect(normalCard(text)).toBe(card))

it.each([
  ["007", "7"],
  ["0", "0"],
  ["000", "0"],
  ["a07", "a07"],
])("PIN %j is %j", (text, pin) => expect(normalPin(text)).toBe(pin))

it("options come by comma, with ~ and with colons in values", () => {
  const options = parseOptions(bytes("~DeviceName=K40/ID,MAC=00:17:61:00:00:01,~PIN2Width=9,FWVersion=Ver 6.60 Apr 2 2020\r\n"))
  expect(Object.fromEntries(options)).toEqual({ devicename: "K40/ID", mac: "00:17:61:00:00:01", pin2width: "9", fwversion: "Ver 6.60 Apr 2 2020" })
})

// --- any bytes ------------------------------------------------------------------------------------------------------

/** Pieces of real uploads, whole and broken, beside plain noise. */
const anyBody = fc.oneof(
  fc.uint8Array({ maxLength: 400 }),
  fc
    .array(
      fc.oneof(
        fc.constantFrom(
          "7\t2025-03-03 07:41:15\t0\t1",
          "USER PIN=1\tName=",
          "OPLOG 4\t0",
          "FP PIN=1\tTMP=",
          "time=2025-03-03 07:41:15\tpin=7",
          "ID=1&Return=0&CMD=DATA",
          "\t",
          "=",
          "PIN=",
          "ATTLOG\t",
        ),
        fc.constantFrom("\n", "\r\n", "\r", "\0", " "),
        fc.uint8Array({ maxLength: 6 }).map((noise) => Buffer.from(noise).toString("latin1")),
        fc.string({ unit: "binary", maxLength: 8 }),
      ),
      { maxLength: 30 },
    )
    .map((parts) => new Uint8Array(Buffer.from(parts.join(""), "utf8"))),
)

const parsers: ReadonlyArray<readonly [string, (body: Uint8Array) => Upload]> = [
  ["ATTLOG", (body) => parseAttlog(body, "America/St_Johns")],
  ["OPERLOG", (body) => parseOperlog(body, "UTC")],
  ["rtlog", (body) => parseRtlog(body, "UTC")],
  ["tabledata", (body) => parseTableData(body, "UTC")],
  ["ERRORLOG", parseEvents],
  ["unknown", parseUnknown],
]

it.each(parsers)("%s: any bytes are read without a throw, and every line counted stands in a list", (name, parse) => {
  fc.assert(
    fc.property(anyBody, (body) => {
      const upload = parse(body)
      const listed = upload.punches.length + upload.users.length + upload.events.length + upload.rejects.length
      expect(listed).toBeLessThanOrEqual(upload.count)
      // Only templates, which are neither asked for nor kept, may be missing.
      if (!["OPERLOG", "tabledata"].includes(name)) expect(listed).toBe(upload.count)
      for (const punch of upload.punches) {
        expect(punch.at).toMatch(/^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}$/)
        expect(`${punch.raw}${punch.pin}${punch.status}${punch.verify}`).not.toMatch(/\0/)
      }
    }),
    { numRuns: 400 },
  )
})

it("any bytes as results and options are read without a throw", () => {
  fc.assert(
    fc.property(anyBody, (body) => {
      for (const result of parseResults(body)) expect(Number.isSafeInteger(result.id) && Number.isSafeInteger(result.result)).toBe(true)
      parseOptions(body)
    }),
    { numRuns: 400 },
  )
})
