import { mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import { afterAll, expect, it } from "vitest"
import { openFile } from "../../src/libsql/client.ts"
import { quietly, watchPlace } from "../../src/libsql/trouble.ts"
import { until } from "../support/until.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-trouble-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

it("a job that meets a full disk says so in one sentence with its remedy, once until it works again", async () => {
  const lines: Array<unknown> = []
  const logger = Logger.layer([Logger.make(({ message }) => lines.push(message))])
  await Effect.runPromise(
    Effect.scoped(
      Effect.gen(function* () {
        const file = yield* openFile(join(folder, "full.db"))
        yield* file.write((tx) => tx.exec("CREATE TABLE t (v BLOB)"))
        // The disk's room, as SQLite sees it.
        const room = (pages: number) => file.write((tx) => tx.all(`PRAGMA max_page_count = ${pages}`))
        const quiet = quietly("rows are not written")
        const job = quiet(file.write((tx) => tx.run("INSERT INTO t VALUES (zeroblob(100000))")))
        const full = `rows are not written: database or disk is full (${file.path}); free space on its disk; everything goes on by itself`
        yield* room(10)
        for (let i = 0; i < 3; i++) yield* job
        expect(lines).toEqual([[full]])
        yield* room(1_000)
        yield* job
        yield* room(10)
        yield* job
        expect(lines).toEqual([[full], [full]])
      }),
    ).pipe(Effect.provide(logger)),
  )
})

it("a folder that gets another name while its file is open is told of once, and that it is back", async () => {
  const lines: Array<string> = []
  const logger = Logger.layer([Logger.make(({ message }) => lines.push(String(message)))])
  const [own, other] = [join(folder, "own"), join(folder, "other")]
  mkdirSync(own)
  const told: Array<string> = []
  await Effect.runPromise(
    Effect.scoped(
      Effect.gen(function* () {
        const file = yield* openFile(join(own, "school.db"), { stillMs: 10 })
        yield* file.write((tx) => tx.exec("CREATE TABLE t (v TEXT)"))
        let looks = 0
        const moved = Effect.tapCause(file.moved, () => Effect.sync(() => looks++))
        yield* Effect.forkScoped(watchPlace({ ...file, moved }, (text) => Effect.sync(() => void told.push(text))))
        yield* Effect.promise(async () => {
          renameSync(own, other)
          await until("several looks", () => looks > 2)
          renameSync(other, own)
          await until("the folder to be seen again", () => told.at(-1) === "")
        })
        yield* file.write((tx) => tx.exec("INSERT INTO t VALUES ('since')"))
      }),
    ).pipe(Effect.provide(logger)),
  )
  expect(told).toEqual([expect.stringMatching(/^the folder .*own is gone or has another name: give it back its name/), ""])
  expect(lines).toEqual([told[0]])
})
