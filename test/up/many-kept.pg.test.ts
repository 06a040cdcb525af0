/** A program's statement over a whole table may leave thousands of changes in quarantine. What else a school sends takes no longer for them. */
import { afterAll, beforeAll, expect, test } from "vitest"
import { openOffice } from "./office.ts"

let o: Awaited<ReturnType<typeof openOffice>>
beforeAll(async () => {
  o = await openOffice("CREATE TABLE pupils (id int PRIMARY KEY, school_id text, name text)", { pupils: {} })
})
afterAll(() => o?.close())

const KEPT = 12_000
const ROWS = 1_500

test("rows are looked for among thousands that wait by their keys, also before Postgres has counted those", async () => {
  const a = o.school("a")
  /** Of no school: they wait in quarantine. */
  const insert = (from: number, rows: number) =>
    a.push(Array.from({ length: rows }, (_, i) => ({ table: "pupils", op: "insert" as const, key: [from + i], mine: { id: from + i } })))
  const took = async (act: () => Promise<unknown>): Promise<number> => {
    const began = performance.now()
    await act()
    return performance.now() - began
  }
  await o.sql("ALTER TABLE schoolbus.quarantine SET (autovacuum_enabled = false)")
  // After some of them Postgres keeps a statement's plan, until it has counted again.
  for (let i = 0; i < 10; i++) await insert(1 + 10 * i, 10)
  const few = await took(() => insert(10_001, ROWS))
  await o.sql(`INSERT INTO schoolbus.quarantine (id, school, incarnation, batch, change_id, table_name, row_key, op, change, reason, detail)
    SELECT gen_random_uuid(), 'a', '${a.incarnation}', 1, n, 'public.pupils', '[' || n || ']', 'insert', '{}', 'no_audience', '' FROM generate_series(100001, ${100_000 + KEPT}) n`)
  const many = await took(() => insert(20_001, ROWS))
  expect(many).toBeLessThan(4 * few)
})
