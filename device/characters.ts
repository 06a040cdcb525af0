/**
 * How generations of firmware speak: what stands in their requests, how they write records, which commands they know.
 * `oldest`: HTTP/1.0, no table names, cards as hex in brackets, results in the query. `att`: attendance 2.4. `att3`: attendance
 * that calls itself 3.x and reads `TransFlag` as digits. `face`: 10 fields, options, photos and templates. `access`: the 3.x
 * family with registry, push and rtlog.
 */

export interface TerminalUser {
  readonly pin: string
  readonly name: string
  readonly card: string
}

export interface Punch {
  readonly pin: string
  /** Wall clock of the terminal: `2026-03-03 07:41:09`. */
  readonly time: string
  readonly status: number
  readonly verify: number
  /** Running number of the record. */
  readonly index: number
}

/** What a command asks for, once its words are understood. */
export type Order =
  | { readonly kind: "store"; readonly user: TerminalUser }
  | { readonly kind: "authorize"; readonly pin: string }
  | { readonly kind: "remove"; readonly pin: string }
  | { readonly kind: "report users"; readonly pin: string }
  | { readonly kind: "report punches"; readonly from: string; readonly to: string }
  | { readonly kind: "facts" | "recheck" | "reboot" | "clear log" | "nothing" }
  | { readonly kind: "unknown"; readonly code: number }

export interface Character {
  readonly version: "1.0" | "1.1"
  readonly headers: (host: string, hasBody: boolean) => ReadonlyArray<string>
  readonly isAccess: boolean
  readonly model: string
  readonly firmware: string
  readonly pushVersion: string
  /** It sends what the first digit of `TransFlag` says, and nothing when that is no digit. */
  readonly readsDigits: boolean
  /** After `/iclock/cdata?SN=…`. */
  readonly hello: string
  /** It posts its settings after the handshake. */
  readonly postsOptions: boolean
  /** Query of an upload of punches and of users; `stamp` belongs to the last record. */
  readonly punchQuery: (stamp: number) => string
  readonly userQuery: string
  readonly punchLine: (punch: Punch) => string
  readonly userLine: (user: TerminalUser) => string
  /** Results go into the query of a GET, one each. */
  readonly resultsByGet: boolean
  /** Photo of everybody who punches, and templates. */
  readonly sendsPhotos: boolean
  readonly understand: (command: string) => Order
}

/** Firmware finds a field by the first `key=` and reads to the next TAB. */
const field = (text: string, key: string): string => {
  const at = text.indexOf(`${key}=`)
  return at === -1 ? "" : (text.slice(at + key.length + 1).split("\t")[0] ?? "").trim()
}

/** `[15CD5B0700]`: five bytes of hex, low byte first; any other text is no card. */
const bracketCard = (card: string): string =>
  /^\d{1,10}$/.test(card) && card !== "0"
    ? `[${(Number(card).toString(16).padStart(10, "0").match(/../g) ?? []).reverse().join("")}]`
    : "[0000000000]"
const readBracket = (text: string): string => {
  const hex = /^\[([0-9A-Fa-f]{10})\]$/.exec(text)?.[1]
  const n = hex === undefined ? 0 : Number.parseInt((hex.match(/../g) ?? []).reverse().join(""), 16)
  return n === 0 ? "" : String(n)
}

const attHeaders = (host: string, hasBody: boolean): ReadonlyArray<string> => [
  `Host: ${host}`,
  "User-Agent: iClock Proxy/1.09",
  "Connection: close",
  "Accept: */*",
  ...(hasBody ? ["Content-Type: text/plain"] : []),
]

const simple: Readonly<Record<string, Order>> = {
  INFO: { kind: "facts" },
  CHECK: { kind: "recheck" },
  REBOOT: { kind: "reboot" },
  LOG: { kind: "nothing" },
  AC_UNLOCK: { kind: "nothing" },
  AC_UNALARM: { kind: "nothing" },
  "CLEAR LOG": { kind: "clear log" },
}

const understandAtt = (command: string): Order => {
  const known = simple[command]
  if (known !== undefined) return known
  if (command.startsWith("DATA UPDATE USERINFO ") || command.startsWith("DATA USER "))
    return { kind: "store", user: { pin: field(command, "PIN"), name: field(command, "Name"), card: field(command, "Card") } }
  if (command.startsWith("DATA DELETE USERINFO ") || command.startsWith("DATA DEL_USER ")) return { kind: "remove", pin: field(command, "PIN") }
  if (command.startsWith("DATA QUERY USERINFO")) return { kind: "report users", pin: field(command, "PIN") }
  if (command.startsWith("DATA QUERY ATTLOG")) return { kind: "report punches", from: field(command, "StartTime"), to: field(command, "EndTime") }
  if (/^SET OPTION DateTime=\d+$/.test(command)) return { kind: "nothing" }
  return { kind: "unknown", code: -1002 }
}

const att: Character = {
  version: "1.1",
  headers: attHeaders,
  isAccess: false,
  model: "Simulator",
  firmware: "Ver 6.60 Sim",
  pushVersion: "Ver 2.4.1",
  readsDigits: false,
  hello: "options=all&language=69&pushver=2.4.1&PushOptionsFlag=1",
  postsOptions: true,
  punchQuery: () => "table=ATTLOG&Stamp=9999",
  userQuery: "table=OPERLOG&OpStamp=9999",
  punchLine: (punch) => `${punch.pin}\t${punch.time}\t${punch.status}\t${punch.verify}\t0\t0\t0\t`,
  userLine: (user) => `USER PIN=${user.pin}\tName=${user.name}\tPri=0\tPasswd=\tCard=${user.card}\tGrp=1\tTZ=0000000100000000`,
  resultsByGet: false,
  sendsPhotos: false,
  understand: understandAtt,
}

const att3: Character = {
  ...att,
  model: "LX35",
  firmware: "Ver 8.0.4 AK3750",
  pushVersion: "Ver 3.0.1",
  readsDigits: true,
  hello: "options=all&language=69&pushver=3.0.1&PushOptionsFlag=1",
  // It shakes hands again at CHECK, and says that it does not know it.
  understand: (command) => (command.startsWith("DATA QUERY") ? { kind: "unknown", code: -1002 } : understandAtt(command)),
}

const face: Character = {
  ...att,
  hello: "options=all&language=69&pushver=2.4.1&DeviceType=att&PushOptionsFlag=1",
  punchLine: (punch) => `${punch.pin}\t${punch.time}\t${punch.status}\t${punch.verify}\t\t0\t0\t255\t0\t0`,
  userLine: (user) =>
    `USER PIN=${user.pin}\tName=${user.name}\tPri=0\tPasswd=\tCard=${user.card}\tGrp=1\tTZ=0000000100000000\tVerify=-1\tViceCard=\tStartDatetime=0\tEndDatetime=0`,
  sendsPhotos: true,
}

const oldest: Character = {
  ...att,
  version: "1.0",
  headers: () => ["User-Agent: iClock Proxy/1.09", "Connection: close", "Accept: */*"],
  hello: "options=all",
  postsOptions: false,
  punchQuery: (stamp) => `Stamp=${stamp}`,
  userQuery: "OpStamp=9999",
  punchLine: (punch) => `${punch.pin}\t${punch.time}\t${punch.status}\t${punch.verify}`,
  userLine: (user) => `USER PIN=${user.pin}\tName=${user.name}\tPri=0\tPasswd=\tCard=${bracketCard(user.card)}\tGrp=1\tTZ=0000000100000000`,
  resultsByGet: true,
  understand: (command) => {
    if (command.startsWith("DATA USER ") || command.startsWith("DATA DEL_USER ")) {
      const order = understandAtt(command)
      return order.kind === "store" ? { kind: "store", user: { ...order.user, card: readBracket(order.user.card) } } : order
    }
    return command.startsWith("DATA ") || command.startsWith("SET ") ? { kind: "unknown", code: -22 } : understandAtt(command)
  },
}

const access: Character = {
  ...att,
  headers: (host, hasBody) => [
    `Host: ${host}`,
    "User-Agent: iClock Proxy/1.09",
    "Connection: starting",
    "Accept: application/push",
    "Accept-Charset: UTF-8",
    ...(hasBody ? ["Content-Type: application/push;charset=UTF-8"] : []),
  ],
  isAccess: true,
  hello: "options=all&pushver=3.1.2&DeviceType=acc&PushOptionsFlag=1",
  punchQuery: () => "table=rtlog",
  punchLine: (punch) =>
    `time=${punch.time}\tpin=${punch.pin}\tcardno=0\teventaddr=1\tevent=0\tinoutstatus=${punch.status}\tverifytype=${punch.verify}\tindex=${punch.index}\r`,
  userLine: (user) =>
    `user uid=1\tcardno=${user.card}\tpin=${user.pin}\tpassword=\tgroup=1\tstarttime=0\tendtime=0\tname=${user.name}\tprivilege=0\r`,
  understand: (command) => {
    if (command.startsWith("DATA UPDATE user "))
      return { kind: "store", user: { pin: field(command, "Pin"), name: field(command, "Name"), card: field(command, "CardNo") } }
    if (command.startsWith("DATA UPDATE userauthorize ")) return { kind: "authorize", pin: field(command, "Pin") }
    if (command.startsWith("DATA DELETE user ")) return { kind: "remove", pin: field(command, "Pin") }
    if (command.startsWith("DATA QUERY tablename=user,")) return { kind: "report users", pin: "" }
    if (command.startsWith("DATA QUERY tablename=transaction,")) return { kind: "report punches", from: "", to: "9999" }
    if (command.startsWith("GET OPTIONS ")) return { kind: "facts" }
    if (command === "CONTROL DEVICE 03000000") return { kind: "reboot" }
    if (command === "DATA DELETE transaction *") return { kind: "clear log" }
    return /^(CONTROL DEVICE 0[12]\d{6}|SET OPTIONS DateTime=\d+)$/.test(command) ? { kind: "nothing" } : { kind: "unknown", code: -1002 }
  },
}

export const characters = { oldest, att, att3, face, access } as const
export type CharacterName = keyof typeof characters
