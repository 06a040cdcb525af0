/** What a person may choose about a conflict: the same words in CLI, API and what a school sends up. */
import type { Wire } from "./value.ts"

export const KEEPS = ["school", "vps", "value", "merge", "rename_local", "keep_local", "keep_remote", "discard"] as const
export type Keep = (typeof KEEPS)[number]

/** `value`: with `value` the wanted one (a column's value, or an object of columns); with `rename_local` the new one, else the suggestion. */
export interface Choice {
  readonly keep: Keep
  readonly value?: unknown
}

/** The action with which a school's node names rows that differ from head office's, it cannot tell why (up/doubt.ts). */
export const DIFFERS = "differs"

/** What other systems call the same choices. */
const ALIASES: Readonly<Record<string, Keep>> = {
  LOCAL_WINS: "school",
  TERMINAL_WINS: "school",
  SCHOOL_WINS: "school",
  LOCAL: "school",
  MINE: "school",
  REMOTE_WINS: "vps",
  CENTRAL_WINS: "vps",
  VPS_WINS: "vps",
  REMOTE: "vps",
  THEIRS: "vps",
  MERGE: "merge",
  MANUAL_MERGE: "merge",
  MANUAL: "value",
  RENAME: "rename_local",
}

/** null: no such choice. */
export const keepOf = (text: string): Keep | null => {
  const known = (KEEPS as ReadonlyArray<string>).includes(text.toLowerCase()) ? (text.toLowerCase() as Keep) : undefined
  return known ?? ALIASES[text.toUpperCase()] ?? null
}

export const parseChoice = (json: string | null): Choice | null => {
  try {
    const { keep, value } = JSON.parse(json ?? "null") as { keep?: unknown; value?: Wire }
    const known = typeof keep === "string" ? keepOf(keep) : null
    return known === null ? null : { keep: known, ...(value === undefined ? {} : { value }) }
  } catch {
    return null
  }
}
