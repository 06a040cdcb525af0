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

/** Terminals and punches: written by the school node, read at head office. */
const device = (name: string): BuiltinTable => ({ ...own, name: `schoolbus.${name}`, local: name, direction: "up", system: false })

export const builtinTables: ReadonlyArray<BuiltinTable> = [
  told("ledger"),
  told("conflicts"),
  told("quarantine"),
  device("devices"),
  device("device_commands"),
  device("device_user_mappings"),
  device("device_user_sync_status"),
  device("punches"),
]
