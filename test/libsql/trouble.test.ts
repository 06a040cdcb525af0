import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import { afterAll, expect, it } from "vitest"
import { openFile } from "../../src/libsql/client.ts"
import { quietly } from "../../src/libsql/trouble.ts"

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
