/** Every line of the tables in device/README.md names tests and captures that exist. */
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { expect, it } from "vitest"

const root = join(import.meta.dirname, "../..")
const captures = readdirSync(join(root, "device/captures"))
const readme = readFileSync(join(root, "device/README.md"), "utf8")

/** The last cell of the lines of tables whose last column is headed Test. */
const cells = readme.split(/\n\n/).flatMap((block) => {
  const lines = block.split("\n").filter((line) => line.startsWith("|"))
  return /\| Test \|$/.test(lines[0] ?? "") ? lines.slice(2).map((line) => line.split("|").at(-2)?.trim() ?? "") : []
})

const testFile = (name: string): string | undefined =>
  [`test/iclock/${name}.test.ts`, `test/iclock/${name}.pg.test.ts`, `test/${name}.test.ts`].find((path) => existsSync(join(root, path)))

it("has a test for each request and each command", () => {
  expect(cells.length).toBeGreaterThan(30)
  expect(cells.filter((cell) => cell === "")).toEqual([])
})

it.each([...new Set(cells.flatMap((cell) => cell.split(" · ")))])("%s", (named) => {
  if (named.startsWith("captures ")) {
    for (const [, glob = ""] of named.matchAll(/`([^`]+)`/g)) {
      const pattern = new RegExp(`^${glob.replaceAll(".", "\\.").replaceAll("*", ".*")}`)
      expect(captures.filter((capture) => pattern.test(capture))).not.toEqual([])
    }
    return
  }
  const [name = "", words = ""] = named.replace(/ \(.*\)$/, "").split(": ")
  const path = testFile(name)
  expect(path).toBeDefined()
  const text = readFileSync(join(root, path ?? ""), "utf8")
  for (const word of words.split(", ").filter((one) => one !== "")) expect(text).toContain(word)
})
