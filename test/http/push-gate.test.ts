import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import { expect, it } from "vitest"
import { type PushGates, ofSchool, untilCalm } from "../../src/http/push.ts"

const gates = (): Pick<PushGates, "bySchool"> => ({ bySchool: new Map() })
const run = <A>(effect: Effect.Effect<A, unknown>): Promise<A> => Effect.runPromise(Effect.provide(effect, TestClock.layer()))

it("what there is for a school waits for the last of its pushes, and for no other school's", () =>
  run(
    Effect.gen(function* () {
      const [all, ends] = [gates(), yield* Effect.all([Deferred.make<void>(), Deferred.make<void>()])]
      const pushes = yield* Effect.forEach(ends, (end) =>
        Effect.forkChild(
          ofSchool(all, "north", () => Deferred.await(end)),
          { startImmediately: true },
        ),
      )
      const waiting = yield* Effect.forkChild(untilCalm(all, "north"), { startImmediately: true })
      yield* untilCalm(all, "south")
      yield* Deferred.succeed(ends[0], undefined)
      yield* Fiber.join(pushes[0] as Fiber.Fiber<void, unknown>)
      expect(waiting.pollUnsafe()).toBeUndefined()
      yield* Deferred.succeed(ends[1], undefined)
      yield* Fiber.join(waiting)
      expect(all.bySchool.size).toBe(0)
      yield* untilCalm(all, "north")
    }),
  ))

it("pushes without end hold it up only for a moment, and leave nobody waiting behind", () =>
  run(
    Effect.gen(function* () {
      const all = gates()
      yield* Effect.forkChild(
        ofSchool(all, "north", () => Effect.never),
        { startImmediately: true },
      )
      const waiting = yield* Effect.forkChild(untilCalm(all, "north"), { startImmediately: true })
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(waiting)
      expect(all.bySchool.get("north")?.waiting.size).toBe(0)
    }),
  ))
