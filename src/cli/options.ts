/**
 * What a command line says (pure, but for secrets that stand in files). Strict: an unknown flag, a missing value or one that
 * cannot be is an error, never ignored. Every option is also an environment variable: flag, then environment, then default.
 */
import { readFileSync } from "node:fs"
import { parseArgs } from "node:util"
import { AddressRefused, addressOf } from "../postgres/address.ts"

export interface OptionSpec {
  /** Without dashes: `"database-url"`; the variable is `SCHOOLBUS_DATABASE_URL`. */
  readonly name: string
  readonly kind: "text" | "number" | "port" | "flag" | "list" | "postgres"
  readonly help: string
  readonly default?: string
  readonly required?: true
  /** Also read from a file: `--name-file`, `SCHOOLBUS_NAME_FILE`. Masked wherever it is shown. */
  readonly secret?: true
}

export interface CommandSpec {
  /** One or two words: `"schools add"`. */
  readonly name: string
  readonly summary: string
  /** Names of positional arguments; `[id]` is optional. */
  readonly args: ReadonlyArray<string>
  /** All that the first argument may be. */
  readonly words?: ReadonlyArray<string>
  readonly options: ReadonlyArray<OptionSpec>
  readonly examples: ReadonlyArray<string>
}

export type Origin = "flag" | "environment" | "file" | "default" | "none"
type Value = string | number | boolean | ReadonlyArray<string>

/** Exit codes as sysexits.h numbers them, where it has one. */
export const EXIT = { ok: 0, failed: 1, usage: 64, unreachable: 69, again: 75, forbidden: 77, config: 78 } as const

/** Ends a command: what happened, the next step, and the exit code. */
export class CommandFailed extends Error {
  constructor(
    readonly exit: number,
    readonly code: string,
    message: string,
    /** The next command to run, or what to change. */
    readonly hint: string = "",
    readonly extra: Readonly<Record<string, unknown>> = {},
  ) {
    super(message)
  }
}

export const usage = (message: string, hint = "schoolbus --help"): CommandFailed => new CommandFailed(EXIT.usage, "usage", message, hint)

export interface Input {
  readonly command: CommandSpec
  readonly args: Readonly<Record<string, string>>
  readonly text: (name: string) => string
  readonly textOr: <A>(name: string, other: A) => string | A
  readonly number: (name: string) => number
  readonly numberOr: <A>(name: string, other: A) => number | A
  readonly flag: (name: string) => boolean
  readonly list: (name: string) => ReadonlyArray<string>
  readonly origin: (name: string) => Origin
}

export type Environment = Readonly<Record<string, string | undefined>>

export const variableOf = (name: string): string => `SCHOOLBUS_${name.toUpperCase().replaceAll("-", "_")}`

const TRUE = new Set(["1", "true", "yes", "on"])
const FALSE = new Set(["", "0", "false", "no", "off"])

const convert = (option: OptionSpec, text: string, source: string): Value => {
  switch (option.kind) {
    case "text":
      return text
    case "postgres":
      // Never shown: it may hold a password.
      if (!/^postgres(ql)?:\/\/./.test(text)) throw usage(`${source} must be an address like postgres://user:password@host:5432/database`)
      try {
        addressOf(text)
      } catch (cause) {
        throw cause instanceof AddressRefused ? usage(`${source}: ${cause.message}`) : cause
      }
      return text
    case "list":
      return text
        .split(",")
        .map((part) => part.trim())
        .filter((part) => part !== "")
    case "flag": {
      const word = text.trim().toLowerCase()
      if (!TRUE.has(word) && !FALSE.has(word)) throw usage(`${source} must be true or false`)
      return TRUE.has(word)
    }
    case "number":
    case "port": {
      const n = Number(text)
      const bad = text.trim() === "" || !Number.isFinite(n) || n < 0 || (option.kind === "port" && (!Number.isInteger(n) || n > 65_535))
      if (bad) throw usage(`${source} must be ${option.kind === "port" ? "a port number, 0 to 65535" : "a number, 0 or more"}`)
      return n
    }
  }
}

/** The file's first line: what an editor or `echo` leaves at its end does not belong to a secret. */
const readSecret = (path: string, source: string): string => {
  let text: string
  try {
    text = readFileSync(path, "utf8")
  } catch (cause) {
    throw new CommandFailed(
      EXIT.config,
      "secret_file",
      `${source}: cannot read ${path} (${(cause as NodeJS.ErrnoException).code ?? "error"})`,
      "check the path and who may read it",
    )
  }
  const line = text.split(/\r?\n/, 1)[0]?.trim() ?? ""
  if (line === "") throw new CommandFailed(EXIT.config, "secret_file", `${source}: ${path} is empty`, "write the secret into its first line")
  return line
}

interface Given {
  readonly value: Value
  readonly origin: Origin
}

const lookUp = (option: OptionSpec, flags: Readonly<Record<string, unknown>>, env: Environment): Given | null => {
  const { name } = option
  const flag = flags[name]
  if (flag !== undefined) {
    if (option.secret === true && flags[`${name}-file`] !== undefined) throw usage(`--${name} and --${name}-file exclude each other`)
    return { value: typeof flag === "boolean" ? flag : convert(option, String(flag), `--${name}`), origin: "flag" }
  }
  const file = option.secret === true ? flags[`${name}-file`] : undefined
  if (typeof file === "string") return { value: readSecret(file, `--${name}-file`), origin: "file" }
  const variable = variableOf(name)
  const set = env[variable]
  if (set !== undefined && set !== "") return { value: convert(option, set, variable), origin: "environment" }
  const setFile = option.secret === true ? env[`${variable}_FILE`] : undefined
  if (setFile !== undefined && setFile !== "") return { value: readSecret(setFile, `${variable}_FILE`), origin: "file" }
  return option.default === undefined ? null : { value: convert(option, option.default, `--${name}`), origin: "default" }
}

/** The nearest known word, when one is near: at most two letters away. */
export const nearest = (word: string, known: ReadonlyArray<string>): string | null => {
  const distance = (a: string, b: string): number => {
    let row = Array.from({ length: b.length + 1 }, (_, i) => i)
    for (let i = 1; i <= a.length; i++) {
      const next = [i]
      for (let j = 1; j <= b.length; j++)
        next.push(Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)))
      row = next
    }
    return row[b.length] ?? 0
  }
  const [best] = known.map((other) => [distance(word, other), other] as const).sort((a, b) => a[0] - b[0])
  return best !== undefined && best[0] <= 2 && best[0] < word.length ? best[1] : null
}

const rawFlags = (command: CommandSpec, argv: ReadonlyArray<string>) => {
  const options: Record<string, { type: "string" | "boolean"; short?: string }> = { help: { type: "boolean", short: "h" } }
  for (const option of command.options) {
    options[option.name] = { type: option.kind === "flag" ? "boolean" : "string" }
    if (option.secret === true) options[`${option.name}-file`] = { type: "string" }
  }
  const unknown = argv.find(
    (arg, i) =>
      arg.startsWith("--") && arg !== "--" && !argv.slice(0, i).includes("--") && options[arg.slice(2).split("=", 1)[0] ?? ""] === undefined,
  )
  if (unknown !== undefined) {
    const flag = unknown.split("=", 1)[0] ?? unknown
    const near = nearest(flag.slice(2), Object.keys(options))
    throw usage(`unknown option ${flag} of "${command.name}"${near === null ? "" : `; did you mean --${near}?`}`, `schoolbus ${command.name} --help`)
  }
  try {
    return parseArgs({ args: [...argv], options, allowPositionals: true, strict: true })
  } catch (cause) {
    throw usage(`${command.name}: ${(cause as Error).message.split("\n")[0] ?? "wrong options"}`, `schoolbus ${command.name} --help`)
  }
}

/** null: help was asked for. `argv` is what stands behind the command's name. */
export const parseInput = (command: CommandSpec, argv: ReadonlyArray<string>, env: Environment): Input | null => {
  const { values, positionals } = rawFlags(command, argv)
  if (values["help"] === true) return null
  const hint = `schoolbus ${command.name} --help`

  const args: Record<string, string> = {}
  for (const [i, spec] of command.args.entries()) {
    const optional = spec.startsWith("[")
    const name = optional ? spec.slice(1, -1) : spec
    const given = positionals[i]
    if (given === undefined && !optional) throw usage(`${command.name}: ${name.toUpperCase()} is missing`, hint)
    if (given?.trim() === "") throw usage(`${command.name}: ${name.toUpperCase()} is empty`, hint)
    if (given !== undefined) args[name] = given
  }
  if (positionals.length > command.args.length) throw usage(`${command.name}: unexpected argument "${positionals[command.args.length] ?? ""}"`, hint)

  const given = new Map<string, Given>()
  const missing: Array<string> = []
  for (const option of command.options) {
    const found = lookUp(option, values, env)
    if (found !== null && !(option.required === true && found.value === "")) given.set(option.name, found)
    else if (option.required === true) missing.push(`--${option.name} (or ${variableOf(option.name)}${option.secret === true ? "[_FILE]" : ""})`)
  }
  if (missing.length > 0) throw usage(`${command.name} needs ${missing.join(" and ")}`, hint)

  const valueOf = (name: string): Value | undefined => {
    if (!command.options.some((option) => option.name === name)) throw new Error(`command ${command.name} has no option ${name}`)
    return given.get(name)?.value
  }
  return {
    command,
    args,
    text: (name) => String(valueOf(name) ?? ""),
    textOr: (name, other) => {
      const value = valueOf(name)
      return value === undefined || value === "" ? other : String(value)
    },
    number: (name) => Number(valueOf(name) ?? 0),
    numberOr: (name, other) => {
      const value = valueOf(name)
      return value === undefined ? other : Number(value)
    },
    flag: (name) => valueOf(name) === true,
    list: (name) => (valueOf(name) as ReadonlyArray<string> | undefined) ?? [],
    origin: (name) => given.get(name)?.origin ?? "none",
  }
}
