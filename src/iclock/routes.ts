/**
 * Our end of the conversation with a terminal. Status 200 for every accepted exchange, 403 with plain words for refusals,
 * 503 when the file could not be written, so that the terminal keeps its records. OK is said only after the commit.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { Libsql, type LibsqlError } from "../libsql/client.ts"
import { decodeText, type IclockRequest, parseRequest, serialOf } from "./request.ts"
import { parseAttlog, parseOperlog, parseOptions, parseRtlog, type Attendance, type Lines, type Reject } from "./cdata.ts"
import { utcToWall } from "./clock.ts"
import { commandAnswer, parseResults } from "./command.ts"
import { type Device, Devices, readSchool } from "./devices.ts"
import { handshakeReply } from "./handshake.ts"
import { storePunches } from "./punches.ts"

/** A larger body is not read; firmware sends far less. */
export const MAX_BODY_BYTES = 10 * 1024 * 1024
const MAX_REJECT_BYTES = 64 * 1024

/** Status and body; headers are the same for all. */
export interface IclockAnswer {
  readonly status: number
  readonly text: string
}

const accepted = (text: string): IclockAnswer => ({ status: 200, text })
// A refusal never contains the letters that firmware reads as success.
const refused = (text: string): IclockAnswer => ({ status: 403, text })

const storeRejects = (serial: string, table: string, rejects: ReadonlyArray<Reject>, now: number) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const encoder = new TextEncoder()
    yield* db.write((tx) =>
      tx.many(`INSERT INTO schoolbus_iclock_reject (serial, "table", raw, reason, at) VALUES (?,?,?,?,?)`, rejects.map((reject) => [serial, table, encoder.encode(reject.raw).subarray(0, MAX_REJECT_BYTES), reject.reason, BigInt(now)])),
    )
  })

const storeAttendance = (device: Device, lines: Lines<Attendance>, stamp: string | undefined) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const now = yield* Clock.currentTimeMillis
    // A stamp of 0 would make the terminal send everything at each handshake.
    const isStamp = stamp !== undefined && /^\d{1,15}$/.test(stamp) && stamp !== "0" && stamp !== device.att_stamp
    yield* db.write((tx) =>
      Effect.gen(function* () {
        const state = yield* readSchool(tx)
        if (state === null) return
        yield* storePunches(tx, { ...state, device, records: lines.records, now })
        if (isStamp) yield* tx.run("UPDATE devices SET att_stamp = ? WHERE serial = ?", [stamp ?? "", device.serial])
      }),
    )
    if (lines.rejects.length > 0) yield* storeRejects(device.serial, "ATTLOG", lines.rejects, now)
    return accepted(`OK: ${lines.count}`)
  })

const storeOperations = (device: Device, table: string, text: string, stamp: string | undefined) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const now = yield* Clock.currentTimeMillis
    const lines = parseOperlog(text)
    const users = lines.records.flatMap((record) => (record.kind === "user" ? [record.user] : []))
    const isStamp = stamp !== undefined && /^\d{1,15}$/.test(stamp) && stamp !== "0" && stamp !== device.op_stamp
    yield* db.write((tx) =>
      Effect.gen(function* () {
        yield* tx.many(
          `INSERT INTO schoolbus_iclock_user (device_id, pin, name, card, at) VALUES (?,?,?,?,?)
           ON CONFLICT (device_id, pin) DO UPDATE SET name = excluded.name, card = excluded.card, at = excluded.at`,
          users.map((user) => [BigInt(device.id), user.pin, user.name.replaceAll("\0", ""), user.card, BigInt(now)]),
        )
        if (isStamp) yield* tx.run("UPDATE devices SET op_stamp = ? WHERE serial = ?", [stamp ?? "", device.serial])
      }),
    )
    if (lines.rejects.length > 0) yield* storeRejects(device.serial, table, lines.rejects, now)
    return accepted(`OK: ${lines.count}`)
  })

const learnOptions = (device: Device, options: ReadonlyMap<string, string>) =>
  Effect.gen(function* () {
    const devices = yield* Devices
    const number = (name: string) => (/^\d{1,9}$/.test(options.get(name) ?? "") ? { [name]: Number(options.get(name)) } : {})
    const { usercount, transactioncount } = { ...number("usercount"), ...number("transactioncount") } as { usercount?: number; transactioncount?: number }
    const text = (name: string) => options.get(name)?.replace(/[^\x20-\x7e]/g, "").slice(0, 80)
    const [model, firmware, push] = [text("devicename"), text("fwversion"), text("pushversion")]
    yield* devices.learn(device, {
      ...(model === undefined ? {} : { model }),
      ...(firmware === undefined ? {} : { firmware }),
      ...(push === undefined ? {} : { push_version: push }),
      ...(usercount === undefined ? {} : { users_reported: usercount }),
      ...(transactioncount === undefined ? {} : { punches_reported: transactioncount }),
    })
  })

const cdata = (device: Device, request: IclockRequest) =>
  Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    const { query, body } = request
    const table = (query.get("table") ?? (query.has("opstamp") ? "OPERLOG" : query.has("stamp") ? "ATTLOG" : "")).toUpperCase()
    if (query.has("options") && table === "") {
      const pushver = query.get("pushver")
      if (pushver !== undefined && /^[\w.]{1,20}$/.test(pushver)) yield* (yield* Devices).learn(device, { push_version: pushver })
      return accepted(handshakeReply({ serial: device.serial, zone: device.zone, attStamp: device.att_stamp, opStamp: device.op_stamp }, now))
    }
    if (body.length === 0) return accepted("OK")
    switch (table) {
      case "ATTLOG":
        return yield* storeAttendance(device, parseAttlog(decodeText(body)), query.get("stamp"))
      case "RTLOG":
        return yield* storeAttendance(device, parseRtlog(decodeText(body)), undefined)
      case "OPERLOG":
      case "USERINFO":
        return yield* storeOperations(device, table, decodeText(body), query.get("opstamp") ?? query.get("stamp"))
      case "OPTIONS":
        yield* learnOptions(device, parseOptions(decodeText(body)))
        return accepted("OK")
      case "RTSTATE":
      case "ATTPHOTO":
      case "ERRORLOG":
        return accepted("OK")
      case "BIODATA":
      case "IDCARD":
        // Biometric templates are not kept.
        return accepted(`OK: ${decodeText(body).split("\n").filter((line) => line.trim() !== "").length}`)
      case "TABLEDATA":
        return accepted(`${query.get("tablename") ?? "user"}=${query.get("count") ?? "0"}`)
      default: {
        const lines = decodeText(body).split(/\r?\n/).filter((line) => line.trim() !== "")
        yield* storeRejects(device.serial, table || "unknown", lines.map((raw) => ({ raw, reason: "an unknown table" })), now)
        return accepted(`OK: ${lines.length}`)
      }
    }
  })

const getrequest = (device: Device, request: IclockRequest) =>
  Effect.gen(function* () {
    const devices = yield* Devices
    const info = request.query.get("info")?.split(",")
    if (info !== undefined) {
      const [firmware = "", users = "", , punches = ""] = info
      yield* devices.learn(device, {
        ...(firmware === "" ? {} : { firmware: firmware.replace(/[^\x20-\x7e]/g, "").slice(0, 80) }),
        ...(/^\d{1,9}$/.test(users) ? { users_reported: Number(users) } : {}),
        ...(/^\d{1,9}$/.test(punches) ? { punches_reported: Number(punches) } : {}),
      })
    }
    const { text, sent } = commandAnswer(yield* devices.due(device))
    if (sent.length === 0) return accepted("OK")
    yield* devices.sent(device, sent)
    return accepted(text)
  })

const devicecmd = (device: Device, request: IclockRequest) =>
  Effect.gen(function* () {
    const devices = yield* Devices
    const { query } = request
    const inQuery = query.has("id") && query.has("return") ? `ID=${query.get("id")}&Return=${query.get("return")}\n` : ""
    const results = parseResults(inQuery + decodeText(request.body))
    yield* devices.results(device, results)
    for (const { facts } of results) if (facts.size > 0) yield* learnOptions(device, facts)
    return accepted("OK")
  })

/** The whole exchange: who is it, may it, what does it want. */
export const answer = (request: IclockRequest, address: string): Effect.Effect<IclockAnswer, LibsqlError, Devices | Libsql> =>
  Effect.gen(function* () {
    const serial = serialOf(request)
    if (serial === null) return refused("refused: no serial number")
    const db = yield* Libsql
    if ((yield* db.read(readSchool)) === null) return { status: 503, text: "not ready: no contact with head office yet" }
    const devices = yield* Devices
    const device = yield* devices.meet(serial, address)
    if (device === null || device.status !== "approved") return refused("refused: this terminal is not approved")
    if (device.pinned_address !== null && device.pinned_address !== address) return refused("refused: another address is expected")
    switch (request.name) {
      case "cdata":
        return yield* cdata(device, request)
      case "getrequest":
        return yield* getrequest(device, request)
      case "devicecmd":
        return yield* devicecmd(device, request)
      case "ping":
      case "fdata":
      case "event":
        return accepted("OK")
      case "registry":
        return accepted(`RegistryCode=${serial.slice(0, 32)}`)
      case "push":
        return accepted(
          `ServerVersion=3.1.2\nServerName=schoolbus\nPushVersion=3.1.2\nErrorDelay=30\nRequestDelay=10\nTransTimes=00:00;14:05\nTransInterval=1\nTransTables=User Transaction\nRealtime=1\nSessionID=${serial.slice(0, 32)}\nTimeoutSec=10\n`,
        )
      case "querydata":
        return accepted(`${request.query.get("tablename") ?? "user"}=${request.query.get("count") ?? "0"}`)
      case "rtdata": {
        const now = yield* Clock.currentTimeMillis
        const wall = utcToWall(now, "UTC").match(/\d+/g)?.map(Number) ?? []
        const [y = 2000, mo = 1, d = 1, h = 0, mi = 0, s = 0] = wall
        return accepted(`DateTime=${((y - 2000) * 372 + (mo - 1) * 31 + (d - 1)) * 86_400 + h * 3600 + mi * 60 + s},ServerTZ=+0000`)
      }
      default:
        return request.method === "GET" ? accepted("OK") : { status: 404, text: "unknown request" }
    }
  })

/** `address` names the peer of a request. */
export const iclockHandler = (addressOf: (request: Request) => string): Effect.Effect<(request: Request) => Promise<Response>, never, Devices | Libsql> =>
  Effect.gen(function* () {
    const context = yield* Effect.context<Devices | Libsql>()
    const reply = ({ status, text }: IclockAnswer): Response => {
      const bytes = new TextEncoder().encode(text)
      return new Response(bytes, { status, headers: { "Content-Type": "text/plain", "Content-Length": String(bytes.length), Date: new Date().toUTCString(), Connection: "close" } })
    }
    return async (request) => {
      const url = new URL(request.url)
      const body = new Uint8Array(await request.arrayBuffer())
      if (body.length > MAX_BODY_BYTES) return reply({ status: 403, text: "refused: the upload is too large" })
      const parsed = parseRequest(request.method, url.pathname, url.search, body)
      const result = await Effect.runPromise(
        Effect.provideContext(
          answer(parsed, addressOf(request)).pipe(
            // Not stored, so not acknowledged: the terminal keeps its records and sends them again.
            Effect.catchCause((cause) => Effect.as(Effect.logError("iclock", cause), { status: 503, text: "not stored: try again" })),
          ),
          context,
        ),
      )
      return reply(result)
    }
  })
