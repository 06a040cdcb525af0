/** Synced tables that every school has, whatever the config lists. */
import type { Table } from "./table.ts"

export type BuiltinTable = Pick<Table, "name" | "local" | "audience" | "direction" | "priority" | "strategy" | "system">

const own = { audience: { column: "school" }, priority: "critical", strategy: "school_wins" } as const

/** The sync's own rows: what the hub tells a school about its batches. No school program writes them. */
const told = (name: string): BuiltinTable => ({
  ...own,
  name: `schoolbus.${name}`,
  local: `schoolbus_${name}`,
  direction: "down",
  strategy: "vps_wins",
  system: true,
})

/** What people in the school ask of head office: written by the school node, answered in the row itself. */
const requests: BuiltinTable = {
  ...own,
  name: "schoolbus.requests",
  local: "schoolbus_requests",
  direction: "both",
  strategy: "vps_wins",
  system: false,
}

/** Terminals and punches: written by the school's node, read at head office. */
const device = (name: string, more: Pick<BuiltinTable, "direction" | "priority">): BuiltinTable => ({
  ...own,
  ...more,
  name: `schoolbus.${name}`,
  local: name,
  system: false,
})

export const builtinTables: ReadonlyArray<BuiltinTable> = [
  told("ledger"),
  told("conflicts"),
  told("quarantine"),
  requests,
  // Approvals and pins outlive a school's file: a pin is one person's for ever, also for a file that was made anew.
  device("devices", { direction: "both", priority: "high" }),
  device("device_user_mappings", { direction: "both", priority: "high" }),
  device("device_commands", { direction: "up", priority: "low" }),
  device("device_user_sync_status", { direction: "up", priority: "medium" }),
  device("punches", { direction: "up", priority: "critical" }),
]

/** Written by one node alone: what differs was written by an earlier life of the school's file, and is no disagreement. */
export const isOwnOfNode = (table: Pick<Table, "name" | "system">): boolean => !table.system && table.name.startsWith("schoolbus.")
