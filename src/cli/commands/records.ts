/** What waits for a person: conflicts and quarantined changes. */
import { API_OPTIONS, JSON_OPTION, patient } from "../api.ts"
import { BY, type Command, PAGING, SCHOOL } from "../command.ts"
import type { OptionSpec } from "../options.ts"

/** Which of the quarantined changes. */
const SOME: ReadonlyArray<OptionSpec> = [
  { name: "table", kind: "text", help: "only this table" },
  { name: "reason", kind: "text", help: "only this reason, as the list shows it: foreign_key, check, …" },
  SCHOOL,
]

export const records: ReadonlyArray<Command> = [
  {
    name: "conflicts list",
    summary: "what both sides wrote, with advice",
    args: [],
    options: [
      { name: "open", kind: "flag", help: "those that wait for a decision; the default" },
      { name: "resolved", kind: "flag", help: "those that are decided, by a rule or a person" },
      { name: "all", kind: "flag", help: "both" },
      { name: "table", kind: "text", help: "only this table" },
      SCHOOL,
      ...PAGING,
      ...API_OPTIONS,
      JSON_OPTION,
    ],
    examples: ["schoolbus conflicts list", "schoolbus conflicts list --resolved --table marks"],
    load: () => import("../conflicts.ts").then((m) => m.list),
  },
  {
    name: "conflicts show",
    summary: "one conflict: before, the school's value, head office's value, advice",
    args: ["id"],
    options: [...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus conflicts show 0198f…", "schoolbus conflicts show 0198f… --json"],
    load: () => import("../conflicts.ts").then((m) => m.show),
  },
  {
    name: "conflicts resolve",
    summary: "decide a conflict, at the hub or in the school",
    args: ["id"],
    options: [
      { name: "keep", kind: "text", help: "school, vps, merge; of a unique value: rename_local, keep_local, keep_remote, merge, discard" },
      { name: "value", kind: "text", help: "another value, as JSON; with rename_local the new one, else a free one is found" },
      BY,
      ...API_OPTIONS,
      JSON_OPTION,
    ],
    examples: ["schoolbus conflicts resolve 0198f… --keep school", "schoolbus conflicts resolve 0198f… --value '\"0722 000 000\"' --by amina"],
    load: () => import("../conflicts.ts").then((m) => m.resolve),
  },
  {
    name: "conflicts undo",
    summary: "take a decision back, as long as nobody has written there since",
    args: ["id"],
    options: [BY, ...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus conflicts undo 0198f…", "schoolbus conflicts undo 0198f… --by amina --json"],
    load: () => import("../conflicts.ts").then((m) => m.undo),
  },
  {
    name: "conflicts auto-resolve",
    summary: "do what is safe: free values for new rows, head office's newer values; the rest stays open, with the reason",
    args: [],
    options: [
      { name: "max", kind: "number", default: "100", help: "at most this many, oldest first" },
      { name: "table", kind: "text", help: "only this table" },
      SCHOOL,
      ...patient(900),
      JSON_OPTION,
    ],
    examples: ["schoolbus conflicts auto-resolve", "schoolbus conflicts auto-resolve --max 10 --table users --json"],
    load: () => import("../conflicts.ts").then((m) => m.autoResolve),
  },
  {
    name: "quarantine list",
    summary: "changes that could not be written, with the reason",
    args: [],
    options: [{ name: "all", kind: "flag", help: "also those that are retried or discarded" }, ...SOME, ...PAGING, ...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus quarantine list", "schoolbus quarantine list --all --table marks"],
    load: () => import("../quarantine.ts").then((m) => m.list),
  },
  {
    name: "quarantine show",
    summary: "one change that could not be written",
    args: ["id"],
    options: [...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus quarantine show 0198f…", "schoolbus quarantine show 0198f… --json"],
    load: () => import("../quarantine.ts").then((m) => m.show),
  },
  {
    name: "quarantine retry",
    summary: "try a change again, after its cause is gone; or many: by table, reason or school, or all that wait",
    args: ["[id]"],
    options: [...SOME, { name: "all", kind: "flag", help: "all that wait" }, BY, ...API_OPTIONS, JSON_OPTION],
    examples: ["schoolbus quarantine retry 0198f…", "schoolbus quarantine retry --table marks --reason check --json"],
    load: () => import("../quarantine.ts").then((m) => m.retry),
  },
  {
    name: "quarantine edit",
    summary: "put other values into a change, and try it",
    args: ["id"],
    options: [{ name: "set", kind: "text", required: true, help: "values by column, as JSON" }, BY, ...API_OPTIONS, JSON_OPTION],
    examples: [
      `schoolbus quarantine edit 0198f… --set '{"username": "amina2"}'`,
      `schoolbus quarantine edit 0198f… --set '{"class_id": null}' --by amina`,
    ],
    load: () => import("../quarantine.ts").then((m) => m.edit),
  },
  {
    name: "quarantine discard",
    summary: "give a change up, or many as with retry; the school shows head office's rows again",
    args: ["[id]"],
    options: [
      ...SOME,
      { name: "all", kind: "flag", help: "all that wait" },
      { name: "yes", kind: "flag", help: "of many: do not ask" },
      BY,
      ...API_OPTIONS,
      JSON_OPTION,
    ],
    examples: ["schoolbus quarantine discard 0198f… --by amina", "schoolbus quarantine discard --school north --table marks --yes"],
    load: () => import("../quarantine.ts").then((m) => m.discard),
  },
]
