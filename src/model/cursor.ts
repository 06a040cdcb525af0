/**
 * How far a school got. Going down: the last applied cut, exclusive (`after`). `cut` is that cut's random 64-bit name;
 * a hub that does not know it was put back to an older state, however right the numbers look.
 */
export interface Cursor {
  /** One seq space; another epoch means that seq numbers say nothing. */
  readonly epoch: string
  readonly seq: number
  /** 16 hex digits; `"0"` before the first cut. */
  readonly cut: string
}

export const noCursor: Cursor = { epoch: "", seq: 0, cut: "0" }
