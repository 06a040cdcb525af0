/** Conflicts and runs in a school's file: read here, decided at head office (the decision comes down like any row). */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Libsql, type Tx } from "../libsql/client.ts"
import { ConflictRefused, type ConflictRecord, type ConflictQuery, Conflicts, decodeCursor, pageOf, Runs, type RunRecord } from "./records.ts"
import { timeOf } from "./snapshot.ts"

const COLUMNS = `id, school, table_name AS "table", row_key AS key, column_name AS "column", base, mine, theirs, kept, winner, strategy, reason, status,
  at, decided_by AS decidedBy, decided_at AS decidedAt`

const hasTable = (tx: Tx) =>
  Effect.map(
    tx.all<{ n: number }>("SELECT count(*) AS n FROM sqlite_schema WHERE type = 'table' AND name = 'schoolbus_conflicts'"),
    ([row]) => row?.n === 1,
  )

/** `"2026-01-01 08:00:00.123456+00"`, as Postgres prints it and the file keeps it -> RFC 3339, as the hub answers it. */
const isoOf = (text: string): string => text.replace(" ", "T").replace(/\+00(:?00)?$/, "Z")
const withTimes = (row: ConflictRecord): ConflictRecord => ({
  ...row,
  at: isoOf(row.at),
  decidedAt: row.decidedAt === null ? null : isoOf(row.decidedAt),
})

const notFound = (id: string) => new ConflictRefused({ code: "not_found", message: `no conflict ${id} here; see: schoolbus conflicts list` })

export const schoolConflicts: Layer.Layer<Conflicts, never, Libsql> = Layer.effect(
  Conflicts,
  Effect.gen(function* () {
    const db = yield* Libsql
    const list = (query: ConflictQuery) =>
      db.read((tx) =>
        Effect.gen(function* () {
          if (!(yield* hasTable(tx))) return { items: [], nextCursor: null }
          const [at, id] = decodeCursor(query.cursor, 2) ?? [null, null]
          const rows = yield* tx.all<ConflictRecord>(
            `SELECT ${COLUMNS} FROM schoolbus_conflicts
              WHERE (?1 IS NULL OR (status <> 'open') = ?1) AND (?2 IS NULL OR table_name = ?2) AND (?3 IS NULL OR (at, id) < (?3, ?4))
              ORDER BY at DESC, id DESC LIMIT ?5`,
            [query.resolved ?? null, query.table ?? null, at ?? null, id ?? null, query.limit + 1],
          )
          const page = pageOf(rows, query.limit, (row) => [row.at, row.id])
          return { ...page, items: page.items.map(withTimes) }
        }),
      )
    const show = (id: string) =>
      db.read((tx) =>
        Effect.gen(function* () {
          const rows = (yield* hasTable(tx)) ? yield* tx.all<ConflictRecord>(`SELECT ${COLUMNS} FROM schoolbus_conflicts WHERE id = ?`, [id]) : []
          return rows[0] === undefined ? yield* notFound(id) : withTimes(rows[0])
        }),
      )
    const resolve = (id: string) =>
      Effect.flatMap(show(id), () =>
        Effect.fail(
          new ConflictRefused({
            code: "not_here",
            message: `conflicts are decided at head office: schoolbus conflicts resolve ${id} --url <the hub>`,
          }),
        ),
      )
    return Conflicts.of({ list, show, resolve })
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
            const [state] = yield* tx.all<{ school: string | null }>("SELECT school FROM schoolbus_state")
            const rows = yield* tx.all<RunRow>(`SELECT * FROM schoolbus_run WHERE id < ? ORDER BY id DESC LIMIT ?`, [
              before === undefined || !/^\d{1,15}$/.test(before) ? Number.MAX_SAFE_INTEGER : Number(before),
              query.limit + 1,
            ])
            const runs = rows.map(
              (row): RunRecord => ({
                id: String(row.id),
                school: state?.school ?? null,
                trigger: row.trigger,
                startedAt: timeOf(row.started_at) ?? "",
                endedAt: timeOf(row.ended_at),
                up: row.up,
                down: row.down,
                conflicts: row.conflicts,
                error: row.error,
              }),
            )
            return pageOf(runs, query.limit, (run) => [run.id])
          }),
        ),
    })
  }),
)
