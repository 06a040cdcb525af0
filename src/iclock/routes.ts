/**
 * Our end of the conversation with a terminal. Status 200 for every accepted exchange, 403 with plain words for refusals,
 * 503 when the file could not be written, so that the terminal keeps its records. OK is said only after the commit, and
 * its letters stand in no refusal: firmware takes any answer that contains them for success.
 */
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { Libsql, type LibsqlError } from "../libsql/client.ts"
import {
  countLines,
  normalPin,
  parseAttlog,
  parseEvents,
  parseOperlog,
  parseOptions,
  parseRtlog,
  parseTableData,
  parseUnknown,
  type Upload,
} from "./cdata.ts"
import { offsetMinutes, offsetText, utcToWall, wallNumber } from "./clock.ts"
import { inDialect, parseResults, updateUser } from "./command.ts"
import type { Device, DeviceFacts } from "./device.ts"
import { type Contact, Devices, type Met } from "./devices.ts"
import { accessOptions, handshakeReply, readsDigitsOnly, registryCode } from "./handshake.ts"
import type { IclockAnswer } from "./http.ts"
import { dialectOf } from "./dialect.ts"
import { Commands } from "./queue.ts"
import { type IclockRequest, isFrom, serialOf } from "./request.ts"
import { type ReceivedUpload, Uploads } from "./uploads.ts"

/** What an exchange needs. */
export type IclockServices = Devices | Commands | Uploads | Libsql

const accepted = (text: string): IclockAnswer => ({ status: 200, text })
const refused = (text: string): IclockAnswer => ({ status: 403, text })

/** A terminal that may speak: what is left of the exchange concerns its request only. */
export interface Admitted extends Contact {
  readonly device: Device
}

const letIn = ({ device, isLive, silence }: Met & { readonly kind: "known" }, address: string): Admitted | IclockAnswer => {
  if (device.status !== "approved") return refused("refused: this terminal is not approved")
  return device.pinned_address !== null && !isFrom(device.pinned_address, address)
    ? refused("refused: another address is expected")
    : { device, isLive, silence }
}

/** Who is it and may it: decided before a byte of the body is read. */
export const admit = (request: IclockRequest, address: string): Effect.Effect<Admitted | IclockAnswer, LibsqlError, Devices> =>
  Effect.gen(function* () {
    const serial = serialOf(request)
    if (serial === null) return refused("refused: no serial number")
    const met = yield* (yield* Devices).meet(serial, address)
    if (met.kind === "not_ready") return { status: 503, text: "not ready: no contact with head office yet" }
    return met.kind === "unknown" ? refused("refused: this terminal is not approved") : letIn(met, address)
  })

/** `admit` for a terminal that was here a moment ago, at once; null: it must be looked up. */
export const admitAtOnce = (devices: Context.Service.Shape<typeof Devices>, request: IclockRequest, address: string, now: number) => {
  const serial = serialOf(request)
  const met = serial === null ? null : devices.glance(serial, address, now)
  return met === null ? null : letIn(met, address)
}

/** A poll that has no news and gets none needs no more than the memory; null: it is another request. */
export const pollAtOnce = (
  commands: Context.Service.Shape<typeof Commands>,
  { device }: Admitted,
  request: IclockRequest,
  now: number,
): IclockAnswer | null => (request.name === "getrequest" && !request.query.has("info") && commands.isIdle(device, now) ? NO_COMMANDS : null)
const NO_COMMANDS = accepted("OK")

// --- uploads --------------------------------------------------------------------------------------------------------

const store = (received: ReceivedUpload) => Uploads.use((uploads) => uploads.store(received))

const isStamp = (stamp: string | undefined): stamp is string => stamp !== undefined && /^\d{1,15}$/.test(stamp) && !/^0+$/.test(stamp)

const factsOf = (options: ReadonlyMap<string, string>): DeviceFacts => {
  const count = (name: string): number | undefined => (/^\d{1,9}$/.test(options.get(name) ?? "") ? Number(options.get(name)) : undefined)
  const text = (...names: ReadonlyArray<string>): string | undefined =>
    names
      .flatMap((name) => options.get(name) ?? [])[0]
      ?.replace(/[^\x20-\x7e]/g, "")
      .slice(0, 80) || undefined
  const facts = {
    model: text("devicename"),
    firmware: text("fwversion", "firmver"),
    push_version: text("pushversion"),
    users_reported: count("usercount"),
    punches_reported: count("transactioncount"),
  }
  return Object.fromEntries(Object.entries(facts).filter(([, value]) => value !== undefined))
}

/** Facts that a terminal tells of itself. When it holds fewer users than it confirmed, it is asked whom. */
const hear = (device: Device, options: ReadonlyMap<string, string>): Effect.Effect<void, LibsqlError, IclockServices> =>
  Effect.gen(function* () {
    const devices = yield* Devices
    const facts = factsOf(options)
    yield* devices.learn(device, facts)
    // It was greeted in words that it does not read; what it is, it says only now.
    if (!readsDigitsOnly(device) && readsDigitsOnly({ ...device, ...facts })) yield* (yield* Commands).recheck(device)
    if (facts.users_reported == null) return
    yield* devices.counted(device)
    const db = yield* Libsql
    const [row] = yield* db.read((tx) =>
      tx.all<{ n: number }>("SELECT count(*) AS n FROM device_user_sync_status WHERE device_id = ? AND status = 'synced'", [device.id]),
    )
    if ((row?.n ?? 0) > facts.users_reported) yield* (yield* Commands).suspect(device)
  })

/** Before 3.0 there was attendance only, also on a terminal that was switched to it. */
const familyOf = (query: ReadonlyMap<string, string>): Pick<DeviceFacts, "family"> => {
  const type = query.get("devicetype")?.toLowerCase()
  if (type === "acc") return { family: "acc" }
  return type === "att" || (type === undefined && /^2\./.test(query.get("pushver") ?? "")) ? { family: "att" } : {}
}

const handshake = ({ device }: Admitted, query: ReadonlyMap<string, string>) =>
  Effect.gen(function* () {
    const pushver = query.get("pushver")
    const isAccess = familyOf(query).family === "acc"
    const now = yield* Clock.currentTimeMillis
    yield* (yield* Devices).learn(device, {
      ...(pushver !== undefined && /^[\w.]{1,20}$/.test(pushver) && device.push_version === null ? { push_version: pushver } : {}),
      ...familyOf(query),
      offset_told: offsetMinutes(device.zone, now),
    })
    if (isAccess) {
      // What it is stood in the file before this handshake: it has registered.
      return accepted(device.family === "acc" ? `registry=ok\n${registryCode(device.serial)}\n${accessOptions(device.serial)}` : "OK")
    }
    return accepted(handshakeReply(device, now))
  })

/** A terminal meets somebody whom it does not hold: the person's line, if the pin is known here and not on its way off. */
const roamingUser = ({ device }: Admitted, pin: string) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const now = yield* Clock.currentTimeMillis
    const [row] = yield* db.read((tx) =>
      tx.all<{ pin: string; name: string; card: string | null }>(
        `SELECT s.pin, s.name, s.card FROM device_user_sync_status s
           JOIN device_user_mappings m ON m.school = s.school AND m.device_id = s.device_id AND m.pin = s.pin
          WHERE s.pin = ? AND s.status <> 'deleted' AND m.to_at IS NULL ORDER BY s.device_id = ? DESC LIMIT 1`,
        [normalPin(pin), device.id],
      ),
    )
    return accepted(row === undefined ? "NONE" : `${inDialect(updateUser(row), dialectOf(device, now)) ?? "NONE"}\n`)
  })

const cdata = (admitted: Admitted, request: IclockRequest, body: Uint8Array) =>
  Effect.gen(function* () {
    const { device } = admitted
    const { query } = request
    // The oldest firmware names no table; its stamp tells which it is.
    const attStamp = query.get("attlogstamp") ?? query.get("stamp")
    const opStamp = query.get("operlogstamp") ?? query.get("opstamp")
    const table = (query.get("table") ?? (opStamp !== undefined ? "OPERLOG" : attStamp !== undefined ? "ATTLOG" : "")).toUpperCase()
    if (query.has("options") && table === "") return yield* handshake(admitted, query)
    if (query.has("authtype")) return refused("refused: verification happens on the terminal")
    if (request.method === "GET" && query.has("pin")) return yield* roamingUser(admitted, query.get("pin") ?? "")
    if (body.length === 0) return accepted("OK")
    const counted = (upload: Upload, stamps?: Partial<Pick<Device, "att_stamp" | "op_stamp">>) =>
      Effect.as(store({ ...admitted, table, upload, ...(stamps === undefined ? {} : { stamps }) }), accepted(`OK: ${upload.count}`))
    switch (table) {
      case "ATTLOG":
        return yield* counted(parseAttlog(body, device.zone), isStamp(attStamp) ? { att_stamp: attStamp } : {})
      case "OPERLOG":
      case "USERINFO":
      case "": {
        const stamp = opStamp ?? query.get("stamp")
        return yield* counted(parseOperlog(body, device.zone), table === "OPERLOG" && isStamp(stamp) ? { op_stamp: stamp } : {})
      }
      case "RTLOG":
        yield* (yield* Devices).learn(device, { family: "acc" })
        yield* store({ ...admitted, table, upload: parseRtlog(body, device.zone) })
        return accepted("OK")
      case "ERRORLOG":
        yield* store({ ...admitted, table, upload: parseEvents(body) })
        return accepted("OK")
      case "OPTIONS":
        yield* hear(device, parseOptions(body))
        return accepted("OK")
      case "TABLEDATA": {
        const upload = parseTableData(body, device.zone)
        yield* store({ ...admitted, table, upload })
        return accepted(`${(query.get("tablename") ?? "user").replace(/[^\w]/g, "")}=${upload.count}`)
      }
      // A sign of life, and pictures and templates, which are neither asked for nor kept.
      case "RTSTATE":
      case "ATTPHOTO":
      case "BIOPHOTO":
      case "USERPIC":
        return accepted("OK")
      case "BIODATA":
      case "IDCARD":
      case "FINGERTMP":
      case "FACE":
        return accepted(`OK: ${countLines(body)}`)
      default:
        return yield* counted(parseUnknown(body))
    }
  })

// --- commands -------------------------------------------------------------------------------------------------------

const getrequest = ({ device }: Admitted, request: IclockRequest) =>
  Effect.gen(function* () {
    const info = request.query.get("info")?.split(",")
    if (info === undefined) return accepted((yield* (yield* Commands).take(device)) ?? "OK")
    const [firmware = "", users = "", , punches = ""] = info
    yield* hear(device, new Map(Object.entries({ fwversion: firmware, usercount: users, transactioncount: punches })))
    return accepted((yield* (yield* Commands).take(yield* (yield* Devices).renewed(device))) ?? "OK")
  })

const devicecmd = ({ device }: Admitted, request: IclockRequest, body: Uint8Array) =>
  Effect.gen(function* () {
    const { query } = request
    const inQuery =
      query.has("id") && query.has("return") ? new TextEncoder().encode(`ID=${query.get("id")}&Return=${query.get("return")}\n`) : new Uint8Array()
    const results = [...parseResults(inQuery), ...parseResults(body)]
    yield* (yield* Commands).results(device, results)
    for (const { facts } of results) yield* hear(device, facts)
    return accepted("OK")
  })

/** Answers of 3.x terminals to what they were asked: rows, options or a count. */
const querydata = (admitted: Admitted, request: IclockRequest, body: Uint8Array) =>
  Effect.gen(function* () {
    const name = (request.query.get("tablename") ?? "user").replace(/[^\w]/g, "")
    if (request.query.get("type")?.toLowerCase() === "options") {
      yield* hear(admitted.device, parseOptions(body))
      return accepted("OK")
    }
    const upload = parseTableData(body, admitted.device.zone)
    yield* store({ ...admitted, table: `querydata ${name}`, upload })
    return accepted(`${name}=${upload.count}`)
  })

const BUSY: IclockAnswer = { status: 503, text: "busy: try again" }

/** What an admitted terminal asked for. */
export const exchange = (admitted: Admitted, request: IclockRequest, body: Uint8Array): Effect.Effect<IclockAnswer, LibsqlError, IclockServices> =>
  Effect.gen(function* () {
    const { device } = admitted
    const { serial } = device
    const uploads = yield* Uploads
    switch (request.name) {
      case "cdata":
        return yield* body.length === 0 ? cdata(admitted, request, body) : uploads.limited(serial, cdata(admitted, request, body), BUSY)
      case "getrequest":
        return yield* getrequest(admitted, request)
      case "devicecmd":
        return yield* devicecmd(admitted, request, body)
      case "registry":
        yield* (yield* Devices).learn(device, { family: "acc" })
        yield* hear(device, parseOptions(body))
        return accepted(registryCode(serial))
      case "push":
        yield* (yield* Devices).learn(device, { family: "acc" })
        return accepted(accessOptions(serial))
      case "querydata":
        return yield* uploads.limited(serial, querydata(admitted, request, body), BUSY)
      case "rtdata": {
        const now = yield* Clock.currentTimeMillis
        return accepted(`DateTime=${wallNumber(utcToWall(now, "UTC"))},ServerTZ=${offsetText(device.zone, now)}`)
      }
      case "ping":
        return accepted("OK")
      // Pictures, as a rule; what else comes this way is an upload like any other.
      case "fdata":
        return /^(|\w*PHOTO|USERPIC)$/i.test(request.query.get("table") ?? "")
          ? accepted("OK")
          : yield* uploads.limited(serial, cdata(admitted, request, body), BUSY)
      case "event":
        yield* store({ ...admitted, table: "event", upload: parseEvents(body) })
        return accepted("OK")
      case "exchange":
        return { status: 404, text: "not offered" }
      default:
        // There may be records in it that nobody here can read: the terminal keeps them.
        return request.method === "GET" && body.length === 0 ? accepted("OK") : { status: 404, text: "unknown request" }
    }
  })
