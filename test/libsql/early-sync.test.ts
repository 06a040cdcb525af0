import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, expect, it } from "vitest"
import { EarlySync } from "../../src/libsql/early-sync.ts"

const dir = mkdtempSync(join(tmpdir(), "schoolbus-early-"))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

const LARGE = 64 * 1024 * 1024

it("syncs after a large part of a transaction, never twice at a time, and never for small ones", async () => {
  const path = join(dir, "large.db")
  writeFileSync(`${path}-wal`, "pages")
  const sync = new EarlySync(path)
  expect(sync.wrote(1000)).toBeNull()
  const first = sync.wrote(LARGE)
  expect(first).not.toBeNull()
  expect(sync.wrote(LARGE)).toBeNull()
  await first
  for (let i = 0; i < 1000; i++) {
    sync.ended()
    expect(sync.wrote(LARGE / 1000)).toBeNull()
  }
  const next = sync.wrote(LARGE)
  expect(next).not.toBeNull()
  await next
})

it("a log that is not there is no fault", async () => {
  const sync = new EarlySync(join(dir, "absent.db"))
  await sync.wrote(LARGE)
  expect(await sync.wrote(LARGE)).toBeUndefined()
})
