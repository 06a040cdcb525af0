/** What a command is, and the options that several commands take. */
import { DEFAULT_PORT } from "./api.ts"
import type { Io } from "./io.ts"
import type { CommandSpec, Input, OptionSpec } from "./options.ts"

export type Run = (input: Input, io: Io) => Promise<number>

export interface Command extends CommandSpec {
  readonly load: () => Promise<Run>
}

export const DATABASE: OptionSpec = {
  name: "database-url",
  kind: "postgres",
  secret: true,
  required: true,
  help: "Postgres, e.g. postgres://user:password@127.0.0.1:5432/school",
}
export const { required: _, ...DATABASE_OPTIONAL } = DATABASE
export const CONFIG: OptionSpec = {
  name: "config",
  kind: "text",
  default: "schoolbus.config.ts",
  help: "which tables are synced, who sees them, who wins",
}
export const ADMIN_TOKEN: OptionSpec = {
  name: "admin-token",
  kind: "text",
  secret: true,
  help: "what operators must show; needed to reach operator routes on another --host",
}
export const DATA_DIR: OptionSpec = { name: "data-dir", kind: "text", default: "data", help: "folder of the node's own files" }
export const PORT: OptionSpec = { name: "port", kind: "port", default: DEFAULT_PORT, help: "port of the HTTP interface" }
export const HOST: OptionSpec = {
  name: "host",
  kind: "text",
  default: "127.0.0.1",
  help: "address to listen on; another than loopback without a token serves only the link and /health",
}
export const SCHOOL: OptionSpec = { name: "school", kind: "text", help: "at the hub: only this school" }
export const SLOT: OptionSpec = {
  name: "slot",
  kind: "text",
  help: "name of the hub's replication slot; default: schoolbus_ and the database's name",
}
export const BY: OptionSpec = { name: "by", kind: "text", help: "who decides, for the record" }
export const PAGING: ReadonlyArray<OptionSpec> = [
  { name: "limit", kind: "number", default: "50", help: "at most this many, up to 500" },
  { name: "cursor", kind: "text", help: "from a former page" },
]
