/** `hub`, `school`: the options of the two services. They run until SIGTERM or SIGINT, end with 0 then, and say themselves why they could not start. */
import type { Io } from "./io.ts"
import { parseKey } from "../link/keys.ts"
import { type Metered, parseHours } from "../link/metered.ts"
import { CommandFailed, EXIT, type Input, usage } from "./options.ts"

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

/** `--metered` and what belongs to it; any of the others means a metered link, too. */
const meteredOf = (input: Input): Metered | null => {
  const hours = parseHours(input.list("hours"))
  if ("refused" in hours) throw usage(`--hours: ${hours.refused}`, "schoolbus school --help")
  const budgetMb = input.numberOr("budget-mb", null)
  const cycleMinutes = input.number("cycle-minutes")
  if (cycleMinutes <= 0) throw usage("--cycle-minutes must be more than 0", "schoolbus school --help")
  if (!input.flag("metered") && budgetMb === null && hours.length === 0 && input.origin("cycle-minutes") === "default") return null
  return { cycleMinutes, hours, budgetBytes: budgetMb === null ? null : Math.round(budgetMb * 1_000_000) }
}

export const school = async (input: Input, _io: Io): Promise<number> => {
  const hub = input.text("hub")
  if (!/^https?:$/.test(URL.parse(hub)?.protocol ?? ""))
    throw usage(`--hub must be an address like https://sync.example.org, not ${hub}`, "schoolbus school --help")
  // The hub would refuse it for ever; its checksum tells so without the hub.
  if (parseKey(input.text("key")) === null) {
    const isFile = input.origin("key") === "file"
    throw new CommandFailed(
      isFile ? EXIT.config : EXIT.usage,
      "school_key",
      `${isFile ? "the file of the key holds" : "--key is"} no school key, or one with a typing error: it must be whole, like sb_0123456789ab_…`,
      "copy it again from what head office was shown by: schoolbus schools add, or schools rotate-key",
    )
  }
  const { runSchool } = await import("../school.ts")
  return await runSchool({
    hub,
    key: input.text("key"),
    dataDir: input.text("data-dir"),
    port: input.number("port"),
    host: input.text("host"),
    iclockHost: input.textOr("iclock-host", null),
    iclockPort: input.numberOr("iclock-port", null),
    adminToken: input.textOr("admin-token", null),
    adopt: input.flag("adopt"),
    newLife: input.flag("new-life"),
    metered: meteredOf(input),
    workers: input.textOr("workers", null),
  })
}
