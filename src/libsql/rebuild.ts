/**
 * A large table that is built anew, in slices that hold the write lock for a moment each. Its rows are copied into the new
 * table beside it while programs go on reading and writing the old one; what they write is captured as always, and `changes`
 * says which rows are to be copied again. In the end only those are left, and the tables trade places.
 */
import * as Effect from "effect/Effect"
import { elapsedMs } from "../elapsed.ts"
import { ident, type LibsqlError, type LibsqlFile, type Tx } from "./client.ts"
import { noteSound } from "./gap.ts"
import { copy, DIRTY_ROWS, forget, type Plan, readDirty, readPrepared, tuple, valuesOf } from "./prepared.ts"
import { planRebuild, type Reshaping } from "./reshape.ts"

/** Smaller tables are built in one go. */
const SLICED_ROWS = 20_000
/** Of one slice: rows at first and at most, and the time that it is to take. */
const FIRST_ROWS = 2_000
const MOST_ROWS = 50_000
const SLICE_MS = 60
/** A program that writes faster than we copy does not keep the table from its new shape for ever. */
const MAX_PASSES = 100

/** Of these rows of the old table, those that the new one lacks. */
const missing = (tx: Tx, { local, fresh, key, keyNow }: Plan, keys: ReadonlyArray<string>, localKey: string) =>
  Effect.map(
    keys.length === 0
      ? Effect.succeed([])
      : tx.all<{ key: string }>(
          `SELECT ${localKey} AS key FROM ${ident(local)} t WHERE ${tuple(key, "t.")} IN ${valuesOf(keys)}
              AND NOT EXISTS (SELECT 1 FROM ${ident(fresh)} f WHERE ${key.map((name, i) => `f.${ident(keyNow[i] ?? "")} = t.${ident(name)}`).join(" AND ")})`,
        ),
    (rows) => rows.map((row) => row.key),
  )

/** What programs wrote meanwhile is copied again; false: nothing of it is left. */
const catchUp = (file: LibsqlFile, tbl: number, plan: Plan): Effect.Effect<boolean, LibsqlError> =>
  file.write((tx) =>
    Effect.gen(function* () {
      const prepared = yield* readPrepared(tx, tbl)
      if (prepared === undefined) return false
      const { keys, upTo, isMore } = yield* readDirty(tx, tbl, prepared.since, DIRTY_ROWS)
      if (keys.length === 0) return false
      const all = [...new Set([...(JSON.parse(prepared.owed) as ReadonlyArray<string>), ...keys])]
      yield* forget(tx, plan, all)
      yield* copy(tx, plan, all, "OR IGNORE")
      const owed = yield* missing(tx, plan, all, plan.localKey)
      yield* tx.run("UPDATE schoolbus_rebuild SET since = ?, owed = ? WHERE tbl = ?", [upTo, JSON.stringify(owed), tbl])
      return isMore
    }),
  )

/** One slice after the row numbered `after`; null: that was the last. */
const copySlice = (file: LibsqlFile, plan: Plan, after: number | bigint, rows: number): Effect.Effect<number | null, LibsqlError> =>
  file.write((tx) =>
    Effect.gen(function* () {
      const [end] = yield* tx.all<{ last: number | null; n: number }>(
        `SELECT max(r) AS last, count(*) AS n FROM (SELECT rowid AS r FROM ${ident(plan.local)} WHERE rowid > ? ORDER BY rowid LIMIT ?)`,
        [after, rows],
      )
      if (end?.last == null) return null
      // A row whose unique value was another's when that was copied has been written since, and is copied again.
      yield* tx.run(
        `INSERT OR IGNORE INTO ${ident(plan.fresh)} (${plan.targets}) SELECT ${plan.sources} FROM ${ident(plan.local)} WHERE rowid > ? AND rowid <= ?`,
        [after, end.last],
      )
      return end.n < rows ? null : end.last
    }),
  )

const build = (file: LibsqlFile, tbl: number, plan: Plan): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    yield* file.write((tx) =>
      Effect.gen(function* () {
        const [state] = yield* tx.all<{ sound: number }>(
          "SELECT schema_version = (SELECT schema_version FROM pragma_schema_version) AS sound FROM schoolbus_state",
        )
        yield* tx.exec(`DROP TABLE IF EXISTS ${ident(plan.fresh)}`)
        yield* tx.exec(plan.sql)
        yield* tx.run(
          "INSERT OR REPLACE INTO schoolbus_rebuild (tbl, sql, since, owed, done) SELECT ?, ?, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0), '[]', 0",
          [tbl, plan.sql],
        )
        if (state?.sound === 1) yield* noteSound(tx)
      }),
    )
    let rows = FIRST_ROWS
    for (let after: number | bigint | null = -9223372036854775808n; after !== null; ) {
      const startedAt = yield* elapsedMs
      after = yield* copySlice(file, plan, after, rows)
      const took = Math.max(1, (yield* elapsedMs) - startedAt)
      rows = Math.max(FIRST_ROWS / 4, Math.min(MOST_ROWS, Math.round((rows * SLICE_MS) / took), rows * 4))
      // Programs that wait for the lock get it between two slices.
      yield* Effect.sleep(1)
    }
    for (let pass = 0; pass < MAX_PASSES && (yield* catchUp(file, tbl, plan)); pass++);
    yield* file.write((tx) => tx.run("UPDATE schoolbus_rebuild SET done = 1 WHERE tbl = ?", [tbl]))
  })

/** `changed`: tables that are about to take another shape. Copies the large ones among them that have to be built anew. */
export const prepareRebuilds = (file: LibsqlFile, changed: ReadonlyArray<Reshaping>): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    for (const reshaping of changed) {
      const { tbl, before } = reshaping
      const plan = yield* file.read((tx) =>
        Effect.gen(function* () {
          const [captured] = yield* tx.all("SELECT 1 FROM schoolbus_installed WHERE tbl = ? AND name <> 'uniques' LIMIT 1", [tbl])
          const [gap] = yield* tx.all("SELECT 1 FROM schoolbus_gap WHERE tbl = ?", [tbl])
          const [form] = yield* tx.all<{ wr: number }>("SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ? COLLATE NOCASE", [
            before.local,
          ])
          if (captured === undefined || gap !== undefined || form?.wr !== 0) return null
          const [size] = yield* tx.all<{ n: number }>(`SELECT count(*) AS n FROM (SELECT 1 FROM ${ident(before.local)} LIMIT ${SLICED_ROWS})`)
          return (size?.n ?? 0) < SLICED_ROWS ? null : yield* planRebuild(tx, reshaping)
        }),
      )
      if (plan !== null) yield* build(file, tbl, plan)
    }
  })
