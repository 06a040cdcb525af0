import fc from "fast-check"
import { expect, test } from "vitest"
import { Frames } from "../../src/postgres/frames.ts"
import { freePieces, Messages, RawMessage } from "../../src/postgres/messages.ts"

const message = (content: Buffer, lsn: bigint): Buffer => {
  const head = Buffer.alloc(30, 0xff)
  head.write("d", 0, "latin1")
  head.writeUInt32BE(head.length - 1 + content.length, 1)
  head.write("w", 5, "latin1")
  head.writeBigUInt64BE(lsn, 6)
  return Buffer.concat([head, content])
}
const other = Buffer.from([90, 0, 0, 0, 5, 73])

/** What comes of the bytes when they arrive in pieces of these sizes; other frames of the protocol are passed over. */
const read = (encoding: "utf8" | "latin1", bytes: Buffer, pieces: ReadonlyArray<number>) => {
  const messages = new Messages({ encoding, commit: { at: 0, byte: 67 } })
  const frames = new Frames((piece, start, end) => {
    if (piece[start] === 100) messages.add(piece, start, end)
  })
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const size = pieces[i % pieces.length] as number
    frames.push(Buffer.from(bytes.subarray(at, at + size)))
    messages.close()
    at += size
  }
  return messages
}

test("messages come out whole and in order, with the position of each commit, however their bytes arrive", () => {
  const text = fc.string({
    unit: fc.constantFrom("a", "é", "€", "😀", '"', "\\", "\ufeff"),
  })
  const part = fc.record({
    text,
    isCommit: fc.boolean(),
    isOther: fc.boolean(),
  })
  fc.assert(
    fc.property(fc.array(part, { maxLength: 12 }), fc.array(fc.integer({ min: 1, max: 200 }), { minLength: 1 }), (parts, pieces) => {
      const texts = parts.map(({ text, isCommit }) => (isCommit ? "C" : "I") + text)
      const bytes = Buffer.concat(texts.flatMap((one, i) => [message(Buffer.from(one), BigInt(i)), ...(parts[i]?.isOther === true ? [other] : [])]))
      const found = read("utf8", bytes, pieces)
      expect(found.all.map(String)).toEqual(texts)
      expect(found.commits).toEqual(parts.flatMap(({ isCommit }, index) => (isCommit ? [{ index, lsn: BigInt(index) }] : [])))
      expect(found.bytes).toBe(texts.reduce((sum, one) => sum + Buffer.byteLength(one), 0))
    }),
  )
})

test("messages of bytes keep every byte", () => {
  const content = fc.uint8Array({ minLength: 1, maxLength: 80 })
  fc.assert(
    fc.property(fc.array(content, { maxLength: 12 }), fc.integer({ min: 1, max: 300 }), (contents, size) => {
      const found = read("latin1", Buffer.concat(contents.map((one) => message(Buffer.from(one), 1n))), [size])
      expect(found.all.map(String)).toEqual(contents.map((one) => Buffer.from(one).toString("latin1")))
    }),
  )
})

test("pieces are given back when their messages are through, but for what the next message or somebody else needs", () => {
  const piece = (length: number) => Buffer.allocUnsafeSlow(length).fill(97)
  const shared = piece(100)
  const pieces = [piece(10), piece(20), shared.subarray(0, 50), piece(30)] as const
  const [first, second, part, third] = pieces
  const messages = [first, first, second, part, third].map((bytes) => new RawMessage(bytes, 0, 5))
  const next = new RawMessage(third, 5, 10)
  freePieces([...messages, "text"], next)
  expect(pieces.map(({ length }) => length)).toEqual([0, 0, 50, 30])
  expect(String(next)).toBe("aaaaa")
  freePieces([next, "text"], undefined)
  expect(third.length).toBe(0)
})
