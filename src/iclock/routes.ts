/**
 * Our end of the conversation with a terminal. Status 200 for every accepted exchange, 403 with plain words for refusals,
 * 503 when the file could not be written, so that the terminal keeps its records. OK is said only after the commit, and
 * its letters stand in no refusal: firmware takes any answer that contains them for success.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { Libsql, type LibsqlError, type Tx } from "../libsql/client.ts"
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
import { utcToWall, wallNumber } from "./clock.ts"
import { inCardForm, parseResults, updateUser } from "./command.ts"
import { cardFormOf, type Device, type DeviceFacts, Devices, readSchool } from "./devices.ts"
import { accessOptions, handshakeReply, registryCode } from "./handshake.ts"
import type { IclockAnswer } from "./http.ts"
import { skewOf, storePunches } from "./punches.ts"
import { type IclockRequest, serialOf } from "./request.ts"

/** Events of one terminal that are kept; the oldest leave. */
const MAX_EVENTS = 10_000
/** A clock that moved by less is not written down anew. */
const SKEW_STEP_SECONDS = 5

const accepted = (text: string): IclockAnswer => ({ status: 200, text })
const refused = (text: string): IclockAnswer => ({ status: 403, text })

/** A terminal that may speak: what is left of the exchange concerns its request only. */
export interface Admitted {
  readonly device: Device
  /** It was in touch just before: what it sends now happened now. */
  readonly isLive: boolean
}

/** Who is it and may it: decided before a byte of the body is read. */
export const admit = (request: IclockRequest, address: string): Effect.Effect<Admitted | IclockAnswer, LibsqlError, Devices> =>
  Effect.gen(function* () {
    const serial = serialOf(request)
    if (serial === null) return refused("refused: no serial number")
    const met = yield* (yield* Devices).meet(serial, address)
    if (met.kind === "not_ready") return { status: 503, text: "not ready: no contact with head office yet" }
    if (met.kind === "unknown" || met.device.status !== "approved") return refused("refused: this terminal is not approved")
    const pinned = met.device.pinned_address
    return pinned !== null && pinned !== address ? refused("refused: another address is expected") : { device: met.device, isLive: met.isLive }
  })

// --- uploads --------------------------------------------------------------------------------------------------------

const isStamp = (stamp: string | undefined): stamp is string => stamp !== undefined && /^\d{1,15}$/.test(stamp) && !/^0+$/.test(stamp)

const storeUsers = (tx: Tx, device: Device, upload: Upload, now: number) =>
  tx.many(
    `INSERT INTO schoolbus_iclock_user (device_id, pin, name, card, at) VALUES (?,?,?,?,?)
     ON CONFLICT (device_id, pin) DO UPDATE SET name = excluded.name, card = excluded.card, at = excluded.at`,
    upload.users.map((user) => [BigInt(device.id), user.pin, user.name, user.card, BigInt(now)]),
  )

const storeEvents = (tx: Tx, device: Device, upload: Upload, now: number) =>
  Effect.gen(function* () {
    if (upload.events.length === 0) return
    yield* tx.many(
      "INSERT OR IGNORE INTO schoolbus_iclock_event (serial, raw, at) VALUES (?,?,?)",
      upload.events.map((raw) => [device.serial, raw, BigInt(now)]),
    )
    yield* tx.run(
      `DELETE FROM schoolbus_iclock_event WHERE serial = ?1 AND id <= (
         SELECT id FROM schoolbus_iclock_event WHERE serial = ?1 ORDER BY id DESC LIMIT 1 OFFSET ${MAX_EVENTS})`,
      [device.serial],
    )
  })

/** Everything of an upload in one transaction. */
const store = (
  { device, isLive }: Admitted,
  of: { readonly table: string; readonly upload: Upload; readonly stamps?: Partial<Pick<Device, "att_stamp" | "op_stamp">> },
): Effect.Effect<void, LibsqlError, Devices | Libsql> =>
  Effect.gen(function* () {
    const { upload, table, stamps } = of
    const db = yield* Libsql
    const now = yield* Clock.currentTimeMillis
    const skewMs = skewOf(upload.punches, device.zone, now, isLive)
    yield* db.write((tx) =>
      Effect.gen(function* () {
        const state = yield* readSchool(tx)
        if (state === null) return yield* Effect.die(new Error("a terminal was admitted before the school was known"))
        if (upload.punches.length > 0) yield* storePunches(tx, { ...state, device, records: upload.punches, now, skewMs })
        yield* storeUsers(tx, device, upload, now)
        yield* storeEvents(tx, device, upload, now)
        yield* tx.many(
          `INSERT OR IGNORE INTO schoolbus_iclock_reject (serial, "table", raw, reason, at) VALUES (?,?,?,?,?)`,
          upload.rejects.map((reject) => [device.serial, table, reject.raw, reject.reason, BigInt(now)]),
        )
      }),
    )
    const skew = skewMs === null ? null : Math.round(skewMs / 1000)
    const isMoved = skew !== null && Math.abs(skew - (device.skew_seconds ?? 0)) >= SKEW_STEP_SECONDS
    // A stamp is a hint: it may be lost, the records may not.
    yield* (yield* Devices).learn(device, { ...stamps, ...(isMoved ? { skew_seconds: skew } : {}) })
  })

const factsOf = (options: ReadonlyMap<string, string>): DeviceFacts => {
  const count = (name: string): number | undefined => (/^\d{1,9}$/.test(options.get(name) ?? "") ? Number(options.get(name)) : undefined)
  const text = (name: string): string | undefined =>
    options
      .get(name)
      ?.replace(/[^\x20-\x7e]/g, "")
      .slice(0, 80) || undefined
  const facts = {
    model: text("devicename"),
    firmware: text("fwversion"),
    push_version: text("pushversion"),
    users_reported: count("usercount"),
    punches_reported: count("transactioncount"),
  }
  return Object.fromEntries(Object.entries(facts).filter(([, value]) => value !== undefined))
}

/** 3.x terminals that told what they are; they say it again after a restart of this node. */
const registered = new Set<string>()

const handshake = ({ device }: Admitted, query: ReadonlyMap<string, string>) =>
  Effect.gen(function* () {
    const pushver = query.get("pushver")
    if (pushver !== undefined && /^[\w.]{1,20}$/.test(pushver) && device.push_version === null)
      yield* (yield* Devices).learn(device, { push_version: pushver })
    if (query.get("devicetype")?.toLowerCase() === "acc") {
      return accepted(registered.has(device.serial) ? `registry=ok\n${registryCode(device.serial)}\n${accessOptions(device.serial)}` : "OK")
    }
    return accepted(handshakeReply(device, yield* Clock.currentTimeMillis))
  })

/** A terminal meets somebody whom it does not hold: the person's line, if the pin is known here. */
const roamingUser = ({ device }: Admitted, pin: string) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const [row] = yield* db.read((tx) =>
      tx.all<{ pin: string; name: string; card: string | null }>(
        "SELECT pin, name, card FROM device_user_sync_status WHERE pin = ? AND status <> 'deleted' ORDER BY device_id = ? DESC LIMIT 1",
        [normalPin(pin), device.id],
      ),
    )
    return accepted(row === undefined ? "NONE" : `${inCardForm(updateUser(row), cardFormOf(device))}\n`)
  })

const cdata = (admitted: Admitted, request: IclockRequest, body: Uint8Array) =>
  Effect.gen(function* () {
    const { device } = admitted
    const { query } = request
    // The oldest firmware names no table; its stamp tells which it is.
    const table = (query.get("table") ?? (query.has("opstamp") ? "OPERLOG" : query.has("stamp") ? "ATTLOG" : "")).toUpperCase()
    const stamp = query.get("stamp")
    if (query.has("options") && table === "") return yield* handshake(admitted, query)
    if (query.has("authtype")) return refused("refused: verification happens on the terminal")
    if (request.method === "GET" && query.has("pin")) return yield* roamingUser(admitted, query.get("pin") ?? "")
    if (body.length === 0) return accepted("OK")
    const counted = (upload: Upload, stamps?: Partial<Pick<Device, "att_stamp" | "op_stamp">>) =>
      Effect.as(store(admitted, { table, upload, ...(stamps === undefined ? {} : { stamps }) }), accepted(`OK: ${upload.count}`))
    switch (table) {
      case "ATTLOG":
        return yield* counted(parseAttlog(body, device.zone), isStamp(stamp) ? { att_stamp: stamp } : {})
      case "OPERLOG":
      case "USERINFO": {
        const opStamp = query.get("opstamp") ?? stamp
        return yield* counted(parseOperlog(body), table === "OPERLOG" && isStamp(opStamp) ? { op_stamp: opStamp } : {})
      }
      case "RTLOG":
        yield* store(admitted, { table, upload: parseRtlog(body, device.zone) })
        return accepted("OK")
      case "ERRORLOG":
        yield* store(admitted, { table, upload: parseEvents(body) })
        return accepted("OK")
      case "OPTIONS":
        yield* (yield* Devices).learn(device, factsOf(parseOptions(body)))
        return accepted("OK")
      case "TABLEDATA": {
        const upload = parseTableData(body)
        yield* store(admitted, { table, upload })
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
    const devices = yield* Devices
    const info = request.query.get("info")?.split(",")
    if (info !== undefined) {
      const [firmware = "", users = "", , punches = ""] = info
      yield* devices.learn(device, factsOf(new Map(Object.entries({ fwversion: firmware, usercount: users, transactioncount: punches }))))
    }
    return accepted((yield* devices.take(device)) ?? "OK")
  })

const devicecmd = ({ device }: Admitted, request: IclockRequest, body: Uint8Array) =>
  Effect.gen(function* () {
    const devices = yield* Devices
    const { query } = request
    const inQuery =
      query.has("id") && query.has("return") ? new TextEncoder().encode(`ID=${query.get("id")}&Return=${query.get("return")}\n`) : new Uint8Array()
    const results = [...parseResults(inQuery), ...parseResults(body)]
    yield* devices.results(device, results)
    for (const { facts } of results) yield* devices.learn(device, factsOf(facts))
    return accepted("OK")
  })

/** What an admitted terminal asked for. */
export const exchange = (admitted: Admitted, request: IclockRequest, body: Uint8Array): Effect.Effect<IclockAnswer, LibsqlError, Devices | Libsql> =>
  Effect.gen(function* () {
    const { serial } = admitted.device
    switch (request.name) {
      case "cdata":
        return yield* cdata(admitted, request, body)
      case "getrequest":
        return yield* getrequest(admitted, request)
      case "devicecmd":
        return yield* devicecmd(admitted, request, body)
      case "registry":
        registered.add(serial)
        yield* (yield* Devices).learn(admitted.device, factsOf(parseOptions(body)))
        return accepted(registryCode(serial))
      case "push":
        return accepted(accessOptions(serial))
      case "querydata": {
        const upload = parseTableData(body)
        yield* store(admitted, { table: `querydata ${request.query.get("tablename") ?? ""}`, upload })
        return accepted(`${(request.query.get("tablename") ?? "user").replace(/[^\w]/g, "")}=${upload.count}`)
      }
      case "rtdata":
        return accepted(`DateTime=${wallNumber(utcToWall(yield* Clock.currentTimeMillis, "UTC"))},ServerTZ=+0000`)
      case "ping":
      case "fdata":
        return accepted("OK")
      case "event":
        yield* store(admitted, { table: "event", upload: parseEvents(body) })
        return accepted("OK")
      case "exchange":
        return { status: 404, text: "not offered" }
      default:
        // There may be records in it that nobody here can read: the terminal keeps them.
        return request.method === "GET" && body.length === 0 ? accepted("OK") : { status: 404, text: "unknown request" }
    }
  })
