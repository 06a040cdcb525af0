/** `schoolbus.config.ts`: which tables are synced, who sees them, who wins. Read at the hub only; schools get the manifest. */
import { isAbsolute, resolve } from "node:path"
import { pathToFileURL } from "node:url"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { z } from "zod"
import type { Audience, DeviceRules, Direction, Priority, Strategy } from "./model/table.ts"

/** Names that configs of other systems use for the same rules. */
const ALIASES: Readonly<Record<string, Strategy>> = {
  LOCAL_WINS: "school_wins",
  TERMINAL_WINS: "school_wins",
  REMOTE_WINS: "vps_wins",
  CENTRAL_WINS: "vps_wins",
  TIMESTAMP_WINS: "newest_wins",
  MANUAL: "manual",
}

const StrategyName = z.preprocess(
  (value) => (typeof value === "string" ? (ALIASES[value] ?? value) : value),
  z.enum(["school_wins", "vps_wins", "newest_wins", "manual"]),
)

const TableRule = z.strictObject({
  audience: z.union([z.literal("all"), z.strictObject({ column: z.string().min(1) })]),
  direction: z.enum(["both", "up", "down"]).default("both"),
  priority: z.enum(["critical", "high", "medium", "low", "background"]).default("medium"),
  strategy: StrategyName.default("vps_wins"),
  columns: z.record(z.string(), StrategyName).default({}),
})

const PeopleRule = z.strictObject({
  id: z.string(),
  name: z.string(),
  card: z.string().exactOptional(),
  pin: z.string().exactOptional(),
  active: z.string().exactOptional(),
  group: z.string().exactOptional(),
})

export type PluginName = "wal2json" | "pgoutput"

const ConfigFile = z.strictObject({
  plugin: z.enum(["wal2json", "pgoutput"]).default("wal2json"),
  tables: z.record(z.string().min(1), TableRule),
  devices: z
    .strictObject({
      people: z.record(z.string(), PeopleRule),
      attendance: z
        .strictObject({
          table: z.string(),
          person: z.string(),
          at: z.string(),
          status: z.string().exactOptional(),
          device: z.string().exactOptional(),
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
  readonly columnStrategies: Readonly<Record<string, Strategy>>
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

export const parseConfig = (source: string, value: unknown): Config | ConfigRefused => {
  const parsed = ConfigFile.safeParse(value)
  if (!parsed.success) {
    return new ConfigRefused({
      source,
      problems: parsed.error.issues.map((issue) => `${issue.path.map(String).join(".") || "the default export"}: ${issue.message}`),
    })
  }
  const { plugin, tables, devices } = parsed.data
  return {
    plugin,
    tables: Object.entries(tables).map(([name, rule]) => ({
      name: qualify(name),
      audience: rule.audience,
      direction: rule.direction,
      priority: rule.priority,
      strategy: rule.strategy,
      columnStrategies: rule.columns,
    })),
    ...(devices === undefined
      ? {}
      : {
          devices: {
            people: Object.fromEntries(Object.entries(devices.people).map(([name, rule]) => [qualify(name), rule])),
            ...(devices.attendance === undefined ? {} : { attendance: { ...devices.attendance, table: qualify(devices.attendance.table) } }),
          },
        }),
  }
}

export const loadConfig = (path: string): Effect.Effect<Config, ConfigRefused> =>
  Effect.gen(function* () {
    const file = isAbsolute(path) ? path : resolve(process.cwd(), path)
    const module = yield* Effect.tryPromise({
      try: () => import(pathToFileURL(file).href) as Promise<{ default?: unknown }>,
      catch: (cause) => new ConfigRefused({ source: file, problems: [`cannot be read: ${cause instanceof Error ? cause.message : String(cause)}`] }),
    })
    if (module.default === undefined) {
      return yield* new ConfigRefused({ source: file, problems: ["has no default export; write `export default { tables: { … } }`"] })
    }
    const config = parseConfig(file, module.default)
    return config instanceof ConfigRefused ? yield* config : config
  })
