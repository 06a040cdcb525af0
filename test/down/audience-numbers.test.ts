import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import { expect, test } from "vitest"
import { AudienceNumbers } from "../../src/down/audience-numbers.ts"
import { openFile } from "../../src/libsql/client.ts"
import { migrateFile } from "../../src/libsql/migrate.ts"

test("whatever text stands in an audience column has a number of its own, also after a restart", async () => {
  const dir = mkdtempSync(join(tmpdir(), "schoolbus-audience-"))
  const values = ["north", "nobody", "all schools", "", "0", "-1", "null", "south"]
  await Effect.runPromise(
    Effect.scoped(
      Effect.gen(function* () {
        const file = yield* openFile(join(dir, "feed.db"))
        yield* migrateFile(file, "feed")
        const known = file.read((tx) => tx.all<{ no: number; value: string }>("SELECT no, value FROM audience WHERE no > 0"))
        const given = new Map<string, number>()
        for (const value of values) {
          // Each after a restart of the hub.
          const numbers = new AudienceNumbers(yield* known)
          for (const [before, no] of given) expect([before, numbers.numberOf({ value: before })]).toEqual([before, no])
          given.set(value, numbers.numberOf({ value }))
          yield* file.write((tx) => numbers.store(tx))
        }
        expect(new Set(given.values()).size).toBe(values.length)
        expect([...given.values()].every((no) => no > 0)).toBe(true)
      }),
    ),
  )
  rmSync(dir, { recursive: true })
})
