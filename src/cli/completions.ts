/** `completions SHELL`: generated from the table of commands, so they cannot fall behind it. */
import type { Io } from "./io.ts"
import { type CommandSpec, EXIT, type Input, usage } from "./options.ts"

const flagsOf = (command: CommandSpec): ReadonlyArray<string> => [
  ...command.options.flatMap((option) => (option.secret === true ? [`--${option.name}`, `--${option.name}-file`] : [`--${option.name}`])),
  "--help",
]

const firstWords = (commands: ReadonlyArray<CommandSpec>): ReadonlyArray<string> => [
  ...new Set(commands.map((command) => command.name.split(" ")[0] ?? "")),
]
const secondWords = (commands: ReadonlyArray<CommandSpec>, first: string): ReadonlyArray<string> =>
  commands.flatMap((command) => (command.name.startsWith(`${first} `) ? [command.name.slice(first.length + 1)] : []))

const bash = (commands: ReadonlyArray<CommandSpec>): string => {
  const groups = firstWords(commands).filter((word) => secondWords(commands, word).length > 0)
  return `_schoolbus() {
  local cur="\${COMP_WORDS[COMP_CWORD]}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="${firstWords(commands).join(" ")}"
  else
    case "\${COMP_WORDS[1]} \${COMP_WORDS[2]}" in
${commands.map((command) => `      "${command.name}${command.name.includes(" ") ? '"' : ' "*'}) words="${[...(command.words ?? []), ...flagsOf(command)].join(" ")}" ;;`).join("\n")}
${groups.map((word) => `      "${word} "*) words="${secondWords(commands, word).join(" ")}" ;;`).join("\n")}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _schoolbus schoolbus
`
}

const zsh = (commands: ReadonlyArray<CommandSpec>): string => `autoload -U +X bashcompinit && bashcompinit\n${bash(commands)}`

const quoted = (text: string): string => `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`

const fish = (commands: ReadonlyArray<CommandSpec>): string =>
  commands
    .flatMap((command) => {
      const [first = "", second] = command.name.split(" ")
      const here =
        second === undefined
          ? `__fish_seen_subcommand_from ${first}`
          : `__fish_seen_subcommand_from ${first}; and __fish_seen_subcommand_from ${second}`
      return [
        second === undefined
          ? `complete -c schoolbus -f -n __fish_use_subcommand -a ${first} -d ${quoted(command.summary)}`
          : `complete -c schoolbus -f -n __fish_use_subcommand -a ${first}\ncomplete -c schoolbus -f -n '__fish_seen_subcommand_from ${first}' -a ${second} -d ${quoted(command.summary)}`,
        ...(command.words === undefined ? [] : [`complete -c schoolbus -f -n '${here}' -a '${command.words.join(" ")}'`]),
        ...command.options.map((option) => `complete -c schoolbus -n '${here}' -l ${option.name} -d ${quoted(option.help)}`),
      ]
    })
    .map((line) => `${line}\n`)
    .join("")

export const run = async (input: Input, io: Io, commands: ReadonlyArray<CommandSpec>): Promise<number> => {
  const shell = input.args["shell"]
  const make = { bash, zsh, fish }[shell ?? ""]
  if (make === undefined) throw usage(`no completions for ${shell ?? ""}; there are bash, zsh and fish`)
  io.out(make(commands))
  return EXIT.ok
}
