/**
 * Is this node healthy (pure)? The Nagios answer, and `GET /api/sync/health`. Healthy means progress from end to end, not a
 * living process: no data, nobody connected, or nobody enrolled is never OK.
 */
import { clockText, POSTGRES_CLOCK } from "./judge.ts"
import type { HubSnapshot, SchoolSnapshot, Snapshot } from "./snapshot.ts"

/** Exit codes of a Nagios plugin: 0 to 3. */
export type Level = "OK" | "WARNING" | "CRITICAL" | "UNKNOWN"
export const exitOf: Readonly<Record<Level, number>> = { OK: 0, WARNING: 1, CRITICAL: 2, UNKNOWN: 3 }

export interface CheckItem {
  readonly id: CheckId
  readonly level: Level
  readonly message: string
}
/** `slots` and `nodes` exist at the hub, `link` and `verify` in a school. */
export type CheckId = "postgres" | "stream" | "tables" | "slots" | "nodes" | "link" | "clock" | "lag" | "conflicts" | "devices" | "verify"

/** One value for graphs: `label=value[unit];warning;critical;min`. */
interface Perf {
  readonly label: string
  readonly value: number
  readonly unit?: "B" | "s"
  readonly warning?: number
  readonly critical?: number
}

/** Bounds of one check; absent = its own defaults. What is counted is said beside each default. */
export interface Bounds {
  readonly warning?: number
  readonly critical?: number
}

export interface Checked {
  readonly level: Level
  /** `"SCHOOLBUS WARNING - 2 of 12 schools offline | nodes_offline=2;1;5;0"` */
  readonly line: string
  readonly items: ReadonlyArray<CheckItem>
}

const GIB = 1024 ** 3
const HOUR_S = 3600

/** slots: bytes held back · nodes: schools offline · lag: seconds the oldest change waits · link: seconds without contact · conflicts: open ones. */
export const DEFAULT_BOUNDS = {
  slots: { warning: GIB, critical: 4 * GIB },
  nodes: { warning: 1, critical: Number.POSITIVE_INFINITY },
  lag: { warning: HOUR_S, critical: 24 * HOUR_S },
  link: { warning: 300, critical: 24 * HOUR_S },
  conflicts: { warning: 1, critical: Number.POSITIVE_INFINITY },
} as const

/** Before the slot is lost, whatever the bounds are. */
const STAGES: Readonly<Record<NonNullable<HubSnapshot["slot"]>["stage"], Level>> = {
  ok: "OK",
  warning: "WARNING",
  critical: "CRITICAL",
  lost: "CRITICAL",
  making: "WARNING",
}

type Bounded = keyof typeof DEFAULT_BOUNDS

const graded = (value: number, bounds: { readonly warning: number; readonly critical: number }): Level =>
  value >= bounds.critical ? "CRITICAL" : value >= bounds.warning ? "WARNING" : "OK"

const bytes = (n: number): string =>
  n >= GIB ? `${(n / GIB).toFixed(1)}GiB` : n >= 1024 ** 2 ? `${(n / 1024 ** 2).toFixed(1)}MiB` : `${Math.round(n / 1024)}KiB`

/** `"3 h"`, `"12 min"`, `"40 s"`. */
export const ago = (seconds: number): string =>
  seconds >= 2 * 86400
    ? `${Math.floor(seconds / 86400)} d`
    : seconds >= HOUR_S
      ? `${Math.floor(seconds / HOUR_S)} h`
      : seconds >= 60
        ? `${Math.floor(seconds / 60)} min`
        : `${Math.max(0, Math.floor(seconds))} s`

interface Found {
  readonly items: Array<CheckItem>
  readonly perf: Array<Perf>
}

type BoundsOf = (id: Bounded) => { readonly warning: number; readonly critical: number }

const secondsSince = (asOf: string, time: string | null): number | null =>
  time === null ? null : Math.max(0, (Date.parse(asOf) - Date.parse(time)) / 1000)

const oldest = (asOf: string, times: ReadonlyArray<string | null>): number => Math.max(0, ...times.flatMap((time) => secondsSince(asOf, time) ?? []))

const checkHub = (hub: HubSnapshot, boundsOf: BoundsOf, { items, perf }: Found): void => {
  const push = (id: CheckId, level: Level, message: string) => void items.push({ id, level, message })
  push(
    "postgres",
    hub.postgres && hub.fault === null ? "OK" : "CRITICAL",
    hub.fault ?? (hub.postgres ? "Postgres answers" : "Postgres does not answer"),
  )

  const clock = clockText(hub.clockAheadMs ?? 0, POSTGRES_CLOCK)
  push("clock", clock === "" ? "OK" : "WARNING", clock === "" ? "as Postgres'" : clock)
  if (hub.clockAheadMs != null) perf.push({ label: "clock_ahead", value: Math.round(hub.clockAheadMs / 1000), unit: "s" })

  const { state, detail } = hub.stream
  push("stream", state === "streaming" ? "OK" : state === "down" ? "CRITICAL" : "WARNING", `stream ${state}${detail === "" ? "" : `: ${detail}`}`)

  const halted = hub.tables.filter((table) => table.state === "paused")
  const loading = hub.tables.filter((table) => table.state === "loading").length
  push(
    "tables",
    halted.length > 0 ? "CRITICAL" : "OK",
    halted.length > 0
      ? `${halted.length} of ${hub.tables.length} tables paused: ${halted[0]?.reason ?? halted[0]?.table}`
      : loading > 0
        ? `${loading} of ${hub.tables.length} tables are being read`
        : `${hub.tables.length} tables flow`,
  )
  perf.push({ label: "tables_paused", value: halted.length })

  const slot = hub.slot
  if (slot === null)
    push(
      "slots",
      hub.postgres && hub.fault === null ? "CRITICAL" : "UNKNOWN",
      hub.postgres && hub.fault === null ? "the hub's slot does not exist" : "slot unknown: Postgres does not say",
    )
  else {
    const bounds = boundsOf("slots")
    const held = slot.retainedBytes ?? 0
    const bad = slot.walStatus === "lost" || slot.walStatus === "unreserved"
    const staged = STAGES[slot.stage]
    const byBytes = graded(held, bounds)
    const level = bad ? "CRITICAL" : RANK.indexOf(staged) > RANK.indexOf(byBytes) ? staged : byBytes
    const isMaking = slot.stage === "making"
    const used = slot.stage === "ok" ? "" : isMaking ? `: ${slot.advice}` : `, ${slot.budgetUsed} % of ${bytes(slot.budgetBytes)}: ${slot.advice}`
    push("slots", level, `slot ${slot.slot} ${isMaking ? "is being made" : bad ? `is ${slot.walStatus}` : `holds ${bytes(held)}`}${used}`)
    perf.push({ label: "retained", value: held, unit: "B", ...bounds })
  }

  const offline = hub.schools.filter((school) => school.state === "offline")
  const stuck = hub.schools.filter((school) => school.state === "stuck")
  const active = hub.schools.filter((school) => school.state !== "new" && school.state !== "paused")
  const bounds = boundsOf("nodes")
  const names = (schools: ReadonlyArray<{ readonly school: string }>) =>
    schools.length > 5
      ? `${schools
          .slice(0, 5)
          .map((s) => s.school)
          .join(", ")}, …`
      : schools.map((s) => s.school).join(", ")
  if (hub.schools.length === 0)
    push("nodes", "UNKNOWN", state === "streaming" ? "no school is enrolled" : "schools are not known before the stream has begun")
  else if (stuck.length > 0) push("nodes", "CRITICAL", `${stuck.length} of ${hub.schools.length} schools need help: ${names(stuck)}`)
  else if (active.length === 0) push("nodes", "UNKNOWN", "no school has completed its first copy")
  else if (offline.length === active.length) push("nodes", "CRITICAL", `no school is connected: ${names(offline)} offline`)
  else if (offline.length > 0)
    push("nodes", graded(offline.length, bounds), `${offline.length} of ${hub.schools.length} schools offline: ${names(offline)}`)
  else push("nodes", "OK", `${active.length} of ${hub.schools.length} schools in contact`)
  perf.push({ label: "nodes_offline", value: offline.length, ...bounds })

  // Schools that are away are counted above; their backlog is no second alarm.
  const waiting = oldest(
    hub.asOf,
    hub.schools.filter((school) => school.state !== "offline" && school.state !== "paused").map((school) => school.oldestPendingAt),
  )
  push("lag", graded(waiting, boundsOf("lag")), waiting === 0 ? "nothing waits in connected schools" : `oldest change waits ${ago(waiting)}`)
  perf.push({ label: "oldest_pending", value: Math.round(waiting), unit: "s", ...boundsOf("lag") })
  checkConflicts(hub, boundsOf, { items, perf })
}

const checkConflicts = (snapshot: Snapshot, boundsOf: BoundsOf, { items, perf }: Found): void => {
  const { conflicts, failed } = snapshot.totals
  const n = conflicts + failed
  items.push({
    id: "conflicts",
    level: graded(n, boundsOf("conflicts")),
    message: n === 0 ? "no open conflicts" : `${conflicts} conflicts open, ${failed} rows not synced`,
  })
  perf.push({ label: "open_conflicts", value: conflicts, ...boundsOf("conflicts") }, { label: "failed", value: failed })
}

const checkSchool = (school: SchoolSnapshot, boundsOf: BoundsOf, { items, perf }: Found): void => {
  const push = (id: CheckId, level: Level, message: string) => void items.push({ id, level, message })
  const silent = secondsSince(school.asOf, school.link.lastContactAt)
  const bounds = boundsOf("link")
  if (school.state === "stuck") push("link", "CRITICAL", school.reason || "needs help")
  else if (school.state === "paused") push("link", "WARNING", school.reason || "paused")
  else if (silent === null) push("link", "UNKNOWN", `has never reached the hub${school.link.detail === "" ? "" : `: ${school.link.detail}`}`)
  else if (school.link.state !== "online")
    push("link", silent >= bounds.critical ? "CRITICAL" : "WARNING", `offline, last contact ${ago(silent)} ago`)
  else if (school.state === "new") push("link", "WARNING", "first copy not complete")
  else push("link", graded(silent, bounds), `in contact, ${ago(silent)} ago`)
  const clock = clockText(school.clockAheadMs ?? 0)
  push("clock", clock === "" ? "OK" : "WARNING", clock === "" ? "as head office's" : clock)
  if (school.clockAheadMs != null) perf.push({ label: "clock_ahead", value: Math.round(school.clockAheadMs / 1000), unit: "s" })
  if (silent !== null) perf.push({ label: "last_contact", value: Math.round(silent), unit: "s", ...bounds })

  const faulty = school.tables.filter(({ fault }) => fault !== undefined)
  // One that head office has paused has no fault here, and nobody here can mend it.
  const held = school.tables.flatMap(({ state, fault, reason }) => (state === "paused" && fault === undefined ? [reason ?? ""] : []))
  const isUnfit = faulty.some((table) => table.state === "paused")
  const told = [...faulty.map(({ table, fault }) => `${table}: ${fault}`), ...held]
  push("tables", isUnfit ? "CRITICAL" : told.length > 0 ? "WARNING" : "OK", told.length > 0 ? told.join("; ") : `${school.tables.length} tables flow`)
  const waiting = secondsSince(school.asOf, school.sending.oldestPendingAt) ?? 0
  push(
    "lag",
    graded(waiting, boundsOf("lag")),
    school.totals.pending === 0 ? "nothing waits" : `${school.totals.pending} changes wait, the oldest ${ago(waiting)}`,
  )
  perf.push(
    { label: "pending", value: school.totals.pending },
    { label: "oldest_pending", value: Math.round(waiting), unit: "s", ...boundsOf("lag") },
  )
  checkConflicts(school, boundsOf, { items, perf })
  const left = school.verified?.left ?? 0
  if (left > 0) push("verify", "WARNING", `${left} rows differ from head office: schoolbus verify --repair`)
  else push("verify", "OK", school.verified === null ? "not compared with head office yet" : "equal with head office")
  if (school.devices.waiting > 0) push("devices", "WARNING", `${school.devices.waiting} terminal(s) wait for approval`)
  else if (school.devices.alerts.length > 0) push("devices", "WARNING", alertSentence(school.devices.alerts))
  else push("devices", "OK", `${school.devices.approved} terminal(s)`)
  perf.push({ label: "device_alerts", value: school.devices.alerts.length })
}

const alertSentence = ([first, ...others]: SchoolSnapshot["devices"]["alerts"]): string =>
  `terminal ${first?.name ?? ""}: ${first?.alerts.join("; ") ?? ""}${others.length === 0 ? "" : `; ${others.length} more: schoolbus devices list`}`

const RANK: ReadonlyArray<Level> = ["OK", "UNKNOWN", "WARNING", "CRITICAL"]
const worst = (items: ReadonlyArray<CheckItem>): Level =>
  items.reduce<Level>((w, item) => (RANK.indexOf(item.level) > RANK.indexOf(w) ? item.level : w), "OK")

const bound = (n: number | undefined): string => (n === undefined || !Number.isFinite(n) ? "" : String(n))
const perfText = (p: Perf): string => `${p.label}=${p.value}${p.unit ?? ""};${bound(p.warning)};${bound(p.critical)};0`

/** One Nagios line: no `|` or line break may come from a name or a detail. */
export const nagiosLine = (level: Level, message: string, perf: ReadonlyArray<Perf> = []): string =>
  `SCHOOLBUS ${level} - ${message.replaceAll("|", "/").replace(/\s+/g, " ").trim()}${perf.length === 0 ? "" : ` | ${perf.map(perfText).join(" ")}`}`

/** With `only`, a single check and its bounds; otherwise all of them with the defaults. */
export const checkOf = (snapshot: Snapshot, only?: CheckId, given: Bounds = {}): Checked => {
  const boundsOf: BoundsOf = (id) => ({
    warning: (id === only ? given.warning : undefined) ?? DEFAULT_BOUNDS[id].warning,
    critical: (id === only ? given.critical : undefined) ?? DEFAULT_BOUNDS[id].critical,
  })
  const found: Found = { items: [], perf: [] }
  if (snapshot.role === "hub") checkHub(snapshot, boundsOf, found)
  else checkSchool(snapshot, boundsOf, found)
  const items = only === undefined ? found.items : found.items.filter((item) => item.id === only)
  const perf = only === undefined ? found.perf : found.perf.filter((p) => PERF_OF[only].includes(p.label))
  if (items.length === 0) {
    const line = nagiosLine(
      "UNKNOWN",
      `a ${snapshot.role} has no check "${only ?? ""}"; it has ${[...new Set(found.items.map((item) => item.id))].join(", ")}`,
    )
    return { level: "UNKNOWN", line, items }
  }
  const level = worst(items)
  const said = items.filter((item) => item.level === level || (level !== "OK" && item.level !== "OK"))
  const message = level === "OK" && only === undefined ? snapshot.summary : said.map((item) => item.message).join("; ")
  return { level, line: nagiosLine(level, message, perf), items }
}

const PERF_OF: Readonly<Record<CheckId, ReadonlyArray<string>>> = {
  postgres: [],
  stream: [],
  tables: ["tables_paused"],
  slots: ["retained"],
  nodes: ["nodes_offline"],
  link: ["last_contact"],
  clock: ["clock_ahead"],
  lag: ["pending", "oldest_pending"],
  conflicts: ["open_conflicts", "failed"],
  devices: [],
  verify: [],
}
