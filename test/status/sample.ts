/** Snapshots to start from: a hub and a school in good health. */
import type { HubSnapshot, SchoolSnapshot, SchoolView, SlotView } from "../../src/status/snapshot.ts"

const AS_OF = "2026-11-24T10:00:00.000Z"
const base = {
  schemaVersion: 1,
  asOf: AS_OF,
  version: "0.1.0",
  runtime: "bun 1.4.4",
  state: "up_to_date",
  reason: "",
  summary: "Up to date",
  totals: { pending: 0, failed: 0, synced: 12, conflicts: 0 },
  tables: [{ table: "public.students", pending: 0, failed: 0, synced: 12, conflicts: 0 }],
  progress: [],
} as const

export const aSlot = (part: Partial<SlotView> = {}): SlotView => ({
  slot: "schoolbus",
  database: "head_office",
  plugin: "wal2json",
  active: true,
  walStatus: "reserved",
  retainedBytes: 16_000_000,
  lagBytes: 0,
  lagSeconds: 0,
  safeWalBytes: 4_000_000_000,
  growthBytesPerSecond: 10,
  timeLeftSeconds: 400_000_000,
  inactiveSince: null,
  budgetBytes: 4 * 1024 ** 3,
  budgetUsed: 1,
  stage: "ok",
  advice: null,
  ...part,
})

export const aSchoolView = (school: string, part: Partial<SchoolView> = {}): SchoolView => ({
  school,
  name: `School ${school}`,
  state: "up_to_date",
  reason: "",
  connected: true,
  lastSeenAt: "2026-11-24T09:59:50.000Z",
  lagRows: 0,
  pending: 0,
  oldestPendingAt: null,
  failed: 0,
  conflicts: 0,
  devices: 1,
  ...part,
})

export const aHub = (part: Partial<HubSnapshot> = {}): HubSnapshot => ({
  ...base,
  role: "hub",
  postgres: true,
  fault: null,
  stream: { state: "streaming", detail: "" },
  feed: { epoch: "e", seq: "42", lsn: "0/1949850", committedAt: "2026-11-24 09:59:59.123456+00" },
  slot: aSlot(),
  schools: [aSchoolView("north"), aSchoolView("south")],
  ...part,
})

export const aSchool = (part: Partial<SchoolSnapshot> = {}): SchoolSnapshot => ({
  ...base,
  role: "school",
  school: "north",
  name: "School north",
  incarnation: "6a3c2c1e-0000-4000-8000-000000000000",
  link: { state: "online", detail: "", lastContactAt: "2026-11-24T09:59:50.000Z", lastSyncAt: "2026-11-24T09:59:40.000Z" },
  sending: { pending: 0, oldestPendingAt: null, batches: 0, lastBatch: 3 },
  receiving: { epoch: "e", seq: "42", behind: 0, applying: false },
  devices: { total: 1, approved: 1, waiting: 0, alerts: [] },
  workers: [],
  verified: null,
  ...part,
})
