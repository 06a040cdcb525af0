import { expect, it } from "vitest"
import { type Hours, isDue, isWithin, minutesUntilWithin, parseHours, printHours, waitsFor } from "../../src/link/metered.ts"

const hours = (text: string) => parseHours(text.split(",").map((part) => part.trim())) as ReadonlyArray<Hours>
const at = (text: string) => Number(text.slice(0, 2)) * 60 + Number(text.slice(3))

it("reads times of day, also over midnight, and says what is none", () => {
  expect(printHours(hours("19:00-06:00, 12:30-13:00"))).toBe("19:00-06:00, 12:30-13:00")
  expect(parseHours([])).toEqual([])
  for (const wrong of ["19-6", "25:00-06:00", "19:00", "19:00-06:00-07:00", "a:b-c:d", ""]) expect(parseHours([wrong])).toHaveProperty("refused")
})

it("knows when it may call and how long until then", () => {
  const night = hours("19:00-06:00")
  expect(["18:59", "19:00", "23:59", "00:00", "05:59", "06:00", "12:00"].map((time) => isWithin(night, at(time)))).toEqual([
    false,
    true,
    true,
    true,
    true,
    false,
    false,
  ])
  expect(minutesUntilWithin(night, at("18:00"))).toBe(60)
  expect(minutesUntilWithin(night, at("06:00"))).toBe(13 * 60)
  expect(minutesUntilWithin(hours("12:00-13:00,02:00-03:00"), at("13:00"))).toBe(13 * 60)
  expect(isWithin([], at("03:00"))).toBe(true)
})

it("classes are due as often as their priority says", () => {
  const due = (priority: Parameters<typeof isDue>[0]) => Array.from({ length: 10 }, (_, i) => i + 1).filter((cycle) => isDue(priority, cycle))
  expect(due("critical").length).toBe(10)
  expect(due("high").length).toBe(10)
  expect(due("medium")).toEqual([2, 4, 6, 8, 10])
  expect(due("low")).toEqual([5, 10])
  expect(due("background")).toEqual([])
})

it("stops at the budget and outside the hours, but not for a person who asks", () => {
  const metered = { cycleMinutes: 15, budgetBytes: 1000, hours: hours("19:00-06:00") }
  const moment = { minute: at("20:00"), usedBytes: 999, isAsked: false }
  expect(waitsFor(metered, moment)).toBe(null)
  expect(waitsFor(metered, { ...moment, usedBytes: 1000 })).toBe("budget")
  expect(waitsFor(metered, { ...moment, minute: at("12:00") })).toBe("hours")
  expect(waitsFor(metered, { minute: at("12:00"), usedBytes: 5000, isAsked: true })).toBe(null)
  expect(waitsFor({ ...metered, budgetBytes: null }, { ...moment, usedBytes: 1e9 })).toBe(null)
})
