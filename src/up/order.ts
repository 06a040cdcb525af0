/** Pairs of values -> those whose left one stands after the right one, in Postgres' order of the column's type. */
import * as Effect from "effect/Effect"
import { isTransient, type PostgresError, type Session } from "../postgres/client.ts"
import { asKey, unnest } from "./lists.ts"
import type { ColumnShape } from "./shape.ts"

export interface Compared {
  readonly column: ColumnShape
  /** Values as Postgres prints them. */
  readonly left: string
  readonly right: string
}

/** One statement per type. Of a type that has no order nothing is greater. */
export const whichGreater = <A extends Compared>(session: Session, pairs: ReadonlyArray<A>): Effect.Effect<ReadonlyArray<A>, PostgresError> =>
  Effect.gen(function* () {
    const greater: Array<A> = []
    for (const own of Map.groupBy(pairs, (pair) => pair.column.base).values()) {
      const column = own[0]?.column
      const { from, params } = unnest(
        own.map((pair, i) => [pair.left, pair.right, String(i)]),
        3,
      )
      yield* session.execute("SAVEPOINT compare")
      const rows = yield* session
        .texts(`SELECT u.u2 FROM ${from} WHERE ${asKey(column, "u.u0")} ${column?.greater} ${asKey(column, "u.u1")}`, params)
        .pipe(
          Effect.catch((error) =>
            isTransient(error)
              ? Effect.fail(error)
              : Effect.as(session.execute("ROLLBACK TO SAVEPOINT compare"), [] as ReadonlyArray<ReadonlyArray<string>>),
          ),
        )
      yield* session.execute("RELEASE SAVEPOINT compare")
      for (const [index] of rows) {
        const pair = own[Number(index)]
        if (pair !== undefined) greater.push(pair)
      }
    }
    return greater
  })
