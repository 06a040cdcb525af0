/** Cuts that come in many pages: classes that show before the rest has come, and staging that never becomes a cut. */
import * as Effect from "effect/Effect"
import { afterEach, beforeEach, expect, test } from "vitest"
import type { LibsqlFile } from "../../src/libsql/client.ts"
import { openPulledSchool, type PulledSchool, SCHOOL } from "../support/pretend-hub.ts"
import { column, table } from "../support/school-file.ts"

const alarms = table("alarms", [column("id"), column("school_id"), column("text"), column("code")], { priority: "critical", unique: [["code"]] })
const pupils = table("pupils", [column("id"), column("school_id"), column("name")], { priority: "medium" })
const photos = table("photos", [column("id"), column("school_id"), column("name")], { priority: "background" })

let s: PulledSchool
beforeEach(async () => {
  s = await openPulledSchool([photos, pupils, alarms])
})
afterEach(() => s.close())

const alarm = (id: string, more: Record<string, string> = {}) => ({ id, school_id: SCHOOL, text: `alarm ${id}`, code: `code ${id}`, ...more })
const pupil = (id: string, name = id) => ({ id, school_id: SCHOOL, name })
const fill = () => {
  for (let i = 0; i < 4; i++) {
    s.hub.put("photos", pupil(`f${i}`))
    s.hub.put("pupils", pupil(`p${i}`))
    s.hub.put("alarms", alarm(`a${i}`))
  }
}
const ids = (local: string) => s.read(`SELECT id FROM ${local} ORDER BY id`).flat().map(String)
const shown = () => ["alarms", "pupils", "photos"].map((local) => ids(local).length)
const applying = () => s.one("SELECT applying ->> 'above' FROM schoolbus_state")
const options = { lineRows: 2, pageLines: 1 }

test("the rows of a class show as soon as they are all here, while the cursor waits for the whole cut", async () => {
  fill()
  const seen: Array<ReadonlyArray<number>> = []
  for (;;) {
    const { applied, cursor } = await s.pullPage(options)
    seen.push(shown())
    if (applied) break
    expect(cursor).toMatchObject({ epoch: "", seq: 0 })
  }
  expect(seen).toEqual([
    [0, 0, 0],
    [0, 0, 0],
    [4, 0, 0],
    [4, 0, 0],
    [4, 4, 0],
    [4, 4, 4],
  ])
  expect((await s.run(s.deliver.position)).cursor).toMatchObject({ epoch: "e1", seq: 12 })
  expect(applying()).toBe(null)
  expect(s.read("SELECT * FROM schoolbus_stage UNION ALL SELECT cls, seq, rows, bytes, NULL, NULL FROM schoolbus_staged")).toEqual([])
})

test("a write of a program on a row that shows early goes up with the base it saw, and is not undone by the rest of the cut", async () => {
  fill()
  for (let i = 0; i < 3; i++) await s.pullPage(options)
  s.program("UPDATE alarms SET text = 'seen' WHERE id = 'a1'")
  s.hub.put("alarms", alarm("a1", { text: "changed meanwhile" }))
  s.hub.put("alarms", alarm("a2", { text: "changed meanwhile" }))
  s.hub.remove("alarms", "a3")
  await s.pull(options)
  expect(s.read("SELECT id, text FROM alarms ORDER BY id")).toEqual([
    ["a0", "alarm a0"],
    ["a1", "seen"],
    ["a2", "changed meanwhile"],
  ])
  expect(s.unsettled().flatMap((batch) => batch.changes)).toMatchObject([{ op: "update", base: { text: "alarm a1" }, mine: { text: "seen" } }])
})

test("unique values that swap between rows of a class show early, too", async () => {
  for (let i = 0; i < 4; i++) s.hub.put("alarms", alarm(`a${i}`))
  await s.pull()
  for (let i = 0; i < 4; i++) s.hub.put("alarms", alarm(`a${i}`, { code: `code a${(i + 1) % 4}` }))
  s.hub.put("photos", pupil("f1"))
  s.hub.put("photos", pupil("f2"))
  s.hub.put("photos", pupil("f3"))
  for (let i = 0; i < 3; i++) await s.pullPage({ lineRows: 1, pageLines: 2 })
  expect(applying()).toBe(1n)
  expect(s.read("SELECT code FROM alarms ORDER BY id").flat()).toEqual(["code a1", "code a2", "code a3", "code a0"])
})

test("a restart between the classes goes on with the cut where it was", async () => {
  fill()
  for (let i = 0; i < 4; i++) await s.pullPage(options)
  const restarted = await s.reopen()
  await s.run(restarted.resume)
  expect(shown()).toEqual([4, 0, 0])
  expect(applying()).toBe(5n)
  for (let applied = false; !applied; ) {
    const { header, lines, trailer } = await s.nextPage(options, restarted)
    expect(lines.some((line) => line[1] === 10)).toBe(false)
    applied = (await s.run(restarted.page(header, lines, trailer))).applied
  }
  expect(shown()).toEqual([4, 4, 4])
})

test("when the rest of a cut never comes, what showed of it is compared with head office's state", async () => {
  fill()
  await s.pull()
  const kept = new Map(s.hub.entries)
  const { seq } = s.hub
  s.hub.put("alarms", alarm("ghost"))
  s.hub.remove("alarms", "a0")
  for (let i = 4; i < 9; i++) s.hub.put("photos", pupil(`f${i}`))
  await s.pullPage(options)
  await s.pullPage(options)
  expect(ids("alarms")).toEqual(["a1", "a2", "a3", "ghost"])
  // The hub is put back to a state before that: it knows the school's cursor, but nothing of what came since.
  s.hub.entries.clear()
  for (const [id, entry] of kept) s.hub.entries.set(id, entry)
  s.hub.seq = seq
  s.hub.forgetCutsAfter(seq)
  s.hub.put("pupils", pupil("p9"))
  await s.pull(options)
  expect(ids("alarms")).toEqual(["a0", "a1", "a2", "a3"])
  expect(ids("photos")).toEqual(["f0", "f1", "f2", "f3"])
  expect(ids("pupils")).toContain("p9")
})

test("lines of a discard that was interrupted never count", async () => {
  for (let i = 0; i < 300; i++) s.hub.put("alarms", alarm(`ghost ${i}`))
  await s.pullPage({ lineRows: 1, pageLines: 250 })
  s.hub.entries.clear()
  s.hub.epoch = "e2"
  fill()
  // The first write makes the lines count no more, the second one would remove the first of them.
  let writes = 0
  const mortal: LibsqlFile = { ...s.file, write: (body) => (++writes < 2 ? s.file.write(body) : Effect.die("killed")) }
  const dying = await s.reopen(mortal)
  const page = await s.nextPage(options, dying)
  await Effect.runPromiseExit(dying.page(page.header, page.lines, page.trailer))
  expect(Number(s.one("SELECT count(*) FROM schoolbus_stage"))).toBeGreaterThan(0)
  expect((await s.run(s.deliver.position)).staged).toBe(null)
  await s.pull(options)
  expect(shown()).toEqual([4, 4, 4])
})

test("what came is counted over all connections", async () => {
  fill()
  await s.pullPage(options)
  const { header, lines } = await s.nextPage({ lineRows: 1 })
  const cut = await s.run(s.deliver.page(header, lines.slice(0, 3), null))
  expect(cut).toMatchObject({ rows: 3, received: { rows: 5 } })
  const whole = await s.pull()
  expect(whole).toMatchObject({ rows: 7, received: { rows: 12 } })
  expect(whole.received.bytes).toBeGreaterThan(cut.received.bytes)
})
