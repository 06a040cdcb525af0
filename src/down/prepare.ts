/** The catalog as the config asks for it, read before any row: what cannot be synced is refused, with all reasons at once. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { Config, PluginName } from "../config.ts"
import { builtinTables } from "../model/builtin.ts"
import { type Catalog, readCatalog, type Wanted } from "../postgres/catalog.ts"
import type { PostgresError, PostgresPool } from "../postgres/client.ts"
import { looking } from "../postgres/health.ts"
import { type DatabaseUnfinished, type HubMigrationRefused, migrateHub, refuseUnfinished } from "../postgres/migrate.ts"
import type { Shape } from "./shape.ts"

/** What the config asks for cannot be synced; all reasons at once. */
export class CatalogRefused extends Data.TaggedError("CatalogRefused")<{ readonly problems: ReadonlyArray<string> }> {
  override get message(): string {
    return this.problems.map((problem) => `  - ${problem}`).join("\n")
  }
}

/** Rows that only the hub reads: who the schools are, and their keys. */
const hubOnly = ["schoolbus.schools", "schoolbus.school_keys"].map(
  (name): Wanted => ({ name, audience: "all", direction: "down", priority: "critical", strategy: "vps_wins", columnStrategies: {}, system: true }),
)

export const wantedTables = (config: Config): ReadonlyArray<Wanted> => [
  ...config.tables.map((rules): Wanted => ({ ...rules, system: false })),
  ...builtinTables.map((table): Wanted => ({ ...table, columnStrategies: {} })),
  ...hubOnly,
]

/** What the config says of terminals, and Postgres does not have. */
export const deviceProblems = (config: Config, catalog: Catalog, shapes: ReadonlyArray<Shape>): ReadonlyArray<string> => {
  // A table that lost its shape pauses; what it was still counts.
  const columnsOf = (name: string): ReadonlyArray<string> | undefined => {
    const shape = shapes.find(({ table }) => table.name === name)
    if (shape !== undefined) return shape.table.columns.map((column) => column.name)
    const found = catalog.found.find(({ rule }) => rule.name === name)
    return found === undefined ? undefined : [...found.columns.keys()]
  }
  const check = (where: string, table: string, columns: ReadonlyArray<string | undefined>): ReadonlyArray<string> => {
    // A table that does not exist is named already.
    const known = columnsOf(table) ?? []
    return columns.flatMap((column) =>
      column === undefined || known.length === 0 || known.includes(column)
        ? []
        : [`${where} names column ${column} of table ${table}, which does not exist; columns are ${known.join(", ")}`],
    )
  }
  const { devices } = config
  if (devices === undefined) return []
  return [
    ...Object.entries(devices.people).flatMap(([table, rule]) =>
      check(
        "devices.people",
        table,
        Object.values(rule).filter((value) => typeof value === "string"),
      ),
    ),
    ...Object.values(devices.people).flatMap(({ groupFrom }) =>
      groupFrom === undefined ? [] : check("devices.people", groupFrom.table, [groupFrom.name]),
    ),
    ...(devices.attendance === undefined
      ? []
      : check("devices.attendance", devices.attendance.table, [
          devices.attendance.person,
          devices.attendance.at,
          devices.attendance.status,
          devices.attendance.device,
          devices.attendance.day,
          devices.attendance.out,
        ])),
  ]
}

/** wal2json hands text over as the database stores it, pgoutput as the session asks for. null = schools can read it. */
export const encodingProblem = (plugin: PluginName, encoding: string): string | null => {
  if (encoding === "UTF8") return null
  if (encoding === "SQL_ASCII")
    return "the database stores text without an encoding (SQL_ASCII), so schools could not read it; dump it into a database with encoding UTF8"
  return plugin === "wal2json"
    ? `the database stores text as ${encoding}, which wal2json does not convert; set plugin: "pgoutput" in the config`
    : null
}

/**
 * Schema applied, catalog read, everything that the config asks for found; or all reasons why not. A table that the feed
 * has a shape of is never a reason: it pauses.
 */
export const prepare = (
  pg: PostgresPool,
  config: Config,
  shapes: ReadonlyArray<Shape>,
): Effect.Effect<Catalog, CatalogRefused | HubMigrationRefused | DatabaseUnfinished | PostgresError> =>
  Effect.gen(function* () {
    yield* refuseUnfinished(pg, shapes.length > 0)
    yield* migrateHub(pg)
    // Defaults are printed under a lock on their table.
    const catalog = yield* looking(pg, (session) => readCatalog(session, wantedTables(config)))
    const [server] = yield* pg.query<{ encoding: string }>("SELECT current_setting('server_encoding') AS encoding")
    const unreadable = encodingProblem(config.plugin, server?.encoding ?? "")
    const isKnown = new Set(shapes.map(({ table }) => table.name))
    const unfit = catalog.found.flatMap(({ rule, problems }) => (isKnown.has(rule.name) ? [] : problems.map(({ text }) => text)))
    const problems = [...(unreadable === null ? [] : [unreadable]), ...unfit, ...catalog.problems, ...deviceProblems(config, catalog, shapes)]
    return problems.length > 0 ? yield* new CatalogRefused({ problems }) : catalog
  })
