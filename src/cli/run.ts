/** Runs one command line: finds the command, gives help, and turns every failure into words and an exit code. */
import type { Command } from "./command.ts"
import { COMMANDS } from "./commands.ts"
import type { Io } from "./io.ts"
import { CommandFailed, type CommandSpec, EXIT, type Environment, nearest, parseInput, usage, variableOf } from "./options.ts"

const overview = (prefix: string): string => {
  const shown = COMMANDS.filter((command) => prefix === "" || command.name.startsWith(`${prefix} `))
  const width = Math.max(...shown.map((command) => command.name.length))
  const lines = shown.map((command) => `  ${command.name.padEnd(width)}  ${command.summary}\n`).join("")
  return prefix === ""
    ? `Keeps a Postgres at head office and a libSQL file in every school the same.\n\nUsage: schoolbus COMMAND [options]\n\n${lines}\nschoolbus COMMAND --help says more. Every option is also an environment variable: --data-dir is SCHOOLBUS_DATA_DIR.\n`
    : `Usage: schoolbus ${prefix} COMMAND [options]\n\n${lines}`
}

const helpOf = (command: CommandSpec): string => {
  const rows = command.options.flatMap((option) => {
    const value = option.kind === "flag" ? "" : option.kind === "number" || option.kind === "port" ? " N" : " TEXT"
    const note = option.required === true ? " (needed)" : option.default === undefined ? "" : ` (default ${option.default})`
    const main = [`--${option.name}${value}`, `${option.help}${note} [${variableOf(option.name)}]`] as const
    return option.secret === true
      ? [main, [`--${option.name}-file FILE`, `the same, from a file [${variableOf(option.name)}_FILE]`] as const]
      : [main]
  })
  const width = Math.max(0, ...rows.map(([flag]) => flag.length))
  const args = command.args.map((arg) => ` ${arg.toUpperCase()}`).join("")
  return [
    `Examples:\n${command.examples.map((example) => `  ${example}\n`).join("")}\n`,
    `Usage: schoolbus ${command.name}${args} [options]\n\n${command.summary}\n`,
    rows.length === 0 ? "" : `\n${rows.map(([flag, help]) => `  ${flag.padEnd(width)}  ${help}\n`).join("")}`,
  ].join("")
}

/** Tagged failures of the services, which they throw through: their exit codes. */
const exitOfTag = (tag: unknown): number => {
  switch (tag) {
    case "ConfigRefused":
    case "CatalogRefused":
      return EXIT.config
    case "PostgresError":
    case "LibsqlError":
    case "SlotRefused":
    case "FileInUse":
    case "MigrationRefused":
    case "HubMigrationRefused":
      return EXIT.unreachable
    default:
      return EXIT.failed
  }
}

const failureOf = (cause: unknown): CommandFailed => {
  if (cause instanceof CommandFailed) return cause
  const { _tag, message } = cause as { readonly _tag?: unknown; readonly message?: unknown }
  // A port that is taken is somebody else's process, like a file that is.
  if ((cause as { code?: unknown } | null)?.code === "EADDRINUSE")
    return new CommandFailed(EXIT.unreachable, "port_taken", String(message), "another process listens there; choose another --port")
  return new CommandFailed(
    exitOfTag(_tag),
    typeof _tag === "string" ? _tag : "failed",
    typeof message === "string" && message !== "" ? message : String(cause),
  )
}

const titles: Readonly<Record<number, string>> = {
  [EXIT.usage]: "Wrong usage",
  [EXIT.unreachable]: "Not reachable",
  [EXIT.again]: "Not now",
  [EXIT.forbidden]: "Not allowed",
  [EXIT.config]: "Bad configuration",
}

const report = (failure: CommandFailed, json: boolean, io: Io): void => {
  if (json) {
    const { exit, code, message, hint, extra } = failure
    const title = titles[exit] ?? "Failed"
    io.out(
      `${JSON.stringify({ type: `urn:schoolbus:problem:${code}`, title, code, detail: message, exit, ...(hint === "" ? {} : { hint }), ...extra })}\n`,
    )
  } else {
    io.err(`schoolbus: ${failure.message}\n${failure.hint === "" ? "" : `${failure.hint}\n`}`)
  }
}

const find = (argv: ReadonlyArray<string>): { readonly command: Command; readonly rest: ReadonlyArray<string> } | null => {
  const two = COMMANDS.find((command) => command.name === argv.slice(0, 2).join(" "))
  if (two !== undefined) return { command: two, rest: argv.slice(two.name.includes(" ") ? 2 : 1) }
  const one = COMMANDS.find((command) => command.name === argv[0])
  return one === undefined ? null : { command: one, rest: argv.slice(1) }
}

const isHelp = (word: string | undefined): boolean => word === "--help" || word === "-h" || word === "help"

/** Runs one command to its end; the number is the process's exit code. Never throws. */
export const runCommand = async (argv: ReadonlyArray<string>, env: Environment, io: Io): Promise<number> => {
  const json = argv.includes("--json")
  const isCheck = argv[0] === "check"
  try {
    const [first] = argv
    if (first === undefined || isHelp(first)) {
      ;(first === undefined ? io.err : io.out)(overview(""))
      return first === undefined ? EXIT.usage : EXIT.ok
    }
    if (first === "--version" || first === "version") {
      const { VERSION } = await import("../version.ts")
      io.out(`schoolbus ${VERSION}\n`)
      return EXIT.ok
    }
    const found = find(argv)
    if (found === null) {
      const group = COMMANDS.some((command) => command.name.startsWith(`${first} `))
      if (group && (argv[1] === undefined || isHelp(argv[1]))) {
        ;(argv[1] === undefined ? io.err : io.out)(overview(first))
        return argv[1] === undefined ? EXIT.usage : EXIT.ok
      }
      const said = group ? argv.slice(0, 2).join(" ") : first
      const near = nearest(
        said,
        COMMANDS.map((command) => command.name),
      )
      throw usage(first.startsWith("-") ? `unknown option ${first}` : `no command "${said}"${near === null ? "" : `; did you mean "${near}"?`}`)
    }
    const input = parseInput(found.command, found.rest, env)
    if (input === null) {
      io.out(helpOf(found.command))
      return EXIT.ok
    }
    const run = await found.command.load()
    return await run(input, io)
  } catch (cause) {
    const failure = failureOf(cause)
    if (isCheck) {
      // A monitoring system reads the line and the code 3; a usage code of 64 would mean nothing to it.
      const { unknownLine } = await import("./check.ts")
      io.out(unknownLine(json, failure.message))
      return 3
    }
    report(failure, json, io)
    return failure.exit
  }
}
