/** What cannot be taken back: a person types a word of the question, a script says --yes. */
import type { Io } from "./io.ts"
import { CommandFailed, EXIT, type Input, usage } from "./options.ts"

/** Fails unless the person agrees. `what`: a sentence, `"school north will be cut off at once"`. `word`: what is to be typed. */
export const confirm = async (input: Input, io: Io, what: string, word: string): Promise<void> => {
  if (input.flag("yes")) return
  if (!io.interactive) throw usage(`${what}; without a terminal ${input.command.name} needs --yes`)
  const { createInterface } = await import("node:readline/promises")
  const asker = createInterface({ input: process.stdin, output: process.stderr })
  const answer = await asker.question(`${what[0]?.toUpperCase()}${what.slice(1)}. Type ${word} to go on: `)
  asker.close()
  if (answer.trim() !== word) throw new CommandFailed(EXIT.failed, "not_confirmed", "nothing was changed")
}
