import { describe, expect, it } from "vitest"
import { type AttendancePunch, type AttendanceRule, attendanceRow, concerned, isDayOff, isOurs, statusFor } from "../../src/iclock/attendance.ts"
import type { Column, Table } from "../../src/model/table.ts"
import type { Cell } from "../../src/model/value.ts"
import { column, table } from "../support/school-file.ts"
import { students, timestamptzType } from "./node.ts"

const must = { notNull: true }
const key = column("id", "text", { type: "uuid", notNull: true })
const pupil = column("student_id", "text", { type: "uuid", notNull: true })
const at = column("punched_at", "text", { type: timestamptzType, notNull: true })
const person = new Map<string, Cell>([
  ["id", "p1"],
  ["school_id", "s1"],
  ["class_id", "5b"],
  ["status", "enrolled"],
  ["created_at", "2020-01-01 00:00:00+00"],
])
const punch: AttendancePunch = {
  rowId: "11111111-1111-8111-8111-111111111111",
  at: Date.parse("2026-03-02T23:30:05Z"),
  status: "0",
  serial: "SIM1",
  deviceId: 3,
  zone: "Africa/Nairobi",
  school: "s1",
}
const rule = (columns: ReadonlyArray<Column>, more: Partial<Table> = {}, names: Partial<AttendanceRule["rule"]> = {}): AttendanceRule => ({
  table: table("attendance", columns, more),
  rule: { table: "public.attendance", person: "student_id", at: "punched_at", ...names },
  people: students,
  idColumn: "id",
  groupColumn: "class_id",
})
const made = (config: AttendanceRule): unknown => {
  const result = attendanceRow(config, person, punch)
  return "fault" in result ? result.fault : Object.fromEntries(result.row)
}

describe("the moment, as the column's type prints it", () => {
  it.each([
    [timestamptzType, "2026-03-02 23:30:05+00"],
    ["timestamp(3) with time zone", "2026-03-02 23:30:05+00"],
    ["timestamp without time zone", "2026-03-02 23:30:05"],
    // Days and times of day are the school's.
    ["date", "2026-03-03"],
    ["time without time zone", "02:30:05"],
    ["text", "2026-03-02 23:30:05+00"],
  ])("%s", (type, text) => expect(made(rule([key, pupil, column("punched_at", "text", { type, ...must })]))).toMatchObject({ punched_at: text }))
})

it("what the rule does not name comes from the school, the person's row and the moment", () => {
  const config = rule(
    [
      key,
      column("school_id", "int", { type: "integer", ...must }),
      pupil,
      at,
      column("class_id"),
      column("status", "text", must),
      column("method", "text", { ...must, default: "card" }),
      column("created_at", "text", { type: timestamptzType, ...must }),
      column("note"),
      column("code", "int"),
      column("terminal"),
      column("day", "text", { type: "date", generated: true, ...must }),
    ],
    { audience: { column: "school_id" } },
    { status: "code", device: "terminal" },
  )
  expect(attendanceRow(config, person, { ...punch, school: "12" })).toEqual({
    row: new Map<string, Cell>([
      ["id", punch.rowId],
      ["school_id", 12n],
      ["student_id", "p1"],
      ["punched_at", "2026-03-02 23:30:05+00"],
      ["class_id", "5b"],
      ["status", "present"],
      ["created_at", "2026-03-02 23:30:05+00"],
      ["code", 0n],
      ["terminal", "SIM1"],
    ]),
  })
})

it("a composite key of person and day needs no id", () => {
  const config = rule([pupil, column("punched_at", "text", { type: "date", ...must })], { key: ["student_id", "punched_at"] })
  expect(made(config)).toEqual({ student_id: "p1", punched_at: "2026-03-03" })
})

it.each([
  ["a key that only Postgres can give", [column("id", "bigint", { type: "bigint", ...must }), pupil, at], /the key id is bigint/],
  ["a column that nobody knows", [key, pupil, at, column("teacher", "text", must)], /attendance\.teacher \(text\) cannot be filled/],
  ["a moment in a number", [key, pupil, column("punched_at", "bigint", { type: "bigint", ...must })], /attendance\.punched_at \(bigint\)/],
  ["a school in a column of another kind", [key, pupil, at, column("school_id", "int", { type: "integer", ...must })], /attendance\.school_id/],
] as const)("%s is a fault in words", (_, columns, fault) => expect(made(rule(columns))).toMatch(fault))

describe("whose attendance a table is about", () => {
  const people = (name: string, kind: "text" | "bigint" | "int", type: string) => ({
    people: table(name, [column("no", kind, { type })]),
    idColumn: "no",
  })
  const pupils = people("pupils", "bigint", "bigint")
  const staff = people("staff", "int", "integer")
  const guests = people("guests", "text", "uuid")
  const parents = people("parents", "text", "uuid")
  const all = [guests, pupils, staff, parents]
  const about = (kind: "text" | "bigint", type: string, more: Partial<Table> = {}, names: Partial<AttendanceRule["rule"]> = {}) => {
    const { table: rows, rule: of } = rule([key, column("student_id", kind, { type }), at], more, names)
    return concerned(rows, of, all)
  }
  const references = [{ columns: ["student_id"], table: "public.staff", to: ["no"] }]

  it("those whom the rule names", () =>
    expect(about("bigint", "bigint", { references }, { people: ["public.pupils", "public.staff"] })).toEqual(["public.pupils", "public.staff"]))
  it("else the one that the person column refers to", () => expect(about("bigint", "bigint", { references })).toEqual(["public.staff"]))
  it("else, of those whose ids are numbers, the first", () => expect(about("bigint", "bigint")).toEqual(["public.pupils"]))
  it("a uuid column takes uuids only, of any table", () => expect(about("text", "uuid")).toEqual(["public.guests", "public.parents"]))
  it("a text takes all of which one id is one person", () =>
    expect(about("text", "text")).toEqual(["public.guests", "public.pupils", "public.parents"]))
})

describe("hours and days", () => {
  const hours = { from: "07:30", graceMinutes: 10, days: { friday: "08:00" } }
  const values = { present: "P", late: "L", out: "O" }
  it.each([
    ["2026-03-03 07:30:00", true, "P"],
    ["2026-03-03 07:40:59", true, "P"],
    ["2026-03-03 07:41:00", true, "L"],
    // A Friday begins later.
    ["2026-03-06 08:05:00", true, "P"],
    ["2026-03-06 08:11:00", true, "L"],
    ["2026-03-03 13:00:00", false, "O"],
  ])("at %s, first of the day %s: %s", (wall, isFirst, status) =>
    expect(statusFor({ table: "t", person: "p", at: "a", hours, values }, wall, isFirst)).toBe(status),
  )
  it("without hours nobody is late; without words for them the usual ones stand", () => {
    expect(statusFor({ table: "t", person: "p", at: "a" }, "2026-03-03 23:00:00", true)).toBe("present")
    expect(statusFor({ table: "t", person: "p", at: "a", hours }, "2026-03-03 23:00:00", true)).toBe("late")
    expect(isOurs({ table: "t", person: "p", at: "a" }, "late")).toBe(true)
    expect(isOurs({ table: "t", person: "p", at: "a", values }, "excused")).toBe(false)
  })
  const calendar = { table: "t", person: "p", at: "a", weekend: ["friday", "saturday"], holidays: ["2026-12-25", "2026-12-28/2027-01-03"] }
  it.each([
    ["2026-03-05", false],
    ["2026-03-06", true],
    ["2026-12-25", true],
    ["2026-12-24", false],
    ["2026-12-28", true],
    ["2027-01-03", true],
    ["2027-01-04", false],
  ])("%s is a day off: %s", (day, off) => expect(isDayOff(calendar, day)).toBe(off))
})
