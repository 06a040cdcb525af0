/** `status`: the snapshot for people, or as it is for programs. */
import { ago } from "../status/check.ts"
import { labelOf } from "../status/judge.ts"
import type { HubSnapshot, MeteredView, Progress, SchoolSnapshot, Snapshot, TableStatus } from "../status/snapshot.ts"
import { apiOf } from "./api.ts"
import type { Io } from "./io.ts"
import { EXIT, type Input } from "./options.ts"
import { bold, clean, countText, dim, type Look, red, sizeText, stateText, table, yellow } from "./text.ts"

const WATCH_MS = 2_000

const since = (snapshot: Snapshot, time: string | null): string =>
  time === null ? "never" : `${ago((Date.parse(snapshot.asOf) - Date.parse(time)) / 1000)} ago`

const alarm = (look: Look, n: number): string => (n === 0 ? "0" : yellow(look, countText(n)))

/** Tables of terminals stand here only where there are any. */
const isWorthShowing = (t: TableStatus): boolean => !t.table.startsWith("schoolbus.") || t.pending + t.failed + t.synced + t.conflicts > 0

const tableLines = (look: Look, all: ReadonlyArray<TableStatus>): string => {
  const tables = all.filter(isWorthShowing)
  return tables.length === 0
    ? ""
    : `\n${table(
        look,
        [
          { title: "Table" },
          { title: "Pending", right: true },
          { title: "Failed", right: true },
          { title: "Synced", right: true },
          { title: "Conflicts", right: true },
        ],
        tables.map((t) => [clean(t.table), countText(t.pending), alarm(look, t.failed), countText(t.synced), alarm(look, t.conflicts)]),
      )}`
}

const nobodyLines = (all: ReadonlyArray<TableStatus>): string => {
  const some = all.flatMap((t) => (t.nobody === undefined || t.nobody === 0 ? [] : [`${clean(t.table)} ${countText(t.nobody)}`]))
  return some.length === 0 ? "" : `Rows that no school sees (their audience is empty or names no enrolled school): ${some.join(", ")}\n`
}

const progressText = (p: Progress): string => {
  const percent = p.total === 0 ? null : (p.percent ?? Math.floor((100 * p.rows) / p.total))
  const bytes = p.bytes === undefined || p.totalBytes === undefined ? "" : `, ${sizeText(p.bytes)} of ${sizeText(p.totalBytes)}`
  return `${countText(p.rows)} of ${countText(p.total)} rows${bytes}${percent === null ? "" : ` (${percent} %)`}`
}

/** As the budget is given. */
const megabytes = (bytes: number): string => `${Number((bytes / 1_000_000).toFixed(1)).toLocaleString("en-US")} MB`

const meteredText = (m: MeteredView): string => {
  const used = m.budgetBytes === null ? megabytes(m.usedBytes) : `${megabytes(m.usedBytes)} of ${megabytes(m.budgetBytes)}`
  return `Metered link: a sync every ${m.cycleMinutes} min${m.hours === "" ? "" : `, ${m.hours}`}; ${used} used today\n`
}

const progressLines = (snapshot: Snapshot): string =>
  snapshot.progress.map((p) => `${p.table === null ? "Receiving" : `First copy of ${clean(p.table)}`}: ${progressText(p)}\n`).join("")

const hubLines = (look: Look, hub: HubSnapshot): string => {
  const slot = hub.slot
  const left = slot?.timeLeftSeconds ?? null
  return [
    hub.schools.length === 0
      ? hub.stream.state === "streaming"
        ? `\nNo school is enrolled yet: schoolbus schools add ID --name NAME\n`
        : "\nSchools are not known before the stream has begun\n"
      : `\n${table(
          look,
          [
            { title: "School" },
            { title: "Name" },
            { title: "State" },
            { title: "Last seen" },
            { title: "To receive", right: true },
            { title: "To send", right: true },
            { title: "Conflicts", right: true },
            { title: "Failed", right: true },
          ],
          hub.schools.map((s) => [
            clean(s.school),
            clean(s.name),
            stateText(look, s.state),
            since(hub, s.lastSeenAt),
            countText(s.lagRows),
            countText(s.pending),
            alarm(look, s.conflicts),
            alarm(look, s.failed),
          ]),
        )}`,
    ...hub.schools.flatMap((s) => (s.progress == null ? [] : [`${clean(s.school)} is receiving: ${progressText(s.progress)}\n`])),
    ...hub.schools.filter((s) => s.state === "stuck" && s.reason !== "").map((s) => `${red(look, clean(s.school))}: ${clean(s.reason)}\n`),
    tableLines(look, hub.tables),
    nobodyLines(hub.tables),
    slot === null
      ? "\nSlot: not known\n"
      : `\nSlot ${clean(slot.slot)}: ${slot.stage === "making" ? yellow(look, "being made") : slot.active ? "active" : red(look, "nobody reads it")}, WAL ${slot.walStatus ?? "-"}, ${sizeText(slot.retainedBytes)} held back, ${sizeText(slot.lagBytes)} behind${left === null ? "" : `, lost in about ${ago(left)} if nobody reads it`}\n`,
  ].join("")
}

const schoolLines = (look: Look, school: SchoolSnapshot): string =>
  [
    `Link: ${school.link.state}, last contact ${since(school, school.link.lastContactAt)}, last complete sync ${since(school, school.link.lastSyncAt)}\n`,
    `To send: ${countText(school.totals.pending)} changes${school.sending.oldestPendingAt === null ? "" : `, the oldest from ${since(school, school.sending.oldestPendingAt)}`}\n`,
    school.metered == null ? "" : meteredText(school.metered),
    school.devices.total === 0 ? "" : `Terminals: ${school.devices.approved} approved, ${school.devices.waiting} waiting for approval\n`,
    school.verified === null
      ? ""
      : `Compared with head office ${since(school, school.verified.at)}: ${school.verified.left === 0 ? "equal" : `${alarm(look, school.verified.left)} rows differ; schoolbus verify --repair`}\n`,
    ...school.workers
      .filter((w) => w.failed > 0)
      .map((w) => `Worker ${clean(w.module)}: ${alarm(look, w.failed)} events failed${w.error === null ? "" : ` (${clean(w.error)})`}\n`),
    tableLines(look, school.tables),
  ].join("")

/** Exported for its test. */
export const statusText = (look: Look, snapshot: Snapshot): string => {
  const who = snapshot.role === "hub" ? "Hub" : `School ${clean(snapshot.name ?? snapshot.school ?? "(not yet known to the hub)")}`
  const rest = clean(snapshot.summary).slice(labelOf(snapshot.state).length).replace(/^: /, "")
  return [
    `${bold(look, who)}  ${stateText(look, snapshot.state)}  ${dim(look, `as of ${snapshot.asOf.slice(0, 19).replace("T", " ")} UTC`)}\n`,
    rest === "" ? "" : `${rest}\n`,
    progressLines(snapshot),
    snapshot.role === "hub" ? hubLines(look, snapshot) : schoolLines(look, snapshot),
  ].join("")
}

export const run = async (input: Input, io: Io): Promise<number> => {
  const api = apiOf(input)
  const school = input.textOr("school", null)
  const path = `/api/sync/status${school === null ? "" : `?school=${encodeURIComponent(school)}`}`
  for (;;) {
    const snapshot = await api.get<Snapshot>(path)
    io.out(input.flag("json") ? `${JSON.stringify(snapshot)}\n` : statusText(io.look, snapshot))
    if (!input.flag("watch")) return EXIT.ok
    await new Promise((done) => setTimeout(done, WATCH_MS))
    if (io.lost() !== null) return EXIT.ok
    if (!input.flag("json")) io.out("\n")
  }
}
