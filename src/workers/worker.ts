/** Inside a module's Web Worker: loads the user's file, hands it events, answers when it is done. Knows no database. */
import { appendFile, mkdir } from "node:fs/promises"
import { join } from "node:path"
import type { WorkerContext, WorkerModule, WorkerRow } from "./define.ts"
import type { FromWorker, ToWorker } from "./messages.ts"

const DEFAULT_TIMEOUT_SECONDS = 30
const OPS = ["insert", "update", "delete"]

let module: WorkerModule | null = null
let context: WorkerContext | null = null
const asked = new Map<number, { readonly done: (row: WorkerRow | null) => void; readonly fail: (error: Error) => void }>()
let lastAsk = 0

const say = (message: FromWorker): void => self.postMessage(message)
const textOf = (cause: unknown): string => (cause instanceof Error ? (cause.stack ?? cause.message) : String(cause)).slice(0, 2000)

/** null: this is a worker module; else what is wrong with it. */
const faultOf = (value: unknown): string | null => {
  if (typeof value !== "object" || value === null)
    return 'has no default export; write `export default { on: { punches: ["insert"] }, handle(events, ctx) { … } }`'
  const { on, handle, timeoutSeconds } = value as Partial<Record<keyof WorkerModule, unknown>>
  if (typeof handle !== "function") return "its default export has no function `handle`"
  if (typeof on !== "object" || on === null || Object.keys(on).length === 0) return "its default export has no tables in `on`"
  for (const [table, ops] of Object.entries(on)) {
    if (!Array.isArray(ops) || ops.length === 0 || !ops.every((op) => OPS.includes(op as string)))
      return `on.${table} is not a list of ${OPS.join(", ")}`
  }
  const isTime = timeoutSeconds === undefined || (typeof timeoutSeconds === "number" && timeoutSeconds > 0 && timeoutSeconds <= 3600)
  return isTime ? null : "timeoutSeconds is not a number of seconds up to 3600"
}

const makeContext = (name: string, folder: string): WorkerContext => ({
  module: name,
  log: (line) => say({ kind: "log", line: String(line) }),
  append: async (file, line) => {
    if (!/^[\w.-]{1,100}$/.test(file) || file.startsWith(".")) throw new Error(`"${file}" is not a plain file name`)
    await mkdir(folder, { recursive: true })
    await appendFile(join(folder, file), `${line}\n`)
  },
  row: (table, key) =>
    new Promise((done, fail) => {
      const ask = ++lastAsk
      asked.set(ask, { done, fail })
      say({ kind: "ask", ask, table, key: Array.isArray(key) ? key : [key as Exclude<typeof key, ReadonlyArray<unknown>>] })
    }),
})

const load = async (message: Extract<ToWorker, { kind: "load" }>): Promise<void> => {
  try {
    const loaded = (await import(message.url)) as { readonly default?: unknown }
    const fault = faultOf(loaded.default)
    if (fault !== null) return say({ kind: "refused", error: fault })
    module = loaded.default as WorkerModule
    context = makeContext(message.module, message.folder)
    say({ kind: "loaded", on: module.on, timeoutSeconds: module.timeoutSeconds ?? DEFAULT_TIMEOUT_SECONDS })
  } catch (cause) {
    say({ kind: "refused", error: `cannot be loaded: ${textOf(cause)}` })
  }
}

const handle = async (message: Extract<ToWorker, { kind: "events" }>): Promise<void> => {
  try {
    if (module === null || context === null) throw new Error("no module is loaded")
    await module.handle(message.events, context)
    say({ kind: "done" })
  } catch (cause) {
    say({ kind: "failed", error: textOf(cause) })
  }
}

self.onmessage = (event: MessageEvent<ToWorker>) => {
  const message = event.data
  switch (message.kind) {
    case "load":
      return void load(message)
    case "events":
      return void handle(message)
    case "row": {
      const entry = asked.get(message.ask)
      asked.delete(message.ask)
      if (message.error === null) entry?.done(message.row)
      else entry?.fail(new Error(message.error))
    }
  }
}
