import { copyFileSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import Database from "libsql"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { afterEach, beforeEach, expect, it } from "vitest"
import { type LibsqlFile, openFile } from "../../src/libsql/client.ts"

let folder: string
let path: string
let scope: Scope.Closeable
let file: LibsqlFile
const open = async () => {
  scope = Scope.makeUnsafe()
  file = await Effect.runPromise(Scope.provide(openFile(path), scope))
}
const close = () => Effect.runPromise(Scope.close(scope, Exit.void))
const reopen = async () => {
  await close()
  await open()
}
const moved = () => Effect.runPromise(file.moved)
const write = (sql: string) => Effect.runPromise(file.write((tx) => tx.exec(sql)))
const rows = async () => (await Effect.runPromise(file.read((tx) => tx.all<{ v: string }>("SELECT v FROM pupils ORDER BY v")))).map(({ v }) => v)
/** A school program: a connection that is gone afterwards. */
const program = (sql: string, at = path) => {
  const db = new Database(at, { timeout: 5000 })
  db.exec(sql)
  db.close()
}
const beside = () => readdirSync(folder).filter((name) => name.includes("aside"))

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "schoolbus-place-"))
  path = join(folder, "school.db")
  await open()
  await write(
    "CREATE TABLE schoolbus_state (id INTEGER); CREATE TABLE changes (n INTEGER); CREATE TABLE pupils (v TEXT); INSERT INTO pupils VALUES ('first')",
  )
})
afterEach(async () => {
  await close()
  rmSync(folder, { recursive: true, force: true })
})

const remove = (...rests: ReadonlyArray<string>) => {
  for (const rest of rests) rmSync(`${path}${rest}`)
}

it.each<[string, () => void]>([
  ["deleted", () => remove("", "-wal", "-shm")],
  [
    "deleted, and a program has made an empty one",
    () => {
      remove("", "-wal", "-shm")
      program("PRAGMA user_version")
    },
  ],
  ["deleted alone, without what lies beside it", () => rmSync(path)],
  ["renamed", () => renameSync(path, `${path}.old`)],
  ["parted from its -wal", () => rmSync(`${path}-wal`)],
  ["parted from its -wal and -shm", () => remove("-wal", "-shm")],
])("a file that is %s while it is open is put back with everything that was written", async (_, harm) => {
  program("INSERT INTO pupils VALUES ('by a program')")
  harm()
  await write("INSERT INTO pupils VALUES ('since')")
  expect(await moved()).toContain("put back")
  await reopen()
  expect(await rows()).toEqual(["by a program", "first", "since"])
  program("INSERT INTO pupils VALUES ('later')")
  expect(await rows()).toContain("later")
  expect(await moved()).toBeNull()
  expect(await Effect.runPromise(file.read((tx) => tx.all("PRAGMA integrity_check")))).toEqual([{ integrity_check: "ok" }])
  expect(beside()).toEqual([])
})

it("so is one while the writing connection is closed after a failure", async () => {
  await Effect.runPromise(Effect.exit(file.write(() => Effect.fail("no"))))
  expect(await rows()).toEqual(["first"])
  remove("", "-wal", "-shm")
  expect(await moved()).toContain("put back")
  await reopen()
  expect(await rows()).toEqual(["first"])
})

it("a foreign file in its place is kept beside it", async () => {
  writeFileSync(`${path}.new`, "no database")
  renameSync(`${path}.new`, path)
  expect(await moved()).toContain("put back")
  await reopen()
  expect(await rows()).toEqual(["first"])
  expect(beside().map((name) => readFileSync(join(folder, name), "utf8"))).toEqual(["no database"])
})

it("a copy of it in its place is taken, without the log of the former, and what only that one had to send is kept", async () => {
  program("PRAGMA wal_checkpoint(TRUNCATE)")
  copyFileSync(path, `${path}.copy`)
  await write("INSERT INTO pupils VALUES ('since the copy'); INSERT INTO changes VALUES (1)")
  renameSync(`${path}.copy`, path)
  expect(await moved()).toContain("that one is taken")
  await reopen()
  expect(await rows()).toEqual(["first"])
  const [kept] = beside()
  const former = new Database(join(folder, kept ?? ""))
  expect(former.prepare("SELECT count(*) AS n FROM pupils").get()).toMatchObject({ n: 2 })
  former.close()
})

it("with nothing to send, nothing is kept", async () => {
  program("PRAGMA wal_checkpoint(TRUNCATE)")
  copyFileSync(path, `${path}.copy`)
  renameSync(`${path}.copy`, path)
  expect(await moved()).toContain("that one is taken")
  await reopen()
  expect(await rows()).toEqual(["first"])
  expect(beside()).toEqual([])
})

it("a file that programs empty, compact and check is where it was", async () => {
  for (const sql of ["PRAGMA wal_checkpoint(TRUNCATE)", "VACUUM", "DELETE FROM pupils", "PRAGMA optimize"]) {
    program(sql)
    expect(await moved()).toBeNull()
  }
  await reopen()
  expect(await moved()).toBeNull()
  expect(readdirSync(folder).filter((name) => !name.startsWith("school.db"))).toEqual([])
})

it("a file that is closed stands alone, without its -wal", async () => {
  await write("INSERT INTO pupils VALUES ('last')")
  await close()
  copyFileSync(path, `${path}.copy`)
  const copy = new Database(`${path}.copy`)
  expect(copy.prepare("SELECT count(*) AS n FROM pupils").get()).toMatchObject({ n: 2 })
  copy.close()
  await open()
})
