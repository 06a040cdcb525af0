import { expect, it } from "vitest"
import { slotName } from "../../src/down/source.ts"

const nameOf = (database: string) => slotName(`postgres://u@h/${encodeURIComponent(database)}`)

it("the slot is called like its database", () => {
  expect(nameOf("head_office")).toBe("schoolbus_head_office")
  expect(nameOf("a".repeat(53))).toBe(`schoolbus_${"a".repeat(53)}`)
})

it("databases of one server whose names differ only in what a slot's name cannot have get slots of different names", () => {
  const names = [
    "head_office",
    "head-office",
    "Head_Office",
    "head office",
    "schule_münchen",
    "schule_m_nchen",
    `${"x".repeat(60)}_1`,
    `${"x".repeat(60)}_2`,
  ]
  const slots = names.map(nameOf)
  expect(new Set(slots).size).toBe(names.length)
  for (const slot of slots) expect(slot).toMatch(/^schoolbus_[a-z0-9_]{1,53}$/)
  expect(nameOf("Head-Office")).toMatch(/^schoolbus_head_office_[0-9a-f]{6}$/)
})
