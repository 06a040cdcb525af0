/** `schoolbus.config.ts`: which tables are synced, who sees them, who wins. Read at the hub only; schools get the manifest. */
import { statSync } from "node:fs"
import { isAbsolute, resolve } from "node:path"
import { pathToFileURL } from "node:url"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { z } from "zod"
import {
  type AttendanceRules,
  type Audience,
  type ColumnRule,
  type DeviceRules,
  type Direction,
  isThrough,
  type Priority,
  type Strategy,
  type UniqueRule,
} from "./model/table.ts"

/** Names that configs of other systems use for the same rules. */
const ALIASES: Readonly<Record<string, string>> = {
  LOCAL_WINS: "school_wins",
  TERMINAL_WINS: "school_wins",
  SCHOOL_WINS: "school_wins",
  REMOTE_WINS: "vps_wins",
  CENTRAL_WINS: "vps_wins",
  VPS_WINS: "vps_wins",
  TIMESTAMP_WINS: "newest_wins",
  NEWEST_WINS: "newest_wins",
  MANUAL: "manual",
  MERGE: "merge",
  // Without rules there is nothing to merge by: then a person does.
  MANUAL_MERGE: "manual_merge",
}

/** Places that one refusal of a file names. */
const SYNTAX_ERRORS = 3

const known = (value: unknown) => (typeof value === "string" ? (ALIASES[value] ?? value) : value)
const SIDES = ["school_wins", "vps_wins", "newest_wins", "manual"] as const
const StrategyName = z.preprocess(known, z.enum([...SIDES, "merge", "manual_merge"]))
const ColumnRuleName = z.preprocess(
  (value) => (typeof value === "string" && /^(SUM|MAX|MIN|UNION|APPEND)$/.test(value) ? value.toLowerCase() : known(value)),
  z.enum([...SIDES, "sum", "max", "min", "union", "append"]),
)

/** What a school's tables of these names mostly need; a config says otherwise by naming a strategy. */
const STRATEGY_BY_NAME: Readonly<Record<string, Strategy>> = { attendance: "school_wins", payments: "vps_wins", marks: "newest_wins" }

const AUDIENCE_FORMS = 'must be "all", { column: "school_id" } or { through: "other_table", on: { own_column: "column_of_the_other_table" } }'
const Name = z.string(AUDIENCE_FORMS).min(1, AUDIENCE_FORMS)
const AudienceRule = z.union(
  [
    z.literal("all"),
    z.strictObject({ column: Name }),
    z.strictObject({ through: Name, on: z.record(Name, Name, AUDIENCE_FORMS).refine((on) => Object.keys(on).length > 0, AUDIENCE_FORMS) }),
  ],
  AUDIENCE_FORMS,
)

const TableRule = z.strictObject({
  audience: AudienceRule,
  direction: z.enum(["both", "up", "down"]).default("both"),
  insert: z.literal("vps").exactOptional(),
  priority: z.enum(["critical", "high", "medium", "low", "background"]).default("medium"),
  strategy: StrategyName.exactOptional(),
  columns: z.record(z.string(), ColumnRuleName).default({}),
  exclude: z.array(z.string().min(1)).default([]),
  unique: z.enum(["manual", "rename_local", "keep_local", "keep_remote", "merge"]).default("manual"),
})

const strategyFor = (name: string, rule: z.infer<typeof TableRule>): Strategy => {
  const own = rule.strategy ?? STRATEGY_BY_NAME[name.replace(/^public\./, "")] ?? "vps_wins"
  return own !== "manual_merge" ? own : Object.keys(rule.columns).length > 0 ? "merge" : "manual"
}

const PeopleRule = z.strictObject({
  id: z.string(),
  name: z.string(),
  card: z.string().exactOptional(),
  pin: z.string().exactOptional(),
  active: z.string().exactOptional(),
  /** Texts of `active` that count; absent: everything but no, false, inactive, 0 and nothing. */
  activeValues: z.array(z.string()).min(1).exactOptional(),
  /** The column of the class; with `table` and `name`, what the class is called there. */
  group: z.union([z.string(), z.strictObject({ column: z.string(), table: z.string(), name: z.string() })]).exactOptional(),
})

export type PluginName = "wal2json" | "pgoutput"
const TimeOfDay = z.string().regex(/^([01]\d|2[0-3]):[0-5]\d$/, "write it like 07:30")
const DayName = z.enum(["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"])

const isDay = (day: string): boolean => new Date(`${day}T00:00:00Z`).toJSON()?.startsWith(day) === true
/** A day, or the first and the last of several. */
const Span = z
  .string()
  .regex(/^\d{4}-\d\d-\d\d(\/\d{4}-\d\d-\d\d)?$/, { error: "write it like 2026-12-25 or 2026-12-19/2027-01-05", abort: true })
  .refine((span) => span.split("/").every(isDay), { error: "there is no such day", abort: true })
  .refine((span) => span.slice(0, 10) <= span.slice(-10), "it ends before it begins")

const ConfigFile = z.strictObject({
  plugin: z.enum(["wal2json", "pgoutput"]).default("wal2json"),
  tables: z.record(z.string().min(1), TableRule),
  devices: z
    .strictObject({
      people: z.record(z.string(), PeopleRule),
      terminalUsers: z.enum(["adopt", "keep", "remove"]).exactOptional(),
      attendance: z
        .strictObject({
          table: z.string(),
          person: z.string(),
          people: z.union([z.string().transform((name) => [name]), z.array(z.string()).min(1)]).exactOptional(),
          at: z.string(),
          status: z.string().exactOptional(),
          device: z.string().exactOptional(),
          rows: z.enum(["punch", "day"]).exactOptional(),
          day: z.string().exactOptional(),
          out: z.string().exactOptional(),
          values: z
            .strictObject({ present: z.string().exactOptional(), late: z.string().exactOptional(), out: z.string().exactOptional() })
            .exactOptional(),
          hours: z
            .strictObject({
              from: TimeOfDay,
              graceMinutes: z.number().int().min(0).max(600).exactOptional(),
              days: z.partialRecord(DayName, TimeOfDay).exactOptional(),
            })
            .exactOptional(),
          weekend: z.array(DayName).exactOptional(),
          holidays: z.array(Span).exactOptional(),
        })
        .exactOptional(),
    })
    .exactOptional(),
})

/** What a config file exports; `defineConfig` only adds types. */
export type ConfigInput = z.input<typeof ConfigFile>
export const defineConfig = (config: ConfigInput): ConfigInput => config

export interface TableRules {
  /** With its schema: `"public.students"`. */
  readonly name: string
  readonly audience: Audience
  readonly direction: Direction
  readonly priority: Priority
  readonly strategy: Strategy
  readonly columnStrategies: Readonly<Record<string, ColumnRule>>
  readonly exclude: ReadonlyArray<string>
  /** `"vps"`: only head office makes new rows. */
  readonly insert?: "vps"
  readonly uniqueRule: UniqueRule
}

export interface Config {
  /** The output plugin of the slot. */
  readonly plugin: PluginName
  readonly tables: ReadonlyArray<TableRules>
  readonly devices?: DeviceRules
}

/** Every problem at once, each with its remedy. */
export class ConfigRefused extends Data.TaggedError("ConfigRefused")<{ readonly source: string; readonly problems: ReadonlyArray<string> }> {
  override get message(): string {
    return `${this.source}:\n${this.problems.map((problem) => `  - ${problem}`).join("\n")}`
  }
}

export const qualify = (name: string): string => (name.includes(".") ? name : `public.${name}`)

const audienceOf = (rule: z.output<typeof AudienceRule>): Audience =>
  typeof rule !== "string" && "through" in rule ? { through: qualify(rule.through), on: rule.on } : rule

/** Where rows would be placed by a table that is not synced, or in the end by themselves. */
const throughProblems = (audiences: ReadonlyMap<string, Audience>): ReadonlyArray<string> => {
  const problems: Array<string> = []
  const next = (name: string): string | null => {
    const audience = audiences.get(name)
    return audience !== undefined && isThrough(audience) ? audience.through : null
  }
  for (const name of audiences.keys()) {
    const other = next(name)
    if (other === null) continue
    if (!audiences.has(other)) {
      problems.push(
        isOwnTable(other)
          ? `tables.${name}.audience: rows cannot be placed through ${other}, which is the sync's own; name one of your tables`
          : `tables.${name}.audience: rows are placed through ${other}, which is not synced; list it under tables`,
      )
      continue
    }
    const path = [name]
    for (let at: string | null = other; at !== null && !path.includes(at); at = next(at)) path.push(at)
    const end = next(path.at(-1) ?? name)
    if (end === name && path.every((other) => name <= other))
      problems.push(
        `tables.${name}.audience: ${[...path, name].join(" -> ")} goes round in a circle, so no row has a school; give one of them "all" or a column`,
      )
  }
  return problems
}

const isOwnTable = (name: string): boolean => name.startsWith("schoolbus.")

/** Names that no config may list, or lists twice: `students` and `public.students` are one table. */
const nameProblems = (given: ReadonlyArray<string>): ReadonlyArray<string> =>
  given.flatMap((name, i) => {
    const qualified = qualify(name)
    if (isOwnTable(qualified)) return [`tables.${name}: is the sync's own and comes to the schools by itself; take it out of the config`]
    if (/^(pg_catalog|information_schema|pg_toast)\./.test(qualified)) return [`tables.${name}: belongs to Postgres itself; list tables of your own`]
    const first = given.findIndex((other) => qualify(other) === qualified)
    return first === i ? [] : [`tables.${name}: is the same table as tables.${given[first]}; list it once`]
  })

const isFile = (file: string): boolean => statSync(file, { throwIfNoEntry: false })?.isFile() === true

/** What an import that failed says: where a file does not parse, at once for the first places. */
const importFault = (cause: unknown): string => {
  const place = (one: unknown): string => {
    const { message, position } = one as { readonly message?: string; readonly position?: { readonly line?: number; readonly column?: number } }
    return `${position?.line === undefined ? "" : `line ${position.line}, column ${position.column ?? 1}: `}${(message ?? String(one)).replace(/ imported from .*/, "")}`
  }
  return (cause instanceof AggregateError ? cause.errors.slice(0, SYNTAX_ERRORS) : [cause]).map(place).join("; ")
}

type DevicesFile = NonNullable<z.output<typeof ConfigFile>["devices"]>

const deviceTableProblems = (devices: DevicesFile, synced: ReadonlySet<string>): ReadonlyArray<string> => {
  const classes = Object.values(devices.people).flatMap(({ group }) => (typeof group === "object" ? [group.table] : []))
  const named = [
    ...[...Object.keys(devices.people), ...classes].map((table) => ["devices.people", qualify(table)] as const),
    ...(devices.attendance === undefined ? [] : [["devices.attendance", qualify(devices.attendance.table)] as const]),
  ]
  return named.flatMap(([where, table]) =>
    synced.has(table) ? [] : [`${where} names table ${table}, which is not among the synced tables; list it under tables`],
  )
}

const deviceProblems = (devices: DevicesFile | undefined, synced: ReadonlySet<string>): ReadonlyArray<string> => {
  if (devices === undefined) return []
  const known = Object.keys(devices.people)
  const unknown = (devices.attendance?.people ?? []).flatMap((name) =>
    known.some((one) => qualify(one) === qualify(name))
      ? []
      : [`devices.attendance.people: ${name} is not among devices.people; these are ${known.join(", ") || "none"}`],
  )
  return [...deviceTableProblems(devices, synced), ...unknown]
}

const peopleOf = ({ group, ...rule }: z.output<typeof PeopleRule>): DeviceRules["people"][string] => ({
  ...rule,
  ...(group === undefined
    ? {}
    : typeof group === "string"
      ? { group }
      : { group: group.column, groupFrom: { table: qualify(group.table), name: group.name } }),
})

const attendanceOf = ({ people, ...rule }: NonNullable<DevicesFile["attendance"]>): AttendanceRules => ({
  ...rule,
  table: qualify(rule.table),
  ...(people === undefined ? {} : { people: people.map(qualify) }),
})

export const parseConfig = (source: string, value: unknown): Config | ConfigRefused => {
  const parsed = ConfigFile.safeParse(value)
  if (!parsed.success) {
    return new ConfigRefused({
      source,
      problems: parsed.error.issues.map((issue) => `${issue.path.map(String).join(".") || "the default export"}: ${issue.message}`),
    })
  }
  const { plugin, tables, devices } = parsed.data
  const audiences = new Map(Object.entries(tables).map(([name, rule]) => [qualify(name), audienceOf(rule.audience)]))
  const problems = [...nameProblems(Object.keys(tables)), ...throughProblems(audiences), ...deviceProblems(devices, new Set(audiences.keys()))]
  if (problems.length > 0) return new ConfigRefused({ source, problems })
  return {
    plugin,
    tables: Object.entries(tables).map(([name, rule]) => ({
      name: qualify(name),
      audience: audienceOf(rule.audience),
      direction: rule.direction,
      priority: rule.priority,
      strategy: strategyFor(name, rule),
      columnStrategies: rule.columns,
      exclude: rule.exclude,
      ...(rule.insert === undefined ? {} : { insert: rule.insert }),
      uniqueRule: rule.unique,
    })),
    ...(devices === undefined
      ? {}
      : {
          devices: {
            ...(devices.terminalUsers === undefined ? {} : { terminalUsers: devices.terminalUsers }),
            people: Object.fromEntries(Object.entries(devices.people).map(([name, rule]) => [qualify(name), peopleOf(rule)])),
            ...(devices.attendance === undefined ? {} : { attendance: attendanceOf(devices.attendance) }),
          },
        }),
  }
}

export const loadConfig = (path: string): Effect.Effect<Config, ConfigRefused> =>
  Effect.gen(function* () {
    const file = isAbsolute(path) ? path : resolve(process.cwd(), path)
    if (!isFile(file)) return yield* new ConfigRefused({ source: file, problems: ["there is no such file; name yours with --config"] })
    const module = yield* Effect.tryPromise({
      try: () => import(pathToFileURL(file).href) as Promise<{ default?: unknown }>,
      catch: (cause) => new ConfigRefused({ source: file, problems: [`cannot be read: ${importFault(cause)}`] }),
    })
    if (module.default === undefined) {
      return yield* new ConfigRefused({ source: file, problems: ["has no default export; write `export default { tables: { … } }`"] })
    }
    const config = parseConfig(file, module.default)
    return config instanceof ConfigRefused ? yield* config : config
  })
