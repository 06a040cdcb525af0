import { expect, test } from "vitest"
import { atLeast, atMost, bench, judge, printTable, under } from "./frame.ts"

const one = bench({
  name: "example",
  about: "",
  bars: {
    rate: { what: "rows", unit: "rows/s", want: atLeast(0.9) },
    cost: { what: "cost", unit: "ms", want: atMost(2) },
    late: { what: "latency", unit: "ms", want: under(5, 3) },
    size: { what: "memory", unit: "MiB", want: under(300) },
    told: { what: "for information", unit: "B" },
  },
  run: async function* () {},
})

test("a bar is judged on the round in the middle, whose figure, peer and ratio stand together", () => {
  const [rate] = judge(one, [
    { bar: "rate", figure: 50, peer: 100 },
    { bar: "rate", figure: 190, peer: 200 },
    { bar: "rate", figure: 400, peer: 100 },
  ])
  expect(rate).toMatchObject({ figure: 190, peer: 200, ratio: 0.95, met: true, bar: ">= 0.9 x" })
})

test("each kind of bar is met and missed where it says", () => {
  const met = (bar: keyof typeof one.bars, figure: number, peer?: number) =>
    judge(one, [{ bar, figure, ...(peer === undefined ? {} : { peer }) }]).find((v) => v.figure !== null)?.met
  expect([met("rate", 90, 100), met("rate", 89, 100)]).toEqual([true, false])
  expect([met("cost", 2, 1), met("cost", 2.1, 1)]).toEqual([true, false])
  expect([met("late", 7.9, 1), met("late", 8, 1)]).toEqual([true, false])
  expect([met("size", 299), met("size", 300)]).toEqual([true, false])
  expect([met("told", 1), met("rate", 90)]).toEqual([null, false])
})

test("a bar without a sample is neither met nor missed", () => {
  const verdicts = judge(one, [])
  expect(verdicts.map((v) => v.met)).toEqual([null, null, null, null, null])
  expect(printTable(verdicts)).toContain("not measured")
})
