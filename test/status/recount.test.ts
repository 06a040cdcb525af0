import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { expect, it } from "vitest"
import { openFile } from "../../src/libsql/client.ts"
import { recount } from "../../src/status/recount.ts"

it("a count that had to wait for another read is repeated at the next change, as it took no time itself", async () => {
  const folder = mkdtempSync(join(tmpdir(), "schoolbus-recount-"))
  const counts = Effect.gen(function* () {
    const file = yield* openFile(join(folder, "a.db"))
    yield* file.write((tx) => tx.exec("CREATE TABLE rows (id int)"))
    const rows = yield* recount(file, (read) => read((tx) => tx.all<{ n: number }>("SELECT count(*) AS n FROM rows")))
    const isReading = yield* Deferred.make<void>()
    const other = yield* Effect.forkChild(file.read(() => Effect.andThen(Deferred.succeed(isReading, undefined), Effect.sleep(500))))
    yield* Deferred.await(isReading)
    const first = yield* rows("before")
    yield* Fiber.join(other)
    yield* file.write((tx) => tx.exec("INSERT INTO rows VALUES (1), (2)"))
    return [first, yield* rows("after")]
  })
  try {
    expect(await Effect.runPromise(Effect.scoped(counts))).toEqual([[{ n: 0 }], [{ n: 2 }]])
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})
