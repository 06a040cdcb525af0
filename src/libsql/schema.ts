/** The school's tables, made from the manifest and carried along with it. Additive changes only; anything else is refused by name. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { Manifest, Table } from "../model/table.ts"
import { kindOf, sqliteType, type Wire } from "../model/value.ts"
import { captureTriggers, streamTriggers, type Trigger } from "./capture.ts"
import { ident, type LibsqlError, type Tx } from "./client.ts"

/** A table of the file does not fit the manifest and was left as it is. */
export class TableRefused extends Data.TaggedError("TableRefused")<{ readonly table: string; readonly reason: string; readonly remedy: string }> {
  override get message(): string {
    return `table ${this.table}: ${this.reason}. ${this.remedy}`
  }
}

const literal = (kind: ReturnType<typeof kindOf>, value: Wire): string =>
  value === null ? "NULL"
  : typeof value === "boolean" ? (value ? "1" : "0")
  : typeof value === "number" || kind === "bigint" ? String(value)
  : kind === "bytea" ? `X'${value}'`
  : `'${value.replaceAll("'", "''")}'`

const columnSql = (column: Table["columns"][number], isAdded: boolean): string => {
  const hasDefault = column.default !== undefined && column.default !== null && !column.generated
  // A column that is added to rows that exist can only be NOT NULL with a default.
  const notNull = column.notNull && !column.generated && (!isAdded || hasDefault)
  return `${ident(column.name)} ${sqliteType(column.kind)}${notNull ? " NOT NULL" : ""}${hasDefault ? ` DEFAULT ${literal(column.kind, column.default ?? null)}` : ""}`
}

const list = (names: ReadonlyArray<string>): string => names.map(ident).join(", ")

/** Foreign keys are declared only where the parent's audience contains the child's: a parent that every school holds. */
export const createTable = (table: Table, manifest: Pick<Manifest, "tables">): string => {
  const parents = table.references.flatMap((reference) => {
    const parent = manifest.tables.find((t) => t.name === reference.table)
    if (parent === undefined || parent.audience !== "all" || parent.direction === "up") return []
    const isUnique = [parent.key, ...parent.unique].some((columns) => columns.length === reference.to.length && columns.every((name) => reference.to.includes(name)))
    return isUnique ? [`FOREIGN KEY (${list(reference.columns)}) REFERENCES ${ident(parent.local)} (${list(reference.to)})`] : []
  })
  const parts = [
    ...table.columns.map((column) => columnSql(column, false)),
    `PRIMARY KEY (${list(table.key)})`,
    ...table.unique.map((columns) => `UNIQUE (${list(columns)})`),
    ...parents,
  ]
  return `CREATE TABLE ${ident(table.local)} (\n  ${parts.join(",\n  ")}\n)`
}

interface Wanted {
  readonly table: Table
  readonly triggers: ReadonlyArray<Trigger>
}

const wantedTriggers = (manifest: Manifest, ids: ReadonlyMap<string, number>, streams: ReadonlyArray<string>): ReadonlyArray<Wanted> =>
  manifest.tables.map((table) => ({
    table,
    triggers: [
      ...(table.system ? [] : captureTriggers(table, ids.get(table.name) ?? 0)),
      ...(streams.includes(table.local) ? streamTriggers(table) : []),
    ],
  }))

const presentTriggers = (tx: Tx) =>
  Effect.map(
    tx.all<{ name: string; sql: string }>("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'schoolbus\\_%' ESCAPE '\\'"),
    (rows) => new Map(rows.map((row) => [row.name, row.sql])),
  )

const tableIds = (tx: Tx) =>
  Effect.map(tx.all<{ id: number; name: string }>("SELECT id, name FROM schoolbus_tables"), (rows) => new Map(rows.map((row) => [row.name, row.id])))

export interface InstallOptions {
  /** Local names of tables that worker modules listen to. */
  readonly streams: ReadonlyArray<string>
  /** Keep the rows of a table that a program made before, and send them up as inserts. */
  readonly adopt: boolean
}

/** Makes the file fit the manifest; runs inside one write transaction of the caller. */
export const installTables = (tx: Tx, manifest: Manifest, options: InstallOptions): Effect.Effect<void, LibsqlError | TableRefused> =>
  Effect.gen(function* () {
    const ids = new Map(yield* tableIds(tx))
    const adopted: Array<Table> = []
    for (const table of manifest.tables) {
      const present = yield* tx.all<{ name: string; pk: number }>("SELECT name, pk FROM pragma_table_info(?)", [table.local])
      const isOurs = ids.has(table.name)
      if (present.length === 0) yield* tx.exec(createTable(table, manifest))
      else {
        const names = new Set(present.map((column) => column.name))
        if (!isOurs) {
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
        const key = present.filter((column) => column.pk > 0).sort((a, b) => a.pk - b.pk).map((column) => column.name)
        if (key.join("\0") !== table.key.join("\0")) {
          return yield* new TableRefused({
            table: table.local,
            reason: `its key is (${key.join(", ")}) here and (${table.key.join(", ")}) at head office`,
            remedy: "Save what you need of it, drop it, and start the node again: it is made anew and filled",
          })
        }
        for (const column of table.columns.filter((c) => !names.has(c.name))) {
          yield* tx.exec(`ALTER TABLE ${ident(table.local)} ADD COLUMN ${columnSql(column, true)}`)
        }
      }
      if (!isOurs) {
        const [row] = yield* tx.all<{ id: number }>("INSERT INTO schoolbus_tables (name, local) VALUES (?, ?) RETURNING id", [table.name, table.local])
        ids.set(table.name, row?.id ?? 0)
      }
    }
    const widest = Math.max(0, ...manifest.tables.filter((table) => !table.system).map((table) => table.columns.length))
    const [info] = yield* tx.all<{ n: number }>("SELECT count(*) AS n FROM pragma_table_info('changes') WHERE name GLOB 'v[0-9]*'")
    for (let i = info?.n ?? 0; i < widest; i++) yield* tx.exec(`ALTER TABLE changes ADD COLUMN v${i}`)

    const before = yield* presentTriggers(tx)
    const wanted = wantedTriggers(manifest, ids, options.streams)
    const names = new Set(wanted.flatMap(({ triggers }) => triggers.map((trigger) => trigger.name)))
    for (const name of before.keys()) {
      if (!names.has(name) && !name.startsWith("schoolbus_roster_")) yield* tx.exec(`DROP TRIGGER ${ident(name)}`)
    }
    for (const { triggers } of wanted) {
      for (const trigger of triggers) {
        if (before.get(trigger.name) === trigger.sql) continue
        yield* tx.exec(`DROP TRIGGER IF EXISTS ${ident(trigger.name)}`)
        yield* tx.exec(trigger.sql)
      }
    }
    // Rows that were there before anybody captured them count as inserted now.
    for (const table of adopted) {
      const positions = table.key.map((name) => table.columns.findIndex((column) => column.name === name))
      yield* tx.run(
        `INSERT INTO changes (tbl, op, key, at, ${positions.map((i) => `v${i}`).join(", ")})
         SELECT ?, 'I', ${table.key.map((name) => `quote(${ident(name)})`).join(" || ',' || ")}, CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER), ${list(table.key)}
           FROM ${ident(table.local)}`,
        [ids.get(table.name) ?? 0],
      )
    }
    yield* tx.run("UPDATE schoolbus_state SET manifest = ?", [JSON.stringify(manifest)])
  })

/** Capture triggers that are missing or altered: a program rebuilt its table, or dropped them. */
export const missingTriggers = (tx: Tx, manifest: Manifest, streams: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<string>, LibsqlError> =>
  Effect.gen(function* () {
    const before = yield* presentTriggers(tx)
    const wanted = wantedTriggers(manifest, yield* tableIds(tx), streams)
    return wanted.flatMap(({ triggers }) => triggers.filter((trigger) => before.get(trigger.name) !== trigger.sql).map((trigger) => trigger.name))
  })
