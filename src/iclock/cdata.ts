/** Uploads: ATTLOG, OPERLOG, USERINFO, options (pure). Never throws; a line that cannot be read is kept raw with the reason. */
import { isZone, wallToUtc } from "./clock.ts"

export interface Attendance {
  readonly pin: string
  /** Wall clock of the terminal: `"2026-03-03 07:41:09"`. */
  readonly at: string
  readonly status: string
  readonly verify: string
  readonly workCode: string | null
  readonly raw: string
}

export interface Reject {
  readonly raw: string
  readonly reason: string
}

export interface Lines<A> {
  readonly records: ReadonlyArray<A>
  readonly rejects: ReadonlyArray<Reject>
  /** Non-empty lines received: what the answer counts. */
  readonly count: number
}

const linesOf = (text: string): ReadonlyArray<string> => text.split(/\r\n|\n|\r/).filter((line) => line.trim() !== "")

const PIN = /^[A-Za-z0-9]{1,24}$/

/** Leading zeros are dropped by some terminals and kept by others: an all-digit PIN is compared as a number. */
export const normalPin = (pin: string): string => (/^\d+$/.test(pin) ? pin.replace(/^0+(?=\d)/, "") : pin)

const isWall = (text: string): boolean => wallToUtc(text, isZone("UTC") ? "UTC" : "Etc/UTC") !== null

const toWall = (text: string): string | null => {
  const plain = text.trim().replace("T", " ")
  if (/^\d{9,11}$/.test(plain)) return new Date(Number(plain) * 1000).toISOString().slice(0, 19).replace("T", " ")
  return isWall(plain) ? plain : null
}

const readAttendance = (line: string): Attendance | string => {
  const raw = line
  let fields = line.replace(/^ATTLOG\t/i, "").split("\t").map((field) => field.trim())
  if (fields.some((field) => /^(PIN|DateTime|Time)=/i.test(field))) {
    const named = new Map(fields.flatMap((field) => {
      const equals = field.indexOf("=")
      return equals === -1 ? [] : [[field.slice(0, equals).toLowerCase(), field.slice(equals + 1).trim()] as const]
    }))
    fields = [named.get("pin") ?? "", named.get("datetime") ?? named.get("time") ?? "", named.get("status") ?? "", named.get("verified") ?? named.get("verify") ?? "", named.get("workcode") ?? ""]
  } else if (fields.length === 1) {
    const spaced = /^(\S+) +(\d{4}-\d{2}-\d{2}) +(\d{2}:\d{2}:\d{2})(?: +(\S+))?(?: +(\S+))?(?: +(\S+))?/.exec(line.trim())
    if (spaced !== null) fields = [spaced[1] ?? "", `${spaced[2]} ${spaced[3]}`, spaced[4] ?? "", spaced[5] ?? "", spaced[6] ?? ""]
  }
  const [pin = "", time = "", status = "", verify = "", workCode = ""] = fields
  if (!PIN.test(pin)) return "no PIN that could be one"
  const at = toWall(time)
  if (at === null) return "no time that could be one"
  const small = (text: string): string => text.replace(/[^A-Za-z0-9_.-]/g, "").slice(0, 16)
  return { pin, at, status: small(status), verify: small(verify), workCode: workCode === "" ? null : small(workCode), raw }
}

export const parseAttlog = (text: string): Lines<Attendance> => {
  const records: Array<Attendance> = []
  const rejects: Array<Reject> = []
  const lines = linesOf(text)
  for (const line of lines) {
    const record = readAttendance(line)
    if (typeof record === "string") rejects.push({ raw: line, reason: record })
    else records.push(record)
  }
  return { records, rejects, count: lines.length }
}

/** A user as the terminal itself holds it. */
export interface TerminalUser {
  readonly pin: string
  readonly name: string
  readonly card: string | null
}

/** `[15CD5B0700]`, four bytes low byte first, or decimal; empty and zero mean none. */
export const normalCard = (text: string): string | null => {
  const hex = /^\[([0-9A-Fa-f]{8,10})\]$/.exec(text.trim())?.[1]
  if (hex !== undefined) {
    const bytes = hex.slice(0, 8).match(/../g) ?? []
    const number = Number.parseInt([...bytes].reverse().join(""), 16)
    return number === 0 ? null : String(number)
  }
  const plain = text.trim()
  return plain === "" || /^0+$/.test(plain) ? null : /^\d+$/.test(plain) ? plain.replace(/^0+/, "") : plain
}

export type OperationLine =
  | { readonly kind: "user"; readonly user: TerminalUser }
  | { readonly kind: "operation"; readonly raw: string }
  /** Templates and pictures: counted, not kept. */
  | { readonly kind: "biometric" }

export const parseOperlog = (text: string): Lines<OperationLine> => {
  const records: Array<OperationLine> = []
  const rejects: Array<Reject> = []
  const lines = linesOf(text)
  for (const line of lines) {
    const word = /^([A-Za-z]+)[ \t]/.exec(line)?.[1]?.toUpperCase() ?? ""
    const rest = line.replace(/^[A-Za-z]+[ \t]/, "")
    if (word === "USER" || /^PIN=/i.test(line)) {
      const fields = new Map(
        (word === "USER" ? rest : line).split("\t").flatMap((field) => {
          const equals = field.indexOf("=")
          return equals === -1 ? [] : [[field.slice(0, equals).trim().toLowerCase(), field.slice(equals + 1)] as const]
        }),
      )
      const pin = fields.get("pin")?.trim() ?? ""
      if (PIN.test(pin)) records.push({ kind: "user", user: { pin, name: fields.get("name") ?? "", card: normalCard(fields.get("card") ?? "") } })
      else rejects.push({ raw: line, reason: "a user without a PIN" })
    } else if (word === "OPLOG") records.push({ kind: "operation", raw: line })
    else if (["FP", "FACE", "FVEIN", "USERPIC", "BIOPHOTO", "BIODATA"].includes(word)) records.push({ kind: "biometric" })
    else rejects.push({ raw: line, reason: "an unknown kind of line" })
  }
  return { records, rejects, count: lines.length }
}

/** `table=options`: one line of `key=value`, comma separated; keys may begin with `~`. */
export const parseOptions = (text: string): ReadonlyMap<string, string> =>
  new Map(
    text.replace(/[\r\n]+/g, ",").split(",").flatMap((pair) => {
      const equals = pair.indexOf("=")
      return equals === -1 ? [] : [[pair.slice(0, equals).trim().replace(/^~/, "").toLowerCase(), pair.slice(equals + 1).trim()] as const]
    }),
  )

/** 3.x terminals: `time=…⇥pin=…⇥…`; pin 0 is an event of the device itself. */
export const parseRtlog = (text: string): Lines<Attendance> => {
  const records: Array<Attendance> = []
  const rejects: Array<Reject> = []
  const lines = linesOf(text)
  for (const line of lines) {
    const fields = new Map(
      line.split("\t").flatMap((field) => {
        const equals = field.indexOf("=")
        return equals === -1 ? [] : [[field.slice(0, equals).trim().toLowerCase(), field.slice(equals + 1).trim()] as const]
      }),
    )
    if ((fields.get("pin") ?? "0") === "0") continue
    const record = readAttendance([fields.get("pin"), fields.get("time"), fields.get("inoutstatus"), fields.get("verifytype")].join("\t"))
    if (typeof record === "string") rejects.push({ raw: line, reason: record })
    else records.push({ ...record, raw: line })
  }
  return { records, rejects, count: lines.length }
}
