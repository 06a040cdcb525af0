/** `doctor`: what on the Postgres side stands in the way, or will one day; each finding with the command that mends it. */
import * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"
import { type PostgresPool, qualified, type Session } from "../postgres/client.ts"
import { loadConfig, type PluginName } from "../config.ts"
import { deviceProblems, encodingProblem, wantedTables } from "../down/prepare.ts"
import { slotName } from "../down/source.ts"
import { problemsOf, readCatalog } from "../postgres/catalog.ts"
import { readSlots, type SlotHealth } from "../postgres/health.ts"
import { missingTables } from "../postgres/migrate.ts"
import { keyProblems } from "../postgres/key-types.ts"
import { findSlot, refusalOfOther } from "../postgres/slot.ts"
import { spelled, spelledTable } from "../postgres/spelling.ts"
import { EVENT_TRIGGER_SQL, hasEventTriggers } from "../postgres/watch.ts"
import { probeWal2json, type Wal2json } from "../postgres/probe.ts"
import { migrationFiles } from "../libsql/migrate.ts"
import { runtimeName } from "../runtime.ts"
import { ago } from "../status/check.ts"
import { withPostgres } from "./database.ts"
import type { Io } from "./io.ts"
import { CommandFailed, EXIT, type Input } from "./options.ts"
import { green, red, sizeText, table, yellow } from "./text.ts"

interface Finding {
  readonly id: string
  readonly status: "ok" | "warn" | "fail"
  readonly message: string
  readonly fix?: string
}

/** What is asked of the server, before any judgement. */
export interface ServerFacts {
  readonly version: number
  readonly settings: Readonly<Record<string, string>>
  readonly slotsUsed: number
  readonly isStandby: boolean
  readonly mayReplicate: boolean
  readonly isSuperuser: boolean
  readonly maySchema: boolean
  /** Numbers of applied migrations; null = schema `schoolbus` does not exist. */
  readonly migrations: ReadonlyArray<number> | null
  readonly newestMigration: number
  /** Tables of schema `schoolbus` that somebody dropped. */
  readonly missingTables: ReadonlyArray<string>
  readonly slots: ReadonlyArray<SlotHealth>
  /** Another database of the server has a slot of the hub's name: why that is, and what to do. */
  readonly slotRefusal: string | null
  readonly wal2json: Wal2json
}

/** What the decoder makes of NaN and infinities, and whether it is there at all. */
const decoderFinding = (facts: ServerFacts, slot: SlotHealth | undefined, asked: PluginName | undefined): Finding => {
  const id = "decoder"
  const major = Math.floor(facts.version / 10_000)
  if ((asked ?? slot?.plugin) === "pgoutput") return { id, status: "ok", message: "pgoutput, exact for every value" }
  switch (facts.wal2json) {
    case "exact":
      return { id, status: "ok", message: "wal2json 2.6 or newer, exact for every value" }
    case "old":
      return {
        id,
        status: "warn",
        message: "wal2json before 2.6 sends NaN and infinities as null, so rows with null numbers are read again",
        fix: `set plugin: "pgoutput" in the config, or install wal2json 2.6`,
      }
    case "absent":
      return {
        id,
        status: slot === undefined ? "warn" : "fail",
        message: "wal2json is not installed on the server",
        fix: `set plugin: "pgoutput" in the config, or install postgresql-${major}-wal2json`,
      }
    case "unknown":
      return { id, status: "ok", message: "wal2json's version could not be tried: no right to make a slot, no free slot, or a long transaction" }
  }
}

/** Whether schools could read the text of this database. */
const encodingFinding = (facts: ServerFacts, plugin: PluginName): Finding => {
  const encoding = facts.settings["server_encoding"] ?? "UTF8"
  const problem = encodingProblem(plugin, encoding)
  const [message = "", fix = ""] = (problem ?? "").split("; ")
  return { id: "encoding", ...(problem === null ? { status: "ok", message: encoding } : { status: "fail", message, fix }) }
}

const OLDEST = 140_000

/** How much of the WAL that a slot may hold it holds already. */
const budgetFinding = (slot: SlotHealth): Finding => {
  const message = `${slot.budgetUsed} % of ${sizeText(slot.budgetBytes)} used${slot.timeLeftSeconds === null ? "" : `, ${ago(slot.timeLeftSeconds)} left`}`
  const status = slot.stage === "ok" || slot.stage === "making" ? "ok" : slot.stage === "warning" ? "warn" : "fail"
  return { id: "slot-wal-budget", status, message, ...(slot.advice === null || slot.stage === "making" ? {} : { fix: slot.advice }) }
}

/** Pure: facts to findings, in the order in which they are to be mended. `plugin`: as the config says, if there is one. */
export const findings = (facts: ServerFacts, slotName: string, plugin?: PluginName): ReadonlyArray<Finding> => {
  const { settings } = facts
  const version = String(Math.floor(facts.version / 10_000))
  const slot = facts.slots.find((one) => one.slot === slotName)
  const keep = settings["max_slot_wal_keep_size"] ?? ""
  const maxSlots = Number(settings["max_replication_slots"] ?? 0)
  const ok = (id: string, message: string): Finding => ({ id, status: "ok", message })
  const warn = (id: string, message: string, fix: string): Finding => ({ id, status: "warn", message, fix })
  const fail = (id: string, message: string, fix: string): Finding => ({ id, status: "fail", message, fix })
  return [
    facts.version >= OLDEST
      ? ok("pg-version", `Postgres ${version}`)
      : fail("pg-version", `Postgres ${version} is too old`, "use Postgres 14 or newer"),
    ...(facts.isStandby
      ? [fail("pg-primary", "this server is a standby, which takes no writes", "give --database-url the address of the primary, or promote it")]
      : []),
    settings["wal_level"] === "logical"
      ? ok("wal-level", "logical")
      : fail("wal-level", `wal_level is ${settings["wal_level"] ?? "unknown"}`, "ALTER SYSTEM SET wal_level = 'logical';  then restart Postgres"),
    slot !== undefined || facts.slotsUsed < maxSlots
      ? ok("max-replication-slots", `${facts.slotsUsed} of ${maxSlots} in use`)
      : fail(
          "max-replication-slots",
          `all ${maxSlots} are in use`,
          `ALTER SYSTEM SET max_replication_slots = ${maxSlots + 4};  then restart Postgres`,
        ),
    keep === "-1"
      ? warn(
          "max-slot-wal-keep-size",
          "no limit: a slot that nobody reads can fill the disk",
          "ALTER SYSTEM SET max_slot_wal_keep_size = '4GB'; SELECT pg_reload_conf();",
        )
      : ok("max-slot-wal-keep-size", keep),
    settings["track_commit_timestamp"] === "on"
      ? ok("track-commit-timestamp", "on")
      : warn(
          "track-commit-timestamp",
          "off: newest_wins knows less about rows that were not streamed",
          "ALTER SYSTEM SET track_commit_timestamp = on;  then restart Postgres",
        ),
    facts.mayReplicate
      ? ok("replication-privilege", "this role may read the stream")
      : fail("replication-privilege", "this role may not read the stream", "ALTER ROLE … REPLICATION;"),
    facts.isSuperuser
      ? warn("least-rights", "this role is a superuser and plays all parts", "make a role with REPLICATION, SELECT and DML on the synced tables only")
      : ok("least-rights", "this role is no superuser"),
    facts.migrations === null
      ? facts.maySchema
        ? ok("migrations-current", "schema schoolbus will be made when the hub starts")
        : fail(
            "migrations-current",
            "schema schoolbus does not exist and this role may not make it",
            "GRANT CREATE ON DATABASE … TO …;  or a DBA runs the SQL that the hub prints then: schoolbus hub … > schoolbus.sql; psql -f schoolbus.sql",
          )
      : facts.missingTables.length > 0
        ? fail(
            "migrations-current",
            `schema schoolbus lacks ${facts.missingTables.join(", ")}`,
            "restore them from a dump; the hub waits for them, and its status says how",
          )
        : facts.migrations.length === 0 || Math.max(...facts.migrations) <= facts.newestMigration
          ? ok("migrations-current", `schema schoolbus, ${facts.migrations.length} migrations`)
          : fail("migrations-current", "schema schoolbus was made by a newer schoolbus", "update this program"),
    encodingFinding(facts, plugin ?? (slot?.plugin === "pgoutput" ? "pgoutput" : "wal2json")),
    decoderFinding(facts, slot, plugin),
    slot === undefined
      ? facts.slotRefusal === null
        ? warn("slot-exists", `no slot ${slotName} yet`, "start the hub: it makes it")
        : { id: "slot-exists", status: "fail", message: facts.slotRefusal, fix: "as said; the hub waits for it" }
      : ok("slot-exists", `${slot.slot}, ${slot.plugin}, holds ${sizeText(slot.retainedBytes)}`),
    ...(slot === undefined
      ? []
      : [
          slot.stage === "making"
            ? warn("slot-active", "it is being made", slot.advice ?? "")
            : slot.active
              ? ok("slot-active", "the hub reads it")
              : fail(
                  "slot-active",
                  "nobody reads it; WAL piles up",
                  `start the hub, or drop the slot for good: SELECT pg_drop_replication_slot('${slot.slot}');`,
                ),
          slot.walStatus === "reserved" || slot.walStatus === "extended"
            ? ok("slot-wal-status", slot.walStatus)
            : fail(
                "slot-wal-status",
                `${slot.walStatus ?? "unknown"}`,
                "raise max_slot_wal_keep_size; a lost slot is replaced by the hub, which then compares all rows",
              ),
          budgetFinding(slot),
        ]),
    ...facts.slots
      .filter((other) => other.slot !== slotName && !other.active)
      .map((other) =>
        warn(
          "other-slots",
          `slot ${other.slot} of somebody else is not read and holds ${sizeText(other.retainedBytes)}`,
          `find its owner, or SELECT pg_drop_replication_slot('${other.slot}');`,
        ),
      ),
  ]
}

const readFacts = (pg: PostgresPool, name: string) =>
  Effect.gen(function* () {
    const [server] = yield* pg.query<{
      version: number
      used: number
      standby: boolean
      replicate: boolean
      super: boolean
      schema: boolean
      present: boolean
      viewed: boolean
    }>(
      `SELECT current_setting('server_version_num')::int AS version, (SELECT count(*)::int FROM pg_replication_slots) AS used, pg_is_in_recovery() AS standby,
              r.rolreplication OR r.rolsuper AS replicate, r.rolsuper AS super, has_database_privilege(current_database(), 'CREATE') AS schema,
              to_regclass('schoolbus.migrations') IS NOT NULL AS present, to_regclass('schoolbus.slot_health') IS NOT NULL AS viewed
         FROM pg_roles r WHERE r.rolname = current_user`,
    )
    const settings = yield* pg.query<{ name: string; setting: string }>(
      `SELECT name, current_setting(name) AS setting FROM pg_settings WHERE name IN ('wal_level', 'max_replication_slots', 'max_slot_wal_keep_size', 'track_commit_timestamp', 'server_encoding')`,
    )
    const migrations = server?.present === true ? yield* pg.query<{ number: number }>(`SELECT number FROM schoolbus.migrations`) : null
    const slots = server?.viewed === true ? yield* readSlots(pg) : []
    const own = yield* findSlot(pg, name)
    const files = yield* migrationFiles("hub")
    const facts: ServerFacts = {
      version: server?.version ?? 0,
      settings: Object.fromEntries(settings.map((row) => [row.name, row.setting])),
      slotsUsed: server?.used ?? 0,
      isStandby: server?.standby ?? false,
      mayReplicate: server?.replicate ?? false,
      isSuperuser: server?.super ?? false,
      maySchema: server?.schema ?? false,
      migrations: migrations?.map((row) => row.number) ?? null,
      missingTables: yield* missingTables(pg),
      newestMigration: files.at(-1)?.number ?? 0,
      slots,
      slotRefusal: own === null ? null : refusalOfOther(own),
      wal2json: yield* probeWal2json(pg),
    }
    return facts
  })

interface Lack {
  readonly table: string
  readonly role: string
  readonly rights: string
}

/** Rights without which what schools write to a table waits in quarantine. Somebody may mean it so. */
const readLacks = (session: Session, tables: ReadonlyArray<Table>) =>
  session.query<Lack>(
    `SELECT t.name AS "table", current_user::text AS role,
            concat_ws(', ', CASE WHEN t.inserts AND NOT has_any_column_privilege(c.oid, 'INSERT') THEN 'INSERT' END,
                            CASE WHEN NOT has_any_column_privilege(c.oid, 'UPDATE') THEN 'UPDATE' END,
                            CASE WHEN NOT has_table_privilege(c.oid, 'DELETE') THEN 'DELETE' END) AS rights
       FROM json_to_recordset($1::text::json) AS t (name text, quoted text, inserts boolean) JOIN pg_class c ON c.oid = to_regclass(t.quoted)
      WHERE NOT (has_any_column_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE') AND (NOT t.inserts OR has_any_column_privilege(c.oid, 'INSERT')))`,
    [
      JSON.stringify(
        tables
          .filter(({ direction, system }) => direction !== "down" && !system)
          .map(({ name, insert }) => ({ name, quoted: qualified(name), inserts: insert !== "vps" })),
      ),
    ],
  )

const writeFinding = (lacks: ReadonlyArray<Lack>): Finding =>
  lacks.length === 0
    ? { id: "school-writes", status: "ok", message: "the role may write what schools may write" }
    : {
        id: "school-writes",
        status: "warn",
        message: `what schools write waits in quarantine, as this role lacks the right: ${lacks.map(({ table, rights }) => `${table} (${rights})`).join(", ")}`,
        fix: lacks.map(({ table, role, rights }) => `GRANT ${rights} ON ${spelledTable(table)} TO ${spelled(role)};`).join(" "),
      }

/** What the hub would refuse at its start: tables that cannot be synced as the config says, keys that schools would give out twice. */
const tableFindings = (pg: PostgresPool, file: string) =>
  Effect.gen(function* () {
    const config = yield* loadConfig(file)
    const { catalog, lacks } = yield* pg.tx((session) =>
      Effect.gen(function* () {
        // The sync's own tables are made by the hub.
        const wanted = wantedTables(config).filter(({ name }) => !name.startsWith("schoolbus."))
        const catalog = yield* readCatalog(session, wanted)
        return { catalog, lacks: yield* readLacks(session, catalog.tables) }
      }),
    )
    const finding = (id: string, problems: ReadonlyArray<string>, good: string): Finding =>
      problems.length === 0
        ? { id, status: "ok", message: good }
        : { id, status: "fail", message: problems.join("; "), fix: "as said; the hub refuses to start until then" }
    return [
      finding("tables", problemsOf(catalog), `${config.tables.length} tables of ${file}`),
      ...(config.devices === undefined
        ? []
        : [finding("devices", deviceProblems(config, catalog, []), "people and attendance are where the config says")]),
      catalog.notes.length === 0
        ? ({ id: "school-defaults", status: "ok", message: "a school's file fills in what Postgres would" } satisfies Finding)
        : ({
            id: "school-defaults",
            status: "warn",
            message: catalog.notes.join("; "),
            fix: "as said; or give the column a constant, now(), CURRENT_DATE or gen_random_uuid() as its default",
          } satisfies Finding),
      writeFinding(lacks),
      finding("key-types", keyProblems(catalog.tables), "no key that two schools could both give out"),
    ]
  }).pipe(
    Effect.catchTag("ConfigRefused", (error) =>
      Effect.succeed([{ id: "tables", status: "fail", message: error.message, fix: "schoolbus config validate" } satisfies Finding]),
    ),
  )

/** Without event triggers changed tables are found by looking: some seconds later, and not in their place of the stream. */
const eventTriggers = (pg: PostgresPool) =>
  Effect.map(
    hasEventTriggers(pg),
    (present): Finding =>
      present
        ? { id: "event-triggers", status: "ok", message: "schema changes arrive in stream order" }
        : {
            id: "event-triggers",
            status: "warn",
            message: "no event triggers yet: schema changes are found by looking every few seconds",
            fix: `the hub makes them when its role is a superuser; else one runs, once the hub has run: ${EVENT_TRIGGER_SQL.join(" ")}`,
          },
  )

const reached = async (input: Input): Promise<ReadonlyArray<Finding>> => {
  try {
    const config = input.textOr("config", null)
    // A config that cannot be read is told below.
    const plugin =
      config === null
        ? undefined
        : await Effect.runPromise(
            Effect.orElseSucceed(
              Effect.map(loadConfig(config), (c) => c.plugin),
              () => undefined,
            ),
          )
    const name = input.textOr("slot", slotName(input.text("database-url")))
    return [
      { id: "pg-reachable", status: "ok", message: "Postgres answers" },
      ...findings(await withPostgres(input, (pg) => readFacts(pg, name)), name, plugin),
      await withPostgres(input, eventTriggers),
      ...(config === null ? [] : await withPostgres(input, (pg) => tableFindings(pg, config))),
    ]
  } catch (cause) {
    if (!(cause instanceof CommandFailed)) throw cause
    return [{ id: "pg-reachable", status: "fail", message: cause.message, fix: cause.hint }]
  }
}

export const run = async (input: Input, io: Io): Promise<number> => {
  const checks: ReadonlyArray<Finding> = [{ id: "runtime-version", status: "ok", message: runtimeName }, ...(await reached(input))]
  const failed = checks.some((check) => check.status === "fail")
  if (input.flag("json")) io.out(`${JSON.stringify({ schemaVersion: 1, asOf: new Date().toISOString(), healthy: !failed, checks })}\n`)
  else {
    const word = { ok: green(io.look, "ok"), warn: yellow(io.look, "warning"), fail: red(io.look, "failed") }
    io.out(
      table(
        io.look,
        ["Check", "Status", "Message"].map((title) => ({ title })),
        checks.map((check) => [check.id, word[check.status], check.message]),
      ),
    )
    for (const check of checks) if (check.fix !== undefined) io.out(`Fix ${check.id}: ${check.fix}\n`)
  }
  return failed ? EXIT.failed : EXIT.ok
}
