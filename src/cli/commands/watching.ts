/** How a node is doing, and what a person asks of it. */
import type { CheckId } from "../../status/check.ts"
import { API_OPTIONS, JSON_OPTION, patient } from "../api.ts"
import { type Command, DATABASE_OPTIONAL, SCHOOL } from "../command.ts"

export const CHECKS: ReadonlyArray<CheckId> = [
  "postgres",
  "stream",
  "tables",
  "slots",
  "nodes",
  "link",
  "clock",
  "lag",
  "conflicts",
  "devices",
  "verify",
]

export const watching: ReadonlyArray<Command> = [
  {
    name: "status",
    summary: "how a hub or school node is doing",
    args: [],
    options: [SCHOOL, { name: "watch", kind: "flag", help: "again every 2 seconds; with --json one object a line" }, ...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus status", "schoolbus status --url http://127.0.0.1:4480 --json"],
    load: () => import("../status.ts").then((m) => m.run),
  },
  {
    name: "check",
    summary: "one line for monitoring; exits 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN",
    args: ["[what]"],
    words: CHECKS,
    options: [
      { name: "warning", kind: "number", help: "bound of a single check: bytes (slots), schools (nodes), seconds (lag, link), count (conflicts)" },
      { name: "critical", kind: "number", help: "the same, for CRITICAL" },
      SCHOOL,
      ...API_OPTIONS,
      JSON_OPTION,
    ],
    examples: ["schoolbus check", "schoolbus check lag --warning 600 --critical 7200"],
    load: () => import("../check.ts").then((m) => m.run),
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
    load: () => import("../sync.ts").then((m) => m.run),
  },
  {
    name: "verify",
    summary: "compare this school's file with head office, or at the hub Postgres with the feed; exit 1 when they differ",
    args: [],
    options: [
      { name: "repair", kind: "flag", help: "mend what differs: own writes go up and get a verdict, the rest is sent again" },
      { name: "lost", kind: "flag", help: "at the hub, after Postgres was put back: the rows that stand otherwise than before" },
      ...patient(900),
      JSON_OPTION,
    ],
    examples: ["schoolbus verify", "schoolbus verify --repair --json", "schoolbus verify --lost"],
    load: () => import("../verify.ts").then((m) => m.run),
  },
  {
    name: "tables list",
    summary: "each synced table: whether its changes flow, and if not, why",
    args: [],
    options: [...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus tables list", "schoolbus tables list --url http://127.0.0.1:4480 --json"],
    load: () => import("../tables.ts").then((m) => m.list),
  },
  {
    name: "tables resume",
    summary: "accept a paused table as it is now at head office; its rows are read again and the schools follow",
    args: ["name"],
    options: [...patient(30), JSON_OPTION],
    examples: ["schoolbus tables resume students", "schoolbus tables resume library.books --json"],
    load: () => import("../tables.ts").then((m) => m.resume),
  },
  {
    name: "slots",
    summary: "what each replication slot holds back; asks Postgres itself when --database-url is set",
    args: [],
    options: [DATABASE_OPTIONAL, ...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus slots", "schoolbus slots --database-url postgres://… --json"],
    load: () => import("../slots.ts").then((m) => m.run),
  },
]
