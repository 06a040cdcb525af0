/**
 * Head office and schools in one process, on real Postgres and real files, without the HTTP between them: a test decides
 * when a batch goes up and when a page comes down.
 */
import { mkdtempSync, rmSync } from "node:fs"
import { join } from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import postgres from "postgres"
import { type Config, type ConfigInput, parseConfig } from "../../src/config.ts"
import { FeedChecks } from "../../src/down/check.ts"
import { Compare } from "../../src/down/compare.ts"
import { Deliver, type RowsLine } from "../../src/down/deliver.ts"
import { Feed } from "../../src/down/feed.ts"
import { hearMissed } from "../../src/down/missed.ts"
import { pushedTable } from "../../src/down/shape.ts"
import { runSource } from "../../src/down/source.ts"
import { feedTimes } from "../../src/down/times.ts"
import { Libsql, type LibsqlFile, openFile } from "../../src/libsql/client.ts"
import { freeze } from "../../src/libsql/freeze.ts"
import { migrateFile } from "../../src/libsql/migrate.ts"
import { installTables } from "../../src/libsql/schema.ts"
import { isRows, openLine } from "../../src/link/frame.ts"
import type { Header, Trailer } from "../../src/link/protocol.ts"
import type { Verdicts } from "../../src/model/change.ts"
import type { Manifest } from "../../src/model/table.ts"
import { openPool, Postgres, type PostgresPool } from "../../src/postgres/client.ts"
import { migrateHub } from "../../src/postgres/migrate.ts"
import { Apply } from "../../src/up/apply.ts"
import { Tables } from "../../src/up/tables.ts"
import { fastFolder } from "./fast-folder.ts"
import { createDatabase, type Database, templateDatabase } from "./postgres.ts"
import { until } from "./until.ts"
import { bytesOf } from "../../src/libsql/store-batch.ts"

export interface World {
  readonly database: Database
  readonly sql: postgres.Sql
  readonly feed: Context.Service.Shape<typeof Feed>
  /** The feed's file and the hub's pool, for services that read them beside the feed. */
  readonly feedFile: LibsqlFile
  readonly pg: PostgresPool
  readonly checks: Context.Service.Shape<typeof FeedChecks>
  readonly apply: Context.Service.Shape<typeof Apply>
  readonly compare: Context.Service.Shape<typeof Compare>
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Promise<A>
  /** Waits until everything committed so far stands in the feed. */
  readonly settle: () => Promise<void>
  readonly school: (id: string) => Promise<School>
  readonly stop: () => Promise<void>
  /** Ends the stream, as a hub that is down. */
  readonly halt: () => Promise<void>
  /** Drops the slot of a stream that has ended. */
  readonly dropSlot: () => Promise<void>
  /** Waits until no table is being read or compared. */
  readonly compared: () => Promise<void>
  /** Ends the stream and starts it again, as a restarted hub would; `config`: the hub reads another one. */
  readonly restart: (config?: ConfigInput) => Promise<void>
}

export interface School {
  readonly id: string
  readonly path: string
  readonly file: LibsqlFile
  readonly deliver: Context.Service.Shape<typeof Deliver>
  /** Runs SQL as a program of the school would, on a connection of its own. */
  readonly write: (sql: string, args?: ReadonlyArray<string | number | null>) => Promise<void>
  readonly rows: <Row = Record<string, unknown>>(sql: string, args?: ReadonlyArray<string | number | null>) => Promise<ReadonlyArray<Row>>
  readonly freeze: () => Promise<void>
  /** Sends every batch that no ledger row has answered yet. */
  readonly push: () => Promise<ReadonlyArray<Verdicts>>
  /** Takes over the tables as the hub tells them now. */
  readonly install: () => Promise<unknown>
  /** Pulls until a complete cut is applied. */
  readonly pull: () => Promise<void>
  /** push, let the feed have it, pull. */
  readonly sync: () => Promise<void>
}

const migrated = (url: string): Promise<void> =>
  Effect.runPromise(Effect.scoped(Effect.flatMap(openPool(url, { name: "test" }), (pg) => Effect.orDie(migrateHub(pg)))))

let template: Promise<string> | undefined
const hubTemplate = (): Promise<string> => {
  template ??= templateDatabase("hub_template", migrated)
  return template
}

/** `on`: a database of the test's own, dropped with the world. */
export const makeWorld = async (schema: string, config: ConfigInput, schools: ReadonlyArray<string>, on?: Database): Promise<World> => {
  const database = on ?? (await createDatabase(await hubTemplate()))
  const folder = mkdtempSync(join(fastFolder(), "schoolbus-world-"))
  const sql = postgres(database.url, { max: 4, onnotice: () => undefined })
  if (schema !== "") await sql.unsafe(schema)
  const scope = Scope.makeUnsafe()
  const inScope = <A, E>(effect: Effect.Effect<A, E, Scope.Scope>): Promise<A> => Effect.runPromise(Scope.provide(effect, scope))
  const parse = (input: ConfigInput): Config => {
    const result = parseConfig("test", input)
    if ("problems" in result) throw result
    return result
  }
  let parsed = parse(config)

  const feedFile = await inScope(openFile(join(folder, "feed.db")))
  await Effect.runPromise(migrateFile(feedFile, "feed"))
  const pg = await inScope(openPool(database.url, { name: "test" }))
  if (on !== undefined) await migrated(database.url)
  for (const id of schools) await sql`INSERT INTO schoolbus.schools (id, name) VALUES (${id}, ${id})`
  const feedLayer = Feed.layer.pipe(Layer.provide(Layer.succeed(Libsql, feedFile)))
  const feed = Context.get(await inScope(Layer.build(feedLayer)), Feed)
  const checks = Context.get(await inScope(Layer.build(FeedChecks.layer)), FeedChecks)
  const compare = Context.get(
    await inScope(Layer.build(Compare.layer.pipe(Layer.provide(Layer.succeed(Feed, feed)), Layer.provide(Layer.succeed(Libsql, feedFile))))),
    Compare,
  )
  const tables = Layer.succeed(Tables, {
    all: Effect.map(feed.tables, (list) => new Map(list.map((t) => [t.name, pushedTable(t)]))),
    version: Effect.map(feed.manifest(""), ({ version }) => version),
    had: feed.had,
    times: (name, keys) => Effect.flatMap(feed.tables, (list) => feedTimes(feedFile, list, name, keys)),
  })
  const apply = Context.get(await inScope(Layer.build(Apply.layer.pipe(Layer.provide(tables), Layer.provide(Layer.succeed(Postgres, pg))))), Apply)

  let failure: unknown
  const startStream = () =>
    Effect.runFork(
      runSource({ url: database.url, pg, config: parsed, onStreaming: Effect.void, onWaiting: () => Effect.void, onLoading: () => Effect.void }).pipe(
        Effect.provideService(Feed, feed),
        Effect.provideService(FeedChecks, checks),
        // The walsender of the stream before ends a moment after its connection.
        Effect.retry({
          while: (error) => error._tag === "SlotBusy" || (error._tag === "WalStopped" && error.busy),
          schedule: Schedule.spaced("20 millis"),
        }),
        Effect.tapCause((cause) =>
          Effect.sync(() => {
            failure = cause
          }),
        ),
      ),
    )
  let stream = startStream()
  const streamed = async (what: string, condition: () => Promise<boolean>): Promise<void> => {
    await until(what, async () => failure !== undefined || (await condition()))
    if (failure !== undefined) throw new Error(`stream ended while waiting for ${what}: ${String(failure)}`)
  }
  const run = <A, E>(effect: Effect.Effect<A, E>): Promise<A> => Effect.runPromise(effect)
  await streamed("the first copy", () => run(feed.ready))

  // A row of an own table that the feed shows: everything before it is there too.
  const settle = async (): Promise<void> => {
    const name = crypto.randomUUID()
    await sql`INSERT INTO schoolbus.schools (id, name) VALUES ('settle', ${name}) ON CONFLICT (id) DO UPDATE SET name = excluded.name`
    await streamed("the stream to arrive", async () => (await run(feed.schools)).some((s) => s.id === "settle" && s.name === name))
  }

  const makeSchool = async (id: string): Promise<School> => {
    const path = join(folder, `school-${id}-${crypto.randomUUID().slice(0, 8)}.db`)
    const file = await inScope(openFile(path))
    const program = await inScope(openFile(path))
    const incarnation = crypto.randomUUID()
    const deliver = Context.get(await inScope(Layer.build(Deliver.layer.pipe(Layer.provide(Layer.succeed(Libsql, file))))), Deliver)
    await run(migrateFile(file, "school"))
    await run(file.write((tx) => tx.run("INSERT INTO schoolbus_state (id, incarnation, school) VALUES (1, ?, ?)", [incarnation, id])))
    const install = async (): Promise<Manifest> => {
      const manifest = await run(feed.manifest(id))
      await run(hearMissed(file, manifest, (at, keys) => compare.again(id, at, {}, keys)))
      await run(file.write((tx) => installTables(tx, manifest, { streams: [], adopt: false })))
      return manifest
    }
    await install()
    const manifestOf = () =>
      run(
        file.read((tx) =>
          Effect.map(tx.all<{ manifest: string }>("SELECT manifest FROM schoolbus_state"), ([row]) => JSON.parse(row?.manifest ?? "{}") as Manifest),
        ),
      )
    const freezeAll = async (): Promise<void> => {
      const manifest = await manifestOf()
      while ((await run(file.write((tx) => freeze(tx, manifest, Date.now())))).batches > 0);
    }
    const push = async (): Promise<ReadonlyArray<Verdicts>> => {
      await freezeAll()
      const batches = await run(
        file.read((tx) =>
          tx.all<{ number: number; hash: string; bytes: Uint8Array }>(
            "SELECT number, hash, bytes FROM schoolbus_batch WHERE settled_at IS NULL ORDER BY number",
          ),
        ),
      )
      const verdicts: Array<Verdicts> = []
      for (const batch of batches) {
        const text = new TextDecoder().decode(bytesOf(batch.bytes))
        verdicts.push(await run(apply.batch({ school: id, incarnation, number: batch.number, hash: batch.hash, text, now: Date.now() })))
      }
      return verdicts
    }
    const pull = async (): Promise<void> => {
      for (;;) {
        const { cursor, staged } = await run(deliver.position)
        const { version } = await manifestOf()
        const page = await run(feed.page({ school: id, cursor, staged, manifest: version }))
        if (page.header.manifest !== version) {
          await install()
          await run(deliver.empty)
          continue
        }
        if (page.empty) return
        const lines: Array<RowsLine> = []
        let trailer: Trailer | null = null
        let header: Header = page.header
        for (const text of page.lines) {
          const opened = openLine(text)
          if ("damaged" in opened) throw new Error(`${opened.damaged}: ${text.slice(0, 900)} … ${text.slice(-300)}`)
          if (isRows(opened.ok)) lines.push(opened.ok)
          else if (opened.ok[0] === "page") trailer = opened.ok[1]
          else if (opened.ok[0] === "cut") header = opened.ok[1]
        }
        await run(deliver.page(header, lines, trailer))
        if (page.complete) return
      }
    }
    return {
      id,
      path,
      file,
      deliver,
      write: (text, args) => run(program.write((tx) => Effect.asVoid(tx.run(text, args)))),
      rows: (text, args) => run(file.read((tx) => tx.all(text, args))) as never,
      freeze: freezeAll,
      push,
      install,
      pull,
      sync: async () => {
        await push()
        await settle()
        await pull()
      },
    }
  }

  return {
    database,
    sql,
    feed,
    feedFile,
    pg,
    checks,
    apply,
    compare,
    run,
    settle,
    school: makeSchool,
    dropSlot: async () => {
      const [slot] = await sql`SELECT slot_name AS name FROM pg_replication_slots WHERE database = current_database()`
      // Its walsender ends a moment after the connection.
      await until("the slot to go", () =>
        sql`SELECT pg_drop_replication_slot(${String(slot?.["name"])})`.then(
          () => true,
          () => false,
        ),
      )
    },
    compared: () =>
      streamed("the comparisons", async () =>
        (await run(feed.tables)).every((table) => !table.loading && (table.since === null || table.paused !== null)),
      ),
    halt: () => run(Effect.asVoid(Fiber.interrupt(stream))),
    restart: async (next) => {
      await run(Fiber.interrupt(stream))
      if (next !== undefined) parsed = parse(next)
      failure = undefined
      stream = startStream()
      await settle()
    },
    stop: async () => {
      await run(Fiber.interrupt(stream))
      await sql.end({ timeout: 2 })
      await run(Scope.close(scope, Exit.void))
      await database.drop()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}
