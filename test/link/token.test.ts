import { expect, it } from "vitest"
import { judgeToken, nextToken, noTokens, printToken, type TokenState } from "../../src/link/token.ts"

const random = (n: number): string => n.toString(16).padStart(32, "0")
const text = (state: TokenState): string => printToken(state.number, state.secret)
const first = nextToken(noTokens, "", random(1))
const used: TokenState = { ...first, shown: true }
const second = nextToken(used, text(used), random(2))

it("hands out the first token to a file that has none", () => {
  expect(first).toEqual({ number: 1, secret: random(1), secretLast: "", shown: false })
  expect(judgeToken(first, text(first))).toBe("newest")
})

it("hands out the same token again when its answer was lost", () => {
  expect(judgeToken(first, "")).toBe("repeated")
  expect(nextToken(first, "", random(9))).toEqual(first)
  expect(judgeToken(second, text(used))).toBe("repeated")
})

it("takes a former token for a copy as soon as the newest was shown", () => {
  expect(judgeToken(used, "")).toBe("wrong")
  expect(judgeToken({ ...second, shown: true }, text(used))).toBe("wrong")
})

it("notices copies that strictly alternate", () => {
  let hub: TokenState = { ...second, shown: true }
  const copy = text(hub)
  hub = nextToken(hub, text(hub), random(3))
  hub = { ...hub, shown: true }
  expect(judgeToken(hub, copy)).toBe("wrong")
  expect(judgeToken(hub, text(hub))).toBe("newest")
})

it("goes on above the school's number when the hub was put back", () => {
  const school = printToken(40, random(40))
  expect(judgeToken(first, school)).toBe("ahead")
  const next = nextToken(first, school, random(41))
  expect(next.number).toBe(41)
  expect(judgeToken(next, school)).toBe("repeated")
})

it("takes nothing else", () => {
  for (const token of ["x", "1", "1.", `0.${random(1)}`, `1.${random(2)}`, `-1.${random(1)}`, `1.${random(1)} `, "1.é".padEnd(34, "0")]) {
    expect(judgeToken(first, token)).toBe("wrong")
  }
})
