#!/usr/bin/env bun
/** Entry: the only place that reads the process's arguments and environment. */
import { runCommand } from "./cli/run.ts"

const code = await runCommand(process.argv.slice(2), process.env)

// What is still in a pipe goes out before the process ends: a cut answer is no answer. A reader that has gone gets no more.
const flushed = (stream: NodeJS.WriteStream) => new Promise<void>((done) => void stream.once("error", () => done()).end(() => done()))
await Promise.all([flushed(process.stdout), flushed(process.stderr)])
process.exit(code)
