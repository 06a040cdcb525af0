/** What a person is advised about an open conflict, and whether that is safe to do without one (pure). */
import type { Choice } from "../model/choice.ts"

/** Created so lately that nobody uses the value yet. */
const FRESH_MS = 3_600_000

/** Where nothing declares it, such a column may refer to another row: another number is another pupil. A free text never is one (`A-7-2`). */
const IS_NUMBER_OR_UUID = /^-?\d+(\.\d+)?$|^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/

export interface Recommendation extends Choice {
  /** `auto-resolve` does it. */
  readonly safe: boolean
  readonly why: string
}

export interface Asked {
  readonly kind: string
  readonly status: string
  readonly column: string | null
  readonly suggestion: string | null
  readonly theirs: string | null
  readonly at: string
  readonly mineAt: string | null
  readonly theirsAt: string | null
}

/** null: nothing is open. */
export const recommend = (conflict: Asked, now: number): Recommendation | null => {
  const { kind, status, suggestion, theirs, at, mineAt, theirsAt } = conflict
  if (status !== "open") return null
  if (kind === "unique") {
    if (suggestion === null)
      return theirs === null
        ? { keep: "discard", safe: false, why: "the value is taken and no free one is known: give a value, or discard the change" }
        : { keep: "keep_remote", safe: false, why: "no free value is known: a person decides" }
    const value: unknown = JSON.parse(suggestion)
    if (IS_NUMBER_OR_UUID.test(String(value)))
      return { keep: "rename_local", value, safe: false, why: `${suggestion} is free, but a number may name something else: a person decides` }
    const isFresh = now - Date.parse(mineAt ?? at) <= FRESH_MS
    return { keep: "rename_local", value, safe: true, why: isFresh ? "created within the hour: nobody uses the value yet" : `${suggestion} is free` }
  }
  const [mine, office] = [mineAt, theirsAt].map((time) => (time === null ? null : Date.parse(time)))
  if (office != null && mine != null && office >= mine) return { keep: "vps", safe: true, why: "head office's value is the newer one" }
  return {
    keep: "school",
    safe: false,
    why: office == null ? "when head office wrote is not known: a person decides" : "the school's value is the newer one: a person decides",
  }
}
