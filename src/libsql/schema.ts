/**
 * The school's tables, made from the manifest and carried along with it. A table that a program made or changed so that it
 * does not fit pauses by name (unfit.ts); only before the first installation it is refused, and nothing is done.
 */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { isReservedName, type Manifest, sameName, type Table } from "../model/table.ts"
import { captureExisting } from "./capture.ts"
import { ident, type LibsqlError, type Tx } from "./client.ts"
import { freezeOpen } from "./freeze.ts"
import { findGaps, noteInstalled, openGaps, openOrderGaps } from "./gap.ts"
import { ensureUniques, isOtherShape, isReplaced, makeAnew, type Reshaping, reorderChanges, replace, reshape } from "./reshape.ts"
import { anewRemedy, type FileColumn, type FileTable, type Misfit, misfitOf, missingColumns } from "./shape.ts"
import { columnSql, createTable, parentsOf } from "./table-sql.ts"
import { readTriggers } from "./triggers.ts"
import { noteUnfit, readUnfit, tearUnfit, type Unfit } from "./unfit.ts"

/** A table of the file does not fit the first manifest, or none of the file can be used; it was left as it is. */
export class TableRefused extends Data.TaggedError("TableRefused")<{ readonly table: string; readonly reason: string; readonly remedy: string }> {
  override get message(): string {
    return `table ${this.table}: ${this.reason}. ${this.remedy}`
  }
}

export interface InstallOptions {
  /** Local names of tables that worker modules listen to. */
  readonly streams: ReadonlyArray<string>
  /** Keep the rows of a table that a program made before, and send them up as inserts. */
  readonly adopt: boolean
}

const readFileTable = (tx: Tx, local: string): Effect.Effect<FileTable | null, LibsqlError> =>
  Effect.gen(function* () {
    const [found] = yield* tx.all<{ type: "table" | "view"; virtual: number }>(
      "SELECT type, sql LIKE 'CREATE VIRTUAL%' AS virtual FROM sqlite_master WHERE type IN ('table', 'view') AND name = ? COLLATE NOCASE",
      [local],
    )
    if (found === undefined) return null
    const columns = yield* tx.all<FileColumn>('SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?)', [local])
    return { type: found.type, isVirtual: found.virtual === 1, columns }
  })

/** Open writes were captured in the columns of the manifest that was; they are frozen in its terms before the columns change. */
const freezeUnder = (tx: Tx, stored: Manifest): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const present = new Set(
      (yield* tx.all<{ name: string }>("SELECT name FROM sqlite_master WHERE type = 'table'")).map(({ name }) => sameName(name)),
    )
    const gone = new Set(stored.tables.flatMap(({ name, local }) => (present.has(sameName(local)) ? [] : [name])))
    yield* freezeOpen(tx, stored, yield* Clock.currentTimeMillis, { gone })
  })

const reservedName = (table: Table): Misfit | null =>
  isReservedName(table)
    ? {
        reason: "has a name that the sync itself uses in a school's file",
        remedy: "Take the table out of the hub's config, or rename it at head office",
      }
    : null

const localOf = (manifest: Manifest, name: string): string => manifest.tables.find((table) => table.name === name)?.local ?? name

const shapeText = (table: Table, manifest: Manifest): string => {
  const { columns, key, unique, references, generation } = table
  return JSON.stringify([columns, key, unique, references, generation ?? 1, parentsOf(table, manifest)])
}

/**
 * The table as the file has it by an older manifest. Numbers of columns and generations are of one life of a table in one feed: in
 * another one names say which column is which, and the key whether rows are named in another way.
 */
const formerOf = (stored: Manifest | null, manifest: Manifest, table: Table): Table | undefined => {
  const former = stored?.tables.find(({ name, local }) => name === table.name && local === table.local)
  const life = manifest.lives?.[table.name]
  if (former === undefined || (stored?.feed === manifest.feed && (stored?.lives?.[table.name] ?? life) === life)) return former
  const { generation: _generation, ...before } = former
  const columns = before.columns.map(({ number: _number, ...column }) => column)
  return { ...before, columns, ...(table.generation === undefined ? {} : { generation: table.generation }) }
}

/** One table takes its new shape, or stays wholly as it is; then why. */
const reshapeOne = (tx: Tx, reshaping: Reshaping): Effect.Effect<Misfit | null, LibsqlError> =>
  Effect.gen(function* () {
    const { before, after } = reshaping
    yield* tx.run("SAVEPOINT reshape")
    const misfit = yield* Effect.gen(function* () {
      yield* isReplaced(before, after) ? replace(tx, reshaping) : reshape(tx, reshaping)
      const file = yield* readFileTable(tx, after.local)
      return file === null ? null : misfitOf(after, file)
    }).pipe(
      Effect.catch((error) =>
        /^SQLITE_(CONSTRAINT|ERROR|MISMATCH)/.test(error.code)
          ? Effect.succeed<Misfit>({ reason: `cannot take its new shape (${error.message})`, remedy: anewRemedy(after) })
          : Effect.fail(error),
      ),
    )
    if (misfit !== null) yield* tx.run("ROLLBACK TO reshape")
    yield* tx.run("RELEASE reshape")
    return misfit
  })

/** Tables that the file has under an older manifest take their new shape; answered are those that cannot. Capture is off and our triggers on them are gone. */
const reshapeAll = (tx: Tx, changed: ReadonlyArray<Reshaping>): Effect.Effect<ReadonlyArray<readonly [Table, Misfit]>, LibsqlError> =>
  Effect.gen(function* () {
    const refused: Array<readonly [Table, Misfit]> = []
    if (changed.length === 0) return refused
    yield* tx.run("UPDATE schoolbus_deliver SET active = 1")
    for (const reshaping of changed) {
      const { after } = reshaping
      const triggers = yield* tx.all<{ name: string }>(
        "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE AND name LIKE 'schoolbus\\_%' ESCAPE '\\'",
        [after.local],
      )
      for (const { name } of triggers) yield* tx.exec(`DROP TRIGGER ${ident(name)}`)
      const misfit = yield* reshapeOne(tx, reshaping)
      if (misfit !== null) refused.push([after, misfit])
    }
    yield* tx.run("UPDATE schoolbus_deliver SET active = 0")
    if (!changed.some(({ before, after }) => isOtherShape(before, after))) return refused
    // Rows that came for the former shape are asked for again; of a cut that was half applied, all of it.
    yield* tx.run("DELETE FROM schoolbus_stage")
    yield* tx.run("DELETE FROM schoolbus_staged")
    yield* tx.run("UPDATE schoolbus_state SET epoch = '', seq = 0, cut = '0', applying = NULL WHERE applying IS NOT NULL")
    return refused
  })

export const HAS_ROWS = "exists already in this file and has rows of its own"

/** What happens to each of the manifest's tables. */
interface Plan {
  readonly changed: ReadonlyArray<Reshaping>
  /** Fit as they are, perhaps after columns are added. */
  readonly fitting: ReadonlyArray<readonly [Table, FileTable]>
  readonly adopted: ReadonlyArray<Table>
  readonly missing: ReadonlyArray<Table>
  /** Not ours, without rows, and do not fit: a table that had left the manifest stands there in its former shape. */
  readonly left: ReadonlyArray<readonly [Table, FileTable]>
  readonly unfit: ReadonlyArray<Omit<Unfit, "torn">>
}

const planOf = (
  tx: Tx,
  manifest: Manifest,
  stored: Manifest | null,
  ours: ReadonlyMap<string, number>,
  adopt: boolean,
): Effect.Effect<Plan, LibsqlError> =>
  Effect.gen(function* () {
    const changed: Array<Reshaping> = []
    const fitting: Array<readonly [Table, FileTable]> = []
    const adopted: Array<Table> = []
    const missing: Array<Table> = []
    const left: Array<readonly [Table, FileTable]> = []
    const unfit: Array<Omit<Unfit, "torn">> = []
    for (const table of manifest.tables) {
      const pause = (misfit: Misfit, taken = 0) => unfit.push({ name: table.name, ...misfit, taken })
      const reserved = reservedName(table)
      if (reserved !== null) {
        pause(reserved)
        continue
      }
      const file = yield* readFileTable(tx, table.local)
      if (file === null) {
        missing.push(table)
        continue
      }
      const before = formerOf(stored, manifest, table)
      const tbl = ours.get(table.name)
      const misfit = misfitOf(table, file)
      if (stored !== null && before !== undefined && tbl !== undefined && file.type === "table" && !file.isVirtual) {
        const isOther = shapeText(before, stored) !== shapeText(table, manifest)
        // A table that a program had altered before is not ours to rebuild.
        if (isOther && (isReplaced(before, table) || misfitOf(before, file) === null)) {
          changed.push({ before, after: table, file, manifest, former: stored, tbl })
          continue
        }
      }
      const isOthers = tbl === undefined && file.type === "table" && !file.isVirtual
      const hasRows = isOthers && (yield* tx.all(`SELECT 1 FROM ${ident(table.local)} LIMIT 1`)).length > 0
      if (misfit !== null) {
        if (stored !== null && isOthers && !hasRows) left.push([table, file])
        else pause(misfit, tbl === undefined ? 1 : 0)
        continue
      }
      if (tbl === undefined) {
        if (hasRows && !adopt) {
          pause(
            {
              reason: HAS_ROWS,
              remedy: "Rename or empty it; or start the node once with --adopt, which keeps its rows and sends them to head office",
            },
            1,
          )
          continue
        }
        if (hasRows) adopted.push(table)
      }
      fitting.push([table, file])
    }
    return { changed, fitting, adopted, missing, left, unfit }
  })

/** Tables of ours that are about to take another shape under this manifest. */
export const readChanged = (tx: Tx, manifest: Manifest): Effect.Effect<ReadonlyArray<Reshaping>, LibsqlError> =>
  Effect.gen(function* () {
    const [state] = yield* tx.all<{ manifest: string | null }>("SELECT manifest FROM schoolbus_state")
    if (state?.manifest == null) return []
    const known = yield* tx.all<{ id: number; name: string }>("SELECT id, name FROM schoolbus_tables")
    const ours = new Map(known.map(({ id, name }) => [name, id]))
    const { changed } = yield* planOf(tx, manifest, JSON.parse(state.manifest) as Manifest, ours, false)
    return changed.filter(({ before, after }) => !isReplaced(before, after))
  })

/**
 * Makes the file fit the manifest; runs inside one write transaction of the caller. A table of ours that is gone was
 * dropped by a program: it is made again, and the next pull fetches everything anew. One that did not fit and fits now, or
 * is gone, has a gap. Tables that left the manifest are marked, to be emptied.
 */
export const installTables = (tx: Tx, manifest: Manifest, options: InstallOptions): Effect.Effect<void, LibsqlError | TableRefused> =>
  Effect.gen(function* () {
    const [encoding] = yield* tx.all<{ encoding: string }>("PRAGMA encoding")
    if (encoding?.encoding !== "UTF-8") {
      return yield* new TableRefused({
        table: "(all)",
        reason: `this file stores text as ${encoding?.encoding}, not as UTF-8`,
        remedy: "Copy it into a new file: sqlite3 old.db .dump | sqlite3 school.db",
      })
    }
    const known = yield* tx.all<{ id: number; name: string; local: string; gone: number }>("SELECT id, name, local, gone FROM schoolbus_tables")
    const isGone = new Set(known.flatMap(({ name, gone }) => (gone === 1 ? [name] : [])))
    const gaps = [...(yield* findGaps(tx))]
    const lost = new Map<number, ReadonlyArray<string>>()
    const ours = new Map(known.map(({ id, name }) => [name, id]))
    const [state] = yield* tx.all<{ manifest: string | null }>("SELECT manifest FROM schoolbus_state")
    const text = JSON.stringify(manifest)
    const stored = state?.manifest == null ? null : (JSON.parse(state.manifest) as Manifest)
    // Of what happened to a table's rows while it was out, no tombstones tell.
    // Another feed is compared with as a whole.
    const before = stored?.feed === manifest.feed ? stored?.lives : undefined
    const wasOut = ({ name, direction }: Table) =>
      direction !== "up" && (isGone.has(name) || (before?.[name] ?? manifest.lives?.[name]) !== manifest.lives?.[name])
    let isDropped = manifest.tables.some(wasOut)
    const now = yield* Clock.currentTimeMillis
    const { changed, fitting, adopted, missing, left, unfit } = yield* planOf(tx, manifest, stored, ours, options.adopt)
    const [first] = unfit
    // Before anything was ever synced a person decides about all that stands in the file.
    if (stored === null && first !== undefined) {
      const { reason, remedy } = first
      return yield* new TableRefused({ table: localOf(manifest, first.name), reason, remedy })
    }
    const wasUnfit = new Map((yield* readUnfit(tx)).map((one) => [one.name, one]))
    yield* noteUnfit(tx, unfit, now)
    const isAway = missing.some(({ name }) => ours.has(name))
    isDropped ||= missing.some(({ name }) => ours.has(name) && !wasUnfit.has(name))
    // Before missing tables are made: nobody shall read from an empty one that all captured rows were deleted.
    const isOther = state?.manifest !== text || gaps.length > 0 || isAway || wasUnfit.size > 0
    if (stored !== null && isOther) yield* freezeUnder(tx, stored)
    for (const table of missing) yield* tx.exec(createTable(table, manifest))
    for (const [table, file] of left) yield* makeAnew(tx, table, file, manifest)
    // A copy that was made while writes went unseen lacks them.
    yield* tx.run("DELETE FROM schoolbus_rebuild WHERE tbl IN (SELECT value FROM json_each(?)) OR tbl IN (SELECT tbl FROM schoolbus_gap)", [
      JSON.stringify(gaps.map(({ tbl }) => tbl)),
    ])
    const refused = yield* reshapeAll(tx, changed)
    const paused = [...unfit, ...refused.map(([{ name }, misfit]) => ({ name, ...misfit, taken: 0 }))]
    if (refused.length > 0) yield* noteUnfit(tx, paused, now)
    const isPaused = new Set(paused.map(({ name }) => name))

    for (const [table, file] of fitting) {
      const had = new Set(stored?.tables.find(({ name }) => name === table.name)?.columns.map(({ name }) => name))
      const gone = missingColumns(table, file).flatMap(({ name }) => (had.has(name) ? [name] : []))
      const tbl = ours.get(table.name)
      if (gone.length > 0 && tbl !== undefined) {
        lost.set(tbl, gone)
        if (!gaps.some((gap) => gap.tbl === tbl)) gaps.push({ tbl, reason: `a program took out ${gone.join(", ")}` })
      }
      for (const column of missingColumns(table, file)) yield* tx.exec(`ALTER TABLE ${ident(table.local)} ADD COLUMN ${columnSql(column, true)}`)
    }
    for (const table of manifest.tables) {
      if (!ours.has(table.name) && !isPaused.has(table.name))
        yield* tx.run("INSERT INTO schoolbus_tables (name, local) VALUES (?, ?)", [table.name, table.local])
    }
    yield* tx.run("UPDATE schoolbus_tables SET gone = name NOT IN (SELECT value FROM json_each(?))", [
      JSON.stringify(manifest.tables.map(({ name }) => name)),
    ])
    const widest = Math.max(0, ...manifest.tables.map((table) => table.columns.length))
    const [info] = yield* tx.all<{ n: number }>("SELECT count(*) AS n FROM pragma_table_info('changes') WHERE name GLOB 'v[0-9]*'")
    for (let i = info?.n ?? 0; i < widest; i++) yield* tx.exec(`ALTER TABLE changes ADD COLUMN v${i}`)
    for (const after of manifest.tables) {
      const before = formerOf(stored, manifest, after)
      const tbl = ours.get(after.name)
      if (before !== undefined && tbl !== undefined && !isReplaced(before, after)) yield* reorderChanges(tx, before, after, tbl)
    }
    for (const table of manifest.tables) {
      const tbl = ours.get(table.name)
      if (tbl !== undefined && !isPaused.has(table.name)) yield* ensureUniques(tx, tbl, table, now)
    }

    const triggers = yield* readTriggers(tx, manifest, options.streams)
    for (const name of [...triggers.leftOver, ...triggers.missing.map((trigger) => trigger.name)])
      yield* tx.exec(`DROP TRIGGER IF EXISTS ${ident(name)}`)
    for (const trigger of triggers.missing) yield* tx.exec(trigger.sql)
    yield* noteInstalled(tx, triggers)
    const hasGap = (yield* tx.all("SELECT 1 FROM schoolbus_gap LIMIT 1")).length > 0
    if (!isOther && !hasGap) yield* openOrderGaps(tx, triggers.late, now)
    for (const table of adopted) {
      const [row] = yield* tx.all<{ id: number }>("SELECT id FROM schoolbus_tables WHERE name = ?", [table.name])
      yield* tx.run(captureExisting(table, row?.id ?? 0))
    }
    for (const { name, reason, torn } of [...wasUnfit.values()].filter((one) => !isPaused.has(one.name))) {
      const [mended] = yield* tx.all<{ id: number }>("SELECT id FROM schoolbus_tables WHERE name = ? AND gone = 0", [name])
      // One that begins anew is sent whole.
      if (mended === undefined || changed.some(({ before, after }) => after.name === name && isReplaced(before, after))) continue
      const anew = torn === 1 || !ours.has(name) || missing.some((table) => table.name === name)
      gaps.push({ tbl: mended.id, reason: `it did not fit before (${reason})`, anew })
    }
    const pausedTbls = new Set(paused.flatMap(({ name }) => ours.get(name) ?? []))
    yield* openGaps(
      tx,
      gaps.filter(({ tbl }) => !pausedTbls.has(tbl)),
      lost,
      now,
    )
    if (isDropped) {
      yield* tx.run("DELETE FROM schoolbus_stage")
      yield* tx.run("DELETE FROM schoolbus_staged")
      yield* tx.run("UPDATE schoolbus_state SET epoch = '', seq = 0, cut = '0', applying = NULL, terminals = 0")
      yield* tearUnfit(tx)
    }
    yield* tx.run("UPDATE schoolbus_state SET manifest = ?", [text])
  })

/** Our triggers that are missing or altered: a program rebuilt its table, or dropped them. Installing again restores them. */
export const missingTriggers = (tx: Tx, manifest: Manifest, streams: ReadonlyArray<string> = []): Effect.Effect<ReadonlyArray<string>, LibsqlError> =>
  Effect.map(readTriggers(tx, manifest, streams), ({ missing }) => missing.map(({ name }) => name))
