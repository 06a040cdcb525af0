import { expect, test } from "vitest"
import { findings, type ServerFacts } from "../../src/cli/doctor.ts"
import type { SlotHealth } from "../../src/postgres/health.ts"

const slot = (plugin: string, part: Partial<SlotHealth> = {}): SlotHealth => ({
  slot: "schoolbus_db",
  database: "db",
  plugin,
  active: true,
  walStatus: "reserved",
  retainedBytes: 0,
  lagBytes: 0,
  lagSeconds: 0,
  safeWalBytes: null,
  growthBytesPerSecond: null,
  timeLeftSeconds: null,
  inactiveSince: null,
  maxSlotWalKeepSize: "4GB",
  budgetBytes: 4 * 1024 ** 3,
  budgetUsed: 0,
  stage: "ok",
  advice: null,
  ...part,
})

const facts = (part: Partial<ServerFacts>): ServerFacts => ({
  version: 150_018,
  settings: { wal_level: "logical", max_replication_slots: "20" },
  slotsUsed: 1,
  isStandby: false,
  mayReplicate: true,
  isSuperuser: false,
  maySchema: true,
  migrations: [1],
  newestMigration: 1,
  missingTables: [],
  slots: [],
  slotRefusal: null,
  wal2json: "old",
  ...part,
})

const decoder = (part: Partial<ServerFacts>) => findings(facts(part), "schoolbus_db").find((finding) => finding.id === "decoder")

test("pgoutput is recommended where wal2json sends NaN as null, or is absent", () => {
  expect(decoder({})).toMatchObject({ status: "warn", fix: expect.stringContaining('plugin: "pgoutput"') })
  expect(decoder({ wal2json: "absent" })).toMatchObject({ status: "warn", fix: expect.stringContaining('plugin: "pgoutput"') })
  expect(decoder({ wal2json: "absent", slots: [slot("wal2json")] })).toMatchObject({ status: "fail" })
})

test("nothing is recommended to who has it, or a wal2json that is exact", () => {
  expect(decoder({ slots: [slot("pgoutput")] })).toMatchObject({ status: "ok" })
  expect(decoder({ wal2json: "exact" })).toMatchObject({ status: "ok" })
  expect(findings(facts({ wal2json: "absent" }), "schoolbus_db", "pgoutput").find(({ id }) => id === "decoder")).toMatchObject({ status: "ok" })
  expect(decoder({ wal2json: "unknown" })).toMatchObject({ status: "ok" })
})

test("an encoding that the hub refuses is told before it starts", () => {
  const encoding = (name: string, plugin?: "wal2json" | "pgoutput", part: Partial<ServerFacts> = {}) =>
    findings(facts({ settings: { server_encoding: name }, ...part }), "schoolbus_db", plugin).find(({ id }) => id === "encoding")
  expect(encoding("UTF8")).toEqual({ id: "encoding", status: "ok", message: "UTF8" })
  expect(encoding("SQL_ASCII", "pgoutput")).toMatchObject({ status: "fail", fix: "dump it into a database with encoding UTF8" })
  expect(encoding("LATIN1")).toMatchObject({ status: "fail", fix: 'set plugin: "pgoutput" in the config' })
  expect(encoding("EUC_JP", "pgoutput")).toMatchObject({ status: "ok", message: "EUC_JP" })
  expect(encoding("LATIN1", undefined, { slots: [slot("pgoutput")] })).toMatchObject({ status: "ok" })
})

test("a slot's WAL budget warns and fails before the slot is lost, with the advice that the server gives", () => {
  const budget = (part: Partial<SlotHealth>) =>
    findings(facts({ slots: [slot("wal2json", part)] }), "schoolbus_db").find(({ id }) => id === "slot-wal-budget")
  expect(budget({ budgetUsed: 3 })).toEqual({ id: "slot-wal-budget", status: "ok", message: "3 % of 4.0 GiB used" })
  expect(budget({ budgetUsed: 55, stage: "warning", advice: "start the hub", timeLeftSeconds: 7200 })).toEqual({
    id: "slot-wal-budget",
    status: "warn",
    message: "55 % of 4.0 GiB used, 2 h left",
    fix: "start the hub",
  })
  expect(budget({ budgetUsed: 85, stage: "critical", advice: "start the hub" })).toMatchObject({ status: "fail" })
})

test("a standby is told of", () => {
  expect(findings(facts({ isStandby: true }), "schoolbus_db").find(({ id }) => id === "pg-primary")).toMatchObject({ status: "fail" })
  expect(findings(facts({}), "schoolbus_db").some(({ id }) => id === "pg-primary")).toBe(false)
})
