/** A batch as bytes: NDJSON, first `["batch", header]`, then one change a line. The same batch always gives the same bytes. */
import type { Change } from "./change.ts"

export interface BatchHeader {
  readonly incarnation: string
  readonly number: number
  /** Version of the manifest under which the changes were captured. */
  readonly manifest: number
  /** Server time minus school time at the last contact, ms: corrects the capture times. */
  readonly clockOffset: number
  /** School time of that contact, ms since 1970; 0 = never. */
  readonly contactAt: number
  readonly changes: number
}

export const encodeChange = (change: Change): string => `${JSON.stringify(change)}\n`

/** `lines`: the changes, each as `encodeChange` gives it. */
export const encodeBatch = (header: BatchHeader, lines: ReadonlyArray<string>): string => `${JSON.stringify(["batch", header])}\n${lines.join("")}`
