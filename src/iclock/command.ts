/** Commands to a terminal and their results (pure). */

/** Firmware keeps about this many bytes of a name; cut on a character boundary. */
const NAME_BYTES = 24
/** One answer carries at most so many commands and bytes; firmware collects an answer in a fixed buffer. */
export const MAX_COMMANDS = 20
export const MAX_ANSWER_BYTES = 16 * 1024

/** Old firmware finds a field by the first place where `key=` occurs, so no value may contain `=`, a TAB or a line end. */
export const fieldValue = (text: string): string =>
  [...text].filter((char) => char !== "=" && (char.codePointAt(0) ?? 0) >= 32 && char.codePointAt(0) !== 127).join("").replace(/\s+/g, " ").trim()

const encoder = new TextEncoder()

export const cutName = (name: string): string => {
  let out = ""
  let bytes = 0
  for (const char of fieldValue(name)) {
    bytes += encoder.encode(char).length
    if (bytes > NAME_BYTES) break
    out += char
  }
  return out
}

export interface PersonOnTerminal {
  readonly pin: string
  readonly name: string
  readonly card: string | null
}

/** Insert or overwrite; a field that is left out would be reset, so all are named. */
export const updateUser = (person: PersonOnTerminal): string =>
  `DATA UPDATE USERINFO PIN=${fieldValue(person.pin)}\tName=${cutName(person.name)}\tPri=0\tPasswd=\tCard=${fieldValue(person.card ?? "")}\tGrp=1\tTZ=0000000100000000`

export const deleteUser = (pin: string): string => `DATA DELETE USERINFO PIN=${fieldValue(pin)}`

/** What a person may send by hand, by name; nothing that wipes a terminal or runs a shell. */
export const manualCommands: Readonly<Record<string, string>> = { INFO: "INFO", CHECK: "CHECK", REBOOT: "REBOOT", LOG: "LOG", AC_UNLOCK: "AC_UNLOCK", QUERY_USERS: "DATA QUERY USERINFO" }

export interface QueuedCommand {
  readonly id: number
  readonly command: string
}

/** The lines of one answer, and which commands they hold. REBOOT and CHECK end an answer. */
export const commandAnswer = (queue: ReadonlyArray<QueuedCommand>): { readonly text: string; readonly sent: ReadonlyArray<number> } => {
  let text = ""
  const sent: Array<number> = []
  for (const { id, command } of queue.slice(0, MAX_COMMANDS)) {
    const line = `C:${id}:${command}\n`
    if (text.length + line.length > MAX_ANSWER_BYTES && sent.length > 0) break
    text += line
    sent.push(id)
    if (command === "REBOOT" || command === "CHECK") break
  }
  return { text, sent }
}

export interface CommandResult {
  readonly id: number
  readonly result: number
  /** Facts that follow an INFO result, by lower-case name. */
  readonly facts: ReadonlyMap<string, string>
}

/** `ID=101&Return=0&CMD=DATA` lines; facts of an INFO answer follow line by line. Also one field a line. */
export const parseResults = (text: string): ReadonlyArray<CommandResult> => {
  const results: Array<{ id: number; result: number; facts: Map<string, string> }> = []
  let open: { id?: number; result?: number } = {}
  for (const line of text.split(/\r\n|\n|\r/)) {
    for (const pair of /^ID=\d+&/i.test(line) ? line.split("&") : [line]) {
      const equals = pair.indexOf("=")
      if (equals === -1) continue
      const name = pair.slice(0, equals).trim().toLowerCase().replace(/^~/, "")
      const value = pair.slice(equals + 1).trim()
      if (name === "id" && /^\d{1,15}$/.test(value)) open = { id: Number(value) }
      else if (name === "return" && /^-?\d{1,9}$/.test(value)) open.result = Number(value)
      else results.at(-1)?.facts.set(name, value)
      if (open.id !== undefined && open.result !== undefined) {
        results.push({ id: open.id, result: open.result, facts: new Map() })
        open = {}
      }
    }
  }
  return results
}

/** What a result code means for the queue, with words for a person. */
export const judgeResult = (command: string, result: number): { readonly outcome: "done" | "retry" | "failed"; readonly error: string | null } => {
  if (result === 0) return { outcome: "done", error: null }
  if (command.startsWith("DATA DELETE") && (result === -10 || result === -1)) return { outcome: "done", error: null }
  if (command.startsWith("DATA QUERY") && result > 0) return { outcome: "done", error: null }
  switch (result) {
    case -1003:
    case -1005:
      return { outcome: "retry", error: "the terminal is busy" }
    case 8:
    case -1001:
      return { outcome: "failed", error: "the terminal's memory is full" }
    case -1002:
    case -22:
      return { outcome: "failed", error: "this terminal does not know the command" }
    case -10:
    case -13:
      return { outcome: "failed", error: "no such person on the terminal" }
    default:
      return { outcome: "failed", error: `the terminal refused it (${result})` }
  }
}
