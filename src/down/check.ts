/**
 * Postgres against the feed, when somebody asks. The stream answers (down.ts): it reads every table in brackets, so that
 * what is on its way is no difference.
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"

/** Questions that wait; of more, the asker waits too. */
const MAX_WAITING = 4
/** Keys of a table that an answer names. */
export const EXAMPLES = 20

export interface TableCheck {
  /** `"public.students"` */
  readonly table: string
  rows: number
  /** Rows that only Postgres has, only the feed has, or both with different values. */
  missing: number
  extra: number
  differing: number
  /** Wire keys of some of them. */
  readonly keys: Array<string>
}

/** The stream does not run, or ended before the answer. */
export class NotChecked extends Data.TaggedError("NotChecked")<{ readonly message: string }> {}

export interface Check {
  /** What differs takes new seqs in the feed, as Postgres has it. */
  readonly repair: boolean
  readonly done: Deferred.Deferred<ReadonlyArray<TableCheck>, NotChecked>
}

export class FeedChecks extends Context.Service<
  FeedChecks,
  {
    readonly ask: (repair: boolean) => Effect.Effect<ReadonlyArray<TableCheck>, NotChecked>
    /** Answers questions, one after the other, for as long as it runs. */
    readonly serve: <E, R>(answer: (repair: boolean) => Effect.Effect<ReadonlyArray<TableCheck>, E, R>) => Effect.Effect<never, E, R>
  }
>()("schoolbus/down/FeedChecks") {
  static readonly layer: Layer.Layer<FeedChecks> = Layer.effect(
    FeedChecks,
    Effect.gen(function* () {
      const queue = yield* Queue.bounded<Check>(MAX_WAITING)
      let isServed = false
      const serving = (served: boolean) =>
        Effect.sync(() => {
          isServed = served
        })
      return FeedChecks.of({
        ask: (repair) =>
          Effect.gen(function* () {
            if (!isServed) return yield* new NotChecked({ message: "the stream from Postgres does not run now; see: schoolbus status" })
            const done = yield* Deferred.make<ReadonlyArray<TableCheck>, NotChecked>()
            yield* Queue.offer(queue, { repair, done })
            return yield* Deferred.await(done)
          }),
        serve: (answer) =>
          Effect.acquireUseRelease(
            serving(true),
            () =>
              Effect.forever(
                Effect.gen(function* () {
                  const { repair, done } = yield* Queue.take(queue)
                  const ended = new NotChecked({ message: "the stream from Postgres ended before the comparison did; try again" })
                  yield* Deferred.succeed(
                    done,
                    yield* Effect.onExit(answer(repair), (exit) => (exit._tag === "Success" ? Effect.void : Deferred.fail(done, ended))),
                  )
                }),
              ),
            () => serving(false),
          ),
      })
    }),
  )
}
