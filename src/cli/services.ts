/** `hub`, `school`: the options of the two services. They run until SIGTERM or SIGINT and then end with 0. */
import type { Io } from "./io.ts"
import { EXIT, type Input } from "./options.ts"

export const hub = async (input: Input, _io: Io): Promise<number> => {
  const { runHub } = await import("../hub.ts")
  await runHub({
    config: input.text("config"),
    databaseUrl: input.text("database-url"),
    dataDir: input.text("data-dir"),
    port: input.number("port"),
    host: input.text("host"),
    adminToken: input.textOr("admin-token", null),
  })
  return EXIT.ok
}

export const school = async (input: Input, _io: Io): Promise<number> => {
  const { runSchool } = await import("../school.ts")
  await runSchool({
    hub: input.text("hub"),
    key: input.text("key"),
    dataDir: input.text("data-dir"),
    port: input.number("port"),
    host: input.text("host"),
    iclockPort: input.numberOr("iclock-port", null),
    adminToken: input.textOr("admin-token", null),
    adopt: input.flag("adopt"),
    workers: input.textOr("workers", null),
  })
  return EXIT.ok
}
