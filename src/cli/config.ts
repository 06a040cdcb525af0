/** `config validate | show`: the config file as the hub would read it, and where each setting of this machine comes from. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { type Config, loadConfig } from "../config.ts"
import { maskedUrl } from "./database.ts"
import type { Io } from "./io.ts"
import { CommandFailed, EXIT, type Input } from "./options.ts"
import { clean, table } from "./text.ts"

const load = async (input: Input): Promise<Config> => {
  const exit = await Effect.runPromiseExit(loadConfig(input.text("config")))
  if (Exit.isSuccess(exit)) return exit.value
  const error = Cause.squash(exit.cause) as { readonly source?: string; readonly problems?: ReadonlyArray<string>; readonly message: string }
  throw new CommandFailed(
    EXIT.config,
    "config",
    error.message,
    "schoolbus config validate --config FILE",
    error.problems === undefined ? {} : { problems: error.problems },
  )
}

export const validate = async (input: Input, io: Io): Promise<number> => {
  const config = await load(input)
  io.out(
    input.flag("json")
      ? `${JSON.stringify({ schemaVersion: 1, valid: true, tables: config.tables.length })}\n`
      : `${clean(input.text("config"))} is valid: ${config.tables.length} tables${config.devices === undefined ? "" : ", terminals"}. Whether Postgres has them is checked when the hub starts.\n`,
  )
  return EXIT.ok
}

export const show = async (input: Input, io: Io): Promise<number> => {
  const config = await load(input)
  const settings = input.command.options
    .filter((option) => option.name !== "json")
    .map((option) => {
      const origin = input.origin(option.name)
      const text = input.text(option.name)
      const value = origin === "none" ? null : option.name === "database-url" ? maskedUrl(text) : option.secret === true ? "***" : text
      return { name: option.name, value, origin }
    })
  if (input.flag("json")) {
    io.out(`${JSON.stringify({ schemaVersion: 1, settings, config })}\n`)
    return EXIT.ok
  }
  io.out(
    table(
      io.look,
      ["Setting", "Value", "From"].map((title) => ({ title })),
      settings.map((s) => [s.name, s.value === null ? "-" : clean(s.value), s.origin]),
    ),
  )
  io.out(
    `\n${table(
      io.look,
      ["Table", "Audience", "Direction", "Priority", "Strategy", "Columns"].map((title) => ({ title })),
      config.tables.map((t) => [
        clean(t.name),
        clean(typeof t.audience === "string" ? t.audience : JSON.stringify(t.audience)),
        t.direction,
        t.priority,
        t.strategy,
        clean(
          Object.entries(t.columnStrategies)
            .map(([column, strategy]) => `${column}: ${strategy}`)
            .concat(t.exclude.length > 0 ? [`never: ${t.exclude.join(" ")}`] : [])
            .join(", "),
        ) || "-",
      ]),
    )}`,
  )
  return EXIT.ok
}
