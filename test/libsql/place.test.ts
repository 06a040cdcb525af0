import { execFileSync, spawn, spawnSync } from "node:child_process"
import { appendFileSync, copyFileSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import Database from "libsql"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { afterEach, beforeEach, expect, it } from "vitest"
import { type LibsqlFile, openFile } from "../../src/libsql/client.ts"
import { until } from "../support/until.ts"

const STILL_MS = 40

let folder: string
let path: string
let scope: Scope.Closeable
let file: LibsqlFile
const open = async (stillMs = STILL_MS) => {
  scope = Scope.makeUnsafe()
  file = await Effect.runPromise(Scope.provide(openFile(path, { stillMs }), scope))
}
const close = () => Effect.runPromise(Scope.close(scope, Exit.void))
const reopen = async () => {
  await close()
  await open()
}
const moved = () => Effect.runPromise(file.moved)
const judged = () => until("what happened to the file to be judged", moved)
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
  expect(await judged()).toContain("put back")
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
  expect(await judged()).toContain("put back")
  await reopen()
  expect(await rows()).toEqual(["first"])
})

it("a foreign file in its place is kept beside it", async () => {
  writeFileSync(`${path}.new`, "no database")
  renameSync(`${path}.new`, path)
  expect(await judged()).toContain("put back")
  await reopen()
  expect(await rows()).toEqual(["first"])
  expect(beside().map((name) => readFileSync(join(folder, name), "utf8"))).toEqual(["no database"])
})

it("a copy of it in its place is taken, without the log of the former, and what only that one had to send is kept", async () => {
  program("PRAGMA wal_checkpoint(TRUNCATE)")
  copyFileSync(path, `${path}.copy`)
  await write("INSERT INTO pupils VALUES ('since the copy'); INSERT INTO changes VALUES (1)")
  renameSync(`${path}.copy`, path)
  expect(await judged()).toContain("that one is taken")
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
  expect(await judged()).toContain("that one is taken")
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

const LARGE = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) INSERT INTO pupils SELECT hex(randomblob(100)) FROM n"

it.each([
  ["after it was deleted", (): void => undefined],
  ["while a program has made an empty one in its place", () => program("PRAGMA user_version")],
])("a copy that is written slowly, %s, is taken when it is whole", async (_, meanwhile) => {
  await close()
  await open(300)
  await write(LARGE)
  program("PRAGMA wal_checkpoint(TRUNCATE)")
  const copy = readFileSync(path)
  await write("INSERT INTO pupils VALUES ('since the copy'); INSERT INTO changes VALUES (1)")
  remove("", "-wal", "-shm")
  meanwhile()
  expect(await moved()).toBeNull()
  rmSync(path, { force: true })
  const quarter = copy.length / 4
  // As `cp` does, with pauses that are longer than a whole file must stand still.
  for (let at = 0; at < copy.length; at += quarter) {
    appendFileSync(path, copy.subarray(at, at + quarter))
    for (const end = performance.now() + 400; at + quarter < copy.length && performance.now() < end; ) expect(await moved()).toBeNull()
  }
  expect(await judged()).toContain("that one is taken")
  await reopen()
  expect(await rows()).toHaveLength(2001)
  expect(beside()).toHaveLength(1)
})

it("a file that never becomes whole is kept aside in the end", async () => {
  await write(LARGE)
  program("PRAGMA wal_checkpoint(TRUNCATE)")
  const copy = readFileSync(path)
  remove("", "-wal", "-shm")
  writeFileSync(path, copy.subarray(0, copy.length / 2))
  expect(await judged()).toContain("put back")
  await reopen()
  expect(await rows()).toHaveLength(2001)
  expect(beside()).toHaveLength(1)
})

it("what was written is also kept when the node is stopped while another file is being put there", async () => {
  program("PRAGMA wal_checkpoint(TRUNCATE)")
  copyFileSync(path, `${path}.copy`)
  await write("INSERT INTO pupils VALUES ('since the copy'); INSERT INTO changes VALUES (1)")
  renameSync(`${path}.copy`, path)
  await reopen()
  expect(await rows()).toEqual(["first"])
  expect(beside()).toHaveLength(1)
})

it("a copy that another program holds locked is taken when it is free, and is not judged foreign before", async () => {
  program("PRAGMA wal_checkpoint(TRUNCATE)")
  copyFileSync(path, `${path}.copy`)
  program("PRAGMA journal_mode = DELETE", `${path}.copy`)
  await write("INSERT INTO pupils VALUES ('since the copy'); INSERT INTO changes VALUES (1)")
  const holder = spawn("sqlite3", [`${path}.copy`], { stdio: ["pipe", "pipe", "inherit"] })
  const ended = new Promise((resolve) => holder.once("exit", resolve))
  holder.stdin.write("BEGIN EXCLUSIVE;\nSELECT 'held';\n")
  await new Promise((resolve) => holder.stdout.once("data", resolve))
  renameSync(`${path}.copy`, path)
  const busy = until("the lock to be met", () => Effect.runPromise(Effect.flip(file.moved)))
  expect((await busy).code).toContain("SQLITE_BUSY")
  expect(beside()).toEqual([])
  holder.stdin.end("COMMIT;\n")
  await ended
  expect(await judged()).toContain("that one is taken")
  await reopen()
  expect(await rows()).toEqual(["first"])
  expect(beside()).toHaveLength(1)
})

const traces = spawnSync("strace", ["-f", "-o", "/dev/null", "true"]).status === 0

it.runIf(traces)("a file that is put back is on the disk before it gets its name, and its name after", () => {
  const log = join(folder, "calls")
  const script = new URL("./place-loser.ts", import.meta.url).pathname
  const calls = "trace=fsync,fdatasync,rename,renameat,renameat2"
  execFileSync("strace", ["-f", "-y", "-e", calls, "-o", log, process.execPath, script, join(folder, "lost.db")], { stdio: "inherit" })
  const lines = readFileSync(log, "utf8").split("\n")
  const renamed = lines.findIndex((line) => /rename.*lost\.db\.part/.test(line))
  const synced = (what: string) => (line: string) => /fsync|fdatasync/.test(line) && line.includes(`<${what}>`)
  expect(renamed).toBeGreaterThan(0)
  expect(lines.slice(0, renamed).findLastIndex(synced(join(folder, "lost.db.part")))).toBeGreaterThan(0)
  expect(lines.slice(renamed).findIndex(synced(folder))).toBeGreaterThan(0)
})
