/** Why a person's decision was not carried out. */
import * as Data from "effect/Data"

/** `not_found`; `decided`: already so, or nothing is decided yet; `not_possible`: Postgres or a rule refuses, or the row has changed since. */
export class DecideRefused extends Data.TaggedError("DecideRefused")<{
  readonly code: "not_found" | "decided" | "not_possible"
  readonly message: string
}> {}
