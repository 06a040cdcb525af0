import { expect, it } from "vitest"
import { showText } from "../../src/cli/conflicts.ts"
import type { ConflictRecord } from "../../src/status/records.ts"

const PLAIN = { color: false, unicode: false }
const record: ConflictRecord = {
  id: "c1",
  school: "north",
  table: "public.pupils",
  key: '["7"]',
  column: null,
  base: '{"id":"7","name":"Amina"}',
  mine: '{"id":"7","name":"Asha"}',
  theirs: "null",
  kept: "null",
  winner: "vps",
  strategy: "vps_wins",
  reason: "the school changed the row, head office deleted it",
  status: "decided",
  at: "2026-03-03T07:00:00Z",
  decidedBy: null,
  decidedAt: null,
  kind: "row",
  mineAt: null,
  theirsAt: null,
  uniqueColumns: null,
  suggestion: null,
  quarantine: null,
  recommendation: null,
  requested: null,
}

it("tells a row that is gone from a column that is empty", () => {
  expect(showText(PLAIN, record)).toContain("Office has   (no row)\n")
  expect(showText(PLAIN, { ...record, column: "name", kind: "column" })).toContain("Office has   null\n")
})

it("says of a decision that was undone that it was taken back", () => {
  const by = { decidedBy: "amina", decidedAt: "2026-03-04T07:00:00Z" }
  expect(showText(PLAIN, { ...record, ...by, status: "resolved" })).toContain("decided 2026-03-04T07:00:00Z by amina")
  expect(showText(PLAIN, { ...record, ...by, status: "open" })).toContain("taken back 2026-03-04T07:00:00Z by amina")
})
