import { mkdtempSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { describe, expect, it } from "vitest"
import { type CommandFailed, type CommandSpec, type Environment, nearest, parseInput } from "../../src/cli/options.ts"

const command: CommandSpec = {
  name: "try it",
  summary: "",
  args: ["id", "[other]"],
  options: [
    { name: "key", kind: "text", secret: true, required: true, help: "" },
    { name: "port", kind: "port", default: "4480", help: "" },
    { name: "timeout", kind: "number", help: "" },
    { name: "tables", kind: "list", help: "" },
    { name: "adopt", kind: "flag", help: "" },
  ],
  examples: [],
}
const parse = (argv: ReadonlyArray<string>, env: Environment = {}) => parseInput(command, argv, env)
const failure = (argv: ReadonlyArray<string>, env: Environment = {}): CommandFailed => {
  try {
    parse(argv, env)
  } catch (cause) {
    return cause as CommandFailed
  }
  throw new Error("was accepted")
}
const folder = mkdtempSync(join(tmpdir(), "schoolbus-cli-"))
const file = (text: string): string => {
  const path = join(folder, crypto.randomUUID())
  writeFileSync(path, text)
  return path
}

describe("a command line", () => {
  it("takes flag before environment before default", () => {
    const env = { SCHOOLBUS_KEY: "from-env", SCHOOLBUS_PORT: "1", SCHOOLBUS_TABLES: "a, b,,c", SCHOOLBUS_ADOPT: "yes" }
    const fromEnv = parse(["north"], env)
    expect([fromEnv?.text("key"), fromEnv?.number("port"), fromEnv?.list("tables"), fromEnv?.flag("adopt")]).toEqual([
      "from-env",
      1,
      ["a", "b", "c"],
      true,
    ])
    const fromFlags = parse(["--key=from-flag", "north", "--port", "2"], env)
    expect([fromFlags?.text("key"), fromFlags?.number("port"), fromFlags?.args]).toEqual(["from-flag", 2, { id: "north" }])
    const plain = parse(["north", "extra", "--key", "k"])
    expect([plain?.number("port"), plain?.numberOr("timeout", null), plain?.flag("adopt"), plain?.origin("port"), plain?.args["other"]]).toEqual([
      4480,
      null,
      false,
      "default",
      "extra",
    ])
  })

  it("reads a secret from a file, without the line's end", () => {
    expect(parse(["north", "--key-file", file("s3cret\r\n")])?.text("key")).toBe("s3cret")
    expect(parse(["north"], { SCHOOLBUS_KEY_FILE: file("s3cret\n\n") })?.text("key")).toBe("s3cret")
    expect(failure(["north", "--key-file", file("\n")]).exit).toBe(78)
    expect(failure(["north", "--key-file", "/nowhere/at/all"]).message).toContain("ENOENT")
    expect(failure(["north", "--key", "a", "--key-file", file("b")]).exit).toBe(64)
  })

  it.each([
    [["north", "--kee", "x"], "did you mean --key"],
    [["north", "--key", "x", "--bogus"], "unknown option --bogus"],
    [["north", "--key", "x", "-x"], "try it"],
    [["north", "--key"], "try it"],
    [["--key", "x"], "ID is missing"],
    [["a", "b", "c", "--key", "x"], 'unexpected argument "c"'],
    [["north"], "needs --key (or SCHOOLBUS_KEY[_FILE])"],
    [["north", "--key", ""], "needs --key"],
    [["north", "--key", "x", "--port", "70000"], "port number"],
    [["north", "--key", "x", "--port", "80.5"], "port number"],
    [["north", "--key", "x", "--timeout", "soon"], "must be a number"],
    [["north", "--key", "x", "--timeout="], "must be a number"],
    [["north", "--key", "x", "--adopt=1"], "try it"],
  ])("refuses %j", (argv, message) => {
    const failed = failure(argv)
    expect(failed.exit).toBe(64)
    expect(failed.message).toContain(message)
  })

  it("refuses a variable that is neither true nor false", () => {
    expect(failure(["north", "--key", "x"], { SCHOOLBUS_ADOPT: "maybe" }).message).toContain("SCHOOLBUS_ADOPT must be true or false")
  })

  it("asks for help without needing anything else", () => {
    expect(parse(["--help"])).toBeNull()
    expect(parse(["-h"])).toBeNull()
  })

  it("suggests only what is near", () => {
    expect(nearest("statsu", ["status", "sync"])).toBe("status")
    expect(nearest("frobnicate", ["status", "sync"])).toBeNull()
    expect(nearest("x", ["a"])).toBeNull()
  })
})
