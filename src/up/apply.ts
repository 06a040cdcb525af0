/**
 * A school's batch -> one Postgres transaction: its effects, a verdict for every change, the records of what was decided,
 * and the ledger row that comes down to the school. A batch that the ledger already holds answers its stored verdicts and
 * writes nothing. Whatever is wrong with one change is that change's verdict; the others are written.
 */
import { randomUUID } from "node:crypto"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { decodeBatch, type DecodedBatch } from "../link/frame.ts"
import type { Change, Exception, Verdicts } from "../model/change.ts"
import { keyRangeOf } from "../model/key-range.ts"
import { isThrough, type Table } from "../model/table.ts"
import { literal, Postgres, type PostgresError, type Session } from "../postgres/client.ts"
import { carryOut, setTimeouts } from "./carry-out.ts"
import { followDecided } from "./by-value.ts"
import { repointMerged } from "./clash.ts"
import { recordClashes } from "./clash-records.ts"
import { coalesce } from "./coalesce.ts"
import { makeEncoding } from "./encoding.ts"
import { asUnder } from "./lost.ts"
import { alone, retryDependants, retryMoved } from "./quarantine.ts"
import { carryOutPlainly, readSurroundings, type Surroundings } from "./plainly.ts"
import { putQuarantined, readOpen, record } from "./records.ts"
import { carryOutRequests } from "./requests.ts"
import { correctedTime } from "./resolve.ts"
import { Tables } from "./tables.ts"
import { findTaken, joinLives, keepPrints } from "./taken.ts"
import type { Ground, Outcome } from "./work.ts"

const RETRIES = 3

/** The hub has not seen the batch before this one; the school must send `expected` first. */
export class BatchGap extends Data.TaggedError("BatchGap")<{ readonly school: string; readonly expected: number; readonly received: number }> {}
/** Same number, other bytes: two files claim one identity. */
export class BatchDiffers extends Data.TaggedError("BatchDiffers")<{ readonly school: string; readonly batch: number; readonly message: string }> {}
/** The bytes are no batch, or not this school's; nothing was promised for them. */
export class NotABatch extends Data.TaggedError("NotABatch")<{ readonly message: string }> {}

export interface BatchInput {
  readonly school: string
  readonly incarnation: string
  readonly number: number
  /** SHA-256 of the bytes, already checked. */
  readonly hash: string
  readonly text: string
  /** Server time, ms since 1970. */
  readonly now: number
}

/** A batch that was read, so that it lies ready. */
export interface OpenBatch {
  readonly input: BatchInput
  readonly decoded: DecodedBatch
}

/** Bytes -> changes. */
export const openBatch = (input: BatchInput): Effect.Effect<OpenBatch, NotABatch> => {
  const decoded = decodeBatch(input.text)
  if ("refused" in decoded) return Effect.fail(new NotABatch({ message: decoded.refused }))
  const { header } = decoded.ok
  return header.incarnation === input.incarnation && header.number === input.number
    ? Effect.succeed({ input, decoded: decoded.ok })
    : Effect.fail(
        new NotABatch({
          message: `the bytes are batch ${header.number} of ${header.incarnation}, the request says batch ${input.number} of ${input.incarnation}`,
        }),
      )
}

type Answered = Effect.Effect<Verdicts, BatchGap | BatchDiffers | NotABatch | PostgresError>

export class Apply extends Context.Service<
  Apply,
  { readonly batch: (input: BatchInput) => Answered; readonly opened: (batch: OpenBatch) => Answered }
>()("schoolbus/up/Apply") {
  static readonly layer: Layer.Layer<Apply, never, Postgres | Tables> = Layer.effect(
    Apply,
    Effect.gen(function* () {
      const pg = yield* Postgres
      const tables = yield* Tables

      const toEncoding = makeEncoding(pg)

      const opened = Effect.fn("Apply.batch")(function* ({ input, decoded: sent }: OpenBatch) {
        const decoded = yield* toEncoding(sent, input.text)
        const { header } = decoded
        const { had, times } = tables
        const isOlder = header.manifest < (tables.version === undefined ? 0 : yield* tables.version)
        const ground = { school: input.school, tables: yield* tables.all, had, ...(times && { times }), manifest: header.manifest, isOlder }
        return yield* pg
          .txInRounds(
            (session) => [
              setTimeouts(session),
              readHead(session, input),
              readSchool(session, input),
              decoded !== sent || decoded.unreadable.length > 0
                ? Effect.succeed(null)
                : readSurroundings(session, ground, input, decoded.batch.changes, input.text),
            ],
            (session, [, head, [school], surroundings]) =>
              applyBatch(session, input, decoded, { ...ground, ...keysOf(school?.number) }, head, surroundings),
          )
          .pipe(
            Effect.retry({
              while: (error) => error._tag === "PostgresError" && /^(40P01|55P03|0A000|42P01|42703|42804)$/.test(error.sqlstate),
              schedule: Schedule.jittered(Schedule.exponential("50 millis")),
              times: RETRIES,
            }),
          )
      })
      return Apply.of({ opened, batch: (input) => Effect.flatMap(openBatch(input), opened) })
    }),
  )
}

const applyBatch = (
  session: Session,
  input: BatchInput,
  decoded: DecodedBatch,
  own: Pick<Ground, "school" | "tables" | "had" | "times" | "manifest" | "isOlder" | "keys">,
  head: ReadonlyArray<Head>,
  surroundings: Surroundings | null,
): Effect.Effect<{ readonly value: Verdicts; readonly last: string }, BatchGap | BatchDiffers | NotABatch | PostgresError> =>
  Effect.gen(function* () {
    const { header, batch, unreadable } = decoded
    const { last, origin } = yield* lockHead(session, input, header.origin, head)
    if (input.number <= last) return { value: yield* replay(session, input), last: "" }
    if (input.number > last + 1) return yield* new BatchGap({ school: input.school, expected: last + 1, received: input.number })

    const taken = origin === null ? null : yield* findTaken(session, { ...input, origin }, batch.changes)
    const isNew = ({ id }: Change): boolean => taken === null || !taken.ids.has(id)
    const changes = batch.changes.filter(isNew).map((change) => ({ ...change, at: correctedTime(change, header.contacts, input.now) }))
    const written =
      surroundings === null || changes.length < batch.changes.length ? null : yield* carryOutPlainly(session, own, changes, surroundings)
    const met =
      written === null
        ? yield* carryOutWhole(session, input, own, changes, unreadable)
        : yield* Effect.as(retryDependants(session, { ...own, ...alone }, written), [])
    const exceptions = taken === null ? met : [...taken.exceptions, ...met]

    const verdicts: Verdicts = { batch: input.number, hash: input.hash, changes: batch.changes.length + unreadable.length, exceptions }
    const { incarnation, number, school, hash } = input
    const id = `${literal(incarnation)}::uuid`
    const ledger = `INSERT INTO schoolbus.ledger (incarnation, batch, school, hash, changes, exceptions)
       VALUES (${id}, ${number}, ${literal(school)}, ${literal(hash)}, ${verdicts.changes}, ${literal(JSON.stringify(exceptions))});
       UPDATE schoolbus.incarnations SET last_batch = ${number} WHERE id = ${id};
       ${keepPrints(incarnation, number, batch.changes)}`
    return { value: verdicts, last: ledger }
  })

const keysOf = (school: number | undefined): Pick<Ground, "keys"> => {
  const keys = keyRangeOf(school ?? 0)
  return keys === null ? {} : { keys }
}

/** Change by change, with whatever stands in the way of each; answers the exceptions. */
const carryOutWhole = (
  session: Session,
  input: BatchInput,
  base: Omit<Ground, "stored" | "openBases">,
  changes: ReadonlyArray<Change>,
  unreadable: DecodedBatch["unreadable"],
): Effect.Effect<ReadonlyArray<Exception>, PostgresError> =>
  Effect.gen(function* () {
    const open = yield* readOpen(
      session,
      base.tables,
      input,
      changes.filter((change) => base.tables.has(change.table)),
    )
    const ground: Ground = { ...base, stored: open.stored, openBases: open.bases }
    const waiting = new Map(
      [...open.waiting].flatMap(([id, row]) => {
        const now = asUnder(ground.manifest, row, ground.tables.get(row.table))
        return now === null ? [] : [[id, now] as const]
      }),
    )
    const rows = yield* followDecided(session, ground.tables, input.school, coalesce(changes, waiting))
    const outcomes = yield* carryOut(session, ground, rows)
    const origin = { ...input, ...(base.manifest === undefined ? {} : { manifest: base.manifest }) }
    const recorded = yield* record(session, ground.tables, origin, outcomes, open)
    const exceptions = [...(yield* keepUnreadable(session, input, unreadable)), ...recorded.exceptions]
    yield* recordClashes(session, ground, input, recorded.quarantined)
    yield* repointMerged(session, ground, input.school, [...recorded.quarantined.keys()])
    yield* retryDependants(session, ground, new Set([...insertedTables(outcomes), ...partedTables(outcomes, ground.tables)]))
    yield* retryMoved(session, ground, [...recorded.quarantined.keys()])
    yield* carryOutRequests(session, ground, input, outcomes)
    return exceptions
  })

interface Head {
  readonly school: string
  readonly last_batch: string
  readonly origin: string | null
}

/** Locks the head of the file's ledger, so that its batches go one after the other. */
const readHead = (session: Session, { incarnation }: BatchInput) =>
  session.query<Head>(
    "SELECT school, last_batch::text AS last_batch, origin::text AS origin FROM schoolbus.incarnations WHERE id = $1::text::uuid FOR UPDATE",
    [incarnation],
  )

const readSchool = (session: Session, { school }: BatchInput) =>
  session.query<{ number: number }>("SELECT number FROM schoolbus.schools WHERE id = $1", [school])

/** The number of the last batch, and the first life of a file that has had several; a file that is new gets its head. */
const lockHead = (
  session: Session,
  input: BatchInput,
  origin: string | undefined,
  found: ReadonlyArray<Head>,
): Effect.Effect<{ readonly last: number; readonly origin: string | null }, NotABatch | PostgresError> =>
  Effect.gen(function* () {
    let [head] = found
    if (head === undefined) {
      yield* session.execute("INSERT INTO schoolbus.incarnations (id, school) VALUES ($1::text::uuid, $2) ON CONFLICT (id) DO NOTHING", [
        input.incarnation,
        input.school,
      ])
      ;[head] = yield* readHead(session, input)
    }
    if (head === undefined || head.school !== input.school) return yield* new NotABatch({ message: "this incarnation belongs to another school" })
    const last = Number(head.last_batch)
    if (origin === undefined || head.origin !== null) return { last, origin: head.origin }
    yield* joinLives(session, { ...input, origin })
    return { last, origin }
  })

const replay = (session: Session, input: BatchInput) =>
  Effect.gen(function* () {
    const [row] = yield* session.query<{ hash: string; changes: number; exceptions: string }>(
      "SELECT hash, changes, exceptions FROM schoolbus.ledger WHERE incarnation = $1::text::uuid AND batch = $2::text::bigint",
      [input.incarnation, String(input.number)],
    )
    if (row === undefined || row.hash !== input.hash) {
      return yield* new BatchDiffers({
        school: input.school,
        batch: input.number,
        message: `batch ${input.number} is in the ledger with other bytes: two copies of this school's file are in use, or it was put back to an older state`,
      })
    }
    return { batch: input.number, hash: row.hash, changes: row.changes, exceptions: JSON.parse(row.exceptions) as ReadonlyArray<Exception> }
  })

/** Lines that are no change are kept as they came; the number is used up. */
const keepUnreadable = (
  session: Session,
  input: BatchInput,
  lines: DecodedBatch["unreadable"],
): Effect.Effect<ReadonlyArray<Exception>, PostgresError> =>
  Effect.gen(function* () {
    const kept = lines.map((line, i) => ({ ...line, id: Number.isSafeInteger(line.id) ? line.id : -1 - i, record: randomUUID() }))
    yield* putQuarantined(
      session,
      kept.map(({ id, raw, reason, record }) => [
        record,
        input.school,
        input.incarnation,
        String(input.number),
        String(id),
        "",
        "",
        "",
        JSON.stringify(raw),
        "unreadable",
        reason,
      ]),
    )
    return kept.map(({ id, record }): Exception => ({ id, verdict: "quarantined", reason: "unreadable", record, hold: true }))
  })

const insertedTables = (outcomes: ReadonlyArray<Outcome>): ReadonlySet<Table["name"]> =>
  new Set(outcomes.flatMap(({ row, decision }) => (decision?.write === "insert" ? [row.table] : [])))

/** Of rows and links that were refused for want of each other: what one waits for may be waiting for it since an earlier batch. */
const partedTables = (outcomes: ReadonlyArray<Outcome>, tables: ReadonlyMap<string, Table>): ReadonlySet<Table["name"]> => {
  const refused = new Set(outcomes.flatMap(({ row, refusal }) => (/^(no_audience|foreign_key)$/.test(refusal?.reason ?? "") ? [row.table] : [])))
  const parted = [...tables.values()].flatMap(({ name, audience }) =>
    isThrough(audience) && (refused.has(name) || refused.has(audience.through)) ? [name, audience.through] : [],
  )
  return new Set(parted)
}
