/**
 * Which state a node is in, from the facts (pure). The order of the rules is the order of what a person must know first:
 * a named stop, then a person's own pause, then contact, then work.
 */
import { cureOf, isLocked } from "../libsql/cure.ts"
import type { State } from "./snapshot.ts"

/** A school that was not heard for this long is offline: a long poll ends every 25 s, and a half-open one is found in 45 s. */
export const OFFLINE_AFTER_MS = 90_000
/** Clocks that are further apart are worth a word. An answer over a bad line takes seconds. */
const CLOCK_OFF_MS = 120_000
/** With the link up, nothing may wait this long without moving. */
export const STUCK_AFTER_MS = 15 * 60_000
/** More rows than this to come are a catch-up; fewer are just traffic. */
export const CATCH_UP_ROWS = 1_000

export interface Judged {
  readonly state: State
  /** Why, with the remedy; "" when there is nothing to say. */
  readonly reason: string
}

export interface SchoolOwnFacts {
  readonly link: "connecting" | "online" | "offline" | "stopped"
  readonly linkDetail: string
  /** Why the file is not where programs look for it; "" or absent = it is. */
  readonly file?: string
  /** Named stop of `schoolbus_state`; null = none. */
  readonly stop: string | null
  readonly paused: boolean
  /** A table whose writes went uncaptured, and why; null = none. */
  readonly gap: string | null
  /** Tables that pause because they do not fit, and what mends it; null or absent = none. */
  readonly unfit?: string | null
  /** True once a cut has been applied. */
  readonly hasCut: boolean
  /** A cut is being received or applied: rows in all, 0 = none. */
  readonly comingRows: number
  readonly pending: number
  /** Of them, frozen into batches: sent, or being sent, and not yet settled. */
  readonly sending: number
  /** A metered link that is not used now, and why; absent = it is. */
  readonly waits?: "budget" | "hours" | null
  /** What head office has paused, one sentence a table; absent = nothing. Nobody in the school can mend it, so the state stays as it is. */
  readonly pausedTables?: ReadonlyArray<string>
  /** This computer's clock minus head office's, ms; null or absent = not known. */
  readonly clockAheadMs?: number | null
  /** How long nothing has moved: since the oldest pending change, the last answer and the link's coming up, whichever was last. */
  readonly standingMs: number
}

export const judgeSchool = (facts: SchoolOwnFacts): Judged => {
  const { state, reason } = judgeFlows(facts)
  return { state, reason: [reason, ...(facts.pausedTables ?? []), clockText(facts.clockAheadMs ?? 0)].filter((text) => text !== "").join("; ") }
}

const UNITS = [
  ["day", 86_400_000],
  ["hour", 3_600_000],
  ["minute", 60_000],
] as const

/**
 * In a school nothing that the sync decides depends on it; dates that programs write do, and terminals take their time from here. By the
 * hub's, captures of all schools are told beside the commit times of Postgres.
 */
export const clockText = (aheadMs: number, whose = "head office's"): string => {
  const off = Math.abs(aheadMs)
  if (off <= CLOCK_OFF_MS) return ""
  const [unit, ms] = UNITS.find(([, length]) => off >= 2 * length) ?? UNITS[2]
  const side = aheadMs > 0 ? "ahead of" : "behind"
  return `the clock of this computer is ${grouped(Math.round(off / ms))} ${unit}s ${side} ${whose}; set it, and let it be set: timedatectl set-ntp true`
}

const judgeFlows = (facts: SchoolOwnFacts): Judged => {
  if (facts.stop !== null) return { state: "stuck", reason: (facts.link === "stopped" && facts.linkDetail) || stopReason(facts.stop) }
  if (facts.link === "stopped") return { state: "stuck", reason: facts.linkDetail || "the hub refuses this node; see its log" }
  if (facts.file !== undefined && facts.file !== "") return { state: "stuck", reason: facts.file }
  // The link's words when the school's own file is what fails.
  const cure = cureOf(facts.linkDetail)
  const isWaiting = isLocked(facts.linkDetail)
  if (cure !== null && !isWaiting) return { state: "stuck", reason: `the school's file cannot be used (${facts.linkDetail}): ${cure}` }
  const detail = isWaiting ? `${facts.linkDetail}: ${cure}` : facts.linkDetail
  if (facts.paused) return { state: "paused", reason: "paused at head office; resume with: schoolbus schools resume" }
  const wait = facts.waits == null ? "" : waitReason(facts.waits)
  if (!facts.hasCut) return { state: "new", reason: detail || wait }
  if (facts.link !== "online")
    return { state: "offline", reason: [detail, facts.unfit, facts.gap].filter((text) => text != null && text !== "").join("; ") }
  // Whatever the others do, a person must act.
  if (facts.unfit != null) return { state: "stuck", reason: facts.unfit }
  if (facts.gap !== null) return { state: "syncing", reason: facts.gap }
  if (wait !== "")
    return facts.pending > 0 ? { state: "pending", reason: wait } : { state: facts.comingRows > 0 ? "catching_up" : "up_to_date", reason: wait }
  if (facts.pending > 0 && facts.standingMs > STUCK_AFTER_MS && facts.comingRows === 0) {
    return { state: "stuck", reason: detail || "changes do not leave although the link is up; see: schoolbus conflicts list, and the log" }
  }
  if (facts.comingRows > CATCH_UP_ROWS) return { state: "catching_up", reason: detail }
  if (facts.comingRows > 0 || facts.sending > 0) return { state: "syncing", reason: detail }
  if (facts.pending > 0) return { state: "pending", reason: detail }
  // What could not be done in the file is not done yet, whatever it was.
  return { state: /^(SQLITE_|CAPTURE_GAP)/.test(facts.linkDetail) ? "syncing" : "up_to_date", reason: detail }
}

const waitReason = (waits: "budget" | "hours"): string =>
  waits === "budget"
    ? "the day's budget of the metered link is used up; it goes on at midnight, or at once with: schoolbus sync"
    : "outside the hours of the metered link; it goes on when they begin, or at once with: schoolbus sync"

/** The words for a named stop when the link has not given better ones. */
export const stopReason = (stop: string): string => {
  switch (stop) {
    case "cloned":
      return "two copies of this school's file are in use; stop one of the two, and start the other once with --new-life"
    case "restored":
      return "this file is an older copy than the hub knows; start the node once with --new-life"
    case "wrong_school":
      return "this file belongs to another school than the key; start the node with the right key, or with another --data-dir"
    case "batch_lost":
      return "head office was put back to a state so old that the way from there is not kept here; start the node once with --new-life"
    case "wrong_cluster":
      return "the hub belongs to another Postgres than the one this file was filled from; check --hub, or start the node once with --new-life"
    case "schema_ahead":
      return "head office's tables need a newer schoolbus here; update this program"
    case "unauthorized":
      return "the hub does not know this key; ask head office for a new one (schoolbus schools rotate-key)"
    default:
      return stop
  }
}

export interface SchoolSeenFacts {
  readonly now: number
  readonly paused: boolean
  /** False: no file of this school has ever applied a cut. */
  readonly hasCut: boolean
  readonly connected: boolean
  /** ms since 1970; 0 = never. */
  readonly seenAt: number
  readonly lagRows: number
  /** How long its cursor has stood still while rows waited for it, ms. */
  readonly stalledMs: number
  /** The school's own last word about itself; null = none yet. */
  readonly said: {
    readonly state: string
    readonly reason: string | null
    readonly pending: number
    readonly oldestPendingAt: number | null
    /** Over a metered link: how long it said that it would be silent, ms. */
    readonly quietMs?: number
  } | null
}

export const judgeSeen = (facts: SchoolSeenFacts): Judged => {
  if (facts.paused) return { state: "paused", reason: "paused by head office; resume with: schoolbus schools resume" }
  if (facts.seenAt === 0) return { state: "new", reason: "has never been in contact" }
  // A stop outlives the contact: a node that waits for a person no longer calls.
  if (facts.said?.state === "stuck") return { state: "stuck", reason: facts.said.reason ?? "the school says that it is stuck" }
  if (!facts.connected && Math.abs(facts.now - facts.seenAt) > OFFLINE_AFTER_MS + (facts.said?.quietMs ?? 0))
    return { state: facts.hasCut ? "offline" : "new", reason: "" }
  if (!facts.hasCut) return { state: "new", reason: "first copy under way" }
  if (facts.said?.state === "catching_up") return { state: "catching_up", reason: facts.said.reason ?? "" }
  if (facts.lagRows > 0 && facts.stalledMs > STUCK_AFTER_MS) {
    return { state: "stuck", reason: "is in contact but does not take its rows; see the school's own status and log" }
  }
  if (facts.lagRows > CATCH_UP_ROWS) return { state: "catching_up", reason: "" }
  if (facts.lagRows > 0) return { state: "syncing", reason: "" }
  if ((facts.said?.pending ?? 0) > 0) return { state: facts.said?.state === "syncing" ? "syncing" : "pending", reason: facts.said?.reason ?? "" }
  return { state: "up_to_date", reason: facts.said?.reason ?? "" }
}

/** Why a table's changes are not taken, and how they go on. */
export const pauseText = (table: string, reason: string): string => `${reason}; its changes wait until: schoolbus tables resume ${table}`

export interface HubOwnFacts {
  readonly postgres: boolean
  readonly stream: "starting" | "streaming" | "standby" | "down"
  readonly streamDetail: string
  /** Why Postgres did not say how its slot is. */
  readonly fault?: string | null
  /** This computer's clock minus Postgres', ms; null or absent = not known. */
  readonly clockAheadMs?: number | null
  readonly walStatus: string | null
  readonly loading: number
  /** Why tables are paused, one sentence each. */
  readonly paused?: ReadonlyArray<string>
  readonly schools: ReadonlyArray<State>
}

/** The hub's own state: what is wrong here first, then the sum of its schools. A school that is away is not the hub's fault. */
export const judgeHub = (facts: HubOwnFacts): Judged => {
  const { state, reason } = judgeStream(facts)
  return { state, reason: [reason, clockText(facts.clockAheadMs ?? 0, POSTGRES_CLOCK)].filter((text) => text !== "").join("; ") }
}

export const POSTGRES_CLOCK = "Postgres'"

const judgeStream = (facts: HubOwnFacts): Judged => {
  if (!facts.postgres)
    return {
      state: "offline",
      reason: facts.streamDetail || facts.fault || "Postgres does not answer; check that it runs and that --database-url is right",
    }
  if (facts.walStatus === "lost")
    return {
      state: "stuck",
      reason: facts.streamDetail || "the slot is lost: Postgres removed WAL that it needed; restart the hub, it compares and goes on",
    }
  if (facts.stream === "down") return { state: "stuck", reason: facts.streamDetail || "the replication stream is down; see the log" }
  if (facts.stream === "standby") return { state: "paused", reason: facts.streamDetail || "standby: another hub holds the slot" }
  if (facts.stream === "starting") return { state: "new", reason: facts.streamDetail || facts.fault || "starting" }
  if (facts.fault != null) return { state: "stuck", reason: facts.fault }
  const [paused] = facts.paused ?? []
  if (paused !== undefined)
    return { state: "stuck", reason: (facts.paused ?? []).length === 1 ? paused : `${facts.paused?.length} tables are paused: ${paused}` }
  if (facts.loading > 0) return { state: "catching_up", reason: "the first copy of Postgres into the feed is under way" }
  const has = (state: State) => facts.schools.includes(state)
  const state: State = has("stuck")
    ? "stuck"
    : has("catching_up")
      ? "catching_up"
      : has("syncing")
        ? "syncing"
        : has("pending")
          ? "pending"
          : "up_to_date"
  return { state, reason: state === "stuck" ? `${facts.schools.filter((s) => s === "stuck").length} school(s) need help` : facts.streamDetail }
}

const LABELS: Readonly<Record<State, string>> = {
  up_to_date: "Up to date",
  syncing: "Syncing",
  catching_up: "Catching up",
  pending: "Waiting to send",
  offline: "Offline",
  paused: "Paused",
  stuck: "Needs help",
  new: "Not complete yet",
}

export const labelOf = (state: State): string => LABELS[state]

const grouped = (n: number): string => n.toLocaleString("en-US")
const count = (n: number, one: string, many: string): string => `${grouped(n)} ${n === 1 ? one : many}`

export interface Sentence {
  readonly state: State
  readonly reason: string
  readonly pending: number
  readonly failed: number
  readonly conflicts: number
  readonly progress: { readonly rows: number; readonly total: number } | null
}

const decisions = (n: number): ReadonlyArray<string> =>
  n === 0 ? [] : [`${count(n, "conflict needs", "conflicts need")} a decision (schoolbus conflicts list)`]

/** `"Waiting to send: 1,204 changes wait; 1 conflict needs a decision (schoolbus conflicts list)"`. */
export const schoolSentence = (s: Sentence): string => {
  const parts = [
    ...(s.reason === "" ? [] : [s.reason]),
    ...(s.progress === null || s.progress.total === 0 ? [] : [`${grouped(s.progress.rows)} of ${count(s.progress.total, "row", "rows")} received`]),
    ...(s.pending === 0 ? [] : [`${count(s.pending, "change waits", "changes wait")} for head office`]),
    ...(s.failed === 0 ? [] : [`${count(s.failed, "row", "rows")} could not be synced (why: schoolbus quarantine list, tables list)`]),
    ...decisions(s.conflicts),
  ]
  return parts.length === 0 ? labelOf(s.state) : `${labelOf(s.state)}: ${parts.join("; ")}`
}

/** `"Up to date: 12 schools, 2 offline; 1 conflict needs a decision (schoolbus conflicts list)"`. */
export const hubSentence = (s: Omit<Sentence, "progress">, schools: ReadonlyArray<State>, isStreaming = true): string => {
  const of = (state: State, word: string) => {
    const n = schools.filter((other) => other === state).length
    return n === 0 ? [] : [`${n} ${word}`]
  }
  const fleet = [
    count(schools.length, "school", "schools"),
    ...of("offline", "offline"),
    ...of("stuck", "stuck"),
    ...of("paused", "paused"),
    ...of("new", "new"),
  ].join(", ")
  const parts = [
    ...(s.reason === "" ? [] : [s.reason]),
    // Before its stream has begun, and as a standby, a hub may not know them yet.
    ...(schools.length > 0 ? [fleet] : isStreaming ? ["no school is enrolled (schoolbus schools add)"] : []),
    ...(s.pending === 0 ? [] : [`${count(s.pending, "row", "rows")} on the way to schools`]),
    ...(s.failed === 0 ? [] : [`${count(s.failed, "change is", "changes are")} quarantined (schoolbus quarantine list)`]),
    ...decisions(s.conflicts),
  ]
  return `${labelOf(s.state)}: ${parts.join("; ")}`
}
