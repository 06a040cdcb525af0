/** Long lists of rows that hang on each other or cannot be applied: they come right, in pieces, and programs go on writing. */
import { spawn } from "node:child_process"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { afterEach, beforeEach, expect, test } from "vitest"
import { openPulledSchool, type PulledSchool, SCHOOL } from "../support/pretend-hub.ts"
import { column, table } from "../support/school-file.ts"

const pupils = table(
  "pupils",
  [column("id"), column("school_id"), column("name", "text", { notNull: true }), column("number", "int"), column("phone")],
  { unique: [["number"]] },
)

let s: PulledSchool
beforeEach(async () => {
  s = await openPulledSchool([pupils])
})
afterEach(() => s.close())

const ROWS = 4_000
const id = (i: number) => `p${String(i).padStart(6, "0")}`
const fill = (number: (i: number) => number) => {
  for (let i = 0; i < ROWS; i++) s.hub.put("pupils", { id: id(i), school_id: SCHOOL, name: "n", number: number(i), phone: null })
}
const numbers = () => s.read("SELECT number FROM pupils ORDER BY id").flat().map(Number)
const behind = () => Number(s.one("SELECT count(*) FROM schoolbus_behind"))
const pages = { lineRows: 200, pageLines: 5 }
const all = (number: (i: number) => number) => Array.from({ length: ROWS }, (_, i) => number(i))

test.each([
  ["up by one", (i: number) => i + 1],
  ["down by one", (i: number) => i - 1],
  ["to the other end", (i: number) => ROWS - 1 - i],
  ["round in a circle", (i: number) => (i + 1) % ROWS],
] as ReadonlyArray<readonly [string, (i: number) => number]>)("unique numbers of thousands of rows move %s in one cut", async (_, number) => {
  fill((i) => i)
  await s.pull(pages)
  fill(number)
  expect(await s.pull(pages)).toMatchObject({ behind: 0 })
  expect(numbers()).toEqual(all(number))
})

test("a row that is deleted hands its number on along a chain over many pages", async () => {
  fill((i) => i)
  await s.pull(pages)
  s.hub.remove("pupils", id(ROWS - 1))
  for (let i = 0; i < ROWS - 1; i++) s.hub.put("pupils", { id: id(i), school_id: SCHOOL, name: "n", number: i + 1, phone: null })
  expect(await s.pull(pages)).toMatchObject({ behind: 0 })
  expect(numbers()).toEqual(all((i) => i + 1).slice(0, -1))
})

test("thousands of rows that a program's own rules refuse wait behind, cuts go on, and they follow when they can", async () => {
  s.program("CREATE TRIGGER closed BEFORE INSERT ON pupils WHEN NEW.number >= 10 BEGIN SELECT RAISE(ABORT, 'no room'); END")
  fill((i) => i)
  expect(await s.pull(pages)).toMatchObject({ behind: ROWS - 10 })
  s.hub.put("pupils", { id: id(1), school_id: SCHOOL, name: "changed", number: 1, phone: null })
  expect(await s.pull()).toMatchObject({ applied: true, behind: ROWS - 10 })
  expect(s.one(`SELECT name FROM pupils WHERE id = '${id(1)}'`)).toBe("changed")
  s.program("DROP TRIGGER closed")
  const restarted = await s.reopen()
  await s.run(restarted.retry)
  expect(behind()).toBe(0)
  expect(numbers()).toEqual(all((i) => i))
})

test("a program's own unique index, check and index on an expression hold up only the rows they refuse", async () => {
  s.program(`CREATE UNIQUE INDEX one_phone ON pupils (phone); CREATE INDEX by_name ON pupils (lower(name), number);
    CREATE TABLE seen (id); CREATE TRIGGER see AFTER INSERT ON pupils BEGIN INSERT INTO seen VALUES (NEW.id); END`)
  const row = (i: number, phone: string) => ({ id: id(i), school_id: SCHOOL, name: "n", number: i, phone })
  s.hub.put("pupils", row(1, "1"))
  s.hub.put("pupils", row(2, "1"))
  s.hub.put("pupils", row(3, "3"))
  expect(await s.pull()).toMatchObject({ behind: 1 })
  expect(s.read("SELECT error FROM schoolbus_behind")).toEqual([[expect.stringContaining("UNIQUE constraint failed: pupils.phone")]])
  expect(s.read("SELECT id FROM seen").flat()).toEqual([id(1), id(3)])
  // The two change places: the manifest does not know of this index, yet nothing is lost.
  s.hub.put("pupils", row(1, "3"))
  s.hub.put("pupils", row(3, "1"))
  s.hub.put("pupils", row(2, "2"))
  expect(await s.pull()).toMatchObject({ behind: 0 })
  expect(s.read("SELECT phone FROM pupils ORDER BY id").flat()).toEqual(["3", "2", "1"])
})

test("programs that write all the time never fail, while unique numbers move, rows are swept and batches are settled", async () => {
  fill((i) => i)
  await s.pull(pages)
  const writer = new URL("../support/competing-writer.ts", import.meta.url)
  const program = spawn(process.execPath, [writer.pathname, s.path], { stdio: ["pipe", "pipe", "inherit"] })
  const output: Array<string> = []
  program.stdout.on("data", (data: Buffer) => output.push(String(data)))
  await new Promise((resolve) => program.stdout.once("data", resolve))
  s.program("UPDATE pupils SET phone = 'mine'")
  fill((i) => i + 1)
  await s.pull(pages)
  for (const batch of s.unsettled()) s.hub.ledger(batch.number, batch.hash)
  await s.pull(pages)
  s.hub.entries.clear()
  s.hub.epoch = "e2"
  s.hub.put("pupils", { id: id(1), school_id: SCHOOL, name: "left", number: 1, phone: null })
  await s.pull(pages)
  program.stdin.end()
  await new Promise((resolve) => program.once("close", resolve))
  const { writes, failures } = JSON.parse(output.join("").trim().split("\n").at(-1) ?? "{}") as { writes: number; failures: number }
  expect(failures).toBe(0)
  // How many depends on how soon the cuts are in; some in each of the three.
  expect(writes).toBeGreaterThanOrEqual(3)
  expect(s.read("SELECT id, name FROM pupils")).toEqual([[id(1), "left"]])
})

test("a clock that is put back by a year holds up nothing", async () => {
  const year = 365 * 86_400_000
  let offset = 0
  const real = await Effect.runPromise(Clock.Clock)
  const wall = () => real.currentTimeMillisUnsafe() + offset
  const clock: Clock.Clock = Object.assign(Object.create(real), { currentTimeMillis: Effect.sync(wall), currentTimeMillisUnsafe: wall })
  const pull = async () => {
    const { header, lines, trailer } = await s.nextPage()
    return s.run(Effect.provideService(s.deliver.page(header, lines, trailer), Clock.Clock, clock))
  }
  // Long enough that a breath is due before the next.
  fill((i) => i)
  expect(await pull()).toMatchObject({ applied: true })
  offset = -year
  s.hub.put("pupils", { id: id(1), school_id: SCHOOL, name: "changed", number: 1, phone: null })
  expect(await pull()).toMatchObject({ applied: true })
  expect(s.one(`SELECT name FROM pupils WHERE id = '${id(1)}'`)).toBe("changed")
}, 20_000)
