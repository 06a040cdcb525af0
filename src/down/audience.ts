/** Which schools a row belongs to (pure). An audience is a small number: 0 every school, -1 nobody, else one value of an audience column. */
import type { Audience, Table } from "../model/table.ts"
import type { Tokens } from "./decode.ts"

export const EVERY_SCHOOL = 0
export const NOBODY = -1

/** `all` and null need no value; a column's value is the text that Postgres prints, so `"a"` and `5` give `a` and `5`. */
export type AudienceValue = { readonly no: typeof EVERY_SCHOOL | typeof NOBODY } | { readonly value: string }

/** Position of the audience column among the table's columns; -1 for `all`. */
export const audiencePosition = (audience: Audience, columns: ReadonlyArray<{ readonly name: string }>): number =>
  audience === "all" ? -1 : columns.findIndex((column) => column.name === audience.column)

/** null when the row's audience column is not in `tokens` (unchanged, out of line). */
export const audienceOf = (position: number, tokens: Tokens): AudienceValue | null => {
  if (position === -1) return { no: EVERY_SCHOOL }
  const token = tokens[position]
  if (token === undefined) return null
  if (token === "null") return { no: NOBODY }
  return { value: token.charCodeAt(0) === 34 ? (JSON.parse(token) as string) : token }
}

/** Tables whose rows the hub keeps for itself: no school ever sees them. */
export const isHubOnly = (table: Pick<Table, "name">): boolean => table.name === "schoolbus.schools" || table.name === "schoolbus.school_keys"
