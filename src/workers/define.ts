/** What a worker module exports: `export default worker({ on: { punches: ["insert"] }, async handle(batch, ctx) { … } })`. */

export interface WorkerEvent {
  /** Rising; an event is delivered again with the same id until a batch with it has been handled. */
  readonly id: number
  /** Name in the school's file: `"punches"`. */
  readonly table: string
  readonly op: "insert" | "update" | "delete"
  /** Local key: `'b2f…'` */
  readonly key: string
  /** The row as it stands now; null when it is gone. */
  readonly row: Readonly<Record<string, unknown>> | null
}

export interface WorkerContext {
  readonly log: (line: string) => void
  /** Appends a line to a file in the node's data folder. */
  readonly append: (file: string, line: string) => Promise<void>
}

export interface WorkerModule {
  readonly on: Readonly<Record<string, ReadonlyArray<"insert" | "update" | "delete">>>
  readonly handle: (batch: ReadonlyArray<WorkerEvent>, ctx: WorkerContext) => Promise<void> | void
}

/** Only adds types. */
export const worker = (module: WorkerModule): WorkerModule => module
