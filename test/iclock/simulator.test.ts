/** The simulator as a program, on each runtime that is here. */
import { spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { fileURLToPath } from "node:url"
import { afterEach, expect, it } from "vitest"
import { type Node, openNode } from "./node.ts"

const program = fileURLToPath(new URL("../../device/simulator.ts", import.meta.url))
const runtimes: ReadonlyArray<readonly [string, ReadonlyArray<string>]> = [
  ["bun", []],
  ["deno", ["run", "-A"]],
]

let node: Node
afterEach(() => node.close())

it.each(runtimes.filter(([runtime]) => spawnSync(runtime, ["--version"]).status === 0))(
  "%s runs it: it punches, holds users and ends when told",
  async (runtime, options) => {
    node = await openNode()
    await node.student("Amina Okafor")
    await node.approve("SIM0000001")
    const child = spawn(runtime, [...options, program, "--server", `http://127.0.0.1:${node.port}`, "--serial", "SIM0000001", "--interval", "0.05"])
    let out = ""
    child.stdout.on("data", (chunk) => {
      out += String(chunk)
    })
    const said = async (text: string): Promise<void> => {
      while (!out.includes(text)) await once(child.stdout, "data")
    }
    await said("user 1 Amina Okafor stored")
    child.stdin.write("punch 1 2026-03-03 07:41:15\n")
    await said("server took 1 punches: OK: 1")
    child.stdin.write("users\n")
    await said('[{"pin":"1","name":"Amina Okafor"')
    child.stdin.write("quit\n")
    const [code] = (await once(child, "exit")) as [number]
    expect(code).toBe(0)
    expect(node.rows("SELECT at FROM punches")).toEqual([["2026-03-03 07:41:15"]])
  },
)

it("a mistake on the command line ends it with the usage", async () => {
  node = await openNode()
  const { status, stderr } = spawnSync("bun", [program, "--serial", "A"])
  expect(status).toBe(64)
  expect(stderr.toString()).toContain("--server")
})
