/** The school's tables, made from the manifest and carried along with it; a table that a program made or changed so that it does not fit is refused by name. */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { isReservedName, type Manifest, sameName, type Table } from "../model/table.ts"
import { captureExisting } from "./capture.ts"
import { ident, type LibsqlError, type Tx } from "./client.ts"
import { freezeOpen } from "./freeze.ts"
import { findGaps, noteInstalled, openGaps } from "./gap.ts"
import { ensureUniques, isOtherShape, isReplaced, type Reshaping, reorderChanges, replace, reshape } from "./reshape.ts"
import { type FileColumn, type FileTable, misfitOf, missingColumns } from "./shape.ts"
import { columnSql, createTable, parentsOf } from "./table-sql.ts"
import { readTriggers } from "./triggers.ts"

/** A table of the file does not fit the manifest and was left as it is. */
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
    const readable = { ...stored, tables: stored.tables.filter((table) => present.has(sameName(table.local))) }
    yield* freezeOpen(tx, readable, yield* Clock.currentTimeMillis)
  })

const refuseReserved = (table: Table): TableRefused | null =>
  isReservedName(table)
    ? new TableRefused({
        table: table.local,
        reason: "has a name that the sync itself uses in a school's file",
        remedy: "Take the table out of the hub's config, or rename it at head office",
      })
    : null

const shapeText = (table: Table, manifest: Manifest): string => {
  const { columns, key, unique, references, generation } = table
  return JSON.stringify([columns, key, unique, references, generation ?? 1, parentsOf(table, manifest)])
}

/** Tables that the file has under an older manifest take their new shape. Capture is off and our triggers on them are gone. */
const reshapeAll = (tx: Tx, changed: ReadonlyArray<Reshaping>): Effect.Effect<void, LibsqlError | TableRefused> =>
  Effect.gen(function* () {
    if (changed.length === 0) return
    yield* tx.run("UPDATE schoolbus_deliver SET active = 1")
    for (const reshaping of changed) {
      const { before, after } = reshaping
      const triggers = yield* tx.all<{ name: string }>(
        "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE AND name LIKE 'schoolbus\\_%' ESCAPE '\\'",
        [after.local],
      )
      for (const { name } of triggers) yield* tx.exec(`DROP TRIGGER ${ident(name)}`)
      yield* isReplaced(before, after) ? replace(tx, reshaping) : reshape(tx, reshaping)
      const file = yield* readFileTable(tx, after.local)
      const misfit = file === null ? null : misfitOf(after, file)
      if (misfit !== null) return yield* new TableRefused({ table: after.local, ...misfit })
    }
    yield* tx.run("UPDATE schoolbus_deliver SET active = 0")
    if (!changed.some(({ before, after }) => isOtherShape(before, after))) return
    // Rows that came for the former shape are asked for again; of a cut that was half applied, all of it.
    yield* tx.run("DELETE FROM schoolbus_stage")
    yield* tx.run("DELETE FROM schoolbus_staged")
    yield* tx.run("UPDATE schoolbus_state SET epoch = '', seq = 0, cut = '0', applying = NULL WHERE applying IS NOT NULL")
  })

/**
 * Makes the file fit the manifest; runs inside one write transaction of the caller. A table of ours that is gone was
 * dropped by a program: it is made again, and the next pull fetches everything anew. Tables that left the manifest are
 * marked, to be emptied.
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
    const changed: Array<Reshaping> = []
    const adopted: Array<Table> = []
    const widened: Array<readonly [Table, FileTable]> = []
    // Of what happened to a table's rows while it was out, no tombstones tell.
    const wasOut = ({ name }: Table) => isGone.has(name) || (stored?.lives?.[name] ?? manifest.lives?.[name]) !== manifest.lives?.[name]
    let isDropped = manifest.tables.some(wasOut)
    for (const table of manifest.tables) {
      const reserved = refuseReserved(table)
      if (reserved !== null) return yield* reserved
      const file = yield* readFileTable(tx, table.local)
      if (file === null) {
        yield* tx.exec(createTable(table, manifest))
        isDropped ||= ours.has(table.name)
      } else {
        const before = stored?.tables.find((one) => one.name === table.name && one.local === table.local)
        const tbl = ours.get(table.name)
        const isOurs = stored !== null && before !== undefined && tbl !== undefined && file.type === "table" && !file.isVirtual
        if (isOurs && shapeText(before, stored) !== shapeText(table, manifest)) {
          changed.push({ before, after: table, file, manifest, former: stored, tbl })
          continue
        }
        const misfit = misfitOf(table, file)
        if (misfit !== null) return yield* new TableRefused({ table: table.local, ...misfit })
        widened.push([table, file])
        if (!ours.has(table.name)) {
          const [row] = yield* tx.all<{ n: number }>(`SELECT EXISTS (SELECT 1 FROM ${ident(table.local)}) AS n`)
          if (row?.n === 1 && !options.adopt) {
            return yield* new TableRefused({
              table: table.local,
              reason: "exists already in this file and has rows of its own",
              remedy: "Rename or empty it; or start the node once with --adopt, which keeps its rows and sends them to head office",
            })
          }
          if (row?.n === 1) adopted.push(table)
        }
      }
    }

    if (stored !== null && (state?.manifest !== text || gaps.length > 0)) yield* freezeUnder(tx, stored)
    yield* reshapeAll(tx, changed)

    for (const [table, file] of widened) {
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
      if (!ours.has(table.name)) yield* tx.run("INSERT INTO schoolbus_tables (name, local) VALUES (?, ?)", [table.name, table.local])
    }
    yield* tx.run("UPDATE schoolbus_tables SET gone = name NOT IN (SELECT value FROM json_each(?))", [
      JSON.stringify(manifest.tables.map(({ name }) => name)),
    ])
    const widest = Math.max(0, ...manifest.tables.map((table) => table.columns.length))
    const [info] = yield* tx.all<{ n: number }>("SELECT count(*) AS n FROM pragma_table_info('changes') WHERE name GLOB 'v[0-9]*'")
    for (let i = info?.n ?? 0; i < widest; i++) yield* tx.exec(`ALTER TABLE changes ADD COLUMN v${i}`)
    for (const { before, after, tbl } of changed) {
      if (!isReplaced(before, after)) yield* reorderChanges(tx, before, after, tbl)
    }
    for (const table of manifest.tables) if (ours.has(table.name)) yield* ensureUniques(tx, table)

    const triggers = yield* readTriggers(tx, manifest, options.streams)
    for (const name of [...triggers.leftOver, ...triggers.missing.map((trigger) => trigger.name)])
      yield* tx.exec(`DROP TRIGGER IF EXISTS ${ident(name)}`)
    for (const trigger of triggers.missing) yield* tx.exec(trigger.sql)
    yield* noteInstalled(tx, triggers)
    for (const table of adopted) {
      const [row] = yield* tx.all<{ id: number }>("SELECT id FROM schoolbus_tables WHERE name = ?", [table.name])
      yield* tx.run(captureExisting(table, row?.id ?? 0))
    }
    yield* openGaps(tx, gaps, lost, yield* Clock.currentTimeMillis)
    if (isDropped) {
      yield* tx.run("DELETE FROM schoolbus_stage")
      yield* tx.run("DELETE FROM schoolbus_staged")
      yield* tx.run("UPDATE schoolbus_state SET epoch = '', seq = 0, cut = '0', applying = NULL, terminals = 0")
    }
    yield* tx.run("UPDATE schoolbus_state SET manifest = ?", [text])
  })

/** Our triggers that are missing or altered: a program rebuilt its table, or dropped them. Installing again restores them. */
export const missingTriggers = (tx: Tx, manifest: Manifest, streams: ReadonlyArray<string> = []): Effect.Effect<ReadonlyArray<string>, LibsqlError> =>
  Effect.map(readTriggers(tx, manifest, streams), ({ missing }) => missing.map(({ name }) => name))
