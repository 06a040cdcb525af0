import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { afterAll, expect, test } from "vitest"
import { makeReaders, type Reader } from "../../src/down/readers.ts"
import { openFile } from "../../src/libsql/client.ts"
import { migrateFile } from "../../src/libsql/migrate.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-readers-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const until = async (what: string, isSo: () => boolean | Promise<boolean>): Promise<void> => {
  for (const deadline = Date.now() + 20_000; !(await isSo()); await new Promise((resolve) => setTimeout(resolve, 20)))
    if (Date.now() > deadline) throw new Error(`waited too long for ${what}`)
}
const run = <A, E>(effect: Effect.Effect<A, E>): Promise<A> => Effect.runPromise(effect)

const reader = (incarnation: string): Reader => ({
  ...{ incarnation, school: "a", token: 1, secret: "new", secret_last: "old", shown: 1, epoch: "e", seq: 7, cut: "c", batch: 3 },
  ...{ pending: null, seen_at: 1, status: null, closed: 0 },
})

test("what a school says of itself changes nothing else, waits in memory, and is in the file once that is closed", async () => {
  const files = Scope.makeUnsafe()
  const file = await run(Scope.provide(openFile(join(folder, "feed.db")), files))
  await run(migrateFile(file, "feed"))
  const stored = () => run(file.read((tx) => tx.all<Reader>("SELECT * FROM reader ORDER BY incarnation")))
  const scope = Scope.makeUnsafe()
  const readers = await run(Scope.provide(makeReaders(file), scope))
  await run(readers.put(reader("one")))
  await run(readers.put(reader("two")))
  readers.tell("one", 2, { pending: 5, status: "{}" })
  readers.tell("nobody", 2, { pending: 5, status: "{}" })
  expect(readers.find("one")).toEqual({ ...reader("one"), pending: 5, status: "{}", seen_at: 2 })
  expect(await run(readers.all)).toHaveLength(2)
  expect(await stored()).toEqual([reader("one"), reader("two")])

  // How far a school is does not wait for the others' words.
  readers.note("two", 3, { seq: 8, cut: "d", pending: 6 })
  const noted = { ...reader("two"), seq: 8, cut: "d", pending: 6, seen_at: 3 }
  await until("what was noted to be in the file", async () => (await stored())[1]?.seq === 8)
  expect(await stored()).toEqual([reader("one"), noted])

  readers.tell("two", 4, { pending: 0, status: null })
  await run(Scope.close(scope, Exit.void))
  expect(await stored()).toEqual([
    { ...reader("one"), pending: 5, status: "{}", seen_at: 2 },
    { ...noted, pending: 0, status: null, seen_at: 4 },
  ])
  await run(Scope.close(files, Exit.void))
})

test("how far a school is, and could not be written down, is written down when that is possible again", async () => {
  const scope = Scope.makeUnsafe()
  const file = await run(Scope.provide(openFile(join(folder, "refusing.db")), scope))
  await run(migrateFile(file, "feed"))
  let refused = 0
  const watched: typeof file = { ...file, write: (body) => Effect.tapError(file.write(body), () => Effect.sync(() => refused++)) }
  const readers = await run(Scope.provide(makeReaders(watched), scope))
  await run(readers.put(reader("one")))
  await run(file.write((tx) => tx.exec("ALTER TABLE reader RENAME TO away")))
  readers.note("one", 2, { seq: 8 })
  await until("the writing to be refused", () => refused > 0)
  await run(file.write((tx) => tx.exec("ALTER TABLE away RENAME TO reader")))
  const stored = () => run(file.read((tx) => tx.all<Reader>("SELECT * FROM reader")))
  await until("what was noted to be in the file", async () => (await stored())[0]?.seq === 8)
  await run(Scope.close(scope, Exit.void))
})
