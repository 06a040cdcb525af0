/** Opens the file of argv, loses it, and waits until it is put back. */
import { rmSync } from "node:fs"
import * as Effect from "effect/Effect"
import { openFile } from "../../src/libsql/client.ts"

const path = process.argv[2] ?? ""
await Effect.runPromise(
  Effect.scoped(
    Effect.gen(function* () {
      const file = yield* openFile(path, { stillMs: 0 })
      yield* file.write((tx) => tx.exec("CREATE TABLE schoolbus_state (id INTEGER)"))
      rmSync(path)
      while ((yield* file.moved) === null) yield* Effect.sleep(1)
    }),
  ),
)
