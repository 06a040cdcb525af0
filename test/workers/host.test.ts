import { cpSync, mkdtempSync, mkdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { afterEach, expect, it } from "vitest"
import { Libsql } from "../../src/libsql/client.ts"
import { startWorkers, subscribedTables } from "../../src/workers/host.ts"
import { column, manifestOf, openSchoolFile, type SchoolFile, table } from "../support/school-file.ts"
import { until } from "../support/until.ts"

const pupils = table("pupils", [
  column("id", "text", { notNull: true }),
  column("school_id"),
  column("name"),
  column("photo", "bytea"),
  column("points", "bigint"),
])

const made: Array<() => Promise<void>> = []
afterEach(async () => {
  for (const end of made.splice(0).reverse()) await end()
})

interface Host {
  readonly school: SchoolFile
  readonly start: () => Promise<() => Promise<void>>
  readonly lines: (module: string, file: string) => ReadonlyArray<string>
  readonly insert: (...names: ReadonlyArray<string>) => void
}

const makeHost = async (modules: ReadonlyArray<string>): Promise<Host> => {
  const school = await openSchoolFile([pupils])
  made.push(school.close)
  // Beside the originals, so that their imports hold.
  const folder = mkdtempSync(join(import.meta.dirname, ".modules-"))
  const outDir = mkdtempSync(join(tmpdir(), "schoolbus-workers-"))
  made.push(async () => {
    for (const one of [folder, outDir]) rmSync(one, { recursive: true, force: true })
  })
  mkdirSync(folder, { recursive: true })
  for (const module of modules) cpSync(join(import.meta.dirname, "modules", `${module}.ts`), join(folder, `${module}.ts`))
  const give = <A, E>(effect: Effect.Effect<A, E, Libsql | Scope.Scope>, scope: Scope.Scope) =>
    Effect.runPromise(Scope.provide(Effect.provideService(effect, Libsql, school.file), scope))
  let n = 0
  const start = async () => {
    const scope = Scope.makeUnsafe()
    await give(startWorkers({ folder, outDir }), scope)
    let isOpen = true
    const stop = async () => {
      if (isOpen) await Effect.runPromise(Scope.close(scope, Exit.void))
      isOpen = false
    }
    made.push(stop)
    return stop
  }
  const streams = await give(subscribedTables(folder), Scope.makeUnsafe())
  await school.install(manifestOf([pupils]), { streams })
  return {
    school,
    start,
    lines: (module, file) => {
      try {
        return readFileSync(join(outDir, "workers", module, file), "utf8")
          .trimEnd()
          .split("\n")
      } catch {
        return []
      }
    },
    insert: (...names) => {
      for (const name of names) school.program("INSERT INTO pupils (id, school_id, name) VALUES (?, 's1', ?)", [`p${++n}`, name])
    },
  }
}

it("hands a module the writes it listens to, with their rows", async () => {
  const { start, lines, insert, school } = await makeHost(["quick"])
  insert("Amina", "O'Hara")
  await start()
  school.program("UPDATE pupils SET name = 'Änne' WHERE id = 'p1'")
  insert("Chidi")
  school.program("DELETE FROM pupils WHERE id = 'p2'")
  await until("the delete", () => lines("quick", "seen.txt").some((line) => line.startsWith("delete")))
  expect(lines("quick", "seen.txt")).toContain(`insert ["p3"] Chidi`)
  expect(lines("quick", "seen.txt").at(-1)).toBe(`delete ["p2"] gone`)
  expect(lines("quick", "seen.txt").length).toBe(4)
})

it("goes on after a restart where it was", async () => {
  const { start, lines, insert, school } = await makeHost(["quick"])
  const stop = await start()
  insert("one", "two")
  await until("the first two", () => lines("quick", "seen.txt").length === 2)
  await until("the position", () => Number(school.read("SELECT cursor FROM schoolbus_worker")[0]?.[0]) === 2)
  await stop()
  insert("three")
  await start()
  await until("the third", () => lines("quick", "seen.txt").length === 3)
  expect(lines("quick", "seen.txt").map((line) => line.split(" ").at(-1))).toEqual(["one", "two", "three"])
})

for (const bad of ["throws", "hangs", "dies"]) {
  it(`puts an event aside that ${bad} every time, and loses no other`, async () => {
    const { start, lines, insert, school } = await makeHost(["picky"])
    insert("a", "b", bad, "c")
    await start()
    await until("the event after the bad one", () => lines("picky", "done.txt").includes("c"))
    expect(new Set(lines("picky", "done.txt"))).toEqual(new Set(["a", "b", "c"]))
    // Once in the batch, then five times alone.
    expect(lines("picky", "shown.txt").filter((name) => name === bad).length).toBe(6)
    const [letter] = school.read("SELECT module, events, error FROM schoolbus_dead_letter")
    expect(letter?.[0]).toBe("picky")
    expect(String(letter?.[1])).toContain(`"name":"${bad}"`)
    expect(String(letter?.[2])).toContain({ throws: "do not like", hangs: "longer than 0.5 s", dies: "out of the blue" }[bad])
    expect(school.read("SELECT failed FROM schoolbus_worker")).toEqual([[1n]])
  })
}

it("tells what is wrong with a file that is no worker module, and runs the others", async () => {
  const { start, lines, insert, school } = await makeHost(["none", "quick"])
  await start()
  insert("Amina")
  await until("the other module", () => lines("quick", "seen.txt").length === 1)
  await until("the fault", () => school.read("SELECT error FROM schoolbus_worker WHERE module = 'none' AND error IS NOT NULL").length === 1)
  expect(String(school.read("SELECT error FROM schoolbus_worker WHERE module = 'none'")[0]?.[0])).toContain("no default export")
})

it("reads values of every type, and text that is none, without harm", async () => {
  const { start, lines, school } = await makeHost(["quick"])
  school.program("INSERT INTO pupils (id, school_id, name, photo, points) VALUES ('x', 's1', CAST(X'41FF' AS TEXT), X'00FF', 9007199254740993)")
  await start()
  await until("the row", () => lines("quick", "seen.txt").length === 1)
  expect(lines("quick", "seen.txt")).toEqual(['insert ["x"] A\uFFFD'])
})
