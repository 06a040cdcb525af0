/**
 * The hub's status: feed and readers from feed.db, slot and open work from Postgres, the rest from the flows' own words.
 * When Postgres does not answer, the snapshot says so and keeps what it knew of open work; it never fails for that.
 */
import { quietly } from "../libsql/trouble.ts"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { Feed } from "../down/feed.ts"
import type { Reader } from "../down/readers.ts"
import { slotName } from "../down/source.ts"
import { Libsql } from "../libsql/client.ts"
import { Heartbeat } from "../link/protocol.ts"
import { printLsn } from "../model/lsn.ts"
import { Postgres } from "../postgres/client.ts"
import { looking, type OpenWork, readClockAhead, readEstimates, readOpenWork, readSlots, recordHealth, type SlotHealth } from "../postgres/health.ts"
import { withRemedy } from "../postgres/remedy.ts"
import { runtimeName } from "../runtime.ts"
import { VERSION } from "../version.ts"
import { HubFactStore } from "./facts.ts"
import { hubSentence, judgeHub, judgeSeen, pauseText } from "./judge.ts"
import { recount } from "./recount.ts"
import {
  type HubSnapshot,
  percentOf,
  type Progress,
  SCHEMA_VERSION,
  type SchoolView,
  type SlotView,
  Status,
  sumOf,
  type TableStatus,
  timeOf,
} from "./snapshot.ts"

/** Of one audience and class, no more rows than this are counted for a school's lag: beyond, the number no longer matters. */
export const LAG_COUNTED = 10_000
/** Postgres is asked at most this often, however many pages and scripts look. */
const POSTGRES_EVERY_MS = 2_000
/** An answer that takes longer counts as none; the status must come when the server hangs, too. */
const POSTGRES_TIMEOUT_MS = 3_000
const REFUSED_SHOWN_MS = 5 * 60_000
const RECORD_EVERY_MS = 60_000
/** How soon after the stream has begun the first record is made. */
const RECORD_LOOK_MS = 5_000

const progressOf = (said: unknown): Progress | null => {
  const parsed = Heartbeat.shape.progress.safeParse(said)
  if (!parsed.success || parsed.data === undefined) return null
  const { rows, total, bytes, totalBytes } = parsed.data
  return { table: null, rows, total, bytes, totalBytes, percent: percentOf(rows, total, bytes, totalBytes) }
}

/** A school's last word, as its heartbeat brought it; unreadable counts as none. */
const saidBy = (reader: Pick<Reader, "status" | "pending">) => {
  if (reader.status === null) return null
  try {
    const said = JSON.parse(reader.status) as Record<string, unknown>
    const number = (name: string): number => (typeof said[name] === "number" ? said[name] : 0)
    return {
      state: typeof said["state"] === "string" ? said["state"] : "",
      reason: typeof said["reason"] === "string" ? said["reason"] : null,
      pending: number("pending"),
      oldestPendingAt: typeof said["oldestPendingAt"] === "number" ? said["oldestPendingAt"] : null,
      failed: number("quarantined"),
      devices: number("devices"),
      quietMs: number("quietMs"),
      progress: progressOf(said["progress"]),
    }
  } catch {
    return null
  }
}

/** The living file of each school: the one that was heard last among those not closed. */
export const livingReaders = (readers: ReadonlyArray<Reader>): ReadonlyMap<string, Reader> => {
  const bySchool = new Map<string, Reader>()
  for (const reader of readers) {
    if (reader.closed !== 0) continue
    const other = bySchool.get(reader.school)
    if (other === undefined || reader.seen_at >= other.seen_at) bySchool.set(reader.school, reader)
  }
  return bySchool
}

/** Rows behind each reader's cursor, as `{incarnation, waiting}` with waiting a JSON object of counts by table id. Walks entry_seq. */
const LAG_SQL = `
  SELECT incarnation, waiting FROM (
    SELECT r.value ->> 'incarnation' AS incarnation,
           (SELECT json_group_object(tbl, n) FROM (
              SELECT tbl, count(*) AS n FROM (
                SELECT e.tbl AS tbl FROM entry e
                 WHERE e.audience = a.no AND e.class = c.value AND e.seq > (r.value ->> 'seq') LIMIT ${LAG_COUNTED})
              GROUP BY tbl)) AS waiting
      FROM json_each(?) r
      JOIN audience a ON a.no = 0 OR (a.no > 0 AND a.value = r.value ->> 'school')
      JOIN json_each('[10,8,5,3,1]') c)
   WHERE waiting <> '{}'`

/** By table, rows that no enrolled school has. */
const NOBODY_SQL = `
  WITH strange AS MATERIALIZED (SELECT no FROM audience WHERE no = -1 OR (no > 0 AND value NOT IN (SELECT value FROM json_each(?))))
  SELECT e.tbl, count(DISTINCT e.key) AS n FROM strange s CROSS JOIN entry e ON e.audience = s.no
   WHERE e.body IS NOT NULL AND NOT EXISTS (
     SELECT 1 FROM entry o WHERE o.tbl = e.tbl AND o.key = e.key AND o.body IS NOT NULL AND o.audience NOT IN (SELECT no FROM strange))
   GROUP BY e.tbl`

interface FromPostgres {
  readonly at: number
  readonly ok: boolean
  /** Why it did not say what it was asked, with the remedy; null = it did, or gave no answer at all. */
  readonly fault: string | null
  /** This computer's clock minus the server's, ms; null = not known. */
  readonly clockAheadMs: number | null
  readonly slots: ReadonlyArray<SlotHealth>
  readonly open: ReadonlyArray<OpenWork>
  /** Of tables whose first copy is under way. */
  readonly estimates: ReadonlyMap<string, number>
}

const slotView = ({ maxSlotWalKeepSize: _, ...slot }: SlotHealth): SlotView => slot

const make = Effect.gen(function* () {
  const feed = yield* Feed
  const db = yield* Libsql
  const pg = yield* Postgres
  const facts = yield* HubFactStore
  const ownSlot = slotName(pg.url)

  let known: FromPostgres = { at: 0, ok: false, fault: null, clockAheadMs: null, slots: [], open: [], estimates: new Map() }
  const askPostgres = Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    if (now - known.at < POSTGRES_EVERY_MS) return known
    const { loading } = yield* facts.get
    const names = loading.map((one) => one.table)
    known = yield* looking(pg, (session) =>
      Effect.all([readClockAhead(session), readSlots(session), readOpenWork(session), readEstimates(session, names)]),
    ).pipe(
      Effect.map(
        ([clockAheadMs, slots, open, estimates]): FromPostgres => ({ at: now, ok: true, fault: null, clockAheadMs, slots, open, estimates }),
      ),
      Effect.timeout(POSTGRES_TIMEOUT_MS),
      Effect.catchTags({
        PostgresError: (error) =>
          Effect.succeed({
            ...known,
            ...{ at: now, ok: error.sqlstate !== "" && error.isFatal !== true },
            fault: error.sqlstate === "" ? null : withRemedy(`Postgres says: ${error.message} (${error.sqlstate})`, error.sqlstate, error.routine),
          }),
        TimeoutError: () => Effect.succeed({ ...known, at: now, ok: false, fault: null }),
      }),
    )
    return known
  })

  const rowsByTable = yield* recount(db, (read) =>
    read((tx) => tx.all<{ tbl: number; n: number }>("SELECT tbl, count(*) AS n FROM entry INDEXED BY entry_key GROUP BY tbl")),
  )
  const nobodyByTable = yield* recount(db, (read) =>
    Effect.flatMap(feed.schools, (schools) =>
      read((tx) => tx.all<{ tbl: number; n: number }>(NOBODY_SQL, [JSON.stringify(schools.flatMap(({ id, revoked }) => (revoked ? [] : [id])))])),
    ),
  )
  // Since when a school's cursor stands still although rows wait for it.
  const standing = new Map<string, { readonly seq: number; readonly since: number }>()

  const snapshot = Effect.fn("HubStatus.snapshot")(function* (only?: string) {
    const now = yield* Clock.currentTimeMillis
    const own = yield* facts.get
    const fromPostgres = yield* askPostgres
    // Who was refused comes again; after a while without anybody it says nothing any more.
    const refused = own.refused !== null && now - own.refused.at < REFUSED_SHOWN_MS ? own.refused.text : null
    const fault = fromPostgres.fault ?? refused
    const state = yield* feed.state
    const enrolled = (yield* feed.schools).filter((school) => !school.revoked && (only === undefined || school.id === only))
    const readers = livingReaders(yield* feed.reader.all)
    const enrolledIds = new Set(enrolled.map(({ id }) => id))
    const late = [...readers.values()].filter((reader) => reader.seq < state.seq && enrolledIds.has(reader.school))
    const waiting =
      late.length === 0
        ? []
        : yield* db.read((tx) =>
            tx.all<{ incarnation: string; waiting: string }>(LAG_SQL, [
              JSON.stringify(
                late.map((reader) => ({
                  incarnation: reader.incarnation,
                  school: reader.school,
                  seq: reader.epoch === state.epoch ? reader.seq : 0,
                })),
              ),
            ]),
          )
    const lagByIncarnation = new Map<string, number>()
    const waitingByTable = new Map<number, number>()
    for (const row of waiting) {
      for (const [tbl, n] of Object.entries(JSON.parse(row.waiting) as Record<string, number>)) {
        lagByIncarnation.set(row.incarnation, (lagByIncarnation.get(row.incarnation) ?? 0) + n)
        waitingByTable.set(Number(tbl), (waitingByTable.get(Number(tbl)) ?? 0) + n)
      }
    }
    const open = fromPostgres.open.filter((work) => only === undefined || work.school === only)
    const openBySchool = new Map<string, Array<OpenWork>>()
    for (const work of open) {
      const mine = openBySchool.get(work.school) ?? []
      mine.push(work)
      openBySchool.set(work.school, mine)
    }
    const connectedIds = new Set(own.connected)

    const schools = enrolled.map((school): SchoolView => {
      const reader = readers.get(school.id)
      const said = reader === undefined ? null : saidBy(reader)
      const connected = connectedIds.has(school.id)
      const lagRows = reader === undefined ? 0 : (lagByIncarnation.get(reader.incarnation) ?? 0)
      const mine = openBySchool.get(school.id) ?? []
      let stalledMs = 0
      if (reader !== undefined && lagRows > 0) {
        const before = standing.get(reader.incarnation)
        if (before?.seq === reader.seq) stalledMs = now - before.since
        else standing.set(reader.incarnation, { seq: reader.seq, since: now })
      } else if (reader !== undefined) standing.delete(reader.incarnation)
      const { state: schoolState, reason } = judgeSeen({
        now,
        paused: school.paused,
        hasCut: reader !== undefined && reader.epoch !== "" && reader.cut !== "0",
        connected,
        seenAt: reader?.seen_at ?? 0,
        lagRows,
        stalledMs,
        said,
      })
      return {
        school: school.id,
        name: school.name,
        state: schoolState,
        reason,
        connected,
        lastSeenAt: timeOf(reader?.seen_at ?? null),
        lagRows,
        // Its word is some seconds old; when nothing waits for it any more, nothing is under way.
        progress: lagRows === 0 ? null : (said?.progress ?? null),
        pending: said?.pending ?? reader?.pending ?? 0,
        oldestPendingAt: timeOf(said?.oldestPendingAt ?? null),
        // The school also knows of rows that it cannot show; the hub may know of newer refusals.
        failed: Math.max(
          mine.reduce((n, work) => n + work.failed, 0),
          said?.failed ?? 0,
        ),
        conflicts: mine.reduce((n, work) => n + work.conflicts, 0),
        devices: said?.devices ?? 0,
      }
    })

    const rows = new Map((yield* rowsByTable(`${state.epoch} ${state.seq} ${own.loading.length}`)).map((row) => [row.tbl, row.n]))
    const enrolledNow = (yield* feed.schools).map(({ id, revoked }) => `${id}${revoked ? "-" : ""}`).join()
    const nobody = new Map((yield* nobodyByTable(`${state.epoch} ${state.seq} ${enrolledNow}`)).map((row) => [row.tbl, row.n]))
    const feedTables = (yield* feed.tables).filter((table) => !table.hubOnly && !table.table.system)
    const tables = feedTables.map((table): TableStatus => {
      const work = open.filter((one) => one.table === table.name)
      return {
        table: table.name,
        state: table.paused !== null ? "paused" : table.loading ? "loading" : "active",
        ...(table.paused === null ? {} : { reason: pauseText(table.name, table.paused.reason) }),
        pending: waitingByTable.get(table.id) ?? 0,
        failed: work.reduce((n, one) => n + one.failed, 0),
        synced: rows.get(table.id) ?? 0,
        conflicts: work.reduce((n, one) => n + one.conflicts, 0),
        ...(nobody.has(table.id) && only === undefined ? { nobody: nobody.get(table.id) ?? 0 } : {}),
      }
    })
    const slot = fromPostgres.slots.find((one) => one.slot === ownSlot) ?? null
    const postgres = own.postgres && fromPostgres.ok
    const states = schools.map((school) => school.state)
    const { state: hubState, reason } = judgeHub({
      postgres,
      stream: own.stream,
      streamDetail: own.streamDetail,
      fault,
      clockAheadMs: fromPostgres.clockAheadMs,
      walStatus: slot?.walStatus ?? null,
      loading: own.loading.length,
      paused: tables.flatMap((table) => (table.state === "paused" ? [table.reason ?? table.table] : [])),
      schools: states,
    })
    const totals = {
      ...sumOf(tables),
      // Also of tables that are not listed one by one.
      pending: [...waitingByTable.values()].reduce((sum, n) => sum + n, 0),
      failed: open.reduce((sum, work) => sum + work.failed, 0),
      conflicts: open.reduce((sum, work) => sum + work.conflicts, 0),
    }
    const result: HubSnapshot = {
      schemaVersion: SCHEMA_VERSION,
      role: "hub",
      asOf: new Date(now).toISOString(),
      version: VERSION,
      runtime: runtimeName,
      state: hubState,
      reason,
      summary: hubSentence({ state: hubState, reason, ...totals }, states, own.stream === "streaming"),
      totals,
      tables,
      progress: own.loading.map((one) => {
        const total = Math.max(one.rows, one.total, fromPostgres.estimates.get(one.table) ?? 0)
        return { ...one, total, percent: percentOf(one.rows, total) }
      }),
      postgres,
      fault,
      clockAheadMs: fromPostgres.clockAheadMs,
      stream: { state: own.stream, detail: own.streamDetail },
      feed: {
        epoch: state.epoch,
        seq: String(state.seq),
        lsn: printLsn(state.position.lsn),
        committedAt: state.position.at === "" ? null : state.position.at,
      },
      slot: slot === null ? null : slotView(slot),
      schools,
    }
    return result
  })

  let recordedAt = 0
  /** Once a minute, what DBAs see in `schoolbus.school_health`. A standby writes nothing: it knows nothing. */
  const record = Effect.gen(function* () {
    const { stream } = yield* facts.get
    const at = yield* Clock.currentTimeMillis
    if (stream !== "streaming" || at - recordedAt < RECORD_EVERY_MS) return
    recordedAt = at
    const now = yield* snapshot()
    const readers = livingReaders(yield* feed.reader.all)
    yield* recordHealth(
      pg,
      now.schools.map((school) => ({
        school: school.school,
        state: school.state,
        reason: school.reason,
        seq: readers.get(school.school)?.seq ?? 0,
        lagRows: school.lagRows,
        pending: school.pending,
        oldestPendingAt: school.oldestPendingAt === null ? null : Date.parse(school.oldestPendingAt),
        seenAt: school.lastSeenAt === null ? null : Date.parse(school.lastSeenAt),
      })),
    )
  })
  yield* Effect.forkScoped(Effect.repeat(quietly("schoolbus.school_health is not written")(record), Schedule.spaced(RECORD_LOOK_MS)))

  return Status.of({ snapshot })
})

/** Needs the feed's file as `Libsql`. */
export const hubStatus: Layer.Layer<Status, never, Feed | Libsql | Postgres | HubFactStore> = Layer.effect(Status, make)
