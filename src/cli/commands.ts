/**
 * All commands: what they are called, what they take, and where they stand. A command's module is loaded only when it runs:
 * monitoring calls the program every minute on small machines.
 */
import { API_OPTIONS, DEFAULT_PORT, JSON_OPTION } from "./api.ts"
import type { Io } from "./io.ts"
import type { CommandSpec, Input, OptionSpec } from "./options.ts"

type Run = (input: Input, io: Io) => Promise<number>

export interface Command extends CommandSpec {
  readonly load: () => Promise<Run>
}

const DATABASE: OptionSpec = {
  name: "database-url",
  kind: "text",
  secret: true,
  required: true,
  help: "Postgres, e.g. postgres://user:password@127.0.0.1:5432/school",
}
const { required: _, ...DATABASE_OPTIONAL } = DATABASE
const CONFIG: OptionSpec = { name: "config", kind: "text", default: "schoolbus.config.ts", help: "which tables are synced, who sees them, who wins" }
const ADMIN_TOKEN: OptionSpec = {
  name: "admin-token",
  kind: "text",
  secret: true,
  help: "what operators must show; needed to reach operator routes on another --host",
}
const DATA_DIR: OptionSpec = { name: "data-dir", kind: "text", default: "data", help: "folder of the node's own files" }
const PORT: OptionSpec = { name: "port", kind: "port", default: DEFAULT_PORT, help: "port of the HTTP interface" }
const HOST: OptionSpec = {
  name: "host",
  kind: "text",
  default: "127.0.0.1",
  help: "address to listen on; another than loopback without a token serves only the link and /health",
}
const SCHOOL: OptionSpec = { name: "school", kind: "text", help: "at the hub: only this school" }
const SLOT: OptionSpec = { name: "slot", kind: "text", help: "name of the hub's replication slot; default: schoolbus_ and the database's name" }

export const COMMANDS: ReadonlyArray<Command> = [
  {
    name: "hub",
    summary: "run the hub on the VPS",
    args: [],
    options: [CONFIG, DATABASE, DATA_DIR, PORT, HOST, ADMIN_TOKEN],
    examples: [
      "schoolbus hub --config schoolbus.config.ts --database-url postgres://schoolbus@127.0.0.1/school",
      "SCHOOLBUS_DATABASE_URL_FILE=/etc/schoolbus/db schoolbus hub --data-dir /var/lib/schoolbus",
    ],
    load: () => import("./services.ts").then((m) => m.hub),
  },
  {
    name: "school",
    summary: "run the node of one school",
    args: [],
    options: [
      { name: "hub", kind: "text", required: true, help: "address of the hub, e.g. https://sync.example.org" },
      { name: "key", kind: "text", secret: true, required: true, help: "the school's key, from: schoolbus schools add" },
      DATA_DIR,
      PORT,
      { name: "iclock-port", kind: "port", help: "port for attendance terminals; absent = no terminals" },
      { name: "iclock-host", kind: "text", help: "address that terminals call, e.g. that of the LAN; absent = as --host" },
      HOST,
      ADMIN_TOKEN,
      { name: "adopt", kind: "flag", help: "take over tables with rows that stand in school.db already" },
      {
        name: "new-life",
        kind: "flag",
        help: "once, for a file that was copied or put back from a backup: it starts anew and sends what has no verdict again",
      },
      { name: "workers", kind: "text", help: "folder of worker modules" },
      { name: "metered", kind: "flag", help: "the link costs by the byte: sync in cycles, critical changes at once" },
      { name: "cycle-minutes", kind: "number", default: "15", help: "metered: minutes between two cycles" },
      { name: "budget-mb", kind: "number", help: "metered: megabytes a day, both directions; absent = no limit" },
      { name: "hours", kind: "list", help: "metered: times of day when it may call, e.g. 19:00-06:00,12:00-13:00; absent = always" },
    ],
    examples: [
      "schoolbus school --hub https://sync.example.org --key-file /etc/schoolbus/key",
      "schoolbus school --hub http://10.0.0.1:4480 --key sb_… --iclock-port 8081",
    ],
    load: () => import("./services.ts").then((m) => m.school),
  },
  {
    name: "demo",
    summary: "hub, two schools and a terminal on this machine, with a Postgres of their own",
    args: [],
    options: [{ name: "check", kind: "flag", help: "play a fixed scenario, verify it, exit 0 or 1" }],
    examples: ["schoolbus demo", "schoolbus demo --check"],
    load: () => import("./demo.ts").then((m) => m.run),
  },
  {
    name: "schools add",
    summary: "enrol a school; prints its key once",
    args: ["id"],
    options: [{ name: "name", kind: "text", help: "the school's name; default: its id" }, DATABASE, JSON_OPTION],
    examples: ['schoolbus schools add north --name "North Primary" --database-url postgres://…', "schoolbus schools add north --json > north.json"],
    load: () => import("./schools.ts").then((m) => m.add),
  },
  {
    name: "schools list",
    summary: "schools and their state",
    args: [],
    options: [DATABASE, JSON_OPTION],
    examples: ["schoolbus schools list", "schoolbus schools list --json"],
    load: () => import("./schools.ts").then((m) => m.list),
  },
  {
    name: "schools pause",
    summary: "stop a school's sync until it is resumed",
    args: ["id"],
    options: [DATABASE, JSON_OPTION],
    examples: ["schoolbus schools pause north", "schoolbus schools pause north --json"],
    load: () => import("./schools.ts").then((m) => m.pause),
  },
  {
    name: "schools resume",
    summary: "let a paused school sync again",
    args: ["id"],
    options: [DATABASE, JSON_OPTION],
    examples: ["schoolbus schools resume north", "schoolbus schools resume north --json"],
    load: () => import("./schools.ts").then((m) => m.resume),
  },
  {
    name: "schools rotate-key",
    summary: "a new key; the one before works until the next rotation",
    args: ["id"],
    options: [{ name: "now", kind: "flag", help: "end all former keys at once" }, DATABASE, JSON_OPTION],
    examples: ["schoolbus schools rotate-key north", "schoolbus schools rotate-key north --now"],
    load: () => import("./schools.ts").then((m) => m.rotateKey),
  },
  {
    name: "schools revoke",
    summary: "cut a school off at once",
    args: ["id"],
    options: [{ name: "yes", kind: "flag", help: "do not ask" }, DATABASE, JSON_OPTION],
    examples: ["schoolbus schools revoke north", "schoolbus schools revoke north --yes"],
    load: () => import("./schools.ts").then((m) => m.revoke),
  },
  {
    name: "status",
    summary: "how a hub or school node is doing",
    args: [],
    options: [SCHOOL, { name: "watch", kind: "flag", help: "again every 2 seconds; with --json one object a line" }, ...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus status", "schoolbus status --url http://127.0.0.1:4480 --json"],
    load: () => import("./status.ts").then((m) => m.run),
  },
  {
    name: "check",
    summary: "one line for monitoring; exits 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN",
    args: ["[what]"],
    options: [
      { name: "warning", kind: "number", help: "bound of a single check: bytes (slots), schools (nodes), seconds (lag, link), count (conflicts)" },
      { name: "critical", kind: "number", help: "the same, for CRITICAL" },
      SCHOOL,
      ...API_OPTIONS,
      JSON_OPTION,
    ],
    examples: ["schoolbus check", "schoolbus check lag --warning 600 --critical 7200"],
    load: () => import("./check.ts").then((m) => m.run),
  },
  {
    name: "sync",
    summary: "sync now",
    args: [],
    options: [
      { name: "direction", kind: "text", default: "both", help: "both, up or down" },
      { name: "tables", kind: "list", help: "only these, with commas between" },
      SCHOOL,
      ...API_OPTIONS,
      JSON_OPTION,
    ],
    examples: ["schoolbus sync", "schoolbus sync --direction up --tables attendance,marks"],
    load: () => import("./sync.ts").then((m) => m.run),
  },
  {
    name: "verify",
    summary: "compare this school's file with head office, or at the hub Postgres with the feed; exit 1 when they differ",
    args: [],
    options: [
      { name: "repair", kind: "flag", help: "mend what differs: own writes go up and get a verdict, the rest is sent again" },
      ...API_OPTIONS.map((option) => (option.name === "timeout" ? { ...option, default: "900" } : option)),
      JSON_OPTION,
    ],
    examples: ["schoolbus verify", "schoolbus verify --repair --json"],
    load: () => import("./verify.ts").then((m) => m.run),
  },
  {
    name: "slots",
    summary: "what each replication slot holds back; asks Postgres itself when --database-url is set",
    args: [],
    options: [DATABASE_OPTIONAL, ...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus slots", "schoolbus slots --database-url postgres://… --json"],
    load: () => import("./slots.ts").then((m) => m.run),
  },
  {
    name: "conflicts list",
    summary: "what both sides wrote",
    args: [],
    options: [
      { name: "all", kind: "flag", help: "also those that are decided" },
      { name: "table", kind: "text", help: "only this table" },
      SCHOOL,
      { name: "limit", kind: "number", default: "50", help: "at most this many, up to 500" },
      { name: "cursor", kind: "text", help: "from a former page" },
      ...API_OPTIONS,
      JSON_OPTION,
    ],
    examples: ["schoolbus conflicts list", "schoolbus conflicts list --all --table marks"],
    load: () => import("./conflicts.ts").then((m) => m.list),
  },
  {
    name: "conflicts show",
    summary: "one conflict: before, the school's value, head office's value",
    args: ["id"],
    options: [...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus conflicts show 0198f…", "schoolbus conflicts show 0198f… --json"],
    load: () => import("./conflicts.ts").then((m) => m.show),
  },
  {
    name: "conflicts resolve",
    summary: "decide a conflict, at the hub",
    args: ["id"],
    options: [
      { name: "keep", kind: "text", help: "school or vps" },
      { name: "value", kind: "text", help: "another value, as JSON" },
      { name: "by", kind: "text", help: "who decides, for the record" },
      ...API_OPTIONS,
      JSON_OPTION,
    ],
    examples: ["schoolbus conflicts resolve 0198f… --keep school", "schoolbus conflicts resolve 0198f… --value '\"0722 000 000\"' --by amina"],
    load: () => import("./conflicts.ts").then((m) => m.resolve),
  },
  {
    name: "devices list",
    summary: "terminals that have called this school node",
    args: [],
    options: [...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus devices list", "schoolbus devices list --json"],
    load: () => import("./devices.ts").then((m) => m.list),
  },
  {
    name: "devices approve",
    summary: "let a terminal send punches and hold people",
    args: ["serial"],
    options: [
      { name: "zone", kind: "text", help: "time zone of its clock, e.g. Africa/Nairobi" },
      { name: "name", kind: "text", help: "what people call it" },
      { name: "address", kind: "text", help: "only calls from this address or net count, e.g. 10.20.0.0/24; any = from anywhere" },
      ...API_OPTIONS,
      JSON_OPTION,
    ],
    examples: ["schoolbus devices approve CJDE193560043 --zone Africa/Nairobi", 'schoolbus devices approve CJDE193560043 --name "Main gate"'],
    load: () => import("./devices.ts").then((m) => m.approve),
  },
  {
    name: "devices status",
    summary: "which people a terminal holds",
    args: ["serial"],
    options: [...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus devices status CJDE193560043", "schoolbus devices status CJDE193560043 --json"],
    load: () => import("./devices.ts").then((m) => m.status),
  },
  {
    name: "devices sync",
    summary: "send a terminal everyone it should hold",
    args: ["serial"],
    options: [...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus devices sync CJDE193560043", "schoolbus devices sync CJDE193560043 --json"],
    load: () => import("./devices.ts").then((m) => m.sync),
  },
  {
    name: "devices retire",
    summary: "stop answering a terminal; its punches and pins stay",
    args: ["serial"],
    options: [...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus devices retire CJDE193560043", "schoolbus devices retire 2 --json"],
    load: () => import("./devices.ts").then((m) => m.retire),
  },
  {
    name: "devices replace",
    summary: "let a new terminal take over name, zone, pins and people of a broken one",
    args: ["serial", "new-serial"],
    options: [...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus devices replace CJDE193560043 CJDE204471120", "schoolbus devices replace 2 CJDE204471120 --json"],
    load: () => import("./devices.ts").then((m) => m.replace),
  },
  {
    name: "devices claim",
    summary: "say whose a pin is that nobody is known for; its punches become theirs",
    args: ["serial", "pin", "person"],
    options: [{ name: "table", kind: "text", help: "table of the person, when the config names several" }, ...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus devices claim CJDE193560043 77 0198f2…", "schoolbus devices claim 2 77 12 --table staff"],
    load: () => import("./devices.ts").then((m) => m.claim),
  },
  {
    name: "devices command",
    summary: "queue a command: INFO, CHECK, LOG, REBOOT, SET_TIME, AC_UNLOCK, AC_UNALARM, QUERY_USERS, QUERY_ATTLOG, CLEAR_LOG",
    args: ["serial", "command"],
    options: [
      { name: "from", kind: "text", help: "of QUERY_ATTLOG: first moment, on the terminal's clock" },
      { name: "to", kind: "text", help: "of QUERY_ATTLOG: last moment" },
      { name: "confirm", kind: "text", help: "of CLEAR_LOG: the serial number once more" },
      ...API_OPTIONS,
      JSON_OPTION,
    ],
    examples: [
      "schoolbus devices command CJDE193560043 REBOOT",
      'schoolbus devices command CJDE193560043 QUERY_ATTLOG --from "2026-03-03 00:00:00" --to "2026-03-03 23:59:59"',
    ],
    load: () => import("./devices.ts").then((m) => m.command),
  },
  {
    name: "devices history",
    summary: "commands of a terminal with their results, newest first",
    args: ["serial"],
    options: [{ name: "limit", kind: "number", default: "50", help: "how many" }, ...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus devices history CJDE193560043", "schoolbus devices history CJDE193560043 --limit 500 --json"],
    load: () => import("./devices.ts").then((m) => m.history),
  },
  {
    name: "devices export",
    summary: "punches as CSV",
    args: ["[serial]"],
    options: [
      { name: "from", kind: "text", help: "first day or moment, on the terminal's clock" },
      { name: "to", kind: "text", help: "last day or moment" },
      { name: "out", kind: "text", help: "file to write; absent = standard output" },
      ...API_OPTIONS,
    ],
    examples: ["schoolbus devices export --from 2026-03-01 --to 2026-03-31 --out march.csv", "schoolbus devices export CJDE193560043"],
    load: () => import("./devices.ts").then((m) => m.exported),
  },
  {
    name: "config validate",
    summary: "check the config file",
    args: [],
    options: [CONFIG, JSON_OPTION],
    examples: ["schoolbus config validate", "schoolbus config validate --config /etc/schoolbus/schoolbus.config.ts"],
    load: () => import("./config.ts").then((m) => m.validate),
  },
  {
    name: "config show",
    summary: "settings of the hub here, where each comes from, and the rules of each table",
    args: [],
    options: [CONFIG, DATABASE_OPTIONAL, DATA_DIR, PORT, HOST, ADMIN_TOKEN, JSON_OPTION],
    examples: ["schoolbus config show", "schoolbus config show --json"],
    load: () => import("./config.ts").then((m) => m.show),
  },
  {
    name: "doctor",
    summary: "what in Postgres stands in the way, with the command that mends it",
    args: [],
    options: [DATABASE, SLOT, { name: "config", kind: "text", help: "also judge the tables that this config lists" }, JSON_OPTION],
    examples: ["schoolbus doctor --database-url postgres://… --config schoolbus.config.ts", "schoolbus doctor --json"],
    load: () => import("./doctor.ts").then((m) => m.run),
  },
  {
    name: "completions",
    summary: "completions for bash, zsh or fish",
    args: ["shell"],
    options: [],
    examples: [
      "schoolbus completions bash > /etc/bash_completion.d/schoolbus",
      "schoolbus completions fish > ~/.config/fish/completions/schoolbus.fish",
    ],
    load: () => import("./completions.ts").then((m) => (input, io) => m.run(input, io, COMMANDS)),
  },
]
