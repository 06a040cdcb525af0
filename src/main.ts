#!/usr/bin/env bun
/** Entry: the only place that reads the process's arguments and environment. */
import { ioOf } from "./cli/io.ts"
import { runCommand } from "./cli/run.ts"

const io = ioOf(process.env, process.stdout, process.stderr, process.stdin)
let code = await runCommand(process.argv.slice(2), process.env, io)

// What is still in a pipe goes out before the process ends: a cut answer is no answer. A stream that has failed is not waited for.
const flushed = (stream: NodeJS.WriteStream) => new Promise<void>((done) => void stream.once("error", () => done()).end(() => done()))
if (io.lost() === null) await flushed(process.stdout)
const lost = io.lost()
// A reader that has gone, as `head` does, wanted no more.
if (lost !== null && lost.code !== "EPIPE") {
  io.err(`schoolbus: the answer could not be written: ${lost.message}\n`)
  code = code === 0 ? 1 : code
}
await flushed(process.stderr)
process.exit(code)
