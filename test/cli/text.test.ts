import { describe, expect, it } from "vitest"
import { lookOf } from "../../src/cli/io.ts"
import { statusText } from "../../src/cli/status.ts"
import { clean, sizeText, stateText, table, widthOf } from "../../src/cli/text.ts"
import { aHub, aSchool, aSchoolView } from "../status/sample.ts"

const plain = { color: false, unicode: false }

describe("tables", () => {
  it("line up by what a terminal shows, not by characters", () => {
    expect(["abc", "日本", "é", "e\u0301", "👩‍👩‍👧", "\u001B[31mred\u001B[0m", "مدرسة"].map(widthOf)).toEqual([3, 4, 1, 1, 2, 3, 5])
    const text = table(
      plain,
      [{ title: "Name" }, { title: "N", right: true }],
      [
        ["日本", "5"],
        ["north", "1,204"],
      ],
    )
    expect(text).toBe("Name       N\n日本       5\nnorth  1,204\n")
  })

  it("let no name move the cursor or turn the line around", () => {
    expect(clean("a\u001B[2Jb\r\n\u202Ec\u0007")).toBe("a [2Jb   c ")
  })
})

describe("colour", () => {
  it.each([
    [{}, true, true],
    [{}, false, false],
    [{ NO_COLOR: "1" }, true, false],
    [{ NO_COLOR: "" }, true, true],
    [{ TERM: "dumb" }, true, false],
    [{ FORCE_COLOR: "1" }, false, true],
    [{ FORCE_COLOR: "0" }, true, false],
  ])("with %j on a terminal: %s", (env, isTTY, color) => {
    expect(lookOf(env, isTTY).color).toBe(color)
  })

  it("never says a state by colour or symbol alone", () => {
    expect(stateText(plain, "stuck")).toBe("!! Needs help")
    expect(stateText({ color: true, unicode: true }, "stuck")).toBe("\u001B[31m✖ Needs help\u001B[0m")
  })
})

describe("status for people", () => {
  it("shows the hub's schools, what is on the way, and the slot", () => {
    const text = statusText(
      plain,
      aHub({
        summary: "Up to date: 2 schools",
        schools: [aSchoolView("north", { lagRows: 1204 }), aSchoolView("south", { state: "offline", lastSeenAt: null })],
      }),
    )
    expect(text).toContain("Hub  ok Up to date  as of 2026-11-24 10:00:00 UTC\n2 schools\n")
    expect(text).toMatch(/north\s+School north\s+ok Up to date\s+10 s ago\s+1,204\s+0/)
    expect(text).toMatch(/south .* never/)
    expect(text).toContain("Slot schoolbus: active, WAL reserved, 15.3 MiB held back, 0 B behind")
  })

  it("shows a school's first copy as progress", () => {
    const text = statusText(
      plain,
      aSchool({ state: "new", summary: "Not complete yet: 10 of 40 rows received", progress: [{ table: null, rows: 10, total: 40 }] }),
    )
    expect(text).toContain("Receiving: 10 of 40 rows (25 %)")
    expect(text).toContain("public.students        0       0      12          0")
  })

  it("prints sizes with their unit", () => {
    expect([null, 0, 1023, 1024, 1.5 * 1024 ** 3].map(sizeText)).toEqual(["-", "0 B", "1023 B", "1.0 KiB", "1.5 GiB"])
  })
})

it("what a metered link has used stands in the unit in which its budget is given", () => {
  const metered = { cycleMinutes: 15, budgetBytes: 50_000_000, hours: "", usedBytes: 1_240_000, waits: null, nextAt: null } as const
  expect(statusText(plain, aSchool({ metered }))).toContain("a sync every 15 min; 1.2 MB of 50 MB used today")
})
