/** Commands to a terminal and their results (pure). */
import { linesOf } from "./request.ts"

/** Firmware keeps about this many bytes of a name; cut on a character boundary. */
const NAME_BYTES = 24
/** One answer carries at most so many commands and bytes; firmware collects an answer in a fixed buffer. */
export const MAX_COMMANDS = 20
export const MAX_ANSWER_BYTES = 16 * 1024

/** Old firmware finds a field by the first place where `key=` occurs, so no value may contain `=`, a TAB or a line end. */
export const fieldValue = (text: string): string =>
  text
    .replace(/[=\0-\x1f\x7f-\x9f\u2028\u2029]+/g, " ")
    .replace(/\s+/g, " ")
    .trim()

const encoder = new TextEncoder()

export const cutName = (name: string): string => {
  let out = ""
  let bytes = 0
  for (const char of fieldValue(name)) {
    bytes += encoder.encode(char).length
    if (bytes > NAME_BYTES) break
    out += char
  }
  return out.trim()
}

/** `decimal`: as newer firmware uploads cards; `bracket`: 10 hex digits, low byte first, the only form that old firmware reads. */
export type CardForm = "decimal" | "bracket"

const isCardNumber = (card: string): boolean => /^\d{1,10}$/.test(card) && Number(card) <= 0xffff_ffff

const cardValue = (card: string | null): string => {
  const plain = fieldValue(card ?? "")
  return isCardNumber(plain) ? String(Number(plain)) : plain
}

/** A queued command as this terminal reads cards: which form that is, is known when it calls. */
export const inCardForm = (command: string, form: CardForm): string =>
  form === "decimal"
    ? command
    : command.replace(/\tCard=(\d+)(?=\t)/, (field, card: string) => {
        if (!isCardNumber(card)) return field
        const bytes = (Number(card).toString(16).padStart(8, "0").match(/../g) ?? []).reverse()
        return `\tCard=[${bytes.join("").toUpperCase()}00]`
      })

export interface PersonOnTerminal {
  readonly pin: string
  readonly name: string
  readonly card: string | null
}

/** Insert or overwrite; a field that is left out would be reset, so all are named. Never an administrator. */
export const updateUser = (person: PersonOnTerminal): string =>
  [
    `DATA UPDATE USERINFO PIN=${fieldValue(person.pin)}`,
    `Name=${cutName(person.name)}`,
    "Pri=0",
    "Passwd=",
    `Card=${cardValue(person.card)}`,
    "Grp=1",
    "TZ=0000000100000000",
  ].join("\t")

const DELETE = "DATA DELETE USERINFO PIN="
export const deleteUser = (pin: string): string => `${DELETE}${fieldValue(pin)}`
export const isDelete = (command: string): boolean => command.startsWith(DELETE)

export const QUERY_USERS = "DATA QUERY USERINFO"

/** What a person may send by hand, by name; nothing that wipes a terminal or runs a shell. */
export const manualCommands: Readonly<Record<string, string>> = {
  INFO: "INFO",
  CHECK: "CHECK",
  REBOOT: "REBOOT",
  LOG: "LOG",
  AC_UNLOCK: "AC_UNLOCK",
  QUERY_USERS,
}

export interface QueuedCommand {
  readonly id: number
  readonly command: string
}

/** The lines of one answer, and which commands they hold. REBOOT and CHECK end an answer. */
export const commandAnswer = (queue: ReadonlyArray<QueuedCommand>): { readonly text: string; readonly sent: ReadonlyArray<number> } => {
  let text = ""
  let bytes = 0
  const sent: Array<number> = []
  for (const { id, command } of queue.slice(0, MAX_COMMANDS)) {
    const line = `C:${id}:${command}\n`
    bytes += encoder.encode(line).length
    if (bytes > MAX_ANSWER_BYTES && sent.length > 0) break
    text += line
    sent.push(id)
    if (command === "REBOOT" || command === "CHECK") break
  }
  return { text, sent }
}

export interface CommandResult {
  readonly id: number
  readonly result: number
  /** What follows an INFO result, by lower-case name without a leading `~`. */
  readonly facts: ReadonlyMap<string, string>
}

/** `ID=101&Return=0&CMD=DATA` lines, also one field a line; facts of an INFO answer follow its line. Never throws. */
export const parseResults = (body: Uint8Array): ReadonlyArray<CommandResult> => {
  const results: Array<{ id: number; result: number; facts: Map<string, string> }> = []
  let id: number | undefined
  let result: number | undefined
  for (const { text } of linesOf(body)) {
    for (const pair of /(^|&)return=/i.test(text) ? text.split("&") : [text]) {
      const equals = pair.indexOf("=")
      if (equals === -1) continue
      const name = pair.slice(0, equals).trim().toLowerCase().replace(/^~/, "")
      const value = pair.slice(equals + 1).trim()
      if (name === "id" && /^\d{1,15}$/.test(value)) id = Number(value)
      else if (name === "return" && /^-?\d{1,9}$/.test(value)) result = Number(value)
      else if (name !== "cmd" && name !== "sn") results.at(-1)?.facts.set(name, value)
      if (id !== undefined && result !== undefined) {
        results.push({ id, result, facts: new Map() })
        id = undefined
        result = undefined
      }
    }
  }
  return results
}

export interface Judgement {
  readonly outcome: "done" | "retry" | "failed"
  /** Words for a person; null when it is done. */
  readonly error: string | null
}

/** What a result code means for the queue (reference 6.3). */
export const judgeResult = (command: string, result: number): Judgement => {
  const done: Judgement = { outcome: "done", error: null }
  const failed = (error: string): Judgement => ({ outcome: "failed", error })
  if (result === 0) return done
  // Somebody who is not there need not be removed.
  if (isDelete(command) && [-10, -13, -2, -1].includes(result)) return done
  if (command.startsWith("DATA QUERY") && result > 0) return done
  switch (result) {
    case -1003:
    case -1005:
      return { outcome: "retry", error: "the terminal is busy" }
    case 8:
    case -1001:
      return failed("the terminal's memory is full")
    case -1002:
    case -22:
      return failed("this terminal does not know the command")
    case -10:
    case -13:
      return failed("no such person on the terminal")
    default:
      return failed(`the terminal refused it (${result})`)
  }
}
