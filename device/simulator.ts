/**
 * An attendance terminal that can be run without owning one. It keeps its own users and unsent punches, speaks HTTP/1.1 as
 * such terminals do (device/README.md), retries, and gives up a punch only when the server has said OK to it.
 *
 *     bun device/simulator.ts --server http://127.0.0.1:4490 --serial SIM0000001 [--data FILE] [--interval SECONDS]
 *
 * On a terminal it reads commands: `punch 1201`, `users`, `unsent`, `quit`.
 */
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs"
import { connect, type Socket } from "node:net"
import { createInterface } from "node:readline"
import { parseArgs } from "node:util"

export interface TerminalUser {
  readonly pin: string
  readonly name: string
  readonly card: string
}

export interface TerminalOptions {
  /** `http://127.0.0.1:4490`; always plain HTTP. */
  readonly server: string
  readonly serial: string
  /** Keeps users, unsent punches and stamps over a restart. */
  readonly data?: string
  /** Seconds between polls, also after a failure; the server's Delay and ErrorDelay when absent. */
  readonly interval?: number
  /** Whom it holds when it is new here. */
  readonly users?: ReadonlyArray<TerminalUser>
  /** Users that fit in; one more is answered with 8, as firmware does. */
  readonly capacity?: number
  readonly log?: (line: string) => void
}

interface Memory {
  users: Array<TerminalUser>
  /** Lines that the server has not acknowledged. */
  unsent: Array<string>
  /** Every punch ever made. */
  punches: number
}

export interface Terminal {
  /** Records a punch and sends it at once when the server can be reached. `time`: wall clock, `2026-03-03 07:41:09`. */
  readonly punch: (pin: string, time?: string, status?: number, verify?: number) => void
  readonly users: () => ReadonlyArray<TerminalUser>
  readonly unsent: () => number
  /** True after a handshake that the server accepted. */
  readonly online: () => boolean
  /** Pulls the network plug, and puts it back. */
  readonly cut: () => void
  readonly restore: () => void
  readonly stop: () => Promise<void>
}

const TIMEOUT_MS = 10_000
const BATCH_LINES = 100
/** A clock that is off by less is left alone. */
const CLOCK_SLACK_MS = 10_000

interface Answer {
  readonly body: string
  /** The `Date` header, ms since 1970: where the terminal takes its clock from. */
  readonly date: number | null
}

/** One request on one connection, as firmware makes it; a 200 answer, or null. */
const exchange = (server: URL, wires: Set<Socket>, method: "GET" | "POST", path: string, body: string): Promise<Answer | null> =>
  new Promise((resolve) => {
    const socket = connect({ host: server.hostname.replace(/^\[|\]$/g, ""), port: Number(server.port || 80) })
    wires.add(socket)
    const chunks: Array<Buffer> = []
    let done = false
    const finish = (answer: Answer | null): void => {
      if (done) return
      done = true
      wires.delete(socket)
      clearTimeout(timer)
      socket.destroy()
      resolve(answer)
    }
    const timer = setTimeout(() => finish(null), TIMEOUT_MS)
    const read = (isEnd: boolean): void => {
      const bytes = Buffer.concat(chunks)
      const end = bytes.indexOf("\r\n\r\n")
      if (end === -1) {
        if (isEnd) finish(null)
        return
      }
      const head = bytes.subarray(0, end).toString("latin1")
      const content = bytes.subarray(end + 4)
      // Letter by letter, as firmware looks for them: another case is not found.
      const length = /^Content-Length: *(\d+)/m.exec(head)?.[1]
      const isWhole = length === undefined ? isEnd : content.length >= Number(length)
      if (!isWhole && !isEnd) return
      // Only this status line counts as success; nothing else does. Without text/plain the clock is not taken.
      const isAccepted = isWhole && /^HTTP\/1\.[01] 200 /.test(head)
      const date = head.includes("text/plain") ? Date.parse(/^Date: *(.*)/m.exec(head)?.[1] ?? "") : Number.NaN
      const body = content.subarray(0, length === undefined ? content.length : Number(length)).toString("utf8")
      finish(isAccepted ? { body, date: Number.isNaN(date) ? null : date } : null)
    }
    socket.on("data", (chunk) => {
      chunks.push(typeof chunk === "string" ? Buffer.from(chunk) : chunk)
      read(false)
    })
    socket.on("end", () => read(true))
    socket.on("error", () => finish(null))
    socket.on("close", () => read(true))
    const bytes = Buffer.from(body, "utf8")
    const lines = [`${method} ${path} HTTP/1.1`, `Host: ${server.host}`, "User-Agent: iClock Proxy/1.09", "Connection: close", "Accept: */*"]
    if (method === "POST") lines.push("Content-Type: text/plain", `Content-Length: ${bytes.length}`)
    socket.write(Buffer.concat([Buffer.from(`${lines.join("\r\n")}\r\n\r\n`, "latin1"), method === "POST" ? bytes : Buffer.alloc(0)]))
  })

/** Firmware finds a field by `key=` and reads to the next TAB. */
const field = (text: string, key: string): string => {
  const at = text.indexOf(`${key}=`)
  return at === -1 ? "" : (text.slice(at + key.length + 1).split("\t")[0] ?? "").trim()
}

export const startTerminal = (options: TerminalOptions): Terminal => {
  const server = new URL(options.server)
  const log = options.log ?? (() => undefined)
  const memory: Memory =
    options.data !== undefined && existsSync(options.data)
      ? (JSON.parse(readFileSync(options.data, "utf8")) as Memory)
      : { users: [...(options.users ?? [])], unsent: [], punches: 0 }
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
  let poked = false
  let nudge: (() => void) | null = null
  /** Results that no server has taken yet; they are posted again until one does. */
  let results: Array<string> = []
  // The wall clock: what the server's Date and TimeZone made of it.
  let clockOffsetMs = 0
  let zoneMinutes = 0

  const wires = new Set<Socket>()
  const call = async (method: "GET" | "POST", path: string, body = ""): Promise<string | null> => {
    const answer = plugged ? await exchange(server, wires, method, path, body) : null
    if (answer?.date != null && Math.abs(answer.date - (Date.now() + clockOffsetMs)) > CLOCK_SLACK_MS) clockOffsetMs = answer.date - Date.now()
    return answer === null ? null : answer.body
  }
  const wallClock = (): string => new Date(Date.now() + clockOffsetMs + zoneMinutes * 60_000).toISOString().slice(0, 19).replace("T", " ")
  const sn = `SN=${options.serial}`

  const handshake = async (): Promise<boolean> => {
    const answer = await call("GET", `/iclock/cdata?${sn}&options=all&language=69&pushver=2.4.1&PushOptionsFlag=1`)
    if (answer === null || !/Stamp|ServerVer/.test(answer)) return false
    for (const line of answer.split(/\r?\n/).slice(0, -1)) {
      const [key, value] = line.split("=")
      if (key === "Delay") delay = Number(value)
      // Below 12 they are hours, above minutes.
      if (key === "TimeZone") zoneMinutes = Math.abs(Number(value)) < 12 ? Number(value) * 60 : Number(value)
      if (key === "ErrorDelay") errorDelay = Math.min(Number(value), options.interval ?? Number(value))
    }
    const facts = `~DeviceName=Simulator,MAC=00:17:61:00:00:01,FWVersion=Ver 6.60 Sim,PushVersion=Ver 2.4.1,UserCount=${memory.users.length},TransactionCount=${memory.punches}`
    return (await call("POST", `/iclock/cdata?${sn}&table=options`, facts)) !== null
  }

  const upload = async (): Promise<boolean> => {
    while (memory.unsent.length > 0) {
      const batch = memory.unsent.slice(0, BATCH_LINES)
      const answer = await call("POST", `/iclock/cdata?${sn}&table=ATTLOG&Stamp=9999`, `${batch.join("\n")}\n`)
      if (answer === null || !answer.includes("OK")) return false
      memory.unsent.splice(0, batch.length)
      save()
      log(`server took ${batch.length} punches: ${answer.trim()}`)
    }
    return true
  }

  const execute = (command: string): { readonly code: number; readonly word: string; readonly facts: string } => {
    const word = command.split(" ")[0] ?? ""
    if (command.startsWith("DATA UPDATE USERINFO ") || command.startsWith("DATA USER ")) {
      const user = { pin: field(command, "PIN"), name: field(command, "Name"), card: field(command, "Card") }
      if (user.pin === "") return { code: -1, word, facts: "" }
      const isNew = !memory.users.some((other) => other.pin === user.pin)
      if (isNew && memory.users.length >= (options.capacity ?? Number.POSITIVE_INFINITY)) return { code: 8, word, facts: "" }
      memory.users = [...memory.users.filter((other) => other.pin !== user.pin), user]
      save()
      log(`user ${user.pin} ${user.name} stored`)
      return { code: 0, word, facts: "" }
    }
    if (command.startsWith("DATA DELETE USERINFO ") || command.startsWith("DATA DEL_USER ")) {
      const pin = field(command, "PIN")
      memory.users = memory.users.filter((other) => other.pin !== pin)
      save()
      log(`user ${pin} removed`)
      return { code: 0, word, facts: "" }
    }
    if (command === "CHECK") {
      recheck = true
      return { code: 0, word, facts: "" }
    }
    if (command === "INFO") {
      return {
        code: 0,
        word,
        facts: `~DeviceName=Simulator\nFWVersion=Ver 6.60 Sim\nUserCount=${memory.users.length}\nTransactionCount=${memory.punches}\n`,
      }
    }
    if (["LOG", "REBOOT", "AC_UNLOCK"].includes(word) || command.startsWith("DATA QUERY USERINFO")) return { code: 0, word, facts: "" }
    return { code: -1002, word, facts: "" }
  }

  /** Answers of several lines go alone, the others together. */
  const postResults = async (): Promise<boolean> => {
    const isLong = (result: string): boolean => result.indexOf("\n") !== result.length - 1
    const short = results.filter((result) => !isLong(result))
    for (const post of [...(short.length === 0 ? [] : [short.join("")]), ...results.filter(isLong)]) {
      if ((await call("POST", `/iclock/devicecmd?${sn}`, post)) === null) return false
    }
    results = []
    return true
  }

  /** What is asked for comes as an upload of its own, before the command's result. */
  const reportUsers = async (pin: string): Promise<boolean> => {
    const lines = memory.users
      .filter((user) => pin === "" || user.pin === pin)
      .map((user) => `USER PIN=${user.pin}\tName=${user.name}\tPri=0\tPasswd=\tCard=${user.card}\tGrp=1\tTZ=0000000100000000\n`)
    for (let at = 0; at < lines.length; at += BATCH_LINES) {
      const answer = await call("POST", `/iclock/cdata?${sn}&table=OPERLOG&OpStamp=9999`, lines.slice(at, at + BATCH_LINES).join(""))
      if (answer === null || !answer.includes("OK")) return false
    }
    return true
  }

  const poll = async (isFirst: boolean): Promise<boolean> => {
    const info = isFirst ? `&INFO=Ver 6.60 Sim,${memory.users.length},0,${memory.punches},127.0.0.1` : ""
    if (!(await postResults())) return false
    const answer = await call("GET", `/iclock/getrequest?${sn}${info}`)
    if (answer === null || answer === "") return false
    const commands = answer.split(/\r?\n/).filter((line) => line.startsWith("C:"))
    if (commands.length === 0) return true
    for (const line of commands) {
      const match = /^C:([^:]+):(.*)$/.exec(line)
      if (match === null) continue
      const command = match[2] ?? ""
      if (command.startsWith("DATA QUERY USERINFO") && !(await reportUsers(field(command, "PIN")))) return false
      const { code, word, facts } = execute(command)
      results.push(`ID=${match[1]}&Return=${code}&CMD=${word}\n${facts}`)
    }
    if (!(await postResults())) return false
    return poll(false)
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
      memory.unsent.push(`${pin}\t${time ?? wallClock()}\t${status}\t${verify}\t0\t0\t0\t`)
      memory.punches++
      save()
      poke()
    },
    users: () => memory.users,
    unsent: () => memory.unsent.length,
    online: () => online,
    cut: () => {
      plugged = false
      for (const wire of wires) wire.destroy()
    },
    restore: () => {
      plugged = true
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

const main = (): void => {
  const { values } = parseArgs({
    options: {
      server: { type: "string" },
      serial: { type: "string" },
      data: { type: "string" },
      interval: { type: "string" },
      help: { type: "boolean", short: "h" },
    },
  })
  const isBad = values.interval !== undefined && !(Number(values.interval) > 0)
  if (isBad || values.help === true || values.server === undefined || values.serial === undefined) {
    process.stderr.write("simulator --server http://127.0.0.1:4490 --serial SIM0000001 [--data FILE] [--interval SECONDS]\n")
    process.exit(values.help === true ? 0 : 64)
  }
  const terminal = startTerminal({
    server: values.server,
    serial: values.serial,
    ...(values.data === undefined ? {} : { data: values.data }),
    ...(values.interval === undefined ? {} : { interval: Number(values.interval) }),
    log: (line) => void process.stdout.write(`${line}\n`),
  })
  const stop = (): void => void terminal.stop().then(() => process.exit(0))
  process.on("SIGTERM", stop).on("SIGINT", stop)
  createInterface({ input: process.stdin }).on("line", (line) => {
    const [word, pin, ...time] = line.trim().split(/\s+/)
    if (word === "punch" && pin !== undefined) terminal.punch(pin, time.length > 0 ? time.join(" ") : undefined)
    else if (word === "users") process.stdout.write(`${JSON.stringify(terminal.users())}\n`)
    else if (word === "unsent") process.stdout.write(`${terminal.unsent()}\n`)
    else if (word === "quit") stop()
  })
}

if (import.meta.main) main()
