/** Conflicts, quarantined changes and pushed batches, from Postgres; decisions are made here. */
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Postgres, type PostgresError, type PostgresPool } from "../postgres/client.ts"
import { renameOrKeep, resolveConflict, undoConflict } from "../up/decide.ts"
import { discardQuarantined, editQuarantined, retryQuarantined } from "../up/quarantine.ts"
import type { DecideRefused } from "../up/refused.ts"
import { Tables } from "../up/tables.ts"
import { Quarantine, type QuarantineRecord } from "./quarantine.ts"
import { recommend } from "./recommend.ts"
import {
  type AutoQuery,
  type AutoResult,
  ConflictRefused,
  type ConflictQuery,
  type ConflictRecord,
  Conflicts,
  decodeCursor,
  pageOf,
  refuseUnknownSchool,
  refuseUnknownTable,
  type SchoolUnknown,
  type TablesUnknown,
  type Requested,
  type RunRecord,
  Runs,
} from "./records.ts"

const iso = (column: string): string => `to_char(${column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`

const REQUESTED = (target: string): string =>
  `(SELECT json_build_object('action', r.action, 'choice', r.choice, 'by', r.by, 'at', r.at, 'status', r.status, 'message', r.message)::text
      FROM schoolbus.requests r WHERE r.target = ${target} AND r.status <> 'done' ORDER BY r.at DESC LIMIT 1) AS requested`

const COLUMNS = `id::text AS id, school, table_name AS "table", row_key AS key, column_name AS "column", base, mine, theirs, kept, winner, strategy, reason, status,
  ${iso("at")} AS at, decided_by AS "decidedBy", ${iso("decided_at")} AS "decidedAt", kind, ${iso("mine_at")} AS "mineAt", ${iso("theirs_at")} AS "theirsAt",
  unique_columns AS "uniqueColumns", suggestion, quarantine::text AS quarantine, ${REQUESTED("conflicts.id::text")}`

type Stored = Omit<ConflictRecord, "recommendation" | "requested"> & { readonly requested: string | null }
const recordOf = (row: Stored, now: number): ConflictRecord => ({
  ...row,
  recommendation: recommend(row, now),
  requested: row.requested === null ? null : (JSON.parse(row.requested) as Requested),
})

/** A cursor that is not ours starts from the beginning; its text never reaches a cast that could fail. */
const positionOf = (cursor: string | undefined): readonly [at: string | null, id: string | null] => {
  const [at, id] = decodeCursor(cursor, 2) ?? []
  return at !== undefined && id !== undefined && /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/.test(at) && !Number.isNaN(Date.parse(at))
    ? [at, id]
    : [null, null]
}

/** Also a school that was cut off has records. */
const isSchool = (pg: PostgresPool, asked: string | undefined): Effect.Effect<void, SchoolUnknown | PostgresError> =>
  asked === undefined
    ? Effect.void
    : Effect.flatMap(pg.query<{ id: string }>("SELECT id FROM schoolbus.schools"), (rows) =>
        refuseUnknownSchool(
          asked,
          rows.map(({ id }) => id),
        ),
      )

/** Of a table without records. */
const isTable = (tables: Context.Service.Shape<typeof Tables>, query: { readonly table?: string }): Effect.Effect<void, TablesUnknown> =>
  refuseUnknownTable(
    query.table,
    Effect.map(tables.all, (all) => [...all.values()]),
  )

export const hubConflicts: Layer.Layer<Conflicts, never, Postgres | Tables> = Layer.effect(
  Conflicts,
  Effect.gen(function* () {
    const pg = yield* Postgres
    const tables = yield* Tables

    const list = (query: ConflictQuery) =>
      Effect.gen(function* () {
        yield* isSchool(pg, query.school)
        const [at, id] = positionOf(query.cursor)
        const rows = yield* pg.query<Stored>(
          `SELECT ${COLUMNS} FROM schoolbus.conflicts
            WHERE ($1::text IS NULL OR (status <> 'open') = ($1 = 'true')) AND ($2::text IS NULL OR table_name = $2) AND ($3::text IS NULL OR school = $3)
              AND ($4::text IS NULL OR (at, id::text COLLATE "C") < ($4::timestamptz, $5 COLLATE "C"))
            ORDER BY conflicts.at DESC, id::text COLLATE "C" DESC LIMIT $6::int`,
          [query.resolved === undefined ? null : String(query.resolved), query.table ?? null, query.school ?? null, at, id, query.limit + 1],
        )
        if (rows.length === 0) yield* isTable(tables, query)
        const now = yield* Clock.currentTimeMillis
        return pageOf(
          rows.map((row) => recordOf(row, now)),
          query.limit,
          (row) => [row.at, row.id],
        )
      })
    const show = (id: string) =>
      Effect.gen(function* () {
        const [row] = yield* pg.query<Stored>(`SELECT ${COLUMNS} FROM schoolbus.conflicts WHERE id::text = $1`, [id.toLowerCase()])
        if (row === undefined) return yield* new ConflictRefused({ code: "not_found", message: `no conflict ${id}; see: schoolbus conflicts list` })
        return recordOf(row, yield* Clock.currentTimeMillis)
      })
    const decider = Effect.map(tables.all, (all) => ({ ...tables, tables: all }))
    const told = <A>(body: Effect.Effect<A, DecideRefused | ConflictRefused | PostgresError>) =>
      Effect.catchTag(body, "DecideRefused", ({ code, message }) => Effect.fail(new ConflictRefused({ code, message })))

    const autoResolve = (query: AutoQuery, by: string) =>
      Effect.gen(function* () {
        yield* isSchool(pg, query.school)
        const rows = yield* pg.query<Stored>(
          `SELECT ${COLUMNS} FROM schoolbus.conflicts
            WHERE status = 'open' AND ($1::text IS NULL OR table_name = $1) AND ($2::text IS NULL OR school = $2) ORDER BY conflicts.at, id LIMIT $3::int`,
          [query.table ?? null, query.school ?? null, query.max],
        )
        if (rows.length === 0) yield* isTable(tables, query)
        const resolved: Array<AutoResult["resolved"][number]> = []
        const skipped: Array<AutoResult["skipped"][number]> = []
        for (const row of rows) {
          const advice = recommend(row, yield* Clock.currentTimeMillis)
          if (advice === null || !advice.safe) {
            skipped.push({ id: row.id, why: advice?.why ?? "decided meanwhile" })
            continue
          }
          const { keep, why } = advice
          // A value that has become free since is kept as it is; a suggestion is made anew.
          const refused = yield* (
            keep === "rename_local" ? renameOrKeep(pg, yield* decider, row.id, by) : resolveConflict(pg, yield* decider, row.id, { keep }, by)
          ).pipe(
            Effect.as(null),
            Effect.catchTag("DecideRefused", ({ message }) => Effect.succeed(message)),
          )
          if (refused !== null) skipped.push({ id: row.id, why: refused })
          else resolved.push({ id: row.id, keep, ...(keep === "rename_local" ? { value: advice.value } : {}), why })
        }
        return { resolved, skipped }
      })
    return Conflicts.of({
      list,
      show,
      resolve: (id, choice, by) =>
        told(
          Effect.andThen(
            Effect.flatMap(decider, (all) => resolveConflict(pg, all, id, choice, by)),
            Effect.suspend(() => show(id)),
          ),
        ),
      undo: (id, by) =>
        told(
          Effect.andThen(
            Effect.flatMap(decider, (all) => undoConflict(pg, all, id, by)),
            Effect.suspend(() => show(id)),
          ),
        ),
      autoResolve,
    })
  }),
)

/** Of a change that waits because another row has a unique value of its own. */
const CLASH = (quarantine: string): string =>
  `(SELECT c.id::text FROM schoolbus.conflicts c WHERE c.quarantine = ${quarantine} AND c.status = 'open' ORDER BY c.unique_columns LIMIT 1)`
const QUARANTINE = `id::text AS id, school, table_name AS "table", row_key AS key, op, change, reason, detail, status, ${iso("at")} AS at,
  decided_by AS "decidedBy", ${iso("decided_at")} AS "decidedAt", ${CLASH("quarantine.id")} AS conflict, ${REQUESTED("quarantine.id::text")}`
type StoredChange = Omit<QuarantineRecord, "requested"> & { readonly requested: string | null }
const changeOf = (row: StoredChange): QuarantineRecord => ({
  ...row,
  requested: row.requested === null ? null : (JSON.parse(row.requested) as Requested),
})

export const hubQuarantine: Layer.Layer<Quarantine, never, Postgres | Tables> = Layer.effect(
  Quarantine,
  Effect.gen(function* () {
    const pg = yield* Postgres
    const tables = yield* Tables
    const show = (id: string) =>
      Effect.gen(function* () {
        const [row] = yield* pg.query<StoredChange>(`SELECT ${QUARANTINE} FROM schoolbus.quarantine WHERE id::text = $1`, [id.toLowerCase()])
        return row === undefined
          ? yield* new ConflictRefused({ code: "not_found", message: `no quarantined change ${id}; see: schoolbus quarantine list` })
          : changeOf(row)
      })
    return Quarantine.of({
      list: (query) =>
        Effect.gen(function* () {
          yield* isSchool(pg, query.school)
          const [at, id] = positionOf(query.cursor)
          const rows = yield* pg.query<StoredChange>(
            `SELECT ${QUARANTINE} FROM schoolbus.quarantine
              WHERE ($1::text IS NULL OR (status <> 'open') = ($1 = 'true')) AND ($2::text IS NULL OR table_name = $2) AND ($3::text IS NULL OR school = $3)
                AND ($1 IS DISTINCT FROM 'false' OR ${CLASH("quarantine.id")} IS NULL)
                AND ($4::text IS NULL OR (at, id::text COLLATE "C") < ($4::timestamptz, $5 COLLATE "C"))
              AND ($7::text IS NULL OR reason = $7)
              ORDER BY quarantine.at DESC, id::text COLLATE "C" DESC LIMIT $6::int`,
            [
              query.resolved === undefined ? null : String(query.resolved),
              query.table ?? null,
              query.school ?? null,
              at,
              id,
              query.limit + 1,
              query.reason ?? null,
            ],
          )
          const [clashing] = yield* pg.query<{ n: number }>(
            `SELECT count(DISTINCT quarantine)::int AS n FROM schoolbus.conflicts
              WHERE status = 'open' AND quarantine IS NOT NULL AND ($1::text IS NULL OR table_name = $1) AND ($2::text IS NULL OR school = $2)
                AND ($3::text IS NULL OR $3 = 'unique')`,
            [query.table ?? null, query.school ?? null, query.reason ?? null],
          )
          if (rows.length === 0 && clashing?.n === 0) yield* isTable(tables, query)
          const page = pageOf(rows.map(changeOf), query.limit, (row) => [row.at, row.id])
          return { ...page, inConflicts: query.resolved === false ? (clashing?.n ?? 0) : 0 }
        }),
      show,
      decide: (id, action, by) =>
        Effect.gen(function* () {
          const decider = { ...tables, tables: yield* tables.all }
          if (action.action === "edit") yield* editQuarantined(pg, decider, id, JSON.stringify(action.values), by)
          else if (action.action === "discard") yield* discardQuarantined(pg, decider, id, by)
          else yield* retryQuarantined(pg, decider, id, by)
          return yield* show(id)
        }).pipe(Effect.catchTag("QuarantineRefused", ({ code, message }) => Effect.fail(new ConflictRefused({ code, message })))),
    })
  }),
)

/** At the hub a run is a batch that a school pushed: its ledger row. */
export const hubRuns: Layer.Layer<Runs, never, Postgres> = Layer.effect(
  Runs,
  Effect.gen(function* () {
    const pg = yield* Postgres
    return Runs.of({
      list: (query) => {
        const [at, id] = positionOf(query.cursor)
        const page = Effect.map(
          pg.query<Pick<RunRecord, "id" | "school" | "startedAt" | "up" | "conflicts">>(
            `SELECT l.incarnation::text || '/' || l.batch AS id, l.school, ${iso("l.at")} AS "startedAt", l.changes AS up,
                    (SELECT count(*)::int FROM schoolbus.conflicts c WHERE c.incarnation = l.incarnation AND c.batch = l.batch) AS conflicts
               FROM schoolbus.ledger l
              WHERE ($1::text IS NULL OR l.school = $1)
                AND ($2::text IS NULL OR (l.at, (l.incarnation::text || '/' || l.batch) COLLATE "C") < ($2::timestamptz, $3 COLLATE "C"))
              ORDER BY l.at DESC, (l.incarnation::text || '/' || l.batch) COLLATE "C" DESC LIMIT $4::int`,
            [query.school ?? null, at, id, query.limit + 1],
          ),
          (rows) =>
            pageOf(
              rows.map((row): RunRecord => ({ ...row, trigger: "push", direction: "up", tables: {}, endedAt: row.startedAt, down: 0, error: null })),
              query.limit,
              (run) => [run.startedAt, run.id],
            ),
        )
        return Effect.andThen(isSchool(pg, query.school), page)
      },
    })
  }),
)
