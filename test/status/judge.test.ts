import { describe, expect, it } from "vitest"
import {
  CATCH_UP_ROWS,
  hubSentence,
  type HubOwnFacts,
  judgeHub,
  judgeSchool,
  judgeSeen,
  OFFLINE_AFTER_MS,
  schoolSentence,
  type SchoolOwnFacts,
  type SchoolSeenFacts,
  STUCK_AFTER_MS,
} from "../../src/status/judge.ts"

const calm: SchoolOwnFacts = {
  link: "online",
  linkDetail: "",
  stop: null,
  paused: false,
  gap: null,
  hasCut: true,
  comingRows: 0,
  pending: 0,
  sending: 0,
  standingMs: 0,
}

describe("a school judges itself", () => {
  it.each<[string, Partial<SchoolOwnFacts>, string]>([
    ["nothing waits", {}, "up_to_date"],
    ["edits wait", { pending: 3 }, "pending"],
    ["a batch is on its way", { pending: 3, sending: 2 }, "syncing"],
    ["a few rows come", { comingRows: 5 }, "syncing"],
    ["many rows come", { comingRows: CATCH_UP_ROWS + 1, pending: 9 }, "catching_up"],
    ["the hub is not reached", { link: "offline", pending: 9 }, "offline"],
    ["not connected yet", { link: "connecting" }, "offline"],
    ["no cut yet", { hasCut: false }, "new"],
    ["no cut yet and no link", { hasCut: false, link: "offline" }, "new"],
    ["a person paused it", { paused: true, link: "offline", pending: 9 }, "paused"],
    ["a named stop outranks all", { stop: "cloned", paused: true, hasCut: false }, "stuck"],
    ["the hub refuses the key", { link: "stopped" }, "stuck"],
    ["the disk is full", { linkDetail: "SQLITE_FULL: database or disk is full", comingRows: 20_000 }, "stuck"],
    ["the file's folder has another name", { file: "the folder is gone" }, "stuck"],
    ["a program holds the file's lock", { linkDetail: "SQLITE_BUSY: database is locked" }, "syncing"],
    ["nothing moves with the link up", { pending: 1, standingMs: STUCK_AFTER_MS + 1 }, "stuck"],
    ["nothing is sent while a catch-up runs", { pending: 1, standingMs: STUCK_AFTER_MS + 1, comingRows: 20_000 }, "catching_up"],
    ["nothing moves without a link", { pending: 1, standingMs: STUCK_AFTER_MS + 1, link: "offline" }, "offline"],
  ])("%s", (_, part, state) => {
    expect(judgeSchool({ ...calm, ...part }).state).toBe(state)
  })

  it.each<[string, number, string]>([
    ["is right", 119_000, ""],
    ["stands a year ahead", 365.25 * 86_400_000, "the clock of this computer is 365 days ahead of head office's"],
    ["stands an hour behind, as after a wrong time zone", -3_600_000, "the clock of this computer is 60 minutes behind head office's"],
  ])("whose clock %s", (_, clockAheadMs, words) => {
    const { state, reason } = judgeSchool({ ...calm, clockAheadMs })
    expect(state).toBe("up_to_date")
    expect(reason.slice(0, words.length)).toBe(words)
    expect(reason === "").toBe(words === "")
    expect(judgeSchool({ ...calm, clockAheadMs, link: "offline", linkDetail: "no route" }).reason).toMatch(
      words === "" ? /^no route$/ : /^no route; the clock/,
    )
  })

  it("says what it waits for while a program holds the file's lock", () => {
    const { reason } = judgeSchool({ ...calm, linkDetail: "SQLITE_BUSY: database is locked" })
    expect(reason).toMatch(/^SQLITE_BUSY: database is locked: a program has a transaction open .* when it commits/)
  })

  it("says why it is stuck, in the link's words when it has some", () => {
    expect(judgeSchool({ ...calm, stop: "cloned" }).reason).toContain("two copies")
    expect(judgeSchool({ ...calm, stop: "cloned", link: "stopped", linkDetail: "run: x" }).reason).toBe("run: x")
  })
})

const seen: SchoolSeenFacts = { now: 1_000_000, paused: false, hasCut: true, connected: true, seenAt: 999_000, lagRows: 0, stalledMs: 0, said: null }
const said = (part: Partial<NonNullable<SchoolSeenFacts["said"]>>) => ({
  state: "up_to_date",
  reason: null,
  pending: 0,
  oldestPendingAt: null,
  ...part,
})

describe("the hub judges a school", () => {
  it.each<[string, Partial<SchoolSeenFacts>, string]>([
    ["in contact, nothing waits", {}, "up_to_date"],
    ["never heard", { seenAt: 0, connected: false }, "new"],
    ["heard, no cut yet", { hasCut: false }, "new"],
    ["gone before its first cut", { hasCut: false, connected: false, seenAt: 0 }, "new"],
    ["silent for too long", { connected: false, seenAt: 1_000_000 - OFFLINE_AFTER_MS - 1 }, "offline"],
    ["between two polls", { connected: false, seenAt: 1_000_000 - OFFLINE_AFTER_MS }, "up_to_date"],
    ["few rows wait for it", { lagRows: 7 }, "syncing"],
    ["many rows wait for it", { lagRows: CATCH_UP_ROWS + 1 }, "catching_up"],
    ["it does not take its rows", { lagRows: 7, stalledMs: STUCK_AFTER_MS + 1 }, "stuck"],
    ["it has edits to send", { said: said({ pending: 2, state: "pending" }) }, "pending"],
    ["it sends edits", { said: said({ pending: 2, state: "syncing" }) }, "syncing"],
    ["it catches up", { said: said({ state: "catching_up" }), lagRows: 7, stalledMs: STUCK_AFTER_MS + 1 }, "catching_up"],
    ["it said that it is stuck, and left", { said: said({ state: "stuck", reason: "cloned" }), connected: false, seenAt: 1 }, "stuck"],
    ["paused", { paused: true, said: said({ state: "stuck" }) }, "paused"],
  ])("%s", (_, part, state) => {
    expect(judgeSeen({ ...seen, ...part }).state).toBe(state)
  })
})

const hub: HubOwnFacts = {
  postgres: true,
  stream: "streaming",
  streamDetail: "",
  walStatus: "reserved",
  loading: 0,
  schools: ["up_to_date", "offline", "paused", "new"],
}

describe("the hub judges itself", () => {
  it.each<[string, Partial<HubOwnFacts>, string]>([
    ["schools that are away are not its fault", {}, "up_to_date"],
    ["Postgres away", { postgres: false, stream: "down" }, "offline"],
    ["slot lost", { walStatus: "lost" }, "stuck"],
    ["stream down", { stream: "down" }, "stuck"],
    ["standby", { stream: "standby" }, "paused"],
    ["starting", { stream: "starting" }, "new"],
    ["first copy", { loading: 1 }, "catching_up"],
    ["a school needs help", { schools: ["up_to_date", "stuck"] }, "stuck"],
    ["a school syncs", { schools: ["pending", "syncing"] }, "syncing"],
  ])("%s", (_, part, state) => {
    expect(judgeHub({ ...hub, ...part }).state).toBe(state)
  })

  it("says what Postgres answers instead of how the slot is, and that its clock is off", () => {
    expect(judgeHub({ ...hub, fault: "Postgres says: x" })).toEqual({ state: "stuck", reason: "Postgres says: x" })
    expect(judgeHub({ ...hub, clockAheadMs: -7_200_000 })).toEqual({
      state: "up_to_date",
      reason: "the clock of this computer is 2 hours behind Postgres'; set it, and let it be set: timedatectl set-ntp true",
    })
  })
})

describe("one sentence", () => {
  const none = { reason: "", pending: 0, failed: 0, conflicts: 0 }
  it("says what waits and what needs a person", () => {
    expect(schoolSentence({ ...none, state: "up_to_date", progress: null })).toBe("Up to date")
    expect(schoolSentence({ ...none, state: "pending", pending: 1204, conflicts: 1, progress: null })).toBe(
      "Waiting to send: 1,204 changes wait for head office; 1 conflict needs a decision (schoolbus conflicts list)",
    )
    expect(schoolSentence({ ...none, state: "up_to_date", failed: 5, progress: null })).toBe(
      "Up to date: 5 rows could not be synced (why: schoolbus quarantine list, tables list)",
    )
    expect(schoolSentence({ ...none, state: "catching_up", progress: { rows: 10, total: 5000 } })).toBe("Catching up: 10 of 5,000 rows received")
    expect(hubSentence({ ...none, state: "up_to_date" }, [])).toContain("no school is enrolled")
    expect(hubSentence({ ...none, state: "paused", reason: "standby" }, [], false)).toBe("Paused: standby")
    expect(hubSentence({ ...none, state: "up_to_date", failed: 1 }, ["up_to_date", "offline"])).toBe(
      "Up to date: 2 schools, 1 offline; 1 change is quarantined (schoolbus quarantine list)",
    )
  })
})
