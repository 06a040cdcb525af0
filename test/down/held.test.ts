/** Thousands of changes may wait for a person, for a program wrote a whole table. */
import { afterEach, beforeEach, expect, test } from "vitest"
import { openPulledSchool, type PulledSchool, SCHOOL } from "../support/pretend-hub.ts"
import { column, table } from "../support/school-file.ts"

const pupils = table("pupils", [column("id", "int"), column("school_id"), column("name")])
const HELD = 40_000

let s: PulledSchool
beforeEach(async () => {
  s = await openPulledSchool([pupils])
})
afterEach(() => s.close())

const record = (id: number, status: string): void =>
  s.hub.put("schoolbus_quarantine", { id: `q${id}`, school: SCHOOL, change_id: String(id), change: "{}", status })

test("of thousands of changes that wait for a person those that are decided end", async () => {
  s.hub.put("pupils", { id: 1, school_id: SCHOOL, name: "new" })
  await s.pull()
  s.program(`INSERT INTO schoolbus_hold (tbl, key, col, record, at)
    WITH RECURSIVE n (i) AS (SELECT 100001 UNION ALL SELECT i + 1 FROM n WHERE i < ${100_000 + HELD})
    SELECT t.id, n.i, '', 'q' || n.i, 0 FROM n, schoolbus_tables t WHERE t.local = 'pupils'`)
  s.program(`INSERT INTO schoolbus_quarantine (id, school, change_id, change, status)
    SELECT record, '${SCHOOL}', key, '{}', 'open' FROM schoolbus_hold`)
  for (let id = 100_001; id <= 100_010; id++) record(id, "retried")
  await s.pull()
  expect(s.one("SELECT count(*) FROM schoolbus_hold")).toBe(BigInt(HELD - 10))
})

test("a decision that a program's trigger kept out ends what it held as soon as the trigger is gone", async () => {
  s.hub.put("pupils", { id: 1, school_id: SCHOOL, name: "before" })
  await s.pull()
  s.program("UPDATE pupils SET name = 'mine'")
  await s.freezeAll()
  const [batch] = s.unsettled()
  const id = batch?.changes[0]?.id ?? 0
  s.hub.put("schoolbus_conflicts", { id: "c1", school: SCHOOL, table_name: "public.pupils", column_name: "name", status: "open" })
  s.hub.ledger(1, batch?.hash ?? "", [{ id, verdict: "conflict", record: "c1", hold: true, columns: ["name"] }])
  s.hub.put("pupils", { id: 1, school_id: SCHOOL, name: "theirs" })
  await s.pull()
  s.program("CREATE TRIGGER no BEFORE UPDATE ON schoolbus_conflicts BEGIN SELECT RAISE(ABORT, 'not here'); END")
  s.hub.put("schoolbus_conflicts", { id: "c1", school: SCHOOL, table_name: "public.pupils", column_name: "name", status: "resolved" })
  await s.pull()
  expect(s.one("SELECT name FROM pupils")).toBe("mine")
  s.program("DROP TRIGGER no")
  s.hub.put("pupils", { id: 2, school_id: SCHOOL, name: "other" })
  await s.pull()
  expect(s.read("SELECT name FROM pupils ORDER BY id")).toEqual([["theirs"], ["other"]])
  expect(s.one("SELECT count(*) FROM schoolbus_hold")).toBe(0n)
})
