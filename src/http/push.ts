/** Push: the parts of a batch, kept until it is whole, then applied once; its verdicts are the answer. */
import { createHash } from "node:crypto"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Semaphore from "effect/Semaphore"
import { Feed } from "../down/feed.ts"
import { inflate } from "../link/body.ts"
import { MAX_PART_BYTES, PushQuery, sliceOf } from "../link/protocol.ts"
import { PostgresError } from "../postgres/client.ts"
import { remedyOf, withRemedy } from "../postgres/remedy.ts"
import { HubFactStore } from "../status/facts.ts"
import { Apply, openBatch } from "../up/apply.ts"
import { Calls } from "./calls.ts"
import { answerJson, bodyFault, readBody } from "./link-body.ts"
import { type Answer, authenticate, identify, parsed, paused, queryOf, refuse } from "./link-caller.ts"
import type { Uploads } from "./uploads.ts"

/** Pushes that are there, lie ready or are applied at the same time, of all schools; of one school, the rest waits or is sent away. */
const MAX_PUSHES = 32
const MAX_READY = 8
const MAX_APPLIES = 4
const MAX_PUSHES_OF_SCHOOL = 4
/** While a school pushes, what there is for it waits so long at most: nearly all of it is what went up, and many small pages of it cost more. */
const CALM_MS = 1_000

/** What all pushes of this hub go through. */
export interface PushGates {
  readonly uploads: Uploads
  readonly all: Semaphore.Semaphore
  readonly ready: Semaphore.Semaphore
  readonly applies: Semaphore.Semaphore
  readonly bySchool: Map<string, SchoolGate>
}

interface SchoolGate {
  readonly one: Semaphore.Semaphore
  count: number
  /** Told when no push of the school is left. */
  readonly waiting: Set<() => void>
}

const notABatch = (detail: string): Answer => refuse(422, "not_a_batch", "Not a batch", detail)
const busy: Answer = refuse(503, "unavailable", "Too many pushes", "try again in a moment", {}, { "retry-after": "2" })

/** `use` gets the school's turn, which one push has at a time: what comes twice waits in it for the first one's answer. */
export const ofSchool = <A, E, R>(
  gates: Pick<PushGates, "bySchool">,
  school: string,
  use: (turn: Semaphore.Semaphore) => Effect.Effect<A, E, R>,
): Effect.Effect<A, E | Answer, R> =>
  Effect.suspend((): Effect.Effect<A, E | Answer, R> => {
    const gate = gates.bySchool.get(school) ?? { one: Semaphore.makeUnsafe(1), count: 0, waiting: new Set() }
    if (gate.count >= MAX_PUSHES_OF_SCHOOL) return Effect.fail(busy)
    gates.bySchool.set(school, gate)
    gate.count++
    const leave = Effect.sync(() => {
      gate.count--
      if (gate.count > 0) return
      gates.bySchool.delete(school)
      for (const tell of gate.waiting) tell()
    })
    return Effect.ensuring(use(gate.one), leave)
  })

/** Completes when no push of the school is under way, but does not wait for long. */
export const untilCalm = (gates: Pick<PushGates, "bySchool">, school: string): Effect.Effect<void> =>
  Effect.suspend(() => {
    const gate = gates.bySchool.get(school)
    if (gate === undefined) return Effect.void
    const calm = Effect.callback<void>((resume) => {
      const tell = (): void => resume(Effect.void)
      gate.waiting.add(tell)
      return Effect.sync(() => gate.waiting.delete(tell))
    })
    return Effect.raceFirst(calm, Effect.sleep(CALM_MS))
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

/** What keeps Postgres from taking anything stands in the hub's status, until it takes something again. A row that is locked passes. */
const telling = <A, E extends { readonly _tag: string }, R>(applying: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const facts = yield* HubFactStore
    const note = (error: E) =>
      Effect.gen(function* () {
        if (!(error instanceof PostgresError) || error.sqlstate === "55P03") return
        const { message, sqlstate, routine } = error
        if (remedyOf(sqlstate, message, routine) === null) return
        const text = withRemedy(`Postgres takes nothing that schools send: ${message} (${sqlstate})`, sqlstate, routine)
        yield* facts.set({ refused: { text, at: yield* Clock.currentTimeMillis } })
      })
    const taken = yield* Effect.tapError(applying, note)
    if ((yield* facts.get).refused !== null) yield* facts.set({ refused: null })
    return taken
  })

export const push = (request: Request, gates: PushGates) =>
  Effect.gen(function* () {
    const key = yield* authenticate(request)
    const calls = yield* Calls
    const apply = yield* Apply
    const feed = yield* Feed
    const query = yield* parsed(PushQuery, queryOf(request))
    yield* identify(key, query)
    if (key.paused) return yield* paused
    const bytes = yield* readBody(request, MAX_PART_BYTES)
    const work = (inTurn: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>) =>
      Effect.gen(function* () {
        const { slices, missing } = yield* collect(gates.uploads, query, bytes)
        if (missing.length > 0) return Response.json({ missing }, { status: 202 })
        const drop = query.parts > 1 ? gates.uploads.drop(query) : Effect.void
        const sum = createHash("sha256")
        for (const slice of slices) sum.update(slice)
        if (sum.digest("hex") !== query.hash) {
          yield* drop
          return yield* notABatch("its SHA-256 is not the one announced; it was forgotten, send it again")
        }
        // A batch is read in one go: others of this process have their turn before it.
        yield* Effect.yieldNow
        const text = new TextDecoder().decode(slices.length === 1 ? slices[0] : Buffer.concat(slices))
        const now = yield* Clock.currentTimeMillis
        const batch = { school: key.school, incarnation: query.incarnation, number: query.batch, hash: query.hash, text, now }
        const applying = Effect.flatMap(openBatch(batch), (opened) => inTurn(gates.applies.withPermit(telling(apply.opened(opened)))))
        // Once it is whole it is carried through: a school that hangs up meanwhile finds the answer in the ledger.
        const verdicts = yield* Effect.uninterruptible(gates.ready.withPermit(applying)).pipe(
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
    const taken = yield* gates.all.withPermitsIfAvailable(1)(
      calls.during(key.school)(
        // A batch in one piece is read while the one before it is written; parts are files, which one request at a time looks after.
        ofSchool(gates, key.school, (turn) => (query.parts === 1 ? work(turn.withPermit) : turn.withPermit(work((effect) => effect)))),
      ),
    )
    return Option.isSome(taken) ? taken.value : yield* busy
  })

export const openGates = (uploads: Uploads): Effect.Effect<PushGates> =>
  Effect.map(Effect.all([Semaphore.make(MAX_PUSHES), Semaphore.make(MAX_READY), Semaphore.make(MAX_APPLIES)]), ([all, ready, applies]) => ({
    uploads,
    all,
    ready,
    applies,
    bySchool: new Map(),
  }))
