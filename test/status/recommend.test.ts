/** What a person is advised about two rows that want one unique value, and what is done without one. */
import { expect, test } from "vitest"
import { recommend } from "../../src/status/recommend.ts"

const now = Date.parse("2026-03-01T12:00:00Z")
const asked = (suggestion: string | null) => ({
  kind: "unique",
  status: "open",
  column: "c",
  suggestion,
  theirs: "{}",
  at: "2026-03-01T11:59:00Z",
  mineAt: null,
  theirsAt: null,
})

test.each([
  ['"amina2"', true],
  ['"1002-2"', true],
  ["12", false],
  ['"999"', false],
  ['"10.50"', false],
  ['"3f2b6c1e-7d0a-4a53-9b1e-0a1b2c3d4e5f"', false],
])("a free %s is taken without a person: %s", (suggestion, safe) => {
  expect(recommend(asked(suggestion), now)).toMatchObject({ keep: "rename_local", value: JSON.parse(suggestion), safe })
})
