/** Values of changes, in the spelling that Postgres prints: compared as texts from then on, and refused where a column cannot hold them. */
import * as Effect from "effect/Effect"
import { isRefused, type Wire } from "../model/value.ts"
import type { PostgresError, Session } from "../postgres/client.ts"
import { type Refusal, textOf } from "./authorise.ts"
import { type Canonical, canonicalise, textToWire } from "./canonical.ts"
import type { RowChange } from "./coalesce.ts"
import type { Shape } from "./shape.ts"
import type { Work } from "./work.ts"

const refusedValue = (change: RowChange): Refusal | null => {
  for (const [name, value] of Object.entries(change.mine)) if (isRefused(value)) return { reason: "type", detail: `column ${name}: ${value.refused}` }
  return null
}

/** Gives every value the form in which Postgres prints it; refuses rows with a value that a column cannot hold. */
export const spell = (session: Session, works: ReadonlyArray<Work>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const texts = new Map<Shape, Map<string, Set<string>>>()
    const each = function* (work: Work): Generator<readonly [side: "base" | "mine", name: string, text: string]> {
      for (const side of ["base", "mine"] as const) {
        for (const [name, value] of Object.entries(work[side])) {
          const text = textOf(work.table, name, value)
          if (text !== null && work.shape.columns.has(name)) yield [side, name, text]
        }
      }
    }
    for (const work of works) {
      work.refusal = refusedValue(work.change)
      if (work.refusal !== null) continue
      const columns = texts.get(work.shape) ?? new Map<string, Set<string>>()
      texts.set(work.shape, columns)
      for (const [, name, text] of each(work)) {
        const set = columns.get(name)
        if (set === undefined) columns.set(name, new Set([text]))
        else set.add(text)
      }
    }
    const wanted = [...texts].flatMap(([shape, columns]) =>
      [...columns].flatMap(([name, set]) => {
        const column = shape.columns.get(name)
        return column === undefined ? [] : [{ column, texts: [...set] }]
      }),
    )
    const results = yield* canonicalise(session, wanted)
    const byColumn = new Map(wanted.map(({ column }, i) => [column, results[i]]))
    for (const work of works) {
      if (work.refusal !== null) continue
      const spelled = { base: { ...work.base } as Record<string, Wire>, mine: { ...work.mine } as Record<string, Wire> }
      const respelled = new Set<string>()
      const lookUp = (name: string, text: string): Canonical => {
        const column = work.shape.columns.get(name)
        return (column === undefined ? undefined : byColumn.get(column)?.get(text)) ?? { text }
      }
      for (const [side, name, text] of each(work)) {
        const found = lookUp(name, text)
        const isKey = work.table.key.includes(name)
        if ("refused" in found) {
          if (side === "mine" || isKey) work.refusal ??= { reason: "type", detail: `column ${name}: ${found.refused}` }
          else delete spelled.base[name]
          continue
        }
        const kind = work.table.columns.find((column) => column.name === name)?.kind ?? "text"
        const value = textToWire(kind, found.text)
        if (value === spelled[side][name]) continue
        spelled[side][name] = value
        if (found.text === text) continue
        // Under another spelling of its key the row would come down as a second one.
        if (isKey)
          work.refusal ??= {
            reason: "type",
            detail: `key column ${name}: Postgres spells ${JSON.stringify(text)} as ${JSON.stringify(found.text)}; write it so`,
          }
        if (side === "mine") respelled.add(name)
      }
      work.base = spelled.base
      work.mine = spelled.mine
      work.respelled = respelled
    }
  })
