import { execFile, spawn, spawnSync } from "node:child_process"
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:https"
import type { AddressInfo } from "node:net"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
import { conflictRoutes } from "../../src/http/conflicts.ts"
import { healthRoutes } from "../../src/http/health.ts"
import { makeApp } from "../../src/http/server.ts"
import { syncRoutes } from "../../src/http/sync.ts"
import { newKey } from "../../src/link/keys.ts"
import { PostgresError } from "../../src/postgres/client.ts"
import { runtimeName, serve, type Served } from "../../src/runtime.ts"
import { Quarantine, type QuarantineAction, type QuarantineQuery, type QuarantineRecord } from "../../src/status/quarantine.ts"
import { ConflictRefused, Conflicts, Runs } from "../../src/status/records.ts"
import { type Snapshot, Status } from "../../src/status/snapshot.ts"
import { SyncNow, type SyncRequest } from "../../src/status/sync-now.ts"
import { aHub, aSchoolView } from "../status/sample.ts"
import { type Ran, run as runProgram } from "../support/run.ts"

const ID = "6a3c2c1e-1111-4111-8111-111111111111"

/** Nothing in its environment but what is given. */
const run = (args: ReadonlyArray<string>, env: Record<string, string> = {}): Promise<Ran> => runProgram(args, env)

const aChange: Omit<QuarantineRecord, "id"> = {
  school: "north",
  table: "public.pupils",
  key: "[1]",
  op: "update",
  change: "{}",
  reason: "check",
  detail: "",
  status: "open",
  at: "2026-11-24T10:00:00.000000Z",
  decidedBy: null,
  decidedAt: null,
  conflict: null,
  requested: null,
}

const AWAY = "0198f000-0000-7000-8000-00000000a7a7"
let quarantined: ReadonlyArray<QuarantineRecord & { readonly waitsFor?: string }> = []
let snapshot: Snapshot = aHub()
let asked: ReadonlyArray<SyncRequest> = []
let node: Served
let locked: Served
let url = ""

beforeAll(async () => {
  const services = Layer.mergeAll(
    Layer.succeed(Status, { snapshot: () => Effect.sync(() => snapshot) }),
    Layer.succeed(SyncNow, {
      trigger: (request: SyncRequest) =>
        Effect.sync(() => {
          asked = [...asked, request]
          return { started: request.school !== "gone", message: request.school === "gone" ? "no school gone" : "sync started", run: 1, schools: [] }
        }),
    }),
    Layer.succeed(Conflicts, {
      list: () => Effect.succeed({ items: [], nextCursor: null }),
      show: (id: string) => Effect.fail(new ConflictRefused({ code: "not_found", message: `no conflict ${id}` })),
      resolve: () => Effect.fail(new ConflictRefused({ code: "not_possible", message: "the row has been written again since" })),
      undo: (id: string) =>
        id === AWAY
          ? Effect.fail(new PostgresError({ sqlstate: "", message: "closed", detail: "", constraint: "", table: "", column: "", sql: "" }))
          : Effect.fail(new ConflictRefused({ code: "decided", message: "nothing is decided here yet" })),
      autoResolve: ({ max }: { max: number }) => Effect.succeed({ resolved: [], skipped: [{ id: ID, why: `a person decides (${max})` }] }),
    }),
    Layer.succeed(Quarantine, {
      list: ({ table, reason, limit, cursor = "0" }: QuarantineQuery) =>
        Effect.sync(() => {
          const all = quarantined.filter((q) => (table ?? q.table) === q.table && (reason ?? q.reason) === q.reason)
          const [from, to] = [Number(cursor), Number(cursor) + limit]
          return { items: all.slice(from, to), nextCursor: to < all.length ? String(to) : null, inConflicts: 0 }
        }),
      show: (id: string) => Effect.fail(new ConflictRefused({ code: "not_found", message: `no quarantined change ${id}` })),
      decide: (id: string, action: QuarantineAction) =>
        Effect.suspend(() => {
          const found = quarantined.find((q) => q.id === id)
          const { waitsFor } = found ?? {}
          if (found === undefined || (action.action === "retry" && waitsFor !== undefined && quarantined.some((q) => q.id === waitsFor)))
            return Effect.fail(new ConflictRefused({ code: "not_possible", message: JSON.stringify(action) }))
          quarantined = quarantined.filter((q) => q !== found)
          return Effect.succeed({ ...found, status: action.action === "retry" ? "retried" : "discarded" })
        }),
    }),
    Layer.succeed(Runs, { list: () => Effect.succeed({ items: [], nextCursor: null }) }),
  )
  const plugins = () => Effect.runPromise(Effect.all([healthRoutes, syncRoutes, conflictRoutes]).pipe(Effect.provide(services)))
  const open = makeApp({ plugins: await plugins(), auth: { mode: "local" } })
  const closed = makeApp({ plugins: await plugins(), auth: { mode: "token", token: "s3cret" } })
  const options = { port: 0, hostname: "127.0.0.1", idleSeconds: 30, maxBodyBytes: 1_000_000 }
  node = await serve({ ...options, fetch: (request) => open.handle(request) })
  locked = await serve({ ...options, fetch: (request) => closed.handle(request) })
  url = `http://127.0.0.1:${node.port}`
})
afterAll(async () => {
  await node.stop()
  await locked.stop()
})

describe("every command", () => {
  it.each<[ReadonlyArray<string>, number]>([
    [[], 64],
    [["--help"], 0],
    [["--version"], 0],
    [["schools"], 64],
    [["schools", "--help"], 0],
    [["schools", "add", "--help"], 0],
    [["frobnicate"], 64],
    [["--bogus"], 64],
    [["schools", "frobnicate"], 64],
    [["status", "--bogus"], 64],
    [["status", "extra"], 64],
    [["status", "--url", "not an address"], 64],
    [["conflicts", "show", ""], 64],
    [["quarantine", "show", " "], 64],
    [["status", "--url", "ftp://127.0.0.1"], 64],
    [["status", "--url", "http://127.0.0.1:1"], 69],
    [["sync", "--url", "http://127.0.0.1:1"], 69],
    [["hub"], 64],
    [["hub", "--database-url", "postgres://x@127.0.0.1:1/x", "--port", "99999"], 64],
    [["hub", "--database-url", "mysql://x@127.0.0.1/x"], 64],
    [["doctor", "--database-url", "127.0.0.1"], 64],
    [["hub", "--database-url", "postgres://x@127.0.0.1:1/x", "--config", "/nowhere/schoolbus.config.ts", "--data-dir", "/tmp"], 78],
    [["school", "--hub", "http://127.0.0.1:1"], 64],
    [["school", "--hub", "sync.example.org", "--key", "k"], 64],
    [["school", "--hub", "http://127.0.0.1:1", "--key", "sb_0123456789ab_too-short", "--data-dir", "/nowhere/at/all"], 64],
    [["schools", "list", "--database-url", "postgres://x@127.0.0.1:1/x"], 69],
    [["schools", "add", "", "--database-url", "postgres://x@127.0.0.1:1/x"], 64],
    [["schools", "revoke", "north", "--database-url", "postgres://x@127.0.0.1:1/x"], 64],
    [["config", "validate", "--config", "/nowhere.ts"], 78],
    [["completions", "tcsh"], 64],
    [["check", "--url", "http://127.0.0.1:1"], 3],
    [["check", "--bogus"], 3],
    [["check", "frobs"], 3],
    [["check", "--warning", "1"], 3],
    [["check", "tables", "--warning", "1"], 3],
    [["check", "lag", "--warning", "5", "--critical", "1"], 3],
  ])("%j exits %i", async (args, code) => {
    const ran = await run(args)
    expect([ran.code, ran.out === "" || ran.err === ""]).toEqual([code, true])
    if (code > 3) expect(ran.err).not.toBe("")
  })

  it("a school key with a typing error ends the start with words that do not show it, also from a file", async () => {
    const { text } = newKey()
    const wrong = text.replace(/.$/, (last) => (last === "0" ? "1" : "0"))
    const file = join(mkdtempSync(join(tmpdir(), "schoolbus-key-")), "key")
    writeFileSync(file, `${wrong}\n`)
    const where = ["school", "--hub", "http://127.0.0.1:1", "--data-dir", "/nowhere/at/all"]
    const runs = [await run([...where, "--key", wrong]), await run([...where, "--key-file", file])]
    expect(runs.map(({ code }) => code)).toEqual([64, 78])
    for (const { err } of runs) {
      expect(err).toMatch(/typing error.*\n.*rotate-key/)
      expect(err).not.toContain(wrong.slice(20))
    }
  })

  it("a config file that is not there is said to be so, with how to name another", async () => {
    const ran = await run(["config", "validate", "--config", "/nowhere.ts"])
    expect(ran.err).toContain("/nowhere.ts:\n  - there is no such file; name yours with --config\n")
  })

  it("a config that does not parse is answered with the place", async () => {
    const file = join(mkdtempSync(join(tmpdir(), "schoolbus-config-")), "broken.config.ts")
    writeFileSync(file, "export default {\n  tables: { pupils: { audience: all\n")
    const ran = await run(["config", "validate", "--config", file])
    expect([ran.code, ran.err]).toEqual([78, expect.stringMatching(/cannot be read: .*(line 2|:2:)/s)])
    rmSync(dirname(file), { recursive: true })
  })

  it("loads: each module that the table names is there, and each example parses", async () => {
    const { COMMANDS } = await import("../../src/cli/commands.ts")
    for (const command of COMMANDS) expect(await command.load(), command.name).toBeTypeOf("function")
  })

  it.each(["verify", "conflicts auto-resolve", "tables resume"])("waits longer for %s, at which the node works for a while", async (name) => {
    const { COMMANDS } = await import("../../src/cli/commands.ts")
    const timeout = COMMANDS.find((command) => command.name === name)?.options.find((option) => option.name === "timeout")
    expect(Number(timeout?.default)).toBeGreaterThanOrEqual(30)
  })

  it.each(["bash", "zsh"])("has completions that %s accepts", async (shell) => {
    const { out } = await run(["completions", shell])
    expect(out).toContain("schools")
    const code = await new Promise((done) => {
      const child = spawn("bash", ["-n"])
      child.on("close", done)
      child.stdin.end(out)
    })
    expect(code).toBe(0)
  })

  it.each(["bash", "zsh", "fish"])("has completions of %s that offer the names of checks, and of shells", async (shell) => {
    const { out } = await run(["completions", shell])
    expect(out).toMatch(/check.*postgres stream tables .*verify/)
    expect(out).toMatch(/completions.*bash zsh fish/)
  })
})

describe("against a node", () => {
  it("says once what to do when Postgres does not answer", async () => {
    const { code, err } = await run(["conflicts", "undo", AWAY, "--url", url])
    expect([code, err.match(/try again/g)?.length]).toEqual([75, 1])
  })

  it("prints the status for people, and one object for programs", async () => {
    snapshot = aHub()
    const human = await run(["status", "--url", url], { LANG: "C" })
    expect([human.code, human.err]).toEqual([0, ""])
    expect(human.out).toContain("ok Up to date")
    expect(human.out).not.toContain("\u001B")
    const json = await run(["status", "--json"], { SCHOOLBUS_URL: url })
    expect(JSON.parse(json.out)).toEqual(snapshot)
    expect((await run(["status", "--url", url], { FORCE_COLOR: "1" })).out).toContain("\u001B[")
  })

  it("a long answer arrives whole at a program that reads it late", async () => {
    snapshot = aHub({ reason: "long ".repeat(60_000) })
    const deno = runtimeName.startsWith("deno") ? "run -A" : ""
    const line = `"${process.execPath}" ${deno} src/main.ts status --json --url ${url} | (sleep 1; cat)`
    const out = await new Promise<string>((done, fail) =>
      execFile("sh", ["-c", line], { maxBuffer: 2 ** 24 }, (error, text) => (error === null ? done(text) : fail(error))),
    )
    expect(JSON.parse(out)).toEqual(snapshot)
  })

  it.each(["", "--json"])("a watch ends without a word when its reader has gone: %s", async (json) => {
    snapshot = aHub()
    const deno = runtimeName.startsWith("deno") ? "run -A" : ""
    const line = `"${process.execPath}" ${deno} src/main.ts status --watch ${json} --url ${url} | head -n 1`
    const [out, err] = await new Promise<[string, string]>((done, fail) =>
      execFile("sh", ["-c", line], { timeout: 30_000 }, (error, text, words) => (error === null ? done([text, words]) : fail(error))),
    )
    expect([out.split("\n").length, err]).toEqual([2, ""])
  })

  it.skipIf(!existsSync("/dev/full"))("an answer that could not be written is a failure", async () => {
    snapshot = aHub()
    const deno = runtimeName.startsWith("deno") ? "run -A" : ""
    const line = `"${process.execPath}" ${deno} src/main.ts status --url ${url} > /dev/full`
    const [code, err] = await new Promise<[unknown, string]>((done) =>
      execFile("sh", ["-c", line], { timeout: 30_000 }, (error, _, words) => done([error?.code ?? 0, words])),
    )
    expect([code, err]).toEqual([1, expect.stringMatching(/^schoolbus: the answer could not be written: .*no space left.*\n$/i)])
  })

  it.each<[Snapshot, number, string]>([
    [aHub(), 0, "SCHOOLBUS OK - "],
    [
      aHub({ schools: [aSchoolView("north"), aSchoolView("south", { state: "offline" })] }),
      1,
      "SCHOOLBUS WARNING - 1 of 2 schools offline: south | ",
    ],
    [aHub({ postgres: false, state: "offline", slot: null }), 2, "SCHOOLBUS CRITICAL - Postgres does not answer"],
    [aHub({ schools: [] }), 3, "SCHOOLBUS UNKNOWN - no school is enrolled"],
  ])("check answers one line and its code", async (state, code, line) => {
    snapshot = state
    const ran = await run(["check", "--url", url])
    expect([ran.code, ran.err, ran.out.split("\n").length]).toEqual([code, "", 2])
    expect(ran.out.startsWith(line)).toBe(true)
    const json = JSON.parse((await run(["check", "--url", url, "--json"])).out)
    expect(ran.out).toContain(json.level)
  })

  it("syncs, and says to come again when nothing was started", async () => {
    asked = []
    expect(await run(["sync", "--url", url, "--direction", "up", "--tables", "marks,attendance"])).toEqual({
      code: 0,
      out: "sync started\n",
      err: "",
    })
    expect((await run(["sync", "--url", url, "--school", "gone"])).code).toBe(75)
    expect((await run(["sync", "--url", url, "--direction", "sideways"])).code).toBe(64)
    expect(asked).toMatchObject([{ direction: "up", tables: ["marks", "attendance"], by: "api" }, { school: "gone" }])
  })

  it("says what is wrong with a value, and which node answers what this one does not", async () => {
    const bad = await run(["conflicts", "list", "--limit", "0", "--url", url])
    expect([bad.code, bad.err]).toEqual([64, expect.stringMatching(/query is not as expected: limit: .*1/)])
    const elsewhere = await run(["devices", "list", "--url", url])
    expect([elsewhere.code, elsewhere.err]).toEqual([1, expect.stringContaining("terminals are asked for at a school's node")])
  })

  it("lists, shows and refuses conflicts", async () => {
    expect(await run(["conflicts", "list", "--url", url])).toEqual({ code: 0, out: "No conflict waits for a decision.\n", err: "" })
    expect((await run(["conflicts", "show", ID, "--url", url])).code).toBe(1)
    expect((await run(["conflicts", "show", "nonsense", "--url", url])).code).toBe(64)
    expect((await run(["conflicts", "resolve", ID, "--url", url])).code).toBe(64)
    const refused = await run(["conflicts", "resolve", ID, "--url", url, "--keep", "school", "--json"])
    expect([refused.code, JSON.parse(refused.out)]).toMatchObject([1, { code: "conflict_not_possible", exit: 1 }])
    for (const more of [
      ["--keep", "nonsense"],
      ["--value", "0722 x"],
      ["--keep", "vps", "--value", "1"],
    ])
      expect((await run(["conflicts", "resolve", ID, "--url", url, ...more])).code).toBe(64)
    for (const more of [
      ["--keep", "rename_local"],
      ["--keep", "CENTRAL_WINS"],
      ["--value", '"0722"'],
      ["--keep", "rename_local", "--value", '"x"'],
    ])
      expect((await run(["conflicts", "resolve", ID, "--url", url, ...more])).code).toBe(1)
    expect((await run(["conflicts", "undo", ID, "--url", url])).code).toBe(1)
    const auto = await run(["conflicts", "auto-resolve", "--max", "3", "--url", url])
    expect([auto.code, auto.out]).toEqual([0, `${ID}  left: a person decides (3)\n0 decided, 1 left to a person.\n`])
  })

  it("lists, shows, edits and refuses quarantined changes", async () => {
    expect(await run(["quarantine", "list", "--url", url])).toEqual({ code: 0, out: "No change waits in quarantine.\n", err: "" })
    expect((await run(["quarantine", "show", ID, "--url", url])).code).toBe(1)
    for (const action of ["retry", "discard"]) expect((await run(["quarantine", action, ID, "--url", url])).err).toContain(action)
    expect((await run(["quarantine", "edit", ID, "--url", url])).code).toBe(64)
    expect((await run(["quarantine", "edit", ID, "--set", "x", "--url", url])).code).toBe(64)
    expect((await run(["quarantine", "edit", ID, "--set", '{"a": 1}', "--url", url])).err).toContain('"values":{"a":1}')
  })

  it("retries and discards many quarantined changes, with the count, and none that was not asked for", async () => {
    const one = (n: number, part: object = {}) => ({ id: ID.replace(/^.{8}/, String(n).padStart(8, "0")), ...aChange, ...part })
    // Newest first, as a node lists them; 1 goes only when 2 is gone, and 3 never does.
    quarantined = [one(4, { table: "public.marks" }), one(3, { waitsFor: one(3).id }), one(2), one(1, { waitsFor: one(2).id })]
    const many = (...args: ReadonlyArray<string>) => run(["quarantine", ...args, "--url", url])
    for (const args of [["retry"], ["discard"], ["discard", "--yes"], ["retry", ID, "--all"], ["discard", ID, "--table", "pupils", "--yes"]])
      expect((await many(...args)).code).toBe(64)
    const unsure = await many("discard", "--all")
    expect([unsure.code, unsure.err]).toEqual([
      64,
      expect.stringContaining("4 changes of 1 school will be given up; without a terminal quarantine discard needs --yes"),
    ])
    expect(quarantined).toHaveLength(4)
    const retried = await many("retry", "--table", "pupils", "--reason", "check")
    expect([retried.code, retried.out]).toEqual([1, `${one(3).id}  left: This change cannot be decided so: {"action":"retry"}\n2 retried, 1 left.\n`])
    expect(quarantined.map(({ id }) => id)).toEqual([one(4).id, one(3).id])
    const env = await run(["quarantine", "discard", one(4).id, "--url", url], { SCHOOLBUS_SCHOOL: "north" })
    expect([env.code, quarantined.length]).toEqual([0, 1])
    const discarded = await many("discard", "--all", "--yes", "--json")
    expect([discarded.code, JSON.parse(discarded.out)]).toEqual([0, { done: [one(3).id], left: [] }])
    expect(await many("discard", "--all", "--yes")).toEqual({ code: 0, out: "0 discarded, 0 left.\n", err: "" })
    quarantined = Array.from({ length: 1_203 }, (_, n) => one(n))
    expect((await many("discard", "--reason", "check", "--yes")).out).toBe("1,203 discarded, 0 left.\n")
    expect(quarantined).toEqual([])
  })

  it("needs the token where the node has one, from flag, variable or file", async () => {
    const there = `http://127.0.0.1:${locked.port}`
    const refused = await run(["status", "--url", there])
    expect([refused.code, refused.err.includes("SCHOOLBUS_ADMIN_TOKEN")]).toEqual([77, true])
    expect((await run(["status", "--url", there, "--admin-token", "s3cret"])).code).toBe(0)
    expect((await run(["status", "--url", there], { SCHOOLBUS_ADMIN_TOKEN: "s3cret" })).code).toBe(0)
    expect((await run(["status", "--url", there, "--admin-token", "wrong"])).code).toBe(77)
    expect((await run(["check", "--url", there])).code).toBe(3)
  })

  it("says that a certificate is not accepted, not that nobody answers", async (context) => {
    const folder = mkdtempSync(join(tmpdir(), "schoolbus-tls-"))
    const [key, cert] = [join(folder, "key.pem"), join(folder, "cert.pem")]
    const request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "1", "-subj", "/CN=localhost"]
    if (spawnSync("openssl", request).status !== 0) return context.skip()
    const server = createServer({ key: readFileSync(key), cert: readFileSync(cert) }, (_, response) => void response.end("{}"))
    await new Promise<void>((done) => void server.listen(0, "127.0.0.1", done))
    const ran = await run(["status", "--url", `https://127.0.0.1:${(server.address() as AddressInfo).port}`])
    server.close()
    rmSync(folder, { recursive: true })
    expect([ran.code, ran.err]).toEqual([69, expect.stringMatching(/the certificate of https:.* is not accepted .*\n.*NODE_EXTRA_CA_CERTS/)])
  })

  it("tells a sign-in page from a node", async () => {
    const page = await serve({
      port: 0,
      hostname: "127.0.0.1",
      idleSeconds: 30,
      maxBodyBytes: 1000,
      fetch: () => new Response("<html>Welcome to the hotel</html>"),
    })
    try {
      const ran = await run(["status", "--url", `http://127.0.0.1:${page.port}`])
      expect([ran.code, ran.err.includes("not as a schoolbus node")]).toEqual([69, true])
    } finally {
      await page.stop()
    }
  })
})
