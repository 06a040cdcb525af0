/** Takes the lock of argv's path, says so, and holds it until it is killed. */
import * as Effect from "effect/Effect"
import { lockFile } from "../../src/libsql/lock.ts"

setInterval(() => undefined, 1000)
await Effect.runPromise(
  Effect.scoped(
    Effect.andThen(
      lockFile(process.argv[2] ?? ""),
      Effect.andThen(
        Effect.sync(() => console.log("held")),
        Effect.never,
      ),
    ),
  ),
)
