/** Attendance by day: one row per person and day, whatever order the punches come in. */
import { afterEach, describe, expect, it } from "vitest"
import type { AttendanceRules } from "../../src/model/table.ts"
import { column, table } from "../support/school-file.ts"
import { type Node, openNode, rules, students, timestamptzType } from "./node.ts"

const SN = "TSTA240300017"
let node: Node
afterEach(() => node.close())

const daily = table(
  "attendance",
  [
    column("id", "text", { type: "uuid", notNull: true }),
    column("school_id", "text", { notNull: true }),
    column("student_id", "text", { type: "uuid", notNull: true }),
    column("day", "text", { type: "date", notNull: true }),
    column("arrived", "text", { type: timestamptzType }),
    column("left_at", "text", { type: "time without time zone" }),
    column("status", "text", { notNull: true }),
  ],
  { references: [{ columns: ["student_id"], table: "public.students", to: ["id"] }], unique: [["student_id", "day"]] },
)
const rule: AttendanceRules = {
  table: "public.attendance",
  person: "student_id",
  at: "arrived",
  out: "left_at",
  day: "day",
  status: "status",
  rows: "day",
  hours: { from: "07:30", graceMinutes: 10 },
  weekend: ["saturday", "sunday"],
}
const open = async (more: Partial<AttendanceRules> = {}): Promise<string> => {
  node = await openNode({ tables: [students, daily], devices: { ...rules, attendance: { ...rule, ...more } } })
  const amina = await node.student("Amina")
  await node.approve(SN, "Africa/Nairobi")
  return amina
}
const punch = (...times: ReadonlyArray<string>) =>
  node.post(`/iclock/cdata?SN=${SN}&table=ATTLOG&Stamp=9999`, times.map((time) => `1\t${time}\t0\t1\n`).join(""))
const rows = () => node.rows("SELECT day, arrived, left_at, status FROM attendance ORDER BY day")

it("the first in and the last out of the day, late or not, also when an earlier punch comes later", async () => {
  await open()
  await punch("2026-03-03 12:30:00")
  expect(rows()).toEqual([["2026-03-03", "2026-03-03 09:30:00+00", null, "late"]])
  await punch("2026-03-03 07:35:00", "2026-03-03 13:05:00", "2026-03-04 07:00:00")
  expect(rows()).toEqual([
    ["2026-03-03", "2026-03-03 04:35:00+00", "13:05:00", "present"],
    ["2026-03-04", "2026-03-04 04:00:00+00", null, "present"],
  ])
  // Once more, and nothing that changes: nothing is written.
  const before = node.rows("SELECT count(*) FROM changes")
  await punch("2026-03-03 12:30:00", "2026-03-03 07:35:00")
  expect(node.rows("SELECT count(*) FROM changes")).toEqual(before)
})

it("a row that a person made for the day is carried along, and what they wrote stays", async () => {
  const amina = await open()
  await node.program("INSERT INTO attendance (id, school_id, student_id, day, status) VALUES ('x', 's1', ?, '2026-03-03', 'excused')", [amina])
  await punch("2026-03-03 09:00:00", "2026-03-03 13:00:00")
  expect(rows()).toEqual([["2026-03-03", "2026-03-03 06:00:00+00", "13:00:00", "excused"]])
})

it("punches of a day off are kept and make no attendance", async () => {
  await open({ holidays: ["2026-03-03"] })
  await punch("2026-03-03 07:00:00", "2026-03-07 07:00:00", "2026-03-05 07:00:00")
  expect(rows().map(([day]) => day)).toEqual(["2026-03-05"])
  expect(node.rows("SELECT count(*) FROM punches WHERE person_id IS NOT NULL AND flags IS NULL")).toEqual([[3n]])
})

describe("a row for every punch", () => {
  it("says present, late and out in the config's words", async () => {
    const each = { ...daily, unique: [] }
    node = await openNode({
      tables: [students, each],
      devices: { ...rules, attendance: { ...rule, rows: "punch", values: { present: "in", late: "late", out: "out" } } },
    })
    await node.student("Amina")
    await node.approve(SN, "Africa/Nairobi")
    await punch("2026-03-03 07:50:00", "2026-03-03 13:00:00")
    await punch("2026-03-04 07:20:00")
    expect(node.rows("SELECT arrived, status FROM attendance ORDER BY arrived")).toEqual([
      ["2026-03-03 04:50:00+00", "late"],
      ["2026-03-03 10:00:00+00", "out"],
      ["2026-03-04 04:20:00+00", "in"],
    ])
  })

  it("an earlier punch that comes later is the first, and what was taken for it is judged again, unless a person judged it", async () => {
    node = await openNode({
      tables: [students, { ...daily, unique: [] }],
      devices: { ...rules, attendance: { ...rule, rows: "punch", values: { present: "in", late: "late", out: "out" } } },
    })
    const amina = await node.student("Amina")
    await node.approve(SN, "Africa/Nairobi")
    await node.approve("TSTB240300018", "UTC")
    const statuses = () =>
      node.rows("SELECT arrived, status FROM attendance ORDER BY arrived").map(([at, status]) => [String(at).slice(0, 16), status])
    await punch("2026-03-03 12:30:00", "2026-03-04 12:30:00")
    await node.program("UPDATE attendance SET status = 'excused' WHERE day = '2026-03-04'")
    expect(statuses()).toEqual([
      ["2026-03-03 09:30", "late"],
      ["2026-03-04 09:30", "excused"],
    ])
    const [[pin] = []] = node.rows(`SELECT pin FROM device_user_mappings WHERE person_id = '${amina}' AND device_id = 2`)
    await node.post("/iclock/cdata?SN=TSTB240300018&table=ATTLOG&Stamp=9999", `${pin}\t2026-03-03 05:00:00\t0\t1\n`)
    await punch("2026-03-03 07:20:00", "2026-03-04 07:20:00", "2026-03-03 13:00:00")
    expect(statuses()).toEqual([
      ["2026-03-03 04:20", "in"],
      ["2026-03-03 05:00", "out"],
      ["2026-03-03 09:30", "out"],
      ["2026-03-03 10:00", "out"],
      ["2026-03-04 04:20", "in"],
      ["2026-03-04 09:30", "excused"],
    ])
  })
})

it("a rule that changes counts from the next punch on: what was judged stays, but for a day that goes on", async () => {
  for (const kind of ["punch", "day"] as const) {
    const tables = [students, { ...daily, unique: [] }]
    const attendance = { ...rule, rows: kind }
    node = await openNode({ tables, devices: { ...rules, attendance } })
    await node.student("Amina")
    await node.approve(SN, "Africa/Nairobi")
    await punch("2026-03-03 07:50:00", "2026-03-04 07:50:00")
    const [manifest] = node.rows("SELECT manifest FROM schoolbus_state")[0] ?? []
    const changed = { ...JSON.parse(String(manifest)), devices: { ...rules, attendance: { ...attendance, hours: { from: "09:00" } } } }
    await node.program("UPDATE schoolbus_state SET manifest = ?", [JSON.stringify(changed)])
    await node.run(node.devices.changed)
    await punch("2026-03-04 13:00:00")
    expect(rows().map(([day, , , status]) => [day, status])).toEqual(
      kind === "punch"
        ? [
            ["2026-03-03", "late"],
            ["2026-03-04", "late"],
            ["2026-03-04", "present"],
          ]
        : [
            ["2026-03-03", "late"],
            ["2026-03-04", "present"],
          ],
    )
    if (kind === "punch") await node.close()
  }
})
