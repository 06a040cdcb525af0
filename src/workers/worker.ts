/** Runs one worker module in its own Web Worker: a batch in, done or failed out. */
import { appendFile } from "node:fs/promises"
import { basename, join } from "node:path"
import type { WorkerContext, WorkerEvent, WorkerModule } from "./define.ts"

export type ToWorker = { readonly kind: "load"; readonly url: string; readonly outDir: string } | { readonly kind: "batch"; readonly events: ReadonlyArray<WorkerEvent> }
export type FromWorker =
  | { readonly kind: "loaded"; readonly on: WorkerModule["on"] }
  | { readonly kind: "done" }
  | { readonly kind: "failed"; readonly error: string }
  | { readonly kind: "log"; readonly line: string }

let module: WorkerModule | undefined
let outDir = "."

const say = (message: FromWorker): void => self.postMessage(message)
const ctx: WorkerContext = {
  log: (line) => say({ kind: "log", line: String(line) }),
  append: (file, line) => appendFile(join(outDir, basename(file)), `${line}\n`),
}

self.onmessage = async (event: MessageEvent<ToWorker>) => {
  const message = event.data
  try {
    if (message.kind === "load") {
      outDir = message.outDir
      module = ((await import(message.url)) as { default: WorkerModule }).default
      say({ kind: "loaded", on: module.on })
    } else {
      await module?.handle(message.events, ctx)
      say({ kind: "done" })
    }
  } catch (cause) {
    say({ kind: "failed", error: cause instanceof Error ? (cause.stack ?? cause.message) : String(cause) })
  }
}
