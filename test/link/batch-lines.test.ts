/** The lines of a pushed batch, read quickly, are those that the protocol's schema reads. */
import fc from "fast-check"
import { expect, it } from "vitest"
import { decodeBatch } from "../../src/link/frame.ts"
import { ChangeLine } from "../../src/link/protocol.ts"

const wire = fc.oneof(fc.constant(null), fc.boolean(), fc.integer(), fc.double({ noNaN: true, noDefaultInfinity: true }), fc.string())
const odd = fc.oneof(
  wire,
  fc.constant({ refused: "text", hex: "ff" }),
  fc.array(wire, { maxLength: 2 }),
  fc.dictionary(fc.string(), wire, { maxKeys: 2 }),
)
const values = fc.oneof(fc.dictionary(fc.string(), fc.oneof({ weight: 9, arbitrary: wire }, { weight: 1, arbitrary: odd }), { maxKeys: 4 }), odd)
const usually = <A, B>(good: fc.Arbitrary<A>, bad: fc.Arbitrary<B>) => fc.oneof({ weight: 12, arbitrary: good }, { weight: 1, arbitrary: bad })
const change = fc.record(
  {
    id: usually(fc.nat(), odd),
    table: usually(fc.constant("public.pupils"), odd),
    op: usually(fc.constantFrom("insert", "update", "delete"), odd),
    key: usually(fc.array(wire, { maxLength: 2 }), odd),
    newKey: usually(fc.array(wire, { maxLength: 2 }), odd),
    at: usually(fc.double({ noNaN: true, noDefaultInfinity: true }), odd),
    base: values,
    mine: values,
    more: wire,
  },
  { requiredKeys: ["id", "table", "op", "key", "at", "base", "mine"] },
)

it("whatever a line holds, it is read as the schema reads it, or kept raw", () => {
  const header = JSON.stringify(["batch", { incarnation: crypto.randomUUID(), number: 1, manifest: 1, contacts: [], changes: 1 }])
  fc.assert(
    fc.property(usually(change, odd), (line) => {
      const raw = JSON.stringify(line)
      const decoded = decodeBatch(`${header}\n${raw}\n`)
      const wanted = ChangeLine.safeParse(JSON.parse(raw))
      if ("refused" in decoded) throw new Error(decoded.refused)
      expect(decoded.ok.batch.changes).toEqual(wanted.success ? [wanted.data] : [])
      expect(decoded.ok.unreadable.map((one) => one.raw)).toEqual(wanted.success ? [] : [raw])
    }),
    { numRuns: 2_000 },
  )
})
