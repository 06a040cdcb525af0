/** Values of changes, in the spelling that Postgres prints: compared as texts from then on, and refused where a column cannot hold them. */
import * as Effect from "effect/Effect"
import { isRefused, type Kind, wireToText } from "../model/value.ts"
import type { PostgresError, Session } from "../postgres/client.ts"
import type { Refusal } from "./authorise.ts"
import { type Canonical, canonicalise, isSettled, textToWire } from "./canonical.ts"
import type { RowChange } from "./coalesce.ts"
import type { ColumnShape } from "./shape.ts"
import type { Work } from "./work.ts"

const refusedValue = (change: RowChange): Refusal | null => {
  for (const [name, value] of Object.entries(change.mine)) if (isRefused(value)) return { reason: "type", detail: `column ${name}: ${value.refused}` }
  return null
}

/** A value whose form only Postgres knows. */
interface Unspelled {
  readonly work: Work
  readonly side: "base" | "mine"
  readonly name: string
  readonly column: ColumnShape
  readonly kind: Kind
  readonly text: string
}

/** Gives every value the form in which Postgres prints it; refuses rows with a value that a column cannot hold. */
export const spell = (session: Session, works: ReadonlyArray<Work>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const unspelled: Array<Unspelled> = []
    const kinds = new Map(
      [...new Set(works.map(({ table }) => table))].map((table) => [table, new Map(table.columns.map(({ name, kind }) => [name, kind]))]),
    )
    for (const work of works) {
      work.refusal = refusedValue(work.change)
      if (work.refusal !== null) continue
      const kindOf = kinds.get(work.table)
      for (const side of ["base", "mine"] as const) {
        const values = work[side]
        for (const name in values) {
          const column = work.shape.columns.get(name)
          if (column === undefined) continue
          const kind = kindOf?.get(name) ?? "text"
          const value = values[name] ?? null
          const text = wireToText(kind, value)
          if (text === null || (isSettled(column, text) && textToWire(kind, text) === value)) continue
          unspelled.push({ work, side, name, column, kind, text })
        }
      }
    }
    const texts = new Map<ColumnShape, Set<string>>()
    for (const { column, text } of unspelled) {
      const set = texts.get(column)
      if (set === undefined) texts.set(column, new Set([text]))
      else set.add(text)
    }
    const wanted = [...texts].map(([column, set]) => ({ column, texts: [...set] }))
    const results = yield* canonicalise(session, wanted)
    const byColumn = new Map(wanted.map(({ column }, i) => [column, results[i]]))
    for (const { work, side, name, column, kind, text } of unspelled) {
      const found: Canonical = byColumn.get(column)?.get(text) ?? { text }
      const isKey = work.table.key.includes(name)
      if ("refused" in found) {
        if (side === "mine" || isKey) work.refusal ??= { reason: "type", detail: `column ${name}: ${found.refused}` }
        else work.base = Object.fromEntries(Object.entries(work.base).filter(([other]) => other !== name))
        continue
      }
      const value = textToWire(kind, found.text)
      if (value === work[side][name]) continue
      work[side] = { ...work[side], [name]: value }
      if (found.text === text) continue
      // Under another spelling of its key the row would come down as a second one.
      if (isKey)
        work.refusal ??= {
          reason: "type",
          detail: `key column ${name}: Postgres spells ${JSON.stringify(text)} as ${JSON.stringify(found.text)}; write it so`,
        }
      if (side === "mine") work.respelled = new Set([...work.respelled, name])
    }
  })
