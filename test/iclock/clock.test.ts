import { describe, expect, it } from "vitest"
import { isWall, naiveOf, readWall, timestamptz, utcToWall, wallNumber, wallToUtc, zoneNumber } from "../../src/iclock/clock.ts"

const at = (text: string): number => Date.parse(text)

it.each([
  ["Asia/Jakarta", 7],
  ["Africa/Nairobi", 3],
  ["America/New_York", -5],
  ["Asia/Kolkata", 330],
  ["Asia/Kathmandu", 345],
  ["Pacific/Auckland", 780],
  ["Pacific/Honolulu", -10],
  ["UTC", 0],
])("zone %s is %i to a terminal in January", (zone, number) => expect(zoneNumber(zone, at("2026-01-15T00:00:00Z"))).toBe(number))

it.each([
  ["2026-03-03 07:41:09", "2026-03-03 07:41:09"],
  ["2026/3/3  7:41:09", "2026-03-03 07:41:09"],
  ["2026-03-03T07:41:09", "2026-03-03 07:41:09"],
  ["2024-02-29 00:00:00", "2024-02-29 00:00:00"],
  ["2026-02-29 00:00:00", null],
  ["2026-03-03 07:60:09", null],
  ["1969-12-31 23:59:59", null],
  ["26-03-03 07:41:09", null],
  ["2026-03-03 07:41", "2026-03-03 07:41:00"],
])("wall clock %j reads as %j", (text, wall) => expect(readWall(text)).toBe(wall))

it("a wall clock in its usual form is judged and counted as one that is read, whatever day came before it", () => {
  const texts = [
    ...["2026-03-03", "2024-02-29", "2026-02-29", "2026-00-10", "2026-13-01", "1969-12-31", "9999-01-01"].flatMap((day) =>
      ["00:00:00", "07:41:09", "23:59:59", "24:00:00", "07:60:09", "07:41:60", "29:00:00", "00:99:00"].map((time) => `${day} ${time}`),
    ),
  ]
  for (const text of [...texts, ...texts.toReversed()]) {
    expect([text, isWall(text)]).toEqual([text, readWall(text) === text])
    if (isWall(text)) expect(naiveOf(text)).toBe(Date.parse(`${text.replace(" ", "T")}Z`))
  }
})

it("a moment prints the same whatever moment was printed before it", () => {
  for (const moment of [
    0, -1000, -86_400_000, 1, 999, 1_772_523_669_000, 1_772_582_399_000, 1_772_582_400_000, 1_772_523_669_120, 253_402_300_799_000,
  ]) {
    const iso = new Date(moment).toISOString()
    const fraction = iso.slice(20, 23).replace(/0+$/, "")
    expect(timestamptz(moment)).toBe(`${iso.slice(0, 10)} ${iso.slice(11, 19)}${fraction === "" ? "" : `.${fraction}`}+00`)
  }
})

describe("wall clock to UTC", () => {
  it.each([
    ["2026-03-03 07:41:09", "Africa/Nairobi", "2026-03-03 04:41:09+00"],
    ["2026-03-03 07:41:09", "Asia/Kolkata", "2026-03-03 02:11:09+00"],
    ["2026-07-01 12:00:00", "Europe/Berlin", "2026-07-01 10:00:00+00"],
    ["2026-01-01 12:00:00", "Europe/Berlin", "2026-01-01 11:00:00+00"],
    // 02:30 does not exist on this day.
    ["2026-03-29 02:30:00", "Europe/Berlin", "2026-03-29 01:30:00+00"],
  ])("%s in %s", (wall, zone, utc) => expect(timestamptz(wallToUtc(wall, zone, 0))).toBe(utc))

  it("an hour that comes twice is the one nearer to the moment of receipt", () => {
    expect(timestamptz(wallToUtc("2026-10-25 02:30:00", "Europe/Berlin", at("2026-10-25T00:30:05Z")))).toBe("2026-10-25 00:30:00+00")
    expect(timestamptz(wallToUtc("2026-10-25 02:30:00", "Europe/Berlin", at("2026-10-25T01:30:05Z")))).toBe("2026-10-25 01:30:00+00")
  })

  it("every hour of a year in a zone with summer time goes there and back", () => {
    for (let moment = at("2026-01-01T00:00:00Z"); moment < at("2027-01-01T00:00:00Z"); moment += 3_600_000) {
      expect(wallToUtc(utcToWall(moment, "America/St_Johns"), "America/St_Johns", moment)).toBe(moment)
    }
  })
})

it.each([
  ["2026-03-03T04:41:09.000Z", "2026-03-03 04:41:09+00"],
  ["2026-03-03T04:41:09.120Z", "2026-03-03 04:41:09.12+00"],
])("%s prints as Postgres prints it", (iso, text) => expect(timestamptz(at(iso))).toBe(text))

it("the protocol's own number of a wall clock", () => expect(wallNumber("2018-02-22 06:36:30")).toBe(583050990))
