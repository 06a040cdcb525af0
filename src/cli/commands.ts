/**
 * All commands: what they are called, what they take, and where they stand. A command's module is loaded only when it runs:
 * monitoring calls the program every minute on small machines.
 */
import type { Command } from "./command.ts"
import { nodes } from "./commands/nodes.ts"
import { records } from "./commands/records.ts"
import { schools } from "./commands/schools.ts"
import { terminals } from "./commands/terminals.ts"
import { upkeep } from "./commands/upkeep.ts"
import { watching } from "./commands/watching.ts"

export const COMMANDS: ReadonlyArray<Command> = [
  ...nodes,
  ...schools,
  ...watching,
  ...records,
  ...terminals,
  ...upkeep,
  {
    name: "completions",
    summary: "completions for bash, zsh or fish",
    args: ["shell"],
    words: ["bash", "zsh", "fish"],
    options: [],
    examples: [
      "schoolbus completions bash > /etc/bash_completion.d/schoolbus",
      "schoolbus completions fish > ~/.config/fish/completions/schoolbus.fish",
    ],
    load: () => import("./completions.ts").then((m) => (input, io) => m.run(input, io, COMMANDS)),
  },
]
