/** `demo`: runs scripts/demo.ts in a process of its own, so that everything it started ends with it. */
import { spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import { runtimeName } from "../runtime.ts"
import type { Io } from "./io.ts"
import { EXIT, type Input } from "./options.ts"

export const run = (input: Input, _io: Io): Promise<number> => {
  const script = fileURLToPath(new URL("../../scripts/demo.ts", import.meta.url).href)
  const child = spawn(
    process.execPath,
    [...(runtimeName.startsWith("deno") ? ["run", "-A"] : []), script, ...(input.flag("check") ? ["--check"] : [])],
    { stdio: "inherit" },
  )
  // Ctrl-C reaches the demo by itself; this process waits until it has cleaned up.
  const ignore = () => undefined
  // By its id: Deno reports a child that was ended with `child.kill` as killed, whatever code it ended with.
  const forward = () => void (child.pid === undefined || process.kill(child.pid, "SIGTERM"))
  process.on("SIGINT", ignore).on("SIGTERM", forward)
  return new Promise((done, failed) => {
    child.once("error", failed)
    child.once("exit", (code) => {
      process.off("SIGINT", ignore).off("SIGTERM", forward)
      done(code ?? EXIT.failed)
    })
  })
}
