/** A school node's status: everything from its own file and the flows' own words, so that it is there without any network. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { readAlerts } from "../iclock/alerts.ts"
import { Devices } from "../iclock/devices.ts"
import { clockAhead } from "../libsql/contact.ts"
import { ident, Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
import { dayOf, trafficOf } from "../libsql/traffic.ts"
import { printHours } from "../link/metered.ts"
import type { PausedTable } from "../link/protocol.ts"
import { readGaps, readTriggerFaults } from "../libsql/gap.ts"
import { readUnenforced, unenforcedText } from "../libsql/unenforced.ts"
import { readUnfit } from "../libsql/unfit.ts"
import type { Manifest, Table } from "../model/table.ts"
import { runtimeName } from "../runtime.ts"
import type { Verified } from "./verify.ts"
import { VERSION } from "../version.ts"
import { SchoolFactStore } from "./facts.ts"
import { meteredOf, Settings } from "./settings.ts"
import { judgeSchool, schoolSentence } from "./judge.ts"
import { recount } from "./recount.ts"
import { percentOf, SCHEMA_VERSION, type SchoolSnapshot, Status, sumOf, type TableStatus, timeOf } from "./snapshot.ts"

interface StateRow {
  readonly incarnation: string
  readonly school: string | null
  readonly epoch: string
  readonly seq: number
  readonly cut: string
  readonly manifest: string | null
  readonly last_batch: number
  readonly applying: string | null
  readonly contact_at: number
  readonly stop: string | null
}

interface PerTable {
  readonly name: string
  readonly n: number
}

const numberByName = (rows: ReadonlyArray<PerTable>): ReadonlyMap<string, number> => new Map(rows.map((row) => [row.name, row.n]))

const manifestOf = (text: string | null): Manifest | null => (text === null ? null : (JSON.parse(text) as Manifest))

/** Tables that come with the manifest may not be there yet; a query on a missing one is not asked. */
const presentTables = (tx: Tx): Effect.Effect<ReadonlySet<string>, LibsqlError> =>
  Effect.map(tx.all<{ name: string }>("SELECT name FROM sqlite_schema WHERE type = 'table'"), (rows) => new Set(rows.map((row) => row.name)))

/** One snapshot of the file: cheap, all from indexes of small tables. */
const readFacts = (tx: Tx) =>
  Effect.gen(function* () {
    const present = yield* presentTables(tx)
    const when = <A>(table: string, query: Effect.Effect<ReadonlyArray<A>, LibsqlError>) =>
      present.has(table) ? query : Effect.succeed<ReadonlyArray<A>>([])
    const [state] = yield* tx.all<StateRow>(
      "SELECT incarnation, school, epoch, seq, cut, manifest, last_batch, applying, contact_at, stop FROM schoolbus_state",
    )
    const pending = yield* tx.all<PerTable>(
      "SELECT t.name, count(*) AS n FROM changes c JOIN schoolbus_tables t ON t.id = c.tbl WHERE c.op <> 'R' GROUP BY t.name",
    )
    const [work] = yield* tx.all<{ oldest: number | null; batches: number; sending: number; answered: number | null }>(
      `SELECT (SELECT min(at) FROM changes WHERE op <> 'R') AS oldest,
              (SELECT count(*) FROM schoolbus_batch WHERE settled_at IS NULL) AS batches,
              (SELECT count(*) FROM changes WHERE batch > 0 AND op <> 'R') AS sending,
              (SELECT max(answered_at) FROM schoolbus_batch) AS answered`,
    )
    const behind = yield* tx.all<PerTable & { failed: number }>(
      "SELECT t.name, count(*) AS n, sum(b.error IS NOT NULL) AS failed FROM schoolbus_behind b JOIN schoolbus_tables t ON t.id = b.tbl GROUP BY t.name",
    )
    const open = (table: string) =>
      when(table, tx.all<PerTable>(`SELECT table_name AS name, count(*) AS n FROM ${table} WHERE status = 'open' GROUP BY table_name`))
    const conflicts = yield* open("schoolbus_conflicts")
    // What clashes over a unique value is decided as a conflict, and counts as one.
    const quarantine = yield* when(
      "schoolbus_quarantine",
      tx.all<PerTable>(
        `SELECT table_name AS name, count(*) AS n FROM schoolbus_quarantine WHERE status = 'open'
            AND id NOT IN (SELECT quarantine FROM schoolbus_conflicts WHERE status = 'open' AND quarantine IS NOT NULL) GROUP BY table_name`,
      ),
    )
    const [staged] = yield* tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM schoolbus_stage) AS n")
    const devicesTable = manifestOf(state?.manifest ?? null)?.tables.find((table) => table.name === "schoolbus.devices")?.local ?? ""
    const devices = yield* when(
      devicesTable,
      tx.all<{ status: string; n: number }>(`SELECT status, count(*) AS n FROM ${ident(devicesTable)} GROUP BY status`),
    )
    const workers = yield* tx.all<{ module: string; failed: number; error: string | null }>(
      "SELECT module, failed, error FROM schoolbus_worker ORDER BY module",
    )
    const [compared] = yield* tx.all<{ result: string }>("SELECT result FROM schoolbus_verified")
    const verified = compared === undefined ? null : (JSON.parse(compared.result) as Verified)
    const faults = new Map<string, string>()
    for (const one of yield* readKeptOut(tx)) faults.set(one.name, keptOutText(one))
    for (const { table, trigger } of yield* readTriggerFaults(tx)) {
      const remedy = "let it skip those: WHEN (SELECT active FROM schoolbus_deliver) = 0"
      faults.set(table, `trigger ${trigger} of a program writes to it, also while rows of head office arrive; ${remedy}`)
    }
    for (const one of yield* readUnenforced(tx)) faults.set(one.name, unenforcedText(one))
    const gaps = yield* readGaps(tx)
    for (const { name, reason } of gaps) faults.set(name, `${reason}; being compared with head office`)
    const unfit = yield* readUnfit(tx)
    for (const { name, reason, remedy } of unfit) faults.set(name, `${reason}; paused until it fits. ${remedy}`)
    const clockAheadMs = yield* clockAhead(tx)
    const [sequence] = yield* tx.all<{ seq: number }>("SELECT seq FROM sqlite_sequence WHERE name = 'changes'")
    return {
      newest: sequence?.seq ?? 0,
      clockAheadMs,
      faults,
      gaps,
      unfit,
      state,
      pending,
      work,
      behind,
      conflicts,
      quarantine,
      staged: staged?.n === 1,
      devices,
      workers,
      verified,
    }
  })

const pausedText = ({ table, reason, since }: PausedTable): string =>
  `head office has paused table ${table} since ${new Date(since).toISOString().slice(0, 16).replace("T", " ")} UTC: ${reason}`

interface KeptOut extends PerTable {
  readonly key: string
  readonly error: string
}

/** Rows of head office that something in this file refuses. One that wants a value of another row may wait for what the school's own writes of the table become. */
const readKeptOut = (tx: Tx) =>
  tx.all<KeptOut>(
    `SELECT t.name, count(*) AS n, min(b.key) AS key, b.error FROM schoolbus_behind b JOIN schoolbus_tables t ON t.id = b.tbl
      WHERE b.error IS NOT NULL
        AND (b.error NOT LIKE 'UNIQUE constraint%' OR NOT EXISTS (SELECT 1 FROM changes c WHERE c.tbl = b.tbl UNION ALL SELECT 1 FROM schoolbus_hold h WHERE h.tbl = b.tbl))
      GROUP BY t.name`,
  )

const keptOutText = ({ n, key, error }: KeptOut): string =>
  `${n === 1 ? "1 row" : `${n} rows`} of head office cannot be shown in this file, as ${key}: ${error}. Change the trigger or constraint that refuses it, and it is tried again`

const make = Effect.gen(function* () {
  const settings = yield* Settings
  const db = yield* Libsql
  const facts = yield* SchoolFactStore
  const terminals = yield* Devices

  let link = (yield* facts.get).link
  let onlineSince = yield* Clock.currentTimeMillis
  const clock = yield* Clock.Clock
  const unlisten = facts.listen((now) => {
    if (now.link === "online" && link !== "online") onlineSince = clock.currentTimeMillisUnsafe()
    link = now.link
  })
  yield* Effect.addFinalizer(() => Effect.sync(unlisten))

  let shown: ReadonlyArray<Table> = []
  const rowsByTable = yield* recount(db, (read) =>
    read((tx) =>
      Effect.gen(function* () {
        const present = yield* presentTables(tx)
        const rows: Array<PerTable> = []
        const unfit = new Set((yield* readUnfit(tx)).map(({ name }) => name))
        for (const table of shown.filter((one) => present.has(one.local) && !unfit.has(one.name))) {
          const [row] = yield* tx.all<{ n: number }>(`SELECT count(*) AS n FROM ${ident(table.local)}`)
          rows.push({ name: table.name, n: row?.n ?? 0 })
        }
        return rows
      }),
    ),
  )

  const snapshot = Effect.fn("SchoolStatus.snapshot")(function* () {
    const now = yield* Clock.currentTimeMillis
    const own = yield* facts.get
    const how = yield* settings.get
    const metered = meteredOf(how)
    const alerts = yield* readAlerts(db, terminals.list)
    const { read, traffic } = yield* db.read((tx) => Effect.all({ read: readFacts(tx), traffic: trafficOf(tx, dayOf(now)) }))
    const manifest = manifestOf(read.state?.manifest ?? null)
    const all = (manifest?.tables ?? []).filter((table) => !table.system)
    if (all.map((table) => table.name).join() !== shown.map((table) => table.name).join()) shown = all
    const pending = numberByName(read.pending)
    // Rows change with a cut, or with a captured write.
    const rows = numberByName(yield* rowsByTable(`${read.state?.epoch} ${read.state?.seq} ${read.newest} ${own.progress?.rows} ${shown.length}`))
    const behindByTable = new Map(read.behind.map((row) => [row.name, row]))
    const conflicts = numberByName(read.conflicts)
    const quarantine = numberByName(read.quarantine)
    const hasCut = read.state !== undefined && read.state.epoch !== "" && read.state.cut !== "0"
    const tables = all.map((table): TableStatus => {
      const waits = pending.get(table.name) ?? 0
      const failed = (quarantine.get(table.name) ?? 0) + (behindByTable.get(table.name)?.failed ?? 0)
      const paused = read.unfit.find((one) => one.name === table.name)
      const held = own.pausedTables.find((one) => one.table === table.name)
      const why = paused !== undefined ? `${paused.reason}; it waits until it fits. ${paused.remedy}` : held === undefined ? null : pausedText(held)
      return {
        table: table.name,
        state: why !== null ? "paused" : hasCut ? "active" : "loading",
        ...(why === null ? {} : { reason: why }),
        ...(read.faults.has(table.name) ? { fault: read.faults.get(table.name) ?? "" } : {}),
        pending: waits,
        failed,
        synced: Math.max(0, (rows.get(table.name) ?? 0) - waits - failed),
        conflicts: conflicts.get(table.name) ?? 0,
      }
    })
    const sum = (counted: ReadonlyArray<PerTable>) => counted.reduce((n, row) => n + row.n, 0)
    const behind = sum(read.behind)
    const totals = {
      pending: sum(read.pending),
      failed: sum(read.quarantine) + read.behind.reduce((n, row) => n + row.failed, 0),
      synced: sumOf(tables).synced,
      conflicts: sum(read.conflicts),
    }
    const applying = read.state?.applying != null
    const progress = own.progress
    const coming = progress === null ? (applying || read.staged ? 1 : 0) : Math.max(1, progress.total)
    const oldestPendingAt = totals.pending === 0 ? null : (read.work?.oldest ?? null)
    const lastContactAt = Math.max(own.lastContactAt, read.state?.contact_at ?? 0)
    const [gap] = read.gaps
    const unfit = read.unfit.map(({ name, reason, remedy }) => `table ${name}: ${reason}; it is paused, the others go on. ${remedy}`)
    const { state, reason } = judgeSchool({
      gap: gap === undefined ? null : `table ${gap.name}: ${gap.reason}; it is compared with head office before anything else goes on`,
      unfit: unfit.length === 0 ? null : unfit.join("; "),
      link: own.link,
      linkDetail: own.linkDetail,
      file: own.file,
      stop: read.state?.stop ?? null,
      paused: own.paused,
      hasCut,
      comingRows: applying && progress === null ? Number.MAX_SAFE_INTEGER : coming,
      pending: totals.pending,
      sending: read.work?.sending ?? 0,
      waits: metered === null ? null : (own.metered?.waits ?? null),
      pausedTables: own.pausedTables.map(pausedText),
      clockAheadMs: read.clockAheadMs,
      standingMs: now - Math.max(oldestPendingAt ?? now, read.work?.answered ?? 0, onlineSince),
    })
    const result: SchoolSnapshot = {
      schemaVersion: SCHEMA_VERSION,
      role: "school",
      asOf: new Date(now).toISOString(),
      version: VERSION,
      runtime: runtimeName,
      state,
      reason,
      summary: schoolSentence({ state, reason, ...totals, progress }),
      totals,
      tables,
      progress:
        progress === null
          ? []
          : [{ table: null, ...progress, percent: percentOf(progress.rows, progress.total, progress.bytes, progress.totalBytes) }],
      school: read.state?.school ?? null,
      name: manifest?.school.name ?? null,
      incarnation: read.state?.incarnation ?? "",
      link: { state: own.link, detail: own.linkDetail, lastContactAt: timeOf(lastContactAt), lastSyncAt: timeOf(own.lastSyncAt) },
      clockAheadMs: read.clockAheadMs,
      sending: {
        pending: totals.pending,
        oldestPendingAt: timeOf(oldestPendingAt),
        batches: read.work?.batches ?? 0,
        lastBatch: read.state?.last_batch ?? 0,
      },
      receiving: { epoch: read.state?.epoch ?? "", seq: String(read.state?.seq ?? 0), behind, applying: applying || progress !== null },
      devices: {
        total: read.devices.reduce((n, row) => n + row.n, 0),
        approved: read.devices.find((row) => row.status === "approved")?.n ?? 0,
        waiting: read.devices.find((row) => row.status === "pending")?.n ?? 0,
        alerts,
      },
      workers: read.workers,
      verified:
        read.verified === null
          ? null
          : {
              at: read.verified.startedAt,
              differences: read.verified.differences,
              left: Math.max(0, read.verified.differences - read.verified.repaired.up - read.verified.repaired.down),
            },
      traffic,
      metered:
        metered === null
          ? null
          : {
              cycleMinutes: metered.cycleMinutes,
              budgetBytes: metered.budgetBytes,
              hours: printHours(metered.hours),
              usedBytes: traffic.sent + traffic.received,
              waits: own.metered?.waits ?? null,
              nextAt: timeOf(own.metered?.nextAt ?? null),
            },
    }
    return result
  })
  return Status.of({ snapshot })
})

/** Needs the school's file as `Libsql`. */
export const schoolStatus: Layer.Layer<Status, never, Devices | Libsql | SchoolFactStore | Settings> = Layer.effect(Status, make)
