/**
 * What a worker module is. A file of the `workers/` folder beside the config, with a default export:
 *
 *     export default worker({
 *       on: { punches: ["insert"] },
 *       async handle(events, ctx) { for (const { row } of events) await ctx.append("punches.txt", `${row?.pin} ${row?.at}`) },
 *     })
 *
 * It runs in a Web Worker of its own, on either runtime. Every event comes at least once: after a failure or a restart some
 * come again. `worker` only adds types; a plain object does as well.
 */

export type WorkerOp = "insert" | "update" | "delete"
/** Whole numbers beyond 2^53 come as bigint. */
export type WorkerValue = null | number | bigint | string | Uint8Array
export type WorkerRow = Readonly<Record<string, WorkerValue>>

/** One write, by a program of the school or from head office. */
export interface WorkerEvent {
  /** Rising; the same event has the same id when it comes again. */
  readonly id: number
  /** As the school's file calls it: `"students"`. */
  readonly table: string
  readonly op: WorkerOp
  readonly key: ReadonlyArray<WorkerValue>
  /** The row as it stands now, which may be newer than the event; null = it is gone. */
  readonly row: WorkerRow | null
}

export interface WorkerContext {
  /** The module's name: its file name without the ending. */
  readonly module: string
  /** One line into the node's log. */
  readonly log: (line: string) => void
  /** Adds a line to a file in the module's own output folder, `<data dir>/workers/<module>/`. */
  readonly append: (file: string, line: string) => Promise<void>
  /** A row of any synced table by its key; null = there is none. */
  readonly row: (table: string, key: WorkerValue | ReadonlyArray<WorkerValue>) => Promise<WorkerRow | null>
}

export interface WorkerModule {
  /** Tables and what to hear of them. */
  readonly on: Readonly<Record<string, ReadonlyArray<WorkerOp>>>
  /** Done when it returns. When it throws, or takes longer than `timeoutSeconds`, the events come again, one by one. */
  readonly handle: (events: ReadonlyArray<WorkerEvent>, ctx: WorkerContext) => void | Promise<void>
  /** Default 30. */
  readonly timeoutSeconds?: number
}

export const worker = (module: WorkerModule): WorkerModule => module
