import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import { expect, it } from "vitest"
import { reopen } from "../../src/down/reopen.ts"

/** When each life began, ms, while the clock goes on for so many seconds; each takes as long as its number says. */
const begins = (seconds: number, tookMs: (n: number) => number, isBack: (error: string) => Effect.Effect<void> = () => Effect.never) =>
  Effect.runPromise(
    Effect.gen(function* () {
      const at: Array<number> = []
      const life = Effect.gen(function* () {
        at.push(yield* Clock.currentTimeMillis)
        yield* Effect.sleep(tookMs(at.length))
        return yield* Effect.fail("broken")
      })
      yield* Effect.forkChild(reopen(life, isBack), { startImmediately: true })
      for (let i = 0; i < seconds * 20; i++) yield* TestClock.adjust("50 millis")
      return at
    }).pipe(Effect.scoped, Effect.provide(TestClock.layer())),
  )
const gaps = (at: ReadonlyArray<number>) => at.slice(1).map((ms, i) => ms - (at[i] ?? 0))

it("waits longer with each failure, and never long", async () => {
  const waits = gaps(await begins(120, () => 0))
  expect(waits[0]).toBeLessThanOrEqual(800)
  expect(Math.max(...waits)).toBeGreaterThan(2_000)
  expect(Math.max(...waits)).toBeLessThanOrEqual(7_550)
})

it("begins with short waits again after a life that was long, however many had failed before", async () => {
  const waits = gaps(await begins(160, (n) => (n === 12 ? 60_000 : 0)))
  expect(waits[11]).toBeLessThanOrEqual(60_800)
})

it("does not wait for what is back", async () => {
  const waits = gaps(
    await begins(
      30,
      () => 0,
      () => Effect.sleep(1_000),
    ),
  )
  expect(Math.max(...waits)).toBeLessThanOrEqual(1_050)
})
