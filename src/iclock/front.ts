/**
 * The port that terminals call, on `node:net`: a runtime's own HTTP server refuses requests that firmware really makes (a
 * space in the query, bare LF, no Host) and writes header names that firmware does not find. One request per connection.
 * A sender that is not admitted, and one that announces a body over the limit, is answered before the body is read.
 */
import { createServer, type Socket } from "node:net"
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { elapsedMsOf } from "../elapsed.ts"
import { LibsqlError } from "../libsql/client.ts"
import { sentence } from "../libsql/trouble.ts"
import { Devices } from "./devices.ts"
import { CONTINUE, type Head, type IclockAnswer, isMaybeLastChunk, MAX_BODY_BYTES, readChunks, readHead, writeAnswer } from "./http.ts"
import { type IclockRequest, parseRequest } from "./request.ts"
import { Commands } from "./queue.ts"
import { type Admitted, admit, admitAtOnce, exchange, type IclockServices, pollAtOnce } from "./routes.ts"

/** Without a byte from the sender for so long, the connection ends. */
const IDLE_MS = 60_000
/** The head of a request is here by then; a terminal writes it at once. */
const HEAD_MS = 15_000
/** A whole exchange takes no longer: 1 MB at 16 kbit/s takes nine minutes. */
const EXCHANGE_MS = 600_000
/** A refused sender may finish what it is writing, so that it can read the answer. */
const LINGER_MS = 2_000
const SWEEP_MS = 500
/** Bytes a second of a body, once it has had this long: the slowest line that carries anything brings more. */
const LEAST_RATE = 250
const BODY_GRACE_MS = 60_000
/** A request of a terminal is here by then, unless its line is bad: until then it does not give way to others. */
const YOUNG_MS = 1_000

/** What all senders together may take. Over it the slowest gives way to who comes, so that nobody who is quick finds the door shut. */
export interface FrontLimits {
  readonly connections: number
  /** Also a site behind one address keeps within this; one sender that opens connections for nothing leaves room for others. */
  readonly perAddress: number
  /** Bytes of unfinished bodies. */
  readonly inboxBytes: number
}
const LIMITS: FrontLimits = { connections: 2_000, perAddress: 1_000, inboxBytes: 128 * 1024 * 1024 }

export class IclockPortTaken extends Data.TaggedError("IclockPortTaken")<{ readonly port: number; readonly message: string }> {}

const TOO_LARGE: IclockAnswer = { status: 413, text: "refused: a body of more than 10 MB" }
const NOT_UNDERSTOOD: IclockAnswer = { status: 400, text: "not understood" }

/** Bytes of one connection, joined only when somebody looks. */
const makeInbox = () => {
  let chunks: Array<Uint8Array> = []
  let size = 0
  return {
    add: (chunk: Uint8Array) => {
      chunks.push(chunk)
      size += chunk.length
    },
    size: () => size,
    bytes: (): Uint8Array => {
      if (chunks.length > 1) chunks = [Buffer.concat(chunks)]
      return chunks[0] ?? new Uint8Array()
    },
    clear: () => {
      chunks = []
      size = 0
    },
  }
}

type Run = <A>(effect: Effect.Effect<A, never, IclockServices>) => Promise<A>

interface Desk {
  readonly run: Run
  readonly devices: Context.Service.Shape<typeof Devices>
  readonly commands: Context.Service.Shape<typeof Commands>
  readonly connections: Set<Connection>
  /** Only goes forward. */
  readonly now: () => number
  /** ms since 1970 */
  readonly date: () => number
  readonly limits: FrontLimits
  /** Of all connections. */
  inboxBytes: number
}

interface Connection {
  readonly address: string
  readonly startedAt: number
  lastAt: number
  /** What has come of it. */
  bytes: number
  state: "head" | "body" | "deciding" | "done"
  readonly close: () => void
}

/** Not stored, so not acknowledged: the terminal keeps its records and sends them again. */
const guarded = <A>(effect: Effect.Effect<A | IclockAnswer, unknown, IclockServices>): Effect.Effect<A | IclockAnswer, never, IclockServices> =>
  Effect.catchCause(effect, (cause) => {
    const error = Option.getOrNull(Cause.findErrorOption(cause))
    const told =
      error instanceof LibsqlError
        ? Effect.logWarning(`what a terminal sent is not stored, it sends it again: ${sentence(error)}`)
        : Effect.logError("iclock", cause)
    return Effect.as(told, { status: 503, text: "not stored: try again" })
  })

const converse = (socket: Socket, desk: Desk): void => {
  const address = (socket.remoteAddress ?? "").replace(/^::ffff:/, "")
  const now = desk.now()
  const inbox = makeInbox()
  const me: Connection = { address, startedAt: now, lastAt: now, bytes: 0, state: "head", close: () => socket.destroy() }
  desk.connections.add(me)
  let head: Head | null = null
  let request: IclockRequest | null = null
  let first: Admitted | null = null
  let admitted: Admitted | null = null
  /** What is known of the sender was found out with the last bytes that came. */
  let isNew = false
  let isEnded = false

  const forget = (): void => {
    desk.inboxBytes -= inbox.size()
    inbox.clear()
  }
  const reply = (answer: IclockAnswer): void => {
    me.state = "done"
    me.lastAt = desk.now()
    forget()
    if (!socket.destroyed) socket.end(writeAnswer(answer, desk.date()))
  }

  /** The whole body, when it is here; `"drop"`: it never will be; an answer: it is not taken. */
  const bodyOf = (of: Head): Uint8Array | "more" | "drop" | IclockAnswer => {
    const received = inbox.size() - of.bodyAt
    if (received > MAX_BODY_BYTES) return TOO_LARGE
    if (typeof of.length === "number") {
      return received >= of.length ? inbox.bytes().subarray(of.bodyAt, of.bodyAt + of.length) : isEnded ? "drop" : "more"
    }
    if (of.length === null) return isEnded ? inbox.bytes().subarray(of.bodyAt) : "more"
    const body = isEnded || isMaybeLastChunk(inbox.bytes()) ? readChunks(inbox.bytes().subarray(of.bodyAt)) : "more"
    if (body === "bad") return NOT_UNDERSTOOD
    return body === "more" && isEnded ? "drop" : body
  }

  const decide = (effect: Effect.Effect<Admitted | IclockAnswer, unknown, IclockServices>): void => {
    me.state = "deciding"
    void desk.run(guarded(effect)).then((decided) => {
      if ("status" in decided) reply(decided)
      else {
        me.state = "body"
        enter(decided)
        advance()
      }
    })
  }
  const enter = (who: Admitted): void => {
    // How it was in touch before is told by its first bytes.
    if (first === null && head?.expectsContinue === true) socket.write(CONTINUE)
    first ??= who
    admitted = { ...first, device: who.device }
    isNew = true
  }

  const advance = (): void => {
    if (me.state === "deciding" || me.state === "done") return
    if (head === null || request === null) {
      const read = readHead(inbox.bytes())
      if (read === "more") {
        if (isEnded) socket.destroy()
        return
      }
      if (read === "bad") {
        reply(NOT_UNDERSTOOD)
        return
      }
      // Said before a byte of it is read.
      if (typeof read.length === "number" && read.length > MAX_BODY_BYTES) {
        reply(TOO_LARGE)
        return
      }
      head = read
      request = parseRequest(head.method, head.path, head.search)
      me.state = "body"
    }
    if (admitted === null) {
      const decided = admitAtOnce(desk.devices, request, address, desk.date())
      if (decided === null) {
        decide(admit(request, address))
        return
      }
      if ("status" in decided) {
        reply(decided)
        return
      }
      enter(decided)
    }
    const body = bodyOf(head)
    if (body === "more") return
    if (body === "drop" || admitted === null) {
      socket.destroy()
      return
    }
    if ("status" in body) {
      reply(body)
      return
    }
    // A body takes its time: what is known of the terminal, and whether it may speak, counts when it is here.
    if (!isNew) {
      admitted = null
      advance()
      return
    }
    const atOnce = body.length === 0 ? pollAtOnce(desk.commands, admitted, request, desk.date()) : null
    if (atOnce === null) decide(exchange(admitted, request, body))
    else reply(atOnce)
  }

  socket.on("error", () => socket.destroy())
  socket.on("close", () => {
    desk.connections.delete(me)
    forget()
    me.state = "done"
  })
  socket.on("data", (chunk) => {
    // What comes after a refusal is read and forgotten.
    if (me.state === "done") return
    me.lastAt = desk.now()
    isNew = false
    me.bytes += chunk.length
    inbox.add(chunk as Uint8Array)
    desk.inboxBytes += chunk.length
    if (inbox.size() > MAX_BODY_BYTES * 2) socket.destroy()
    else advance()
    if (desk.inboxBytes > desk.limits.inboxBytes) largest(desk.connections)?.close()
  })
  socket.on("end", () => {
    isEnded = true
    advance()
  })
}

/** Takes too long: a sender that says nothing, or a byte now and then, does not keep a connection. */
export const isLate = (one: Pick<Connection, "state" | "lastAt" | "startedAt" | "bytes">, now: number): boolean =>
  (one.state !== "deciding" && now - one.lastAt > (one.state === "done" ? LINGER_MS : IDLE_MS)) ||
  (one.state === "head" && now - one.startedAt > HEAD_MS) ||
  (one.state === "body" && one.bytes < ((now - one.startedAt - BODY_GRACE_MS) * LEAST_RATE) / 1000) ||
  now - one.startedAt > EXCHANGE_MS

/** Who brings least for its time and is no newcomer; null: all are new, or have said all that they had to say. */
const slowest = (connections: Iterable<Connection>, now: number): Connection | null => {
  let found: Connection | null = null
  let least = Number.POSITIVE_INFINITY
  for (const one of connections) {
    const age = now - one.startedAt
    if (one.state === "deciding" || age < YOUNG_MS) continue
    const rate = one.state === "done" ? 0 : one.bytes / age
    if (rate < least) [found, least] = [one, rate]
  }
  return found
}

/** Whose unfinished body is largest. */
const largest = (connections: Iterable<Connection>): Connection | null => {
  let found: Connection | null = null
  for (const one of connections) if ((one.state === "head" || one.state === "body") && one.bytes > (found?.bytes ?? 0)) found = one
  return found
}

/** Ends what takes too long. One timer for all: two of each connection would cost more than a poll itself. */
const sweep = (connections: ReadonlySet<Connection>, now: number): void => {
  for (const one of connections) if (isLate(one, now)) one.close()
}

/** Listens until the scope closes; the port that it got. Port 0 takes a free one. */
export const listenIclock = (options: {
  readonly port: number
  readonly host: string
  readonly limits?: FrontLimits
}): Effect.Effect<{ readonly port: number }, IclockPortTaken, Scope.Scope | IclockServices> =>
  Effect.gen(function* () {
    const run = Effect.runPromiseWith(yield* Effect.context<IclockServices>())
    const clock = yield* Clock.Clock
    const [now, date] = [() => elapsedMsOf(clock), () => clock.currentTimeMillisUnsafe()]
    const { limits = LIMITS } = options
    const desk: Desk = { run, now, date, limits, devices: yield* Devices, commands: yield* Commands, connections: new Set(), inboxBytes: 0 }
    /** False: everybody here is as new as who comes. */
    const makeRoom = (address: string): boolean => {
      const { connections } = desk
      const same = connections.size < limits.perAddress ? [] : [...connections].filter((one) => one.address === address)
      const crowd = same.length >= limits.perAddress ? same : connections.size >= limits.connections ? connections : null
      if (crowd === null) return true
      const leaves = slowest(crowd, desk.now())
      if (leaves !== null) connections.delete(leaves)
      leaves?.close()
      return leaves !== null
    }
    const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
      if (makeRoom((socket.remoteAddress ?? "").replace(/^::ffff:/, ""))) converse(socket, desk)
      else socket.destroy()
    })
    yield* Effect.acquireRelease(
      Effect.sync(() => setInterval(() => sweep(desk.connections, desk.now()), SWEEP_MS)),
      (timer) => Effect.sync(() => clearInterval(timer)),
    )
    yield* Effect.acquireRelease(
      Effect.callback<void, IclockPortTaken>((resume) => {
        server.once("error", (error) =>
          resume(
            Effect.fail(
              new IclockPortTaken({
                port: options.port,
                message: `port ${options.port} for terminals cannot be opened: ${error.message}. Choose another one with --iclock-port`,
              }),
            ),
          ),
        )
        server.listen(options.port, options.host, () => resume(Effect.void))
      }),
      () =>
        Effect.callback<void>((resume) => {
          server.close(() => resume(Effect.void))
          for (const one of desk.connections) one.close()
        }),
    )
    const address = server.address()
    return { port: typeof address === "object" && address !== null ? address.port : options.port }
  })
