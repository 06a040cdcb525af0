/** Uploads: ATTLOG, OPERLOG, USERINFO, rtlog, options (pure). Never throws; a line that cannot be read is kept as it came, with the reason. */
import { isWall, numberToWall, readWall, utcToWall } from "./clock.ts"
import { type Line, linesOf } from "./request.ts"

/** A longer line of a text table is no record; firmware writes some 60 bytes. */
export const MAX_LINE_BYTES = 64 * 1024

export interface Attendance {
  /** Without leading zeros: some terminals drop them, so an all-digit PIN is compared as a number. */
  readonly pin: string
  /** Wall clock of the terminal: `"2026-03-03 07:41:09"`. */
  readonly at: string
  /** ms since 1970, where the record names the moment itself; null: it names a wall clock. */
  readonly moment: number | null
  readonly status: string
  readonly verify: string
  readonly workCode: string | null
  readonly raw: string
}

export interface Reject {
  /** At most `MAX_LINE_BYTES`. */
  readonly raw: Uint8Array
  readonly reason: string
}

/** A user as the terminal itself holds it. */
export interface TerminalUser {
  readonly pin: string
  readonly name: string
  readonly card: string | null
  /** How it wrote the card; null: there is none. */
  readonly cardForm: "decimal" | "bracket" | null
  /** 0: an ordinary user. */
  readonly privilege: number
}

/** What an upload held. Each of its `count` lines is in one of the lists, or is biometric, which is neither asked for nor kept. */
export interface Upload {
  readonly punches: ReadonlyArray<Attendance>
  readonly users: ReadonlyArray<TerminalUser>
  /** What the terminal says about itself: menus, doors, errors. */
  readonly events: ReadonlyArray<Uint8Array>
  readonly rejects: ReadonlyArray<Reject>
  /** Non-empty lines received. */
  readonly count: number
}

type Read =
  | { readonly kind: "punch"; readonly punch: Attendance }
  | { readonly kind: "user"; readonly user: TerminalUser }
  | { readonly kind: "event" }
  | { readonly kind: "biometric" }
  | { readonly kind: "reject"; readonly reason: string }

const reject = (reason: string): Read => ({ kind: "reject", reason })

const collect = (body: Uint8Array, read: (text: string) => Read): Upload => {
  const upload = { punches: [] as Array<Attendance>, users: [] as Array<TerminalUser>, events: [] as Array<Uint8Array>, rejects: [] as Array<Reject> }
  const lines = linesOf(body)
  for (const line of lines) {
    const result = read(line.text)
    if (result.kind === "biometric") continue
    if (line.size > MAX_LINE_BYTES) {
      upload.rejects.push({ raw: line.bytes().slice(0, MAX_LINE_BYTES), reason: `a line of ${line.size} bytes; its beginning is kept` })
    } else if (result.kind === "punch") upload.punches.push(result.punch)
    else if (result.kind === "user") upload.users.push(result.user)
    else if (result.kind === "event") upload.events.push(line.bytes().slice())
    else upload.rejects.push({ raw: line.bytes().slice(), reason: result.reason })
  }
  return { ...upload, count: lines.length }
}

const PIN = /^[A-Za-z0-9]{1,24}$/

export const normalPin = (pin: string): string => (pin.startsWith("0") && /^\d+$/.test(pin) ? pin.replace(/^0+(?=\d)/, "") : pin)

/** Fields `key=value` by lower-case key, each split at its first `=`: templates and names may hold more. */
const fieldsOf = (parts: ReadonlyArray<string>): ReadonlyMap<string, string> =>
  new Map(
    parts.flatMap((part) => {
      const equals = part.indexOf("=")
      return equals === -1 ? [] : [[part.slice(0, equals).trim().replace(/^~/, "").toLowerCase(), part.slice(equals + 1).trim()] as const]
    }),
  )

// Some firmware writes seconds since 1970, which are UTC.
const epochOf = (text: string): number | null => (/^\d{9,10}$/.test(text) ? Number(text) * 1000 : null)

const isSmall = /^[A-Za-z0-9_.-]{0,16}$/
const small = (text: string): string => (isSmall.test(text) ? text : text.replace(/[^A-Za-z0-9_.-]/g, "").slice(0, 16))

const NO_TIME = "no time that could be one"

const attendance = (fields: ReadonlyArray<string>, zone: string, raw: string): Read => {
  const [pin = "", time = "", status = "", verify = "", workCode = ""] = fields
  if (!PIN.test(pin)) return reject("no PIN that could be one")
  const moment = epochOf(time)
  const at = moment === null ? readWall(time) : utcToWall(moment, zone)
  if (at === null) return reject(NO_TIME)
  return {
    kind: "punch",
    punch: { pin: normalPin(pin), at, moment, status: small(status), verify: small(verify), workCode: small(workCode) || null, raw },
  }
}

const SPACED =
  /^(?:CHECK LOG:\s*(?:stamp=\S+)?\s*)?(\S+)\s+(\d{4}-\d{1,2}-\d{1,2})\s+(\d{1,2}:\d{1,2}:\d{1,2})(?:\s+(\S+))?(?:\s+(\S+))?(?:\s+(\S+))?/i

/** The usual line, whatever follows its work code: most bodies hold no other. */
const USUAL =
  /^([A-Za-z0-9]{1,24})\t(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\t([A-Za-z0-9_.-]{0,16})(?:\t([A-Za-z0-9_.-]{0,16})(?:\t([A-Za-z0-9_.-]{0,16}))?)?)?(?=\t|$)/

/** By TAB `PIN, time, status, verify, work code …`, 2 to 10 and more fields; or `PIN=…⇥DateTime=…`; or separated by spaces. */
const readAttendance = (text: string, zone: string): Read => {
  const usual = USUAL.exec(text)
  if (usual !== null) {
    const [, pin = "", at = "", status = "", verify = "", workCode = ""] = usual
    if (!isWall(at)) return reject(NO_TIME)
    return { kind: "punch", punch: { pin: normalPin(pin), at, moment: null, status, verify, workCode: workCode || null, raw: text } }
  }
  const line = text.replace(/^ATTLOG[\t ]/i, "")
  const fields = line.split("\t").map((field) => field.trim())
  if (line.includes("=") && fields.some((field) => /^(PIN|DateTime|Time)=/i.test(field))) {
    const named = fieldsOf(fields)
    const one = (...names: ReadonlyArray<string>) => names.map((name) => named.get(name)).find((value) => value !== undefined) ?? ""
    return attendance([one("pin"), one("datetime", "time"), one("status"), one("verified", "verify"), one("workcode")], zone, text)
  }
  const spaced = fields.length === 1 || /^CHECK LOG:/i.test(line) ? SPACED.exec(line.trim()) : null
  if (spaced === null) return attendance(fields, zone, text)
  const [, pin = "", day = "", time = "", status = "", verify = "", workCode = ""] = spaced
  return attendance([pin, `${day} ${time}`, status, verify, workCode], zone, text)
}

export const parseAttlog = (body: Uint8Array, zone: string): Upload => collect(body, (text) => readAttendance(text, zone))

/** `[15CD5B0700]`, four bytes low byte first, or decimal; empty and zero mean none. */
export const normalCard = (text: string): string | null => {
  const hex = /^\[([0-9A-Fa-f]{8,10})\]$/.exec(text.trim())?.[1]
  const plain = hex === undefined ? text.trim() : String(Number.parseInt([...(hex.slice(0, 8).match(/../g) ?? [])].reverse().join(""), 16))
  return plain === "" || /^0+$/.test(plain) ? null : /^\d+$/.test(plain) ? plain.replace(/^0+/, "") : plain
}

const BIOMETRIC = new Set(["FP", "FACE", "FVEIN", "USERPIC", "BIOPHOTO", "BIODATA", "TEMPLATEV10", "FINGERTMP"])

const readUser = (fields: ReadonlyMap<string, string>): Read => {
  const pin = fields.get("pin") ?? ""
  if (!PIN.test(pin)) return reject("a user without a PIN")
  const cardText = fields.get("card") ?? fields.get("cardno") ?? ""
  const card = normalCard(cardText)
  const privilege = fields.get("pri") ?? fields.get("privilege") ?? ""
  return {
    kind: "user",
    user: {
      pin: normalPin(pin),
      name: fields.get("name") ?? "",
      card,
      cardForm: card === null ? null : cardText.startsWith("[") ? "bracket" : "decimal",
      privilege: /^\d{1,3}$/.test(privilege) ? Number(privilege) : 0,
    },
  }
}

/** The first word of each line tells its kind; a USERINFO table may leave it out. A punch among them is one. */
const readOperation = (text: string, zone: string): Read => {
  const word = /^([A-Za-z][A-Za-z0-9]*)[ \t]/.exec(text)?.[1] ?? ""
  const kind = word.toUpperCase()
  if (kind === "USER") return readUser(fieldsOf(text.slice(word.length + 1).split("\t")))
  if (/^PIN=/i.test(text)) return /\t(Date)?Time=/i.test(text) ? readAttendance(text, zone) : readUser(fieldsOf(text.split("\t")))
  if (kind === "OPLOG") return { kind: "event" }
  if (BIOMETRIC.has(kind)) return { kind: "biometric" }
  const punch = readAttendance(text, zone)
  return punch.kind === "punch" ? punch : reject("an unknown kind of line")
}

/** Also a body of which nobody says what it is. */
export const parseOperlog = (body: Uint8Array, zone: string): Upload => collect(body, (text) => readOperation(text, zone))

/** Tables of which every line is kept as it came. */
export const parseEvents = (body: Uint8Array): Upload => collect(body, () => ({ kind: "event" }))
export const parseUnknown = (body: Uint8Array): Upload => collect(body, () => reject("a table that is not known"))

/** Codes of a person let in; the others are refusals and alarms (0 to 255 older, 4000 and more newer firmware). */
const isEntry = (event: string): boolean =>
  event === "" || (/^\d{1,5}$/.test(event) && (Number(event) < 20 || (Number(event) >= 4000 && Number(event) < 5000)))

/** 3.x terminals: `time=…⇥pin=…⇥…`. Pin 0 is the device itself. */
const readRealtime = (text: string, zone: string): Read => {
  const fields = fieldsOf(text.split("\t"))
  const of = (name: string): string => fields.get(name) ?? ""
  if (of("time") === "") return reject(NO_TIME)
  if (/^0*$/.test(of("pin")) || !isEntry(of("event"))) return { kind: "event" }
  return attendance([of("pin"), of("time"), of("inoutstatus"), of("verifytype")], zone, text)
}

export const parseRtlog = (body: Uint8Array, zone: string): Upload => collect(body, (text) => readRealtime(text, zone))

/** A stored record of a 3.x terminal: `transaction cardno=⇥pin=⇥verified=⇥doorid=⇥eventtype=⇥inoutstate=⇥time_second=`. */
const readTransaction = (fields: ReadonlyMap<string, string>, zone: string, raw: string): Read => {
  const of = (...names: ReadonlyArray<string>): string => names.map((name) => fields.get(name)).find((value) => value !== undefined) ?? ""
  if (/^0*$/.test(of("pin")) || !isEntry(of("eventtype", "event"))) return { kind: "event" }
  const time = of("time", "time_second")
  return attendance([of("pin"), numberToWall(time) ?? time, of("inoutstate", "inoutstatus"), of("verified", "verifytype")], zone, raw)
}

/** 3.x `tabledata`: `user uid=…⇥pin=…`; templates are biometric, other tables are kept as they came. */
const readTableData = (text: string, zone: string): Read => {
  const word = /^([A-Za-z][A-Za-z0-9]*)[ \t]/.exec(text)?.[1] ?? ""
  const fields = () => fieldsOf(text.slice(word.length + 1).split("\t"))
  if (word.toLowerCase() === "user") return readUser(fields())
  if (word.toLowerCase() === "transaction") return readTransaction(fields(), zone, text)
  return /^(biodata|biophoto|userpic|templatev10|facev7|fvtemplate)$/i.test(word) ? { kind: "biometric" } : { kind: "event" }
}

export const parseTableData = (body: Uint8Array, zone: string): Upload => collect(body, (text) => readTableData(text, zone))

/** Lines of a table that is neither asked for nor kept. */
export const countLines = (body: Uint8Array): number => linesOf(body).length

/** `table=options`: `key=value` by comma or line; keys lower-case, without a leading `~`. */
export const parseOptions = (body: Uint8Array): ReadonlyMap<string, string> =>
  fieldsOf(linesOf(body).flatMap((line: Line) => line.text.split(/[,\t]/)))
