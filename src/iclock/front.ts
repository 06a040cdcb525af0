/**
 * The port that terminals call, on `node:net`: a runtime's own HTTP server refuses requests that firmware really makes (a
 * space in the query, bare LF, no Host) and writes header names that firmware does not find. One request per connection.
 * A sender that is not admitted is answered before its body is read; a body over the limit ends the connection unanswered.
 */
import { createServer, type Socket } from "node:net"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Libsql } from "../libsql/client.ts"
import type { Devices } from "./devices.ts"
import { CONTINUE, type Head, type IclockAnswer, MAX_BODY_BYTES, readChunks, readHead, writeAnswer } from "./http.ts"
import { parseRequest } from "./request.ts"
import type { Commands } from "./queue.ts"
import { type Admitted, admit, exchange } from "./routes.ts"

/** Without a byte from the sender for so long, the connection ends. */
const IDLE_MS = 60_000
/** A refused sender may finish what it is writing, so that it can read the answer. */
const LINGER_MS = 2_000
const MAX_CONNECTIONS = 2_000

export class IclockPortTaken extends Data.TaggedError("IclockPortTaken")<{ readonly port: number; readonly message: string }> {}

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
  }
}

type Run = <A>(effect: Effect.Effect<A, never, Devices | Commands | Libsql>) => Promise<A>

/** Not stored, so not acknowledged: the terminal keeps its records and sends them again. */
const guarded = <A>(
  effect: Effect.Effect<A | IclockAnswer, unknown, Devices | Commands | Libsql>,
): Effect.Effect<A | IclockAnswer, never, Devices | Commands | Libsql> =>
  Effect.catchCause(effect, (cause) => Effect.as(Effect.logError("iclock", cause), { status: 503, text: "not stored: try again" }))

const converse = (socket: Socket, run: Run): void => {
  const address = (socket.remoteAddress ?? "").replace(/^::ffff:/, "")
  const inbox = makeInbox()
  let head: Head | null = null
  let admitted: Admitted | null = null
  let isEnded = false
  let state: "reading" | "deciding" | "done" = "reading"

  const reply = async (answer: IclockAnswer): Promise<void> => {
    state = "done"
    if (socket.destroyed) return
    socket.end(writeAnswer(answer, await run(Clock.currentTimeMillis)))
    setTimeout(() => socket.destroy(), LINGER_MS).unref()
  }

  /** The whole body, when it is here; `"drop"`: it never will be. */
  const bodyOf = (now: Head): Uint8Array | "more" | "drop" => {
    const received = inbox.size() - now.bodyAt
    if (received > MAX_BODY_BYTES || (typeof now.length === "number" && now.length > MAX_BODY_BYTES)) return "drop"
    if (typeof now.length === "number") {
      return received >= now.length ? inbox.bytes().subarray(now.bodyAt, now.bodyAt + now.length) : isEnded ? "drop" : "more"
    }
    if (now.length === null) return isEnded ? inbox.bytes().subarray(now.bodyAt) : "more"
    // Chunks end with an empty one; only then is it worth looking.
    const isMaybeWhole = Buffer.from(inbox.bytes().subarray(-8)).includes("0\r\n")
    const body = isMaybeWhole || isEnded ? readChunks(inbox.bytes().subarray(now.bodyAt)) : "more"
    return body === "bad" || (body === "more" && isEnded) ? "drop" : body
  }

  const advance = async (): Promise<void> => {
    if (state !== "reading") return
    if (head === null) {
      const read = readHead(inbox.bytes())
      if (read === "more") return isEnded ? void socket.destroy() : undefined
      if (read === "bad") return reply({ status: 400, text: "not understood" })
      head = read
    }
    const request = parseRequest(head.method, head.path, head.search)
    if (admitted === null) {
      state = "deciding"
      const decided = await run(guarded(admit(request, address)))
      if ("status" in decided) return reply(decided)
      admitted = decided
      if (head.expectsContinue) socket.write(CONTINUE)
      state = "reading"
    }
    const body = bodyOf(head)
    if (body === "more") return
    if (body === "drop") return void socket.destroy()
    state = "deciding"
    return reply(await run(guarded(exchange(admitted, request, body))))
  }

  socket.setTimeout(IDLE_MS, () => socket.destroy())
  socket.on("error", () => socket.destroy())
  socket.on("data", (chunk) => {
    // What comes after a refusal is read and forgotten.
    if (state === "done") return
    inbox.add(chunk as Uint8Array)
    if (inbox.size() > MAX_BODY_BYTES * 2) socket.destroy()
    else void advance()
  })
  socket.on("end", () => {
    isEnded = true
    void advance()
  })
}

/** Listens until the scope closes; the port that it got. Port 0 takes a free one. */
export const listenIclock = (options: {
  readonly port: number
  readonly host: string
}): Effect.Effect<{ readonly port: number }, IclockPortTaken, Scope.Scope | Devices | Commands | Libsql> =>
  Effect.gen(function* () {
    const run = Effect.runPromiseWith(yield* Effect.context<Devices | Commands | Libsql>())
    const sockets = new Set<Socket>()
    const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
      sockets.add(socket)
      socket.on("close", () => sockets.delete(socket))
      converse(socket, run)
    })
    server.maxConnections = MAX_CONNECTIONS
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
          for (const socket of sockets) socket.destroy()
        }),
    )
    const address = server.address()
    return { port: typeof address === "object" && address !== null ? address.port : options.port }
  })
