import { expect, test } from "vitest"
import { type Outgoing, piecesOf } from "../../src/http/outgoing.ts"
import { type Header, PAGE_BYTES } from "../../src/link/protocol.ts"

const LINES = 5

/** A page whose lines all lie ready. */
const ready = (leftBytes: number): Outgoing => {
  const header = { leftBytes } as Header
  const lines = Array.from({ length: LINES }, (_, i) => String(i).repeat(64 * 1024))
  return { header, empty: false, next: async () => lines.shift() ?? null, hasNext: () => lines.length > 0, whole: new Promise(() => undefined) }
}

/** How often the event loop had turned when each piece came. */
const turnsAt = async (page: Outgoing): Promise<ReadonlyArray<number>> => {
  let turns = 0
  let next = setImmediate(function turn() {
    turns++
    next = setImmediate(turn)
  })
  const at: Array<number> = []
  for await (const _ of piecesOf(page)) at.push(turns)
  clearImmediate(next)
  return at
}

test("a short page goes out piece by piece: between two of them other work has its turn, the network's too", async () => {
  const turns = await turnsAt(ready(PAGE_BYTES / 2))
  expect(turns).toHaveLength(LINES)
  for (let i = 1; i < LINES; i++) expect(turns[i]).toBeGreaterThan(turns[i - 1] as number)
})

test("the first rows of a short page go before the many that are still being read; what is there already goes with them", async () => {
  const sizes = async (...isThere: ReadonlyArray<boolean>): Promise<ReadonlyArray<number>> => {
    const lines = ["header", "rows", "rows", "rows"]
    const page = { ...ready(PAGE_BYTES / 2), next: async () => lines.shift() ?? null, hasNext: () => isThere[4 - lines.length - 1] === true }
    const counts: Array<number> = []
    for await (const piece of piecesOf(page)) if (typeof piece === "object") counts.push(piece.frame.split("\n").length - 1)
    return counts
  }
  expect(await sizes(true, false)).toEqual([2, 2])
  expect(await sizes(true, true)).toEqual([4])
})

test("a page of a long copy is one frame of many pieces", async () => {
  const pieces: Array<unknown> = []
  for await (const piece of piecesOf(ready(2 * PAGE_BYTES))) pieces.push(typeof piece)
  expect(pieces).toEqual([...Array(LINES).fill("string"), "symbol"])
})
