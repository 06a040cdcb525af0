/** Conflicts, quarantined changes and runs in a school's file: read here; a decision is asked of head office, and comes down like any row. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Libsql, type LibsqlError, type LibsqlFile, type Tx } from "../libsql/client.ts"
import type { Choice } from "../model/choice.ts"
import { Quarantine, type QuarantineQuery, type QuarantineRecord } from "./quarantine.ts"
import { recommend } from "./recommend.ts"
import {
  type AutoQuery,
  type AutoResult,
  ConflictRefused,
  type ConflictRecord,
  type ConflictQuery,
  Conflicts,
  decodeCursor,
  pageOf,
  refuseOtherSchool,
  refuseUnknownTable,
  type Requested,
  Runs,
  type RunRecord,
} from "./records.ts"
import { timeOf } from "./snapshot.ts"

const REQUESTED = (target: string): string =>
  `(SELECT json_object('action', r.action, 'choice', r.choice, 'by', r."by", 'at', r.at, 'status', r.status, 'message', r.message)
      FROM schoolbus_requests r WHERE r.target = ${target} AND r.status <> 'done' ORDER BY r.at DESC LIMIT 1) AS requested`

const COLUMNS = `id, school, table_name AS "table", row_key AS key, column_name AS "column", base, mine, theirs, kept, winner, strategy, reason, status,
  at, decided_by AS decidedBy, decided_at AS decidedAt, kind, mine_at AS mineAt, theirs_at AS theirsAt, unique_columns AS uniqueColumns, suggestion, quarantine,
  ${REQUESTED("schoolbus_conflicts.id")}`

const ownSchool = (tx: Tx) =>
  Effect.map(tx.all<{ school: string | null }>("SELECT school FROM schoolbus_state"), ([state]): string | null => state?.school ?? null)

const hasTable = (tx: Tx) =>
  Effect.map(
    tx.all<{ n: number }>("SELECT count(*) AS n FROM sqlite_schema WHERE type = 'table' AND name = 'schoolbus_requests'"),
    ([row]) => row?.n === 1,
  )

/** One page of records, newest first; none before the first copy has brought their tables. */
const readRecords = <Row extends { readonly at: string; readonly id: string }>(
  db: LibsqlFile,
  columns: string,
  table: string,
  query: ConflictQuery & Pick<QuarantineQuery, "reason">,
  filter = "true",
) =>
  db.read((tx) =>
    Effect.gen(function* () {
      yield* refuseOtherSchool(query.school, yield* ownSchool(tx))
      if (!(yield* hasTable(tx))) return { items: [], nextCursor: null }
      const [at, id] = decodeCursor(query.cursor, 2) ?? [null, null]
      const rows = yield* tx.all<Row>(
        `SELECT ${columns} FROM ${table}
          WHERE (?1 IS NULL OR (status <> 'open') = ?1) AND (?2 IS NULL OR table_name = ?2) AND (?3 IS NULL OR (at, id) < (?3, ?4)) AND ${filter} AND (?6 IS NULL OR reason = ?6)
          ORDER BY at DESC, id DESC LIMIT ?5`,
        [query.resolved ?? null, query.table ?? null, at ?? null, id ?? null, query.limit + 1, query.reason ?? null],
      )
      if (rows.length === 0)
        yield* refuseUnknownTable(query.table, tx.all<{ name: string; local: string }>("SELECT name, local FROM schoolbus_tables"))
      return pageOf(rows, query.limit, (row) => [row.at, row.id])
    }),
  )

/** `"2026-01-01 08:00:00.123456+00"`, as Postgres prints it and the file keeps it -> RFC 3339, as the hub answers it. */
const isoOf = (text: string): string =>
  text.replace(" ", "T").replace(/(\.\d+)?\+00(:?00)?$/, (_, fraction: string | undefined) => `${(fraction ?? ".").padEnd(7, "0")}Z`)
const timeOrNull = (text: string | null): string | null => (text === null ? null : isoOf(text))
const requestedOf = (text: string | null): Requested | null => (text === null ? null : (JSON.parse(text) as Requested))
type Stored = Omit<ConflictRecord, "recommendation" | "requested"> & { readonly requested: string | null }
const recordOf = (row: Stored, now: number): ConflictRecord => {
  const times = { at: isoOf(row.at), decidedAt: timeOrNull(row.decidedAt), mineAt: timeOrNull(row.mineAt), theirsAt: timeOrNull(row.theirsAt) }
  return { ...row, ...times, recommendation: recommend({ ...row, ...times }, now), requested: requestedOf(row.requested) }
}

const notFound = (id: string) => new ConflictRefused({ code: "not_found", message: `no conflict ${id} here; see: schoolbus conflicts list` })

/** A decision about a record of this school: a row that goes up with the next push and comes down answered. */
const ask = (db: LibsqlFile, action: string, target: string, choice: string | null, by: string): Effect.Effect<void, ConflictRefused | LibsqlError> =>
  Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    const [state] = yield* db.read((tx) =>
      tx.all<{ school: string | null; n: number }>(
        "SELECT school, (SELECT count(*) FROM schoolbus_requests WHERE target = ? AND status = 'sent') AS n FROM schoolbus_state",
        [target],
      ),
    )
    if ((state?.n ?? 0) > 0)
      return yield* new ConflictRefused({ code: "decided", message: "a decision is on its way to head office; its answer comes with the next sync" })
    yield* db.write((tx) =>
      tx.run(`INSERT INTO schoolbus_requests (id, school, action, target, choice, "by", at, status) VALUES (?, ?, ?, ?, ?, ?, ?, 'sent')`, [
        crypto.randomUUID(),
        state?.school ?? "",
        action,
        target,
        choice,
        by,
        new Date(now).toISOString(),
      ]),
    )
  })

export const schoolConflicts: Layer.Layer<Conflicts, never, Libsql> = Layer.effect(
  Conflicts,
  Effect.gen(function* () {
    const db = yield* Libsql
    const list = (query: ConflictQuery) =>
      Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const page = yield* readRecords<Stored>(db, COLUMNS, "schoolbus_conflicts", query)
        return { ...page, items: page.items.map((row) => recordOf(row, now)) }
      })
    const show = (id: string) =>
      Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const rows = yield* db.read((tx) =>
          Effect.gen(function* () {
            return (yield* hasTable(tx)) ? yield* tx.all<Stored>(`SELECT ${COLUMNS} FROM schoolbus_conflicts WHERE id = ?`, [id.toLowerCase()]) : []
          }),
        )
        return rows[0] === undefined ? yield* notFound(id) : recordOf(rows[0], now)
      })
    const resolve = (id: string, choice: Choice, by: string) =>
      Effect.gen(function* () {
        const conflict = yield* show(id)
        if (choice.keep === conflict.winner && conflict.status !== "open")
          return yield* new ConflictRefused({ code: "decided", message: "that value stands already" })
        yield* ask(db, "resolve", conflict.id, JSON.stringify(choice), by)
        return yield* show(id)
      })
    const undo = (id: string, by: string) =>
      Effect.gen(function* () {
        const conflict = yield* show(id)
        if (conflict.status === "open") return yield* new ConflictRefused({ code: "decided", message: "nothing is decided here yet" })
        yield* ask(db, "undo", conflict.id, null, by)
        return yield* show(id)
      })
    const autoResolve = (query: AutoQuery, by: string) =>
      Effect.gen(function* () {
        const { max, ...filter } = query
        const page = yield* list({ resolved: false, limit: max, ...filter })
        const resolved: Array<AutoResult["resolved"][number]> = []
        const skipped: Array<AutoResult["skipped"][number]> = []
        for (const { id, recommendation } of page.items) {
          if (recommendation === null || !recommendation.safe) {
            skipped.push({ id, why: recommendation?.why ?? "decided meanwhile" })
            continue
          }
          const { keep, why } = recommendation
          const refused = yield* ask(db, "resolve", id, JSON.stringify({ keep }), by).pipe(
            Effect.as(null),
            Effect.catchTag("ConflictRefused", ({ message }) => Effect.succeed(message)),
          )
          if (refused !== null) skipped.push({ id, why: refused })
          else resolved.push({ id, keep, ...(recommendation.value === undefined ? {} : { value: recommendation.value }), why })
        }
        return { resolved, skipped }
      })
    return Conflicts.of({ list, show, resolve, undo, autoResolve })
  }),
)

/** Of a change that waits because another row has a unique value of its own. */
const CLASH = `(SELECT c.id FROM schoolbus_conflicts c WHERE c.quarantine = schoolbus_quarantine.id AND c.status = 'open' ORDER BY c.unique_columns LIMIT 1)`
const QUARANTINE = `id, school, table_name AS "table", row_key AS key, op, change, reason, detail, status, at, decided_by AS decidedBy, decided_at AS decidedAt,
  ${CLASH} AS conflict, ${REQUESTED("schoolbus_quarantine.id")}`
type StoredChange = Omit<QuarantineRecord, "requested"> & { readonly requested: string | null }
const changeOf = (row: StoredChange): QuarantineRecord => ({
  ...row,
  at: isoOf(row.at),
  decidedAt: timeOrNull(row.decidedAt),
  requested: requestedOf(row.requested),
})

const countClashing = (db: LibsqlFile, table: string | undefined) =>
  db.read((tx) =>
    Effect.gen(function* () {
      if (!(yield* hasTable(tx))) return 0
      const [row] = yield* tx.all<{ n: number }>(
        "SELECT count(DISTINCT quarantine) AS n FROM schoolbus_conflicts WHERE status = 'open' AND quarantine IS NOT NULL AND (?1 IS NULL OR table_name = ?1)",
        [table ?? null],
      )
      return row?.n ?? 0
    }),
  )

export const schoolQuarantine: Layer.Layer<Quarantine, never, Libsql> = Layer.effect(
  Quarantine,
  Effect.gen(function* () {
    const db = yield* Libsql
    const show = (id: string) =>
      Effect.gen(function* () {
        const rows = yield* db.read((tx) =>
          Effect.gen(function* () {
            return (yield* hasTable(tx))
              ? yield* tx.all<StoredChange>(`SELECT ${QUARANTINE} FROM schoolbus_quarantine WHERE id = ?`, [id.toLowerCase()])
              : []
          }),
        )
        return rows[0] === undefined
          ? yield* new ConflictRefused({ code: "not_found", message: `no quarantined change ${id} here; see: schoolbus quarantine list` })
          : changeOf(rows[0])
      })
    return Quarantine.of({
      list: (query) =>
        Effect.gen(function* () {
          const here = query.resolved === false ? `${CLASH} IS NULL` : "true"
          const page = yield* readRecords<StoredChange>(db, QUARANTINE, "schoolbus_quarantine", query, here)
          const mayClash = query.resolved === false && (query.reason ?? "unique") === "unique"
          const inConflicts = mayClash ? yield* countClashing(db, query.table) : 0
          return { ...page, items: page.items.map(changeOf), inConflicts }
        }),
      show,
      decide: (id, action, by) =>
        Effect.gen(function* () {
          const change = yield* show(id)
          if (change.status !== "open") return yield* new ConflictRefused({ code: "decided", message: `this change was ${change.status} already` })
          yield* ask(db, action.action, change.id, action.action === "edit" ? JSON.stringify(action.values) : null, by)
          return yield* show(id)
        }),
    })
  }),
)

interface RunRow {
  readonly id: number
  readonly trigger: string
  readonly started_at: number
  readonly ended_at: number | null
  readonly up: number
  readonly down: number
  readonly conflicts: number
  readonly direction: string
  readonly tables: string
  readonly error: string | null
}

export const schoolRuns: Layer.Layer<Runs, never, Libsql> = Layer.effect(
  Runs,
  Effect.gen(function* () {
    const db = yield* Libsql
    return Runs.of({
      list: (query) =>
        db.read((tx) =>
          Effect.gen(function* () {
            const [before] = decodeCursor(query.cursor, 1) ?? []
            const school = yield* ownSchool(tx)
            yield* refuseOtherSchool(query.school, school)
            const rows = yield* tx.all<RunRow>(`SELECT * FROM schoolbus_run WHERE id < ? ORDER BY id DESC LIMIT ?`, [
              before === undefined || !/^\d{1,15}$/.test(before) ? Number.MAX_SAFE_INTEGER : Number(before),
              query.limit + 1,
            ])
            const runs = rows.map(
              (row): RunRecord => ({
                id: String(row.id),
                school,
                trigger: row.trigger,
                startedAt: timeOf(row.started_at) ?? "",
                endedAt: timeOf(row.ended_at),
                up: row.up,
                down: row.down,
                conflicts: row.conflicts,
                direction: row.direction,
                tables: JSON.parse(row.tables) as RunRecord["tables"],
                error: row.error,
              }),
            )
            return pageOf(runs, query.limit, (run) => [run.id])
          }),
        ),
    })
  }),
)
