import { expect, test } from "vitest"
import { Frames } from "../../src/postgres/frames.ts"

const frame = (type: string, content: Buffer): Buffer => {
  const head = Buffer.alloc(5)
  head.write(type, 0, "latin1")
  head.writeUInt32BE(content.length + 4, 1)
  return Buffer.concat([head, content])
}

const sizes = [0, 1, 3, 4, 60_000, 0, 70_000, 300_000, 2, 65_531, 5]
const sent = sizes.map((size, i) => frame("dkZ"[i % 3] as string, Buffer.alloc(size, i + 1)))

/** What comes out when the stream comes in pieces of these sizes, one after another. */
const split = (pieces: ReadonlyArray<number>): ReadonlyArray<Buffer> => {
  const all = Buffer.concat(sent)
  const taken: Array<Buffer> = []
  const frames = new Frames((bytes, start, end) => void taken.push(Buffer.from(bytes.subarray(start, end))))
  for (let at = 0, i = 0; at < all.length; i++) {
    const size = pieces[i % pieces.length] as number
    frames.push(Buffer.from(all.subarray(at, at + size)))
    at += size
  }
  return taken
}

test.each([[[1]], [[2, 3]], [[4, 5, 6]], [[7]], [[1000]], [[65_536]], [[65_541, 1]], [[10_000_000]], [[1, 100_000]]])(
  "messages come out whole, in order and unchanged when they arrive in pieces of %j bytes",
  (pieces) => {
    const taken = split(pieces)
    expect(taken.length).toBe(sent.length)
    expect(taken.every((bytes, i) => bytes.equals(sent[i] as Buffer))).toBe(true)
  },
)

test("what a piece leaves unfinished does not depend on the piece's memory", () => {
  const taken: Array<string> = []
  const frames = new Frames((bytes, start, end) => void taken.push(bytes.toString("latin1", start + 5, end)))
  const piece = Buffer.from(frame("d", Buffer.from("first and second half")))
  const first = Buffer.from(piece.subarray(0, 12))
  frames.push(first)
  first.fill(0)
  frames.push(piece.subarray(12))
  expect(taken).toEqual(["first and second half"])
})
