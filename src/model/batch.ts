/** A batch as bytes: NDJSON, first `["batch", header]`, then one change a line. The same batch always gives the same bytes. */
import type { Change } from "./change.ts"

/** The hub was heard after change `change` was captured and before the next; `own`, `server`: ms since 1970 by either clock. */
export type Contact = readonly [change: number, own: number, server: number]

export interface BatchHeader {
  readonly incarnation: string
  /** The first life of the file, when this is a later one: a copy of it may have brought some of the changes. */
  readonly origin?: string
  readonly number: number
  /** Version of the manifest under which the changes were captured. */
  readonly manifest: number
  /** The last contact before the changes and those between them, in order: they correct the capture times. */
  readonly contacts: ReadonlyArray<Contact>
  readonly changes: number
}

/** One change as a line. Values for which it has no room stay in the school's file, and the change says so. */
export const MAX_CHANGE_BYTES = 60 * 1024 * 1024

export const encodeChange = (change: Change): string => `${JSON.stringify(change)}\n`

/** `lines`: the changes, each as `encodeChange` gives it. */
export const encodeBatch = (header: BatchHeader, lines: ReadonlyArray<string>): string => `${JSON.stringify(["batch", header])}\n${lines.join("")}`
