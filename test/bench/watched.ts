/**
 * A node as its command starts it, with its event loop watched: how late it was since the last SIGUSR2 stands in a file beside
 * its log, renewed all the time.
 */
import { rename, writeFile } from "node:fs/promises"
import { monitorEventLoopDelay } from "node:perf_hooks"
import process from "node:process"

const WRITE_MS = 500
const NS_PER_MS = 1e6

const delays = monitorEventLoopDelay({ resolution: 10 })
delays.enable()
process.on("SIGUSR2", () => delays.reset())
const file = `${process.pid}.loop.json`
/** Not on the event loop that is watched: a busy disk takes its time. */
const write = async (): Promise<void> => {
  await writeFile(`${file}.new`, JSON.stringify({ p999: delays.percentile(99.9) / NS_PER_MS, most: delays.max / NS_PER_MS }))
  await rename(`${file}.new`, file)
}
const writeOn = (): void => {
  setTimeout(() => void write().finally(writeOn), WRITE_MS).unref()
}
writeOn()

await import("../../src/main.ts")
