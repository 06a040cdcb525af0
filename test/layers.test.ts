/**
 * Who may import whom. A folder of `src` reads only what stands to its right, never its left and never a neighbour, so a
 * row's way can be read in one direction and Postgres and libSQL never meet.
 */
import { readdirSync, readFileSync } from "node:fs"
import { dirname, join, relative, resolve } from "node:path"
import { expect, test } from "vitest"

const root = resolve(import.meta.dirname, "..")
const src = join(root, "src")

/** Left to right; parts of one column are neighbours. */
const COLUMNS: ReadonlyArray<ReadonlyArray<string>> = [
  ["main.ts"],
  ["cli"],
  ["hub.ts", "school.ts"],
  ["session"],
  ["http", "dashboard"],
  ["status", "workers"],
  ["down", "up", "iclock"],
  ["postgres", "libsql", "link"],
  ["model"],
]
/** Stand outside the columns: anyone may read them, they read no column but `model`. */
const FREE = ["runtime.ts", "config.ts", "elapsed.ts", "version.ts"]
/** Decide and nothing else: plain functions over values, no Effect module but Schema, no clock, no random. */
const PURE = [
  /^model\//,
  /^down\/(decode|pgoutput|audience|ack|behind|commit-time|gather|pending|resume|shape|signals)\.ts$/,
  /^up\/(resolve|coalesce)\.ts$/,
  /^iclock\/(handshake|cdata|command|dialect|roster)\.ts$/,
  /^libsql\/capture\.ts$/,
  /^link\/(protocol|frame|backoff|metered)\.ts$/,
]

interface Import {
  readonly from: string
  /** Path below `src` for our own files, else the specifier. */
  readonly to: string
  readonly own: boolean
}

const files = readdirSync(src, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts"))
const textOf = (file: string): string => readFileSync(join(src, file), "utf8")

const importsOf = (file: string): ReadonlyArray<Import> =>
  [
    ...textOf(file).matchAll(
      /(?:^|\n)\s*(?:import|export)\s[^"'`;]*?from\s+"([^"]+)"|(?:^|[^.\w])import\(\s*"([^"]+)"|(?:^|\n)import\s+"([^"]+)"|new URL\(\s*"(\.[^"]+\.ts)"/g,
    ),
  ].map((match) => {
    const specifier = match[1] ?? match[2] ?? match[3] ?? match[4] ?? ""
    const own = specifier.startsWith(".")
    return { from: file, own, to: own ? relative(src, resolve(src, dirname(file), specifier)) : specifier }
  })

const imports = files.flatMap(importsOf)
const partOf = (file: string): string => file.split("/")[0] ?? file
const columnOf = (file: string): number => COLUMNS.findIndex((parts) => parts.includes(partOf(file)))

test("every file of src stands in a column", () => {
  expect(files.filter((file) => columnOf(file) === -1 && !FREE.includes(file))).toEqual([])
})

test("imports go right, never left, never to a neighbour", () => {
  const wrong = imports.filter(({ from, to, own }) => {
    if (!own || to.startsWith("..") || partOf(from) === partOf(to) || FREE.includes(to)) return false
    if (FREE.includes(from)) return columnOf(to) !== columnOf("model")
    return columnOf(to) <= columnOf(from)
  })
  expect(wrong.map(({ from, to }) => `${from} imports ${to}`)).toEqual([])
})

test("src reaches outside itself only for its version, and for the demo, which it runs as a process", () => {
  const outside = imports.filter(({ to, own }) => own && to.startsWith(".."))
  expect(outside.map(({ from, to }) => `${from} -> ${to}`).sort()).toEqual(["cli/demo.ts -> ../scripts/demo.ts", "version.ts -> ../package.json"])
})

test("only runtime.ts knows the globals of a runtime", () => {
  const wrong = files.filter(
    (file) => file !== "runtime.ts" && /\b(Bun|Deno)\.\w|from "bun(:\w+)?"|\bglobalThis as\b.*\b(Bun|Deno)\b/.test(textOf(file)),
  )
  expect(wrong).toEqual([])
})

test("pure files take the time as an argument and import no Effect module but Schema", () => {
  const pure = files.filter((file) => PURE.some((pattern) => pattern.test(file)))
  expect(pure.length).toBeGreaterThan(10)
  const wrong = imports.filter(({ from, to }) => pure.includes(from) && (to === "effect" || (to.startsWith("effect/") && to !== "effect/Schema")))
  expect(wrong.map(({ from, to }) => `${from} imports ${to}`)).toEqual([])
  expect(pure.filter((file) => /\bDate\.now\(|\bnew Date\(\)|\bMath\.random\(|\brandomUUID\(|\bsetTimeout\(/.test(textOf(file)))).toEqual([])
})

test("the simulator shares no code with src", () => {
  const device = join(root, "device")
  const text = readdirSync(device, { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts"))
    .map((file) => readFileSync(join(device, file), "utf8"))
    .join("\n")
  expect([...text.matchAll(/from "([^"]*src\/[^"]*)"/g)].map((match) => match[1])).toEqual([])
})
