/** What the host and a module's Web Worker say to each other. */
import type { WorkerEvent, WorkerOp, WorkerRow, WorkerValue } from "./define.ts"

export type ToWorker =
  | { readonly kind: "load"; readonly url: string; readonly module: string; readonly folder: string }
  | { readonly kind: "events"; readonly events: ReadonlyArray<WorkerEvent> }
  | { readonly kind: "row"; readonly ask: number; readonly row: WorkerRow | null; readonly error: string | null }

export type FromWorker =
  | { readonly kind: "loaded"; readonly on: Readonly<Record<string, ReadonlyArray<WorkerOp>>>; readonly timeoutSeconds: number }
  | { readonly kind: "refused"; readonly error: string }
  | { readonly kind: "done" }
  | { readonly kind: "failed"; readonly error: string }
  | { readonly kind: "log"; readonly line: string }
  | { readonly kind: "ask"; readonly ask: number; readonly table: string; readonly key: ReadonlyArray<WorkerValue> }
