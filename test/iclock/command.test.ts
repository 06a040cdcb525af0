import fc from "fast-check"
import { describe, expect, it } from "vitest"
import {
  commandAnswer,
  cutName,
  deleteUser,
  fieldValue,
  inCardForm,
  judgeResult,
  MAX_ANSWER_BYTES,
  MAX_COMMANDS,
  parseResults,
  updateUser,
} from "../../src/iclock/command.ts"

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)

it("a person is one line whose every field is named", () => {
  expect(updateUser({ pin: "1202", name: "Bilal Haddad", card: "0123456789" })).toBe(
    "DATA UPDATE USERINFO PIN=1202\tName=Bilal Haddad\tPri=0\tPasswd=\tCard=123456789\tGrp=1\tTZ=0000000100000000",
  )
  expect(deleteUser("988")).toBe("DATA DELETE USERINFO PIN=988")
})

it("old firmware gets cards as 10 hex digits, low byte first", () => {
  const command = updateUser({ pin: "1", name: "A", card: "123456789" })
  expect(inCardForm(command, "bracket")).toContain("\tCard=[15CD5B0700]\t")
  expect(inCardForm(command, "decimal")).toBe(command)
  expect(inCardForm(updateUser({ pin: "1", name: "A", card: null }), "bracket")).toContain("\tCard=\t")
})

it("no value, whatever it holds, adds a field or a line", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), fc.string({ unit: "binary" }), (name, card) => {
      const line = updateUser({ pin: "7", name, card })
      expect(line.split("\t").map((field) => field.split("=")[0])).toEqual(["DATA UPDATE USERINFO PIN", "Name", "Pri", "Passwd", "Card", "Grp", "TZ"])
      expect(line.split("=").length).toBe(8)
      expect(line).not.toMatch(/[\r\n\0]/)
    }),
  )
})

it("names are cut to 24 bytes between characters", () => {
  expect(cutName("Ångström Ångström Ångström")).toBe("Ångström Ångström Å")
  fc.assert(
    fc.property(fc.string({ unit: "grapheme", maxLength: 40 }), (name) => {
      const cut = cutName(name)
      expect(bytes(cut).length).toBeLessThanOrEqual(24)
      expect(fieldValue(name).startsWith(cut)).toBe(true)
      expect(cut).not.toContain("\ufffd".repeat(name.includes("\ufffd") ? 99 : 1))
    }),
  )
})

describe("an answer", () => {
  it("holds a bounded number of lines and bytes, each ended", () => {
    const many = Array.from({ length: 100 }, (_, i) => ({ id: i + 1, command: deleteUser(String(i)) }))
    const { text, sent } = commandAnswer(many)
    expect(sent.length).toBe(MAX_COMMANDS)
    expect(text.endsWith("\n")).toBe(true)
    expect(text.split("\n")[0]).toBe("C:1:DATA DELETE USERINFO PIN=0")
    const long = many.map(({ id }) => ({ id, command: "ñ".repeat(3000) }))
    expect(bytes(commandAnswer(long).text).length).toBeLessThanOrEqual(MAX_ANSWER_BYTES)
    expect(commandAnswer([{ id: 1, command: "x".repeat(50_000) }]).sent).toEqual([1])
  })

  it("ends with REBOOT or CHECK", () => {
    expect(commandAnswer(["INFO", "REBOOT", "INFO"].map((command, id) => ({ id, command }))).sent).toEqual([0, 1])
    expect(commandAnswer([]).text).toBe("")
  })
})

describe("results", () => {
  it.each([
    [
      "several lines",
      "ID=101&Return=0&CMD=DATA\nID=102&Return=-10&CMD=DATA\r\nID=103&Return=0&CMD=CHECK",
      [
        [101, 0],
        [102, -10],
        [103, 0],
      ],
    ],
    ["lower case, another order, more fields", "SN=A&return=-1002&id=7&cmd=DATA UPDATE\n", [[7, -1002]]],
    ["one field a line", "ID=9\nSN=A\nReturn=0\nCMD=Shell\nFILENAME=x\nContent=y\n", [[9, 0]]],
    ["no CMD", "ID=5&Return=8\n", [[5, 8]]],
    ["nothing to read", "ID=&Return=\nhello\n\0\n", []],
  ])("%s", (_, body, expected) => {
    expect(parseResults(bytes(body as string)).map((result) => [result.id, result.result])).toEqual(expected)
  })

  it("facts follow an INFO result", () => {
    const [result] = parseResults(bytes("ID=104&Return=0&CMD=INFO\n~DeviceName=K40/ID\nFWVersion=Ver 6.60 Apr 2 2020\nUserCount=214\n"))
    expect(Object.fromEntries(result?.facts ?? [])).toEqual({ devicename: "K40/ID", fwversion: "Ver 6.60 Apr 2 2020", usercount: "214" })
  })

  it.each([
    ["DATA UPDATE USERINFO PIN=1", 0, "done"],
    ["DATA UPDATE USERINFO PIN=1", 8, "failed"],
    ["DATA UPDATE USERINFO PIN=1", 3, "failed"],
    ["DATA UPDATE USERINFO PIN=1", -1001, "failed"],
    ["DATA UPDATE USERINFO PIN=1", -1005, "retry"],
    ["DATA UPDATE USERINFO PIN=1", -1003, "retry"],
    ["DATA DELETE USERINFO PIN=1", -10, "done"],
    ["DATA DELETE USERINFO PIN=1", -1002, "unsupported"],
    ["DATA QUERY USERINFO", 12, "done"],
    ["AC_UNLOCK", -22, "unsupported"],
  ] as const)("%s with %i is %s", (command, result, outcome) => {
    const judgement = judgeResult(command, result)
    expect(judgement.outcome).toBe(outcome)
    expect(judgement.error === null).toBe(outcome === "done")
  })
})
