/** `hub`, `school`: the options of the two services. They run until SIGTERM or SIGINT, end with 0 then, and say themselves why they could not start. */
import type { Io } from "./io.ts"
import type { Input } from "./options.ts"

export const hub = async (input: Input, _io: Io): Promise<number> => {
  const { runHub } = await import("../hub.ts")
  return await runHub({
    config: input.text("config"),
    databaseUrl: input.text("database-url"),
    dataDir: input.text("data-dir"),
    port: input.number("port"),
    host: input.text("host"),
    adminToken: input.textOr("admin-token", null),
  })
}

export const school = async (input: Input, _io: Io): Promise<number> => {
  const { runSchool } = await import("../school.ts")
  return await runSchool({
    hub: input.text("hub"),
    key: input.text("key"),
    dataDir: input.text("data-dir"),
    port: input.number("port"),
    host: input.text("host"),
    iclockHost: input.textOr("iclock-host", null),
    iclockPort: input.numberOr("iclock-port", null),
    adminToken: input.textOr("admin-token", null),
    adopt: input.flag("adopt"),
    newLife: input.flag("new-life"),
    workers: input.textOr("workers", null),
  })
}
