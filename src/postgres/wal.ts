/**
 * START_REPLICATION as batches of raw messages. The library carries the bytes; what is confirmed is decided here alone:
 * its own acknowledging is off, one object serves one connection, and the status timer repeats the last position that the
 * caller declared durable. `take` hands over everything that arrived while the caller was busy; a full buffer pauses the socket.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { LogicalReplicationService, Wal2JsonPlugin } from "pg-logical-replication"
import { type Lsn, parseLsn, printLsn } from "../model/lsn.ts"
import { SESSION } from "./client.ts"

/** Messages and bytes that may wait for the caller before the socket is paused. */
export const MAX_BUFFERED = 16_384
export const MAX_BUFFERED_BYTES = 16 * 1024 * 1024
/** Well under wal_sender_timeout (60 s unless changed). */
const STATUS_INTERVAL_MS = 5_000
/** After no byte for this long, though the socket is read, it is asked whether the line is dead. */
const SILENCE_MS = 25_000

/** `busy`: another consumer holds the slot. */
export class WalStopped extends Data.TaggedError("WalStopped")<{
  readonly slot: string
  readonly busy: boolean
  readonly sqlstate: string
  readonly message: string
}> {}

export interface WalMessage {
  /** Of a commit message: the byte after its commit record, so the position up to which the slot may be told. */
  readonly lsn: string
  /** As the plugin wrote it: text, or one character per byte. */
  readonly text: string
}

export interface WalReader {
  /** Whether the plugin took the optional options. */
  readonly tookOptional: boolean
  /** At least one message, or a keepalive position when nothing else came: then `messages` is empty. */
  readonly take: Effect.Effect<{ readonly messages: ReadonlyArray<WalMessage>; readonly keepalive: Lsn | null }, WalStopped>
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
  /** `latin1`: one character per byte. The library's buffer is used again, so a message is copied at once. */
  readonly encoding: "utf8" | "latin1"
}

/** Hands messages over as they are: the library's own parser would round numbers and throw inside the socket. */
class Raw extends Wal2JsonPlugin {
  tookOptional = true
  readonly #options: PluginOptions
  constructor(options: PluginOptions) {
    super({})
    this.#options = options
  }
  override async start(client: { query: (sql: string) => Promise<unknown> }, slot: string, lsn: string): Promise<unknown> {
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
  override parse(bytes: Buffer): never {
    return bytes.toString(this.#options.encoding) as never
  }
}

export const openWal = (options: WalOptions): Effect.Effect<WalReader, WalStopped, Scope.Scope> =>
  Effect.gen(function* () {
    let messages: Array<WalMessage> = []
    let bytes = 0
    let keepalive: Lsn | null = null
    let stopped: WalStopped | null = null
    let wake: (() => void) | null = null
    let resume: (() => void) | null = null
    let durable = options.from
    let lastByteAt = Date.now()

    const notify = (): void => {
      const waiting = wake
      wake = null
      waiting?.()
    }
    const stop = (error: WalStopped): void => {
      stopped ??= error
      notify()
      resume?.()
    }
    const toStopped = (cause: unknown): WalStopped => {
      const { code, message } = cause as { code?: string; message?: string }
      return new WalStopped({ slot: options.slot, busy: code === "55006", sqlstate: code ?? "", message: message ?? String(cause) })
    }

    const service = yield* Effect.acquireRelease(
      Effect.sync(
        () =>
          new LogicalReplicationService(
            {
              connectionString: options.url,
              application_name: "schoolbus stream",
              keepAlive: true,
              options: Object.entries(SESSION)
                .map(([name, value]) => `-c ${name}=${value.replaceAll(" ", "\\ ")}`)
                .join(" "),
            },
            { acknowledge: { auto: false, timeoutSeconds: 0 }, flowControl: { enabled: true } },
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

    service.on("data", (lsn: string, text: string) => {
      lastByteAt = Date.now()
      messages.push({ lsn, text })
      bytes += text.length
      // What else stands in the same piece of the stream comes along.
      if (messages.length === 1) setImmediate(notify)
      if (messages.length < MAX_BUFFERED && bytes < MAX_BUFFERED_BYTES) return undefined
      return new Promise<void>((go) => {
        resume = go
      })
    })
    service.on("heartbeat", (lsn: string, _time: number, shouldRespond: boolean) => {
      lastByteAt = Date.now()
      keepalive = parseLsn(lsn)
      if (shouldRespond) report()
      notify()
    })
    service.on("error", (cause: unknown) => stop(toStopped(cause)))

    const isSilent = (): boolean => resume === null && Date.now() - lastByteAt > SILENCE_MS
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

    const plugin = new Raw(options.plugin)
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
        if (messages.length === 0 && keepalive === null) {
          wake = hand
          return
        }
        const taken = { messages, keepalive: messages.length === 0 ? keepalive : null }
        messages = []
        bytes = 0
        keepalive = null
        const go = resume
        resume = null
        go?.()
        give(Effect.succeed(taken))
      }
      hand()
      return Effect.sync(() => {
        wake = null
      })
    })

    return {
      tookOptional: plugin.tookOptional,
      take,
      confirm: (position) =>
        Effect.sync(() => {
          if (position <= durable) return
          durable = position
          report()
        }),
    }
  })
