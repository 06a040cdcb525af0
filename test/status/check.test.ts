import { describe, expect, it } from "vitest"
import { checkOf, exitOf, nagiosLine } from "../../src/status/check.ts"
import { metricsOf } from "../../src/status/metrics.ts"
import type { HubSnapshot, SchoolSnapshot } from "../../src/status/snapshot.ts"
import { aHub, aSchool, aSchoolView, aSlot } from "./sample.ts"

const away = aSchoolView("south", {
  state: "offline",
  connected: false,
  lastSeenAt: "2026-11-20T10:00:00.000Z",
  oldestPendingAt: "2026-11-20T10:00:00.000Z",
})

describe("check", () => {
  it.each<[string, Partial<HubSnapshot>, string]>([
    ["all well", {}, "OK"],
    ["Postgres away", { postgres: false, slot: null }, "CRITICAL"],
    ["Postgres does not tell of its slot", { fault: "x", slot: null }, "CRITICAL"],
    ["a clock that is two hours ahead of Postgres'", { clockAheadMs: 7_200_000 }, "WARNING"],
    ["stream down", { stream: { state: "down", detail: "x" } }, "CRITICAL"],
    ["standby", { stream: { state: "standby", detail: "held by process 7" } }, "WARNING"],
    ["slot missing", { slot: null }, "CRITICAL"],
    ["slot lost", { slot: aSlot({ walStatus: "lost" }) }, "CRITICAL"],
    ["slot unreserved", { slot: aSlot({ walStatus: "unreserved" }) }, "CRITICAL"],
    ["slot is being made", { slot: aSlot({ stage: "making", lagBytes: null, advice: "x" }) }, "WARNING"],
    ["slot used half of a small budget", { slot: aSlot({ budgetUsed: 50, stage: "warning", advice: "x" }) }, "WARNING"],
    ["slot used most of a small budget", { slot: aSlot({ budgetUsed: 81, stage: "critical", advice: "x" }) }, "CRITICAL"],
    ["slot holds 1.2 GiB", { slot: aSlot({ retainedBytes: 1_288_490_188 }) }, "WARNING"],
    ["slot holds 5 GiB", { slot: aSlot({ retainedBytes: 5 * 1024 ** 3 }) }, "CRITICAL"],
    ["nobody enrolled", { schools: [] }, "UNKNOWN"],
    ["nobody known to a standby", { schools: [], stream: { state: "standby", detail: "held by process 7" } }, "WARNING"],
    ["nobody has connected yet", { schools: [aSchoolView("north", { state: "new", lastSeenAt: null })] }, "UNKNOWN"],
    ["nobody connected", { schools: [away] }, "CRITICAL"],
    ["only paused schools", { schools: [aSchoolView("north", { state: "paused" })] }, "UNKNOWN"],
    ["one of two away, its old backlog is no second alarm", { schools: [aSchoolView("north"), away] }, "WARNING"],
    ["one stuck", { schools: [aSchoolView("north"), aSchoolView("south", { state: "stuck" })] }, "CRITICAL"],
    ["old changes in a connected school", { schools: [aSchoolView("north", { oldestPendingAt: "2026-11-24T08:00:00.000Z" })] }, "WARNING"],
    ["open conflicts", { totals: { pending: 0, failed: 0, synced: 1, conflicts: 2 } }, "WARNING"],
    ["quarantined changes", { totals: { pending: 0, failed: 2, synced: 1, conflicts: 0 } }, "WARNING"],
  ])("at the hub: %s", (_, part, level) => {
    const checked = checkOf(aHub(part))
    expect([checked.level, checked.line.startsWith(`SCHOOLBUS ${level} - `)]).toEqual([level, true])
    expect(checked.line.split("\n")).toHaveLength(1)
  })

  const link = (state: SchoolSnapshot["link"]["state"], lastContactAt: string | null) => ({ state, detail: "", lastContactAt, lastSyncAt: null })
  it.each<[string, Partial<SchoolSnapshot>, string]>([
    ["all well", {}, "OK"],
    ["never in contact", { state: "new", link: link("offline", null) }, "UNKNOWN"],
    ["offline since this morning", { state: "offline", link: link("offline", "2026-11-24T07:00:00.000Z") }, "WARNING"],
    ["offline for two days", { state: "offline", link: link("offline", "2026-11-22T07:00:00.000Z") }, "CRITICAL"],
    ["says online but is silent", { link: link("online", "2026-11-24T09:00:00.000Z") }, "WARNING"],
    ["stuck", { state: "stuck", reason: "cloned" }, "CRITICAL"],
    ["paused", { state: "paused" }, "WARNING"],
    ["first copy not complete", { state: "new" }, "WARNING"],
    [
      "old changes",
      {
        totals: { pending: 4, failed: 0, synced: 1, conflicts: 0 },
        sending: { pending: 4, oldestPendingAt: "2026-11-22T10:00:00.000Z", batches: 1, lastBatch: 1 },
      },
      "CRITICAL",
    ],
    ["a clock that is a year behind", { clockAheadMs: -31_536_000_000 }, "WARNING"],
    ["a clock that is seconds ahead", { clockAheadMs: 20_000 }, "OK"],
    ["a terminal waits for a person", { devices: { total: 2, approved: 1, waiting: 1, alerts: [] } }, "WARNING"],
    [
      "a terminal is silent",
      { devices: { total: 1, approved: 1, waiting: 0, alerts: [{ serial: "A1", name: "Gate", alerts: ["it has not called for 12 minutes"] }] } },
      "WARNING",
    ],
  ])("in a school: %s", (_, part, level) => {
    expect(checkOf(aSchool(part)).level).toBe(level)
  })

  it("takes bounds for a single check and leaves the others out", () => {
    const hub = aHub({ postgres: false, slot: aSlot({ retainedBytes: 500 }) })
    expect(checkOf(hub, "slots").level).toBe("OK")
    expect(checkOf(hub, "slots", { warning: 100 }).line).toBe("SCHOOLBUS WARNING - slot schoolbus holds 0KiB | retained=500B;100;4294967296;0")
    expect(checkOf(hub, "slots", { critical: 500 }).level).toBe("CRITICAL")
    expect(checkOf(hub, "link").level).toBe("UNKNOWN")
  })

  it("lets no name break the line", () => {
    expect(nagiosLine("CRITICAL", "a | b\nc\t d", [{ label: "x", value: 1, warning: 2, critical: Number.POSITIVE_INFINITY }])).toBe(
      "SCHOOLBUS CRITICAL - a / b c d | x=1;2;;0",
    )
    expect(exitOf).toEqual({ OK: 0, WARNING: 1, CRITICAL: 2, UNKNOWN: 3 })
  })
})

describe("metrics", () => {
  it("says what the snapshot says, one series per state, labels escaped", () => {
    const text = metricsOf(aHub({ schools: [aSchoolView('no"rth\n', { state: "offline", pending: 7, lagRows: 3 })] }))
    expect(text).toContain('schoolbus_build_info{version="0.1.0",runtime="bun 1.4.4",role="hub"} 1\n')
    expect(text).toContain('schoolbus_node_state{node="no\\"rth\\n",state="offline"} 1\n')
    expect(text).toContain('schoolbus_node_state{node="no\\"rth\\n",state="stuck"} 0\n')
    expect(text).toContain('schoolbus_sync_pending_changes{node="no\\"rth\\n",direction="up"} 7\n')
    expect(text).toContain('schoolbus_slot_wal_status{slot_name="schoolbus",database="head_office",wal_status="reserved"} 1\n')
    for (const line of text.trimEnd().split("\n")) expect(line).toMatch(/^(# (HELP|TYPE) schoolbus_\w+ .+|schoolbus_\w+(\{.*\})? -?\d+(\.\d+)?)$/)
    const families = text.match(/^# TYPE (\S+)/gm) ?? []
    expect(new Set(families).size).toBe(families.length)
  })

  it("leaves out what is not known", () => {
    const text = metricsOf(aHub({ slot: null, schools: [aSchoolView("new", { lastSeenAt: null })] }))
    expect(text).not.toContain("slot_")
    expect(text).not.toContain("last_seen")
    expect(metricsOf(aSchool())).toContain('schoolbus_link_up{node="north"} 1\n')
  })
})

it("rows that differ from head office are a warning until they are mended", () => {
  const differing = checkOf(aSchool({ verified: { at: "2026-11-24T03:00:00.000Z", differences: 3, left: 2 } }))
  expect(differing.level).toBe("WARNING")
  expect(differing.line).toContain("2 rows differ from head office: schoolbus verify --repair")
  expect(checkOf(aSchool({ verified: { at: "2026-11-24T03:00:00.000Z", differences: 3, left: 0 } })).level).toBe("OK")
})
