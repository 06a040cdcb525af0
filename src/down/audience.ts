/**
 * Which schools a row belongs to (pure). An audience is a small number: 0 every school, -1 nobody, else one value of an
 * audience column. A row of a `through` table has the audiences of the rows that meet it: its links.
 */
import { type Audience, isThrough, type Table } from "../model/table.ts"
import type { Kind } from "../model/value.ts"
import { tokenText } from "./body.ts"
import type { Tokens } from "./decode.ts"

export const EVERY_SCHOOL = 0
export const NOBODY = -1

/** `all` and null need no value; a column's value is the text that Postgres prints, so `"a"` and `5` give `a` and `5`. */
export type AudienceValue = { readonly no: typeof EVERY_SCHOOL | typeof NOBODY } | { readonly value: string }

/** Position of the audience column among the table's columns; -1 when there is none. */
export const audiencePosition = (audience: Audience, columns: ReadonlyArray<{ readonly name: string }>): number =>
  audience === "all" || isThrough(audience) ? -1 : columns.findIndex((column) => column.name === audience.column)

/** null when the row's audience column is not in `tokens` (unchanged, out of line). */
export const audienceOf = (position: number, tokens: Tokens): AudienceValue | null => {
  if (position === -1) return { no: EVERY_SCHOOL }
  const token = tokens[position]
  if (token === undefined) return null
  if (token === "null") return { no: NOBODY }
  return { value: token.charCodeAt(0) === 34 ? (JSON.parse(token) as string) : token }
}

/** Values of audience columns that are remembered as they stand in tokens. */
const REMEMBERED = 4_096

/** `audienceOf`, quicker: most rows have an audience that was met before. */
export const rememberAudiences = (): typeof audienceOf => {
  const known = new Map<string, AudienceValue>()
  return (position, tokens) => {
    const token = position === -1 ? undefined : tokens[position]
    const before = token === undefined ? undefined : known.get(token)
    if (before !== undefined) return before
    const audience = audienceOf(position, tokens)
    if (token === undefined || audience === null) return audience
    if (known.size >= REMEMBERED) known.clear()
    known.set(token, audience)
    return audience
  }
}

/** Tables whose rows the hub keeps for itself: no school ever sees them. */
export const isHubOnly = (table: Pick<Table, "name">): boolean => table.name === "schoolbus.schools" || table.name === "schoolbus.school_keys"

/** The columns by which rows of one side of a rule meet those of the other, in the rule's order. A rule has its table's id. */
export interface Side {
  readonly rule: number
  readonly columns: ReadonlyArray<{ readonly position: number; readonly kind: Kind }>
}

/** The part that a table has in `through` rules. */
export interface Route {
  /** Links before the rows that they place: 0 when the table's own rule needs no other table. */
  readonly level: number
  /** How its own rows are placed; null: by a column, or for all. */
  readonly own: (Side & { readonly link: number }) | null
  /** The rules whose links its rows are. */
  readonly places: ReadonlyArray<Side>
}

interface Known {
  readonly id: number
  readonly table: Table
}

/** By table id; tables that no `through` rule speaks of are left out. */
export const planRoutes = (tables: ReadonlyArray<Known>): ReadonlyMap<number, Route> => {
  const byName = new Map(tables.map((known) => [known.table.name, known]))
  const side = (rule: number, table: Table, names: ReadonlyArray<string>): Side => ({
    rule,
    columns: names.map((name) => {
      const position = table.columns.findIndex((column) => column.name === name)
      return { position, kind: table.columns[position]?.kind ?? "text" }
    }),
  })
  const levelOf = ({ table }: Known): number => {
    const link = isThrough(table.audience) ? byName.get(table.audience.through) : undefined
    return link === undefined ? 0 : 1 + levelOf(link)
  }
  const routes = new Map<number, Route>()
  const routeOf = (known: Known): Route => routes.get(known.id) ?? { level: levelOf(known), own: null, places: [] }
  for (const known of tables) {
    const { audience } = known.table
    const link = isThrough(audience) ? byName.get(audience.through) : undefined
    if (!isThrough(audience) || link === undefined) continue
    routes.set(known.id, { ...routeOf(known), own: { ...side(known.id, known.table, Object.keys(audience.on)), link: link.id } })
    const route = routeOf(link)
    routes.set(link.id, { ...route, places: [...route.places, side(known.id, link.table, Object.values(audience.on))] })
  }
  return routes
}

/** What rows of the two sides must have in common, as one text; null meets nothing. */
export const meetingValue = ({ columns }: Side, tokens: Tokens): string | null => {
  const texts = columns.map(({ position, kind }) => tokenText(kind, tokens[position] ?? "null"))
  return texts.includes(null) ? null : JSON.stringify(texts)
}

/** Audiences of a row's links -> its own: every school holds all others; without a link it belongs to nobody. */
export const placed = (audiences: Iterable<number>): ReadonlyArray<number> => {
  const distinct = [...new Set(audiences)].filter((no) => no !== NOBODY)
  return distinct.includes(EVERY_SCHOOL) ? [EVERY_SCHOOL] : distinct.length === 0 ? [NOBODY] : distinct.sort((a, b) => a - b)
}

/**
 * Tables that the stream must bring: those whose rows come down, and the links that place them, also where a link's own
 * rows only go up.
 */
export const streamedTables = (tables: ReadonlyArray<Table>): ReadonlySet<string> => {
  const byName = new Map(tables.map((table) => [table.name, table]))
  const streamed = new Set<string>()
  const add = (table: Table | undefined): void => {
    if (table === undefined || streamed.has(table.name)) return
    streamed.add(table.name)
    if (isThrough(table.audience)) add(byName.get(table.audience.through))
  }
  for (const table of tables) if (table.direction !== "up") add(table)
  return streamed
}
