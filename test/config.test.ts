/** What a config says about terminals, as the hub takes it. */
import { expect, it } from "vitest"
import { type Config, type ConfigInput, ConfigRefused, parseConfig } from "../src/config.ts"

const tables: ConfigInput["tables"] = {
  pupils: { audience: "all" },
  staff: { audience: "all" },
  forms: { audience: "all" },
  presence: { audience: "all" },
}
const devices = (people: string | Array<string> | undefined) => ({
  people: { pupils: { id: "no", name: "name", group: { column: "form", table: "forms", name: "label" } }, staff: { id: "no", name: "name" } },
  attendance: { table: "presence", person: "who", at: "came", ...(people === undefined ? {} : { people }) },
})
const parse = (people?: string | Array<string>): Config | ConfigRefused => parseConfig("test", { tables, devices: devices(people) })

it("names whose attendance it is, and where a class has its name", () => {
  expect(parse()).toMatchObject({ devices: { attendance: { table: "public.presence" } } })
  expect(parse("pupils")).toMatchObject({
    devices: {
      people: { "public.pupils": { group: "form", groupFrom: { table: "public.forms", name: "label" } } },
      attendance: { people: ["public.pupils"] },
    },
  })
  expect(parse(["pupils", "public.staff"])).toMatchObject({ devices: { attendance: { people: ["public.pupils", "public.staff"] } } })
})

it("refuses people who are none of it", () => {
  const refused = parse("parents")
  expect(refused).toBeInstanceOf(ConfigRefused)
  expect(refused).toMatchObject({ problems: ["devices.attendance.people: parents is not among devices.people; these are pupils, staff"] })
})

it("refuses terminals whose people, classes or attendance stand in tables that are not synced", () => {
  const { pupils, ...others } = tables
  expect(parseConfig("test", { tables: others, devices: devices("staff") })).toMatchObject({
    problems: ["devices.people names table public.pupils, which is not among the synced tables; list it under tables"],
  })
  expect(parseConfig("test", { tables: { pupils, staff: { audience: "all" } }, devices: devices("staff") })).toMatchObject({
    problems: [
      "devices.people names table public.forms, which is not among the synced tables; list it under tables",
      "devices.attendance names table public.presence, which is not among the synced tables; list it under tables",
    ],
  })
})

it.each([
  ["2026-12-25", null],
  ["2028-02-29", null],
  ["2026-12-19/2027-01-05", null],
  ["2026-12-25/2026-12-25", null],
  ["2026-02-29", "there is no such day"],
  ["2026-13-01/2026-13-05", "there is no such day"],
  ["2026-03-05/2026-03-01", "it ends before it begins"],
  ["25.12.2026", "write it like 2026-12-25 or 2026-12-19/2027-01-05"],
])("takes holidays that there are: %s", (span, problem) => {
  const { people, attendance } = devices(undefined)
  const parsed = parseConfig("test", { tables, devices: { people, attendance: { ...attendance, holidays: [span] } } })
  if (problem === null) expect(parsed).not.toBeInstanceOf(ConfigRefused)
  else expect(parsed).toMatchObject({ problems: [`devices.attendance.holidays.0: ${problem}`] })
})
