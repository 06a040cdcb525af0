import { createHash } from "node:crypto"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { afterEach, expect, it } from "vitest"
import { LinkDown, LinkRefused } from "../../src/link/answer.ts"
import { bytesOf } from "../../src/libsql/store-batch.ts"
import type { Link } from "../../src/link/client.ts"
import type { OutgoingBatch } from "../../src/link/parts.ts"
import type { Exception, Verdicts } from "../../src/model/change.ts"
import { sendAgainFrom } from "../../src/up/again.ts"
import { KEEP_BYTES, KEEP_DAYS, trim } from "../../src/up/trim.ts"
import { pushAll } from "../../src/up/up.ts"
import { until } from "../support/until.ts"
import { column, openSchoolFile, type SchoolFile, table } from "../support/school-file.ts"

const pupils = table("pupils", [column("id", "text", { notNull: true }), column("school_id"), column("name")])
const who = { incarnation: "x", token: "1.a" }

const made: Array<SchoolFile> = []
afterEach(async () => {
  for (const school of made.splice(0)) await school.close()
})
const newSchool = async (tables = [pupils]): Promise<SchoolFile> => {
  const school = await openSchoolFile(tables)
  made.push(school)
  return school
}

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex")

/** A hub with a ledger, which takes batches only in order. */
const hubOf = (exceptions: ReadonlyArray<Exception> = []) => {
  const ledger: Array<string> = []
  const sent: Array<number> = []
  const push = (_: unknown, batch: OutgoingBatch): Effect.Effect<Verdicts, LinkDown | LinkRefused> =>
    Effect.andThen(
      hub.way(batch.number),
      Effect.suspend((): Effect.Effect<Verdicts, LinkDown | LinkRefused> => {
        sent.push(batch.number)
        if (hub.isDown) return Effect.fail(new LinkDown({ message: "down" }))
        const known = ledger[batch.number - 1]
        if (known === undefined && batch.number > ledger.length + 1) {
          return Effect.fail(new LinkRefused({ status: 409, code: "batch_gap", message: "gap", expected: ledger.length + 1 }))
        }
        expect(known ?? batch.hash).toBe(batch.hash)
        expect([batch.hash, batch.bytes]).toEqual([sha256(batch.bytes), bytesOf(batch.pressed ?? new Uint8Array())])
        ledger[batch.number - 1] = batch.hash
        return hub.losesAnswers
          ? Effect.fail(new LinkDown({ message: "answer lost" }))
          : Effect.succeed({ batch: batch.number, hash: batch.hash, changes: 1, exceptions })
      }),
    )
  const pack = (batch: OutgoingBatch) => Effect.succeed({ ...batch, parts: 1 })
  const hub = {
    ledger,
    sent,
    isDown: false,
    losesAnswers: false,
    way: (_: number): Effect.Effect<unknown> => Effect.void,
    link: { push, pack } as unknown as Link,
  }
  return hub
}
const insert = (school: SchoolFile, id: string) => school.program("INSERT INTO pupils (id, school_id, name) VALUES (?, 's1', 'n')", [id])
const answered = (school: SchoolFile) =>
  school.read("SELECT number FROM schoolbus_batch WHERE answered_at IS NOT NULL ORDER BY number").map(([n]) => Number(n))
const push = (school: SchoolFile, hub: ReturnType<typeof hubOf>) => Effect.runPromise(Effect.result(pushAll(school.file, hub.link, who)))

it("what programs wrote goes up in numbered batches, each once", async () => {
  const school = await newSchool()
  const hub = hubOf([{ id: 1, verdict: "conflict" }])
  insert(school, "a")
  expect(await push(school, hub)).toMatchObject({ success: { changes: 1, conflicts: 1 } })
  insert(school, "b")
  await push(school, hub)
  expect(await push(school, hub)).toMatchObject({ success: { changes: 0 } })
  expect([hub.sent, answered(school)]).toEqual([
    [1, 2],
    [1, 2],
  ])
})

it("a batch whose answer was lost goes again unchanged, before anything newer", async () => {
  const school = await newSchool()
  const hub = hubOf()
  hub.losesAnswers = true
  insert(school, "a")
  expect(await push(school, hub)).toMatchObject({ failure: { _tag: "LinkDown" } })
  insert(school, "b")
  hub.losesAnswers = false
  await push(school, hub)
  expect([hub.sent, answered(school)]).toEqual([
    [1, 1, 2],
    [1, 2],
  ])
})

it("changes are counted by table, of batches that were just made and of those that lie in the file", async () => {
  const school = await newSchool([pupils, table("marks", [column("id", "text", { notNull: true }), column("points", "float")])])
  const hub = hubOf()
  const write = (from: number) => {
    const ids = Array.from({ length: 700 }, (_, i) => `('${from + i}')`).join(", ")
    for (const name of ["pupils", "marks"]) school.program(`INSERT INTO ${name} (id) VALUES ${ids}`)
    school.program(`UPDATE pupils SET name = 'x' WHERE id IN ('${from}', '${from + 1}')`)
    school.program(`DELETE FROM marks WHERE id = '${from}'`)
  }
  write(0)
  const counted = { success: { changes: 1403, tables: { "public.pupils": 702, "public.marks": 701 } } }
  expect(await push(school, hub)).toMatchObject(counted)
  write(1_000)
  hub.isDown = true
  await push(school, hub)
  hub.isDown = false
  expect(await push(school, hub)).toMatchObject(counted)
})

it("writes wait, frozen, while the hub is away", async () => {
  const school = await newSchool()
  const hub = hubOf()
  hub.isDown = true
  insert(school, "a")
  await push(school, hub)
  insert(school, "b")
  await push(school, hub)
  expect(answered(school)).toEqual([])
  hub.isDown = false
  await push(school, hub)
  expect(answered(school)).toEqual([1, 2])
})

it("batches go while further ones are frozen, and all is frozen although the line breaks", async () => {
  const school = await newSchool()
  const hub = hubOf()
  for (const id of ["a", "b", "c", "d", "e"]) insert(school, id)
  hub.isDown = true
  const pushByOne = () => Effect.runPromise(Effect.result(pushAll(school.file, hub.link, who, 1)))
  expect(await pushByOne()).toMatchObject({ failure: { _tag: "LinkDown" } })
  expect([hub.sent, school.batches().length]).toEqual([[1], 5])
  hub.isDown = false
  for (const id of ["f", "g", "h"]) insert(school, id)
  expect(await pushByOne()).toMatchObject({ success: { changes: 8 } })
  expect([hub.sent, answered(school)]).toEqual([
    [1, 1, 2, 3, 4, 5, 6, 7, 8],
    [1, 2, 3, 4, 5, 6, 7, 8],
  ])
})

it("a batch does not wait until the answer before it is written; that there is more is said once it goes", async () => {
  const school = await newSchool()
  const hub = hubOf()
  for (const id of ["a", "b", "c"]) {
    insert(school, id)
    await school.freeze()
  }
  let more = 0
  const onMore = Effect.sync(() => more++)
  const pushed = await school.write(() =>
    Effect.gen(function* () {
      const going = yield* Effect.forkDetach(pushAll(school.file, hub.link, who, 1, onMore))
      yield* Effect.promise(() => until("all batches at the hub", () => hub.sent.length === 3))
      return going
    }),
  )
  expect(await Effect.runPromise(Fiber.join(pushed))).toMatchObject({ changes: 3, tables: { "public.pupils": 3 } })
  expect([hub.sent, answered(school), more]).toEqual([[1, 2, 3], [1, 2, 3], 2])
  insert(school, "d")
  await Effect.runPromise(pushAll(school.file, hub.link, who, 1, onMore))
  expect(more).toBe(2)
})

it("the next batch is on its way before the answer; one that overtook the one before it goes again, and nothing is taken for lost", async () => {
  const school = await newSchool()
  const hub = hubOf()
  for (const id of ["a", "b", "c", "d"]) {
    insert(school, id)
    await school.freeze()
  }
  hub.way = (number) => (number === 2 ? Effect.promise(() => until("the third batch to overtake", () => hub.sent.includes(3))) : Effect.void)
  await push(school, hub)
  expect([hub.sent.slice(0, 3), answered(school), hub.ledger.length]).toEqual([[1, 3, 2], [1, 2, 3, 4], 4])
  expect(hub.sent.filter((number) => number <= 2)).toEqual([1, 2])
})

it("what programs write while batches go up follows without a new beginning", async () => {
  const school = await newSchool()
  const hub = hubOf()
  const insertMany = (batch: string) =>
    school.program(
      `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600) INSERT INTO pupils SELECT ? || i, 's1', 'n' FROM n`,
      [batch],
    )
  insertMany("a")
  hub.way = (number) => Effect.sync(() => number === 1 && insertMany("b"))
  expect(await push(school, hub)).toMatchObject({ success: { changes: 1200 } })
  expect([hub.sent, answered(school)]).toEqual([
    [1, 2],
    [1, 2],
  ])
})

it("a hub that was put back gets what it has lost from the kept bytes", async () => {
  const school = await newSchool()
  const hub = hubOf()
  for (const id of ["a", "b", "c"]) {
    insert(school, id)
    await push(school, hub)
  }
  const before = [...hub.ledger]
  await school.write((tx) => tx.run("UPDATE schoolbus_batch SET settled_at = 1"))
  hub.ledger.length = 1
  insert(school, "d")
  await push(school, hub)
  expect(hub.ledger.slice(0, 3)).toEqual(before)
  expect(hub.sent.slice(3)).toEqual([4, 2, 3, 4])
})

it("what is sent again counts as pending again, so that nothing pulled is shown over it", async () => {
  const school = await newSchool()
  const hub = hubOf()
  insert(school, "a")
  school.program("UPDATE pupils SET name = 'é' WHERE id = 'a'; UPDATE pupils SET id = 'b'; DELETE FROM pupils")
  await push(school, hub)
  const held = school.read("SELECT id, tbl, op, key, new_key, at, batch, v0, v1, v2 FROM changes ORDER BY id")
  expect(held).toHaveLength(4)
  await school.write((tx) => Effect.andThen(tx.run("UPDATE schoolbus_batch SET settled_at = 1"), tx.run("DELETE FROM changes")))
  await Effect.runPromise(sendAgainFrom(school.file, 1))
  expect(school.read("SELECT id, tbl, op, key, new_key, at, batch, v0, v1, v2 FROM changes ORDER BY id")).toEqual(held)
  expect(answered(school)).toEqual([])
  await push(school, hub)
  expect(hub.sent).toEqual([1, 1])
})

it("what is no longer kept is said, not asked for without end", async () => {
  const school = await newSchool()
  const hub = hubOf()
  for (const id of ["a", "b"]) {
    insert(school, id)
    await push(school, hub)
  }
  await school.write((tx) => tx.run("DELETE FROM schoolbus_batch"))
  hub.ledger.length = 0
  insert(school, "c")
  expect(await push(school, hub)).toMatchObject({ failure: { _tag: "LinkRefused", code: "batch_lost" } })
  expect(hub.sent).toEqual([1, 2, 3])
})

const DAY = 86_400_000
it("settled batches are kept for a restore of head office, others until they are settled", async () => {
  const school = await newSchool()
  const now = 100 * DAY
  const put = (number: number, settled: number | null) =>
    school.program("INSERT INTO schoolbus_batch (number, hash, bytes, changes, frozen_at, settled_at) VALUES (?, 'h', x'00', 1, 0, ?)", [
      number,
      settled,
    ])
  put(1, now - (KEEP_DAYS + 1) * DAY)
  put(2, now - (KEEP_DAYS - 1) * DAY)
  put(3, null)
  await Effect.runPromise(trim(school.file, now))
  expect(school.read("SELECT number FROM schoolbus_batch ORDER BY number")).toEqual([[2n], [3n]])
  expect(KEEP_BYTES).toBeGreaterThan(64 * 1024 * 1024)
})
