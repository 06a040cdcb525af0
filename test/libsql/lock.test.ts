import { spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import { afterAll, expect, it } from "vitest"
import { lockFile } from "../../src/libsql/lock.ts"
import { runtimeName } from "../../src/runtime.ts"

const dir = await mkdtemp(join(tmpdir(), "schoolbus-lock-"))
afterAll(() => rm(dir, { recursive: true, force: true }))

const tryLock = (path: string) => Effect.runPromise(Effect.result(Effect.scoped(lockFile(path))))

it("is free again when its scope closes", async () => {
  const path = join(dir, "a.db")
  for (let i = 0; i < 3; i++) expect((await tryLock(path))._tag).toBe("Success")
})

it("refuses a second holder in the same process", async () => {
  const path = join(dir, "b.db")
  const result = await Effect.runPromise(Effect.scoped(Effect.andThen(lockFile(path), Effect.result(Effect.scoped(lockFile(path))))))
  expect(result._tag).toBe("Failure")
})

it("names another process's lock, and forgets it when that process is killed", async () => {
  const path = join(dir, "c.db")
  const holder = join(import.meta.dirname, "lock-holder.ts")
  const child = spawn(process.execPath, [...(runtimeName.startsWith("deno") ? ["run", "-A"] : []), holder, path])
  await once(child.stdout, "data")
  const refused = await tryLock(path)
  expect(refused._tag === "Failure" && refused.failure.message).toContain(`another schoolbus process is running on ${path}`)
  child.kill("SIGKILL")
  await once(child, "exit")
  expect((await tryLock(path))._tag).toBe("Success")
})

it("says what is wrong when the folder cannot be written", async () => {
  const refused = await tryLock(join(dir, "missing", "d.db"))
  expect(refused._tag === "Failure" && refused.failure.message).toContain("cannot be written")
})
