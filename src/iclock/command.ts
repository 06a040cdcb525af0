/** Commands to a terminal and their results (pure). The queue holds them in the words of attendance firmware of today. */
import { wallNumber } from "./clock.ts"
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

/** What stands in `Card=`: decimal; other text makes firmware forget the card, so it is left empty. */
const cardValue = (card: string | null): string => {
  const plain = fieldValue(card ?? "")
  return isCardNumber(plain) ? String(Number(plain)) : ""
}

/** Why a terminal cannot hold this card; null: it can, or there is none. */
export const cardFault = (card: string | null): string | null => {
  const plain = fieldValue(card ?? "")
  return plain === "" || isCardNumber(plain)
    ? null
    : `the card ${plain.slice(0, 40)} is no number that terminals read: decimal, at most 4294967295; the person is there without it`
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

const UPDATE = "DATA UPDATE USERINFO "
const DELETE = "DATA DELETE USERINFO PIN="
export const deleteUser = (pin: string): string => `${DELETE}${fieldValue(pin)}`
export const isDelete = (command: string): boolean => command.startsWith(DELETE)

/** Access-control terminals open no door for a person without it; it follows the person's own line. */
const AUTHORIZE = "DATA UPDATE userauthorize Pin="
export const authorizeUser = (pin: string): string => `${AUTHORIZE}${fieldValue(pin)}\tAuthorizeTimezoneId=1\tAuthorizeDoorId=1`
export const isAuthorize = (command: string): boolean => command.startsWith(AUTHORIZE)

export const QUERY_USERS = "DATA QUERY USERINFO"
export const queryPunches = (from: string, to: string): string => `DATA QUERY ATTLOG StartTime=${from}\tEndTime=${to}`
/** The moment is filled in when it is sent. */
export const SET_TIME = "SET OPTION DateTime="
export const CLEAR_LOG = "CLEAR LOG"

const MINUTE_MS = 60_000
const HOUR_MS = 60 * MINUTE_MS

/** What a person may send by hand, by name, and how long it may wait: a door that opens an hour later is a danger. */
export const manualCommands: Readonly<Record<string, { readonly text: string; readonly expiresMs: number }>> = {
  INFO: { text: "INFO", expiresMs: 24 * HOUR_MS },
  CHECK: { text: "CHECK", expiresMs: 24 * HOUR_MS },
  LOG: { text: "LOG", expiresMs: 24 * HOUR_MS },
  REBOOT: { text: "REBOOT", expiresMs: 10 * MINUTE_MS },
  AC_UNLOCK: { text: "AC_UNLOCK", expiresMs: MINUTE_MS },
  AC_UNALARM: { text: "AC_UNALARM", expiresMs: MINUTE_MS },
  SET_TIME: { text: SET_TIME, expiresMs: HOUR_MS },
  QUERY_USERS: { text: QUERY_USERS, expiresMs: 24 * HOUR_MS },
  QUERY_ATTLOG: { text: "DATA QUERY ATTLOG", expiresMs: 7 * 24 * HOUR_MS },
  CLEAR_LOG: { text: CLEAR_LOG, expiresMs: HOUR_MS },
}

/** `"clear log"`, `"DATA QUERY ATTLOG"` -> the name above; null: none of them. */
export const manualName = (text: string): string | null => {
  const name = text
    .trim()
    .toUpperCase()
    .replace(/[\s_]+/g, "_")
  if (name in manualCommands) return name
  return { DATA_QUERY_USERINFO: "QUERY_USERS", DATA_QUERY_ATTLOG: "QUERY_ATTLOG", SET_CLOCK: "SET_TIME", UNLOCK: "AC_UNLOCK" }[name] ?? null
}

/** What a terminal that refuses it lacks: `"DATA QUERY ATTLOG"`, `"CLEAR LOG"`, `"INFO"`. */
export const capabilityOf = (command: string): string => {
  const words = command.split(/[ \t]/)
  return words[0] === "DATA"
    ? words.slice(0, 3).join(" ")
    : words[0] === "SET" || words[0] === "CLEAR"
      ? words.slice(0, 2).join(" ")
      : (words[0] ?? "")
}

/** How one terminal wants to be spoken to. */
export interface Dialect {
  readonly family: "att" | "acc"
  readonly cardForm: CardForm
  /** Capabilities that it has refused. */
  readonly unsupported: ReadonlySet<string>
  /** Wall clock where it hangs, and in UTC, at this moment. */
  readonly wall: string
  readonly utc: string
}

const fieldOf = (command: string, name: string): string => {
  const at = command.indexOf(`${name}=`)
  return at === -1 ? "" : (command.slice(at + name.length + 1).split("\t", 1)[0] ?? "")
}

const accessForm = (command: string, { utc }: Dialect): string | null => {
  if (command.startsWith(UPDATE)) {
    const field = (name: string) => fieldOf(command, name)
    return `DATA UPDATE user CardNo=${field("Card")}\tPin=${field("PIN")}\tPassword=\tGroup=1\tStartTime=0\tEndTime=0\tName=${field("Name")}\tPrivilege=0`
  }
  if (isDelete(command)) return `DATA DELETE user Pin=${command.slice(DELETE.length)}`
  if (isAuthorize(command)) return command
  if (command.startsWith("DATA QUERY ATTLOG")) return "DATA QUERY tablename=transaction,fielddesc=*,filter=*"
  const forms: Readonly<Record<string, string>> = {
    [QUERY_USERS]: "DATA QUERY tablename=user,fielddesc=*,filter=*",
    INFO: "GET OPTIONS ~DeviceName,FirmVer,UserCount,TransactionCount",
    REBOOT: "CONTROL DEVICE 03000000",
    AC_UNLOCK: "CONTROL DEVICE 01010105",
    AC_UNALARM: "CONTROL DEVICE 02000000",
    CHECK: `SET OPTIONS DateTime=${wallNumber(utc)}`,
    [SET_TIME]: `SET OPTIONS DateTime=${wallNumber(utc)}`,
    [CLEAR_LOG]: "DATA DELETE transaction *",
  }
  return forms[command] ?? null
}

/** A queued command in this terminal's words, which are known only when it calls; null: it has none for it. */
export const inDialect = (command: string, dialect: Dialect): string | null => {
  if (dialect.family === "acc") return accessForm(command, dialect)
  if (isAuthorize(command)) return null
  if (command === SET_TIME) return `${SET_TIME}${wallNumber(dialect.wall)}`
  if (command.startsWith(UPDATE)) {
    const text = inCardForm(command, dialect.cardForm)
    return dialect.unsupported.has("DATA UPDATE USERINFO") ? text.replace(UPDATE, "DATA USER ") : text
  }
  return isDelete(command) && dialect.unsupported.has("DATA DELETE USERINFO") ? command.replace(DELETE, "DATA DEL_USER PIN=") : command
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
    if (/^(REBOOT|CHECK|CONTROL DEVICE 03)/.test(command)) break
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
  /** `unsupported`: it will never do it. `later`: the result follows. */
  readonly outcome: "done" | "retry" | "failed" | "unsupported" | "later"
  /** Words for a person; null when it is done. */
  readonly error: string | null
}

const MEANINGS: Readonly<Record<number, string>> = {
  [-3]: "the terminal could not get at the data (-3)",
  [-1004]: "it does not fit the terminal's settings (-1004)",
  [-1006]: "it is too long for the terminal (-1006)",
  [-1007]: "the terminal has no memory for it (-1007)",
}

/** What a result code means for the queue (reference 6.3). */
export const judgeResult = (command: string, result: number, family: "att" | "acc" = "att"): Judgement => {
  const done: Judgement = { outcome: "done", error: null }
  const failed = (error: string): Judgement => ({ outcome: "failed", error })
  if (result === 0 || (family === "acc" && result > 0)) return done
  // Somebody who is not there need not be removed.
  if (isDelete(command) && [-10, -13, -2, -1].includes(result)) return done
  if (command.startsWith("DATA QUERY") && result > 0) return done
  switch (result) {
    case -1003:
    case -1005:
      return { outcome: "retry", error: "the terminal is busy" }
    case -5000:
      return { outcome: "later", error: null }
    case 8:
    case -1001:
      return failed("the terminal's memory is full")
    case -1002:
    case -22:
      return { outcome: "unsupported", error: "this terminal does not know the command" }
    case -10:
    case -13:
      return failed("no such person on the terminal")
    default:
      return failed(MEANINGS[result] ?? `the terminal refused it (${result})`)
  }
}
