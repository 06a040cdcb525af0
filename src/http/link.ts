/** The hub's end of the link (link/protocol.ts): hello, manifest, push, heartbeat; pull and stream stand in pull.ts. */
import { createHash, randomBytes } from "node:crypto"
import { join } from "node:path"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { type AnyElysia, Elysia } from "elysia"
import { z } from "zod"
import { Compare } from "../down/compare.ts"
import type { SchoolKey } from "../down/enrolled.ts"
import { Feed } from "../down/feed.ts"
import type { Reader } from "../down/readers.ts"
import type { LibsqlError } from "../libsql/client.ts"
import { BodyFault, inflate, readAll } from "../link/body.ts"
import {
  CompareAsk,
  Heartbeat,
  Hello,
  IDLE_MS,
  MAX_BODY_MS,
  MAX_COMPARE_BYTES,
  MAX_PART_BYTES,
  PROTOCOL,
  type Pulse,
  PushQuery,
  sliceOf,
  type Welcome,
} from "../link/protocol.ts"
import { judgeToken, nextToken, printToken } from "../link/token.ts"
import { isTransient, Postgres, type PostgresError } from "../postgres/client.ts"
import { Apply } from "../up/apply.ts"
import { Calls } from "./calls.ts"
import { type Answer, authenticate, identify, knowsTables, parsed, paused, queryOf, refuse, refuseCopy, tokenState } from "./link-caller.ts"
import { openStreams, pull, stream } from "./pull.ts"
import { answering } from "./server.ts"
import { openUploads, type Uploads } from "./uploads.ts"

/** Pushes that are read or applied at the same time, of all schools; of one school, the rest waits or is sent away. */
const MAX_PUSHES = 32
const MAX_APPLIES = 4
const MAX_PUSHES_OF_SCHOOL = 4
const MAX_JSON_BYTES = 64 * 1024

type Services = Feed | Compare | Apply | Postgres | Calls

const bodyFault = (status: 400 | 422, code: "invalid" | "not_a_batch") => (cause: unknown) =>
  refuse(status, code, "The body could not be read", cause instanceof BodyFault ? cause.message : "the connection broke")

const readBody = (request: Request, maxBytes: number) =>
  Effect.tryPromise({ try: () => readAll(request.body, { maxBytes, idleMs: IDLE_MS, totalMs: MAX_BODY_MS }), catch: bodyFault(400, "invalid") })

const readJson = <S extends z.ZodType>(request: Request, schema: S, maxBytes = MAX_JSON_BYTES) =>
  Effect.gen(function* () {
    const bytes = yield* readBody(request, maxBytes)
    const value = yield* Effect.try({
      try: () => JSON.parse(new TextDecoder().decode(bytes)) as unknown,
      catch: () => refuse(400, "invalid", "Malformed body", "the body is not valid JSON"),
    })
    return yield* parsed(schema, value)
  })

const answerJson = (body: unknown): Response => Response.json(body, { headers: { "cache-control": "no-store" } })

// --- hello ----------------------------------------------------------------------------------------------------------

/** The head of the file's ledger, made at the first hello. null: Postgres is away, and what the hub remembers must do. */
const ledgerHead = (key: SchoolKey, incarnation: string) =>
  Effect.gen(function* () {
    const pg = yield* Postgres
    const rows = yield* pg.tx((session) =>
      Effect.andThen(
        session.execute("INSERT INTO schoolbus.incarnations (id, school) VALUES ($1::text::uuid, $2) ON CONFLICT (id) DO NOTHING", [
          incarnation,
          key.school,
        ]),
        session.query<{ school: string; last_batch: string }>(
          "SELECT school, last_batch::text AS last_batch FROM schoolbus.incarnations WHERE id = $1::text::uuid",
          [incarnation],
        ),
      ),
    )
    return { school: rows[0]?.school ?? key.school, lastBatch: Number(rows[0]?.last_batch ?? 0) }
  })

const firstReader = (incarnation: string, school: string): Reader => ({
  incarnation,
  school,
  token: 0,
  secret: "",
  secret_last: "",
  shown: 1,
  epoch: "",
  seq: 0,
  cut: "0",
  batch: 0,
  pending: null,
  seen_at: 0,
  status: null,
  closed: 0,
})

const hello = (request: Request, hellos: Semaphore.Semaphore) =>
  Effect.gen(function* () {
    const key = yield* authenticate(request)
    yield* knowsTables
    const feed = yield* Feed
    const said = yield* readJson(request, Hello)
    if (said.protocol !== PROTOCOL) {
      const older = said.protocol < PROTOCOL ? "the school's" : "the hub's"
      return yield* refuse(
        426,
        "protocol",
        "Another protocol",
        `this hub speaks protocol ${PROTOCOL}, the school ${said.protocol}; update ${older} schoolbus`,
      )
    }
    const known = yield* feed.reader.get(said.incarnation)
    const ledger = yield* ledgerHead(key, said.incarnation).pipe(
      Effect.catchTag("PostgresError", (error) =>
        known !== null && isTransient(error) ? Effect.succeed({ school: known.school, lastBatch: known.batch }) : Effect.fail(error),
      ),
    )
    if (ledger.school !== key.school || (known !== null && known.school !== key.school)) {
      return yield* refuse(
        409,
        "wrong_school",
        "The file belongs to another school",
        "start the node with the key of the file's school, or with another --data-dir",
      )
    }
    return yield* hellos.withPermit(
      Effect.gen(function* () {
        const reader = (yield* feed.reader.get(said.incarnation)) ?? firstReader(said.incarnation, key.school)
        const tokens = tokenState(reader)
        const isOlder = said.lastBatch < ledger.lastBatch || (said.epoch === reader.epoch && said.seq < reader.seq)
        if (isOlder || judgeToken(tokens, said.token) === "wrong") return yield* refuseCopy(reader, isOlder)
        const next = nextToken(tokens, said.token, randomBytes(16).toString("hex"))
        const now = yield* Clock.currentTimeMillis
        yield* feed.reader.put({
          ...reader,
          token: next.number,
          secret: next.secret,
          secret_last: next.secretLast,
          shown: next.shown ? 1 : 0,
          seen_at: now,
        })
        const welcome: Welcome = {
          school: { id: key.school, name: key.name },
          cluster: yield* feed.cluster,
          epoch: (yield* feed.head).epoch,
          lastBatch: ledger.lastBatch,
          manifest: (yield* feed.manifest(key.school)).version,
          clock: now,
          token: printToken(next.number, next.secret),
          paused: key.paused,
        }
        return answerJson(welcome)
      }),
    )
  })

const manifest = (request: Request) =>
  Effect.gen(function* () {
    const key = yield* authenticate(request)
    const feed = yield* Feed
    const query = yield* parsed(z.object({ incarnation: z.uuid(), token: z.string().max(200) }), queryOf(request))
    yield* identify(key, query)
    return answerJson(yield* feed.manifest(key.school))
  })

// --- push -----------------------------------------------------------------------------------------------------------

interface PushGates {
  readonly uploads: Uploads
  readonly all: Semaphore.Semaphore
  readonly applies: Semaphore.Semaphore
  readonly bySchool: Map<string, { readonly one: Semaphore.Semaphore; count: number }>
}

const notABatch = (detail: string): Answer => refuse(422, "not_a_batch", "Not a batch", detail)
const busy: Answer = refuse(503, "unavailable", "Too many pushes", "try again in a moment", {}, { "retry-after": "2" })

/** One push of a school at a time: what comes twice waits for the first one's answer. */
const inTurn = <A, E, R>(gates: PushGates, school: string, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | Answer, R> =>
  Effect.suspend((): Effect.Effect<A, E | Answer, R> => {
    const gate = gates.bySchool.get(school) ?? { one: Semaphore.makeUnsafe(1), count: 0 }
    if (gate.count >= MAX_PUSHES_OF_SCHOOL) return Effect.fail(busy)
    gates.bySchool.set(school, gate)
    gate.count++
    const leave = Effect.sync(() => {
      gate.count--
      if (gate.count === 0) gates.bySchool.delete(school)
    })
    return Effect.ensuring(gate.one.withPermit(effect), leave)
  })

const inflateSlice = (query: PushQuery, part: number, bytes: Uint8Array): Effect.Effect<Uint8Array, Answer> =>
  Effect.gen(function* () {
    const [start, end] = sliceOf(query.size, part, query.parts)
    const slice = yield* Effect.try({ try: () => inflate(bytes, end - start), catch: bodyFault(422, "not_a_batch") })
    return slice.length === end - start ? slice : yield* notABatch(`part ${part} has ${slice.length} bytes, not ${end - start}`)
  })

/** The whole batch once nothing is missing any more, else what is missing. */
const collect = (uploads: Uploads, query: PushQuery, bytes: Uint8Array) =>
  Effect.gen(function* () {
    if (query.parts === 1 && query.part === 1) return { slices: [yield* inflateSlice(query, 1, bytes)], missing: [] }
    if (query.part > 0) {
      yield* inflateSlice(query, query.part, bytes)
      yield* uploads
        .put(query, query.part, bytes)
        .pipe(
          Effect.catchTag("UploadsFull", (error) =>
            Effect.andThen(
              Effect.logError(error.message),
              refuse(503, "unavailable", "Not stored", "the hub's disk refuses the part", {}, { "retry-after": "30" }),
            ),
          ),
        )
    }
    const missing = yield* uploads.missing(query)
    if (missing.length > 0) return { slices: [], missing }
    const slices: Array<Uint8Array> = []
    for (const [i, part] of (yield* uploads.parts(query)).entries()) slices.push(yield* inflateSlice(query, i + 1, part))
    return { slices, missing }
  })

const push = (request: Request, gates: PushGates) =>
  Effect.gen(function* () {
    const key = yield* authenticate(request)
    const calls = yield* Calls
    const apply = yield* Apply
    const feed = yield* Feed
    const query = yield* parsed(PushQuery, queryOf(request))
    yield* identify(key, query)
    if (key.paused) return yield* paused
    const bytes = yield* readBody(request, MAX_PART_BYTES)
    const work = Effect.gen(function* () {
      const { slices, missing } = yield* collect(gates.uploads, query, bytes)
      if (missing.length > 0) return Response.json({ missing }, { status: 202 })
      const drop = query.parts > 1 ? gates.uploads.drop(query) : Effect.void
      const sum = createHash("sha256")
      for (const slice of slices) sum.update(slice)
      if (sum.digest("hex") !== query.hash) {
        yield* drop
        return yield* notABatch("its SHA-256 is not the one announced; it was forgotten, send it again")
      }
      const text = new TextDecoder().decode(Buffer.concat(slices))
      const now = yield* Clock.currentTimeMillis
      const batch = { school: key.school, incarnation: query.incarnation, number: query.batch, hash: query.hash, text, now }
      // Once it is whole it is carried through: a school that hangs up meanwhile finds the answer in the ledger.
      const verdicts = yield* Effect.uninterruptible(gates.applies.withPermit(apply.batch(batch))).pipe(
        Effect.catchTags({
          BatchGap: (error) =>
            Effect.fail(refuse(409, "batch_gap", "A batch is missing", `batch ${error.expected} comes first`, { expected: error.expected })),
          BatchDiffers: (error) => Effect.fail(refuse(409, "batch_differs", "Another batch of this number is in the ledger", error.message)),
          NotABatch: (error) => Effect.andThen(drop, notABatch(error.message)),
        }),
      )
      yield* drop
      yield* feed.reader.seen(query.incarnation, { batch: query.batch })
      return answerJson(verdicts)
    })
    const taken = yield* gates.all.withPermitsIfAvailable(1)(calls.during(key.school)(inTurn(gates, key.school, work)))
    return Option.isSome(taken) ? taken.value : yield* busy
  })

// --- compare --------------------------------------------------------------------------------------------------------

const compare = (request: Request) =>
  Effect.gen(function* () {
    const key = yield* authenticate(request)
    const calls = yield* Calls
    const { digests, prints, rows, again } = yield* Compare
    const query = yield* parsed(z.object({ incarnation: z.uuid(), token: z.string().max(200) }), queryOf(request))
    yield* identify(key, query)
    if (key.paused) return yield* paused
    const said = yield* readJson(request, CompareAsk, MAX_COMPARE_BYTES)
    const asked = Effect.gen(function* () {
      switch (said.ask) {
        case "digests":
          return yield* digests(key.school, said.at, said.manifest, said.skip, { incarnation: query.incarnation, batch: said.batch })
        case "prints":
          return yield* prints(key.school, said.at, said.skip, said.buckets)
        case "rows":
          return yield* rows(key.school, said.at, said.names, said.keys)
        case "again":
          return yield* again(key.school, said.at, said.names, said.keys)
      }
    })
    return yield* calls
      .during(key.school)(asked)
      .pipe(
        Effect.map(answerJson),
        Effect.catchTag("CompareRefused", (error) => Effect.fail(refuse(409, error.code, "Not to be compared now", error.message))),
      )
  })

const heartbeat = (request: Request) =>
  Effect.gen(function* () {
    const key = yield* authenticate(request)
    const feed = yield* Feed
    const calls = yield* Calls
    const said = yield* readJson(request, Heartbeat)
    const reader = yield* feed.reader.get(said.incarnation)
    if (reader === null || reader.school !== key.school)
      return yield* refuse(409, "hello", "Say hello first", "this hub does not know the file; the node says hello again by itself")
    const { incarnation, cursor, ...status } = said
    // Forwards only, and only to a cut that this hub knows: what is counted as applied is forgotten here.
    const isNews = cursor !== undefined && cursor.epoch === reader.epoch && cursor.seq > reader.seq && (yield* feed.knows(cursor))
    const applied = isNews ? cursor : {}
    yield* calls.during(key.school)(feed.reader.seen(incarnation, { pending: said.pending, status: JSON.stringify(status), ...applied }))
    const pulse: Pulse = { clock: yield* Clock.currentTimeMillis, sync: yield* calls.take(key.school), paused: key.paused }
    return answerJson(pulse)
  })

// --- the plugin -----------------------------------------------------------------------------------------------------

export const linkRoutes = (options: { readonly dataDir: string }): Effect.Effect<AnyElysia, never, Services | Scope.Scope> =>
  Effect.gen(function* () {
    const streams = yield* openStreams
    const context = yield* Effect.context<Services>()
    const answer = answering(context)
    const hellos = yield* Semaphore.make(1)
    const gates: PushGates = {
      uploads: yield* openUploads(join(options.dataDir, "uploads")),
      all: yield* Semaphore.make(MAX_PUSHES),
      applies: yield* Semaphore.make(MAX_APPLIES),
      bySchool: new Map(),
    }
    const run = (request: Request, effect: Effect.Effect<Response, Answer | LibsqlError | PostgresError, Services>) =>
      answer(
        request,
        Effect.catchTag(effect, "Answer", ({ respond }) => Effect.sync(respond)),
      )
    const raw = { parse: "none" } as const
    return new Elysia({ name: "link" })
      .post("/api/sync/hello", ({ request }) => run(request, hello(request, hellos)), raw)
      .get("/api/sync/manifest", ({ request }) => run(request, manifest(request)))
      .get("/api/sync/pull", ({ request }) => run(request, pull(request)))
      .get("/api/sync/stream", ({ request }) => run(request, stream(request, streams)))
      .post("/api/sync/push", ({ request }) => run(request, push(request, gates)), raw)
      .post("/api/sync/compare", ({ request }) => run(request, compare(request)), raw)
      .post("/api/sync/heartbeat", ({ request }) => run(request, heartbeat(request)), raw)
  })
