/**
 * How appends follow one another: one at a time, each from where the one before it ends. What the file holds and what is
 * remembered of it never part: only an append's body can be interrupted, and its memory is made the present one when its commit
 * stands.
 */
import { randomBytes } from "node:crypto"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import type { DeviceRules } from "../model/table.ts"
import { type Appender, type Installing, makeAppender } from "./append.ts"
import { EVERY_SCHOOL, type Route } from "./audience.ts"
import type { AudienceNumbers } from "./audience-numbers.ts"
import type { FeedTable } from "./entry.ts"
import { heldBySchool } from "./held.ts"
import { OpenAppend } from "./open-append.ts"
import type { Readers } from "./readers.ts"
import type { Shape } from "./shape.ts"
import { NEWCOMERS } from "./watch.ts"

/** The end of the feed, and the name of the cut that ends there. */
export interface Head {
  readonly epoch: string
  readonly seq: number
  readonly cut: string
}

/** What is remembered of the feed, as it stands in the file. */
export interface Known {
  head: Head
  /** The manifest's version. */
  manifest: number
  devices: DeviceRules | undefined
  tables: ReadonlyArray<FeedTable>
  routes: ReadonlyMap<number, Route>
  /** Tables with another rule than before, whose rows stay where they are until their links are loaded. */
  readonly frozen: Set<number>
}

/** The appends of one stream: each begins while the one before it is being committed, and goes with it when that fails. */
export interface Series {
  /** Answers when its commit is under way; `onCommitted` is called once it stands, of one append after the other. */
  readonly append: <A, E>(
    body: (appender: Appender) => Effect.Effect<A, E>,
    onCommitted: (value: A) => Effect.Effect<void>,
  ) => Effect.Effect<void, E | LibsqlError>
  /** All that was appended is committed. */
  readonly committed: Effect.Effect<void, LibsqlError>
  /** Fails with the first commit that does: nothing more can be appended then. */
  readonly failed: Effect.Effect<never, LibsqlError>
}

/** A new version when what the schools are told has changed; answers whether it has. */
export const publish = (tx: Tx, tables: ReadonlyArray<FeedTable>, devices: DeviceRules | undefined): Effect.Effect<boolean, LibsqlError> =>
  Effect.map(
    tx.run("UPDATE hub SET manifest = manifest + 1, tables_hash = ?1 WHERE tables_hash IS NOT ?1", [
      JSON.stringify([tables.map(({ shape }) => shape.told), devices]),
    ]),
    (changed) => changed > 0,
  )

const newCut = (): string => randomBytes(8).toString("hex")

type Body<A, E> = (appender: Appender & Installing, open: OpenAppend) => Effect.Effect<A, E>

export interface AppendsOptions {
  readonly db: LibsqlFile
  readonly known: Known
  readonly numbers: AudienceNumbers
  readonly readers: Readers
  /** Reads the schools and their keys anew. */
  readonly enrol: Effect.Effect<void, LibsqlError>
  readonly tell: (audiences: ReadonlySet<number>, seq: number) => void
  readonly wake: (audience: number) => void
}

export const makeAppends = ({ db, known, numbers, readers, enrol, tell, wake }: AppendsOptions) => {
  const alone = Semaphore.makeUnsafe(1)
  /** Where the next append begins: ahead of the head while a commit is under way. */
  let tip = { seq: known.head.seq, cut: known.head.cut }
  let underWay: Effect.Effect<void, LibsqlError> = Effect.void

  /**
   * Answers when the commit is under way; `settled`: it stands, and so does what is remembered of it. `before`: the commit
   * that it goes with when that fails.
   */
  const begin = <A, E>(body: Body<A, E>, before: Effect.Effect<void, LibsqlError>) =>
    Effect.gen(function* () {
      const withReady = (ready: ReadonlyMap<number, Shape>) =>
        known.tables.map((table) => {
          const shape = ready.get(table.id)
          return shape === undefined ? table : { ...table, table: shape.table, shape, loading: false, recheck: false, since: null }
        })
      const written = db.writeAhead((tx) =>
        Effect.gen(function* () {
          const held = () => heldBySchool(readers.now(), readers.sent, known.head.epoch)
          const open = new OpenAppend({ tx, seq: tip.seq, tables: known.tables, routes: known.routes, frozen: known.frozen, numbers, held })
          const { appender, settle } = makeAppender(open)
          const value = yield* body(appender, open)
          yield* settle
          const isPublished = open.ready.size > 0 && (yield* publish(tx, withReady(open.ready), known.devices))
          let { cut } = tip
          if (open.seq > tip.seq) {
            cut = newCut()
            yield* tx.ahead("UPDATE hub SET seq = ?", [open.seq])
            yield* tx.ahead("INSERT INTO cut (seq, id) VALUES (?, ?)", [open.seq, cut])
          }
          return { value, cut, isPublished, isNamed: numbers.hasFresh, open }
        }).pipe(
          // Whatever it met in a file without the one before.
          Effect.catchCause((cause) => Effect.andThen(before, Effect.failCause(cause))),
          Effect.tap(before),
        ),
      )
      const { value: done, committed } = yield* written.pipe(Effect.tapCause(() => Effect.sync(() => numbers.forget())))
      const { value, cut, isPublished, isNamed, open } = done
      const { seq } = open
      tip = { seq, cut }
      const apply = Effect.gen(function* () {
        known.head = { epoch: known.head.epoch, seq, cut }
        known.routes = open.routes
        if (open.ready.size > 0) known.tables = withReady(open.ready)
        if (isPublished) known.manifest++
        if (open.hubRowsChanged) yield* enrol
        if (isNamed) {
          numbers.keep()
          open.touch(NEWCOMERS)
        }
        tell(open.touched, seq)
        if (isPublished) wake(EVERY_SCHOOL)
      })
      const lose = Effect.sync(() => {
        tip = { seq: known.head.seq, cut: known.head.cut }
        if (isNamed) numbers.forget()
      })
      /** It changes nothing that is remembered but the head: the next append may begin before it has settled. */
      const isPlain = open.ready.size === 0 && !open.hubRowsChanged && !isNamed
      return {
        value,
        isPlain,
        settled: Effect.andThen(
          Effect.tapCause(committed, () => lose),
          apply,
        ),
      }
    })

  const append = <A, E>(body: Body<A, E>): Effect.Effect<A, E | LibsqlError> =>
    alone.withPermit(
      Effect.uninterruptibleMask((restore) =>
        Effect.gen(function* () {
          yield* Effect.ignore(underWay)
          const { value, settled } = yield* begin((appender, open) => restore(body(appender, open)), Effect.void)
          yield* settled
          return value
        }),
      ),
    )

  /** Its scope ends when its last commit has. */
  const series: Effect.Effect<Series, never, Scope.Scope> = Effect.gen(function* () {
    const failed = Deferred.makeUnsafe<never, LibsqlError>()
    let last: Effect.Effect<void, LibsqlError> = Effect.void
    yield* Effect.addFinalizer(() => Effect.ignore(last))
    const appendNext: Series["append"] = (body, onCommitted) =>
      alone.withPermit(
        Effect.uninterruptibleMask((restore) =>
          Effect.gen(function* () {
            const { value, isPlain, settled } = yield* begin((appender) => restore(body(appender)), last)
            const ending = Effect.andThen(
              settled,
              Effect.suspend(() => onCommitted(value)),
            )
            last = Fiber.join(yield* Effect.forkDetach(Effect.tapError(ending, (error) => Deferred.fail(failed, error))))
            underWay = last
            if (!isPlain) yield* last
          }),
        ),
      )
    return { append: appendNext, committed: Effect.suspend(() => last), failed: Deferred.await(failed) }
  })

  /** The seqs from here on are of another space, of which only the present cut is known. */
  const newEpoch = (epoch: string): Effect.Effect<void, LibsqlError> =>
    alone.withPermit(
      Effect.uninterruptible(
        Effect.gen(function* () {
          yield* db.write((tx) =>
            Effect.andThen(tx.run("UPDATE hub SET epoch = ?", [epoch]), tx.run("DELETE FROM cut WHERE seq <> (SELECT seq FROM hub)")),
          )
          known.head = { ...known.head, epoch }
        }),
      ),
    )

  return { append, series, newEpoch }
}
