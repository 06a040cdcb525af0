/**
 * START_REPLICATION as batches of raw messages. The library opens the session and writes the positions; what is confirmed is
 * decided here alone: its own acknowledging is off, one object serves one connection, and the status timer repeats the last
 * position that the caller declared durable. The messages are cut out of the socket here, for an event and a promise for each
 * of them cost more than all the rest. `take` hands over everything that arrived while the caller was busy; a full buffer
 * pauses the socket.
 */
import type { Socket } from "node:net"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { LogicalReplicationService, Wal2JsonPlugin } from "pg-logical-replication"
import { type Lsn, printLsn } from "../model/lsn.ts"
import { streamOptions } from "./address.ts"
import { Frames } from "./frames.ts"
import { CONTENT_AT, type Message, type MessageForm, Messages, POSITION_AT } from "./messages.ts"
import { HUB_PATH, SESSION } from "./settings.ts"

/** Messages and bytes that may wait for the caller before the socket is paused. */
export const MAX_BUFFERED = 16_384
export const MAX_BUFFERED_BYTES = 2 * 1024 * 1024
/**
 * So much that nobody has taken says that more stands in line: then the socket rests for a moment, so that the
 * walsender need not wake this process for each message. Under less load nothing ever waits.
 */
const BUSY_BYTES = 16 * 1024
const REST_MS = 2
/** What stands in line comes within this, a rest included. */
const MOMENT_MS = 2 * REST_MS
/** Well under wal_sender_timeout (60 s unless changed). */
const STATUS_INTERVAL_MS = 5_000
/** After no byte for this long, though the socket is read, it is asked whether the line is dead. */
const SILENCE_MS = 25_000

/** `busy`: another consumer holds the slot. */
export class WalStopped extends Data.TaggedError("WalStopped")<{
  readonly slot: string
  readonly busy: boolean
  readonly sqlstate: string
  readonly routine?: string
  readonly message: string
}> {}

export interface WalBatch {
  /** As the plugin wrote them: bytes of text, or one character per byte. */
  readonly messages: ReadonlyArray<Message>
  /** Which of them are commits, with the byte after the commit's record: the position up to which the slot may be told. */
  readonly commits: ReadonlyArray<{ readonly index: number; readonly lsn: Lsn }>
  /** A keepalive position when nothing else came: then there is no message. */
  readonly keepalive: Lsn | null
}

export interface WalReader {
  /** Whether the plugin took the optional options. */
  readonly tookOptional: boolean
  /** At least one message, or a keepalive position. */
  readonly take: Effect.Effect<WalBatch, WalStopped>
  /** Whether a moment brings at least so many messages, and a commit among them; they stay for `take`. */
  readonly brings: (messages: number) => Effect.Effect<boolean>
  /** Declares everything before this position durable and tells Postgres at the next occasion. Never moves back. */
  readonly confirm: (durable: Lsn) => Effect.Effect<void>
}

export interface WalOptions {
  readonly url: string
  readonly slot: string
  /** Durable position: decoding goes on from here. */
  readonly from: Lsn
  readonly plugin: PluginOptions
  /** Asked after a long silence: true when the line is dead; false when the walsender is only busy with what is not for us. */
  readonly isDead: Effect.Effect<boolean>
}

type Pairs = ReadonlyArray<readonly [name: string, value: string]>

export interface PluginOptions {
  /** Options by the plugin's own names. */
  readonly required: Pairs
  /** Wanted, but unknown to older versions of the plugin: then the stream starts without them. */
  readonly optional: Pairs
  readonly form: MessageForm
}

/** What the library's client is to us once it is connected. */
interface Session {
  readonly query: (sql: string) => Promise<unknown>
  readonly connection: { readonly stream: Socket }
}

/** Starts the stream with our options, when the session stands and nothing is under way on it. */
class Start extends Wal2JsonPlugin {
  tookOptional = true
  readonly #options: PluginOptions
  readonly #onSession: (socket: Socket) => void
  constructor(options: PluginOptions, onSession: (socket: Socket) => void) {
    super({})
    this.#options = options
    this.#onSession = onSession
  }
  override async start(client: Session, slot: string, lsn: string): Promise<unknown> {
    this.#onSession(client.connection.stream)
    const { required, optional } = this.#options
    const begin = (pairs: Pairs): Promise<unknown> => {
      const options = pairs.map(([name, value]) => `"${name}" '${value.replaceAll("'", "''")}'`).join(", ")
      return client.query(`START_REPLICATION SLOT "${slot.replaceAll('"', '""')}" LOGICAL ${lsn} (${options})`)
    }
    if (optional.length === 0) return begin(required)
    try {
      return await begin([...required, ...optional])
    } catch (cause) {
      // The session outlives the refusal and has let go of the slot.
      if (!optional.some(([name]) => (cause as Error).message?.includes(`option "${name}"`))) throw cause
      this.tookOptional = false
      return begin(required)
    }
  }
}

const COPY_DATA = 100
const XLOG_DATA = 119
const KEEPALIVE = 107
const RESPOND_AT = POSITION_AT + 16

export const openWal = (options: WalOptions): Effect.Effect<WalReader, WalStopped, Scope.Scope> =>
  Effect.gen(function* () {
    const messages = new Messages(options.plugin.form)
    let keepalive: Lsn | null = null
    let stopped: WalStopped | null = null
    let wake: (() => void) | null = null
    let socket: Socket | null = null
    let isFull = false
    let resting: ReturnType<typeof setTimeout> | null = null
    let durable = options.from
    let lastByteAt = performance.now()
    /** Bytes of a piece: as many as are read at once when there are more. */
    let largest = BUSY_BYTES

    const notify = (): void => {
      const waiting = wake
      wake = null
      waiting?.()
    }
    const stop = (error: WalStopped): void => {
      stopped ??= error
      notify()
    }
    const toStopped = (cause: unknown): WalStopped => {
      const { code, routine = "", message } = cause as { code?: string; routine?: string; message?: string }
      return new WalStopped({ slot: options.slot, busy: code === "55006", sqlstate: code ?? "", routine, message: message ?? String(cause) })
    }

    const service = yield* Effect.acquireRelease(
      Effect.sync(
        () =>
          new LogicalReplicationService(
            {
              ...streamOptions(options.url),
              application_name: "schoolbus stream",
              keepAlive: true,
              options: Object.entries({ ...SESSION, search_path: HUB_PATH })
                .map(([name, value]) => `-c ${name}=${value.replaceAll(" ", "\\ ")}`)
                .join(" "),
            },
            { acknowledge: { auto: false, timeoutSeconds: 0 } },
          ),
      ),
      (running) =>
        Effect.promise(async () => {
          running.removeAllListeners()
          running.on("error", () => undefined)
          await Promise.race([running.destroy(), new Promise((done) => setTimeout(done, 2_000))])
        }).pipe(Effect.ignoreCause),
    )

    // The library adds one to what it is given: the position reported is exactly `durable`.
    const report = (): void => {
      if (durable > 0n && !service.isStop()) void service.acknowledge(printLsn(durable - 1n)).catch(() => undefined)
    }

    const takeKeepalive = (piece: Buffer, start: number): void => {
      keepalive = piece.readBigUInt64BE(start + POSITION_AT)
      if (piece[start + RESPOND_AT] === 1) report()
    }
    const flow = (): void => {
      if (isFull || resting !== null) return
      lastByteAt = performance.now()
      socket?.resume()
    }
    const read = (from: Socket): void => {
      socket = from
      // What is no message of the stream stays the library's business.
      const others = from.listeners("data") as Array<(bytes: Buffer) => void>
      from.removeAllListeners("data")
      const frames = new Frames((piece, start, end) => {
        const content = piece[start] === COPY_DATA ? piece[start + CONTENT_AT] : 0
        if (content === XLOG_DATA) messages.add(piece, start, end)
        else if (content === KEEPALIVE) takeKeepalive(piece, start)
        else for (const other of others) other(Buffer.from(piece.subarray(start, end)))
      })
      from.on("data", (piece: Buffer) => {
        lastByteAt = performance.now()
        largest = Math.max(largest, piece.length)
        frames.push(piece)
        messages.close()
        if (messages.all.length >= MAX_BUFFERED || messages.bytes >= MAX_BUFFERED_BYTES) {
          isFull = true
          from.pause()
        } else if (resting === null && messages.bytes >= BUSY_BYTES && piece.length < largest) {
          from.pause()
          resting = setTimeout(() => {
            resting = null
            flow()
          }, REST_MS)
        }
        if (messages.all.length > 0 || keepalive !== null) notify()
      })
    }
    service.on("error", (cause: unknown) => stop(toStopped(cause)))

    const isSilent = (): boolean => !isFull && performance.now() - lastByteAt > SILENCE_MS
    const watch = async (): Promise<void> => {
      if (!isSilent() || !(await Effect.runPromise(options.isDead))) return
      const message = `no byte from Postgres for ${SILENCE_MS / 1000} s`
      stop(new WalStopped({ slot: options.slot, busy: false, sqlstate: "", message }))
    }
    yield* Effect.acquireRelease(
      Effect.sync(() =>
        setInterval(() => {
          report()
          void watch()
        }, STATUS_INTERVAL_MS),
      ),
      (timer) => Effect.sync(() => clearInterval(timer)),
    )

    const plugin = new Start(options.plugin, read)
    yield* Effect.callback<void, WalStopped>((started) => {
      service.once("start", () => started(Effect.void))
      service.subscribe(plugin, options.slot, printLsn(options.from)).then(
        () => {
          const ended = new WalStopped({ slot: options.slot, busy: false, sqlstate: "", message: "Postgres ended the stream" })
          stop(ended)
          started(Effect.fail(ended))
        },
        (cause: unknown) => {
          const error = toStopped(cause)
          stop(error)
          started(Effect.fail(error))
        },
      )
    })

    const take: WalReader["take"] = Effect.callback((give) => {
      const hand = (): void => {
        if (stopped !== null) {
          give(Effect.fail(stopped))
          return
        }
        if (messages.all.length === 0 && keepalive === null) {
          wake = hand
          return
        }
        const taken = { keepalive: messages.all.length === 0 ? keepalive : null, ...messages.take() }
        keepalive = null
        isFull = false
        flow()
        give(Effect.succeed(taken))
      }
      hand()
      return Effect.sync(() => {
        wake = null
      })
    })

    const brings: WalReader["brings"] = (least) =>
      Effect.callback((answer) => {
        const timer = setTimeout(() => {
          wake = null
          answer(Effect.succeed(false))
        }, MOMENT_MS)
        const look = (): void => {
          if (stopped === null && (messages.all.length < least || messages.commits.length === 0)) {
            wake = look
            return
          }
          clearTimeout(timer)
          answer(Effect.succeed(stopped === null))
        }
        look()
        return Effect.sync(() => {
          clearTimeout(timer)
          wake = null
        })
      })

    return {
      tookOptional: plugin.tookOptional,
      take,
      brings,
      confirm: (position) =>
        Effect.sync(() => {
          if (position <= durable) return
          durable = position
          report()
        }),
    }
  })
