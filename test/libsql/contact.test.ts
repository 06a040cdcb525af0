import { afterAll, beforeAll, expect, test } from "vitest"
import { CONTACTS_OF_BATCH, clockAhead, noteContact } from "../../src/libsql/contact.ts"
import { column, openSchoolFile, type SchoolFile, table } from "../support/school-file.ts"

let school: SchoolFile
beforeAll(async () => {
  school = await openSchoolFile([table("pupils", [column("id", "text", { notNull: true }), column("name")])])
})
afterAll(() => school.close())

const write = (id: string) => school.program("INSERT INTO pupils (id) VALUES (?)", [id])
const heard = (own: number, server: number) => school.write((tx) => noteContact(tx, own, server))
const contacts = () => (school.batches().at(-1)?.lines[0] as [string, { contacts: unknown }] | undefined)?.[1].contacts

test("a batch carries the last contact before its writes and those between them, whatever the clock said", async () => {
  await heard(1_000, 2_000)
  await heard(1_100, 2_100)
  write("a")
  await heard(5, 3_000)
  await heard(6, 3_001)
  write("b")
  await heard(9e12, 4_000)
  await school.freeze()
  expect(contacts()).toEqual([
    [0, 1_100, 2_100],
    [1, 6, 3_001],
  ])
})

test("the last contact says how far the clock is ahead, also after it was put back", async () => {
  const ahead = () => school.write(clockAhead)
  expect(await ahead()).toBe(9e12 - 4_000)
  await heard(500, 4_500)
  expect(await ahead()).toBe(-4_000)
})

test("contacts before the oldest open write go, except the last", async () => {
  await heard(1, 5_000)
  expect(school.read("SELECT change, server FROM schoolbus_contact")).toEqual([[2n, 5_000n]])
})

test("of many contacts a batch carries some, the first and the last among them", async () => {
  for (let i = 0; i < CONTACTS_OF_BATCH * 3; i++) {
    write(`many ${i}`)
    await heard(i, 10_000 + i)
  }
  write("last")
  await school.freeze()
  const carried = contacts() as ReadonlyArray<ReadonlyArray<number>>
  expect(carried.length).toBeLessThanOrEqual(CONTACTS_OF_BATCH + 1)
  expect([carried[0]?.[2], carried.at(-1)?.[2]]).toEqual([5_000, 10_000 + CONTACTS_OF_BATCH * 3 - 1])
})
