/**
 * Opens the stream: schema, catalog, slot and life are checked against the feed, and what does not fit decides how it
 * goes on. Slot lost, dropped or ahead of the feed: a new slot and a keyed comparison, the epoch stays. Another cluster,
 * another timeline, or a life number that this feed never wrote: a new epoch and a keyed comparison. Never a silent
 * start at "now".
 */
import { randomBytes } from "node:crypto"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { Config } from "../config.ts"
import type { LibsqlError } from "../libsql/client.ts"
import { printLsn } from "../model/lsn.ts"
import { builtinTables } from "../model/builtin.ts"
import { type Catalog, readCatalog, type Wanted } from "../postgres/catalog.ts"
import type { PostgresError, PostgresPool } from "../postgres/client.ts"
import { type HubMigrationRefused, migrateHub } from "../postgres/migrate.ts"
import { clusterIdentity, createSlot, findSlot, type SlotRefused } from "../postgres/slot.ts"
import { openWal, type WalStopped } from "../postgres/wal.ts"
import type { BracketLate } from "./bracket.ts"
import { wal2jsonOptions } from "./decode.ts"
import { runDown, type ShapeChanged } from "./down.ts"
import { Feed } from "./feed.ts"

const PLUGIN = "wal2json"
const LIFE_MS = 60_000

/** What the config asks for cannot be synced; all reasons at once. */
export class CatalogRefused extends Data.TaggedError("CatalogRefused")<{ readonly problems: ReadonlyArray<string> }> {
  override get message(): string {
    return this.problems.map((problem) => `  - ${problem}`).join("\n")
  }
}

/** Another process reads the slot; this hub waits. */
export class SlotBusy extends Data.TaggedError("SlotBusy")<{ readonly slot: string; readonly holder: string }> {}

export type SourceError =
  | CatalogRefused
  | SlotBusy
  | SlotRefused
  | HubMigrationRefused
  | WalStopped
  | ShapeChanged
  | BracketLate
  | PostgresError
  | LibsqlError

/** Slot names are lower case letters, digits and underscores, at most 63; one slot per database of the cluster. */
export const slotName = (url: string): string => {
  const database = decodeURIComponent(new URL(url).pathname.slice(1)) || "postgres"
  return `schoolbus_${database.toLowerCase().replace(/[^a-z0-9_]/g, "_")}`.slice(0, 63)
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

const deviceProblems = (config: Config, catalog: Catalog): ReadonlyArray<string> => {
  const columnsOf = (name: string) => catalog.tables.find((table) => table.name === name)?.columns.map((column) => column.name)
  const check = (where: string, table: string, columns: ReadonlyArray<string | undefined>): ReadonlyArray<string> => {
    const known = columnsOf(table)
    if (known === undefined) return [`${where} names table ${table}, which is not among the synced tables; list it under tables`]
    return columns.flatMap((column) =>
      column === undefined || known.includes(column)
        ? []
        : [`${where} names column ${column} of table ${table}, which does not exist; columns are ${known.join(", ")}`],
    )
  }
  const { devices } = config
  if (devices === undefined) return []
  return [
    ...Object.entries(devices.people).flatMap(([table, rule]) => check("devices.people", table, Object.values(rule))),
    ...(devices.attendance === undefined
      ? []
      : check("devices.attendance", devices.attendance.table, [
          devices.attendance.person,
          devices.attendance.at,
          devices.attendance.status,
          devices.attendance.device,
        ])),
  ]
}

/** Schema applied, catalog read, everything that the config asks for found; or all reasons why not. */
export const prepare = (pg: PostgresPool, config: Config): Effect.Effect<Catalog, CatalogRefused | HubMigrationRefused | PostgresError> =>
  Effect.gen(function* () {
    yield* migrateHub(pg)
    const catalog = yield* pg.tx((session) => readCatalog(session, wantedTables(config)))
    const problems = [...catalog.problems, ...(catalog.problems.length === 0 ? deviceProblems(config, catalog) : [])]
    return problems.length > 0 ? yield* new CatalogRefused({ problems }) : catalog
  })

export interface SourceOptions {
  readonly url: string
  readonly pg: PostgresPool
  readonly config: Config
  readonly onStreaming: Effect.Effect<void>
  readonly onLoading: (table: string, rows: number, done: boolean) => Effect.Effect<void>
}

/** One life of the stream, from the checks to the failure that ends it. */
export const runSource = (options: SourceOptions): Effect.Effect<never, SourceError, Feed> =>
  Effect.scoped(
    Effect.gen(function* () {
      const { pg, url, config } = options
      const feed = yield* Feed
      const catalog = yield* prepare(pg, config)
      const name = slotName(url)
      const identity = yield* clusterIdentity(pg)
      const state = yield* feed.state
      const isFresh = state.position.lsn === 0n
      const slot = yield* findSlot(pg, name)
      if (slot?.active === true) return yield* new SlotBusy({ slot: name, holder: slot.holder })

      const [known] = yield* pg.query<{ life: string }>("SELECT life FROM schoolbus.hub WHERE id = 1")
      const isOtherLife = !isFresh && known !== undefined && state.life !== null && known.life !== state.life && known.life !== state.lifeLast
      const isOtherCluster = !isFresh && state.systemId !== null && (state.systemId !== identity.systemId || state.timeline !== identity.timeline)
      const isLost = slot?.walStatus === "lost"
      const isAhead = slot !== null && !isFresh && slot.confirmed > state.position.lsn
      const compare = !isFresh && (slot === null || isLost || isAhead || isOtherLife || isOtherCluster)
      if (compare) {
        const reason =
          slot === null
            ? "the slot does not exist"
            : isLost
              ? "the slot is lost: Postgres removed WAL that it needed"
              : isOtherCluster
                ? "Postgres is another cluster or timeline than the feed knows"
                : isOtherLife
                  ? "Postgres was put back to an older state, or this feed was"
                  : "the slot is ahead of the feed"
        yield* Effect.logWarning(`${reason}: comparing every table by key; schools receive only what differs`)
      }
      if (isLost) yield* pg.execute("SELECT pg_drop_replication_slot($1)", [name])
      let from = state.position.lsn
      if (slot === null || isLost) {
        from = yield* createSlot(pg, name, PLUGIN)
        yield* Effect.logInfo(`slot ${name} created at ${printLsn(from)}`)
      } else if (isFresh || compare) from = slot.confirmed
      if (isOtherLife || isOtherCluster) yield* feed.newEpoch
      const { tables, reread } = yield* feed.install(catalog.tables, catalog.toastable, config.devices)
      const wal = yield* openWal({
        url,
        slot: name,
        from,
        plugin: wal2jsonOptions([...tables.filter((table) => table.table.direction !== "up").map((table) => table.name), "schoolbus.marks"]),
      })
      // From here on this hub is the one; what it found is made durable before the first row.
      const life = randomBytes(8).toString("hex")
      if (from !== state.position.lsn) yield* feed.append((appender) => appender.position({ lsn: from, xid: 0, at: "" }))
      const renewLife = (value: string) =>
        Effect.gen(function* () {
          yield* feed.setLife(value, identity.systemId, identity.timeline)
          const { position } = yield* feed.state
          yield* pg.execute(
            `INSERT INTO schoolbus.hub (id, life, lsn) VALUES (1, $1, $2) ON CONFLICT (id) DO UPDATE SET life = excluded.life, lsn = excluded.lsn, at = now()`,
            [value, printLsn(position.lsn)],
          )
        })
      yield* renewLife(life)
      yield* options.onStreaming
      const copied = tables.filter((table) => table.table.direction !== "up")
      return yield* Effect.raceFirst(
        runDown({
          pg,
          wal,
          tables: copied,
          reread: compare ? new Set(copied.map((table) => table.id)) : reread,
          onLoading: options.onLoading,
        }),
        Effect.suspend(() => renewLife(randomBytes(8).toString("hex"))).pipe(
          Effect.delay(LIFE_MS),
          Effect.repeat(Schedule.forever),
          Effect.andThen(Effect.never),
        ),
      )
    }),
  )
