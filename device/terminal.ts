/**
 * An attendance terminal: it keeps its own users and records, retries, and gives up a record only when the server has said
 * OK to it. What goes wrong with real ones can be made to go wrong here.
 */
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs"
import type { Socket } from "node:net"
import { type CharacterName, characters, type Order, type Punch, type TerminalUser } from "./characters.ts"
import { exchange, NO_MISHAP } from "./wire.ts"

export interface TerminalOptions {
  /** `http://127.0.0.1:4490`; always plain HTTP. */
  readonly server: string
  readonly serial: string
  /** Generation of firmware; `att` when absent. */
  readonly character?: CharacterName
  /** Keeps users, records and what is unsent over a restart. */
  readonly data?: string
  /** Seconds between polls, also after a failure; the server's Delay and ErrorDelay when absent. */
  readonly interval?: number
  /** Whom it holds when it is new here. */
  readonly users?: ReadonlyArray<TerminalUser>
  /** Users that fit in; one more is answered with 8, as firmware does. */
  readonly capacity?: number
  /** Share of answers that never arrive, 0 to 1. */
  readonly lose?: number
  /** Seconds that its clock is off, whatever the server says. */
  readonly drift?: number
  /** Minutes east of UTC that somebody set by hand, whatever the server says. */
  readonly zoneMinutes?: number
  readonly log?: (line: string) => void
  /** How long an exchange took, whether it was answered, and what it was. */
  readonly onExchange?: (ms: number, answered: boolean, path: string) => void
}

interface Memory {
  users: Array<TerminalUser>
  /** Lines that the server has not acknowledged. */
  unsent: Array<string>
  /** Every punch ever made. */
  punches: number
  /** Every line that was not cleared. */
  log: Array<string>
}

export interface Terminal {
  /** Records a punch and sends it at once when the server can be reached. `time`: wall clock, `2026-03-03 07:41:09`. */
  readonly punch: (pin: string, time?: string, status?: number, verify?: number) => void
  readonly users: () => ReadonlyArray<TerminalUser>
  /** Pins that may open the door: of access-control terminals. */
  readonly authorized: () => ReadonlySet<string>
  readonly unsent: () => number
  /** Lines that it still holds. */
  readonly stored: () => number
  /** True after a handshake that the server accepted. */
  readonly online: () => boolean
  /** Its wall clock. */
  readonly clock: () => string
  /** Pulls the network plug, and puts it back. */
  readonly cut: () => void
  readonly restore: () => void
  /** Somebody enters a user at the terminal, or clears them all. */
  readonly enter: (user: TerminalUser) => void
  readonly wipe: () => void
  /** The power fails in the middle of the next upload. */
  readonly failNextUpload: () => void
  /** Sends everything that it holds once more. */
  readonly resend: () => void
  readonly stop: () => Promise<void>
}

const BATCH_LINES = 100
/** A clock that is off by less is left alone. */
const CLOCK_SLACK_MS = 10_000
const JPEG = Buffer.from([0xff, 0xd8, 0xff, 0xe0, 0, 0x10, 0x4a, 0x46])

/** The time of a record as the protocol's number. */
const stampOf = (line: string): number => {
  const [, y = 2000, m = 1, d = 1, h = 0, i = 0, s = 0] = (/(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)/.exec(line) ?? []).map(Number)
  return ((y - 2000) * 372 + (m - 1) * 31 + (d - 1)) * 86_400 + h * 3600 + i * 60 + s
}
const timeOf = (line: string): string => /\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/.exec(line)?.[0] ?? ""

export const startTerminal = (options: TerminalOptions): Terminal => {
  const server = new URL(options.server)
  const log = options.log ?? (() => undefined)
  const character = characters[options.character ?? "att"]
  const empty: Memory = { users: [...(options.users ?? [])], unsent: [], punches: 0, log: [] }
  const memory: Memory =
    options.data !== undefined && existsSync(options.data) ? { ...empty, ...(JSON.parse(readFileSync(options.data, "utf8")) as Memory) } : empty
  const authorized = new Set<string>()
  const save = (): void => {
    if (options.data === undefined) return
    writeFileSync(`${options.data}.new`, JSON.stringify(memory))
    renameSync(`${options.data}.new`, options.data)
  }
  let running = true
  let plugged = true
  let online = false
  let delay = 10
  let errorDelay = 3
  let recheck = false
  let transfers = true
  let poked = false
  let powerFails = false
  let nudge: (() => void) | null = null
  /** Results that no server has taken yet; they are posted again until one does. */
  let results: Array<{ id: string; code: number; word: string; facts: string }> = []
  let zoneMinutes = options.zoneMinutes ?? 0
  let clockOffsetMs = (options.drift ?? 0) * 1000
  const wires = new Set<Socket>()
  const sn = `SN=${options.serial}`

  const call = async (path: string, body: string | Uint8Array = "", mishap = NO_MISHAP): Promise<string | null> => {
    if (!plugged) return null
    const method = body.length === 0 ? "GET" : "POST"
    const loseReply = Math.random() < (options.lose ?? 0)
    const startedAt = performance.now()
    const headers = character.headers(server.host, method === "POST")
    const answer = await exchange(server, wires, { method, path, body, version: character.version, headers }, { ...mishap, loseReply })
    options.onExchange?.(performance.now() - startedAt, answer !== null, path)
    if (
      answer !== null &&
      answer.date !== null &&
      options.drift === undefined &&
      Math.abs(answer.date - (Date.now() + clockOffsetMs)) > CLOCK_SLACK_MS
    )
      clockOffsetMs = answer.date - Date.now()
    return answer === null ? null : answer.body
  }
  const wallClock = (): string => new Date(Date.now() + clockOffsetMs + zoneMinutes * 60_000).toISOString().slice(0, 19).replace("T", " ")
  const facts = (separator: string): string =>
    [
      `~DeviceName=${character.model}`,
      "MAC=00:17:61:00:00:01",
      `FWVersion=${character.firmware}`,
      `PushVersion=${character.pushVersion}`,
      `UserCount=${memory.users.length}`,
      `TransactionCount=${memory.log.length}`,
    ].join(separator)

  const takeOptions = (answer: string): void => {
    for (const line of answer.split(/\r?\n/).slice(0, -1)) {
      const [key, value] = line.split("=")
      if (key === "Delay" || key === "RequestDelay") delay = Number(value)
      // Below 12 they are hours, above minutes.
      if (key === "TimeZone" && options.zoneMinutes === undefined) zoneMinutes = Math.abs(Number(value)) < 12 ? Number(value) * 60 : Number(value)
      if (key === "TransFlag") transfers = !character.readsDigits || value?.startsWith("1") === true
      if (key === "ErrorDelay") errorDelay = Math.min(Number(value), options.interval ?? Number(value))
    }
  }

  const register = async (answer: string): Promise<boolean> => {
    if (!answer.startsWith("registry=ok")) {
      const code = await call(`/iclock/registry?${sn}`, `DeviceType=acc,${facts(",")}`)
      if (code === null || !code.startsWith("RegistryCode=")) return false
    }
    const pushed = await call(`/iclock/push?${sn}`, " ")
    if (pushed === null || !pushed.includes("ServerVersion=")) return false
    takeOptions(pushed)
    const time = await call(`/iclock/rtdata?${sn}&type=time`)
    const zone = /ServerTZ=([+-])(\d\d)(\d\d)/.exec(time ?? "")
    if (zone !== null && options.zoneMinutes === undefined) zoneMinutes = (zone[1] === "-" ? -1 : 1) * (Number(zone[2]) * 60 + Number(zone[3]))
    return time !== null
  }

  const handshake = async (): Promise<boolean> => {
    const answer = await call(`/iclock/cdata?${sn}&${character.hello}`)
    if (answer === null) return false
    if (character.isAccess) return register(answer)
    if (!/Stamp|ServerVer/.test(answer)) return false
    takeOptions(answer)
    return !character.postsOptions || (await call(`/iclock/cdata?${sn}&table=options`, facts(","))) !== null
  }

  const upload = async (): Promise<boolean> => {
    while (transfers && memory.unsent.length > 0) {
      const batch = memory.unsent.slice(0, BATCH_LINES)
      const body = `${batch.join("\n")}\n`
      if (powerFails) {
        powerFails = false
        recheck = true
        results = []
        await call(`/iclock/cdata?${sn}&${character.punchQuery(0)}`, body, { ...NO_MISHAP, cutAfter: body.length >> 1 })
        log("power failed")
        return false
      }
      const answer = await call(`/iclock/cdata?${sn}&${character.punchQuery(stampOf(batch.at(-1) ?? ""))}`, body)
      if (answer === null || !answer.includes("OK")) return false
      memory.unsent.splice(0, batch.length)
      save()
      log(`server took ${batch.length} punches: ${answer.trim()}`)
      if (character.sendsPhotos && !(await sendPhoto(batch.at(-1) ?? ""))) return false
    }
    return true
  }

  const sendPhoto = async (line: string): Promise<boolean> => {
    const pin = line.split("\t")[0] ?? ""
    const head = `PIN=${timeOf(line).replace(/\D/g, "")}-${pin}.jpg\nSN=${options.serial}\nsize=${JPEG.length}\nCMD=uploadphoto\0`
    const photo = await call(`/iclock/cdata?${sn}&table=ATTPHOTO&Stamp=9999`, Buffer.concat([Buffer.from(head), JPEG]))
    const template = `BIODATA Pin=${pin}\tNo=0\tIndex=0\tValid=1\tDuress=0\tType=9\tMajorVer=5\tMinorVer=8\tFormat=0\tTmp=AAAA=\n`
    return photo !== null && (await call(`/iclock/cdata?${sn}&table=BIODATA&Stamp=9999`, template)) !== null
  }

  const execute = (order: Order): { readonly code: number; readonly facts: string } => {
    switch (order.kind) {
      case "store": {
        const { user } = order
        if (user.pin === "") return { code: -1, facts: "" }
        const isNew = !memory.users.some((other) => other.pin === user.pin)
        if (isNew && memory.users.length >= (options.capacity ?? Number.POSITIVE_INFINITY)) return { code: character.isAccess ? -1001 : 8, facts: "" }
        memory.users = [...memory.users.filter((other) => other.pin !== user.pin), user]
        save()
        log(`user ${user.pin} ${user.name} stored`)
        return { code: 0, facts: "" }
      }
      case "authorize":
        if (!memory.users.some((user) => user.pin === order.pin)) return { code: -1, facts: "" }
        authorized.add(order.pin)
        return { code: 0, facts: "" }
      case "remove":
        memory.users = memory.users.filter((other) => other.pin !== order.pin)
        authorized.delete(order.pin)
        save()
        log(`user ${order.pin} removed`)
        return { code: 0, facts: "" }
      case "recheck":
      case "reboot":
        recheck = true
        return { code: character.readsDigits && order.kind === "recheck" ? -1002 : 0, facts: "" }
      case "clear log":
        memory.log = []
        save()
        log("records cleared")
        return { code: 0, facts: "" }
      case "facts":
        return { code: 0, facts: character.isAccess ? "" : `${facts("\n")}\n` }
      case "unknown":
        return { code: order.code, facts: "" }
      default:
        return { code: 0, facts: "" }
    }
  }

  /** Answers of several lines go alone, the others together. */
  const postResults = async (): Promise<boolean> => {
    if (character.resultsByGet) {
      for (const { id, code } of results.filter((result) => result.facts === "")) {
        if ((await call(`/iclock/devicecmd?${sn}&ID=${id}&Return=${code}&CMD=DATA`)) === null) return false
        results = results.filter((result) => result.id !== id)
      }
    }
    const lineOf = (result: (typeof results)[number]): string => `ID=${result.id}&Return=${result.code}&CMD=${result.word}\n${result.facts}`
    const short = results.filter((result) => result.facts === "")
    for (const post of [
      ...(short.length === 0 ? [] : [short.map(lineOf).join("")]),
      ...results.filter((result) => result.facts !== "").map(lineOf),
    ]) {
      if ((await call(`/iclock/devicecmd?${sn}`, post)) === null) return false
    }
    results = []
    return true
  }

  /** What is asked for comes as an upload of its own, before the command's result. */
  const report = async (order: Order, id: string): Promise<boolean> => {
    const isPunches = order.kind === "report punches"
    const lines =
      order.kind === "report users"
        ? memory.users.filter((user) => order.pin === "" || user.pin === order.pin).map((user) => `${character.userLine(user)}\n`)
        : order.kind === "report punches"
          ? memory.log.filter((line) => timeOf(line) >= order.from && timeOf(line) <= order.to).map((line) => `${line}\n`)
          : []
    if (order.kind === "facts" && character.isAccess)
      return (await call(`/iclock/querydata?${sn}&type=options&cmdid=${id}&tablename=options&count=1&packcnt=1&packidx=1`, facts(","))) !== null
    for (let at = 0; at < lines.length; at += BATCH_LINES) {
      const body = lines.slice(at, at + BATCH_LINES).join("")
      const query = isPunches ? character.punchQuery(0) : character.userQuery
      const path =
        character.isAccess && !isPunches
          ? `/iclock/querydata?${sn}&type=tabledata&cmdid=${id}&tablename=user&count=${lines.length}&packcnt=1&packidx=1`
          : `/iclock/cdata?${sn}&${query}`
      const answer = await call(path, body)
      if (answer === null || !/OK|^user=/.test(answer)) return false
    }
    return true
  }

  const poll = async (isFirst: boolean): Promise<boolean> => {
    const info = isFirst && character.postsOptions ? `&INFO=${character.firmware},${memory.users.length},0,${memory.log.length},127.0.0.1` : ""
    if (!(await postResults())) return false
    const answer = await call(`/iclock/getrequest?${sn}${info}`)
    if (answer === null || answer === "") return false
    const commands = answer.split(/\r?\n/).filter((line) => line.startsWith("C:"))
    if (commands.length === 0) return true
    for (const line of commands) {
      const match = /^C:([^:]+):(.*)$/.exec(line)
      if (match === null) continue
      const [, id = "", command = ""] = match
      const order = character.understand(command)
      if (!(await report(order, id))) return false
      const { code, facts: told } = execute(order)
      results.push({ id, code, word: command.split(" ")[0] ?? "", facts: told })
    }
    if (!(await postResults())) return false
    return recheck || poll(false)
  }

  const sleep = (seconds: number): Promise<void> =>
    new Promise((resolve) => {
      const timer = setTimeout(resolve, poked ? 0 : seconds * 1000)
      nudge = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  /** Now instead of at the next poll; also when the loop is busy at the moment. */
  const poke = (): void => {
    poked = true
    nudge?.()
  }

  const loop = async (): Promise<void> => {
    let isFirst = true
    while (running) {
      poked = false
      if (!online || recheck) {
        recheck = false
        const before = online
        online = await handshake()
        if (online && !before) log("online")
        isFirst = true
      }
      if (online) {
        online = (await upload()) && (await poll(isFirst))
        isFirst = false
        if (!online) log("offline")
      }
      if (running) await sleep(online ? (options.interval ?? delay) : (options.interval ?? errorDelay))
    }
  }
  const ended = loop()

  return {
    punch: (pin, time, status = 0, verify = 1) => {
      const punch: Punch = { pin, time: time ?? wallClock(), status, verify, index: ++memory.punches }
      const line = character.punchLine(punch)
      memory.unsent.push(line)
      memory.log.push(line)
      save()
      poke()
    },
    users: () => memory.users,
    authorized: () => authorized,
    unsent: () => memory.unsent.length,
    stored: () => memory.log.length,
    online: () => online,
    clock: wallClock,
    cut: () => {
      plugged = false
      for (const wire of wires) wire.destroy()
    },
    restore: () => {
      plugged = true
      poke()
    },
    enter: (user) => {
      memory.users = [...memory.users.filter((other) => other.pin !== user.pin), user]
      save()
    },
    wipe: () => {
      memory.users = []
      recheck = true
      save()
      poke()
    },
    failNextUpload: () => {
      powerFails = true
    },
    resend: () => {
      memory.unsent = [...memory.log]
      save()
      poke()
    },
    stop: async () => {
      running = false
      for (const wire of wires) wire.destroy()
      poke()
      await ended
    },
  }
}
