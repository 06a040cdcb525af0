/** What comes down beside thousands of values that wait for a person: cuts of one row, in a school with and without them. */
import { column, table } from "../support/school-file.ts"
import { openPulledSchool, SCHOOL } from "../support/pretend-hub.ts"
import { atMost, bench } from "./frame.ts"

const CUTS = 40

export default bench({
  name: "held",
  about: "cuts of one row into a school where values wait for a person, against the same without any",
  bars: { cuts: { what: `${CUTS} cuts beside 40,000 values that wait`, unit: "ms", want: atMost(4) } },
  run: async function* ({ rounds, size }) {
    const held = size(40_000, 10_000)
    for (let round = 0; round < rounds; round++) {
      const school = await openPulledSchool([table("pupils", [column("id", "int"), column("school_id"), column("name")])])
      const pullOneByOne = async (from: number): Promise<number> => {
        const began = performance.now()
        for (let id = from; id < from + CUTS; id++) {
          school.hub.put("pupils", { id, school_id: SCHOOL, name: "new" })
          await school.pull()
        }
        return performance.now() - began
      }
      try {
        await pullOneByOne(1)
        const peer = await pullOneByOne(1_001)
        school.program(`INSERT INTO schoolbus_hold (tbl, key, col, record, at)
          WITH RECURSIVE n (i) AS (SELECT 100001 UNION ALL SELECT i + 1 FROM n WHERE i < ${100_000 + held})
          SELECT t.id, n.i, '', 'q' || n.i, 0 FROM n, schoolbus_tables t WHERE t.local = 'pupils'`)
        school.program(`INSERT INTO schoolbus_quarantine (id, school, change_id, change, status)
          SELECT record, '${SCHOOL}', key, '{}', 'open' FROM schoolbus_hold`)
        yield { bar: "cuts", figure: await pullOneByOne(2_001), peer }
      } finally {
        await school.close()
      }
    }
  },
})
