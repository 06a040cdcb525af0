import { expect, it } from "vitest"
import { backoffMs } from "../../src/link/backoff.ts"

it("waits longer each time, up to half a minute on average", () => {
  const waits = Array.from({ length: 12 }, (_, failures) => backoffMs(failures, 0, 0.5))
  expect(waits.slice(0, 4)).toEqual([500, 1000, 2000, 4000])
  expect(waits.at(-1)).toBe(30_000)
  expect(backoffMs(1_000, 0, 0.999)).toBeLessThan(45_000)
})

it("schools that lost the hub at one moment come back over a long time", () => {
  expect([0, 0.25, 0.5, 0.75, 1].map((random) => backoffMs(4, 0, random))).toEqual([4000, 6000, 8000, 10_000, 12_000])
})

it("waits at least as long as the hub asked for, and never all at once", () => {
  expect(backoffMs(0, 120_000, 0)).toBe(120_000)
  expect(backoffMs(0, 120_000, 1)).toBe(180_000)
  expect(backoffMs(20, 1_000, 1)).toBe(45_000)
})
