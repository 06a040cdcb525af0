/**
 * Who calls on the link: the school that the key says, with the file that shows the right token. Unknown, malformed and
 * revoked keys get one answer; nothing in a request says who the school is.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { z } from "zod"
import { elapsedMs } from "../elapsed.ts"
import type { SchoolKey } from "../down/enrolled.ts"
import type * as Context from "effect/Context"
import { Feed } from "../down/feed.ts"
import type { Reader } from "../down/readers.ts"
import type { LibsqlError } from "../libsql/client.ts"
import { keyMatches, parseKey } from "../link/keys.ts"
import type { ProblemCode } from "../link/protocol.ts"
import { judgeToken, type TokenState } from "../link/token.ts"
import { problem } from "./server.ts"

/** An answer that ends the request early. */
export class Answer extends Data.TaggedError("Answer")<{ readonly respond: () => Response }> {}

export const refuse = (
  status: number,
  code: ProblemCode,
  title: string,
  detail: string,
  extra: Readonly<Record<string, unknown>> = {},
  headers: Readonly<Record<string, string>> = {},
): Answer => new Answer({ respond: () => problem(status, code, title, detail, extra, headers) })

/** What a request says, as the schema wants it; else throws 422, which names where it is wrong and repeats nothing. */
export const parse = <S extends z.ZodType>(schema: S, value: unknown): z.infer<S> => {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const errors = result.error.issues.map((issue) => ({ path: `/${issue.path.map(String).join("/")}`, message: issue.message }))
  throw refuse(422, "invalid", "Invalid input", "the request is not as the protocol says", { errors })
}

/** The same as an Effect. */
export const parsed = <S extends z.ZodType>(schema: S, value: unknown): Effect.Effect<z.infer<S>, Answer> =>
  Effect.try({ try: () => parse(schema, value), catch: (cause) => cause as Answer })

export const queryOf = (request: Request): Readonly<Record<string, string>> => Object.fromEntries(new URL(request.url).searchParams)

/** The same caller is not written into the log more often than this. */
const LOG_EVERY_MS = 60_000
const LOGGED_MAX = 1000
const logged = new Map<string, number>()

const logOnce = (text: string): Effect.Effect<void> =>
  Effect.gen(function* () {
    const now = yield* elapsedMs
    if (now - (logged.get(text) ?? Number.NEGATIVE_INFINITY) < LOG_EVERY_MS) return
    if (logged.size >= LOGGED_MAX) logged.clear()
    logged.set(text, now)
    yield* Effect.logWarning(text)
  })

const fault = (id: string | null, key: SchoolKey | null, matches: boolean): string | null =>
  id === null
    ? "without a readable key"
    : key === null
      ? `with the unknown key ${id}`
      : !matches
        ? `with a wrong secret for key ${id} of school ${key.school}`
        : key.revoked
          ? `with the revoked key ${id} of school ${key.school}`
          : null

const shownKey = (request: Request) => parseKey(/^Bearer +(\S+)$/i.exec(request.headers.get("authorization") ?? "")?.[1] ?? "")

/** Of a request that `authenticate` has let through. */
export const keyIdOf = (request: Request): string => shownKey(request)?.id ?? ""

/** The same as a plain call; null: `authenticate` says why not. */
export const callerOf = (feed: Context.Service.Shape<typeof Feed>, request: Request): SchoolKey | null => {
  const shown = shownKey(request)
  const key = shown === null ? null : feed.keyNow(shown.id)
  return fault(shown?.id ?? null, key, keyMatches(shown?.secret ?? "", key?.hash ?? "")) === null ? key : null
}

/** The school behind the key. While the hub does not hold all keys yet, an unknown one is told to come back. */
export const authenticate = (request: Request): Effect.Effect<SchoolKey, Answer, Feed> =>
  Effect.gen(function* () {
    const feed = yield* Feed
    const parsed = shownKey(request)
    const key = parsed === null ? null : yield* feed.key(parsed.id)
    // An unknown key costs the same comparison as a known one.
    const matches = keyMatches(parsed?.secret ?? "", key?.hash ?? "")
    const wrong = fault(parsed?.id ?? null, key, matches)
    if (wrong === null && key !== null) return key
    if (parsed !== null && key === null && !(yield* feed.ready)) return yield* loading
    yield* logOnce(`a request to the link ${wrong} was refused`)
    return yield* refuse(
      401,
      "unauthorized",
      "Unknown key",
      "the key is unknown or revoked; head office can make a new one: schoolbus schools rotate-key",
      {},
      {
        "www-authenticate": 'Bearer realm="schoolbus"',
      },
    )
  })

/** In the words of `authenticate`; of a key that has become right meanwhile the node calls again. */
export const refuseCaller = (request: Request): Effect.Effect<never, Answer, Feed> =>
  Effect.flatMap(authenticate(request), () => Effect.fail(sayHello))

export const loading: Answer = refuse(
  503,
  "loading",
  "Not ready yet",
  "the first copy of Postgres into the hub is under way",
  {},
  { "retry-after": "2" },
)

/** What depends on the tables waits until this process has read them from Postgres: until then it would know none. */
export const knowsTables: Effect.Effect<void, Answer, Feed> = Effect.gen(function* () {
  const feed = yield* Feed
  if ((yield* feed.tables).length === 0)
    return yield* refuse(503, "loading", "Not ready yet", "the hub does not read from Postgres yet; its status says why", {}, { "retry-after": "1" })
})

export const paused: Answer = refuse(403, "paused", "Paused", "head office has paused this school; it goes on with: schoolbus schools resume")

export const tokenState = (reader: Reader): TokenState => ({
  number: reader.token,
  secret: reader.secret,
  secretLast: reader.secret_last,
  shown: reader.shown === 1,
})

/** Only sent by a live file that another copy has overtaken, or by one that was put back. Head office sees it as the school's own word. */
export const refuseCopy = (reader: Reader, isOlder: boolean): Effect.Effect<never, Answer, Feed> =>
  Effect.gen(function* () {
    const [code, title, detail] = isOlder
      ? ([
          "restored",
          "An older copy of this school's file",
          "the hub has seen a newer state of this file; give it a new life: start the node once with --new-life",
        ] as const)
      : ([
          "cloned",
          "Two copies of one file",
          "another copy of this school's file is in contact; stop one of the two, and start the other once with --new-life",
        ] as const)
    yield* logOnce(`school ${reader.school}: ${isOlder ? "an older copy" : "a second copy"} of file ${reader.incarnation} was refused`)
    // No sign of life: another file of the school that is in contact counts.
    const { tell } = (yield* Feed).reader
    tell(reader.incarnation, reader.seen_at, { pending: reader.pending, status: JSON.stringify({ state: "stuck", reason: `${title}: ${detail}` }) })
    return yield* refuse(409, code, title, detail)
  })

export const sayHello: Answer = refuse(
  409,
  "hello",
  "Say hello first",
  "this hub does not know the file, or was restarted; the node says hello again by itself",
)

/** The file behind a request after hello. Its cursor tells a copy that was put back from one that runs beside. */
export const identify = (
  key: SchoolKey,
  shown: { readonly incarnation: string; readonly token: string; readonly epoch?: string; readonly seq?: number },
): Effect.Effect<Reader, Answer | LibsqlError, Feed> =>
  Effect.gen(function* () {
    yield* knowsTables
    const feed = yield* Feed
    const reader = yield* feed.reader.get(shown.incarnation)
    if (reader === null || reader.school !== key.school) return yield* sayHello
    switch (judgeToken(tokenState(reader), shown.token)) {
      case "newest":
        if (reader.shown !== 1) yield* feed.reader.seen(shown.incarnation, { shown: 1 })
        return reader
      case "repeated":
        return reader
      case "ahead":
        return yield* sayHello
      case "wrong":
        return yield* refuseCopy(reader, shown.epoch === reader.epoch && (shown.seq ?? 0) < reader.seq)
    }
  })
