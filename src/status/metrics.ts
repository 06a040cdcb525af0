/** The snapshot as Prometheus text (pure): gauges computed at the scrape, so they say what CLI and API say. */
import type { SlotStage } from "../postgres/health.ts"
import { type HubSnapshot, type SchoolSnapshot, type Snapshot, type State, STATES } from "./snapshot.ts"

type Labels = Readonly<Record<string, string>>
type Sample = readonly [labels: Labels, value: number]

const escapeLabel = (text: string): string => text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n")

const family = (name: string, help: string, samples: ReadonlyArray<Sample>): string => {
  if (samples.length === 0) return ""
  const lines = samples.map(([labels, value]) => {
    const pairs = Object.entries(labels).map(([key, text]) => `${key}="${escapeLabel(text)}"`)
    return `schoolbus_${name}${pairs.length === 0 ? "" : `{${pairs.join(",")}}`} ${value}\n`
  })
  return `# HELP schoolbus_${name} ${help}\n# TYPE schoolbus_${name} gauge\n${lines.join("")}`
}

const some = (labels: Labels, value: number | null): ReadonlyArray<Sample> => (value === null ? [] : [[labels, value]])
const seconds = (time: string | null): number | null => (time === null ? null : Date.parse(time) / 1000)
const oneOf = <A extends string>(labels: Labels, label: string, all: ReadonlyArray<A>, is: A | string | null): ReadonlyArray<Sample> =>
  all.map((value) => [{ ...labels, [label]: value }, value === is ? 1 : 0])

const STAGES: ReadonlyArray<SlotStage> = ["ok", "warning", "critical", "lost", "making"]
const WAL_STATUSES = ["reserved", "extended", "unreserved", "lost"]

const hubFamilies = (hub: HubSnapshot): ReadonlyArray<string> => {
  const slot = hub.slot
  const labels = slot === null ? {} : { slot_name: slot.slot, database: slot.database }
  const ofSlot = (value: number | null): ReadonlyArray<Sample> => (slot === null ? [] : some(labels, value))
  const perSchool = (value: (school: HubSnapshot["schools"][number]) => number | null, extra: Labels = {}) =>
    hub.schools.flatMap((school) => some({ node: school.school, ...extra }, value(school)))
  return [
    family("postgres_up", "Whether Postgres answered the last question.", [[{}, hub.postgres ? 1 : 0]]),
    family("clock_ahead_seconds", "This computer's clock minus Postgres'.", some({}, hub.clockAheadMs == null ? null : hub.clockAheadMs / 1000)),
    family("stream_state", "State of the replication stream.", oneOf({}, "state", ["starting", "streaming", "standby", "down"], hub.stream.state)),
    family("slot_active", "Whether a consumer holds the slot.", ofSlot(slot === null ? null : slot.active ? 1 : 0)),
    family("slot_retained_bytes", "WAL that the server keeps because of the slot.", ofSlot(slot?.retainedBytes ?? null)),
    family("slot_lag_bytes", "WAL that the hub has not confirmed.", ofSlot(slot?.lagBytes ?? null)),
    family("slot_lag_seconds", "Age of the unconfirmed WAL.", ofSlot(slot?.lagSeconds ?? null)),
    family("slot_safe_wal_size_bytes", "WAL that may still be written before the slot is lost.", ofSlot(slot?.safeWalBytes ?? null)),
    family(
      "slot_wal_budget_used_ratio",
      "Share of max_slot_wal_keep_size (without one: of 4 GiB) that the slot holds.",
      ofSlot(slot === null ? null : slot.budgetUsed / 100),
    ),
    family("slot_stage", "How near the slot is to being lost.", slot === null ? [] : oneOf(labels, "stage", STAGES, slot.stage)),
    family("slot_inactive_since_timestamp_seconds", "Since when nobody holds the slot.", ofSlot(seconds(slot?.inactiveSince ?? null))),
    family(
      "slot_wal_status",
      "Whether the slot's WAL is still there.",
      slot === null ? [] : oneOf(labels, "wal_status", WAL_STATUSES, slot.walStatus),
    ),
    family(
      "table_state",
      "Whether each table's changes are taken.",
      hub.tables.flatMap((table) => oneOf({ table: table.table }, "state", ["active", "loading", "paused"], table.state ?? "active")),
    ),
    family(
      "node_state",
      "State of each school.",
      hub.schools.flatMap((school) => oneOf<State>({ node: school.school }, "state", STATES, school.state)),
    ),
    family(
      "node_last_seen_timestamp_seconds",
      "Last contact with each school.",
      perSchool((school) => seconds(school.lastSeenAt)),
    ),
    family("sync_pending_changes", "Changes that wait, by direction.", [
      ...perSchool((school) => school.lagRows, { direction: "down" }),
      ...perSchool((school) => school.pending, { direction: "up" }),
    ]),
    family(
      "sync_oldest_pending_timestamp_seconds",
      "Time of the oldest change that waits.",
      perSchool((school) => seconds(school.oldestPendingAt), { direction: "up" }),
    ),
    family(
      "conflicts_open",
      "Conflicts that wait for a person.",
      perSchool((school) => school.conflicts),
    ),
    family(
      "quarantined_changes",
      "Changes that could not be written, and rows that could not be shown.",
      perSchool((school) => school.failed),
    ),
    family(
      "snapshot_progress_ratio",
      "First copy of each table into the feed.",
      hub.progress.flatMap((p) => some({ table: p.table ?? "" }, p.total === 0 ? null : p.rows / p.total)),
    ),
  ]
}

const schoolFamilies = (school: SchoolSnapshot): ReadonlyArray<string> => {
  const node = { node: school.school ?? "" }
  return [
    family("node_state", "State of this school.", oneOf<State>(node, "state", STATES, school.state)),
    family("link_up", "Whether the hub is in contact.", [[node, school.link.state === "online" ? 1 : 0]]),
    family("node_last_seen_timestamp_seconds", "Last contact with the hub.", some(node, seconds(school.link.lastContactAt))),
    family(
      "clock_ahead_seconds",
      "This computer's clock minus head office's, at the last contact.",
      some(node, school.clockAheadMs == null ? null : school.clockAheadMs / 1000),
    ),
    family("sync_last_success_timestamp_seconds", "Last complete sync.", some(node, seconds(school.link.lastSyncAt))),
    family("sync_pending_changes", "Changes that wait, by direction.", [[{ ...node, direction: "up" }, school.totals.pending]]),
    family(
      "sync_oldest_pending_timestamp_seconds",
      "Time of the oldest change that waits.",
      some({ ...node, direction: "up" }, seconds(school.sending.oldestPendingAt)),
    ),
    family(
      "table_pending_changes",
      "Changes that wait, by table.",
      school.tables.map((table) => [{ table: table.table }, table.pending] as const),
    ),
    family("conflicts_open", "Conflicts that wait for a person.", [[node, school.totals.conflicts]]),
    family("quarantined_changes", "Changes that could not be written, and rows that could not be shown.", [[node, school.totals.failed]]),
    family(
      "snapshot_progress_ratio",
      "The cut under way.",
      school.progress.flatMap((p) => some(node, p.total === 0 ? null : p.rows / p.total)),
    ),
    family("devices", "Terminals, by whether a person has approved them.", [
      [{ state: "approved" }, school.devices.approved],
      [{ state: "waiting" }, school.devices.waiting],
    ]),
    family(
      "device_alerts",
      "Troubles of each terminal that a person should look at; a terminal without any is left out.",
      school.devices.alerts.map(({ serial, alerts }) => [{ serial }, alerts.length] as const),
    ),
    family(
      "worker_failed_events",
      "Events that a worker module could not handle.",
      school.workers.map((worker) => [{ module: worker.module }, worker.failed] as const),
    ),
  ]
}

export const metricsOf = (snapshot: Snapshot): string =>
  [
    family("build_info", "Version of this program.", [[{ version: snapshot.version, runtime: snapshot.runtime, role: snapshot.role }, 1]]),
    ...(snapshot.role === "hub" ? hubFamilies(snapshot) : schoolFamilies(snapshot)),
  ].join("")
