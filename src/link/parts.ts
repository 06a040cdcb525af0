/**
 * A batch on its way to the hub: in one request when it is small for the line, else in numbered parts. What the hub has of a
 * batch it keeps, also over restarts of either side: only the rest is sent.
 */
import * as Effect from "effect/Effect"
import type { Verdicts as VerdictsType } from "../model/change.ts"
import { LinkDown, type LinkError } from "./answer.ts"
import { compress } from "./body.ts"
import { MAX_PART_BYTES, MAX_PARTS, PartsMissing, sliceOf, Verdicts } from "./protocol.ts"

/** A part of a push, compressed: at first this much, then about as much as goes out in this many seconds. */
const FIRST_PART_BYTES = 64 * 1024
const LEAST_PART_BYTES = 16 * 1024
const PART_SECONDS = 15
/** Uncompressed, so that very regular rows stay below the hub's limits. */
const MAX_SLICE_BYTES = 8 * 1024 * 1024
/** A part that did not get through so often in a row is too large for what lies on the way, whatever that says: its batch is cut smaller. */
const TRIES = 2
/** Rounds of sending what the hub says is missing, before the batch is started anew another time. */
const MAX_ROUNDS = 3
/** Batches whose cut is remembered: the one under way, and one that is sent ahead. */
const MAX_CUTS = 2

export interface OutgoingBatch {
  readonly number: number
  /** SHA-256 of the bytes, hex. */
  readonly hash: string
  readonly bytes: Uint8Array
  /** The bytes as they go out in one piece, when they were compressed before. */
  readonly pressed?: Uint8Array
}

/** Compressed, and cut as suits the line. */
export interface PackedBatch extends OutgoingBatch {
  readonly pressed: Uint8Array
  readonly parts: number
}

export interface Parts {
  readonly pack: <B extends OutgoingBatch>(batch: B) => Effect.Effect<B & PackedBatch>
  readonly push: (who: Readonly<Record<string, string>>, batch: OutgoingBatch | PackedBatch) => Effect.Effect<VerdictsType, LinkError>
}

export const makeParts = (
  post: (query: Readonly<Record<string, string>>, body: Uint8Array) => Effect.Effect<Response, LinkError>,
  json: <A>(parse: (value: unknown) => A, response: Response) => Effect.Effect<A, LinkDown>,
): Parts => {
  let partBytes = FIRST_PART_BYTES
  /** Into how many parts a batch under way was cut, so that a second attempt goes on with the first one's. */
  const cuts = new Map<string, number>()
  /** What a proxy on the way was found not to take is never tried again. */
  let mostBytes = MAX_PART_BYTES / 2
  let stuck = { hash: "", part: 0, times: 0 }

  const cutSmaller = (hash: string, parts: number, bodyBytes: number): void => {
    partBytes = Math.max(LEAST_PART_BYTES, Math.min(partBytes, Math.floor(bodyBytes / 2)))
    // Slices differ in what they take: a larger number of them is what surely makes each smaller.
    cuts.set(hash, Math.min(MAX_PARTS, parts * 2))
    stuck = { hash: "", part: 0, times: 0 }
  }

  const noteFailure = ({ hash, parts }: PackedBatch, part: number, bodyBytes: number, isTooLarge: boolean): void => {
    if (isTooLarge) mostBytes = Math.max(LEAST_PART_BYTES, Math.min(mostBytes, Math.floor(bodyBytes / 2)))
    stuck = { hash, part, times: stuck.hash === hash && stuck.part === part ? stuck.times + 1 : 1 }
    if ((isTooLarge || stuck.times >= TRIES) && bodyBytes > LEAST_PART_BYTES) cutSmaller(hash, parts, bodyBytes)
  }

  /** One slice, compressed by itself; what it took decides the size of the next ones. */
  const sendPart = (who: Readonly<Record<string, string>>, batch: PackedBatch, part: number) =>
    Effect.gen(function* () {
      const { number, hash, bytes, pressed, parts } = batch
      const size = bytes.length
      const press = () => (parts === 1 ? Promise.resolve(pressed) : compress(bytes.subarray(...sliceOf(size, part, parts))))
      const body = part === 0 ? new Uint8Array() : yield* Effect.promise(press)
      const query = { ...who, batch: String(number), hash, size: String(size), part: String(part), parts: String(parts) }
      const started = performance.now()
      const response = yield* post(query, body).pipe(
        Effect.tapErrorTag("LinkDown", ({ isTooLarge }) => Effect.sync(() => part > 0 && noteFailure(batch, part, body.length, isTooLarge === true))),
      )
      if (part > 0) stuck = { hash: "", part: 0, times: 0 }
      if (part > 0 && response.status === 202) {
        const seconds = Math.max(0.05, (performance.now() - started) / 1000)
        partBytes = Math.round(Math.min(mostBytes, Math.max(LEAST_PART_BYTES, (body.length / seconds) * PART_SECONDS)))
      }
      return response.status === 202
        ? yield* json((value) => PartsMissing.parse(value), response)
        : yield* json((value) => Verdicts.parse(value), response)
    })

  const pack: Parts["pack"] = (batch) =>
    Effect.map(batch.pressed === undefined ? Effect.promise(() => compress(batch.bytes)) : Effect.succeed(batch.pressed), (pressed) => {
      const wanted = Math.max(Math.ceil(pressed.length / partBytes), Math.ceil(batch.bytes.length / MAX_SLICE_BYTES))
      return { ...batch, pressed, parts: cuts.get(batch.hash) ?? Math.min(MAX_PARTS, Math.max(1, wanted)) }
    })

  const sendAll = (who: Readonly<Record<string, string>>, packed: PackedBatch): Effect.Effect<VerdictsType, LinkError> =>
    Effect.gen(function* () {
      const { parts, hash } = packed
      cuts.delete(hash)
      cuts.set(hash, parts)
      for (const [oldest] of cuts) if (cuts.size > MAX_CUTS) cuts.delete(oldest)
      let answer = yield* sendPart(who, packed, parts === 1 ? 1 : 0)
      for (let round = 0; "missing" in answer && round < MAX_ROUNDS; round++) {
        for (const part of answer.missing) {
          answer = yield* sendPart(who, packed, part)
          if (!("missing" in answer)) return answer as VerdictsType
        }
      }
      if (!("missing" in answer)) return answer as VerdictsType
      return yield* new LinkDown({ message: "the hub does not keep the parts of the batch; sending it again" })
    }).pipe(
      // Cut smaller it may pass at once.
      Effect.catchIf(
        (error) => error._tag === "LinkDown" && error.isTooLarge === true && (cuts.get(packed.hash) ?? 0) > packed.parts,
        () => Effect.flatMap(pack(packed), (smaller) => sendAll(who, smaller)),
      ),
    )

  const push: Parts["push"] = (who, batch) =>
    Effect.flatMap("parts" in batch ? Effect.succeed(batch) : pack(batch), (packed) => sendAll(who, packed)).pipe(
      Effect.tapErrorTag("LinkRefused", () => Effect.sync(() => cuts.delete(batch.hash))),
    )

  return { pack, push }
}
