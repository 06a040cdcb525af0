/** Who the schools are. */
import { JSON_OPTION } from "../api.ts"
import { type Command, DATABASE } from "../command.ts"

export const schools: ReadonlyArray<Command> = [
  {
    name: "schools add",
    summary: "enrol a school; prints its key once",
    args: ["id"],
    options: [{ name: "name", kind: "text", help: "the school's name; default: its id" }, DATABASE, JSON_OPTION],
    examples: ['schoolbus schools add north --name "North Primary" --database-url postgres://…', "schoolbus schools add north --json > north.json"],
    load: () => import("../schools.ts").then((m) => m.add),
  },
  {
    name: "schools list",
    summary: "schools and their state",
    args: [],
    options: [DATABASE, JSON_OPTION],
    examples: ["schoolbus schools list", "schoolbus schools list --json"],
    load: () => import("../schools.ts").then((m) => m.list),
  },
  {
    name: "schools pause",
    summary: "stop a school's sync until it is resumed",
    args: ["id"],
    options: [DATABASE, JSON_OPTION],
    examples: ["schoolbus schools pause north", "schoolbus schools pause north --json"],
    load: () => import("../schools.ts").then((m) => m.pause),
  },
  {
    name: "schools resume",
    summary: "let a paused school sync again",
    args: ["id"],
    options: [DATABASE, JSON_OPTION],
    examples: ["schoolbus schools resume north", "schoolbus schools resume north --json"],
    load: () => import("../schools.ts").then((m) => m.resume),
  },
  {
    name: "schools rotate-key",
    summary: "a new key; the one before works until the next rotation",
    args: ["id"],
    options: [{ name: "now", kind: "flag", help: "end all former keys at once" }, DATABASE, JSON_OPTION],
    examples: ["schoolbus schools rotate-key north", "schoolbus schools rotate-key north --now"],
    load: () => import("../schools.ts").then((m) => m.rotateKey),
  },
  {
    name: "schools revoke",
    summary: "cut a school off at once",
    args: ["id"],
    options: [{ name: "yes", kind: "flag", help: "do not ask" }, DATABASE, JSON_OPTION],
    examples: ["schoolbus schools revoke north", "schoolbus schools revoke north --yes"],
    load: () => import("../schools.ts").then((m) => m.revoke),
  },
]
