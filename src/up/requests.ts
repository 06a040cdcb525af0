/**
 * Decisions that people made in a school, also without the internet, and what its node asks to be recorded (doubt.ts): rows that
 * come up with a push, in their place among the school's own edits. Each is carried out in the push's transaction and answered in its row, which comes down again. A
 * school decides only about its own records.
 */
import * as Effect from "effect/Effect"
import { isTransient, type PostgresError, type Session } from "../postgres/client.ts"
import { asAnswer, type Decider, decideIn, undoIn } from "./decide.ts"
import { recordDoubt } from "./doubt.ts"
import type { Origin } from "./records.ts"
import type { Outcome } from "./work.ts"
import { discardIn, editIn, type QuarantineRefused, retryIn } from "./quarantine.ts"
import { DecideRefused } from "./refused.ts"
import { DIFFERS, parseChoice } from "../model/choice.ts"

const REQUESTS = "schoolbus.requests"

interface Request {
  readonly id: string
  readonly action: string
  readonly target: string
  readonly choice: string | null
  readonly by: string
}

export const carryOutRequests = (
  session: Session,
  decider: Decider,
  origin: Origin,
  outcomes: ReadonlyArray<Outcome>,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const ids = outcomes.flatMap(({ row, decision, refusal }) =>
      row.table === REQUESTS && refusal === null && decision?.write === "insert" ? [String(row.key[0])] : [],
    )
    for (const id of ids) {
      const [request] = yield* session.query<Request>(
        "SELECT id::text AS id, action, target, choice, by FROM schoolbus.requests WHERE id = $1::text::uuid AND school = $2 AND status = 'sent'",
        [id, origin.school],
      )
      if (request === undefined) continue
      const message = yield* asAnswer(session, carryOutOne(session, decider, origin, request)).pipe(
        Effect.as(null),
        Effect.catch((error) => (error._tag === "PostgresError" && isTransient(error) ? Effect.fail(error) : Effect.succeed(error.message))),
      )
      yield* session.execute("UPDATE schoolbus.requests SET status = $2, message = $3 WHERE id = $1::text::uuid", [
        id,
        message === null ? "done" : "refused",
        message,
      ])
    }
  })

const carryOutOne = (
  session: Session,
  decider: Decider,
  origin: Origin,
  { action, target, choice: text, by }: Request,
): Effect.Effect<void, DecideRefused | QuarantineRefused | PostgresError> => {
  const { school } = origin
  switch (action) {
    case "resolve": {
      const choice = parseChoice(text)
      return choice === null
        ? Effect.fail(new DecideRefused({ code: "not_possible", message: "the choice cannot be read" }))
        : decideIn(session, decider, target, choice, by, school)
    }
    case DIFFERS:
      return recordDoubt(session, decider.tables, origin, { target, choice: text })
    case "undo":
      return undoIn(session, decider, target, by, school)
    case "retry":
      return retryIn(session, decider, target, by, school)
    case "discard":
      return discardIn(session, decider, target, by, school)
    case "edit":
      return editIn(session, decider, target, text, by, school)
    default:
      return Effect.fail(new DecideRefused({ code: "not_possible", message: `there is nothing called ${action}` }))
  }
}
