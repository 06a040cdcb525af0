/** Settings, records of what happened, and what is wrong with a machine. */
import { API_OPTIONS, JSON_OPTION } from "../api.ts"
import { ADMIN_TOKEN, CONFIG, type Command, DATABASE, DATABASE_OPTIONAL, DATA_DIR, HOST, PAGING, PORT, SCHOOL, SLOT } from "../command.ts"

export const upkeep: ReadonlyArray<Command> = [
  {
    name: "logs",
    summary: "sync runs: why, when, records by table, conflicts, errors",
    args: [],
    options: [SCHOOL, ...PAGING, ...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus logs", "schoolbus logs --url https://hub.example --school north"],
    load: () => import("../logs.ts").then((m) => m.list),
  },
  {
    name: "config set",
    summary: "how a running node syncs by itself; without --set, how it does now",
    args: [],
    options: [
      {
        name: "set",
        kind: "list",
        help: "auto, intervalMinutes, batch, retryMaxSeconds, budgetMb, hours: NAME=VALUE; hours are joined by +, budgetMb=null: no budget",
      },
      ...API_OPTIONS,
      JSON_OPTION,
    ],
    examples: ["schoolbus config set --set intervalMinutes=15,budgetMb=50,hours=19:00-06:00+12:00-13:00", "schoolbus config set --set auto=false"],
    load: () => import("../logs.ts").then((m) => m.set),
  },
  {
    name: "config validate",
    summary: "check the config file",
    args: [],
    options: [CONFIG, JSON_OPTION],
    examples: ["schoolbus config validate", "schoolbus config validate --config /etc/schoolbus/schoolbus.config.ts"],
    load: () => import("../config.ts").then((m) => m.validate),
  },
  {
    name: "config show",
    summary: "settings of the hub here, where each comes from, and the rules of each table",
    args: [],
    options: [CONFIG, DATABASE_OPTIONAL, DATA_DIR, PORT, HOST, ADMIN_TOKEN, JSON_OPTION],
    examples: ["schoolbus config show", "schoolbus config show --json"],
    load: () => import("../config.ts").then((m) => m.show),
  },
  {
    name: "doctor",
    summary: "what in Postgres stands in the way, with the command that mends it",
    args: [],
    options: [DATABASE, SLOT, { name: "config", kind: "text", help: "also judge the tables that this config lists" }, JSON_OPTION],
    examples: ["schoolbus doctor --database-url postgres://… --config schoolbus.config.ts", "schoolbus doctor --json"],
    load: () => import("../doctor.ts").then((m) => m.run),
  },
]
