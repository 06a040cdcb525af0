/** Conflicts and pushed batches, from Postgres; decisions are made here. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Postgres } from "../postgres/client.ts"
import { resolveConflict } from "../up/decide.ts"
import { Tables } from "../up/tables.ts"
import { ConflictRefused, type ConflictQuery, type ConflictRecord, Conflicts, decodeCursor, pageOf, type RunRecord, Runs } from "./records.ts"

const iso = (column: string): string => `to_char(${column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`

const COLUMNS = `id::text AS id, school, table_name AS "table", row_key AS key, column_name AS "column", base, mine, theirs, kept, winner, strategy, reason, status,
  ${iso("at")} AS at, decided_by AS "decidedBy", ${iso("decided_at")} AS "decidedAt"`

/** A cursor that is not ours starts from the beginning; its text never reaches a cast that could fail. */
const positionOf = (cursor: string | undefined): readonly [at: string | null, id: string | null] => {
  const [at, id] = decodeCursor(cursor, 2) ?? []
  return at !== undefined && id !== undefined && /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/.test(at) && !Number.isNaN(Date.parse(at))
    ? [at, id]
    : [null, null]
}

export const hubConflicts: Layer.Layer<Conflicts, never, Postgres | Tables> = Layer.effect(
  Conflicts,
  Effect.gen(function* () {
    const pg = yield* Postgres
    const tables = yield* Tables

    const list = (query: ConflictQuery) => {
      const [at, id] = positionOf(query.cursor)
      return Effect.map(
        pg.query<ConflictRecord>(
          `SELECT ${COLUMNS} FROM schoolbus.conflicts
            WHERE ($1::text IS NULL OR (status <> 'open') = ($1 = 'true')) AND ($2::text IS NULL OR table_name = $2) AND ($3::text IS NULL OR school = $3)
              AND ($4::text IS NULL OR (at, id::text COLLATE "C") < ($4::timestamptz, $5 COLLATE "C"))
            ORDER BY conflicts.at DESC, id::text COLLATE "C" DESC LIMIT $6::int`,
          [query.resolved === undefined ? null : String(query.resolved), query.table ?? null, query.school ?? null, at, id, query.limit + 1],
        ),
        (rows) => pageOf(rows, query.limit, (row) => [row.at, row.id]),
      )
    }
    const show = (id: string) =>
      Effect.flatMap(pg.query<ConflictRecord>(`SELECT ${COLUMNS} FROM schoolbus.conflicts WHERE id = $1::uuid`, [id]), ([row]) =>
        row === undefined
          ? Effect.fail(new ConflictRefused({ code: "not_found", message: `no conflict ${id}; see: schoolbus conflicts list` }))
          : Effect.succeed(row),
      )
    return Conflicts.of({
      list,
      show,
      resolve: (id, keep, by) =>
        Effect.gen(function* () {
          yield* resolveConflict(pg, { ...tables, tables: yield* tables.all }, id.toLowerCase(), keep, by)
          return yield* show(id)
        }).pipe(Effect.catchTag("DecideRefused", ({ code, message }) => Effect.fail(new ConflictRefused({ code, message })))),
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
        return Effect.map(
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
              rows.map((row): RunRecord => ({ ...row, trigger: "push", endedAt: row.startedAt, down: 0, error: null })),
              query.limit,
              (run) => [run.startedAt, run.id],
            ),
        )
      },
    })
  }),
)
