/**
 * A table of the file that takes the shape of a newer manifest. Columns are told by their numbers, so a renamed one keeps its
 * values. What SQLite can do in place is done so; else the table is built anew beside the old one, with its rows, a program's
 * own columns, indexes and triggers, and takes its name. Runs inside the caller's transaction, with capture off and our own
 * triggers on the table gone.
 */
import * as Effect from "effect/Effect"
import { localKeySql } from "../model/key.ts"
import { type Column, type Manifest, sameName, type Table } from "../model/table.ts"
import type { Wire } from "../model/value.ts"
import { ident, type LibsqlError, type Tx } from "./client.ts"
import { type Plan, takePrepared } from "./prepared.ts"
import { canHold, type FileColumn, type FileTable } from "./shape.ts"
import { forgetUnenforced, noteUnenforced } from "./unenforced.ts"
import { columnSql, columnsSql, createTable, defaultSql, literal, parentsOf, tableSql } from "./table-sql.ts"

/** For each column of the new shape, the old one that it continues. */
const oldOf = (before: Table, column: Column): Column | undefined =>
  before.columns.find((old) => (old.number === undefined || column.number === undefined ? old.name === column.name : old.number === column.number))

const fillOf = (column: Column): Wire => column.fill ?? null

/** Its rows are named in another way: the hub says so, or, of a table that had left the config meanwhile, its key does. */
export const isReplaced = (before: Table, after: Table): boolean =>
  (before.generation ?? 1) !== (after.generation ?? 1) ||
  after.key.map((name) => oldOf(before, after.columns.find((column) => column.name === name) as Column)?.name ?? "").join("\0") !==
    before.key.join("\0")

/** The file's columns by their name in the old shape. */
const columnsByName = (file: FileTable): ReadonlyMap<string, FileColumn> => new Map(file.columns.map((column) => [sameName(column.name), column]))

/** Where a column of the new shape stands in the file. A new one's name may be that of an old one, which goes by another name now. */
const standingOf = (before: Table, present: ReadonlyMap<string, FileColumn>, column: Column): FileColumn | undefined => {
  const old = oldOf(before, column)
  if (old !== undefined) return present.get(sameName(old.name))
  const isAnother = before.columns.some((other) => sameName(other.name) === sameName(column.name))
  return isAnother ? undefined : present.get(sameName(column.name))
}

const setOf = (columns: ReadonlyArray<string>): string => columns.map(sameName).toSorted().join("\0")

/** Unique constraints that the file's table itself declares. */
const declaredUniques = (tx: Tx, local: string): Effect.Effect<ReadonlyArray<ReadonlyArray<string>>, LibsqlError> =>
  Effect.map(
    tx.all<{ columns: string }>(
      `SELECT (SELECT json_group_array(i.name) FROM pragma_index_info(l.name) i) AS columns FROM pragma_index_list(?) l WHERE l.origin = 'u'`,
      [local],
    ),
    (rows) => rows.map(({ columns }) => JSON.parse(columns) as ReadonlyArray<string>),
  )

const escaped = (name: string): string => name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")

/** Columns that a program's own index, trigger or view speaks of: without them its writes or reads could fail. */
const usedByPrograms = (tx: Tx, local: string, names: ReadonlyArray<string>): Effect.Effect<ReadonlySet<string>, LibsqlError> =>
  Effect.map(
    tx.all<{ sql: string }>(
      "SELECT sql FROM sqlite_master WHERE type IN ('index', 'trigger', 'view') AND sql IS NOT NULL AND name NOT LIKE 'schoolbus\\_%' ESCAPE '\\'",
    ),
    (rows) => {
      const about = rows.filter(({ sql }) => new RegExp(`(?<![\\w$])${escaped(local)}(?![\\w$])`, "i").test(sql))
      return new Set(
        names.filter((name) => about.some(({ sql }) => new RegExp(`(?<![\\w$])${escaped(name)}(?![\\w$])`, "i").test(sql))).map(sameName),
      )
    },
  )

/** A column of a program's own, or one that head office no longer has but a program's trigger or view needs. */
const keptSql = (column: FileColumn, isTheirs: boolean): string =>
  `${ident(column.name)} ${column.type}${isTheirs && column.notnull === 1 && column.dflt_value !== null ? " NOT NULL" : ""}${column.dflt_value === null ? "" : ` DEFAULT (${column.dflt_value})`}`

interface Build {
  readonly before: Table
  readonly after: Table
  readonly file: FileTable
  readonly manifest: Pick<Manifest, "tables" | "school">
  readonly uniques: ReadonlyArray<ReadonlyArray<string>>
}

const planBuild = (tx: Tx, { before, after, file, manifest, uniques }: Build): Effect.Effect<Plan, LibsqlError> =>
  Effect.gen(function* () {
    const { local } = after
    const present = columnsByName(file)
    const former = new Set(before.columns.map((column) => sameName(column.name)))
    const now = new Set(after.columns.map((column) => sameName(column.name)))
    const dropped = before.columns.flatMap(({ name }) => (now.has(sameName(name)) ? [] : [name]))
    const used = yield* usedByPrograms(tx, local, dropped)
    const kept = file.columns.filter(
      ({ name, hidden }) => hidden === 0 && !now.has(sameName(name)) && (used.has(sameName(name)) || !former.has(sameName(name))),
    )
    const nameNow = new Map(
      after.columns.flatMap((column) => {
        const old = oldOf(before, column)
        return old === undefined ? [] : [[sameName(old.name), column.name] as const]
      }),
    )
    const targets: Array<string> = []
    const sources: Array<string> = []
    const columns = after.columns.map((column) => {
      const old = oldOf(before, column)
      const here = old === undefined ? undefined : present.get(sameName(old.name))
      targets.push(ident(column.name))
      sources.push(here === undefined ? literal(column.kind, fillOf(column)) : ident(here.name))
      const isNotNull = column.notNull && !column.generated && (here === undefined ? fillOf(column) !== null : here.notnull === 1 || here.pk > 0)
      return { ...column, notNull: isNotNull }
    })
    for (const column of kept) {
      targets.push(ident(column.name))
      sources.push(ident(column.name))
    }
    // What the file enforced already goes on; what is new is tried afterwards.
    const enforced = new Set(uniques.map((unique) => setOf(unique.map((name) => nameNow.get(sameName(name)) ?? name))))
    const unique = after.unique.filter((columnsOf) => enforced.has(setOf(columnsOf)))
    const fresh = `schoolbus_new_${local}`
    const sql = tableSql(fresh, [
      ...columnsSql({ ...after, columns }, manifest),
      ...kept.map((column) => keptSql(column, !former.has(sameName(column.name)))),
      `PRIMARY KEY (${after.key.map(ident).join(", ")})`,
      ...unique.map((columnsOf) => `UNIQUE (${columnsOf.map(ident).join(", ")})`),
      ...parentsOf(after, manifest),
    ])
    const keys = { key: before.key, keyNow: after.key, localKey: localKeySql(before, "t.") }
    return { local, fresh, sql, targets: targets.join(", "), sources: sources.join(", "), ...keys }
  })

/** A program's own indexes and triggers of a table. */
const programsOwn = (tx: Tx, local: string): Effect.Effect<ReadonlyArray<{ readonly sql: string }>, LibsqlError> =>
  tx.all<{ sql: string }>(
    "SELECT sql FROM sqlite_master WHERE tbl_name = ? COLLATE NOCASE AND type IN ('index', 'trigger') AND sql IS NOT NULL AND name NOT LIKE 'schoolbus\\_%' ESCAPE '\\'",
    [local],
  )

const restoreOwn = (tx: Tx, local: string, others: ReadonlyArray<{ readonly sql: string }>): Effect.Effect<void, LibsqlError> =>
  Effect.forEach(
    others,
    ({ sql }) =>
      tx.exec(sql).pipe(Effect.catch((error) => Effect.logWarning(`table ${local} has another shape now; left out: ${sql} (${error.message})`))),
    { discard: true },
  )

const buildAnew = (tx: Tx, build: Build, tbl: number): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const plan = yield* planBuild(tx, build)
    const { local, fresh, sql, targets, sources } = plan
    const others = yield* programsOwn(tx, local)
    if (!(yield* takePrepared(tx, tbl, plan))) {
      yield* tx.exec(`DROP TABLE IF EXISTS ${ident(fresh)}`)
      yield* tx.exec(sql)
      yield* tx.run(`INSERT INTO ${ident(fresh)} (${targets}) SELECT ${sources} FROM ${ident(local)}`)
    }
    yield* tx.exec(`DROP TABLE ${ident(local)}`)
    // Other tables' references, views and triggers name the table, which will be there again.
    yield* tx.exec("PRAGMA legacy_alter_table = ON")
    yield* Effect.ensuring(
      tx.exec(`ALTER TABLE ${ident(fresh)} RENAME TO ${ident(local)}`),
      Effect.ignore(tx.exec("PRAGMA legacy_alter_table = OFF")),
    )
    yield* restoreOwn(tx, local, others)
  })

/** A table without rows that does not fit is made anew; a program's own columns, indexes and triggers stay. */
export const makeAnew = (tx: Tx, table: Table, file: FileTable, manifest: Pick<Manifest, "tables" | "school">): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const now = new Set(table.columns.map((column) => sameName(column.name)))
    const own = file.columns.filter(({ name, hidden }) => hidden === 0 && !now.has(sameName(name))).map((column) => keptSql(column, true))
    const others = yield* programsOwn(tx, table.local)
    yield* tx.exec(`DROP TABLE ${ident(table.local)}`)
    yield* tx.exec(createTable(table, manifest, own))
    yield* restoreOwn(tx, table.local, others)
  })

/** New names, each first out of the way of the others. */
const rename = (tx: Tx, before: Table, after: Table, present: ReadonlyMap<string, FileColumn>): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const pairs = after.columns.flatMap((column): ReadonlyArray<readonly [string, string]> => {
      const here = present.get(sameName(oldOf(before, column)?.name ?? ""))
      return here === undefined || here.name === column.name || sameName(here.name) === sameName(column.name) ? [] : [[here.name, column.name]]
    })
    for (const [i, [from]] of pairs.entries())
      yield* tx.exec(`ALTER TABLE ${ident(after.local)} RENAME COLUMN ${ident(from)} TO ${ident(`schoolbus_${i}`)}`)
    for (const [i, [, to]] of pairs.entries())
      yield* tx.exec(`ALTER TABLE ${ident(after.local)} RENAME COLUMN ${ident(`schoolbus_${i}`)} TO ${ident(to)}`)
  })

/** Unique constraints that the table does not declare itself stand beside it, where the rows allow it. */
export const ensureUniques = (tx: Tx, tbl: number, table: Table, now: number): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const { local } = table
    yield* forgetUnenforced(tx, tbl)
    const rows = yield* tx.all<{ name: string; columns: string }>(
      `SELECT l.name, (SELECT json_group_array(i.name) FROM pragma_index_info(l.name) i) AS columns FROM pragma_index_list(?) l WHERE l."unique" = 1 AND l.partial = 0`,
      [local],
    )
    const wanted = new Map(table.unique.map((columns) => [setOf(columns), columns]))
    const present = new Set<string>()
    for (const { name, columns } of rows) {
      const id = setOf((JSON.parse(columns) as ReadonlyArray<string | null>).map((column) => column ?? ""))
      if (wanted.has(id) || !name.startsWith("schoolbus_")) present.add(id)
      else yield* tx.exec(`DROP INDEX ${ident(name)}`)
    }
    for (const [id, columns] of wanted) {
      if (present.has(id)) continue
      const name = `schoolbus_${local}_${columns.join("_")}`
      yield* tx
        .exec(`CREATE UNIQUE INDEX ${ident(name)} ON ${ident(local)} (${columns.map(ident).join(", ")})`)
        .pipe(
          Effect.catch((error) => (error.code.startsWith("SQLITE_CONSTRAINT") ? noteUnenforced(tx, tbl, table, columns, now) : Effect.fail(error))),
        )
    }
  })

/** What was kept behind of a row, under the columns' new names; what is of another type comes again. */
const renameBehind = (tx: Tx, before: Table, after: Table, tbl: number): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const nameNow = new Map(
      after.columns.flatMap((column) => {
        const old = oldOf(before, column)
        return old === undefined || old.kind !== column.kind ? [] : [[old.name, column.name] as const]
      }),
    )
    if (before.columns.every((column) => nameNow.get(column.name) === column.name)) return
    const rows = yield* tx.all<{ key: string; row: string }>("SELECT key, row FROM schoolbus_behind WHERE tbl = ? AND row IS NOT NULL", [tbl])
    yield* tx.many(
      "UPDATE schoolbus_behind SET row = ? WHERE tbl = ? AND key = ?",
      rows.map(({ key, row }) => {
        const renamed = Object.entries(JSON.parse(row) as Record<string, Wire>).flatMap(([name, value]) => {
          const now = nameNow.get(name)
          return now === undefined ? [] : [[now, value] as const]
        })
        return [JSON.stringify(Object.fromEntries(renamed)), BigInt(tbl), key]
      }),
    )
    // All at once, for two columns may have taken each other's names.
    const holds = yield* tx.all<{ key: string; col: string; record: string; at: number }>(
      "DELETE FROM schoolbus_hold WHERE tbl = ? AND col IN (SELECT value FROM json_each(?)) RETURNING key, col, record, at",
      [tbl, JSON.stringify([...nameNow.keys()])],
    )
    yield* tx.many(
      "INSERT OR IGNORE INTO schoolbus_hold (tbl, key, col, record, at) VALUES (?, ?, ?, ?, ?)",
      holds.map(({ key, col, record, at }) => [BigInt(tbl), key, nameNow.get(col) ?? col, record, BigInt(at)]),
    )
  })

/** Old values of captured writes stand in the order of the columns. */
export const reorderChanges = (tx: Tx, before: Table, after: Table, tbl: number): Effect.Effect<void, LibsqlError> => {
  const from = after.columns.map((column) => before.columns.indexOf(oldOf(before, column) as Column))
  if (from.every((position, i) => position === i || (position === -1 && i >= before.columns.length))) return Effect.void
  const sets = from.map((position, i) => `v${i} = ${position === -1 ? "NULL" : `v${position}`}`)
  return Effect.asVoid(tx.run(`UPDATE changes SET ${sets.join(", ")} WHERE tbl = ?`, [tbl]))
}

export interface Reshaping {
  readonly before: Table
  readonly after: Table
  readonly file: FileTable
  readonly manifest: Pick<Manifest, "tables" | "school">
  /** As the file was made by it. */
  readonly former: Pick<Manifest, "tables">
  readonly tbl: number
}

/** Anything but more columns: then what is staged was made for another shape. */
export const isOtherShape = (before: Table, after: Table): boolean =>
  isReplaced(before, after) ||
  before.columns.some((old) => {
    const now = after.columns.find((column) => oldOf(before, column) === old)
    return now === undefined || now.kind !== old.kind || now.name !== old.name
  })

/** What is to be built anew; null when SQLite can do it in place. */
const buildOf = (tx: Tx, { before, after, file, manifest, former }: Reshaping): Effect.Effect<Build | null, LibsqlError> =>
  Effect.gen(function* () {
    const present = columnsByName(file)
    const uniques = yield* declaredUniques(tx, after.local)
    const wanted = new Set(after.unique.map((columns) => setOf(columns.map((name) => oldNameOf(before, after, name)))))
    const isUniqueGone = before.unique.some((columns) => !wanted.has(setOf(columns)) && uniques.some((unique) => setOf(unique) === setOf(columns)))
    const parents = parentsOf(after, manifest)
    const isParentGone = parentsOf(before, former).some((parent) => !parents.includes(parent))
    const isDropped = before.columns.some((old) => present.has(sameName(old.name)) && !after.columns.some((column) => oldOf(before, column) === old))
    const isUnfit = after.columns.some((column) => {
      const here = standingOf(before, present, column)
      if (here === undefined) return false
      const isTooStrict = here.notnull === 1 && here.pk === 0 && (!column.notNull || column.generated)
      return isTooStrict || !canHold(here.type, column)
    })
    // A default stands in the file for good, and rows that are older than the column show it.
    const isOtherDefault = after.columns.some((column) => {
      if (standingOf(before, present, column) !== undefined) return defaultSql(column) !== defaultSql(oldOf(before, column) ?? column)
      const fill = fillOf(column)
      return defaultSql(column) !== (fill === null ? null : literal(column.kind, fill))
    })
    const isAnew = isDropped || isUnfit || isUniqueGone || isParentGone || isOtherDefault
    return isAnew ? { before, after, file, manifest, uniques } : null
  })

/** How the table would be built anew, for `rebuild.ts`; null when that is not needed. */
export const planRebuild = (tx: Tx, reshaping: Reshaping): Effect.Effect<Plan | null, LibsqlError> =>
  Effect.flatMap(buildOf(tx, reshaping), (build) => (build === null ? Effect.succeed(null) : planBuild(tx, build)))

export const reshape = (tx: Tx, reshaping: Reshaping): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const { before, after, file, tbl } = reshaping
    const present = columnsByName(file)
    const build = yield* buildOf(tx, reshaping)
    if (build !== null) yield* buildAnew(tx, build, tbl)
    else {
      yield* rename(tx, before, after, present)
      for (const column of after.columns) {
        if (standingOf(before, present, column) !== undefined) continue
        yield* tx.exec(`ALTER TABLE ${ident(after.local)} ADD COLUMN ${columnSql(column, true)}`)
      }
    }
    yield* renameBehind(tx, before, after, tbl)
  })

const oldNameOf = (before: Table, after: Table, name: string): string => {
  const column = after.columns.find((one) => one.name === name)
  return column === undefined ? name : (oldOf(before, column)?.name ?? name)
}

/** More rows would be copied for too long: then the table is empty until head office's have come. */
const KEPT_ROWS = 20_000

/** Rows of a table under its former key, for the one that takes its place: programs go on reading them until head office's have come. */
const keepRows = (tx: Tx, { before, after, file }: Reshaping, old: string): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const present = columnsByName(file)
    const continued = after.columns.flatMap((column): ReadonlyArray<readonly [Column, string]> => {
      const was = oldOf(before, column)
      const here = was === undefined || was.kind !== column.kind ? undefined : present.get(sameName(was.name))
      return here === undefined ? [] : [[column, ident(here.name)]]
    })
    const sources = new Map(continued.map(([{ name }, source]) => [name, source]))
    const key = after.key.flatMap((name) => sources.get(name) ?? [])
    if (key.length < after.key.length) return
    const [size] = yield* tx.all<{ n: number }>(`SELECT count(*) AS n FROM (SELECT 1 FROM ${ident(old)} LIMIT ${KEPT_ROWS + 1})`)
    if ((size?.n ?? 0) > KEPT_ROWS) return
    const added = after.columns.filter((column) => !sources.has(column.name) && fillOf(column) !== null)
    const targets = [...continued.map(([{ name }]) => ident(name)), ...added.map(({ name }) => ident(name))]
    const values = [...continued.map(([, source]) => source), ...added.map((column) => literal(column.kind, fillOf(column)))]
    yield* tx.run(
      `INSERT OR IGNORE INTO ${ident(after.local)} (${targets.join(", ")}) SELECT ${values.join(", ")} FROM ${ident(old)} WHERE ${key.map((name) => `${name} IS NOT NULL`).join(" AND ")}`,
    )
  })

/** Rows are named in another way: the table begins anew, and what waits for a verdict under the old names keeps its own number. */
export const replace = (tx: Tx, reshaping: Reshaping): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const { before, after, file, manifest, tbl } = reshaping
    const { local } = after
    const name = ` before generation ${after.generation ?? 1}`
    const old = `${local}${name}`
    const others = yield* programsOwn(tx, local)
    for (const { kind, own } of yield* tx.all<{ kind: string; own: string }>(
      "SELECT type AS kind, name AS own FROM sqlite_master WHERE tbl_name = ? COLLATE NOCASE AND type IN ('index', 'trigger') AND sql IS NOT NULL",
      [local],
    ))
      yield* tx.exec(`DROP ${kind} ${ident(own)}`)
    // Other tables' references, views and triggers name the table, which will be there again.
    yield* tx.exec("PRAGMA legacy_alter_table = ON")
    yield* Effect.ensuring(tx.exec(`ALTER TABLE ${ident(local)} RENAME TO ${ident(old)}`), Effect.ignore(tx.exec("PRAGMA legacy_alter_table = OFF")))
    yield* tx.exec(createTable(after, manifest))
    yield* keepRows(tx, reshaping, old)
    const own = new Set(before.columns.map((column) => sameName(column.name)))
    // A program's own columns are not ours to throw away.
    if (file.columns.every((column) => own.has(sameName(column.name)))) yield* tx.exec(`DROP TABLE ${ident(old)}`)
    yield* restoreOwn(tx, local, others)
    for (const table of ["schoolbus_behind", "schoolbus_hold"]) yield* tx.run(`DELETE FROM ${table} WHERE tbl = ?`, [tbl])
    yield* tx.run("UPDATE schoolbus_tables SET name = name || ?2, local = local || ?2 WHERE id = ?1", [tbl, name])
    yield* tx.run("INSERT INTO schoolbus_tables (name, local, renewed) VALUES (?, ?, 1)", [after.name, local])
  })
